"""``fitwire hub``: the hub alone, in the foreground, for a login node or a service manager."""

from __future__ import annotations

import platform
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from fitwire.cli.shared import as_json, hear_options, json_option, store_option
from fitwire.errors import LinkError, UsageError
from fitwire.transport.address import Address, resolve
from fitwire.watch.hub import Hub

if TYPE_CHECKING:
    from fitwire.watch.sleapbridge import Bridge

__all__ = ["hub"]

LOOK = 0.5
"""Seconds between two looks at whether the hub's thread still is at work."""


@click.command()
@click.argument("address", required=False)
@click.option("--where", is_flag=True, help="Print the path of the socket (or the TCP address) and do nothing else.")
@hear_options
@store_option
@json_option
def hub(address: str | None, where: bool, wire: str, listen: str | None, store: str | None, as_json_: bool) -> None:
    """Gather what trainings tell, in the foreground.

    Listens at ADDRESS, or at your own socket on this machine, until Ctrl-C or SIGTERM. Exit code 1 when a hub is there
    already.

    \b
    Example:
      fitwire hub               # on the machine that trains
      fitwire hub --where       # its socket: what `ssh -L /tmp/fitwire.sock:SOCKET HOST` needs
    """
    if listen is not None and wire != "sleap":
        raise UsageError("--listen says where SLEAP's trainings report: pass it with --wire sleap")
    place = resolve(address)
    if where:
        path = str(place.path or place.text)
        click.echo(as_json({"address": place.text, "where": path}) if as_json_ else path)
        return
    with _asked_to_stop() as stop:
        running = Hub(place, store)
        bridge: Bridge | None = None
        try:
            bridge = _hear_sleap(listen, place) if wire == "sleap" else None
            if as_json_:
                click.echo(as_json({"address": place.text, "store": str(running.store_path)}))
            else:
                for line in _greeting(place, running, address is None):
                    click.echo(line)
            while not stop.wait(LOOK):
                if not running.running:
                    raise LinkError(f"the hub at {place} stopped by itself; its log says why")
        finally:
            if bridge is not None:
                bridge.close()
            running.close()


def _hear_sleap(listen: str | None, place: Address) -> Bridge:
    from fitwire.watch.sleapbridge import Bridge

    return Bridge(listen, place)


def _greeting(place: Address, running: Hub, own: bool) -> Iterator[str]:
    yield f"hub at {place}, keeping runs in {running.store_path}"
    yield f"watch it here with: fitwire watch{'' if own else f' {place.path or place.text}'}"
    if place.path is not None:
        here = platform.node()
        yield f"or from elsewhere: ssh -N -L /tmp/fitwire.sock:{place.path} {here} and fitwire watch /tmp/fitwire.sock"
    yield "Ctrl-C ends it; what it has stays in its store"


@contextmanager
def _asked_to_stop() -> Generator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; this process is the hub's own, so its signals are too."""
    stop = threading.Event()

    def heard(number: int, frame: FrameType | None) -> None:
        stop.set()

    former = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

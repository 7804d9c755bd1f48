"""That a hub can be reached through a socket that leads to it, as ``ssh -R`` and ``ssh -L`` make them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import fitwire
from fitwire import Monitor


class Forwarding:
    """A socket at ``door`` that leads to ``target`` and is no hub's: there is no lock beside it."""

    def __init__(self, door: Path, target: Path) -> None:
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(door))
        self._listener.listen()
        self._ends: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.socket(socket.AF_UNIX)
            self._ends += [here, there]
            try:
                there.connect(str(self._target))
            except OSError:
                leave(here)
                continue
            self._start(pump, here, there)
            self._start(pump, there, here)

    def close(self) -> None:
        """End all of it."""
        for end in self._ends:
            leave(end)
        for thread in self._threads:
            thread.join(10)
        for end in self._ends:
            end.close()


def leave(end: socket.socket) -> None:
    """Say to both sides that this is over; whoever waits on it wakes up."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def pump(here: socket.socket, there: socket.socket) -> None:
    """Carry bytes one way until either end closes."""
    with suppress(OSError):
        while data := here.recv(65536):
            there.sendall(data)
    leave(here)
    leave(there)


@pytest.fixture
def forwarded(fitwire_dir: Path) -> Iterator[tuple[Path, Path]]:
    """A path for a hub, and a socket that leads to it."""
    hub, door = fitwire_dir / "hub", fitwire_dir / "door"
    forwarding = Forwarding(door, hub)
    yield hub, door
    forwarding.close()


def test_a_training_reaches_the_hub_through_a_forwarded_socket(forwarded: tuple[Path, Path]) -> None:
    """As with ``ssh -R``: metrics and samples, in full."""
    hub, door = forwarded
    picture = np.random.default_rng(0).random((4, 300, 300))
    with Monitor(str(hub)) as monitor:
        with fitwire.init(str(door), name="far", wait=10) as run:
            for step in range(100):
                run.log({"loss": 1 / (step + 1)})
            run.sample("pictures", image=picture)
        watched = monitor.wait_for_run("far")
        watched.wait(timeout=30)

        assert watched.badge == "complete"
        assert len(watched.curve("loss")) == 100
        assert np.array_equal(watched.samples("pictures")[0].arrays["image"], picture)


def test_a_watcher_joins_the_hub_behind_a_forwarded_socket_and_does_not_take_its_place(
    forwarded: tuple[Path, Path],
) -> None:
    """As with ``ssh -L``: binding would take the path away from ssh."""
    hub, door = forwarded
    with Monitor(str(hub)) as monitor, fitwire.init(str(hub), name="near", wait=10) as run:
        run.log({"loss": 0.5})
        assert run.flush()
        with Monitor(str(door)) as far:
            watched = far.wait_for_run("near", timeout=30)

            assert monitor.is_hub and not far.is_hub
            assert watched.wait(until="loss < 1", timeout=30) == 0.5

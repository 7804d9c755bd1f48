"""``fitwire watch``: what goes on, live; becomes the hub if none answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import click

from fitwire.cli.shared import as_json, console, hear_options, json_option, meter_json, run_json, store_option
from fitwire.errors import UnknownRun
from fitwire.views.text import watch_live, watch_plain
from fitwire.watch.monitor import Monitor, WatchedRun
from fitwire.watch.states import State

__all__ = ["watch"]

LOST_FOR = 600.0
"""Seconds since the last word of a lost run after which it no longer counts as going on."""
LOOK = 0.25


class _Chooser:
    """Which runs to show: one that was named, else those that go on, else the newest.

    Args:
        monitor: Whose.
        ref: A name, the beginning of an id or ``last``; None for those that go on.
    """

    def __init__(self, monitor: Monitor, ref: str | None) -> None:
        self._monitor, self._ref = monitor, ref
        self._named: WatchedRun | None = None
        self._was_live = False

    def runs(self) -> Sequence[WatchedRun]:
        """To be shown now, newest first."""
        if self._ref is not None:
            return self._one(self._ref)
        known = self._monitor.runs
        live = [run for run in known if _goes_on(run)]
        self._was_live |= bool(live)
        return live or known[:1]

    def _one(self, ref: str) -> Sequence[WatchedRun]:
        if self._named is None:
            try:
                self._named = self._monitor.run(ref)
            except UnknownRun:  # it may be about to start
                return []
        return [self._named]

    def over(self) -> bool:
        """Whether what was watched has ended."""
        shown = self.runs()
        if self._ref is not None:
            return bool(shown) and shown[0].settled
        return self._was_live and not any(_goes_on(run) for run in shown)


def _goes_on(run: WatchedRun) -> bool:
    if run.state is State.LOST:
        return time.time() - run.started - run.progress.elapsed < LOST_FOR
    return not run.settled


@click.command()
@click.argument("address", required=False)
@click.option("--run", "ref", metavar="RUN", help='Only this run: a name, the beginning of an id, or "last".')
@click.option("--until-end", is_flag=True, help="End when what is watched has ended; else Ctrl-C ends it.")
@hear_options
@store_option
@json_option
def watch(
    address: str | None,
    ref: str | None,
    until_end: bool,
    wire: Literal["fw", "sleap"],
    listen: str | None,
    store: str | None,
    as_json_: bool,
) -> None:
    """Watch what goes on, live.

    Joins the hub at ADDRESS, or your own on this machine, and is the hub if none answers. A run on its own is shown in
    full, several as a list above the newest. In a pipe each epoch is a line; with --json each change of a run is an
    object, one a line.

    \b
    Example:
      fitwire watch --run digits --until-end
      fitwire watch --wire sleap      # then train with SLEAP, as ever
    """
    out = console()
    with Monitor(address, store=store, wire=wire, listen=listen) as monitor:
        chooser = _Chooser(monitor, ref)

        def until() -> bool:
            return until_end and chooser.over()

        try:
            if as_json_:
                _watch_json(monitor, chooser, until_end)
            elif out.is_terminal:
                watch_live(monitor, chooser.runs, out, until)
            else:
                watch_plain(monitor, chooser.runs, click.echo, until)
        except KeyboardInterrupt:
            pass  # how one leaves


def _watch_json(monitor: Monitor, chooser: _Chooser, until_end: bool) -> None:
    told: dict[str, str] = {}
    revision = -1
    while True:
        over = until_end and chooser.over()
        for run in chooser.runs():
            latest = {name: run.latest(name) for name in run.metrics}
            line = as_json(run_json(run) | {"latest": latest, "meter": meter_json(run)})
            if told.get(run.id) != line:
                told[run.id] = line
                click.echo(line)
        if over:
            return
        revision = monitor.wait_for_change(revision, 1.0)
        time.sleep(LOOK)

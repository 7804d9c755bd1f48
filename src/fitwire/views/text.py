"""The text view: what is known of the runs, as lines for a terminal or a pipe.

On a terminal a frame is drawn anew when something has changed, at most eight times a second and never for more than a
fifth of the time; elsewhere each epoch is a plain line. Names and texts come from peers, so they go through
``display`` and into ``rich.text.Text``, never through markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fitwire.events import Alert, Log
from fitwire.views import canvas, panels
from fitwire.views.display import NAME, display, display_lines, duration, number
from fitwire.views.gallery import draw_samples
from fitwire.watch.monitor import Monitor, WatchedRun
from fitwire.watch.states import Progress, State

__all__ = ["PLAIN_STATES", "draw", "draw_run", "how_far", "state_text", "watch_live", "watch_plain"]

FRAME = 1 / 8
"""Seconds between two frames: faster is no clearer, and over ssh each costs kilobytes."""
SHARE = 4.0
"""A frame that took so long is followed by that many times as much rest."""
IDLE = 1.0
"""Seconds after which it is looked at whether the terminal has another size."""
RECENT = 10.0
"""Seconds for which a run that has fallen silent is drawn anew each second; later this often."""
MOST_RUNS = 10
MOST_BODY = 14

_LOOKS = {
    State.WAITING: ("○", "blue"),
    State.RUNNING: ("●", "green"),
    State.PAUSED: ("‖", "yellow"),
    State.STALLED: ("◌", "yellow"),
    State.LOST: ("?", "magenta"),
    State.FINISHED: ("✓", "green"),
    State.FAILED: ("✗", "red"),
    State.INTERRUPTED: ("■", "yellow"),
}
PLAIN_STATES = {state: symbol for state, (symbol, _) in _LOOKS.items()}
_LEVELS = {"debug": "bright_black", "info": "", "warning": "yellow", "error": "red"}
_DIM = "bright_black"


def state_text(state: State, since: float | None = None) -> Text:
    """A state with its symbol, in its colour; with ``since`` (Unix seconds) for how long it has been so."""
    symbol, colour = _LOOKS[state]
    so_long = "" if since is None else f" {duration(time.time() - since)}"
    return Text(f"{symbol} {state}{so_long}", style=colour)


# -- one run


def how_far(progress: Progress, ended: bool) -> str:
    """Epoch, steps, pace and the time left, in a line; what is unknown is left out."""
    parts: list[str] = []
    if progress.epoch is not None:
        epoch = progress.epoch + 1  # people count from 1, as Keras prints it
        parts.append(f"epoch {epoch}/{progress.epochs}" if progress.epochs else f"epoch {epoch}")
    if progress.step is not None:
        done = progress.step + 1
        parts.append(f"step {done:,}/{progress.steps:,}" if progress.steps else f"step {done:,}")
    if progress.pace:
        slow = progress.pace >= 1
        parts.append(f"{progress.pace if slow else progress.pace * 1000:.3g} {'s' if slow else 'ms'}/step")
    if ended:
        parts.append(f"took {duration(progress.elapsed)}")
    elif progress.eta is not None:
        parts.append(f"{duration(progress.eta)} left")
    return "  ".join(parts)


def _heading(run: WatchedRun, width: int) -> Text:
    text = state_text(run.state)
    text.stylize("bold")
    text.append(f"  {display(run.name, NAME)}", style="bold")
    text.append(f"  {display(run.project, NAME)}", style=_DIM)
    text.append(f" on {display(run.host, NAME)}", style=_DIM)
    if len(run.ranks) > 1:
        text.append(f" · {len(run.ranks)} ranks", style=_DIM)
    text.append(f" · {display(run.badge, 60)}", style=_DIM)
    text.truncate(width, overflow="ellipsis")
    return text


def _bar(run: WatchedRun, width: int) -> RenderableType:
    progress = run.progress
    text = Text(how_far(progress, run.ended))
    text.truncate(width, overflow="ellipsis")
    room = min(40, width - len(text) - 7)
    if progress.fraction is None or room < 8:
        return text
    grid = Table.grid(padding=(0, 1))
    done = ProgressBar(1.0, progress.fraction, width=room, complete_style="green", finished_style="green")
    grid.add_row(done, f"{progress.fraction:4.0%}", text)
    return grid


def _table(rows: Sequence[panels.Row], height: int, width: int) -> Table:
    paired = any(row.val is not None for row in rows)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style=_DIM, width=width)
    table.add_column("metric", no_wrap=True, overflow="ellipsis", ratio=1, min_width=8)
    for name in ("train", "val") if paired else ("now",):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("best", justify="right", no_wrap=True)
    shown = rows if len(rows) < height else rows[: max(0, height - 2)]
    for row in shown:
        values = (row.train, row.val) if paired else (row.train,)
        cells = [Text("" if value is None else number(value)) for value in values]
        table.add_row(Text(display(row.label, NAME)), *cells, _best(row.best))
    if len(shown) < len(rows):
        table.add_row(Text(f"… {len(rows) - len(shown)} more", style=_DIM))
    return table


def _best(best: panels.Best | None) -> Text:
    if best is None:
        return Text("")
    return Text.assemble(number(best.value), (f" {best.where}", _DIM))


def _body(run: WatchedRun, width: int, height: int, colour: bool) -> RenderableType:
    """The table and, beside it, as many charts as fit."""
    rows = panels.rows(run)
    if not rows:
        return Text("no metrics yet", style=_DIM)
    left = width if width < 64 else max(44, min(52, width // 2 - 1))
    room = width - left
    count = min(2, room // 34) if room else 0
    labels = _charted([row.label for row in rows])[:count]
    each = room // max(1, len(labels)) - 1
    charts = [
        chart for label in labels if (chart := panels.chart(run, 2 * each, label, max(2, height // 3))) is not None
    ]
    grid = Table.grid(padding=(0, 1, 0, 0))
    drawn = [Group(*canvas.plot(chart, each, height, colour)) for chart in charts]
    grid.add_row(_table(rows, height, left), *drawn)
    return grid


def _charted(labels: Sequence[str]) -> list[str]:
    """Which quantities are worth a chart: losses first, then what has a best value."""
    return sorted(
        (label for label in labels if panels.higher_is_better(label) is not None),
        key=lambda label: (label != "loss", "loss" not in label),
    ) or list(labels[:1])


def _ending(run: WatchedRun, height: int) -> list[Text]:
    """Why it ended, with the last lines of the traceback, or since when it says nothing."""
    state = run.state
    if height <= 0 or state not in (State.FAILED, State.INTERRUPTED, State.LOST, State.STALLED):
        return []
    if not state.ended:
        return [Text(display(run.status_text), style=_LOOKS[state][1])]
    lines = [Text(display(run.status_text), style="red")] if run.reason else []
    last = display_lines(run.traceback)[-max(0, height - len(lines)) :] if height > len(lines) else []
    return [*lines, *(Text(line, style=_DIM) for line in last)]


def _notes(run: WatchedRun, height: int) -> list[Text]:
    lines: list[Text] = []
    for said in run.lines[-height:] if height > 0 else []:
        lines.append(_note(said))
    return lines


def _note(said: Log | Alert) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(max(0.0, min(said.time, 2e9))))
    body = said.text if isinstance(said, Log) else f"{said.title}: {said.text}" if said.text else said.title
    mark = "! " if isinstance(said, Alert) else ""
    return Text.assemble((f"{clock} ", _DIM), (mark + display(body), _LEVELS[said.level]))


# -- a frame


def draw_run(run: WatchedRun, width: int, height: int, colour: bool = True) -> list[RenderableType]:
    """One run in at most ``height`` lines of ``width`` cells."""
    parts: list[RenderableType] = [_heading(run, width)]
    left = height - 1
    if left > 0:
        parts.append(_bar(run, width))
        left -= 1
    ending = _ending(run, max(0, min(6, left - 8)))
    parts += ending
    left -= len(ending)
    if left < 4:
        return parts
    facts = _facts(run, width, 3 if left > 18 else 1 if left > 10 else 0)
    left -= len(facts)
    notes = _notes(run, 3 if left > 20 else 1 if left > 16 else 0)
    left -= len(notes)
    # Curves and the table take what the pictures leave, and want no more than is useful.
    needed = 8 if height > 20 else 6
    samples = draw_samples(run, width, left - needed, colour)
    parts.append(_body(run, width, min(MOST_BODY, left - len(samples)), colour))
    parts += samples
    return [*parts, *facts, *notes]


def _facts(run: WatchedRun, width: int, most: int) -> list[Text]:
    """What being watched costs it, and where it resumed, the newest last."""
    meter = run.meter
    lines = [*panels.resumed_lines(run)[-max(0, most - 1) :], *([] if meter is None else [str(meter)])]
    found = [Text(line, style=_DIM) for line in lines[-most:]] if most else []
    for line in found:
        line.truncate(width, overflow="ellipsis")
    return found


def draw(runs: Sequence[WatchedRun], address: str, width: int, height: int, colour: bool = True) -> RenderableType:
    """A frame: the run, or a list of those that go on and the newest of them in full.

    Args:
        runs: To be shown, newest first.
        address: Where trainers reach the hub.
        width: Cells.
        height: Lines.
        colour: Whether pictures can be in colour.
    """
    if not runs:
        return Text(f"no run yet at {address}: start a training with a fitwire callback, it appears by itself")
    if len(runs) == 1:
        return Group(*draw_run(runs[0], width, height, colour))
    lines: list[RenderableType] = [_one_line(run, width) for run in runs[: min(MOST_RUNS, max(1, height - 1))]]
    if len(lines) < len(runs):
        lines[-1] = Text(f"… {len(runs) - len(lines) + 1} more", style=_DIM)
    left = height - len(lines) - 1
    return Group(
        *lines, *([Text("─" * width, style=_DIM), *draw_run(runs[0], width, left, colour)] if left > 3 else [])
    )


def _one_line(run: WatchedRun, width: int) -> Text:
    text = Text.assemble(state_text(run.state, run.since))
    text.pad_right(max(0, 13 - text.cell_len))
    progress = run.progress
    share = "    " if progress.fraction is None else f"{progress.fraction:4.0%}"
    text.append(f" {share}  {display(run.name, NAME)}", style="bold")
    text.append(f"  {how_far(progress, run.ended)}")
    for row in panels.rows(run)[:2]:
        value = row.train if row.val is None else row.val
        text.append("" if value is None else f"  {display(row.label, 20)} {number(value)}", style=_DIM)
    text.append(f"  {display(run.badge, 60)}", style=_DIM)
    text.truncate(width, overflow="ellipsis")
    return text


# -- watching


Choice = Callable[[], Sequence[WatchedRun]]
"""Which runs to show now."""


def watch_live(monitor: Monitor, choose: Choice, console: Console, until: Callable[[], bool]) -> None:
    """Draw frames on a terminal until ``until()`` says so; the last one stays."""
    colour = console.color_system is not None and not console.no_color

    def frame() -> RenderableType:
        return draw(choose(), monitor.address, console.width, max(4, console.height - 1), colour)

    with Live(frame(), console=console, auto_refresh=False, transient=False, vertical_overflow="crop") as live:
        revision, size = -1, console.size
        while True:
            over = until()
            before = time.monotonic()
            live.update(frame(), refresh=True)
            cost = time.monotonic() - before
            if over:
                return
            time.sleep(max(FRAME, SHARE * cost))
            silent = _silent(choose())
            while monitor.revision == revision and console.size == size and not until():
                monitor.wait_for_change(revision, IDLE)
                if silent is not None and time.monotonic() - before >= (IDLE if silent < RECENT else RECENT):
                    break  # how long it has been is part of the frame
            revision, size = monitor.revision, console.size


def _silent(runs: Sequence[WatchedRun]) -> float | None:
    """How long the last one to fall silent has been lost or stalled; None when all go on."""
    return min((time.time() - run.since for run in runs if run.since is not None), default=None)


def watch_plain(monitor: Monitor, choose: Choice, say: Callable[[str], None], until: Callable[[], bool]) -> None:
    """Say a line for each new state and epoch until ``until()`` says so."""
    teller = _Teller(say)
    revision = -1
    while True:
        over = until()
        for run in reversed(choose()):
            teller.look(run)
        if over:
            return
        revision = monitor.wait_for_change(revision, IDLE)
        time.sleep(FRAME)


class _Teller:
    """What has been said of each run, so that nothing is said twice."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._states: dict[str, State] = {}
        self._settled: set[str] = set()
        self._epochs: dict[str, dict[int, set[str]]] = {}

    def look(self, run: WatchedRun) -> None:
        """Say what is new: that it began, its epochs, how it ended."""
        state, name = run.state, display(run.name, NAME)
        if not state.ended:
            self._tell_state(run.id, name, state, run.status_text)
        told = self._epochs.setdefault(run.id, {})
        for epoch, values in panels.epoch_values(run).items():
            known = told.setdefault(epoch, set())
            fresh = {key: value for key, value in values.items() if key not in known}
            if fresh:
                known |= set(fresh)
                self._say(f"{name}  {epoch_line(epoch, run.progress.epochs, fresh)}")
        if state.ended:
            self._tell_state(run.id, name, state, run.status_text)
            if run.settled and run.id not in self._settled:
                self._settled.add(run.id)
                self._say("  ".join((name, display(run.badge, 60), str(run.meter or ""))).rstrip())

    def _tell_state(self, run: str, name: str, state: State, sentence: str) -> None:
        if self._states.get(run) is not state:
            self._states[run] = state
            self._say(f"{name}  {display(sentence)}")


def epoch_line(epoch: int, epochs: int | None, values: dict[str, float]) -> str:
    """An epoch's values in a line."""
    of = "" if epochs is None else f"/{epochs}"
    told = "  ".join(f"{display(name, NAME)} {number(value)}" for name, value in values.items())
    return f"epoch {epoch + 1}{of}  {told}"

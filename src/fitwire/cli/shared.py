"""What several commands share: their options, JSON, and how an event reads."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
import numpy as np

from fitwire.events import (
    Alert,
    Command,
    CommandDone,
    Described,
    Dropped,
    EpochEnded,
    Event,
    Log,
    Metrics,
    RunEnded,
    RunStarted,
    Sample,
)
from fitwire.meter import PREFIX, Meter
from fitwire.views.display import NAME, display, display_value, number

if TYPE_CHECKING:
    from rich.console import Console

    from fitwire.watch.commands import CommandRecord, Outcome
    from fitwire.watch.monitor import WatchedRun

__all__ = [
    "address_option",
    "argument_text",
    "as_json",
    "console",
    "event_json",
    "event_line",
    "hear_options",
    "json_option",
    "meter_json",
    "outcome_text",
    "run_json",
    "short_ids",
    "store_option",
    "when",
    "wire_options",
]

Verb = TypeVar("Verb", bound=Callable[..., Any])

_WORDS = {RunStarted: "run_started", Described: "described", Metrics: "metrics", EpochEnded: "epoch_ended",
          Sample: "sample", Log: "log", Alert: "alert", RunEnded: "run_ended", Dropped: "dropped",
          Command: "command", CommandDone: "command_done"}  # fmt: skip


def address_option(command: Verb) -> Verb:
    """``--address``."""
    text = "Of the hub: ipc:///path, a path, or tcp://host:port. Default: FITWIRE_ADDRESS, else your own hub here."
    return click.option("--address", metavar="ADDRESS", help=text)(command)


def store_option(command: Verb) -> Verb:
    """``--store``."""
    text = "Database to keep runs in, or to read when no hub is there. Default: your own."
    return click.option("--store", type=click.Path(dir_okay=False), help=text)(command)


def wire_options(wire: str, listen: str) -> Callable[[Verb], Verb]:
    """``--wire`` and ``--listen``, for commands that know SLEAP's own trainings too.

    Args:
        wire: What ``--wire sleap`` does.
        listen: What ``--listen`` then names.
    """

    def options(command: Verb) -> Verb:
        where = f"With --wire sleap, {listen}. Default: tcp://127.0.0.1:9001,9000."
        command = click.option("--listen", metavar="ADDRESS", help=where)(command)
        choice = click.Choice(["fw", "sleap"])
        return click.option("--wire", type=choice, default="fw", show_default=True, help=f"sleap: {wire}")(command)

    return options


hear_options = wire_options(
    "hear SLEAP's own trainings too, in place of its LossViewer.", "where they send to and listen"
)


def json_option(command: Verb) -> Verb:
    """``--json``."""
    text = "Print JSON; nan, inf and -inf are strings."
    return click.option("--json", "as_json_", is_flag=True, help=text)(command)


def console() -> Console:
    """Where a command prints: a pipe gets plain text as wide as it likes, NO_COLOR is respected."""
    from rich.console import Console

    made = Console(highlight=False, markup=False, emoji=False)
    return (
        made if made.is_terminal else Console(highlight=False, markup=False, emoji=False, width=200, color_system=None)
    )


def as_json(value: object) -> str:
    """One line of strict JSON, ASCII only, so that no text of a peer reaches the terminal as it is."""
    return json.dumps(_plain(value), ensure_ascii=True, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in cast("Mapping[object, object]", value).items()}
    if isinstance(value, np.ndarray):
        return _plain(cast("Any", value).tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in cast("list[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    return value


def run_json(run: WatchedRun) -> dict[str, object]:
    """What ``ls --json`` says of a run; ``show --json`` adds to it."""
    return {
        "id": run.id, "name": run.name, "project": run.project, "group": run.group, "tags": run.tags,
        "host": run.host, "state": str(run.state), "status_text": run.status_text, "reason": run.reason,
        "since": run.since, "badge": run.badge, "started": run.started, "ranks": run.ranks,
        "progress": asdict(run.progress),
    }  # fmt: skip


def meter_json(run: WatchedRun) -> dict[str, object] | None:
    """What being watched costs it; None while it has not said."""
    meter = run.meter
    return None if meter is None else asdict(meter)


def short_ids(runs: Iterable[WatchedRun], least: int = 8) -> dict[str, str]:
    """The beginning of each id that no other run's has; ids begin with the time, so neighbours share much."""
    ids = sorted({run.id for run in runs})
    found: dict[str, str] = {}
    for index, one in enumerate(ids):
        beside = ids[max(0, index - 1) : index] + ids[index + 1 : index + 2]
        found[one] = next(one[:size] for size in range(least, 33) if not any(o.startswith(one[:size]) for o in beside))
    return found


def when(unix: float, now: float | None = None) -> str:
    """A moment, for people: the time today, else the date too."""
    then, today = time.localtime(max(0.0, min(unix, 4e9))), time.localtime(now)
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)


def event_json(event: Event) -> dict[str, object]:
    """An event's fields; of a sample's arrays only dtype and shape."""
    found: dict[str, object] = {"event": _WORDS[type(event)]}
    for one in fields(event):
        value = getattr(event, one.name)
        if isinstance(event, Sample) and one.name == "arrays":
            value = {name: {"dtype": a.dtype.str, "shape": list(a.shape)} for name, a in event.arrays.items()}
        found[one.name] = value
    return found


def event_line(event: Event) -> str:
    """An event as a line for people, with its time; epochs count from 1 as Keras prints them."""
    rank = f" rank {event.rank}" if event.rank else ""
    return f"{when(event.time)}{rank}  {_SAYS[type(event)](event)}"


def _values(event: Metrics) -> str:
    return "  ".join(f"{display(name, NAME)} {number(value)}" for name, value in event.values.items())


def _metrics(event: Metrics) -> str:
    if event.per != "time":
        return f"step {(event.step or 0) + 1:,}  {_values(event)}"
    meter = Meter.of_gauges(lambda name: event.values.get(name, math.nan))
    machine = {name: value for name, value in event.values.items() if not name.startswith(PREFIX)}
    told = [_values(replace(event, values=machine))] if machine else []
    return "  ".join(told if meter is None else [*told, str(meter)])


def _epoch(event: EpochEnded) -> str:
    return f"epoch {'?' if event.epoch is None else event.epoch + 1}  {_values(event)}"


def _sample(event: Sample) -> str:
    arrays = ", ".join(f"{display(name, NAME)} {a.dtype} {list(a.shape)}" for name, a in event.arrays.items())
    return f"sample {display(event.name, NAME)}: {arrays}"


def _end(event: RunEnded) -> str:
    return event.status + (f": {display(event.reason)}" if event.reason else "")


def _by(event: Command | CommandDone) -> str:
    return f" by {display(event.author, NAME)}" if event.author else ""


def argument_text(arguments: Mapping[str, Any]) -> str:
    """What a command was asked with; empty for nothing."""
    return display_value(arguments) if arguments else ""


def outcome_text(told: CommandDone | Outcome | CommandRecord) -> str:
    """What became of a command, in a line; steps count from 1."""
    where = "" if told.step is None else f" at step {told.step + 1:,}"
    return f"{told.status}{where}{_change(told)}{_why(told)}"


def _change(event: CommandDone | Outcome | CommandRecord) -> str:
    if event.before is None and event.after is None:
        return ""
    before = "" if event.before is None else f"{display_value(event.before)} → "
    return f": {before}{display_value(event.after)}"


def _why(event: CommandDone | Outcome | CommandRecord) -> str:
    return f" ({display(event.reason)})" if event.reason else ""


_SAYS: dict[type[Any], Callable[[Any], str]] = {
    RunStarted: lambda e: f"started {display(e.name, NAME)} of {display(e.project, NAME)}",
    Described: lambda e: f"{e.what}: {display_value(e.values)}",
    Metrics: _metrics,
    EpochEnded: _epoch,
    Sample: _sample,
    Log: lambda e: f"{e.level}: {display(e.text)}",
    Alert: lambda e: f"{e.level}! {display(e.title)}{': ' if e.text else ''}{display(e.text)}",
    RunEnded: _end,
    Dropped: lambda e: f"{e.count:,} {display(e.what, NAME)} dropped: {display(e.reason)}",
    Command: lambda e: f"asked{_by(e)}: {display(e.name, NAME)} {argument_text(e.arguments)}".rstrip(),
    CommandDone: lambda e: f"{display(e.name, NAME)}{_by(e)} {outcome_text(e)}",
}

"""Commands that look: ``ls``, ``show``, ``tail``, ``get``. They join the hub, or read the store when none is there."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from fitwire.cli.shared import (
    address_option,
    argument_text,
    as_json,
    console,
    event_json,
    event_line,
    json_option,
    meter_json,
    outcome_text,
    run_json,
    short_ids,
    store_option,
    when,
)
from fitwire.events import Event, RunStarted
from fitwire.meter import PREFIX
from fitwire.views import panels
from fitwire.views.display import NAME, display, display_lines, display_value, number
from fitwire.views.text import how_far, state_text
from fitwire.watch.branches import Gap
from fitwire.watch.commands import CommandRecord
from fitwire.watch.monitor import Monitor, WatchedRun
from fitwire.watch.states import State

__all__ = ["get", "ls", "show", "tail"]

SHOWN_COMMANDS = 20
"""Of what was asked of a run, the last that are shown; --json has all."""


@click.command()
@click.option("-n", "--count", type=click.IntRange(1), default=20, show_default=True, help="Runs shown, newest first.")
@click.option("--all", "everything", is_flag=True, help="Show all of them.")
@click.option("--project", help="Only runs of this project.")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only runs in this state.")
@address_option
@store_option
@json_option
def ls(
    count: int,
    everything: bool,
    project: str | None,
    state: str | None,
    address: str | None,
    store: str | None,
    as_json_: bool,
) -> None:
    """List the runs, newest first.

    \b
    Example:
      fitwire ls --state running
    """
    with Monitor(address, store=store, serve=False) as monitor:
        known = monitor.runs
        found = [run for run in known if project in (None, run.project) and state in (None, str(run.state))]
        found = found if everything else found[:count]
        if as_json_:
            click.echo(as_json([run_json(run) for run in found]))
            return
        if not found:
            asked = " of that kind" if known else " yet: start a training with a fitwire callback"
            click.echo(f"no run{asked}", err=True)
            return
        table = Table(box=None, pad_edge=False, header_style="bright_black")
        for name in ("id", "run", "project", "state", "done", "started", ""):
            table.add_column(name, no_wrap=True, justify="right" if name == "done" else "left")
        ids = short_ids(known)
        for run in found:
            share = run.progress.fraction
            table.add_row(
                ids[run.id], Text(display(run.name, NAME)), Text(display(run.project, 20)),
                state_text(run.state, run.since), "" if share is None else f"{share:.0%}", when(run.started),
                Text(display(run.badge, 40)),
            )  # fmt: skip
        console().print(table)


@click.command()
@click.argument("run")
@address_option
@store_option
@json_option
def show(run: str, address: str | None, store: str | None, as_json_: bool) -> None:
    """Show all that is known of a run.

    RUN is a name, the beginning of an id, or "last".

    \b
    Example:
      fitwire show last
    """
    with Monitor(address, store=store, serve=False) as monitor:
        found = monitor.run(run)
        if as_json_:
            click.echo(as_json(_all_of(found)))
        else:
            _print_run(found)


def _all_of(run: WatchedRun) -> dict[str, object]:
    samples = {name: len(run.samples(name)) for name in run.sample_names}
    latest = {name: run.latest(name) for name in run.metrics + run.gauges}
    return run_json(run) | {
        "traceback": run.traceback, "config": run.config, "summary": run.summary, "info": run.info,
        "metrics": run.metrics, "gauges": run.gauges, "latest": latest, "samples": samples, "meter": meter_json(run),
        "branches": [asdict(branch) for branch in run.branches], "gaps": [asdict(gap) for gap in run.gaps],
        "controls": run.controls, "commands": [asdict(command) for command in run.commands],
    }  # fmt: skip


def _print_run(run: WatchedRun) -> None:
    out = console()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(overflow="fold")

    def line(label: str, value: object) -> None:
        grid.add_row(Text(label), value if isinstance(value, Text) else Text(display(value, 2000)))

    title, sentence = state_text(run.state), display(run.status_text.removeprefix(str(run.state)))
    line("run", Text(f"{display(run.name, NAME)}  {run.id}"))
    title.append(sentence if not sentence or sentence[0] == ":" else f" {sentence}")
    line("state", title.append(f"  ({display(run.badge)})"))
    line("project", f"{run.project}" + (f", group {run.group}" if run.group else ""))
    if run.tags:
        line("tags", ", ".join(run.tags))
    line("started", f"{when(run.started)} on {run.host}, {len(run.ranks)} rank{'s' if len(run.ranks) != 1 else ''}")
    line("progress", how_far(run.progress, run.ended) or "no batch yet")
    for resumed in panels.resumed_lines(run):
        line("", resumed)
    for gap in run.gaps:
        line("gap", _gap(gap))
    if run.meter is not None:
        line("fitwire", run.meter)
    for label, values in (("config", run.config), ("summary", run.summary), ("info", run.info)):
        _print_mapping(grid, label, values)
    for row in panels.rows(run):
        told = [] if row.train is None else [number(row.train)]
        told += [] if row.val is None else [f"val {number(row.val)}"]
        told += [] if row.best is None else [f"best {number(row.best.value)} at {row.best.where}"]
        grid.add_row(Text(display(row.label, NAME)), Text(", ".join(told)))
    gauges = [name for name in run.gauges if not name.startswith(PREFIX)]
    if gauges:
        line("machine", ", ".join(f"{display(name, NAME)} {number(run.latest(name))}" for name in gauges))
    for name in run.sample_names:
        samples = run.samples(name)
        arrays = ", ".join(f"{key} {list(shape)}" for key, (_, shape) in samples[-1].shapes.items())
        line("sample", f"{name}: {len(samples)} times, {arrays}")
    if not run.ended:
        _print_controls(grid, run.controls)
    _print_commands(grid, run.commands)
    out.print(grid)
    for text in display_lines(run.traceback):
        out.print(Text(text, style="red"))


def _print_controls(grid: Table, controls: Mapping[str, Any]) -> None:
    """What may be asked of it: the knobs with their values, the actions, the commands."""
    by_kind: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, spec in controls.items():
        by_kind.setdefault(str(spec.get("kind")), []).append((name, spec))
    for index, (name, spec) in enumerate(by_kind.get("knob", [])):
        text = Text(f"{display(name, NAME)}  ").append(display_value(spec.get("value"), 300))
        grid.add_row(Text("knobs" if index == 0 else ""), text.append(_bounds(spec)))
    for kind, label in (("action", "actions"), ("command", "obeys")):
        if kind in by_kind:
            grid.add_row(Text(label), Text(", ".join(display(name, NAME) for name, _ in by_kind[kind])))


def _bounds(spec: Mapping[str, Any]) -> str:
    if spec.get("choices"):
        return f"  one of {display_value(spec['choices'], 300)}"
    low, high = spec.get("low"), spec.get("high")
    told = [f" {word} {display_value(bound)}" for word, bound in (("from", low), ("to", high)) if bound is not None]
    return f" {''.join(told)}" if told else ""


def _print_commands(grid: Table, commands: Sequence[CommandRecord]) -> None:
    """What was asked of it, by whom, and what became of it: the last ones."""
    for index, command in enumerate(commands[-SHOWN_COMMANDS:]):
        text = f"{when(command.asked)}  {display(command.what, NAME)} {argument_text(command.arguments)}".rstrip()
        who = f" by {display(command.who, NAME)}" if command.who else ""
        grid.add_row(Text("asked" if index == 0 else ""), Text(f"{text}{who}: {outcome_text(command)}"))


def _gap(gap: Gap) -> str:
    what = "samples" if gap.lane else "records"
    where = "" if gap.after is None else f", after step {gap.after + 1:,}"
    whose = f" of rank {gap.rank}" if gap.rank else ""
    return f"{what} {gap.first:,} to {gap.last:,}{whose} are missing{where}"


def _print_mapping(grid: Table, label: str, values: Mapping[str, object]) -> None:
    for index, (key, value) in enumerate(values.items()):
        text = Text(f"{display(key, NAME)}  ").append(display_value(value, 300))
        grid.add_row(Text(label if index == 0 else ""), text)


@click.command()
@click.argument("run")
@click.option("-n", "--count", type=click.IntRange(0), default=10, show_default=True, help="Last events shown.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@address_option
@store_option
@json_option
def tail(run: str, count: int, follow: bool, address: str | None, store: str | None, as_json_: bool) -> None:
    """Show the last events of a run, or follow it.

    RUN is a name, the beginning of an id, or "last". With --json each event is an object, one a line; of the arrays of
    samples it says dtype and shape.

    \b
    Example:
      fitwire tail last -f
    """
    with Monitor(address, store=store, serve=follow) as monitor:
        found = monitor.run(run)
        counted = itertools.count()
        known = ((event.time, next(counted), event) for event in found.events(follow=False))
        # A hub sends rows and samples by separate roads: by their times they are in order again.
        newest = heapq.nlargest(count, known, key=lambda item: item[:2]) if count else _drained(known)
        for _, _, event in reversed(newest):
            click.echo(as_json(event_json(event)) if as_json_ else _told(found, event))
        if not follow:
            return
        for event in itertools.islice(found.events(), next(counted), None):
            click.echo(as_json(event_json(event)) if as_json_ else _told(found, event))


def _told(run: WatchedRun, event: Event) -> str:
    """An event in a line; of a run that began again, where it went on."""
    line = event_line(event)
    if not isinstance(event, RunStarted):
        return line
    again = next((branch for branch in run.branches[1:] if branch.started == event.time), None)
    if again is None:
        return line
    where = "" if again.first_step is None else f" at step {again.first_step + 1:,}"
    instead = "" if again.replaced_from is None else ", in place of what was told from there"
    return f"{line} · resumed{where}{instead}"


def _drained(events: Iterable[object]) -> list[tuple[float, int, Event]]:
    for _ in events:
        pass
    return []


@click.command()
@click.argument("run")
@click.argument("metric")
@click.option("--per", type=click.Choice(["auto", "batch", "epoch", "time"]), default="auto", show_default=True,
              help="What a point stands for; auto: a batch if it was told per batch.")  # fmt: skip
@click.option("--rank", type=click.IntRange(0), help="Process of a distributed run. Default: the lowest that has it.")
@click.option("--branch", type=click.IntRange(0), metavar="INCARNATION",
              help="The curve as it was at the end of that process life. Default: the newest.")  # fmt: skip
@click.option("-n", "--count", type=click.IntRange(1), help="Last points only.")
@address_option
@store_option
@json_option
def get(
    run: str,
    metric: str,
    per: str,
    rank: int | None,
    branch: int | None,
    count: int | None,
    address: str | None,
    store: str | None,
    as_json_: bool,
) -> None:
    """Print a metric of a run, exactly.

    Step, epoch (both from 0), Unix time and value, separated by tabs; the value is the one that was logged, to the last
    bit. RUN is a name, the beginning of an id, or "last".

    \b
    Example:
      fitwire get last val_loss --per epoch
    """
    with Monitor(address, store=store, serve=False) as monitor:
        found = monitor.run(run)
        curve = found.curve(metric, per=per, rank=rank, branch=branch)
        keep = slice(None if count is None else -count, None)
        columns = [one[keep].tolist() for one in (curve.steps, curve.epochs, curve.times, curve.values)]
        epochs = [None if epoch != epoch else int(epoch) for epoch in columns[1]]
        if as_json_:
            told = {"steps": columns[0], "epochs": epochs, "times": columns[2], "values": columns[3]}
            click.echo(as_json({"name": curve.name, "per": curve.per, "badge": found.badge} | told))
            return
        click.echo("step\tepoch\ttime\tvalue")
        for step, epoch, at, value in zip(columns[0], epochs, columns[2], columns[3], strict=True):
            click.echo(f"{step}\t{'' if epoch is None else epoch}\t{at!r}\t{value!r}")

"""``fitwire demo``: a real training in another process, watched from this one, its numbers compared at the end."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitwire.cli.faults import FAILED, INTERRUPTED
from fitwire.cli.shared import as_json, console, json_option, run_json, short_ids
from fitwire.demo import FRAMEWORKS, OWN, Comparison, Training, await_run, choose, compare, start
from fitwire.errors import FitwireError, WaitTimeout
from fitwire.views.display import NAME, display, duration, number
from fitwire.views.text import watch_live, watch_plain
from fitwire.watch.monitor import Monitor, WatchedRun

__all__ = ["demo"]

PATIENCE = 20.0
"""Seconds for the run's end to arrive after its process has ended."""


@click.command()
@click.option("--framework", type=click.Choice(list(FRAMEWORKS)), help="Default: the first that is installed.")
@click.option("--view", type=click.Choice(["text", "none"]), default="text", show_default=True,
              help="How to watch; none: only the summary.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="Default: as many as take about half a minute.")
@click.option("--address", metavar="ADDRESS", help="Of a hub to use; it keeps the run. Default: one of the demo's own.")
@json_option
@click.pass_context
def demo(
    ctx: click.Context, framework: str | None, view: str, epochs: int | None, address: str | None, as_json_: bool
) -> None:
    """Train something small and watch it.

    A real training on scikit-learn's digits, in another process, from nothing to a finished run in about a minute: the
    model takes noise off handwritten digits. At the end every epoch value that was received is compared with what the
    framework itself kept, to the last bit; exit code 1 if any differs.

    \b
    Example:
      fitwire demo --framework loop
    """
    chosen = choose(framework)
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal must not leave the training behind; Windows has no SIGHUP
        if hasattr(signal, name):
            number = getattr(signal, name)
            ctx.call_on_close(partial(signal.signal, number, signal.signal(number, signal.default_int_handler)))
    try:
        with start(chosen, address, epochs) as (training, monitor):
            run = _watch(training, monitor, "none" if as_json_ else view)
            result = compare(run, training.history())
            if as_json_:
                told = {"framework": chosen, "equal": result.equal, "differing": result.differing}
                click.echo(as_json(told | {"holds": result.holds, "run": run_json(run)}))
            else:
                _summarize(run, chosen, result, console(), monitor.runs if address is not None else ())
    except KeyboardInterrupt:
        ctx.exit(INTERRUPTED)
    if not result.holds:
        ctx.exit(FAILED)


def _watch(training: Training, monitor: Monitor, view: str) -> WatchedRun:
    """Show the training from nothing to its end; returns its run."""
    out = console()
    known = frozenset(run.id for run in monitor.runs)
    if view == "none":
        run = await_run(training, monitor, known, lambda waited: None)
    elif out.is_terminal:
        with out.status(Text(f"starting a {training.framework} training in another process …")) as status:
            text = f"starting a {training.framework} training in another process … "
            run = await_run(training, monitor, known, lambda waited: status.update(Text(text + duration(waited))))
        watch_live(monitor, lambda: [run], out, lambda: run.ended or training.over)
    else:
        click.echo(f"starting a {training.framework} training in another process")
        run = await_run(training, monitor, known, lambda waited: None)
        watch_plain(monitor, lambda: [run], click.echo, lambda: run.ended or training.over)
    try:
        run.wait(timeout=None if view == "none" and not training.over else PATIENCE)
    except WaitTimeout as error:
        raise FitwireError(f"{error}; its process has ended") from None
    return run


def _summarize(run: WatchedRun, framework: str, result: Comparison, out: Console, others: Sequence[WatchedRun]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bright_black", padding=(0, 3, 0, 0))
    table.add_column("per epoch")
    for name in ("first", "least", "last"):
        table.add_column(name, justify="right")
    table.add_column("")
    for name, first, least, last in result.rows:
        same = name not in result.differing
        verdict = Text("✓ equal", style="green") if same else Text("✗ differs", style="red")
        table.add_row(Text(display(name, NAME)), number(first), number(least), number(last), verdict)
    points = _points(run)
    samples = sum(len(run.samples(name)) for name in run.sample_names)
    out.print()
    out.print(table)
    out.print()
    out.print(
        f"{display(run.name, NAME)} {run.state}: {points:,} batch values and {samples} sample predictions received "
        f"from another process ({run.badge})"
    )
    out.print(_verdict(result, framework))
    if others:
        short = short_ids(others)[run.id]
        out.print(f"look again with: fitwire show {short}")


def _points(run: WatchedRun) -> int:
    total = 0
    for name in run.metrics:
        curve = run.curve(name)
        total += len(curve) if curve.per == "batch" else 0
    return total


def _verdict(result: Comparison, framework: str) -> Text:
    if result.holds:
        sentence = f"{result.equal} epoch values received, all equal to {OWN[framework]} to the last bit"
        return Text(sentence, style="bold green")
    names: Sequence[str] = [display(name, NAME) for name in result.differing]
    missing = ", ".join(names) or "none came"
    sentence = f"{result.equal} epoch values received are equal to {OWN[framework]}; not so: {missing}"
    return Text(sentence, style="bold red")

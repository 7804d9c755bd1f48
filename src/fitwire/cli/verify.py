"""``fitwire verify``: whether what the store has of a run is what its trainers said."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from fitwire.cli.faults import FAILED
from fitwire.cli.shared import address_option, as_json, console, json_option, store_option
from fitwire.errors import UnknownRun
from fitwire.journal.layout import find_journals
from fitwire.protocol.blocks import RECORDS
from fitwire.views.display import NAME, display
from fitwire.watch.audit import LaneReport, audit
from fitwire.watch.hub import default_store
from fitwire.watch.monitor import Monitor
from fitwire.watch.store import Store

__all__ = ["verify"]


@click.command()
@click.argument("run")
@address_option
@store_option
@json_option
@click.pass_context
def verify(ctx: click.Context, run: str, address: str | None, store: str | None, as_json_: bool) -> None:
    """Check a run in the store, block by block.

    Every block must decode, sequence numbers must go on, and the rolling checksums of the store, of what each source
    said at its end, and of a journal that is still there must be the same. Exit code 1 when anything contradicts. RUN
    is a name, the beginning of an id, or "last".

    \b
    Example:
      fitwire verify last
    """
    with Monitor(address, store=store, serve=False) as monitor:
        found = monitor.run(run)
        name, run_id = found.name, found.id
    path = store or default_store()
    opened = Store(path, write=False)
    try:
        reports = audit(opened, bytes.fromhex(run_id), find_journals())
    finally:
        opened.close()
    if not any(report.blocks for report in reports):
        raise UnknownRun(
            f"run {display(name, NAME)} is not in the store {path}: name the one that its hub keeps with --store"
        )
    sound = all(report.sound for report in reports)
    if as_json_:
        click.echo(as_json({"run": run_id, "name": name, "sound": sound, "sources": [_plain(r) for r in reports]}))
    else:
        console().print(_table(reports))
        click.echo(f"{display(name, NAME)}: {_verdict(reports)}")
    ctx.exit(0 if sound else FAILED)


def _plain(report: LaneReport) -> dict[str, object]:
    return {
        "rank": report.sender.rank, "incarnation": report.sender.incarnation,
        "lane": "records" if report.lane == RECORDS else "samples", "blocks": report.blocks,
        "records": report.records, "dropped": report.dropped, "missing": report.missing, "spoilt": report.spoilt,
        "breaks": report.breaks, "digest": report.digest, "goodbye": report.goodbye, "journal": report.journal,
        "undelivered": report.undelivered, "sound": report.sound,
    }  # fmt: skip


def _table(reports: list[LaneReport]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bright_black")
    for name in ("rank", "incarnation", "lane", "blocks", "records", "dropped", "missing", "spoilt", "breaks"):
        table.add_column(name, no_wrap=True, justify="left" if name == "lane" else "right")
    for name in ("goodbye", "journal", ""):
        table.add_column(name, no_wrap=True)
    for report in reports:
        plain = _plain(report)
        numbers = [f"{plain[key]:,}" for key in ("blocks", "records", "dropped", "missing", "spoilt", "breaks")]
        waiting = f", {report.undelivered:,} to deliver" if report.undelivered else ""
        table.add_row(
            str(report.sender.rank), str(report.sender.incarnation), str(plain["lane"]), *numbers,
            _same(report.goodbye), _same(report.journal) + waiting,
            Text("sound", style="green") if report.sound else Text("NOT SOUND", style="bold red"),
        )  # fmt: skip
    return table


def _same(agrees: bool | None) -> str:
    return "none" if agrees is None else "same" if agrees else "differs"


def _verdict(reports: list[LaneReport]) -> str:
    wrong = sum(not report.sound for report in reports)
    records = sum(report.records for report in reports)
    if wrong:
        return f"{wrong} of {len(reports)} lanes are not what was said; the hub's disk, or its memory, changed bytes"
    gone = sum(report.dropped + report.missing for report in reports)
    but = f"; {gone:,} of them are marks of what was given up or lost" if gone else ""
    return f"{records:,} records, all as they were said{but}"

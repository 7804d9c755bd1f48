"""``fitwire sync``: delivers what trainers left that are gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import cast

import click

from fitwire.cli.faults import FAILED
from fitwire.cli.shared import address_option, as_json, json_option, store_option
from fitwire.errors import AddressInUse, FitwireError, UsageError
from fitwire.journal.courier import Delivered, deliver
from fitwire.journal.layout import CLOSED, age, find_journals, life_of, read_about
from fitwire.transport.address import Address, resolve
from fitwire.views.display import NAME, display
from fitwire.watch.hub import Hub

__all__ = ["sync"]

STILL_WRITTEN = 60.0
"""Seconds without a write after which a trainer of another machine is believed to have ended."""
ELSEWHERE = 15.0
"""Seconds to wait for the hub's own drainer, which may be at the same journal."""


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@address_option
@store_option
@click.option("--keep", is_flag=True, help="Leave the journals where they are.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
              help="Seconds to wait for a hub, and for its progress.")  # fmt: skip
@json_option
@click.pass_context
def sync(
    ctx: click.Context,
    folder: Path | None,
    address: str | None,
    store: str | None,
    keep: bool,
    timeout: float,
    as_json_: bool,
) -> None:
    """Deliver what trainings left that no hub had taken.

    FOLDER is what a training was given as dir=, a data folder, a folder of journals, one journal, or a copy of any of
    these from another machine; without it, your data folder. The hub at ADDRESS gets it; where none is, and the address
    is on this machine, it goes into your store. A journal that was delivered is deleted. Exit code 1 when something is
    left.

    \b
    Example:
      fitwire sync               # after an offline training
      fitwire sync ./from-cluster
    """
    place = resolve(address)
    found = list(find_journals(folder))
    if not found:
        if folder and not _had_journals(folder):
            raise UsageError(f"{folder} is no data folder and no journal: pass what the training was given as dir=")
        where = f"in {folder}" if folder else "here"
        click.echo(as_json([]) if as_json_ else f"no journal {where}: everything was delivered", err=not as_json_)
        return
    left = False
    told: list[dict[str, object]] = []
    with _a_hub(place, store):
        for path in found:
            line, done = _one(path, place, keep, timeout)
            left = left or not done
            told.append(line)
            if not as_json_:
                click.echo(_sentence(line))
    if as_json_:
        click.echo(as_json(told))
    ctx.exit(FAILED if left else 0)


def _had_journals(folder: Path) -> bool:
    return folder.name == "journals" or any((folder / name).exists() for name in ("journals", "store.sqlite3"))


@contextlib.contextmanager
def _a_hub(place: Address, store: str | None) -> Generator[None]:
    """Be the hub for as long as it takes, unless one is there."""
    try:
        hub = Hub(place, store, drain=False)
    except AddressInUse:
        yield
        return
    try:
        yield
    finally:
        hub.close()


def _one(path: Path, place: Address, keep: bool, timeout: float) -> tuple[dict[str, object], bool]:
    """Deliver one journal; what to say of it, and whether nothing is left to do."""
    line: dict[str, object] = {"journal": str(path), "run": path.name[:8], "rank": 0, "records": 0, "left": 0,
                               "lost": 0, "faults": {}, "outcome": "left", "why": ""}  # fmt: skip
    try:
        about = read_about(path)
        line["rank"], line["run"] = about.sender.rank, about.hello.get("name", path.name[:8])
        life = life_of(about)
        closed = (path / CLOSED).exists()
        if life.keeper or (life.trainer and not closed):
            who = "its `fitwire run`" if life.keeper else "its training"
            return line | {"outcome": "skipped", "why": f"{who} goes on, and delivers it"}, True
        written = life.trainer is None and not closed and age(path) < STILL_WRITTEN
        done = _deliver_or_wait(path, place, keep or written, timeout)
    except UsageError:
        raise
    except FitwireError as error:
        return line | {"why": str(error)}, False
    if done is None:
        return line | {"outcome": "delivered", "why": "by the hub itself"}, True
    line |= {"run": done.name, "records": max(done.records - done.lost, 0), "left": done.left, "lost": done.lost,
             "faults": dict(done.faults), "why": done.why}  # fmt: skip
    if done.complete and written and not keep:
        line["why"] = f"kept: something was written to it {age(path):.0f} s ago, on another machine"
    elif done.complete and not done.removed and not keep:
        line["why"] = "it cannot be deleted"
    return line | {"outcome": "delivered" if done.complete else "left"}, done.complete


def _deliver_or_wait(path: Path, place: Address, keep: bool, timeout: float) -> Delivered | None:
    """As ``deliver``; None when the hub's own drainer was quicker."""
    end = time.monotonic() + max(timeout, ELSEWHERE)
    while True:
        try:
            done = deliver(path, place, timeout=timeout, keep=keep)
        except FitwireError:
            if not path.exists():
                return None
            raise
        if done.complete or not done.contested or time.monotonic() > end:
            return done
        time.sleep(0.2)
        if not path.exists():
            return None


def _sentence(line: dict[str, object]) -> str:
    rank = f" rank {line['rank']}" if line["rank"] else ""
    parts = list(_parts(line))
    return f"{display(str(line['run']), NAME)}{rank}: {display(', '.join(parts), 1500)}"


def _parts(line: dict[str, object]) -> Iterator[str]:
    if line["outcome"] != "skipped":
        yield f"{line['records']:,} records delivered"
    if line["left"]:
        yield f"{line['left']:,} left"
    if line["lost"]:
        yield f"{line['lost']:,} lost to damage on disk, marked as such"
    faults = cast("dict[str, int]", line["faults"])
    damage = [f"{number} {kind}" for kind, number in sorted(faults.items()) if kind != "replaced"]
    if damage:
        yield "met " + ", ".join(damage)
    if line["outcome"] == "skipped":
        yield f"skipped: {line['why']}"
    elif line["why"]:
        yield str(line["why"])

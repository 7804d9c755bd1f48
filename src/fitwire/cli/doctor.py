"""``fitwire doctor``: where everything lies, whether a hub is there, and what waits to be delivered."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from fitwire._version import __version__
from fitwire.cli.shared import address_option, as_json, console, json_option, store_option
from fitwire.errors import AddressError, FitwireError, LinkError
from fitwire.journal.layout import CLOSED, age, find_journals, is_network_folder, is_orphan, life_of, read_about
from fitwire.journal.reader import Journal
from fitwire.transport.address import Address, data_folder, resolve
from fitwire.views.display import NAME, display
from fitwire.watch.follow import Follower
from fitwire.watch.hub import default_store
from fitwire.watch.store import Store

__all__ = ["doctor"]

LITTLE_SPACE = 2**30
"""Bytes of a disk under which it is said: a journal may take as much."""


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@address_option
@store_option
@json_option
def doctor(folder: Path | None, address: str | None, store: str | None, as_json_: bool) -> None:
    """Say where things are and what waits to be delivered.

    Lists address, store and data folder, whether a hub is there, and the journals of trainings that no hub has
    confirmed (in FOLDER, as `fitwire sync` takes it, or in your data folder), with what to do about each. Changes
    nothing.

    \b
    Example:
      fitwire doctor
    """
    facts = dict(_facts(address, store))
    journals = [_journal(path) for path in find_journals(folder)]
    advice = list(_advice(facts, journals))
    if as_json_:
        click.echo(as_json({"facts": facts, "journals": journals, "advice": advice}))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in facts.items():
        grid.add_row(key, Text(display(str(value), 1000)))
    out = console()
    out.print(grid)
    if journals:
        out.print()
        out.print(_table(journals))
    for line in advice:
        click.echo(display(line, 1000))


def _facts(address: str | None, store: str | None) -> Iterator[tuple[str, object]]:
    made = [f"{package} {_version(package)}" for package in ("pyzmq", "numpy")]
    python = platform.python_version()
    yield "fitwire", ", ".join([__version__, f"Python {python}", *made, f"SQLite {sqlite3.sqlite_version}"])
    try:
        place = resolve(address)
        yield "address", place.text
        yield "hub", _hub(place)
    except AddressError as error:
        yield "address", f"unusable: {error}"
    path = Path(store) if store is not None else default_store()
    yield "store", _store(path)
    try:
        folder = data_folder()
    except FitwireError as error:
        yield "data folder", f"unusable: {error}"
        return
    free = shutil.disk_usage(folder).free
    kind = ", on a network's file system" if is_network_folder(folder) else ""
    yield "data folder", f"{folder}, {_size(free)} free{kind}"
    said = sorted(name for name in os.environ if name.startswith("FITWIRE_"))
    yield "environment", ", ".join(f"{name}={os.environ[name]}" for name in said) or "no FITWIRE_ variable is set"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"


def _hub(place: Address) -> str:
    if place.path is not None and not place.path.exists():
        return "none is there; `fitwire watch` or `fitwire hub` starts one"
    try:
        follower = Follower(place)
    except LinkError:
        return "none answers; `fitwire watch` or `fitwire hub` starts one"
    try:
        known = len(follower.summaries())
        return f"is there, knows {known:,} run{'s' * (known != 1)}"
    finally:
        follower.close()


def _store(path: Path) -> str:
    if not path.exists():
        return f"{path}, not there yet"
    try:
        opened = Store(path, write=False)
        try:
            runs = len(opened.summaries())
        finally:
            opened.close()
    except FitwireError as error:
        return f"unreadable: {error}"
    beside = sum(p.stat().st_size for p in path.parent.glob(path.name + "*") if p.is_file())
    return f"{path}, {_size(beside)}, {runs:,} run{'s' * (runs != 1)}"


def _journal(path: Path) -> dict[str, object]:
    """What is known of one journal."""
    line: dict[str, object] = {
        "journal": str(path), "run": path.name[:8], "rank": 0, "records": 0, "samples": 0, "size_bytes": _taken(path),
        "silent": round(age(path), 1), "life": "unknown", "todo": "", "faults": {},
    }  # fmt: skip
    try:
        about = read_about(path)
        line |= {"rank": about.sender.rank, "run": about.hello.get("name", path.name[:8])}
        life = life_of(about)
        closed = (path / CLOSED).exists()
        if life.keeper:
            line["life"], line["todo"] = "kept", "its `fitwire run` delivers it"
        elif life.trainer and not closed:
            line["life"], line["todo"] = "training", "its training delivers it"
        elif is_orphan(path, about):
            line["life"], line["todo"] = "ended", "the next hub takes it, or `fitwire sync`"
        else:
            host = display(str(about.hello.get("host", "another machine")), 60)
            line["todo"] = f"of {host}: `fitwire sync {path.parent}` once it has ended"
        with Journal(path, ring=line["life"] == "ended") as journal:
            line["records"], line["samples"] = journal.undelivered
            line["faults"] = dict(journal.faults)
            if line["life"] == "ended" and not any(journal.heads) and journal.faults:
                line["todo"] = "nothing in it can be read: delete it"
    except FitwireError as error:
        line["todo"] = f"cannot be read: {error}"
    return line


def _taken(path: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(path))
    except OSError:
        return 0


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _table(journals: list[dict[str, object]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bright_black", title="journals", title_justify="left")
    for name in ("run", "rank", "records", "samples", "size", "silent", "whose", "what to do"):
        right = name in ("rank", "records", "samples", "size", "silent")
        table.add_column(name, no_wrap=name != "what to do", justify="right" if right else "left")
    for line in journals:
        table.add_row(
            Text(display(str(line["run"]), NAME)), str(line["rank"]), f"{line['records']:,}", f"{line['samples']:,}",
            _size(float(str(line["size_bytes"]))), f"{float(str(line['silent'])):.0f} s", str(line["life"]),
            Text(display(str(line["todo"]), 300)),
        )  # fmt: skip
    return table


def _advice(facts: dict[str, object], journals: list[dict[str, object]]) -> Iterator[str]:
    ended = [line for line in journals if line["life"] == "ended"]
    if ended and not str(facts.get("hub", "")).startswith("is there"):
        yield f"{len(ended)} of them wait for a hub: start one with `fitwire watch`, or run `fitwire sync`"
    elif ended:
        yield f"{len(ended)} of them wait although a hub is there: it takes them in seconds, or its log says why not"
    if not journals:
        yield "no journal: everything was delivered"
    try:
        if shutil.disk_usage(data_folder()).free < LITTLE_SPACE:
            yield "the data folder's disk is nearly full: free it, or set FITWIRE_DIR to another folder"
    except (OSError, FitwireError):
        return

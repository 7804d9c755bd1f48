"""``fitwire run``: any training, started so that its end is known, whatever it is."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fitwire.errors import AddressError
from fitwire.events import MAX_NAME
from fitwire.transport.address import Address, default_address, resolve
from fitwire.transport.child import Ended, run_child
from fitwire.views.display import NAME, display

if TYPE_CHECKING:
    from fitwire.journal.courier import Delivered
    from fitwire.watch.keeper import Kept

__all__ = ["run"]

CANNOT_RUN, NOT_FOUND = 126, 127
"""As a shell and ``env(1)`` have it."""
BRIEFLY = 1.0
"""Seconds to wait for ranks that are still ending when the command has."""
PATIENCE = 15.0
"""Seconds that delivering may take in all while a hub takes it."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--address", metavar="ADDRESS", help="Of the hub. Default: FITWIRE_ADDRESS, else your own hub here.")
@click.option("--name", metavar="NAME", help="Of the run.")
@click.option("--project", metavar="NAME", help="It belongs to.")
@click.pass_context
def run(
    ctx: click.Context, command: tuple[str, ...], address: str | None, name: str | None, project: str | None
) -> None:
    """Start a training, and tell how it ends.

    Runs COMMAND with its own input, output and signals, and exits as it does: with its exit code, or 128 and the
    signal's number. When it was killed, ran out of memory or left without a word, that is told to whoever watches,
    with the last lines it wrote to stderr; without a hub it is kept for the next one.

    \b
    Example:
      fitwire run -- python train.py --epochs 30
    """
    if not command[0]:
        raise click.UsageError("name a command to run, e.g. `fitwire run -- python train.py`.")
    where = _where(address)
    environment = _environment(address, where, name, project)
    at = "" if where is None or where == default_address() else f" {where.text}"
    _say("info", f"running {display(shlex.join(command), NAME)} · watch it with fitwire watch{at}")
    try:
        ended = run_child(command, environment)
    except OSError as error:
        _say("error", f"cannot run {display(command[0], NAME)}: {error.strerror or error}{_hint(command[0])}")
        ctx.exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN)
    try:
        _conclude(ended, where)
    except KeyboardInterrupt:
        _say("warning", "left what is not delivered to the next hub")
    except Exception as error:  # the command's exit code is worth more than what went wrong with telling of it
        _say("warning", f"could not tell how it ended: {type(error).__name__}: {error}")
    ctx.exit(ended.exit_code)


def _where(address: str | None) -> Address | None:
    try:
        return resolve(address)
    except AddressError:
        if address is not None:
            raise
        return None  # the environment's may be one of another wire, which the training understands


def _environment(address: str | None, where: Address | None, name: str | None, project: str | None) -> dict[str, str]:
    from fitwire.watch.keeper import keeper_id

    found = dict(os.environ)
    if where is not None and (address is not None or found.get("FITWIRE_ADDRESS")):
        found["FITWIRE_ADDRESS"] = where.text  # whatever folder the training changes to
    for key, value in (("NAME", name), ("PROJECT", project)):
        if value is not None:
            if not 0 < len(value.strip()) <= MAX_NAME:
                raise click.UsageError(f"--{key.lower()} takes 1 to {MAX_NAME} characters.")
            found[f"FITWIRE_{key}"] = value
    return found | {"FITWIRE_KEEPER": keeper_id()}


def _hint(program: str) -> str:
    return f"; write `python {program}`" if program.endswith(".py") else ""


def _conclude(ended: Ended, where: Address | None) -> None:
    """Say in the journals what is known, deliver them if somebody is there, and tell of it."""
    from fitwire.watch.keeper import conclude, deliver_all, own_journals

    until = time.monotonic() + BRIEFLY
    over, living = own_journals(ended)
    while living and time.monotonic() < until:
        time.sleep(0.05)  # other ranks, which end a moment later
        over, living = own_journals(ended)
    kept = conclude(ended, over, partial(_say, "warning"))
    for line in _lines(kept, deliver_all(kept, where, PATIENCE)):
        _say("info", line)
    if living:
        names = ", ".join(sorted({_name(about.hello.get("name")) for _, about in living}))
        _say("warning", f"{names} goes on without the command; the next hub here takes what it leaves")


def _lines(kept: Iterable[Kept], delivered: Mapping[Path, Delivered]) -> Iterable[str]:
    """One for each run of which there is something to tell."""
    runs: dict[bytes, list[Kept]] = {}
    for one in kept:
        runs.setdefault(one.about.sender.run, []).append(one)
    for ranks in runs.values():
        added = [one for one in ranks if one.status is not None]
        done = [delivered[one.path] for one in ranks if one.path in delivered]
        records = sum(one.records for one in done)
        waiting = sum((delivered[one.path].left if one.path in delivered else one.left) or 0 for one in ranks)
        if not added and not records:
            continue  # the training itself said it all
        line = f"run {_name(ranks[0].about.hello.get('name'))}"
        if added:
            line += f" {added[-1].status} ({added[-1].reason})"
        if records:
            line += f" · {records:,} records delivered"
        if waiting:
            why = next((f" ({display(one.why)})" for one in done if one.why), "")
            line += f" · {waiting:,} records wait for the next hub here, or `fitwire sync`{why}"
        yield line


def _name(name: object) -> str:
    return display(name, NAME) if isinstance(name, str) and name else "?"


def _say(level: str, line: str) -> None:
    """Like the training's own lines, and as loud."""
    levels = ("debug", "info", "warning", "error", "off")
    asked = os.environ.get("FITWIRE_LOG_LEVEL", "info").strip().lower()
    if levels.index(level) >= levels.index(asked if asked in levels else "info"):
        click.echo(f"fitwire: {line}", err=True)

"""What ``fitwire run`` knows of a training that said nothing of its end, put into its journal, and delivered.

A trainer that sees ``FITWIRE_KEEPER`` says so in its journal and leaves it where it is. Once the command is over, its
journals are looked at: to one whose training did not say how it ended, what is known is added as records of its own.
This module does not run the command.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fitwire.errors import DecodeError, FitwireError, JournalError
from fitwire.events import Event, Log, RunEnded, Status, decode_events, encode_event
from fitwire.journal.courier import Delivered, deliver
from fitwire.journal.entries import scan_through
from fitwire.journal.layout import About, find_journals, life_of, read_about, remove, segments
from fitwire.journal.reader import Journal
from fitwire.protocol.blocks import RECORDS, Block, Buffer, decode_block, encode_block, unpack_frames
from fitwire.transport.address import Address, is_listened_at
from fitwire.transport.child import Ended
from fitwire.transport.process import started_at

__all__ = ["Kept", "conclude", "deliver_all", "keeper_id", "own_journals", "verdict"]

REQUESTS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
"""Signals by which somebody asks a process to end; others say that it failed."""
EXITING = 5.0
"""Seconds before a command's end in which *finished* may only mean that Python was asked to exit: no hook tells of
``sys.exit(3)``, and a run that is open then counts as finished."""
ANSWER = 2.0
"""Seconds to wait for a hub's word."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A journal of this keeper's, after the end.

    Attributes:
        path: Its folder.
        about: What it says of itself.
        status: What was added of its end; None when the training had said it.
        reason: Likewise.
        left: Records in it that no hub has acknowledged; None when it could not be read.
    """

    path: Path
    about: About
    status: Status | None
    reason: str
    left: int | None


def keeper_id() -> str:
    """This process, as ``FITWIRE_KEEPER`` names it: its pid and when it started, in Unix seconds."""
    return f"{os.getpid()}:{started_at(os.getpid())}"


def own_journals(ended: Ended) -> tuple[list[tuple[Path, About]], list[tuple[Path, About]]]:
    """Journals that name this process as their keeper, and whether their trainers are no more.

    Returns:
        Those whose trainer has ended, oldest incarnation of a run first, and those whose trainer goes on.
    """
    started = started_at(os.getpid())
    over: list[tuple[Path, About]] = []
    living: list[tuple[Path, About]] = []
    for path in find_journals():
        try:
            about = read_about(path)
        except JournalError:
            continue
        if about.keeper is None or about.keeper[0] != os.getpid():
            continue
        if started is not None and about.keeper[1] is not None and abs(about.keeper[1] - started) > 2.0:
            continue  # it had our number before us
        gone = is_own(about, ended) or life_of(about).trainer is not True
        (over if gone else living).append((path, about))
    return over, living


def is_own(about: About, ended: Ended) -> bool:
    """Whether the trainer was the command itself, rather than a process that it started."""
    born = about.hello.get("pid_started")
    if about.hello.get("pid") != ended.pid:
        return False
    return not isinstance(born, (int, float)) or ended.started is None or abs(born - ended.started) < 2.0


def verdict(ended: Ended, own: bool) -> tuple[Status, str]:
    """What is to be said of a training that said nothing of its end.

    Args:
        ended: How the command ended.
        own: Whether the trainer was the command itself; else only this much is known of it, that it is gone.

    Returns:
        Status, and why in one line.
    """
    name = "" if ended.signal is None else _name(ended.signal)
    if own:
        if ended.signal is not None:
            why = " (out of memory)" if ended.oom and ended.signal == signal.SIGKILL else ""
            return "interrupted" if ended.signal in REQUESTS else "failed", f"killed by {name}{why}"
        if ended.code:
            return "failed", f"exit code {ended.code}"
        return "finished", "exit code 0, without a word"
    went = "killed, it seems for want of memory" if ended.oom else "its process went without a word"
    if ended.signal is not None:
        asked, how = ended.signal in REQUESTS, f"the command was killed by {name}"
    else:
        code = ended.code or 0
        # What a shell, and most that start others, makes of a signal.
        name = _name(code - 128) if code > 128 else ""
        asked = code == 0 or code - 128 in REQUESTS
        how = f"the command ended with exit code {code}" + (f", as after {name}" if name else "")
    return "interrupted" if asked and not ended.oom else "failed", f"{went}; {how}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}" if 0 < number < 65 else ""


def conclude(ended: Ended, found: Sequence[tuple[Path, About]], warn: Callable[[str], None]) -> list[Kept]:
    """Add to each journal what its training did not say of its end.

    Args:
        ended: How the command ended.
        found: From :func:`own_journals`.
        warn: Told of a journal that cannot be read or written, in a sentence.
    """
    kept: list[Kept] = []
    spoken: set[bytes] = set()
    for path, about in found:
        try:
            kept.append(_conclude_one(ended, path, about, said=about.sender.run in spoken))
        except (OSError, FitwireError) as error:
            warn(f"cannot add to {path} how the training ended: {error}")
            kept.append(Kept(path, about, None, "", None))
        if kept[-1].status is not None:
            spoken.add(about.sender.run)
    return kept


def _conclude_one(ended: Ended, path: Path, about: About, *, said: bool) -> Kept:
    with Journal(path) as journal:
        end = journal.ended or _delivered_end(path, about)
        own = is_own(about, ended)
        if end is not None and not _is_unfounded(end, ended, own):
            return Kept(path, about, None, "", sum(journal.undelivered))
        status, reason = verdict(ended, own)
        words = "" if said else ended.words
        last = _last_block(about, journal.head(RECORDS) + 1, status, reason, words, cut=end is None)
        journal.append([last])
        return Kept(path, about, status, reason, sum(journal.undelivered))


def _is_unfounded(end: RunEnded, ended: Ended, own: bool) -> bool:
    """Whether *finished* was said because Python was asked to exit, with a code that says otherwise."""
    return own and end.status == "finished" and bool(ended.code) and ended.over - end.time < EXITING


def _last_block(about: About, first: int, status: Status, reason: str, words: str, *, cut: bool) -> Block:
    now, rank = time.time(), about.sender.rank
    events: list[Event] = []
    if words and status != "finished":
        events.append(Log(time=now, rank=rank, text=words, level="error"))
    at = words.rfind("Traceback (most recent call last)")
    trace = words[at:] if at >= 0 and status == "failed" else ""
    by = "keeper" if cut else None  # who had said its end had nothing more to say
    events.append(RunEnded(time=now, rank=rank, status=status, reason=reason, traceback=trace, told_by=by))
    parts: list[dict[str, Any]] = []
    buffers: list[tuple[dict[str, Any], Buffer]] = []
    for event in events:
        part, taken = encode_event(event)
        parts.append(part | {"b": len(taken)} if taken else part)
        buffers.extend(taken)
    return encode_block(about.sender, RECORDS, first, time.time_ns(), parts, buffers)


def _delivered_end(path: Path, about: About) -> RunEnded | None:
    """What a training said of its end and a hub has got: the segment that was last written to still has it."""
    found: RunEnded | None = None
    for _, file in segments(path, RECORDS):
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            read = partial(_read_at, handle)
            for entry in scan_through(read, os.fstat(handle).st_size, about.sender):
                if not isinstance(entry, int):
                    found = _end_in(read(entry.start, entry.size)) or found
        finally:
            os.close(handle)
    return found


def _read_at(handle: int, at: int, size: int) -> bytes:
    return os.pread(handle, size, at)


def _end_in(blob: bytes) -> RunEnded | None:
    if b"run_ended" not in blob:  # before the work of taking it apart
        return None
    try:
        _, message = decode_block(unpack_frames(blob))
        return next((event for _, event in decode_events(message) if isinstance(event, RunEnded)), None)
    except DecodeError:
        return None


def deliver_all(kept: Sequence[Kept], address: Address | None, patience: float) -> dict[Path, Delivered]:
    """Hand journals to a hub, if one is there; a journal of which a hub has all goes.

    Args:
        kept: From :func:`conclude`.
        address: Of the hub; None when it is not known.
        patience: Seconds that all may take.

    Returns:
        What became of each journal in which something was left; those that were not tried are not in it.
    """
    found: dict[Path, Delivered] = {}
    until = time.monotonic() + patience
    there = address is not None and (address.path is None or is_listened_at(address.path))
    for one in kept:
        if one.left == 0:
            remove(one.path)  # the training said all, and a hub has it
        elif there and one.left is not None:
            try:
                done = deliver(one.path, address, timeout=ANSWER, stopped=lambda: time.monotonic() > until)
            except FitwireError as error:
                done = Delivered("", one.about.sender.rank, left=one.left, why=str(error))
            found[one.path] = done
            there = done.complete or done.records > 0 or not done.why
    return found

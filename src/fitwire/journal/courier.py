"""Delivers the journal of a trainer that is gone to a hub, as a source of its own.

One thread calls :func:`deliver`, whoever it belongs to: a hub, a keeper, the command line, or the next process life of
the run. A journal goes only once the hub has confirmed that it has all of it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fitwire.errors import DecodeError, FitwireError
from fitwire.journal.layout import remove
from fitwire.journal.reader import Journal
from fitwire.protocol.blocks import LANES, Kind, decode_message
from fitwire.protocol.source import Source, State
from fitwire.transport.address import Address, resolve
from fitwire.transport.process import host_key, started_at
from fitwire.transport.zmq import Dealer

__all__ = ["LOST", "Delivered", "deliver"]

LOOK = 0.020
SAVE_EVERY = 1.0
"""Seconds between two notes of how far it is."""
LOST = "lost"
"""Status of a goodbye for a trainer that said none."""
TEXT = 256
TOLD = ("name", "project", "host", "world_size", "fitwire", "durability")
"""What of the trainer's hello a courier repeats."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of a journal.

    Attributes:
        name: Of the run.
        rank: Process of a distributed run.
        records: Records, samples included, that the hub confirmed during this delivery.
        left: Records that it has not.
        complete: Whether the hub has confirmed all of it.
        removed: Whether the journal's folder is gone.
        lost: Records that the disk had lost; tombstones stand in their places.
        faults: What was met in the journal, by kind; see ``Journal.faults``.
        why: What stood in the way, as a sentence; empty when nothing did.
        contested: Whether that was its trainer, or another courier.
    """

    name: str
    rank: int
    records: int = 0
    left: int = 0
    complete: bool = False
    removed: bool = False
    lost: int = 0
    faults: Mapping[str, int] = field(default_factory=dict[str, int])
    why: str = ""
    contested: bool = False


def deliver(
    path: str | os.PathLike[str],
    address: str | Address | None = None,
    *,
    timeout: float = 10.0,
    stopped: Callable[[], bool] = lambda: False,
    keep: bool = False,
) -> Delivered:
    """Send what a journal holds to the hub, and delete the journal once the hub has confirmed it.

    Args:
        path: The journal's folder. Its trainer must be dead: nobody but it knows what it is about to write.
        address: Of the hub; as ``fitwire.init`` takes it.
        timeout: Seconds without a hub, or without progress, after which it is left for another time.
        stopped: Asked now and then; True ends the delivery.
        keep: Whether to leave the folder where it is, all the same.

    Raises:
        JournalError: The folder is no journal, belongs to somebody else, or the disk does not give it.
        AddressError: The address cannot be used.
    """
    place = resolve(address)
    with Journal(path) as journal:
        courier = _Courier(journal, place)
        if not any(journal.heads):
            if not journal.faults:  # it was killed before it said anything
                return courier.result(complete=True, removed=not keep and _gone(journal.path))
            courier.why = f"nothing in {journal.path} can be read"
            return courier.result(complete=False, removed=False)
        courier.run(timeout, stopped)
        journal.save()
        complete = courier.source.state is State.ENDED and not journal.partial
        removed = complete and not keep and courier.is_all() and _gone(journal.path)
        return courier.result(complete=complete, removed=removed)


def _gone(path: Path) -> bool:
    remove(path)
    return not path.exists()


class _Courier:
    """One delivery."""

    def __init__(self, journal: Journal, place: Address) -> None:
        self.journal, self.place = journal, place
        self.why = ""
        self.records = 0
        self._heard_of = False
        ended = journal.ended
        self._status = LOST if ended is None else ended.status
        chance = random.Random()  # of our own: a trainer's next life may deliver its former one
        self.source = Source(journal.about.sender, _hello(journal), journal, chance.random)
        self._name = journal.name

    def run(self, timeout: float, stopped: Callable[[], bool]) -> None:
        """Until it is done, refused, stopped, or out of patience."""
        link = Dealer(self.place)
        try:
            now = progressed = saved = time.monotonic()
            self.source.connect(now)
            self.source.goodbye(self._status)
            before = (self.source.state, tuple(self.journal.have))
            while not self._is_over() and not stopped():
                now = time.monotonic()
                self._serve(link, now)
                after = (self.source.state, tuple(self.journal.have))
                if after[1] != before[1] or (after[0] is State.STREAMING and before[0] is not State.STREAMING):
                    progressed = now
                before = after
                if now - progressed > timeout:
                    self.why = self._silence(timeout)
                    return
                if now - saved >= SAVE_EVERY:
                    saved = now
                    self.journal.save()
                link.wait(LOOK)
        finally:
            link.close()

    def _serve(self, link: Dealer, now: float) -> None:
        for up in link.changes():
            if up:
                self.source.connected(now)
            else:
                self.source.disconnected(now)
        while (frames := link.receive()) is not None:
            self._look_at(frames)
            had = sum(self.journal.have)
            self.source.receive(frames, now)
            if self._heard_of:  # what the first welcome says was there before
                self.records += sum(self.journal.have) - had
            self._heard_of = self._heard_of or self.source.state is State.STREAMING
        for message in self.source.due(now):
            link.send(message)

    def _look_at(self, frames: list[bytes]) -> None:
        """A hub may have more than the journal does: its trainer's disk refused, or has lost it since."""
        try:
            message = decode_message(frames)
        except DecodeError:
            return
        have = message.body.get("have")
        if message.kind == Kind.WELCOME and message.sender == self.source.sender and isinstance(have, list):
            for lane, number in zip(LANES, cast("list[object]", have), strict=False):
                if type(number) is int and 0 <= number < 2**62:
                    self.journal.advance(lane, number)

    def _is_over(self) -> bool:
        state = self.source.state
        if state is State.SET_ASIDE:
            self.why = "the hub is hearing this source from somebody else: its trainer, or another courier"
        elif state is State.REFUSED:
            self.why = f"the hub refused it: {self.source.reason}"
        return state in (State.ENDED, State.SET_ASIDE, State.REFUSED)

    def _silence(self, timeout: float) -> str:
        if not self._heard_of:
            return f"no hub answered at {self.place} within {timeout:g} s"
        return f"the hub at {self.place} took nothing for {timeout:g} s"

    def is_all(self) -> bool:
        """Whether nobody added to the journal meanwhile."""
        try:
            with Journal(self.journal.path) as now:
                return now.partial is False and all(map(int.__le__, now.heads, self.journal.heads))
        except FitwireError:
            return False

    def result(self, *, complete: bool, removed: bool) -> Delivered:
        """What became of it."""
        journal = self.journal
        left = sum(journal.undelivered)
        return Delivered(
            self._name, journal.about.sender.rank, self.records, left, complete, removed, journal.lost,
            dict(journal.faults), self.why, self.source.state is State.SET_ASIDE,
        )  # fmt: skip


def _hello(journal: Journal) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for key in TOLD:
        value = journal.about.hello.get(key)
        if isinstance(value, (str, int)):
            told[key] = value[:TEXT] if isinstance(value, str) else value
    return {
        **told, "name": told.get("name", journal.name), "durability": journal.about.durability, "role": "courier",
        "pid": os.getpid(), "pid_started": started_at(os.getpid()), "host_key": host_key()[:TEXT],
    }  # fmt: skip

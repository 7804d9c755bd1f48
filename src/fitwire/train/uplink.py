"""The I/O thread of a run: takes what the training thread appended, packs it, and keeps the link.

Every 20 ms it looks; nobody wakes it, because waking costs the training thread ten times what it seems. It knows no
framework and no metric.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fitwire.events import Event
from fitwire.protocol.blocks import LANES, Identity
from fitwire.protocol.source import Source, State
from fitwire.train.backlog import MemoryBacklog
from fitwire.train.packer import Packer, Row
from fitwire.transport.address import Address
from fitwire.transport.process import spawn
from fitwire.transport.zmq import Dealer

__all__ = ["Delivery", "LateRow", "Mark", "Uplink"]

LOOK = 0.020
"""Seconds between two looks at what was appended: no eye sees 20 ms, and 100 rows at a time pack cheapest."""
AT_ONCE = 20_000
"""Records taken in one look, so that the link is served in between."""
DRAIN = 2.0
"""Seconds that closing waits for a hub that is there."""
NOBODY = 0.3
"""Seconds that closing waits when no hub has answered yet: enough for one that is."""


@dataclass(slots=True)
class LateRow:
    """A row with values that their device has not computed; it holds back what was logged after it.

    Attributes:
        row: With gaps, until ``settled``.
        settled: Set by the training thread, last of all.
    """

    row: Row
    settled: bool = False


@dataclass(slots=True)
class Mark:
    """Not a record: a place in the queue, told of when all before it is in the hub's store."""

    reached: threading.Event
    heads: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a run's records.

    Attributes:
        delivered: Records the hub has committed.
        left: Records accepted and not committed.
        dropped: Records given up under pressure; they count as delivered, as tombstones.
        complete: Whether the hub confirmed the goodbye.
    """

    delivered: int
    left: int
    dropped: int
    complete: bool


class Uplink:
    """The thread, and what others may know of it.

    Args:
        sender: Run, incarnation and rank.
        hello: For the source's hello.
        address: Of the hub.
        warn: Told, at most once per kind, of what the user should know: ``warn(kind, sentence)``.
    """

    def __init__(
        self, sender: Identity, hello: dict[str, Any], address: Address, warn: Callable[[str, str], None]
    ) -> None:
        self.queue: deque[Row | LateRow | Event | Mark] = deque()
        self.greeted = threading.Event()
        self.backlog = MemoryBacklog()
        self.source = Source(sender, hello, self.backlog)
        self._packer = Packer(sender, self.backlog.append, lambda why: warn("refused", why))
        self._address, self._warn = address, warn
        self._closing: float | None = None
        self._status = "finished"
        self._marks: list[Mark] = []
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to greet and send; returns at once."""
        self._thread = spawn("uplink", self._work)

    def close(self, status: str) -> Delivery:
        """Send what is left, say goodbye, stop; takes at most about two seconds."""
        self._status = status
        self._closing = time.monotonic()
        if self._thread is not None:
            self._thread.join(DRAIN + 1.0)
        return self.delivery()

    def delivery(self) -> Delivery:
        """How things stand."""
        have = self.source.have
        heads = [self.backlog.head(lane) for lane in LANES]
        left = sum(heads) - sum(have) + len(self.queue)
        return Delivery(sum(have), left, sum(self.backlog.dropped), self.source.state is State.ENDED)

    def _work(self) -> None:
        link = Dealer(self._address)
        try:
            now = time.monotonic()
            self.source.connect(now)
            looked = 0.0
            while not self._done(now):
                now = time.monotonic()
                if now - looked >= LOOK or self._closing is not None:
                    looked = now
                    self._take()
                self._serve(link, now)
                link.wait(max(0.001, LOOK - (time.monotonic() - looked)))
        except Exception as error:  # a fault of ours must not end silently, nor reach the training
            self._warn("uplink", f"fitwire stopped sending: {type(error).__name__}: {error}")
        finally:
            link.close()

    def _take(self) -> None:
        queue = self.queue
        records: list[Row | Event] = []
        while queue and len(records) < AT_ONCE:
            record = queue[0]
            if type(record) is LateRow:
                if not record.settled:
                    break
                record = record.row
            queue.popleft()
            if type(record) is Mark:
                self._packer.add(records)
                records = []
                record.heads = [self.backlog.head(lane) for lane in LANES]
                self._marks.append(record)
            else:
                records.append(record)  # pyright: ignore[reportArgumentType]
        if records:
            self._packer.add(records)

    def _serve(self, link: Dealer, now: float) -> None:
        source = self.source
        for up in link.changes():
            if up:
                source.connected(now)
            else:
                source.disconnected(now)
        while (frames := link.receive()) is not None:
            source.receive(frames, now)
        if self._closing is not None and not self.queue:
            if source.state is State.STREAMING or source.state is State.GREETING:
                source.goodbye(self._status)
        for message in source.due(now):
            link.send(message)
        if source.state is State.STREAMING and not self.greeted.is_set():
            self.greeted.set()
        elif source.state is State.SET_ASIDE:
            self._warn("superseded", f"this run goes on as incarnation {source.newer}; this one sends no more")
        elif source.state is State.REFUSED:
            self._warn("refused by the hub", f"the hub refused this run: {source.reason}")
        for mark in [m for m in self._marks if m.heads and all(map(int.__ge__, source.have, m.heads))]:
            mark.reached.set()
            self._marks.remove(mark)

    def _done(self, now: float) -> bool:
        if self.source.state in (State.ENDED, State.SET_ASIDE, State.REFUSED):
            if self._closing is None and self.source.state is not State.ENDED:
                self.queue.clear()
                return False
            return True
        if self._closing is None:
            return False
        patience = DRAIN if self.greeted.is_set() else NOBODY
        return now - self._closing > patience

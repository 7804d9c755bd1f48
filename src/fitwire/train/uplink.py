"""The I/O thread of a run: takes what the training thread appended, packs it, and keeps the link.

Every 20 ms it looks; nobody wakes it, because waking costs the training thread ten times what it seems. It knows no
framework and no metric.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fitwire.events import Dropped, Event
from fitwire.protocol.blocks import LANES, Identity
from fitwire.protocol.source import Source, State
from fitwire.train.backlog import MemoryBacklog
from fitwire.train.packer import MAX_ROWS, Packer, Row
from fitwire.train.pending import LateRow
from fitwire.transport.address import Address
from fitwire.transport.process import spawn
from fitwire.transport.zmq import Dealer

__all__ = ["Delivery", "Mark", "Outlet", "Record", "Uplink", "shed"]

LOOK = 0.020
"""Seconds between two looks at what was appended: no eye sees 20 ms, and 100 rows at a time pack cheapest."""
ALONE = 1.0
"""The same while no hub is there: nobody waits, and fuller blocks take less memory."""
AT_ONCE = 20_000
"""Records taken in one look, so that the link is served in between."""
MAX_QUEUE = 400_000
"""Records that may wait to be packed, some 150 MB: a loop that appends faster than this thread can pack."""
DRAIN = 2.0
"""Seconds that closing waits for a hub that is there."""
NOBODY = 0.3
"""Seconds that closing waits when no hub has answered yet: enough for one that is."""
STONE = 4096
"""Records that one tombstone may stand for (``blocks.MAX_RECORDS``)."""


@dataclass(slots=True)
class Mark:
    """Not a record: a place in the queue, told of when all before it is in the hub's store.

    Attributes:
        reached: Set when that is so, or when it never will be.
        delivered: Which of the two.
        heads: Per lane, the sequence number to be reached; None while the mark is in the queue.
    """

    reached: threading.Event
    delivered: bool = False
    heads: list[int] | None = None

    def settle(self, delivered: bool) -> None:
        """Tell whoever waits."""
        self.delivered = delivered
        self.reached.set()


Record = Row | LateRow | Event | Mark


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a run's records.

    Attributes:
        delivered: Records the hub has committed, or the receiver was sent.
        left: Records accepted and not delivered.
        dropped: Records given up under pressure.
        complete: Whether the other end has confirmed the end.
    """

    delivered: int
    left: int
    dropped: int
    complete: bool


class Outlet(Protocol):
    """Where a run's records go, on whichever wire.

    Attributes:
        queue: The training thread appends here, and does nothing else.
        hurry: Set with what should not wait long to be taken; a flag that is looked at, nobody is woken.
        greeted: Set when the other end has answered.
        place: Its address, for people.
    """

    queue: deque[Record]
    hurry: bool
    greeted: threading.Event
    place: str

    def start(self) -> None:
        """Begin to greet and send; returns at once."""
        ...

    def close(self, status: str) -> Delivery:
        """Send what is left, say goodbye, stop, within about two seconds; again, to wait for what is left of them."""
        ...

    def delivery(self) -> Delivery:
        """How things stand."""
        ...


def shed(queue: deque[Record]) -> list[Record]:
    """Empty an overfull queue down to half its bound, from its old end: gives what is no batch metric, in its place.

    What is given up is replaced by tombstones. Costs a tenth of packing it, so this thread catches up with any loop.
    """
    kept: list[Record] = []
    gone = 0
    while len(queue) > MAX_QUEUE // 2:
        record = queue[0]
        if type(record) is LateRow:
            if not record.settled:
                break
            record = record.row
        queue.popleft()
        if isinstance(record, tuple) and record[4] != "epoch":
            gone += 1
        else:
            kept.extend(_stones(gone))
            gone = 0
            kept.append(record)
    kept.extend(_stones(gone))
    return kept


def _stones(count: int) -> list[Record]:
    sizes = [STONE] * (count // STONE) + ([count % STONE] if count % STONE else [])
    return [Dropped(time=time.time(), count=n, what="metrics", reason="logged faster than can be sent") for n in sizes]


class Uplink:
    """The thread, and what others may know of it.

    Args:
        sender: Run, incarnation and rank.
        hello: For the source's hello.
        address: Of the hub.
        warn: Told of what the user should know: ``warn(kind, sentence)``.
        backlog: Where blocks lie until the hub has them.
    """

    def __init__(
        self,
        sender: Identity,
        hello: dict[str, Any],
        address: Address,
        warn: Callable[[str, str], None],
        backlog: MemoryBacklog | None = None,
    ) -> None:
        self.queue: deque[Record] = deque()
        self.hurry = False
        self.greeted = threading.Event()
        self.place = address.text
        self.backlog = MemoryBacklog() if backlog is None else backlog
        chance = random.Random()  # of our own: drawing from the user's would change their training
        self.source = Source(sender, hello, self.backlog, chance.random)
        self._packer = Packer(sender, self.backlog.append, lambda what, why: warn(f"refused {what}", f"{what}: {why}"))
        self._address, self._warn = address, warn
        self._closing: float | None = None
        self._status = "finished"
        self._marks: list[Mark] = []
        self._shed = self._lost = 0
        self._parted = False
        self._thread: threading.Thread | None = None
        # Not join: one that Ctrl-C ended takes the thread for stopped ever after (Python 3.11).
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to greet and send; returns at once."""
        self._thread = spawn("uplink", self._work)

    def close(self, status: str) -> Delivery:
        """Send what is left, say goodbye, stop; takes at most about two seconds."""
        if self._closing is None:
            self._status = status
            self._closing = time.monotonic()
        if self._thread is not None:
            self._over.wait(max(0.0, self._closing + DRAIN + 1.0 - time.monotonic()))
        return self.delivery()

    def delivery(self) -> Delivery:
        """How things stand."""
        have = self.source.have
        heads = [self.backlog.head(lane) for lane in LANES]
        left = sum(heads) - sum(have) + len(self.queue) + self._lost
        dropped = sum(self.backlog.dropped) + self._shed
        return Delivery(sum(have), left, dropped, self.source.state is State.ENDED)

    def _work(self) -> None:
        try:
            self._converse()
        except Exception as error:  # a fault of ours must not end silently, nor reach the training
            self._warn("uplink", f"fitwire stopped sending: {type(error).__name__}: {error}")
        finally:
            # Nobody takes from here on; what still comes must not pile up.
            while self._closing is None:
                self._discard()
                time.sleep(LOOK)
            self._release()
            self._over.set()

    def _converse(self) -> None:
        link = Dealer(self._address)
        try:
            now = time.monotonic()
            self.source.connect(now)
            looked = taken = now
            while not self._is_over(now):
                now = time.monotonic()
                if now - looked >= LOOK or self._closing is not None:
                    looked = now
                    if self._is_worth_a_look(now - taken):
                        self._take()
                        taken = now
                self._serve(link, now)
                behind = len(self.queue) > AT_ONCE
                link.wait(0 if behind else max(0.001, LOOK - (time.monotonic() - looked)))
                if behind:
                    looked = 0.0
        finally:
            link.close()

    def _is_worth_a_look(self, since: float) -> bool:
        if self.source.state is State.STREAMING or self._closing is not None:
            return True
        return self.hurry or since >= ALONE or len(self.queue) >= MAX_ROWS

    def _take(self) -> None:
        queue = self.queue
        self.hurry = False
        records: list[Row | Event] = []
        if len(queue) > MAX_QUEUE:
            for record in shed(queue):
                self._shed += record.count if type(record) is Dropped else 0
                self._keep(record, records)
        while queue and len(records) < AT_ONCE:
            record = queue[0]
            if type(record) is LateRow:
                if not record.settled:
                    break
                record = record.row
            queue.popleft()
            self._keep(record, records)
        self._packer.add(records)

    def _keep(self, record: Record, records: list[Row | Event]) -> None:
        if type(record) is Mark:
            self._packer.add(records)
            records.clear()
            record.heads = [self.backlog.head(lane) for lane in LANES]
            self._marks.append(record)
        else:
            records.append(record)  # pyright: ignore[reportArgumentType]

    def _serve(self, link: Dealer, now: float) -> None:
        source = self.source
        for up in link.changes():
            if up:
                source.connected(now)
            else:
                source.disconnected(now)
        while (frames := link.receive()) is not None:
            source.receive(frames, now)
        if self._closing is not None and not self.queue and not self._parted:
            self._parted = True
            source.goodbye(self._status)
        for message in source.due(now):
            link.send(message)
        if source.state is State.STREAMING and not self.greeted.is_set():
            self.greeted.set()
        have = source.have
        for mark in [m for m in self._marks if m.heads and all(map(int.__ge__, have, m.heads))]:
            mark.settle(delivered=True)
            self._marks.remove(mark)

    def _is_over(self, now: float) -> bool:
        source = self.source
        if source.state is State.SET_ASIDE:
            sentence = f"this run goes on as incarnation {source.newer}; this one sends no more"
            self._warn("superseded", sentence)
        elif source.state is State.REFUSED:
            self._warn("refused by the hub", f"the hub refused this run: {source.reason}")
        if source.state in (State.ENDED, State.SET_ASIDE, State.REFUSED):
            return True
        if self._closing is None:
            return False
        patience = DRAIN if self.greeted.is_set() else NOBODY
        return now - self._closing > patience

    def _discard(self) -> None:
        while self.queue:
            record = self.queue.popleft()
            if type(record) is Mark:
                self._marks.append(record)
            else:
                self._lost += 1
        self._release()

    def _release(self) -> None:
        for mark in self._marks:
            mark.settle(delivered=False)
        self._marks.clear()
        for record in list(self.queue):
            if type(record) is Mark:
                record.settle(delivered=False)

"""The I/O thread of a run: takes what the training thread appended, packs it into the journal, and keeps the link.

Every 20 ms it looks; nobody wakes it, because waking costs the training thread ten times what it seems. Nothing is sent
that is not in the journal. It knows no framework and no metric.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fitwire.events import Dropped, Event, Sample
from fitwire.journal.layout import About, create, folder_name, journals_folder
from fitwire.protocol.blocks import LANES, RECORDS, Identity
from fitwire.protocol.commands import Inbox, Request
from fitwire.protocol.source import Source, State
from fitwire.train.journal import Journal
from fitwire.train.outlet import DRAIN, LOOK, NOBODY, Delivery, Mark, Outlet, Record, Steered
from fitwire.train.packer import MAX_ROWS, Packer, Row
from fitwire.train.pending import LateRow
from fitwire.train.segments import Segments
from fitwire.transport.address import Address
from fitwire.transport.zmq import Dealer

if TYPE_CHECKING:
    from fitwire.train.mapped import Ring

__all__ = ["Uplink", "shed"]

ALONE = 1.0
"""The same while no hub is there and nothing is written: nobody waits, and fuller blocks take less memory."""
AT_ONCE = 20_000
"""Records taken in one look, so that the link is served in between."""
BYTES_AT_ONCE = 16 * 2**20
"""Bytes of samples likewise: what is packed waits in memory until it is written."""
WAITING_BYTES = 32 * 2**20
"""Bytes of samples that may wait to be packed: a loop that makes them faster than the disk takes them."""
GAUGES = 8
"""Under pressure, of so many gauges one is kept."""
INCARNATIONS = 100
"""Process lives of one run and rank that may begin in one second."""
MAX_QUEUE = 400_000
"""Records that may wait to be packed, some 150 MB: a loop that appends faster than this thread can pack."""
STONE = 4096
"""Records that one tombstone may stand for (``blocks.MAX_RECORDS``)."""


def _refuse(request: Request) -> str:
    return "this training is not to be steered"


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


class Uplink(Outlet):
    """The thread, and what others may know of it.

    Args:
        sender: Run, incarnation and rank.
        hello: For the source's hello.
        address: Of the hub; None to write the journal only.
        warn: Told of what the user should know: ``warn(kind, sentence)``.
        journal: Where blocks lie until the hub has them; None for one in memory.
        about: Of a journal on disk, whose folder is made when the thread starts; None for none.
        folder: Where it is made; None for the data folder.

    Attributes:
        ring: Keeps each record from the call on until the journal has it; None with ``durability="memory"``.
        steered: Who is told of commands; None to refuse them all.
    """

    NAME = "uplink"

    def __init__(
        self,
        sender: Identity,
        hello: dict[str, Any],
        address: Address | None,
        warn: Callable[[str, str], None],
        journal: Journal | None = None,
        *,
        about: About | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(address.text if address is not None else "its journal", warn)
        self._about, self._folder = about, folder
        self._segments = Segments(self._make_folder) if about is not None else None
        self.backlog = Journal(sender, self._segments, warn) if journal is None else journal
        chance = random.Random()  # of our own: drawing from the user's would change their training
        self.source = Source(sender, hello, self.backlog, chance.random)
        self._packer = Packer(sender, self.backlog.append, lambda what, why: warn(f"refused {what}", f"{what}: {why}"))
        self._address = address
        self._marks: list[Mark] = []
        self._shed = self._lost = self._taken = 0
        self._spared = self._kept = 0
        self._where = ""
        self._waiting_bytes = 0
        self._offering = threading.RLock()  # a signal's handler may sample too
        self.ring: Ring | None = None
        self.steered: Steered | None = None
        self._inbox = Inbox(sender)
        self._served = time.monotonic()
        self._parted = False

    def keep_each(self) -> Ring:
        """Have each record kept within its call; to be called before :meth:`start`, from the training thread.

        Returns:
            What records are to be appended through.

        Raises:
            OSError: There is no journal, or no room or no safe place for the ring.
        """
        if self._segments is None:
            raise OSError(errno.ENOENT, "there is no journal")
        from fitwire.train.mapped import Ring

        folder = self._segments.open()
        self.ring = Ring(folder, self.source.sender, self.queue)
        return self.ring

    def _make_folder(self) -> Path:
        """The journal's folder; a second process that began in the same second takes the next incarnation."""
        assert self._about is not None
        for _ in range(INCARNATIONS):
            about = replace(self._about, sender=self.source.sender)
            try:
                return create(about, self._folder)
            except FileExistsError:
                if self.backlog.head(RECORDS):  # it is our own, whose files somebody deleted
                    return journals_folder(self._folder) / folder_name(about.sender)
                sender = replace(about.sender, incarnation=about.sender.incarnation + 1)
                self.source.sender = self._packer.sender = self.backlog.sender = self._inbox.sender = sender
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def offer(self, nbytes: int) -> bool:
        """Whether there is room for a sample of that size; it is then waited for."""
        with self._offering:
            if self._waiting_bytes + nbytes > WAITING_BYTES and self._waiting_bytes:
                self._shed += 1
                return False
            self._waiting_bytes += nbytes
        return True

    def _unoffer(self, nbytes: int) -> None:
        with self._offering:
            self._waiting_bytes -= nbytes

    def delivery(self) -> Delivery:
        """How things stand."""
        have = self.source.have
        heads = [self.backlog.head(lane) for lane in LANES]
        left = sum(heads) - sum(have) + len(self.queue) + self._lost
        dropped = sum(self.backlog.dropped) + self._shed
        complete = self.source.state is State.ENDED
        return Delivery(sum(have), left, dropped, complete, self._kept, self._where)

    def _put_away(self) -> None:
        """The journal goes when the hub has confirmed the end; else it waits to be delivered."""
        self._release()
        complete = self.source.state is State.ENDED
        if not complete:
            self.backlog.commit(self._taken if self.ring else 0, now=float("inf"))
        if self.ring is not None:
            self.ring.close(keep=not complete and self.backlog.written < self.ring.last)
        self._kept, self._where = 0 if complete else self.backlog.kept, self.backlog.path
        kept_by = self._about is not None and self._about.keeper is not None
        self.backlog.close(delivered=complete and not kept_by)

    def _converse(self) -> None:
        if self._segments is not None:
            # Before anything is packed: whose journal it is may turn out to be another's.
            with contextlib.suppress(OSError):
                self._segments.open()
        link = Dealer(self._address) if self._address is not None else None
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
                    self._commit(now)
                    self.probe.look(self._taken, now)
                behind = len(self.queue) > AT_ONCE
                pause = 0 if behind else max(0.001, LOOK - (time.monotonic() - looked))
                if link is None:
                    self._settle_marks()
                    time.sleep(pause)
                else:
                    self._serve(link, now)
                    if self._may_sleep():
                        time.sleep(pause)
                    else:
                        link.wait(pause)
                if behind:
                    looked = 0.0
        finally:
            if link is not None:
                link.close()

    def _may_sleep(self) -> bool:
        """Whether what the hub says can wait for the next look: being woken for it takes the interpreter once more."""
        streaming = self.source.state is State.STREAMING
        return streaming and self._closing is None and not self._marks and self.source.all_sent

    def _is_worth_a_look(self, since: float) -> bool:
        if self._segments is not None or self.source.state is State.STREAMING or self._closing is not None:
            return True
        return self.hurry or since >= ALONE or len(self.queue) >= MAX_ROWS

    def _commit(self, now: float) -> None:
        """Write what was packed; what the journal has, the ring may forget."""
        ring = self.ring
        self.backlog.commit(self._taken if ring else 0, now=now, alone=self.source.state is not State.STREAMING)
        if ring is not None:
            ring.release(self.backlog.written)

    def _take(self) -> None:
        queue = self.queue
        self.hurry = False
        records: list[Row | Event] = []
        size = 0
        if len(queue) > MAX_QUEUE:
            for record in shed(queue):
                self._taken += record.count if type(record) is Dropped else type(record) is not Mark
                self._shed += record.count if type(record) is Dropped else 0
                self._keep(record, records)
        elif self._take_rows():
            return
        while queue and len(records) < AT_ONCE and size < BYTES_AT_ONCE:
            record = queue[0]
            if type(record) is LateRow:
                if not record.settled:
                    break
                record = record.row
            queue.popleft()
            self._taken += type(record) is not Mark
            if type(record) is Sample:
                nbytes = sum(array.nbytes for array in record.arrays.values())
                size += nbytes
                self._unoffer(nbytes)
            self._keep(record, records)
        self._packer.add(records)

    def _take_rows(self) -> bool:
        """Take what is there if it is nothing but rows, as nearly always: then no line of Python is run for one."""
        popleft = self.queue.popleft
        rows = [popleft() for _ in range(min(len(self.queue), AT_ONCE))]
        if set(map(type, rows)) != {tuple} or self.backlog.pressed:
            self.queue.extendleft(reversed(rows))
            return False
        self._taken += len(rows)
        self._packer.add(cast("list[Row]", rows))
        return True

    def _keep(self, record: Record, records: list[Row | Event]) -> None:
        if type(record) is Mark:
            self._packer.add(records)
            records.clear()
            record.heads = [self.backlog.head(lane) for lane in LANES]
            self._marks.append(record)
        elif type(record) is tuple and record[4] == "time" and self.backlog.pressed:
            self._spare(record, records)
        else:
            records.append(record)  # pyright: ignore[reportArgumentType]

    def _spare(self, gauge: Row, records: list[Row | Event]) -> None:
        """Under pressure the machine's load is the first to go: of many gauges one is kept."""
        self._spared += 1
        if self._spared % GAUGES == 1:
            records.append(gauge)
        else:
            self._shed += 1
            records.append(Dropped(time=gauge[0], count=1, what="gauges", reason="the journal is filling up"))

    def _serve(self, link: Dealer, now: float) -> None:
        source = self.source
        for up in link.changes():
            if up:
                source.connected(now)
            else:
                source.disconnected(now)
        while (frames := link.receive()) is not None:
            source.receive(frames, now)
        if source.commands:
            self._take_commands(link, now)
        self._served = now
        if self._closing is not None and not self.queue and not self._parted:
            self._parted = True
            source.goodbye(self._status)
        for message in source.due(now):
            link.send(message)
            self.probe.sent += sum(map(len, message))
        if source.state is State.STREAMING and not self.greeted.is_set():
            self.greeted.set()
        self._settle_marks()

    def _take_commands(self, link: Dealer, now: float) -> None:
        """Answer at once whether each is taken; what becomes of it is for the training thread to say."""
        steered = self.steered
        while self.source.commands:
            message = self.source.commands.popleft()
            check = steered.refusal if steered is not None else _refuse
            for frames in self._inbox.receive(message, now, check, self._served):
                link.send(frames)
        for request, refusal in self._inbox.news():
            if steered is not None:
                steered.take(request, refusal)

    def _settle_marks(self) -> None:
        if self._address is None:  # what is written is all there is to wait for
            for mark in [mark for mark in self._marks if mark.heads]:
                mark.settle(delivered=not self.backlog.trouble)
                self._marks.remove(mark)
        have = self.source.have
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
        if self._address is None and not self.queue:
            return True
        patience = DRAIN if self.greeted.is_set() else NOBODY
        return now - self._closing > patience

    def _give_up(self) -> None:
        """Write what was accepted into the journal, from which a courier takes it; without one it is lost."""
        try:
            while self._segments is not None and self.queue:
                before = len(self.queue)
                self._take()
                self._commit(time.monotonic())
                if len(self.queue) >= before:  # a value still on its device
                    break
        except Exception as error:
            self._segments = None
            self._warn("uplink", f"fitwire stopped writing its journal: {type(error).__name__}: {error}")
        if self._segments is None:
            self._discard()
        self._release()

    def _discard(self) -> None:
        while self.queue:
            record = self.queue.popleft()
            if type(record) is Mark:
                self._marks.append(record)
            else:
                self._lost += 1

    def _release(self) -> None:
        for mark in self._marks:
            mark.settle(delivered=False)
        self._marks.clear()
        for record in list(self.queue):
            if type(record) is Mark:
                record.settle(delivered=False)

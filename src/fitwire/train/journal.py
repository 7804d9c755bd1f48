"""The journal of a run: its blocks until a hub has them, on disk and, as far as there is room, in memory.

Written by the I/O thread at every look; what the hub acknowledged goes. Without a disk, or when it refuses, blocks wait
in memory. Whatever passes its budget is given up in this order: samples, oldest first, the newest of each name last;
then batch metrics and gauges, which leave their summary; never events and epochs. Each victim leaves a tombstone at its
own sequence numbers, so that what was given up is itself a record. This module knows no socket and no thread: one
thread calls it. Longer than most files here: the budget, the disk and the index can only be right together.
"""

from __future__ import annotations

import errno
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from fitwire.errors import DecodeError
from fitwire.events import Dropped
from fitwire.journal.entries import HEAD, MARK, encode_mark, lay_entry
from fitwire.journal.stones import damaged_stone
from fitwire.protocol.blocks import BULK, LANES, MAX_RECORDS, RECORDS, Block, Identity, decode_block, unpack_frames
from fitwire.train.segments import Segment, Segments
from fitwire.train.tombstones import collapse, fold, in_bundles, merge, name_of_sample, stone

__all__ = ["BULK_BYTES", "DISK_BULK_BYTES", "DISK_RECORD_BYTES", "RECORD_BYTES", "Journal"]

BULK_BYTES = 64 * 2**20
"""Samples kept in memory; those on disk are read back when a hub takes them."""
RECORD_BYTES = 16 * 2**20
"""Metrics and events kept in memory while there is a disk."""
ALONE_BYTES = 256 * 2**20
"""The same when there is none: some four million rows of four values."""
DISK_BULK_BYTES = 256 * 2**20
DISK_RECORD_BYTES = 2**30
PRESSED = 0.8
"""Share of the record lane's disk from which batch metrics are given up."""
NEWEST = 4
"""Samples of each name that are given up last."""
AGAIN = 5.0
"""Seconds before a disk that refused is tried again."""
LOOK_AFTER = 1.0
"""Seconds between two looks whether the files are still there, and between two makings of one block from small ones."""
NOTE_EVERY = 1.0
"""Seconds between two notes of what was acknowledged: a courier is told by the hub, so it is for ``fitwire doctor``."""
AT_ONCE = 64
"""Blocks moved or given up in one look: the link is served in between, and the training has the interpreter."""
MERGED_AT_ONCE = 512
MEMORY = "no hub took it in time: memory budget"
DISK = "no hub took it in time: disk budget"


@dataclass(slots=True, eq=False)
class _Place:
    """Where one block lies: in memory, on disk, or both."""

    first: int
    count: int
    nbytes: int
    block: Block | None = None
    segment: Segment | None = None
    at: int = 0
    name: str = ""  # of a sample
    gone: Dropped | None = None  # of a tombstone
    out: bool = False  # no longer in the index

    @property
    def last(self) -> int:
        return self.first + self.count - 1


class _Shelf:
    """The places of one lane.

    Attributes:
        places: By first sequence number, in order.
        cached: In memory, oldest first; one that is not any more is passed over when it is met.
        heavy: That may be given up, oldest first; likewise.
        spared: That are given up last.
        unwritten: That are to be written.
        names: How many samples of each name there are.
        head: Highest sequence number.
        lent: Highest sequence number that was handed out.
        merged: Up to where small blocks were made into larger ones.
        memory: Bytes in memory.
        stone: The newest block that is all tombstone.
    """

    def __init__(self) -> None:
        self.places: OrderedDict[int, _Place] = OrderedDict()
        self.cached: deque[_Place] = deque()
        self.heavy: deque[_Place] = deque()
        self.spared: deque[_Place] = deque()
        self.unwritten: deque[_Place] = deque()
        self.names: Counter[str] = Counter()
        self.head = self.lent = self.memory = self.merged = 0
        self.stone: _Place | None = None
        self.fetched: tuple[int, Block] | None = None

    def needs_writing(self) -> list[_Place]:
        """What is to be written, in order."""
        while self.unwritten and (self.unwritten[0].out or self.unwritten[0].segment is not None):
            self.unwritten.popleft()
        return [place for place in self.unwritten if not place.out and place.segment is None]


class Journal:
    """Blocks by lane, in order, within budgets.

    A block that was handed out is never changed: a part of it may be under way.

    Args:
        sender: Whose blocks they are.
        segments: Where they are written; None to keep them in memory.
        warn: Told once of a disk that refuses: ``warn(kind, sentence)``.
        bulk_bytes: Memory for the sample lane.
        record_bytes: Memory for the record lane; None for what fits a journal with a disk, or one without.
        disk_bytes: Disk for the record and the sample lane.

    Attributes:
        dropped: Per lane, records that were given up.
        faults: What went wrong with the disk, counted by kind.
        trouble: Why nothing is written at the moment; empty when all is well.
    """

    def __init__(
        self,
        sender: Identity,
        segments: Segments | None = None,
        warn: Callable[[str, str], None] = lambda kind, sentence: None,
        *,
        bulk_bytes: int = BULK_BYTES,
        record_bytes: int | None = None,
        disk_bytes: tuple[int, int] = (DISK_RECORD_BYTES, DISK_BULK_BYTES),
    ) -> None:
        self.sender = sender
        self.dropped = [0 for _ in LANES]
        self.faults: Counter[str] = Counter()
        self.trouble = ""
        self._disk, self._warn = segments, warn
        alone = ALONE_BYTES if record_bytes is None else record_bytes
        self._memory = (alone, bulk_bytes)
        self._cache = (RECORD_BYTES if record_bytes is None else record_bytes, bulk_bytes)
        self._room = (int(disk_bytes[RECORDS] * PRESSED), disk_bytes[BULK])
        self._shelves = [_Shelf() for _ in LANES]
        self._try_at = self._looked = self._merged_at = self._noted = -1e9
        self._settled = self._marked = self._marked_bulk = 0
        self._acked: tuple[int, int] | None = None
        self._leaving: list[Segment] = []
        if segments is not None:
            segments.first_entry = self._first_entry
            segments.largest = [min(size, room // 8) for size, room in zip(segments.largest, self._room, strict=True)]

    # -- what a source reads

    @property
    def nbytes(self) -> int:
        """Bytes kept in memory."""
        return sum(shelf.memory for shelf in self._shelves)

    @property
    def kept(self) -> int:
        """Records that lie on disk and that no hub has acknowledged."""
        places = [place for shelf in self._shelves for place in shelf.places.values()]
        return sum(place.count for place in places if place.segment is not None)

    @property
    def path(self) -> str:
        """Folder of the journal; empty when there is none."""
        return "" if self._disk is None or self._disk.path is None else str(self._disk.path)

    @property
    def pressed(self) -> bool:
        """Whether the budget of the record lane is so far used that gauges are to be spared."""
        if self._disk is not None and not self.trouble:
            return self._disk.nbytes(RECORDS) > self._room[RECORDS] // 2
        return self._shelves[RECORDS].memory > self._memory[RECORDS] // 2

    @property
    def written(self) -> int:
        """Ring counter up to which every record is in the journal."""
        return self._marked

    def first(self, lane: int) -> int:
        """Lowest sequence number still kept; ``head + 1`` when there is none."""
        shelf = self._shelves[lane]
        return next(iter(shelf.places), shelf.head + 1)

    def head(self, lane: int) -> int:
        """Highest sequence number appended."""
        return self._shelves[lane].head

    def read(self, lane: int, seq: int) -> Block | None:
        """The block that begins at ``seq``, or None."""
        shelf = self._shelves[lane]
        place = shelf.places.get(seq)
        if place is None:
            return None
        shelf.lent = max(shelf.lent, place.last)
        if place.block is not None:
            return place.block
        if shelf.fetched is None or shelf.fetched[0] != seq:  # a large one is asked for piece by piece
            shelf.fetched = (seq, self._fetch(lane, place))
        return shelf.fetched[1]

    def trim(self, lane: int, upto: int) -> None:
        """Forget blocks whose last sequence number is at most ``upto``: a hub has committed them."""
        shelf = self._shelves[lane]
        while shelf.places:
            place = next(iter(shelf.places.values()))
            if place.last > upto:
                break
            del shelf.places[place.first]
            segment = self._let_go(shelf, place)
            if segment is not None and self._disk is not None:
                self._disk.release(segment)
        if upto:
            acked = list(self._acked or (0, 0))
            acked[lane] = max(acked[lane], upto)
            self._acked = (acked[0], acked[1])

    # -- what the I/O thread does

    def append(self, block: Block) -> None:
        """Take a block whose first sequence number is ``head + 1``; it is written at the next :meth:`commit`."""
        shelf = self._shelves[block.lane]
        if block.first != shelf.head + 1:
            raise ValueError(f"block {block.first} after record {shelf.head}")
        place = _Place(block.first, block.count, block.nbytes, block)
        shelf.head = block.last
        shelf.places[block.first] = place
        if block.lane == BULK:
            place.name = name_of_sample(block)
            shelf.names[place.name] += 1
        self._hold(shelf, place)
        shelf.heavy.append(place)
        if self._disk is None:
            self._relieve_memory(block.lane)

    def commit(self, taken: int = 0, *, now: float = 0.0, alone: bool = False) -> None:
        """Write what was appended, keep within the budgets, and note what was acknowledged.

        Args:
            taken: Records accepted so far whose blocks were all appended; 0 when nobody counts.
            now: Seconds, on the caller's clock.
            alone: Whether no hub takes anything at the moment: then small blocks are made into larger ones.
        """
        self._settled = max(self._settled, taken)
        if self._is_quiet(now, alone):
            return
        if self._disk is not None and now >= self._try_at:
            try:
                self._write(self._disk, now, alone)
                self._recover()
            except OSError as error:
                self._refuse(error, now)
        for lane in LANES:
            self._relieve_memory(lane)

    def _is_quiet(self, now: float, alone: bool) -> bool:
        """Whether there is nothing to do at this look, as at most looks of a slow training."""
        noting = self._acked is not None and now - self._noted >= NOTE_EVERY
        todo = noting or self._leaving or self._settled > self._marked
        if todo or any(shelf.unwritten for shelf in self._shelves):
            return False
        return now - self._looked < LOOK_AFTER and not (alone and now - self._merged_at >= LOOK_AFTER)

    def close(self, *, delivered: bool) -> None:
        """Let go of the files; what was delivered is deleted."""
        if self._disk is None:
            return
        try:
            if not delivered and self._acked is not None:
                self._disk.note_have(self._acked)
            self._disk.close(delete=delivered)
        except OSError as error:
            self.faults[errno.errorcode.get(error.errno or 0, "disk")] += 1

    # -- the index

    def _hold(self, shelf: _Shelf, place: _Place) -> None:
        """It is in memory, and to be written."""
        shelf.memory += place.nbytes
        shelf.cached.append(place)
        if self._disk is not None:
            shelf.unwritten.append(place)

    def _let_go(self, shelf: _Shelf, place: _Place) -> Segment | None:
        """It is no longer in the index; returns the segment that it was in."""
        place.out = True
        if place.name:
            shelf.names[place.name] -= 1
        self._drop_block(shelf, place)
        for queue in (shelf.cached, shelf.heavy, shelf.spared, shelf.unwritten):
            while queue and queue[0].out:
                queue.popleft()
        if shelf.fetched is not None and shelf.fetched[0] == place.first:
            shelf.fetched = None
        segment, place.segment = place.segment, None
        return segment

    @staticmethod
    def _drop_block(shelf: _Shelf, place: _Place) -> None:
        if place.block is not None:
            shelf.memory -= place.nbytes
            place.block = None

    def _replace(self, shelf: _Shelf, former: list[_Place], block: Block, gone: Dropped | None = None) -> _Place:
        """Put one block in the place of neighbours, which leave the disk once it is written there."""
        place = _Place(block.first, block.count, block.nbytes, block, gone=gone)
        shelf.places[block.first] = place  # keeps the place of the first of them
        for old in former[1:]:
            del shelf.places[old.first]
        for old in former:
            segment = self._let_go(shelf, old)
            if segment is not None:
                self._leaving.append(segment)
        self._hold(shelf, place)
        return place

    def _fetch(self, lane: int, place: _Place) -> Block:
        """Read a block back; one that the disk has lost or changed becomes a tombstone."""
        if place.block is not None:
            return place.block
        try:
            if self._disk is None or place.segment is None:
                raise OSError(errno.EIO, "it is nowhere")
            data = self._disk.read(place.segment, place.at + HEAD.size, place.nbytes)
            block, _ = decode_block(unpack_frames(memoryview(data)))
            if (block.sender, block.lane, block.first, block.count) == (self.sender, lane, place.first, place.count):
                return block
            raise DecodeError("sequence", "another block")
        except (OSError, DecodeError) as error:
            self.faults["unreadable"] += 1
            self.dropped[lane] += place.count
            self._warn("journal read", f"the journal lost records {place.first} to {place.last}: {error}")
            return damaged_stone(self.sender, lane, place.first, place.last, time.time_ns())

    # -- the disk

    def _write(self, disk: Segments, now: float, alone: bool) -> None:
        if now - self._looked >= LOOK_AFTER:
            self._looked = now
            if disk.vanished():
                disk.start_anew()
                raise FileNotFoundError(errno.ENOENT, "the journal was deleted")
        if alone and now - self._merged_at >= LOOK_AFTER:
            self._merged_at = now
            self._merge_small()
        for lane in (BULK, RECORDS):  # a mark on the record lane vouches for the samples before it
            self._relieve_disk(disk, lane)
            self._write_lane(disk, lane)
            self._uncache(lane, alone)
        if self._settled > self._marked:
            self._write_mark(disk)
        self._release_replaced(disk)
        if self._acked is not None and now - self._noted >= NOTE_EVERY:
            self._noted = now
            disk.note_have(self._acked)
            self._acked = None

    def _write_mark(self, disk: Segments) -> None:
        ((segment, _),) = disk.write(RECORDS, [[self._mark(self._settled, self._shelves[BULK].head)]])
        disk.release(segment)
        self._note_mark()

    def _mark(self, taken: int, bulk: int) -> bytes:
        return encode_mark(self.sender, self._shelves[RECORDS].head + 1, taken, bulk)

    def _note_mark(self) -> None:
        self._marked, self._marked_bulk = self._settled, self._shelves[BULK].head

    def _first_entry(self, lane: int) -> bytes | None:
        """A new segment begins with the last mark: the one that held it may be gone before the next is made."""
        return self._mark(self._marked, self._marked_bulk) if lane == RECORDS and self._settled else None

    def _release_replaced(self, disk: Segments) -> None:
        leaving, self._leaving = self._leaving, []
        for segment in leaving:
            disk.release(segment)

    def _write_lane(self, disk: Segments, lane: int) -> None:
        shelf = self._shelves[lane]
        places = shelf.needs_writing()
        while places:
            group, places = places[:AT_ONCE], places[AT_ONCE:]
            # The last entry of a look says how far all of it goes.
            marks = not places and lane == RECORDS and self._settled > 0
            bulk = self._shelves[BULK].head
            entries = [
                lay_entry(place.block, self._settled, bulk, MARK)
                if marks and place is group[-1]
                else lay_entry(place.block)
                for place in group
                if place.block is not None
            ]
            done = 0
            while done < len(entries):
                for segment, at in disk.write(lane, entries[done:]):
                    group[done].segment, group[done].at = segment, at
                    segment.owners.append(group[done])
                    done += 1
            if marks:
                self._note_mark()
        shelf.unwritten.clear()

    def _uncache(self, lane: int, alone: bool) -> None:
        """Keep the oldest in memory, which a source needs next; the others can be read back."""
        shelf, budget = self._shelves[lane], self._cache[lane]
        # What will be made into larger blocks is needed for that.
        edge = shelf.merged if alone and lane == RECORDS and shelf.memory < 2 * budget else shelf.head
        skipped: list[_Place] = []
        while shelf.memory > budget and shelf.cached:
            place = shelf.cached.pop()
            if place.out or place.block is None:
                continue
            if place.segment is None or place.first > edge:
                skipped.append(place)
            else:
                self._drop_block(shelf, place)
        shelf.cached.extend(reversed(skipped))

    def _refuse(self, error: OSError, now: float) -> None:
        self._try_at = now + AGAIN
        self.faults[errno.errorcode.get(error.errno or 0, "disk")] += 1
        self.trouble = error.strerror or str(error)
        where = self.path or "the journal's folder"
        self._warn(
            "journal",
            f"cannot write to {where}: {self.trouble}; records wait in memory, and what does not fit is given up: "
            "free the disk, or set FITWIRE_DIR to another folder for the next run",
        )

    def _recover(self) -> None:
        if self.trouble:
            self.trouble = ""
            self._warn("journal again", "the journal is being written again")

    # -- small blocks into larger ones

    def _merge_small(self) -> None:
        """A look makes a block; a night without a hub would make millions, each with its place in memory."""
        shelf = self._shelves[RECORDS]
        edge = max(shelf.lent, shelf.merged)
        small: list[_Place] = []
        for place in reversed(shelf.places.values()):
            if place.first <= edge or place.block is None or len(small) >= MERGED_AT_ONCE:
                break
            small.append(place)
        small.reverse()
        at = 0
        for bundle in in_bundles([place.block for place in small if place.block is not None]):
            former, at = small[at : at + len(bundle)], at + len(bundle)
            made = merge(bundle) if len(bundle) > 1 else None
            if made is not None:
                shelf.heavy.append(self._replace(shelf, former, made))
            if at < len(small):  # the last bundle may grow yet
                shelf.merged = bundle[-1].last

    # -- budgets

    def _relieve_memory(self, lane: int) -> None:
        """What waits in memory alone, because there is no disk or it refuses, is given up beyond a budget."""
        shelf = self._shelves[lane]
        if self._disk is not None:
            if not self.trouble:
                return
            self._uncache_all(shelf, self._memory[lane])
        while shelf.memory > self._memory[lane]:
            victim = self._next_victim(lane, shelf)
            if victim is None:
                return
            self._give_up(lane, shelf, victim, MEMORY)

    def _uncache_all(self, shelf: _Shelf, budget: int) -> None:
        if shelf.memory > budget:
            for place in shelf.cached:
                if place.block is not None and place.segment is not None:
                    self._drop_block(shelf, place)
            shelf.cached = deque(place for place in shelf.cached if place.block is not None)

    def _next_victim(self, lane: int, shelf: _Shelf) -> _Place | None:
        """The oldest block in memory that can be given up; of samples, the newest of each name last."""
        for place in list(shelf.spared):
            if not place.out and shelf.names[place.name] > NEWEST:
                shelf.spared.remove(place)
                return place
        while len(shelf.heavy) > 1:
            place = shelf.heavy.popleft()
            if place.out or place.block is None or place.last <= shelf.lent:
                continue
            if lane == BULK and shelf.names[place.name] <= NEWEST:
                shelf.spared.append(place)
                continue
            return place
        while shelf.spared:
            place = shelf.spared.popleft()
            if not place.out and place.block is not None:
                return place
        return None

    def _give_up(self, lane: int, shelf: _Shelf, victim: _Place, why: str) -> bool:
        """Put a tombstone in a block's place, joined to the one before it where that is possible."""
        block = self._fetch(lane, victim)
        if lane == BULK:
            gone, count = Dropped(time=time.time(), count=victim.count, what="sample", reason=why), victim.count
            made = stone(block, gone)
        else:
            made, gone, count = collapse(block, why)
            if not count:
                return False
        self.dropped[lane] += count
        former = [victim]
        before = shelf.stone
        if gone is not None and before is not None and self._join(shelf, before, victim):
            assert before.gone is not None
            gone = fold(before.gone, gone)
            former.insert(0, before)
            made = stone(block, gone, before.first)
        place = self._replace(shelf, former, made, gone)
        shelf.stone = place if gone is not None else None
        return True

    @staticmethod
    def _join(shelf: _Shelf, before: _Place, place: _Place) -> bool:
        """Whether one tombstone may stand for both: where a block holds a single row, its own would weigh as much."""
        free = not before.out and before.first > shelf.lent
        return free and before.last + 1 == place.first and before.count + place.count <= MAX_RECORDS

    def _relieve_disk(self, disk: Segments, lane: int) -> None:
        """Empty the oldest segments: what may go leaves a tombstone, what may not moves to the newest."""
        shelf = self._shelves[lane]
        done = 0
        while disk.nbytes(lane) > self._room[lane] and done < AT_ONCE:
            segment = disk.oldest(lane)
            if segment is None:
                return
            owners = segment.owners
            while owners and done < AT_ONCE:
                place = owners.popleft()
                if not place.out and place.segment is segment:
                    done += 1
                    self._clear(disk, lane, shelf, place)
            if not owners:
                # It goes once what left it is written.
                self._write_lane(disk, lane)
                if lane == RECORDS and self._settled:
                    self._write_mark(disk)
                self._release_replaced(disk)
                if disk.oldest(lane) is segment:
                    return

    def _clear(self, disk: Segments, lane: int, shelf: _Shelf, place: _Place) -> None:
        roomy = disk.nbytes(lane) < 1.5 * self._room[lane]
        spared = lane == BULK and shelf.names[place.name] <= NEWEST and roomy
        if place.last > shelf.lent and place.gone is None and not spared and self._give_up(lane, shelf, place, DISK):
            return
        # A later entry for the same records takes the place of this one.
        segment = place.segment
        assert segment is not None
        block = self._fetch(lane, place)
        if block.nbytes != place.nbytes:  # it could not be read
            self._replace(shelf, [place], block)
            return
        ((place.segment, place.at),) = disk.write(lane, [lay_entry(block)])
        place.segment.owners.append(place)
        self._leaving.append(segment)

"""One source's journal, read: what lies in its folder, as the blocks that a hub is to get.

Whoever wrote it may be dead or alive; nothing is locked, mapped or changed, and what is read is checked. What the disk
has lost becomes a tombstone at its own place; what only the mapped ring has (``durability="process"``) follows behind.
Longer than most files here: scanning, finding and reading can only be right together.
"""

from __future__ import annotations

import os
import stat
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from fitwire.errors import DecodeError, JournalError
from fitwire.events import RunEnded, RunStarted, decode_events
from fitwire.journal.entries import MARK, Entry, encode_entry, scan_through
from fitwire.journal.index import MAX_ENTRIES, LaneIndex, Place
from fitwire.journal.layout import HAVE, RING, read_about, read_have, segment_name, segments, write_have
from fitwire.journal.ring import recover
from fitwire.journal.stones import damaged_stone, rest_of
from fitwire.protocol.blocks import (
    BULK,
    HEAD,
    LANES,
    MAX_BLOCK_BYTES,
    RECORDS,
    Block,
    decode_block,
    decode_message,
    unpack_frames,
)

__all__ = ["Journal"]

MAX_SEGMENT_BYTES = 2 * MAX_BLOCK_BYTES
"""A segment is as long as one large block, or 32 MiB; what is beyond this nobody of ours wrote."""
MAX_SEGMENTS = 65_536
MAX_HOLE = 2**24
"""Missing records that damage explains: a budget's worth of them. Numbers beyond such a hole are no continuation."""
OPEN_FILES = 8
SEALED = 2**63 - 1
"""A mark beyond any counter: all that the ring had is in entries."""
LAST_BLOCKS = 8
"""From the end of the record lane, in which its end is looked for: gauges may follow it."""


class Journal:
    """A ``protocol.source.Backlog`` over a journal's folder.

    Args:
        path: Of the folder.
        ring: Whether to take what only the mapped ring has; a living trainer still writes there.

    Attributes:
        path: Of the folder.
        about: What it says of itself.
        faults: What was met, by kind: ``"torn"`` (a write that was cut off, at the end), ``"damaged"``, ``"replaced"``
            (no fault: a later entry stands for it), ``"foreign"`` (what belongs elsewhere), ``"ring"``.
        lost: Records that the disk lost, as far as their numbers are known.
        partial: Whether there is more than fits into memory at once; deliver it, then open it again.
        have: Per lane, up to where a hub has it.

    Raises:
        JournalError: It is no journal's folder, belongs to somebody else, or the disk does not give it.
    """

    def __init__(self, path: str | os.PathLike[str], *, ring: bool = True) -> None:
        self.path = Path(path)
        self.about = read_about(self.path)
        self._ring = ring
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._read: list[tuple[int, Block] | None] = [None for _ in LANES]
        self.rescan()

    # -- scanning

    def rescan(self) -> None:
        """Look anew at what is there.

        Raises:
            JournalError: The disk does not give it.
        """
        self.close()
        self.faults: Counter[str] = Counter()
        self.partial = False
        self.lost = 0
        self.have = list(read_have(self.path))
        self._oldest = [0, 0]  # segment of each lane
        self._taken = 0  # ring counter of the last mark
        self._marked = [0, 0]  # heads at the last mark
        self._index = [LaneIndex(), LaneIndex()]
        self._last: deque[Place] = deque(maxlen=LAST_BLOCKS)
        for lane in LANES:
            self._scan_lane(lane)
        self._tail = self._from_ring()
        for lane in LANES:
            self._settle(lane)
        self._heads = [max(index.head, have) for index, have in zip(self._index, self.have, strict=True)]
        if not self.partial:
            self._heads = [max(head, marked) for head, marked in zip(self._heads, self._marked, strict=True)]
        self.lost = sum(last - first + 1 for lane in LANES for first, last in self._holes(lane))
        self.faults = +self.faults

    def _scan_lane(self, lane: int) -> None:
        files, index = segments(self.path, lane), self._index[lane]
        self._oldest[lane] = files[0][0] if files else 0
        self.partial = self.partial or len(files) > MAX_SEGMENTS
        for number, _ in files[:MAX_SEGMENTS]:
            for item in self._scan_file(lane, number):
                if isinstance(item, int):
                    # Behind the last good entry of the last segment: what a kill or a full disk left half-written.
                    self.faults["torn" if item < 0 and number == files[-1][0] else "damaged"] += 1
                elif item.lane != lane:
                    self.faults["foreign"] += 1
                elif not self._take(index, item, number):
                    self.partial = True
                    return

    def _take(self, index: LaneIndex, entry: Entry, number: int) -> bool:
        if entry.flags & MARK and entry.lane == RECORDS and entry.taken >= self._taken:
            self._taken = entry.taken
            self._marked = [entry.last, entry.bulk]  # a bare mark counts none: its last is the one before its first
        place = Place(entry.first, entry.count, number, entry.start, entry.size)
        if entry.count and place.last > self.have[entry.lane]:
            if len(index) >= MAX_ENTRIES:
                return False
            index.add(place)
        elif entry.count and entry.lane == RECORDS:  # delivered; it may say how the training ended
            self._last.append(place)
        return True

    def _scan_file(self, lane: int, number: int) -> Iterator[Entry | int]:
        """Entries of a segment; damage as the bytes it takes, negative where nothing good follows."""
        try:
            handle = self._open(lane, number)
            size = os.fstat(handle).st_size
        except FileNotFoundError:  # its trainer lives, and has delivered it
            return
        except OSError as error:
            raise self._unreadable(error) from error
        if size > MAX_SEGMENT_BYTES:
            self.faults["damaged"] += 1
            size = MAX_SEGMENT_BYTES
        bad: int | None = None
        for item in scan_through(lambda at, size: self._pread(lane, number, at, size), size, self.about.sender):
            if bad is not None:
                yield bad
            bad = item if isinstance(item, int) else None
            if bad is None:
                yield item
        if bad is not None:
            yield -bad

    def _from_ring(self) -> list[Block] | None:
        """Blocks of what was accepted after the last mark; None when the entries are all there is."""
        if (
            not self._ring
            or self.partial
            or self.about.durability != "process"
            or not os.path.lexists(self.path / RING)
        ):
            return None
        if self._taken >= SEALED:
            return []
        heads = list(self._marked)
        try:
            tail = recover(self.path, self.about.sender, after=self._taken, firsts=[heads[0] + 1, heads[1] + 1])
        except (JournalError, OSError, DecodeError):
            self.faults["ring"] += 1
            return None
        for block in tail:
            if block.sender != self.about.sender or block.first != heads[block.lane] + 1:
                self.faults["ring"] += 1
                return None
            heads[block.lane] = block.last
        return tail

    def _settle(self, lane: int) -> None:
        """Leave out of a lane's index what does not hold, and add what the ring has."""
        index = self._index[lane]
        # What a batch without its mark holds lies in the ring too.
        index.settle(None if self._tail is None else self._marked[lane])
        self.faults["replaced"] += index.replaced
        if len(index) and self._oldest[lane] > 1:  # those before it were delivered and went
            self.have[lane] = max(self.have[lane], index[0].first - 1)
        head = self.have[lane]
        for at in range(len(index)):
            place = index[at]
            # What is missing may be what did not fit.
            if place.first > head + (1 if self.partial and at else MAX_HOLE):
                self.faults["foreign"] += not self.partial
                index.drop_from(at)
                break
            head = place.last
        if self._marked[lane] > head + MAX_HOLE:
            self._marked[lane] = head
        for at, block in enumerate(self._tail or ()):
            if block.lane == lane and block.last > self.have[lane]:
                index.add(Place(block.first, block.count, 0, -1 - at, block.nbytes))

    def _holes(self, lane: int) -> Iterator[tuple[int, int]]:
        following = self.have[lane] + 1
        for at in range(len(self._index[lane])):
            place = self._index[lane][at]
            if place.first > following:
                yield following, place.first - 1
            following = place.last + 1
        if following <= self._heads[lane]:
            yield following, self._heads[lane]

    # -- a backlog

    @property
    def heads(self) -> tuple[int, int]:
        """Per lane, the highest sequence number."""
        return self._heads[0], self._heads[1]

    @property
    def undelivered(self) -> tuple[int, int]:
        """Per lane, records that no hub has acknowledged, as far as the journal knows."""
        return self._heads[0] - self.have[0], self._heads[1] - self.have[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that are not delivered."""
        return sum(self._index[lane].bytes_after(self.have[lane]) for lane in LANES)

    def first(self, lane: int) -> int:
        """Lowest sequence number that is still to be had; ``head + 1`` when there is none."""
        return self.have[lane] + 1

    def head(self, lane: int) -> int:
        """Highest sequence number; 0 when there is none."""
        return self._heads[lane]

    def read(self, lane: int, seq: int) -> Block | None:
        """The block that begins at ``seq``: as it was written, a tombstone, or the rest of one; None beyond the end.

        Raises:
            JournalError: The disk does not give what it had a moment ago.
        """
        if not 0 < seq <= self._heads[lane]:
            return None
        held = self._read[lane]
        if held is None or held[0] != seq:  # a large one is asked for again with every piece of it
            held = self._read[lane] = (seq, self._block_from(lane, seq))
        return held[1]

    def trim(self, lane: int, upto: int) -> None:
        """A hub has committed all up to ``upto``; on disk nothing changes until :meth:`save`."""
        self.have[lane] = max(self.have[lane], min(upto, self._heads[lane]))

    def advance(self, lane: int, upto: int) -> None:
        """A hub has more than is here: what its trainer had in memory when the disk refused, or its disk lost since."""
        self._heads[lane] = max(self._heads[lane], upto)

    def save(self) -> None:
        """Note in the folder up to where it was delivered, so that the next courier goes on from there."""
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            handle = os.open(self.path / HAVE, flags, 0o600)
            try:
                write_have(handle, (self.have[0], self.have[1]))
            finally:
                os.close(handle)
        except OSError:
            pass  # then it is asked again what it has

    # -- what it says

    def events(self) -> Iterator[object]:
        """Its first block, then the last ones of its record lane: how it began and how it ended.

        Raises:
            JournalError: The disk does not give it.
        """
        index = self._index[RECORDS]
        last = [index[at] for at in range(max(0, len(index) - LAST_BLOCKS), len(index))]
        chosen = {place.first: place for place in [*self._last, *([index[0]] if len(index) else []), *last]}
        for _, place in sorted(chosen.items()):
            try:
                block = self._block_at(RECORDS, place)
                yield from (event for _, event in decode_events(decode_message(block.frames), arrays=False))
            except DecodeError:
                continue

    @property
    def ended(self) -> RunEnded | None:
        """How the training said it ended; None when it did not."""
        return next((event for event in reversed(list(self.events())) if isinstance(event, RunEnded)), None)

    @property
    def name(self) -> str:
        """The run's name, as far as it is known."""
        told = self.about.hello.get("name")
        if isinstance(told, str):
            return told
        return next((e.name for e in self.events() if isinstance(e, RunStarted)), self.about.sender.run.hex()[:8])

    def append(self, blocks: Sequence[Block]) -> None:
        """Add blocks to a journal whose trainer is dead, after what its ring holds; a lane's numbers go on.

        Raises:
            JournalError: They do not follow, or the disk refuses.
        """
        ring, heads = list(self._tail or ()), list(self.heads)
        for block in blocks:
            if block.sender != self.about.sender or block.first != heads[block.lane] + 1:
                raise JournalError(f"block {block.first} of lane {block.lane} does not follow {heads[block.lane]}")
            heads[block.lane] = block.last
        made = sorted([*ring, *blocks], key=lambda block: -block.lane)  # a mark vouches for the samples before it
        for lane in (BULK, RECORDS):
            own = [block for block in made if block.lane == lane]
            if own:
                flags = MARK if lane == RECORDS else 0
                self._write(lane, [encode_entry(b, SEALED, heads[BULK], flags if b is own[-1] else 0) for b in own])
        self.rescan()

    def _write(self, lane: int, entries: Sequence[bytes]) -> None:
        number = max((number for number, _ in segments(self.path, lane)), default=0) + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        try:
            with open(os.open(self.path / segment_name(lane, number), flags, 0o600), "wb") as file:
                file.write(b"".join(entries))
        except OSError as error:
            raise JournalError(f"cannot write to {self.path}: {error.strerror}") from error

    # -- the disk

    def _block_from(self, lane: int, seq: int) -> Block:
        index = self._index[lane]
        at = index.before(seq)
        if at >= 0 and index[at].last >= seq:
            place = index[at]
            block = self._block_at(lane, place)
            return block if place.first == seq else rest_of(block, decode_message(block.frames), seq)
        end = index[at + 1].first - 1 if at + 1 < len(index) else self._heads[lane]
        return damaged_stone(self.about.sender, lane, seq, end, self._time_near(lane, at))

    def _block_at(self, lane: int, place: Place) -> Block:
        if place.start < 0:
            assert self._tail is not None
            return self._tail[-1 - place.start]
        try:
            data = self._all_of(lane, place)
            block, _ = decode_block(unpack_frames(data))
            own = (self.about.sender, lane, place.first, place.count)
            if (block.sender, block.lane, block.first, block.count) != own:
                raise DecodeError("sequence", "another block")
            return block
        except DecodeError:
            self.faults["damaged"] += 1
            self.lost += place.count
            at = self._index[lane].before(place.first - 1)
            return damaged_stone(self.about.sender, lane, place.first, place.last, self._time_near(lane, at))

    def _time_near(self, lane: int, at: int) -> int:
        """When the block at ``at``, or the one after it, was made, Unix nanoseconds; 0 when neither tells."""
        index = self._index[lane]
        for one in (at, at + 1):
            if 0 <= one < len(index):
                place = index[one]
                if place.start < 0:
                    continue
                head = self._pread(lane, place.file, place.start, min(place.size, 4 * 70 + HEAD.size))
                count = int.from_bytes(head[:4], "little")
                raw = head[4 + 4 * count :][: HEAD.size]
                if count <= 66 and len(raw) == HEAD.size:
                    return min(HEAD.unpack(raw)[-1], 2**62)
        return 0

    def _all_of(self, lane: int, place: Place) -> bytes:
        parts: list[bytes] = []
        at, left = place.start, place.size
        while left:
            part = self._pread(lane, place.file, at, left)
            if not part:
                raise JournalError(f"{self.path} is shorter than it was a moment ago")
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pread(self, lane: int, number: int, at: int, size: int) -> bytes:
        try:
            return os.pread(self._open(lane, number), size, at)
        except OSError as error:
            raise self._unreadable(error) from error

    def _open(self, lane: int, number: int) -> int:
        held = self._files.get((lane, number))
        if held is not None:
            self._files.move_to_end((lane, number))
            return held
        # Not to wait for ever at a pipe that somebody put there.
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        handle = os.open(self.path / segment_name(lane, number), flags)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise JournalError(f"{self.path / segment_name(lane, number)} is no file")
        self._files[lane, number] = handle
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return handle

    def _unreadable(self, error: OSError) -> JournalError:
        return JournalError(f"cannot read {self.path}: {error.strerror or error}; it stays where it is")

    def close(self) -> None:
        """Let go of its files."""
        while self._files:
            os.close(self._files.popitem()[1])
        self._read = [None for _ in LANES]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

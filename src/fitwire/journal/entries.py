"""The journal's one format: blocks as they travel, each behind a head of 48 bytes, one after the other in a segment.

Pure: bytes go in and come out. A head's checksum covers the head, the block and whose journal it is, so that nothing
else is ever taken for an entry, be it what a half-written one left, or another journal inside an array. Behind the last
entry a preallocated segment holds zeros. Of two entries for the same records the later one holds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fitwire.errors import EncodeError
from fitwire.protocol.blocks import LANES, MAX_BLOCK_BYTES, MAX_RECORDS, Block, Buffer, Identity, slice_frames
from fitwire.protocol.crc import crc32

__all__ = [
    "ALIGN", "HEAD", "MARK", "Entry", "encode_entry", "encode_mark", "entry_size", "lay_entry", "scan_entries",
    "scan_through",
]  # fmt: skip

MAGIC = b"FWj1"
HEAD = struct.Struct("<4sIIIQQQBB6x")
"""Magic, bytes of the block, checksum, records, first sequence number, ring counter, bulk head, lane, flags."""
assert HEAD.size == 48

ALIGN = 8
"""Entries begin at multiples of it, so a search past damage looks at an eighth of the places."""
MARK = 1
"""Flag of the last entry of a batch: all records accepted up to its ring counter lie in entries up to here, and all
samples among them in the other lane's entries up to its bulk head."""
WINDOW = 2**20
"""Bytes of a segment that a scan holds in memory."""
WORK = 4
"""Of a segment's size: bytes that a scan spends on what looks like an entry and is none."""

Read = Callable[[int, int], Buffer]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, checked.

    Attributes:
        lane: 0 for records, 1 for samples.
        first: Sequence number of the block's first record; of a bare mark the next one to come.
        count: Records in the block; 0 of a bare mark.
        taken: Ring counter of the last record whose place is settled; meaningful with :data:`MARK`.
        bulk: Highest sequence number of the sample lane at that moment; likewise.
        flags: :data:`MARK` or 0.
        start: Where the packed block begins in the segment.
        size: Its bytes.
    """

    lane: int
    first: int
    count: int
    taken: int
    bulk: int
    flags: int
    start: int
    size: int

    @property
    def last(self) -> int:
        """Sequence number of the block's last record."""
        return self.first + self.count - 1

    @property
    def stop(self) -> int:
        """Where the next entry begins."""
        return _aligned(self.start + self.size)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _seed(sender: Identity) -> int:
    return crc32(struct.pack("<16sII", sender.run, sender.incarnation, sender.rank), 0)


def _checksum(seed: int, head: Buffer, *pieces: Buffer) -> int:
    view = memoryview(head)
    crc = crc32(view[12 : HEAD.size], crc32(view[:8], seed))
    for piece in pieces:
        crc = crc32(piece, crc)
    return crc


def lay_entry(block: Block, taken: int = 0, bulk: int = 0, flags: int = 0) -> list[Buffer]:
    """Lay a block out as an entry, in pieces to be written one after the other; large arrays are not copied.

    Args:
        block: As it travels.
        taken: With ``flags=MARK``, the ring counter up to which all records are settled.
        bulk: With ``flags=MARK``, the head of the sample lane.
        flags: :data:`MARK` or 0.

    Raises:
        EncodeError: A number that is out of its range.
    """
    size = block.nbytes
    pieces = list(slice_frames(block.frames, 0, size))
    head = _head(block.sender, pieces, size, (block.count, block.first, taken, bulk, block.lane, flags))
    return [head, *pieces, bytes(-size % ALIGN)]


def encode_entry(block: Block, taken: int = 0, bulk: int = 0, flags: int = 0) -> bytes:
    """As :func:`lay_entry`, in one piece."""
    return b"".join(lay_entry(block, taken, bulk, flags))


def encode_mark(sender: Identity, following: int, taken: int, bulk: int) -> bytes:
    """An entry without a block: all records up to ring counter ``taken`` are settled.

    Args:
        sender: Whose journal it is.
        following: The next sequence number of the record lane.
        taken: Ring counter.
        bulk: Head of the sample lane.
    """
    return _head(sender, [], 0, (0, following, taken, bulk, 0, MARK))


def _head(sender: Identity, pieces: Sequence[Buffer], size: int, fields: tuple[int, int, int, int, int, int]) -> bytes:
    try:
        head = bytearray(HEAD.pack(MAGIC, size, 0, *fields))
    except struct.error as error:
        raise EncodeError(f"cannot write record {fields[1]} of lane {fields[4]} to the journal: {error}") from None
    struct.pack_into("<I", head, 8, _checksum(_seed(sender), memoryview(head), *pieces))
    return bytes(head)


def entry_size(block: Block) -> int:
    """Bytes that :func:`encode_entry` makes of a block."""
    return _aligned(HEAD.size + block.nbytes)


def scan_entries(segment: Buffer, sender: Identity) -> Iterator[Entry | int]:
    """Yield what a segment holds, in order; see :func:`scan_through`.

    Args:
        segment: Its bytes.
        sender: Whose journal it is; what belongs to another is no entry.
    """
    view = memoryview(segment)
    return scan_through(lambda at, size: view[at : at + size], len(view), sender)


def scan_through(read: Read, size: int, sender: Identity) -> Iterator[Entry | int]:
    """Yield what a segment holds, in order, a window at a time.

    Args:
        read: Gives bytes of it from a place on, as many as asked for or, at its end, as there are.
        size: Of the segment.
        sender: Whose journal it is; what belongs to another is no entry.

    Yields:
        Each good entry; and where something else than zeros stands in the way, the number of bytes that were passed
        over to the next good entry, or to the end.
    """
    return _Scan(read, size, _seed(sender)).run()


class _Scan:
    """One walk through a segment.

    A search past damage tries every place that looks like a head, and each may claim to be as long as the rest: the
    work spent on such claims is bounded, or a file made up on purpose would keep its reader busy for days.
    """

    def __init__(self, read: Read, size: int, seed: int) -> None:
        self._read, self._size, self._seed = read, size, seed
        self._at = 0
        self._window: memoryview[int] = memoryview(b"")
        self._work = WORK * size + WINDOW

    def run(self) -> Iterator[Entry | int]:
        at = 0
        while at + HEAD.size <= self._size:
            entry = self._entry_at(at)
            if entry is None:
                following = self._next_good(at)
                end = self._size if following is None else following
                if not self._is_blank(at, end):
                    yield end - at
                if following is None:
                    return
                at = following
            else:
                yield entry
                at = entry.stop

    def _bytes(self, at: int, size: int) -> memoryview[int]:
        """``size`` bytes from ``at`` (at most :data:`WINDOW`), fewer at the end."""
        place = at - self._at
        if place < 0 or place + size > len(self._window):
            self._at, place = at, 0
            self._window = memoryview(self._read(at, max(0, min(WINDOW, self._size - at))))
        return self._window[place : place + size]

    def _entry_at(self, at: int) -> Entry | None:
        head = self._bytes(at, HEAD.size)
        if len(head) < HEAD.size:
            return None
        magic, size, crc, count, first, taken, bulk, lane, flags = HEAD.unpack(head)
        start = at + HEAD.size
        if magic != MAGIC or size > MAX_BLOCK_BYTES or start + size > self._size:
            return None
        if lane not in LANES or count > MAX_RECORDS or not 1 <= first < 2**63 - MAX_RECORDS:
            return None
        if (count == 0) != (size == 0):
            return None
        found = _checksum(self._seed, bytes(head))  # a copy: the window moves
        for place in range(start, start + size, WINDOW):
            found = crc32(self._bytes(place, min(WINDOW, start + size - place)), found)
        if crc != found:
            self._work -= HEAD.size + size
            return None
        return Entry(lane, first, count, taken, bulk, flags, start, size)

    def _next_good(self, at: int) -> int | None:
        at += ALIGN
        while at + HEAD.size <= self._size and self._work > 0:
            data = bytes(self._bytes(at, min(WINDOW, self._size - at)))
            if len(data) < HEAD.size:
                return None
            place = data.find(MAGIC)
            while place >= 0:
                if (at + place) % ALIGN == 0 and self._entry_at(at + place) is not None:
                    return at + place
                if self._work <= 0:
                    return None
                place = data.find(MAGIC, place + 1)
            at += len(data) - len(data) % ALIGN if len(data) > ALIGN else ALIGN  # the magic stands at its beginning
        return None

    def _is_blank(self, at: int, end: int) -> bool:
        while at < end:
            data = self._bytes(at, min(WINDOW, end - at))
            if not data:  # it was cut off meanwhile
                return True
            if bytes(data) != bytes(len(data)):
                return False
            at += len(data)
        return True

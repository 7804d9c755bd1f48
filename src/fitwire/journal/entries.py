"""The journal's one format: blocks as they travel, each behind a head of 48 bytes, one after the other in a segment.

Pure: bytes go in and come out. A head's checksum covers the head, the block and whose journal it is, so that nothing
else is ever taken for an entry, be it what a half-written one left, or another journal inside an array. Behind the last
entry a preallocated segment holds zeros. Of two entries for the same records the later one holds.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from fitwire.errors import EncodeError
from fitwire.protocol.blocks import LANES, MAX_BLOCK_BYTES, MAX_RECORDS, Block, Buffer, Identity, pack_frames

__all__ = ["ALIGN", "HEAD", "MARK", "Entry", "encode_entry", "encode_mark", "entry_size", "scan_entries"]

MAGIC = b"FWj1"
HEAD = struct.Struct("<4sIIIQQQBB6x")
"""Magic, bytes of the block, checksum, records, first sequence number, ring counter, bulk head, lane, flags."""
assert HEAD.size == 48

ALIGN = 8
"""Entries begin at multiples of it, so a search past damage looks at an eighth of the places."""
MARK = 1
"""Flag of the last entry of a batch: all records accepted up to its ring counter lie in entries up to here, and all
samples among them in the other lane's entries up to its bulk head."""


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
    return zlib.crc32(struct.pack("<16sII", sender.run, sender.incarnation, sender.rank))


def _checksum(seed: int, head: Buffer, blob: Buffer) -> int:
    view = memoryview(head)
    return zlib.crc32(blob, zlib.crc32(view[12 : HEAD.size], zlib.crc32(view[:8], seed)))


def _lay(
    sender: Identity, blob: bytes, count: int, first: int, taken: int, bulk: int, lane: int, flags: int
) -> list[bytes]:
    try:
        head = bytearray(HEAD.pack(MAGIC, len(blob), 0, count, first, taken, bulk, lane, flags))
    except struct.error as error:
        raise EncodeError(f"cannot write record {first} of lane {lane} to the journal: {error}") from None
    struct.pack_into("<I", head, 8, _checksum(_seed(sender), memoryview(head), blob))
    return [bytes(head), blob, bytes(-len(blob) % ALIGN)]


def encode_entry(block: Block, taken: int = 0, bulk: int = 0, flags: int = 0) -> bytes:
    """Lay a block out as an entry.

    Args:
        block: As it travels.
        taken: With ``flags=MARK``, the ring counter up to which all records are settled.
        bulk: With ``flags=MARK``, the head of the sample lane.
        flags: :data:`MARK` or 0.

    Raises:
        EncodeError: A number that is out of its range.
    """
    blob = pack_frames(block.frames)
    return b"".join(_lay(block.sender, blob, block.count, block.first, taken, bulk, block.lane, flags))


def encode_mark(sender: Identity, following: int, taken: int, bulk: int) -> bytes:
    """An entry without a block: all records up to ring counter ``taken`` are settled.

    Args:
        sender: Whose journal it is.
        following: The next sequence number of the record lane.
        taken: Ring counter.
        bulk: Head of the sample lane.
    """
    return b"".join(_lay(sender, b"", 0, following, taken, bulk, 0, MARK))


def entry_size(block: Block) -> int:
    """Bytes that :func:`encode_entry` makes of a block."""
    return _aligned(HEAD.size + block.nbytes)


def scan_entries(segment: Buffer, sender: Identity) -> Iterator[Entry | int]:
    """Yield what a segment holds, in order.

    Args:
        segment: Its bytes.
        sender: Whose journal it is; what belongs to another is no entry.

    Yields:
        Each good entry; and where something else than zeros stands in the way, the number of bytes that were passed
        over to the next good entry, or to the end.
    """
    view = memoryview(segment)
    seed = _seed(sender)
    at = 0
    while at + HEAD.size <= len(view):
        entry = _entry_at(view, at, seed)
        if entry is None:
            following = _next_good(view, at, seed)
            end = len(view) if following is None else following
            if any(view[at:end]):
                yield end - at
            if following is None:
                return
            at = following
            continue
        yield entry
        at = entry.stop


def _entry_at(view: memoryview, at: int, seed: int) -> Entry | None:
    head = view[at : at + HEAD.size]
    if len(head) < HEAD.size:
        return None
    magic, size, crc, count, first, taken, bulk, lane, flags = HEAD.unpack(head)
    start = at + HEAD.size
    if magic != MAGIC or size > MAX_BLOCK_BYTES or start + size > len(view):
        return None
    if lane not in LANES or count > MAX_RECORDS or not 1 <= first < 2**63 or (count == 0) != (size == 0):
        return None
    if crc != _checksum(seed, head, view[start : start + size]):
        return None
    return Entry(lane, first, count, taken, bulk, flags, start, size)


def _next_good(view: memoryview, at: int, seed: int) -> int | None:
    data = bytes(view[at:])  # a memoryview cannot be searched
    place = data.find(MAGIC, 1)
    while place >= 0:
        if (at + place) % ALIGN == 0 and _entry_at(view, at + place, seed) is not None:
            return at + place
        place = data.find(MAGIC, place + 1)
    return None

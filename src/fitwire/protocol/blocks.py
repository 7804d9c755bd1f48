"""The one format of wire, journal and store: a message is a list of frames.

Frame 0 is 48 fixed bytes, frame 1 a small strict JSON object, the rest raw buffers. A *block* is a message of kind
``BLOCK``: a run of records of one source with contiguous sequence numbers, encoded once and then moved, never encoded
again. This module knows how bytes are laid out, checked and bounded; what a record means stands in ``events.py``.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast

from fitwire.errors import DecodeError, EncodeError
from fitwire.protocol.arrays import MAX_ARRAY_BYTES, expected_size
from fitwire.protocol.crc import crc32, joined, tail_of
from fitwire.protocol.strict_json import MAX_HEADER_BYTES, decode_json, encode_json

__all__ = [
    "BULK",
    "CHUNK_BYTES",
    "LANES",
    "MAX_HEADER_BYTES",
    "RECORDS",
    "VERSION",
    "Block",
    "Buffer",
    "Identity",
    "Kind",
    "Message",
    "checksum_of",
    "decode_block",
    "decode_json",
    "decode_message",
    "decode_packed",
    "encode_block",
    "encode_chunk",
    "encode_json",
    "encode_message",
    "pack_frames",
    "read_text",
    "slice_frames",
    "sum_of_buffers",
    "unpack_frames",
]

Buffer = bytes | memoryview

VERSION = 1
MAGIC = b"FW"
HEAD = struct.Struct("<2sBBHHII16sQQ")
assert HEAD.size == 48

MAX_BUFFERS = 64
"""Arrays in one message."""
MAX_RECORDS = 4096
"""Records in one block; the trainer closes a block at 1,024, a compacted one may hold more."""
MAX_BLOCK_BYTES = MAX_ARRAY_BYTES + 2**20
"""A whole block, packed: one array of the largest size with its head, or many that are smaller."""
CHUNK_BYTES = 2**20
"""A block larger than this crosses in pieces of this size, between which losses and heartbeats pass.
1 MiB was the fastest size at 128 MiB on loopback."""

RECORDS, BULK = 0, 1
"""The two lanes of a source, each with sequence numbers of its own: metrics and events; samples."""
LANES = (RECORDS, BULK)

KNOWN_BYTES, KNOWN = 1024, 2048
"""Frames 1 that are remembered as read: how long they may be, and how many; some 5 MiB at most."""

_CRC_OPEN = b'{"crc":"'
_CRC_END = len(_CRC_OPEN) + 9  # eight hexadecimal digits and the closing quote


class Kind(IntEnum):
    """What a message is; a receiver ignores kinds it does not know."""

    HELLO = 1
    WELCOME = 2
    REJECT = 3
    BLOCK = 4
    CHUNK = 5
    ACK = 6
    FETCH = 7
    GAP = 8
    PING = 9
    PONG = 10
    GOODBYE = 11
    BYE_OK = 12
    COMMAND = 13
    COMMAND_ACK = 14
    COMMAND_DONE = 15
    ERROR = 16
    RUNS = 17


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks: one rank of one incarnation of one run.

    Attributes:
        run: 16 bytes, all zero for a viewer or the hub.
        incarnation: Process life of the run, Unix seconds at its start or one more than the last known.
        rank: Process of a distributed run, from 0.
    """

    run: bytes = bytes(16)
    incarnation: int = 0
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded message.

    Attributes:
        kind: A ``Kind``, or a number this version does not know.
        sender: Whose it is.
        lane: 0 for records, 1 for samples.
        seq: First sequence number, where the kind has one.
        wall_ns: Unix time in nanoseconds when it was made; 0 where nobody asks.
        body: Frame 1 without its checksum; shared by messages that say the same, so it is not changed.
        buffers: Frames 2 and on.
        text: Frame 1 from behind its checksum, where it is short and the message was received: one source says the same
            in nearly every block, and what follows from it alone is worked out once.
    """

    kind: int
    sender: Identity = Identity()
    lane: int = RECORDS
    seq: int = 0
    wall_ns: int = 0
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    buffers: tuple[Buffer, ...] = ()
    text: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Block:
    """Contiguous records of one source, encoded.

    Attributes:
        sender: Run, incarnation and rank.
        lane: 0 for records, 1 for samples.
        first: Sequence number of its first record; numbers begin at 1.
        count: Number of records.
        frames: As on the wire.
        sums: Of a large block that was encoded here, the CRC32 of each ``CHUNK_BYTES`` of its packed form, so that its
            bytes are walked once; else empty.
    """

    sender: Identity
    lane: int
    first: int
    count: int
    frames: tuple[Buffer, ...]
    sums: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @property
    def last(self) -> int:
        """Sequence number of its last record."""
        return self.first + self.count - 1

    @property
    def nbytes(self) -> int:
        """Size packed, in bytes."""
        return packed_size(self.frames)


def _sum(head: Buffer, rest: Buffer, buffers: Sequence[Buffer]) -> int:
    crc = crc32(rest, crc32(head, 0))
    for buffer in buffers:
        crc = crc32(buffer, crc)
    return crc


def encode_message(message: Message) -> list[Buffer]:
    """Lay a message out as frames: 48 bytes, JSON, buffers.

    The CRC32 in frame 1 is taken over frame 0, the rest of frame 1 and all buffers.

    Raises:
        EncodeError: Frame 1 would pass 64 KiB or hold what JSON cannot, there are over 64 buffers, or a number of
            frame 0 is out of its range.
    """
    head, rest = _lay_out(message)
    return _summed(head, rest, message.buffers, _sum(head, rest, message.buffers))


def _lay_out(message: Message) -> tuple[bytes, bytes]:
    """Frame 0, and frame 1 from behind its checksum."""
    sender = message.sender
    if len(message.buffers) > MAX_BUFFERS:
        raise EncodeError(f"{len(message.buffers)} arrays in one record, at most {MAX_BUFFERS}")
    try:
        head = HEAD.pack(
            MAGIC, VERSION, message.kind, message.lane, len(message.buffers),
            sender.rank, sender.incarnation, sender.run, message.seq, message.wall_ns,
        )  # fmt: skip
    except struct.error as error:
        raise EncodeError(f"cannot send {message.kind!r} of {sender}: {error}") from None
    text = encode_json(message.body)
    rest = b"," + text[1:] if message.body else b"}"
    if len(rest) + _CRC_END > MAX_HEADER_BYTES:
        raise EncodeError(f"a header of {len(rest):,} bytes, at most {MAX_HEADER_BYTES:,}: shorten names or values")
    return head, rest


def _summed(head: bytes, rest: bytes, buffers: Sequence[Buffer], crc: int) -> list[Buffer]:
    return [head, b'%b%08x"%b' % (_CRC_OPEN, crc, rest), *buffers]


def decode_message(frames: Sequence[Buffer], tail: int | None = None) -> Message:
    """Check and parse the frames of one message.

    Args:
        frames: Of the message.
        tail: CRC32 of all its buffers, where that was computed as they came; else they are walked.

    Raises:
        DecodeError: Anything at all is not as :func:`encode_message` lays it out; its ``kind`` says what.
    """
    if not 2 <= len(frames) <= MAX_BUFFERS + 2:
        raise DecodeError("frames", f"{len(frames)} frames")
    head, text = frames[0], frames[1]
    if len(head) != HEAD.size:
        raise DecodeError("head", f"a first frame of {len(head)} bytes, not {HEAD.size}")
    magic, version, kind, lane, count, rank, incarnation, run, seq, wall_ns = HEAD.unpack(head)
    if magic != MAGIC:
        raise DecodeError("magic", "not a fitwire message")
    if version != VERSION:
        raise DecodeError("version", f"version {version}, this is {VERSION}")
    buffers = tuple(frames[2:])
    if count != len(buffers) or lane not in LANES:
        raise DecodeError("frames", f"{len(buffers)} buffers where {count} are announced, lane {lane}")
    if seq >= 2**63 or wall_ns >= 2**63:  # a database's integers are signed
        raise DecodeError("head", f"sequence number {seq}, time {wall_ns}")
    if len(text) > MAX_HEADER_BYTES:
        raise DecodeError("size", f"a header of {len(text):,} bytes")
    text = bytes(text)
    if text[: len(_CRC_OPEN)] != _CRC_OPEN:
        raise DecodeError("crc", "no checksum")
    if tail is None:
        found = _sum(head, text[_CRC_END:], buffers)
    else:
        found = joined(_sum(head, text[_CRC_END:], ()), tail, sum(map(len, buffers)))
    if text[len(_CRC_OPEN) : _CRC_END] != b'%08x"' % found:  # the quote too, which no checksum covers
        raise DecodeError("crc", "the checksum does not match: bytes were changed on the way")
    rest = text[_CRC_END:] if kind == Kind.BLOCK and len(text) <= KNOWN_BYTES else b""
    body = dict(read_text(rest)) if rest else _body_of(text)
    return Message(kind, Identity(run, incarnation, rank), lane, seq, wall_ns, body, buffers, rest)


def _body_of(text: bytes) -> dict[str, Any]:
    body = decode_json(text)
    body.pop("crc", None)
    return body


@functools.lru_cache(KNOWN)
def read_text(rest: bytes) -> dict[str, Any]:
    """What a ``Message.text`` says; remembered, so it is not changed."""
    return _body_of(_CRC_OPEN + b'00000000"' + rest)


def encode_block(
    sender: Identity,
    lane: int,
    first: int,
    wall_ns: int,
    parts: Sequence[dict[str, Any]],
    buffers: Sequence[tuple[dict[str, Any], Buffer]] = (),
) -> Block:
    """Encode contiguous records.

    Args:
        sender: Whose records they are.
        lane: 0 for records, 1 for samples.
        first: Sequence number of the first.
        wall_ns: Unix nanoseconds of the first.
        parts: What the records say, in order; ``part["n"]`` records each (1 when absent).
        buffers: Pairs of array header (``dtype``, ``shape``, and what else describes it) and bytes.

    Raises:
        EncodeError: As :func:`encode_message`, or what :func:`block_of` would refuse at the other end, where it would
            be asked for again and again; nothing has been sent.
    """
    count = sum(int(part.get("n", 1)) for part in parts)
    body = {"n": count, "parts": list(parts), "buffers": [header for header, _ in buffers]}
    message = Message(Kind.BLOCK, sender, lane, first, wall_ns, body, tuple(data for _, data in buffers))
    large = sum(len(data) for _, data in buffers) > CHUNK_BYTES
    try:
        if large:
            frames, sums = _encode_large(message)
            return block_of(message, frames, sums)
        return block_of(message, encode_message(message))
    except DecodeError as error:
        raise EncodeError(f"cannot send a block of {count} records: {error}") from None


def _encode_large(message: Message) -> tuple[list[Buffer], tuple[int, ...]]:
    """As :func:`encode_message`, and the ``sums`` of the block, in one walk over the buffers."""
    head, rest = _lay_out(message)
    sizes = [len(head), _CRC_END + len(rest), *map(len, message.buffers)]
    before = 4 + 4 * len(sizes) + sizes[0] + sizes[1]
    pieces: list[int] = []
    piece, room = 0, CHUNK_BYTES - before
    for buffer in message.buffers:
        view = memoryview(buffer)
        while len(view):
            part, view = view[:room], view[room:]
            piece, room = crc32(part, piece), room - len(part)
            if room == 0:
                pieces.append(piece)
                piece, room = 0, CHUNK_BYTES
    if room < CHUNK_BYTES:
        pieces.append(piece)
    tail, left = pieces[0], sum(sizes[2:]) - (CHUNK_BYTES - before)
    for following in pieces[1:]:
        tail = joined(tail, following, min(left, CHUNK_BYTES))
        left -= CHUNK_BYTES
    frames = _summed(head, rest, message.buffers, joined(_sum(head, rest, ()), tail, sum(sizes[2:])))
    pieces[0] = joined(_sum_of_front(frames), pieces[0], CHUNK_BYTES - before)
    return frames, tuple(pieces)


def _sum_of_front(frames: Sequence[Buffer]) -> int:
    """CRC32 of the packed form up to the buffers."""
    return crc32(frames[1], crc32(frames[0], crc32(_table(frames), 0)))


def encode_chunk(block: Block, at: int, size: int) -> list[Buffer]:
    """Lay out bytes ``at`` to ``at + size`` of a block's packed form as a ``CHUNK`` message."""
    pieces = tuple(slice_frames(block.frames, at, size))
    if len(pieces) > MAX_BUFFERS:
        pieces = (b"".join(pieces),)
    body = {"at": at, "total": block.nbytes, "n": block.count}
    head, rest = _lay_out(Message(Kind.CHUNK, block.sender, block.lane, block.first, 0, body, pieces))
    known = _known_sum(block, at, size)
    crc = _sum(head, rest, pieces) if known is None else joined(_sum(head, rest, ()), known, size)
    return _summed(head, rest, pieces, crc)


def _known_sum(block: Block, at: int, size: int) -> int | None:
    """CRC32 of a part of the packed form, from the block's ``sums``; None when it is not made of whole ones."""
    end = at + size
    if not block.sums or at % CHUNK_BYTES or (end % CHUNK_BYTES and end != block.nbytes):
        return None
    crc = 0
    for start in range(at, end, CHUNK_BYTES):
        crc = joined(crc, block.sums[start // CHUNK_BYTES], min(CHUNK_BYTES, end - start))
    return crc


def sum_of_buffers(frames: Sequence[Buffer]) -> int:
    """CRC32 of all buffers of a message that :func:`decode_message` found good, without walking them."""
    text = bytes(frames[1])
    crc = int(text[len(_CRC_OPEN) : _CRC_END - 1], 16)
    return tail_of(crc, _sum(frames[0], text[_CRC_END:], ()), sum(map(len, frames[2:])))


def decode_block(frames: Sequence[Buffer], tail: int | None = None) -> tuple[Block, Message]:
    """Check the frames of a ``BLOCK`` message down to each buffer's size; ``tail`` as :func:`decode_message`.

    Raises:
        DecodeError: As :func:`decode_message`, or counts and sizes that disagree.
    """
    message = decode_message(frames, tail)
    return block_of(message, frames), message


def decode_packed(data: Buffer, crc: int) -> tuple[Block, Message]:
    """Take a packed block apart and check it, given the CRC32 of ``data`` that was computed as it came in pieces.

    Raises:
        DecodeError: As :func:`decode_block`.
    """
    frames = unpack_frames(data)
    return decode_block(frames, tail_of(crc, _sum_of_front(frames), sum(map(len, frames[2:]))))


def block_of(message: Message, frames: Sequence[Buffer], sums: tuple[int, ...] = ()) -> Block:
    """Check that a decoded message is a whole block.

    Raises:
        DecodeError: Counts and sizes disagree.
    """
    if message.kind != Kind.BLOCK:
        raise DecodeError("kind", f"message kind {message.kind} is not a block")
    count, sizes = _known_layout(message.text) if message.text else _layout(message.body)
    if len(sizes) != len(message.buffers):
        raise DecodeError("parts", "buffers and their descriptions differ in number")
    if sizes != tuple(map(len, message.buffers)):
        raise DecodeError("size", "a buffer is not as long as its description says")
    if message.seq < 1 or message.seq + count >= 2**63:
        raise DecodeError("sequence", f"first sequence number {message.seq}")
    size = packed_size(frames)
    if size > MAX_BLOCK_BYTES:
        raise DecodeError("size", f"a block of {size:,} bytes, at most {MAX_BLOCK_BYTES:,}")
    return Block(message.sender, message.lane, message.seq, count, tuple(frames), sums)


def checksum_of(block: Block) -> int:
    """The CRC32 that a block's frame 1 says of it; whoever decoded the block has checked it."""
    return int(bytes(block.frames[1][len(_CRC_OPEN) : _CRC_END - 1]), 16)


@functools.lru_cache(KNOWN)
def _known_layout(text: bytes) -> tuple[int, tuple[int, ...]]:
    return _layout(read_text(text))


def _layout(body: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Check what a block's frame 1 says of itself; gives its records and its buffers' sizes."""
    count, parts, headers = body.get("n"), body.get("parts"), body.get("buffers")
    if type(count) is not int or not 1 <= count <= MAX_RECORDS:
        raise DecodeError("count", f"{str(count)[:20]} records")
    if not isinstance(parts, list) or not isinstance(headers, list):
        raise DecodeError("parts", "a block without parts or buffers")
    held = 0
    for part in cast("list[object]", parts):
        size = cast("dict[str, object]", part).get("n", 1) if isinstance(part, dict) else None
        if type(size) is not int or size < 1:
            raise DecodeError("parts", "a part that is no object or holds no record")
        held += size
    if held != count:
        raise DecodeError("count", f"parts hold {held} records, {count} are announced")
    sizes: list[int] = []
    for header in cast("list[object]", headers):
        if not isinstance(header, dict):
            raise DecodeError("parts", "a buffer's description is no object")
        sizes.append(expected_size(cast("dict[str, Any]", header))[2])
    return count, tuple(sizes)


def packed_size(frames: Sequence[Buffer]) -> int:
    """Bytes that :func:`pack_frames` makes of them."""
    return 4 + 4 * len(frames) + sum(map(len, frames))


def _table(frames: Sequence[Buffer]) -> bytes:
    return struct.pack(f"<I{len(frames)}I", len(frames), *map(len, frames))


def pack_frames(frames: Sequence[Buffer]) -> bytes:
    """Join frames into one blob: their number, their lengths (u32 little-endian), their bytes."""
    return b"".join((_table(frames), *frames))


def slice_frames(frames: Sequence[Buffer], start: int, size: int) -> Iterator[Buffer]:
    """Yield bytes ``start`` to ``start + size`` of the packed form, without packing or copying large frames."""
    end, at = start + size, 0
    for piece in (_table(frames), *frames):
        view = memoryview(piece)
        low, high = max(start - at, 0), min(end - at, len(view))
        if low < high:
            yield view[low:high]
        at += len(view)


def unpack_frames(blob: Buffer) -> list[memoryview]:
    """Take a packed blob apart again, without copying.

    Raises:
        DecodeError: Lengths do not add up.
    """
    view = memoryview(blob)
    if len(view) < 4:
        raise DecodeError("frames", "a blob too short for its table")
    (count,) = struct.unpack_from("<I", view)
    if not 2 <= count <= MAX_BUFFERS + 2 or len(view) < 4 + 4 * count:
        raise DecodeError("frames", f"a blob of {count} frames")
    sizes = struct.unpack_from(f"<{count}I", view, 4)
    if 4 + 4 * count + sum(sizes) != len(view):
        raise DecodeError("frames", "a blob whose lengths do not add up")
    frames: list[memoryview] = []
    at = 4 + 4 * count
    for size in sizes:
        frames.append(view[at : at + size])
        at += size
    return frames

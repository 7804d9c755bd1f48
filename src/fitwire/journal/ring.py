"""The mapped ring's one format, and how what it holds is found again when its trainer is gone.

With ``durability="process"`` each call packs its record into this file before it returns; the journal's marks say up to
which counter all of it lies in blocks, and the rest is made into blocks here. A row stands twice, and the second is
written last: to write it again costs less than any checksum. What is no row ends with a CRC32. So a record that was
torn is none. What found no room lies in *late files* beside the ring, records one after the other in the same form.
Nothing is believed: a bad byte costs the record it hit, and no file makes this reader hold more than :data:`MAX_RING`
and :data:`MAX_LATE` bytes. Writing is ``train/mapped.py``'s.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from fitwire.errors import DecodeError, EncodeError, JournalError
from fitwire.events import MAX_NAME, Dropped, Per, decode_events, encode_event, encode_rows
from fitwire.journal.layout import RING, ring_home
from fitwire.journal.stones import DAMAGED
from fitwire.protocol.blocks import (
    BULK,
    MAX_BUFFERS,
    RECORDS,
    Block,
    Buffer,
    Identity,
    decode_block,
    encode_block,
    pack_frames,
    unpack_frames,
)
from fitwire.protocol.strict_json import decode_json, encode_json

__all__ = [
    "HEAD", "HELD", "INNER", "LATE", "MAGIC", "NAMES_AT", "NAMES_BYTES", "RING_AT", "ROW", "THING", "LARGE",
    "ABSENT", "Shape", "encode_head", "encode_names", "encode_thing", "recover",
]  # fmt: skip

TITLE = b"FWring1\0"
TITLE_HEAD = struct.Struct("<8sIIIII16sII")
"""Title, bytes of the names, of the ring, seed of the checksums, two spare, run, incarnation, rank; CRC32 after."""
CRC = struct.Struct("<I")
ALIGN = 8
NAMES_AT = 128
NAMES_BYTES = 256 * 2**10 - NAMES_AT
"""Names of metric sets, each written once: some thousands of sets of four."""
RING_AT = NAMES_AT + NAMES_BYTES
NAME_HEAD = struct.Struct("<4sIII")
NAME_MAGIC = b"FWrn"
"""Of one metric set: magic, its number, bytes of text, CRC32 of text and number; the text follows."""

HEAD = struct.Struct("<4sIIHHQ")
"""Of a record: magic, seed of the ring's checksums, bytes in all, kind, metric set, counter."""
MAGIC = b"FWrr"
AT = struct.Struct("<d3q")
"""Time, step, epoch, batch."""
ABSENT = -(2**63)
"""Instead of an epoch or batch."""
ROW, HELD, THING, LARGE = 1, 2, 3, 4
"""A row of floats, twice; a row whose values come later; blocks; blocks whose own checksums have to do."""

LATE = "late-"
"""File of records that found no room, with the counter of its first."""
INNER = "inner-"
"""File of one record whose place was not settled: logged by a signal handler inside another log call."""
_FILE = re.compile(r"(late|inner)-(\d{1,20})")
MAX_RING = 64 * 2**20
MAX_LATE = 520 * 2**20
"""Bytes of late files that are read: what the writer keeps in them at most, and one sample of the largest size."""
MAX_FILES = 4096
MAX_MISSING = 2**20
"""Counters that may be missing before a record: a greater leap is none of our writer's."""
WORK = 8
"""Times its own length that a file is gone over while its records are looked for."""

BLOCK_RECORDS = 256
BLOCK_BYTES = 48 * 2**10
STONE = 4096
WHOLE = 2**53
NAN = float("nan")

Part = dict[str, Any]
Buffers = list[tuple[dict[str, Any], Buffer]]


# -- the format


# What comes out is the same; in its own order a machine packs without a detour.
_ORDER = "@" if sys.byteorder == "little" else "<"


class Shape:
    """How the rows of one metric set lie in the ring.

    Args:
        number: Of the set in the names' area.
        width: Metrics in a row.
        seed: Of the checksums.

    Attributes:
        size: Bytes of a row's record; of a held one :attr:`held_size`.
        columns: Values in a record: one that stands alone stands there twice.
        head: How a row's record begins.
        pack_into: ``pack_into(buffer, at, *half, *half)`` with ``head, counter, time, step, epoch, batch, *columns``
            for a half.
    """

    def __init__(self, number: int, width: int, seed: int) -> None:
        self.number, self.width, self.seed = number, width, seed
        self.columns = max(width, 2)
        self.values_at = HEAD.size + AT.size
        half = self.values_at + 8 * self.columns
        self.size = 2 * half
        self.held_size = half + 2 * CRC.size
        self.head = HEAD.pack(MAGIC, seed, self.size, ROW, number, 0)[:16]
        row = struct.Struct(_ORDER + 2 * f"16sqd3q{self.columns}d")
        self.pack_into = row.pack_into
        self._values = struct.Struct(f"<{self.columns}d")
        self._seal = struct.Struct(f"<{8 * self.columns}sI").pack_into
        assert row.size == self.size and self.size % ALIGN == self.held_size % ALIGN == 0

    def hold(self, buffer: mmap, at: int, counter: int, where: tuple[float, int, int, int]) -> None:
        """Write a record whose values come later; ``where`` is its time, step, epoch and batch."""
        view = memoryview(buffer)
        view[at : at + self.held_size] = bytes(self.held_size)
        head = HEAD.pack(MAGIC, self.seed, self.held_size, HELD, self.number, counter) + AT.pack(*where)
        crc = zlib.crc32(head, self.seed)
        # No values are in it yet, whatever checksum zeros may have.
        CRC.pack_into(view, at + self.held_size - 2 * CRC.size, ~zlib.crc32(bytes(8 * self.columns), crc) & 0xFFFFFFFF)
        CRC.pack_into(view, at + self.held_size - CRC.size, crc)
        view[at : at + len(head)] = head

    def fill(self, buffer: mmap, at: int, values: Sequence[float]) -> None:
        """Add the values of a held record."""
        view = memoryview(buffer)
        blob = self._values.pack(*values) if self.width > 1 else self._values.pack(*values, *values)
        crc = zlib.crc32(blob, zlib.crc32(view[at : at + self.values_at], self.seed))
        self._seal(view, at + self.values_at, blob, crc)

    def is_filled(self, data: memoryview) -> bool:
        """Whether a held record has its values."""
        end = self.values_at + 8 * self.columns
        crc = zlib.crc32(data[self.values_at : end], zlib.crc32(data[: self.values_at], self.seed))
        return CRC.unpack_from(data, end)[0] == crc

    def values(self, data: memoryview) -> tuple[float, ...]:
        """Values of a record that was found good."""
        return self._values.unpack_from(data, self.values_at)[: self.width]


def encode_head(sender: Identity, ring_bytes: int, seed: int) -> bytes:
    """First bytes of the file."""
    head = TITLE_HEAD.pack(
        TITLE, NAMES_BYTES, ring_bytes, seed, 0, 0, sender.run, sender.incarnation, sender.rank
    )  # fmt: skip
    return head + CRC.pack(zlib.crc32(head))


def encode_names(number: int, per: str, names: Sequence[str], seed: int) -> tuple[bytes, bytes]:
    """Head and text of one metric set; the text is to be written first.

    Raises:
        EncodeError: Names that cannot travel.
    """
    text = encode_json({"per": per, "names": list(names)})
    head = NAME_HEAD.pack(NAME_MAGIC, number, len(text), zlib.crc32(text, seed ^ number))
    return head, text + bytes(-len(text) % ALIGN)


def encode_thing(blocks: Sequence[Block], counter: int, seed: int, *, checked: bool) -> list[Buffer]:
    """A record of any kind as the blocks it makes, in pieces to be written one after the other.

    Args:
        blocks: Their own numbers count for nothing.
        counter: Of the record; 0 when its place is not settled.
        seed: Of the checksums.
        checked: Whether the checksum covers the blocks too; each has one of its own, and a large one takes time.
    """
    packed: list[Buffer] = []
    for block in blocks:
        packed.append(CRC.pack(block.nbytes))
        packed.extend([pack_frames(block.frames)] if checked else _loose(block))
    bare = HEAD.size + sum(map(len, packed)) + CRC.size
    size = -(-bare // ALIGN) * ALIGN
    kind = THING if checked else LARGE
    head = HEAD.pack(MAGIC, seed, size, kind, 0, counter)
    packed.append(bytes(size - bare))
    crc = zlib.crc32(head, seed)
    if checked:
        for piece in packed:
            crc = zlib.crc32(piece, crc)
    return [head, *packed, CRC.pack(crc)]


def _loose(block: Block) -> list[Buffer]:
    """The frames as ``pack_frames`` joins them, unjoined: no second copy of a large array."""
    sizes = [len(frame) for frame in block.frames]
    return [struct.pack(f"<I{len(sizes)}I", len(sizes), *sizes), *block.frames]


# -- finding


@dataclass(slots=True)
class _Found:
    """One record, its checksum good."""

    counter: int
    kind: int
    set: int
    data: memoryview


@dataclass(slots=True)
class _Ring:
    """What was read of one ring."""

    seed: int
    sets: dict[int, tuple[Shape, Per, tuple[str, ...]]]
    records: list[_Found] = field(default_factory=list[_Found])


def recover(
    path: Path,
    sender: Identity,
    after: int = 0,
    firsts: Sequence[int] = (1, 1),
    faults: Counter[str] | None = None,
) -> list[Block]:
    """Blocks of the records that a dead trainer packed into its ring and did not bring into its journal.

    Args:
        path: The journal's folder.
        sender: Whose it is.
        after: Ring counter of the journal's last mark; what is up to it lies in the journal.
        firsts: For each lane the sequence number that comes next.
        faults: Counts what was found wrong, by kind.

    Returns:
        In order of the counters, so each lane's sequence numbers are contiguous; a record that is missing between
        others, or was still on its device, is a tombstone in its place.

    Raises:
        JournalError: There is no ring to be read here, or it is another source's.
    """
    faults = Counter[str]() if faults is None else faults
    home = ring_home(path)
    ring = _read_ring(home / RING, sender, faults)
    records, loose = _read_late(home, ring.seed, faults)
    known: dict[int, _Found] = {}
    for found in sorted([*ring.records, *records], key=lambda found: found.counter):
        if found.counter > after and known.setdefault(found.counter, found) is not found:
            faults["twice"] += 1
    made = _Assembler(sender, firsts)
    last = after
    for counter, found in known.items():
        if counter - last > MAX_MISSING:
            faults["foreign"] += 1
            continue
        if counter - last > 1:
            faults["missing"] += counter - last - 1
            made.bury(counter - last - 1, "not found in what its killed trainer left")
        _assemble(made, found, ring, faults)
        last = counter
    for found in loose:
        _assemble(made, found, ring, faults)
    made.close()
    return made.blocks


def _read_ring(path: Path, sender: Identity, faults: Counter[str]) -> _Ring:
    try:
        with open(path, "rb") as file:
            data = memoryview(file.read(MAX_RING + RING_AT))
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror}") from None
    if len(data) < RING_AT or CRC.unpack_from(data, TITLE_HEAD.size)[0] != zlib.crc32(data[: TITLE_HEAD.size]):
        raise JournalError(f"{path} is no ring: its head is damaged")
    title, names, _, seed, _, _, *whose = TITLE_HEAD.unpack_from(data)
    if title != TITLE or names != NAMES_BYTES:
        raise JournalError(f"{path} is no ring of a version that this one reads")
    if Identity(*whose) != sender:
        raise JournalError(f"{path} holds another source's records")
    ring = _Ring(seed, dict(_read_names(data[NAMES_AT:RING_AT], seed)))
    ring.records = list(_scan(data[RING_AT:], seed, faults))
    return ring


def _read_names(data: memoryview, seed: int) -> Iterator[tuple[int, tuple[Shape, Per, tuple[str, ...]]]]:
    at = 0
    while at + NAME_HEAD.size <= len(data):
        magic, number, size, crc = NAME_HEAD.unpack_from(data, at)
        text = data[at + NAME_HEAD.size : at + NAME_HEAD.size + size]
        if magic != NAME_MAGIC or len(text) != size or zlib.crc32(text, seed ^ number) != crc:
            return
        at += NAME_HEAD.size + -(-size // ALIGN) * ALIGN
        try:
            said = decode_json(text)
        except DecodeError:
            continue
        names, per = said.get("names"), said.get("per")
        words = cast("list[object]", names) if isinstance(names, list) else [None]
        good = words and all(isinstance(word, str) and 0 < len(word) <= MAX_NAME for word in words)
        if good and len(set(words)) == len(words) and per in get_args(Per):
            yield number, (Shape(number, len(words), seed), cast(Per, per), cast("tuple[str, ...]", tuple(words)))


def _scan(data: memoryview, seed: int, faults: Counter[str]) -> Iterator[_Found]:
    """Every record that is whole; those that were overwritten in part are none."""
    raw = bytes(data)  # a memoryview cannot be searched
    left = WORK * len(raw)
    at = raw.find(MAGIC)
    while at >= 0:
        size = _good(data, at, seed) if at % ALIGN == 0 else 0
        if size > 0:
            *_, kind, number, counter = HEAD.unpack_from(data, at)
            yield _Found(counter, kind, number, data[at : at + size])
        left += size  # negative for a checksum that was computed in vain
        if left < 0:
            faults["damaged"] += 1
            return
        at = raw.find(MAGIC, at + max(size, 1))


def _good(data: memoryview, at: int, seed: int) -> int:
    """Bytes of the record at ``at``; what looking cost, negative, when there is none."""
    if at + HEAD.size > len(data):
        return 0
    _, whose, size, kind, _, _ = HEAD.unpack_from(data, at)
    if whose != seed or size % ALIGN or size < HEAD.size + CRC.size or at + size > len(data):
        return 0
    if kind == ROW:
        half = size // 2
        return size if data[at : at + half] == data[at + half : at + size] else -size
    covered: int = {HELD: HEAD.size + AT.size, THING: size - CRC.size, LARGE: HEAD.size}.get(kind, size)
    if covered > size - CRC.size:
        return 0
    (crc,) = CRC.unpack_from(data, at + size - CRC.size)
    return size if zlib.crc32(data[at : at + covered], seed) == crc else -covered


def _read_late(home: Path, seed: int, faults: Counter[str]) -> tuple[list[_Found], list[_Found]]:
    """Records in late files; and those whose place nobody had settled, in the order they came."""
    named: list[tuple[int, str]] = []
    try:
        named = [(int(m[2]), m[0]) for name in os.listdir(home) if (m := _FILE.fullmatch(name))]
    except OSError:
        faults["late"] += 1
    settled: list[_Found] = []
    loose: list[_Found] = []
    left: int = MAX_LATE
    for number, name in sorted(named)[:MAX_FILES]:
        try:
            with open(home / name, "rb") as file:
                data = memoryview(file.read(left))
        except (OSError, MemoryError):
            faults["late"] += 1
            continue
        left -= len(data)
        for found in _scan(data, seed, faults):
            if found.counter == 0 and name.startswith(INNER):
                loose.append(found)
                continue
            found.counter = found.counter or number
            settled.append(found)
    return settled, loose


# -- into blocks


def _assemble(made: _Assembler, found: _Found, ring: _Ring, faults: Counter[str]) -> None:
    if found.kind in (THING, LARGE):
        try:
            made.things(_messages(found.data, made.sender))
        except (DecodeError, EncodeError):
            faults["damaged"] += 1
            made.bury(1, DAMAGED)
        return
    known = ring.sets.get(found.set)
    shape = known[0] if known else None
    if known is None or shape is None or len(found.data) != (shape.size if found.kind == ROW else shape.held_size):
        faults["damaged"] += 1
        made.bury(1, DAMAGED)
        return
    if found.kind == HELD and not shape.is_filled(found.data):
        faults["held"] += 1
        made.bury(1, "its device had not computed it when the trainer was killed")
        return
    where = AT.unpack_from(found.data, HEAD.size)
    made.row(known[1], known[2], cast("tuple[float, int, int, int]", where), shape.values(found.data))


def _messages(data: memoryview, sender: Identity) -> list[Any]:
    """The blocks of a thing, decoded down to what they say, so that no hub will refuse them."""
    found: list[Any] = []
    at, end = HEAD.size, len(data) - CRC.size
    while at + CRC.size <= end and (size := CRC.unpack_from(data, at)[0]):
        blob = data[at + CRC.size : min(at + CRC.size + size, end)]
        block, message = decode_block(unpack_frames(blob))
        if block.sender != sender:
            raise DecodeError("foreign", "another source's block")
        for _ in decode_events(message, arrays=block.lane != BULK):
            pass
        found.append(message)
        at += CRC.size + size
    if not found:
        raise DecodeError("frames", "a record without a block")
    return found


class _Assembler:
    """Records, in order, into blocks that close as the trainer's do."""

    def __init__(self, sender: Identity, firsts: Sequence[int]) -> None:
        self.sender = sender
        self.blocks: list[Block] = []
        self._next = [firsts[0], firsts[1]]
        self._rows: list[tuple[float, ...]] = []
        self._set: tuple[Per, tuple[str, ...]] = ("batch", ())
        self._parts: list[Part] = []
        self._buffers: Buffers = []
        self._count = self._bytes = 0
        self._time = 0.0

    def row(
        self, per: Per, names: tuple[str, ...], where: tuple[float, int, int, int], values: Sequence[float]
    ) -> None:
        time, step, *places = where
        step = step if abs(step) < WHOLE else 0
        epoch, batch = (at if abs(at) < WHOLE else NAN for at in places)
        if (per, names) != self._set or (len(self._rows) + 1) * 8 * (len(names) + 4) > BLOCK_BYTES:
            self._close_rows()
        self._set = (per, names)
        self._rows.append((step, epoch, batch, time if abs(time) < WHOLE else 0.0, *values))
        if len(self._rows) == BLOCK_RECORDS:
            self._close_rows()

    def things(self, messages: Sequence[Any]) -> None:
        self._close_rows()
        for message in messages:
            pairs: Buffers = list(zip(message.body["buffers"], message.buffers, strict=True))
            if message.lane == BULK:
                self._emit(BULK, message.wall_ns, message.body["parts"], pairs)
                continue
            at = 0
            for part in message.body["parts"]:
                taken = int(part.get("b", 0))
                self._add(part, pairs[at : at + taken], message.wall_ns / 1e9)
                at += taken

    def bury(self, count: int, why: str) -> None:
        self._close_rows()
        while count > 0:
            some = min(count, STONE)
            self._add(*encode_event(Dropped(time=self._time, count=some, what="records", reason=why)), self._time)
            count -= some

    def close(self) -> None:
        self._close_rows()
        self._close()

    def _close_rows(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        per, names = self._set
        table = np.array(rows)
        part, buffers = encode_rows(names, per, cast(Any, table[:, :4]), cast(Any, table[:, 4:]))
        self._add(part, buffers, rows[0][3])

    def _add(self, part: Part, buffers: Buffers, time: float) -> None:
        count = int(part.get("n", 1))
        size = sum(len(data) + 2 * len(str(header)) for header, data in buffers) + 2 * len(str(part))
        full = self._count + count > BLOCK_RECORDS or self._bytes + size > BLOCK_BYTES
        if self._parts and (full or len(self._buffers) + len(buffers) > MAX_BUFFERS - 4):
            self._close()
        if not self._parts:
            self._time = time
        self._parts.append(part | {"b": len(buffers)} if buffers else part)
        self._buffers.extend(buffers)
        self._count += count
        self._bytes += size

    def _close(self) -> None:
        if self._parts:
            parts, buffers = self._parts, self._buffers
            self._parts, self._buffers, self._count, self._bytes = [], [], 0, 0
            try:
                self._emit(RECORDS, int(max(self._time, 0.0) * 1e9), parts, buffers)
            except EncodeError:  # what grows by being written again; ours does not
                self.bury(sum(int(part.get("n", 1)) for part in parts), DAMAGED)
                self._close()

    def _emit(self, lane: int, wall_ns: int, parts: list[Part], buffers: Buffers) -> None:
        block = encode_block(self.sender, lane, self._next[lane], min(wall_ns, 2**63 - 1), parts, buffers)
        self._next[lane] = block.last + 1
        self.blocks.append(block)

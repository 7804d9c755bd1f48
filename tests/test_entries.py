"""Tests of ``fitwire.journal.entries``: whatever a disk does to a segment, nothing wrong is taken for an entry."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import EncodeError
from fitwire.journal.entries import (
    ALIGN,
    HEAD,
    MARK,
    WINDOW,
    Entry,
    encode_entry,
    encode_mark,
    entry_size,
    lay_entry,
    scan_entries,
    scan_through,
)
from fitwire.protocol.arrays import encode_array
from fitwire.protocol.blocks import BULK, RECORDS, Block, Identity, decode_block, encode_block, unpack_frames
from helpers import ME, history, picture, records
from journals import flipped

OTHER = Identity(bytes(16 - 1) + b"x", 1, 0)
BLOCKS = history([2, 1, 3])
SEGMENT = b"".join(encode_entry(block) for block in BLOCKS) + bytes(64)


def good(found: list[Entry | int]) -> list[Entry]:
    return [item for item in found if isinstance(item, Entry)]


def block_in(segment: bytes, entry: Entry) -> Block:
    return decode_block(unpack_frames(memoryview(segment)[entry.start : entry.start + entry.size]))[0]


def test_what_was_laid_out_is_found_again_to_the_byte() -> None:
    """Entries in order, each block as it travelled; what was set aside behind them is nothing."""
    found = list(scan_entries(SEGMENT, ME))

    assert [(e.lane, e.first, e.count, e.last, e.flags) for e in good(found)] == [
        (RECORDS, 1, 2, 2, 0), (RECORDS, 3, 1, 3, 0), (RECORDS, 4, 3, 6, 0),
    ]  # fmt: skip
    assert len(good(found)) == len(found)
    for block, entry in zip(BLOCKS, good(found), strict=True):
        assert list(map(bytes, block_in(SEGMENT, entry).frames)) == list(map(bytes, block.frames))


@pytest.mark.parametrize("block", [records(1), records(7, 200), picture(3, 100_000), picture(1, 3 * WINDOW + 5)])
def test_an_entry_takes_as_many_bytes_as_is_said(block: Block) -> None:
    """So that room can be set aside, whatever the size; and it may be written in pieces."""
    entry = encode_entry(block, taken=5, bulk=9, flags=MARK)
    [found] = scan_entries(entry, ME)

    assert len(entry) == entry_size(block) and len(entry) % ALIGN == 0
    assert b"".join(lay_entry(block, 5, 9, MARK)) == entry
    assert isinstance(found, Entry)
    assert (found.taken, found.bulk, found.flags, found.stop) == (5, 9, MARK, len(entry))


def test_a_mark_has_no_block() -> None:
    """It says what comes next, how far the ring is settled, and where the samples are."""
    [found] = scan_entries(encode_mark(ME, 12, 345, 6), ME)

    assert isinstance(found, Entry)
    assert (found.count, found.first, found.last, found.taken, found.bulk) == (0, 12, 11, 345, 6)
    assert found.flags == MARK and found.size == 0


@pytest.mark.parametrize("at", range(len(SEGMENT) - 64))
def test_no_flipped_bit_makes_a_wrong_entry(at: int) -> None:
    """Each byte of a segment in turn: the entry that it is in goes, or only its padding; the others are found."""
    whole = good(list(scan_entries(SEGMENT, ME)))
    for bit in (0, 7):
        segment = flipped(SEGMENT, at, bit)
        found = good(list(scan_entries(segment, ME)))
        lost = [entry for entry in whole if entry not in found]

        assert set(found) <= set(whole)
        assert len(lost) <= 1
        for entry in found:
            block_in(segment, entry)
        for entry in lost:
            assert entry.start - HEAD.size <= at < entry.stop


@given(st.integers(0, len(SEGMENT)), st.binary(max_size=200))
def test_a_torn_write_costs_what_was_torn(size: int, rubbish: bytes) -> None:
    """Any beginning of a segment, with anything behind it: the entries that are whole are found, and no other."""
    whole = good(list(scan_entries(SEGMENT, ME)))

    found = good(list(scan_entries(SEGMENT[:size] + rubbish, ME)))
    assert found[: len([e for e in whole if e.start + e.size <= size])] == [
        e for e in whole if e.start + e.size <= size
    ]  # fmt: skip
    assert all(entry in whole for entry in found)


@given(st.binary(max_size=4000))
def test_rubbish_holds_nothing(data: bytes) -> None:
    """No bytes make it stop, or find anything."""
    assert good(list(scan_entries(data, ME))) == []


@given(st.lists(st.tuples(st.integers(0, len(SEGMENT) - 1), st.integers(0, 7)), max_size=12))
def test_many_flips_cost_no_more_than_the_entries_they_hit(flips: list[tuple[int, int]]) -> None:
    """What is found is as it was written."""
    segment = SEGMENT
    for at, bit in flips:
        segment = flipped(segment, at, bit)
    whole = good(list(scan_entries(SEGMENT, ME)))

    for entry in good(list(scan_entries(segment, ME))):
        assert entry in whole
        assert [bytes(f) for f in block_in(segment, entry).frames] == [
            bytes(f) for f in block_in(SEGMENT, entry).frames
        ]


def test_damage_is_told_with_its_size() -> None:
    """Bytes up to the next good entry, or to the end; zeros are not damage."""
    first, second = encode_entry(BLOCKS[0]), encode_entry(BLOCKS[1])

    assert next(iter(scan_entries(flipped(first, 60) + second, ME))) == len(first)
    assert list(scan_entries(first + flipped(second, 60) + bytes(8), ME))[1] == len(second) + 8
    assert [type(item) for item in scan_entries(first + bytes(4096) + second, ME)] == [Entry, Entry]
    assert list(scan_entries(bytes(3 * WINDOW), ME)) == []


def carrier(data: bytes) -> bytes:
    """An entry of a sample whose array is ``data``."""
    header, buffer = encode_array(np.frombuffer(data, np.uint8))
    part = {"t": "sample", "f": {"time": 0.0, "name": "masks"}, "b": 1}
    return encode_entry(encode_block(ME, BULK, 1, 0, [part], [({**header, "name": "image"}, buffer)]))


@pytest.mark.parametrize("shift", range(ALIGN))
def test_another_journal_is_none_of_this_one(shift: int) -> None:
    """Neither beside it in the file, nor inside an array of a sample, wherever that begins, whose head is damaged."""
    theirs = encode_entry(records(1, sender=OTHER))
    segment = encode_entry(BLOCKS[0]) + theirs + encode_entry(BLOCKS[1])
    spoilt = flipped(carrier(bytes(shift) + theirs * 3), 5)

    assert [e.first for e in good(list(scan_entries(segment, ME)))] == [1, 3]
    assert good(list(scan_entries(spoilt, ME))) == []
    assert len(good(list(scan_entries(spoilt[HEAD.size :] + spoilt, OTHER)))) in (0, 3, 6)  # they are there to be found


def test_an_entry_across_windows_is_found() -> None:
    """Small ones around the edge of what is read at once, and one that is larger than it."""
    filler = [records(1 + 200 * i, 200) for i in range(200)]
    large = picture(1, 2 * WINDOW)
    segment = b"".join(map(encode_entry, [*filler, large]))
    reads: list[int] = []

    def read(at: int, size: int) -> bytes:
        reads.append(size)
        return segment[at : at + size]

    found = list(scan_through(read, len(segment), ME))
    assert [e.first for e in good(found)] == [*(block.first for block in filler), 1]
    assert good(found)[-1].lane == BULK
    assert max(reads) <= WINDOW


def test_claims_made_up_on_purpose_do_not_keep_a_reader_busy() -> None:
    """A megabyte of heads that each claim the rest for themselves: a thousand times the work, if it were believed."""
    size = 2**20
    claims = bytearray(size)
    for at in range(0, size - 48, 48):
        HEAD.pack_into(claims, at, b"FWj1", size - at - 48, 7, 1, 1, 0, 0, 0, 0)
    reads: list[int] = []

    def read(at: int, most: int) -> bytes:
        reads.append(1)
        return bytes(claims[at : at + most])

    found = list(scan_through(read, size, ME))
    assert found == [size]
    assert len(reads) < 100


@pytest.mark.parametrize(
    "fields",
    [(2**63, 1, 0, 0), (0, 1, 0, 0), (1, 5000, 0, 0), (1, 1, 7, 0), (1, 0, 0, 0)],
    ids=["beyond", "zero", "crowded", "third lane", "empty"],
)
def test_numbers_out_of_range_are_no_entry(fields: tuple[int, int, int, int]) -> None:
    """Even with the right checksum: the head of another format, or of a fault."""
    first, count, lane, _ = fields
    head = bytearray(HEAD.pack(b"FWj1", 8, 0, count, first, 0, 0, lane, 0))
    seed = zlib.crc32(struct.pack("<16sII", ME.run, ME.incarnation, ME.rank))
    crc = zlib.crc32(b"12345678", zlib.crc32(head[12:], zlib.crc32(head[:8], seed)))
    struct.pack_into("<I", head, 8, crc)

    assert good(list(scan_entries(bytes(head) + b"12345678", ME))) == []


def test_a_number_that_does_not_fit_is_refused() -> None:
    """By name, and nothing is written."""
    with pytest.raises(EncodeError, match="cannot write record 1"):
        encode_entry(records(1), taken=2**64)

"""The ring's bytes and what is found again in them: exact, in order, and nothing that was not said."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitwire.errors import JournalError
from fitwire.events import Alert, Dropped, Log, Metrics, RunEnded, RunStarted, Sample
from fitwire.journal.ring import HEAD, HELD, MAGIC, RING_AT, ROW, THING, encode_thing, recover
from fitwire.protocol.blocks import BULK, RECORDS, Identity
from fitwire.train.packer import Packer
from fitwire.train.pending import LateRow
from rings import SMALL, WHO, plainly, recovered, ring_with, row, said, same, steps

RECORD = 2 * (56 + 8 * 2)
"""Bytes of a row of two values."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal's."""
    return tmp_path


def damage(folder: Path, at: int, data: bytes) -> None:
    """Overwrite bytes of the ring's file."""
    with open(folder / "ring", "r+b") as file:
        file.seek(at)
        file.write(data)


def test_rows_come_back_to_the_bit_and_in_order(folder: Path) -> None:
    """NaN, infinities and minus zero, absent epochs and batches, each kind of point."""
    odd = [float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1.5]
    rows = [(1e9 + i, i, None if i % 2 else i, None if i % 3 else i, "batch", {"a": v}) for i, v in enumerate(odd)]
    rows += [(2e9, 9, 1, None, "epoch", {"val": 1.0}), (2e9, 9, None, None, "time", {"cpu": 2.0, "a": 3.0})]
    ring_with(folder, rows)
    found, faults = recovered(folder)

    assert not faults
    assert [(e.time, e.step, e.epoch, e.batch, e.per) for e in found] == [r[:5] for r in rows]
    assert all(list(e.values) == list(r[5]) for e, r in zip(found, rows, strict=True))
    values = [[value for e in found for value in e.values.values()], [value for r in rows for value in r[5].values()]]
    assert all(map(same, *values)) and len(values[0]) == len(values[1])
    assert {e.rank for e in found} == {WHO.rank}


def test_events_and_samples_come_back_each_on_its_lane(folder: Path) -> None:
    """What was logged in between keeps its place; a large sample lies in a file beside the ring."""
    small = Sample(time=1.0, rank=2, step=1, name="s", arrays={"image": np.arange(6).reshape(2, 3)})
    large = Sample(time=2.0, rank=2, step=2, name="l", arrays={"image": np.random.default_rng(1).random((2, 200, 100))})
    records = [
        RunStarted(time=1.0, rank=2, name="r", config={"text": "é" * 1500}), row(0), small,
        Log(time=1.0, rank=2, text="x"), row(1), large,
        RunEnded(time=3.0, rank=2, status="failed", traceback="t" * 2000),
    ]  # fmt: skip
    ring_with(folder, records)
    blocks = recover(folder, WHO)

    assert plainly([e for e in said(blocks) if not isinstance(e, Metrics)]) == plainly(
        [records[i] for i in (0, 3, 6, 2, 5)]
    )
    assert steps(said([b for b in blocks if b.lane == RECORDS])) == [None, 0, None, 1, None]
    assert steps(said([b for b in blocks if b.lane == BULK])) == [1, 2]
    assert [name for name in os.listdir(folder) if name != "ring"] == ["late-6"]


def test_numbers_go_on_where_the_journal_ended(folder: Path) -> None:
    """Only what is after the mark, from the next sequence numbers on, at most 256 records a block."""
    ring_with(folder, [row(step) for step in range(600)])
    blocks = recover(folder, WHO, 40, [1001, 51])

    assert [(block.first, block.count) for block in blocks] == [(1001, 256), (1257, 256), (1513, 48)]
    assert steps(said(blocks)) == list(range(40, 600))
    assert recover(folder, WHO, 600, [1, 1]) == []
    assert [b.frames for b in recover(folder, WHO, 40, [1001, 51])] == [b.frames for b in blocks]


@given(
    st.lists(
        st.one_of(
            st.builds(
                lambda s, v: row(s, **v), st.integers(0, 9), st.dictionaries(st.sampled_from("abcd"), st.floats())
            ),
            st.builds(lambda t: Log(time=1.0, rank=2, text=t), st.text(st.characters(exclude_categories=["Cs"]))),
            st.builds(lambda n: Dropped(time=1.0, rank=2, count=n, what="m", reason="r"), st.integers(1, 4096)),
            st.builds(
                lambda e, v: (1.0, 3, e, None, "time", {"x": v, 5: 1.0}),
                st.sampled_from([None, 1, np.int64(4), 2.5, 2**60, "no", True]),
                st.sampled_from([1, True, np.float32(0.5), "0.5", None]),
            ),
        ),
        max_size=30,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_found_says_what_the_packer_would_have_said(tmp_path_factory: pytest.TempPathFactory, records) -> None:
    """A kill changes nothing of a record, odd values and names included."""
    folder = tmp_path_factory.mktemp("ring")
    ring_with(folder, records)
    packed = []
    Packer(WHO, packed.append).add(records)
    found, faults = recovered(folder)

    assert plainly(found) == plainly(said(packed))
    assert not faults


@pytest.mark.parametrize("kept", range(0, RECORD, 3))
def test_a_record_torn_at_any_byte_is_left_out(folder: Path, kept: int) -> None:
    """Its first bytes written over an older record, the rest not yet."""
    ring = ring_with(folder, [row(step) for step in range(SMALL // RECORD)])
    ring.release(0)
    ring.release(ring.last)
    at = RING_AT + 20 * RECORD
    for step in range(1000, 1020):
        ring.append(row(step))
    older = (folder / "ring").read_bytes()[at : at + RECORD]
    ring.append(row(1020))
    newer = (folder / "ring").read_bytes()[at : at + RECORD]
    assert newer != older
    torn = newer[:kept] + older[kept:]
    damage(folder, at, torn)
    found, _ = recovered(folder, after=SMALL // RECORD)

    # The last bytes may be the same as before: then nothing is missing.
    assert steps(found) == list(range(1000, 1020 + (torn == newer)))
    assert torn != newer or kept > RECORD - 16


def test_a_flip_of_any_bit_costs_the_record_it_hits(folder: Path) -> None:
    """Nothing wrong comes out, nothing else is lost, and a missing record is a tombstone in its place."""
    ring_with(folder, [row(0), Log(time=1.0, rank=2, text="hello"), row(1), row(2, b=1.0), row(3)])
    whole = (folder / "ring").read_bytes()
    used = max(at for at in range(RING_AT, len(whole)) if whole[at]) + 1
    good = plainly(recovered(folder)[0])
    for at in range(RING_AT, used):
        damage(folder, at, bytes([whole[at] ^ 1 << at % 8]))
        found, faults = recovered(folder)
        damage(folder, at, whole[at : at + 1])

        assert len([e for e in found if plainly([e])[0] in good]) in (4, 5), at
        assert all(plainly([e])[0] in good or isinstance(e, Dropped) for e in found), at
        assert sum(faults.values()) <= 1


def test_a_flip_in_the_head_or_the_names_is_never_believed(folder: Path) -> None:
    """A damaged head is no ring; without its names a row is a tombstone, never a row of another name."""
    ring_with(folder, [row(0), row(1, b=1.0)])
    whole = (folder / "ring").read_bytes()
    good = plainly(recovered(folder)[0])
    used = max(at for at in range(RING_AT) if whole[at]) + 1
    for at in range(used):
        damage(folder, at, bytes([whole[at] ^ 1 << at % 8]))
        try:
            found, _ = recovered(folder)
        except JournalError:
            found = []
        damage(folder, at, whole[at : at + 1])

        assert all(plainly([e])[0] in good or isinstance(e, Dropped) for e in found), at


@given(st.binary(max_size=400), st.integers(0, RING_AT + 4000), st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_without_harm(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, after: int
) -> None:
    """Whatever stands in the file: blocks that decode, or a JournalError."""
    folder = tmp_path_factory.mktemp("ring")
    ring_with(folder, [row(step) for step in range(20)])
    damage(folder, at, data)
    try:
        recovered(folder, after)
    except JournalError:
        pass


@pytest.mark.parametrize("kind", [ROW, THING])
def test_a_hostile_ring_costs_a_bounded_time(folder: Path, kind: int) -> None:
    """A head at every place, each asking for a look at all that follows."""
    ring_with(folder, [row(0)], size=4 * 2**20)
    size = 4 * 2**20
    seed = struct.unpack_from("<I", (folder / "ring").read_bytes(), 16)[0]
    ends = range(size - 8192, RECORD, -HEAD.size)
    heads = b"".join(HEAD.pack(MAGIC, seed, end - end % 8, kind, 1, 2) for end in ends)
    damage(folder, RING_AT + RECORD, heads)
    begun = time.monotonic()
    found, faults = recovered(folder)

    assert steps(found) == [0]
    assert faults == Counter(damaged=1)
    assert time.monotonic() - begun < 60.0  # a hang guard; all of it would take an hour


def forge(folder: Path, counter: int, kind: int, body: bytes, number: int = 1) -> bytes:
    """A record that holds, as somebody who can read the file can make it."""
    seed = struct.unpack_from("<I", (folder / "ring").read_bytes(), 16)[0]
    if kind == ROW:
        size = 2 * (HEAD.size + len(body))
        return 2 * (HEAD.pack(MAGIC, seed, size, kind, number, counter) + body)
    size = -(-(HEAD.size + len(body) + 4) // 8) * 8
    head = HEAD.pack(MAGIC, seed, size, kind, number, counter)
    body += bytes(size - HEAD.size - len(body) - 4)
    return head + body + struct.pack("<I", zlib.crc32(head + body, seed))


@pytest.mark.parametrize(
    ("counter", "kind", "body", "number", "expected", "fault"),
    [
        (5, ROW, struct.pack("<d3q2d", 1, 4, 0, 0, 0, 0), 1, [0, 1, -2, 4], "missing"),
        (2**63, ROW, struct.pack("<d3q2d", 1, 4, 0, 0, 0, 0), 1, [0, 1], "foreign"),
        (3, ROW, struct.pack("<d3q2d", 1, 4, 0, 0, 0, 0), 9, [0, 1, -1], "damaged"),
        (3, ROW, struct.pack("<d3q3d", 1, 4, 0, 0, 0, 0, 0), 1, [0, 1, -1], "damaged"),
        (3, THING, b"", 0, [0, 1, -1], "damaged"),
        (3, THING, struct.pack("<I", 2**31) + bytes(40), 0, [0, 1, -1], "damaged"),
        (3, THING, struct.pack("<I", 30) + b"\xff" * 30, 0, [0, 1, -1], "damaged"),
        (2, ROW, struct.pack("<d3q2d", 1, 4, 0, 0, 0, 0), 1, [0, 1], "twice"),
        (3, HELD, b"", 1, [0, 1], None),
    ],
)
def test_a_forged_record_is_weighed(
    folder: Path, counter: int, kind: int, body: bytes, number: int, expected: list[int], fault: str | None
) -> None:
    """Good checksums do not make a leap of counters, an unknown set, a wrong size or a foreign block true."""
    ring_with(folder, [row(0), row(1)])
    damage(folder, RING_AT + 2 * RECORD, forge(folder, counter, kind, body, number))
    found, faults = recovered(folder)

    assert steps(found) == expected
    assert list(faults) == ([fault] if fault else [])


def test_numbers_that_no_hub_would_take_are_mended(folder: Path) -> None:
    """A time, step or epoch that is no number must not make a block that is refused for ever."""
    ring_with(folder, [row(0)])
    wild = [(float("nan"), 2**53), (float("inf"), -(2**53)), (1e300, 2**63 - 1), (-1e300, -(2**63))]
    at = RING_AT + RECORD
    for i, (moment, place) in enumerate(wild):
        record = forge(folder, 2 + i, ROW, struct.pack("<d3q2d", moment, place, place, place, 1.0, 2.0))
        damage(folder, at, record)
        at += len(record)
    found, _ = recovered(folder)

    assert [(e.time, e.step, e.epoch, e.batch) for e in found[1:]] == [(0.0, 0, None, None)] * 4


def test_another_runs_block_in_a_ring_is_not_taken(folder: Path) -> None:
    """A thing is checked for whose it is."""
    blocks = []
    Packer(Identity(b"somebody-elses-r", 7, 2), blocks.append).add([Log(text="x")])
    ring_with(folder, [row(0)])
    seed = struct.unpack_from("<I", (folder / "ring").read_bytes(), 16)[0]
    damage(folder, RING_AT + RECORD, b"".join(encode_thing(blocks, 2, seed, checked=True)))
    found, faults = recovered(folder)

    assert steps(found) == [0, -1]
    assert faults == Counter(damaged=1)


def test_what_is_no_ring_is_refused_by_name(folder: Path) -> None:
    """The reader then takes what the journal's entries say."""
    with pytest.raises(JournalError, match="cannot read"):
        recover(folder, WHO)
    ring_with(folder, [row(0)])
    with pytest.raises(JournalError, match="another source"):
        recover(folder, Identity(WHO.run, 8, 2))
    (folder / "ring").write_bytes(b"x" * 300_000)
    with pytest.raises(JournalError, match="head is damaged"):
        recover(folder, WHO)
    (folder / "ring").write_bytes(b"")
    with pytest.raises(JournalError, match="head is damaged"):
        recover(folder, WHO)


def test_a_late_file_cut_at_any_byte_gives_what_is_whole(folder: Path) -> None:
    """One write each: a record is there or it is not."""
    ring = ring_with(folder, [row(step) for step in range(SMALL // RECORD)])
    for step in range(1000, 1003):
        ring.append(row(step))
    full = SMALL // RECORD
    (name,) = [name for name in os.listdir(folder) if name != "ring"]
    data = (folder / name).read_bytes()
    assert name == f"late-{full + 1}" and len(data) == 3 * RECORD
    for size in range(0, len(data), 5):
        (folder / name).write_bytes(data[:size])

        assert steps(recovered(folder, after=full)[0]) == list(range(1000, 1000 + size // RECORD))


def test_files_with_other_names_are_nothing(folder: Path) -> None:
    """Only what the writer could have made is read."""
    ring_with(folder, [row(0)])
    for name in ("late-", "late-x", "late-1.tmp", "inner-", "other"):
        (folder / name).write_bytes(forge(folder, 2, ROW, struct.pack("<d3q2d", 1, 4, 0, 0, 0, 0)))

    assert steps(recovered(folder)[0]) == [0]


def test_a_late_row_is_its_values_once_they_are_read_and_a_tombstone_before(folder: Path) -> None:
    """It keeps the place it was logged at; a fill that was torn counts for nothing."""
    ring = ring_with(folder, [row(0)])
    first, second = LateRow(row(1, a=0.0, b=0.0)), LateRow(row(2, a=0.0, b=0.0))
    for record in (first, second, row(3)):
        ring.append(record)
    assert steps(recovered(folder)[0]) == [0, -1, -1, 3]

    second.row[5].update(a=1.5, b=float("nan"))
    ring.fill(second)
    found, faults = recovered(folder)
    assert steps(found) == [0, -1, 2, 3]
    assert repr(found[2].values) == repr({"a": 1.5, "b": float("nan")})
    assert faults == Counter(held=1)

    damage(folder, RING_AT + RECORD + (64 + 8 * 2) + 56, b"\x01")
    assert steps(recovered(folder)[0]) == [0, -1, -1, 3]


def test_alerts_and_texts_of_any_size_fit(folder: Path) -> None:
    """From an empty text to one of a megabyte, which is larger than this ring."""
    records = [
        Alert(time=1.0, rank=2, title="t", text="x" * n) for n in (0, 1023, 1024, 1025, 5000, 200_000, 1_000_000)
    ]
    ring_with(folder, records)

    assert plainly(recovered(folder)[0]) == plainly(records)

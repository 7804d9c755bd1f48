"""Blocks until the hub has them: on disk and in memory, within budgets, with a tombstone for each that had to go."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitwire.events import Described, Dropped, EpochEnded, Event, Log, Metrics, RunStarted, Sample
from fitwire.journal.entries import MARK, Entry, scan_entries
from fitwire.journal.layout import About, create, folder_name, journals_folder, read_have, segments
from fitwire.protocol.blocks import BULK, LANES, MAX_RECORDS, RECORDS, Block, decode_block, unpack_frames
from fitwire.protocol.source import Backlog
from fitwire.train.journal import AGAIN, Journal
from fitwire.train.packer import Packer
from fitwire.train.segments import Segments
from test_packer import ME, row, said


def filled(backlog: Journal, *batches: list[Any]) -> None:
    packer = Packer(ME, backlog.append)
    for records in batches:
        packer.add(records)


def kept(backlog: Journal, lane: int) -> list[Block]:
    """All blocks, in order, as a source reads them."""
    blocks: list[Block] = []
    seq = backlog.first(lane)
    while (block := backlog.read(lane, seq)) is not None:
        blocks.append(block)
        seq = block.last + 1
    return blocks


def heard(backlog: Journal, lane: int = RECORDS) -> list[Event]:
    return said(kept(backlog, lane), lane)


def sample(step: int, size: int = 10_000) -> Sample:
    return Sample(time=0.0, step=step, name="m", arrays={"image": np.zeros((1, size), np.uint8)})


def test_it_is_what_a_source_reads_from() -> None:
    """The journal will take the same interface."""
    backlog: Backlog = Journal(ME)

    assert (backlog.first(RECORDS), backlog.head(RECORDS), backlog.read(RECORDS, 1)) == (1, 0, None)


def test_acknowledged_blocks_are_forgotten_and_others_stay() -> None:
    """A block goes once its last record is had."""
    backlog = Journal(ME)
    filled(backlog, [row(0, {"x": 1.0}), row(1, {"x": 1.0})], [row(2, {"x": 1.0})])
    backlog.trim(RECORDS, 1)
    assert backlog.first(RECORDS) == 1
    backlog.trim(RECORDS, 2)
    assert (backlog.first(RECORDS), backlog.head(RECORDS)) == (3, 3)
    backlog.trim(RECORDS, 3)

    assert (backlog.first(RECORDS), backlog.head(RECORDS), backlog.nbytes) == (4, 3, 0)


def test_a_block_out_of_order_is_refused() -> None:
    """Numbers have no holes from the beginning."""
    backlog = Journal(ME)
    filled(backlog, [row(0, {"x": 1.0})])
    block = backlog.read(RECORDS, 1)
    assert block is not None

    with pytest.raises(ValueError, match="block 1 after record 1"):
        backlog.append(block)


def test_over_its_budget_the_oldest_batch_metrics_go_and_leave_tombstones() -> None:
    """Every record is accounted for, the newest are whole, and memory is bounded."""
    backlog = Journal(ME, record_bytes=200_000)
    for first in range(0, 50_000, 256):
        filled_rows = [row(i, {"x": float(i)}) for i in range(first, min(first + 256, 50_000))]
        packer = Packer(ME, backlog.append)
        packer._next = [backlog.head(RECORDS) + 1, 1]  # pyright: ignore[reportPrivateUsage]
        packer.add(filled_rows)
    events = heard(backlog)

    assert backlog.nbytes <= 200_000 + 20_000
    gone = sum(event.count for event in events if isinstance(event, Dropped))
    rows = [event for event in events if isinstance(event, Metrics)]
    assert gone + len(rows) == 50_000 and gone == backlog.dropped[RECORDS] > 0
    assert [event.step for event in rows] == list(range(50_000 - len(rows), 50_000))
    assert all(block.count <= MAX_RECORDS for block in kept(backlog, RECORDS))


def test_tombstones_of_many_small_blocks_are_one() -> None:
    """A slow loop makes a block a row; without this the tombstones would take the memory that the rows gave up."""
    backlog = Journal(ME, record_bytes=20_000)
    filled(backlog, *[[row(i, {"x": 1.0})] for i in range(5000)])

    blocks = kept(backlog, RECORDS)
    assert backlog.nbytes < 25_000
    assert backlog.head(RECORDS) == 5000 == sum(block.count for block in blocks)
    assert blocks[0].count == MAX_RECORDS


def test_what_a_run_is_and_its_epochs_are_never_given_up() -> None:
    """Events and epochs in a block survive the batch metrics beside them, in their order and place."""
    backlog = Journal(ME, record_bytes=10_000)
    batches = [
        [
            RunStarted(time=0.0, name="x"),
            *(row(i, {"loss": 1.0}) for i in range(50)),
            row(50, {"loss": 0.5}, epoch=e, per="epoch"),
            *(row(i, {"loss": 1.0}) for i in range(50)),
            *(row(i, {"cpu": 1.0}, per="time") for i in range(3)),
            Log(time=1.0, text="note"),
            Described(time=1.0, what="config", values={"e": e, "long": "x" * 2000}),
        ]
        for e in range(40)
    ]
    filled(backlog, *batches)
    events = heard(backlog)

    assert [event.epoch for event in events if isinstance(event, EpochEnded)] == list(range(40))
    assert [e.values["e"] for e in events if isinstance(e, Described)] == list(range(40))
    assert sum(isinstance(event, RunStarted | Log) for event in events) == 80
    assert [type(event).__name__ for event in events[:6]] == [
        "RunStarted", "Dropped", "EpochEnded", "Dropped", "Log", "Described",
    ]  # fmt: skip
    assert (events[1].count, events[3].count) == (50, 53)  # type: ignore[union-attr]


def test_samples_have_a_budget_of_their_own() -> None:
    """Old samples go; metrics are not touched for them."""
    backlog = Journal(ME, bulk_bytes=50_000)
    filled(backlog, [row(0, {"x": 1.0})], [sample(i) for i in range(20)])
    events = heard(backlog, BULK)

    assert [event.step for event in events if isinstance(event, Sample)] == [16, 17, 18, 19]
    assert sum(event.count for event in events if isinstance(event, Dropped)) == 16 == backlog.dropped[BULK]
    assert [type(event) for event in heard(backlog)] == [Metrics]
    assert backlog.nbytes < 60_000


def test_the_newest_sample_is_kept_although_it_alone_is_over_budget() -> None:
    """Somebody may come for it."""
    backlog = Journal(ME, bulk_bytes=1000)
    filled(backlog, [sample(0), sample(1)])

    assert [type(event) for event in heard(backlog, BULK)] == [Dropped, Sample]


def test_a_block_that_was_handed_out_stays_as_it_is() -> None:
    """Half of it may be on the way: other bytes under its number would never fit."""
    backlog = Journal(ME, bulk_bytes=25_000)
    filled(backlog, [sample(0)])
    lent = backlog.read(BULK, 1)
    packer = Packer(ME, backlog.append)
    packer._next = [1, 2]  # pyright: ignore[reportPrivateUsage]
    packer.add([sample(i) for i in range(1, 9)])

    assert backlog.read(BULK, 1) is lent
    steps = [event.step for event in heard(backlog, BULK) if isinstance(event, Sample)]
    assert steps[0] == 0 and steps[-1] == 8 and len(steps) < 9


def test_giving_up_goes_on_correctly_after_acknowledgements() -> None:
    """Trimming takes tombstones like any block; the sizes add up to nothing in the end."""
    backlog = Journal(ME, record_bytes=3000)
    filled(backlog, *[[row(i, {"x": 1.0})] for i in range(100)])
    backlog.trim(RECORDS, kept(backlog, RECORDS)[0].last)
    assert backlog.nbytes > 0
    backlog.trim(RECORDS, 100)

    assert backlog.nbytes == 0
    assert backlog.first(RECORDS) == 101


# -- on disk


class Told:
    """Where warnings go."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def __call__(self, kind: str, sentence: str) -> None:
        if kind not in self.kinds:
            self.kinds.append(kind)


@pytest.fixture
def folder() -> Path:
    """Where the journal of :func:`on_disk` will be."""
    return journals_folder() / folder_name(ME)


def on_disk(told: Told | None = None, **budgets: Any) -> Journal:
    return Journal(ME, Segments(lambda: create(About(ME, {"name": "x"}))), told or Told(), **budgets)


def scanned(folder: Path, lane: int) -> dict[int, int]:
    """What whoever opens the folder finds: last sequence number by first, later entries over earlier ones."""
    found: dict[int, int] = {}
    for _, path in segments(folder, lane):
        for entry in scan_entries(path.read_bytes(), ME):
            assert isinstance(entry, Entry), f"{entry} bytes of damage in {path}"
            if entry.count:
                for first in [first for first in found if entry.first <= first <= entry.last]:
                    del found[first]
                found[entry.first] = entry.last
    return found


def covers(found: dict[int, int], last: int) -> bool:
    """Whether records 1 to ``last`` are there, each once."""
    at = 0
    for first, end in sorted(found.items()):
        if first != at + 1:
            return False
        at = end
    return at == last


def log(journal: Journal, looks: int, rows: int = 10, *, alone: bool = False, start: int = 0) -> None:
    """As an I/O thread would: pack what came, write it, 50 times a second."""
    packer = Packer(ME, journal.append)
    packer._next = [journal.head(lane) + 1 for lane in LANES]  # pyright: ignore[reportPrivateUsage]
    for look in range(start, start + looks):
        packer.add([row(look * rows + i, {"x": float(look * rows + i)}) for i in range(rows)])
        journal.commit(now=look * 0.02, alone=alone)


def test_after_each_look_all_that_was_packed_is_on_disk(folder: Path) -> None:
    """Whenever the process dies, whoever opens the folder finds every record once and in order."""
    journal = on_disk()
    packer = Packer(ME, journal.append)
    for look in range(50):
        packer.add([row(look, {"x": 1.0})])
        if look % 10 == 0:
            packer.add([sample(look)])
        journal.commit(now=look * 0.02)

        assert covers(scanned(folder, RECORDS), look + 1)
        assert covers(scanned(folder, BULK), look // 10 + 1)


def test_the_bytes_on_disk_are_the_bytes_on_the_wire(folder: Path) -> None:
    """Encoded once, then moved."""
    journal = on_disk()
    filled(journal, [row(0, {"x": 1.0}), sample(0)])
    journal.commit()

    for lane in LANES:
        ((_, path),) = segments(folder, lane)
        data = path.read_bytes()
        (entry,) = [e for e in scan_entries(data, ME) if isinstance(e, Entry)]
        frames = unpack_frames(memoryview(data)[entry.start : entry.start + entry.size])
        block = journal.read(lane, 1)
        assert block is not None
        assert [bytes(frame) for frame in frames] == [bytes(frame) for frame in block.frames]


def test_memory_is_bounded_and_what_left_it_is_read_back(folder: Path) -> None:
    """Nobody takes anything for long: nothing is given up while the disk has room."""
    journal = on_disk(record_bytes=50_000, bulk_bytes=50_000)
    log(journal, 500, 100)
    filled_samples = Packer(ME, journal.append)
    filled_samples._next = [journal.head(RECORDS) + 1, 1]  # pyright: ignore[reportPrivateUsage]
    filled_samples.add([sample(i) for i in range(50)])
    journal.commit(now=11.0)

    assert journal.nbytes < 110_000
    assert journal.dropped == [0, 0]
    assert [e.step for e in heard(journal)] == list(range(50_000))
    assert [e.step for e in heard(journal, BULK)] == list(range(50))


def test_acknowledged_segments_go_and_the_place_is_noted(folder: Path) -> None:
    """Disk that nobody needs is given back while the training goes on."""
    journal = on_disk()
    log(journal, 2000, 100)
    many = len(segments(folder, RECORDS))
    journal.trim(RECORDS, 150_000)
    journal.commit(now=41.0)
    few = len(segments(folder, RECORDS))
    journal.trim(RECORDS, journal.head(RECORDS))
    journal.commit(now=42.0)

    assert many > few >= len(segments(folder, RECORDS)) == 1
    assert read_have(folder) == (200_000, 0)
    assert journal.nbytes == 0


def test_a_delivered_journal_goes_and_another_stays(folder: Path) -> None:
    """The folder itself says whether there is something to deliver."""
    journal = on_disk()
    log(journal, 3)
    journal.close(delivered=False)
    assert covers(scanned(folder, RECORDS), 30)
    shutil.rmtree(folder)
    journal = on_disk()
    log(journal, 3)
    journal.close(delivered=True)

    assert not folder.exists()


def test_small_blocks_become_larger_ones_while_nobody_takes_them(folder: Path) -> None:
    """A look a block: a night without a hub would fill memory with their places."""
    journal = on_disk()
    log(journal, 1000, 3, alone=True)

    assert len(kept(journal, RECORDS)) < 100
    assert [e.step for e in heard(journal)] == list(range(3000))
    assert covers(scanned(folder, RECORDS), 3000)


def test_what_was_handed_out_is_not_joined_to_others(folder: Path) -> None:
    """A part of it may be under way, and the hub may have it already."""
    journal = on_disk()
    log(journal, 5)
    lent = [journal.read(RECORDS, seq) for seq in (1, 11)]
    log(journal, 200, alone=True, start=5)

    assert [journal.read(RECORDS, seq) for seq in (1, 11)] == lent
    assert [e.step for e in heard(journal)] == list(range(2050))


def test_over_its_disk_budget_the_oldest_batch_metrics_leave_a_summary(folder: Path) -> None:
    """n, least, greatest, mean and last of each metric; the newest are whole, and the disk is bounded."""
    journal = on_disk(record_bytes=50_000, disk_bytes=(400_000, 400_000))
    log(journal, 1000, 100, alone=True)
    events = heard(journal)
    gone = [e for e in events if isinstance(e, Dropped)]
    rows = [e for e in events if isinstance(e, Metrics)]

    assert sum(e.count for e in gone) + len(rows) == 100_000
    assert 0 < len(gone) < 100
    assert journal.dropped[RECORDS] == 100_000 - len(rows) > 50_000
    assert [e.step for e in rows] == list(range(100_000 - len(rows), 100_000))
    first = gone[0]
    steps = range(first.first_step or 0, (first.last_step or 0) + 1)
    assert first.values["x"] == [len(steps), steps[0], steps[-1], (steps[0] + steps[-1]) / 2, steps[-1]]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000
    assert covers(scanned(folder, RECORDS), 100_000)


def test_over_its_disk_budget_the_newest_samples_of_each_name_stay(folder: Path) -> None:
    """A picture that is made seldom is not pushed out by one that is made often."""
    journal = on_disk(bulk_bytes=20_000, disk_bytes=(10**6, 10**6))
    packer = Packer(ME, journal.append)
    for step in range(400):
        name = "rare" if step in (10, 20) else "often"
        packer.add(
            [Sample(time=0.0, step=step, name=name, arrays={"image": np.full((1, 20_000), step % 256, np.uint8)})]
        )
        journal.commit(now=step * 0.02)
    events = heard(journal, BULK)
    pictures = [e for e in events if isinstance(e, Sample)]

    assert [e.step for e in pictures if e.name == "rare"] == [10, 20]
    assert [e.step for e in pictures][-4:] == [396, 397, 398, 399]
    assert sum(e.count for e in events if isinstance(e, Dropped)) + len(pictures) == 400
    assert all((e.arrays["image"] == (e.step or 0) % 256).all() for e in pictures)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1.6 * 10**6
    assert covers(scanned(folder, BULK), 400)


def test_a_full_disk_is_told_once_and_its_records_wait_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is room again they are written, in order; nothing was given up."""
    told = Told()
    journal = on_disk(told)
    log(journal, 10)

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", full)
    log(journal, 100, start=10)
    assert (told.kinds, journal.trouble) == (["journal"], "No space left on device")
    assert covers(scanned(folder, RECORDS), 100)
    monkeypatch.undo()
    journal.commit(now=10 + AGAIN)

    assert told.kinds == ["journal", "journal again"] and journal.trouble == ""
    assert covers(scanned(folder, RECORDS), 1100)
    assert journal.dropped == [0, 0]


def test_without_room_on_disk_or_in_memory_the_oldest_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded, counted, and the newest are whole."""
    monkeypatch.setenv("FITWIRE_DIR", "/proc/nowhere")  # no folder can be made there
    journal = on_disk(record_bytes=100_000)
    log(journal, 1000, 100)
    events = heard(journal)

    assert journal.nbytes < 120_000
    assert sum(e.count for e in events if isinstance(e, Dropped)) == journal.dropped[RECORDS] > 50_000
    assert events[-1].step == 99_999


def test_a_journal_that_somebody_deletes_is_begun_again(folder: Path) -> None:
    """Told once; what comes after is on disk."""
    told = Told()
    journal = on_disk(told)
    log(journal, 100)
    shutil.rmtree(folder)
    log(journal, 1000, start=100)

    assert told.kinds == ["journal", "journal again"]
    assert scanned(folder, RECORDS)[max(scanned(folder, RECORDS))] == 11_000
    assert [e.step for e in heard(journal)] == list(range(11_000))


def test_a_byte_that_the_disk_changed_costs_its_block_and_no_more(folder: Path) -> None:
    """What is read back is checked before it is sent; in its place goes a tombstone."""
    told = Told()
    journal = on_disk(told, record_bytes=1000)
    log(journal, 100)
    ((_, path),) = segments(folder, RECORDS)
    data = bytearray(path.read_bytes())
    entries = [e for e in scan_entries(bytes(data), ME) if isinstance(e, Entry)]
    data[entries[50].start + 100] ^= 1
    path.write_bytes(data)
    events = heard(journal)

    assert told.kinds == ["journal read"]
    assert [(e.count, e.what) for e in events if isinstance(e, Dropped)] == [(10, "records")]
    assert len(events) == 991 and journal.faults["unreadable"] == 1


def test_marks_say_up_to_which_record_all_is_written(folder: Path) -> None:
    """For what a call packed by itself: the last mark of a look covers samples and records, and begins each file."""
    journal = on_disk()
    packer = Packer(ME, journal.append)
    taken = 0
    for look in range(300):
        records = [row(look, {"x": 1.0})] * 100 + [sample(look)] * (look % 7 == 0)
        packer.add(records)
        taken += len(records)
        journal.commit(taken, now=look * 0.02)

        assert journal.written == taken
    marks: list[Entry] = []
    for _, path in segments(folder, RECORDS):
        entries = [e for e in scan_entries(path.read_bytes(), ME) if isinstance(e, Entry)]
        assert entries[0].flags == MARK
        marks += [e for e in entries if e.flags == MARK]
    assert (marks[-1].taken, marks[-1].bulk) == (taken, 43)
    assert marks[-1].last == journal.head(RECORDS)


def test_a_look_with_samples_alone_leaves_a_mark_too(folder: Path) -> None:
    """Else what it holds would be taken for unsettled."""
    journal = on_disk()
    filled(journal, [sample(0)])
    journal.commit(1)
    ((_, path),) = segments(folder, RECORDS)
    marks = [e for e in scan_entries(path.read_bytes(), ME) if isinstance(e, Entry)]

    assert [(e.count, e.taken, e.bulk) for e in marks][-1] == (0, 1, 1)


def test_blocks_read_back_pass_every_check(folder: Path) -> None:
    """A source sends them as they are."""
    journal = on_disk(record_bytes=0)
    log(journal, 20)

    for block in kept(journal, RECORDS):
        assert decode_block(block.frames)[0].count == block.count

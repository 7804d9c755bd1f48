"""Tests of ``fitwire.journal.reader``: a journal as a backlog, whatever the disk did to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import JournalError
from fitwire.events import Dropped, MetricRows, RunEnded, decode_events
from fitwire.journal import reader
from fitwire.journal.entries import HEAD, MARK, encode_entry, encode_mark
from fitwire.journal.layout import HAVE, RING, About, create, encode_have, remove, segment_name
from fitwire.journal.reader import Journal
from fitwire.journal.stones import DAMAGED
from fitwire.protocol.blocks import BULK, LANES, MAX_RECORDS, RECORDS, Block, Identity, decode_message, encode_block
from fitwire.train.journal import Journal as Written
from helpers import ME, history, picture, records
from journals import flipped, hello_of, write_entries, write_journal
from watching import block_of, ended, started

PROCESS = About(ME, hello_of(), "process")


def blocks_in(journal: Journal, lane: int = RECORDS) -> list[Block]:
    """All that it gives, from its first on, as a source reads it."""
    found: list[Block] = []
    seq = journal.first(lane)
    while (block := journal.read(lane, seq)) is not None:
        assert block.first == seq
        found.append(block)
        seq = block.last + 1
    assert seq == journal.head(lane) + 1
    return found


def same(found: Sequence[Block], expected: Sequence[Block]) -> bool:
    return [list(map(bytes, block.frames)) for block in found] == [list(map(bytes, b.frames)) for b in expected]


def told(blocks: Sequence[Block]) -> list[float | str]:
    """The losses in them; of what is gone the reason, once a record."""
    found: list[float | str] = []
    for block in blocks:
        for _, event in decode_events(decode_message(block.frames)):
            if isinstance(event, MetricRows):
                found.extend(event.columns[4].tolist())
            else:
                assert isinstance(event, Dropped)
                found.extend([event.reason] * event.count)
    return found


@pytest.mark.parametrize("per_segment", [1, 2, 1000])
def test_it_gives_what_was_written(per_segment: int) -> None:
    """Each block of each lane, to the byte, over any number of files."""
    blocks = history([2, 1, 300], [10, 2**20 + 3, 0])
    with Journal(write_journal(blocks, per_segment=per_segment)) as journal:
        found = [blocks_in(journal, lane) for lane in LANES]

    assert all(same(found[lane], [b for b in blocks if b.lane == lane]) for lane in LANES)
    assert (journal.heads, journal.undelivered, journal.lost) == ((303, 3), (303, 3), 0)
    assert journal.faults == {}
    assert journal.nbytes == sum(block.nbytes for block in blocks)
    assert journal.about.sender == ME and journal.name == "calm-fox"


def test_it_is_the_backlog_that_a_source_knows() -> None:
    """Asked the same, it says the same as the one in memory, before and after what was acknowledged goes."""
    blocks = history([2, 1, 3, 4], [5, 6])
    memory = Written(ME)
    for block in blocks:
        memory.append(block)
    journal = Journal(write_journal(blocks))

    for upto in (0, 3, 6, 10):
        memory.trim(RECORDS, upto)
        journal.trim(RECORDS, upto)
        assert (journal.first(RECORDS), journal.head(RECORDS)) == (memory.first(RECORDS), memory.head(RECORDS))
        assert (journal.first(BULK), journal.head(BULK)) == (memory.first(BULK), memory.head(BULK))
    assert journal.read(RECORDS, 11) is None and journal.read(RECORDS, 0) is None
    journal.close()


def test_what_was_acknowledged_is_gone() -> None:
    """It begins behind that; what the folder still has of it is not given again."""
    path = write_journal(history([2, 1, 3], [5, 6]))
    (path / HAVE).write_bytes(encode_have((3, 1)))
    with Journal(path) as journal:
        assert told(blocks_in(journal)) == [4.0, 5.0, 6.0]
        assert (journal.undelivered, journal.heads) == ((3, 1), (6, 2))
        journal.trim(RECORDS, 6)
        journal.save()

    with Journal(path) as journal:
        assert (journal.undelivered, journal.heads) == ((0, 1), (6, 2))


def test_a_journal_whose_all_was_acknowledged_has_nothing() -> None:
    """Its files may be gone already."""
    path = write_journal([])
    (path / HAVE).write_bytes(encode_have((30, 4)))
    with Journal(path) as journal:
        assert (journal.heads, journal.undelivered) == ((30, 4), (0, 0))
        assert journal.read(RECORDS, 31) is None


@pytest.mark.parametrize("at", range(0, 700, 7))
def test_a_flipped_byte_costs_its_block_and_leaves_a_mark(at: int) -> None:
    """At its own place: numbers go on, all other records are there, the badge can count what is missing."""
    blocks = history([2, 3, 1])
    path = write_journal(blocks)
    file = path / segment_name(RECORDS, 1)
    data = file.read_bytes()
    file.write_bytes(flipped(data, at))
    with Journal(path) as journal:
        found = told(blocks_in(journal))

    true = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert all(one in (DAMAGED, good) for one, good in zip(found, true, strict=False))
    last = at >= len(data) - 256 - len(encode_entry(blocks[2]))  # nobody knows that there was one
    assert len(found) in ((3, 5, 6) if last else (6,))
    assert journal.lost == found.count(DAMAGED)
    assert not journal.lost or journal.faults["damaged"] >= 1


def test_a_lost_segment_is_marked_record_by_record() -> None:
    """Also a hole that is more than one mark may stand for."""
    count = MAX_RECORDS + 100
    first, last = history([3])[0], records(4 + count, 2)
    path = write_journal([first, last], per_segment=1)
    with Journal(path) as journal:
        found = blocks_in(journal)

    assert [block.count for block in found] == [3, MAX_RECORDS, 100, 2]
    assert told(found)[3 : 3 + count] == [DAMAGED] * count
    assert (journal.lost, journal.undelivered[RECORDS]) == (count, count + 5)


def test_the_files_before_the_oldest_were_delivered() -> None:
    """The trainer deletes a file once a hub has all of it, a moment before it notes so."""
    path = write_journal(history([2, 2, 2]), per_segment=1)
    (path / segment_name(RECORDS, 1)).unlink()
    with Journal(path) as journal:
        assert journal.first(RECORDS) == 3
        assert told(blocks_in(journal)) == [3.0, 4.0, 5.0, 6.0]
        assert journal.lost == 0


def test_a_mark_is_the_same_whoever_makes_it() -> None:
    """So that the checksum of what a first courier delivered holds for the next."""
    path = write_journal([records(1, 2), records(9, 2)], per_segment=1)
    once, again = ([b"".join(map(bytes, b.frames)) for b in blocks_in(Journal(path))] for _ in range(2))

    assert once == again


def test_a_torn_end_is_told_from_damage() -> None:
    """What a kill left half-written is nobody's fault and nobody's record."""
    blocks = history([2, 3])
    path = write_journal(blocks[:1])
    file = path / segment_name(RECORDS, 1)
    whole = encode_entry(blocks[0])
    file.write_bytes(whole + encode_entry(blocks[1])[:-40] + bytes(4096))
    with Journal(path) as journal:
        assert told(blocks_in(journal)) == [1.0, 2.0]
        assert journal.faults == {"torn": 1}
    file.write_bytes(whole[:-20] + bytes(20) + encode_entry(blocks[1]))
    with Journal(path) as journal:
        assert journal.faults == {"damaged": 1}


def test_a_later_entry_takes_the_place_of_what_it_covers() -> None:
    """A tombstone's of its victims, a larger block's of those it was made of, a moved sample's of itself."""
    blocks = [records(1, 2), records(3, 2), records(5, 2)]
    stone = block_of(ME, 1, Dropped(count=4, what="metrics", reason="budget"))
    path = write_journal(blocks, per_segment=1)
    write_entries(path, RECORDS, 9, [encode_entry(stone), encode_entry(blocks[2])])
    with Journal(path) as journal:
        found = told(blocks_in(journal))

    assert found == ["budget"] * 4 + [5.0, 6.0]
    assert journal.faults == {"replaced": 3} and journal.lost == 0


def test_what_belongs_elsewhere_is_counted_and_left_out() -> None:
    """Another's block behind a head of ours, a sample among the records, numbers that nothing explains."""
    other = encode_block(
        Identity(b"o" * 16, 1, 0), RECORDS, 3, 0, [{"t": "log", "n": 1, "f": {"text": "x", "level": "info"}}]
    )
    forged = Block(ME, RECORDS, 3, 1, other.frames)
    far = records(2**40)
    path = write_journal([records(1, 2)])
    write_entries(path, RECORDS, 2, [encode_entry(forged), encode_entry(picture(1, 10)), encode_entry(far)])
    with Journal(path) as journal:
        found = told(blocks_in(journal))

    assert found == [1.0, 2.0, DAMAGED]
    assert journal.faults == {"foreign": 2, "damaged": 1}
    assert journal.heads == (3, 0)


def test_a_block_that_changes_under_the_reader_becomes_a_mark() -> None:
    """It was whole when the journal was opened; it is checked again when it is read."""
    path = write_journal(history([2, 2, 2]))
    file = path / segment_name(RECORDS, 1)
    journal = Journal(path)
    data = file.read_bytes()
    second = len(encode_entry(records(1, 2))) + HEAD.size + 200
    file.write_bytes(flipped(data, second))

    assert told(blocks_in(journal)) == [1.0, 2.0, DAMAGED, DAMAGED, 5.0, 6.0]
    assert (journal.lost, journal.faults["damaged"]) == (2, 1)
    journal.close()


def test_a_file_that_shrinks_under_the_reader_is_left_for_another_time() -> None:
    """A network's folder that hangs, or somebody who delivers the same: no mark must stand for what is there."""
    path = write_journal(history([2, 2]))
    journal = Journal(path)
    os.truncate(path / segment_name(RECORDS, 1), 0)

    with pytest.raises(JournalError, match="shorter"):
        journal.read(RECORDS, 1)
    journal.close()


def test_a_pipe_for_a_segment_is_refused_and_not_waited_for() -> None:
    """Nor is a link to anywhere followed."""
    path = write_journal([])
    os.mkfifo(path / segment_name(RECORDS, 1))
    with pytest.raises(JournalError, match="no file"):
        Journal(path)
    (path / segment_name(RECORDS, 1)).unlink()
    (path / segment_name(RECORDS, 1)).symlink_to("/dev/zero")
    with pytest.raises(JournalError):
        Journal(path)


def test_a_sparse_file_of_a_terabyte_takes_no_terabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is looked at than anybody of ours would write."""
    monkeypatch.setattr(reader, "MAX_SEGMENT_BYTES", 2**22)
    path = write_journal(history([2]))
    os.truncate(path / segment_name(RECORDS, 1), 2**40)
    with Journal(path) as journal:
        assert told(blocks_in(journal)) == [1.0, 2.0]
        assert journal.faults == {"damaged": 1}


def test_more_than_fits_is_read_in_several_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins where the last one was acknowledged; a hole is believed only by the last."""
    monkeypatch.setattr(reader, "MAX_ENTRIES", 4)
    blocks = [*history([2] * 10), records(25, 2)]
    path = write_journal(blocks, per_segment=3)
    found: list[float | str] = []
    for _ in range(10):
        with Journal(path) as journal:
            found.extend(told(blocks_in(journal)))
            journal.trim(RECORDS, journal.head(RECORDS))
            journal.save()
            if not journal.partial:
                break

    assert found == [float(n) for n in range(1, 21)] + [DAMAGED] * 4 + [25.0, 26.0]


def test_a_hub_may_have_more_than_the_journal() -> None:
    """What its trainer sent from memory when the disk refused: nothing of it is asked for, nor invented."""
    journal = Journal(write_journal(history([2, 3])))
    journal.advance(RECORDS, 9)
    journal.trim(RECORDS, 9)

    assert (journal.first(RECORDS), journal.head(RECORDS)) == (10, 9)
    assert journal.read(RECORDS, 10) is None
    journal.close()


@given(st.integers(1, 12))
def test_a_hub_may_have_a_block_in_part(seq: int) -> None:
    """It came in another block; what is given is the rest, to the last bit."""
    stone = block_of(ME, 7, Dropped(count=4, what="metrics", reason="budget"))
    path = write_journal([records(1, 6), stone, records(11, 2)])
    with Journal(path) as journal:
        journal.trim(RECORDS, seq - 1)
        found = told(blocks_in(journal))
    remove(path)

    whole: list[float | str] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, *["budget"] * 4, 11.0, 12.0]
    assert found == whole[seq - 1 :]


def test_how_a_training_ended_is_found_though_gauges_follow() -> None:
    """And also when a hub has it already."""
    end = block_of(ME, 4, ended("failed", reason="boom"))
    path = write_journal([block_of(ME, 1, started("fox")), records(2, 2), end, records(5)])
    with Journal(path) as journal:
        assert isinstance(journal.ended, RunEnded) and journal.ended.status == "failed"
    (path / HAVE).write_bytes(encode_have((5, 0)))
    with Journal(path) as journal:
        assert journal.ended is not None and journal.ended.reason == "boom"
    with Journal(write_journal([records(1, sender=Identity(ME.run, 5, 0))], Identity(ME.run, 5, 0))) as journal:
        assert journal.ended is None


def test_a_run_is_named_by_its_first_record_when_its_hello_is_lost() -> None:
    """A disk that was full from the start leaves an empty about."""
    path = write_journal([block_of(ME, 1, started("fox"))])
    (path / "about.json").write_bytes(b"")
    with Journal(path) as journal:
        assert journal.name == "fox"


def test_it_is_looked_at_anew_on_demand() -> None:
    """A living trainer's grows."""
    path = write_journal(history([2]))
    journal = Journal(path)
    write_entries(path, RECORDS, 2, [encode_entry(records(3, 2))])
    assert journal.head(RECORDS) == 2
    journal.rescan()

    assert told(blocks_in(journal)) == [1.0, 2.0, 3.0, 4.0]
    journal.close()


# -- what only the ring has


def marked(path: Path, number: int, blocks: Sequence[Block], taken: int, bulk: int = 0) -> None:
    """A batch whose last entry is marked."""
    last = len(blocks) - 1
    entries = [encode_entry(b, taken, bulk, MARK) if i == last else encode_entry(b) for i, b in enumerate(blocks)]
    write_entries(path, RECORDS, number, entries)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Questions to a ring that has a record of each lane to add."""
    seen: list[tuple[int, list[int]]] = []

    def recover(path: Path, sender: Identity, *, after: int, firsts: list[int]) -> list[Block]:
        seen.append((after, firsts))
        return [records(firsts[0], 2, sender), picture(firsts[1], 5, sender)]

    monkeypatch.setattr(reader, "recover", recover)
    return seen


def test_what_the_ring_has_follows_behind_the_last_mark(asked: list[Any]) -> None:
    """A batch without its mark lies in the ring too: it is taken from there, once."""
    path = create(PROCESS)
    (path / RING).touch()
    write_entries(path, BULK, 1, [encode_entry(picture(1, 5)), encode_entry(picture(2, 5))])
    marked(path, 1, [records(1, 2)], 2)
    marked(path, 2, [records(3), records(4)], 5, bulk=1)
    write_entries(path, RECORDS, 3, [encode_entry(records(5, 3))])
    with Journal(path) as journal:
        found = [blocks_in(journal, lane) for lane in LANES]

    assert asked == [(5, [5, 2])]
    assert told(found[RECORDS]) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert [block.first for block in found[BULK]] == [1, 2]
    assert (journal.heads, journal.undelivered) == ((6, 2), (6, 2))


def test_a_bare_mark_says_what_a_batch_without_records_settled(asked: list[Any]) -> None:
    """E.g. when they had been given up."""
    path = create(PROCESS)
    (path / RING).touch()
    marked(path, 1, [records(1, 2)], 2)
    write_entries(path, RECORDS, 2, [encode_mark(ME, 3, 40, 0)])
    with Journal(path) as journal:
        assert asked == [(40, [3, 1])]
        assert journal.head(RECORDS) == 4


def test_a_larger_block_that_reaches_beyond_the_mark_leaves_the_small_ones(asked: list[Any]) -> None:
    """It was killed while it made one of several."""
    path = create(PROCESS)
    (path / RING).touch()
    marked(path, 1, [records(1, 2), records(3, 2)], 4)
    write_entries(path, RECORDS, 2, [encode_entry(records(3, 6))])
    with Journal(path) as journal:
        assert told(blocks_in(journal)) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert asked == [(4, [5, 1])]


def test_entries_that_a_mark_vouches_for_are_missed_when_they_are_lost(asked: list[Any]) -> None:
    """Their place is marked; the ring goes on behind."""
    path = create(PROCESS)
    (path / RING).touch()
    marked(path, 1, [records(1, 2)], 2)
    write_entries(path, RECORDS, 2, [encode_mark(ME, 6, 5, 2)])
    with Journal(path) as journal:
        assert told(blocks_in(journal)) == [1.0, 2.0, DAMAGED, DAMAGED, DAMAGED, 6.0, 7.0]
        assert [block.first for block in blocks_in(journal, BULK)] == [1, 3]


@pytest.mark.parametrize("how", ["none", "spoilt"])
def test_without_a_ring_all_entries_count(how: str) -> None:
    """Marks or not: a reboot emptied the memory that it lay in, or the disk did."""
    path = create(PROCESS)
    marked(path, 1, [records(1, 2)], 2)
    write_entries(path, RECORDS, 2, [encode_entry(records(3, 3))])
    if how == "spoilt":
        (path / RING).write_bytes(os.urandom(5000))
    with Journal(path) as journal:
        assert told(blocks_in(journal)) == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert journal.faults == ({} if how == "none" else {"ring": 1})


def test_a_ring_whose_numbers_do_not_follow_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would make two records of one number."""
    monkeypatch.setattr(reader, "recover", lambda *_, **__: [records(9, 2)])
    path = create(PROCESS)
    (path / RING).touch()
    marked(path, 1, [records(1, 2)], 2)
    with Journal(path) as journal:
        assert told(blocks_in(journal)) == [1.0, 2.0]
        assert journal.faults == {"ring": 1}


# -- what a keeper adds


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_what_is_added_follows_all_that_was_said(asked: list[Any], durability: str) -> None:
    """Behind the ring too, which is then in the entries and is asked no more."""
    path = create(About(ME, hello_of(), durability))
    (path / RING).touch()
    marked(path, 1, [records(1, 2)], 2)
    with Journal(path) as journal:
        head = journal.head(RECORDS)
        journal.append([block_of(ME, head + 1, ended("failed", reason="killed"))])
        assert journal.head(RECORDS) == head + 1
    before = len(asked)
    with Journal(path) as journal:
        assert journal.ended is not None and journal.ended.reason == "killed"
        assert journal.heads == ((5, 1) if durability == "process" else (3, 0))
        assert told(blocks_in(journal)[:-1]) == [1.0, 2.0, 3.0, 4.0][:head]
        assert journal.lost == 0

    assert len(asked) == before


def test_what_does_not_follow_is_not_added() -> None:
    """Another's block, or a number that is taken."""
    path = write_journal(history([2]))
    with Journal(path) as journal:
        with pytest.raises(JournalError, match="does not follow"):
            journal.append([records(2)])
        with pytest.raises(JournalError, match="does not follow"):
            journal.append([records(3, sender=Identity(ME.run, 7, 0))])
        assert journal.head(RECORDS) == 2


# -- anything at all


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 7)), max_size=20),
    st.integers(0, 3000),
    st.lists(st.integers(1, 4), max_size=2),
)
def test_no_damage_makes_a_wrong_record(flips: list[tuple[int, int]], size: int, unlinked: list[int]) -> None:
    """Bits flipped, files cut and lost: what is given is contiguous, and each record is its own or a mark."""
    blocks = [*history([1, 2, 3, 1, 2, 3, 1, 2]), records(5, 2), records(1, 6)]
    path = write_journal(blocks, per_segment=3)
    try:
        files = sorted(path.glob("0-*.fwj"))
        for at, bit in flips:
            file = files[at % len(files)]
            data = file.read_bytes()
            file.write_bytes(flipped(data, at % len(data), bit))
        os.truncate(files[-1], min(size, files[-1].stat().st_size))
        for number in unlinked:
            (path / segment_name(RECORDS, number)).unlink(missing_ok=True)
        with Journal(path) as journal:
            first = journal.first(RECORDS)
            found = told(blocks_in(journal))
    finally:
        remove(path)

    assert all(value in (DAMAGED, float(first + place)) for place, value in enumerate(found))

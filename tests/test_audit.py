"""Tests of ``fitwire.watch.audit``: what the store has is what was said, or it is told where it is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import fitwire
from fitwire import Monitor
from fitwire.events import Dropped
from fitwire.journal.layout import find_journals
from fitwire.protocol.blocks import BULK, RECORDS, Block, Identity, Kind, Message, checksum_of, encode_message
from fitwire.protocol.digest import fold
from fitwire.watch.audit import LaneReport, audit
from fitwire.watch.store import End, Store
from helpers import picture, records, until
from journals import flipped, write_journal
from watching import RUN, block_of, keep, started

LIFE = Identity(RUN, 1000, 0)
BLOCKS = [block_of(LIFE, 1, started("fox")), records(2, 3, LIFE), records(5, 2, LIFE), picture(1, 500, LIFE)]


def rolled(blocks: Sequence[Block], lane: int = RECORDS) -> int:
    value = 0
    for block in blocks:
        if block.lane == lane:
            value = fold(value, block.first, block.count, checksum_of(block))
    return value


def store_with(path: Path, blocks: Sequence[Block], ends: Sequence[End] = ()) -> Store:
    store = Store(path / "store.sqlite3")
    keep(store, blocks)
    if ends:
        store.end(LIFE, ends)
    return store


def spoil(path: Path, sql: str) -> None:
    db = sqlite3.connect(path / "store.sqlite3")
    with db:
        db.execute(sql)
    db.close()


SAID = [End(6, 0, rolled(BLOCKS), "finished"), End(1, 0, rolled(BLOCKS, BULK), "finished")]


def test_a_real_run_is_sound(fitwire_dir: Path) -> None:
    """Store, goodbye and journal agree on each lane of each rank."""
    with Monitor() as monitor:
        with fitwire.init(name="fox", wait=30) as run:
            for step in range(3000):
                run.log({"loss": 1.0 / (step + 1)}, step=step)
            run.sample("pictures", image=np.zeros((2, 300, 300)))
        until(lambda: monitor.run("fox").badge == "complete")
        store = Store(fitwire_dir / "store.sqlite3", write=False)
        reports = audit(store, bytes.fromhex(monitor.run("fox").id), find_journals())
        store.close()

    assert [report.lane for report in reports] == [RECORDS, BULK]
    assert all(report.sound and report.goodbye for report in reports)
    assert reports[0].records > 3000 and reports[1].records == 1
    assert reports[0].digest not in (None, 0)


def test_what_was_said_and_what_is_stored_agree(tmp_path: Path) -> None:
    """By number, count and content of every block."""
    store = store_with(tmp_path, BLOCKS, SAID)

    assert audit(store, RUN) == [
        LaneReport(LIFE, RECORDS, 3, 6, digest=rolled(BLOCKS), goodbye=True),
        LaneReport(LIFE, BULK, 1, 1, digest=rolled(BLOCKS, BULK), goodbye=True),
    ]
    store.close()


def test_before_the_end_there_is_nothing_to_compare(tmp_path: Path) -> None:
    """A run that goes on, and one of an earlier version, are judged by their blocks alone."""
    store = store_with(tmp_path, BLOCKS)
    [first, second] = audit(store, RUN)

    assert (first.goodbye, second.goodbye, first.sound, second.sound) == (None, None, True, True)
    store.close()


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("DELETE FROM blocks WHERE lane=0 AND first=2", "breaks"),
        ("UPDATE blocks SET last=last+1 WHERE lane=0 AND first=5", "spoilt"),
        ("UPDATE blocks SET blob=x'00' WHERE lane=0 AND first=2", "spoilt"),
        ("UPDATE blocks SET blob=(SELECT blob FROM blocks WHERE first=5) WHERE lane=0 AND first=2", "spoilt"),
    ],
)
def test_a_store_that_was_changed_is_found_out(tmp_path: Path, sql: str, fault: str) -> None:
    """A block gone, longer than it is, unreadable, or another's in its place."""
    store = store_with(tmp_path, BLOCKS, SAID)
    spoil(tmp_path, sql)
    report = audit(store, RUN)[0]

    assert getattr(report, fault) == 1
    assert report.goodbye is False and not report.sound
    store.close()


def test_every_flipped_byte_of_a_block_is_found(tmp_path: Path) -> None:
    """Whatever the disk does to it."""
    store = store_with(tmp_path, BLOCKS, SAID)
    db = sqlite3.connect(tmp_path / "store.sqlite3")
    (blob,) = db.execute("SELECT blob FROM blocks WHERE lane=0 AND first=2").fetchone()
    for at in range(len(blob)):
        with db:
            db.execute("UPDATE blocks SET blob=? WHERE lane=0 AND first=2", (flipped(blob, at),))
        assert not audit(store, RUN)[0].sound, at
    db.close()
    store.close()


def test_a_whole_block_that_is_another_is_found_by_the_sum(tmp_path: Path) -> None:
    """It decodes, its numbers fit, and it was never said."""
    other = block_of(LIFE, 2, *[started(f"other {n}") for n in range(3)])
    store = store_with(tmp_path, [BLOCKS[0], other, *BLOCKS[2:]], SAID)
    report = audit(store, RUN)[0]

    assert (report.spoilt, report.breaks, report.goodbye, report.sound) == (0, 0, False, False)
    store.close()


def test_marks_are_counted_and_are_no_contradiction(tmp_path: Path) -> None:
    """What was given up, and what nobody has any more."""
    stone = block_of(LIFE, 5, Dropped(count=7, what="metrics", reason="budget"))
    gap = encode_message(Message(Kind.GAP, LIFE, RECORDS, 1, 0, {"to": 4, "reason": "elsewhere"}))
    store = Store(tmp_path / "store.sqlite3")
    store.commit([Block(LIFE, RECORDS, 1, 4, tuple(gap)), stone])
    store.end(LIFE, [End(11, 4, rolled([stone]), "lost"), End(0, 0, 0, "lost")])
    [report] = audit(store, RUN)

    assert (report.dropped, report.missing, report.goodbye, report.sound) == (7, 4, True, True)
    store.close()


def test_a_journal_that_is_still_there_is_compared(tmp_path: Path) -> None:
    """What both have must be the same; what only it has is counted."""
    store = store_with(tmp_path, BLOCKS[:2])
    path = write_journal([*BLOCKS[:3], BLOCKS[3]], LIFE)
    [records_, samples] = audit(store, RUN, [path, tmp_path / "nothing"])
    assert (records_.journal, records_.undelivered, records_.sound) == (True, 2, True)
    assert (samples.blocks, samples.journal, samples.undelivered) == (0, None, 1)
    store.close()

    other = [BLOCKS[0], block_of(LIFE, 2, *[started("other")] * 3)]
    store = store_with(tmp_path / "other", other)
    assert audit(store, RUN, [path])[0].journal is False
    store.close()


def test_an_end_that_tells_less_does_not_replace_one_that_tells_more(tmp_path: Path) -> None:
    """A courier that finds nothing left has no sum to tell; one that brings more has."""
    store = store_with(tmp_path, BLOCKS, SAID)
    store.end(LIFE, [End(6, 6, 0, "lost"), End(1, 1, 0, "lost")])
    assert store.ends(LIFE) == dict(enumerate(SAID))
    longer = End(9, 6, 5, "lost")
    store.end(LIFE, [longer, End(1, 0, rolled(BLOCKS, BULK), "failed")])

    assert store.ends(LIFE) == {RECORDS: longer, BULK: End(1, 0, rolled(BLOCKS, BULK), "failed")}
    store.close()


def test_a_store_of_before_has_no_ends(tmp_path: Path) -> None:
    """It can be read without being changed."""
    store_with(tmp_path, BLOCKS, SAID).close()
    spoil(tmp_path, "DROP TABLE ends")
    store = Store(tmp_path / "store.sqlite3", write=False)

    assert store.ends(LIFE) == {}
    assert all(report.sound for report in audit(store, RUN))
    store.close()
    Store(tmp_path / "store.sqlite3").close()
    store = Store(tmp_path / "store.sqlite3", write=False)

    assert store.ends(LIFE) == {}
    store.close()

"""Blocks until the hub has them: within a budget, with a tombstone for each that had to go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fitwire.events import Described, Dropped, EpochEnded, Event, Log, Metrics, RunStarted, Sample
from fitwire.protocol.blocks import BULK, MAX_RECORDS, RECORDS, Block
from fitwire.protocol.source import Backlog
from fitwire.train.journal import Journal
from fitwire.train.packer import Packer
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

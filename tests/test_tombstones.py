"""Blocks made of blocks: what is given up keeps its place and its summary; neighbours join without loss."""

from __future__ import annotations

import numpy as np
import pytest

from fitwire.events import Dropped, EpochEnded, Event, Log, Metrics, Sample
from fitwire.protocol.blocks import BULK, MAX_RECORDS, RECORDS, Block, decode_block
from fitwire.train.packer import Packer
from fitwire.train.tombstones import MANY, collapse, fold, in_bundles, merge, name_of_sample, stone
from test_packer import ME, row, said

NAN = float("nan")


def packed(*looks: list[object], lane: int = RECORDS) -> list[Block]:
    """What a trainer's looks make, one lane of it."""
    blocks: list[Block] = []
    packer = Packer(ME, blocks.append)
    for records in looks:
        packer.add(records)  # type: ignore[arg-type]
    return [block for block in blocks if block.lane == lane]


def one(*records: object) -> Block:
    (block,) = packed(list(records))
    return block


def told(block: Block) -> list[Event]:
    decode_block(block.frames)
    return said([block], block.lane)


def test_a_collapsed_block_keeps_what_its_metrics_came_to() -> None:
    """n, least, greatest, mean and last, of finite values; and the steps they were at."""
    values = [3.0, NAN, 1.0, float("inf"), 2.0]
    block, gone, count = collapse(one(*(row(10 + i, {"x": v, "y": NAN}) for i, v in enumerate(values))), "why")
    (event,) = told(block)

    assert count == 5 and isinstance(event, Dropped) and gone is not None
    assert (event.count, event.what, event.reason) == (5, "metrics", "why")
    assert (event.first_step, event.last_step) == (10, 14)
    assert event.values == {"x": [3, 1.0, 3.0, 2.0, 2.0]}
    assert (block.first, block.count) == (1, 5)


def test_values_that_overflow_a_sum_leave_no_mean_behind() -> None:
    """What no JSON number can say is left out."""
    block, _, _ = collapse(one(row(0, {"x": 1.7e308}), row(1, {"x": 1.7e308})), "why")
    (event,) = told(block)

    assert isinstance(event, Dropped) and event.values == {}


def test_epochs_and_events_stay_in_their_places() -> None:
    """Batch metrics and gauges beside them go; two kinds that follow each other are one tombstone."""
    block, gone, count = collapse(
        one(
            row(0, {"x": 1.0}), row(1, {"x": 2.0}), row(0, {"cpu": 1.0}, per="time"),
            row(1, {"x": 5.0}, epoch=0, per="epoch"), Log(time=1.0, text="note"), row(2, {"x": 3.0}),
        ),
        "why",
    )  # fmt: skip
    events = told(block)

    assert (count, gone) == (4, None)
    assert [type(event) for event in events] == [Dropped, EpochEnded, Log, Dropped]
    assert [e.count for e in events if isinstance(e, Dropped)] == [3, 1]
    assert block.count == 6


def test_a_block_without_metrics_is_not_touched() -> None:
    """Nothing to give up: the same block, and nothing counted."""
    block = one(Log(time=1.0, text="note"), row(1, {"x": 5.0}, epoch=0, per="epoch"))

    assert collapse(block, "why") == (block, None, 0)


def test_tombstones_fold_as_if_they_had_been_one() -> None:
    """Counts add, means are weighed."""
    first = Dropped(
        count=1, what="metrics", reason="a", first_step=0, last_step=0, values={"x": [1, 5.0, 5.0, 5.0, 5.0]}
    )
    second = Dropped(
        count=3, what="metrics", reason="b", first_step=1, last_step=3,
        values={"x": [3, 1.0, 1.0, 1.0, 1.0], "y": [1, 2.0, 2.0, 2.0, 2.0]},
    )  # fmt: skip
    both = fold(first, second)

    assert (both.count, both.first_step, both.last_step) == (4, 0, 3)
    assert both.values == {"x": [4, 1.0, 5.0, 2.0, 1.0], "y": [1, 2.0, 2.0, 2.0, 2.0]}


def test_neighbours_become_one_block_with_the_same_records() -> None:
    """Rows of one set join, in order; others keep theirs."""
    looks: list[list[object]] = [[row(i, {"x": float(i)})] for i in range(20)]
    looks += [[Log(time=1.0, text="note"), row(20, {"x": NAN, "y": 1.0})], [row(21, {"x": 1.0}, epoch=0, per="epoch")]]
    looks += [[row(22, {"x": float("-inf")})]]
    blocks = packed(*looks)
    merged = merge(blocks)

    assert merged is not None
    assert (merged.first, merged.count) == (1, 24)
    before, after = said(blocks), told(merged)
    assert [type(e) for e in before] == [type(e) for e in after]
    for one_of, other in zip(before, after, strict=True):
        if isinstance(one_of, (Metrics, EpochEnded)) and isinstance(other, (Metrics, EpochEnded)):
            np.testing.assert_equal(dict(one_of.values), dict(other.values))
            assert (one_of.step, one_of.epoch, one_of.time) == (other.step, other.epoch, other.time)
    assert merged.nbytes < sum(block.nbytes for block in blocks) / 3


def test_too_many_for_one_block_are_not_joined() -> None:
    """A block has its limits."""
    blocks = packed(*[[row(i, {"x": 1.0})] * 256 for i in range(MAX_RECORDS // 256 + 1)])

    assert merge(blocks) is None
    assert merge(packed(*[[row(i, {f"x{i}": 1.0})] for i in range(100)])) is None


def test_bundles_hold_all_blocks_in_order_and_not_too_much_each() -> None:
    """What is large already stays alone."""
    blocks = packed(*[[row(i, {"x": 1.0})] * (200 if i == 5 else 60) for i in range(12)])
    bundles = list(in_bundles(blocks))

    assert [block for bundle in bundles for block in bundle] == blocks
    assert all(sum(block.count for block in bundle) <= MANY for bundle in bundles)
    assert [len(bundle) for bundle in bundles] == [4, 1, 1, 4, 2]


@pytest.mark.parametrize(("name", "expected"), [("masks", "masks"), ("n" * 200, "n" * 200)])
def test_the_name_of_a_sample_is_read_without_its_arrays(name: str, expected: str) -> None:
    """Which pictures are the newest of their kind is asked of every one."""
    event = Sample(time=0.0, step=1, name=name, arrays={"image": np.zeros((1, 4))})
    (block,) = packed([event], lane=BULK)
    changed = Block(block.sender, block.lane, block.first, block.count, (*block.frames[:2], b"spoilt"))

    assert name_of_sample(changed) == expected
    assert name_of_sample(stone(block, Dropped(count=1, what="sample", reason="why"))) == ""

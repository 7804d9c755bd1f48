"""Accepted records become blocks that every hub takes; nothing of them is lost on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.events import (
    Described,
    Dropped,
    EpochEnded,
    Event,
    Log,
    MetricRows,
    Metrics,
    RunStarted,
    Sample,
    decode_events,
    explode,
)
from fitwire.protocol.blocks import BULK, RECORDS, Block, Identity, decode_block
from fitwire.train.packer import MAX_ROWS, Packer, Row

ME = Identity(bytes(16), 1, 3)


def packed(*batches: list[Any], refused: list[tuple[str, str]] | None = None) -> list[Block]:
    blocks: list[Block] = []
    told = [] if refused is None else refused
    packer = Packer(ME, blocks.append, lambda what, why: told.append((what, why)))
    for records in batches:
        packer.add(records)
    return blocks


def said(blocks: list[Block], lane: int = RECORDS) -> list[Event]:
    """What a hub reads in them, after checking all that it checks."""
    found: list[Event] = []
    following = 1
    for block in blocks:
        if block.lane != lane:
            continue
        assert block.first == following
        following = block.last + 1
        _, message = decode_block(block.frames)
        for _, event in decode_events(message):
            found.extend(explode(event) if isinstance(event, MetricRows) else [event])
    return found


def row(step: int, values: dict[Any, Any], *, epoch: Any = None, batch: Any = None, per: Any = "batch") -> Row:
    return (float(step % 1000), step, epoch, batch, per, values)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
rows = st.builds(
    row,
    st.integers(0, 2**53 - 1),
    st.dictionaries(names, st.floats(allow_nan=False), max_size=4),
    epoch=st.none() | st.integers(0, 2**53 - 1),
    batch=st.none() | st.integers(0, 2**53 - 1),
    per=st.sampled_from(["batch", "epoch", "time"]),
)
notes = st.builds(lambda text: Log(time=1.0, text=text), names)


@given(st.lists(st.lists(rows | notes, max_size=30), max_size=4))
def test_a_hub_reads_what_was_accepted_in_its_order(batches: list[list[Any]]) -> None:
    """Whatever is logged in whatever mixture, each record is there, exactly, and numbers have no holes."""
    found = said(packed(*batches))

    accepted = [record for batch in batches for record in batch]
    assert len(found) == len(accepted)
    for record, event in zip(accepted, found, strict=True):
        if isinstance(record, Log):
            assert event == Log(time=1.0, text=record.text, rank=3)
        else:
            assert isinstance(event, Metrics)
            time, step, epoch, batch, per, values = record
            heard = (event.time, event.step, event.epoch, event.batch, event.per, dict(event.values))
            assert heard == (time, step, epoch, batch, per, values)


def test_nan_infinities_and_signed_zero_are_exact() -> None:
    """Values cross bit for bit."""
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 1.7976931348623157e308]
    found = said(packed([row(i, {"x": value}) for i, value in enumerate(values)]))

    heard = np.array([event.values["x"] for event in found])  # type: ignore[union-attr]
    assert heard.tobytes() == np.array(values).tobytes()


def test_rows_of_one_set_of_metrics_share_a_block_of_at_most_1024() -> None:
    """As columns: 4,000 rows take 4 blocks and about 8 bytes a number."""
    blocks = packed([row(i, {"loss": 0.5, "accuracy": 0.25}) for i in range(4000)])

    assert [block.count for block in blocks] == [MAX_ROWS] * 3 + [4000 - 3 * MAX_ROWS]
    assert sum(block.nbytes for block in blocks) < 4000 * 6 * 8 + 4 * 500


@pytest.mark.parametrize("odd", [0, 1, 700, 1023, 1024, 2999])
@pytest.mark.parametrize("how", ["names", "order", "per", "event"])
def test_one_record_that_is_unlike_its_neighbours_keeps_its_place(odd: int, how: str) -> None:
    """Rows that are alike are packed many at a time; what stands between them is not lost in them."""
    records: list[Any] = [row(i, {"loss": float(i), "accuracy": 0.25}) for i in range(3000)]
    other: dict[str, Any] = {
        "names": row(odd, {"loss": float(odd)}), "order": row(odd, {"accuracy": 0.25, "loss": float(odd)}),
        "per": (*row(odd, {"loss": float(odd), "accuracy": 0.25})[:4], "epoch", {"loss": float(odd), "accuracy": 0.25}),
        "event": Log(text="hello"),
    }  # fmt: skip
    records[odd] = other[how]
    heard = said(packed(records))

    assert [i for i, event in enumerate(heard) if isinstance(event, Log)] == ([odd] if how == "event" else [])
    assert [i for i, event in enumerate(heard) if isinstance(event, EpochEnded)] == ([odd] if how == "per" else [])
    assert all(event.values["loss"] == i for i, event in enumerate(heard) if isinstance(event, Metrics))


def test_a_step_with_very_many_metrics_is_split_into_records() -> None:
    """Ten thousand metrics with long names do not pass any limit of the wire."""
    values = {f"layer/{i}/gradient/größe/" + "y" * 50: float(i) for i in range(10_000)}
    found = said(packed([row(0, values), row(1, values)]))

    heard: dict[int, dict[str, float]] = {0: {}, 1: {}}
    for event in found:
        assert isinstance(event, Metrics) and event.step is not None
        heard[event.step].update(event.values)
    assert heard == {0: values, 1: values}


def test_names_that_are_no_names_are_mended_or_left_out_and_told_once() -> None:
    """The hot path does not look at names, so they are looked at here; the good values stay."""
    refused: list[tuple[str, str]] = []
    values = {1: 0.5, "": 1.0, "x" * 300: 2.0, "a\ud800": 3.0, "good": 4.0}
    found = said(packed([row(0, values), row(1, values)], refused=refused))

    assert [event.values for event in found] == [{"1": 0.5, "a?": 3.0, "good": 4.0}] * 2  # type: ignore[union-attr]
    assert [why for _, why in refused] == [
        "a metric's name needs 1 to 256 characters, not 0",
        "a metric's name needs 1 to 256 characters, not 300",
    ]


def test_a_row_of_which_nothing_can_be_sent_keeps_its_place() -> None:
    """It was accepted, so a tombstone stands where it was."""
    found = said(packed([row(0, {"": 1.0}), row(1, {"x": 1.0})]))

    assert isinstance(found[0], Dropped) and found[0].count == 1
    assert isinstance(found[1], Metrics) and found[1].step == 1


@pytest.mark.parametrize("bad", ["abc", 2**53, 10**400, math.inf, -math.inf, [1], np.zeros(2)])
def test_an_epoch_or_batch_that_is_none_does_not_cost_the_row(bad: Any) -> None:
    """What a hub would refuse for ever becomes an absent epoch or batch, and is told; other rows stay as they are."""
    refused: list[tuple[str, str]] = []
    good = row(0, {"x": 1.0}, epoch=2, batch=3)
    found = said(packed([good, row(1, {"x": 2.0}, epoch=bad, batch=4), row(2, {"x": 3.0}, batch=bad)], refused=refused))

    heard = [(event.step, event.epoch, event.batch) for event in found]  # type: ignore[union-attr]
    assert heard == [(0, 2, 3), (1, None, 4), (2, None, None)]
    assert [what for what, _ in refused] == ["epoch", "batch"]


@pytest.mark.parametrize("bad", [2**53, 10**400])
def test_a_step_that_does_not_fit_is_told(bad: int) -> None:
    """A whole number that a float64 cannot hold exactly is no step."""
    refused: list[tuple[str, str]] = []
    found = said(packed([(0.0, bad, None, None, "batch", {"x": 1.0})], refused=refused))

    assert [event.step for event in found] == [0]
    assert [what for what, _ in refused] == ["step"]


def test_a_value_that_slipped_through_and_is_no_number_counts_as_nan() -> None:
    """It takes neither the thread nor its neighbours with it."""
    refused: list[tuple[str, str]] = []
    found = said(packed([row(0, {"x": 1.0, "y": "?"}), row(1, {"x": 2.0, "y": 3.0})], refused=refused))

    values = [list(event.values.values()) for event in found]  # type: ignore[union-attr]
    assert math.isnan(values[0][1])
    assert (values[0][0], values[1]) == (1.0, [2.0, 3.0])
    assert [what for what, _ in refused] == ["y"]


def test_a_sample_goes_by_its_own_lane_with_its_own_numbers() -> None:
    """A picture never delays a loss."""
    sample = Sample(time=1.0, rank=3, step=4, name="m", arrays={"image": np.arange(6).reshape(2, 3)})
    blocks = packed([row(0, {"x": 1.0}), sample, row(1, {"x": 1.0}), sample])

    assert [(block.lane, block.first) for block in blocks] == [(BULK, 1), (BULK, 2), (RECORDS, 1)]
    heard = said(blocks, BULK)
    assert isinstance(heard[0], Sample) and heard[0].step == 4
    np.testing.assert_array_equal(heard[0].arrays["image"], sample.arrays["image"])


def test_what_cannot_be_encoded_becomes_a_tombstone_and_costs_nothing_else() -> None:
    """A description over 1 MiB, a sample over 256 MiB, and one part of several with a key JSON has no word for."""
    refused: list[tuple[str, str]] = []
    large = np.broadcast_to(np.zeros(1, np.uint8), (2, 2**27))
    records = [
        RunStarted(time=1.0, name="x"),
        Described(time=2.0, what="config", values={"x": "y" * 2**21}),
        Sample(time=3.0, name="huge", arrays={"image": large, "target": large}),
        Log(time=4.0, text="lone \ud800 surrogate"),
        Log(time=5.0, text="good"),
    ]
    found = said(packed(records, refused=refused))

    assert [type(event).__name__ for event in found] == ["RunStarted", "Dropped", "Dropped", "Dropped", "Log"]
    assert [event.what for event in found if isinstance(event, Dropped)] == ["described", "sample", "log"]
    assert [what for what, _ in refused] == ["described", "sample", "log"]


def test_names_of_many_bytes_in_one_block_do_not_pass_the_limit_of_a_header() -> None:
    """Sixty sets of metrics whose names are emoji: frame 1 stays below 64 KiB."""
    records = [row(i, {chr(0x1F600 + i) * 250 + str(j): 1.0 for j in range(8)}) for i in range(60)]
    blocks = packed(records, [Log(time=0.0, text="𝄞" * 900)] * 60)  # type: ignore[list-item]

    assert len(said(blocks)) == 120
    assert max(len(block.frames[1]) for block in blocks) < 2**16
    assert all(isinstance(event, Metrics | Log) for event in said(blocks))


def test_epoch_rows_are_epochs() -> None:
    """Of the same names as batches, and never mixed with them."""
    found = said(packed([row(0, {"loss": 1.0}), row(1, {"loss": 2.0}, epoch=0, per="epoch"), row(2, {"loss": 3.0})]))

    assert [type(event) for event in found] == [Metrics, EpochEnded, Metrics]

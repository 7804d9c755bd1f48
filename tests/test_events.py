"""Tests of ``fitwire.events``: what is said, and how it travels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import DecodeError, EncodeError
from fitwire.events import (
    INLINE_BYTES,
    MAX_NAME,
    MAX_TEXT_BYTES,
    Alert,
    Command,
    CommandDone,
    CommandStatus,
    Described,
    DescribedWhat,
    Dropped,
    EpochEnded,
    Event,
    Log,
    MetricRows,
    Metrics,
    RunEnded,
    RunStarted,
    Sample,
    decode_events,
    encode_event,
    encode_rows,
    explode,
)
from fitwire.protocol.arrays import encode_array
from fitwire.protocol.blocks import BULK, RECORDS, Kind, Message, decode_block, decode_message, encode_block
from helpers import ME, frames_of, records

NAN = float("nan")


def crossed(*parts: Any, lane: int = RECORDS, first: int = 1, arrays: bool = True) -> list[Any]:
    """Parts with their buffers, as a block, there and back."""
    block = encode_block(
        ME, lane, first, 0,
        [part | {"b": len(buffers)} for part, buffers in parts],
        [buffer for _, buffers in parts for buffer in buffers],
    )  # fmt: skip
    return list(decode_events(decode_block(block.frames)[1], arrays=arrays))


def there_and_back(event: Event) -> Any:
    [(_, heard)] = crossed(encode_event(event))
    return heard


# -- events


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAMES = TEXT.filter(bool)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=10,
)  # fmt: skip
MAPPINGS = st.dictionaries(TEXT, VALUES, max_size=4)
SAID: dict[str, Any] = {
    "time": st.floats(0, 2e9), "rank": st.just(0), "step": st.none() | st.integers(0, 2**53 - 1),
}  # fmt: skip
STATUSES = st.sampled_from(["finished", "failed", "interrupted"])
LEVELS = st.sampled_from(["debug", "info", "warning", "error"])
EVENTS = st.one_of(
    st.builds(
        RunStarted, name=NAMES, project=NAMES, group=st.none() | TEXT, tags=st.lists(TEXT, max_size=3).map(tuple),
        config=MAPPINGS, info=MAPPINGS, **SAID,
    ),
    st.builds(Described, what=st.sampled_from(get_args(DescribedWhat)), values=MAPPINGS, **SAID),
    st.builds(
        Command, client=TEXT, number=st.integers(0, 2**53 - 1), name=NAMES, arguments=MAPPINGS, author=TEXT,
        asked=st.floats(0, 2e9), **SAID,
    ),
    st.builds(
        CommandDone, client=TEXT, number=st.integers(0, 2**53 - 1), name=NAMES, status=st.sampled_from(
            get_args(CommandStatus)
        ), reason=TEXT, before=VALUES, after=VALUES, author=TEXT, **SAID,
    ),
    st.builds(Log, text=TEXT, level=LEVELS, **SAID),
    st.builds(Alert, title=TEXT, text=TEXT, level=LEVELS, **SAID),
    st.builds(RunEnded, status=STATUSES, reason=TEXT, traceback=TEXT, **SAID),
    st.builds(Dropped, count=st.integers(1, 4096), what=TEXT, reason=TEXT, **SAID),
)  # fmt: skip


@given(EVENTS)
def test_any_event_arrives_equal(event: Event) -> None:
    """Whatever its fields hold: text of any script, nested settings, floats to the last bit, long or short."""
    assert there_and_back(event) == event


@pytest.mark.parametrize(
    "event",
    [
        RunEnded(status="failed", traceback="x" * 100_000),
        RunStarted(name="x", config={"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": [[1]]}}}}}}}}}}),
        Described(what="info", values={"model": "y" * (MAX_TEXT_BYTES - 100)}),
    ],
)
def test_what_is_long_or_deep_travels_beside_the_header(event: Event) -> None:
    """A traceback or a whole model's description does not fit frame 1, nor does deep nesting."""
    part, buffers = encode_event(event)

    assert "f" not in part
    assert buffers[0][0]["as"] == "fields"
    assert there_and_back(event) == event


@pytest.mark.parametrize(
    "event",
    [
        Log(text="x" * (MAX_TEXT_BYTES + 1)),
        Log(text="\ud800"),
        Log(text=5),  # type: ignore[arg-type]
        Log(text="x", time=NAN),
        Log(text="x", step=2**53),
        Log(text="x", step=True),
        Log(text="x", step=1.5),  # type: ignore[arg-type]
        Described(what="config", values={"x": float("inf")}),
        Described(what="config", values={"x": object()}),
        Described(what="config", values={"x": 10**30}),
        Described(what="config", values={1: "a", "1": "b"}),  # type: ignore[dict-item]
        Described(what="config", values=[1]),  # type: ignore[arg-type]
        Metrics(values={"loss": 1.0}),
        Sample(name="x", arrays={"image": np.array([object()])}),
        Sample(name="x", arrays={"text": np.array(["x" * MAX_TEXT_BYTES])}),
    ],
)
def test_what_the_hub_would_refuse_never_sets_out(event: Event) -> None:
    """A user's value that cannot be read there is refused here, at the sender, with a reason."""
    with pytest.raises(EncodeError):
        encode_event(event)


def deep(levels: int) -> Any:
    return {"x": deep(levels - 1)} if levels else 1


def test_nesting_has_one_limit_for_both_ends() -> None:
    """What is just deep enough arrives, one level more is refused before it is sent."""
    event = Described(what="config", values=deep(15))

    assert there_and_back(event) == event
    with pytest.raises(EncodeError, match="deeper than 16"):
        encode_event(Described(what="config", values=deep(16)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RunStarted(name=""), "run name '' needs 1 to 256 characters"),
        (lambda: RunStarted(name="x" * (MAX_NAME + 1)), "needs 1 to 256 characters"),
        (lambda: RunStarted(name="x", project=""), "project name"),
        (lambda: Described(what="other", values={}), "pass one of config, summary, info, controls"),  # type: ignore[arg-type]
        (lambda: Log(text="x", level="loud"), "pass one of debug, info, warning, error"),  # type: ignore[arg-type]
        (lambda: Alert(title="x", level="loud"), "pass one of"),  # type: ignore[arg-type]
        (lambda: RunEnded(status="done"), "pass one of finished, failed, interrupted"),  # type: ignore[arg-type]
        (lambda: Sample(name="", arrays={"image": np.zeros(1)}), "sample name"),
        (lambda: Sample(name="x", arrays={}), "holds no array"),
        (lambda: Sample(name="x", arrays={"": np.zeros(1)}), "array name"),
        (lambda: Sample(name="x", arrays={"image": np.zeros(())}), r"needs shape \(examples, ...\), got \(\)"),
        (lambda: Sample(name="x", arrays={"image": np.zeros((0, 3))}), r"got \(0, 3\)"),
    ],
)
def test_an_event_is_checked_at_birth(make: Any, sentence: str) -> None:
    """The sentence says what was given and what to pass."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_events_are_frozen() -> None:
    """What was said stays said."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Log(text="x").text = "y"  # type: ignore[misc]


# -- metrics


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**53 - 1), st.none() | st.integers(0, 2**53 - 1), st.none() | st.integers(0, 2**53 - 1),
            st.floats(0, 2e9), st.lists(st.floats(), min_size=2, max_size=2),
        ), min_size=1, max_size=20,
    ),
    st.sampled_from(["batch", "epoch", "time"]),
)  # fmt: skip
def test_rows_arrive_to_the_last_bit(rows: list[Any], per: Any) -> None:
    """NaN, infinities, minus zero, the smallest and the largest: a curve is exactly what was logged."""
    index = [(s, NAN if e is None else e, NAN if b is None else b, t) for s, e, b, t, _ in rows]
    [(seq, heard)] = crossed(encode_rows(["loss", "ü"], per, index, [values for *_, values in rows]), first=9)
    said = list(explode(heard))

    assert (seq, heard.names, heard.per, len(heard)) == (9, ("loss", "ü"), per, len(rows))
    assert [(m.step, m.epoch, m.batch, m.time) for m in said] == [row[:4] for row in rows]
    values = np.array([list(m.values.values()) for m in said])
    assert values.tobytes() == np.array([values for *_, values in rows]).tobytes()
    assert {type(m) for m in said} == {EpochEnded if per == "epoch" else Metrics}


def test_a_row_without_values_is_a_row() -> None:
    """A step can be told alone."""
    [(_, rows)] = crossed(encode_rows([], "batch", [(3.0, NAN, NAN, 1.0)], [[]]))

    assert [(m.step, dict(m.values)) for m in explode(rows)] == [(3, {})]


def test_thousands_of_metrics_fit() -> None:
    """Their names alone are more than a header may hold: they travel beside it."""
    names = [f"layers/{i}/attention/weights/norm" for i in range(5000)]
    part, buffers = encode_rows(names, "batch", [(0.0, NAN, NAN, 0.0)], [range(5000)])
    [(_, rows)] = crossed((part, buffers))

    assert "names" not in part
    assert rows.names == tuple(names)
    assert rows.columns[4:, 0].tolist() == list(range(5000))


def test_names_without_end_are_refused() -> None:
    """A name for each step, say, would fill every block."""
    with pytest.raises(EncodeError, match="at most 1,048,576"):
        encode_rows([f"{i:0200}" for i in range(6000)], "batch", [(0.0, NAN, NAN, 0.0)], [range(6000)])


# -- several in a block


def test_each_event_of_a_block_has_its_own_number() -> None:
    """Rows take as many as they are, a tombstone as many as it stands for, everything else one."""
    parts = [
        encode_event(Log(text="a")),
        encode_rows(["loss"], "batch", [(0.0, NAN, NAN, 0.0)] * 3, [[1.0]] * 3),
        encode_event(Dropped(count=10, what="metrics", reason="pressure")),
        encode_event(Log(text="b" * (INLINE_BYTES + 1))),
        encode_event(RunEnded(status="finished")),
    ]

    heard = crossed(*parts, first=5)

    assert [(seq, type(event)) for seq, event in heard] == [
        (5, Log), (6, MetricRows), (9, Dropped), (19, Log), (20, RunEnded),
    ]  # fmt: skip


def test_types_from_the_future_are_passed_over() -> None:
    """Their records keep their numbers, and what this version knows is read."""
    unknown = ({"t": "hologram", "n": 4}, [encode_array(np.zeros(3))])

    heard = crossed(unknown, encode_event(Log(text="x")))

    assert [(seq, event.text) for seq, event in heard] == [(5, "x")]


def test_fields_from_the_future_are_passed_over() -> None:
    """A newer sender may say more."""
    part, buffers = encode_event(Log(text="x"))
    part["f"]["colour"] = "red"

    assert [event for _, event in crossed((part, buffers))] == [Log(text="x")]


def test_a_rank_is_the_senders_not_the_fields() -> None:
    """Nobody speaks for another rank."""
    part, buffers = encode_event(Log(text="x"))
    part["f"]["rank"] = 7

    assert [event.rank for _, event in crossed((part, buffers))] == [ME.rank]


def test_a_gap_reads_as_what_was_dropped() -> None:
    """How many, and why."""
    message = decode_message(frames_of(Kind.GAP, {"to": 12, "reason": "gone"}, seq=3))

    assert list(decode_events(message)) == [(3, Dropped(count=10, what="records", reason="gone"))]
    for to in (None, 2, "9", True):
        with pytest.raises(DecodeError):
            list(decode_events(Message(Kind.GAP, ME, seq=3, body={"to": to})))


# -- samples


def sample(**arrays: Any) -> Sample:
    return Sample(name="masks", step=4, epoch=1, arrays={k: np.asarray(v) for k, v in arrays.items()})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
        np.array([[0.5, NAN]], dtype=np.float16),
        np.zeros((1, 0, 4)),
        np.array([True, False]),
        np.array(["cat", "", "ß ✓"]),
        np.array([["a", "bb"], ["ccc", ""]]),
        np.zeros((2, 0), dtype="<U3"),
        np.array(["", ""]),
        np.array(["x\x00y"]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
def test_arrays_of_a_sample_arrive_bit_for_bit(array: np.ndarray) -> None:
    """Their dtype, shape and bytes, text included; without their bytes, shape and dtype still."""
    event = sample(image=array, other=np.zeros(2))
    [(_, heard)] = crossed(encode_event(event), lane=BULK)
    [(_, seen)] = crossed(encode_event(event), lane=BULK, arrays=False)

    assert (heard.name, heard.step, heard.epoch, list(heard.arrays)) == ("masks", 4, 1, ["image", "other"])
    got = heard.arrays["image"]
    assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert (seen.arrays["image"].dtype, seen.arrays["image"].shape) == (array.dtype, array.shape)


def test_a_description_of_a_sample_takes_no_memory() -> None:
    """The stand-in has the shape of gigabytes and the size of one number."""
    event = sample(image=np.zeros((4, 1000, 1000)))
    [(_, seen)] = crossed(encode_event(event), lane=BULK, arrays=False)

    assert seen.arrays["image"].shape == (4, 1000, 1000)
    assert seen.arrays["image"].base.nbytes == 8


def test_the_order_of_arrays_is_kept() -> None:
    """A view draws them as they were given."""
    event = sample(target=[1], image=[2], prediction=[3])

    assert list(there_and_back(event).arrays) == ["target", "image", "prediction"]


# -- hostile blocks


def block_of_sample(change: Any) -> Message:
    part, buffers = encode_event(sample(text=np.array(["a", "b"]), image=np.zeros(2)))
    buffers = [(header | change.get(header["name"], {}), data) for header, data in buffers]
    block = encode_block(ME, BULK, 1, 0, [part | {"b": len(buffers)}], buffers)
    return decode_block(block.frames)[1]


@pytest.mark.parametrize(
    "change",
    [
        {"image": {"name": "text"}},
        {"image": {"name": None}},
        {"image": {"name": 5}},
        {"image": {"name": ["x"]}},
        {"image": {"name": ""}},
        {"image": {"as": "text"}},
        {"text": {"width": 0}},
        {"text": {"width": "1"}},
        {"text": {"width": True}},
        {"text": {"width": None}},
        {"text": {"of": [3]}},
        {"text": {"of": [-2]}},
        {"text": {"of": None}},
        {"text": {"of": [2**30, 0]}},
    ],
)
def test_a_sample_that_does_not_fit_its_bytes_is_refused(change: Any) -> None:
    """Names twice or none, text that is none, shapes and widths that do not go together."""
    with pytest.raises(DecodeError):
        list(decode_events(block_of_sample(change)))


def test_one_long_text_among_many_short_ones_is_no_bomb() -> None:
    """numpy would give each of a hundred thousand texts the width of the longest: 400 GB from 1 MB."""
    change = {"text": {"of": [100_000], "width": 1_000_000}}

    for arrays in (True, False):
        with pytest.raises(DecodeError) as caught:
            list(decode_events(block_of_sample(change), arrays=arrays))
        assert caught.value.kind == "size"


def rows_message(change: dict[str, Any] | None = None, columns: np.ndarray | None = None) -> Message:
    columns = np.array([[0.0], [NAN], [NAN], [0.0], [1.0]]) if columns is None else columns
    part = {"t": "metrics", "n": 1, "per": "batch", "names": ["loss"], "b": 1} | (change or {})
    return decode_block(encode_block(ME, RECORDS, 1, 0, [part], [encode_array(columns)]).frames)[1]


@pytest.mark.parametrize(
    "change",
    [
        {"per": "day"}, {"per": None}, {"per": ["batch"]}, {"names": None}, {"names": "loss"}, {"names": [""]},
        {"names": [1]}, {"names": ["a", "b"]}, {"names": []}, {"names": ["x" * 300]}, {"b": 0}, {"b": 2}, {"b": -1},
        {"b": "1"}, {"b": True}, {"n": 2}, {"names": ["a", "a"], "columns": 6},
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_their_columns_are_refused(change: dict[str, Any]) -> None:
    """Names, kind and number must agree with the array."""
    columns = np.zeros((change.pop("columns", 5), 1))
    with pytest.raises(DecodeError):
        list(decode_events(rows_message(change, columns)))


@pytest.mark.parametrize("row", [0, 1, 2, 3])
@pytest.mark.parametrize("value", [math.inf, -math.inf, 2.0**53, -1e300, NAN])
def test_steps_epochs_batches_and_times_must_be_numbers(row: int, value: float) -> None:
    """An epoch or batch may be absent; nothing else may be NaN, and nothing may be too large to be whole."""
    columns = np.zeros((5, 1))
    columns[row] = value
    fits = (row in (1, 2) and math.isnan(value)) or (row == 3 and math.isfinite(value))

    if fits:
        [(_, rows)] = decode_events(rows_message(columns=columns))
        assert list(explode(rows))
    else:
        with pytest.raises(DecodeError):
            list(decode_events(rows_message(columns=columns)))


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"text": 5}, {"text": "x", "level": "loud"}, {"text": "x", "time": "now"}, {"text": "x", "step": 1.5},
        {"text": "x", "step": True}, {"text": "x", "step": 2**53}, {"text": None}, [], "x", None,
    ],
)  # fmt: skip
def test_fields_of_the_wrong_type_are_refused(fields: Any) -> None:
    """A number that is a text, a step that is half one, a level that is none."""
    block = encode_block(ME, RECORDS, 1, 0, [{"t": "log", "f": fields}])

    with pytest.raises(DecodeError):
        list(decode_events(decode_block(block.frames)[1]))


ODD = st.none() | st.booleans() | st.integers(-2, 9) | st.floats(-1, 1) | st.sampled_from(["", "a", [], [0, 2]])
WORDS = ["metrics", "log", "sample", "run_started", "run_ended", "described", "dropped", "alert", "?"]
KEYS = ["time", "step", "name", "text", "tags", "values", "what", "status", "count", "arrays", "rank"]
PARTS = st.fixed_dictionaries(
    {"t": st.sampled_from(WORDS)},
    optional={
        "n": st.integers(1, 3), "b": ODD, "per": ODD | st.just("batch"), "names": ODD | st.just(["loss"]),
        "f": ODD | st.dictionaries(
            st.sampled_from(KEYS),
            ODD | st.just("config") | st.just("finished") | st.just({"a": 1}),
        ),
    },
)  # fmt: skip
HEADERS = st.fixed_dictionaries(
    {"dtype": st.just("|u1"), "shape": st.just([4])},
    optional={"as": st.sampled_from(["text", "fields", 3]), "name": ODD, "of": ODD, "width": ODD},
)


@given(st.lists(PARTS, min_size=1, max_size=3), st.lists(HEADERS, max_size=3), st.sampled_from([b"abcd", b"{}  "]))
def test_any_parts_read_or_are_refused(parts: list[Any], headers: list[Any], data: bytes) -> None:
    """Nothing but DecodeError comes out of a block that is well-formed and senseless."""
    message = decode_block(encode_block(ME, RECORDS, 1, 0, parts, [(h, data) for h in headers]).frames)[1]

    for arrays in (True, False):
        try:
            for _, event in decode_events(message, arrays=arrays):
                if isinstance(event, MetricRows):
                    list(explode(event))
        except DecodeError:
            pass


def test_the_helpers_blocks_are_read_as_they_are_meant() -> None:
    """The rows that the tests of the machines send are rows."""
    [(seq, rows)] = decode_events(decode_block(records(4, 3).frames)[1])

    assert (seq, [m.values["loss"] for m in explode(rows)]) == (4, [4.0, 5.0, 6.0])


def test_blocks_that_say_the_same_are_read_apart() -> None:
    """What their text says is worked out once; their numbers, places and checks are each block's own."""
    found: list[Any] = []
    for first in (1, 3, 5):
        part, buffers = encode_rows(["loss"], "batch", [(first, 0, 0, 1.0), (first + 1, 0, 0, 2.0)], [[0.5], [first]])
        block = encode_block(ME, RECORDS, first, 0, [part | {"b": 1}], buffers)
        found.extend(
            (seq, rows.names, rows.columns.tolist()) for seq, rows in decode_events(decode_block(block.frames)[1])
        )

    assert found == [
        (first, ("loss",), [[first, first + 1], [0, 0], [0, 0], [1, 2], [0.5, first]]) for first in (1, 3, 5)
    ]


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [(0, np.nan, "step"), (0, 2.0**53, "step"), (3, np.inf, "step or time"), (2, 2.0**60, "batch")],
)
def test_rows_that_were_good_once_do_not_vouch_for_the_next(column: int, value: float, told: str) -> None:
    """The second block says what the first said, with one number that is none."""
    columns = np.ones((5, 3))
    for spoilt in (False, True):
        columns[column, 1] = value if spoilt else 1.0
        part, buffers = encode_rows(["loss"], "batch", columns[:4].T.tolist(), columns[4:].T.tolist())
        message = decode_block(encode_block(ME, RECORDS, 1, 0, [part | {"b": 1}], buffers).frames)[1]
        if spoilt:
            with pytest.raises(DecodeError, match=told):
                list(decode_events(message))
        else:
            assert len(list(decode_events(message))) == 1

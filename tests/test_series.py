"""Tests of ``fitwire.watch.series``: columns that grow, and what of a curve fits a screen."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fitwire.watch.series import Columns, Curve, decimate

NAN, INF = float("nan"), float("inf")


def rows(count: int, width: int = 1, start: int = 0) -> np.ndarray:
    """As they travel: step, epoch, batch, time, then values that are 10 times the step and the metric's number."""
    steps = np.arange(start, start + count, dtype=float)
    values = [steps * 10 + index for index in range(width)]
    return np.array([steps, np.full(count, NAN), np.full(count, NAN), steps + 0.5, *values])


def test_rows_come_back_as_they_went_in_however_often_the_memory_grew() -> None:
    """Steps, epochs, batches, times, sequence numbers and values, NaN and infinity included."""
    columns = Columns(["loss", "odd"], "batch")
    pieces = [rows(n, 2, start) for n, start in ((1, 0), (3, 1), (1000, 4), (2, 1004))]
    pieces[2][5, 7:9] = NAN, -INF
    for piece, seq in zip(pieces, (1, 2, 10, 2000), strict=True):
        columns.append(piece, seq)

    assert len(columns) == 1006
    np.testing.assert_array_equal(columns.rows(), np.concatenate(pieces, axis=1))
    np.testing.assert_array_equal(columns.rows(3, 7), np.concatenate(pieces, axis=1)[:, 3:7])
    np.testing.assert_array_equal(columns.of("odd")[4], [1, 2, 3, 4, *range(10, 1010), 2000, 2001])
    np.testing.assert_array_equal(columns.of("odd")[5], np.concatenate(pieces, axis=1)[5])


def test_what_was_read_before_does_not_change_when_more_comes() -> None:
    """A reader on another thread holds a view of the old memory, and it stays as it was."""
    columns = Columns(["loss"], "batch")
    columns.append(rows(5), 1)
    view, copy = columns.values("loss", 0, 5), columns.rows()
    before = view.copy()
    for start in range(5, 500, 5):
        columns.append(rows(5, 1, start), start + 1)

    np.testing.assert_array_equal(view, before)
    np.testing.assert_array_equal(columns.rows(0, 5), copy)


def test_the_newest_and_the_place_of_a_number_are_found() -> None:
    """By sequence number, also where some are missing between."""
    columns = Columns(["a", "b"], "epoch")
    columns.append(rows(3, 2), 5)
    columns.append(rows(2, 2, 3), 20)

    assert columns.newest("b") == (21.0, 41.0)
    assert [columns.place(seq, 0, 5) for seq in (0, 4, 5, 7, 10, 20, 21, 99)] == [0, 0, 1, 3, 3, 4, 5, 5]
    assert columns.place(0, 2, 5) == 2
    assert "a" in columns
    assert "c" not in columns


def test_a_set_that_was_told_once_takes_no_more_than_its_row() -> None:
    """A peer that names its metrics anew each time must not make the hub keep sixty-four times what it sent."""
    columns = Columns(["a"], "batch")
    columns.append(rows(1), 1)

    assert columns._data.nbytes == 6 * 8


def test_a_curve_says_its_last_value() -> None:
    """NaN when there is none."""
    nothing = np.empty(0)
    curve = Curve("loss", "batch", np.arange(2), np.zeros(2), np.zeros(2), np.array([3.0, 0.25]))

    assert curve.last == 0.25
    assert "2 points, last 0.25" in repr(curve)
    assert np.isnan(Curve("loss", "batch", nothing, nothing, nothing, nothing).last)


# -- decimate


def test_a_spike_of_one_point_in_a_million_is_seen() -> None:
    """Its column's greatest value is the spike; the mean hardly knows of it."""
    x, values = np.arange(1_000_000), np.zeros(1_000_000)
    values[123_456] = 7.0
    seen = decimate(x, values, 100)

    assert seen.high.tolist().count(7.0) == 1
    assert seen.high[12] == 7.0
    assert seen.mean[12] < 0.001
    assert len(seen.x) == 100


def test_nan_and_infinity_leave_a_mark_and_spoil_nothing() -> None:
    """The finite values of the column are still drawn; a column of nothing else is NaN and broken."""
    seen = decimate(np.arange(6), np.array([1.0, NAN, 2.0, INF, NAN, NAN]), 3)

    assert seen.broken.tolist() == [True, True, True]
    np.testing.assert_array_equal(seen.low, [1.0, 2.0, NAN])
    np.testing.assert_array_equal(seen.high, [1.0, 2.0, NAN])
    np.testing.assert_array_equal(seen.mean, [1.0, 2.0, NAN])


def test_points_in_any_order_are_sorted_first() -> None:
    """A run that went back draws the same as one that did not."""
    x = np.array([3.0, 0.0, 2.0, 1.0])
    mixed, sorted_ = decimate(x, x * 2, 4), decimate(np.sort(x), np.sort(x) * 2, 4)

    np.testing.assert_array_equal(mixed.mean, sorted_.mean)


def test_bounds_cut_and_an_empty_screen_is_empty() -> None:
    """Only what is within the bounds; nothing at all when nothing is."""
    x = np.arange(100)

    assert decimate(x, x.astype(float), 10, (20, 29)).high.max() == 29.0
    assert decimate(x, x.astype(float), 10, (20.5, 20.9)).x.size == 0
    assert decimate(x, x.astype(float), 10, (200, 300)).x.size == 0
    assert decimate(x[:0], x[:0].astype(float), 10).broken.dtype == bool


def test_one_column_and_one_point_are_enough() -> None:
    """Fewer than one column is one; equal places share one."""
    assert decimate(np.array([5]), np.array([2.0]), 0).mean.tolist() == [2.0]
    assert decimate(np.array([5, 5, 5]), np.array([1.0, 2.0, 6.0]), 7).mean.tolist() == [3.0]


def test_points_at_no_place_are_left_out() -> None:
    """The epochs of a loop that tells of none are NaN."""
    seen = decimate(np.array([NAN, 0.0, INF, 1.0]), np.array([9.0, 1.0, 9.0, 2.0]), 2)

    assert seen.mean.tolist() == [1.0, 2.0]
    assert decimate(np.full(3, NAN), np.ones(3), 2).x.size == 0


def test_the_mean_of_huge_values_stays_among_them() -> None:
    """Their sum overflows; the mean must not be drawn at infinity."""
    seen = decimate(np.arange(4), np.full(4, 1.5e308), 1)

    assert seen.mean.tolist() == [1.5e308]


@given(
    hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(-1e6, 1e6) | st.sampled_from([NAN, INF, -INF])),
    st.integers(1, 50),
    st.data(),
)
def test_extremes_are_never_lost(values: np.ndarray, columns: int, data: st.DataObject) -> None:
    """Whatever the width: the least and the greatest finite value are drawn, and no more columns than asked for."""
    x = np.array(data.draw(st.lists(st.integers(-1000, 1000), min_size=len(values), max_size=len(values))))
    seen = decimate(x, values, columns)
    finite = values[np.isfinite(values)]

    assert 1 <= len(seen.x) <= columns
    assert seen.broken.any() == (len(finite) < len(values))
    if len(finite):
        assert (np.nanmin(seen.low), np.nanmax(seen.high)) == (finite.min(), finite.max())

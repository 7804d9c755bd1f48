"""Curves and pictures in a terminal's cells."""

from __future__ import annotations

import numpy as np
import pytest

from fitwire.views.canvas import bars, line_dots, paint, plot, sketch
from fitwire.views.panels import Chart, chart
from test_panels import FakeRun, curve


def drawn(values: object, width: int = 10) -> Chart:
    """A chart of one curve, reduced to the dots of ``width`` cells."""
    found = chart(FakeRun(curve("loss", values)), 2 * width)
    assert found is not None
    return found


def dots(values: object, width: int = 10, height: int = 4) -> np.ndarray:
    """The dots of one curve."""
    found = drawn(values, width)
    return line_dots(found.lines[0], found, width, height)


def test_a_falling_curve_falls_from_corner_to_corner() -> None:
    """First value top left, last bottom right; a dot in every column."""
    found = dots(np.linspace(1, 0, 100))

    assert found[0, 0] and found[-1, -1]
    assert found.any(axis=0).all()


def test_a_steep_curve_is_one_stroke() -> None:
    """Each column touches the one before it, however far the value jumps."""
    found = dots(np.tile([0.0, 1.0], 10))
    for left, right in zip(found.T[:-1], found.T[1:], strict=True):
        rows, beside = np.flatnonzero(left), np.flatnonzero(right)
        assert rows.min() <= beside.max() + 1 and beside.min() <= rows.max() + 1


def test_columns_without_a_point_are_bridged() -> None:
    """Two epochs make a line, not two dots."""
    found = dots([1.0, 0.0], width=20)

    assert found.any(axis=0).all()


def test_a_nan_breaks_the_line() -> None:
    """Nothing is drawn where nothing is known."""
    values = np.r_[np.ones(10), np.full(10, np.nan), np.zeros(10)]
    empty = ~dots(values, width=15).any(axis=0)

    assert empty[10:20].all()
    assert not empty[:10].any() and not empty[20:].any()


def test_a_spike_reaches_the_top() -> None:
    """One point in a hundred thousand."""
    values = np.zeros(100_000)
    values[54_321] = 1.0

    assert dots(values)[0].sum() == 1


@pytest.mark.parametrize(("width", "height"), [(10, 3), (36, 8), (80, 24), (200, 60)])
def test_a_chart_has_exactly_the_size_asked_for(width: int, height: int) -> None:
    """Neighbours in a frame stay where they are."""
    run = FakeRun(
        curve("loss", np.geomspace(1000, 1e-9, 500)), curve("val_loss", [5.0, np.nan], "epoch", steps=[100, 499])
    )
    found = chart(run, 2 * width)
    assert found is not None
    lines = plot(found, width, height)

    assert len(lines) == height
    assert all(line.cell_len <= width for line in lines)


def test_labels_stand_beside_their_values() -> None:
    """Names with their newest value above, values at the left, steps below."""
    found = drawn(np.linspace(1, 0, 131), 40)
    text = [line.plain for line in plot(found, 40, 10)]

    assert "loss 0" in text[0]
    assert any(line.lstrip().startswith("1┤") for line in text[1:3])
    assert text[-1].split()[0] == "0" and "step" in text[-1]


def test_a_missing_number_leaves_a_mark_on_the_axis() -> None:
    """A red cross at its step."""
    values = np.linspace(1, 0, 100)
    values[50] = np.nan

    assert plot(drawn(values, 20), 20, 8)[-2].plain.count("×") == 1


def test_without_colour_each_line_ends_in_its_letter() -> None:
    """Else nobody could tell them apart."""
    run = FakeRun(curve("loss", np.linspace(1, 0, 100)), curve("val_loss", np.linspace(0.9, 0.5, 100)))
    found = chart(run, 60)
    assert found is not None
    text = "\n".join(line.plain for line in plot(found, 30, 10, colour=False))

    assert "t loss" in text and "v val_loss" in text
    assert text.count("t") - text.split("\n")[0].count("t") == 2  # the curve's and that of "step"


def test_a_hostile_name_is_a_name() -> None:
    """Neither its commands nor its markup are obeyed."""
    found = chart(FakeRun(curve("\x1b]0;x\x07[red]loss[/red]", [1.0, 2.0])), 20)
    assert found is not None
    title = plot(found, 60, 5)[0]

    assert "[red]loss[/red]" in title.plain
    assert "\x1b" not in title.plain


def test_a_half_block_is_two_pixels() -> None:
    """The upper one in the foreground, the lower one behind it."""
    pixels = np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8)
    (line,) = paint(pixels, 1, 1)

    assert line.plain == "▀"
    assert str(line.spans[0].style) == "#ff0000 on #0000ff"


def test_an_odd_picture_ends_in_black() -> None:
    """Three rows of pixels are two lines."""
    assert len(paint(np.full((3, 3, 3), 255, np.uint8), 3, 2)) == 2


def test_without_colour_a_picture_is_in_shades() -> None:
    """From nothing to full, two pixels a cell."""
    pixels = np.repeat(np.linspace(0, 255, 5).astype(np.uint8)[None, :, None], 2, axis=0).repeat(3, axis=2)

    assert [line.plain for line in sketch(pixels, 5, 1)] == [" ░▒▓█"]


def test_bars_keep_the_greatest_of_those_they_join() -> None:
    """A hundred classes in ten cells still show the one that stands out."""
    values = np.zeros(100)
    values[37] = 1.0

    assert bars(values, 10).plain == "   █      "

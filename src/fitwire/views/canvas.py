"""Curves as braille and pictures as half blocks: what ``panels.py`` and ``pictures.py`` say, in a terminal's cells.

A cell holds two by four dots of a curve, or two pixels of a picture, one above the other. Without colour a picture is
drawn in five shades, and lines are told apart by their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.text import Text

from fitwire.protocol.arrays import Array
from fitwire.views.display import NAME, display, number
from fitwire.views.panels import Chart, Line
from fitwire.views.pictures import fit

__all__ = ["COLOURS", "bars", "paint", "plot", "sketch"]

COLOURS = {"train": "cyan", "val": "yellow", "label": "bright_black", "bad": "red"}
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""Bits of a braille cell by row and column of its dots (Unicode, 2800)."""
_SHADES = " ░▒▓█"
_BARS = " ▁▂▃▄▅▆▇█"


def line_dots(line: Line, chart: Chart, width: int, height: int) -> Array:
    """Dots of one line: bool ``(4 * height, 2 * width)``.

    Columns without a point are bridged, unless a NaN stands between; each column is joined to the one before it, so
    that a steep curve stays one stroke.
    """
    rows, columns = 4 * height, 2 * width
    dots = np.zeros((rows, columns), bool)
    points, (left, right), (low, high) = line.points, chart.x, chart.y
    drawn = np.isfinite(points.low)
    if not drawn.any():
        return dots

    def row_of(values: Array) -> Array:
        return np.rint((rows - 1) * (1 - np.clip((values - low) / (high - low), 0, 1))).astype(int)

    at = np.clip(((points.x - left) / (right - left) * columns).astype(int), 0, columns - 1)
    top, bottom = row_of(points.high[drawn]), row_of(points.low[drawn])
    previous: tuple[int, int, int] | None = None
    ends = zip(at[drawn].tolist(), top.tolist(), bottom.tolist(), np.flatnonzero(drawn).tolist(), strict=True)
    for column, upper, lower, index in ends:
        whole = index == 0 or not points.broken[index - 1] or np.isfinite(points.low[index - 1])
        if previous is not None and whole:
            then, was_upper, was_lower = previous
            middle, was_middle = (upper + lower) / 2, (was_upper + was_lower) / 2
            for between in range(then + 1, column):
                place = was_middle + (middle - was_middle) * (between - then) / (column - then)
                dots[round(place), between] = True
            dots[min(upper, was_lower) : max(lower, was_upper) + 1, column] |= column - then <= 1
            if column - then > 1:
                near = round(was_middle + (middle - was_middle) * (column - then - 1) / (column - then))
                dots[min(upper, near) : max(lower, near) + 1, column] = True
        dots[upper : lower + 1, column] = True
        previous = (column, upper, lower)
    return dots


def _cells(dots: Array) -> Array:
    """Dots to braille code points: int ``(height, width)``."""
    height, width = dots.shape[0] // 4, dots.shape[1] // 2
    blocks = dots.reshape(height, 4, width, 2).transpose(0, 2, 1, 3)
    return 0x2800 + (blocks * _DOTS).sum(axis=(2, 3))


def plot(chart: Chart, width: int, height: int, colour: bool = True) -> list[Text]:
    """Draw a chart in exactly ``height`` lines of ``width`` cells: a title, the curves with their labels, the steps.

    Without colour each line ends in a letter, which the title explains.
    """
    labels = [number(value) for value in chart.y_ticks]
    margin = max([len(label) for label in labels], default=0) + 1
    inner, tall = max(4, width - margin), max(1, height - 2)
    grid = np.full((tall, inner), 0x2800)
    owner = np.full((tall, inner), -1)
    marks = np.zeros(inner, bool)
    for index, line in enumerate(chart.lines):
        cells = _cells(line_dots(line, chart, inner, tall))
        mine = cells != 0x2800
        grid[mine], owner[mine] = cells[mine], index
        if not colour and mine.any():
            column = int(np.flatnonzero(mine.any(axis=0))[-1])
            grid[np.flatnonzero(mine[:, column])[0], column] = ord(line.role[0])
        broken = line.points.x[line.points.broken]
        left, right = chart.x
        marks[np.clip(((broken - left) / (right - left) * inner).astype(int), 0, inner - 1)] = True
    begins = np.zeros(inner, bool)
    for step in chart.resumed:
        left, right = chart.x
        begins[min(inner - 1, int((step - left) / (right - left) * inner))] = True
    low, high = chart.y
    at = {round((tall - 1) * (1 - (value - low) / (high - low))): label
          for value, label in zip(chart.y_ticks, labels, strict=True)}  # fmt: skip
    lines = [_title(chart, width, colour)]
    for row in range(tall):
        text = Text(f"{at.get(row, ''):>{margin - 1}}" + ("┤" if row in at else "│"), style=COLOURS["label"])
        for column in range(inner):
            if row == tall - 1 and marks[column]:
                text.append("×", style=COLOURS["bad"])
            elif owner[row, column] < 0:
                text.append("┊" if begins[column] else " ", style=COLOURS["label"])
            else:
                text.append(chr(grid[row, column]), style=COLOURS[chart.lines[int(owner[row, column])].role])
        lines.append(text)
    return [*lines, _steps(chart, width, margin, inner)]


def _title(chart: Chart, width: int, colour: bool) -> Text:
    text = Text()
    for line in chart.lines:
        text.append("  " if text else "")
        text.append("━ " if colour else f"{line.role[0]} ", style=COLOURS[line.role])
        text.append(f"{display(line.name, NAME)} {number(line.last)}")
    text.truncate(width, overflow="ellipsis")
    return text


def _steps(chart: Chart, width: int, margin: int, inner: int) -> Text:
    left, right = chart.x
    line = list(" " * width)
    free = 0
    for value in chart.x_ticks:
        label = number(value)
        start = margin + round((inner - 1) * (value - left) / (right - left)) - len(label) // 2
        start = max(margin, min(start, width - len(label)))
        if start >= free:
            line[start : start + len(label)] = label
            free = start + len(label) + 2
    if free + 5 <= width:
        line[-4:] = "step"
    return Text("".join(line), style=COLOURS["label"])


@lru_cache(maxsize=16384)
def _pair(upper: tuple[int, int, int], lower: tuple[int, int, int]) -> Style:
    return Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))


def paint(pixels: Array, width: int, height: int) -> list[Text]:
    """A picture in colour, at most ``width`` cells by ``height`` lines: a half block is two pixels."""
    pixels = fit(pixels, width, 2 * height)
    if len(pixels) % 2:
        pixels = np.concatenate((pixels, np.zeros_like(pixels[:1])))
    lines: list[Text] = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        text = Text()
        for one, other in zip(upper, lower, strict=True):
            text.append("▀", style=_pair(tuple(one), tuple(other)))
        lines.append(text)
    return lines


def sketch(pixels: Array, width: int, height: int) -> list[Text]:
    """The same without colour: five shades, a cell is two pixels high."""
    pixels = fit(pixels, width, 2 * height)
    if len(pixels) % 2:
        pixels = np.concatenate((pixels, np.zeros_like(pixels[:1])))
    level = (pixels @ np.array([0.299, 0.587, 0.114])).reshape(len(pixels) // 2, 2, -1).mean(axis=1) / 255
    shade = np.minimum((level * len(_SHADES)).astype(int), len(_SHADES) - 1)
    return [Text("".join(_SHADES[index] for index in row)) for row in shade.tolist()]


def bars(values: Sequence[float] | Array, width: int, style: str = "") -> Text:
    """Values from 0 to 1 as one line of bars, at most ``width`` of them; more are joined by their greatest."""
    levels = np.asarray(values, dtype=np.float64)
    if len(levels) > width:
        levels = np.maximum.reduceat(levels, np.linspace(0, len(levels), width, endpoint=False).astype(int))
    steps = np.rint(levels * (len(_BARS) - 1)).astype(int)
    return Text("".join(_BARS[max(0, min(step, len(_BARS) - 1))] for step in steps.tolist()), style=style)

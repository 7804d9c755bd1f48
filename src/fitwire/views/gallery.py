"""The newest sample of a run as lines of a terminal: pictures with their roles, classes as bars, verdicts in words."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from fitwire.errors import FitwireError
from fitwire.views import canvas
from fitwire.views.display import NAME, display
from fitwire.views.pictures import Tile, tiles
from fitwire.watch.monitor import WatchedRun

__all__ = ["draw_samples"]

DIM = "bright_black"
MOST_EXAMPLES = 12
SEVERAL = 4
"""Examples that should fit side by side before a picture is drawn greater."""
LOWEST = 4
"""Lines of a picture, with which those of one role make a row; lower ones stand side by side by example."""
SPACIOUS = 5
"""Lines of a picture with which there is room for an empty one between two rows."""
SMALLEST = 7
"""Cells that a picture and the gap beside it take at least."""


def _newest(run: WatchedRun) -> tuple[str, list[list[Tile]]]:
    """The newest sample that can be had: what to call it, and its examples."""
    newest = [run.samples(name)[-1] for name in run.sample_names]
    for sample in sorted(newest, key=lambda sample: sample.time, reverse=True):
        try:
            examples = tiles(sample.arrays, MOST_EXAMPLES)
        except FitwireError:  # the store has let go of it, or the hub is away: the view goes on without
            continue
        where = "" if sample.step is None else f" at step {sample.step + 1:,}"
        return f"{display(sample.name, NAME)}{where}", examples
    return "", []


def draw_samples(run: WatchedRun, width: int, height: int, colour: bool) -> list[Text]:
    """The newest sample in at most ``height`` lines: a row a role if that fits, else the roles side by side."""
    title, examples = _newest(run) if height >= 4 and run.sample_names else ("", [])
    if not examples:
        return []
    painted = [tile for tile in examples[0] if tile.pixels is not None]
    if not painted:
        return [Text(title, style=DIM), *(_words(one, width) for one in examples[: height - 1])]
    label = max(len(display(tile.role, 12)) for tile in examples[0]) + 1
    words = any(tile.pixels is None for tile in examples[0])
    room, gaps = height - 1 - words, len(painted) - 1
    gap = room - gaps >= SPACIOUS * len(painted)
    each = (room - gaps * gap) // len(painted)
    if each >= LOWEST:
        return [Text(title, style=DIM), *_stacked(examples, width, each, label, colour, gap)]
    return _abreast(title, examples, width, height - 1, colour)


def _draw(tile: Tile, width: int, height: int, colour: bool) -> list[Text]:
    if tile.pixels is None:
        return []
    return canvas.paint(tile.pixels, width, height) if colour else canvas.sketch(tile.pixels, width, height)


def _stacked(examples: list[list[Tile]], width: int, each: int, label: int, colour: bool, gap: bool) -> list[Text]:
    """A row for each role, a column for each example; a picture is as great as leaves room for several."""
    wanted = min(SEVERAL, len(examples))
    cell = max(SMALLEST, (width - label) // wanted)
    drawn = [[_draw(tile, cell - 1, each, colour) for tile in example] for example in examples]
    cell = max(len(line) for example in drawn for picture in example for line in picture[:1]) + 1
    count = max(1, min(len(examples), (width - label) // cell))
    lines: list[Text] = []
    for place, tile in enumerate(examples[0]):
        pictures = [example[place] for example in drawn[:count]]
        if tile.pixels is None:
            texts = [_short(example[place], cell - 1) for example in examples[:count]]
            lines.append(_across([display(tile.role, 12), *texts], [label, *[cell] * count]))
            continue
        if gap and lines:
            lines.append(Text())
        for row in range(max(map(len, pictures))):
            name = display(tile.role, 12) if row == 0 else ""
            parts = [picture[row] if row < len(picture) else Text() for picture in pictures]
            lines.append(_across([name, *parts], [label, *[cell] * count]))
    return lines


def _abreast(title: str, examples: list[list[Tile]], width: int, height: int, colour: bool) -> list[Text]:
    """The pictures of an example side by side, example after example, words behind."""
    blocks: list[list[Text]] = []
    sizes: list[int] = []
    cell = max(SMALLEST, (width // 2 - 1) // sum(tile.pixels is not None for tile in examples[0]) - 1)
    for example in examples:
        parts = [(tile.role, _draw(tile, cell, height, colour)) for tile in example if tile.pixels is not None]
        widths = [len(lines[0]) + 1 for _, lines in parts]
        total = sum(widths) + 1
        if blocks and sum(sizes) + total > width:
            break
        tall = max(len(lines) for _, lines in parts)
        block = [
            _across([lines[row] if row < len(lines) else Text() for _, lines in parts], widths) for row in range(tall)
        ]
        blocks.append(block)
        sizes.append(total)
    roles = " · ".join(display(tile.role, 12) for tile in examples[0] if tile.pixels is not None)
    head = Text(f"{title}: {roles}", style=DIM)
    head.truncate(width, overflow="ellipsis")
    tall = max(map(len, blocks))
    return [head, *(_across([b[row] if row < len(b) else Text() for b in blocks], sizes) for row in range(tall))]


def _short(tile: Tile, width: int) -> Text:
    """Words under a picture: ``3 ✓`` where the whole sentence does not fit."""
    mark = "" if tile.right is None else " ✓" if tile.right else " ✗"
    words = tile.text if len(tile.text) + len(mark) <= width else tile.text.split(" ")[-1]
    text = Text(words + mark, style="" if tile.right is None else "green" if tile.right else "red")
    if not tile.text and tile.bars is not None:
        text = canvas.bars(tile.bars, width)
    text.truncate(width, overflow="ellipsis")
    return text


def _words(example: Sequence[Tile], width: int) -> Text:
    """An example that is no picture, in a line."""
    line = Text()
    for tile in example:
        line.append("   " if line else "")
        judged = "" if tile.right is None else " ✓" if tile.right else " ✗"
        line.append(tile.text if tile.right is not None or not tile.text else f"{display(tile.role, 12)} {tile.text}")
        line.append(judged, style="green" if tile.right else "red")
        if tile.bars is not None:
            line.append(" " if tile.text else f"{display(tile.role, 12)} ")
            line.append_text(canvas.bars(tile.bars, 32, "cyan"))
    line.truncate(width, overflow="ellipsis")
    return line


def _across(parts: Sequence[Text | str], widths: Sequence[int]) -> Text:
    line = Text()
    for part, width in zip(parts, widths, strict=True):
        text = Text(part, style=DIM) if isinstance(part, str) else part
        line.append_text(text)
        line.append(" " * max(0, width - text.cell_len))
    return line

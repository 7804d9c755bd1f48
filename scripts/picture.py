"""Draw docs/assets/demo.svg from a real demo: ``python scripts/picture.py``.

Trains as ``fitwire demo`` does, takes the frame that the terminal view draws when the training is this far, and writes
it as an SVG in which blocks, braille and bars are shapes. It needs no font but any monospaced one, and refers to
nothing elsewhere.
"""

from __future__ import annotations

import argparse
import io
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from pathlib import Path

from rich.color import Color
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import TerminalTheme

from fitwire.demo import FRAMEWORKS, await_run, start
from fitwire.views.text import draw
from fitwire.watch.monitor import Monitor

WIDTH, HEIGHT = 100, 34
CELL, LINE = 8.4, 17.0
"""Size of a cell in pixels of the picture."""
MARGIN = 14.0
INK, PAPER = (214, 220, 228), (17, 21, 28)
THEME = TerminalTheme(
    PAPER,
    INK,
    [(17, 21, 28), (240, 100, 110), (120, 200, 110), (235, 190, 90), (100, 150, 240), (200, 130, 220), (80, 200, 215),
     (214, 220, 228)],
    [(110, 120, 135), (240, 100, 110), (120, 200, 110), (235, 190, 90), (100, 150, 240), (200, 130, 220),
     (80, 200, 215), (255, 255, 255)],
)  # fmt: skip
# Two by four dots of a braille cell: bit, column, row.
DOTS = ((0x01, 0, 0), (0x02, 0, 1), (0x04, 0, 2), (0x08, 1, 0), (0x10, 1, 1), (0x20, 1, 2), (0x40, 0, 3), (0x80, 1, 3))
BARS = "━─╸╺"
AXES = "│┤"


def main() -> None:
    """Train, wait until it is far enough, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "path", nargs="?", type=Path, default=Path(__file__).parents[1] / "docs" / "assets" / "demo.svg"
    )
    parser.add_argument("--framework", choices=FRAMEWORKS, default="keras")
    parser.add_argument("--at", type=float, default=0.6, help="share of the training that is to be done, 0 to 1")
    args = parser.parse_args()
    args.path.write_text(picture(frame(args.framework, args.at)), encoding="utf-8")


def frame(framework: str, at: float) -> list[list[Segment]]:
    """The lines of a frame of a real training, when ``at`` of it is done."""
    with start(framework, None, None) as (training, monitor):
        run = await_run(training, monitor, frozenset(), lambda waited: None)
        revision = -1
        while (run.progress.fraction or 0.0) < at and not run.ended:
            revision = monitor.wait_for_change(revision, 1.0)
        return lines_of(monitor)


def lines_of(monitor: Monitor) -> list[list[Segment]]:
    """What the terminal view draws now."""
    console = Console(file=io.StringIO(), width=WIDTH, height=HEIGHT, force_terminal=True, color_system="truecolor")
    drawn = draw(monitor.runs, monitor.address, WIDTH, HEIGHT)
    return console.render_lines(drawn, console.options, pad=False)


def picture(lines: list[list[Segment]]) -> str:
    """The lines as an SVG."""
    shapes: dict[str, list[str]] = defaultdict(list)
    texts: list[str] = []
    for row, line in enumerate(lines):
        for column, char, style in cells(line):
            draw_cell(shapes, MARGIN + column * CELL, MARGIN + row * LINE, char, style)
        texts += words(line, MARGIN + row * LINE)
    width, height = 2 * MARGIN + WIDTH * CELL, 2 * MARGIN + len(lines) * LINE
    paths = [f'<path fill="{colour}" d="{"".join(pieces)}"/>' for colour, pieces in shapes.items()]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"'
            ' aria-label="fitwire watching a training in a terminal">',
            f'<rect width="{width:g}" height="{height:g}" rx="8" fill="{hexed(PAPER)}"/>',
            '<g font-family="\'DejaVu Sans Mono\', Menlo, Consolas, monospace" font-size="13.6">',
            *texts,
            "</g>",
            '<g shape-rendering="crispEdges">',
            *paths,
            "</g>",
            "</svg>",
            "",
        ]
    )


def cells(line: list[Segment]) -> Iterator[tuple[int, str, Style]]:
    """Column, character and style of each cell."""
    column = 0
    for segment in line:
        for char in segment.text:
            yield column, char, segment.style or Style.null()
            column += 1


def is_shape(char: str) -> bool:
    """Whether it is drawn as a shape: fonts do not agree on where blocks and dots are."""
    return char == "▀" or char in BARS + AXES or 0x2800 <= ord(char) < 0x2900


def draw_cell(shapes: dict[str, list[str]], x: float, y: float, char: str, style: Style) -> None:
    """Add a cell's shapes to those of their colour."""
    ink = hexed(colour(style.color, True))
    if char == "▀":
        shapes[ink].append(box(x, y, CELL, LINE / 2))
        shapes[hexed(colour(style.bgcolor, False))].append(box(x, y + LINE / 2, CELL, LINE / 2))
    elif char in BARS:
        shapes[ink].append(box(x, y + LINE / 2 - 1, CELL, 2))
    elif char in AXES:
        shapes[ink].append(box(x + CELL / 2, y, 1, LINE))
        if char == "┤":
            shapes[ink].append(box(x, y + LINE / 2, CELL / 2, 1))
    elif 0x2800 <= ord(char) < 0x2900:
        for bit, right, down in DOTS:
            if (ord(char) - 0x2800) & bit:
                shapes[ink].append(box(x + (0.7 + right * CELL / 2), y + 1 + down * LINE / 4, 2.6, 2.6))


def words(line: list[Segment], y: float) -> Iterator[str]:
    """The rest as text, each piece exactly over its cells."""
    column = 0
    for segment in line:
        text = "".join(" " if is_shape(char) else char for char in segment.text)
        bare = text.strip()
        if bare:
            at = column + len(text) - len(text.lstrip())
            style = segment.style or Style.null()
            weight = ' font-weight="bold"' if style.bold else ""
            ink = hexed(colour(style.color, True))
            yield (
                f'<text x="{MARGIN + at * CELL:g}" y="{y + 0.76 * LINE:g}" textLength="{len(bare) * CELL:g}"'
                f' lengthAdjust="spacingAndGlyphs" xml:space="preserve" fill="{ink}"{weight}>'
                f"{escape(bare)}</text>"
            )
        column += len(text)


def box(x: float, y: float, width: float, height: float) -> str:
    """A rectangle of a path."""
    return f"M{x:.4g} {y:.4g}h{width:.4g}v{height:.4g}h-{width:.4g}z"


def colour(chosen: Color | None, ink: bool) -> tuple[int, int, int]:
    """Red, green and blue."""
    return tuple((chosen or Color.default()).get_truecolor(THEME, foreground=ink))


def hexed(rgb: tuple[int, int, int]) -> str:
    """As SVG writes it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


if __name__ == "__main__":
    main()

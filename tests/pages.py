"""The pages that people read, and what the tests need to find in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCS", "PAGES", "ROOT", "Block", "blocks", "name_of", "without_code"]

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(
    r"(?P<comment><!--(?P<words>[^>]*)-->[ ]*\n)?"
    r"(?P<indent>[ ]*)```(?P<language>\w+)[^\n]*\n(?P<code>.*?\n)(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: As the fence names it.
        code: Its lines, without the indentation that they share with the fence.
        line: Of the page, from 1, where the code begins.
        fragment: Whether a comment above says that it is not to be run: ``<!-- fragment: why -->``.
    """

    language: str
    code: str
    line: int
    fragment: bool


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in order."""
    return [block for block in _blocks(page.read_text("utf-8")) if block.language in languages]


def _blocks(text: str) -> Iterator[Block]:
    for match in _FENCE.finditer(text):
        indent = match["indent"]
        code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(match["language"], code, line, (match["words"] or "").strip().startswith("fragment"))


def without_code(page: Path) -> str:
    """The page's prose, where brackets are links."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text("utf-8")))


def name_of(page: Path) -> str:
    """Its path as people write it, e.g. ``docs/tutorial.md``."""
    return page.relative_to(ROOT).as_posix()

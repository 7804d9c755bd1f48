"""Texts and numbers as a terminal may show them.

Names, notes and tracebacks come from peers: they are data, and a terminal obeys what it is sent. Whatever is shown as
text goes through :func:`display` once, here; JSON output needs none of it, since it escapes all but plain ASCII.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import cast

from fitwire.watch.states import duration

__all__ = ["LINE", "NAME", "display", "display_lines", "display_value", "duration", "number"]

NAME = 40
"""Characters of a name in a table or a heading."""
LINE = 400
"""Characters of a line of text."""
MAX_RAW = 65536
"""Characters looked at: whoever sends more than that in one line is not read to its end."""
MAX_MARKS = 3
"""Combining marks on one character; hundreds of them paint over the neighbouring lines."""

# Whole sequences go, not only their first byte: what is left of them would be noise. OSC, DCS, APC, PM and SOS end with
# BEL or ST; one that never ends is cut where the text ends. 0x80 to 0x9f are the same commands in one byte.
_SEQUENCES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
)
_PLAIN = re.compile(r"[ -~]*")
_SPACES = frozenset("\t\n\r\v\f\x85\u2028\u2029")
# Letters by their category that paint nothing: a name made of them looks like none.
_BLANKS = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_GONE = frozenset({"Cc", "Cf"})
_STRANGE = frozenset({"Cs", "Co", "Cn"})


def display(text: object, limit: int = LINE) -> str:
    """Make a text safe to print in one line of at most ``limit`` characters.

    Terminal commands, control, bidirectional and zero-width characters go; line breaks and tabs become spaces; what has
    no meaning of its own (half a surrogate, private use) becomes ``�``; what is cut ends in ``…``.

    Args:
        text: From a peer or anywhere else.
        limit: Characters kept, at least 1.

    Example:
        >>> display("\\x1b]0;owned\\x07loss\\u202e\\n", 10)
        'loss'
    """
    raw = str(text)
    long = len(raw) > MAX_RAW
    raw = raw[:MAX_RAW]
    if _PLAIN.fullmatch(raw) is None:
        raw = "".join(_clean(_SEQUENCES.sub("", raw)))
    raw = raw.strip()
    return raw[: limit - 1] + "…" if long or len(raw) > limit else raw


def _clean(raw: str) -> list[str]:
    kept: list[str] = []
    marks = 0
    for char in raw:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if char in _SPACES or category == "Zs":
            kept.append(" ")
        elif category in _STRANGE:
            kept.append("�")
        elif category not in _GONE and char not in _BLANKS and marks <= MAX_MARKS:
            kept.append(char)
    return kept


def display_lines(text: object, limit: int = LINE, most: int = 1000) -> list[str]:
    """The same for a text of several lines, e.g. a traceback; indentation is kept, the last ``most`` lines are."""
    found: list[str] = []
    for line in str(text)[-MAX_RAW:].splitlines()[-most:]:
        indent = len(line) - len(line.lstrip(" "))
        found.append(" " * min(indent, 40) + display(line, limit))
    return found


def display_value(value: object, limit: int = LINE) -> str:
    """A value of a config or a description: numbers short, mappings and lists in one line."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "none"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return display(", ".join(f"{key} {display_value(inner, limit)}" for key, inner in items), limit)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return display(", ".join(display_value(inner, limit) for inner in cast("Sequence[object]", value)), limit)
    return display(value, limit)


def number(value: float) -> str:
    """A number in at most nine characters, four digits of it.

    Example:
        >>> [number(x) for x in (0.0123456, 12.0, 3e-05, 1234567.0, float("nan"))]
        ['0.01235', '12', '3e-05', '1.235e+06', 'nan']
    """
    if not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 100_000:
        return str(int(value))
    if 1000 <= abs(value) < 100_000:
        return f"{value:.1f}"  # 1234.5678 as 1235 would hide that it is no whole number
    return f"{value:.4g}"

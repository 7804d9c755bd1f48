"""The one line at the start, the one at the end, and the warnings between: all that a training's terminal hears."""

from __future__ import annotations

import os
import sys

__all__ = ["say"]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}


def say(level: str, line: str) -> None:
    """Write one line to stderr.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``; ``FITWIRE_LOG_LEVEL`` (one of these, or ``off``) says from
            which level on lines are written, ``info`` when it is not set.
        line: Its text.
    """
    asked = os.environ.get("FITWIRE_LOG_LEVEL", "info").strip().lower()
    if _LEVELS[level] < _LEVELS.get(asked, _LEVELS["info"]):
        return
    stream = sys.stderr
    try:
        # One write: lines of several ranks share a terminal.
        stream.write(
            f"fitwire: {line}\n".encode(stream.encoding or "utf-8", "replace").decode(stream.encoding or "utf-8")
        )
        stream.flush()
    except (OSError, ValueError, AttributeError, LookupError):  # closed, absent or odd: no reason to stop a training
        pass

"""SLEAP's dialects ⇄ fitwire's events: what its trainers say, what its windows understand, and what may be asked.

``words`` are the messages themselves, ``trainers`` makes events of what a SLEAP training says, ``viewers`` makes what a
LossViewer understands of a fitwire training. All of it is pure: no socket, no thread, no clock.
"""

from __future__ import annotations

from fitwire.sleap.trainers import Training
from fitwire.sleap.viewers import Show
from fitwire.sleap.words import (
    Dialect,
    Order,
    Word,
    parse_ports,
    read_order,
    read_word,
    write_order,
    write_word,
)

__all__ = [
    "Dialect",
    "Order",
    "Show",
    "Training",
    "Word",
    "parse_ports",
    "read_order",
    "read_word",
    "write_order",
    "write_word",
]

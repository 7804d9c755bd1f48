"""What the tests of the mapped ring share: rings with records in them, and what comes back."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fitwire.events import Dropped, Event, MetricRows, Sample, decode_events, explode
from fitwire.journal.ring import recover
from fitwire.protocol.blocks import BULK, RECORDS, Block, Identity, decode_block
from fitwire.train.mapped import Ring
from fitwire.train.packer import Row

WHO = Identity(b"ring-of-one-run!", 7, 2)
SMALL = 64 * 2**10


def row(step: int, **values: float) -> Row:
    """A row as the hot path makes it."""
    return 1000.0 + step, step, 0, step, "batch", values or {"loss": step / 2, "accuracy": 1.0}


def ring_with(folder: Path, records: Sequence[Any], size: int = SMALL) -> Ring:
    """A ring that was given these."""
    ring = Ring(folder, WHO, deque(), size)
    for record in records:
        ring.append(record)
    return ring


def said(blocks: Sequence[Block]) -> list[Any]:
    """What blocks say, row by row, in order of the lanes; their numbers are checked on the way."""
    found: list[Any] = []
    for lane in (RECORDS, BULK):
        following = None
        for block in (block for block in blocks if block.lane == lane):
            assert following is None or block.first == following
            following = block.last + 1
            whole, message = decode_block(block.frames)
            assert whole.count == block.count and whole.sender == WHO
            for _, event in decode_events(message):
                found.extend(explode(event) if isinstance(event, MetricRows) else [event])
    return found


def plainly(events: Sequence[Event]) -> list[Any]:
    """Events as values that can be compared, NaN with NaN; the order of names in a row says nothing."""
    plain: list[Any] = []
    for event in events:
        fields = {key: getattr(event, key) for key in event.__dataclass_fields__}
        if isinstance(event, Sample):
            fields["arrays"] = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in event.arrays.items()}
        elif "values" in fields:
            fields["values"] = sorted((k, repr(v)) for k, v in event.values.items())
        plain.append((type(event).__name__, sorted((key, repr(value)) for key, value in fields.items())))
    return plain


def steps(events: Sequence[Any]) -> list[int | None]:
    """Step of each; of a tombstone minus what it stands for."""
    return [-event.count if isinstance(event, Dropped) else event.step for event in events]


def recovered(folder: Path, after: int = 0, firsts: Sequence[int] = (1, 1)) -> tuple[list[Any], Counter[str]]:
    """What a killed trainer's ring gives, and the faults that were counted."""
    faults: Counter[str] = Counter()
    blocks = recover(folder, WHO, after, firsts, faults)
    assert all(block.count <= 256 or len(said([block])) == 1 for block in blocks)
    return said(blocks), faults


def same(a: float, b: float) -> bool:
    """Equal to the bit, as far as it can be seen."""
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))

"""Blocks made of other blocks: what was given up leaves a tombstone at its own place, small neighbours become one.

Pure. A tombstone of metrics keeps how many values there were, the least, the greatest, their mean and the last. Events
and the values of whole epochs are never given up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from fitwire.errors import EncodeError
from fitwire.events import COLUMNS, Dropped, MetricRows, encode_event, encode_rows
from fitwire.journal.stones import Pairs, opened
from fitwire.protocol.arrays import Array
from fitwire.protocol.blocks import (
    MAX_BUFFERS,
    MAX_RECORDS,
    Block,
    decode_json,
    decode_message,
    encode_block,
)

__all__ = ["MANY", "collapse", "fold", "merge", "name_of_sample", "stone"]

MANY = 256
"""Records in a block made of several."""
MANY_BYTES = 48 * 2**10
MAX_NAMES = 64
"""Metrics whose summary a tombstone keeps."""


def stone(like: Block, dropped: Dropped, first: int | None = None) -> Block:
    """A block of one tombstone, in the place of ``like`` or, beginning at ``first``, of several."""
    part, buffers = encode_event(dropped)
    at = like.first if first is None else first
    return encode_block(like.sender, like.lane, at, time.time_ns(), [part | _taking(buffers)], buffers)


def _taking(buffers: Pairs) -> dict[str, int]:
    return {"b": len(buffers)} if buffers else {}


def name_of_sample(block: Block) -> str:
    """What the sample in a block shows; empty when there is none, or its fields are long."""
    for part in cast("list[dict[str, Any]]", decode_json(bytes(block.frames[1])).get("parts", [])):
        fields = cast("object", part.get("f"))
        if part.get("t") == "sample" and isinstance(fields, dict):
            return str(cast("dict[str, object]", fields).get("name"))
    return ""


def collapse(block: Block, reason: str) -> tuple[Block, Dropped | None, int]:
    """A block of the record lane without its batch metrics and gauges.

    Returns:
        The block in its place; its tombstone when it holds nothing else; and how many records were given up.
    """
    message = decode_message(block.frames)
    parts: list[dict[str, Any]] = []
    kept: Pairs = []
    waiting: Dropped | None = None
    gone = 0
    for _, part, own, event in opened(message):
        if isinstance(event, MetricRows) and event.per != "epoch":
            gone += len(event)
            one = _summary(event, reason)
            waiting = one if waiting is None else fold(waiting, one)
            continue
        if waiting is not None:
            _add(parts, kept, *encode_event(waiting))
            waiting = None
        _add(parts, kept, part, own)
    if waiting is not None and not parts:
        return stone(block, waiting), waiting, gone
    if waiting is not None:
        _add(parts, kept, *encode_event(waiting))
    if not gone:
        return block, None, 0
    return encode_block(block.sender, block.lane, block.first, message.wall_ns, parts, kept), None, gone


def _add(parts: list[dict[str, Any]], kept: Pairs, part: dict[str, Any], buffers: Pairs) -> None:
    plain = {key: value for key, value in part.items() if key != "b"}
    parts.append(plain | _taking(buffers))
    kept.extend(buffers)


def _summary(rows: MetricRows, reason: str) -> Dropped:
    values: dict[str, Any] = {}
    for name, column in zip(rows.names[:MAX_NAMES], rows.columns[len(COLUMNS) :], strict=False):
        finite = column[np.isfinite(column)]
        if len(finite):
            with np.errstate(over="ignore"):
                mean = float(finite.mean())
            if np.isfinite(mean):
                values[name] = [len(finite), float(finite.min()), float(finite.max()), mean, float(finite[-1])]
    steps = rows.columns[0]
    return Dropped(
        time=float(rows.columns[3][-1]), count=len(rows), what="gauges" if rows.per == "time" else "metrics",
        reason=reason, first_step=int(steps.min()), last_step=int(steps.max()), values=values,
    )  # fmt: skip


def fold(one: Dropped, other: Dropped) -> Dropped:
    """Two tombstones that follow each other, as one."""
    values: dict[str, Any] = dict(one.values)
    for name, (n, low, high, mean, last) in other.values.items():
        if name in values:
            m, least, most, average, _ = values[name]
            values[name] = [m + n, min(least, low), max(most, high), average + (mean - average) * n / (m + n), last]
        elif len(values) < MAX_NAMES:
            values[name] = [n, low, high, mean, last]
    steps = [s for s in (one.first_step, one.last_step, other.first_step, other.last_step) if s is not None]
    return Dropped(
        time=other.time, count=one.count + other.count, reason=other.reason,
        what=one.what if one.what == other.what else "metrics",
        first_step=min(steps, default=None), last_step=max(steps, default=None), values=values,
    )  # fmt: skip


def merge(blocks: Sequence[Block]) -> Block | None:
    """Neighbours as one block, rows of one metric set joined; None when that would be too much for one."""
    count = sum(block.count for block in blocks)
    if count > MAX_RECORDS:
        return None
    parts: list[dict[str, Any]] = []
    kept: Pairs = []
    rows: list[MetricRows] = []

    def close() -> None:
        if rows:
            columns: Array = np.concatenate([r.columns for r in rows], axis=1)
            index, values = columns[: len(COLUMNS)].T, columns[len(COLUMNS) :].T
            _add(parts, kept, *encode_rows(rows[0].names, rows[0].per, cast(Any, index), cast(Any, values)))
            rows.clear()

    wall = decode_message(blocks[0].frames).wall_ns
    for block in blocks:
        for _, part, own, event in opened(decode_message(block.frames)):
            if isinstance(event, MetricRows):
                if rows and (rows[-1].names, rows[-1].per) != (event.names, event.per):
                    close()
                rows.append(event)
            else:
                close()
                _add(parts, kept, part, own)
    close()
    if len(kept) > MAX_BUFFERS:
        return None
    try:
        return encode_block(blocks[0].sender, blocks[0].lane, blocks[0].first, wall, parts, kept)
    except EncodeError:
        return None


def in_bundles(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Neighbours that may become one block each."""
    bundle: list[Block] = []
    count = size = 0
    for block in blocks:
        if bundle and (count + block.count > MANY or size + block.nbytes > MANY_BYTES):
            yield bundle
            bundle, count, size = [], 0, 0
        bundle.append(block)
        count += block.count
        size += block.nbytes
    if bundle:
        yield bundle

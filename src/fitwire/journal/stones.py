"""Blocks that stand for others: for what the disk lost, and for the rest of one that was taken in part.

Pure. What is made twice of the same journal is the same to the byte, so that checksums agree whoever delivers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from fitwire.errors import DecodeError
from fitwire.events import COLUMNS, Dropped, MetricRows, decode_events, encode_event, encode_rows
from fitwire.protocol.blocks import MAX_RECORDS, Block, Buffer, Identity, Message, encode_block

__all__ = ["DAMAGED", "Pairs", "damaged_stone", "opened", "rest_of"]

DAMAGED = "damaged on disk"
"""Why records are missing that a journal once held."""

Pairs = list[tuple[dict[str, Any], Buffer]]


def damaged_stone(sender: Identity, lane: int, first: int, last: int, wall_ns: int) -> Block:
    """A tombstone for records ``first`` to ``last``, or as many as one may stand for.

    Args:
        sender: Whose they were.
        lane: 0 for records, 1 for samples.
        first: Sequence number of the first.
        last: Sequence number of the last.
        wall_ns: Unix nanoseconds near which they were made, as far as that is known.
    """
    count = min(last - first + 1, MAX_RECORDS)
    part, buffers = encode_event(Dropped(time=wall_ns / 1e9, count=count, what="records", reason=DAMAGED))
    return encode_block(sender, lane, first, wall_ns, [part | {"b": len(buffers)}], buffers)


def opened(message: Message) -> Iterator[tuple[int, dict[str, Any], Pairs, object]]:
    """Each part of a block: its first sequence number, itself, its buffers, and what it says.

    What it says is None of a part whose type is not known, and of all from one that breaks the rules.
    """
    headers = cast("list[dict[str, Any]]", message.body["buffers"])
    pairs: Pairs = list(zip(headers, message.buffers, strict=True))
    said: dict[int, object] = {}
    try:
        for number, event in decode_events(message, arrays=False):
            said[number] = event
    except DecodeError:
        pass
    number, at = message.seq, 0
    for part in cast("list[dict[str, Any]]", message.body["parts"]):
        taken = cast(int, part.get("b", 0))
        yield number, part, pairs[at : at + taken], said.get(number)
        at, number = at + taken, number + cast(int, part.get("n", 1))


def rest_of(block: Block, message: Message, seq: int) -> Block:
    """What a block holds from record ``seq`` on: a hub has what is before, which came in another block."""
    parts: list[dict[str, Any]] = []
    kept: Pairs = []
    for number, part, own, event in opened(message):
        count, beyond = cast(int, part.get("n", 1)), seq - number
        if beyond >= count:
            continue
        if beyond > 0:
            part, own = _later(part, event, beyond, count)
        parts.append({**part, "b": len(own)})
        kept.extend(own)
    return encode_block(block.sender, block.lane, seq, message.wall_ns, parts, kept)


def _later(part: dict[str, Any], event: object, beyond: int, count: int) -> tuple[dict[str, Any], Pairs]:
    """A part of several records without the first ``beyond`` of them."""
    if isinstance(event, MetricRows):
        columns = event.columns[:, beyond:]
        index, values = columns[: len(COLUMNS)].T, columns[len(COLUMNS) :].T
        return encode_rows(event.names, event.per, cast(Any, index), cast(Any, values))
    if isinstance(event, Dropped):
        left = Dropped(time=event.time, count=count - beyond, what=event.what, reason=event.reason)
    else:
        left = Dropped(count=count - beyond, what="records", reason=DAMAGED)
    return encode_event(left)

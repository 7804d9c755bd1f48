"""Where a source's blocks lie until the hub has committed them: here, in memory.

The journal takes the same interface (``protocol.source.Backlog`` plus :meth:`MemoryBacklog.append`). Under pressure the
oldest samples go first, each lane within its own budget, then the oldest batch metrics and gauges; never events and
epochs. Each victim leaves a tombstone with its own sequence numbers, so that what was given up is itself a record. This
module knows no socket and no thread: one thread calls it.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import Any, cast

from fitwire.events import Dropped, encode_event
from fitwire.protocol.blocks import BULK, LANES, MAX_RECORDS, Block, Buffer, decode_message, encode_block

__all__ = ["BULK_BYTES", "RECORD_BYTES", "MemoryBacklog"]

BULK_BYTES = 64 * 2**20
"""Samples kept in memory when nobody takes them."""
RECORD_BYTES = 256 * 2**20
"""Metrics and events kept in memory: some four million rows of four values."""
WHY = "no hub took it in time: memory budget"


class MemoryBacklog:
    """Blocks by lane, in order, within a budget.

    A block that was handed out is never changed: a part of it may be under way.

    Args:
        bulk_bytes: Budget of the sample lane.
        record_bytes: Budget of the record lane.

    Attributes:
        dropped: Per lane, records that were given up.
    """

    def __init__(self, bulk_bytes: int = BULK_BYTES, record_bytes: int = RECORD_BYTES) -> None:
        self.dropped = [0 for _ in LANES]
        self._budget = [record_bytes, bulk_bytes]
        self._blocks: list[OrderedDict[int, Block]] = [OrderedDict() for _ in LANES]
        self._heavy: list[deque[int]] = [deque() for _ in LANES]
        self._stone: list[Block | None] = [None for _ in LANES]
        self._lent = [0 for _ in LANES]
        self._head = [0 for _ in LANES]
        self._size = [0 for _ in LANES]

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(self._size)

    def first(self, lane: int) -> int:
        """Lowest sequence number still kept; ``head + 1`` when there is none."""
        return next(iter(self._blocks[lane]), self._head[lane] + 1)

    def head(self, lane: int) -> int:
        """Highest sequence number written."""
        return self._head[lane]

    def read(self, lane: int, seq: int) -> Block | None:
        """The block that begins at ``seq``, or None."""
        block = self._blocks[lane].get(seq)
        if block is not None:
            self._lent[lane] = max(self._lent[lane], block.last)
        return block

    def trim(self, lane: int, upto: int) -> None:
        """Forget blocks whose last sequence number is at most ``upto``."""
        blocks, heavy = self._blocks[lane], self._heavy[lane]
        while blocks:
            first, block = next(iter(blocks.items()))
            if block.last > upto:
                break
            del blocks[first]
            self._size[lane] -= block.nbytes
        while heavy and heavy[0] <= upto:
            heavy.popleft()

    def append(self, block: Block) -> None:
        """Keep a block whose first sequence number is ``head + 1``; give up the oldest if that is too much."""
        lane = block.lane
        if block.first != self._head[lane] + 1:
            raise ValueError(f"block {block.first} after record {self._head[lane]}")
        self._blocks[lane][block.first] = block
        self._heavy[lane].append(block.first)
        self._head[lane] = block.last
        self._size[lane] += block.nbytes
        while self._size[lane] > self._budget[lane] and len(self._heavy[lane]) > 1:
            self._give_up(lane, self._heavy[lane].popleft())

    def _give_up(self, lane: int, first: int) -> None:
        victim = self._blocks[lane].get(first)
        if victim is None or first <= self._lent[lane]:
            return
        stone, gone = _tombstone(victim)
        if not gone:
            return
        self.dropped[lane] += gone
        former = self._stone[lane]
        pure = gone == victim.count
        if (
            pure
            and former is not None
            and former.first > self._lent[lane]
            and former.last + 1 == first
            and former.count + gone <= MAX_RECORDS
        ):
            # One stone for many: where a block holds a single row, its own would weigh as much.
            del self._blocks[lane][first]
            self._size[lane] -= victim.nbytes
            victim, stone = former, _stone(victim, former.first, former.count + gone)
        self._blocks[lane][stone.first] = stone
        self._size[lane] += stone.nbytes - victim.nbytes
        self._stone[lane] = stone if pure else None


def _stone(like: Block, first: int, count: int) -> Block:
    part, buffers = encode_event(_dropped(like.lane, count))
    return encode_block(like.sender, like.lane, first, time.time_ns(), [part], buffers)


def _dropped(lane: int, count: int) -> Dropped:
    return Dropped(time=time.time(), count=count, what="sample" if lane == BULK else "metrics", reason=WHY)


def _tombstone(victim: Block) -> tuple[Block, int]:
    """The block without what can be given up, and how many records that were."""
    if victim.lane == BULK:
        return _stone(victim, victim.first, victim.count), victim.count
    message = decode_message(victim.frames)
    headers = cast("list[dict[str, Any]]", message.body["buffers"])
    pairs = list(zip(headers, message.buffers, strict=True))
    parts: list[dict[str, Any]] = []
    kept: list[tuple[dict[str, Any], Buffer]] = []
    gone = at = 0
    for part in cast("list[dict[str, Any]]", message.body["parts"]):
        taken = int(part.get("b", 0))
        if part["t"] == "metrics" and part["per"] != "epoch":
            count = int(part["n"])
            gone += count
            if parts and parts[-1]["t"] == "dropped" and parts[-1].get("f", {}).get("reason") == WHY:
                count += int(parts.pop()["n"])
            parts.append(encode_event(_dropped(victim.lane, count))[0])
        else:
            parts.append(part)
            kept.extend(pairs[at : at + taken])
        at += taken
    return encode_block(victim.sender, victim.lane, victim.first, message.wall_ns, parts, kept), gone

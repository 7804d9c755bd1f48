"""Where a source's blocks lie until the hub has committed them: here, in memory.

The journal takes the same interface (``protocol.source.Backlog`` plus :meth:`append`). Under pressure the oldest
samples go first, then the oldest metrics; each victim leaves a tombstone with its own sequence numbers, so that what was
given up is itself a record. This module knows no socket and no thread: one thread calls it.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from fitwire.events import Dropped, encode_event
from fitwire.protocol.blocks import BULK, LANES, Block, encode_block

__all__ = ["BULK_BYTES", "RECORD_BYTES", "MemoryBacklog"]

BULK_BYTES = 64 * 2**20
"""Samples kept in memory when nobody takes them."""
RECORD_BYTES = 256 * 2**20
"""Metrics and events kept in memory: some five million rows of four values."""


class MemoryBacklog:
    """Blocks by lane, in order, within a budget.

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
        self._heavy: list[OrderedDict[int, int]] = [OrderedDict() for _ in LANES]
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
        return self._blocks[lane].get(seq)

    def trim(self, lane: int, upto: int) -> None:
        """Forget blocks whose last sequence number is at most ``upto``."""
        blocks = self._blocks[lane]
        while blocks:
            first, block = next(iter(blocks.items()))
            if block.last > upto:
                return
            del blocks[first]
            self._heavy[lane].pop(first, None)
            self._size[lane] -= block.nbytes

    def append(self, block: Block) -> None:
        """Keep a block whose first sequence number is ``head + 1``; give up the oldest if that is too much."""
        lane = block.lane
        if block.first != self._head[lane] + 1:
            raise ValueError(f"block {block.first} after record {self._head[lane]}")
        self._blocks[lane][block.first] = block
        self._heavy[lane][block.first] = block.nbytes
        self._head[lane] = block.last
        self._size[lane] += block.nbytes
        while self._size[lane] > self._budget[lane] and len(self._heavy[lane]) > 1:
            self._bury(lane)

    def _bury(self, lane: int) -> None:
        first, nbytes = self._heavy[lane].popitem(last=False)
        victim = self._blocks[lane][first]
        what = "sample" if lane == BULK else "metrics"
        gone = Dropped(time=time.time(), count=victim.count, what=what, reason="no hub took it in time: memory budget")
        part, buffers = encode_event(gone)
        stone = encode_block(victim.sender, lane, victim.first, time.time_ns(), [part], buffers)
        self._blocks[lane][first] = stone
        self._size[lane] += stone.nbytes - nbytes
        self.dropped[lane] += victim.count

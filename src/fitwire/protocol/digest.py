"""A rolling checksum over the blocks of one lane: two ends that got the same blocks in the same order agree on it.

Pure. Of each block it takes the sequence number, the count and the block's own CRC32, which covers all its bytes and is
checked wherever a block is read: so it costs no second walk over an array.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable

from fitwire.protocol.blocks import Block, checksum_of

__all__ = ["RollingSum", "fold"]

_STEP = struct.Struct("<QII")


def fold(value: int, first: int, count: int, crc: int) -> int:
    """The checksum with one more block.

    Args:
        value: Of the blocks before it; 0 for the first.
        first: Sequence number of its first record.
        count: Records in it.
        crc: The block's own CRC32, as frame 1 says it.
    """
    return zlib.crc32(_STEP.pack(first, count, crc), value)


class RollingSum:
    """Of one lane, over the blocks that a hub has committed.

    Attributes:
        since: Sequence number after which it begins: 0, unless what was before is gone, or is another store's.
        upto: Sequence number of the last record that is in it.
        value: It.
    """

    def __init__(self) -> None:
        self.since = self.upto = self.value = 0
        self._sent: deque[tuple[int, int, int]] = deque()

    def add(self, block: Block) -> None:
        """A block has left, maybe again."""
        while self._sent and self._sent[-1][0] >= block.first:
            self._sent.pop()
        if block.first > self.upto:
            self._sent.append((block.first, block.count, checksum_of(block)))

    def begin_after(self, upto: int) -> None:
        """What is before cannot be summed, e.g. as it lies in another store: this hub's begins behind it."""
        while self._sent and self._sent[0][0] <= upto:
            self._sent.popleft()
        self.since = self.upto = upto
        self.value = 0

    def settle(self, upto: int, read: Callable[[int], Block | None]) -> None:
        """The hub has committed all up to ``upto``.

        Args:
            upto: Sequence number.
            read: Gives the block that begins at a sequence number, for what an earlier courier or process sent.
        """
        while self.upto < upto:
            if self._sent and self._sent[0][0] == self.upto + 1:
                first, count, crc = self._sent.popleft()
            else:
                block = read(self.upto + 1)
                if block is None or block.last > upto:
                    self.begin_after(upto)
                    return
                first, count, crc = block.first, block.count, checksum_of(block)
            self.value = fold(self.value, first, count, crc)
            self.upto = first + count - 1

    def to_come(self) -> tuple[int, int]:
        """Since when, and what it will be once all that was sent is committed."""
        value = self.value
        for block in self._sent:
            value = fold(value, *block)
        return self.since, value

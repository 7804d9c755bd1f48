"""A link in memory that loses, delays, doubles and reorders, for tests: fitwire's own and its users'.

Time is a number handed in; chance comes from one seed, so a failing case can be run again.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Sequence

from fitwire.protocol.blocks import Buffer

__all__ = ["LossyLink"]


class LossyLink:
    """One direction of a bad network.

    Args:
        lost: Share of messages that never arrive, 0 to 1.
        doubled: Share that arrives twice.
        delay: Longest delay in seconds; each message draws its own, so that they overtake each other.
        lost_first: How many of the first messages to lose.
        flipped: Share in which one bit is flipped.
        seed: For the same chances again.

    Example:
        >>> link = LossyLink(lost_first=1)
        >>> link.send([b"a"], now=0.0); link.send([b"b"], now=0.0)
        >>> list(link.receive(now=0.0))
        [[b'b']]
    """

    def __init__(
        self,
        lost: float = 0.0,
        doubled: float = 0.0,
        delay: float = 0.0,
        *,
        lost_first: int = 0,
        flipped: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.lost, self.doubled, self.delay, self.flipped = lost, doubled, delay, flipped
        self.lost_first = lost_first
        self.sent = self.dropped = 0
        self._random = random.Random(seed)
        self._queue: list[tuple[float, int, list[bytes]]] = []
        self._order = itertools.count()

    def send(self, frames: Sequence[Buffer], now: float) -> None:
        """Put one message on the way; its bytes are copied."""
        self.sent += 1
        if self.lost_first > 0:
            self.lost_first -= 1
            self.dropped += 1
            return
        copies = 2 if self._random.random() < self.doubled else 1
        for _ in range(copies):
            if self._random.random() < self.lost:
                self.dropped += 1
                continue
            message = [bytes(frame) for frame in frames]
            if self._random.random() < self.flipped:
                self._flip(message)
            arrival = now + self._random.random() * self.delay
            heapq.heappush(self._queue, (arrival, next(self._order), message))

    def _flip(self, message: list[bytes]) -> None:
        index = self._random.randrange(len(message))
        if message[index]:
            spoilt = bytearray(message[index])
            spoilt[self._random.randrange(len(spoilt))] ^= 1 << self._random.randrange(8)
            message[index] = bytes(spoilt)

    def receive(self, now: float) -> Iterable[list[bytes]]:
        """Yield what has arrived by now."""
        while self._queue and self._queue[0][0] <= now:
            yield heapq.heappop(self._queue)[2]

    @property
    def next_arrival(self) -> float | None:
        """When the next message arrives, or None."""
        return self._queue[0][0] if self._queue else None

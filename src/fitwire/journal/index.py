"""Which entry of a journal holds which record: of those for the same records, the later one.

Pure: numbers go in and come out. Kept in arrays, 32 bytes an entry, because a month of a training that nobody watched
has millions of them.
"""

from __future__ import annotations

import bisect
import heapq
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fitwire.protocol.arrays import Array

__all__ = ["MAX_ENTRIES", "LaneIndex", "Place"]

MAX_ENTRIES = 2_000_000
"""Of one lane, in memory at once: 64 MB. A journal with more is delivered in several goes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one block lies.

    Attributes:
        first: Sequence number of its first record.
        count: Records in it.
        file: Number of the segment, or of nothing on disk for a negative ``start``.
        start: Where the packed block begins in it.
        size: Its bytes.
    """

    first: int
    count: int
    file: int
    start: int
    size: int

    @property
    def last(self) -> int:
        """Sequence number of its last record."""
        return self.first + self.count - 1


class LaneIndex:
    """The entries of one lane, added in the order in which they were written.

    Attributes:
        replaced: Entries that later ones stand for.
    """

    def __init__(self) -> None:
        self.replaced = 0
        self._firsts, self._starts = array("Q"), array("q")
        self._counts, self._files, self._sizes = array("L"), array("L"), array("L")  # 32 bits at least
        self._head = 0
        self._in_order = True

    def __len__(self) -> int:
        return len(self._firsts)

    def add(self, place: Place) -> None:
        """Take one entry."""
        self._in_order = self._in_order and place.first > self._head
        self._head = max(self._head, place.last)
        self._firsts.append(place.first)
        self._counts.append(place.count)
        self._files.append(place.file)
        self._starts.append(place.start)
        self._sizes.append(place.size)

    def settle(self, upto: int | None = None) -> None:
        """Put all in order, without what later entries stand for; before anything is asked.

        Args:
            upto: Entries that reach beyond this sequence number do not count; None to count all.
        """
        if self._in_order and (upto is None or self._head <= upto):
            return
        firsts = np.array(self._firsts, dtype=np.int64)
        lasts = firsts + np.array(self._counts, dtype=np.int64) - 1
        counted = np.arange(len(firsts)) if upto is None else np.flatnonzero(lasts <= upto)
        visible = _visible(firsts[counted], lasts[counted])
        self.replaced += len(counted) - len(visible)
        self._keep(counted[visible].tolist())

    def drop_from(self, index: int) -> None:
        """Forget the entries from ``index`` on."""
        self._keep(range(index))

    def _keep(self, keep: Sequence[int]) -> None:
        self._firsts = array("Q", [self._firsts[one] for one in keep])
        self._counts = array("L", [self._counts[one] for one in keep])
        self._files = array("L", [self._files[one] for one in keep])
        self._starts = array("q", [self._starts[one] for one in keep])
        self._sizes = array("L", [self._sizes[one] for one in keep])
        self._head = self[len(self) - 1].last if len(self) else 0
        self._in_order = True

    @property
    def head(self) -> int:
        """Highest sequence number; 0 when there is none."""
        return self._head

    def __getitem__(self, index: int) -> Place:
        return Place(
            self._firsts[index], self._counts[index], self._files[index], self._starts[index], self._sizes[index]
        )

    def before(self, seq: int) -> int:
        """Index of the last entry that begins at or before ``seq``; -1 when there is none."""
        return bisect.bisect_right(self._firsts, seq) - 1

    def bytes_after(self, seq: int) -> int:
        """Bytes of the blocks that begin after ``seq``."""
        return sum(self._sizes[bisect.bisect_right(self._firsts, seq) :])


def _visible(first: Array, last: Array) -> list[int]:
    """Indices of the ranges that no later one overlaps, in the order of their places.

    A sweep from the lowest place up: among the ranges that reach over the current place the newest silences the rest.
    """
    ages: list[int] = np.argsort(first, kind="stable").tolist()
    starts, lasts = first.tolist(), last.tolist()
    silenced = bytearray(len(starts))
    newest: list[int] = []  # of those that reach here, negative, so that the newest is on top
    oldest: list[int] = []
    for one in ages:
        while newest and lasts[-newest[0]] < starts[one]:
            heapq.heappop(newest)
        if newest and -newest[0] > one:
            silenced[one] = 1
        while oldest and oldest[0] < one:
            other = heapq.heappop(oldest)
            if lasts[other] >= starts[one]:
                silenced[other] = 1
        heapq.heappush(newest, -one)
        heapq.heappush(oldest, one)
    return [one for one in ages if not silenced[one]]

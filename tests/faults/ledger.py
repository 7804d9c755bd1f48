"""What the tests hold the store against: a file that knows, after any kill, which calls had returned.

A trainer bumps a counter in mapped memory after each call that came back, so the page cache has it whatever happens to
the process. What record ``n`` says follows from ``n`` alone: a lost, doubled, moved or changed one shows.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

__all__ = ["Ledger", "check_of", "pixels_of"]

NEVER = -1


def check_of(n: int | np.ndarray, life: int, slot: int) -> np.ndarray | float:
    """The value that record ``n`` of one thread of one process life must carry, exact in a float64."""
    numbers = np.asarray(n, np.uint64)
    mixed = numbers * np.uint64(2654435761) + np.uint64(life * 40503 + slot * 977 + 12345)
    return (mixed % np.uint64(2**32)).astype(np.float64) / 7.0


def pixels_of(n: int, size: int) -> np.ndarray:
    """The array that sample ``n`` must carry: uint32, ``(1, size // 4)``."""
    return np.full((1, size // 4), (n * 2654435761 + 1) % 2**32, np.uint32)


class Ledger:
    """One process life: per thread, how many calls returned, when, and how long the longest took.

    Args:
        path: Of the file.
        slots: Threads; None to open what is there.
        most: Calls of a thread that can be noted.
    """

    def __init__(self, path: str | Path, slots: int | None = None, most: int = 200_000) -> None:
        self.path = Path(path)
        if slots is not None:
            # Sparse: what is not written takes no room.
            with self.path.open("wb") as file:
                file.truncate(16 + slots * (64 + 8 * most))
            shape = np.memmap(self.path, np.uint64, "r+", shape=(2,))
            shape[:] = slots, most
        slots, most = (int(n) for n in np.memmap(self.path, np.uint64, "r", shape=(2,)))
        self._heads = np.memmap(self.path, np.int64, "r+", 16, (slots, 8))
        self._times = np.memmap(self.path, np.int64, "r+", 16 + slots * 64, (slots, most))
        self.slots = slots

    def returned(self, slot: int, index: int, began: int) -> None:
        """Call ``index`` (from 0) of a thread has returned; ``began`` in ns of the monotonic clock."""
        now = time.monotonic_ns()
        self._times[slot, index] = now
        if now - began > self._heads[slot, 1]:
            self._heads[slot, 1] = now - began
        self._heads[slot, 0] = index + 1

    def sampled(self, slot: int, number: int, began: int) -> None:
        """``number`` samples of a thread were accepted."""
        took = time.monotonic_ns() - began
        if took > self._heads[slot, 3]:
            self._heads[slot, 3] = took
        self._heads[slot, 2] = number

    def count(self, slot: int = 0) -> int:
        """Calls of ``log`` that returned."""
        return int(self._heads[slot, 0])

    def samples(self, slot: int = 0) -> int:
        """Calls of ``sample`` that returned."""
        return int(self._heads[slot, 2])

    def total(self) -> int:
        """Calls of ``log`` of all threads that returned."""
        return int(self._heads[:, 0].sum())

    def longest(self) -> float:
        """Seconds of the longest ``log``."""
        return float(self._heads[:, 1].max()) / 1e9

    def longest_sample(self) -> float:
        """Seconds of the longest ``sample``."""
        return float(self._heads[:, 3].max()) / 1e9

    def tail(self, slot: int, index: int) -> float:
        """Seconds between the return of call ``index`` and that of the last one."""
        count = self.count(slot)
        return float(self._times[slot, count - 1] - self._times[slot, index]) / 1e9 if index < count else 0.0

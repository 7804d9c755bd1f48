"""Memory for large blocks that are still arriving, used again once nobody reads the last one.

Fresh memory costs more than the bytes that are written to it, because the system clears every page first. This module
knows sizes only; what is in the memory is somebody else's.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from fitwire.protocol.arrays import Array

__all__ = ["Room"]

KEPT_BYTES = 512 * 2**20
"""Free memory that is kept at most, between two arrivals of one stream."""


class Room:
    """Gives memory, and takes it back when its last view is gone."""

    def __init__(self) -> None:
        self._free: list[Array] = []
        self._stale: list[Array] = []

    @property
    def free_bytes(self) -> int:
        """Bytes kept for the next."""
        return sum(base.nbytes for base in self._free + self._stale)

    def take(self, size: int) -> memoryview:
        """``size`` bytes that hold anything; no memory is touched that was not before."""
        base = self._fitting(size)
        if base is None:
            base = np.empty(size, np.uint8)
        view = base[:size]
        # Every memoryview made of it keeps ``view`` alive, so this runs when the last one is gone.
        weakref.finalize(view, self._take_back, base).atexit = False
        return view.data

    def settle(self) -> None:
        """Let go of what was not used since the last call: a hub says so every few seconds."""
        self._stale, self._free = self._free, []

    def _fitting(self, size: int) -> Array | None:
        for places in (self._free, self._stale):
            for index, base in enumerate(places):
                if size <= base.nbytes <= 2 * size:
                    return places.pop(index)
        return None

    def _take_back(self, base: Any) -> None:
        if self.free_bytes + base.nbytes <= KEPT_BYTES:
            self._free.append(base)

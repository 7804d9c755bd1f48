"""Tests of ``fitwire.protocol.room``."""

from __future__ import annotations

import numpy as np

from fitwire.protocol.room import Room


def place_of(view: memoryview) -> int:
    """Where it lies."""
    return np.frombuffer(view, np.uint8).__array_interface__["data"][0]


def test_memory_serves_again_once_nobody_reads_it() -> None:
    """Not while a slice of a slice of it is held, and not for what is far smaller."""
    room = Room()
    view = room.take(10_000_000)
    place, part = place_of(view), view[5_000_000:][:10]
    del view
    assert place_of(other := room.take(9_000_000)) != place
    assert room.free_bytes == 0
    del part
    assert room.free_bytes == 10_000_000
    assert place_of(room.take(1_000_000)) != place
    again = room.take(9_000_000)

    assert (place_of(again), len(again), len(other)) == (place, 9_000_000, 9_000_000)


def test_memory_that_nobody_needs_goes() -> None:
    """What was not used between two calls is let go; what is in use is not touched."""
    room = Room()
    used, unused = room.take(3_000_000), room.take(2_000_000)
    used[:3] = b"abc"
    del unused
    room.settle()
    assert room.free_bytes == 2_000_000
    room.settle()

    assert (room.free_bytes, bytes(used[:3])) == (0, b"abc")


def test_only_so_much_is_kept() -> None:
    """A burst of pictures leaves no mountain behind."""
    room = Room()
    views = [room.take(100 * 2**20) for _ in range(8)]
    views.clear()

    assert room.free_bytes == 500 * 2**20

"""Tests of ``fitwire.protocol.crc``."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from fitwire.protocol.crc import joined, tail_of


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_sum_of_joined_bytes_comes_from_the_sums_of_the_parts(first: bytes, second: bytes) -> None:
    """As zlib computes it over all the bytes, for empty parts too."""
    assert joined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_sum_of_the_end_comes_from_those_of_the_whole_and_the_start(first: bytes, second: bytes) -> None:
    """The way back."""
    assert tail_of(zlib.crc32(first + second), zlib.crc32(first), len(second)) == zlib.crc32(second)


def test_sums_of_large_parts_join() -> None:
    """Sizes of arrays, of which each bit counts, and sizes beyond any array."""
    second = bytes(range(256)) * 12_289
    whole = zlib.crc32(second, zlib.crc32(b"a"))

    assert joined(zlib.crc32(b"a"), zlib.crc32(second), len(second)) == whole
    # Moved past 2**31 bytes twice is moved past 2**32.
    half = joined(zlib.crc32(b"a"), 0, 2**31)
    assert joined(half, 0, 2**31) == joined(zlib.crc32(b"a"), 0, 2**32)

"""Sums over CRC32: of joined bytes from those of the parts, and of a part from that of the whole, without the bytes.

A large array is walked once at each end of the link, where its pieces and its block each need a checksum. This module
knows numbers only; the arithmetic is that of polynomials over two elements, as in zlib's ``crc32_combine``.
"""

from __future__ import annotations

import functools
import importlib
import zlib
from collections.abc import Callable
from contextlib import suppress

__all__ = ["crc32", "joined", "tail_of"]

crc32: Callable[[bytes | memoryview, int], int] = zlib.crc32
"""CRC32 of bytes, going on from that of the bytes before them (0 for none); by the optional package ``isal`` where it
is installed: the same numbers, up to nine times as fast."""
with suppress(ImportError):
    crc32 = importlib.import_module("isal.isal_zlib").crc32

_POLY = 0xEDB88320
"""CRC32's polynomial, lowest bit first, as zlib computes it."""


def _times(a: int, b: int) -> int:
    """``a * b`` modulo the polynomial, lowest bit first."""
    product, bit = 0, 1 << 31
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLY if b & 1 else b >> 1
    return product


# x to the power of 8 * 2**n: what moves a checksum past 2**n bytes.
_POWERS = [1 << 23]
while len(_POWERS) < 40:
    _POWERS.append(_times(_POWERS[-1], _POWERS[-1]))


@functools.lru_cache(maxsize=256)
def _past(size: int) -> int:
    """What a checksum is to be multiplied with to move it past ``size`` bytes."""
    power, n = 1 << 31, 0
    while size:
        if size & 1:
            power = _times(power, _POWERS[n])
        size >>= 1
        n += 1
    return power


def joined(first: int, second: int, size: int) -> int:
    """CRC32 of two pieces of bytes, one after the other.

    Args:
        first: CRC32 of the first piece.
        second: CRC32 of the second.
        size: Bytes of the second.

    Example:
        >>> import zlib
        >>> joined(zlib.crc32(b"fit"), zlib.crc32(b"wire"), 4) == zlib.crc32(b"fitwire")
        True
    """
    return _times(_past(size), first) ^ second


def tail_of(whole: int, first: int, size: int) -> int:
    """CRC32 of the second of two pieces.

    Args:
        whole: CRC32 of both, one after the other.
        first: CRC32 of the first.
        size: Bytes of the second.
    """
    return _times(_past(size), first) ^ whole

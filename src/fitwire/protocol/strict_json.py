"""JSON as the wire allows it: one object, and nothing that two parsers could read in two ways.

The standard library's parser with its hooks, because faster ones write NaN as null and let a key stand twice. This
module knows nothing of messages.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, cast

from fitwire.errors import DecodeError, EncodeError

__all__ = ["MAX_DEPTH", "MAX_HEADER_BYTES", "decode_json", "encode_json"]

Buffer = bytes | memoryview

MAX_HEADER_BYTES = 64 * 2**10
"""Frame 1's limit; longer text travels as a buffer."""
MAX_DEPTH = 16
"""Nesting of frame 1: nothing we say is deeper than 6, and a parser's stack is not a peer's to use."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DecodeError("json", "a key stands twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise DecodeError("json", f"number {text[:40]} overflows")
    return number


def _small_int(text: str) -> int:
    if len(text) > 20:
        raise DecodeError("json", f"number {text[:40]} overflows")
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise DecodeError("json", f"{text} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_float=_finite, parse_int=_small_int, parse_constant=_no_constant
)


def _check_tree(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise DecodeError("json", f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DecodeError("json", "a lone surrogate") from None
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            _check_tree(key, depth)
            _check_tree(item, depth + 1)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            _check_tree(item, depth + 1)


def decode_json(data: Buffer, limit: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """Parse one JSON object, strictly.

    Raises:
        DecodeError: Over ``limit`` bytes, not UTF-8, not an object, a key twice, NaN or Infinity, a number that
            overflows, a lone surrogate, or nesting deeper than 16.
    """
    if len(data) > limit:
        raise DecodeError("size", f"a JSON text of {len(data):,} bytes, at most {limit:,}")
    raw = bytes(data)
    try:
        value: object = _DECODER.decode(raw.decode())
    except DecodeError:
        raise
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DecodeError("json", f"not JSON: {str(error)[:80]}") from None
    if not isinstance(value, dict):
        raise DecodeError("json", "not a JSON object")
    # Walking costs more than parsing: only what could be deep, or hide a surrogate behind an escape, is walked.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH or b"\\u" in raw:
        _check_tree(cast(object, value), 1)
    return cast("dict[str, Any]", value)


def encode_json(body: dict[str, Any]) -> bytes:
    """Write one JSON object as UTF-8.

    Raises:
        EncodeError: NaN or infinity, a lone surrogate, or something JSON has no word for.
    """
    try:
        return json.dumps(body, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise EncodeError(f"cannot send {', '.join(map(str, body))[:80]!r}: {error}") from None

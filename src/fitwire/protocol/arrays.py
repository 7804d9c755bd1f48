"""One array ⇄ a small header and one C-order buffer.

Knows every awkward array; never builds a Python object out of bytes. It does not know what an array means (role, name)
nor how buffers travel.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fitwire.errors import DecodeError, EncodeError

__all__ = ["MAX_ARRAY_BYTES", "MAX_DIMS", "Array", "decode_array", "encode_array"]

Array = npt.NDArray[Any]

MAX_ARRAY_BYTES = 256 * 2**20
"""Largest array on the wire: a hostile header may not make the receiver reserve more than this."""

MAX_DIMS = 32
"""numpy's limit until 2.0, so that every numpy can rebuild what any numpy sent."""

# Kind and item size, in either byte order. No 'O' (pointers), 'V' (structures) or 'g' (its layout is the machine's).
_FIXED = {
    "b1",
    "i1", "i2", "i4", "i8",
    "u1", "u2", "u4", "u8",
    "f2", "f4", "f8",
    "c8", "c16",
}  # fmt: skip
# ml_dtypes' small floats have no numpy code of their own: they travel as the bits that hold them.
_TAGGED = {"bfloat16": "<u2", "float8_e4m3fn": "|u1", "float8_e5m2": "|u1"}


def encode_array(array: npt.ArrayLike) -> tuple[dict[str, Any], memoryview]:
    """Split an array (any shape, ``()`` included) into a header and ``nbytes`` bytes in C order.

    The buffer is the array's own memory where that is C-contiguous; copy first if it may change before it is sent.

    Returns:
        ``({"dtype": numpy type string, "shape": list of int}, buffer)``; small floats of ``ml_dtypes`` also carry
        ``"tag"``, their name, and go as unsigned integers of the same width.

    Raises:
        EncodeError: Objects, structures, masked arrays, text, dates, ``longdouble``, over 32 dimensions or 256 MiB.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise EncodeError("cannot send a masked array: send its data and its mask as arrays of their own")
    values = np.asarray(array)
    dtype = values.dtype
    if dtype.hasobject:
        raise EncodeError(f"cannot send dtype {dtype}: it holds Python objects, not numbers")
    if dtype.names:
        raise EncodeError(f"cannot send structured dtype {dtype}: send its fields as arrays of their own")
    header: dict[str, Any] = {"dtype": dtype.str, "shape": list(values.shape)}
    if dtype.name in _TAGGED:
        header = {"dtype": _TAGGED[dtype.name], "shape": list(values.shape), "tag": dtype.name}
        values = values.view(_TAGGED[dtype.name])
    elif dtype.str[1:] not in _FIXED:
        raise EncodeError(f"cannot send dtype {dtype}: send numbers (bool, int, uint, float16 to float64, complex)")
    if values.nbytes > MAX_ARRAY_BYTES:
        raise EncodeError(
            f"cannot send an array of {values.nbytes:,} bytes: the limit is {MAX_ARRAY_BYTES:,}; send fewer examples"
        )
    try:
        expected_size(header)
    except DecodeError as error:  # what the other end would refuse must not set out, or it is sent for ever
        raise EncodeError(f"cannot send an array of shape {values.shape}: {error}") from None
    ordered = np.asarray(values, order="C")  # a transposed view would arrive scrambled
    # A zero-size array has no memory to view.
    flat = ordered.reshape(-1).view(np.uint8) if ordered.size else np.empty(0, np.uint8)
    return header, flat.data


def expected_size(header: dict[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Check a header and say what it describes: dtype, shape and size in bytes.

    Sizes are computed as Python integers, which do not overflow.

    Raises:
        DecodeError: Anything in it is not on the list.
    """
    text, dims, tag = header.get("dtype"), header.get("shape"), header.get("tag")
    if not isinstance(text, str) or len(text) > 4 or text[:1] not in ("<", ">", "|") or text[1:] not in _FIXED:
        raise DecodeError("dtype", f"dtype {str(text)[:40]!r} is not one that travels")
    if not isinstance(dims, list):
        raise DecodeError("shape", "shape is not a list")
    shape: list[int] = []
    for size in cast("list[object]", dims):
        if type(size) is not int or not 0 <= size < 2**48:
            raise DecodeError("shape", f"shape holds {str(size)[:40]!r}")
        shape.append(size)
    if len(shape) > MAX_DIMS:
        raise DecodeError("shape", f"{len(shape)} dimensions, at most {MAX_DIMS}")
    if tag is not None and _TAGGED.get(tag if isinstance(tag, str) else "") != text:
        raise DecodeError("dtype", f"tag {str(tag)[:40]!r} does not go with {text}")
    dtype = np.dtype(text)
    size = math.prod(shape) * dtype.itemsize
    # Zero elements may still hide an absurd shape that numpy refuses to build.
    if size > MAX_ARRAY_BYTES or math.prod(n for n in shape if n) * dtype.itemsize > 2**62:
        raise DecodeError("size", f"an array of {size:,} bytes, at most {MAX_ARRAY_BYTES:,}")
    return dtype, tuple(shape), size


def decode_array(header: dict[str, Any], buffer: bytes | memoryview) -> Array:
    """Rebuild an array; it is writeable and owns its memory.

    A tagged small float comes back as ``ml_dtypes``' type where that package is installed, else as its unsigned bits.

    Raises:
        DecodeError: The header is not well-formed, or the buffer is not exactly as long as it says.
    """
    dtype, shape, size = expected_size(header)
    if len(buffer) != size:
        raise DecodeError("size", f"{len(buffer):,} bytes for {header['dtype']} {shape}, which takes {size:,}")
    array = np.frombuffer(bytearray(buffer), dtype=dtype).reshape(shape)
    # numpy takes a bool's byte on trust; one that is neither 0 nor 1 is true in one place and false in another.
    if dtype.kind == "b" and size and int(array.view(np.uint8).max()) > 1:
        raise DecodeError("dtype", "a bool that is neither 0 nor 1")
    tag = header.get("tag")
    if tag is not None:
        try:
            import ml_dtypes  # pyright: ignore[reportMissingImports]
        except ImportError:
            return array
        array = array.view(getattr(ml_dtypes, tag))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return array

"""The plain pair's messages ⇄ frames: a JSON object, or a JSON header and the raw bytes of one array.

These are the bytes of ``sleap.message``, to the letter. What goes out can be read by an original receiver or is refused
by name before a byte of it is made; what comes in is parsed and never trusted. Sockets, queues and handshakes are not
known here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fitwire.errors import DecodeError, EncodeError

__all__ = ["MAX_MESSAGE_BYTES", "Array", "after_orphan", "decode_message", "encode_array", "encode_dict", "read_json"]

Array = npt.NDArray[Any]

MAX_MESSAGE_BYTES = 2**30
"""Largest frame either way: a peer that announces more is cut off before it is in memory."""

_NUMPY_BUILT_IN = 256
"""numpy's type numbers from here on are other packages' (bfloat16): ``str(dtype)`` means nothing without them."""

# What str(dtype) gives for the types that can travel, and nothing else: numpy.dtype() understands far more than that.
_DTYPE = re.compile(
    r"bool|u?int(8|16|32|64)|float(16|32|64|96|128)|complex(64|128|192|256)"
    r"|(datetime|timedelta)64(\[\d{0,9}[a-zA-Zμ]{1,7}\])?"
    r"|[<>|=]?([biufc?]\d{0,2}|[mM]8(\[\d{0,9}[a-zA-Zμ]{1,7}\])?|[SUV]\d{1,9})"
)
_LAST_CODE_POINT = 0x10FFFF


def encode_dict(data: Mapping[str, Any]) -> list[bytes]:
    """One frame of JSON, in the standard library's default form: ``NaN`` is a bare literal, text is ASCII.

    Args:
        data: JSON's types, and numpy's: scalars and 0-d arrays travel as numbers, larger arrays as nested lists.

    Raises:
        EncodeError: A value that JSON has no word for (named by its place), or both keys that mark an array.

    Example:
        >>> encode_dict({"loss": np.float32(0.5), "best": float("nan"), "done": np.True_})
        [b'{"loss": 0.5, "best": NaN, "done": true}']
    """
    data = _checked_mapping(data)
    if _announces_array(data):
        raise EncodeError(
            "cannot send a dict that has both keys 'dtype' and 'shape': they announce an array, and an original "
            "receiver would wait for it for ever; rename one of them, or use send_array"
        )
    return [_dumps(data)]


def encode_array(header: Mapping[str, Any], array: npt.ArrayLike) -> list[bytes]:
    """Two frames: the header with ``dtype`` and ``shape`` added, and a copy of the array's bytes in C order.

    Args:
        header: As for ``encode_dict``; it is not changed.
        array: Of any shape (``()`` and empty ones included), stride, order of axes and of bytes.

    Raises:
        EncodeError: The array holds Python objects or fields, is masked, or has a type that only another package knows;
            the header cannot be sent, or holds ``"ndarray"``, where the receiver puts the array.

    Example:
        >>> encode_array({"name": "mask"}, np.array([[1, 2]], dtype=np.uint8))
        [b'{"name": "mask", "dtype": "uint8", "shape": [1, 2]}', b'\\x01\\x02']
    """
    header = _checked_mapping(header)
    if "ndarray" in header:
        raise EncodeError(
            "cannot send a header with the key 'ndarray': the receiver puts the array there; leave it out"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise EncodeError("cannot send a masked array: send its data and its mask as arrays of their own")
    values: Array = np.asarray(array)
    _refuse_dtype(values.dtype)
    if values.nbytes > MAX_MESSAGE_BYTES:
        raise EncodeError(f"cannot send an array of {values.nbytes:,} bytes: the limit is {MAX_MESSAGE_BYTES:,}")
    text = _dumps({**header, "dtype": str(values.dtype), "shape": list(values.shape)})
    return [text, values.tobytes(order="C")]


def decode_message(frames: Sequence[bytes]) -> dict[str, Any]:
    """The dict that one message carries; an array is under ``"ndarray"``, writeable, beside ``dtype`` and ``shape``.

    A header that came without its array is a dict like any other.

    Raises:
        DecodeError: Not UTF-8, not JSON, not an object, too few or too many frames, or an array that does not fit its
            header or may not be built (Python objects, fields).

    Example:
        >>> decode_message([b'{"dtype": "<i2", "shape": [2]}', b"\\x01\\x00\\x02\\x00"])["ndarray"]
        array([1, 2], dtype=int16)
    """
    message = _loads(frames[0])
    if len(frames) == 1:
        return message
    if len(frames) > 2 or not _announces_array(message):
        raise DecodeError("frames", f"{len(frames)} frames, where the first announces none or one more")
    message["ndarray"] = _build(message["dtype"], message["shape"], frames[1])
    return message


def after_orphan(frames: Sequence[bytes]) -> Sequence[bytes]:
    """The message behind an array's header whose array never came; empty when there is none.

    An original sender that fails over an array has its header already under way, and what it sends next is glued to it.
    """
    try:
        header = _loads(frames[0])
    except DecodeError:
        return []
    return frames[1:] if _announces_array(header) else []


def _announces_array(message: Mapping[str, Any]) -> bool:
    """Whether a receiver takes this for the header of an array; an original one then waits for the array for ever."""
    return "dtype" in message and "shape" in message


def _checked_mapping(data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise EncodeError(f"cannot send a {type(data).__name__}: a message is a dict")
    return dict(cast("Mapping[str, Any]", data))


def _refuse_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise EncodeError(f"cannot send an array of dtype {dtype}: it holds Python objects, not numbers")
    if dtype.names:
        raise EncodeError(f"cannot send an array of structured dtype {dtype}: send its fields as arrays of their own")
    if dtype.num >= _NUMPY_BUILT_IN:
        raise EncodeError(f"cannot send an array of dtype {dtype}: numpy alone does not know it; convert it to float32")


def _dumps(data: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(data, default=_from_numpy).encode()
    except EncodeError as error:
        raise EncodeError(f"cannot send {_blame(data)}: {error}") from None
    except (TypeError, ValueError, RecursionError) as error:  # a key, a circle, a number of 5,000 digits, endless depth
        raise EncodeError(f"cannot send {_blame(data)}: {error}") from error
    if len(text) > MAX_MESSAGE_BYTES:
        raise EncodeError(
            f"cannot send a dict that takes {len(text):,} bytes as JSON: the limit is {MAX_MESSAGE_BYTES:,}"
        )
    return text


def _from_numpy(value: object) -> object:
    """What stands for a value that JSON does not know; called by the encoder for just those."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = np.asarray(cast(Any, value))
    if isinstance(value, np.ndarray):
        array = cast("Array", value)
        # Not tolist() alone: it leaves longdouble as it is.
        return array.astype(np.float64).tolist() if array.dtype.kind == "f" else array.tolist()
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    raise EncodeError(
        f"a {type(value).__name__} has no place in JSON; send a number, text, list or dict, or use send_array"
    )


def _blame(data: dict[str, Any]) -> str:
    """Which key cannot be sent."""
    for key, value in data.items():
        try:
            json.dumps({key: value}, default=_from_numpy)
        except (TypeError, ValueError, RecursionError):
            return f"the value under {str(key)[:80]!r}"
    return "this dict"


def read_json(frame: bytes) -> object:
    """What a frame says in JSON, as the standard library reads it.

    Raises:
        DecodeError: It is not UTF-8, or no JSON.
    """
    try:
        return json.loads(frame.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DecodeError("utf-8", f"not UTF-8: {frame[:40]!r}") from error
    except (ValueError, RecursionError) as error:
        raise DecodeError("json", f"not JSON: {frame[:40]!r}") from error


def _loads(frame: bytes) -> dict[str, Any]:
    parsed = read_json(frame)
    if not isinstance(parsed, dict):
        raise DecodeError("object", f"JSON, but not an object: {frame[:40]!r}")
    return cast("dict[str, Any]", parsed)


def _build(name: object, sizes: object, frame: bytes) -> Array:
    dtype = _parse_dtype(name)
    if not isinstance(sizes, list):
        raise DecodeError("shape", f"shape is not a list: {str(sizes)[:40]}")
    shape: list[int] = []
    for size in cast("list[object]", sizes):
        if type(size) is not int or size < 0:
            raise DecodeError("shape", f"shape holds {str(size)[:40]!r}")
        shape.append(size)
    expected = math.prod(shape) * dtype.itemsize
    if len(frame) != expected:
        raise DecodeError("size", f"{len(frame):,} bytes for {dtype} {str(shape)[:80]}, which takes {expected:,}")
    try:
        array: Array = np.ndarray(tuple(shape), dtype, bytearray(frame))  # its own memory: an array to write in
    except (ValueError, MemoryError, OverflowError) as error:  # 65 dimensions; a void of zeros with an absurd shape
        raise DecodeError("shape", f"no array of shape {str(shape)[:80]}: {error}") from error
    # numpy takes text on trust; a number that is no character would raise in whoever reads the element.
    if dtype.kind == "U" and expected and int(array.ravel().view(dtype.byteorder + "u4").max()) > _LAST_CODE_POINT:
        raise DecodeError("dtype", "text that holds what is no character")
    return array


def _parse_dtype(name: object) -> np.dtype[Any]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise DecodeError("dtype", f"dtype {str(name)[:40]!r} is not one that travels")
    try:
        return np.dtype(name)
    except (TypeError, ValueError, OverflowError) as error:
        raise DecodeError("dtype", f"numpy knows no dtype {name!r}") from error

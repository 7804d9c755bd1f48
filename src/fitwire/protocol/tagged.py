"""JSON as jsonpickle writes it, read as data: nothing that a peer names is imported, called or made.

jsonpickle's own decoder calls any importable function that a message names, by design. SLEAP's trainers and windows
write with it, so that a numpy scalar travels as the call that would make it again. Here the few tags that stand for
plain values are translated, and everything else becomes :data:`FOREIGN`.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from fitwire.errors import DecodeError
from fitwire.protocol.plain import read_json

__all__ = ["FOREIGN", "MAX_TEXT_BYTES", "Foreign", "decode_tagged"]

MAX_TEXT_BYTES = 2**20
"""Of one message: a thousand metrics that are numpy scalars take a quarter of it."""
MAX_DEPTH = 32
"""A scalar stands eight deep in a message; a parser's stack is not a peer's to use."""
_SCALARS = re.compile(r"numpy\.(_core|core)\.multiarray\.scalar")
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
_TAG = "py/"


@dataclass(frozen=True, slots=True)
class Foreign:
    """Stands for what only running a peer's code would make."""


FOREIGN = Foreign()


@dataclass(frozen=True, slots=True)
class _Kind:
    """A numpy dtype that was described; later scalars refer to it."""

    dtype: np.dtype[Any]


def decode_tagged(frame: bytes) -> Any:
    """What a message says: dict, list, tuple, set, str, int, float (NaN and infinities too), bool, None, bytes.

    A numpy scalar becomes the Python number that it is. What is understood only in part holds :data:`FOREIGN` there.

    Raises:
        DecodeError: It is no JSON, too long or too deep.

    Example:
        >>> decode_tagged(b'{"logs": {"loss": NaN, "shape": {"py/tuple": [1, 2]}, "f": {"py/function": "os.abort"}}}')
        {'logs': {'loss': nan, 'shape': (1, 2), 'f': Foreign()}}
    """
    if len(frame) > MAX_TEXT_BYTES:
        raise DecodeError("size", f"a message of {len(frame):,} bytes, at most {MAX_TEXT_BYTES:,}")
    parsed = read_json(frame)
    return _Translator(parsed).read(parsed, 0)


class _Translator:
    """One message.

    ``py/id`` counts the objects before it, in two ways: jsonpickle up to 1.5 counts lists and what is made by a call,
    later ones count dicts too. Which one wrote a message, its references have to show.
    """

    def __init__(self, whole: object) -> None:
        self._all: list[object] = []
        self._few: list[object] = []
        keys = list(cast("dict[str, Any]", whole)) if isinstance(whole, dict) else []
        # jsonpickle 1.2, which SLEAP up to 1.4 holds to, sorts its keys.
        self._old_first = len(keys) > 1 and keys == sorted(keys)

    def read(self, value: object, depth: int) -> Any:
        """Translate one value and what is in it."""
        if depth > MAX_DEPTH:
            raise DecodeError("depth", f"a message nested deeper than {MAX_DEPTH}")
        if isinstance(value, list):
            place = self._place(few=True)
            return self._made(place, [self.read(inner, depth + 1) for inner in cast("list[object]", value)])
        if not isinstance(value, dict):
            return value
        fields = cast("dict[str, Any]", value)
        tag = next((key for key in fields if key.startswith(_TAG)), None)
        if tag is not None:
            return self._tagged(tag, fields[tag], depth + 1)
        place = self._place(few=False)
        return self._made(place, {key: self.read(inner, depth + 1) for key, inner in fields.items()})

    def _tagged(self, tag: str, value: object, depth: int) -> Any:
        if tag == "py/id":
            found = self._referred(value, None)
            return FOREIGN if found is None else found
        if tag == "py/b64":
            data = _from_base64(value)
            return FOREIGN if data is None else data
        if tag == "py/reduce":
            return self._reduced(value, depth)
        if tag in ("py/tuple", "py/set") and isinstance(value, list):
            inner = [self.read(one, depth) for one in cast("list[object]", value)]
            try:
                return tuple(inner) if tag == "py/tuple" else set(inner)
            except TypeError:  # a set of what has no hash
                return FOREIGN
        self.read(value, depth)  # not understood, but what is in it counts for later references
        return FOREIGN

    def _reduced(self, value: object, depth: int) -> Any:
        """A call: of the two that are known, what they make; of any other nothing."""
        place = self._place(few=True)
        parts = cast("list[Any]", value) if isinstance(value, list) else []
        function, given = _named(parts[0] if parts else None), _tuple_in(parts[1] if len(parts) > 1 else None)
        if _SCALARS.fullmatch(function) and given is not None and len(given) == 2:
            data = _from_base64(_tag_of(given[1], "py/b64"))
            return self._made(place, FOREIGN if data is None else self._scalar(given[0], data, depth))
        dtype = _dtype_of(function, given, parts)
        if dtype is not None:
            self._made(place, _Kind(dtype))
            return FOREIGN
        for part in parts:
            self.read(part, depth)
        return self._made(place, FOREIGN)

    def _scalar(self, kind: object, data: bytes, depth: int) -> Any:
        """The number that ``data`` is of a dtype that is described here, or was before."""
        number = _tag_of(kind, "py/id")
        if number is None:
            before = len(self._few)
            self.read(kind, depth + 1)
            found = self._few[before] if len(self._few) > before else None
        else:
            found = self._referred(number, data)
        if not isinstance(found, _Kind) or not _fits(found, data):
            return FOREIGN
        return np.frombuffer(data, found.dtype)[0].item()

    def _referred(self, number: object, data: bytes | None) -> Any:
        """The object of that number, by either way of counting: with ``data`` a dtype of its size, else a value."""
        if type(number) is not int or number < 0:
            return None
        ways = (self._few, self._all) if self._old_first else (self._all, self._few)
        for seen in ways:
            found = seen[number] if number < len(seen) else None
            if found is not None and (_fits(found, data) if data is not None else not isinstance(found, _Kind)):
                return found
        return None

    def _place(self, *, few: bool) -> tuple[int, int | None]:
        """Number an object before what is in it; while it is being read nothing can refer to it."""
        self._all.append(None)
        if few:
            self._few.append(None)
        return len(self._all) - 1, len(self._few) - 1 if few else None

    def _made(self, place: tuple[int, int | None], value: Any) -> Any:
        self._all[place[0]] = value
        if place[1] is not None:
            self._few[place[1]] = value
        return value


def _fits(kind: object, data: bytes) -> bool:
    return isinstance(kind, _Kind) and kind.dtype.itemsize == len(data)


def _tag_of(value: object, tag: str) -> Any:
    return cast("dict[str, Any]", value).get(tag) if isinstance(value, dict) else None


def _named(value: object) -> str:
    """What is called: a function or a type, by its full name."""
    name = _tag_of(value, "py/function") or _tag_of(value, "py/type")
    return name if isinstance(name, str) else ""


def _tuple_in(value: object) -> list[Any] | None:
    inner = _tag_of(value, "py/tuple")
    return cast("list[Any]", inner) if isinstance(inner, list) else None


def _from_base64(value: object) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None


def _dtype_of(function: str, given: list[Any] | None, parts: list[Any]) -> np.dtype[Any] | None:
    """A dtype as numpy describes one to be made again: its letter and size, then, in its state, its byte order."""
    if function != "numpy.dtype" or not given or not isinstance(given[0], str) or not _DTYPE.fullmatch(given[0]):
        return None
    state = _tuple_in(parts[2]) if len(parts) > 2 else None
    order = state[1] if state is not None and len(state) > 1 else "="
    return np.dtype(given[0]).newbyteorder(order if order in ("<", ">") else "=")

"""Any framework's number or tensor → a float, or one owned copy; any setting → plain JSON.

No framework is imported: what a value is shows in what it can do. A tensor whose device has not finished is kept as
:class:`Late` and read at a later call, because asking for it now would stop the training until the device is done.
Frameworks raise errors of every class; what they raise here comes out as ``TypeError`` with a reason.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from fitwire.protocol.arrays import Array

__all__ = ["MAX_WHOLE", "Late", "as_array", "as_number", "as_whole", "plain", "plain_mapping", "plain_text"]

MAX_WHOLE = 2**53
"""Steps, epochs and batches travel as float64, which holds every whole number below this."""
MAX_TEXT = 4096
MAX_ITEMS = 1000
MAX_NESTING = 8
MAX_VALUES = 10_000
"""Values in one setting, all levels together; with :data:`MAX_CHARACTERS` it keeps a config under 1 MiB of JSON."""
MAX_CHARACTERS = 100_000


class Late:
    """A number that its device has not computed yet.

    Attributes:
        tensor: A detached copy of it.
    """

    __slots__ = ("_event", "tensor")

    def __init__(self, tensor: Any, event: Any = None) -> None:
        self.tensor, self._event = tensor, event

    def ready(self) -> bool:
        """Whether reading it would not wait."""
        try:
            return bool(self.tensor.is_ready() if self._event is None else self._event.query())
        except Exception:  # deleted, or its device has failed: reading will say so, and does not wait either
            return True

    def read(self) -> float:
        """The number, waiting for the device if need be."""
        return float(self.tensor.item())


def as_number(value: Any) -> float | Late:
    """Turn one logged value into a float.

    Takes Python and numpy numbers, ``Decimal`` and ``Fraction``, and arrays or tensors of one element from any
    framework.

    Raises:
        TypeError: It is no single real number; the message says what to do instead.
    """
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"is {_brief(value)}, not a number; note() takes text")
    if isinstance(value, (complex, np.complexfloating)):
        raise TypeError("is complex: log its real and imaginary part")
    try:
        if isinstance(value, (float, int, np.number, np.bool_)):
            return float(cast(Any, value))
        return _from_tensor(value)
    except TypeError as error:
        if error.args and isinstance(error.args[0], _Refusal):
            raise
        raise TypeError(f"is {_brief(cast(object, value))}, not a number ({_one_line(error)})") from None
    except Exception as error:
        raise TypeError(f"is {_brief(cast(object, value))}, not a number ({_one_line(error)})") from None


class _Refusal(str):
    """A reason of our own, to be told apart from those of frameworks."""


def _from_tensor(value: Any) -> float | Late:
    if getattr(value, "is_cuda", False) or getattr(getattr(value, "device", None), "type", "cpu") not in (
        "cpu",
        "meta",
    ):
        return _on_device(value)
    if hasattr(value, "detach"):
        value = value.detach()
    size = _size(value)
    if size is not None and size != 1:
        raise TypeError(_not_one(value))
    is_ready = getattr(value, "is_ready", None)
    if callable(is_ready) and not is_ready():
        return Late(value)
    if hasattr(value, "item"):
        value = value.item()
    elif hasattr(value, "numpy"):
        value = value.numpy().item()
    if isinstance(value, complex):
        raise TypeError(_Refusal("is complex: log its real and imaginary part"))
    return float(value)


def _not_one(value: Any) -> _Refusal:
    shape = tuple(getattr(value, "shape", ()))
    return _Refusal(f"has shape {shape}, not one number: reduce it, or send it with sample()")


def _on_device(value: Any) -> float | Late:
    """A torch tensor that lives on an accelerator: a copy ordered on its stream, and an event behind it."""
    if value.numel() != 1:
        raise TypeError(_not_one(value))
    copy = value.detach().clone()
    module = getattr(sys.modules.get("torch"), value.device.type, None)
    event_class = getattr(module, "Event", None)
    if event_class is None:
        return float(copy.item())
    event = event_class()
    event.record()
    return Late(copy, event)


def _size(value: Any) -> int | None:
    size = getattr(value, "size", None)
    if isinstance(size, int):
        return size
    numel = getattr(value, "numel", None)
    if callable(numel):
        return int(cast(Any, numel()))
    shape = getattr(value, "shape", None)
    return None if shape is None else math.prod(int(n) for n in shape)


def as_whole(value: Any) -> int:
    """Turn a step, epoch or batch into an int.

    Raises:
        TypeError: It is no whole number below 2**53.
    """
    try:
        number: Any = value
        if hasattr(value, "item"):
            number = value.item()
        elif hasattr(value, "numpy"):
            number = value.numpy().item()
        whole = int(number) if isinstance(number, float) and number.is_integer() else operator.index(cast(Any, number))
        if abs(whole) < MAX_WHOLE:
            return whole
    except Exception:
        pass
    raise TypeError(f"is {_brief(value)}, not a whole number below 2**53")


def _one_line(error: BaseException) -> str:
    return " ".join(plain_text(error).split())[:120]


def _brief(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "?"
    return f"{type(value).__name__} {text[:40] + '…' if len(text) > 40 else text}"


def as_array(value: Any) -> Array:
    """One owned, C-ordered copy of an array or tensor, so that its owner may reuse the memory.

    Texts (a list of str) become an array of str. A torch ``bfloat16`` tensor, which numpy cannot hold, comes as
    ``ml_dtypes.bfloat16`` where that is installed, else as float32, which holds every bfloat16 exactly.

    Raises:
        TypeError: It is no array.
    """
    try:
        if hasattr(value, "detach"):
            value = _torch_array(value)
        elif hasattr(value, "numpy") and not isinstance(value, np.ndarray):
            value = value.numpy()
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(_Refusal("is a masked array: send its data and its mask as arrays of their own"))
        array: Array = np.array(cast(Any, value), order="C", copy=True)
    except Exception as error:
        if error.args and isinstance(error.args[0], _Refusal):
            raise
        raise TypeError(
            f"is {_brief(cast(object, value))}, which does not make an array ({_one_line(error)})"
        ) from None
    if array.dtype.hasobject:
        raise TypeError(f"is {_brief(cast(object, value))}, which does not make an array of numbers")
    return array


def _torch_array(value: Any) -> Any:
    value = value.detach()
    if getattr(value, "is_sparse", False):
        value = value.to_dense()
    value = value.cpu()
    for resolve in ("resolve_conj", "resolve_neg"):  # views that numpy cannot read
        if hasattr(value, resolve):
            value = getattr(value, resolve)()
    if str(value.dtype) != "torch.bfloat16":
        return value.numpy()
    value = value.float().numpy()
    try:
        import ml_dtypes  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError:
        return value
    return value.astype(ml_dtypes.bfloat16)  # pyright: ignore[reportUnknownMemberType]


def plain_text(value: object, limit: int = MAX_TEXT) -> str:
    """A value's text, at most ``limit`` characters, that can be written as UTF-8."""
    try:
        text = value if type(value) is str else str(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "replace").decode()


def plain_mapping(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Names to values as JSON has them, see :func:`plain`."""
    return cast("dict[str, Any]", plain(dict(values)))


def plain(value: object) -> Any:
    """A setting as JSON has it: what is no number, text, list or mapping becomes its text.

    NaN and infinities become ``"nan"``, ``"inf"``, ``"-inf"``. Cut, with ``"…"`` in place of what is missing, are texts
    over 4,096 characters, lists and mappings over 1,000 items, more than 8 levels, 10,000 values or 100,000 characters
    in all.
    """
    return _Plainer().convert(value, 0)


class _Plainer:
    """One conversion, and what room is left in it."""

    def __init__(self) -> None:
        self._values, self._characters = MAX_VALUES, MAX_CHARACTERS

    def convert(self, value: Any, depth: int) -> Any:
        self._values -= 1
        if self._values < 0 or self._characters < 0:
            return "…"
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < 2**63 else self._text(int(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, str):
            return self._text(str.__str__(value))
        try:
            return self._compound(value, depth)
        except Exception:  # a lazy config with a missing value, a property that raises
            return self._text(value)

    def _compound(self, value: Any, depth: int) -> Any:
        if isinstance(value, np.ndarray) and cast(Array, value).size > MAX_ITEMS:
            return self._text(f"array of {cast(Array, value).dtype}, shape {cast(Array, value).shape}")
        if isinstance(value, (np.generic, np.ndarray)) or (
            getattr(value, "shape", None) == () and hasattr(value, "item")
        ):
            return self.convert(
                cast(Any, value).item() if cast(Any, value).shape == () else cast(Any, value).tolist(), depth
            )
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif type(value).__name__ == "Namespace" and hasattr(value, "__dict__"):
            value = vars(value)
        if depth >= MAX_NESTING:
            return self._text(value, 200)
        if isinstance(value, Mapping):
            return self._mapping(cast("Mapping[object, object]", value), depth)
        if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray, memoryview)):
            items = list(cast("Sequence[object]", value))
            kept = [self.convert(item, depth + 1) for item in items[:MAX_ITEMS]]
            return kept + ["…"] * (len(items) > MAX_ITEMS)
        return self._text(cast(object, value))

    def _mapping(self, value: Mapping[object, object], depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for count, (key, item) in enumerate(value.items()):
            if count >= MAX_ITEMS or self._values < 0:
                kept["…"] = f"{len(value) - count} more"
                break
            kept[self._text(key, 256)] = self.convert(item, depth + 1)
        return kept

    def _text(self, value: object, limit: int = MAX_TEXT) -> str:
        text = plain_text(value, max(1, min(limit, self._characters)))
        self._characters -= len(text)
        return text

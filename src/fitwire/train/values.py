"""Any framework's number or tensor → a float, or one owned copy; any setting → plain JSON.

No framework is imported: what a value is shows in what it can do. A tensor whose device has not finished is kept as
:class:`Late` and read at a later call, because asking for it now would stop the training until the device is done.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from fitwire.protocol.arrays import Array

__all__ = ["Late", "as_array", "as_number", "plain"]

MAX_TEXT = 4096
MAX_ITEMS = 1000
MAX_NESTING = 8


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
        if self._event is not None:
            return bool(self._event.query())
        return bool(self.tensor.is_ready())

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
    if isinstance(value, (float, int)):
        return float(value)
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"is {_brief(value)}, not a number; note() takes text")
    if isinstance(value, complex):
        raise TypeError("is complex: log its real and imaginary part")
    if getattr(value, "is_cuda", False) or getattr(getattr(value, "device", None), "type", "cpu") not in ("cpu", "meta"):
        return _on_device(value)
    if hasattr(value, "detach"):
        value = value.detach()
    size = _size(value)
    if size is not None and size != 1:
        shape = tuple(getattr(value, "shape", ()))
        raise TypeError(f"has shape {shape}, not one number: reduce it, or send it with sample()")
    is_ready = getattr(value, "is_ready", None)
    if callable(is_ready) and not is_ready():
        return Late(value)
    try:
        if hasattr(value, "numpy"):
            value = value.numpy()
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, complex):
            raise TypeError("is complex: log its real and imaginary part")
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"is {_brief(value)}, not a number ({str(error)[:80]})") from None


def _on_device(value: Any) -> float | Late:
    """A torch tensor that lives on an accelerator: a copy ordered on its stream, and an event behind it."""
    if value.numel() != 1:
        raise TypeError(f"has shape {tuple(value.shape)}, not one number: reduce it, or send it with sample()")
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


def _brief(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:40] + '…' if len(text) > 40 else text}"


def as_array(value: Any) -> Array:
    """One owned, C-ordered copy of an array or tensor, so that its owner may reuse the memory.

    Texts (a list of str) become an array of str. A torch ``bfloat16`` tensor, which numpy cannot hold, comes as
    ``ml_dtypes.bfloat16`` where that is installed, else as float32, which holds every bfloat16 exactly.

    Raises:
        TypeError: It is no array.
    """
    if hasattr(value, "detach"):
        value = value.detach()
        if getattr(value, "is_sparse", False):
            value = value.to_dense()
        value = value.cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
            try:
                import ml_dtypes  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

                return cast(Array, value.numpy().astype(ml_dtypes.bfloat16))  # pyright: ignore[reportUnknownMemberType]
            except ImportError:
                pass
        value = value.numpy()
    elif hasattr(value, "numpy") and not isinstance(value, np.ndarray):
        value = value.numpy()
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("is a masked array: send its data and its mask as arrays of their own")
    array = np.array(value, order="C", copy=True)
    if array.dtype.hasobject:
        raise TypeError(f"is {_brief(cast(object, value))}, which does not make an array of numbers")
    return array


def plain(value: Any, depth: int = 0) -> Any:
    """A setting as JSON has it: what is no number, text, list or mapping becomes its text.

    NaN and infinities become ``"nan"``, ``"inf"``, ``"-inf"``; texts over 4,096 characters and lists over 1,000 items
    are cut.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    if depth >= MAX_NESTING:
        return repr(value)[:200]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        items = list(cast("Mapping[object, object]", value).items())[:MAX_ITEMS]
        return {plain(str(key)): plain(item, depth + 1) for key, item in items}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [plain(item, depth + 1) for item in list(cast("Sequence[object]", value))[:MAX_ITEMS]]
    if isinstance(value, np.generic):
        return plain(value.item(), depth + 1)
    if type(value).__name__ == "Namespace" and hasattr(value, "__dict__"):
        return plain(vars(value), depth + 1)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return plain(value.item(), depth + 1)
    return plain(str(value)[:MAX_TEXT])

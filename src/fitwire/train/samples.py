"""Which examples to predict on, when, and what their arrays are called; and training left as it was.

Shared by the front doors. No framework is imported: a tensor is what has a ``shape``, and torch is looked for only
where it is already loaded. How a prediction is made is the front door's business.
"""

from __future__ import annotations

import operator
import random
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, SupportsIndex, cast

import numpy as np

from fitwire.errors import UsageError
from fitwire.events import MAX_NAME

__all__ = ["SamplePlan", "interval", "kept"]

SMALLEST_PICTURE = 8
"""Pixels a side from which an array without channels counts as a picture: scikit-learn's digits are 8 x 8."""
TAKEN = frozenset({"name", "step", "epoch"})
"""What ``Run.sample`` calls its other arguments."""
MAX_CHANNELS = 4
"""Grey, grey with alpha, RGB, RGBA."""


def interval(name: str, value: object, words: Sequence[str]) -> int | None:
    """Check a ``…_freq`` argument: one of ``words`` (None is returned), or a whole number from 1 (itself).

    Raises:
        UsageError: Anything else; the message names the choices.
    """
    if isinstance(value, str) and value in words:
        return None
    if isinstance(value, SupportsIndex) and not isinstance(value, bool) and (number := operator.index(value)) >= 1:
        return number
    raise UsageError(f"{name}={repr(value)[:40]}: pass {', '.join(map(repr, words))} or a whole number from 1")


class SamplePlan:
    """The examples, checked when they are given; it never changes, so it can be copied, pickled and shared.

    Args:
        samples: Inputs (an array; several as a list or mapping), a pair ``(inputs, targets)``, or a function that takes
            the model and returns a mapping of names to arrays.
        freq: ``"epoch"``, or every so many optimizer steps.
        names: What the sample goes by; or a list with one text for each example, sent beside them as ``text``.
        pairs: Types whose two elements mean ``(inputs, targets)``: a tuple, in Lightning a list too.

    Attributes:
        name: What the sample goes by, ``"samples"`` if not told.
        inputs: As given; None with a function.
        targets: As given; None without.
        function: As given; None with arrays.
        every: Optimizer steps between two samples; None for each epoch.
        texts: One for each example, or None.

    Raises:
        UsageError: What cannot be used, e.g. inputs and targets of different length.

    Example:
        >>> plan = SamplePlan((np.zeros((4, 8, 8)), np.arange(4)), freq=100)
        >>> plan.due(done=100, last=0), plan.due(done=150, last=100)
        (True, False)
        >>> list(plan.arrays(np.zeros((4, 10))))
        ['image', 'target', 'prediction']
    """

    def __init__(
        self,
        samples: Any,
        freq: object = "epoch",
        names: str | Sequence[str] | None = None,
        *,
        pairs: tuple[type, ...] = (tuple,),
    ) -> None:
        self.every = interval("sample_freq", freq, ("epoch",))
        self.function: Callable[[Any], Mapping[str, Any]] | None = None
        self.inputs = self.targets = None
        count = 0
        if callable(samples) and not hasattr(samples, "shape"):
            self.function = cast("Callable[[Any], Mapping[str, Any]]", samples)
        else:
            self.inputs = samples
            if isinstance(samples, pairs):
                pair = list(cast("Sequence[Any]", samples))
                if len(pair) != 2:
                    raise UsageError(f"samples is a tuple of {len(pair)}: pass inputs, or (inputs, targets)")
                self.inputs, self.targets = pair
            count = _examples("inputs", self.inputs)
            if self.targets is not None and (other := _examples("targets", self.targets)) != count:
                raise UsageError(f"samples has {count} inputs and {other} targets: pass one target for each input")
        self.name, self.texts = _named(names, count)

    def due(self, done: int, last: int) -> bool:
        """Whether, with ``done`` steps done and the last sample made after ``last`` of them, one is to be made now."""
        return self.every is not None and done // self.every > last // self.every

    def arrays(
        self, predictions: Any, input_names: Sequence[str] = (), output_names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Name what is to be sent: ``image`` or ``input``, ``target``, ``prediction``, ``text``.

        Of several inputs, targets or outputs each is ``role.name``, by its key or by the names given here, else by its
        place.
        """
        found: dict[str, Any] = {}
        for part, value in _parts(self.inputs, input_names):
            found[_join("image" if _is_picture(value) else "input", part)] = value
        for part, value in _parts(self.targets, output_names):
            found[_join("target", part)] = value
        for part, value in _parts(predictions, output_names):
            found[_join("prediction", part)] = value
        return self._with_texts(found)

    def made(self, result: Any) -> dict[str, Any]:
        """Check what the function returned.

        Raises:
            UsageError: It is no mapping of names to arrays, or one has a name that means something else here.
        """
        if not isinstance(result, Mapping):
            raise UsageError(f"the samples function returned a {type(result).__name__}: return a dict of arrays")
        found = {str(key): value for key, value in cast("Mapping[object, Any]", result).items()}
        if wrong := sorted(TAKEN & found.keys()):
            raise UsageError(f"the samples function returned an array called {wrong[0]!r}: give it another name")
        return self._with_texts(found)

    def _with_texts(self, found: dict[str, Any]) -> dict[str, Any]:
        if self.texts is not None:
            found.setdefault("text", list(self.texts))
        return found


def _named(names: str | Sequence[str] | None, count: int) -> tuple[str, tuple[str, ...] | None]:
    given = [names] if isinstance(names, str) else list(names or ["samples"])
    for name in cast("list[object]", given):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise UsageError(f"sample_names holds {str(name)[:40]!r}: pass texts of 1 to {MAX_NAME} characters")
    if len(given) == 1:
        return given[0], None
    if count and len(given) != count:
        raise UsageError(f"sample_names has {len(given)} names for {count} examples: pass one for each, or one for all")
    return "samples", tuple(given)


def _parts(values: Any, names: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Each array of a structure with its name; the name of an only one is empty."""
    if values is None:
        return
    if isinstance(values, Mapping):
        for key, value in cast("Mapping[object, Any]", values).items():
            for part, inner in _parts(value):
                yield _join(str(key), part), inner
    elif isinstance(values, (list, tuple)) and any(_is_array(v) for v in cast("list[object]", values)):
        listed = cast("list[object]", values)
        for index, value in enumerate(listed):
            yield names[index] if len(names) == len(listed) else str(index), value
    else:
        yield "", values


def _join(role: str, part: str) -> str:
    return f"{role}.{part}" if part else role


def _is_array(value: object) -> bool:
    return hasattr(value, "shape")


def _shape(value: Any) -> tuple[int, ...]:
    shape: Any = getattr(value, "shape", None)
    return tuple(int(n) for n in (np.shape(value) if shape is None else shape))


def _examples(what: str, values: Any) -> int:
    """How many examples there are; all arrays of the structure must agree."""
    counts: dict[str, int] = {}
    for part, value in _parts(values):
        try:
            shape = _shape(value)
        except (TypeError, ValueError):
            shape = ()
        if not shape or shape[0] == 0:
            raise UsageError(f"samples: {_join(what, part)} has shape {shape}; it needs (examples, ...), at least one")
        counts[part] = shape[0]
    if not counts:
        raise UsageError(f"samples holds no {what}: pass an array, several, or a function of the model")
    if len(set(counts.values())) > 1:
        raise UsageError(f"samples: the {what} differ in their number of examples: {counts}")
    return next(iter(counts.values()))


def _is_picture(value: Any) -> bool:
    """``(examples, height, width)``, or four dimensions with one to four channels first or last."""
    shape = _shape(value)
    if len(shape) == 3:
        return min(shape[1:]) >= SMALLEST_PICTURE
    return len(shape) == 4 and (1 <= shape[-1] <= MAX_CHANNELS or 1 <= shape[1] <= MAX_CHANNELS)


@contextmanager
def kept(model: Any = None) -> Generator[None]:
    """Put back afterwards the random states of Python, numpy and torch, and every torch module's own training flag.

    ``model.train()`` would not do: it sets all modules alike, a frozen batch normalisation among them.
    """
    python, legacy = random.getstate(), np.random.get_state()
    torch = cast("Any", sys.modules.get("torch"))
    cpu = cuda = None
    flags: list[tuple[Any, bool]] = []
    if torch is not None:
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        if isinstance(model, torch.nn.Module):
            flags = [(module, bool(module.training)) for module in model.modules()]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        if torch is not None and cpu is not None:
            torch.set_rng_state(cpu)
        if torch is not None and cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for module, flag in flags:
            module.training = flag

"""A run → what to draw, so that every view of it agrees.

Pure: reads a ``WatchedRun`` and returns small frozen things. Which metrics belong together, which value was best, what
of a curve fits a width, what an array of a sample looks like: all of that is decided here; colours of a terminal, cells
and pixels are not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fitwire.errors import UnknownRun
from fitwire.protocol.arrays import Array
from fitwire.watch.branches import Branch
from fitwire.watch.series import Curve, Decimated, decimate

__all__ = [
    "Best",
    "Chart",
    "Line",
    "Pair",
    "Row",
    "best_of",
    "chart",
    "epoch_values",
    "higher_is_better",
    "pair_metrics",
    "resumed_lines",
    "resumptions",
    "rows",
    "ticks",
]

_SPLIT = re.compile(r"(?P<set>train|training|val|valid|validation|eval|test)[/_.](?P<rest>.+)", re.IGNORECASE)
_VALIDATION = frozenset({"val", "valid", "validation", "eval", "test"})
_SUFFIX = re.compile(r"(?P<base>.+)_(?P<per>step|epoch)")

# Whole words of a name, and what a good value of it is; a name that says neither has no best value.
# fmt: off
_HIGHER = frozenset((
    "acc", "accuracy", "auc", "auroc", "ap", "map", "f1", "fbeta", "precision", "recall", "sensitivity",
    "specificity", "iou", "miou", "dice", "jaccard", "r2", "psnr", "ssim", "bleu", "rouge", "reward", "return",
    "score", "top1", "top5", "kappa", "mcc", "oks", "pck",
))
_LOWER = frozenset((
    "loss", "losses", "error", "err", "mae", "mse", "rmse", "mape", "msle", "nll", "bce", "ce", "crossentropy",
    "entropy", "perplexity", "ppl", "kl", "divergence", "wer", "cer", "fid", "distance", "hinge", "huber",
))
# fmt: on
_OWN = ("learning_rate", "perf/")
"""Metrics that fitwire adds by itself; they stand last and in no chart unless there is no other."""


EARLY = 0.1
"""Share of the way that may lie beyond a chart's range."""
ENOUGH = 20
"""Values after it, to leave it out of the range."""
FLATTENED = 2.0
"""How many times greater the range must be with it."""


class HasCurves(Protocol):
    """What of a ``WatchedRun`` this module reads."""

    @property
    def metrics(self) -> Sequence[str]: ...

    @property
    def branches(self) -> Sequence[Branch]: ...

    def curve(self, name: str, per: str = "auto", rank: int | None = None) -> Curve: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """Metrics that are one quantity.

    Attributes:
        label: What it is called without ``train`` and ``val``.
        train: Name of the training metric, the one told most often; None when only the other was told.
        epoch: Name of the same per epoch, where the framework tells both (``loss_step``, ``loss_epoch``).
        val: Name of the validation metric.
    """

    label: str
    train: str | None = None
    epoch: str | None = None
    val: str | None = None


@dataclass(frozen=True, slots=True)
class Best:
    """The best value of a metric.

    Attributes:
        value: It.
        step: Where, index of the last optimizer step done.
        epoch: Where, from 0; None when none was told.
    """

    value: float
    step: int
    epoch: int | None

    @property
    def where(self) -> str:
        """For people, who count from 1, as Keras prints it."""
        return f"step {self.step + 1:,}" if self.epoch is None else f"epoch {self.epoch + 1}"


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity as a table shows it.

    Attributes:
        label: What it is called.
        train: The newest value; None when there is none.
        val: The newest validation value.
        best: Of the validation values when there are any; None when nobody knows what good is.
    """

    label: str
    train: float | None
    val: float | None
    best: Best | None


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One curve of a chart.

    Attributes:
        name: The metric's.
        role: ``"train"`` or ``"val"``; views draw the second above the first.
        points: What of it fits the chart's columns.
        last: The newest value.
    """

    name: str
    role: str
    points: Decimated
    last: float


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """One quantity over the steps.

    Attributes:
        title: What it is called.
        lines: Train first.
        x: Least and greatest step.
        y: Least and greatest value to draw; both finite and different.
        x_ticks: Steps worth a label.
        y_ticks: Values worth a label.
        columns: Columns the lines were reduced to.
        resumed: Steps within it at which the run went on in another process.
    """

    title: str
    lines: tuple[Line, ...]
    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]
    columns: int
    resumed: tuple[int, ...] = ()


@dataclass(slots=True)
class _Found:
    train: list[str] = field(default_factory=list[str])
    val: list[str] = field(default_factory=list[str])


def pair_metrics(names: Iterable[str]) -> list[Pair]:
    """Put names that are one quantity together, in order of appearance, fitwire's own last.

    Knows ``loss`` and ``val_loss``; ``train/loss``, ``train_loss`` and ``val/loss``; ``loss_step`` and ``loss_epoch``.

    Example:
        >>> pair_metrics(["loss", "val_loss"])
        [Pair(label='loss', train='loss', epoch=None, val='val_loss')]
    """
    known = list(names)
    found: dict[str, _Found] = {}
    for name in sorted(known, key=_own):
        base = name
        suffix = _SUFFIX.fullmatch(name)
        # `time_per_step` alone is a name; `loss_step` beside `loss_epoch` is a half of one.
        if suffix is not None and {f"{suffix['base']}_step", f"{suffix['base']}_epoch"} <= set(known):
            base = suffix["base"]
        split = _SPLIT.fullmatch(base)
        of = found.setdefault(base if split is None else split["rest"], _Found())
        (of.val if split is not None and split["set"].lower() in _VALIDATION else of.train).append(name)
    return [pair for label, of in found.items() for pair in _pairs(label, of)]


def _own(name: str) -> int:
    return next((place for place, begin in enumerate(_OWN, 1) if name.startswith(begin)), 0)


def _pairs(label: str, of: _Found) -> Iterable[Pair]:
    """Usually one; what does not fit (``val_loss`` and ``test_loss``) gets a row of its own."""
    per_epoch = [
        name for name in of.train if name.endswith("_epoch") and name.removesuffix("_epoch") + "_step" in of.train
    ]
    train = [name for name in of.train if name not in per_epoch]
    val = [name for name in of.val if not (name.endswith("_step") and name.removesuffix("_step") + "_epoch" in of.val)]
    val.sort(key=lambda name: name.lower().startswith(("test", "eval")))
    yield Pair(label, next(iter(train), None), next(iter(per_epoch), None), next(iter(val), None))
    yield from (Pair(name, train=name) for name in train[1:])
    yield from (Pair(name, val=name) for name in val[1:])


def higher_is_better(name: str) -> bool | None:
    """Whether a greater value of that metric is a better one; None when its name does not say."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    if any(word in _LOWER for word in words):
        return False
    return True if any(word in _HIGHER for word in words) else None


def best_of(curve: Curve) -> Best | None:
    """The best finite value and where; None when there is none, or nobody knows what good is."""
    higher = higher_is_better(curve.name)
    finite = np.isfinite(curve.values)
    if higher is None or not finite.any():
        return None
    values = np.where(finite, curve.values, -math.inf if higher else math.inf)
    at = int(np.argmax(values) if higher else np.argmin(values))
    epoch = float(curve.epochs[at])
    return Best(float(values[at]), int(curve.steps[at]), None if epoch != epoch else int(epoch))


def curve_of(run: HasCurves, name: str | None, per: str = "auto") -> Curve | None:
    """A curve, or None when there is none of that kind."""
    if name is None:
        return None
    try:
        found = run.curve(name, per=per)
    except UnknownRun:
        return None
    return found if len(found) else None


def rows(run: HasCurves) -> list[Row]:
    """The newest value of everything, and the best."""
    found: list[Row] = []
    for pair in pair_metrics(run.metrics):
        train, val = curve_of(run, pair.train), curve_of(run, pair.val, "epoch") or curve_of(run, pair.val)
        # A running mean starts low by chance: where there are whole epochs, one of them is the best.
        judged = val or curve_of(run, pair.epoch or pair.train, "epoch") or train
        found.append(
            Row(
                pair.label,
                None if train is None else train.last,
                None if val is None else val.last,
                None if judged is None else best_of(judged),
            )
        )
    return found


def chart(run: HasCurves, columns: int, label: str | None = None, y_ticks: int = 3, x_ticks: int = 3) -> Chart | None:
    """One quantity over the steps.

    Args:
        run: Whose.
        columns: Points a line may have across; at least 1.
        label: Which quantity; None for the first there is.
        y_ticks: Labels that fit beside it.
        x_ticks: Labels that fit below it.
    """
    pairs = pair_metrics(run.metrics)
    pair = next((pair for pair in pairs if label in (None, pair.label)), None)
    if pair is None:
        return None
    curves = [(role, curve) for role, name in (("train", pair.train or pair.epoch), ("val", pair.val))
              if (curve := curve_of(run, name)) is not None]  # fmt: skip
    if not curves:
        return None
    left = float(min(curve.steps.min() for _, curve in curves))
    right = max(float(max(curve.steps.max() for _, curve in curves)), left + 1)
    lines = tuple(
        Line(curve.name, role, decimate(curve.steps, curve.values, columns, (left, right)), curve.last)
        for role, curve in curves
    )
    y = _range_of([curve for _, curve in curves], left, right)
    resumed = tuple(step for step, _ in resumptions(run) if left < step <= right)
    return Chart(pair.label, lines, (left, right), y, ticks(left, right, x_ticks), ticks(*y, y_ticks), columns, resumed)


def resumptions(run: HasCurves) -> list[tuple[int, int | None]]:
    """Where a run went on in another process: the step, and up to which it had been before, if it went back."""
    found: list[tuple[int, int | None]] = []
    furthest: int | None = None
    for index, branch in enumerate(run.branches):
        if index and branch.first_step is not None:
            found.append((branch.first_step, furthest if branch.replaced_from is not None else None))
        if branch.last_step is not None:
            furthest = branch.last_step if furthest is None else max(furthest, branch.last_step)
    return found


def resumed_lines(run: HasCurves) -> list[str]:
    """The same in words, for people, who count from 1."""
    lines: list[str] = []
    for step, upto in resumptions(run):
        instead = "" if upto is None else f", in place of what was told up to step {upto + 1:,}"
        lines.append(f"resumed at step {step + 1:,}{instead}")
    return lines


def _range_of(curves: Sequence[Curve], left: float, right: float) -> tuple[float, float]:
    """Least and greatest value; of those after the first tenth of the way where the rest would flatten them.

    A first loss may be ten times all that follows. Views draw what lies beyond the range along its edge; only the
    beginning can be there, a later spike never is.
    """
    whole = _value_range([curve.values for curve in curves])
    later = [curve.values[curve.steps > left + EARLY * (right - left)] for curve in curves]
    if sum(int(np.isfinite(values).sum()) for values in later) < ENOUGH:
        return whole
    settled = _value_range(later)
    return settled if whole[1] - whole[0] > FLATTENED * (settled[1] - settled[0]) else whole


def _value_range(values: Sequence[Array]) -> tuple[float, float]:
    finite = [one[np.isfinite(one)] for one in values]
    finite = [one for one in finite if len(one)]
    if not finite:
        return 0.0, 1.0
    low, high = min(float(one.min()) for one in finite), max(float(one.max()) for one in finite)
    if not math.isfinite(high - low):  # ±1e308 both are finite, their distance is not
        low, high = max(low, -1e300), min(high, 1e300)
    if high > low:
        return low, high
    room = abs(low) * 0.05 or 1.0
    return low - room, high + room


def ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """At most ``most`` round numbers from ``low`` to ``high``; 1, 2 or 5 times a power of ten apart.

    Example:
        >>> ticks(0, 99, 5)
        (0.0, 20.0, 40.0, 60.0, 80.0)
    """
    if most < 1 or not low < high:
        return ()
    power = math.floor(math.log10((high - low) / most))
    for step in (factor * 10.0**exponent for exponent in range(power, power + 3) for factor in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return tuple(round(number * step, 12) if step < 1e3 else number * step for number in range(first, last + 1))
    return ()


def epoch_values(run: HasCurves) -> dict[int, dict[str, float]]:
    """What each epoch came to: epoch to name to value, in order."""
    found: dict[int, dict[str, float]] = {}
    for name in run.metrics:
        curve = curve_of(run, name, "epoch")
        if curve is not None:
            for epoch, value in zip(curve.epochs.tolist(), curve.values.tolist(), strict=True):
                if epoch == epoch:
                    found.setdefault(int(epoch), {})[name] = value
    return dict(sorted(found.items()))

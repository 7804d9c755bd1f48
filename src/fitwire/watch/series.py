"""One growing curve in numpy, and what of it fits a screen.

Rows of one metric set share their step, epoch and time columns. Nothing is rounded: values are float64, NaN and
infinities kept. This module knows no run, no store and no view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from fitwire.events import COLUMNS, Per
from fitwire.protocol.arrays import Array

__all__ = ["PERS", "Columns", "Curve", "Decimated", "decimate"]

PERS: tuple[Per, ...] = get_args(Per)
"""In the order in which a curve is looked for."""
SEQ = len(COLUMNS)
"""Row of a :class:`Columns` that holds sequence numbers; the values follow it."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One metric of a run, as exact as it was logged.

    Attributes:
        name: The framework's own.
        per: ``"batch"``, ``"epoch"`` or ``"time"``: what one point stands for.
        steps: int64 ``(n,)``, index of the last optimizer step done, from 0.
        epochs: float64 ``(n,)``, from 0; NaN where none was told.
        times: float64 ``(n,)``, Unix seconds at the trainer.
        values: float64 ``(n,)``.

    Example:
        >>> curve = Curve("loss", "batch", np.arange(3), np.zeros(3), np.arange(3.0), np.array([3.0, 2.0, 1.0]))
        >>> len(curve), curve.last
        (3, 1.0)
    """

    name: str
    per: Per
    steps: Array
    epochs: Array
    times: Array
    values: Array

    def __len__(self) -> int:
        return len(self.values)

    @property
    def last(self) -> float:
        """The newest value; NaN when there is none yet."""
        return float(self.values[-1]) if len(self.values) else float("nan")

    def __repr__(self) -> str:
        return f"<Curve {self.name} per {self.per}, {len(self)} points, last {self.last:g}>"


class Columns:
    """Rows of one metric set that grow without being copied each time.

    Args:
        names: Of the ``k`` metrics.
        per: What a row stands for.
    """

    def __init__(self, names: Sequence[str], per: Per) -> None:
        self.names = tuple(names)
        self.per: Per = per
        self._row = {name: SEQ + 1 + index for index, name in enumerate(self.names)}
        self._data = np.empty((SEQ + 1 + len(self.names), 0))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        return name in self._row

    def append(self, rows: Array, first_seq: int) -> None:
        """Add ``n`` rows, float64 ``(4 + k, n)`` as they travel; ``first_seq`` numbers the first."""
        count = rows.shape[1]
        end = self._count + count
        if end > self._data.shape[1]:
            # Readers may hold views of the old memory: it is left as it is. A set met once takes no more than its row,
            # because a peer may name a set anew each time.
            grown = np.empty((self._data.shape[0], max(end, 2 * self._data.shape[1])))
            grown[:, : self._count] = self._data[:, : self._count]
            self._data = grown
        place = slice(self._count, end)
        self._data[:SEQ, place] = rows[:SEQ]
        self._data[SEQ, place] = np.arange(first_seq, first_seq + count)
        self._data[SEQ + 1 :, place] = rows[SEQ:]
        self._count = end

    def rows(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows ``start`` to ``stop`` as they travel, float64 ``(4 + k, n)``; a copy."""
        view = self._data[:, start : self._count if stop is None else min(stop, self._count)]
        return np.concatenate((view[:SEQ], view[SEQ + 1 :]))

    def place(self, seq: int, start: int, stop: int) -> int:
        """Where among rows ``start`` to ``stop`` the first with a greater sequence number than ``seq`` is."""
        return start + int(np.searchsorted(self._data[SEQ, start:stop], seq, "right"))

    def newest(self, name: str) -> tuple[float, float]:
        """Sequence number and value of the last row."""
        place = self._count - 1
        return float(self._data[SEQ, place]), float(self._data[self._row[name], place])

    def values(self, name: str, start: int, stop: int) -> Array:
        """float64 ``(stop - start,)``: rows of one metric; a view of what does not change any more."""
        return self._data[self._row[name], start:stop]

    def of(self, name: str) -> Array:
        """float64 ``(6, n)``: step, epoch, batch, time, sequence number and the value of one metric; a copy."""
        view = self._data[:, : self._count]
        return np.concatenate((view[: SEQ + 1], view[self._row[name]][None]))


@dataclass(frozen=True, slots=True, eq=False)
class Decimated:
    """What of a curve fits ``n`` columns of a screen.

    Attributes:
        x: float64 ``(n,)``, the middle of each column that holds a point.
        low: float64 ``(n,)``, least finite value there; NaN where all are NaN or infinite.
        high: float64 ``(n,)``, greatest finite value there.
        mean: float64 ``(n,)``, mean of the finite values there.
        broken: bool ``(n,)``, whether a NaN or an infinity stands there.
    """

    x: Array
    low: Array
    high: Array
    mean: Array
    broken: Array


def decimate(x: Array, values: Array, columns: int, bounds: tuple[float, float] | None = None) -> Decimated:
    """Reduce a curve to what ``columns`` columns can show; every spike and every NaN keeps its mark.

    Args:
        x: Shape ``(n,)``, in any order; points at NaN or infinity have no place and are left out.
        values: Shape ``(n,)``.
        columns: At most this many; at least 1.
        bounds: Least and greatest ``x`` of the screen; None for those of the data.
    """
    if x.dtype.kind == "f" and not (placed := np.isfinite(x)).all():
        x, values = x[placed], values[placed]
    if len(x) == 0:
        nothing = np.empty(0)
        return Decimated(nothing, nothing, nothing, nothing, np.empty(0, bool))
    if np.any(x[1:] < x[:-1]):
        order = np.argsort(x, kind="stable")
        x, values = x[order], values[order]
    low, high = (float(x[0]), float(x[-1])) if bounds is None else bounds
    columns = max(1, columns)
    # Edges of x's own type: float edges on int64 steps make numpy convert all of x.
    edges = np.linspace(low, high, columns + 1)
    inner = np.ceil(edges[1:-1]).astype(x.dtype) if x.dtype.kind in "iu" else edges[1:-1]
    begin = int(np.searchsorted(x, np.asarray(np.ceil(low) if x.dtype.kind in "iu" else low, x.dtype), "left"))
    end = int(np.searchsorted(x, np.asarray(np.floor(high) if x.dtype.kind in "iu" else high, x.dtype), "right"))
    if begin >= end:
        return decimate(x[:0], values[:0], columns)
    cuts = np.clip(np.concatenate(([begin], np.searchsorted(x, inner, "left"))), begin, end)
    sizes = np.diff(np.append(cuts, end))
    filled = sizes > 0
    starts = cuts[filled]
    finite = np.isfinite(values)
    clean = np.where(finite, values, np.nan)[:end]
    count = np.add.reduceat(finite[:end].astype(np.int64), starts)
    least, greatest = np.fmin.reduceat(clean, starts), np.fmax.reduceat(clean, starts)
    with np.errstate(over="ignore", invalid="ignore"):  # the sum of huge values may overflow, their mean does not
        total = np.add.reduceat(np.where(finite[:end], values[:end], 0.0), starts)
        mean = np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
    return Decimated(
        x=((edges[1:] + edges[:-1]) / 2)[filled],
        low=least,
        high=greatest,
        mean=np.clip(mean, least, greatest),
        broken=count < sizes[filled],
    )

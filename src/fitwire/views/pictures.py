"""Arrays of a sample → what each example looks like: pixels, bars or words.

Pure numpy. An array is read by its role where that says how (``mask``, ``classes``, ``text``), else by its shape and
dtype. What training and target share, they are painted alike: a prediction is shown on its target's scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fitwire.protocol.arrays import Array
from fitwire.views.display import display, number

__all__ = ["Tile", "fit", "tiles"]

MAX_BARS = 64
"""Longest vector that is classes rather than a series."""
SMALLEST_SIDE = 4
"""Pixels a side from which two axes are a picture."""
_ORDER = ("image", "input", "target", "prediction", "mask", "heatmap", "classes", "series", "text")
_CHANNELS = (1, 3, 4)
_NAN = (200, 0, 200)
_PALETTE = np.array(
    [
        (0, 0, 0),
        (86, 180, 233),
        (230, 159, 0),
        (0, 158, 115),
        (240, 228, 66),
        (213, 94, 0),
        (204, 121, 167),
        (0, 114, 178),
    ],
    dtype=np.uint8,
)
"""Okabe and Ito's colours, told apart by colour-blind people too; number 0 is the background."""
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One array of one example.

    Attributes:
        role: The array's name.
        pixels: uint8 ``(height, width, 3)``; None when it is no picture.
        bars: float64 ``(n,)``, 0 to 1: classes by probability, or a series between its least and greatest value.
        text: Words beside or instead of the picture.
        right: Whether the prediction is the target's; None when that is no question.
    """

    role: str
    pixels: Array | None = None
    bars: Array | None = None
    text: str = ""
    right: bool | None = None


def tiles(arrays: Mapping[str, Array], most: int) -> list[list[Tile]]:
    """What the first ``most`` examples look like: a list for each example, a tile for each array, input first.

    Args:
        arrays: By role or name, shape ``(examples, ...)``.
        most: Examples wanted.
    """
    names = sorted(arrays, key=_rank)
    count = min([most, *(len(arrays[name]) for name in names)])
    columns: list[list[Tile]] = []
    for name in names:
        mate = "target" + name.removeprefix("prediction") if name.startswith("prediction") else ""
        columns.append(_column(name, arrays[name], arrays.get(mate), count))
    return [[column[index] for column in columns] for index in range(count)]


def _rank(name: str) -> tuple[int, str]:
    role = name.split(".")[0]
    return (_ORDER.index(role) if role in _ORDER else len(_ORDER), "")


def _column(name: str, values: Array, target: Array | None, count: int) -> list[Tile]:
    """One array, all examples, painted on one scale."""
    role = name.split(".")[0]
    if values.dtype.kind not in "biufc":
        return [Tile(name, text=display(one, 60)) for one in values[:count].reshape(count, -1)[:, 0].tolist()]
    if np.iscomplexobj(values):
        values = np.abs(values)
    pictures = _picture_view(values, role)
    if pictures is not None:
        scale = (
            target if target is not None and target.shape == values.shape and target.dtype.kind in "biuf" else values
        )
        low, high = _scale(scale[:count])
        return [Tile(name, pixels=_paint(one, role, low, high)) for one in pictures[:count]]
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 1:
        return [_scalar(name, flat[index, 0], _label(target, index)) for index in range(count)]
    if (
        role in ("classes", "prediction")
        and flat.shape[1] <= MAX_BARS
        and (role == "classes" or target is None or _label(target, 0) is not None)
    ):
        return [_classes(name, flat[index], _label(target, index)) for index in range(count)]
    if role == "target" and _label(values, 0) is not None:
        return [Tile(name, text=str(_label(values, index))) for index in range(count)]
    return [_series(name, flat[index]) for index in range(count)]


def _picture_view(values: Array, role: str) -> Array | None:
    """Examples as ``(n, height, width)`` or ``(n, height, width, channels)``; None when they are no pictures.

    Channels are the last axis if that is 1, 3 or 4 long, else the first if that is, else the shorter of the two.
    """
    if role in ("series", "keypoints", "boxes", "classes", "text"):
        return None
    while values.ndim > 3 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 4:
        first, last = values.shape[1], values.shape[3]
        trailing = last in _CHANNELS and min(values.shape[1:3]) >= SMALLEST_SIDE
        if not trailing and (first in _CHANNELS or first < last):
            values = np.moveaxis(values, 1, -1)
    return values if values.ndim in (3, 4) and min(values.shape[1:3]) >= SMALLEST_SIDE else None


def _scale(values: Array) -> tuple[float, float]:
    """What is black and what is white."""
    if values.dtype == np.uint8:
        return (0.0, 255.0) if values.size and values.max() > 1 else (0.0, 1.0)
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if low >= -0.1 and 0.5 < high <= 1.1:
        return 0.0, 1.0  # meant to be 0 to 1: a dim picture stays dim
    return (low, high) if high > low else (low - 1.0, low + 1.0)


def _paint(values: Array, role: str, low: float, high: float) -> Array:
    """uint8 ``(height, width, 3)``; NaN in magenta."""
    if role == "mask" and values.ndim == 2 and values.dtype.kind in "iu" and values.size and values.max() > 1:
        return _PALETTE[np.where(values == 0, 0, 1 + (values - 1) % (len(_PALETTE) - 1))]
    with np.errstate(all="ignore"):
        level = (values.astype(np.float64) - low) / (high - low)
    missing = np.isnan(level)
    level = np.clip(np.where(missing, 0.0, level), 0.0, 1.0)
    if level.ndim == 3:
        level, missing = _channels(level), missing.any(axis=2)
    if role == "heatmap" and level.ndim == 2:
        place = level * (len(_HEAT) - 1)
        pixels = np.stack([np.interp(place, np.arange(len(_HEAT)), _HEAT[:, part]) for part in range(3)], axis=-1)
    else:
        pixels = 255.0 * (level if level.ndim == 3 else np.repeat(level[..., None], 3, axis=2))
    painted = np.rint(pixels).astype(np.uint8)
    painted[missing] = _NAN
    return painted


def _channels(level: Array) -> Array:
    """``(height, width, channels)`` to one or three channels; many of them by their greatest."""
    if level.shape[-1] == 4:
        return level[..., :3] * level[..., 3:]
    if level.shape[-1] == 3:
        return level
    return level.max(axis=2)


def _label(values: Array | None, index: int) -> int | None:
    """A class as a number: an integer as it is, or the place of the one in a one-hot row."""
    if values is None or values.dtype.kind not in "biuf":
        return None
    one = values.reshape(len(values), -1)[index]
    if one.size == 1:
        value = float(one[0])
        return int(value) if value == value and value == int(value) else None
    hot = np.flatnonzero(one)
    return int(hot[0]) if len(hot) == 1 and one[hot[0]] == 1 else None


def _scalar(name: str, value: Array, target: int | None) -> Tile:
    said = float(value)
    if name.startswith("prediction") and target in (0, 1) and 0 <= said <= 1:
        return Tile(name, text=f"target {target} predicted {number(said)}", right=(said >= 0.5) == bool(target))
    return Tile(name, text=number(said))


def _classes(name: str, scores: Array, target: int | None) -> Tile:
    scores = np.nan_to_num(scores.astype(np.float64), nan=-np.inf, posinf=1e300, neginf=-1e300)
    best = int(np.argmax(scores))
    likely = scores
    if scores.min() < 0 or not 0.98 < scores.sum() < 1.02:  # logits
        with np.errstate(all="ignore"):
            likely = np.exp(scores - scores.max())
            likely = likely / likely.sum()
    text = f"predicted {best}" if target is None else f"target {target} predicted {best}"
    return Tile(name, bars=np.nan_to_num(likely), text=text, right=None if target is None else target == best)


def _series(name: str, values: Array) -> Tile:
    low, high = _scale(values)
    with np.errstate(all="ignore"):
        level = (values.astype(np.float64) - low) / (high - low)
    return Tile(name, bars=np.clip(np.nan_to_num(level), 0.0, 1.0))


def fit(pixels: Array, width: int, height: int) -> Array:
    """Bring a picture to the greatest size that fits ``width`` times ``height``, its sides in proportion.

    Smaller by the mean of areas, greater by whole factors, so that a pixel stays a square.
    """
    rows, columns = pixels.shape[:2]
    if rows <= height and columns <= width:
        factor = max(1, min(height // rows, width // columns))
        return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
    shrink = max(rows / height, columns / width)
    new_rows, new_columns = max(1, int(rows / shrink)), max(1, int(columns / shrink))
    row_cuts, column_cuts = np.arange(new_rows) * rows // new_rows, np.arange(new_columns) * columns // new_columns
    summed = np.add.reduceat(pixels.astype(np.float64), row_cuts, axis=0)
    summed = np.add.reduceat(summed, column_cuts, axis=1)
    areas = np.diff(row_cuts, append=rows)[:, None] * np.diff(column_cuts, append=columns)[None, :]
    return np.rint(summed / areas[..., None]).astype(np.uint8)

"""Branches of a run, and gaps in it: what a process life took up again from an earlier one, and what is missing.

A run that resumes from an earlier step branches off there. Nothing is thrown away: the newest branch is what curves
show, the others are to be asked for. Pure; it knows no history, store or view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from fitwire.events import Per
from fitwire.protocol.arrays import Array

__all__ = ["Branch", "Gap", "branch_point", "goes_before"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of one source that are not here, and nobody knows what they said.

    Attributes:
        rank: Whose.
        incarnation: Of which process life.
        lane: 0 for records, 1 for samples.
        first: Sequence number of the first.
        last: Sequence number of the last.
        after: The step told last before it; None when none was.
    """

    rank: int
    incarnation: int
    lane: int
    first: int
    last: int
    after: int | None


@dataclass(frozen=True, slots=True)
class Branch:
    """What one process life of a run told: a run that resumes branches off what was told before.

    Attributes:
        incarnation: Its process life.
        first_step: Least step it told of; None before its first.
        last_step: The step it told of last.
        started: When it began, Unix seconds; 0 when unknown.
        replaced_from: Step from which on it took up again what earlier branches had told; None when it only went on.
    """

    incarnation: int
    first_step: int | None
    last_step: int | None
    started: float
    replaced_from: int | None


def branch_point(first_step: Mapping[Per, int]) -> int | None:
    """The least step of an incarnation's batches, or of its epochs when it told of no batch; None before its first.

    Args:
        first_step: By what rows are per, the least step.
    """
    return first_step.get("batch", first_step.get("epoch"))


def goes_before(rows: Array, per: Per, first_step: Mapping[Per, int], first_epoch: int | None) -> Array:
    """Which rows a later incarnation did not take up again: bool ``(n,)``.

    By steps, because epochs may be counted anew (a second ``fit`` of the same run). A loop that tells no steps with its
    epochs has the same one with all of them: there epochs decide.

    Args:
        rows: As of ``Columns.of``, of an earlier incarnation.
        per: What they are per: ``"batch"`` or ``"epoch"``.
        first_step: Of the later one, by what its rows are per.
        first_epoch: Of the later one; None when it tells of none.
    """
    first = branch_point(first_step) if per == "epoch" else first_step.get(per)
    stepless = per == "epoch" and "batch" not in first_step and bool((rows[0] == first).all())
    if stepless and first_epoch is not None and not np.isnan(rows[1]).any():
        return np.less(rows[1], first_epoch)
    return cast(Array, np.ones(rows.shape[1], bool) if first is None else np.less(rows[0], first))

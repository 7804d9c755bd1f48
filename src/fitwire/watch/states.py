"""What a run is doing, how far it is, and how long it will take: judged at the watcher, so also for a dead trainer.

Pure: facts and a time go in, a judgement comes out. This module knows no socket, store or view.
"""

from __future__ import annotations

import math
import operator
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from fitwire.errors import UsageError
from fitwire.protocol.arrays import Array

__all__ = [
    "Condition",
    "Pace",
    "Progress",
    "RankFacts",
    "State",
    "duration",
    "judge",
    "judge_rank",
    "parse_condition",
]

LOST_AFTER = 10.0
"""Seconds without a connection after which a trainer counts as lost; a shorter fuse was wrong about busy ones."""
STALLED_AFTER = 5.0
"""Seconds of silence that need no explanation: a full disk cache, a garbage collection, a busy machine."""
STALLED_GAPS = 3.0
"""Silence of so many of the run's own longest gaps is more than its pace explains."""
UNKNOWN = 60.0
"""Seconds of silence allowed where the pace does not tell yet: after the first rows, and in the first pauses between
epochs, where a first validation or checkpoint stands. The run's start-up, or its first epoch, may explain more."""
YOUNG = 8
"""Rows before which the pace does not tell: the first steps compile, tune and fill caches."""
FIRST_EPOCHS = 2
"""Epochs after which the pauses between them are known."""
GAPS_REMEMBERED = 50.0
"""A pause counts half after so many times its own length, and after :data:`LEAST_MEMORY` at least: one validation
explains the next, while a night's suspension is forgotten."""
LEAST_MEMORY = 600.0
LONGEST_GAP = 6 * 3600.0
"""What a clock that was set, or a peer that makes times up, may claim as a pause."""
PACE_SPAN = 30.0
"""Seconds over which the present pace is taken."""


class State(StrEnum):
    """What a run is doing."""

    WAITING = "waiting"  # no batch yet
    RUNNING = "running"
    PAUSED = "paused"
    STALLED = "stalled"  # connected, and silent for longer than its own pace explains
    LOST = "lost"  # not connected for over 10 s and not known to be there, or its process is known to be gone
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of itself; a lost run may come back."""
        return self in ENDS


ENDS = frozenset({State.FINISHED, State.FAILED, State.INTERRUPTED})

# Of several ranks the first that applies is what the run is doing.
_PRECEDENCE = (
    State.FAILED, State.INTERRUPTED, State.LOST, State.STALLED, State.PAUSED, State.RUNNING, State.WAITING,
    State.FINISHED,
)  # fmt: skip


@dataclass(slots=True)
class RankFacts:
    """What is known of one rank.

    Attributes:
        incarnation: Its process life.
        ended: How it said it ended, else None.
        started: Whether a batch was told of.
        connected: Whether its transport is up.
        since: When the transport went down, on the caller's clock.
        gone: Whether its process is known to be gone.
        present: Whether its process is known to be there, connected or not: a stopped one answers nobody.
        told: When it last told of anything but the machine's load, on the caller's clock.
        longest_gap: Longest pause between two batches or epochs, of late; seconds.
        patience: Silence that its own pace explains, seconds; see :meth:`Pace.patience`.
        seen: Whether it was ever connected, as far as who judges remembers.
        durability: What a kill may cost it: ``"memory"``, ``"process"``, or nothing when that was not said.
        paused: Whether it holds because it was asked to.
    """

    incarnation: int = 0
    ended: State | None = None
    started: bool = False
    connected: bool = False
    since: float = 0.0
    gone: bool = False
    present: bool = False
    told: float = 0.0
    longest_gap: float = 0.0
    patience: float = STALLED_AFTER
    seen: bool = False
    durability: str = ""
    paused: bool = False


def judge_rank(facts: RankFacts, now: float) -> State:
    """What one rank is doing."""
    if facts.ended is not None:
        return facts.ended
    reachable = facts.connected or facts.present
    if facts.gone or not (reachable or now - facts.since <= LOST_AFTER):
        return State.LOST
    if facts.paused or not facts.started:
        return State.PAUSED if facts.paused else State.WAITING
    # While it cannot be reached its silence says nothing: it has ten seconds to come back.
    silent = (now if reachable else facts.since) - facts.told
    stopped = facts.present and not facts.connected and now - facts.since > STALLED_AFTER
    return State.STALLED if stopped or silent > facts.patience else State.RUNNING


def judge(ranks: Iterable[RankFacts], now: float) -> State:
    """What a run is doing, by its ranks; LOST when nothing is known of any."""
    states = {judge_rank(facts, now) for facts in ranks}
    return next((state for state in _PRECEDENCE if state in states), State.LOST)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Index of the last optimizer step done, from 0; None before the first.
        steps: How many there will be; None when unknown.
        epoch: The epoch it is in, from 0; None when the loop tells of none.
        epochs: How many there will be; None when unknown.
        batch: Last batch within its epoch, from 0; None when not told.
        steps_per_epoch: None when unknown.
        fraction: Done, 0 to 1; None when the total is unknown.
        eta: Seconds still to go; None when unknown.
        pace: Seconds per step, of late; None before the second step.
        elapsed: Seconds from the start to the last word.
    """

    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    batch: int | None = None
    steps_per_epoch: int | None = None
    fraction: float | None = None
    eta: float | None = None
    pace: float | None = None
    elapsed: float = 0.0


@dataclass(slots=True)
class Pace:
    """How fast one rank goes, from the rows it tells; times are the trainer's own, Unix seconds.

    ``rows`` counts them, and ``after_epoch`` is whether the last was of a whole epoch: whoever calls :meth:`told` sets
    them.
    """

    step: int | None = None
    epoch: int | None = None
    batch: int | None = None
    epochs_done: int = 0
    first_epoch: int | None = None
    first: tuple[float, int] | None = None
    last: tuple[float, int] | None = None
    longest_gap: float = 0.0
    rows: int = 0
    after_epoch: bool = False
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque[tuple[float, int]](maxlen=256))

    def told(self, time: float, step: int, epoch: int | None, batch: int | None, gap: float | None = None) -> None:
        """A row; ``gap`` is the longest pause since the last one told of here, when there were rows between the two."""
        passed = 0.0 if self.last is None else min(max(0.0, time - self.last[0]), LONGEST_GAP)
        self.longest_gap *= 0.5 ** (passed / max(LEAST_MEMORY, GAPS_REMEMBERED * self.longest_gap))
        gap = passed if gap is None else gap
        self.longest_gap = max(min(gap, LONGEST_GAP), self.longest_gap)
        self.step, self.batch = step, batch
        self.epoch = self.epoch if epoch is None else epoch
        self.last = (time, step)
        self.first = self.first or self.last
        if self._marks and time < self._marks[-1][0]:  # the trainer's clock was set
            self._marks.clear()
        if not self._marks or time - self._marks[-1][0] >= 0.25:
            self._marks.append(self.last)

    def skip(self, seconds: float) -> None:
        """Leave so long out of account, from the last row on: the run held because it was asked to."""
        if seconds > 0 and self.last is not None and self.first is not None:
            self.last, self.first = (self.last[0] + seconds, self.last[1]), (self.first[0] + seconds, self.first[1])
            marks = [(time + seconds, step) for time, step in self._marks]
            self._marks.clear()
            self._marks.extend(marks)

    def patience(self, began: float, totals: Mapping[str, Any]) -> float:
        """Seconds of silence that are no sign of a stall.

        Three of its own longest pauses, and five seconds at least. Where no pause of the kind to be expected is known
        yet, more: after the first rows three times what the start-up took, and between the first epochs as long as
        they took, a minute at least.

        Args:
            began: When its process began, Unix seconds; 0 when unknown.
            totals: As for :meth:`progress`.
        """
        if self.first is None or self.last is None:
            return UNKNOWN
        least = STALLED_AFTER
        if self.rows < YOUNG:
            least = max(UNKNOWN, STALLED_GAPS * (self.first[0] - began) if began > 0 else 0.0)
        elif self.epochs_done - (self.first_epoch or 0) < FIRST_EPOCHS and self._between_epochs(totals):
            least = max(UNKNOWN, self.last[0] - self.first[0])
        return min(max(least, STALLED_GAPS * self.longest_gap), STALLED_GAPS * LONGEST_GAP)

    def _between_epochs(self, totals: Mapping[str, Any]) -> bool:
        per_epoch, steps = _count(totals.get("steps_per_epoch")), _count(totals.get("steps"))
        last_batch = self.batch is not None and self.batch + 1 == per_epoch
        return self.after_epoch or last_batch or (self.step is not None and self.step + 1 == steps)

    @property
    def of_late(self) -> float | None:
        """Seconds per step over the last 30 seconds; None before the second step."""
        if self.last is None or self.first is None:
            return None
        time, step = self.last
        then = next((mark for mark in self._marks if time - mark[0] <= PACE_SPAN and mark[1] < step), self.first)
        return None if step <= then[1] else max(0.0, (time - then[0]) / (step - then[1]))

    @property
    def overall(self) -> float | None:
        """Seconds per step since the first, validation and all; None before the second step."""
        if self.last is None or self.first is None or self.last[1] <= self.first[1]:
            return None
        return max(0.0, (self.last[0] - self.first[0]) / (self.last[1] - self.first[1]))

    def progress(self, totals: Mapping[str, Any], elapsed: float, ended: bool) -> Progress:
        """How far it is, given ``totals`` (``epochs``, ``steps_per_epoch``, ``steps``; None or absent when unknown)."""
        epochs, per_epoch = _count(totals.get("epochs")), _count(totals.get("steps_per_epoch"))
        steps = _count(totals.get("steps"))
        if steps is None and epochs is not None and per_epoch is not None:
            steps = _count(epochs * per_epoch)
        fraction = eta = None
        if self.step is not None and steps:
            fraction = min(1.0, max(0.0, (self.step + 1) / steps))
            if self.overall is not None:
                eta = max(0.0, (steps - self.step - 1) * self.overall)
        elif epochs and (self.epochs_done or self.step is not None):
            fraction = min(1.0, max(0.0, self.epochs_done / epochs))
            # A resumed run has done some of them in another life, at a pace that is not known here.
            done = self.epochs_done - (self.first_epoch or 0)
            if done > 0:
                eta = max(0.0, elapsed / done * (epochs - self.epochs_done))
        return Progress(
            self.step, steps, self.epoch, epochs, self.batch, per_epoch, fraction, None if ended else eta,
            self.of_late, elapsed,
        )  # fmt: skip


def duration(seconds: float | None) -> str:
    """A span of time: ``0.8 s``, ``42 s``, ``3:07``, ``2:03:07``, ``5 d 3 h``; ``?`` for None.

    Example:
        >>> [duration(x) for x in (0.84, 42.4, 187, 7387, 442800, None)]
        ['0.8 s', '42 s', '3:07', '2:03:07', '5 d 3 h', '?']
    """
    if seconds is None or not math.isfinite(seconds):
        return "?"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 2**53 else None


@dataclass(frozen=True, slots=True)
class Condition:
    """``NAME op NUMBER``.

    Attributes:
        name: Of a metric.
        op: One of ``< <= > >= == !=``.
        bound: The number.
    """

    name: str
    op: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.op} {self.bound:g}"

    def met(self, value: float) -> bool:
        """Whether ``value`` meets it; NaN meets only ``!=``."""
        return bool(_OPERATORS[self.op](value, self.bound))

    def first_met(self, values: Array) -> float | None:
        """The first of ``values``, float64 ``(n,)``, that meets it; None when none does."""
        found = np.flatnonzero(_OPERATORS[self.op](values, self.bound))
        return float(values[found[0]]) if len(found) else None


_OPERATORS: dict[str, Callable[[Any, float], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_CONDITION = re.compile(r"\s*(\S.*?)\s*(<=|>=|==|!=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf|nan)\s*")


def parse_condition(text: str) -> Condition:
    """Parse ``NAME op NUMBER``, e.g. ``val_loss < 0.2``.

    Raises:
        UsageError: It is nothing of that form.
    """
    match = _CONDITION.fullmatch(text) if isinstance(text, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    if match is None or match[1][-1] in "<>=!":  # "loss =< 1" would wait for a metric called "loss ="
        raise UsageError(f"{str(text)[:80]!r} is no condition: write NAME op NUMBER, e.g. 'val_loss < 0.2'")
    return Condition(match[1], match[2], float(match[3]))

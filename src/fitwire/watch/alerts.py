"""Alerts, judged at the watcher: they come when the trainer is dead, too, and cost it nothing.

What is to be told of is a word or ``NAME op NUMBER``. Each is told once for a run; what a run does, whenever it begins
to. This module knows no socket and no view, and does not wait: :meth:`Alerts.look` is called when something may have
changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fitwire.errors import UsageError
from fitwire.protocol.arrays import Array
from fitwire.watch.states import Condition, State, parse_condition

__all__ = ["BUILT_IN", "Alarm", "Alerts", "Observed"]

BUILT_IN = ("nan", "stalled", "lost", "failed", "finished")
"""Words: a value that is NaN or infinite, and what a run may begin to do."""


class Observed(Protocol):
    """What is asked of a run; a ``WatchedRun`` is one."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def ended(self) -> bool: ...
    @property
    def metrics(self) -> list[str]: ...
    @property
    def status_text(self) -> str: ...
    def seek(self, metric: str, first: Callable[[Array], float | None]) -> Callable[[], float | None]: ...


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is to be told.

    Attributes:
        run: Its id, 32 hexadecimal digits.
        name: Of the run, for people.
        when: The rule, as it was written.
        text: What came to pass, in a few words.
        value: Of the metric; None where it is about what the run does.
        time: When it was noticed, Unix seconds.
    """

    run: str
    name: str
    when: str
    text: str
    value: float | None = None
    time: float = 0.0


class Alerts:
    """The rules, and what has been told of each run.

    Args:
        when: Each a word of :data:`BUILT_IN`, or ``NAME op NUMBER``.
        clock: Unix seconds.

    Raises:
        UsageError: A rule that is neither.

    Example:
        >>> Alerts(["nan", "val_loss < 0.2"]).rules
        ['nan', 'val_loss < 0.2']
    """

    def __init__(self, when: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self.rules: list[str] = []
        self._clock = clock
        self._conditions: dict[str, Condition] = {}
        for rule in when:
            if rule not in BUILT_IN:
                self._conditions[rule] = _parsed(rule)
            if rule not in self.rules:
                self.rules.append(rule)
        self._runs: dict[str, _Run] | None = None

    def look(self, runs: Sequence[Observed]) -> list[Alarm]:
        """What has come to pass since the last look; what is so at the first look is not told of, values aside.

        Args:
            runs: All there are; those that had ended by the first look are left out for good.
        """
        if self._runs is None:
            self._runs = {run.id: _Run(run.state, over=run.ended) for run in runs}
        found: list[Alarm] = []
        for run in runs:
            known = self._runs.get(run.id)
            if known is None:
                known = self._runs[run.id] = _Run(None)
            if not known.over:
                found.extend(self._of(run, known))
        return found

    def _of(self, run: Observed, known: _Run) -> Iterator[Alarm]:
        state = run.state  # before the values: with the end, the last of them is there
        for metric in run.metrics if "nan" in self.rules else ():
            value = known.seek("nan", run, metric, _first_not_finite)
            if value is not None:
                yield self._alarm(run, "nan", f"{metric} is {value}", value)
        for rule, condition in self._conditions.items():
            value = known.seek(rule, run, condition.name, condition.first_met)
            if value is not None:
                yield self._alarm(run, rule, f"{condition.name} is {value:g}", value)
        if state is not known.state:
            known.state = state
            if str(state) in self.rules:
                yield self._alarm(run, str(state), run.status_text)
        known.over = state.ended

    def _alarm(self, run: Observed, rule: str, text: str, value: float | None = None) -> Alarm:
        return Alarm(run.id, run.name, rule, text, value, self._clock())


class _Run:
    """What is known of one run."""

    def __init__(self, state: State | None, *, over: bool = False) -> None:
        self.state, self.over = state, over
        self._seeks: dict[tuple[str, str], Callable[[], float | None] | None] = {}

    def seek(self, rule: str, run: Observed, metric: str, first: Callable[[Array], float | None]) -> float | None:
        key = (rule, metric)
        if key not in self._seeks:
            self._seeks[key] = run.seek(metric, first)
        look = self._seeks[key]
        value = None if look is None else look()
        if value is not None:
            self._seeks[key] = None  # told once
        return value


def _first_not_finite(values: Array) -> float | None:
    found = np.flatnonzero(~np.isfinite(values))
    return float(values[found[0]]) if len(found) else None


def _parsed(rule: str) -> Condition:
    try:
        return parse_condition(rule)
    except UsageError:
        words = ", ".join(BUILT_IN)
        raise UsageError(f"{rule[:80]!r} is no rule: write {words}, or NAME op NUMBER, e.g. 'val_loss < 0.2'") from None

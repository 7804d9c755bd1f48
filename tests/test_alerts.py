"""What is told of a run, when, and how often: judged from what runs say and do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fitwire.errors import UsageError
from fitwire.watch.alerts import Alerts
from fitwire.watch.states import State


class Told:
    """A run as a monitor shows it."""

    def __init__(self, name: str = "fox", state: State = State.RUNNING) -> None:
        self.id, self.name, self.state = name.encode().hex(), name, state
        self.values: dict[str, list[float]] = {}
        self.looked = 0

    @property
    def ended(self) -> bool:
        return self.state.ended

    @property
    def metrics(self) -> list[str]:
        return list(self.values)

    @property
    def status_text(self) -> str:
        return f"{self.state} since then"

    def log(self, **values: float) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def seek(self, metric: str, first: Callable[[Any], float | None]) -> Callable[[], float | None]:
        seen = 0

        def look() -> float | None:
            nonlocal seen
            new, seen = self.values.get(metric, [])[seen:], len(self.values.get(metric, []))
            self.looked += len(new)
            return first(np.array(new))

        return look


def texts(alerts: Alerts, *runs: Told) -> list[tuple[str, str, str]]:
    return [(alarm.name, alarm.when, alarm.text) for alarm in alerts.look(runs)]


def test_a_metric_is_told_of_once_for_each_run() -> None:
    """What was said before the first look counts, what comes after the first match does not."""
    alerts, one, two = Alerts(["val_loss < 0.2"]), Told("one"), Told("two")
    one.log(val_loss=0.1)
    assert texts(alerts, one, two) == [("one", "val_loss < 0.2", "val_loss is 0.1")]
    one.log(val_loss=0.05)
    two.log(val_loss=0.5)
    assert texts(alerts, one, two) == []
    two.log(val_loss=0.15)
    two.log(val_loss=0.9)

    assert texts(alerts, one, two) == [("two", "val_loss < 0.2", "val_loss is 0.15")]


def test_a_value_that_is_none_is_found_between_others() -> None:
    """Each metric of each run once, whichever of the three it is; no value is looked at twice."""
    alerts, run = Alerts(["nan"]), Told()
    run.log(loss=1.0, acc=0.5)
    assert texts(alerts, run) == []
    run.log(loss=math.nan, acc=0.5)
    run.log(loss=1.0, acc=0.5)
    assert texts(alerts, run) == [("fox", "nan", "loss is nan")]
    run.log(loss=math.nan, acc=-math.inf)

    assert texts(alerts, run) == [("fox", "nan", "acc is -inf")]
    assert run.looked == 7  # the last of loss is looked for no more


def test_what_a_run_does_is_told_when_it_begins_to() -> None:
    """Again when it does so again; what it did at the first look is nothing new."""
    alerts, run = Alerts(["stalled", "lost", "finished"]), Told(state=State.STALLED)
    assert texts(alerts, run) == []
    for state, expected in (
        (State.RUNNING, []), (State.STALLED, ["stalled"]), (State.STALLED, []), (State.LOST, ["lost"]),
        (State.RUNNING, []), (State.STALLED, ["stalled"]), (State.FINISHED, ["finished"]),
    ):  # fmt: skip
        run.state = state
        assert [when for _, when, _ in texts(alerts, run)] == expected


def test_runs_that_had_ended_are_left_out_and_new_ones_are_not() -> None:
    """One that fails before anybody looked has failed since."""
    alerts, old = Alerts(["failed", "nan"]), Told("old", State.FAILED)
    old.log(loss=math.nan)
    assert texts(alerts, old) == []
    new = Told("new", State.FAILED)
    new.log(loss=math.nan)

    assert texts(alerts, old, new) == [("new", "nan", "loss is nan"), ("new", "failed", "failed since then")]
    assert texts(alerts, old, new) == []
    assert old.looked == 0


@pytest.mark.parametrize("rule", ["", "nosuch", "loss", "loss =< 1", "__import__('os') < 1 or 2"])
def test_a_rule_that_is_none_is_refused_with_those_there_are(rule: str) -> None:
    """Nothing is evaluated."""
    with pytest.raises(UsageError, match="stalled, lost, failed, finished, or NAME op NUMBER"):
        Alerts([rule])


def test_when_it_was_noticed_is_told() -> None:
    """By the watcher's clock."""
    alerts, run = Alerts(["loss > 3"], clock=lambda: 17.0), Told()
    run.log(loss=4.0)
    (alarm,) = alerts.look([run])

    assert (alarm.run, alarm.value, alarm.time) == (run.id, 4.0, 17.0)

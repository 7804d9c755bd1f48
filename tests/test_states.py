"""Tests of ``fitwire.watch.states``: what a run is doing, as a table; how far it is; conditions."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from fitwire.errors import UsageError
from fitwire.watch.states import LONGEST_GAP, Pace, Progress, RankFacts, State, judge, judge_rank, parse_condition

UP = {"connected": True, "started": True, "told": 100.0}

TABLE: list[tuple[dict[str, Any], float, str]] = [
    # what is known, the time, what the rank is doing
    ({"connected": True, "told": 0.0}, 1.0, "waiting"),
    ({"connected": True, "told": 0.0}, 1e6, "waiting"),  # a long look at the data is no stall
    (UP, 100.0, "running"),
    (UP, 105.0, "running"),
    (UP, 105.1, "stalled"),
    ({**UP, "patience": 90.0}, 189.0, "running"),  # its pace explains that much
    ({**UP, "patience": 90.0}, 191.0, "stalled"),
    ({**UP, "paused": True}, 1e6, "paused"),
    ({**UP, "connected": False, "since": 102.0}, 111.0, "running"),  # out of reach, its silence says nothing
    ({**UP, "connected": False, "since": 106.0}, 111.0, "stalled"),  # it was silent before
    ({**UP, "connected": False, "since": 105.0}, 115.1, "lost"),
    ({**UP, "connected": False, "since": 105.0, "gone": True}, 105.5, "lost"),  # kill -9 is known at once
    ({**UP, "connected": False, "since": 105.0, "present": True}, 1e6, "stalled"),  # stopped, not dead
    ({**UP, "connected": False, "since": 105.0, "present": True, "patience": 60.0}, 109.0, "running"),
    ({**UP, "connected": False, "since": 105.0, "present": True, "patience": 60.0}, 110.1, "stalled"),
    ({"connected": False, "since": 0.0}, 9.0, "waiting"),
    ({"connected": False, "since": 0.0}, 11.0, "lost"),
    ({"connected": True, "gone": True}, 1.0, "lost"),
    ({**UP, "ended": State.FINISHED, "connected": False, "gone": True}, 1e6, "finished"),
    ({**UP, "ended": State.FAILED}, 100.0, "failed"),
    ({"ended": State.INTERRUPTED}, 1e6, "interrupted"),
]


@pytest.mark.parametrize(("facts", "now", "state"), TABLE)
def test_a_rank_is_judged_by_what_is_known_and_the_time(facts: dict[str, Any], now: float, state: str) -> None:
    """The table."""
    assert judge_rank(RankFacts(**facts), now) == state


@pytest.mark.parametrize(
    ("ranks", "state"),
    [
        ([], "lost"),
        (["running", "waiting"], "running"),
        (["running", "stalled"], "stalled"),
        (["finished", "running"], "running"),
        (["finished", "lost"], "lost"),
        (["finished", "finished"], "finished"),
        (["running", "failed"], "failed"),
        (["lost", "interrupted"], "interrupted"),
        (["paused", "running"], "paused"),
        (["stalled", "paused"], "stalled"),
    ],
)
def test_of_several_ranks_the_worst_is_told(ranks: list[str], state: str) -> None:
    """A run of which one process failed has failed, whatever the others do."""
    known = {
        "running": RankFacts(**UP), "waiting": RankFacts(connected=True), "paused": RankFacts(**UP, paused=True),
        "stalled": RankFacts(connected=True, started=True, told=-1e6), "lost": RankFacts(gone=True),
        "finished": RankFacts(ended=State.FINISHED), "failed": RankFacts(ended=State.FAILED),
        "interrupted": RankFacts(ended=State.INTERRUPTED),
    }  # fmt: skip

    assert judge([known[rank] for rank in ranks], 101.0) == state


def test_only_the_three_ends_are_ends() -> None:
    """A lost run may come back."""
    assert [state for state in State if state.ended] == ["finished", "failed", "interrupted"]


# -- what silence the pace explains


def silence(
    gaps: list[float], *, per_epoch: int | None = None, epoch_rows: bool = False, startup: float = 2.0
) -> float:
    """The silence explained after a run whose rows came with these pauses between them, told a block at a time."""
    at, pace = 1000.0 + startup, Pace()
    for index, gap in enumerate([0.0, *gaps]):
        at += gap
        pace.told(at, index, 0, index % per_epoch if per_epoch else None)
        pace.rows += 1
        pace.after_epoch = epoch_rows
    return pace.patience(1000.0, {"steps_per_epoch": per_epoch})


FAST = [0.001] * 5000

PATIENCE: list[tuple[str, list[float], dict[str, Any], float, float]] = [
    # what, its pauses, how it counts epochs, at least and at most what silence is explained
    ("a step a millisecond: 8 s of silence are a stall", FAST, {}, 5.0, 5.0),
    ("a hiccup of 1.5 s leaves it at that", [*FAST, 1.5, *FAST], {}, 4.0, 5.0),
    ("a step of 4 s", [4.0] * 50, {}, 12.0, 12.5),
    ("a validation of a minute every 500 steps explains the next", ([0.01] * 500 + [60.0]) * 3, {}, 150.0, 181.0),
    ("... also twenty minutes later", [0.01] * 500 + [60.0] + [0.01] * 120_000, {}, 60.0, 181.0),
    ("a night's suspension is forgotten after days", [1.0] * 20 + [3600.0] + [1.0] * 600_000, {}, 5.0, 900.0),
    ("after two rows nothing is known: the second step compiles", [0.5], {}, 60.0, 60.0),
    ("... and a start-up of a minute explains three", [0.5], {"startup": 60.0}, 180.0, 190.0),
    ("an epoch a row, the second is under way", [], {"startup": 400.0, "epoch_rows": True}, 1200.0, 1200.0),
    ("at the end of the first epoch: a validation not seen before", [0.01] * 99, {"per_epoch": 100}, 60.0, 60.0),
    ("... of an epoch of ten minutes", [2.0] * 299, {"per_epoch": 300}, 590.0, 600.0),
    ("in the midst of an epoch there is none", [0.01] * 120, {"per_epoch": 100}, 5.0, 5.0),
]


@pytest.mark.parametrize(("what", "gaps", "counting", "least", "most"), PATIENCE, ids=[row[0] for row in PATIENCE])
def test_silence_is_judged_by_the_runs_own_pace(
    what: str, gaps: list[float], counting: dict[str, Any], least: float, most: float
) -> None:
    """The table: no alarm for what the run did before or is likely to do now, within seconds for all else."""
    assert least <= silence(gaps, **counting) <= most, what


def test_the_pauses_between_epochs_are_known_after_the_second() -> None:
    """From then on what the run did there decides."""
    pace = Pace(epochs_done=2, first_epoch=0, rows=200, after_epoch=True)
    for at, step in ((0.0, 0), (1.0, 99), (3.0, 100), (4.0, 199)):
        pace.told(at, step, None, None)

    assert 5.0 <= pace.patience(0.0, {}) <= 6.1


def test_without_a_row_the_pace_tells_nothing() -> None:
    """A run that begins is waiting, whatever this says."""
    assert Pace().patience(0.0, {}) == 60.0


# -- pace and progress


def paced(*told: tuple[float, int], epochs_done: int = 0, first_epoch: int | None = None) -> Pace:
    pace = Pace(epochs_done=epochs_done, first_epoch=first_epoch)
    for at, step in told:
        pace.told(at, step, None, None)
    return pace


def test_nothing_is_known_of_the_pace_before_the_second_step() -> None:
    """No pace, no ETA, no fraction without totals."""
    assert Pace().progress({}, 0.0, False) == Progress()
    assert paced((5.0, 0)).progress({"steps": 10}, 5.0, False) == Progress(
        step=0, steps=10, fraction=0.1, eta=None, pace=None, elapsed=5.0
    )


def test_the_rest_takes_as_long_as_the_steps_have_so_far_validation_and_all() -> None:
    """2 s a step over all; of late 1 s."""
    pace = paced((0.0, 0), (70.0, 20), (100.0, 50))
    progress = pace.progress({"steps": 100}, 101.0, False)

    assert (progress.fraction, progress.eta, progress.pace) == (0.51, 49 * 2.0, 1.0)


@pytest.mark.parametrize(
    ("totals", "steps"),
    [
        ({"epochs": 3, "steps_per_epoch": 7}, 21),
        ({"epochs": 3, "steps_per_epoch": 7, "steps": 20}, 20),
        ({"epochs": 3}, None),
        ({"steps": 0}, None),
        ({"steps": -4}, None),
        ({"steps": True}, None),
        ({"steps": "20"}, None),
        ({"steps": 20.0}, None),
        ({"steps": 2**60}, None),
        ({"epochs": 2**52, "steps_per_epoch": 2**52}, None),  # a number no JSON reader must meet
    ],
)
def test_totals_are_believed_when_they_are_numbers(totals: dict[str, Any], steps: int | None) -> None:
    """What a peer calls a total may be anything."""
    assert paced((0.0, 0), (1.0, 1)).progress(totals, 1.0, False).steps == steps


def test_epochs_alone_give_a_fraction_and_an_eta() -> None:
    """A quarter done in 30 s leaves 90."""
    progress = paced((0.0, 5), epochs_done=2, first_epoch=0).progress({"epochs": 8}, 30.0, False)

    assert (progress.fraction, progress.eta, progress.epochs) == (0.25, 90.0, 8)


def test_a_resumed_run_is_timed_by_what_it_did_in_this_life() -> None:
    """One epoch of a hundred in 60 s, begun at the fiftieth: 49 more take 49 minutes, not one."""
    progress = paced((0.0, 5), epochs_done=51, first_epoch=50).progress({"epochs": 100}, 60.0, False)

    assert (progress.fraction, progress.eta) == (0.51, 49 * 60.0)


def test_after_the_end_there_is_nothing_to_wait_for() -> None:
    """The fraction stays as it was."""
    progress = paced((0.0, 0), (10.0, 10)).progress({"steps": 100}, 10.0, True)

    assert (progress.eta, progress.fraction) == (None, 0.11)


def test_a_fraction_is_never_beyond_its_bounds() -> None:
    """More steps than were announced, or steps below zero."""
    assert paced((0.0, 0), (1.0, 500)).progress({"steps": 10}, 1.0, False).fraction == 1.0
    assert paced((0.0, 0), (1.0, 500)).progress({"steps": 10}, 1.0, False).eta == 0.0
    assert paced((0.0, -500), (1.0, -400)).progress({"steps": 10}, 1.0, False).fraction == 0.0


def test_a_long_pause_explains_the_next_and_is_forgotten_in_the_end() -> None:
    """A validation of a minute every ten still counts at the third; a night's suspension does not for ever."""
    pace = Pace()
    now, step = 0.0, 0
    for _ in range(3):
        for _ in range(6000):  # ten minutes of a step in 100 ms
            now, step = now + 0.1, step + 1
            pace.told(now, step, None, None)
        now += 60.0
        pace.told(now, step, None, None)
    for _ in range(6000):
        now, step = now + 0.1, step + 1
        pace.told(now, step, None, None)

    assert pace.longest_gap > 50.0

    for _ in range(24 * 36):  # a day
        now, step = now + 100.0, step + 1
        pace.told(now, step, None, None)
    assert pace.longest_gap == pytest.approx(100.0)


def test_a_clock_that_is_set_neither_stops_the_pace_nor_makes_a_pause_of_years() -> None:
    """Back by an hour, then forward by ten years."""
    pace = paced(*((5000.0 + step, step) for step in range(20)))
    for step in range(20, 60):
        pace.told(1400.0 + step, step, None, None)

    assert pace.of_late == pytest.approx(1.0)

    pace.told(3e8, 60, None, None)
    pace.told(1e308, 61, None, None, math.inf)
    assert pace.longest_gap == LONGEST_GAP


def test_the_pace_costs_the_same_after_a_million_rows() -> None:
    """Old marks are let go."""
    pace = Pace()
    for step in range(2000):
        pace.told(step * 1.0, step, None, None)

    assert len(pace._marks) <= 256
    assert pace.of_late == pytest.approx(1.0)
    assert pace.overall == pytest.approx(1.0)


# -- conditions


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("val_loss < 0.2", ("val_loss", "<", 0.2)),
        ("val_loss<0.2", ("val_loss", "<", 0.2)),
        ("  acc>=.5  ", ("acc", ">=", 0.5)),
        ("lr <= 1e-4", ("lr", "<=", 1e-4)),
        ("loss == -3", ("loss", "==", -3.0)),
        ("loss != nan", ("loss", "!=", math.nan)),
        ("loss > -inf", ("loss", ">", -math.inf)),
        ("train/loss (mean) > 5.", ("train/loss (mean)", ">", 5.0)),
    ],
)
def test_a_condition_is_a_name_an_operator_and_a_number(text: str, parsed: tuple[str, str, float]) -> None:
    """Spaces or none, names with spaces, every way to write a number."""
    condition = parse_condition(text)

    np.testing.assert_equal((condition.name, condition.op, condition.bound), parsed)


@pytest.mark.parametrize(
    "text",
    ["", "loss", "loss <", "< 3", "loss < x", "loss = 3", "loss =< 3", "loss => 3", "loss <> 3", "loss < 3 4",
     "loss < 1_0", "loss < 0x10", None, 3],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_an_example(text: Any) -> None:
    """It would wait for ever for a metric that nobody logs."""
    with pytest.raises(UsageError, match=r"val_loss < 0\.2"):
        parse_condition(text)


def test_a_long_line_of_nonsense_is_refused_quickly() -> None:
    """The pattern does not explode."""
    begun = time.monotonic()
    with pytest.raises(UsageError):
        parse_condition("a <" * 3000 + " b")

    assert time.monotonic() - begun < 20.0


@pytest.mark.parametrize(
    ("op", "met"),
    [("<", [1.0]), ("<=", [1.0, 2.0]), (">", [3.0]), (">=", [2.0, 3.0]), ("==", [2.0]), ("!=", [1.0, 3.0, math.nan])],
)
def test_every_operator_and_nan_meets_only_unequal(op: str, met: list[float]) -> None:
    """One by one and many at once agree."""
    condition = parse_condition(f"loss {op} 2")
    values = [1.0, 2.0, 3.0, math.nan]

    np.testing.assert_equal([v for v in values if condition.met(v)], met)
    np.testing.assert_equal(condition.first_met(np.array(values)), met[0])
    assert condition.first_met(np.array([v for v in values if not condition.met(v)])) is None
    assert str(condition) == f"loss {op} 2"

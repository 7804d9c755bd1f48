"""How processes live and end: forks, threads, exits at any moment, clocks and the interpreter's lock."""

from __future__ import annotations

import signal
import time
from typing import Any

import numpy as np
import pytest

from faults.harness import GONE, Stage, fitwire, pick
from fitwire import Monitor, WatchedRun
from fitwire.watch.states import State
from helpers import until

SOON = 10.0
"""Seconds in which an interpreter that was interrupted must have gone; the figure beside it is what it took."""


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_forks_while_three_threads_log(stage: Stage, durability: str) -> None:
    """No child hangs and nothing of a child arrives; what the parent's threads log does, all of it."""
    stage.hub()
    trainer = stage.trainer(threads=4, act="fork", seconds=150, interval=0.0005, init={"durability": durability})
    report = trainer.report()
    whole = stage.is_whole()
    stage.figures |= {name: report[name] for name in ("forks", "hung", "failed")}

    assert (report["hung"], report["failed"], report["forks"]) == (0, 0, 150)
    assert whole, stage.figures
    assert stage.figures["stored"] == 30_000
    assert "finished" in stage.account().ends


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_eight_threads(stage: Stage, durability: str) -> None:
    """80,000 distinct records of eight threads, each thread's in its order."""
    stage.hub()
    trainer = stage.trainer(threads=8, interval=0.0, init={"durability": durability})
    report = trainer.report()

    assert report["flushed"]
    assert stage.is_whole(), stage.figures
    assert stage.figures["stored"] == 80_000


@pytest.mark.parametrize("listening", [True, False], ids=["hub", "no_hub"])
@pytest.mark.parametrize(("ending", "code"), [("nothing", 0), ("exit", 3), ("raise", 1)])
def test_exits_without_a_close(stage: Stage, ending: str, code: int, listening: bool) -> None:
    """However an interpreter ends, what was accepted is delivered or in a valid journal, and the run has an end."""
    if listening:
        stage.hub()
    trainer = stage.trainer(ending=ending, interval=0.0, flush=0.0, sample_every=500)
    until(lambda: not trainer.running, timeout=100.0)
    if not listening:
        fitwire("sync")

    assert trainer.wait() == code
    assert stage.is_whole(), stage.figures
    assert stage.account().ends == ["failed" if ending == "raise" else "finished"]
    assert stage.journals() == []


def test_ctrl_c(stage: Stage) -> None:
    """Ctrl-C at any moment reaches the user's program at once; the run is interrupted, and nothing is lost."""
    took: list[float] = []
    for life in range(pick(6, 50)):
        if life == 2:  # the first two find nobody, and end all the same
            stage.hub()
        trainer = stage.trainer(interval=0.0005, count=200_000, first=200_000 * life)
        trainer.reach(stage.chance.randrange(1, 1500))
        began = time.monotonic()
        trainer.signal(signal.SIGINT)
        code = trainer.wait(SOON)
        took.append(time.monotonic() - began)

        assert code == -signal.SIGINT
        assert "KeyboardInterrupt" in trainer.said
    whole = stage.is_whole()
    stage.figures |= {"exit_ms": round(1000 * float(np.median(took))), "longest_exit_ms": round(1000 * max(took))}

    assert whole, stage.figures
    assert stage.account().ends == ["interrupted"] * len(took)


@pytest.mark.parametrize("durability", ["memory", "process"])
@pytest.mark.parametrize("end", ["os._exit", "SIGTERM"])
def test_ends_without_a_word(stage: Stage, end: str, durability: str) -> None:
    """A process that ends with no chance to say so costs at most its last moment, or nothing."""
    stage.hub()
    how: dict[str, Any] = {"interval": 0.0005, "init": {"durability": durability}}
    for life in range(pick(3, 20)):
        if end == "os._exit":
            count = stage.chance.randrange(500, 1500)
            trainer = stage.trainer(count=count, first=200_000 * life, ending=end, flush=0.0, **how)
        else:
            trainer = stage.trainer(count=200_000, first=200_000 * life, **how)
            trainer.reach(stage.chance.randrange(500, 1500))
            trainer.signal(signal.SIGTERM)

        assert trainer.wait() == (4 if end == "os._exit" else -signal.SIGTERM)
    verdict = stage.settle()

    assert (verdict.faults, verdict.inner) == ({}, 0)
    assert max(verdict.tails, default=0.0) < (GONE if durability == "memory" else 1e-9)


@pytest.mark.parametrize("act", ["jump", "jump back"])
def test_clock_jumps_an_hour(stage: Stage, act: str) -> None:
    """Records keep their order whatever the trainer's clock is set to, and the run is not taken for lost or stalled."""
    with Monitor(store=stage.store) as monitor:
        trainer = stage.trainer(interval=0.0005, act=act, seconds=3600)
        run = monitor.wait_for_run("faults", timeout=60)
        states = watch_states(run)
        steps = run.curve("n").steps
        trainer.report()
    whole = stage.is_whole()

    assert whole, stage.figures
    assert states <= {State.WAITING, State.RUNNING, State.FINISHED}
    assert np.array_equal(steps, np.arange(10_000))


def test_interpreters_lock_held(stage: Stage) -> None:
    """A trainer that lets no Python thread run is stalled, not lost; then it runs on, over the same connection."""
    hub = stage.hub()
    with Monitor(serve=False) as monitor:
        trainer = stage.trainer(act="hold the lock", seconds=8.0, interval=0.0005)
        run = monitor.wait_for_run("faults", timeout=60)
        states: list[State] = []
        watch_states(run, states)
        trainer.report()
    whole = stage.is_whole()
    again = hub.counts()["greeted again"]
    stage.figures |= {"states": states, "greeted_again": again}

    assert whole, stage.figures
    assert states[-4:] == [State.RUNNING, State.STALLED, State.RUNNING, State.FINISHED]
    assert again == 0


def test_older_incarnation_comes_back(stage: Stage) -> None:
    """One that was thought dead is set aside and says so once; the run that went on without it is left as it is."""
    hub = stage.hub()
    older = stage.trainer(interval=0.0005, count=200_000, flush=0.0)
    older.reach(1000)
    until(lambda: stage.account().rows.shape[1] > 500, timeout=60)
    older.signal(signal.SIGSTOP)
    stopped = older.logged
    newer = stage.trainer(interval=0.001, count=5000, first=stopped)
    newer.reach(1000)
    older.signal(signal.SIGCONT)
    older.reach(stopped + 1000)
    until(lambda: "goes on as incarnation" in older.said, timeout=60)
    report = newer.report()
    older.kill()
    verdict = stage.settle()
    hub.counts()

    assert report["flushed"]
    assert newer.ledger.total() == 5000
    # What the older one went on to say lies in its journal, and is delivered beside the newer's once it is dead.
    assert (verdict.faults, verdict.inner) == ({}, 0)
    assert max(verdict.tails, default=0.0) < GONE
    mine = stage.account().rows[1] == 1.0
    assert np.array_equal(stage.account().rows[0][mine], stopped + np.arange(5000))
    assert older.said.count("goes on as incarnation") == 1


def watch_states(run: WatchedRun, seen: list[State] | None = None) -> set[State]:
    """Look at a run until it has ended; adds each state it was seen to enter."""
    found: list[State] = [] if seen is None else seen

    def look() -> bool:
        state = run.state
        if not found or found[-1] is not state:
            found.append(state)
        return run.ended

    until(look, timeout=100.0)
    return set(found)

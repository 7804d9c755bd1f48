"""More than can be taken: a hub that stops, a store that crawls, and viewers that come late."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import psutil

from faults.harness import Stage, pick
from fitwire import Monitor
from fitwire.events import Event, Metrics, RunEnded
from helpers import until

SAMPLES = 2500
MIB = 2**20
ALLOWANCE = 100e6
"""Bytes that a trainer's memory may grow by while nobody takes what it sends."""


def test_hub_stopped_while_samples_flood(stage: Stage) -> None:
    """The trainer's memory is bounded, no metric is lost, and every missing sample has its tombstone."""
    seconds = pick(8.0, 60.0)
    hub = stage.hub()
    trainer = stage.trainer(
        count=4 * SAMPLES, sample_every=4, sample_bytes=MIB, interval=pick(0.0012, 0.006), flush=200.0
    )
    trainer.reach(200)
    until(lambda: stage.store.exists() and len(stage.account().samples) > 0, timeout=60)
    watched = psutil.Process(trainer.pid)
    base = peak = own_memory(watched)
    hub.signal(signal.SIGSTOP)
    end = time.monotonic() + seconds
    while time.monotonic() < end and trainer.running:
        peak = max(peak, own_memory(watched))
        time.sleep(0.02)
    stopped_at = trainer.ledger.samples()
    hub.signal(signal.SIGCONT)
    report = trainer.report()
    verdict, account = stage.judge(), stage.account()
    numbers = [number for _, number in account.samples]
    stage.figures |= {
        "samples": len(numbers), "tombstones": account.dropped["sample"], "grown_mb": round((peak - base) / 1e6, 1),
        "sampled_while_stopped": stopped_at, "longest_sample_ms": round(1000 * trainer.ledger.longest_sample(), 1),
    }  # fmt: skip

    assert report["flushed"]
    assert (verdict.lost, verdict.faults, account.holes, account.missing) == (0, {}, 0, 0)
    assert numbers == sorted(set(numbers))
    assert min(numbers) >= 0
    assert len(numbers) + account.dropped["sample"] == SAMPLES
    assert set(account.dropped) <= {"sample"}
    assert peak - base <= ALLOWANCE
    assert stage.never_waited()


def own_memory(process: psutil.Process) -> int:
    """Bytes of a process that are its own: the page cache's, which a mapped file shows as resident, are not."""
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return memory.rss - memory.shared


def test_slow_store(stage: Stage) -> None:
    """A store that takes 2 ms a record, of a run that makes one each ms, is caught up with; nobody reconnects."""
    hub = stage.hub(per_record=0.002)
    trainer = stage.trainer(interval=0.001, flush=300.0)
    report = trainer.report()
    counts = hub.counts()
    stage.figures |= {"greeted_again": counts["greeted again"], "longest_commit": counts["longest_commit"]}

    assert report["flushed"]
    assert stage.is_whole(), stage.figures
    assert stage.never_waited()
    assert counts["greeted again"] == 0


def test_viewers_that_join_late(stage: Stage) -> None:
    """Whoever joins at half, or at the end, sees what the first one saw."""
    stage.hub()
    seen: list[list[Event]] = [[], [], []]

    def follow(monitor: Monitor, events: list[Event]) -> None:
        events.extend(monitor.wait_for_run("faults", timeout=60).events())

    monitors: list[Monitor] = []
    followers: list[threading.Thread] = []

    def join(events: list[Event]) -> None:
        monitors.append(Monitor(serve=False))
        stage.at_end(monitors[-1].close)
        followers.append(threading.Thread(target=follow, args=(monitors[-1], events)))
        followers[-1].start()

    join(seen[0])
    trainer = stage.trainer(interval=0.0005, sample_every=500)
    trainer.reach(5000)
    join(seen[1])
    trainer.report()
    followers[0].join(60)
    join(seen[2])
    for follower in followers:
        follower.join(60)
    whole = stage.is_whole()
    curves = [monitor.run("faults").curve("check").values for monitor in monitors]
    samples = [[s.step for s in monitor.run("faults").samples("numbers")] for monitor in monitors]
    stage.figures |= {"events": [len(events) for events in seen]}

    assert whole, stage.figures
    assert not any(follower.is_alive() for follower in followers)
    assert isinstance(seen[0][-1], RunEnded)
    assert told(seen[0]) == told(seen[1]) == told(seen[2])
    assert len(told(seen[0])) == 10_000
    assert np.array_equal(curves[0], curves[1])
    assert np.array_equal(curves[0], curves[2])
    assert samples == [list(range(0, 10_000, 500))] * 3


def told(events: list[Event]) -> list[tuple[Any, ...]]:
    """The trainer's own rows among events, in order."""
    return [(e.step, *e.values.values()) for e in events if isinstance(e, Metrics) and "check" in e.values]

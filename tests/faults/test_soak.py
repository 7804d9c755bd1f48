"""Many ranks, and something new going wrong all the time."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest

from faults.harness import GONE, SEEDS, Hub, Stage, Trainer, pick
from faults.proxy import BadLine
from helpers import free_port

RANKS = pick(6, 50)
SECONDS = pick(25.0, 1800.0)
EVERY = pick(1.5, 5.0)
"""Seconds between two faults."""


@pytest.fixture
def seed() -> int:
    """Half an hour once, not three times."""
    return SEEDS[0]


class Job:
    """The ranks of one training, their hub, and the bad line that half of them go through."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.port = free_port()
        self.done: Counter[str] = Counter()
        self.hub = self.start_hub()
        self.line = BadLine(self.port, stage.chance)
        stage.at_end(self.line.close)
        self.ranks: list[Trainer] = [self.start(rank, ready=False) for rank in range(RANKS)]
        for trainer in self.ranks:
            trainer.expect("ready")

    def start_hub(self) -> Hub:
        return self.stage.hub(f"tcp://127.0.0.1:{self.port}")

    def start(self, rank: int, *, ready: bool = True) -> Trainer:
        """The next life of a rank; odd ranks go through the bad line, every other one has a ring."""
        former = [t for t in self.stage.trainers if t.plan.name == f"rank-{rank}"]
        address = self.line.address if rank % 2 else f"tcp://127.0.0.1:{self.port}"
        return self.stage.trainer(
            ready=ready, name=f"rank-{rank}", first=sum(t.logged for t in former), count=100_000,
            interval=pick(0.005, 0.05), sample_every=50, flush=0.0, ending="wait",
            init={"address": address, "durability": "process" if rank % 4 < 2 else "memory"},
            environment={"RANK": str(rank), "WORLD_SIZE": str(RANKS)},
        )  # fmt: skip

    def harm(self) -> None:
        """Something goes wrong."""
        chance = self.stage.chance
        what = chance.choice(("hub", "trainer", "trainers", "reset", "hole", "half_open", "stopped", "hub stopped"))
        self.done[what] += 1
        if what == "hub":
            self.hub.kill()
            self.stage.pause(0.0, 2.0)
            self.hub = self.start_hub()
        elif what in ("trainer", "trainers"):
            for rank in chance.sample(range(RANKS), 1 if what == "trainer" else RANKS // 5 + 1):
                self.ranks[rank].kill()
                self.ranks[rank] = self.start(rank)
        elif what == "hole":
            self.line.hole.set()
            self.stage.pause(0.0, 3.0)
            self.line.hole.clear()
        elif what in ("stopped", "hub stopped"):
            program = self.hub if what == "hub stopped" else chance.choice(self.ranks)
            program.signal(signal.SIGSTOP)
            self.stage.pause(0.0, 3.0)
            program.signal(signal.SIGCONT)
        else:
            getattr(self.line, what)()


def test_many_ranks_and_a_random_fault_all_the_time(stage: Stage) -> None:
    """After any sequence of faults each rank's records are there once, but for the last moment of those without a ring.

    A rank that was stopped may have been in the middle of a call: that one is not held against it.
    """
    job = Job(stage)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        job.harm()
        stage.pause(EVERY / 2, EVERY)
    for trainer in job.ranks:
        trainer.kill()
    verdict, account = stage.settle(pick(60.0, 300.0)), stage.account()
    stage.figures |= {"ranks": RANKS, "seconds": SECONDS, "lives": len(stage.trainers), "faults": dict(job.done)}
    kept = [t for t in stage.trainers if t.plan.init["durability"] == "process"]
    stored = stage.judge_only(kept)
    stage.figures |= {"process_lost": stored.lost, "samples": len(account.samples)}

    assert verdict.faults == {}
    assert (account.holes, account.spoilt, account.missing, verdict.inner) == (0, 0, 0, 0)
    assert stored.lost == 0
    assert max(verdict.tails, default=0.0) < GONE

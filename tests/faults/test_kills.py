"""Hubs and trainers that are killed, with records under way."""

from __future__ import annotations

import statistics

import pytest

from faults.harness import GONE, Stage, Trainer, pick
from helpers import until


def test_hub_killed_over_and_over(stage: Stage) -> None:
    """Nothing is lost, doubled or moved, and training never waits for the hub that is not there."""
    kills = pick(5, 20)
    hub = stage.hub()
    trainer = stage.trainer(interval=pick(0.001, 0.003))
    for kill in range(kills):
        trainer.reach((kill + 1) * 9000 // (kills + 1))
        hub.kill()
        if stage.chance.random() < 0.5:
            stage.pause(0.0, 1.5)
        hub = stage.hub()
    report = trainer.report()
    verdict = stage.judge()
    stage.figures |= {"kills": kills}

    assert (verdict.lost, verdict.faults) == (0, {})
    assert verdict.returned == 10_000
    assert report["flushed"]
    assert stage.never_waited()


def train(stage: Stage, durability: str, count: int) -> Trainer:
    """Start the next life of a training, where the last one stopped."""
    first = sum(trainer.logged for trainer in stage.trainers)
    return stage.trainer(
        first=first, count=count, interval=pick(0.0006, 0.002), sample_every=200, init={"durability": durability}
    )


def holds(stage: Stage, durability: str) -> bool:
    """Whether what kills may cost was all that they cost; the figures say what it was."""
    verdict, account = stage.settle(pick(30.0, 60.0)), stage.account()
    sampled = sum(trainer.ledger.samples() for trainer in stage.trainers)
    numbers = [number for _, number in account.samples]
    stage.figures |= {"lives": len(stage.trainers), "samples_lost": sampled - len(numbers)}
    if verdict.tails:
        stage.figures["median_tail_ms"] = round(1000 * statistics.median(verdict.tails), 1)
    stage.figures |= {name: n for name in ("missing", "holes", "spoilt") if (n := getattr(account, name))}
    sound = not verdict.faults and not account.holes and not account.spoilt and -1 not in numbers
    if durability == "process":
        return sound and verdict.lost == 0 and account.missing == 0 and not account.dropped
    return sound and verdict.inner == 0 and max(verdict.tails, default=0.0) < GONE


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_trainer_killed_over_and_over(stage: Stage, durability: str) -> None:
    """What had returned is delivered once by whoever comes next: all of it, or all but the last moment."""
    kills = pick(4, 20)
    stage.hub()
    for _ in range(kills):
        trainer = train(stage, durability, 10_000)
        trainer.reach(stage.chance.randrange(1, 2 * 10_000 // (kills + 1)))
        trainer.kill()
    last = train(stage, durability, max(1000, 10_000 - sum(trainer.logged for trainer in stage.trainers)))
    report = last.report()

    assert report["flushed"]
    assert holds(stage, durability), stage.figures
    assert stage.figures["returned"] >= 10_000
    assert stage.never_waited()


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_hub_and_trainer_killed_at_random(stage: Stage, durability: str) -> None:
    """Whichever of the two dies, and whichever comes back first, the result is the same."""
    hub = stage.hub()
    trainer = train(stage, durability, 100_000)
    chance = stage.chance
    for _ in range(pick(6, 30)):
        stage.pause(0.0, 1.0)
        doomed = chance.choice(("hub", "trainer", "both"))
        if doomed != "trainer":
            hub.kill()
        if doomed != "hub":
            trainer.kill()
        stage.pause(0.0, 0.5)
        if doomed != "hub" and chance.random() < 0.5:
            trainer = train(stage, durability, 100_000)
        if not hub.running:
            hub = stage.hub()
        if not trainer.running:
            trainer = train(stage, durability, 100_000)
    trainer.kill()
    last = train(stage, durability, max(1000, 10_000 - sum(one.logged for one in stage.trainers)))
    report = last.report()

    assert report["flushed"]
    assert holds(stage, durability), stage.figures
    assert stage.figures["returned"] >= 10_000
    assert stage.never_waited()


def test_trainer_killed_for_good_on_this_machine(stage: Stage) -> None:
    """Nobody runs the training again: the hub here finds the journal and delivers it by itself."""
    hub = stage.hub()
    trainer = stage.trainer(count=10_000, interval=0.0, ending="wait", flush=0.0, init={"durability": "process"})
    hub.kill()
    trainer.expect("logged")
    trainer.kill()
    stage.hub()

    assert holds(stage, "process"), stage.figures
    assert stage.figures["stored"] == 10_000
    until(lambda: not stage.journals(), what="the journal is still there")  # it goes once the hub has confirmed all

"""Hubs and trainers that are killed, with records under way."""

from __future__ import annotations

from faults.harness import Stage, pick


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

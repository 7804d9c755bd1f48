"""Steering a Lightning fit from another process, on one rank and on several: done once, everywhere, and told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pl = pytest.importorskip("lightning.pytorch")

from fitwire import Monitor, WatchedRun  # noqa: E402
from fitwire.events import CommandDone  # noqa: E402
from fitwire.lightning import ZMQProgress  # noqa: E402
from helpers import until  # noqa: E402
from lightning_models import QUIET, Regression, loader  # noqa: E402
from watching import ask_inside, held  # noqa: E402

pytestmark = [pytest.mark.framework, pytest.mark.filterwarnings("ignore")]

PROGRAM = Path(__file__).with_name("lightning_steered_program.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def start(kind: str, folder: Path) -> subprocess.Popen[bytes]:
    launcher = TORCHRUN if kind in ("loop", "one") else ()
    return subprocess.Popen([sys.executable, *launcher, str(PROGRAM), kind, str(folder)])


def under_way(run: WatchedRun) -> None:
    until(lambda: "loss" in run.metrics and {"stop", "lr"} <= set(run.controls), 120)


def test_a_fit_does_what_another_process_asks_of_it_and_says_so(tmp_path: Path) -> None:
    """A pause changes no weight, a stop lets one more batch run, and the history has all of it."""
    with Monitor() as monitor:
        training = start("alone", tmp_path)
        try:
            run = monitor.wait_for_run("paused", timeout=120)
            under_way(run)
            held(run)
            run = monitor.wait_for_run("steered", timeout=120)
            under_way(run)
            rate = run.set("lr", 0.0025)
            assert (rate.status, rate.before, rate.after) == ("applied", 0.01, 0.0025)
            assert run.set("lr", -1.0).status == "refused"
            assert run.checkpoint().status == "refused"  # there is no ModelCheckpoint
            made = run.checkpoint(tmp_path / "here" / "model.ckpt")
            assert made.status == "applied", made
            assert torch.load(made.after, weights_only=False)["global_step"] == made.step + 1
            assert run.checkpoint(tmp_path).status == "refused"
            assert run.request_sample().status == "applied"
            until(lambda: bool(run.sample_names), 30)
            stop = run.stop()
            assert stop.status == "applied" and "closing validation" in stop.reason, stop
            run.wait(timeout=60)
            assert training.wait(60) == 0
        finally:
            training.kill()
            training.wait()
        facts = json.loads((tmp_path / "facts.json").read_text())
        commands = [(command.what, command.status) for command in run.commands]

        assert stop.step is not None and facts["same"]
        assert facts["batches"] == stop.step + 2  # the step is the last one done before it; then one more batch
        assert facts["rate"] == 0.0025
        assert run.state == "finished" and run.controls["lr"]["value"] == 0.0025
        assert commands.count(("set", "applied")) == 1 and commands.count(("stop", "applied")) == 1


@pytest.mark.parametrize("kind", ["ddp", "loop"])
def test_every_rank_does_it_before_the_same_step(kind: str, tmp_path: Path) -> None:
    """Twenty commands, at any moment of an epoch, with a rank that is late now and then: no deadlock, no difference."""
    with Monitor() as monitor:
        training = start(kind, tmp_path)
        try:
            run = monitor.wait_for_run(kind, timeout=120)
            under_way(run)
            if kind == "ddp":
                held(run)
            for number in range(18):
                time.sleep(0.013 * (number % 5))
                outcome = run.set("lr", 0.001 * (number + 1), timeout=60)
                assert outcome.status == "applied", outcome
            assert run.stop().status == "applied"
            run.wait(timeout=60)
            assert training.wait(60) == 0
        finally:
            training.terminate()
            training.wait()
        done = [event for event in run.events(follow=False) if isinstance(event, CommandDone)]
        ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]

        assert ranks[0]["batches"] == ranks[1]["batches"]
        assert ranks[0]["rates"] == ranks[1]["rates"]
        changes = [a for a, b in zip(ranks[0]["rates"], ranks[0]["rates"][1:], strict=False) if a != b]
        assert len(changes) >= 10  # two that come between two meetings are done before the same step
        steps = {rank: [(e.number, e.status, e.step) for e in done if e.rank == rank] for rank in (0, 1)}
        assert steps[0] == steps[1] and len(steps[0]) == (21 if kind == "ddp" else 19)
        record = [command for command in run.commands if command.what == "stop"]
        assert [command.status for command in record] == ["applied"]


def test_where_one_rank_is_not_watched_none_obeys(tmp_path: Path) -> None:
    """Refused with the reason; neither rank waits for the other for ever."""
    with Monitor() as monitor:
        training = start("one", tmp_path)
        try:
            run = monitor.wait_for_run("one", timeout=120)
            under_way(run)
            outcome = run.stop()
            run.wait(timeout=60)
            assert training.wait(60) == 0
        finally:
            training.terminate()
            training.wait()

    assert outcome.status == "refused" and "not every rank" in outcome.reason
    assert [json.loads((tmp_path / f"{rank}.json").read_text())["batches"] for rank in (0, 1)] == [300, 300]


class Asks(pl.Callback):
    """Asks, as if from outside, when a batch has ended or a validation goes on."""

    def __init__(self, watcher: ZMQProgress, at: int, command: str, validating: bool = False, **arguments: Any) -> None:
        self.watcher, self.at, self.command, self.arguments = watcher, at, command, arguments
        self.validating, self.batches = validating, 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1
        if self.batches == self.at and not self.validating:
            self._ask()

    def on_validation_batch_start(self, *_: Any) -> None:
        if self.validating and self.batches:
            self.validating = False
            self._ask()

    def _ask(self) -> None:
        ask_inside(self.watcher.run, self.command, self.arguments)


class Constant(Regression):
    """Without a schedule, by whichever optimizers."""

    def __init__(self, optimizers: Any = None) -> None:
        super().__init__()
        self.made = optimizers

    def configure_optimizers(self) -> Any:
        if self.made is None:
            return torch.optim.SGD(self.parameters(), lr=0.01)
        return self.made(self)


def asked(
    command: str, *, module: Any = None, validating: bool = False, options: Any = None, control: bool = True,
    **arguments: Any,
) -> tuple[int, Any, Any]:  # fmt: skip
    """Fit three epochs of four batches, and ask after the second batch: how many ran, what was told, the trainer."""
    with Monitor() as monitor:
        watcher = ZMQProgress(name="asked", wait=20, control=control)
        asks = Asks(watcher, 2, command, validating, **arguments)
        trainer = pl.Trainer(**QUIET | {"max_epochs": 3, "callbacks": [watcher, asks]} | (options or {}))
        trainer.fit(Constant() if module is None else module, loader(), loader(10))
        run = monitor.wait_for_run("asked")
        run.wait(timeout=30)
        return asks.batches, run.commands[0], trainer


def test_stop_after_epoch_ends_the_fit_with_the_epoch() -> None:
    """Accepted at once, and the reason says which epoch."""
    batches, told, _ = asked("stop_after_epoch")

    assert (batches, told.status) == (4, "accepted")
    assert "after epoch 0" in told.reason


@pytest.mark.parametrize(("arguments", "batches"), [({}, 8), ({"force": True}, 3)])
def test_a_stop_waits_for_what_lightning_was_told_to_train_at_least(arguments: Any, batches: int) -> None:
    """And says so; force does not."""
    ran, told, _ = asked("stop", options={"min_epochs": 2}, **arguments)

    assert ran == batches
    assert told.status == ("applied" if arguments else "accepted")
    assert ("min_epochs=2" in told.reason) is not bool(arguments)


def test_what_comes_during_a_validation_is_done_before_the_next_batch() -> None:
    """Not within it."""
    batches, told, _ = asked("stop", validating=True)

    assert (batches, told.status, told.step) == (5, "applied", 3)


def test_a_scheduler_keeps_its_learning_rate() -> None:
    """Refused with its name, and training goes on."""
    batches, told, _ = asked("set", module=Regression(), name="lr", value=0.5)

    assert (batches, told.status) == (12, "refused")
    assert "sets the learning rate" in told.reason


def test_of_several_groups_one_or_all_are_set() -> None:
    """By the names that the metrics have."""

    def groups(module: Any) -> Any:
        weight, bias = module.layer.weight, module.layer.bias
        return torch.optim.SGD([{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.2}])

    _, told, trainer = asked("set", module=Constant(groups), name="lr/pg2", value=0.5)
    assert (told.status, told.before, told.after) == ("applied", 0.2, 0.5)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.1, 0.5]
    _, told, trainer = asked("set", module=Constant(groups), name="lr", value=0.5)
    assert (told.status, told.before) == ("applied", "[0.1, 0.2]")
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.5, 0.5]


def test_a_checkpoint_goes_where_the_model_checkpoint_saves(tmp_path: Path) -> None:
    """Beside its own files."""
    saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "kept", every_n_epochs=100)
    watcher_options = {"enable_checkpointing": True}
    with Monitor() as monitor:
        watcher = ZMQProgress(name="asked", wait=20)
        asks = Asks(watcher, 2, "checkpoint")
        pl.Trainer(**QUIET | watcher_options | {"max_epochs": 1, "callbacks": [watcher, asks, saver]}).fit(
            Constant(), loader(), loader(10)
        )
        run = monitor.wait_for_run("asked")
        run.wait(timeout=30)
        told = run.commands[0]

    assert (told.status, told.after) == ("applied", str(tmp_path / "kept" / "step-2.ckpt"))
    assert Constant.load_from_checkpoint(told.after, weights_only=False).layer.weight.shape == (1, 4)


def test_without_control_everything_is_refused() -> None:
    """``control=False``."""
    batches, told, _ = asked("stop", control=False)

    assert (batches, told.status) == (12, "refused")
    assert "control=False" in told.reason

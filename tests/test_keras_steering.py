"""Steering a Keras fit from another process: it does what it was asked, once, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

keras = pytest.importorskip("keras")

from fitwire import Monitor, WatchedRun  # noqa: E402
from fitwire.keras import ZMQProgress  # noqa: E402
from helpers import until  # noqa: E402
from keras_models import BACKEND, line, points, uncounted  # noqa: E402
from watching import ask_inside, held  # noqa: E402

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # Keras reads tensorflow's variables so
]

PROGRAM = Path(__file__).with_name("keras_steered_program.py")


def under_way(run: WatchedRun) -> None:
    until(lambda: "loss" in run.metrics and "stop" in run.controls and "lr" in run.controls, 60)


def steered(run: WatchedRun, folder: Path) -> int:
    """All that can be asked for, the stop last; gives the step of that."""
    rate = run.set("lr", 0.0025)
    assert (rate.status, rate.before, rate.after) == ("applied", 0.01, 0.0025)
    noise = run.set("noise", 0.75)
    assert (noise.status, noise.before, noise.after) == ("applied", 0.5, 0.75)
    refused = run.set("noise", 2.0)
    assert (refused.status, "from 0 to 1" in refused.reason) == ("refused", True)

    made = run.checkpoint()
    assert (made.status, made.after) == ("applied", str(folder / "model.keras")), made
    assert keras.models.load_model(made.after).count_params() == 5
    made = run.checkpoint(folder / "only.weights.h5")
    assert made.status == "applied", made
    line().load_weights(made.after)
    assert run.checkpoint(folder / "model.txt").status == "refused"
    assert run.checkpoint(folder / "nowhere" / "model.keras").status == "refused"
    assert not list(folder.glob(".*"))

    assert run.request_sample().status == "applied"
    until(lambda: bool(run.sample_names), 30)
    stop = run.stop()
    assert stop.status == "applied" and "closing validation" in stop.reason, stop
    assert stop.step is not None
    return stop.step


def test_a_fit_does_what_another_process_asks_of_it_and_says_so(tmp_path: Path) -> None:
    """A pause changes no weight, a stop lets one more batch run, and the history has all of it."""
    with Monitor() as monitor:
        training = subprocess.Popen([sys.executable, str(PROGRAM), str(tmp_path)])
        try:
            run = monitor.wait_for_run("paused", timeout=120)
            under_way(run)
            outcome, stood = held(run)
            assert outcome.step == stood
            run = monitor.wait_for_run("steered", timeout=120)
            under_way(run)
            step = steered(run, tmp_path)
            run.wait(timeout=60)
            assert training.wait(60) == 0
        finally:
            training.kill()
            training.wait()
        facts = json.loads((tmp_path / "facts.json").read_text())
        commands = [(command.what, command.status) for command in run.commands]

        assert facts["same"]
        assert facts["batches"] == step + 2  # the step is the last one done before it; then one more batch
        assert (facts["rate"], facts["noise"]) == (pytest.approx(0.0025), 0.75)
        assert run.state == "finished" and run.controls["lr"]["value"] == 0.0025
        assert run.curve("val_loss", per="epoch").steps[-1] == step + 1
        assert commands.count(("set", "applied")) == 2 and commands.count(("stop", "applied")) == 1
        told = [json.loads(row) for row in fitwire("tail", "steered", "--json").splitlines()]
        assert any(row.get("name") == "stop" and row.get("status") == "applied" for row in told)


def fitwire(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "fitwire", *words], check=True, capture_output=True, text=True, timeout=60
    ).stdout


class Asks(keras.callbacks.Callback):
    """Asks, as if from outside, when a batch has ended."""

    def __init__(self, watcher: ZMQProgress, at: int, command: str, **arguments: Any) -> None:
        super().__init__()
        self.watcher, self.at, self.command, self.arguments = watcher, at, command, arguments
        self.batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if self.batches == self.at:
            ask_inside(self.watcher.run, self.command, self.arguments)


def asked(command: str, *, model: Any = None, control: bool = True, **arguments: Any) -> tuple[int, Any]:
    """Fit three epochs of four batches, and ask after the second batch: how many ran, and what was told."""
    model = line() if model is None else model
    with Monitor() as monitor:
        watcher = ZMQProgress(name="asked", wait=20, control=control)
        asks = Asks(watcher, 2, command, **arguments)
        model.fit(*points(64), batch_size=16, epochs=3, verbose=0, callbacks=[watcher, asks])
        run = monitor.wait_for_run("asked")
        run.wait(timeout=30)
        return asks.batches, run.commands[0]


def test_stop_after_epoch_ends_the_fit_with_the_epoch() -> None:
    """Accepted at once, and the reason says which epoch."""
    batches, told = asked("stop_after_epoch")

    assert (batches, told.status) == (4, "accepted")
    assert "after epoch 0" in told.reason


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution there")
def test_with_steps_per_execution_one_more_execution_runs() -> None:
    """The outcome says of how many batches."""
    model = line(steps_per_execution=2)
    with Monitor() as monitor:
        watcher = ZMQProgress(name="asked", wait=20)
        asks = Asks(watcher, 1, "stop")
        model.fit(*points(128), batch_size=16, epochs=3, verbose=0, callbacks=[watcher, asks])
        run = monitor.wait_for_run("asked")
        run.wait(timeout=30)

        assert asks.batches == 2
        assert "the 2 batches" in run.commands[0].reason


def test_a_schedule_keeps_its_learning_rate() -> None:
    """Refused with the reason, and training goes on."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    batches, told = asked("set", model=line(optimizer=keras.optimizers.SGD(schedule)), name="lr", value=0.5)

    assert (batches, told.status) == (12, "refused")
    assert "LearningRateSchedule" in told.reason


def test_without_control_everything_is_refused() -> None:
    """``control=False``."""
    batches, told = asked("stop", control=False)

    assert (batches, told.status) == (12, "refused")
    assert "control=False" in told.reason


def test_a_checkpoint_without_a_place_is_refused() -> None:
    """With neither a path nor a ModelCheckpoint."""
    _, told = asked("checkpoint")

    assert told.status == "refused" and "ModelCheckpoint" in told.reason


@pytest.mark.parametrize(
    "epochs",
    [pytest.param(1, marks=pytest.mark.skipif(BACKEND == "torch", reason="no batch too many is announced there")), 2],
)
def test_what_is_asked_before_a_batch_that_never_comes_is_done_and_kept(epochs: int) -> None:
    """Where only the data's end tells how many batches there are, Keras announces one too many."""
    plain, model = line(), line()
    plain.fit(uncounted(4), epochs=1, verbose=0)
    with Monitor() as monitor:
        watcher = ZMQProgress(name="asked", wait=20)
        asks = Asks(watcher, 4, "set", name="lr", value=0.0)
        model.fit(uncounted(4), epochs=epochs, verbose=0, callbacks=[watcher, asks])
        run = monitor.wait_for_run("asked")
        run.wait(timeout=30)

        assert run.commands[0].status == "applied"
        assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == 0.0
        for before, after in zip(plain.get_weights(), model.get_weights(), strict=True):
            assert before.tobytes() == after.tobytes()  # at a rate of 0 the second epoch changes nothing

"""The demo: real trainings, watched from another process, whose numbers are the framework's own to the last bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from fitwire import demo
from fitwire.cli import main
from fitwire.demo import Comparison, choose, compare
from fitwire.errors import FitwireError, UnknownRun, UsageError
from fitwire.watch.monitor import Monitor
from fitwire.watch.series import Curve

EPOCH_METRICS = {
    "loop": {"train/loss", "val/loss"},
    "keras": {"loss", "mae", "val_loss", "val_mae"},
    "lightning": {"train_loss_epoch", "val_loss", "val_mae"},
}


class FakeRun:
    """What arrived, epoch values by name."""

    def __init__(self, **values: list[float]) -> None:
        self.values = values

    def curve(self, name: str, per: str) -> Curve:
        assert per == "epoch"
        if name not in self.values:
            raise UnknownRun(name)
        array = np.array(self.values[name])
        return Curve(name, "epoch", np.arange(len(array)), np.arange(len(array)), np.zeros(len(array)), array)


def compared(received: dict[str, list[float]], own: dict[str, list[float]]) -> Comparison:
    """What the demo makes of it."""
    fake: Any = FakeRun(**received)
    return compare(fake, own)


def test_equal_to_the_last_bit_holds() -> None:
    """A NaN equals a NaN here, and nothing is rounded."""
    values = {"loss": [0.1 + 0.2, float("nan")], "acc": [0.5, 1.0]}
    found = compared(values, json.loads(json.dumps(values)))

    assert (found.equal, found.differing, found.holds) == (4, (), True)
    assert found.rows[1] == ("acc", 0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    "received",
    [
        {"loss": [0.3, 0.2]},  # the last bit differs: 0.1 + 0.2 is no 0.3
        {"loss": [0.1 + 0.2]},  # one is missing
        {"loss": [0.1 + 0.2, 0.2, 0.2]},  # one too many
        {"other": [0.1 + 0.2, 0.2]},  # by another name
    ],
)
def test_whatever_differs_is_named(received: dict[str, list[float]]) -> None:
    """A demo that could not fail would show nothing."""
    found = compared(received, {"loss": [0.1 + 0.2, 0.2]})

    assert found.differing == ("loss",)
    assert not found.holds


def test_nothing_received_is_not_equal() -> None:
    """An empty history holds nothing to compare."""
    assert not compared({}, {}).holds


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ({"sklearn"}, "loop"),
        ({"sklearn", "lightning", "torch"}, "lightning"),
        ({"sklearn", "keras"}, "loop"),
        ({"sklearn", "keras", "tensorflow", "lightning", "torch"}, "keras"),
    ],
)
def test_the_first_framework_that_is_installed_is_taken(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], chosen: str
) -> None:
    """The loop needs none."""
    monkeypatch.setattr(demo, "_installed", lambda *names: set(names) <= installed)

    assert choose(None) == chosen


def test_what_is_missing_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setattr(demo, "_installed", lambda *names: names == ("sklearn",))
    with pytest.raises(UsageError, match=r"keras is not installed: pip install 'fitwire\[keras\]'"):
        choose("keras")
    monkeypatch.setattr(demo, "_installed", lambda *names: False)

    assert CliRunner().invoke(main, ["demo"]).stderr == (
        "fitwire: the demo trains on scikit-learn's digits: pip install 'fitwire[demo]'\n"
    )


def test_a_training_that_dies_at_once_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it was started with is gone with it."""
    spawned: list[demo.Training] = []
    monkeypatch.setitem(demo.FRAMEWORKS, "nosuch", ())
    with demo.start("nosuch", None, None) as (training, monitor):
        spawned.append(training)
        with pytest.raises(FitwireError, match=r"exit code 1: .*No module named fitwire\.demo\.train_nosuch"):
            demo.await_run(training, monitor, frozenset(), lambda waited: None)

    assert not spawned[0].folder.exists()


@pytest.mark.framework
@pytest.mark.parametrize("framework", ["loop", "keras", "lightning"])
def test_the_demo_ends_with_numbers_equal_to_the_frameworks_own(framework: str, fitwire_dir: Path) -> None:
    """In a pipe: a line an epoch, a table, the verdict; in the store the run with its samples."""
    done = subprocess.run(
        [sys.executable, "-m", "fitwire", "demo", "--framework", framework, "--epochs", "2",
         "--address", str(fitwire_dir / "hub")],
        capture_output=True, text=True, timeout=110, env=dict(os.environ),
    )  # fmt: skip
    with Monitor(str(fitwire_dir / "hub"), serve=False) as monitor:
        run = monitor.run("last")
        epochs = {name for name in EPOCH_METRICS[framework] if len(run.curve(name, per="epoch")) == 2}
        arrays = [sample.arrays for sample in run.samples(run.sample_names[0])]

    assert (done.returncode, done.stderr) == (0, "")
    assert f"{2 * len(EPOCH_METRICS[framework])} epoch values received, all equal to" in done.stdout
    assert "digits  epoch 2/2" in done.stdout and "✗" not in done.stdout and "\x1b" not in done.stdout
    assert epochs == EPOCH_METRICS[framework]
    assert [sorted(one) for one in arrays] == [["image", "prediction", "target"]] * 2
    assert {value.shape[:1] for value in arrays[-1].values()} == {(12,)}


@pytest.mark.framework
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_ended_takes_its_training_with_it(number: int, tmp_path: Path) -> None:
    """Nothing runs on, nothing is left lying about; the exit code is a shell's after Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "fitwire", "demo", "--framework", "loop"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1" in line:
            break
    (training,) = psutil.Process(process.pid).children()
    process.send_signal(number)
    process.communicate(timeout=60)

    assert process.returncode == 130
    assert not training.is_running()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.framework
def test_a_demo_of_its_own_leaves_nothing_behind(fitwire_dir: Path) -> None:
    """Its hub, store and files are thrown away, your own store is not touched."""
    result = CliRunner().invoke(main, ["demo", "--framework", "loop", "--epochs", "1", "--json"])
    told = json.loads(result.stdout)

    assert result.exit_code == 0
    assert (told["holds"], told["equal"], told["run"]["state"]) == (True, 2, "finished")
    assert not (fitwire_dir / "store.sqlite3").exists()

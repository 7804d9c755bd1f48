"""``fitwire alert`` beside real trainings: one is stopped by its loss, one tells a NaN, one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from fitwire import Monitor
from fitwire.cli import main
from helpers import until

TRAINING = """
import time, fitwire
with fitwire.init(name="fox", wait=30) as run:
    for step in range(20_000):
        run.log({"loss": 1.0 / (step + 1)}, step=step)
        if step == 50:
            run.log({"acc": float("nan")}, step=step)
        if run.stop_requested:
            break
        time.sleep(0.005)
"""


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with Monitor() as made:
        yield made


def train() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TRAINING])


def alerting(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "fitwire", "alert", "--json", *arguments], stdout=subprocess.PIPE, text=True
    )


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def ended(*processes: subprocess.Popen[Any]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_a_training_is_stopped_by_its_loss(monitor: Monitor) -> None:
    """Told, asked, and what became of it told too; it ends as finished."""
    alert, training = alerting("--when", "loss < 0.005", "--then", "stop"), train()
    try:
        first, second = told(alert)["alert"], told(alert)
        run = monitor.wait_for_run("fox", timeout=60)
        run.wait(timeout=60)
        assert training.wait(60) == 0
    finally:
        ended(alert, training)

    assert (first["name"], first["when"]) == ("fox", "loss < 0.005") and first["value"] < 0.005
    assert (second["status"], second["name"], second["run"]["name"]) == ("applied", "stop", "fox")
    assert run.state == "finished" and run.progress.step < 19_999


def test_a_nan_and_a_killed_trainer_are_told(monitor: Monitor) -> None:
    """The second by somebody else: the trainer tells nothing any more."""
    alert, training = alerting("--run", "fox"), train()
    try:
        nan = told(alert)["alert"]
        until(lambda: len(monitor.run("fox").curve("loss").values) > 100, 60)
        training.send_signal(signal.SIGKILL)
        lost = told(alert)["alert"]
    finally:
        ended(alert, training)

    assert (nan["when"], nan["text"]) == ("nan", "acc is nan")
    assert (lost["when"], lost["value"]) == ("lost", None) and "lost" in lost["text"]


def test_once_ends_with_the_first_and_rings(monitor: Monitor) -> None:
    """For scripts: exit code 0."""
    training = train()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fitwire", "alert", "--when", "loss < 2", "--once", "--bell"],
            capture_output=True, text=True, timeout=100, check=False, env=dict(os.environ),
        )  # fmt: skip
    finally:
        ended(training)

    assert (done.returncode, done.stderr) == (0, "\a")
    assert "fox: loss is 1  (loss < 2)" in done.stdout


@pytest.mark.parametrize("words", [["--when", "nosuch"], ["--webhook", "nowhere"], ["--then", "nosuch"]])
def test_misuse_is_a_sentence(words: list[str]) -> None:
    """Before anything is watched."""
    said = CliRunner().invoke(main, ["alert", *words])

    assert said.exit_code == 2
    assert said.stderr.startswith("fitwire: ") and said.stderr.count("\n") == 1

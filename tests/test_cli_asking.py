"""Asking a training from the shell: what is printed, in JSON too, and the exit codes that scripts act on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fitwire
from fitwire import Monitor
from fitwire.cli import main
from fitwire.watch.commands import Outcome
from helpers import until


def fitwire_says(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments)


def in_json(*arguments: str) -> list[dict[str, Any]]:
    """What it prints with ``--json``."""
    return [json.loads(line) for line in fitwire_says(*arguments, "--json").stdout.splitlines()]


def _add(a: float = 0, b: float = 0) -> float:
    return a + b


def _saved(path: str = "model.npz") -> str:
    return path


class Training:
    """A loop with a knob of each kind and an action, on a thread of its own."""

    def __init__(self) -> None:
        self.last = threading.Event()
        self.thread = threading.Thread(target=self._train)
        self.thread.start()

    def _train(self) -> None:
        with fitwire.init(name="fox", wait=30) as run:
            self.lr = run.knob("lr", 0.01, low=1e-6, high=1.0)
            self.others = [
                run.knob("loss/kind", "mse", choices=["mse", "mae"]),
                run.knob("n", 1),
                run.knob("on", False),
            ]
            run.action("add", _add)
            run.action("checkpoint", _saved)
            step = 0
            while not run.stop_requested and not self.last.wait(0.002):
                run.log({"loss": 1.0}, step=step)
                step += 1


@pytest.fixture
def training() -> Iterator[Training]:
    with Monitor() as monitor:
        made = Training()
        try:
            run = monitor.wait_for_run("fox", timeout=30)
            until(lambda: {"lr", "on", "checkpoint", "stop"} <= set(run.controls) and bool(run.metrics), 30)
            yield made
        finally:
            made.last.set()
            made.thread.join()


def test_a_knob_is_turned_and_what_it_was_is_printed(training: Training) -> None:
    """Each value as its knob has it: 1 is a float for one, text for another is text."""
    said = fitwire_says("set", "fox", "lr=1", "loss/kind=mae", "n=3", "on=true")

    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert len(lines) == 4 and all(line.startswith("fox: applied at step ") for line in lines)
    assert [line.rpartition(": ")[2] for line in lines] == ["0.01 → 1", "mse → mae", "1 → 3", "false → true"]
    assert [training.lr.value, *(knob.value for knob in training.others)] == [1.0, "mae", 3, True]


def test_what_is_refused_is_said_on_stderr_with_exit_code_1(training: Training) -> None:
    """Out of bounds, of another kind, unknown."""
    for word, why in (("lr=5", "from 1e-06 to 1"), ("on=7", "on"), ("nosuch=1", "nosuch")):
        said = fitwire_says("set", "fox", word)

        assert said.exit_code == 1 and said.stdout == ""
        assert said.stderr.startswith("fox: refused") and why in said.stderr
    assert training.lr.value == 0.01


def test_an_action_gets_its_arguments_and_its_answer_is_printed(training: Training) -> None:
    """As numbers where they read as such."""
    (told,) = in_json("do", "fox", "add", "a=2", "b=0.5")
    assert (told["status"], told["after"], told["run"]["name"]) == ("applied", "2.5", "fox")
    (told,) = in_json("checkpoint", "fox", "here.npz")
    assert (told["status"], told["after"]) == ("applied", "here.npz")
    assert fitwire_says("do", "fox", "nosuch").exit_code == 1


def test_a_pause_a_sample_and_a_stop(training: Training) -> None:
    """What a loop does not know is refused; a stop ends it, and all of it is shown afterwards."""
    assert "applied" in fitwire_says("pause", "fox", "--max-pause", "60").stdout
    assert json.loads(fitwire_says("show", "fox", "--json").stdout)["state"] == "paused"
    assert "applied" in fitwire_says("unpause", "fox").stdout
    assert fitwire_says("sample", "fox").exit_code == 1
    assert fitwire_says("stop", "fox", "--after-epoch").exit_code == 1
    before = fitwire_says("show", "fox").stdout
    assert "0.01  from 1e-06 to 1" in before and "one of mse, mae" in before and "add, checkpoint" in before
    assert fitwire_says("stop", "fox").exit_code == 0
    training.thread.join(30)
    assert not training.thread.is_alive()
    shown, told = fitwire_says("show", "fox").stdout, json.loads(fitwire_says("show", "fox", "--json").stdout)

    assert "stop by " in shown and "sample by " in shown and ": refused" in shown
    assert "0.01  from" not in shown  # of a run that is over nothing may be asked
    assert [one["what"] for one in told["commands"]][-1] == "stop" and told["commands"][-1]["status"] == "applied"


def test_what_nobody_carries_out_is_told_from_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``timeout(1)`` has it."""
    with Monitor() as monitor, fitwire.init(name="busy", wait=30) as run:
        run.log({"loss": 1.0})
        monitor.wait_for_run("busy", timeout=30)
        said = fitwire_says("stop", "busy", "--timeout", "0.5")

    assert said.exit_code == 124
    assert said.stderr.startswith("busy: expired (")


@pytest.mark.parametrize(
    "words",
    [["set", "fox"], ["set", "lr=1"], ["set", "fox", "lr"], ["stop"], ["stop", "fox", "--force", "--after-epoch"],
     ["stop", "fox", "--wire", "sleap"], ["set", "fox", "lr=1", "--wire", "sleap"], ["set", "n=1", "--wire", "sleap"],
     ["do", "fox", "add", "a"], ["do", "fox", "add", "a-b=1"], ["do", "fox", "add", "timeout=1"], ["pause"],
     ["stop", "fox", "--timeout", "0"], ["stop", "--wire", "sleap", "--after-epoch"]],
)  # fmt: skip
def test_misuse_is_a_sentence_and_nothing_is_asked(words: list[str]) -> None:
    """Exit code 2."""
    said = fitwire_says(*words)

    assert said.exit_code == 2, said.output
    assert said.stderr.startswith("fitwire: ") and said.stderr.count("\n") == 1


def test_an_unmodified_training_is_asked_by_its_own_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ports instead of a run's name."""
    asked: list[tuple[Any, ...]] = []

    def send(command: str, address: str | None, timeout: float, **more: Any) -> Outcome:
        asked.append((command, address, timeout, more))
        return Outcome(status="accepted", reason="sent", name=command)

    monkeypatch.setattr("fitwire.cli.ask.send", send)
    stop = fitwire_says("stop", "--wire", "sleap", "--timeout", "3")
    set_ = fitwire_says("set", "lr=1e-4", "--wire", "sleap", "--listen", "tcp://127.0.0.1:7001,7000", "--json")

    assert (stop.exit_code, stop.stdout) == (0, "accepted (sent)\n")
    assert (set_.exit_code, json.loads(set_.stdout)["status"]) == (0, "accepted")
    assert asked == [
        ("stop", None, 3.0, {"force": False}),
        ("set", "tcp://127.0.0.1:7001,7000", 60.0, {"lr": 1e-4}),
    ]

"""The main job with real processes: trainings, hubs and viewers that come, go and are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fitwire import AddressInUse, Monitor, WatchedRun
from fitwire.watch.states import State
from helpers import until

TRAINING = """
import sys, time
import numpy as np
import fitwire

name, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with fitwire.init(name=name, config={"steps": steps}) as run:
    for step in range(steps):
        run.log({"loss": 1.0 / (step + 1), "twice": 2.0 * step}, step=step)
        if step % 50 == 0:
            run.sample("square", image=np.full((2, 3, 3), step, dtype=np.float32))
        if pause:
            time.sleep(pause)
    run.flush(30)
"""
HUB = """
import sys, time
from fitwire.transport.address import resolve
from fitwire.watch.hub import Hub

hub = Hub(resolve())
print("listening", flush=True)
time.sleep(600)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a Python program in a process of its own; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(code: str, *args: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def heard(child: subprocess.Popen[str]) -> None:
    """Wait until a hub listens."""
    assert child.stdout is not None
    assert child.stdout.readline() == "listening\n"


def is_whole(run: WatchedRun, steps: int) -> bool:
    """Whether every value and sample of :data:`TRAINING` is there, once and exact."""
    curve = run.curve("loss")
    expected = 1.0 / (np.arange(steps) + 1)
    pictures = run.samples("square")
    return (
        np.array_equal(curve.steps, np.arange(steps))
        and np.array_equal(curve.values, expected)
        and [s.step for s in pictures] == list(range(0, steps, 50))
        and all((s.arrays["image"] == np.float32(s.step or 0)).all() for s in pictures)
    )


def test_two_trainings_and_three_monitors_on_one_address(start: Start) -> None:
    """Everybody sees both trainings whole, whoever happens to be the hub."""
    with Monitor() as first, Monitor() as second, Monitor() as third:
        one, two = start(TRAINING, "one", 300, 0.001), start(TRAINING, "two", 400, 0.001)
        seen = [(m.wait_for_run("one", timeout=60), m.wait_for_run("two", timeout=60)) for m in (first, second, third)]
        for a, b in seen:
            a.wait(timeout=60)
            b.wait(timeout=60)

        assert [m.is_hub for m in (first, second, third)] == [True, False, False]
        assert [(is_whole(a, 300), is_whole(b, 400)) for a, b in seen] == [(True, True)] * 3
        assert {run.state for pair in seen for run in pair} == {State.FINISHED}
        assert (one.wait(30), two.wait(30)) == (0, 0)


@pytest.mark.parametrize("order", ["hub viewer trainer", "hub trainer viewer", "trainer hub viewer", "trainer viewer"])
def test_every_order_of_starting_ends_in_the_same_curve(start: Start, order: str) -> None:
    """Trainer, hub and viewer may come in any order; without a hub of its own the viewer is the hub."""
    parties = order.split()
    viewer: Monitor | None = None
    try:
        for party in parties:
            if party == "hub":
                heard(start(HUB))
            elif party == "trainer":
                start(TRAINING, "any-order", 500, 0.003)
            else:
                viewer = Monitor(serve="hub" not in parties)
        assert viewer is not None
        run = viewer.wait_for_run("any-order", timeout=60)
        run.wait(timeout=60)

        assert viewer.is_hub is ("hub" not in parties)
        assert (run.state, run.badge) == (State.FINISHED, "complete")
        assert is_whole(run, 500)
    finally:
        if viewer is not None:
            viewer.close()


def test_a_hub_killed_in_the_middle_and_started_again_costs_nothing(start: Start) -> None:
    """Training goes on meanwhile, the curve is whole afterwards, and a viewer finds back by itself."""
    hub = start(HUB)
    heard(hub)
    training = start(TRAINING, "steady", 1500, 0.002)
    with Monitor(serve=False) as viewer:
        run = viewer.wait_for_run("steady", timeout=60)
        for _ in range(2):
            before = run.progress.step or 0
            until(lambda: (run.progress.step or 0) > before + 20, timeout=60)  # noqa: B023
            hub.send_signal(signal.SIGKILL)
            hub.wait()
            assert training.poll() is None
            hub = start(HUB)
            heard(hub)
        run.wait(timeout=60)

        assert training.wait(30) == 0
        assert run.badge == "complete"
        assert is_whole(run, 1500)


def test_a_viewer_takes_the_place_of_a_hub_that_leaves(start: Start) -> None:
    """The runs stay, the training comes over, and nothing is missing."""
    first, second = Monitor(), Monitor()
    try:
        start(TRAINING, "moving", 1000, 0.002)
        run = second.wait_for_run("moving", timeout=60)
        until(lambda: (run.progress.step or 0) > 50, timeout=60)
        first.close()
        until(lambda: second.is_hub, timeout=60)
        run.wait(timeout=60)

        assert is_whole(run, 1000)
    finally:
        first.close()
        second.close()


def test_a_killed_trainer_is_lost_long_before_its_silence_could_say_so(start: Start) -> None:
    """Its connection breaks and its process is gone, which the hub can see."""
    with Monitor() as monitor:
        training = start(TRAINING, "doomed", 100_000, 0.005)
        run = monitor.wait_for_run("doomed", timeout=60)
        until(lambda: run.state is State.RUNNING, timeout=60)
        training.send_signal(signal.SIGKILL)
        training.wait()

        until(lambda: run.state is State.LOST, timeout=60)

        assert len(run.curve("loss")) > 0


def test_a_stopped_trainer_is_not_lost(start: Start) -> None:
    """A process that is frozen is there: its run is shown as running or stalled until it goes on."""
    with Monitor() as monitor:
        training = start(TRAINING, "frozen", 100_000, 0.005)
        run = monitor.wait_for_run("frozen", timeout=60)
        until(lambda: run.state is State.RUNNING, timeout=60)
        os.kill(training.pid, signal.SIGSTOP)
        seen = run.progress.step or 0
        monitor.wait_for_change(monitor.revision, timeout=2)
        state = run.state
        os.kill(training.pid, signal.SIGCONT)
        until(lambda: (run.progress.step or 0) > seen + 50, timeout=60)

        assert state in (State.RUNNING, State.STALLED)
        assert run.state is State.RUNNING


def test_without_a_hub_a_training_ends_normally_and_says_what_was_lost(start: Start) -> None:
    """It starts at once, never waits, and its last line says that nobody listened, and where the records wait."""
    training = start(TRAINING.replace("run.flush(30)", ""), "alone", 200, 0)
    _, said = training.communicate(timeout=60)

    assert training.returncode == 0
    assert "0 records delivered, 208 wait in" in said


def test_a_second_hub_cannot_take_a_living_ones_address(start: Start, fitwire_dir: Path) -> None:
    """It is told in a sentence, and the first one goes on hearing trainers."""
    hub = start(HUB)
    heard(hub)
    second = start(HUB)
    _, said = second.communicate(timeout=60)
    training = start(TRAINING, "kept", 100, 0)
    with Monitor(serve=False) as viewer:
        run = viewer.wait_for_run("kept", timeout=60)
        run.wait(timeout=60)

        assert "a hub is there already" in said
        assert is_whole(run, 100)
        assert training.wait(30) == 0


def test_a_port_that_another_program_holds_is_one_clear_sentence() -> None:
    """It is neither taken nor waited for."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port} is taken"):
            Monitor(f"tcp://127.0.0.1:{port}")

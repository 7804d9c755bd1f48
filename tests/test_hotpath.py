"""What runs on the training thread: counted in calls, not in time."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

import fitwire
from fitwire.train import uplink
from fitwire.train.run import Run
from helpers import until
from tinyhub import tiny_hub


def calls(work: Callable[[], object]) -> Counter[str]:
    """Every function, Python's or C's, that ``work`` calls on this thread, with how often."""
    found: Counter[str] = Counter()

    def hook(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found[f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_name}"] += 1
        elif event == "c_call":
            owner = getattr(argument, "__self__", None)
            name = type(owner).__name__ if not isinstance(owner, type(sys)) else owner.__name__
            found[f"{name}.{argument.__name__}"] += 1

    gc.disable()  # a collection runs other people's finalizers here
    sys.setprofile(hook)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    found.pop("sys.setprofile", None)
    return found - Counter({f"test_hotpath.py:{getattr(work, '__name__', '')}": 1})


VALUES = {"loss": 0.5, "accuracy": 0.25, "grad_norm": 1.5, "lr": 1e-3}


@pytest.fixture(params=["no hub", "hub"])
def run(request: pytest.FixtureRequest) -> Any:
    """A run that is under way, with and without somebody there."""
    if request.param == "no hub":
        with fitwire.init(name="x") as run:
            yield run
        return
    with tiny_hub(), fitwire.init(name="x", wait=60) as run:
        yield run


def untimed(run: Run) -> None:
    """From here on no call of this run is timed: one in some is, see below."""
    assert run._outlet is not None  # pyright: ignore[reportPrivateUsage]
    run._outlet.probe.arm = lambda: None  # pyright: ignore[reportPrivateUsage]
    run._aside = False  # pyright: ignore[reportPrivateUsage]


def test_one_log_of_floats_is_one_call_the_time_and_an_append(run: Run) -> None:
    """No other function, no lock, no system call but the clock's: 1,000 steps, each the same."""
    untimed(run)
    found = calls(lambda: [run.log(VALUES, step=i, epoch=0, batch=i) for i in range(1000)])
    found -= Counter({name: n for name, n in found.items() if name.startswith("test_hotpath.py")})

    assert found == {"run.py:log": 1000, "time.time": 1000, "deque.append": 1000, "dict.values": 1000}


def test_a_log_without_a_step_and_a_flag_read_cost_no_more(run: Run) -> None:
    """The next step is counted in the same call; reading whether to stop calls nothing but the property."""
    untimed(run)
    found = calls(lambda: run.log(VALUES))
    found -= Counter({name: n for name, n in found.items() if name.startswith("test_hotpath.py")})
    assert found == {"run.py:log": 1, "time.time": 1, "deque.append": 1, "dict.values": 1}
    found = calls(lambda: run.stop_requested)

    assert {name for name in found if not name.startswith("test_hotpath")} == {"steering.py:stop_requested"}


def test_the_meter_times_a_call_when_the_other_thread_has_asked_and_no_other(run: Run) -> None:
    """Asked for twice, 998 of a thousand calls know nothing of it; what was timed is a log call, and told."""
    untimed(run)
    seen = len(run._outlet.probe._timed)  # type: ignore[union-attr]  # pyright: ignore
    found: Counter[str] = Counter()
    for _ in range(2):
        run._time_next()  # pyright: ignore[reportPrivateUsage]
        found += calls(lambda: [run.log(VALUES, step=i) for i in range(500)])
    timed = list(run._outlet.probe._timed)[seen:]  # type: ignore[union-attr]  # pyright: ignore

    assert (found["run.py:log"], found["run.py:_log_aside"], found["deque.append"]) == (1002, 2, 1002)
    assert len(timed) == 2 and all(0 < nanoseconds < 1e9 for nanoseconds in timed)
    assert run.meter.log_us > 0 and run.step == 499


def test_other_calls_stay_on_their_thread_and_open_nothing(run: Run) -> None:
    """Values of other types, an epoch, a sample, a note: no socket, no file, no thread, no encoding, no waiting."""

    def step() -> None:
        run.log({"loss": np.float32(0.5), "n": 1}, step=3)
        run.end_epoch({"val": 0.5}, epoch=0)
        run.sample("m", image=np.zeros((2, 4, 4)))
        run.note("text")
        run.config["a"] = 1

    step()
    found = calls(step)
    files = {name.partition(":")[0] for name in found if ":" in name}
    ours = {
        "run.py",
        "values.py",
        "events.py",
        "mappings.py",
        "pending.py",
        "uplink.py",
        "arrays.py",
        "test_hotpath.py",
    }

    assert not files & {"zmq.py", "packer.py", "blocks.py", "source.py", "strict_json.py", "threading.py", "socket.py"}
    assert files >= {"run.py", "values.py"} and len(files - ours) <= 6, files - ours
    assert not [name for name in found if name.endswith((".send", ".poll", ".wait", ".acquire", ".open", ".write"))]


def test_a_frozen_thread_of_ours_never_holds_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The I/O thread stuck for good: every call returns, the end is bounded."""
    stuck = threading.Event()
    entered = threading.Event()

    def freeze(*_: Any) -> None:
        entered.set()
        stuck.wait(100)

    monkeypatch.setattr(uplink, "DRAIN", 0.2)
    monkeypatch.setattr(uplink.Uplink, "_take", freeze)
    run = fitwire.init(name="x")
    assert entered.wait(60)
    for i in range(50_000):
        run.log(VALUES, step=i)
    run.sample("m", image=np.zeros((2, 4)))
    run.finish()

    assert run.status == "finished"
    assert run._outlet is not None and run._outlet.delivery().left >= 50_000  # pyright: ignore[reportPrivateUsage]
    stuck.set()


def test_nobody_is_woken_by_a_log() -> None:
    """The I/O thread looks by itself every 20 ms; an append sets no event and notifies no condition."""
    with tiny_hub() as hub, fitwire.init(name="x", wait=60) as run:
        run.log(VALUES, step=0)
        begun = time.monotonic()
        until(lambda: len(hub.store.metrics) == 1)
        took = time.monotonic() - begun

        assert took < 10.0  # a hang guard: it came by itself
        assert isinstance(run._outlet, uplink.Uplink)  # pyright: ignore[reportPrivateUsage]
        assert not run._outlet._marks  # pyright: ignore[reportPrivateUsage]

"""``fitwire demo``: train for real in another process, watch it from this one, and compare what arrived.

The trainings (``train_keras``, ``train_lightning``, ``train_loop``) are programs as a user would write them; they write
what their framework itself says each epoch came to, and :func:`compare` holds what was received against that.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fitwire.errors import FitwireError, UnknownRun, UsageError, WaitTimeout
from fitwire.watch.monitor import Monitor, WatchedRun

__all__ = ["FRAMEWORKS", "Comparison", "Training", "choose", "compare", "start"]

FRAMEWORKS = {"keras": ("keras", "tensorflow"), "lightning": ("lightning", "torch"), "loop": ()}
"""What each training imports beside scikit-learn."""
OWN = {"keras": "Keras's History", "lightning": "Lightning's callback_metrics", "loop": "the loop's own"}
"""What the received values are compared with."""
DEADLINE = 120.0
"""Seconds for the training to say its first word: tensorflow may take half a minute from a cold disk."""


def _installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def choose(framework: str | None) -> str:
    """The framework asked for, or the first that is installed.

    Raises:
        UsageError: It, or scikit-learn, is not installed; the message says what to install.
    """
    if not _installed("sklearn"):
        raise UsageError("the demo trains on scikit-learn's digits: pip install 'fitwire[demo]'")
    if framework is None:
        return next(name for name, needs in FRAMEWORKS.items() if _installed(*needs))
    if not _installed(*FRAMEWORKS[framework]):
        raise UsageError(f"{framework} is not installed: pip install 'fitwire[{framework}]', or pass --framework loop")
    return framework


@dataclass(slots=True)
class Training:
    """The training that runs in another process.

    Attributes:
        framework: One of :data:`FRAMEWORKS`.
        process: It.
        folder: Its throw-away files.
    """

    framework: str
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def over(self) -> bool:
        """Whether its process has ended."""
        return self.process.poll() is not None

    @property
    def said(self) -> str:
        """What it printed."""
        return (self.folder / "output.txt").read_text(errors="replace")

    def history(self) -> dict[str, list[float]]:
        """What it says itself that each epoch came to.

        Raises:
            FitwireError: It ended badly, and has not written it.
        """
        code = self.process.wait(60.0)
        path = self.folder / "history.json"
        if code != 0 or not path.exists():
            last = next((line for line in reversed(self.said.splitlines()) if line.strip()), "without a word")
            raise FitwireError(f"the training ended with exit code {code}: {last}")
        return json.loads(path.read_text())


@contextmanager
def start(framework: str, address: str | None, epochs: int | None) -> Generator[tuple[Training, Monitor]]:
    """Watch an address, and start a training that tells of itself there; at the end both are gone.

    Args:
        framework: One of :data:`FRAMEWORKS`.
        address: Of the hub; None for one of this demo's own, whose store is thrown away with it.
        epochs: None for as many as the training thinks right.
    """
    folder = Path(tempfile.mkdtemp(prefix="fitwire-demo-"))
    try:
        with Monitor(
            str(folder / "hub") if address is None else address,
            store=folder / "store.sqlite3" if address is None else None,
        ) as monitor:
            training = Training(framework, _spawn(framework, monitor.address, epochs, folder), folder)
            try:
                yield training, monitor
            finally:
                _end(training.process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _spawn(framework: str, address: str, epochs: int | None, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"fitwire.demo.train_{framework}", "--address", address]
    command += ["--history", str(folder / "history.json")]
    command += [] if epochs is None else ["--epochs", str(epochs)]
    # A training of its own, whatever this terminal was set to; and quiet, since its output is only read on a failure.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FITWIRE_")}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "FITWIRE_DIR": os.environ.get("FITWIRE_DIR", str(folder))}
    # On a busy machine the threads of so small a model wait for each other longer than they work: 8 s became 150.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, "1")
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_run(training: Training, monitor: Monitor, known: frozenset[str], tick: Callable[[float], None]) -> WatchedRun:
    """Wait for the training's first word; ``tick`` is told the seconds waited.

    Args:
        training: That was started.
        monitor: Where it will be seen.
        known: Ids of runs that were there before.
        tick: Called a few times a second.

    Raises:
        FitwireError: It ended before it said anything.
        WaitTimeout: It said nothing in two minutes.
    """
    began = time.monotonic()
    revision = -1
    while (waited := time.monotonic() - began) < DEADLINE:
        found = [run for run in monitor.runs if run.id not in known]
        if found:
            return found[0]
        if training.over:
            training.history()
            raise FitwireError("the training ended and was never seen; is another hub's address set?")
        tick(waited)
        revision = monitor.wait_for_change(revision, 0.2)
    raise WaitTimeout(f"the training said nothing within {DEADLINE:g} s")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was received against what the training itself says.

    Attributes:
        equal: Epoch values that are equal to the last bit.
        differing: Names of metrics of which some value differs or is missing, or that came too often.
        rows: Name, and the first, best and last value received, for a table.
    """

    equal: int = 0
    differing: tuple[str, ...] = ()
    rows: tuple[tuple[str, float, float, float], ...] = field(default_factory=tuple)

    @property
    def holds(self) -> bool:
        """Whether everything is there and equal."""
        return self.equal > 0 and not self.differing


def compare(run: WatchedRun, history: Mapping[str, Sequence[float]]) -> Comparison:
    """Hold the epoch values received against the training's own, bit by bit (so a NaN equals a NaN)."""
    equal, differing, rows = 0, list[str](), list[tuple[str, float, float, float]]()
    for name, own in history.items():
        try:
            received = run.curve(name, per="epoch").values.tolist()
        except UnknownRun:
            received = list[float]()
        same = sum(one.hex() == float(other).hex() for one, other in zip(received, own, strict=False))
        equal += same
        if same != len(own) or len(received) != len(own):
            differing.append(name)
        if received:
            rows.append((name, received[0], min(received), received[-1]))
    return Comparison(equal, tuple(differing), tuple(rows))

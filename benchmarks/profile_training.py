"""What of fitwire runs on the training thread, batch by batch?

Trains a small model by hand in numpy and logs four floats a batch, with nobody listening. Once under
``sys.setprofile``, which sees every call of Python and C on this thread: which functions of fitwire, and how often in a
batch. Once under cProfile, for what they cost. Then a few samples, for what those bring. The I/O thread is not looked
at: the point is that it is another thread. Prints a table to stderr and one JSON line.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import fitwire

BATCHES, SAMPLES = 2000, 100
PACKAGE = str(Path(fitwire.__file__).parent)


class Training:
    """Logistic regression by gradient descent, one batch at a time."""

    def __init__(self, run: fitwire.Run) -> None:
        self.run, self.step = run, 0
        self._chance = np.random.default_rng(0)
        self._weights = np.zeros(64)

    def batch(self) -> None:
        """One optimizer step, and what is said of it."""
        x = self._chance.normal(size=(32, 64))
        y = (x[:, 0] > 0).astype(float)
        p = 1 / (1 + np.exp(-x @ self._weights))
        gradient = x.T @ (p - y) / len(y)
        self._weights -= 0.5 * gradient
        loss = float(-np.mean(y * np.log(p + 1e-9) + (1 - y) * np.log(1 - p + 1e-9)))
        self.run.log(
            {
                "loss": loss,
                "accuracy": float(np.mean((p > 0.5) == y)),
                "grad_norm": float(np.linalg.norm(gradient)),
                "lr": 0.5,
            },
            step=self.step,
        )
        self.step += 1


def seen(training: Training) -> dict[str, float]:
    """Calls a batch, on this thread, of fitwire's functions and of what those call in C."""
    found: Counter[str] = Counter()

    def hook(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(PACKAGE):
            called = frame.f_code.co_qualname if event == "call" else f"  {argument.__qualname__} (C)"
            found[f"{Path(frame.f_code.co_filename).name}: {called}"] += 1

    sys.setprofile(hook)
    for _ in range(BATCHES):
        training.batch()
    sys.setprofile(None)
    return {name: count / BATCHES for name, count in found.items()}


def cost(training: Training) -> tuple[dict[str, float], float]:
    """µs a batch of fitwire's functions, callees and cProfile's own overhead included; and of the whole batch."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(BATCHES):
        training.batch()
    profile.disable()
    stats: Any = pstats.Stats(profile)
    ours = {
        f"{Path(file).name}: {name}": cumulative / BATCHES * 1e6
        for (file, _, name), (_, _, _, cumulative, _) in stats.stats.items()
        if file.startswith(PACKAGE)
    }
    return ours, stats.total_tt / BATCHES * 1e6


def sampled(training: Training) -> dict[str, float]:
    """Calls of fitwire's functions for one sample."""
    found: Counter[str] = Counter()

    def hook(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            found[f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_qualname}"] += 1

    image = np.zeros((8, 28, 28), np.float32)
    sys.setprofile(hook)
    for _ in range(SAMPLES):
        training.run.sample("masks", image=image, prediction=image)
    sys.setprofile(None)
    return {name: count / SAMPLES for name, count in found.items()}


def main() -> None:
    """Measure and print."""
    os.environ["FITWIRE_DIR"] = tempfile.mkdtemp(prefix="fw-")
    os.environ["FITWIRE_LOG_LEVEL"] = "off"
    with fitwire.init(name="profile") as run:
        training = Training(run)
        training.batch()
        calls = seen(training)
        micros, total = cost(training)
        samples = sampled(training)
    print(f"{'of fitwire on the training thread':52} calls/batch  µs/batch", file=sys.stderr)
    for name, count in calls.items():
        spent = micros.get(name.replace("Run.", ""))
        print(f"{name:52} {count:11.3f}  {'' if spent is None else f'{spent:8.2f}'}", file=sys.stderr)
    print(f"a whole batch, profiled: {total:.1f} µs; a sample calls {sum(samples.values()):.0f} more", file=sys.stderr)
    found = {"benchmark": "profile_training", "calls_per_batch": calls, "µs_per_batch": micros, "batch_µs": total}
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()

"""Process life with real frameworks: loaders that fork or spawn, children of a training, signals, threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitwire import Monitor
from fitwire.journal.layout import find_journals
from helpers import until

PRELUDE = """
import json, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")

def handlers():
    found = {}
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        handler = signal.getsignal(number)
        all_of = getattr(handler, "signal_handlers", [handler])  # Lightning's
        found[int(number)] = [getattr(one, "__qualname__", str(one)) for one in all_of]
    return found

def ours():
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("fitwire"))
"""


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with Monitor() as one:
        yield one


def train(folder: Path, code: str, **environment: str) -> Any:
    """Run a training from a file, as spawned processes need it; gives what its last line of output says."""
    program = folder / "program.py"
    program.write_text(PRELUDE + code)
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def whole(monitor: Monitor, name: str, steps: int, metric: str = "loss") -> bool:
    """Whether exactly these steps of one process arrived, and nothing lies around."""
    run = monitor.run(name)
    until(lambda: run.ended and run.badge == "complete", timeout=60, what=f"{run.state}, {run.badge}")
    until(lambda: not list(find_journals()), timeout=60, what="no journal")
    return run.state == "finished" and run.curve(metric, "batch").steps.tolist() == list(range(steps))


LOADERS = """
import fitwire, torch

class Data(torch.utils.data.Dataset):
    def __init__(self, run): self.run = run
    def __len__(self): return 24
    def __getitem__(self, index):
        if self.run is not None:
            self.run.log({"from": 1.0})  # a worker has no say
            self.run.config["worker"] = index
        return torch.ones(2) * index

if __name__ == "__main__":
    torch.set_num_threads(1)
    run = fitwire.init(name="loaders", wait=30)
    step, seen = 0, []
    for how, persistent in (("fork", False), ("fork", True), ("spawn", True), ("forkserver", False)):
        loader = torch.utils.data.DataLoader(
            Data(run), batch_size=4, num_workers=2, multiprocessing_context=how, persistent_workers=persistent)
        for epoch in range(2 if how == "fork" else 1):
            total = 0.0
            for batch in loader:
                run.log({"loss": float(batch.sum())}, step=step)
                total += float(batch.sum())
                step += 1
            seen.append(total)
    run.finish()
    print(json.dumps([step, seen, ours()]))
"""


@pytest.mark.framework
def test_workers_of_torchs_loader_neither_speak_nor_end_the_run(monitor: Monitor, tmp_path: Path) -> None:
    """Forked or spawned, once or for good, with the run inside of the data set."""
    (steps, seen, threads), said = train(tmp_path, LOADERS)

    assert steps == 36 and seen == [552.0] * 6
    assert whole(monitor, "loaders", 36)
    run = monitor.run("loaders")
    assert "from" not in run.metrics and "worker" not in run.config and len(monitor.runs) == 1
    assert threads == []
    assert "belongs to the parent process" in said and "belongs to the process that started it" in said


CHILDREN = """
import concurrent.futures, copy, multiprocessing, pickle
import fitwire

def child(run):
    run.log({"child": 1.0})
    run.finish("failed")
    return [run.status, ours()]

if __name__ == "__main__":
    before = handlers()
    run = fitwire.init(name="children", wait=30)
    run.log({"loss": 0.0}, step=0)
    answers = []
    for how in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(how)
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            answers += list(pool.map(child, [run, run]))
        process = context.Process(target=sys.exit, args=(7,))
        process.start(); process.join()
        assert process.exitcode == 7
    twin = copy.deepcopy(run)
    twin.log({"twin": 1.0}); twin.finish()
    assert pickle.loads(pickle.dumps(run)).id == run.id
    pid = os.fork()
    if pid == 0:
        sys.exit(0)  # by way of atexit
    os.waitpid(pid, 0)
    during = handlers()
    run.log({"loss": 1.0}, step=1)
    run.finish()
    print(json.dumps([run.status, answers, before == during == handlers(), ours()]))
"""


def test_children_of_a_training_come_and_go(monitor: Monitor, tmp_path: Path) -> None:
    """Pools, processes, copies and a bare fork that ends by way of its own atexit; no signal handler is ours."""
    (status, answers, untouched, threads), _ = train(tmp_path, CHILDREN)

    assert status == "finished" and untouched
    assert len(answers) == 6 and all(found == [] for _, found in answers)
    assert whole(monitor, "children", 2)
    assert not {"child", "twin"} & set(monitor.run("children").metrics)
    assert threads == []


KERAS = """
import keras, numpy as np
from keras_models import line, points
from fitwire.keras import ZMQProgress

class Data(keras.utils.PyDataset):
    def __init__(self, callback, **options):
        super().__init__(**options)
        self.callback = callback
    def __len__(self): return 6
    def __getitem__(self, index):
        x, y = points(48)
        return x[index * 8 : index * 8 + 8], y[index * 8 : index * 8 + 8]

if __name__ == "__main__":
    before, during = handlers(), []
    probe = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: during.append(handlers()))
    callback = ZMQProgress(name="keras", wait=30)
    data = Data(callback, workers=2, use_multiprocessing=True)
    model = line()
    model.fit(data, epochs=2, verbose=0, callbacks=[callback, probe])
    model.fit(data, epochs=1, verbose=0, callbacks=[callback])
    print(json.dumps([all(found == before for found in during), len(during), before == handlers(), ours()]))
"""


@pytest.mark.framework
def test_keras_workers_that_hold_the_callback_and_a_second_fit(monitor: Monitor, tmp_path: Path) -> None:
    """The data set has the callback in it, so each worker gets a copy; signals stay as they were during ``fit``."""
    (same, batches, after, threads), _ = train(tmp_path, KERAS)

    assert same and batches == 12 and after and threads == []
    until(lambda: [run.ended for run in monitor.runs] == [True, True], timeout=60)
    assert sorted(len(run.curve("loss", "batch")) for run in monitor.runs) == [6, 12]
    assert {run.state for run in monitor.runs} == {"finished"}


LIGHTNING = """
import lightning.pytorch as pl, torch
from fitwire.lightning import ZMQProgress
from lightning_models import QUIET, Regression, examples

class Data(torch.utils.data.Dataset):
    def __init__(self, callback): self.callback, (self.x, self.y) = callback, examples()[:2]
    def __len__(self): return 16
    def __getitem__(self, index): return self.x[index % len(self.x)], self.y[index % len(self.y)]

class Probe(pl.Callback):
    def __init__(self): self.seen = []
    def on_train_batch_end(self, *args): self.seen.append(handlers())

def fit(callback, how):
    probe = Probe()
    callbacks = [callback, probe] if callback is not None else [probe]
    loader = torch.utils.data.DataLoader(
        Data(callback), batch_size=4, num_workers=2, multiprocessing_context=how, persistent_workers=True)
    pl.Trainer(**QUIET | {"max_epochs": 2, "callbacks": callbacks}).fit(Regression(), loader)
    return probe.seen[-1]

if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(None, "fork")  # torch sets one of its own the first time only
    alone = fit(None, "fork")
    before = handlers()
    with_us = [fit(ZMQProgress(name=how, wait=30), how) for how in ("fork", "spawn")]
    print(json.dumps([[found == alone for found in with_us], before == handlers(), ours()]))
"""


@pytest.mark.framework
def test_lightning_with_workers_that_hold_the_callback(monitor: Monitor, tmp_path: Path) -> None:
    """Forked and spawned; during ``fit`` the signals are Lightning's own, as without us."""
    (same, after, threads), _ = train(tmp_path, LIGHTNING)

    assert same == [True, True] and after and threads == []
    assert whole(monitor, "fork", 8) and whole(monitor, "spawn", 8)
    assert len(monitor.runs) == 2

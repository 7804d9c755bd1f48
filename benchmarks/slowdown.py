"""By how much does logging each step slow a training down?

A small training of about 0.3, 2 and 20 ms a step (torch where installed, else numpy; one thread) logs four floats a
step, in turn with the same steps and an empty callback: pairs, the order changing from pair to pair. What a contender
does later, on a thread of its own, belongs to it too: each part ends with unlogged steps, for 30 ms. ``points`` is the
median over the pairs of how much longer the logged steps took, in percent; ``quartiles`` lie around it; ``empty`` is
an empty callback against itself, the noise. Each contender has a process of its own. Prints one JSON line.

    python benchmarks/slowdown.py [--steps MS ...] [--pairs N] [--part S] [--only NAME ...] [--training torch|numpy]
"""

from __future__ import annotations

import os

# Said before numpy and torch are imported: threads that wait for each other on two cores measure the scheduler.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import log_call
from common import Child, at_home, hub_at, print_line

TAIL = 0.03
"""Seconds of unlogged steps that end each part: longer than the I/O thread's look."""
CONTENDERS = ("empty", "hub/memory", "hub/process", "seed")
SHAPES = {0.3: (64, 64), 2.0: (256, 256), 20.0: (768, 1024)}
"""Target ms a step: (width of the layers, examples in a batch) to begin with."""

Step = Callable[[], dict[str, float]]


def torch_step(width: int, batch: int) -> Step:
    """Two layers, SGD, and the four numbers people log."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(batch, 64), torch.randint(0, 10, (batch,))

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return {"loss": loss.item(), "accuracy": 0.25, "grad_norm": 1.5, "lr": 0.01}

    return step


def numpy_step(width: int, batch: int) -> Step:
    """The same by hand."""
    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(batch, 64)), chance.integers(0, 10, batch)
    first, second = chance.normal(size=(64, width)) * 0.1, chance.normal(size=(width, 10)) * 0.1
    rows = np.arange(batch)

    def step() -> dict[str, float]:
        hidden = np.maximum(x @ first, 0)
        scores = hidden @ second
        share = np.exp(scores - scores.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        loss = float(-np.log(share[rows, y] + 1e-12).mean())
        share[rows, y] -= 1
        share /= batch
        back = (share @ second.T) * (hidden > 0)
        np.subtract(second, 0.01 * (hidden.T @ share), out=second)
        np.subtract(first, 0.01 * (x.T @ back), out=first)
        return {"loss": loss, "accuracy": 0.25, "grad_norm": 1.5, "lr": 0.01}

    return step


def seconds_of(step: Step, count: int) -> float:
    """Of one step."""
    begun = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - begun) / count


def training_of(target: float, kind: str) -> tuple[Step, float]:
    """Steps of about ``target`` ms, and the seconds they take: the batch is chosen by trying."""
    make = torch_step if kind == "torch" else numpy_step
    width, batch = SHAPES.get(target, (256, 256))
    for _ in range(6):
        step = make(width, batch)
        seconds_of(step, 5)
        took = statistics.median(seconds_of(step, 1) for _ in range(max(5, int(100 / target))))
        if 0.8 < took * 1000 / target < 1.25 or batch <= 8:
            break
        batch = max(8, int(batch * min(4.0, max(0.25, target / (took * 1000)))))
    return step, took


def part(step: Step, call: Callable[..., object], count: int, tail: int, first: int) -> float:
    """Seconds of ``count`` steps that are told of, and ``tail`` that are not."""
    begun = time.perf_counter()
    for number in range(first, first + count):
        call(step(), number)
    for _ in range(tail):
        step()
    return time.perf_counter() - begun


def compare(step: Step, took: float, call: Callable[..., object], pairs: int, seconds: float) -> dict[str, float]:
    """Pairs of parts, one with ``call`` and one with an empty function."""
    count, tail = max(2, round(seconds / took)), max(1, round(TAIL / took))
    share = count / (count + tail)

    def empty(values: dict[str, float], number: int) -> None:
        return None

    points: list[float] = []
    for pair in range(pairs):
        both: dict[bool, float] = {}
        for own in (True, False) if pair % 2 else (False, True):
            both[own] = part(step, call if own else empty, count, tail, pair * count)
        points.append(100 * (both[True] / both[False] - 1) / share)
    low, middle, high = statistics.quantiles(points, n=4) if len(points) > 1 else (points[0],) * 3
    return {"points": middle, "quartiles": [low, high], "step_ms": took * 1000, "steps_in_a_part": count}


def contend(name: str, place: str, target: str, pairs: str, seconds: str, kind: str) -> None:
    """Measure one contender, print what was found."""
    step, took = training_of(float(target), kind)
    with ExitStack() as stack:
        try:
            call = _call(stack, name, place)
        except Exception as error:  # named in the result, whatever it is
            print(json.dumps({"unavailable": f"{type(error).__name__}: {str(error)[:160]}"}), flush=True)
            return
        found = compare(step, took, call, int(pairs), float(seconds))
        print(json.dumps(found), flush=True)


def _call(stack: ExitStack, name: str, place: str) -> Callable[..., object]:
    """What is called with the values and the number of each step."""
    if name == "empty":
        return lambda values, number: None
    if name == "seed":
        import zmq

        socket = zmq.Context.instance().socket(zmq.PUB)
        stack.callback(socket.close, 0)
        socket.connect(f"tcp://127.0.0.1:{place}")
        time.sleep(0.3)
        return lambda values, number: socket.send_json({"step": number, **values})
    if name in log_call.PEERS:
        once = stack.enter_context(log_call.PEERS[name](place))  # the same four values, of which it makes its own
        return lambda values, number: once(number)
    import fitwire

    where, _, durability = place.rpartition("|")
    run = stack.enter_context(fitwire.init(where or None, name="slowdown", durability=durability, wait=20.0))
    if run.warnings["durability"]:
        raise RuntimeError(f"durability={durability!r} is not to be had here")
    return lambda values, number: run.log(values, step=number)


def measure(name: str, target: float, folder: Path, options: argparse.Namespace, seed: Child) -> dict[str, Any]:
    """One contender at one length of step."""
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="fw-", ignore_cleanup_errors=True))
        place = seed.hello if name == "seed" else home
        kind, _, durability = name.partition("/")
        if durability:
            address = stack.enter_context(hub_at(Path(home)))[0] if kind == "hub" else ""
            place = f"{address}|{durability}"
        arguments = (name, place, target, options.pairs, options.part, options.training)
        child = Child("slowdown.py", "contend", *arguments, env={"FITWIRE_DIR": home})
        stack.callback(child.close)
        return json.loads(child.hello)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, nargs="+", default=[0.3, 2.0, 20.0], metavar="MS")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--part", type=float, default=0.08, help="seconds of logged steps in a part")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(CONTENDERS)}, or a peer of log_call")
    parser.add_argument("--training", choices=("torch", "numpy"))
    options = parser.parse_args()
    if options.training is None:
        from importlib.util import find_spec

        options.training = "torch" if find_spec("torch") else "numpy"
    with at_home() as folder, ExitStack() as stack:
        seed = Child("log_call.py", "receiver")
        stack.callback(seed.process.wait)
        stack.callback(seed.process.kill)
        found = {
            f"{target:g} ms": {
                name: measure(name, target, folder, options, seed) for name in options.only or CONTENDERS
            }
            for target in options.steps
        }
    print_line("slowdown", options, unit="points (percent of a step)", cases=found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["contend"]:
        contend(*sys.argv[2:])
    else:
        main()

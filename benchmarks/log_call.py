"""What does one ``log`` of four floats cost the training thread?

Side by side in one run, with nobody listening to fitwire: an empty function, ``run.log``, and the seed's way (a PUB
socket's ``send_json`` to a receiver in another process). In a tight loop (``tight_p50`` of single calls, the clock's
cost, which is what the empty function shows, included; ``tight_mean`` with all that other threads take meanwhile), and
paced at 1 kHz, where caches are cold as between training steps. Prints one JSON line, times in µs; trust the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import zmq

import fitwire

VALUES = {"loss": 0.5, "accuracy": 0.25, "grad_norm": 1.5, "lr": 1e-3}
RECEIVER = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.SUBSCRIBE, b"")
print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
while socket.recv() != b'"end"':
    pass
"""

Call = Callable[[int], object]


def tight(call: Call, count: int) -> dict[str, float]:
    """Median of single calls without a pause, and their mean, µs."""
    clock = time.perf_counter_ns
    taken: list[int] = []
    for step in range(count):
        begun = clock()
        call(step)
        taken.append(clock() - begun)
    return {
        "tight_p50": round(statistics.median(taken) / 1000, 3),
        "tight_mean": round(statistics.fmean(taken) / 1000, 3),
    }


def paced(calls: dict[str, Call], seconds: float) -> dict[str, list[float]]:
    """Every call once a millisecond, in turn, so that each meets the same weather; single durations, µs."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds
    step = 0
    while time.perf_counter() < until:
        for name, call in calls.items():
            time.sleep(0.001)
            begun = time.perf_counter_ns()
            call(step)
            taken[name].append((time.perf_counter_ns() - begun) / 1000)
        step += 1
    return taken


def quantiles(taken: list[float]) -> dict[str, float]:
    """Median, 99th percentile and worst, rounded."""
    ordered = sorted(taken)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p99": round(ordered[int(0.99 * len(ordered))], 2),
        "worst": round(ordered[-1], 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the paced part")
    parser.add_argument("--calls", type=int, default=50_000, help="of the tight part")
    options = parser.parse_args()
    os.environ["FITWIRE_DIR"] = tempfile.mkdtemp(prefix="fw-")
    os.environ["FITWIRE_LOG_LEVEL"] = "off"
    receiver = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    seed = context.socket(zmq.PUB)
    seed.connect(f"tcp://127.0.0.1:{int(receiver.stdout.readline())}")
    time.sleep(0.5)
    run = fitwire.init(name="benchmark")
    calls: dict[str, Call] = {
        "empty": lambda step: None,
        "fitwire": lambda step: run.log(VALUES, step=step),
        "seed": lambda step: seed.send_json({"step": step, **VALUES}),
    }
    in_turn = paced(calls, options.seconds)
    loops = {name: tight(call, options.calls) for name, call in calls.items()}
    seed.send_json("end")
    run.finish()
    receiver.wait(30)
    context.destroy(linger=0)
    result = {name: {**loops[name], **quantiles(in_turn[name])} for name in calls}
    share = result["fitwire"]["p50"] / result["seed"]["p50"]
    found = {"benchmark": "log_call", "unit": "µs", "paced": "1 kHz", **result, "of_the_seed": round(share, 3)}
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    main()

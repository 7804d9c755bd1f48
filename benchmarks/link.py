"""How fast does what a training logs reach the store of a hub in another process, and how soon a person's code?

Prints one JSON line. For each case the clock runs from the first ``log`` to the acknowledgement of the last record by a
hub that has committed it. ``latency_ms`` is from ``log`` to the code of a ``Monitor`` in a third process, over calls 50
ms apart. Memory is what the hub and the trainer have resident once all is delivered, and by how much that grew.

    python benchmarks/link.py [--values N] [--width K] [--calls N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

import fitwire
from fitwire import Monitor
from fitwire.events import Metrics
from fitwire.transport.address import resolve
from fitwire.watch.hub import Hub

CASES = ((20_000, 1), (20_000, 10), (1_000_000, 1), (1_000_000, 10), (1_000_000, 100))
"""(values, values in a record)"""


def serve(address: str, store: str) -> None:
    """Be the hub until stdin is closed."""
    hub = Hub(resolve(address), store)
    print("ready", flush=True)
    for _ in sys.stdin:
        process = psutil.Process()
        print(json.dumps({"mb": process.memory_info().rss / 2**20, "cpu": sum(process.cpu_times()[:2])}), flush=True)
    hub.close()


def watch(address: str) -> None:
    """Say when each value of the run ``latency`` is seen; its value is when it was logged."""
    with Monitor(address, serve=False) as monitor:
        print("ready", flush=True)
        delays: list[float] = []
        for event in monitor.wait_for_run("latency").events():
            if isinstance(event, Metrics) and event.per == "batch":
                delays.append(time.monotonic() - event.values["at"])
        print(json.dumps(sorted(delays)), flush=True)


class Child:
    """Another process of this script, which answers a line with a line."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.read())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20.0)


def deliver(address: str, hub: Child, values: int, width: int) -> dict[str, Any]:
    """Log ``values`` numbers, ``width`` at a time, as fast as the loop can, and wait until all are in the store."""
    names = [f"metric{index}" for index in range(width)]
    rows = [dict.fromkeys(names, float(index)) for index in range(1000)]
    records = values // width
    with fitwire.init(address, name=f"{values}x{width}", wait=10.0) as run:
        assert run.flush(10.0)
        before, mine = hub.ask(), psutil.Process().memory_info().rss / 2**20
        begun = time.perf_counter()
        for step in range(records):
            run.log(rows[step % 1000], step=step)
        logged = time.perf_counter() - begun
        while not run.flush(10.0):
            pass
        took = time.perf_counter() - begun
        after, own = hub.ask(), psutil.Process().memory_info().rss / 2**20
    return {
        "values": values, "width": width, "records_per_s": round(records / took), "values_per_s": round(values / took),
        "seconds": round(took, 3), "log_seconds": round(logged, 3), "hub_cpu_s": round(after["cpu"] - before["cpu"], 3),
        "hub_mb": round(after["mb"], 1), "hub_mb_grew": round(after["mb"] - before["mb"], 1),
        "trainer_mb": round(own, 1), "trainer_mb_grew": round(own - mine, 1),
    }  # fmt: skip


def measure_latency(address: str, calls: int) -> dict[str, float]:
    """From ``log`` to a monitor's code, in milliseconds."""
    watcher = Child("watch", address)
    with fitwire.init(address, name="latency", wait=10.0) as run:
        time.sleep(0.5)
        for _ in range(calls):
            time.sleep(0.05)
            run.log({"at": time.monotonic()})
    delays = json.loads(watcher.read())
    watcher.close()
    assert len(delays) == calls
    return {
        "p50": round(delays[calls // 2] * 1e3, 1),
        "p99": round(delays[calls * 99 // 100] * 1e3, 1),
        "max": round(delays[-1] * 1e3, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, help="one case of so many values")
    parser.add_argument("--width", type=int, default=1, help="values in a record")
    parser.add_argument("--calls", type=int, default=200, help="log calls whose latency is taken")
    chosen = parser.parse_args()
    cases = CASES if chosen.values is None else ((chosen.values, chosen.width),)
    with tempfile.TemporaryDirectory(prefix="fw-") as folder:
        address = f"ipc://{folder}/hub"
        hub = Child("serve", address, f"{folder}/store.sqlite3")
        delivered = [deliver(address, hub, *case) for case in cases]
        latency = measure_latency(address, chosen.calls)
        hub.close()
        size = sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())
    about = {"benchmark": "link", "cpus": os.cpu_count(), "python": sys.version.split()[0]}
    print(json.dumps({**about, "cases": delivered, "latency_ms": latency, "store_mb": round(size / 2**20, 1)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:4])
    elif sys.argv[1:2] == ["watch"]:
        watch(sys.argv[2])
    else:
        main()

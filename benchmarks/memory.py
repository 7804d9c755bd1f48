"""What do a million points take in memory, and how soon does a hub that is started again answer?

*Memory*: a run logs ``--points`` records for each width (values in a record) to a hub in another process, while a
monitor in a third follows, after a tenth as many for warming up. By how much each grew, over the raw size: step, epoch,
batch, time and the values of each record, eight bytes each, as they travel. ``of_values`` is over the values alone;
``transient`` is for the hub's highest moment.

*Restart*: a store with ``--stored`` values, in one run that had not ended, in 256 that had not, or in a hundred that
had, its file in the page cache. From the start of the process ``fitwire hub`` to the first list of runs in a
``Monitor`` of another process, and to one whole curve; and what the hub has resident then. Prints one JSON line.

    python benchmarks/memory.py [--points N] [--widths K ...] [--stored N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import fitwire
from common import Child, at_home, hub_at, medians, print_line
from fitwire import Monitor
from fitwire.events import RunEnded, RunStarted, encode_event, encode_rows
from fitwire.protocol.blocks import RECORDS, Block, Identity, encode_block
from fitwire.transport.address import is_listened_at
from fitwire.watch.roster import Roster
from fitwire.watch.store import Store
from link import AHEAD

ROWS = 256
"""In a stored block: what a trainer makes at most."""
WIDTH = 4
"""Values in a stored row."""
CASES = {"one unfinished": (1, False), "256 unfinished": (256, False), "100 finished": (100, True)}


def resident() -> float:
    """MiB of this process."""
    return psutil.Process().memory_info().rss / 2**20


def watch(address: str) -> None:
    """Follow whatever there is; a line with a run's name and a length asks for memory once its curve is as long."""
    with Monitor(address, serve=False) as monitor:
        print("ready", flush=True)
        for line in sys.stdin:
            name, length = json.loads(line)
            run = monitor.wait_for_run(name, timeout=60.0)
            if length:
                while (run.progress.step or 0) < length - 1:
                    time.sleep(0.01)
            else:
                _ = run.metrics
            print(json.dumps(resident()), flush=True)


def remember(address: str, hub: Child, monitor: Child, rows: int, width: int) -> dict[str, float]:
    """One run of ``rows`` records; MiB by which hub and monitor grew, over the raw size."""
    name = f"{rows} of {width}"
    values = [{f"metric{k}": float(i + k) for k in range(width)} for i in range(1000)]
    with fitwire.init(address, name=name, wait=10.0) as run:
        run.log(values[0], step=0)
        assert run.flush(10.0)
        seen = monitor.ask((name, 0))
        before = hub.ask()
        for step in range(1, rows):
            run.log(values[step % 1000], step=step)
            if step % 10_000 == 0:
                while len(run._queue) > AHEAD // 2:
                    time.sleep(0.001)
        while not run.flush(10.0):
            pass
        assert run._outlet is not None and run._outlet.delivery().dropped == 0
        seen = monitor.ask((name, rows)) - seen
        after = hub.ask()
    raw = rows * (4 + width) * 8 / 2**20
    return {
        "width": width, "records": rows, "raw_mb": raw,
        "hub_mb": after["mb"] - before["mb"],
        "hub": (after["mb"] - before["mb"]) / raw,
        "of_values": (after["mb"] - before["mb"]) / (rows * width * 8 / 2**20),
        "transient": max(0.0, after["peak_mb"] - before["mb"]) / raw,
        "rows_held": (after["history_mb"] - before["history_mb"]) / raw,
        "monitor": seen / raw,
    }  # fmt: skip


# -- a hub that is started again


def blocks_of(sender: Identity, points: int, ended: bool) -> Iterator[Block]:
    """What a run of so many values leaves in a store."""
    begun = time.time() - 86400
    names = ["loss", "accuracy", "grad_norm", "lr"][:WIDTH]
    started = RunStarted(time=begun, name=f"run {sender.run.hex()[:6]}", project="benchmark", info={})
    part, buffers = encode_event(started)
    yield encode_block(sender, RECORDS, 1, int(begun * 1e9), [part | {"b": len(buffers)}], buffers)
    rows, seq = points // WIDTH, 2
    values = np.random.default_rng(0).normal(size=(ROWS, WIDTH))
    for first in range(0, rows, ROWS):
        count = min(ROWS, rows - first)
        index = np.empty((count, 4))
        index[:, 0] = np.arange(first, first + count)
        index[:, 1:3] = np.nan
        index[:, 3] = begun + index[:, 0] * 0.01
        part, buffers = encode_rows(names, "batch", index, values[:count])
        yield encode_block(sender, RECORDS, seq, int(begun * 1e9), [part | {"b": len(buffers)}], buffers)
        seq += count
    if ended:
        part, buffers = encode_event(RunEnded(time=time.time() - 3600, status="finished"))
        yield encode_block(sender, RECORDS, seq, int(begun * 1e9), [part | {"b": len(buffers)}], buffers)


def fill(path: Path, runs: int, points: int, ended: bool) -> None:
    """A store as a hub leaves it: blocks, and a line for each run."""
    store, roster = Store(path), Roster()
    for number in range(runs):
        sender = Identity(os.urandom(16), 1_700_000_000 + number, 0)
        blocks = list(blocks_of(sender, points // runs, ended))
        for first in range(0, len(blocks), 1000):
            store.commit(blocks[first : first + 1000])
        now = time.monotonic()
        roster.joined(store, sender, {"name": f"run {number}", "project": "benchmark"}, now)
        roster.told(sender, now)
        roster.refresh(now, at_once=True)
        lines = roster.unsaved()
        store.commit([], [], lines)
        roster.saved(lines)
    store.close()


def restart(folder: Path, store: Path, points: int) -> dict[str, Any]:
    """Seconds from the start of the process to its answers."""
    path = folder / "again"
    command = [sys.executable, "-m", "fitwire", "hub", str(path), "--store", str(store)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not path.exists() or not is_listened_at(path):
            time.sleep(0.002)
        listens = time.perf_counter() - begun
        with Monitor(str(path), serve=False) as monitor:
            runs = monitor.runs
            listed = time.perf_counter() - begun
            assert monitor.connected and runs
            states = {str(run.state) for run in runs}
            curve = runs[0].curve("loss")
            drawn = time.perf_counter() - begun
            assert len(curve) == points // len(runs) // WIDTH, (len(curve), points, len(runs))
        mb = psutil.Process(process.pid).memory_info().rss / 2**20
    finally:
        process.terminate()
        process.wait(30.0)
    return {"listens_s": listens, "listed_s": listed, "curve_s": drawn, "hub_mb": mb, "states": sorted(states)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000, help="records of each width")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4], help="values in a record")
    parser.add_argument("--stored", type=int, default=10_000_000, help="values in the store of the hub that restarts")
    parser.add_argument("--rounds", type=int, default=3, help="restarts of each kind")
    options = parser.parse_args()
    remembered: list[dict[str, float]] = []
    for width in options.widths:
        # A hub of its own each: memory that one case let go of must not be another's for nothing.
        with at_home() as folder, hub_at(folder) as (address, hub):
            monitor = Child("memory.py", "watch", address)
            remember(address, hub, monitor, max(2, options.points // 10), width)
            remembered.append(remember(address, hub, monitor, options.points, width))
            monitor.close()
    restarts: dict[str, Any] = {}
    for name, (runs, ended) in CASES.items():
        with at_home() as folder:
            store = folder / "stored.sqlite3"
            fill(store, runs, options.stored, ended)
            rounds = [restart(folder, store, options.stored) for _ in range(options.rounds)]
            restarts[name] = medians(rounds) | {"runs": runs, "stored": options.stored}
    print_line("memory", options, memory=remembered, restart=restarts)


if __name__ == "__main__":
    if sys.argv[1:2] == ["watch"]:
        watch(sys.argv[2])
    else:
        main()

"""A hub in a process of its own, which says what it costs when asked: a line in, a line out.

    python benchmarks/serve.py ADDRESS STORE [PAUSE]

PAUSE seconds more are spent on each commit: a slow disk. Ends when its stdin does. With ``BENCH_PROFILE=FILE`` in the
environment, what the hub's thread did is written there at the end, for ``python -m pstats``; that makes it slower.
"""

from __future__ import annotations

import cProfile
import json
import os
import resource
import sys
import time
from typing import Any

import psutil

from fitwire.transport.address import resolve
from fitwire.watch import hub as hub_module
from fitwire.watch.hub import Hub
from fitwire.watch.store import Store


def slowed(pause: float) -> type[Store]:
    """A store that takes its time."""

    class SlowStore(Store):
        def commit(self, *args: Any, **more: Any) -> None:
            time.sleep(pause)
            super().commit(*args, **more)

    return SlowStore


def profile_to(file: str) -> None:
    """Have the hub's thread profiled, by its own CPU time."""
    work = Hub._work

    def work_profiled(self: Hub) -> None:
        profile = cProfile.Profile(time.thread_time)
        profile.runcall(work, self)
        profile.dump_stats(file)

    Hub._work = work_profiled


def history_mb(hub: Hub) -> dict[str, float]:
    """What the rows in memory take, and with the room that is left for them to grow."""
    with hub.roster.changed:
        every = [
            columns
            for history in hub.roster._histories.values()
            for source in history._sources.values()
            for columns in source.columns.values()
        ]
        rows = sum(8 * columns._data.shape[0] * len(columns) for columns in every)
        return {"history_mb": rows / 2**20, "room_mb": sum(columns._data.nbytes for columns in every) / 2**20}


def main() -> None:
    """Serve until stdin is closed."""
    address, store, *rest = sys.argv[1:]
    if rest:
        hub_module.Store = slowed(float(rest[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if file := os.environ.get("BENCH_PROFILE"):
        profile_to(file)
    hub = Hub(resolve(address), store)
    process = psutil.Process()
    print("ready", flush=True)
    for _ in sys.stdin:
        times = process.cpu_times()
        print(
            json.dumps(
                {
                    "mb": process.memory_info().rss / 2**20,
                    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
                    **history_mb(hub),
                    "cpu": times.user + times.system,
                    "wall": time.monotonic(),
                    "counts": dict(hub.counts),
                }
            ),
            flush=True,
        )
    hub.close()


if __name__ == "__main__":
    main()

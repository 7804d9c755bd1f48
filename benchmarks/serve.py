"""A hub in a process of its own, which says what it costs when asked: a line in, a line out.

    python benchmarks/serve.py ADDRESS STORE [PAUSE]

PAUSE seconds more are spent on each commit: a slow disk. Ends when its stdin does.
"""

from __future__ import annotations

import json
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


def history_bytes(hub: Hub) -> int:
    """What the histories in memory hold: their rows, without the room left to grow."""
    with hub.roster.changed:
        histories = list(hub.roster._histories.values())
        return sum(
            8 * columns._data.shape[0] * len(columns)
            for history in histories
            for source in history._sources.values()
            for columns in source.columns.values()
        )


def main() -> None:
    """Serve until stdin is closed."""
    address, store, *rest = sys.argv[1:]
    if rest:
        hub_module.Store = slowed(float(rest[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
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
                    "history_mb": history_bytes(hub) / 2**20,
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

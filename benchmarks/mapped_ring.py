"""What does ``durability="process"`` add to a call, and what would other ways to do it?

Ways to hand on one row of four floats, each in a process of its own in each round, once a millisecond in turn with an
empty function and the seed's ``send_json`` (PUB, to a receiver in another process): the three meet the same weather.
Then in a tight loop. ``queue`` is the append of ``durability="memory"``; ``ring`` is ``train.mapped.Ring.append``;
``summed`` the same behind a lock and with a CRC32 of what it wrote, which is what it does not do; ``full`` one that
finds no room, so that each row goes to a file by one write. A thread takes what was appended every 20 ms. Times in µs,
medians of the rounds; ``of_the_seed`` is p50 over the seed's beside it. The clock's own cost is included. Prints one
JSON line.

    python benchmarks/mapped_ring.py [--rounds N] [--seconds S] [--calls N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import Child, at_home, medians, print_line, quantiles
from fitwire.protocol.blocks import Identity
from fitwire.train import mapped
from fitwire.train.mapped import Ring
from log_call import VALUES, paced, seed_socket, summarize, tight

LOOK = 0.020
WAYS = ("queue", "ring", "summed", "full")
ROW_BYTES = 176

Append = Callable[[Any], None]


def row_by(append: Append) -> Callable[[int], None]:
    """What ``Run.log`` does, with another append."""
    now = time.time
    return lambda step: append((now(), step, None, None, "batch", dict(VALUES)))


def summed(ring: Ring) -> Append:
    """As if the ring took a lock and a checksum."""
    lock, append = threading.RLock(), ring.append

    def append_summed(record: Any) -> None:
        with lock:
            append(record)
            at = ring._at
            zlib.crc32(ring._map[at - ROW_BYTES // 2 : at])

    return append_summed


def contend(way: str, seed_port: str, seconds: str, calls: str) -> None:
    """Measure one way and print what was found."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fw-")))
        ring = Ring(folder, Identity(run=b"b" * 16), deque(), 4096 if way == "full" else mapped.SIZE)
        stack.callback(ring.close)
        append = {"queue": ring.queue.append, "summed": summed(ring)}.get(way, ring.append)
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK):
                last = ring.last
                ring.queue.clear()
                if way != "full" or ring._spilled > mapped.SPILL_BYTES // 2:
                    ring.release(last)

        looking = threading.Thread(target=look)
        looking.start()
        stack.callback(looking.join)
        stack.callback(over.set)
        seed = stack.enter_context(seed_socket(seed_port))
        run = {"empty": lambda step: None, "seed": seed, "own": row_by(append)}
        found: dict[str, Any] = {key: quantiles(taken) for key, taken in paced(run, float(seconds), int).items()}
        for name, call in run.items():
            found[name] |= tight(call, int(calls))
        print(json.dumps(found | {"in_memory_only": ring.unkept}), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of the paced part, of each way and round")
    parser.add_argument("--calls", type=int, default=20_000, help="of the tight part")
    options = parser.parse_args()
    with at_home():
        receiver = Child("log_call.py", "receiver")
        rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        try:
            for _ in range(options.rounds):
                for way, found in rounds.items():
                    command = [sys.executable, __file__, "contend", way, receiver.hello]
                    command += [str(options.seconds), str(options.calls)]
                    found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
        finally:
            receiver.process.kill()
            receiver.process.wait()
    print_line("mapped_ring", options, unit="µs", **medians([{w: summarize(found) for w, found in rounds.items()}]))


if __name__ == "__main__":
    contend(*sys.argv[2:]) if sys.argv[1:2] == ["contend"] else main()

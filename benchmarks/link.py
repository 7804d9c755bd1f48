"""How fast does what a training logs reach the store of a hub in another process, and how soon a person's code?

For each width (values in a record), in turn in each round: ``fitwire``, where the clock runs from the first ``log`` to
the acknowledgement of the last record by a hub that has committed it; and ``seed``, ``send_json`` to ``recv_json`` in
another process, from the first sent to the last received, over sockets without a bound so that nothing is lost.
``of_the_seed`` is fitwire's rate over the seed's in the same round. A loop that does nothing but log can outrun its own
I/O thread, which then gives up batch metrics and says so: here the loop waits while 100,000 records lie ahead of that
thread, and ``flood`` is the narrowest case without waiting, where ``kept`` is the share that reached the store.
``latency_ms`` is from ``log`` to the code of a ``Monitor`` in a third process, over calls some 50 ms apart. Prints one
JSON line, medians of the rounds.

    python benchmarks/link.py [--values N] [--widths K ...] [--rounds N] [--calls N] [--profile FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import os
import random
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import zmq

import fitwire
from common import Child, at_home, hub_at, medians, print_line, quantiles
from fitwire import Monitor
from fitwire.events import Metrics
from fitwire.train.uplink import Uplink

AHEAD = 100_000
"""Records that may wait for the I/O thread; four times as many, and it begins to give up."""


def watch(address: str) -> None:
    """Say when each value of the run ``latency`` is seen; its value is when it was logged."""
    # Whoever started this may be killed: its end closes our stdin.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with Monitor(address, serve=False) as monitor:
        print("ready", flush=True)
        delays: list[float] = []
        for event in monitor.wait_for_run("latency").events():
            if isinstance(event, Metrics) and event.per == "batch":
                delays.append(time.monotonic() - event.values["at"])
        print(json.dumps(delays), flush=True)


def receive_seed() -> None:
    """Take dicts as the seed does; tell at each end how many came and when the last did."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    socket = zmq.Context.instance().socket(zmq.SUB)
    socket.set_hwm(0)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    while True:
        count = 0
        while (socket.recv_json()).get("type") != "end":
            count += 1
        print(json.dumps({"count": count, "at": time.monotonic()}), flush=True)


def rows_of(width: int) -> list[dict[str, float]]:
    """A thousand records."""
    names = [f"metric{index}" for index in range(width)]
    return [dict.fromkeys(names, float(index)) for index in range(1000)]


def deliver(address: str, hub: Child, values: int, width: int, *, flood: bool = False) -> dict[str, float]:
    """Log ``values`` numbers, ``width`` at a time, and wait until all are in the store."""
    rows, records = rows_of(width), values // width
    with fitwire.init(address, name=f"{values}x{width}", wait=10.0) as run:
        assert run.flush(10.0)
        before, mine = hub.ask(), psutil.Process().memory_info().rss / 2**20
        begun = time.perf_counter()
        for first in range(0, records, AHEAD // 10):
            while not flood and len(run._queue) > AHEAD:
                time.sleep(0.001)
            for step in range(first, min(records, first + AHEAD // 10)):
                run.log(rows[step % 1000], step=step)
        logged = time.perf_counter() - begun
        while not run.flush(10.0):
            pass
        took = time.perf_counter() - begun
        after, own = hub.ask(), psutil.Process().memory_info().rss / 2**20
        dropped = run._outlet.delivery().dropped if run._outlet else 0
    assert flood or dropped == 0, f"{dropped} of {records} records were given up"
    kept = records - dropped
    return {
        "records_per_s": kept / took, "values_per_s": kept * width / took, "kept": kept / records, "seconds": took,
        "log_seconds": logged, "hub_cpu_s": after["cpu"] - before["cpu"], "hub_mb_grew": after["mb"] - before["mb"],
        "trainer_mb_grew": own - mine,
    }  # fmt: skip


def send_seed(socket: zmq.Socket[bytes], receiver: Child, values: int, width: int) -> dict[str, float]:
    """As :func:`deliver`, the seed's way."""
    rows, records = rows_of(width), values // width
    begun = time.monotonic()
    for step in range(records):
        socket.send_json({"step": step, **rows[step % 1000]})
    socket.send_json({"type": "end"})
    found = json.loads(receiver.read())
    took = found["at"] - begun
    assert found["count"] == records, f"the seed lost {records - found['count']} of {records}"
    return {"records_per_s": records / took, "values_per_s": values / took, "seconds": took}


@contextlib.contextmanager
def seed_sender() -> Generator[tuple[zmq.Socket[bytes], Child]]:
    """The seed's sender, connected to a receiver in another process."""
    receiver = Child("link.py", "receiver")
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
    socket.set_hwm(0)
    socket.connect(f"tcp://127.0.0.1:{receiver.hello}")
    time.sleep(0.5)
    try:
        yield socket, receiver
    finally:
        socket.close(0)
        receiver.process.kill()
        receiver.process.wait()


def compare(address: str, hub: Child, options: argparse.Namespace, width: int) -> dict[str, Any]:
    """Rounds of both."""
    rounds: list[dict[str, Any]] = []
    with seed_sender() as (socket, receiver):
        for _ in range(options.rounds):
            ours = deliver(address, hub, options.values, width)
            seed = send_seed(socket, receiver, min(options.values, 100_000 * width), width)
            rounds.append({"fitwire": ours, "seed": seed, "of_the_seed": ours["records_per_s"] / seed["records_per_s"]})
    return {"width": width, "values": options.values, **medians(rounds)}


def measure_latency(address: str, calls: int) -> dict[str, float]:
    """From ``log`` to a monitor's code, in milliseconds."""
    watcher = Child("link.py", "watch", address)
    chance = random.Random(0)
    with fitwire.init(address, name="latency", wait=10.0) as run:
        time.sleep(0.5)
        for _ in range(calls):
            time.sleep(chance.uniform(0.035, 0.065))  # not in step with anybody's 20 ms
            run.log({"at": time.monotonic()})
    delays = json.loads(watcher.read())
    watcher.close()
    assert len(delays) == calls
    return quantiles(1000 * delay for delay in delays)


@contextlib.contextmanager
def profiled(file: str | None) -> Generator[None]:
    """cProfile on the trainer's I/O threads, written to a file; each thread replaces the last."""
    if file is None:
        yield
        return
    work = Uplink._work

    def work_profiled(self: Uplink) -> None:
        profile = cProfile.Profile(time.thread_time)
        profile.enable()
        try:
            work(self)
        finally:
            profile.disable()
            profile.dump_stats(f"{file}.{threading.get_native_id()}")

    Uplink._work = work_profiled
    yield
    Uplink._work = work


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1_000_000, help="of each case and round")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4, 10, 100], help="values in a record")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=300, help="log calls whose latency is taken")
    parser.add_argument("--profile", metavar="FILE", help="where to put what the I/O threads did, for pstats")
    options = parser.parse_args()
    with at_home() as folder, hub_at(folder) as (address, hub), profiled(options.profile):
        delivered = [compare(address, hub, options, width) for width in options.widths]
        flood = deliver(address, hub, options.values, min(options.widths), flood=True)
        latency = measure_latency(address, options.calls)
        size = sum(path.stat().st_size for path in Path(folder).glob("hub.sqlite3*"))
    print_line("link", options, cases=delivered, flood=flood, latency_ms=latency, store_mb=size / 2**20)


if __name__ == "__main__":
    if sys.argv[1:2] == ["watch"]:
        watch(sys.argv[2])
    elif sys.argv[1:2] == ["receiver"]:
        receive_seed()
    else:
        main()

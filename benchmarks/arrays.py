"""How fast do arrays cross the link, against a bare TCP socket and a copy in memory, in one run?

Prints one JSON line; rates are GB/s (10⁹ bytes a second), medians of the rounds. For each size:

- ``memcpy``: one array into another that exists.
- ``tcp``: a bare socket on loopback, ``sendall`` here, ``recv_into`` one buffer in another process.
- ``link``: arrays of a sample packed, sent by a ``Source`` over TCP, taken, checked and confirmed by a ``Sink`` in
  another process; no journal and no store. ``link_ipc``: the same over a Unix socket, which is fitwire's default.
- ``stored``: ``Run.sample`` to a hub in another process, until its store has committed; over the default Unix socket.
- ``held``: how long ``Run.sample`` holds its caller, as a multiple of a plain copy that is kept as long as the sample's
  and made in turn with it: memory that was not in use before costs either of them many times the copying.

``link_share`` and ``stored_share`` are parts of ``tcp``.

    python benchmarks/arrays.py [--sizes KIB ...] [--megabytes N] [--rounds N] [--only link|stored]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fitwire
from fitwire.events import Sample
from fitwire.protocol.blocks import BULK, LANES, Block, Identity, decode_message
from fitwire.protocol.crc import crc32
from fitwire.protocol.sink import Sink
from fitwire.protocol.source import Source, State
from fitwire.train.packer import Packer
from fitwire.transport.address import resolve
from fitwire.transport.zmq import Dealer, Router
from fitwire.watch.hub import AT_ONCE, BYTES_AT_ONCE, Hub

SIZES_KIB = (64, 256, 1024, 4096, 16_384, 65_536, 131_072)
LOOK = 0.020
TOGETHER = 32 * 2**20
"""Bytes of samples that wait at once: within the budget of what keeps them."""


class Child:
    """Another process of this script, which answers a line with a line."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.hello = self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20.0)


# -- the other process


def serve_tcp() -> None:
    """Take arrays from a bare socket: a connection says (size, count) first and gets a byte at the end."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                size, count = (int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little") for _ in range(2))
                buffer = memoryview(bytearray(size))
                for _ in range(count):
                    at = 0
                    while at < size:
                        at += connection.recv_into(buffer[at:])
                connection.sendall(b"k")


def serve_link(address: str) -> None:
    """Be a hub that stores nothing: take, check, confirm."""
    router = Router(resolve(address))
    print("ready", flush=True)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    sinks: dict[bytes, Sink] = {}
    while not over.is_set():
        now, size = time.monotonic(), 0
        for _ in range(AT_ONCE):
            found = router.receive()
            if found is None:
                break
            peer, frames = found
            message = decode_message(frames)
            sink = sinks.get(peer)
            if sink is None or sink.sender != message.sender:
                sink = sinks[peer] = Sink(message.sender)
            sink.receive(message, frames, now)
            size += sum(map(len, frames))
            if size > BYTES_AT_ONCE:
                break
        for peer, sink in list(sinks.items()):
            sink.committed([block for block, _ in sink.take()], now)
            for message in sink.due(now):
                router.send(peer, message)
            if sink.complete:
                del sinks[peer]
        router.wait(LOOK)


def serve_hub(address: str, store: str) -> None:
    """Be a hub until stdin is closed."""
    hub = Hub(resolve(address), store)
    print("ready", flush=True)
    sys.stdin.read()
    hub.close()


# -- what is measured


class Shelf:
    """Blocks in memory, and nothing else: what a source needs of a journal."""

    def __init__(self) -> None:
        self.blocks: list[dict[int, Block]] = [{} for _ in LANES]
        self.heads = [0 for _ in LANES]

    def append(self, block: Block) -> None:
        self.blocks[block.lane][block.first] = block
        self.heads[block.lane] = block.last

    def first(self, lane: int) -> int:
        return next(iter(self.blocks[lane]), self.heads[lane] + 1)

    def head(self, lane: int) -> int:
        return self.heads[lane]

    def read(self, lane: int, seq: int) -> Block | None:
        return self.blocks[lane].get(seq)

    def trim(self, lane: int, upto: int) -> None:
        for first in [first for first, block in self.blocks[lane].items() if block.last <= upto]:
            del self.blocks[lane][first]


def measure_copy(array: np.ndarray, count: int) -> float:
    """Into memory that is there."""
    into = array.copy()
    begun = time.perf_counter()
    for _ in range(count):
        np.copyto(into, array)
    return time.perf_counter() - begun


def measure_tcp(port: int, array: np.ndarray, count: int) -> float:
    """Through a bare socket."""
    view = memoryview(array).cast("B")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(len(view).to_bytes(8, "little") + count.to_bytes(8, "little"))
        begun = time.perf_counter()
        for _ in range(count):
            connection.sendall(view)
        assert connection.recv(1) == b"k"
        return time.perf_counter() - begun


def measure_link(address: str, array: np.ndarray, count: int) -> float:
    """Through the link alone, as a trainer's I/O thread drives it."""
    sender = Identity(os.urandom(16), 1, 0)
    backlog = Shelf()
    source, packer = Source(sender, {"name": "arrays"}, backlog), Packer(sender, backlog.append)
    link = Dealer(resolve(address))
    source.connect(time.monotonic())
    told, begun = 0, 0.0
    while source.state is not State.ENDED:
        now = time.monotonic()
        for up in link.changes():
            if up:
                source.connected(now)
        while (frames := link.receive()) is not None:
            source.receive(frames, now)
        if source.state is State.STREAMING:
            begun = begun or time.perf_counter()
            # The next is packed while the last is under way, and no mountain of them is made.
            while told < count and (told - source.have[BULK]) * array.nbytes < max(16 * 2**20, 2 * array.nbytes):
                packer.add([Sample(time=time.time(), name="s", arrays={"image": array})])
                told += 1
            if told == count:
                source.goodbye("finished")
        for message in source.due(now):
            link.send(message)
        if source.state is not State.ENDED:
            link.wait(LOOK)
    took = time.perf_counter() - begun
    link.close()
    assert source.replays == 0
    return took


def measure_stored(run: fitwire.Run, array: np.ndarray, count: int) -> float:
    """Seconds until ``count`` samples are in the store."""
    together = max(1, TOGETHER // array.nbytes)
    begun = time.perf_counter()
    for number in range(count):
        run.sample("s", step=number, image=array)
        if (number + 1) % together == 0 or number + 1 == count:
            assert run.flush(60.0)
    return time.perf_counter() - begun


def measure_held(run: fitwire.Run, array: np.ndarray, count: int) -> float:
    """How long a call takes, as a multiple of a copy: the median over pairs of one each, either first."""
    shares: list[float] = []
    kept: list[np.ndarray] = []
    for number in range(count):
        took = [0.0, 0.0]
        for ours in (True, False) if number % 2 else (False, True):
            begun = time.perf_counter()
            if ours:
                run.sample("s", step=number, image=array)
            else:
                kept.append(array.copy())
            took[ours] = time.perf_counter() - begun
        shares.append(took[True] / took[False])
        if len(kept) * array.nbytes >= TOGETHER:
            assert run.flush(60.0)
            kept.clear()
    assert run.flush(60.0)
    return statistics.median(shares)


def measure(size: int, megabytes: int, ports: dict[str, Any], only: str | None) -> dict[str, float]:
    """Each once, one after the other; GB/s."""
    array = np.random.default_rng(0).integers(0, 255, (1, size), np.uint8)
    count = max(4, megabytes * 2**20 // size)
    total = count * size / 1e9
    found = {"memcpy": total / measure_copy(array, count), "tcp": total / measure_tcp(ports["tcp"], array, count)}
    if only != "stored":
        found["link"] = total / measure_link(ports["link"], array, count)
        found["link_ipc"] = total / measure_link(ports["link_ipc"], array, count)
    if only != "link":
        some = max(2, count // 8)  # a disk takes a tenth of what the link carries
        found["stored"] = some * size / 1e9 / measure_stored(ports["run"], array, some)
        found["held"] = measure_held(ports["spared"], array, min(max(6, some), 100))
    return found


def summarize(size: int, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and shares as medians of what was measured together."""

    for one in rounds:
        one |= {f"{what}_share": one[what] / one["tcp"] for what in ("link", "stored") if what in one}
    return {"kib": size // 1024, **{key: round(statistics.median(one[key] for one in rounds), 3) for key in rounds[0]}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_KIB, metavar="KIB")
    parser.add_argument("--megabytes", type=int, default=512, help="what crosses in one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("link", "stored"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fw-") as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        places = {"link": f"tcp://127.0.0.1:{port}", "link_ipc": f"ipc://{folder}/link", "hub": f"ipc://{folder}/hub"}
        tcp, hub = Child("tcp"), Child("hub", places["hub"], f"{folder}/store.sqlite3")
        sinks = [Child("link", places[place]) for place in ("link", "link_ipc")]
        run = fitwire.init(places["hub"], name="arrays", wait=10.0)
        spared = fitwire.init(places["link_ipc"], name="held", wait=10.0)  # its samples are stored by nobody
        ports: dict[str, Any] = {"tcp": int(tcp.hello), "run": run, "spared": spared, **places}
        found: list[dict[str, Any]] = []
        for kib in chosen.sizes:
            rounds = [measure(kib * 1024, chosen.megabytes, ports, chosen.only) for _ in range(chosen.rounds)]
            found.append(summarize(kib * 1024, rounds))
        run.finish()
        spared.finish()
        for child in (tcp, hub, *sinks):
            child.close()
        size = sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())
    about = {"benchmark": "arrays", "cpus": os.cpu_count(), "python": sys.version.split()[0], "crc32": crc32.__module__}
    print(json.dumps({**about, "megabytes": chosen.megabytes, "cases": found, "store_mb": round(size / 2**20)}))


if __name__ == "__main__":
    roles: dict[str, Callable[..., None]] = {"tcp": serve_tcp, "link": serve_link, "hub": serve_hub}
    if sys.argv[1:2] and sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
    else:
        main()

"""What does a hub cost with 1, 8, 64 and 256 trainings that tell it twenty times a second, and does it go on growing?

Each source is the real machine (``protocol.source.Source`` with a packer), without a thread or a journal of its own: a
few processes turn many of them, each over a socket of its own. ``core_percent`` is the hub's CPU time, libzmq's thread
included, over the wall's. In the last, long case memory is looked at through the run: ``mb_grew`` is all of it,
``histories_mb_grew`` the rows that the hub keeps, ``rest_mb_per_minute`` the slope of all but those. Prints one JSON
line.

    python benchmarks/sources.py [--sources N ...] [--rate R] [--rows N] [--width K] [--seconds S] [--long S]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import zmq

from common import Child, at_home, hub_at, print_line
from fitwire.events import RunEnded, RunStarted
from fitwire.protocol.blocks import LANES, Block, Identity
from fitwire.protocol.source import Source, State
from fitwire.train.packer import Packer, Row

SIMULATORS = 2
"""Processes that the sources are spread over: one cannot turn 256 of them fast enough while the hub has a core."""

GUARD = 20.0
"""Seconds after which a simulator gives up on a hub that does not answer."""


class Shelf:
    """The plainest backlog: blocks in a dictionary, forgotten when the hub has them."""

    def __init__(self) -> None:
        self._blocks: list[dict[int, Block]] = [{} for _ in LANES]
        self._head = [0 for _ in LANES]

    def append(self, block: Block) -> None:
        """Keep the next block of its lane."""
        self._blocks[block.lane][block.first] = block
        self._head[block.lane] = block.last

    def first(self, lane: int) -> int:
        """Lowest sequence number kept."""
        return next(iter(self._blocks[lane]), self._head[lane] + 1)

    def head(self, lane: int) -> int:
        """Highest sequence number."""
        return self._head[lane]

    def read(self, lane: int, seq: int) -> Block | None:
        """The block that begins there."""
        return self._blocks[lane].get(seq)

    def trim(self, lane: int, upto: int) -> None:
        """The hub has those."""
        blocks = self._blocks[lane]
        while blocks and next(iter(blocks.values())).last <= upto:
            del blocks[next(iter(blocks))]


class Training:
    """One simulated training: its machine, its socket, and what it says."""

    def __init__(self, context: zmq.Context[Any], address: str, number: int, width: int) -> None:
        self.sender = Identity(os.urandom(16), int(time.time()), 0)
        self.backlog = Shelf()
        self.source = Source(self.sender, {"name": f"source {number}"}, self.backlog)
        self.packer = Packer(self.sender, self.backlog.append)
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)
        self.values = [{f"metric{k}": float(i * k) for k in range(width)} for i in range(100)]
        self.step = 0
        now = time.time()
        self.packer.add([RunStarted(time=now, rank=0, name=f"source {number}", project="benchmark", info={})])
        self.source.connect(time.monotonic())

    def say(self, rows: int) -> None:
        """Log so many rows, as one look of an I/O thread would find them."""
        now, first = time.time(), self.step
        self.step += rows
        said: list[Row] = [(now, i, None, None, "batch", self.values[i % 100]) for i in range(first, self.step)]
        self.packer.add(said)

    def serve(self, now: float) -> None:
        """Take what came, send what is due."""
        while True:
            try:
                self.source.receive(self.socket.recv_multipart(zmq.DONTWAIT), now)
            except zmq.Again:
                break
        for frames in self.source.due(now):
            self.socket.send_multipart(frames)


def simulate(address: str, count: str, rate: str, rows: str, width: str) -> None:
    """Turn ``count`` trainings until stdin is closed; a line asks how far they are."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)
    trainings = [Training(context, address, number, int(width)) for number in range(int(count))]
    poller = zmq.Poller()
    by_socket = {training.socket: training for training in trainings}
    for socket in by_socket:
        poller.register(socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    until = time.monotonic() + GUARD
    while not all(t.source.state is State.STREAMING for t in trainings):
        now = time.monotonic()
        if now > until:
            raise SystemExit("the hub does not welcome everybody")
        for training in trainings:
            training.serve(now)
        time.sleep(0.01)
    print("ready", flush=True)
    _turn(trainings, poller, by_socket, 1 / float(rate), int(rows))
    for training in trainings:
        training.packer.add([RunEnded(time=time.time(), status="finished")])
        training.source.goodbye("finished")
    until = time.monotonic() + GUARD
    while not all(t.source.state is State.ENDED for t in trainings) and time.monotonic() < until:
        for training in trainings:
            training.serve(time.monotonic())
        time.sleep(0.005)
    context.destroy(linger=0)


def _turn(
    trainings: list[Training], poller: zmq.Poller, by_socket: dict[Any, Training], beat: float, rows: int
) -> None:
    """Each training speaks once a beat, all spread over it; whoever is answered is served."""
    begun = time.monotonic()
    spoken, late = 0, 0.0
    while True:
        due = begun + spoken * beat / len(trainings)
        now = time.monotonic()
        if now >= due:
            late = max(late, now - due)
            training = trainings[spoken % len(trainings)]
            training.say(rows)
            training.serve(now)
            spoken += 1
            if spoken % 8:
                continue
        for socket, _ in poller.poll(max(0, int((due - now) * 1000))):
            if socket == sys.stdin.fileno():
                if not sys.stdin.readline():
                    return
                behind = sum(t.backlog.head(lane) - t.source.have[lane] for t in trainings for lane in LANES)
                replays = sum(t.source.replays for t in trainings)
                print(json.dumps({"messages": spoken, "late": late, "behind": behind, "replays": replays}), flush=True)
                late = 0.0
            else:
                by_socket[socket].serve(now)


def measure(number: int, seconds: float, options: argparse.Namespace, looks: int) -> dict[str, Any]:
    """The hub with so many sources for so long."""
    with at_home() as folder, hub_at(folder) as (address, hub), ExitStack() as stack:
        split = [number // SIMULATORS + (i < number % SIMULATORS) for i in range(SIMULATORS)]
        simulators = [
            Child("sources.py", "simulate", address, count, options.rate, options.rows, options.width)
            for count in split if count
        ]  # fmt: skip
        for simulator in simulators:
            stack.callback(simulator.close)
        time.sleep(1.0)
        for simulator in simulators:
            simulator.ask()
        seen = [hub.ask()]
        for _ in range(looks):
            time.sleep(seconds / looks)
            seen.append(hub.ask())
        said = [simulator.ask() for simulator in simulators]
    return {"sources": number, "seconds": seconds, **_found(seen, said, options)}


def _found(seen: list[dict[str, Any]], said: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    first, last = seen[0], seen[-1]
    wall = last["wall"] - first["wall"]
    blocks = last["counts"]["blocks"] - first["counts"]["blocks"]
    times = [one["wall"] - first["wall"] for one in seen]
    rest = [one["mb"] - one["history_mb"] for one in seen]
    found = {
        "core_percent": 100 * (last["cpu"] - first["cpu"]) / wall,
        "blocks_per_s": blocks / wall, "rows_per_s": blocks * options.rows / wall,
        "values_per_s": blocks * options.rows * options.width / wall,
        "mb": last["mb"], "mb_grew": last["mb"] - first["mb"],
        "histories_mb_grew": last["history_mb"] - first["history_mb"],
        "room_mb_grew": last["room_mb"] - first["room_mb"],
        "behind": sum(one["behind"] for one in said), "replays": sum(one["replays"] for one in said),
        "late_ms": 1000 * max(one["late"] for one in said),
    }  # fmt: skip
    if len(seen) > 3:
        found["rest_mb_per_minute"] = 60 * float(np.polyfit(times, rest, 1)[0])
        found["looks_mb"] = [one["mb"] for one in seen]
    faults = {key: n for key, n in last["counts"].items() if key not in ("messages", "blocks")}
    return found | ({"faults": faults} if faults else {})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--rate", type=float, default=20.0, help="messages a second, of each source")
    parser.add_argument("--rows", type=int, default=20, help="in a message")
    parser.add_argument("--width", type=int, default=1, help="values in a row")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each case")
    parser.add_argument("--long", type=float, default=75.0, help="seconds of the last case; 0 for none")
    options = parser.parse_args()
    found = [measure(number, options.seconds, options, 1) for number in options.sources]
    long = measure(max(options.sources), options.long, options, 15) if options.long else None
    print_line("sources", options, cases=found, long=long)


if __name__ == "__main__":
    if sys.argv[1:2] == ["simulate"]:
        simulate(*sys.argv[2:])
    else:
        main()

"""What does a hub cost with 1, 8, 64 and 256 trainings that tell it twenty times a second, and does it go on growing?

One process plays them all, each over a socket of its own: it greets with the real machine, then sends blocks as a
packer lays them out, with steps and times of their own, and takes the acknowledgements. ``behind`` is how many records
were not acknowledged at the last look, ``late_ms`` how late one was sent at most. ``core_percent`` is the hub's CPU
time, libzmq's thread included, over the wall's, ``player_percent`` the same of the process that plays. In the last,
long case memory is looked at through the run: ``mb_grew`` is all of it, ``histories_mb_grew`` the rows that the hub
keeps, ``rest_mb_per_minute`` the slope of all but those. Prints one JSON line.

    python benchmarks/sources.py [--sources N ...] [--rate R] [--rows N] [--width K] [--seconds S] [--long S]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import sys
import time
from typing import Any, cast

import numpy as np
import zmq

from common import Child, at_home, hub_at, print_line
from fitwire.events import RunStarted, encode_event, encode_rows
from fitwire.protocol.blocks import (
    RECORDS,
    Block,
    Identity,
    Kind,
    Message,
    decode_message,
    encode_block,
    encode_message,
)
from fitwire.protocol.source import Source, State

GUARD = 20.0
"""Seconds after which a simulator gives up on a hub that does not answer."""


class Nothing:
    """A backlog that holds nothing yet."""

    def first(self, lane: int) -> int:
        """The first to come."""
        return 1

    def head(self, lane: int) -> int:
        """None was written."""
        return 0

    def read(self, lane: int, seq: int) -> Block | None:
        """Nothing."""
        return None

    def trim(self, lane: int, upto: int) -> None:
        """Nothing to forget."""


class Training:
    """One simulated training: its greeting, its socket, and what it says."""

    def __init__(self, context: zmq.Context[Any], address: str, number: int, rows: int, width: int) -> None:
        self.sender = Identity(os.urandom(16), int(time.time()), 0)
        self.source = Source(self.sender, {"name": f"source {number}", "project": "benchmark"}, Nothing())
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)
        self.seq, self.step, self.answer = 1, 0, list[bytes]()
        self.columns = np.full((4 + width, rows), np.nan)
        self.columns[4:] = np.random.default_rng(number).normal(size=(width, rows))
        names = [f"metric{k}" for k in range(width)]
        part, buffers = encode_rows(names, "batch", cast(Any, self.columns[:4].T), cast(Any, self.columns[4:].T))
        self.body = {"n": rows, "parts": [part | {"b": 1}], "buffers": [header for header, _ in buffers]}
        self.source.connect(time.monotonic())

    def greet(self, now: float) -> bool:
        """Go on with the greeting; whether the hub has welcomed it."""
        while self.hear():
            self.source.receive(self.answer, now)
        for frames in self.source.due(now):
            self.socket.send_multipart(frames)
        if self.source.state is State.STREAMING:
            self.say(RunStarted(time=time.time(), name=self.source.hello["name"], project="benchmark", info={}))
            return True
        return False

    def hear(self) -> bool:
        """Take one answer, if there is one."""
        try:
            self.answer = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def say(self, event: RunStarted) -> None:
        """One event."""
        part, buffers = encode_event(event)
        block = encode_block(self.sender, RECORDS, self.seq, time.time_ns(), [part | {"b": len(buffers)}], buffers)
        self._send(list(block.frames), 1)

    def log(self) -> None:
        """As many rows as one look of an I/O thread finds, laid out as a packer would."""
        rows, now = self.columns.shape[1], time.time()
        self.columns[0] = np.arange(self.step, self.step + rows)
        self.columns[3] = now
        self.step += rows
        buffers = (self.columns.tobytes(),)
        message = Message(Kind.BLOCK, self.sender, RECORDS, self.seq, int(now * 1e9), self.body, buffers)
        self._send(encode_message(message), rows)
        while self.hear():
            pass

    def _send(self, frames: list[Any], count: int) -> None:
        self.socket.send_multipart(frames)
        self.seq += count

    @property
    def behind(self) -> int:
        """Records that the hub had not confirmed when it was last heard."""
        return self.seq - 1 - int(decode_message(self.answer).body["have"][RECORDS])


def simulate(address: str, count: str, rate: str, rows: str, width: str) -> None:
    """Turn ``count`` trainings until stdin is closed; a line asks how far they are."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)
    trainings = [Training(context, address, number, int(rows), int(width)) for number in range(int(count))]
    until, silent = time.monotonic() + GUARD, trainings
    while silent := [training for training in silent if not training.greet(time.monotonic())]:
        if time.monotonic() > until:
            raise SystemExit("the hub does not welcome everybody")
        time.sleep(0.01)
    print("ready", flush=True)
    _turn(trainings, 1 / float(rate))
    context.destroy(linger=0)


def _turn(trainings: list[Training], beat: float) -> None:
    """Each training speaks once a beat, all spread over it."""
    begun = time.monotonic()
    spoken, late = 0, 0.0
    while True:
        due = begun + spoken * beat / len(trainings)
        now = time.monotonic()
        if now < due or spoken % 64 == 0:
            if select.select([sys.stdin], [], [], max(0.0, due - now))[0]:
                if not sys.stdin.readline():
                    return
                behind, cpu = sum(training.behind for training in trainings), time.process_time()
                print(json.dumps({"late": late, "behind": behind, "cpu": cpu}), flush=True)
                late = 0.0
            if now < due:
                continue
        late = max(late, now - due)
        trainings[spoken % len(trainings)].log()
        spoken += 1


def measure(number: int, seconds: float, options: argparse.Namespace, looks: int) -> dict[str, Any]:
    """The hub with so many sources for so long."""
    with at_home() as folder, hub_at(folder) as (address, hub):
        player = Child("sources.py", "simulate", address, number, options.rate, options.rows, options.width)
        time.sleep(1.0)
        before, seen = player.ask(), [hub.ask()]
        for _ in range(looks):
            time.sleep(seconds / looks)
            seen.append(hub.ask())
        after = player.ask()
        player.close()
    share = 100 * (after["cpu"] - before["cpu"]) / (seen[-1]["wall"] - seen[0]["wall"])
    return {
        "sources": number, "seconds": seconds, **_found(seen, options), "behind": after["behind"],
        "late_ms": 1000 * after["late"], "player_percent": share,
    }  # fmt: skip


def _found(seen: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
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

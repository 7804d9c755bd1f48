"""What several tests need: a hand-set clock, two ends and a bad link, patience that does not sleep blindly."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fitwire.protocol.arrays import encode_array
from fitwire.protocol.blocks import (
    BULK,
    LANES,
    RECORDS,
    Block,
    Buffer,
    Identity,
    Kind,
    Message,
    decode_message,
    encode_block,
    encode_message,
)
from fitwire.protocol.sink import CREDIT_BYTES, CREDIT_RECORDS, Sink, reject
from fitwire.protocol.source import Source, State
from fitwire.transport.memory import LossyLink

ME = Identity(bytes(range(16)), incarnation=1_700_000_000, rank=0)
"""The source of most tests."""


def until(condition: Callable[[], Any], timeout: float = 30.0, *, what: str = "") -> Any:
    """Poll until ``condition()`` is true, and return what it gave; fail after ``timeout`` seconds, a hang guard."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what or getattr(condition, '__name__', condition)}")
        time.sleep(0.005)
    return found


def free_port() -> int:
    """A TCP port of loopback that nobody held a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_python(code: str, *arguments: str, timeout: float = 100.0, **environment: str) -> str:
    """Run ``code`` in a fresh interpreter and return what it printed; a failure shows its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


class Clock:
    """Time as a number, set by hand; ``clock()`` reads it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> float:
        """Move on by ``seconds``; returns the new time."""
        self.now += seconds
        return self.now


class ListBacklog:
    """The plainest backlog: blocks in a dictionary, forgotten when trimmed.

    Attributes:
        trimmed: Every (lane, upto) it was told to forget.
    """

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        self.blocks: list[dict[int, Block]] = [{} for _ in LANES]
        self.trimmed: list[tuple[int, int]] = []
        self._heads = [0 for _ in LANES]
        for block in blocks:
            self.append(block)

    def append(self, block: Block) -> None:
        assert block.first == self._heads[block.lane] + 1
        self.blocks[block.lane][block.first] = block
        self._heads[block.lane] = block.last

    def first(self, lane: int) -> int:
        return min(self.blocks[lane], default=self._heads[lane] + 1)

    def head(self, lane: int) -> int:
        return self._heads[lane]

    def read(self, lane: int, seq: int) -> Block | None:
        return self.blocks[lane].get(seq)

    def trim(self, lane: int, upto: int) -> None:
        self.trimmed.append((lane, upto))
        for first in [first for first, block in self.blocks[lane].items() if block.last <= upto]:
            del self.blocks[lane][first]


def records(first: int, count: int = 1, sender: Identity = ME) -> Block:
    """A block of ``count`` rows of one metric; the values are the sequence numbers."""
    values = np.empty((5, count))
    values[:4] = np.array([0.0, np.nan, np.nan, 0.0])[:, None]
    values[0] = values[4] = np.arange(first, first + count)
    part = {"t": "metrics", "n": count, "per": "batch", "names": ["loss"], "b": 1}
    return encode_block(sender, RECORDS, first, 0, [part], [encode_array(values)])


def picture(first: int, nbytes: int, sender: Identity = ME) -> Block:
    """A block of one sample whose array takes ``nbytes``."""
    pixels = np.arange(nbytes, dtype=np.uint32).astype(np.uint8).reshape(1, -1)
    header, data = encode_array(pixels)
    part = {"t": "sample", "f": {"time": 0.0, "name": "masks"}, "b": 1}
    return encode_block(sender, BULK, first, 0, [part], [({**header, "name": "image"}, data)])


def history(lengths: Sequence[int], pictures: Sequence[int] = (), sender: Identity = ME) -> list[Block]:
    """Blocks of these numbers of records, and samples of these sizes in bytes."""
    made: list[Block] = []
    following = 1
    for count in lengths:
        made.append(records(following, count, sender))
        following += count
    return made + [picture(i, size, sender) for i, size in enumerate(pictures, 1)]


def frames_of(kind: int, body: dict[str, Any] | None = None, *buffers: Buffer, **fields: Any) -> list[Buffer]:
    """One message of :data:`ME`, encoded."""
    return encode_message(Message(kind, fields.pop("sender", ME), body=body or {}, buffers=buffers, **fields))


def kinds(messages: Iterable[Sequence[Buffer]]) -> list[str]:
    """The kinds of encoded messages, in order, lower case."""
    return [Kind(decode_message(frames).kind).name.lower() for frames in messages]


class MemoryHub:
    """A hub of one source without sockets: a sink and a store that may be lost.

    Args:
        credit: As :class:`Sink` takes it; None for its default.

    Attributes:
        store: Committed blocks by (lane, first sequence number), packed frames.
    """

    def __init__(self, credit: tuple[int, int] | None = None) -> None:
        self.store: dict[tuple[int, int], Block] = {}
        self.sink: Sink | None = None
        self.bad = 0
        self._credit = credit or (CREDIT_BYTES, CREDIT_RECORDS)
        self._lives = 0
        self._answers: list[list[Buffer]] = []

    def have(self) -> list[int]:
        """Per lane, the highest sequence number in the store."""
        return [max((b.last for (lane, _), b in self.store.items() if lane == wanted), default=0) for wanted in LANES]

    def restart(self, keep: int | None = None) -> None:
        """Die and come back; ``keep`` says how many of the newest blocks of each lane were lost (0: all kept)."""
        self.sink = None
        for lane in LANES:
            firsts = sorted(first for at, first in self.store if at == lane)
            for first in firsts[len(firsts) - (keep or 0) :]:
                del self.store[lane, first]

    def receive(self, frames: Sequence[Buffer], now: float) -> None:
        """Take one message, as a hub does: an undecodable one is dropped, an unknown source told so."""
        try:
            message = decode_message(frames)
        except ValueError:
            self.bad += 1
            return
        if message.kind == Kind.HELLO and self.sink is None:
            self._lives += 1  # a random session would make a failing case another one when it is run again
            self.sink = Sink(message.sender, self.have(), self._credit, session=self._lives)
        if self.sink is None:
            self._answers.append(reject(message.sender, "unknown"))
            return
        self.sink.receive(message, frames, now)

    def commit(self, now: float) -> None:
        """Store what arrived, then acknowledge."""
        if self.sink is not None:
            fresh = [block for block, _ in self.sink.take()]
            for block in fresh:
                assert (block.lane, block.first) not in self.store
                self.store[block.lane, block.first] = block
            self.sink.committed(fresh, now)

    def due(self, now: float) -> Iterable[list[Buffer]]:
        """Yield what goes to the source."""
        while self._answers:
            yield self._answers.pop(0)
        if self.sink is not None:
            yield from self.sink.due(now)

    def numbers(self, lane: int = RECORDS) -> list[int]:
        """Sequence numbers in the store, in order of storing."""
        return [n for (at, _), b in self.store.items() if at == lane for n in range(b.first, b.last + 1)]

    def packed(self) -> dict[tuple[int, int], bytes]:
        """The store as bytes."""
        return {key: b"".join(map(bytes, block.frames)) for key, block in self.store.items()}


class Ends:
    """A source, a hub, and two directions of a link that may be bad.

    Args:
        blocks: What the source has to say.
        there: Source to hub; back: hub to source. Perfect by default.
        hub: One to go on with.
        latency: Seconds that a perfect message needs one way: what is sent in a turn is read at the next.

    Example:
        >>> ends = Ends(history([3]))
        >>> ends.run(1.0)
        >>> ends.hub.numbers()
        [1, 2, 3]
    """

    STEP = 0.01

    def __init__(
        self,
        blocks: Iterable[Block] = (),
        there: LossyLink | None = None,
        back: LossyLink | None = None,
        hub: MemoryHub | None = None,
    ) -> None:
        self.clock = Clock()
        self.backlog = ListBacklog(blocks)
        self.source = Source(ME, {"name": "calm-fox"}, self.backlog, jitter=lambda: 0.5)
        self.hub = hub or MemoryHub()
        self.there, self.back = there or LossyLink(), back or LossyLink()
        self.sent: list[tuple[float, Message]] = []
        self.up = True
        self.source.connect(0.0)

    def turn(self) -> None:
        """One look of both ends, then 10 ms pass."""
        now = self.clock()
        for frames in self.source.due(now):
            self.sent.append((now, decode_message(frames)))
            if self.up:
                self.there.send(frames, now)
        for frames in self.there.receive(now):
            self.hub.receive(frames, now)
        self.hub.commit(now)
        for frames in self.hub.due(now):
            if self.up:
                self.back.send(frames, now)
        for frames in self.back.receive(now):
            self.source.receive(frames, now)
        self.clock.tick(self.STEP)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / self.STEP)):
            self.turn()

    def run_until(self, condition: Callable[[], bool], seconds: float = 600.0) -> float:
        """Let time pass until ``condition()``; returns the time, fails after ``seconds`` of the clock."""
        while not condition():
            assert self.clock() < seconds, f"not within {seconds} s of the clock, source {self.source.state}"
            self.turn()
        return self.clock()

    def finish(self) -> float:
        """Say goodbye and run until the hub has confirmed it."""
        self.source.goodbye("finished")
        return self.run_until(lambda: self.source.state is State.ENDED)

    def said(self, kind: Kind) -> list[tuple[float, Message]]:
        """When the source said this kind, and what."""
        return [(at, message) for at, message in self.sent if message.kind == kind]

"""What the tests of the watcher's wing share: a trainer's blocks without a link, and children that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from fitwire.events import Event, Per, RunEnded, RunStarted, Sample, encode_event
from fitwire.protocol.blocks import BULK, RECORDS, Block, Identity, Message, decode_message, encode_block
from fitwire.protocol.commands import Request
from fitwire.train.packer import Packer, Row
from fitwire.train.run import Run
from fitwire.watch.commands import Outcome
from fitwire.watch.history import History, sample_ref
from fitwire.watch.store import Store
from fitwire.watch.watched import WatchedRun

RUN = bytes(range(16))
T0 = 1_700_000_000.0
"""Unix seconds at which the trainings of these tests begin."""


def row(step: int, per: Per = "batch", *, epoch: int | None = None, time: float | None = None, **values: Any) -> Row:
    """One ``log`` call; a second a step unless ``time`` says otherwise, the step for a loss unless ``values`` do."""
    return (T0 + step if time is None else time, step, epoch, None, per, values or {"loss": float(step)})


def picture(step: int = 0, name: str = "masks", *, time: float | None = None, size: int = 4) -> Sample:
    """A sample of one array, whose bytes are the step, modulo 256."""
    array = np.full((1, size), step % 256, np.uint8)
    return Sample(time=T0 + step if time is None else time, step=step, name=name, arrays={"image": array})


def started(name: str = "calm-fox", *, time: float = T0, **fields: Any) -> RunStarted:
    return RunStarted(time=time, name=name, **fields)


def ended(status: Any = "finished", *, time: float = T0 + 100, **fields: Any) -> RunEnded:
    return RunEnded(time=time, status=status, **fields)


class Teller:
    """A source's blocks, as a trainer packs them.

    Attributes:
        sender: Who it is.
        blocks: All of them, in order.
    """

    def __init__(self, incarnation: int = 1000, rank: int = 0, run: bytes = RUN) -> None:
        self.sender = Identity(run, incarnation, rank)
        self.blocks: list[Block] = []
        self.packer = Packer(self.sender, self.blocks.append)

    def say(self, *records: Row | Event) -> list[Block]:
        """Pack these, in blocks of their own; returns those, records before samples, as a source sends them."""
        before = len(self.blocks)
        self.packer.add(records)
        return sorted(self.blocks[before:], key=lambda block: block.lane)


def block_of(sender: Identity, first: int, *events: Event, lane: int = RECORDS) -> Block:
    """A block of these, whatever they say: a trainer of ours would not make every one."""
    parts, buffers = [], []
    for event in events:
        part, own = encode_event(event)
        parts.append(part | {"b": len(own)})
        buffers.extend(own)
    return encode_block(sender, lane, first, 0, parts, buffers)


def message_of(block: Block) -> Message:
    return decode_message(block.frames)


def tell(history: History, blocks: Sequence[Block]) -> History:
    """Add blocks to a history, as a hub does; returns it."""
    for block in blocks:
        history.add(message_of(block), block.count)
    return history


def keep(store: Store, blocks: Sequence[Block], summaries: Sequence[dict[str, Any]] = ()) -> None:
    """Commit blocks with their index of samples, as a hub does."""
    samples = [
        (block.sender.run, ref)
        for block in blocks
        if block.lane == BULK
        for refs in tell(History(block.sender.run), [block]).samples.values()
        for ref in refs
    ]
    store.commit(blocks, samples, summaries)


def said(history: History) -> list[str]:
    """The types of what was told, in order."""
    return [type(item.what).__name__ for item in history.said]


__all__ = ["RUN", "T0", "Child", "Teller", "block_of", "child", "ended", "keep", "message_of", "picture", "row", "said",
           "sample_ref", "started", "tell"]  # fmt: skip


class Child:
    """Another interpreter that prints lines; killed when the test is over.

    Args:
        code: To run.
        arguments: For its ``sys.argv``.
    """

    def __init__(self, code: str, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self) -> Any:
        """The next line it prints, as JSON; what it said on stderr when there is none."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)

    def say(self, line: str = "") -> None:
        """Write a line to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """As ``kill -9`` does."""
        self.process.kill()
        self.process.wait(30.0)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


@contextmanager
def child(code: str, *arguments: str | Path) -> Iterator[Child]:
    """A :class:`Child` for the length of a block."""
    made = Child(code, *arguments)
    try:
        yield made
    finally:
        made.close()


def held(run: WatchedRun) -> tuple[Outcome, int | None]:
    """Pause a run for three seconds, in the last two of which its step stands still; gives outcome and step."""
    outcome = run.pause(max_pause=60)
    assert outcome.status == "applied", outcome
    sleep(1)
    before = run.progress.step
    sleep(2)

    assert run.state == "paused"
    assert run.progress.step == before
    assert run.unpause().status == "applied"
    return outcome, before


def ask_inside(run: Run | None, command: str, arguments: dict[str, Any]) -> None:
    """Ask a training of this process, as its I/O thread does when a command came."""
    assert run is not None
    request = Request(client="0" * 32, number=1, name=command, arguments=arguments, deadline=monotonic() + 60)
    run.take(request, run.refusal(request))

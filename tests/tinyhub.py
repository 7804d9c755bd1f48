"""A hub for tests of the trainer's side: one socket, a sink for each source, and a list in place of a store."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fitwire.events import Dropped, EpochEnded, Event, MetricRows, Metrics, RunEnded, RunStarted, decode_events, explode
from fitwire.protocol.blocks import BULK, RECORDS, Buffer, Identity, Kind, Message, decode_message
from fitwire.protocol.sink import Sink
from fitwire.transport.address import Address, resolve
from fitwire.transport.zmq import Router

GUARD = 60.0
"""Seconds after which a test that waits gives up: far beyond what any of them needs."""


class Store:
    """What outlives a tiny hub: blocks in the order of their commit."""

    def __init__(self) -> None:
        self.blocks: list[tuple[Identity, int, int, int, Message]] = []

    def have(self, sender: Identity) -> list[int]:
        """Per lane, the highest number stored; checks that nothing is doubled or left out."""
        have = [0, 0]
        for who, lane, first, last, _ in self.blocks:
            if who == sender:
                assert first == have[lane] + 1, f"record {first} after {have[lane]}"
                have[lane] = last
        return have

    def senders(self) -> list[Identity]:
        """Who has something stored, in order of appearance."""
        return list(dict.fromkeys(block[0] for block in self.blocks))

    def events(self, *lanes: int) -> list[Event]:
        """All that was said, rows as single events, in order within each lane; samples last."""
        found: list[Event] = []
        for lane in lanes or (RECORDS, BULK):
            for _, of, _, _, message in list(self.blocks):
                if of == lane:
                    for _, event in decode_events(message):
                        found.extend(explode(event) if isinstance(event, MetricRows) else [event])
        return found

    def of(self, *types: type[Any]) -> list[Any]:
        """Those of some types."""
        return [event for event in self.events() if type(event) in types]

    @property
    def metrics(self) -> list[Metrics]:
        """Rows per batch."""
        return [event for event in self.of(Metrics) if event.per == "batch"]

    @property
    def epochs(self) -> list[EpochEnded]:
        """Rows per epoch."""
        return self.of(EpochEnded)

    @property
    def started(self) -> list[RunStarted]:
        """Beginnings."""
        return self.of(RunStarted)

    @property
    def ended(self) -> RunEnded | None:
        """The end, once it is there."""
        return next(iter(self.of(RunEnded)), None)

    @property
    def given_up(self) -> int:
        """Records that became tombstones."""
        return sum(event.count for event in self.of(Dropped))


class TinyHub:
    """Listens from birth until :meth:`kill`.

    Args:
        address: Where; None for the default, or the environment's.
        store: What an earlier one had; None to begin anew.
        pause: Seconds to sleep after each block, to be slow.
    """

    def __init__(self, address: Address | str | None = None, store: Store | None = None, pause: float = 0.0) -> None:
        self.address = resolve(address)
        self.store = Store() if store is None else store
        self.hellos: list[dict[str, Any]] = []
        self.sinks: dict[Identity, Sink] = {}
        self.failure: BaseException | None = None
        self._pause = pause
        self._peers: dict[Identity, bytes] = {}
        self._to_send: deque[list[Buffer]] = deque()
        self._stop, self._open = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tinyhub", daemon=True)
        self._thread.start()
        assert self._open.wait(GUARD)

    def send(self, frames: list[Buffer]) -> None:
        """Send a message to the source it names."""
        self._to_send.append(frames)

    def kill(self) -> None:
        """End without a word to anybody; whatever was not stored is forgotten."""
        self._stop.set()
        self._thread.join(GUARD)
        assert self.failure is None, self.failure

    def _work(self) -> None:
        try:
            router = Router(self.address)
            self._open.set()
            try:
                while not self._stop.is_set():
                    self._turn(router, time.monotonic())
                    router.wait(0.005)
            finally:
                router.close()
        except BaseException as error:
            self.failure = error
            self._open.set()

    def _turn(self, router: Router, now: float) -> None:
        while self._to_send:
            frames = self._to_send.popleft()
            router.send(self._peers[decode_message(frames).sender], frames)
        while not self._stop.is_set() and (found := router.receive()) is not None:
            peer, frames = found
            message = decode_message(frames)
            if message.kind == Kind.HELLO:
                self.hellos.append(message.body)
                if message.sender not in self.sinks:
                    self.sinks[message.sender] = Sink(message.sender, self.store.have(message.sender))
            sink = self.sinks.get(message.sender)
            if sink is None:
                continue
            self._peers[message.sender] = peer
            sink.receive(message, frames, now)
            self._commit(sink, now)
        for sender, sink in self.sinks.items():
            for frames in sink.due(now):
                router.send(self._peers[sender], frames)

    def _commit(self, sink: Sink, now: float) -> None:
        fresh = sink.take()
        for block, message in fresh:
            self.store.blocks.append((block.sender, block.lane, block.first, block.last, message))
            if self._pause:
                self._stop.wait(self._pause)
        if fresh:
            sink.committed([block for block, _ in fresh], now)


@contextmanager
def tiny_hub(address: Address | str | None = None, store: Store | None = None, pause: float = 0.0) -> Iterator[TinyHub]:
    """A hub for the length of a block."""
    hub = TinyHub(address, store, pause)
    try:
        yield hub
    finally:
        hub.kill()

"""A training for tests of steering: it says what it is told to, and does with commands what a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fitwire.events import Command, CommandDone, Event
from fitwire.protocol.blocks import Identity
from fitwire.protocol.commands import Inbox, Pair, Request
from fitwire.protocol.source import Source
from fitwire.train.packer import Packer, Row
from fitwire.transport.address import Address
from fitwire.transport.zmq import Dealer
from helpers import ListBacklog
from watching import RUN

GUARD = 30.0


def applied(request: Request, step: int = 7) -> CommandDone:
    """That it was carried out: the value that was asked for is there now."""
    return done(request, "applied", step=step, after=request.arguments.get("value"))


def done(request: Request, status: Any, **fields: Any) -> CommandDone:
    return CommandDone(
        time=time.time(), client=request.client, number=request.number, name=request.name, status=status, **fields
    )


class Puppet:
    """A source with an inbox; lives in a thread until :meth:`kill`.

    Args:
        address: Of the hub.
        incarnation: Which process life it is.
        act: Called with each command that it takes; gives what became of it, or None to say nothing.
        check: Why it refuses a command.
        known: Commands that its former lives took.
        says: What it tells at its start.

    Attributes:
        took: Numbers of the commands that it took, in order.
        mute: While set, its acknowledgements are lost, and what it says of commands is not said.
    """

    def __init__(
        self,
        address: Address,
        *says: Row | Event,
        incarnation: int = 1000,
        rank: int = 0,
        act: Callable[[Request], CommandDone | None] = applied,
        check: Callable[[Request], str | None] = lambda request: None,
        known: tuple[Pair, ...] = (),
        mute: bool = False,
    ) -> None:
        self.took: list[int] = []
        self.mute = mute
        self._act, self._check = act, check
        self._backlog = ListBacklog()
        self._sender = Identity(RUN, incarnation, rank)
        self._packer = Packer(self._sender, self._backlog.append)
        self._source = Source(self._sender, {"name": "puppet", "pid": incarnation + rank}, self._backlog)
        self._inbox = Inbox(self._sender, known)
        self._late: list[Event] = []
        self._lock = threading.Lock()
        self.say(*says)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(address,), name="puppet", daemon=True)
        self._thread.start()

    def say(self, *records: Row | Event) -> None:
        with self._lock:
            self._packer.add(records)

    def kill(self) -> None:
        """End without a word."""
        self._over.set()
        self._thread.join(GUARD)
        assert self._failure is None, self._failure

    def _work(self, address: Address) -> None:
        try:
            link = Dealer(address)
            try:
                self._source.connect(time.monotonic())
                while not self._over.is_set():
                    self._turn(link, time.monotonic())
                    link.wait(0.005)
            finally:
                link.close()
        except BaseException as error:
            self._failure = error

    def _turn(self, link: Dealer, now: float) -> None:
        source = self._source
        for up in link.changes():
            (source.connected if up else source.disconnected)(now)
        while (frames := link.receive()) is not None:
            source.receive(frames, now)
        while source.commands:
            for ack in self._inbox.receive(source.commands.popleft(), now, self._check):
                if not self.mute:
                    link.send(ack)
        for request, refusal in self._inbox.news():
            self._take(request, refusal)
        if not self.mute and self._late:
            self.say(*self._late)
            self._late.clear()
        with self._lock:
            for message in source.due(now):
                link.send(message)

    def _take(self, request: Request, refusal: str | None) -> None:
        told = Command(
            time=time.time(), client=request.client, number=request.number, name=request.name,
            arguments=request.arguments, author=request.author, asked=request.asked,
        )  # fmt: skip
        if refusal is None:
            self.took.append(request.number)
        became = self._act(request) if refusal is None else done(request, "refused", reason=refusal)
        self._late += [told] if became is None else [told, became]


@contextmanager
def puppet(address: Address, *says: Row | Event, **how: Any) -> Iterator[Puppet]:
    """One for the length of a block."""
    made = Puppet(address, *says, **how)
    try:
        yield made
    finally:
        made.kill()

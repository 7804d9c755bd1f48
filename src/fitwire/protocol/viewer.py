"""The viewer's end of the link, as a machine: questions go out until they are answered.

The hub keeps nothing of a viewer, so all that a lost message or a restarted hub costs is the question asked again. A
command is asked in the same way: its answer says how it stands. This module knows no socket, thread, clock or run.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fitwire.errors import DecodeError
from fitwire.protocol.blocks import VERSION, Buffer, Identity, Kind, Message, decode_message, encode_message
from fitwire.protocol.commands import ACKNOWLEDGED, Request
from fitwire.protocol.lane import NEVER
from fitwire.protocol.source import GREETINGS

__all__ = ["Asked", "Viewer"]

AGAIN = 6.0
"""Seconds without an answer after which a question is asked again; hubs hold one for two at most."""
MAX_BLOCKS = 20_000
"""In one answer; a hub sends fewer than half."""
NOBODY = Identity()


@dataclass(slots=True, eq=False)
class Asked:
    """One question and what has come of it.

    Attributes:
        kind: ``RUNS``, ``FETCH`` or ``COMMAND``.
        body: Its fields.
        number: Tells answers apart.
        buffers: What is too long for the body.
        blocks: Blocks that came for it, as messages.
        answer: The closing message; None while it is open.
        request: The command, if it is one.
        to: Of a command: the run, and, once the hub has said so, the process that it went to.
    """

    kind: Kind
    body: dict[str, Any]
    number: int
    buffers: tuple[Buffer, ...] = ()
    blocks: list[Message] = field(default_factory=list[Message])
    answer: Message | None = None
    request: Request | None = None
    to: Identity = NOBODY
    sent: float = NEVER


class Viewer:
    """The machine. Hand it frames and the time; send what it says is due.

    Args:
        jitter: Numbers in [0, 1) that spread the hellos.

    Attributes:
        joined: Whether the hub has said welcome since the last connection.
        heard: When the hub was last heard, on the caller's clock.
        bad: Messages that were not understood, by kind of fault.
    """

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self.joined = False
        self.heard = 0.0
        self.bad: Counter[str] = Counter()
        self._jitter = jitter
        self._open: dict[int, Asked] = {}
        self._done: deque[Asked] = deque()
        self._numbers = itertools.count(1)
        self._nonce = 0
        self._next_hello, self._pause = 0.0, GREETINGS[0]

    def connected(self, now: float) -> None:
        """The transport has (re)connected: greet, and ask all open questions again."""
        self.joined = False
        self._next_hello, self._pause = now, GREETINGS[0]
        for asked in self._open.values():
            asked.sent = NEVER
            asked.blocks.clear()

    def disconnected(self) -> None:
        """The transport is down."""
        self.joined = False

    def ask(self, kind: Kind, body: dict[str, Any], *buffers: Buffer) -> Asked:
        """Ask; the answer comes out of :meth:`answered`.

        Raises:
            EncodeError: It cannot be sent; nothing was asked.
        """
        asked = Asked(kind, body, next(self._numbers), buffers)
        self._encode(asked, 0.0)
        self._open[asked.number] = asked
        return asked

    def command(self, request: Request, to: Identity) -> Asked:
        """Ask a run for something; asked again, to the same process, until the answer is final or it is too late.

        Args:
            request: What is asked.
            to: The run; with an incarnation, the process that an earlier hub had sent it to.
        """
        asked = Asked(Kind.COMMAND, {}, next(self._numbers), request=request, to=to)
        self._open[asked.number] = asked
        return asked

    def answered(self) -> Iterator[Asked]:
        """Yield questions that were answered since the last call."""
        while self._done:
            yield self._done.popleft()

    def receive(self, frames: Sequence[Buffer], now: float) -> None:
        """Take one message from the hub; what is not understood is counted and changes nothing."""
        try:
            message = decode_message(frames)
        except DecodeError as error:
            self.bad[error.kind] += 1
            return
        self.heard = now
        if message.kind == Kind.WELCOME:
            self.joined = self.joined or message.body.get("nonce") == self._nonce
        elif message.kind in (Kind.BLOCK, Kind.GAP):
            # Blocks stand before the answer that they belong to, and name their run.
            for asked in self._open.values():
                mine = asked.body.get("run") == message.sender.run.hex() and "piece" not in asked.body
                if mine and len(asked.blocks) < MAX_BLOCKS:
                    asked.blocks.append(message)
        elif message.kind == Kind.COMMAND_ACK and message.body.get("status") not in ACKNOWLEDGED:
            number = message.body.get("id")
            asked = self._open.get(number) if type(number) is int else None
            if asked is not None and message.sender.incarnation:
                asked.to = message.sender
        elif message.kind in (Kind.ACK, Kind.RUNS, Kind.ERROR, Kind.COMMAND_ACK):
            number = message.body.get("id")
            asked = self._open.pop(number, None) if type(number) is int else None
            if asked is not None:
                asked.answer = message
                self._done.append(asked)

    def due(self, now: float) -> Iterator[list[Buffer]]:
        """Yield what is to be sent now."""
        if not self.joined:
            if now >= self._next_hello:
                self._nonce = self._nonce % 2**31 + 1
                self._next_hello = now + self._pause * (0.75 + self._jitter() / 2)
                self._pause = min(self._pause * 2, GREETINGS[1])
                body: dict[str, Any] = {"versions": [VERSION], "role": "viewer", "nonce": self._nonce}
                yield encode_message(Message(Kind.HELLO, body=body))
            return
        for asked in list(self._open.values()):
            if asked.request is not None and now >= asked.request.deadline + AGAIN:
                del self._open[asked.number]  # there is no answer to wait for any more
            elif now - asked.sent >= AGAIN:
                asked.sent = now
                asked.blocks.clear()
                yield self._encode(asked, now)

    def _encode(self, asked: Asked, now: float) -> list[Buffer]:
        own = asked.body if asked.request is None else asked.request.body(now)
        return encode_message(Message(asked.kind, asked.to, body={"id": asked.number, **own}, buffers=asked.buffers))

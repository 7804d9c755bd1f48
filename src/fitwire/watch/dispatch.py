"""The hub's desk for commands: takes them from viewers and from its own process, passes them on, tells how they stand.

The rules are :class:`~fitwire.protocol.commands.Outbox`'s. The hub's thread calls everything here but :meth:`stands`,
which any thread of the process may. No socket is known here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fitwire.errors import DecodeError
from fitwire.protocol.blocks import Buffer, Identity, Kind, Message, encode_message
from fitwire.protocol.commands import Held, Outbox, Pair, Request, Whom, parse_request

__all__ = ["Dispatch", "Standing"]

MAX_ASKERS = 16
"""Viewers that wait to hear of one command: it is one, whose connection may have changed."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a command stands on the link.

    Attributes:
        status: ``"held"``, ``"sent"``, or what the training said at once: ``"accepted"``, ``"duplicate"``,
            ``"refused"``, ``"expired"``.
        reason: Why, where there is a reason.
        to: The process it went to; None as long as it went to none.
    """

    status: str = "held"
    reason: str = ""
    to: Identity | None = None

    @property
    def taken(self) -> bool:
        """Whether the training has it, so that its outcome will be a record of the run."""
        return self.status in ("accepted", "duplicate")

    @property
    def failed(self) -> bool:
        """Whether nothing will come of it."""
        return self.status in ("refused", "expired")


class Dispatch:
    """The commands of one hub.

    Args:
        bell: Rung when one is settled.
        known: Whether a run has told of a command: one that a viewer hands in again, to a hub that came after.
    """

    def __init__(
        self, bell: threading.Condition, known: Callable[[bytes, Pair], bool] = lambda run, pair: False
    ) -> None:
        self._bell, self._known = bell, known
        self._outbox = Outbox()
        self._askers: dict[Pair, dict[bytes, int]] = {}
        self._handed: deque[tuple[bytes, Request, Identity | None]] = deque()
        self._lock = threading.Lock()

    def stands(self, run: bytes, request: Request, to: Identity | None = None) -> Standing:
        """Hand a command in, or, again, ask how it stands; for the hub's own process.

        Args:
            run: Of which run.
            request: What is asked.
            to: The process that an earlier hub had sent it to.
        """
        with self._lock:
            held = self._outbox.get(request.pair)
            if held is not None:
                return _standing(held)
            if request.pair not in {handed.pair for _, handed, _ in self._handed}:
                self._handed.append((run, request, to))
            return Standing(to=to)

    def asked(self, peer: bytes, message: Message, now: float) -> list[Buffer] | None:
        """Take what a viewer asks; gives the answer if there is one already.

        Raises:
            DecodeError: It is no command.
        """
        number, run = message.body.get("id"), message.sender.run
        if type(number) is not int or run == bytes(16):
            raise DecodeError("command", "a command without a run, or to be answered to nobody")
        request = parse_request(message, now)
        to = message.sender if message.sender.incarnation else None
        with self._lock:
            held = self._outbox.take(run, request, now, to)
        if not held.settled:
            askers = self._askers.setdefault(request.pair, {})
            askers[peer] = number
            if len(askers) > MAX_ASKERS:
                del askers[next(iter(askers))]
        return None if held.status == "held" else _answer(held, number)

    def acked(self, message: Message, now: float) -> None:
        """Take what a training said of one.

        Raises:
            DecodeError: It is no acknowledgement.
        """
        with self._lock:
            self._outbox.acked(message, now)

    def turn(
        self,
        now: float,
        whom: Whom,
        send: Callable[[Identity, list[Buffer]], bool],
        answer: Callable[[bytes, list[Buffer]], Any],
    ) -> None:
        """Say what is due.

        Args:
            now: The time.
            whom: Which process of a run is there to be asked.
            send: Sends to a training; whether it could be.
            answer: Sends to a viewer.
        """
        with self._lock:
            while self._handed:
                run, request, to = self._handed.popleft()
                self._outbox.take(run, request, now, to)
            if not self._outbox.waiting:
                return
            due = list(self._outbox.due(now, whom))
        for held, to in due:
            first = held.to is None
            if first and self._known(held.run, held.request.pair):
                with self._lock:
                    self._outbox.known(held, now)
                continue
            if not send(to, encode_message(Message(Kind.COMMAND, to, body=held.request.body(now)))):
                continue
            with self._lock:
                self._outbox.launched(held, to, now)
            if first:  # the viewer knows from now on, should this hub die, to which life of the run it went
                self._tell(held, answer)
        self._tell_settled(answer)

    def _tell_settled(self, answer: Callable[[bytes, list[Buffer]], Any]) -> None:
        with self._lock:
            settled = list(self._outbox.settled())
        for held in settled:
            self._tell(held, answer)
            self._askers.pop(held.request.pair, None)
        if settled:
            with self._bell:
                self._bell.notify_all()

    def _tell(self, held: Held, answer: Callable[[bytes, list[Buffer]], Any]) -> None:
        for peer, number in self._askers.get(held.request.pair, {}).items():
            answer(peer, _answer(held, number))


def _standing(held: Held) -> Standing:
    return Standing(held.status, held.reason, held.to)


def _answer(held: Held, number: int) -> list[Buffer]:
    body = {"id": number, "status": held.status, "reason": held.reason}
    return encode_message(Message(Kind.COMMAND_ACK, held.to or Identity(held.run), body=body))

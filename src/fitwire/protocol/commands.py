"""Commands on their way to a training, as machines: each is carried out once, in time, and whoever asked is told.

A command is known by who asks and a number. It is said again until it is acknowledged, so it may come often; the
training's end, :class:`Inbox`, remembers what it took. The hub's end, :class:`Outbox`, holds it while no training is
there, gives one asker's commands on in their order, and keeps to the process that the first word of it went to: what
was asked of one life of a run is not obeyed by the next.

How long a command stays good is told in seconds that are left, counted down by whoever holds it, because the clocks of
two machines differ. This module knows no socket, thread or clock, nor what a command does.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from fitwire.errors import DecodeError, EncodeError
from fitwire.protocol.blocks import Buffer, Identity, Kind, Message, decode_json, encode_json, encode_message
from fitwire.protocol.lane import NEVER

__all__ = [
    "ACKNOWLEDGED",
    "EARLIER_LIFE",
    "EXPIRES",
    "MAX_EXPIRES",
    "Held",
    "Inbox",
    "Outbox",
    "Pair",
    "Request",
    "make_request",
    "parse_request",
]

EXPIRES = 60.0
"""Seconds for which a command stays good, unless the asker says otherwise."""
MAX_EXPIRES = 86_400.0
AGAIN = 0.5
"""Seconds before a command is said again that nobody has acknowledged."""
MAX_COMMAND = 64
"""Characters of a command's name."""
MAX_ARGUMENTS = 32_768
"""Bytes of its arguments as JSON: they stand in frame 1."""
MAX_AUTHOR = 256
MAX_REASON = 500
MAX_KNOWN = 20_000
"""Commands that a training remembers; the oldest go first."""
MAX_HELD = 1024
"""Commands that a hub holds or remembers at once."""
KEPT = 60.0
"""Seconds for which a hub remembers what became of a command after it could have been carried out."""
FIRST_RANK = 5.0
"""Seconds that a command waits for rank 0, which speaks for a run, before another that is there gets it."""

ACKNOWLEDGED = ("accepted", "duplicate", "refused", "expired")
"""What a training says at once; what becomes of a command that it accepted is a record of the run."""
_SETTLED = frozenset(ACKNOWLEDGED)
_CLIENT = re.compile(r"[0-9a-f]{32}")

Pair = tuple[str, int]
"""Who asks, and the number of the command: its identity."""
EARLIER_LIFE = "it was for an earlier life of the run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A command on its way.

    Attributes:
        client: 32 hexadecimal digits: who asks.
        number: From 1 for each client.
        name: What is asked for.
        arguments: Plain JSON values.
        author: For people.
        asked: Unix seconds at the client.
        deadline: Until when it may be carried out, on the clock of whoever holds it.
    """

    client: str
    number: int
    name: str
    arguments: Mapping[str, Any]
    author: str = ""
    asked: float = 0.0
    deadline: float = 0.0

    @property
    def pair(self) -> Pair:
        """Its identity."""
        return self.client, self.number

    def body(self, now: float) -> dict[str, Any]:
        """The fields of its message, if it is sent at ``now``."""
        return {
            "client": self.client, "number": self.number, "name": self.name, "arguments": dict(self.arguments),
            "author": self.author, "asked": self.asked, "expires": max(0.0, round(self.deadline - now, 3)),
        }  # fmt: skip


def make_request(
    client: str,
    number: int,
    name: str,
    arguments: Mapping[str, Any],
    *,
    author: str = "",
    asked: float = 0.0,
    deadline: float = 0.0,
) -> Request:
    """A command that the other end will understand.

    Raises:
        EncodeError: It cannot be sent.
    """
    made = Request(
        client=client, number=number, name=name, arguments=arguments, author=author[:MAX_AUTHOR], asked=asked,
        deadline=deadline,
    )  # fmt: skip
    text = encode_json({"arguments": dict(arguments)})
    if len(text) > MAX_ARGUMENTS:
        raise EncodeError(f"arguments of {len(text):,} bytes, at most {MAX_ARGUMENTS:,}")
    try:
        decode_json(text)
        return parse_request(Message(Kind.COMMAND, body=made.body(deadline)), deadline)
    except DecodeError as error:
        raise EncodeError(f"cannot ask for {name[:MAX_COMMAND]!r}: {error}") from None


def parse_request(message: Message, now: float) -> Request:
    """Check what was sent; its deadline is set on our clock.

    Raises:
        DecodeError: It is no command.
    """
    body = message.body
    client, number = body.get("client"), body.get("number")
    if not isinstance(client, str) or not _CLIENT.fullmatch(client):
        raise DecodeError("command", "a command of no client")
    if type(number) is not int or not 0 < number < 2**53:
        raise DecodeError("command", f"a command of number {str(number)[:40]}")
    name, arguments = body.get("name"), body.get("arguments", {})
    if not isinstance(name, str) or not 0 < len(name) <= MAX_COMMAND or not name.isprintable():
        raise DecodeError("command", f"a command needs a name of 1 to {MAX_COMMAND} printable characters")
    if not isinstance(arguments, dict):
        raise DecodeError("command", "arguments that are no object")
    expires, asked, author = body.get("expires"), body.get("asked"), body.get("author")
    if isinstance(expires, bool) or not isinstance(expires, (int, float)):
        raise DecodeError("command", "a command that never expires")
    return Request(
        client=client, number=number, name=name, arguments=cast("dict[str, Any]", arguments),
        author=author[:MAX_AUTHOR] if isinstance(author, str) else "",
        asked=float(asked) if isinstance(asked, (int, float)) else 0.0,
        deadline=now + min(max(0.0, float(expires)), MAX_EXPIRES),
    )  # fmt: skip


class Inbox:
    """The training's end: says at once whether a command is taken, and takes each once.

    A command of a known pair is acknowledged as before and changes nothing, one for another life of the run is refused.
    What :meth:`news` gives is to be written down as records of the run, and, unless it was refused, to be carried out.

    Args:
        sender: Run, incarnation and rank; may be set anew before the first command.
        known: Commands that earlier lives of the run took, in any order.

    Attributes:
        bad: Messages that were no commands.

    Example:
        >>> inbox = Inbox(Identity(bytes(16), 1000))
        >>> asked = make_request("0" * 32, 1, "stop", {}, deadline=60.0)
        >>> message = Message(Kind.COMMAND, inbox.sender, body=asked.body(0.0))
        >>> for _ in range(2):
        ...     _ = inbox.receive(message, 0.0, check=lambda command: None)
        >>> [command.name for command, refusal in inbox.news()]
        ['stop']
    """

    def __init__(self, sender: Identity, known: Iterable[Pair] = ()) -> None:
        self.sender = sender
        self.bad = 0
        self._known: OrderedDict[Pair, str] = OrderedDict()
        self._news: deque[tuple[Request, str | None]] = deque()
        self.remember(known)

    def remember(self, pairs: Iterable[Pair]) -> None:
        """These were taken before."""
        for pair in pairs:
            self._keep(pair, "")

    def _keep(self, pair: Pair, refusal: str) -> None:
        self._known[pair] = refusal
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def receive(
        self, message: Message, now: float, check: Callable[[Request], str | None], since: float | None = None
    ) -> list[list[Buffer]]:
        """Take one ``COMMAND``.

        Args:
            message: As it came.
            now: The time.
            check: Says why a command cannot be carried out; None when it can.
            since: The earliest moment at which the message can have come, e.g. the last look before this one: it may
                have waited while the process was stopped, and that time counts. None for ``now``.

        Returns:
            What is to be sent to the hub: a ``COMMAND_ACK``.
        """
        try:
            request = parse_request(message, now if since is None else min(since, now))
        except DecodeError:
            self.bad += 1
            return []
        whose = message.sender
        if (whose.run, whose.rank) != (self.sender.run, self.sender.rank):
            self.bad += 1
            return []
        known = self._known.get(request.pair)
        if known is not None:
            return [self._ack(request, "refused" if known else "duplicate", known)]
        if whose.incarnation != self.sender.incarnation:
            return [self._ack(request, "refused", EARLIER_LIFE)]
        if request.deadline <= now:
            return [self._ack(request, "expired", "it came too late")]
        refusal = check(request)
        refusal = None if refusal is None else refusal[:MAX_REASON] or "refused"
        self._keep(request.pair, refusal or "")
        self._news.append((request, refusal))
        return [self._ack(request, "accepted" if refusal is None else "refused", refusal or "")]

    def _ack(self, request: Request, status: str, reason: str) -> list[Buffer]:
        body = {"client": request.client, "number": request.number, "status": status, "reason": reason}
        return encode_message(Message(Kind.COMMAND_ACK, self.sender, body=body))

    def news(self) -> Iterator[tuple[Request, str | None]]:
        """Yield what was taken since the last call, with None, and what was refused, with the reason; each once."""
        while self._news:
            yield self._news.popleft()


@dataclass(slots=True, eq=False)
class Held:
    """One command as the hub sees it.

    Attributes:
        run: Of which run.
        request: What is asked.
        since: When the hub heard of it.
        status: ``"held"`` while nobody is there to take it, ``"sent"``, and then what the training said at once.
        reason: Why it was refused, or is held.
        to: The process that it was first sent to, and keeps to; None before.
    """

    run: bytes
    request: Request
    since: float
    status: str = "held"
    reason: str = ""
    to: Identity | None = None
    sent: float = NEVER
    settled_at: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether the link has done its part."""
        return self.status in _SETTLED


Whom = Callable[[bytes, int | None], Identity | str | None]
"""Which process of a run is there to be asked, given its rank or None for the lowest; a text says why none ever will
be."""


class Outbox:
    """The hub's end: holds commands, says them until they are acknowledged, and forgets them later.

    Example:
        >>> outbox, me = Outbox(), Identity(bytes(16), 1000)
        >>> held = outbox.take(me.run, make_request("0" * 32, 1, "stop", {}, deadline=60.0), now=0.0)
        >>> [(to.incarnation, held.request.name) for held, to in outbox.due(0.0, lambda run, rank: me)]
        [(1000, 'stop')]
    """

    def __init__(self) -> None:
        self._held: dict[Pair, Held] = {}
        self._open: dict[Pair, Held] = {}
        self._settled: deque[Held] = deque()

    @property
    def waiting(self) -> bool:
        """Whether anything is still to be done for any command."""
        return bool(self._held)

    def get(self, pair: Pair) -> Held | None:
        """One that is known."""
        return self._held.get(pair)

    def take(self, run: bytes, request: Request, now: float, to: Identity | None = None) -> Held:
        """Take a command, or find it when it came before.

        Args:
            run: Of which run.
            request: What is asked.
            now: The time.
            to: The process that an earlier hub had sent it to.
        """
        held = self._held.get(request.pair)
        if held is not None:
            return held
        held = Held(run, request, now, to=to)
        if len(self._held) >= MAX_HELD:
            held.status, held.reason = "refused", f"the hub holds {MAX_HELD} commands already"
            return held
        self._held[request.pair] = self._open[request.pair] = held
        return held

    def due(self, now: float, whom: Whom) -> Iterator[tuple[Held, Identity]]:
        """Yield what is to be said now, and to whom; say :meth:`launched` when it could be."""
        self._forget(now)
        before: set[tuple[bytes, str]] = set()
        for held in list(self._open.values()):
            turn = (held.run, held.request.client)
            first = turn not in before
            before.add(turn)
            if held.request.deadline <= now:
                self._expire(held, now)
            elif first and now - held.sent >= AGAIN:  # one after the other: a later one must not overtake
                to = self._target(held, now, whom)
                if to is not None:
                    yield held, to

    def _target(self, held: Held, now: float, whom: Whom) -> Identity | None:
        found = whom(held.run, None if held.to is None else held.to.rank)
        if isinstance(found, str):
            self._settle(held, "refused", found, now)
            return None
        if found is None:
            return None
        if held.to is None:
            return found if found.rank == 0 or now - held.since >= FIRST_RANK else None
        if found.incarnation > held.to.incarnation:
            self._settle(held, "refused", EARLIER_LIFE, now)
        return found if found == held.to else None

    def _expire(self, held: Held, now: float) -> None:
        why = "the training did not answer" if held.to is not None else "no training came to take it"
        self._settle(held, "expired", f"{why} in time", now)

    def _settle(self, held: Held, status: str, reason: str, now: float) -> None:
        held.status, held.reason, held.settled_at = status, reason, now
        self._open.pop(held.request.pair, None)
        self._settled.append(held)

    def settled(self) -> Iterator[Held]:
        """Yield what was settled since the last call."""
        while self._settled:
            yield self._settled.popleft()

    def known(self, held: Held, now: float) -> None:
        """The run has told of it already, so it is not sent again."""
        self._settle(held, "duplicate", "", now)

    def launched(self, held: Held, to: Identity, now: float) -> None:
        """It is on its way to that process, and to no other from now on."""
        held.sent = now
        if held.to is None:
            held.to = to
        if not held.settled:
            held.status = "sent"

    def acked(self, message: Message, now: float) -> None:
        """Take one ``COMMAND_ACK``.

        Raises:
            DecodeError: It is none.
        """
        client, number, status = (message.body.get(word) for word in ("client", "number", "status"))
        if status not in _SETTLED or not isinstance(client, str) or type(number) is not int:
            raise DecodeError("command", "an acknowledgement of nothing")
        held = self._open.get((client, number))
        if held is not None and held.to == message.sender:
            reason = message.body.get("reason")
            self._settle(held, status, reason[:MAX_REASON] if isinstance(reason, str) else "", now)

    def _forget(self, now: float) -> None:
        for pair, held in list(self._held.items()):
            if held.settled and now - max(held.settled_at, held.request.deadline) >= KEPT:
                del self._held[pair]

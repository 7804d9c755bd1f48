"""The trainer's end of the link, as a machine: bytes and times in, bytes out.

It keeps what a source owes its hub: the greeting, contiguous sequence numbers within the hub's credit, going back where
something was lost, the heartbeat and the goodbye. It does not know sockets, threads, clocks, nor what records mean; the
blocks themselves lie in a :class:`Backlog`. Longer than most files here, because a machine cut in two is harder to
check against its table.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Protocol, cast

from fitwire.errors import DecodeError
from fitwire.protocol.blocks import (
    BULK,
    CHUNK_BYTES,
    LANES,
    VERSION,
    Block,
    Buffer,
    Identity,
    Kind,
    Message,
    decode_message,
    encode_chunk,
    encode_message,
)
from fitwire.protocol.digest import RollingSum
from fitwire.protocol.lane import Flight, Lane, Position

__all__ = ["BEAT", "TRANSITIONS", "Backlog", "Source", "State"]

BEAT = 2.0
"""Seconds of silence after which a side speaks, unless the welcome says otherwise."""
PROBE = 1.0
"""Seconds without progress, with something in flight, after which the source asks where the hub stands."""
GREETINGS = (0.1, 5.0)
"""First and longest pause between two hellos, seconds; each is twice the last, give or take a quarter."""
LOST = 10.0
"""Seconds without a word from a hub whose connection seems to stand, after which the source greets again."""
GOODBYE_AGAIN = 0.2
FIRST_WINDOW, LEAST_WINDOW = CHUNK_BYTES, 64 * 2**10
"""Bulk bytes in flight, at first and at least: on a slow line a loss must not wait behind a picture."""
FAST, SLOW = 0.1, 0.5
"""Seconds from sent to acknowledged under which the window doubles, and over which it halves."""
MAX_COMMANDS = 100
"""Commands that were not yet taken from the machine."""


class State(StrEnum):
    """Where the link of a source stands."""

    IDLE = "idle"
    GREETING = "greeting"
    STREAMING = "streaming"
    ENDED = "ended"  # the hub has all of it
    SET_ASIDE = "set aside"  # a newer incarnation goes on
    REFUSED = "refused"  # no common version, or no right to be here


TRANSITIONS: dict[tuple[State, str], State] = {
    # a pair not listed changes nothing, so a doubled welcome is harmless
    (State.IDLE, "connect"): State.GREETING,
    (State.GREETING, "welcome"): State.STREAMING,
    (State.GREETING, "superseded"): State.SET_ASIDE,
    (State.GREETING, "version"): State.REFUSED,
    (State.GREETING, "auth"): State.REFUSED,
    (State.STREAMING, "unknown"): State.GREETING,  # a restarted hub has never heard of us
    (State.STREAMING, "disconnected"): State.GREETING,
    (State.STREAMING, "silent"): State.GREETING,
    (State.STREAMING, "superseded"): State.SET_ASIDE,
    (State.STREAMING, "bye_ok"): State.ENDED,
}

REASONS = ("superseded", "version", "auth", "unknown")
"""Of a refusal, that are events of the table; any other, e.g. ``busy``, means to greet on."""


class Backlog(Protocol):
    """Where a source's blocks lie until the hub has them: memory, or the journal."""

    def first(self, lane: int) -> int:
        """Lowest sequence number still kept; ``head + 1`` when there is none."""
        ...

    def head(self, lane: int) -> int:
        """Highest sequence number written; 0 when there is none."""
        ...

    def read(self, lane: int, seq: int) -> Block | None:
        """The block that begins at ``seq``, or None."""
        ...

    def trim(self, lane: int, upto: int) -> None:
        """Forget blocks whose last sequence number is at most ``upto``: the hub has committed them."""
        ...


class Source:
    """The machine. Hand it frames and the time; send what it says is due.

    Args:
        sender: Run, incarnation and rank.
        hello: What else the hello says: project, name, host and so on; small, JSON. Its ``role`` is ``"source"`` unless
            said otherwise: ``"courier"`` for one that delivers what another process left.
        backlog: Where blocks are read from and trimmed.
        jitter: Numbers in [0, 1) that spread the hellos of many sources.

    Attributes:
        state: Where the link stands.
        have: Per lane, the highest sequence number the hub has committed.
        bad: Messages that were not understood, counted by kind of fault.
        replays: Times the source went back because something was lost.
        newer: Incarnation that superseded this one, else None.
        reason: Why the hub refused, else None.
        commands: What watchers ask for, as it came; whoever owns the machine takes it from here, e.g. for an
            :class:`~fitwire.protocol.commands.Inbox`, and sends the answers.
    """

    def __init__(
        self,
        sender: Identity,
        hello: dict[str, Any],
        backlog: Backlog,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.sender, self.hello, self.backlog = sender, hello, backlog
        self.state = State.IDLE
        self.bad: Counter[str] = Counter()
        self.replays = 0
        self.newer: int | None = None
        self.reason: str | None = None
        self._jitter = jitter
        self._lanes = [Lane() for _ in LANES]
        self._sums = [RollingSum() for _ in LANES]
        self._credit_bytes, self._credit_records = 2**20, 1024
        self._window = FIRST_WINDOW
        self._beat = BEAT
        self._out: deque[list[Buffer]] = deque()
        self._next_hello, self._pause = 0.0, GREETINGS[0]
        self._nonce = 0
        self._session: int | None = None
        self._other_sessions: deque[int] = deque(maxlen=16)
        self._pings = itertools.count(1)
        self._ping: tuple[int, float, list[Position]] | None = None
        self._said = self._heard = self._progress = 0.0
        self._farewell: dict[str, Any] | None = None
        self._next_goodbye = 0.0
        self.commands: deque[Message] = deque()

    # -- what the caller says

    @property
    def have(self) -> list[int]:
        """Per lane, the highest sequence number the hub has committed."""
        return [lane.have for lane in self._lanes]

    @property
    def heard(self) -> float:
        """When the hub was last heard, on the caller's clock."""
        return self._heard

    @property
    def drained(self) -> bool:
        """Whether the hub has committed everything the backlog ever held."""
        return all(lane.have >= self.backlog.head(i) for i, lane in enumerate(self._lanes))

    @property
    def all_sent(self) -> bool:
        """Whether everything the backlog holds is under way or committed."""
        return all(lane.next[0] > self.backlog.head(i) for i, lane in enumerate(self._lanes))

    def connect(self, now: float) -> None:
        """Begin to greet."""
        self._enter("connect", now)

    def connected(self, now: float) -> None:
        """The transport has (re)connected: greet at once."""
        self._enter("disconnected", now)  # what was on the way may be lost
        self._next_hello, self._pause = now, GREETINGS[0]

    def disconnected(self, now: float) -> None:
        """The transport is down: send nothing into the void."""
        self._enter("disconnected", now)

    def goodbye(self, status: str) -> None:
        """Say goodbye once all is sent; :attr:`state` is ENDED when the hub has it all."""
        if self._farewell != {"status": status}:
            self._farewell = {"status": status}
            self._next_goodbye = 0.0

    def _enter(self, event: str, now: float) -> bool:
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        if state is State.GREETING:
            self._next_hello, self._pause = now, GREETINGS[0]
        self.state = state
        return True

    # -- what comes in

    def receive(self, frames: Sequence[Buffer], now: float) -> None:
        """Take one message from the hub; what is not understood is counted and changes nothing."""
        try:
            message = decode_message(frames)
            self._heard = now
            handler = _HANDLERS.get(message.kind)
            if handler is not None:
                handler(self, message, now)
        except DecodeError as error:
            self.bad[error.kind] += 1

    def _on_welcome(self, message: Message, now: float) -> None:
        body = message.body
        if self.state is not State.GREETING or body.get("nonce") != self._nonce:
            return
        have, positions = self._positions(message)
        session = body.get("session")
        self._use_session(session if type(session) is int else None)
        credit = body.get("credit")
        if isinstance(credit, dict):
            limits = cast("dict[str, object]", credit)
            self._credit_bytes = _bounded(limits.get("bytes"), LEAST_WINDOW, 2**30)
            self._credit_records = _bounded(limits.get("records"), 1, 2**20)
        beat = body.get("beat")
        if isinstance(beat, (int, float)) and 0.05 <= beat <= 60:
            self._beat = float(beat)
        self._enter("welcome", now)
        self._ping = None
        self._progress = now
        for index, lane in enumerate(self._lanes):
            lane.start(have[index], positions[index])
            self._trim(index, lane.have)

    def _use_session(self, session: int | None) -> None:
        if self._session is not None and self._session != session:
            self._other_sessions.append(self._session)
        if session is not None and session in self._other_sessions:
            self._other_sessions.remove(session)
        self._session = session

    def _of_this_session(self, message: Message, now: float) -> bool:
        """Whether positions in it may be believed: a hub that lost its store must not inherit the old one's acks."""
        if self.state is not State.STREAMING:
            return False
        session = message.body.get("session")
        if session == self._session:
            return True
        if type(session) is int and session not in self._other_sessions:
            # Never heard of: the hub was restarted and knows us by a hello that came late.
            self._other_sessions.append(session)
            self._enter("unknown", now)
        return False

    def _positions(self, message: Message) -> tuple[list[int], list[Position]]:
        if message.sender != self.sender:
            raise DecodeError("sender", "positions of another source")
        have, following = message.body.get("have"), message.body.get("next")
        good_have: list[int] = []
        good_next: list[Position] = []
        if isinstance(have, list) and isinstance(following, list):
            for number, pair in zip(cast("list[object]", have), cast("list[object]", following), strict=False):
                two = cast("list[object]", pair) if isinstance(pair, list) else []
                if len(two) == 2 and all(type(n) is int and n >= 0 for n in (number, *two)):
                    good_have.append(cast(int, number))
                    good_next.append((cast(int, two[0]), cast(int, two[1])))
        if len(good_have) != len(LANES):
            raise DecodeError("ack", "positions are missing")
        for index, lane in enumerate(self._lanes):
            head = self.backlog.head(index)
            ahead = max(good_have[index], good_next[index][0] - 1)
            if ahead > max(head, lane.have) or good_next[index] < (good_have[index] + 1, 0):
                raise DecodeError("ack", f"the hub claims record {ahead} of lane {index}, {head} were written")
        return good_have, good_next

    def _on_ack(self, message: Message, now: float) -> None:
        if not self._of_this_session(message, now):
            return
        have, positions = self._positions(message)
        self._absorb(have, positions, now)
        gap = message.body.get("gap")
        if type(gap) is int and gap in LANES and self._lanes[gap].go_back(positions[gap], now):
            self.replays += 1

    def _absorb(self, have: list[int], positions: list[Position], now: float) -> None:
        for index, lane in enumerate(self._lanes):
            if lane.committed(have[index]):
                self._progress = now
                self._trim(index, lane.have)
            took = lane.landed(positions[index], now)
            if took is None:
                continue
            self._progress = now
            if index == BULK:
                factor = 2.0 if took < FAST else 0.5 if took > SLOW else 1.0
                self._window = int(min(max(self._window * factor, LEAST_WINDOW), self._credit_bytes))

    def _trim(self, index: int, upto: int) -> None:
        first = self.backlog.first(index)  # what an earlier process has trimmed can be summed by nobody any more
        self._sums[index].settle(upto, lambda seq: self.backlog.read(index, seq) if seq >= first else None)
        self.backlog.trim(index, upto)

    def _on_pong(self, message: Message, now: float) -> None:
        if not self._of_this_session(message, now) or self._ping is None or message.body.get("id") != self._ping[0]:
            return
        have, positions = self._positions(message)
        sent, self._ping = self._ping[2], None
        self._absorb(have, positions, now)
        for lane, position, then in zip(self._lanes, positions, sent, strict=True):
            # The ping left after them on the same road and has arrived: they were lost.
            if position < then and not lane.went_back_since(now - PROBE / 2) and lane.go_back(position, now):
                self.replays += 1

    def _on_ping(self, message: Message, now: float) -> None:
        if self.state is State.STREAMING:
            self._say(Kind.PONG, {"id": message.body.get("id")}, now)

    def _on_reject(self, message: Message, now: float) -> None:
        reason = str(message.body.get("reason"))[:40]
        newer = message.body.get("newer")
        if reason in REASONS and self._enter(reason, now):
            self.reason = reason
            self.newer = newer if type(newer) is int else None

    def _on_bye_ok(self, message: Message, now: float) -> None:
        if not self._of_this_session(message, now):
            return
        have, positions = self._positions(message)
        self._absorb(have, positions, now)
        if self._farewell is not None and self.drained:
            self._enter("bye_ok", now)

    def _on_command(self, message: Message, now: float) -> None:
        if len(self.commands) < MAX_COMMANDS:  # else it is said again
            self.commands.append(message)

    # -- what goes out

    def due(self, now: float) -> Iterator[list[Buffer]]:
        """Yield what is to be sent now, in order, within the hub's credit."""
        if self.state is State.STREAMING and now - self._heard >= max(LOST, 5 * self._beat):
            self._enter("silent", now)
        if self.state is State.GREETING and now >= self._next_hello:
            self._greet(now)
        if self.state is State.STREAMING:
            yield from self._drain()
            yield from self._blocks(now)
            self._speak_up(now)
        yield from self._drain()

    def _greet(self, now: float) -> None:
        self._nonce = self._nonce % 2**31 + 1
        self._next_hello = now + self._pause * (0.75 + self._jitter() / 2)
        self._pause = min(self._pause * 2, GREETINGS[1])
        heads = [self.backlog.head(lane) for lane in LANES]
        firsts = [self.backlog.first(lane) for lane in LANES]
        own = {"versions": [VERSION], "nonce": self._nonce, "head": heads, "first": firsts}
        self._say(Kind.HELLO, {"role": "source", **self.hello, **own}, now)

    def _drain(self) -> Iterator[list[Buffer]]:
        while self._out:
            yield self._out.popleft()

    def _blocks(self, now: float) -> Iterator[list[Buffer]]:
        for index, lane in enumerate(self._lanes):
            limit = self._window if index == BULK else self._credit_bytes
            while lane.in_flight < limit and lane.next[0] - lane.have <= self._credit_records:
                first = self.backlog.first(index)
                if lane.next[0] < first:
                    yield self._gap(index, lane, first, now)
                    continue
                block = self.backlog.read(index, lane.next[0])
                if block is None:
                    break
                if not lane.flights:
                    self._progress = now
                yield self._piece(block, lane, now)

    def _gap(self, index: int, lane: Lane, first: int, now: float) -> list[Buffer]:
        """A hub with another store asks for what an earlier one has, and what is therefore gone from here."""
        body = {"to": first - 1, "reason": "already delivered to another store"}
        message = Message(Kind.GAP, self.sender, index, lane.next[0], 0, body)
        lane.next, self._said = (first, 0), now
        self._sums[index].begin_after(first - 1)
        return encode_message(message)

    def _piece(self, block: Block, lane: Lane, now: float) -> list[Buffer]:
        """One block, or its next chunk; moves the lane past it."""
        total = block.nbytes
        offset = lane.next[1] if lane.next[1] < total else 0  # it has shrunk to a tombstone since
        small = total <= (LEAST_WINDOW if block.lane == BULK else CHUNK_BYTES)
        size = self._chunk_size(offset, total)
        if offset == 0 and (small or size == total):
            frames, size = list(block.frames), total
        else:
            frames = encode_chunk(block, offset, size)
        done = offset + size >= total
        after = (block.last + 1, 0) if done else (block.first, offset + size)
        if done:
            self._sums[block.lane].add(block)
        lane.launch(Flight(after, size, now, chunk=not done))
        self._said = now
        return frames

    def _chunk_size(self, offset: int, total: int) -> int:
        """A quarter of the window, up to a place whose checksum is known (``Block.sums``) or to the block's end."""
        size = max(LEAST_WINDOW, min(CHUNK_BYTES, self._window // 4))
        size = min(size, CHUNK_BYTES - offset % CHUNK_BYTES)
        left = total - offset - size
        return size + left if left < LEAST_WINDOW else size

    def _speak_up(self, now: float) -> None:
        waiting = any(lane.flights for lane in self._lanes)
        quiet = now - self._said >= self._beat
        stuck = waiting and now - self._progress >= PROBE
        if (stuck or quiet) and (self._ping is None or now - self._ping[1] >= PROBE):
            number = next(self._pings)
            sent = [lane.next for lane in self._lanes]
            self._ping = (number, now, sent)
            self._say(Kind.PING, {"id": number, "sent": sent}, now)
        if self._farewell is not None and now >= self._next_goodbye and self.all_sent:
            self._next_goodbye = now + GOODBYE_AGAIN
            final = [self.backlog.head(lane) for lane in LANES]
            sums = [one.to_come() for one in self._sums]
            digest = {"digest": [value for _, value in sums], "since": [since for since, _ in sums]}
            self._say(Kind.GOODBYE, {**self._farewell, "final": final} | digest, now)

    def send(self, kind: Kind, body: dict[str, Any], now: float) -> None:
        """Queue a message of the caller's own, e.g. the answer to a command."""
        self._say(kind, body, now)

    def _say(self, kind: Kind, body: dict[str, Any], now: float) -> None:
        self._said = now
        self._out.append(encode_message(Message(kind, self.sender, body=body)))


def _bounded(value: object, low: int, high: int) -> int:
    return min(max(value, low), high) if type(value) is int else low


_HANDLERS: dict[int, Callable[[Source, Message, float], None]] = {
    Kind.WELCOME: Source._on_welcome,  # pyright: ignore[reportPrivateUsage]
    Kind.REJECT: Source._on_reject,  # pyright: ignore[reportPrivateUsage]
    Kind.ACK: Source._on_ack,  # pyright: ignore[reportPrivateUsage]
    Kind.PING: Source._on_ping,  # pyright: ignore[reportPrivateUsage]
    Kind.PONG: Source._on_pong,  # pyright: ignore[reportPrivateUsage]
    Kind.BYE_OK: Source._on_bye_ok,  # pyright: ignore[reportPrivateUsage]
    Kind.COMMAND: Source._on_command,  # pyright: ignore[reportPrivateUsage]
}

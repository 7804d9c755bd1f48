"""One SLEAP training as a source of the hub: what it says becomes blocks, what is asked of it becomes an order.

To the hub it is a run like any other: stored, judged, followed, asked. The training itself knows nothing of it. It does
not acknowledge orders either, so that a stop counts as applied when the training has then said that it ended.
"""

from __future__ import annotations

import random
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fitwire._version import __version__
from fitwire.events import (
    Command,
    CommandDone,
    CommandStatus,
    Dropped,
    Event,
    Metrics,
    RunEnded,
    encode_event,
    encode_rows,
)
from fitwire.protocol.blocks import LANES, RECORDS, Block, Buffer, Identity, encode_block
from fitwire.protocol.commands import Inbox, Request
from fitwire.protocol.source import Source, State
from fitwire.sleap import Order, Training, Word, write_order
from fitwire.transport.address import Address
from fitwire.transport.lossviewer import WindowEnd
from fitwire.transport.process import host_key
from fitwire.transport.zmq import Dealer

__all__ = ["Relay"]

MAX_PARTS = 32
"""Of a block: runs of batches with the same metrics, and single events."""
MAX_ROWS = 256
HELD_BYTES = 64 * 2**20
"""Of blocks that no hub has taken; beyond it batches are given up, counted."""
STONE = 2048
"""Records that one tombstone may stand for: half a block's."""
UNTIL_END = 30.0
"""Seconds for which a training that was told to stop may take to say that it ended: it may validate first."""
PARTING = 5.0
"""Seconds for which a run that is over waits for the hub to confirm that it has all."""
NAN = float("nan")

Part = tuple[dict[str, Any], list[tuple[dict[str, Any], Buffer]]]


class _Blocks:
    """What the hub has not confirmed yet: a :class:`~fitwire.protocol.source.Backlog` in memory."""

    def __init__(self) -> None:
        self._blocks: list[dict[int, Block]] = [{} for _ in LANES]
        self._heads = [0 for _ in LANES]
        self.nbytes = 0

    def append(self, block: Block) -> None:
        self._blocks[block.lane][block.first] = block
        self._heads[block.lane] = block.last
        self.nbytes += sum(map(len, block.frames))

    def first(self, lane: int) -> int:
        return min(self._blocks[lane], default=self._heads[lane] + 1)

    def head(self, lane: int) -> int:
        return self._heads[lane]

    def read(self, lane: int, seq: int) -> Block | None:
        return self._blocks[lane].get(seq)

    def trim(self, lane: int, upto: int) -> None:
        for seq in [seq for seq, block in self._blocks[lane].items() if block.last <= upto]:
            self.nbytes -= sum(map(len, self._blocks[lane].pop(seq).frames))


@dataclass(slots=True)
class _Asked:
    """A command that was taken and has no outcome yet."""

    request: Request
    order: Order
    sent: float | None = None


class Relay:
    """One training, told to the hub.

    Args:
        first: The first word that was heard of it; still to be taken.
        hub: Where the hub listens.
        process: The trainer's pid and when it started, Unix seconds; None where that is not known.

    Attributes:
        training: What is known of it.
        alone: Whether no other training listens at the same port; kept up by whoever owns the port.
    """

    def __init__(self, first: Word, hub: Address, process: tuple[int, float] | None = None) -> None:
        self.training = Training(first, time.time())
        self.process = process
        self.alone = True
        self._blocks = _Blocks()
        self._events: deque[Event] = deque()
        self._given_up = 0
        sender = Identity(_new_run(), int(time.time()), 0)
        chance = random.Random()
        self._source = Source(sender, self._hello(first), self._blocks, chance.random)
        self._inbox = Inbox(sender)
        self._asked: list[_Asked] = []
        self._link = Dealer(hub)
        self._source.connect(time.monotonic())
        self._over_at: float | None = None
        self._status = "finished"

    def _hello(self, first: Word) -> dict[str, Any]:
        told: dict[str, Any] = {
            "name": first.name or self.training.what or str(self.training.dialect or "sleap"), "project": "sleap",
            "host": socket.gethostname()[:256], "world_size": 1, "fitwire": __version__, "durability": "memory",
            "can": [],
        }  # fmt: skip
        if self.process is not None:  # so that the hub can see whether it lives
            told |= {"pid": self.process[0], "pid_started": self.process[1], "host_key": host_key()[:256]}
        return told

    # -- what the training says

    def hear(self, word: Word) -> None:
        """Take its next word."""
        self._say(self.training.take(word, time.time()))

    def died(self, why: str) -> None:
        """It went without a word."""
        self._say(self.training.died(time.time(), why))

    def _say(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, RunEnded):
                self._settle_at_end(event)
                self._over_at = time.monotonic()
            if self._blocks.nbytes > HELD_BYTES and type(event) is Metrics:
                self._given_up += 1
                continue
            if self._given_up:
                why = f"{self._given_up:,} batches were not taken by any hub"
                lost = Dropped(time=time.time(), count=min(self._given_up, STONE), what="metrics", reason=why)
                self._events.append(lost)
                self._given_up = 0
            self._events.append(event)

    # -- the link

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done for it."""
        if self._source.state in (State.ENDED, State.SET_ASIDE, State.REFUSED):
            return True
        return self._over_at is not None and time.monotonic() - self._over_at > PARTING

    def turn(self, window: WindowEnd) -> None:
        """Pack what was said, serve the link, and pass on what was asked for."""
        now, source = time.monotonic(), self._source
        while self._events:
            self._pack()
        for up in self._link.changes():
            if up:
                source.connected(now)
            else:
                source.disconnected(now)
        while (frames := self._link.receive()) is not None:
            source.receive(frames, now)
        self._take_commands(now)
        self._pass_on(window, now)
        if self._over_at is not None and not self._events:
            source.goodbye(self._status)
        for message in source.due(now):
            self._link.send(message)

    @property
    def drained(self) -> bool:
        """Whether the hub has all that was said."""
        return not self._events and self._source.drained

    def close(self) -> None:
        """Leave the hub."""
        self._link.close()

    def _pack(self) -> None:
        """One block of what waits."""
        parts: list[dict[str, Any]] = []
        buffers: list[tuple[dict[str, Any], Buffer]] = []
        rows: list[Metrics] = []

        def add(part: Part) -> None:
            parts.append(part[0] | ({"b": len(part[1])} if part[1] else {}))
            buffers.extend(part[1])

        while self._events and len(parts) < MAX_PARTS and len(rows) < MAX_ROWS:
            event = self._events[0]
            if rows and (not isinstance(event, Metrics) or _set_of(event) != _set_of(rows[0])):
                add(_rows(rows))
                rows = []
                continue
            self._events.popleft()
            if isinstance(event, Metrics):
                rows.append(event)
            else:
                add(encode_event(event))
                if isinstance(event, Dropped):
                    break  # it counts for many, and a block holds only so many
        if rows:
            add(_rows(rows))
        first = self._blocks.head(RECORDS) + 1
        self._blocks.append(encode_block(self._source.sender, RECORDS, first, time.time_ns(), parts, buffers))

    # -- what is asked of it

    def _take_commands(self, now: float) -> None:
        while self._source.commands:
            for frames in self._inbox.receive(self._source.commands.popleft(), now, self._refusal):
                self._link.send(frames)
        for request, refusal in self._inbox.news():
            told = Command(
                time=time.time(), step=self._step, client=request.client, number=request.number, name=request.name,
                arguments=request.arguments, author=request.author, asked=request.asked,
            )  # fmt: skip
            self._events.append(told)
            order = _order_of(request)
            if refusal is not None or isinstance(order, str):
                self._tell_outcome(request, "refused", refusal or str(order))
            else:
                self._asked.append(_Asked(request, order))

    def _refusal(self, request: Request) -> str | None:
        order = _order_of(request)
        return order if isinstance(order, str) else self.training.refusal(order)

    def _pass_on(self, window: WindowEnd, now: float) -> None:
        for asked in list(self._asked):
            if asked.sent is None:
                self._send(asked, window, now)
            elif now >= min(asked.sent + UNTIL_END, max(asked.request.deadline, asked.sent + 1.0)):
                self._settle(asked, "accepted", "it was sent to the training, which has not ended yet")

    def _send(self, asked: _Asked, window: WindowEnd, now: float) -> None:
        """Send an order as soon as the training listens, and never where it could reach another one."""
        request, order = asked.request, asked.order
        if now >= request.deadline:
            self._settle(asked, "expired", "no training came to listen for commands in time")
            return
        refusal = self.training.refusal(order)  # it may have shown more of itself since
        if refusal is not None:
            self._settle(asked, "refused", refusal)
        elif not window.listeners:
            return
        elif (window.listeners > 1 or not self.alone) and not request.arguments.get("force"):
            self._settle(asked, "refused", f"{window.listeners} trainings listen at this port, and all would obey")
        elif window.send(write_order(order)):
            asked.sent = now
            if order.lr is not None:
                before, self.training.lr = self.training.lr, order.lr
                reason = "it was sent to the training, which does not answer but says its rate when an epoch has ended"
                self._settle(asked, "accepted", reason, before, order.lr)

    def _settle_at_end(self, ended: RunEnded) -> None:
        self._status = ended.status
        for asked in list(self._asked):
            if asked.sent is None:
                self._settle(asked, "refused", "the training has ended")
            elif ended.status == "finished":
                self._settle(asked, "applied", "")
            else:
                self._settle(asked, "accepted", "it was sent to the training, which then went without a word")

    def _settle(self, asked: _Asked, status: CommandStatus, reason: str, before: Any = None, after: Any = None) -> None:
        self._asked.remove(asked)
        self._tell_outcome(asked.request, status, reason, before, after)

    def _tell_outcome(
        self, request: Request, status: CommandStatus, reason: str, before: Any = None, after: Any = None
    ) -> None:
        told = CommandDone(
            time=time.time(), step=self._step, client=request.client, number=request.number, name=request.name,
            status=status, reason=reason, before=before, after=after, author=request.author,
        )  # fmt: skip
        self._events.append(told)

    @property
    def _step(self) -> int | None:
        return self.training.step if self.training.step >= 0 else None


def _order_of(request: Request) -> Order | str:
    """What SLEAP calls it; or why it has no word for it."""
    arguments = request.arguments
    if request.name == "stop":
        return Order("stop")
    if request.name == "set" and arguments.get("name") == "lr":
        value = arguments.get("value")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
            return Order("set_lr", float(value))
        return f"lr is a finite number from 0, not {str(value)[:40]}"
    return "a training of SLEAP knows no command but stop and, up to 1.4, set lr"


def _set_of(event: Metrics) -> tuple[str, tuple[str, ...]]:
    return event.per, tuple(event.values)


def _rows(events: list[Metrics]) -> Part:
    rows = [
        (float(e.step or 0), NAN if e.epoch is None else e.epoch, NAN if e.batch is None else e.batch, e.time)
        for e in events
    ]
    return encode_rows(list(events[0].values), events[0].per, rows, [list(e.values.values()) for e in events])


def _new_run() -> bytes:
    """A UUIDv7 (RFC 9562, 5.7), so that ids sort by their start."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + secrets.token_bytes(10))
    raw[6], raw[8] = 0x70 | raw[6] & 0x0F, 0x80 | raw[8] & 0x3F
    return bytes(raw)

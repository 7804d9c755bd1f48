"""``wire="sleap"``: a training told to SLEAP's window, the LossViewer, which may stop it and set its learning rate.

All that the window draws is said, at a pace that it can follow, and held until it is there; a window that opens late,
or again, is told of the epochs so far. What it commands is checked and obeyed as any watcher's command is. Of samples,
notes and settings this wire has no word, and there is no store on it. All of it happens on this module's thread.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable

from fitwire.errors import DecodeError, LinkError
from fitwire.events import Event, RunEnded, RunStarted
from fitwire.protocol.commands import MAX_EXPIRES, Request, make_request
from fitwire.sleap import Order, Show, parse_ports, read_order
from fitwire.train.outlet import DRAIN, LOOK, NOBODY, Delivery, Mark, Outlet, Steered
from fitwire.train.packer import Row
from fitwire.train.pending import LateRow
from fitwire.train.values import plain_text
from fitwire.transport.lossviewer import TrainerEnd

__all__ = ["SleapUplink", "sleap_addresses"]

PACE = 1 / 40
"""Seconds from one message to the next: a window follows 80 a second, if it has nothing else to do."""
LINGER = 1.0
"""Seconds that the socket may take at the end, within what ``finish`` allows."""
AUTHOR = "LossViewer"


def sleap_addresses(address: str | None) -> tuple[str, str]:
    """Where the window reads, and where it commands.

    Args:
        address: ``tcp://host:9001,9000``; None for ``FITWIRE_ADDRESS``, else those ports of this machine.

    Raises:
        AddressError: Malformed, or beyond this machine.
    """
    return parse_ports(address if address is not None else os.environ.get("FITWIRE_ADDRESS"))


class SleapUplink(Outlet):
    """The thread that tells a LossViewer; an :class:`~fitwire.train.outlet.Outlet`.

    Args:
        address: See :func:`sleap_addresses`.
        warn: Told of what the user should know: ``warn(kind, sentence)``.
        run: The run's name.
        speaks: Whether this process is the one of its training that tells: a window knows no ranks.

    Attributes:
        steered: Who is told of commands; None not to listen to any.
        unknown: Commands that were not understood, counted by kind of fault.
    """

    NAME = "sleaplink"

    def __init__(self, address: str | None, warn: Callable[[str, str], None], *, run: str, speaks: bool = True) -> None:
        self._addresses = sleap_addresses(address)
        super().__init__(f"{self._addresses[0]},{self._addresses[1].rpartition(':')[2]}", warn)
        self.steered: Steered | None = None
        self.unknown: Counter[str] = Counter()
        self._speaks = speaks
        self._show = Show(name=run)
        self._marks: deque[Mark] = deque()
        self._frame: bytes | None = None
        self._next = 0.0
        self._taken = self._sent = 0
        self._client, self._orders = secrets.token_hex(16), 0
        self._complete = False

    def delivery(self) -> Delivery:
        """How things stand; counted are messages to a window, which are fewer than records."""
        if not self._speaks:
            return Delivery(0, 0, 0, True)
        return Delivery(self._sent, self._show.waiting + (self._frame is not None) + len(self.queue), 0, self._complete)

    def _give_up(self) -> None:
        """Nothing is said any more: let nobody wait."""
        self._take()
        while self._marks:
            self._marks.popleft().settle(delivered=not self._speaks)

    def _converse(self) -> None:
        if not self._speaks:
            return
        try:
            end = TrainerEnd(self._addresses[0], self._addresses[1] if self.steered is not None else None)
        except LinkError as error:
            self._warn("sleap", f"{error}; nothing is sent to a LossViewer")
            return
        try:
            looked = 0.0
            while not self._is_over():
                now = time.monotonic()
                if now - looked >= LOOK or self._closing is not None:
                    looked = now
                    self._take()
                if end.look():
                    self._show.greet()
                    self._frame = None
                    self.greeted.set()
                self._obey(end)
                if end.heard and now >= self._next:
                    self._say_one(end, now)
                end.wait(min(LOOK, max(0.001, self._next - time.monotonic())) if end.heard else LOOK)
            self._complete = end.heard and not self._is_anything_left()
        finally:
            end.close(LINGER)

    def _is_over(self) -> bool:
        if self._closing is None:
            return False
        if self.greeted.is_set() and not self._is_anything_left():
            return True
        return time.monotonic() - self._closing > (DRAIN if self.greeted.is_set() else NOBODY)

    def _is_anything_left(self) -> bool:
        return bool(self.queue or self._frame is not None or self._show.waiting)

    def _say_one(self, end: TrainerEnd, now: float) -> None:
        frame = self._frame if self._frame is not None else self._show.next()
        self._frame = None
        if frame is None:
            if not self.queue:
                while self._marks:
                    self._marks.popleft().settle(delivered=True)
            return
        self._next = now + PACE
        if end.send(frame):
            self._sent += 1
            self.probe.sent += len(frame)
        else:
            self._frame = frame  # the window does not read; it may again

    # -- what the training says

    def _take(self) -> None:
        queue = self.queue
        while queue:
            record = queue[0]
            if isinstance(record, LateRow):
                if not record.settled:
                    return
                record = record.row
            queue.popleft()
            self._taken += 1
            if isinstance(record, Mark):
                self._marks.append(record)
            else:
                self._tell(record)
        self.probe.look(self._taken, time.monotonic())

    def _tell(self, record: Row | Event) -> None:
        if isinstance(record, tuple):
            _, step, epoch, batch, per, values = record
            if per == "batch":
                named = {plain_text(name): value for name, value in values.items()}
                self._show.batch(named, epoch=_index(epoch), batch=_index(batch), step=_index(step) or 0)
            elif per == "epoch":
                named = {plain_text(name): value for name, value in values.items()}
                self._show.epoch(named, epoch=_index(epoch) or 0)
        elif isinstance(record, RunStarted):
            self._show.what = str(record.info.get("what") or "")[:200]
        elif isinstance(record, RunEnded):
            self._show.end()

    # -- what the window says

    def _obey(self, end: TrainerEnd) -> None:
        for frame in end.orders():
            try:
                request = self._request(read_order(frame))
            except DecodeError as error:  # of another window, or of a later one
                self.unknown[error.kind] += 1
                continue
            if self.steered is not None:
                self.steered.take(request, self.steered.refusal(request))

    def _request(self, order: Order) -> Request:
        """The order as any watcher's; it does not expire, because the window says it once and shows nothing of it."""
        self._orders += 1
        name, arguments = ("stop", {}) if order.lr is None else ("set", {"name": "lr", "value": order.lr})
        return make_request(
            self._client, self._orders, name, arguments, author=f"{AUTHOR} at {self._addresses[1]}",
            asked=time.time(), deadline=time.monotonic() + MAX_EXPIRES,
        )  # fmt: skip


def _index(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None

"""``wire="pair"``: a training told through the seed's paired sockets, for a GUI that holds a ``PairedReceiver``.

Dictionaries ``{type, run, epoch, batch, step, logs}`` with ``type`` one of ``train_begin``, ``batch``, ``epoch``,
``sample`` and ``train_end``; a sample is one array for each role, ``name`` and ``role`` in its header. Until a receiver
has answered the handshake, and again when it has left, messages are held within a bound, and what passes it is counted.
There is no store on this wire: what was on the way to a receiver that died is gone. All of it happens on this module's
thread; the training thread appends, as always.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fitwire.errors import AddressError, EncodeError, LinkError
from fitwire.events import Event, RunEnded, RunStarted, Sample
from fitwire.message import PairedSender
from fitwire.protocol.arrays import Array
from fitwire.train.outlet import DRAIN, LOOK, NOBODY, Delivery, Mark, Outlet
from fitwire.train.packer import Row
from fitwire.train.pending import LateRow
from fitwire.train.values import as_whole, plain_text
from fitwire.transport.address import two_ports

__all__ = ["PairUplink", "pair_addresses"]

PORTS = (9001, 9002)
"""The seed's: the receiver binds the first, this end the second."""
MAX_HELD = 10_000
"""Messages held until a receiver is there."""
MAX_HELD_BYTES = 64 * 2**20
"""Bytes of arrays held likewise."""
ASK = 0.5
"""Seconds that one attempt at the handshake may take: several of the seed's cycles. Then the queue is looked at."""
LINGER = 1.0
"""Seconds that the socket may take at the end, within what ``finish`` allows."""
LOSSES = ("full", "no receiver", "linger")
"""What of the sender's count is a message of ours that did not arrive."""
AGAIN = 1.0
"""Seconds between two attempts to bind a port that somebody else holds."""

Logs = dict[str, Any]
Told = tuple[Logs, Array | None]


def pair_addresses(address: str | None) -> tuple[str, str]:
    """Where the receiver listens, and where its replies are awaited.

    Args:
        address: ``tcp://host:9001,9002``; None for ``FITWIRE_ADDRESS``, else those ports of this machine.

    Raises:
        AddressError: Malformed, or beyond this machine: these sockets know no keys.
    """
    text = (address if address is not None else os.environ.get("FITWIRE_ADDRESS", "")).strip()
    return two_ports(text, "pair", PORTS, "-L -R")


class PairUplink(Outlet):
    """The thread that tells a ``PairedReceiver``; an :class:`~fitwire.train.outlet.Outlet`.

    Args:
        address: See :func:`pair_addresses`.
        warn: Told of what the user should know: ``warn(kind, sentence)``.
        run: The run's name, the key ``run`` of every message.
    """

    NAME = "pairlink"

    def __init__(self, address: str | None, warn: Callable[[str, str], None], *, run: str) -> None:
        self._addresses = pair_addresses(address)
        super().__init__(f"{self._addresses[0]},{self._addresses[1].rpartition(':')[2]}", warn)
        self._taken = 0
        self._run = run
        self._held: deque[Told | Mark] = deque()
        self._held_bytes = 0
        self._begin: Logs | None = None
        self._last: Logs = {}
        self._sender: PairedSender | None = None
        self._sent = self._dropped = 0
        self._complete = False

    def delivery(self) -> Delivery:
        """How things stand; ``delivered`` is what was handed to the socket for a receiver that was there."""
        lost = sum(self._sender.dropped[why] for why in LOSSES) if self._sender is not None else 0
        left = sum(not isinstance(item, Mark) for item in list(self._held)) + len(self.queue)
        return Delivery(self._sent - lost, left, self._dropped + lost, self._complete)

    def _give_up(self) -> None:
        """Nothing is sent any more: hold what comes within the bound, and let nobody wait."""
        self._take()
        for item in self._held:
            if isinstance(item, Mark):
                item.settle(delivered=False)

    def _open(self) -> PairedSender | None:
        while self._closing is None:
            sender = PairedSender(sender_address=self._addresses[0], receiver_address=self._addresses[1])
            try:
                sender.setup()
                return sender
            except (LinkError, AddressError) as error:
                self._warn("pair", f"{error}; trying again until it is free")
            until = time.monotonic() + AGAIN
            while self._closing is None and time.monotonic() < until:
                self._take()
                time.sleep(LOOK)
        return None

    def _converse(self) -> None:
        self._sender = self._open()
        if self._sender is not None:
            self._talk(self._sender)

    def _talk(self, sender: PairedSender) -> None:
        met = False
        try:
            while not self._is_over():
                self._take()
                if met and not sender.has_peer:
                    met = False  # the next receiver may be another program: it is greeted, and told what has begun
                if met:
                    self._send(sender)
                    time.sleep(LOOK)
                elif sender.send_handshake(ASK):
                    met = True
                    if self.greeted.is_set() and self._begin is not None:
                        sender.send_dict(self._begin)
                    self.greeted.set()
        finally:
            sender.close(LINGER)
            self._complete = met and not self._held and not sender.dropped["linger"]

    def _is_over(self) -> bool:
        if self._closing is None:
            return False
        if self.greeted.is_set() and not self._held and not self.queue:
            return True
        return time.monotonic() - self._closing > (DRAIN if self.greeted.is_set() else NOBODY)

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
                self._held.append(record)
                continue
            for told in self._tell(record):
                self._held.append(told)
                self._held_bytes += 0 if told[1] is None else told[1].nbytes
            if len(self._held) > MAX_HELD or self._held_bytes > MAX_HELD_BYTES:
                self._make_room()
        self.probe.look(self._taken, time.monotonic())

    def _make_room(self) -> None:
        """Give up the oldest batches and samples, a quarter at a time; never what begins, ends or is an epoch."""
        kept: deque[Told | Mark] = deque()
        count, size = len(self._held), self._held_bytes
        for item in self._held:
            needed = count > MAX_HELD * 3 // 4 or size > MAX_HELD_BYTES * 3 // 4
            if needed and not isinstance(item, Mark) and item[0]["type"] in ("batch", "sample"):
                count -= 1
                size -= 0 if item[1] is None else item[1].nbytes
                self._dropped += 1
            else:
                kept.append(item)
        self._held, self._held_bytes = kept, size

    def _send(self, sender: PairedSender) -> None:
        while self._held:
            item = self._held.popleft()
            if isinstance(item, Mark):
                item.settle(delivered=True)
                continue
            header, array = item
            try:
                if array is None:
                    sender.send_dict(header)
                else:
                    self._held_bytes -= array.nbytes
                    sender.send_array(header, array)
                    self.probe.sent += array.nbytes
                self._sent += 1
            except EncodeError as error:
                self._dropped += 1
                self._warn(f"refused {header['type']}", str(error))

    def _tell(self, record: Row | Event) -> Iterator[Told]:
        """The record as this wire has it; notes, alerts, settings and gauges have no word here."""
        if isinstance(record, tuple):
            _, step, epoch, batch, per, values = record
            if per != "time":
                logs = {plain_text(name): value for name, value in values.items()}
                self._last = logs
                yield self._message(per, _whole(step), _whole(epoch), _whole(batch), logs), None
        elif isinstance(record, RunStarted):
            self._begin = self._message("train_begin")
            yield self._begin, None
        elif isinstance(record, Sample):
            for role, array in record.arrays.items():
                header = self._message("sample", record.step, record.epoch) | {"name": record.name, "role": role}
                # A small float of another package than numpy (isbuiltin 2) has no name that the seed could read.
                yield header, array.astype(np.float32) if array.dtype.isbuiltin == 2 else array
        elif isinstance(record, RunEnded):
            ended = {"status": record.status, "reason": record.reason}
            yield self._message("train_end", record.step, logs=self._last) | ended, None

    def _message(
        self,
        kind: str,
        step: int | None = None,
        epoch: int | None = None,
        batch: int | None = None,
        logs: Logs | None = None,
    ) -> Logs:
        return {"type": kind, "run": self._run, "epoch": epoch, "batch": batch, "step": step, "logs": logs or {}}


def _whole(value: object) -> int | None:
    try:
        return None if value is None else as_whole(value)
    except TypeError:
        return None

"""Where a run's records go, on whichever wire: the queue, the thread that takes from it, and how both end.

It knows no wire; ``uplink.py`` and its two siblings speak one each.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fitwire.events import Event
from fitwire.protocol.commands import Request
from fitwire.train.meter import Probe
from fitwire.train.packer import Row
from fitwire.train.pending import LateRow
from fitwire.transport.process import spawn

__all__ = ["DRAIN", "LOOK", "NOBODY", "Delivery", "Mark", "Outlet", "Record", "Steered"]

LOOK = 0.020
"""Seconds between two looks at what was appended: no eye sees 20 ms, and 100 rows at a time pack cheapest."""
DRAIN = 2.0
"""Seconds that closing waits for a hub that is there."""
NOBODY = 0.3
"""Seconds that closing waits when no hub has answered yet: enough for one that is."""


@dataclass(slots=True)
class Mark:
    """Not a record: a place in the queue, told of when all before it is in the hub's store.

    Attributes:
        reached: Set when that is so, or when it never will be.
        delivered: Which of the two.
        heads: Per lane, the sequence number to be reached; None while the mark is in the queue.
    """

    reached: threading.Event
    delivered: bool = False
    heads: list[int] | None = None

    def settle(self, delivered: bool) -> None:
        """Tell whoever waits."""
        self.delivered = delivered
        self.reached.set()


Record = Row | LateRow | Event | Mark


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a run's records.

    Attributes:
        delivered: Records the hub has committed, or the receiver was sent.
        left: Records accepted and not delivered.
        dropped: Records given up under pressure.
        complete: Whether the other end has confirmed the end.
        kept: Of those left, how many are in the journal.
        journal: Its folder; empty when there is none.
    """

    delivered: int
    left: int
    dropped: int
    complete: bool
    kept: int = 0
    journal: str = ""


class Steered(Protocol):
    """Who is told of commands, on the I/O thread."""

    def refusal(self, request: Request) -> str | None:
        """Why a command cannot be carried out; None when it can."""
        ...

    def take(self, request: Request, refusal: str | None) -> None:
        """Write down that a command came; carry it out at the next boundary, unless it was refused."""
        ...


class Outlet:
    """A thread that tells what the training thread appends; each wire is a class of its own.

    Args:
        place: Its address, for people.
        warn: Told of what the user should know: ``warn(kind, sentence)``.

    Attributes:
        queue: The training thread appends here, and does nothing else.
        hurry: Set with what should not wait long to be taken; a flag that is looked at, nobody is woken.
        greeted: Set when the other end has answered.
        place: As passed.
        probe: Takes the measure of what it costs.
    """

    NAME = "outlet"

    def __init__(self, place: str, warn: Callable[[str, str], None]) -> None:
        self.queue: deque[Record] = deque()
        self.probe = Probe()
        self.hurry = False
        self.greeted = threading.Event()
        self.place = place
        self._warn = warn
        self._closing: float | None = None
        self._status = "finished"
        self._thread: threading.Thread | None = None
        # Not join: one that Ctrl-C ended takes the thread for stopped ever after (Python 3.11).
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to greet and send; returns at once."""
        self._thread = spawn(self.NAME, self._work)

    def close(self, status: str) -> Delivery:
        """Send what is left, say goodbye, stop, within about two seconds; again, to wait for what is left of them."""
        if self._closing is None:
            self._status = status
            self._closing = time.monotonic()
        if self._thread is not None:
            self._over.wait(max(0.0, self._closing + DRAIN + 1.0 - time.monotonic()))
        return self.delivery()

    def delivery(self) -> Delivery:
        """How things stand."""
        raise NotImplementedError

    def offer(self, nbytes: int) -> bool:
        """Whether there is room for a sample of that size, which will then be appended."""
        return True  # what keeps nothing has room

    def _work(self) -> None:
        try:
            self._converse()
        except Exception as error:  # a fault of ours must not end silently, nor reach the training
            self._warn("uplink", f"fitwire stopped sending: {type(error).__name__}: {error}")
        finally:
            # Nothing is sent from here on; what still comes must not pile up.
            while self._closing is None:
                self._give_up()
                time.sleep(LOOK)
            self._give_up()
            self._put_away()
            self._over.set()

    def _converse(self) -> None:
        """Take and tell, until it is over."""
        raise NotImplementedError

    def _give_up(self) -> None:
        """Nothing is sent any more: take what came meanwhile, and let nobody wait for it."""
        raise NotImplementedError

    def _put_away(self) -> None:
        """The last that the thread does."""

"""The hub's drainer: delivers to it, by courier, what trainers of this machine left that are gone.

A thread of its own beside the hub's, which it talks to through the socket like anybody else. It looks at the journals
of this user; one whose trainer or keeper lives is theirs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fitwire.errors import FitwireError
from fitwire.journal.courier import Delivered, deliver
from fitwire.journal.layout import About, age, find_journals, is_orphan, read_about, read_have
from fitwire.transport.address import Address
from fitwire.transport.process import spawn

__all__ = ["Drainer"]

logger = logging.getLogger("fitwire")

LOOK_EVERY = 2.0
"""Seconds between two looks at the folder of journals."""
PATIENCE = 10.0
"""Seconds without progress after which a journal is left for another time."""
AGAIN = (4.0, 600.0)
"""First and longest pause after a delivery that failed, seconds; each is twice the last."""
TELL_AFTER = 3
"""Failures in a row after which it is said, once."""
ELSEWHERE = 60.0
"""Seconds for which the rest of a run is left to the hub that has its beginning."""


@dataclass(slots=True)
class _Failing:
    """A journal that could not be delivered."""

    count: int = 0
    again: float = 0.0


class Drainer:
    """The thread.

    Args:
        address: Of the hub.
        knows: Whether the hub has heard of a run.

    Attributes:
        counts: Journals delivered, records, and failures, by name.
    """

    def __init__(self, address: Address, knows: Callable[[bytes], bool]) -> None:
        self.address, self._knows = address, knows
        self.counts: Counter[str] = Counter()
        self._failing: dict[Path, _Failing] = {}
        self._closing = threading.Event()
        self._thread = spawn("drainer", self._work)

    def close(self) -> None:
        """Stop; what is half delivered goes on from there another time."""
        self._closing.set()
        self._thread.join(2.0)

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                self.look(time.monotonic())
            except Exception:  # a fault of ours must not cost the machine its drainer
                if not self.counts["faults"]:
                    logger.exception("the drainer of the hub at %s goes on after a fault", self.address)
                self.counts["faults"] += 1
            self._closing.wait(LOOK_EVERY)

    def look(self, now: float) -> None:
        """Deliver what is there to be delivered; ``now`` in monotonic seconds."""
        there: set[Path] = set()
        for path in find_journals():
            there.add(path)
            failing = self._failing.get(path)
            if self._closing.is_set() or (failing is not None and now < failing.again):
                continue
            try:
                about = read_about(path)
                if is_orphan(path, about) and self._is_ours(path, about):
                    self._deliver(path, now)
            except FitwireError as error:
                self._failed(path, str(error), now)
        self._failing = {path: failing for path, failing in self._failing.items() if path in there}

    def _is_ours(self, path: Path, about: About) -> bool:
        """Whether it belongs here: another hub that has its beginning gets some time to take the rest."""
        return self._knows(about.sender.run) or not any(read_have(path)) or age(path) > ELSEWHERE

    def _deliver(self, path: Path, now: float) -> None:
        done = deliver(path, self.address, timeout=PATIENCE, stopped=self._closing.is_set)
        self.counts["records"] += done.records
        if self._closing.is_set():
            return
        if done.removed:
            self.counts["journals"] += 1
            self._failing.pop(path, None)
            self._tell(done)
        elif done.records == 0 or done.complete:
            self._failed(path, done.why or "its folder cannot be deleted", now)

    def _tell(self, done: Delivered) -> None:
        lost = f", {done.lost:,} were damaged on disk" if done.lost else ""
        logger.info("took %s records that run %s had left%s", f"{done.records:,}", done.name, lost)

    def _failed(self, path: Path, why: str, now: float) -> None:
        failing = self._failing.setdefault(path, _Failing())
        failing.count += 1
        failing.again = now + min(AGAIN[0] * 2 ** (failing.count - 1), AGAIN[1])
        self.counts["failures"] += 1
        if failing.count == TELL_AFTER:
            logger.warning("cannot deliver the journal %s: %s; `fitwire doctor` lists it", path, why)

"""SLEAP's window without the window: unmodified trainings report to it, and are runs of the hub.

It binds the ports that a LossViewer binds, in a thread. What comes in is told apart by connection, so that two
trainings at once are two runs, and one that dies is told from one that ends: a training that ends says so; one whose
process is gone, or whose connection has closed for good, did not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

from fitwire.errors import AddressInUse, DecodeError
from fitwire.sleap import Word, parse_ports, read_word
from fitwire.transport.address import Address
from fitwire.transport.lossviewer import WindowEnd, is_stopped, trainer_of
from fitwire.transport.process import alive, spawn
from fitwire.watch.sleaprelay import Relay

__all__ = ["Bridge", "open_window"]

LOOK = 0.02
PATIENCE = 10.0
"""Seconds for which a training whose connection has closed may come back, if its process is not known to be gone: one
that was stopped and goes on dials again at once."""
ASK_AFTER = 0.5
"""Seconds between two looks at whether a process lives."""
LEAVING = 0.5
"""Seconds that closing may take to have the hub take what was said."""
MAX_TRAININGS = 64

logger = logging.getLogger("fitwire")


def open_window(progress: str | None, control: str) -> WindowEnd:
    """Bind what a LossViewer binds.

    Raises:
        AddressInUse: One is there, or another program; the message says what can be done.
    """
    try:
        return WindowEnd(progress, control)
    except AddressInUse as taken:
        hint = (
            "a LossViewer of SLEAP's, another watcher with wire sleap, or another program is bound there; close it, or "
            "name other ports, here and in SLEAP's own settings"
        )
        raise AddressInUse(taken.address, hint) from None


class Bridge:
    """Hears SLEAP's trainings and tells the hub of them, until it is closed.

    Args:
        listen: ``tcp://127.0.0.1:9001,9000``: where trainings send to, and where they listen; None for that.
        hub: Where the hub listens.

    Attributes:
        refused: Messages that were none of a trainer's, counted by kind of fault.

    Raises:
        AddressInUse: Somebody else is bound there.
        AddressError: The address cannot be used.
    """

    def __init__(self, listen: str | None, hub: Address) -> None:
        progress, control = parse_ports(listen)
        self.refused: Counter[str] = Counter()
        self._hub = hub
        self._window = open_window(progress, control)
        self._live: dict[int, Relay] = {}
        self._gone: list[tuple[Relay, float]] = []  # whose connection has closed, and since when
        self._parting: list[Relay] = []
        self._asked = 0.0
        self._closing = threading.Event()
        self._thread = spawn("sleapbridge", self._work)

    def close(self) -> None:
        """Let the ports go; trainings go on, unheard."""
        self._closing.set()
        self._thread.join(10.0)

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    self._turn()
                    self._window.wait(LOOK)
                except Exception:  # what a trainer sends, or we get wrong, must not end what a person looks at
                    if not self.refused["fault"]:
                        logger.exception("fitwire goes on hearing SLEAP after a fault")
                    self.refused["fault"] += 1
                    self._closing.wait(ASK_AFTER)
        finally:
            self._leave()
            self._window.close()

    def _leave(self) -> None:
        """Let the hub have what was said."""
        relays = [*self._live.values(), *(relay for relay, _ in self._gone), *self._parting]
        until = time.monotonic() + LEAVING
        while time.monotonic() < until and not all(relay.drained or relay.over for relay in relays):
            for relay in relays:
                relay.turn(self._window)
            time.sleep(LOOK)
        for relay in relays:
            relay.close()

    def _turn(self) -> None:
        for connection, frame in self._window.receive():
            try:
                self._hear(connection, read_word(frame))
            except DecodeError as error:
                if not self.refused[error.kind]:
                    logger.warning("what came at SLEAP's port was no word of a trainer: %s", error)
                self.refused[error.kind] += 1
        self._window.look()
        now = time.monotonic()
        self._look_after(now)
        relays = [*self._live.values(), *(relay for relay, _ in self._gone)]
        for relay in [*relays, *self._parting]:
            relay.alone = sum(not other.training.ended for other in relays) <= 1
            relay.turn(self._window)
        for relay in [relay for relay in self._parting if relay.over]:
            relay.close()
            self._parting.remove(relay)

    def _hear(self, connection: int, word: Word) -> None:
        relay = self._live.get(connection)
        if relay is not None and word.event == "train_begin":
            if not relay.training.ended:
                relay.died("its connection began another training, without having ended this one")
            self._part(connection)
            relay = None
        if relay is None:
            relay = self._come_back(connection, word) or self._begin(connection, word)
        if relay is not None and not relay.training.ended:
            relay.hear(word)

    def _begin(self, connection: int, word: Word) -> Relay | None:
        if word.event == "train_end" or len(self._live) >= MAX_TRAININGS:
            return None
        process = trainer_of(connection)
        relay = self._live[connection] = Relay(word, self._hub, process)
        return relay

    def _come_back(self, connection: int, word: Word) -> Relay | None:
        """A training whose connection had closed, and that goes on over another."""
        if word.event == "train_begin":
            return None
        process = trainer_of(connection) if self._gone else None
        for relay, since in self._gone:
            if relay.process is None or process is None or relay.process == process:
                self._gone.remove((relay, since))
                self._live[connection] = relay
                return relay
        return None

    def _part(self, connection: int) -> None:
        self._parting.append(self._live.pop(connection))

    def _look_after(self, now: float) -> None:
        """See which connections have closed, and whether who had them will come back."""
        for connection in [number for number in self._live if number not in self._window.connected]:
            if self._live[connection].training.ended:
                self._part(connection)
            else:
                self._gone.append((self._live.pop(connection), now))
                self._asked = 0.0
        if now - self._asked < ASK_AFTER:
            return
        self._asked = now
        waiting: list[tuple[Relay, float]] = []
        for relay, since in self._gone:
            stopped = relay.process is not None and is_stopped(relay.process[0])
            since = now if stopped else since  # it dials once it goes on
            why = _verdict(relay, now - since)
            if why:
                relay.died(why)
                self._parting.append(relay)
            else:
                waiting.append((relay, since))
        self._gone = waiting


def _verdict(relay: Relay, silent: float) -> str:
    """Why a training whose connection has closed is no more; empty while it may come back."""
    if relay.process is not None and not alive(*relay.process):
        return f"its process {relay.process[0]} went without saying that training had ended: it crashed or was killed"
    if silent < PATIENCE:
        return ""
    if relay.process is not None:
        return f"it closed its connection without saying that training had ended; its process {relay.process[0]} lives"
    return f"its connection closed without a word that training had ended, and it did not come back in {PATIENCE:g} s"

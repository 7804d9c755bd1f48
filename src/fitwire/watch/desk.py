"""Where a monitor gets what it shows: the hub in this process, a hub elsewhere, or a store without one.

The three answer alike. A :class:`Desk` is the one in use; it may change when a hub leaves and another takes its place.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from fitwire.errors import UnknownRun
from fitwire.events import Sample, decode_events
from fitwire.protocol.blocks import BULK, Identity, decode_message, unpack_frames
from fitwire.transport.address import Address
from fitwire.watch.history import History
from fitwire.watch.hub import Hub, default_store
from fitwire.watch.roster import Roster
from fitwire.watch.store import SampleRef, Store

__all__ = ["Backend", "Desk", "Local", "local_hub", "local_store"]

Found = TypeVar("Found")

LOOK_AGAIN = 0.5
"""Seconds: a change of backend rings no bell of the new one."""


class Backend(Protocol):
    """What a monitor needs: the hub in this process, a hub elsewhere, or a store without one."""

    @property
    def changed(self) -> threading.Condition: ...
    @property
    def revision(self) -> int: ...
    def summaries(self) -> list[dict[str, Any]]: ...
    def summary(self, run: bytes) -> dict[str, Any]: ...
    def history(self, run: bytes) -> History: ...
    def block(self, run: bytes, ref: SampleRef, lane: int) -> bytes: ...
    def close(self) -> None: ...


class Local:
    """The hub of this process, or just its store; reads on the caller's thread with a connection of its own."""

    def __init__(self, roster: Roster, path: os.PathLike[str], hub: Hub | None) -> None:
        self.hub = hub
        self.changed = roster.changed
        self._roster, self._path = roster, path
        self._stores = threading.local()

    @property
    def revision(self) -> int:
        return self._roster.revision

    def summaries(self) -> list[dict[str, Any]]:
        return self._roster.summaries()

    def summary(self, run: bytes) -> dict[str, Any]:
        return self._roster.summary(run)

    def history(self, run: bytes) -> History:
        return self._roster.history(self._store(), run)

    def block(self, run: bytes, ref: SampleRef, lane: int) -> bytes:
        found = self._store().piece(Identity(run, ref.incarnation, ref.rank), lane, ref.seq, 0, 2**31)
        if found is None:
            raise UnknownRun(f"sample {ref.name!r} of step {ref.step} is not in the store any more")
        return found[1]

    def close(self) -> None:
        if self.hub is not None:
            self.hub.close()

    def _store(self) -> Store:
        store = getattr(self._stores, "store", None)
        if store is None:
            store = self._stores.store = Store(self._path, write=False)
        return cast(Store, store)


def local_hub(address: Address, store: str | os.PathLike[str] | None) -> Local:
    hub = Hub(address, store)
    return Local(hub.roster, hub.store_path, hub)


def local_store(store: str | os.PathLike[str] | None) -> Local:
    path = default_store() if store is None else store
    opened = Store(path)  # made if it is not there, so that looking before the first run is no error
    roster = Roster()
    roster.load(opened, time.monotonic() - 3600.0)
    roster.refresh(time.monotonic())
    local = Local(roster, opened.path, None)
    opened.close()
    return local


class Desk:
    """The backend in use, and how to wait on it.

    Args:
        backend: To begin with.

    Attributes:
        closing: Set when the monitor closes; nobody waits any longer.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.closing = threading.Event()
        self._offset = 0  # so that the revision grows across a change of backend

    @property
    def revision(self) -> int:
        """Grows whenever anything changed."""
        return self._offset + self.backend.revision

    def change(self, backend: Backend) -> None:
        """Use another backend from now on."""
        former = self.backend
        with former.changed:
            self._offset = self.revision + 1
            self.backend = backend
            former.changed.notify_all()
        former.close()

    def wait_for(self, look: Callable[[], Found | None], timeout: float | None) -> Found | None:
        """What ``look`` finds, as soon as it is not None; None after ``timeout`` seconds or when closing."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            # Looking may itself wait for a hub's answer, so it is done without the lock.
            seen = self.revision
            found = look()
            left = LOOK_AGAIN if deadline is None else deadline - time.monotonic()
            if found is not None or left <= 0 or self.closing.is_set():
                return found
            backend = self.backend
            with backend.changed:
                if self.revision == seen:
                    backend.changed.wait(min(left, LOOK_AGAIN))

    def ask(self, run: bytes, question: Callable[[History], Found]) -> Found:
        """Ask a run's history, under its lock."""
        backend = self.backend
        history = backend.history(run)
        with backend.changed:
            return question(history)

    def load(self, run: bytes, ref: SampleRef) -> Sample:
        """A sample with its arrays.

        Raises:
            UnknownRun: It is not to be had any more.
        """
        blob = self.backend.block(run, ref, BULK)
        for _, event in decode_events(decode_message(unpack_frames(blob))):
            if isinstance(event, Sample):
                return event
        raise UnknownRun(f"sample {ref.name!r} of step {ref.step} was given up")

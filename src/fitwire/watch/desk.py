"""Where a monitor gets what it shows: the hub in this process, a hub elsewhere, or a store without one.

The three answer alike. A :class:`Desk` is the one in use; it may change when a hub leaves and another takes its place.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fitwire.errors import DecodeError, LinkError, NotOpenError, UnknownRun
from fitwire.events import Sample, decode_events
from fitwire.protocol.blocks import BULK, Identity, decode_message, unpack_frames
from fitwire.protocol.commands import Request
from fitwire.transport.address import Address
from fitwire.transport.process import generation
from fitwire.watch.dispatch import Standing
from fitwire.watch.history import History
from fitwire.watch.hub import Hub, default_store
from fitwire.watch.roster import Roster
from fitwire.watch.store import SampleRef, Store
from fitwire.watch.stored import load_history

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
    def command(self, run: bytes, request: Request, to: Identity | None = None) -> Standing: ...
    def close(self) -> None: ...


class Local:
    """The hub of this process, or just its store.

    Args:
        roster: What is known of the runs.
        path: Of the store; read with a connection of its own, in which threads take turns.
        hub: That keeps the roster up; None when nobody does.
    """

    def __init__(self, roster: Roster, path: Path, hub: Hub | None) -> None:
        self.hub = hub
        self.changed = roster.changed
        self._roster, self._path = roster, path
        self._reading = threading.Lock()
        self._store: Store | None = None
        self._closed = False

    @property
    def revision(self) -> int:
        return self._roster.revision

    def summaries(self) -> list[dict[str, Any]]:
        return self._roster.summaries()

    def summary(self, run: bytes) -> dict[str, Any]:
        return self._roster.summary(run)

    def history(self, run: bytes) -> History:
        held = self._roster.held(run)
        if held is not None:
            return held
        self._roster.summary(run)
        # Not under the roster's lock: trainers would wait for the disk.
        return self._roster.adopt(self._with_store(lambda store: load_history(store, run)))

    def block(self, run: bytes, ref: SampleRef, lane: int) -> bytes:
        sender = Identity(run, ref.incarnation, ref.rank)
        found = self._with_store(lambda store: store.piece(sender, lane, ref.seq, 0, 2**31))
        if found is None:
            raise UnknownRun(f"sample {ref.name!r} of step {ref.step} is not in the store any more")
        return found[1]

    def command(self, run: bytes, request: Request, to: Identity | None = None) -> Standing:
        """Hand a command in, or, again, ask how it stands; see ``Dispatch.stands``.

        Raises:
            LinkError: No hub is there to pass it on.
        """
        if self.hub is None:
            raise LinkError("no hub is there to pass a command on; start one with `fitwire hub`")
        return self.hub.dispatch.stands(run, request, to)

    def close(self) -> None:
        # The reader first: only a connection that writes can tidy up as the last.
        with self._reading:
            self._closed = True
            if self._store is not None:
                self._store.close()
                self._store = None
        if self.hub is not None:
            self.hub.close()

    def _with_store(self, read: Callable[[Store], Found]) -> Found:
        with self._reading:
            if self._closed:
                raise NotOpenError("this monitor was closed; what it had not read before is to be had from another")
            if self._store is None:
                self._store = Store(self._path, write=False)
            return read(self._store)


def local_hub(address: Address, store: str | os.PathLike[str] | None) -> Local:
    """Become the hub.

    Raises:
        AddressInUse: There is one, or another program listens there.
        StoreError: The database cannot be opened.
    """
    hub = Hub(address, store)
    return Local(hub.roster, hub.store_path, hub)


def local_store(store: str | os.PathLike[str] | None) -> Local:
    """Read what an earlier hub left; nothing when there was none.

    Raises:
        StoreError: The database cannot be read.
    """
    path = Path(default_store() if store is None else store)
    roster = Roster()
    local = Local(roster, path, None)
    if path.exists():
        opened = Store(path, write=False)
        try:
            # Long ago: what had not ended then is lost.
            roster.load(opened, time.monotonic() - 3600.0)
        finally:
            opened.close()
        roster.refresh(time.monotonic())
    return local


class Desk:
    """The backend in use, and how to wait on it.

    Args:
        backend: To begin with.

    Attributes:
        closing: Set when the monitor closes; nobody waits any longer.
        client: Who asks for things here: 32 hexadecimal digits.
        numbers: Of the commands that are asked here.
    """

    def __init__(self, backend: Backend) -> None:
        self.closing = threading.Event()
        self.client = secrets.token_hex(16)
        self.numbers = itertools.count(1)
        self._generation = generation()
        self._now = (0, backend)  # with an offset, so that the revision grows across a change of backend

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that opened it: the threads, and maybe a lock, stayed there."""
        return self._generation != generation()

    @property
    def backend(self) -> Backend:
        """The one in use.

        Raises:
            NotOpenError: In a forked child.
        """
        if self.forked:
            raise NotOpenError("a monitor does not cross a fork: open one in this process")
        return self._now[1]

    @property
    def revision(self) -> int:
        """Grows whenever anything changed."""
        offset, backend = self._now
        return offset + backend.revision

    def change(self, backend: Backend) -> None:
        """Use another backend from now on."""
        former = self._now[1]
        with former.changed:
            self._now = (self.revision + 1, backend)
            former.changed.notify_all()
        former.close()

    def close(self) -> None:
        """Nobody waits any longer; the backend is left."""
        self.closing.set()
        if self.forked:
            return
        backend = self._now[1]
        with backend.changed:
            backend.changed.notify_all()
        backend.close()

    def wait_for(self, look: Callable[[], Found | None], timeout: float | None) -> Found | None:
        """What ``look`` finds, as soon as it is not None; None after ``timeout`` seconds or when closing."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            # Looking may itself wait for a hub's answer, so it is done without the lock.
            backend, seen = self.backend, self.revision
            found = look()
            left = LOOK_AGAIN if deadline is None else deadline - time.monotonic()
            if found is not None or left <= 0 or self.closing.is_set():
                return found
            with backend.changed:
                if self.revision == seen and not self.closing.is_set():
                    backend.changed.wait(min(left, LOOK_AGAIN))

    def history(self, run: bytes) -> tuple[Backend, History]:
        """A run's history and whose it is; whoever reads it holds that one's lock."""
        while True:
            backend = self.backend
            try:
                return backend, backend.history(run)
            except LinkError:
                if backend is self._now[1]:
                    raise
                # The hub left and another has taken its place meanwhile.

    def ask(self, run: bytes, question: Callable[[History], Found]) -> Found:
        """Ask a run's history, under its lock."""
        backend, history = self.history(run)
        with backend.changed:
            return question(history)

    def load(self, run: bytes, ref: SampleRef) -> Sample:
        """A sample with its arrays.

        Raises:
            UnknownRun: It is not to be had any more.
            LinkError: The hub did not send it.
        """
        while True:
            backend = self.backend
            try:
                blob = backend.block(run, ref, BULK)
                break
            except LinkError:
                if backend is self._now[1]:
                    raise
        try:
            for seq, event in decode_events(decode_message(unpack_frames(blob))):
                if isinstance(event, Sample) and seq == ref.seq:
                    return event
        except DecodeError as error:
            raise UnknownRun(f"sample {ref.name!r} of step {ref.step} is spoilt in the store: {error}") from error
        raise UnknownRun(f"sample {ref.name!r} of step {ref.step} was given up")

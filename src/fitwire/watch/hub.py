"""The hub: many sources and viewers on one socket; what a source sends is stored first, then acknowledged.

One thread owns the socket, the machines and the writing end of the store. It never waits for a viewer: those ask, and
ask again. Other threads of the process read through :attr:`Hub.roster`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitwire.errors import AddressInUse, DecodeError, StoreError
from fitwire.events import Sample, decode_events
from fitwire.protocol.blocks import (
    BULK,
    VERSION,
    Block,
    Buffer,
    Identity,
    Kind,
    Message,
    decode_message,
    encode_message,
)
from fitwire.protocol.sink import Sink, reject
from fitwire.protocol.source import BEAT
from fitwire.transport.address import Address, data_folder
from fitwire.transport.process import FileLock, alive, host_key, spawn
from fitwire.transport.zmq import Router, Sent
from fitwire.watch.answers import Question, answer, parse_question
from fitwire.watch.history import sample_ref
from fitwire.watch.roster import Roster
from fitwire.watch.store import SampleRef, Store

__all__ = ["Hub", "default_store", "take_address"]

logger = logging.getLogger("fitwire")

LOOK = 0.020
"""Longest sleep of the thread: a held question is looked at again this often."""
AT_ONCE = 2000
"""Messages taken in one look, so that acknowledgements go out in between."""
BYTES_AT_ONCE = 16 * 2**20
LOOK_AFTER = 1.0
"""Seconds between two looks at trainers that have gone silent."""
SAVE_EVERY = 1.0
"""Seconds between two writings of what changed in the list of runs; their blocks are written at once."""
STORE_AGAIN = 1.0
"""Seconds before a store that refused is tried again."""
MAX_SOURCES = 4096
MAX_QUESTIONS = 4096


def default_store() -> Path:
    """The user's own store on this machine."""
    return data_folder() / "store.sqlite3"


def take_address(address: Address) -> FileLock | None:
    """Take the right to be the hub at a Unix socket; None when somebody holds it.

    libzmq would unlink and steal a living socket's path, so the lock beside it decides, and is held for life.
    """
    if address.path is None:
        raise ValueError("only a Unix socket has a lock")
    address.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(address.path.with_name(address.path.name + ".lock"))
    if not lock.take():
        return None
    if _is_listened_at(address.path):  # by no hub of this machine: ssh, say, which forwards another's
        lock.release()
        return None
    return lock


def _is_listened_at(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


@dataclass(slots=True)
class _Link:
    """One source as the hub sees it."""

    sink: Sink
    peer: bytes
    hello: dict[str, Any]
    up: bool = True
    looked: float = 0.0
    bye: bool = False


class Hub:
    """Gathers what trainers say, in this process, until it is closed.

    Args:
        address: To listen at.
        store: Path of the database; None for the user's own.

    Attributes:
        roster: What is known of all runs, for other threads.
        counts: Messages, blocks, faults and so on, by name.

    Raises:
        AddressInUse: There is a hub already, or another program listens there.
        StoreError: The database cannot be opened.
    """

    def __init__(self, address: Address, store: str | os.PathLike[str] | None = None) -> None:
        self.address = address
        self.roster = Roster()
        self.counts: Counter[str] = Counter()
        self.store_path = Path(store) if store is not None else default_store()
        self._lock = take_address(address) if address.path is not None else None
        if address.path is not None and self._lock is None:
            raise AddressInUse(
                address.text, "a hub is there already; look with `fitwire watch`, or choose another path"
            )
        self._links: dict[tuple[bytes, int], _Link] = {}
        self._peers: dict[bytes, tuple[bytes, int]] = {}
        self._questions: list[Question] = []
        self._fresh: list[tuple[Block, Message]] = []  # arrived and not yet stored
        self._store_at = self._saved = -1e9
        self._closing = threading.Event()
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._host = host_key()[:256]
        self._thread = spawn("hub", self._work)
        self._opened.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def running(self) -> bool:
        """Whether it is at work: not closed, and not stopped by a fault."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop to listen; what was stored stays, and trainers go on and come back to the next hub."""
        self._closing.set()
        self._thread.join(5.0)

    # -- the thread

    def _work(self) -> None:
        try:
            self._store = Store(self.store_path)
            try:
                self._router = Router(self.address)
            except BaseException:
                self._store.close()
                raise
        except BaseException as error:
            self._failure = error
            if self._lock is not None:
                self._lock.release()
            self._opened.set()
            return
        try:
            self.roster.load(self._store, time.monotonic())
            self._opened.set()
            while not self._closing.is_set():
                self._turn(time.monotonic())
                self._router.wait(LOOK)
            self._turn(time.monotonic())
        except Exception:
            logger.exception("the hub at %s stopped", self.address)
        finally:
            self._opened.set()
            self._router.close()
            self._save_summaries()
            self._store.close()
            if self._lock is not None:
                self._lock.release()

    def _turn(self, now: float) -> None:
        size = 0
        for _ in range(AT_ONCE):
            found = self._router.receive()
            if found is None:
                break
            peer, frames = found
            size += sum(map(len, frames))
            try:
                self._receive(peer, frames, now)
            except DecodeError as error:
                self.counts[f"bad {error.kind}"] += 1
            if size > BYTES_AT_ONCE:
                break
        self._keep(now)
        for link in list(self._links.values()):
            self._serve(link, now)
        self.roster.refresh(now)
        self._answer(now)
        if now - self._saved >= SAVE_EVERY:
            self._saved = now
            self._save_summaries()

    def _receive(self, peer: bytes, frames: list[bytes], now: float) -> None:
        self.counts["messages"] += 1
        message = decode_message(frames)
        if message.kind == Kind.HELLO:
            if message.body.get("role") == "viewer":
                self._greet_viewer(peer, message)
            else:
                self._greet_source(peer, message, frames, now)
            return
        if message.kind in (Kind.RUNS, Kind.FETCH):
            if len(self._questions) < MAX_QUESTIONS:
                self._questions.append(parse_question(peer, message, now))
            return
        key = self._peers.get(peer)
        link = self._links.get(key) if key is not None else None
        if link is None or link.peer != peer or link.sink.sender != message.sender:
            # A source that talks on after the hub was restarted: it greets again.
            self._send(peer, reject(message.sender, "unknown"))
            return
        self._look(link, now)
        link.sink.receive(message, frames, now)

    def _greet_viewer(self, peer: bytes, message: Message) -> None:
        body = {"nonce": message.body.get("nonce"), "beat": BEAT, "role": "hub"}
        self._send(peer, encode_message(Message(Kind.WELCOME, body=body)))

    def _greet_source(self, peer: bytes, message: Message, frames: list[bytes], now: float) -> None:
        sender, hello = message.sender, message.body
        versions = hello.get("versions")
        if not isinstance(versions, list) or VERSION not in versions:
            self._send(peer, reject(sender, "version", versions=[VERSION]))
            return
        if sender.run == bytes(16):
            raise DecodeError("hello", "a source without a run")
        key = (sender.run, sender.rank)
        link = self._links.get(key)
        newest = link.sink.sender.incarnation if link else self._store.newest_incarnation(*key)
        if sender.incarnation < newest or (link and self._is_another(link, sender, hello)):
            self._send(peer, reject(sender, "superseded", newer=newest))
            return
        if link is None or sender.incarnation > newest:
            if link is not None:
                self._send(link.peer, reject(link.sink.sender, "superseded", newer=sender.incarnation))
                self._peers.pop(link.peer, None)
            elif len(self._links) >= MAX_SOURCES:
                self._send(peer, reject(sender, "busy"))
                return
            have = [self._store.have(sender, lane) for lane in (0, BULK)]
            link = self._links[key] = _Link(Sink(sender, have), peer, hello)
        self._peers.pop(link.peer, None)
        self._peers[peer] = key
        link.peer, link.hello, link.up, link.bye = peer, hello, True, False
        self.roster.joined(self._store, sender, hello, now)
        link.sink.receive(message, frames, now)

    def _is_another(self, link: _Link, sender: Identity, hello: dict[str, Any]) -> bool:
        """Whether a second process claims to be the same incarnation: its numbers would collide with the first's."""
        if sender != link.sink.sender:
            return False
        same = ("pid", "host_key", "pid_started")
        return any(hello.get(word) != link.hello.get(word) for word in same)

    # -- storing

    def _keep(self, now: float) -> None:
        """Store what arrived, then acknowledge it; a store that refuses is tried again, and credit holds the rest."""
        fresh = self._fresh
        for link in self._links.values():
            fresh.extend(link.sink.take())
        if not fresh or now < self._store_at:
            return
        try:
            self._store.commit([block for block, _ in fresh], list(self._samples_in(fresh)))
        except StoreError as error:
            if not self.counts["store refused"]:
                logger.error("%s; trainers keep what it does not take", error)
            self.counts["store refused"] += 1
            self._store_at = now + STORE_AGAIN
            return
        self._fresh = []
        self.counts["blocks"] += len(fresh)
        done: dict[tuple[bytes, int], list[Block]] = {}
        with self.roster.changed:
            for block, message in fresh:
                history = self.roster.history(self._store, block.sender.run)
                try:
                    history.add(message, block.count)
                except DecodeError as error:
                    self.counts[f"bad {error.kind}"] += 1
                self.roster.told(block.sender, now)
                done.setdefault((block.sender.run, block.sender.rank), []).append(block)
            self.roster.bump()
        for key, blocks in done.items():
            link = self._links.get(key)
            if link is not None:
                link.sink.committed([b for b in blocks if b.sender == link.sink.sender], now)

    def _samples_in(self, fresh: list[tuple[Block, Message]]) -> Any:
        for block, message in fresh:
            if block.lane != BULK:
                continue
            try:
                for seq, event in decode_events(message, arrays=False):
                    if isinstance(event, Sample):
                        ref: SampleRef = sample_ref(block.sender.incarnation, seq, event)
                        yield block.sender.run, ref
            except DecodeError:
                continue  # counted when its history takes it

    def _save_summaries(self) -> None:
        lines = self.roster.unsaved()
        if lines:
            try:
                self._store.commit([], [], lines)
            except StoreError:
                self.counts["store refused"] += 1

    # -- speaking

    def _send(self, peer: bytes, frames: list[Buffer]) -> Sent:
        sent = self._router.send(peer, frames)
        if sent is not Sent.YES:
            self.counts[f"peer {sent.value}"] += 1
        return sent

    def _serve(self, link: _Link, now: float) -> None:
        sink = link.sink
        for message in sink.due(now):
            if self._send(link.peer, message) is Sent.GONE and link.up:
                link.up = False
                self.roster.link(sink.sender, now, connected=False)
        if sink.complete and not link.bye:
            link.bye = True
            self.roster.completed(sink.sender)
        if now - link.looked >= LOOK_AFTER and now - sink.heard >= LOOK_AFTER and not link.bye:
            link.looked = now
            self._ask_after(link, now)
        if link.bye and not link.up:
            self._forget(link)

    def _look(self, link: _Link, now: float) -> None:
        if not link.up:
            link.up = True
            self.roster.link(link.sink.sender, now, connected=True)

    def _ask_after(self, link: _Link, now: float) -> None:
        """A silent trainer: is its connection up, is its process there?"""
        sender, hello = link.sink.sender, link.hello
        if link.up and self._send(link.peer, encode_message(Message(Kind.PING, sender, body={"id": 0}))) is Sent.GONE:
            link.up = False
            self.roster.link(sender, now, connected=False)
        pid, born = hello.get("pid"), hello.get("pid_started")
        if not link.up and hello.get("host_key") == self._host and type(pid) is int and 0 < pid < 2**31:
            started = float(born) if isinstance(born, (int, float)) else None
            if not alive(pid, started):
                self.roster.link(sender, now, connected=False, gone=True)

    def _forget(self, link: _Link) -> None:
        key = (link.sink.sender.run, link.sink.sender.rank)
        self._links.pop(key, None)
        self._peers.pop(link.peer, None)

    def _answer(self, now: float) -> None:
        held: list[Question] = []
        for question in self._questions:
            messages = answer(question, self.roster, self._store, now)
            if messages is None:
                held.append(question)
                continue
            for frames in messages:
                if self._send(question.peer, frames) is not Sent.YES:
                    break
        self._questions = held

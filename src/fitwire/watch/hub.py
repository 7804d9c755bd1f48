"""The hub: many sources and viewers on one socket; what a source sends is stored first, then acknowledged.

One thread owns the socket, the machines and the writing end of the store. It never waits for a viewer: those ask, and
ask again. Other threads of the process read through :attr:`Hub.roster`. Longer than most files here: what a turn of the
thread does stands on one page.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitwire.errors import AddressInUse, DecodeError, StoreError, UnknownRun
from fitwire.events import Sample, decode_events
from fitwire.protocol.blocks import (
    BULK,
    LANES,
    VERSION,
    Block,
    Buffer,
    Identity,
    Kind,
    Message,
    decode_message,
    encode_message,
)
from fitwire.protocol.room import Room
from fitwire.protocol.sink import Sink, reject
from fitwire.protocol.source import BEAT
from fitwire.transport.address import Address, data_folder, is_listened_at
from fitwire.transport.process import FileLock, alive, host_key, spawn
from fitwire.transport.zmq import Router, Sent
from fitwire.watch.answers import Question, answer, parse_question, refuse
from fitwire.watch.dispatch import Dispatch
from fitwire.watch.drain import Drainer
from fitwire.watch.history import sample_ref
from fitwire.watch.roster import Roster
from fitwire.watch.states import State
from fitwire.watch.store import End, SampleRef, Store

__all__ = ["Hub", "default_store", "take_address"]

logger = logging.getLogger("fitwire")

LOOK = 0.020
"""Longest sleep of the thread: a held question is looked at again this often."""
HURRY = 0.001
"""The same while an earlier hub's unfinished runs are still to be read."""
AT_ONCE = 2000
"""Messages taken in one look, so that acknowledgements go out in between."""
BYTES_AT_ONCE = 3 * 2**20
"""The same in bytes: less than half of what one source may have under way."""
ANSWERED_AT_ONCE = 8 * 2**20
"""Bytes of answers in one look: viewers wait for each other, trainers do not wait for viewers."""
GATHER = 0.005
"""Seconds from one look to the next while many small messages come: each look is a transaction, and costs as much as
tens of messages."""
FEW_BYTES = 2**18
"""What comes in one look while nothing large is under way, which is not to wait for its acknowledgement."""
SWEEP = 0.050
"""Seconds between two looks at sources that said nothing."""
LOOK_AFTER = 1.0
"""Seconds between two looks at trainers that have gone silent."""
FORGET_AFTER = 60.0
"""Seconds without a connection after which no place is kept for a source; it greets when it comes back."""
SAVE_EVERY = 1.0
"""Seconds between two writings of what changed in the list of runs; their blocks are written at once."""
COMMIT = 0.5
"""Seconds that storing in one go should take: a trainer that hears nothing for ten takes the hub for dead."""
STORE_AGAIN = 1.0
"""Seconds before a store that refused is tried again."""
MAX_SOURCES = 4096
MAX_QUESTIONS = 4096
MAX_ASKED = 256
"""Questions of one viewer that may be open."""
WHO = ("pid", "host_key", "pid_started")
"""What a hello says of its process."""


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
    if is_listened_at(address.path):  # by no hub of this machine: ssh, say, which forwards another's
        lock.release()
        return None
    return lock


_Key = tuple[bytes, int, int]
"""Run and rank; and of a courier the incarnation, else 0: it takes nobody's place."""


@dataclass(slots=True)
class _Link:
    """One source as the hub sees it: a trainer, or a courier that delivers what a dead one left."""

    sink: Sink
    peer: bytes
    courier: bool = False
    who: dict[str, Any] = field(default_factory=dict[str, Any])
    up: bool = True
    present: bool = False
    down_since: float = 0.0
    looked: float = 0.0
    bye: bool = False


def _who(hello: Message) -> dict[str, Any]:
    return {word: value[:256] if isinstance(value := hello.body.get(word), str) else value for word in WHO}


class Hub:
    """Gathers what trainers say, in this process, until it is closed.

    Args:
        address: To listen at.
        store: Path of the database; None for the user's own.
        drain: Whether to take what trainers of this machine left that are gone; see ``watch.drain``.

    Attributes:
        roster: What is known of all runs, for other threads.
        dispatch: Commands on their way to trainings, for other threads.
        counts: Messages, blocks, faults and so on, by name.

    Raises:
        AddressInUse: There is a hub already, or another program listens there.
        StoreError: The database cannot be opened.
    """

    def __init__(self, address: Address, store: str | os.PathLike[str] | None = None, *, drain: bool = True) -> None:
        self.address = address
        self.roster = Roster()
        self.dispatch = Dispatch(self.roster.changed, self.roster.has_command)
        self.counts: Counter[str] = Counter()
        self.store_path = Path(store) if store is not None else default_store()
        self._lock = take_address(address) if address.path is not None else None
        if address.path is not None and self._lock is None:
            raise AddressInUse(
                address.text, "a hub is there already; look with `fitwire watch`, or choose another path"
            )
        self._links: dict[_Key, _Link] = {}
        self._peers: dict[bytes, _Key] = {}
        self._questions: dict[tuple[bytes, int], Question] = {}
        self._asked: Counter[bytes] = Counter()
        self._fresh: list[tuple[Block, Message]] = []  # arrived and not yet stored
        self._portion = AT_ONCE
        self._room = Room()
        self._more_to_read = True
        self._stirred: dict[_Key, None] = {}  # that have something to be told
        self._swept = -1e9
        self._store_at = self._saved = -1e9
        self._closing = threading.Event()
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._host = host_key()[:256]
        self._thread = spawn("hub", self._work)
        try:
            self._opened.wait()
        except BaseException:  # Ctrl-C
            self._closing.set()
            raise
        if self._failure is not None:
            raise self._failure
        self.drainer = Drainer(address, self.roster.knows) if drain else None

    @property
    def running(self) -> bool:
        """Whether it is at work: not closed, and not stopped by a fault."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop to listen; what was stored stays, and trainers go on and come back to the next hub."""
        if self.drainer is not None:
            self.drainer.close()
        self._closing.set()
        self._thread.join(10.0)

    # -- the thread

    def _work(self) -> None:
        try:
            # The address first: whoever finds it taken joins the hub there, and needs no store.
            self._router = Router(self.address)
            try:
                self._store = Store(self.store_path)
                self.roster.load(self._store, time.monotonic(), lazily=True)
            except BaseException:
                self._router.close()
                raise
        except BaseException as error:
            self._failure = error
            self._let_go()
            self._opened.set()
            return
        self._opened.set()
        try:
            while not self._closing.is_set():
                with self._surviving("turn"):
                    began = time.monotonic()
                    size = self._turn(began)
                    self._router.wait(HURRY if self._more_to_read else LOOK)
                    if size < FEW_BYTES:
                        time.sleep(max(0.0, GATHER - (time.monotonic() - began)))
            with self._surviving("turn"):
                self._turn(time.monotonic())
            self.roster.refresh(time.monotonic(), at_once=True)
            self._save_summaries()
        finally:
            self._router.close()
            self._let_go()

    def _let_go(self) -> None:
        store = getattr(self, "_store", None)
        if store is not None:
            store.close()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _surviving(self, what: str) -> Generator[None]:
        """Whatever a peer sends, or the disk does: it is counted, and the hub goes on for the others."""
        try:
            yield
        except Exception as error:
            self._survive(what, error)

    def _survive(self, what: str, error: Exception) -> None:
        if isinstance(error, DecodeError):
            self.counts[f"bad {error.kind}"] += 1
            return
        kind = f"fault {what}"
        if not self.counts[kind]:
            logger.error("the hub at %s goes on after a fault (%s)", self.address, what, exc_info=error)
        self.counts[kind] += 1
        if what == "turn":
            time.sleep(LOOK)

    def _turn(self, now: float) -> int:
        """Take what came, store it, answer; returns the bytes that came and went."""
        size = 0
        for _ in range(AT_ONCE):
            found = self._router.receive()
            if found is None:
                break
            peer, frames = found
            size += sum(map(len, frames))
            try:
                self._receive(peer, frames, now)
            except Exception as error:
                self._survive("message", error)
            if size > BYTES_AT_ONCE:
                break
        self._keep(now)
        if now - self._swept >= SWEEP:
            self._swept = now
            self._stirred = dict.fromkeys(self._links)
        stirred, self._stirred = self._stirred, {}
        for link in [link for key in stirred if (link := self._links.get(key)) is not None]:
            with self._surviving("source"):
                self._serve(link, now)
        with self._surviving("command"):
            self.dispatch.turn(now, self._whom, self._send_command, self._send)
        with self._surviving("roster"):
            self.roster.refresh(now)
        size += self._answer(now)
        with self._surviving("roster"):
            self._more_to_read = self.roster.catch_up(self._store)
        if now - self._saved >= SAVE_EVERY:
            self._saved = now
            self._room.settle()
            self._save_summaries()
        return size

    def _receive(self, peer: bytes, frames: list[Buffer], now: float) -> None:
        self.counts["messages"] += 1
        message = decode_message(frames)
        if message.kind == Kind.HELLO:
            if message.body.get("role") == "viewer":
                self._greet_viewer(peer, message)
            else:
                self._greet_source(peer, message, frames, now)
            return
        if message.kind in (Kind.RUNS, Kind.FETCH):
            self._take_question(parse_question(peer, message, now))
            return
        if message.kind == Kind.COMMAND:
            answered = self.dispatch.asked(peer, message, now)
            if answered is not None:
                self._send(peer, answered)
            return
        key = self._peers.get(peer)
        link = self._links.get(key) if key is not None else None
        if key is None or link is None or link.peer != peer or link.sink.sender != message.sender:
            # A source that talks on after the hub was restarted: it greets again.
            self._send(peer, reject(message.sender, "unknown"))
            return
        self._set_up(link, True, now)
        self._stirred[key] = None
        link.sink.receive(message, frames, now)
        if message.kind == Kind.COMMAND_ACK and not link.courier:
            self.dispatch.acked(message, now)

    def _take_question(self, question: Question) -> None:
        key = (question.peer, question.number)
        if key in self._questions:  # asked again, for want of an answer
            self._questions[key] = question
        elif len(self._questions) < MAX_QUESTIONS and self._asked[question.peer] < MAX_ASKED:
            self._questions[key] = question
            self._asked[question.peer] += 1
        else:
            self.counts["questions refused"] += 1
            self._send(question.peer, refuse(question, "too many questions at once"))

    def _greet_viewer(self, peer: bytes, message: Message) -> None:
        body = {"nonce": message.body.get("nonce"), "beat": BEAT, "role": "hub"}
        self._send(peer, encode_message(Message(Kind.WELCOME, body=body)))

    def _greet_source(self, peer: bytes, message: Message, frames: list[Buffer], now: float) -> None:
        sender, hello = message.sender, message.body
        versions = hello.get("versions")
        if not isinstance(versions, list) or VERSION not in versions:
            self._send(peer, reject(sender, "version", versions=[VERSION]))
            return
        if sender.run == bytes(16):
            raise DecodeError("hello", "a source without a run")
        if hello.get("role") == "courier":
            self._greet_courier(peer, message, frames, now)
            return
        key = (sender.run, sender.rank, 0)
        link = self._links.get(key)
        who = _who(message)
        newest = link.sink.sender.incarnation if link else self._store.newest_incarnation(sender.run, sender.rank)
        if sender.incarnation < newest or (link and self._is_another(link, sender, who)):
            self._send(peer, reject(sender, "superseded", newer=newest))
            return
        if link is None or sender.incarnation > newest:
            if link is not None:
                self._send(link.peer, reject(link.sink.sender, "superseded", newer=sender.incarnation))
                self._forget(link)
            elif len(self._links) >= MAX_SOURCES:
                self._send(peer, reject(sender, "busy"))
                return
            courier = self._links.get((sender.run, sender.rank, sender.incarnation))
            if courier is not None:  # its trainer lives after all
                self._send(courier.peer, reject(sender, "superseded", newer=sender.incarnation))
                self._forget(courier)
            link = self._links[key] = _Link(self._new_sink(sender), peer)
        if self._peers.get(link.peer) == key:
            del self._peers[link.peer]
        self._peers[peer] = key
        link.peer, link.who, link.up, link.bye = peer, who, True, False
        self.roster.joined(self._store, sender, hello, now)
        self._stirred[key] = None
        link.sink.receive(message, frames, now)

    def _greet_courier(self, peer: bytes, message: Message, frames: list[Buffer], now: float) -> None:
        """One that delivers what a dead trainer left: it supersedes nobody, and nobody it, but its own trainer."""
        sender = message.sender
        source = self._links.get((sender.run, sender.rank, 0))
        if source is not None and source.sink.sender == sender:
            self._ask_after(source, now)
            if source.up or source.present:
                self._send(peer, reject(sender, "superseded", newer=sender.incarnation))
                return
            self._forget(source)
        key = (sender.run, sender.rank, sender.incarnation)
        link = self._links.get(key)
        who = _who(message)
        if link is not None and who != link.who:
            self._ask_after(link, now)
            if link.up:  # another courier is at it
                self._send(peer, reject(sender, "superseded", newer=sender.incarnation))
                return
        if link is None and len(self._links) >= MAX_SOURCES:
            self._send(peer, reject(sender, "busy"))
            return
        if link is None:
            link = self._links[key] = _Link(self._new_sink(sender), peer, courier=True)
        if self._peers.get(link.peer) == key:
            del self._peers[link.peer]
        self._peers[peer] = key
        link.peer, link.who, link.up, link.bye = peer, who, True, False
        self.roster.couriered(self._store, sender, message.body, now)
        self._stirred[key] = None
        link.sink.receive(message, frames, now)

    def _new_sink(self, sender: Identity) -> Sink:
        return Sink(sender, [self._store.have(sender, lane) for lane in LANES], room=self._room)

    def _is_another(self, link: _Link, sender: Identity, who: dict[str, Any]) -> bool:
        """Whether a second process claims to be the same incarnation: its numbers would collide with the first's."""
        return sender == link.sink.sender and who != link.who

    # -- storing

    def _keep(self, now: float) -> None:
        """Store what arrived, then acknowledge it; a store that refuses is tried again, and credit holds the rest."""
        for key in self._stirred:
            if (link := self._links.get(key)) is not None:
                self._fresh.extend(link.sink.take())
        if not self._fresh or now < self._store_at:
            return
        fresh, began = self._fresh[: self._portion], time.monotonic()
        if not self._commit([block for block, _ in fresh], list(self._samples_in(fresh))):
            self._store_at = now + STORE_AGAIN
            return
        self._portion_out(len(fresh), time.monotonic() - began)
        del self._fresh[: len(fresh)]
        self.counts["blocks"] += len(fresh)
        done: dict[Identity, list[Block]] = {}
        with self.roster.changed:
            for block, message in fresh:
                try:
                    self.roster.tell(self._store, block, message, now)
                except Exception as error:
                    self._survive("history", error)
                done.setdefault(block.sender, []).append(block)
            self.roster.bump()
        for sender, blocks in done.items():
            for life in (0, sender.incarnation):
                link = self._links.get((sender.run, sender.rank, life))
                if link is not None and link.sink.sender == sender:
                    self._stirred[sender.run, sender.rank, life] = None
                    link.sink.committed(blocks, now)

    def _portion_out(self, blocks: int, took: float) -> None:
        """Adapt how much is stored in one go to how long the store took for so many."""
        if took > COMMIT:
            self._portion = max(1, int(blocks * COMMIT / took))
        elif blocks == self._portion and self._portion < AT_ONCE:
            self._portion *= 2

    def _commit(self, blocks: list[Block], samples: list[tuple[bytes, SampleRef]]) -> bool:
        # With the lines that changed, so that no block lies in the store without its run.
        lines = self.roster.unsaved()
        try:
            self._store.commit(blocks, samples, lines)
        except StoreError as error:
            if not self.counts["store refused"]:
                logger.error("%s; trainers keep what it does not take", error)
            self.counts["store refused"] += 1
            return False
        self.roster.saved(lines)
        return True

    def _samples_in(self, fresh: list[tuple[Block, Message]]) -> Iterator[tuple[bytes, SampleRef]]:
        for block, message in fresh:
            if block.lane != BULK:
                continue
            try:
                for seq, event in decode_events(message, arrays=False):
                    if isinstance(event, Sample):
                        yield block.sender.run, sample_ref(block.sender.incarnation, seq, event)
            except DecodeError:
                continue  # counted when its history takes it

    def _save_summaries(self) -> None:
        if self.roster.unsaved() and time.monotonic() >= self._store_at:
            self._commit([], [])

    # -- speaking

    def _send(self, peer: bytes, frames: list[Buffer]) -> Sent:
        sent = self._router.send(peer, frames)
        if sent is not Sent.YES:
            self.counts[f"peer {sent.value}"] += 1
        return sent

    def _whom(self, run: bytes, rank: int | None) -> Identity | str | None:
        """Which process of a run is there to be asked: rank 0 if it ever spoke, for it speaks for the others."""
        try:
            line = self.roster.summary(run)
        except UnknownRun:  # its training may be about to come
            return None
        if self.roster.is_behind(run):  # it may have told of the command
            return None
        if rank is None and 0 in line["ranks"]:
            rank = 0
        there = [
            link.sink.sender for (whose, number, life), link in self._links.items()
            if whose == run and not life and rank in (None, number) and link.up and not link.bye
        ]  # fmt: skip
        if there:
            return min(there, key=lambda sender: sender.rank)
        state = State(line["state"])
        return f"the run is over: {state}" if state.ended else None

    def _send_command(self, to: Identity, frames: list[Buffer]) -> bool:
        link = self._links.get((to.run, to.rank, 0))
        return link is not None and link.sink.sender == to and self._send(link.peer, frames) is Sent.YES

    def _serve(self, link: _Link, now: float) -> None:
        sink = link.sink
        if sink.complete and not link.bye:
            link.bye = True
            self._keep_end(sink)  # before it is told that all is kept
            self.roster.completed(sink.sender, sink.status)
            self._saved = -1e9  # what is complete is to be so for the next hub too
        for message in sink.due(now):
            if self._send(link.peer, message) is Sent.GONE:
                self._set_up(link, False, now)
        if now - link.looked >= LOOK_AFTER and now - sink.heard >= LOOK_AFTER and not link.bye:
            link.looked = now
            self._ask_after(link, now)
        if not link.up and (link.bye or link.courier or (not link.present and now - link.down_since >= FORGET_AFTER)):
            self._forget(link)

    def _set_up(self, link: _Link, up: bool, now: float) -> None:
        """The transport of a source went up or down, if that is news."""
        if up != link.up:
            link.up, link.present, link.down_since = up, False, now
            if link.courier:  # it is not the trainer whose life is shown
                return
            self.roster.link(link.sink.sender, now, connected=up)

    def _ask_after(self, link: _Link, now: float) -> None:
        """A silent trainer: is its connection up, is its process there?"""
        sender = link.sink.sender
        if link.up and self._send(link.peer, encode_message(Message(Kind.PING, sender, body={"id": 0}))) is Sent.GONE:
            self._set_up(link, False, now)
        pid, born = link.who.get("pid"), link.who.get("pid_started")
        if (
            not link.up
            and not link.courier
            and link.who.get("host_key") == self._host
            and type(pid) is int
            and 0 < pid < 2**31
        ):
            link.present = alive(pid, float(born) if isinstance(born, (int, float)) else None)
            self.roster.link(sender, now, connected=False, gone=not link.present, present=link.present)

    def _keep_end(self, sink: Sink) -> None:
        """What the goodbye said, for ``fitwire verify``."""
        if sink.final is None or sink.digest is None:
            return
        lanes = zip(sink.final, sink.since, sink.digest, strict=True)
        try:
            self._store.end(sink.sender, [End(*numbers, str(sink.status)) for numbers in lanes])
        except StoreError:
            self.counts["ends refused"] += 1

    def _forget(self, link: _Link) -> None:
        self._fresh.extend(link.sink.take())
        sender = link.sink.sender
        key = (sender.run, sender.rank, sender.incarnation if link.courier else 0)
        self._links.pop(key, None)
        if self._peers.get(link.peer) == key:
            del self._peers[link.peer]

    def _answer(self, now: float) -> int:
        """Answer who can be answered; returns the bytes of it."""
        left = ANSWERED_AT_ONCE
        for key, question in list(self._questions.items()):
            if left <= 0:
                break
            with self._surviving("question"):
                size = self._answer_one(question, now)
                if size is None:
                    continue
                left -= size
            self._drop_question(key)
        return ANSWERED_AT_ONCE - left

    def _answer_one(self, question: Question, now: float) -> int | None:
        """Answer; returns the bytes that took, None when the question is held."""
        size = 0
        try:
            messages = answer(question, self.roster, self._store, now)
            if messages is None:
                return None
            for frames in messages:
                size += sum(map(len, frames))
                if self._send(question.peer, frames) is not Sent.YES:
                    break
        except StoreError as error:
            self.counts["store unreadable"] += 1
            self._send(question.peer, refuse(question, str(error)))
        except BaseException:
            self._send(question.peer, refuse(question, "a fault in the hub"))  # else it would be asked again and again
            raise
        return size

    def _drop_question(self, key: tuple[bytes, int]) -> None:
        if self._questions.pop(key, None) is not None:
            self._asked[key[0]] -= 1
            if not self._asked[key[0]]:
                del self._asked[key[0]]

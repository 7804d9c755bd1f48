"""A follower: the same knowledge as the hub's, kept up by asking it.

One thread owns the socket and the viewer's machine. The list of runs is always followed; a run's history from the first
time somebody looks at it, until it has ended. Samples are fetched when they are asked for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, cast

from fitwire.errors import DecodeError, FitwireError, LinkError, UnknownRun
from fitwire.events import MAX_TEXT_BYTES
from fitwire.protocol.blocks import BULK, MAX_BLOCK_BYTES, Buffer, Identity, Kind, Message, decode_json, encode_json
from fitwire.protocol.commands import Pair, Request
from fitwire.protocol.viewer import Asked, Viewer
from fitwire.transport.address import Address
from fitwire.transport.process import spawn
from fitwire.transport.zmq import Dealer
from fitwire.watch.dispatch import Standing
from fitwire.watch.history import History
from fitwire.watch.states import State
from fitwire.watch.store import SampleRef
from fitwire.watch.summary import checked_summary

__all__ = ["Follower"]

logger = logging.getLogger("fitwire")

LOOK = 0.010
SUMMARIES_EVERY = 0.1
"""Seconds between two looks at the list of runs, and before a question is repeated whose answer brought nothing."""
SOON = 0.05
"""Seconds: an answer that brings nothing, and was not held for longer, is no reason to ask at once."""
REFUSED_AGAIN = 1.0
"""Seconds before a question is repeated that the hub could not answer."""
REACHED_AFTER = 1.0
"""Seconds after which a Unix socket that does not even connect is one that a killed hub left behind."""
KEEP_BYTES = 256 * 2**20
"""Samples kept in memory after they were fetched."""
KEEP_COMMANDS = 1000
"""Commands of which it is remembered how they stood."""
KEEP_LOADED = 32
"""Histories of runs that have ended, kept in memory."""

PieceKey = tuple[bytes, int, int, int, int]
"""(run, incarnation, rank, lane, sequence number)"""


@dataclass(slots=True, eq=False)
class _Piece:
    """A block that is being fetched."""

    data: list[Buffer] = field(default_factory=list[Buffer])
    size: int = 0
    whole: bytes | None = None
    error: str = ""

    @property
    def over(self) -> bool:
        return self.whole is not None or bool(self.error)


@dataclass(slots=True, eq=False)
class _Followed:
    """A run that somebody looks at.

    Attributes:
        history: What is known of it.
        current: Whether that was all the hub had when last asked.
        asleep: Whether it has ended: it is asked for again when the list tells of a change.
        refused: Why the hub did not answer.
        hole: First block that did not fit, of the last answer of which none did.
    """

    history: History
    current: bool = False
    asleep: bool = False
    refused: str = ""
    hole: tuple[int, int, int, int] | None = None


class Follower:
    """Joins a hub.

    Args:
        address: Of the hub.
        patience: Seconds to wait for its welcome.

    Attributes:
        changed: Lock of all that is here; notified when anything changed.
        revision: Grows with every change.
        lost: Since when the hub has not been there, on the monotonic clock; None while it is.
        faults: What went wrong here, by kind.

    Raises:
        LinkError: Nobody said welcome in time.
    """

    def __init__(self, address: Address, patience: float = 3.0) -> None:
        self.address = address
        self.changed = threading.Condition(threading.RLock())
        self.revision = 0
        self.lost: float | None = time.monotonic()
        self._viewer = Viewer()
        self.faults = self._viewer.bad
        self._lines: dict[str, dict[str, Any]] = {}
        self._followed: OrderedDict[bytes, _Followed] = OrderedDict()  # by last use
        self._pieces: dict[PieceKey, _Piece] = {}
        self._cache: OrderedDict[PieceKey, bytes] = OrderedDict()
        self._cached = 0
        self._wishes: deque[tuple[float, str, Any]] = deque()
        self._asked: dict[int, tuple[str, Any, float]] = {}
        self._commands: OrderedDict[Pair, Asked | None] = OrderedDict()
        self._since = 0
        self._next_list = 0.0
        self._reached = False
        self._failure: Exception | None = None
        self._listed = threading.Event()
        self._closing = threading.Event()
        self._thread = spawn("follower", self._work)
        try:
            self._await_list(patience)
        except BaseException:
            self.close()
            raise

    def _await_list(self, patience: float) -> None:
        begun = time.monotonic()
        while not self._listed.wait(0.02):
            waited = time.monotonic() - begun
            if self._failure is not None:
                raise self._failure
            left_behind = self.address.path is not None and not self._reached and waited > REACHED_AFTER
            if waited > patience or left_behind:
                raise LinkError(
                    f"no hub answered at {self.address} within {waited:.1f} s; "
                    f"start one with `fitwire hub {self.address}`"
                )

    def close(self) -> None:
        """Leave the hub; whoever waits for it here is told."""
        self._closing.set()
        self._thread.join(5.0)
        with self.changed:
            self.changed.notify_all()

    # -- any thread

    def summaries(self) -> list[dict[str, Any]]:
        """One line a run, newest start first."""
        with self.changed:
            found = [dict(line) for line in self._lines.values()]
        return sorted(found, key=lambda line: (line["started"], line["id"]), reverse=True)

    def summary(self, run: bytes) -> dict[str, Any]:
        """The line of one run.

        Raises:
            UnknownRun: The hub has not told of it.
        """
        with self.changed:
            if run.hex() not in self._lines:
                raise UnknownRun(f"no run {run.hex()} at {self.address}")
            return dict(self._lines[run.hex()])

    def history(self, run: bytes, timeout: float = 10.0) -> History:
        """The history, followed from now on; whoever reads it holds :attr:`changed`.

        Raises:
            UnknownRun: The hub does not know of it.
            LinkError: The hub did not send it in time.
        """
        with self.changed:
            self.summary(run)
            followed = self._followed.get(run)
            if followed is None:
                followed = self._followed[run] = _Followed(History(run))
                self._wish("history", run)
            self._followed.move_to_end(run)
            answered = self.changed.wait_for(
                lambda: followed.current or followed.refused or self._closing.is_set(), timeout
            )
            if followed.current:
                return followed.history
            why = followed.refused or ("was left" if answered else f"did not send the run within {timeout:g} s")
            raise (UnknownRun if why == "no such run" else LinkError)(f"the hub at {self.address}: {why}")

    def block(self, run: bytes, ref: SampleRef, lane: int, timeout: float = 30.0) -> bytes:
        """The packed frames of one block, fetched piece by piece.

        Args:
            run: Whose.
            ref: Which sample is in it.
            lane: Where it lies.
            timeout: Seconds without a piece.

        Raises:
            UnknownRun: The hub does not have it any more.
            LinkError: It did not come in time.
        """
        key = (run, ref.incarnation, ref.rank, lane, ref.seq)
        with self.changed:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                return found
            piece = self._pieces.get(key)
            if piece is None:
                piece = self._pieces[key] = _Piece()
                self._wish("piece", key)
            while not piece.over:
                size = piece.size
                self.changed.wait_for(lambda: piece.over or piece.size != size or self._closing.is_set(), timeout)  # noqa: B023
                if not piece.over and (piece.size == size or self._closing.is_set()):
                    raise LinkError(f"the hub at {self.address} did not send the sample within {timeout:g} s")
        if piece.whole is None:
            raise UnknownRun(f"sample {ref.name!r} of step {ref.step}: {piece.error}")
        return piece.whole

    def command(self, run: bytes, request: Request, to: Identity | None = None) -> Standing:
        """Hand a command in, or, again, ask how it stands; see ``Dispatch.stands``."""
        with self.changed:
            if request.pair not in self._commands:
                self._commands[request.pair] = None
                if len(self._commands) > KEEP_COMMANDS:
                    self._commands.popitem(last=False)
                self._wish("command", (request, to or Identity(run)))
            asked = self._commands[request.pair]
        if asked is None:
            return Standing(to=to)
        answer, went = asked.answer, asked.to if asked.to.incarnation else None
        if answer is None:
            return Standing("held" if went is None else "sent", to=went)
        went = answer.sender if answer.sender.incarnation else went
        refused = answer.kind != Kind.COMMAND_ACK
        return Standing("refused" if refused else str(answer.body["status"]), str(answer.body.get("reason", "")), went)

    def _wish(self, kind: str, key: Any, delay: float = 0.0) -> None:
        self._wishes.append((time.monotonic() + delay, kind, key))

    # -- the thread

    def _work(self) -> None:
        try:
            link = Dealer(self.address)
        except Exception as error:
            self._failure = error
            return
        try:
            while not self._closing.is_set():
                try:
                    self._turn(link, time.monotonic())
                    link.wait(LOOK)
                except Exception:  # what a hub sends, or we get wrong, must not end what a person looks at
                    if not self.faults["fault"]:
                        logger.exception("the monitor at %s goes on after a fault", self.address)
                    self.faults["fault"] += 1
                    self._closing.wait(SUMMARIES_EVERY)
        finally:
            link.close()

    def _turn(self, link: Dealer, now: float) -> None:
        viewer = self._viewer
        for up in link.changes():
            if up:
                self._reached = True
                self._since = 0  # another hub may count anew
                viewer.connected(now)
            else:
                viewer.disconnected()
        while (frames := link.receive()) is not None:
            viewer.receive(frames, now)
        self.lost = None if viewer.joined else now if self.lost is None else self.lost
        for asked in viewer.answered():
            self._take(asked, now)
        if now >= self._next_list and not any(kind == "runs" for kind, *_ in self._asked.values()):
            self._next_list = now + SUMMARIES_EVERY
            self._ask(now, Kind.RUNS, {"since": self._since}, "runs", None)
        for _ in range(len(self._wishes)):
            due, kind, key = self._wishes.popleft()
            if due > now:
                self._wishes.append((due, kind, key))
            elif kind == "history":
                self._ask_history(key, now)
            elif kind == "command":
                self._ask_command(key[0], key[1], now)
            else:
                self._ask_piece(key, now)
        for message in viewer.due(now):
            link.send(message)

    def _ask(self, now: float, kind: Kind, body: dict[str, Any], what: str, key: Any, *buffers: Buffer) -> None:
        self._asked[self._viewer.ask(kind, body, *buffers).number] = (what, key, now)

    def _ask_history(self, run: bytes, now: float) -> None:
        followed = self._followed.get(run)
        if followed is None:
            return
        with self.changed:
            have = [[inc, rank, *heads] for (inc, rank), heads in followed.history.heads.items()]
            since = self._lines[run.hex()]["revision"] if followed.current and run.hex() in self._lines else 0
        text = encode_json({"have": have})
        self._ask(now, Kind.FETCH, {"run": run.hex(), "since": since}, "history", run, text)

    def _ask_piece(self, key: PieceKey, now: float) -> None:
        piece = self._pieces.get(key)
        if piece is not None:
            run, incarnation, rank, lane, seq = key
            place = [incarnation, rank, lane, seq, piece.size]
            self._ask(now, Kind.FETCH, {"run": run.hex(), "piece": place}, "piece", key)

    def _ask_command(self, request: Request, to: Identity, now: float) -> None:
        with self.changed:
            self._commands[request.pair] = asked = self._viewer.command(request, to)
        self._asked[asked.number] = ("command", request.pair, now)

    def _take(self, asked: Asked, now: float) -> None:
        what, key, begun = self._asked.pop(asked.number, ("", None, now))
        message = cast(Message, asked.answer)
        try:
            if what == "runs":
                self._take_runs(message, now)
            elif what == "history":
                self._take_history(message, asked, key, now - begun)
            elif what == "piece":
                self._take_piece(message, key)
            elif what == "command":
                with self.changed:
                    self.changed.notify_all()
        except (FitwireError, KeyError, TypeError, ValueError, IndexError):
            self.faults["answer"] += 1
            if what == "piece":
                self._end_piece(key, None, "the hub's answer makes no sense")
            elif what == "history":
                self._wish("history", key, REFUSED_AGAIN)

    def _take_runs(self, message: Message, now: float) -> None:
        lines = decode_json(message.buffers[0], MAX_TEXT_BYTES)["runs"]
        revision, more = int(message.body["revision"]), bool(message.body.get("more"))
        with self.changed:
            for line in map(checked_summary, lines):
                run = bytes.fromhex(line["id"])
                followed = self._followed.get(run)
                if followed is None or not followed.current:
                    self._lines[run.hex()] = line
                elif followed.asleep and line["revision"] != self._lines[run.hex()]["revision"]:
                    # It comes with the history, in step with it.
                    followed.asleep = False
                    self._wish("history", run)
            self._since = revision
            if lines:
                self._bump()
        if more:
            self._next_list = now
        else:
            self._listed.set()

    def _take_history(self, message: Message, asked: Asked, run: bytes, took: float) -> None:
        followed = self._followed.get(run)
        if followed is None:
            return
        if message.kind != Kind.ACK:
            with self.changed:
                followed.refused = str(message.body.get("reason"))[:500]
                self.changed.notify_all()
            self._wish("history", run, REFUSED_AGAIN)
            return
        told = decode_json(message.buffers[0], MAX_TEXT_BYTES)
        line, more = checked_summary(told["run"]), bool(message.body.get("more"))
        with self.changed:
            news = self._add(followed, asked.blocks, told.get("samples", []))
            followed.refused = ""
            if not more:
                # Not before: a run that has ended is to be seen with its last values.
                news = news or not followed.current or line != self._lines.get(run.hex())
                self._lines[run.hex()] = line
                followed.current = True
                followed.asleep = line["settled"] and State(line["state"]).ended
            if news:
                self._bump()
            if followed.asleep:
                self._let_go()
            else:
                self._wish("history", run, 0.0 if news or more or took > SOON else SUMMARIES_EVERY)

    def _add(self, followed: _Followed, blocks: list[Message], rows: list[Any]) -> bool:
        """Take what an answer holds, in order; returns whether any of it was new."""
        before = followed.history.revision
        records = [block for block in blocks if block.lane != BULK]
        for block in records:
            self._add_block(followed, block, strict=True)
        odd = next((b for b in records if b.seq > followed.history.head(_key(b))[b.lane]), None)
        hole = None if odd is None else (*_key(odd), odd.lane, odd.seq)
        if hole is not None and hole == followed.hole and followed.history.revision == before:
            # The same twice over, so it was not lost on the way: the hub's store lacks what stood before it.
            for block in records:
                self._add_block(followed, block, strict=False)
        followed.hole = hole
        stones = [((*_key(b), b.seq), b) for b in blocks if b.lane == BULK]
        refs = [((ref.incarnation, ref.rank, ref.seq), ref) for ref in map(_ref, rows)]
        for _, item in sorted([*stones, *refs], key=lambda pair: pair[0]):
            if isinstance(item, Message):
                self._add_block(followed, item, strict=False)
            else:
                followed.history.add_sample(item)
        return followed.history.revision != before

    def _add_block(self, followed: _Followed, block: Message, *, strict: bool) -> None:
        if strict and block.seq != followed.history.head(_key(block))[block.lane] + 1:
            return  # else it comes again
        count = int(block.body["to"]) - block.seq + 1 if block.kind == Kind.GAP else int(block.body["n"])
        try:
            followed.history.add(block, count)
        except DecodeError as error:
            self.faults[error.kind] += 1

    def _let_go(self) -> None:
        asleep = [run for run, followed in self._followed.items() if followed.asleep]
        for run in asleep[: max(0, len(asleep) - KEEP_LOADED)]:
            del self._followed[run]

    def _take_piece(self, message: Message, key: PieceKey) -> None:
        piece = self._pieces[key]
        if message.kind != Kind.ACK:
            self._end_piece(key, None, str(message.body.get("reason"))[:500])
            return
        total, data = int(message.body["total"]), message.buffers[0]
        if not 0 < total <= MAX_BLOCK_BYTES or message.body["at"] != piece.size or not 0 < len(data) <= total:
            raise ValueError("a piece out of place")
        with self.changed:
            piece.data.append(data)
            piece.size += len(data)
            self.changed.notify_all()
        if piece.size < total:
            self._wish("piece", key)
        else:
            self._end_piece(key, b"".join(piece.data), "")

    def _end_piece(self, key: PieceKey, whole: bytes | None, error: str) -> None:
        with self.changed:
            piece = self._pieces.pop(key)
            piece.whole, piece.error = whole, error
            piece.data.clear()
            if whole is not None:
                self._cache[key] = whole
                self._cached += len(whole)
                while self._cached > KEEP_BYTES and len(self._cache) > 1:
                    self._cached -= len(self._cache.popitem(last=False)[1])
            self.changed.notify_all()

    def _bump(self) -> None:
        self.revision += 1
        self.changed.notify_all()


def _key(message: Message) -> tuple[int, int]:
    return message.sender.incarnation, message.sender.rank


def _ref(row: list[Any]) -> SampleRef:
    incarnation, rank, seq, name, step, epoch, at, arrays = row
    shapes = {str(n): (str(dtype), tuple(map(int, shape))) for n, (dtype, shape) in arrays.items()}
    return SampleRef(incarnation, rank, seq, name, step, epoch, at, shapes)

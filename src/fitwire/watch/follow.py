"""A follower: the same knowledge as the hub's, kept up by asking it.

One thread owns the socket and the viewer's machine. The list of runs is always followed; a run's history from the first
time somebody looks at it. Samples are fetched when they are asked for.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, cast

from fitwire.errors import DecodeError, LinkError, UnknownRun
from fitwire.events import MAX_TEXT_BYTES
from fitwire.protocol.blocks import MAX_BLOCK_BYTES, Identity, Kind, Message, decode_json
from fitwire.protocol.viewer import Asked, Viewer
from fitwire.transport.address import Address
from fitwire.transport.process import spawn
from fitwire.transport.zmq import Dealer
from fitwire.watch.history import History
from fitwire.watch.store import SampleRef

__all__ = ["Follower"]

LOOK = 0.010
SUMMARIES_EVERY = 0.1
"""Seconds between two looks at the list of runs."""
KEEP_BYTES = 256 * 2**20
"""Samples kept in memory after they were fetched."""


@dataclass(slots=True, eq=False)
class _Piece:
    """A block that is being fetched."""

    data: bytearray
    done: threading.Event
    error: str = ""
    total: int | None = None


class Follower:
    """Joins a hub.

    Args:
        address: Of the hub.
        patience: Seconds to wait for its welcome.

    Attributes:
        changed: Lock of all that is here; notified when anything changed.
        revision: Grows with every change.
        lost: Since when the hub has not been there, on the monotonic clock; None while it is.

    Raises:
        LinkError: Nobody said welcome in time.
    """

    def __init__(self, address: Address, patience: float = 3.0) -> None:
        self.address = address
        self.changed = threading.Condition(threading.RLock())
        self.revision = 0
        self.lost: float | None = time.monotonic()
        self._lines: dict[str, dict[str, Any]] = {}
        self._histories: dict[bytes, History] = {}
        self._current: set[bytes] = set()  # histories that have everything the hub had when last asked
        self._pieces: dict[tuple[Any, ...], _Piece] = {}
        self._cache: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._wishes: deque[tuple[str, Any]] = deque()
        self._since = 0
        self._listed = threading.Event()
        self._closing = threading.Event()
        self._viewer = Viewer()
        self._asked: dict[int, tuple[str, Any]] = {}
        self._thread = spawn("follower", self._work)
        if not self._listed.wait(patience):
            self.close()
            raise LinkError(
                f"no hub answered at {address} within {patience:g} s; start one with `fitwire hub {address}`"
            )

    def close(self) -> None:
        """Leave the hub."""
        self._closing.set()
        self._thread.join(5.0)

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
            LinkError: The hub did not send it in time.
        """
        with self.changed:
            if run not in self._histories:
                self._histories[run] = History(run)
                self._wishes.append(("history", run))
            if not self.changed.wait_for(lambda: run in self._current or self._closing.is_set(), timeout):
                raise LinkError(f"the hub at {self.address} did not send the run within {timeout:g} s")
            return self._histories[run]

    def block(self, run: bytes, ref: SampleRef, lane: int, timeout: float = 30.0) -> bytes:
        """The packed frames of one block, fetched piece by piece.

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
                piece = self._pieces[key] = _Piece(bytearray(), threading.Event())
                self._wishes.append(("piece", key))
        if not piece.done.wait(timeout):
            raise LinkError(f"the hub at {self.address} did not send the sample within {timeout:g} s")
        if piece.error:
            raise UnknownRun(f"sample {ref.name!r} of step {ref.step}: {piece.error}")
        return bytes(piece.data)

    # -- the thread

    def _work(self) -> None:
        link = Dealer(self.address)
        viewer = self._viewer
        next_list = 0.0
        try:
            while not self._closing.is_set():
                now = time.monotonic()
                for up in link.changes():
                    self.lost = None if up else now if self.lost is None else self.lost
                    viewer.connected(now) if up else viewer.disconnected()
                while (frames := link.receive()) is not None:
                    viewer.receive(frames, now)
                for asked in viewer.answered():
                    self._take(asked)
                if now >= next_list and not any(kind == "runs" for kind, _ in self._asked.values()):
                    next_list = now + SUMMARIES_EVERY
                    self._ask(Kind.RUNS, {"since": self._since}, "runs", None)
                while self._wishes:
                    kind, key = self._wishes.popleft()
                    self._ask_history(key) if kind == "history" else self._ask_piece(key)
                for message in viewer.due(now):
                    link.send(message)
                link.wait(LOOK)
        finally:
            link.close()
            with self.changed:
                self.changed.notify_all()

    def _ask(self, kind: Kind, body: dict[str, Any], what: str, key: Any) -> None:
        self._asked[self._viewer.ask(kind, body).number] = (what, key)

    def _ask_history(self, run: bytes) -> None:
        have = [[inc, rank, *heads] for (inc, rank), heads in self._histories[run].heads.items()]
        line = self._lines.get(run.hex())
        since = line["revision"] if line and run in self._current else 0
        self._ask(Kind.FETCH, {"run": run.hex(), "have": have, "since": since}, "history", run)

    def _ask_piece(self, key: tuple[Any, ...]) -> None:
        run, incarnation, rank, lane, first = key
        place = [incarnation, rank, lane, first, len(self._pieces[key].data)]
        self._ask(Kind.FETCH, {"run": run.hex(), "piece": place}, "piece", key)

    def _take(self, asked: Asked) -> None:
        what, key = self._asked.pop(asked.number, ("", None))
        message = cast(Message, asked.answer)
        take = {"runs": self._take_runs, "history": self._take_history, "piece": self._take_piece}.get(what)
        if take is None:
            return
        try:
            take(message, asked, key)
        except (DecodeError, KeyError, TypeError, ValueError, IndexError):
            self._viewer.bad["answer"] += 1
            if what == "piece":
                self._end_piece(key, "the hub's answer makes no sense")
            elif what == "history":
                self._wishes.append(("history", key))

    def _take_runs(self, message: Message, asked: Asked, key: None) -> None:
        lines = decode_json(message.buffers[0], MAX_TEXT_BYTES)["runs"]
        with self.changed:
            for line in lines:
                if bytes.fromhex(line["id"]) not in self._current:  # else it comes with the history, in step with it
                    self._lines[line["id"]] = line
            self._since = int(message.body["revision"])
            if lines:
                self._bump()
        if not message.body.get("more"):
            self._listed.set()

    def _take_history(self, message: Message, asked: Asked, run: bytes) -> None:
        history = self._histories[run]
        told = decode_json(message.buffers[0], MAX_TEXT_BYTES) if message.kind == Kind.ACK else {}
        with self.changed:
            for block in asked.blocks:
                key = (block.sender.incarnation, block.sender.rank)
                if block.seq == history.heads.get(key, [0, 0])[block.lane] + 1:  # else it comes again
                    count = int(block.body["to"]) - block.seq + 1 if block.kind == Kind.GAP else int(block.body["n"])
                    try:
                        history.add(block, count)
                    except DecodeError as error:
                        self._viewer.bad[error.kind] += 1
            for row in told.get("samples", ()):
                arrays = {str(n): (str(d), tuple(map(int, s))) for n, (d, s) in row[7].items()}
                incarnation, rank, seq, name, step, epoch, at = row[:7]
                history.add_sample(SampleRef(incarnation, rank, seq, name, step, epoch, at, arrays))
            if not message.body.get("more"):
                # Not before: a run that has ended is to be seen with its last values.
                if "run" in told:
                    self._lines[run.hex()] = told["run"]
                self._current.add(run)
            if asked.blocks or told.get("samples") or "run" in told:
                self._bump()
        if message.kind != Kind.ERROR:
            self._wishes.append(("history", run))

    def _take_piece(self, message: Message, asked: Asked, key: tuple[Any, ...]) -> None:
        piece = self._pieces[key]
        if message.kind == Kind.ERROR:
            self._end_piece(key, str(message.body.get("reason"))[:200])
            return
        total = int(message.body["total"])
        if not 0 < total <= MAX_BLOCK_BYTES or message.body["at"] != len(piece.data) or not message.buffers[0]:
            raise ValueError("a piece out of place")
        piece.data += message.buffers[0]
        if len(piece.data) < total:
            self._wishes.append(("piece", key))
            return
        with self.changed:
            self._cache[key] = bytes(piece.data)
            while sum(map(len, self._cache.values())) > KEEP_BYTES and len(self._cache) > 1:
                self._cache.popitem(last=False)
        self._end_piece(key, "")

    def _end_piece(self, key: tuple[Any, ...], error: str) -> None:
        with self.changed:
            piece = self._pieces.pop(key)
        piece.error = error
        piece.done.set()

    def _bump(self) -> None:
        self.revision += 1
        self.changed.notify_all()


def sender_of(run: bytes, ref: SampleRef) -> Identity:
    """Whose sample it is."""
    return Identity(run, ref.incarnation, ref.rank)

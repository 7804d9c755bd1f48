"""Every run a hub knows: its history once somebody asks, its line of summary always, and what it is doing.

Shared between the hub's thread, which writes, and its process's other threads, which read: ``changed`` is both the lock
and the bell. No socket is known here.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fitwire.errors import StoreError, UnknownRun
from fitwire.protocol.blocks import Block, Identity, Message
from fitwire.protocol.commands import Pair
from fitwire.watch.history import History
from fitwire.watch.states import LOST_AFTER, RankFacts, State, judge, judge_rank
from fitwire.watch.store import Store
from fitwire.watch.stored import grow_history, load_history
from fitwire.watch.summary import checked_summary, first_summary, summarize

__all__ = ["Roster"]

KEEP_LOADED = 32
"""Histories of runs that do not go on, kept in memory; the rest is read from the store again when asked for."""
REFRESH = 0.1
"""Seconds between two summaries of a run that is telling: ten a second is what a list can show."""
REFRESHED = 200.0
"""Summaries a second, of all runs together: of many each is made less often."""
CAUGHT_UP = 100
"""Blocks that are read in one go of what unfinished runs had said before this hub began: some 10 ms."""
REST = 1.0
"""The same for one that is silent: only time can change what it is doing."""


@dataclass(slots=True)
class _Entry:
    summary: dict[str, Any]
    facts: dict[int, RankFacts] = field(default_factory=dict[int, RankFacts])
    complete: set[int] = field(default_factory=set[int])
    cut: set[int] = field(default_factory=set[int])
    spoke: dict[int, int] = field(default_factory=dict[int, int])
    refreshed: float = -1e9
    touched: bool = False


class Roster:
    """What a hub knows of its runs.

    Attributes:
        changed: Lock of all that is here; notified when anything changed.
        revision: Grows with every change, and from one hub to the next.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        # A follower compares what it knows with what the next hub says.
        self.revision = time.time_ns() // 1000
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # by revision
        self._histories: OrderedDict[bytes, History] = OrderedDict()  # by last use
        self._live: set[bytes] = set()
        self._unsaved: dict[bytes, None] = {}
        self._behind: dict[bytes, tuple[History, float]] = {}

    # -- the hub's thread

    def load(self, store: Store, now: float, *, lazily: bool = False) -> None:
        """Take over what the store knows; runs that had not ended may be heard of again.

        Args:
            store: To read from.
            now: On the caller's clock.
            lazily: Leave what those runs have said to :meth:`catch_up`; till then they show as they were.

        Raises:
            StoreError: The database cannot be read.
        """
        with self.changed:
            for line in store.summaries():
                summary: dict[str, Any] = {**checked_summary(line), "settled": True}
                self.revision = max(self.revision, summary["revision"])
                run = bytes.fromhex(summary["id"])
                self._entries[run] = _Entry(summary)
                state = State(summary["state"])
                if not state.ended and state is not State.LOST:
                    self._behind[run] = (History(run), now)
                    if not lazily:
                        self.loaded(store, run)
            for entry in self._entries.values():
                self._bump()
                entry.summary["revision"] = self.revision

    def catch_up(self, store: Store, blocks: int = CAUGHT_UP) -> bool:
        """Read a part of what runs that had not ended have said; returns whether there is more to read.

        Raises:
            StoreError: It cannot be read; that run is read when it is heard of again.
        """
        with self.changed:
            for run, (history, _) in self._behind.items():
                self._catch_up_one(store, run, self._histories.get(run, history), blocks)
                break
            return bool(self._behind)

    def _catch_up_one(self, store: Store, run: bytes, history: History, blocks: int | None) -> None:
        since = self._behind[run][1]
        try:
            if not grow_history(store, history, blocks):
                return
        except StoreError:
            del self._behind[run]
            raise
        del self._behind[run]
        self._histories[run] = history
        entry = self._entries[run]
        for rank in history.late:
            entry.facts.setdefault(rank, RankFacts(history.incarnation(rank), since=since, told=since))
        self._touch(run, entry)
        self._bump()

    def joined(self, store: Store, sender: Identity, hello: dict[str, Any], now: float) -> None:
        """A source has said hello.

        Raises:
            StoreError: Its history cannot be read.
        """
        with self.changed:
            if sender.run not in self._behind:
                self.loaded(store, sender.run)
            entry = self._entries.get(sender.run)
            if entry is None:
                entry = self._entries[sender.run] = _Entry(first_summary(sender.run, hello, time.time()))
                self._change(sender.run, entry, entry.summary)
            facts = entry.facts.get(sender.rank)
            if facts is None or sender.incarnation > facts.incarnation:
                facts = entry.facts[sender.rank] = RankFacts(sender.incarnation, told=now)
                entry.complete.discard(sender.rank)
                entry.cut.discard(sender.rank)
                entry.spoke.pop(sender.rank, None)
            elif not facts.connected:
                facts.told = now  # what it said while it could not be reached is about to come
            facts.connected, facts.seen, facts.gone = True, True, False
            facts.durability = _durability(hello)
            self._touch(sender.run, entry)
            self._refresh_one(sender.run, entry, now)

    def couriered(self, store: Store, sender: Identity, hello: dict[str, Any], now: float) -> None:
        """A courier is about to deliver what a dead source left; it changes nothing about one that lives.

        Raises:
            StoreError: Its history cannot be read.
        """
        with self.changed:
            history = self.loaded(store, sender.run)
            entry = self._entries.get(sender.run)
            if entry is None:
                entry = self._entries[sender.run] = _Entry(first_summary(sender.run, hello, time.time()))
                self._change(sender.run, entry, entry.summary)
            if not entry.facts:
                self._recall(entry, history, now)
            facts = entry.facts.get(sender.rank)
            if facts is None or sender.incarnation > facts.incarnation:
                facts = entry.facts[sender.rank] = RankFacts(sender.incarnation, told=now, since=now)
                entry.complete.discard(sender.rank)
                entry.cut.discard(sender.rank)
                entry.spoke.pop(sender.rank, None)
            if sender.incarnation == facts.incarnation:
                facts.connected, facts.present, facts.gone = False, False, True
                facts.durability = _durability(hello)
            self._touch(sender.run, entry)
            self._refresh_one(sender.run, entry, now)

    def _recall(self, entry: _Entry, history: History, now: float) -> None:
        """What an earlier hub knew of a run that nobody was expected to speak of again."""
        line = entry.summary
        for rank in history.late:
            entry.facts[rank] = RankFacts(
                history.incarnation(rank), since=now - LOST_AFTER - 1.0, told=now, gone=line["gone"],
                durability=line["durability"],
            )  # fmt: skip
        if line["complete"]:
            entry.complete |= set(history.late)
        if line["cut"]:
            entry.cut |= set(history.late)

    def tell(self, store: Store, block: Block, message: Message, now: float) -> None:
        """Take a block that was stored, unless it is found there when its run is read.

        Raises:
            DecodeError: A record in it breaks the rules.
            StoreError: What its run had said before cannot be read.
        """
        with self.changed:
            try:
                run = block.sender.run
                if run not in self._behind:
                    self.loaded(store, run).add(message, block.count)
            finally:
                self.told(block.sender, now)

    def told(self, sender: Identity, now: float) -> None:
        """Blocks of this source were stored and are in its history; whoever calls holds :attr:`changed`."""
        entry = self._entries.get(sender.run)
        history = self._histories.get(sender.run)
        if entry is None or history is None:
            return
        self._touch(sender.run, entry)
        facts, source = entry.facts.get(sender.rank), history.current(sender.rank)
        if facts is not None and source is not None and facts.incarnation == sender.incarnation:
            if source.spoke != entry.spoke.get(sender.rank):
                facts.told = now
            entry.spoke[sender.rank] = source.spoke
            began_or_ended = source.told != facts.started or (source.ended is None) != (facts.ended is None)
            if began_or_ended or history.is_paused(sender.rank) != facts.paused:
                entry.refreshed = -1e9  # whoever is told so is not to be told late

    def link(self, sender: Identity, now: float, *, connected: bool, gone: bool = False, present: bool = False) -> None:
        """The transport of a source went up or down, or its process is known to be gone, or to be there."""
        with self.changed:
            entry = self._entries.get(sender.run)
            facts = entry.facts.get(sender.rank) if entry is not None else None
            if entry is None or facts is None or facts.incarnation != sender.incarnation:
                return
            if facts.connected and not connected:
                facts.since = now
            facts.connected, facts.gone, facts.present = connected, gone, present
            self._touch(sender.run, entry)

    def completed(self, sender: Identity, status: str | None = None) -> None:
        """All of a source is stored, and it knows.

        Args:
            sender: Which.
            status: What its goodbye said; ``"lost"`` is a courier's, of a trainer that was killed.
        """
        with self.changed:
            entry = self._entries.get(sender.run)
            facts = entry.facts.get(sender.rank) if entry is not None else None
            if entry is not None and facts is not None and facts.incarnation == sender.incarnation:
                entry.complete.add(sender.rank)
                (entry.cut.add if status == "lost" else entry.cut.discard)(sender.rank)
                self._touch(sender.run, entry)
                entry.refreshed = -1e9

    def refresh(self, now: float, *, at_once: bool = False) -> None:
        """Judge anew what may have changed; ``at_once`` also what was judged a moment ago."""
        with self.changed:
            pause = max(REFRESH, len(self._live) / REFRESHED)
            for run in list(self._live):
                entry = self._entries[run]
                if at_once or now - entry.refreshed >= (pause if entry.touched else max(REST, pause)):
                    self._refresh_one(run, entry, now)
            resting = [run for run in self._histories if run not in self._live]
            for run in resting[: max(0, len(resting) - KEEP_LOADED)]:
                del self._histories[run]

    def unsaved(self) -> list[dict[str, Any]]:
        """Summaries that are not in the store as they are; say :meth:`saved` once they are."""
        with self.changed:
            return [dict(self._entries[run].summary) for run in self._unsaved]

    def saved(self, summaries: list[dict[str, Any]]) -> None:
        """These are in the store."""
        with self.changed:
            for line in summaries:
                run = bytes.fromhex(line["id"])
                if self._entries[run].summary["revision"] == line["revision"]:
                    self._unsaved.pop(run, None)

    def loaded(self, store: Store, run: bytes) -> History:
        """The history, read from the store if need be.

        Raises:
            StoreError: It cannot be read.
        """
        with self.changed:
            if run in self._behind:
                self._catch_up_one(store, run, self._histories.get(run, self._behind[run][0]), None)
            return self.held(run) or self.adopt(load_history(store, run))

    def bump(self) -> None:
        """A history has grown."""
        with self.changed:
            self._bump()

    def _bump(self) -> None:
        self.revision += 1
        self.changed.notify_all()

    def _touch(self, run: bytes, entry: _Entry) -> None:
        entry.touched = True
        self._live.add(run)

    def _change(self, run: bytes, entry: _Entry, summary: dict[str, Any]) -> None:
        self._bump()
        entry.summary = summary | {"revision": self.revision}
        self._entries.move_to_end(run)
        self._unsaved[run] = None

    def _refresh_one(self, run: bytes, entry: _Entry, now: float) -> None:
        entry.refreshed, entry.touched = now, False
        history = self._histories.get(run)
        if history is None or run in self._behind:
            self._live.discard(run)
            return
        counted: dict[int, RankFacts] = {}
        for rank, facts in entry.facts.items():
            source = history.current(rank)
            if source is not None and history.incarnation(rank) == facts.incarnation:
                facts.started = source.told
                facts.longest_gap = source.pace.longest_gap
                began = source.started.time if source.started is not None else 0.0
                facts.patience = source.pace.patience(began, _totals(history))
                facts.ended = None if source.ended is None else State(source.ended.status)
                was, facts.paused = facts.paused, history.is_paused(rank)
                if was and not facts.paused:
                    facts.told = now  # it has to train a batch before it can tell of one
            if facts.connected or rank in history.late or rank not in history.ranks:
                counted[rank] = facts
        state = judge(counted.values(), now)
        cut = any(rank in entry.cut or _was_cut(history, rank) for rank in counted)
        since = self._since(entry, counted, state, now)
        after = summarize(entry.summary, history, counted, entry.complete, state, cut=cut, since=since)
        if after != entry.summary:
            self._change(run, entry, after)
        if state is State.LOST or (state.ended and not any(facts.connected for facts in counted.values())):
            self._live.discard(run)  # until it is heard of again

    def _since(self, entry: _Entry, counted: dict[int, RankFacts], state: State, now: float) -> float:
        """When a lost or stalled run was last heard of, Unix seconds; 0 for any other."""
        if state not in (State.LOST, State.STALLED):
            return 0.0
        those = [facts for facts in counted.values() if judge_rank(facts, now) is state]
        if state is State.STALLED:
            heard = min(facts.told for facts in those)
        elif those and all(facts.seen for facts in those):
            heard = min(facts.since for facts in those)
        else:  # of another hub's time
            return float(entry.summary["since"] or entry.summary["touched"])
        at, former = time.time() - (now - heard), entry.summary
        # Both clocks were read: what differs by less than a second is the same moment.
        return former["since"] if former["state"] == state and abs(former["since"] - at) < 1.0 else at

    # -- any thread

    def summaries(self) -> list[dict[str, Any]]:
        """One line a run, newest start first."""
        with self.changed:
            found = [dict(entry.summary) for entry in self._entries.values()]
        return sorted(found, key=lambda line: (line["started"], line["id"]), reverse=True)

    def news(self, since: int) -> tuple[int, list[dict[str, Any]]]:
        """The revision, and the lines that changed after ``since``, in the order in which they did."""
        found: list[dict[str, Any]] = []
        with self.changed:
            for entry in reversed(self._entries.values()):
                if entry.summary["revision"] <= since:
                    break
                found.append(entry.summary)
            return self.revision, found[::-1]

    def summary(self, run: bytes) -> dict[str, Any]:
        """The line of one run.

        Raises:
            UnknownRun: It is not here.
        """
        with self.changed:
            if run not in self._entries:
                raise UnknownRun(f"no run {run.hex()} here")
            return dict(self._entries[run].summary)

    def knows(self, run: bytes) -> bool:
        """Whether there is such a run."""
        with self.changed:
            return run in self._entries

    def is_behind(self, run: bytes) -> bool:
        """Whether what a run had said before this hub began is still to be read."""
        with self.changed:
            return run in self._behind

    def has_command(self, run: bytes, pair: Pair) -> bool:
        """Whether a run that is in memory, as each that is told of is, has told of a command."""
        with self.changed:
            history = self._histories.get(run)
            return history is not None and history.command(pair) is not None

    def held(self, run: bytes) -> History | None:
        """The history, if it is in memory; whoever reads it holds :attr:`changed`."""
        with self.changed:
            history = self._histories.get(run)
            if history is not None:
                self._histories.move_to_end(run)
            return history

    def adopt(self, history: History) -> History:
        """Keep a history that was read from the store, unless there is one by now; returns the one that is kept.

        What was stored meanwhile is not missed: the hub's thread stores first and looks here for the history after.
        """
        with self.changed:
            return self._histories.setdefault(history.run, history)


def _was_cut(history: History, rank: int) -> bool:
    """Whether another told how this rank ended: it may have had more to say."""
    source = history.current(rank)
    return source is not None and source.ended is not None and source.ended.told_by is not None


def _durability(hello: Mapping[str, Any]) -> str:
    told = hello.get("durability")
    return told if told in ("memory", "process") else ""


def _totals(history: History) -> dict[str, Any]:
    totals = history.described("info").get("totals")
    return cast("dict[str, Any]", totals) if isinstance(totals, dict) else {}

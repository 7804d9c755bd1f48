"""Every run a hub knows: its history once somebody asks, its line of summary always, and what it is doing.

Shared between the hub's thread, which writes, and its process's other threads, which read: ``changed`` is both the lock
and the bell. No socket is known here.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from fitwire.errors import DecodeError, UnknownRun
from fitwire.protocol.blocks import RECORDS, Identity, decode_message, unpack_frames
from fitwire.watch.history import History
from fitwire.watch.states import Progress, RankFacts, State, judge
from fitwire.watch.store import Store

__all__ = ["Roster", "badge_of", "load_history"]

KEEP_LOADED = 32
"""Histories of ended runs kept in memory; the rest is read from the store again when asked for."""
MAX_TAGS = 32
REFRESH = 0.1
"""Seconds between two summaries of a run that is telling: ten a second is what a list can show."""


def load_history(store: Store, run: bytes) -> History:
    """Read a run's whole history from the store; blocks that are spoilt are passed over."""
    history = History(run)
    for incarnation, rank in store.sources(run):
        sender = Identity(run, incarnation, rank)
        for block in store.blocks(sender, RECORDS):
            try:
                history.add(decode_message(unpack_frames(block.blob)), block.last - block.first + 1)
            except DecodeError:
                continue
        for ref in store.samples(sender):
            history.add_sample(ref)
    return history


@dataclass(slots=True)
class _Entry:
    summary: dict[str, Any]
    facts: dict[int, RankFacts] = field(default_factory=dict[int, RankFacts])
    incarnation: int = 0
    complete: set[int] = field(default_factory=set[int])
    refreshed: float = -1e9
    touched: bool = False
    dirty: bool = False


class Roster:
    """What a hub knows of its runs.

    Attributes:
        changed: Lock of all that is here; notified when anything changed.
        revision: Grows with every change.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.revision = 0
        self._entries: dict[bytes, _Entry] = {}
        self._histories: OrderedDict[bytes, History] = OrderedDict()

    # -- the hub's thread

    def load(self, store: Store, now: float) -> None:
        """Take over what the store knows; runs that had not ended may be heard of again."""
        with self.changed:
            for summary in store.summaries():
                run = bytes.fromhex(summary["id"])
                entry = self._entries[run] = _Entry(summary)
                if not State(summary["state"]).ended:
                    history = self._histories[run] = load_history(store, run)
                    entry.incarnation = history.incarnation
                    entry.facts = {rank: RankFacts(since=now, told=now) for rank in history.ranks}
                    entry.touched = True
            self._bump()

    def joined(self, store: Store, sender: Identity, hello: dict[str, Any], now: float) -> None:
        """A source has said hello."""
        with self.changed:
            history = self._history(store, sender.run)
            entry = self._entries.get(sender.run)
            if entry is None:
                entry = self._entries[sender.run] = _Entry(_first_summary(sender.run, hello))
            if sender.incarnation > entry.incarnation:
                entry.incarnation = sender.incarnation
                entry.facts.clear()
                entry.complete.clear()
            facts = entry.facts.setdefault(sender.rank, RankFacts())
            facts.connected, facts.gone = True, False
            facts.told = now if not facts.told else facts.told
            self._read_facts(history, entry, sender.rank)
            entry.touched = True
            self._refresh_one(sender.run, entry, now)

    def told(self, sender: Identity, now: float) -> None:
        """Blocks of this source were stored and are in its history."""
        entry = self._entries.get(sender.run)
        history = self._histories.get(sender.run)
        if entry is not None and history is not None:
            entry.touched = True
            if sender.incarnation == entry.incarnation and sender.rank in entry.facts:
                entry.facts[sender.rank].told = now
                self._read_facts(history, entry, sender.rank)

    def link(self, sender: Identity, now: float, *, connected: bool, gone: bool = False) -> None:
        """The transport of a source went up or down, or its process is known to be gone."""
        with self.changed:
            entry = self._entries.get(sender.run)
            if entry is None or sender.incarnation != entry.incarnation or sender.rank not in entry.facts:
                return
            facts = entry.facts[sender.rank]
            if facts.connected and not connected:
                facts.since = now
            facts.connected, facts.gone = connected, gone
            entry.touched = True

    def completed(self, sender: Identity) -> None:
        """All of a source is stored, and it knows."""
        with self.changed:
            entry = self._entries.get(sender.run)
            if entry is not None and sender.incarnation == entry.incarnation:
                entry.complete.add(sender.rank)
                entry.touched = True
                entry.refreshed = -1e9

    def refresh(self, now: float) -> None:
        """Judge anew what may have changed."""
        with self.changed:
            for run, entry in self._entries.items():
                live = not State(entry.summary["state"]).ended
                if now - entry.refreshed >= (REFRESH if entry.touched else 1.0) and (entry.touched or live):
                    self._refresh_one(run, entry, now)
            ended = [r for r in self._histories if self._entries[r].summary["state"] in ("finished", "failed")]
            for run in ended[: max(0, len(ended) - KEEP_LOADED)]:
                del self._histories[run]

    def unsaved(self) -> list[dict[str, Any]]:
        """Summaries that changed since the last call."""
        with self.changed:
            dirty = [entry for entry in self._entries.values() if entry.dirty]
            for entry in dirty:
                entry.dirty = False
            return [dict(entry.summary) for entry in dirty]

    def _read_facts(self, history: History, entry: _Entry, rank: int) -> None:
        facts, source = entry.facts[rank], history.current(rank)
        if source is not None and (entry.incarnation, rank) in history.heads:
            facts.started = source.told
            facts.longest_gap = source.pace.longest_gap
            facts.ended = None if source.ended is None else State(source.ended.status)

    def _refresh_one(self, run: bytes, entry: _Entry, now: float) -> None:
        entry.refreshed, entry.touched = now, False
        history = self._histories.get(run)
        if history is None:
            return
        before = {key: value for key, value in entry.summary.items() if key != "revision"}
        for rank in entry.facts:
            self._read_facts(history, entry, rank)
        after = _summarize(history, entry, judge(entry.facts.values(), now))
        if after != before:
            self._bump()
            entry.summary = after | {"revision": self.revision}
            entry.dirty = True

    def _bump(self) -> None:
        self.revision += 1
        self.changed.notify_all()

    def bump(self) -> None:
        """A history has grown."""
        with self.changed:
            self._bump()

    # -- any thread

    def summaries(self) -> list[dict[str, Any]]:
        """One line a run, newest start first."""
        with self.changed:
            found = [dict(entry.summary) for entry in self._entries.values()]
        return sorted(found, key=lambda line: (line["started"], line["id"]), reverse=True)

    def summary(self, run: bytes) -> dict[str, Any]:
        """The line of one run.

        Raises:
            UnknownRun: It is not here.
        """
        with self.changed:
            if run not in self._entries:
                raise UnknownRun(f"no run {run.hex()} here")
            return dict(self._entries[run].summary)

    def held(self, run: bytes) -> History | None:
        """The history, if it is in memory."""
        return self._histories.get(run)

    def history(self, store: Store, run: bytes) -> History:
        """The history, read from the store if need be; whoever reads it holds :attr:`changed`."""
        with self.changed:
            return self._history(store, run)

    def _history(self, store: Store, run: bytes) -> History:
        history = self._histories.get(run)
        if history is None:
            history = self._histories[run] = load_history(store, run)
        self._histories.move_to_end(run)
        return history


def _first_summary(run: bytes, hello: dict[str, Any]) -> dict[str, Any]:
    now = time.time()
    return {
        "id": run.hex(), "name": str(hello.get("name"))[:256], "project": str(hello.get("project"))[:256],
        "group": None, "tags": [], "host": str(hello.get("host"))[:256], "ranks": [], "started": now, "touched": now,
        "state": "waiting", "reason": "", "dropped": {}, "complete": False, "progress": asdict(Progress()),
        "revision": 0,
    }  # fmt: skip


def _summarize(history: History, entry: _Entry, state: State) -> dict[str, Any]:
    line = {key: value for key, value in entry.summary.items() if key != "revision"}
    started, info = history.started, history.described("info")
    if started is not None:
        line |= {
            "name": started.name,
            "project": started.project,
            "group": started.group,
            "tags": list(started.tags[:MAX_TAGS]),
        }
        line["started"] = history.first_time
    line["host"] = str(info.get("host", line["host"]))[:256]
    rank = min(entry.facts, default=0)
    source = history.current(rank)
    end = history.ended if state.ended else None
    if source is not None:
        pace = source.pace
        began = source.started.time if source.started is not None else line["started"]
        last = end.time if end is not None else pace.last[0] if pace.last is not None else began
        line["touched"] = max(line["touched"], last)
        totals = info.get("totals")
        known = cast("dict[str, Any]", totals) if isinstance(totals, dict) else {}
        line["progress"] = _finite(asdict(pace.progress(known, max(0.0, last - began), state.ended)))
    line |= {
        "ranks": history.ranks, "state": str(state), "reason": end.reason if end is not None else "",
        "dropped": history.dropped, "complete": bool(entry.facts) and entry.complete >= set(entry.facts),
    }  # fmt: skip
    return line


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """A peer's times may be anything; what goes into JSON may not."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def badge_of(summary: dict[str, Any]) -> str:
    """In a few words, whether all of the run is here."""
    given_up = ", ".join(f"{count:,} {what} dropped" for what, count in sorted(summary["dropped"].items()))
    state = State(summary["state"])
    if given_up:
        return given_up
    if summary["complete"]:
        return "complete"
    return "end not confirmed" if state.ended else "cut off" if state is State.LOST else "live"

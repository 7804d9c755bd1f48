"""All that a run told, one event after another: an iterator, and an asynchronous one.

What was given is remembered by sequence numbers, so that each event comes exactly once also when the hub leaves and
another takes its place, or a history was let go and read again. It knows no view.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator

from fitwire.errors import UnknownRun
from fitwire.events import Event, RunEnded, RunStarted
from fitwire.watch.desk import Desk
from fitwire.watch.history import History, Said, Span, explode_span
from fitwire.watch.states import State
from fitwire.watch.store import SampleRef

__all__ = ["EventStream"]

logger = logging.getLogger("fitwire")

AT_ONCE = 1000
"""Things taken from the history in one look; a span of rows is one."""
PATIENCE = 0.25
"""Seconds that a worker of an event loop waits at most: a loop that ends waits for its workers."""


class EventStream:
    """Events of one run in order.

    Metrics come row by row; the arrays of a sample are fetched as it is reached. How the run ended comes last.

    Args:
        desk: Where to ask.
        run: Which run.
        follow: Whether to wait for more until the run has ended.
    """

    def __init__(self, desk: Desk, run: bytes, follow: bool) -> None:
        self._desk, self._run, self._follow = desk, run, follow
        self._history: History | None = None
        self._at = 0
        self._given: dict[tuple[tuple[int, int], int], int] = {}  # (source, lane) → sequence number
        self._items: deque[Said] = deque()
        self._ready: deque[Event] = deque()
        self._ends: list[tuple[int, Event]] = []
        self._over = False
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while not self._ready:
            if self._over:
                raise StopIteration
            self._advance(None)
        return self._ready.popleft()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            # Nothing is taken there, so that nothing is lost when this is cancelled.
            await asyncio.to_thread(self._advance, PATIENCE)
        return self._ready.popleft()

    def _advance(self, timeout: float | None) -> None:
        """Have something ready, or know that all is over; gives up after ``timeout`` seconds."""
        with self._lock:
            if self._ready or self._over:
                return
            if not self._items:
                # Asked before what was said: the end is told after all the rest.
                last = not self._follow or self._settled() or self._desk.closing.is_set()
                self._items.extend(self._said())
                if not self._items:
                    if last:
                        self._finish()
                    else:
                        self._desk.wait_for(lambda: True if self._has_more() or self._settled() else None, timeout)
                    return
            self._expand(self._items[0])
            self._items.popleft()

    def _settled(self) -> bool:
        line = self._desk.backend.summary(self._run)
        return bool(line["settled"]) and State(line["state"]).ended

    def _has_more(self) -> bool:
        history = self._desk.history(self._run)[1]
        return history is not self._history or bool(self._fresh(history.said[max(0, self._at - 1) :]))

    def _said(self) -> list[Said]:
        """What was told since the last look; the last thing seen then may have grown."""
        backend, history = self._desk.history(self._run)
        with backend.changed:
            if history is not self._history:
                self._history, self._at = history, 0
            start = max(0, self._at - 1)
            found = history.said[start : start + AT_ONCE]
        self._at = start + len(found)
        fresh = self._fresh(found)
        # A long stretch that was given from an earlier history is passed over.
        return fresh if fresh or len(found) < AT_ONCE else self._said()

    def _fresh(self, items: list[Said]) -> list[Said]:
        return [item for item in items if item.last > self._given.get((item.key, item.lane), 0)]

    def _expand(self, item: Said) -> None:
        place = (item.key, item.lane)
        given = self._given.get(place, 0)
        if item.last <= given:
            return
        what = item.what
        if isinstance(what, Span):
            self._ready.extend(explode_span(what, given))
        elif isinstance(what, SampleRef):
            try:
                self._ready.append(self._desk.load(self._run, what))
            except UnknownRun as error:  # while a hub that is away may come back, and is asked again
                logger.warning("%s", error)
        elif isinstance(what, RunEnded):
            self._ends.append((item.key[0], what))  # samples may still be under way
        else:
            if isinstance(what, RunStarted):
                self._finish(before=item.key[0])
            self._ready.append(what)
        self._given[place] = item.last

    def _finish(self, before: int | None = None) -> None:
        """Tell how it ended, or how the incarnations before one did."""
        # By incarnation: what a dead one left may come after its successor has ended.
        for end in sorted(self._ends, key=lambda end: end[0]):
            if before is None or end[0] < before:
                self._ready.append(end[1])
                self._ends.remove(end)
        self._over = before is None

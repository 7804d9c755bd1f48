"""Tests of ``fitwire.watch.desk``: one way to ask, whoever answers, also when that changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fitwire.transport.process as process
from fitwire.errors import LinkError, NotOpenError, StoreError, UnknownRun
from fitwire.watch.desk import Desk, Local, local_store
from fitwire.watch.history import History
from fitwire.watch.store import SampleRef, Store
from fitwire.watch.stored import load_history
from test_roster import Room
from watching import RUN, Teller, ended, picture, row, started, tell


@pytest.fixture
def path(fitwire_dir: Path) -> Path:
    return fitwire_dir / "store.sqlite3"


@pytest.fixture
def room(path: Path) -> Iterator[Room]:
    """A store with one run that has ended, and one that went on."""
    made = Room(path)
    teller = Teller()
    made.join(teller)
    made.hear(teller.say(started(), row(0), row(1), picture(1), ended()))
    made.roster.link(teller.sender, made.now, connected=False, gone=True)
    other = Teller(run=b"o" * 16)
    made.join(other)
    made.hear(other.say(started("going"), row(5)))
    made.state(after=1.0)
    made.save()
    yield made
    made.close()


class Fake:
    """A backend that answers as it is told to."""

    def __init__(self, revision: int = 0, history: History | None = None) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.revision = revision
        self.closed = 0
        self._history = history

    def summaries(self) -> list[dict[str, Any]]:
        return []

    def summary(self, run: bytes) -> dict[str, Any]:
        raise UnknownRun("none")

    def history(self, run: bytes) -> History:
        if self._history is None:
            raise LinkError("the hub left")
        return self._history

    def block(self, run: bytes, ref: SampleRef, lane: int) -> bytes:
        raise LinkError("the hub left")

    def close(self) -> None:
        self.closed += 1

    def bump(self) -> None:
        with self.changed:
            self.revision += 1
            self.changed.notify_all()


def look_once(found: list[int]) -> int | None:
    return found.pop() if found else None


# -- a store without a hub


def test_a_store_without_a_hub_shows_what_it_holds(room: Room, path: Path) -> None:
    """Curves and samples; what had not ended is lost, because nobody listens to it."""
    local = local_store(path)
    desk = Desk(local)
    lines = {line["name"]: line["state"] for line in local.summaries()}
    sample = desk.load(RUN, desk.ask(RUN, lambda h: h.samples["masks"][0]))

    assert lines == {"calm-fox": "finished", "going": "lost"}
    assert desk.ask(RUN, lambda h: h.curve("loss").steps.tolist()) == [0, 1]
    assert sample.arrays["image"].tolist() == [[1, 1, 1, 1]]
    desk.close()


def test_looking_before_the_first_run_makes_nothing(path: Path) -> None:
    """No file, no error."""
    local = local_store(path)

    assert local.summaries() == []
    assert not path.exists()
    with pytest.raises(UnknownRun):
        local.history(RUN)
    local.close()


def test_looking_changes_nothing_in_the_store(room: Room, path: Path) -> None:
    """Not even of a run that is lost."""
    before = room.store.summaries()
    local_store(path).close()

    assert room.store.summaries() == before


def test_a_store_that_cannot_be_read_is_a_sentence(path: Path) -> None:
    """Here too."""
    path.write_text("no database " * 1000)
    with pytest.raises(StoreError, match="cannot open the store"):
        local_store(path)


def test_after_closing_what_was_read_is_shown_and_the_rest_is_refused(room: Room, path: Path) -> None:
    """With a sentence; closing twice is fine."""
    local = local_store(path)
    desk = Desk(local)
    ref = desk.ask(RUN, lambda h: h.samples["masks"][0])
    del local._roster._histories[b"o" * 16]
    desk.close()
    desk.close()

    assert desk.ask(RUN, lambda h: h.curve("loss").steps.tolist()) == [0, 1]
    with pytest.raises(NotOpenError, match="this monitor was closed"):
        desk.load(RUN, ref)
    with pytest.raises(NotOpenError, match="this monitor was closed"):
        desk.ask(b"o" * 16, lambda h: h.metrics)


def test_many_threads_may_read_at_once(room: Room, path: Path) -> None:
    """They take turns at one connection, and each gets what it asked for."""
    desk = Desk(local_store(path))
    ref = desk.ask(RUN, lambda h: h.samples["masks"][0])
    found: list[Any] = []

    def read() -> None:
        for _ in range(20):
            found.append((desk.load(RUN, ref).step, desk.ask(b"o" * 16, lambda h: h.curve("loss").steps.tolist())))

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60.0)
    desk.close()

    assert found == [(1, [5])] * 160


def test_a_sample_that_is_spoilt_or_gone_is_a_sentence(room: Room, path: Path) -> None:
    """And never the arrays of something else."""
    desk = Desk(local_store(path))
    ref = desk.ask(RUN, lambda h: h.samples["masks"][0])
    store = Store(path)
    assert store._db is not None
    store._db.execute("UPDATE blocks SET blob=zeroblob(size) WHERE lane=1")
    with pytest.raises(UnknownRun, match="sample 'masks' of step 1 is spoilt in the store"):
        desk.load(RUN, ref)
    store._db.execute("DELETE FROM blocks WHERE lane=1")
    with pytest.raises(UnknownRun, match="sample 'masks' of step 1 is not in the store any more"):
        desk.load(RUN, ref)
    store.close()
    desk.close()


def test_a_history_is_read_without_keeping_the_hub_waiting(room: Room, path: Path, monkeypatch: Any) -> None:
    """The roster's lock is free while the disk is read; what the hub's thread loaded meanwhile is what both have."""
    room.roster._histories.clear()
    local = Local(room.roster, path, None)
    loaded: list[History] = []

    def slow(store: Store, run: bytes) -> History:
        free = threading.Thread(target=lambda: loaded.append(room.roster.loaded(room.store, run)))
        free.start()
        free.join(30.0)
        assert not free.is_alive()
        return load_history(store, run)

    monkeypatch.setattr("fitwire.watch.desk.load_history", slow)

    assert local.history(RUN) is loaded[0]
    local.close()


# -- waiting


def test_what_is_looked_for_is_found_as_soon_as_it_is_there() -> None:
    """Woken by the backend's bell."""
    backend = Fake()
    desk = Desk(backend)
    found: list[int] = []
    results: list[int | None] = []
    waiter = threading.Thread(target=lambda: results.append(desk.wait_for(lambda: look_once(found), None)))
    waiter.start()
    found.append(7)
    backend.bump()
    waiter.join(30.0)

    assert results == [7]


def test_waiting_ends_with_the_time_and_with_the_monitor() -> None:
    """None in both cases."""
    desk = Desk(Fake())
    in_vain = desk.wait_for(lambda: None, 0.01)
    results: list[None] = []
    waiter = threading.Thread(target=lambda: results.append(desk.wait_for(lambda: None, None)))
    waiter.start()
    desk.close()
    waiter.join(30.0)

    assert in_vain is None
    assert results == [None]


def test_a_look_is_taken_even_without_time() -> None:
    """What is there is found with a timeout of zero."""
    assert Desk(Fake()).wait_for(lambda: 5, 0.0) == 5


# -- another backend


def test_the_revision_never_goes_back_when_the_backend_changes() -> None:
    """Views compare it with what they drew; a waiter of the old one is woken."""
    first, second = Fake(1000), Fake(3)
    desk = Desk(first)
    results: list[int | None] = []
    found: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(desk.wait_for(lambda: look_once(found), None)))
    waiter.start()
    before = desk.revision
    found.append(1)
    desk.change(second)
    after = desk.revision
    second.bump()
    waiter.join(30.0)

    assert before < after < desk.revision
    assert results == [1]
    assert (first.closed, second.closed, desk.backend) == (1, 0, second)


def test_a_question_to_a_hub_that_left_goes_to_the_one_that_took_its_place() -> None:
    """If there is one by now; else it fails."""
    history = tell(History(RUN), Teller().say(row(3)))
    old, new = Fake(), Fake(history=history)
    desk = Desk(old)
    with pytest.raises(LinkError, match="the hub left"):
        desk.ask(RUN, lambda h: h.metrics)
    ask = old.history

    def leave(run: bytes) -> History:
        desk.change(new)
        return ask(run)

    old.history = leave

    assert desk.ask(RUN, lambda h: h.metrics) == ["loss"]


# -- forks


def test_a_forked_child_is_refused_before_any_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock may be held by a thread that stayed in the parent; closing does nothing there."""
    backend = Fake()
    desk = Desk(backend)
    monkeypatch.setattr(process, "_generation", process.generation() + 1)
    with pytest.raises(NotOpenError, match="a monitor does not cross a fork"):
        desk.ask(RUN, lambda h: h.metrics)
    with pytest.raises(NotOpenError):
        desk.wait_for(lambda: None, None)
    desk.close()

    assert backend.closed == 0
    assert desk.forked


def test_a_roster_read_here_is_the_hubs(room: Room, path: Path) -> None:
    """Of a run in memory the very history that the hub's thread adds to."""
    local = Local(room.roster, path, None)

    assert local.history(RUN) is room.roster.held(RUN)
    assert local.summary(RUN) == room.roster.summary(RUN)
    assert local.revision == room.roster.revision
    assert local.changed is room.roster.changed
    local.close()

"""Tests of ``fitwire.watch.roster``: what a hub knows of its runs, with a store and a clock set by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitwire.errors import UnknownRun
from fitwire.events import Log
from fitwire.protocol.blocks import Block, Identity
from fitwire.watch.roster import Roster
from fitwire.watch.states import State
from fitwire.watch.store import Store
from fitwire.watch.stored import load_history
from fitwire.watch.summary import badge_of
from watching import RUN, T0, Teller, ended, keep, message_of, row, started

HELLO = {"name": "calm-fox", "project": "p", "host": "node1"}


class Room:
    """A roster with its store, told as a hub tells it.

    Attributes:
        now: The clock.
    """

    def __init__(self, path: Path, *, lazily: bool = False) -> None:
        self.path, self.now = path, 1000.0
        self.store = Store(path)
        self._later: list[Room] = []
        self.roster = Roster()
        self.roster.load(self.store, self.now, lazily=lazily)

    def hear(self, blocks: list[Block]) -> None:
        """Store and tell."""
        keep(self.store, blocks)
        with self.roster.changed:
            for block in blocks:
                self.roster.tell(self.store, block, message_of(block), self.now)

    def join(self, teller: Teller) -> None:
        self.roster.joined(self.store, teller.sender, HELLO, self.now)

    def save(self) -> None:
        lines = self.roster.unsaved()
        self.store.commit([], (), lines)
        self.roster.saved(lines)

    def state(self, run: bytes = RUN, after: float = 0.0) -> str:
        """What it is doing, ``after`` more seconds."""
        self.now += after
        self.roster.refresh(self.now)
        return str(self.roster.summary(run)["state"])

    def again(self, *, lazily: bool = False) -> Room:
        """The next hub, with the same store."""
        self.store.close()
        self._later.append(Room(self.path, lazily=lazily))
        return self._later[-1]

    def close(self) -> None:
        """Its store, and those of the hubs after it."""
        for room in self._later:
            room.close()
        self.store.close()


@pytest.fixture
def room(fitwire_dir: Path) -> Iterator[Room]:
    made = Room(fitwire_dir / "store.sqlite3")
    yield made
    made.close()


def named(number: int) -> Teller:
    return Teller(run=number.to_bytes(16, "big"))


def brisk() -> list[Any]:
    """Ten rows a millisecond apart: enough to know the pace."""
    return [row(step, time=T0 + step / 1000) for step in range(10)]


# -- states by time


def test_a_run_goes_through_its_states_as_time_passes(room: Room) -> None:
    """Waiting, running, stalled, running, down for a moment, lost, back again, finished."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(started()))
    seen = [room.state(), room.state(after=60.0)]
    room.hear(teller.say(*brisk()))
    seen += [room.state(after=1.0), room.state(after=8.0)]
    room.hear(teller.say(row(10, time=T0 + 1)))
    seen += [room.state(after=1.0)]
    room.roster.link(teller.sender, room.now, connected=False)
    seen += [room.state(after=5.0), room.state(after=6.0)]
    room.join(teller)
    room.hear(teller.say(row(11, time=T0 + 2)))
    seen += [room.state(after=1.0)]
    room.hear(teller.say(ended()))
    seen += [room.state(after=1.0)]

    assert seen == ["waiting", "waiting", "running", "stalled", "running", "running", "lost", "running", "finished"]


def test_a_process_that_is_known_to_be_gone_is_lost_at_once_and_one_that_is_there_is_not(room: Room) -> None:
    """Killed: lost now. Stopped, and so not answering: stalled, however long."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(started(), row(0)))
    room.roster.link(teller.sender, room.now, connected=False, present=True)
    stopped = [room.state(after=12.0), room.state(after=1e5)]
    room.roster.link(teller.sender, room.now, connected=False, gone=True)

    assert stopped == ["stalled", "stalled"]
    assert room.state(after=0.1) == "lost"


def test_a_lost_run_says_since_when_and_a_stalled_one_how_long_it_has_been_silent(room: Room) -> None:
    """On any clock: the moment is told, and stays while the state does."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(started(), *brisk()))
    silent, begun = room.state(after=8.0), time.time()
    line = room.roster.summary(RUN)
    first, revision = line["since"], line["revision"]
    room.state(after=8.0)  # the clock of the test is ahead of the calendar's
    again = room.roster.summary(RUN)["since"]
    room.roster.link(teller.sender, room.now, connected=False, gone=True)
    room.state(after=3.0)
    lost = room.roster.summary(RUN)

    assert silent == "stalled" and line["pause"] == pytest.approx(0.001, rel=0.1) and not line["gone"]
    assert first == pytest.approx(begun - 8.0, abs=1.0) and again == pytest.approx(first - 8.0, abs=1.0)
    assert (lost["state"], lost["gone"], lost["pause"]) == ("lost", True, 0.0)
    assert lost["since"] == pytest.approx(time.time() - 3.0, abs=1.0) and lost["revision"] > revision
    room.join(teller)
    assert room.state() == "running" and room.roster.summary(RUN)["since"] == 0.0


def test_a_run_that_reconnects_is_not_called_stalled_for_the_time_it_could_not_be_heard(room: Room) -> None:
    """Eight seconds without a link, then the hello, and a moment later all that it said meanwhile."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(started(), *brisk()))
    room.roster.link(teller.sender, room.now, connected=False)
    states = [room.state(after=4.0), room.state(after=4.0)]
    room.join(teller)
    states.append(room.state(after=0.2))

    assert states == ["running"] * 3


# -- couriers


def test_a_courier_completes_a_killed_run_and_brings_nothing_to_life(room: Room) -> None:
    """All that was left is here: to its last 20 ms, or all of it, by what its hello promised; and it stays lost."""
    found: list[tuple[str, str]] = []
    for number, durability in ((1, "memory"), (2, "process"), (3, None)):
        teller = named(number)
        hello = HELLO | {"durability": durability}
        room.roster.joined(room.store, teller.sender, hello, room.now)
        room.hear(teller.say(started(), row(0)))
        room.roster.link(teller.sender, room.now, connected=False, gone=True)
        before = (room.state(teller.sender.run, after=1.0), badge_of(room.roster.summary(teller.sender.run)))
        room.roster.couriered(room.store, teller.sender, hello, room.now)
        room.hear(teller.say(row(1)))
        room.roster.completed(teller.sender, "lost")
        found.append((room.state(teller.sender.run, after=0.2), badge_of(room.roster.summary(teller.sender.run))))

        assert before == ("lost", "cut off after step 1")

    twenty = ("lost", "complete to its last 20 ms")
    assert found == [twenty, ("lost", "complete"), twenty]


def test_a_run_whose_end_a_keeper_told_is_complete_as_far_as_a_kill_allows(room: Room) -> None:
    """``fitwire run`` knows how it ended; what the last 20 ms held nobody knows, unless each call was kept."""
    badges = []
    for number, durability, told_by in ((1, "memory", "keeper"), (2, "process", "keeper"), (3, "memory", None)):
        teller = named(number)
        room.roster.couriered(room.store, teller.sender, HELLO | {"durability": durability}, room.now)
        reason = "killed by SIGKILL (out of memory)"
        room.hear(teller.say(started(), row(0), ended("failed", reason=reason, told_by=told_by)))
        room.roster.completed(teller.sender, "failed")
        state, line = room.state(teller.sender.run, after=0.2), room.roster.summary(teller.sender.run)
        badges.append(badge_of(line))

        assert (state, line["reason"]) == ("failed", reason)

    assert badges == ["complete to its last 20 ms", "complete", "complete"]


def test_a_courier_of_an_older_incarnation_changes_nothing_about_the_newer(room: Room) -> None:
    """The run goes on; what it left is in its history."""
    old, new = Teller(1000), Teller(2000)
    room.join(old)
    room.hear(old.say(started(), row(0)))
    room.join(new)
    room.hear(new.say(started(), *brisk()))
    room.roster.couriered(room.store, old.sender, HELLO, room.now)
    room.hear(old.say(row(1)))
    room.roster.completed(old.sender, "lost")
    state = room.state(after=0.2)
    line = room.roster.summary(RUN)

    assert (state, badge_of(line), line["complete"]) == ("running", "live", False)
    history = room.roster.held(RUN)
    assert history is not None and history.head((1000, 0)) == [3, 0]


def test_a_courier_to_a_hub_that_knows_the_run_from_its_store_alone_leaves_how_it_ended(room: Room) -> None:
    """What an older life left does not make a finished run a lost one."""
    old, new = Teller(1000), Teller(2000)
    room.join(new)
    room.hear(new.say(started(), row(5), ended()))
    room.roster.completed(new.sender)
    room.roster.link(new.sender, room.now, connected=False, gone=True)
    room.state(after=1.0)
    room.save()
    again = room.again()
    again.roster.couriered(again.store, old.sender, HELLO, again.now)
    again.hear(old.say(started(), row(1)))
    again.roster.completed(old.sender, "lost")
    state = again.state(after=0.2)

    assert (state, badge_of(again.roster.summary(RUN))) == ("finished", "complete")


def test_a_courier_tells_of_a_run_that_nobody_knew(room: Room) -> None:
    """Trained without a hub, killed, delivered later."""
    teller = Teller()
    room.roster.couriered(room.store, teller.sender, HELLO | {"durability": "process"}, room.now)
    room.hear(teller.say(started("wise-owl"), row(7)))
    room.roster.completed(teller.sender, "lost")
    state = room.state(after=0.2)
    line = room.roster.summary(RUN)

    assert (state, line["name"], badge_of(line), line["gone"]) == ("lost", "wise-owl", "complete", True)


def test_the_machines_load_is_no_sign_of_life(room: Room) -> None:
    """A thread of its own tells of it every 15 s while the training hangs."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(*brisk()))
    states = []
    for _ in range(3):
        room.now += 15.0
        room.hear(teller.say(row(0, "time", cpu=99.0)))
        states.append(room.state())
    room.hear(teller.say(Log(text="still here")))

    assert states == ["stalled"] * 3
    assert room.state(after=0.2) == "running"


def test_summaries_are_made_ten_times_a_second_at_most(room: Room) -> None:
    """Of a run that tells all the time; the end of a burst is not missed."""
    teller = Teller()
    room.join(teller)
    revisions = set()
    for step in range(100):
        room.hear(teller.say(row(step)))
        room.state(after=0.01)
        revisions.add(room.roster.summary(RUN)["revision"])
    room.state(after=0.2)

    assert 8 <= len(revisions) <= 12
    assert room.roster.summary(RUN)["progress"]["step"] == 99


# -- ranks and lives


def test_ranks_that_took_different_seconds_are_one_start(room: Room) -> None:
    """The second to greet must not make the first forgotten."""
    zero, one = Teller(1000, 0), Teller(1001, 1)
    for teller in (zero, one):
        room.join(teller)
        room.hear(teller.say(started(), row(0)))
    before = room.state()
    room.roster.link(zero.sender, room.now, connected=False, gone=True)

    assert before == "running"
    assert room.state(after=1.0) == "lost"
    assert room.roster.summary(RUN)["ranks"] == [0, 1]


def test_a_run_is_complete_when_all_its_ranks_are(room: Room) -> None:
    """Not before."""
    zero, one = Teller(1000, 0), Teller(1001, 1)
    badges = []
    for teller in (zero, one):
        room.join(teller)
        room.hear(teller.say(started(), row(0), ended()))
    for teller in (zero, one):
        room.roster.completed(teller.sender)
        room.state(after=1.0)
        badges.append(badge_of(room.roster.summary(RUN)))

    assert badges == ["end not confirmed", "complete"]


def test_a_job_that_comes_back_smaller_is_judged_by_who_came_back(room: Room) -> None:
    """Rank 1 of the first start never said goodbye."""
    for teller in (Teller(1000, 0), Teller(1001, 1)):
        room.join(teller)
        room.hear(teller.say(started(), row(0)))
        room.roster.link(teller.sender, room.now, connected=False, gone=True)
    lost = room.state()
    again = Teller(5000, 0)
    room.join(again)
    room.hear(again.say(started(), row(0)))

    assert (lost, room.state(after=1.0)) == ("lost", "running")


def test_a_run_that_had_ended_goes_on_as_a_new_life(room: Room) -> None:
    """No longer finished, no longer complete."""
    first, second = Teller(1000), Teller(2000)
    room.join(first)
    room.hear(first.say(started(), row(5), ended("failed", reason="oops")))
    room.roster.completed(first.sender)
    before = (room.state(), room.roster.summary(RUN)["reason"], room.roster.summary(RUN)["complete"])
    room.join(second)
    room.hear(second.say(started(), row(3)))
    after = (room.state(after=1.0), room.roster.summary(RUN)["reason"], room.roster.summary(RUN)["complete"])

    assert before == ("failed", "oops", True)
    assert after == ("running", "", False)


def test_what_an_older_life_still_does_changes_nothing(room: Room) -> None:
    """Its connection goes, its goodbye comes: neither is the new one's."""
    first, second = Teller(1000), Teller(2000)
    for teller in (first, second):
        room.join(teller)
        room.hear(teller.say(row(0)))
    room.roster.link(first.sender, room.now, connected=False, gone=True)
    room.roster.completed(first.sender)

    assert room.state(after=1.0) == "running"
    assert room.roster.summary(RUN)["complete"] is False


def test_strangers_are_no_runs(room: Room) -> None:
    """What is told of a source that never greeted is passed over."""
    stranger = Identity(b"x" * 16, 1, 0)
    room.roster.link(stranger, 0.0, connected=False)
    room.roster.completed(stranger)
    room.roster.told(stranger, 0.0)

    assert room.roster.summaries() == []
    with pytest.raises(UnknownRun):
        room.roster.summary(stranger.run)


# -- from one hub to the next


def test_the_next_hub_knows_what_the_last_one_knew(room: Room) -> None:
    """Lines as they were; a run that had not ended is waited for, then lost."""
    done, going = named(1), named(2)
    for teller in (done, going):
        room.join(teller)
        room.hear(teller.say(started(f"run{teller.sender.run[-1]}"), row(0)))
    room.hear(done.say(ended()))
    room.roster.completed(done.sender)
    room.state(done.sender.run, after=1.0)
    room.save()
    later = room.again()
    states = [later.state(going.sender.run), later.state(going.sender.run, after=11.0)]
    line = later.roster.summary(done.sender.run)

    assert states == ["running", "lost"]
    assert (line["name"], line["state"], line["complete"], line["settled"]) == ("run1", "finished", True, True)


def test_what_was_stored_after_the_last_line_was_saved_counts(room: Room) -> None:
    """A hub that was killed had said running; the end lies among the blocks."""
    teller = Teller()
    room.join(teller)
    room.save()
    room.hear(teller.say(started("wise-owl"), row(0), ended("failed")))
    later = room.again()

    assert later.state() == "failed"
    assert later.roster.summary(RUN)["name"] == "wise-owl"


def test_revisions_grow_from_one_hub_to_the_next(room: Room) -> None:
    """Whoever follows compares what he knows with what the next hub says; a clock set back must not hide news."""
    room.join(Teller())
    room.save()
    line = room.roster.unsaved() or room.store.summaries()
    future = line[0] | {"revision": 2**62}
    room.store.commit([], (), [future])
    later = room.again()
    revision, lines = later.roster.news(2**62)

    assert [entry["id"] for entry in lines] == [RUN.hex()]
    assert revision >= lines[0]["revision"] > 2**62


def test_a_spoilt_line_does_not_keep_a_hub_from_opening(room: Room) -> None:
    """What can be read is shown."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(started("wise-owl")))
    room.state(after=1.0)
    room.save()
    assert room.store._db is not None
    room.store._db.execute("""UPDATE runs SET state='dancing', summary='{"state":"dancing","started":NaN}'""")
    later = room.again()

    assert later.roster.summary(RUN)["name"] == "wise-owl"
    assert State(later.state()) is State.LOST


def test_a_line_is_unsaved_until_it_is_saved_as_it_is(room: Room) -> None:
    """What changed while it was being written is written again; what could not be written too."""
    teller = Teller()
    room.join(teller)
    lines = room.roster.unsaved()
    room.hear(teller.say(row(0)))
    room.state(after=1.0)
    room.roster.saved(lines)
    again = room.roster.unsaved()
    room.roster.saved(again)

    assert [line["id"] for line in again] == [RUN.hex()]
    assert again[0]["state"] == "running"
    assert room.roster.unsaved() == []


# -- many runs


def test_histories_of_runs_that_rest_are_let_go_and_read_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest used first; those that go on are never; killed and interrupted ones rest too."""
    monkeypatch.setattr("fitwire.watch.roster.KEEP_LOADED", 2)
    tellers = [named(number) for number in range(6)]
    for number, teller in enumerate(tellers):
        room.join(teller)
        room.hear(teller.say(started(), row(number)))
        if number < 4:
            room.hear(teller.say(ended("interrupted")))
            room.roster.link(teller.sender, room.now, connected=False, gone=True)
    room.roster.link(tellers[4].sender, room.now, connected=False, gone=True)
    room.state(tellers[0].sender.run, after=1.0)
    held = [room.roster.held(teller.sender.run) is not None for teller in tellers]
    read = room.roster.loaded(room.store, tellers[0].sender.run)

    assert held == [False, False, False, True, True, True]
    assert read.curve("loss").steps.tolist() == [0]
    room.state(tellers[0].sender.run, after=1.0)
    assert [room.roster.held(t.sender.run) is not None for t in tellers] == [True, False, False, False, True, True]


def test_a_hub_opens_without_reading_what_has_ended(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred ended or lost runs are three hundred lines."""
    for number in range(300):
        teller = named(number)
        room.join(teller)
        room.hear(teller.say(started(), row(0), *([ended()] if number % 2 else [])))
        room.roster.link(teller.sender, room.now, connected=False, gone=True)
    room.state(named(0).sender.run, after=1.0)
    room.save()
    read: list[Any] = []
    monkeypatch.setattr("fitwire.watch.roster.load_history", lambda *what: read.append(what))
    monkeypatch.setattr("fitwire.watch.roster.grow_history", lambda *what: read.append(what))
    later = room.again()

    assert len(later.roster.summaries()) == 300
    assert read == []


def long_run(room: Room, blocks: int = 10) -> Teller:
    """One that had not ended when its hub did."""
    teller = Teller()
    room.join(teller)
    for step in range(blocks):
        room.hear(teller.say(*([started()] if step == 0 else []), row(step)))
    room.state(after=1.0)
    room.save()
    return teller


def test_a_hub_answers_before_it_has_read_what_goes_on(room: Room) -> None:
    """Its line is there at once, as it was; its history is read a few blocks at a time, and then time is told again."""
    long_run(room)
    later = room.again(lazily=True)
    told = [(later.state(), later.roster.held(RUN), later.roster.summary(RUN)["progress"]["step"])]
    turns = 0
    while later.roster.catch_up(later.store, 3):
        turns += 1
        told.append((later.state(), later.roster.held(RUN), later.roster.summary(RUN)["progress"]["step"]))
    history = later.roster.held(RUN)

    assert turns == 3
    assert told == [("running", None, 9)] * 4
    assert history is not None
    assert history.curve("loss").steps.tolist() == list(range(10))
    assert [later.state(), later.state(after=11.0)] == ["running", "lost"]


@pytest.mark.parametrize("read", [0, 3, 9])
def test_what_comes_while_a_hub_still_reads_is_told_once_and_in_order(room: Room, read: int) -> None:
    """Its trainer is back before the hub has read what it had said: by then, too, somebody in this process may ask."""
    teller = long_run(room)
    later = room.again(lazily=True)
    later.roster.catch_up(later.store, read)
    later.join(teller)
    later.hear(teller.say(row(10)))
    mine = later.roster.adopt(load_history(later.store, RUN)) if read == 3 else None
    later.hear(teller.say(row(11)))
    later.roster.catch_up(later.store, 3)
    later.hear(teller.say(row(12)))
    while later.roster.catch_up(later.store, 3):
        pass
    later.hear(teller.say(row(13)))
    history = later.roster.held(RUN)

    assert history is not None
    assert mine in (None, history)
    assert history.curve("loss").steps.tolist() == list(range(14))
    assert [later.state(after=1.0), later.state(after=8.0)] == ["running", "stalled"]


def test_who_asks_for_a_history_that_is_half_read_gets_all_of_it(room: Room) -> None:
    """At once, as any other."""
    long_run(room)
    later = room.again(lazily=True)
    assert later.roster.catch_up(later.store, 3)

    assert later.roster.loaded(later.store, RUN).curve("loss").steps.tolist() == list(range(10))
    assert not later.roster.catch_up(later.store, 3)


def test_news_are_the_lines_that_changed_since_in_order(room: Room) -> None:
    """And nothing else is walked through."""
    tellers = [named(number) for number in range(5)]
    for teller in tellers:
        room.join(teller)
    since, _ = room.roster.news(0)
    room.hear(tellers[3].say(row(0)))
    room.state(tellers[0].sender.run, after=1.0)
    room.hear(tellers[1].say(row(0)))
    room.state(tellers[0].sender.run, after=1.0)
    revision, lines = room.roster.news(since)

    assert [line["id"] for line in lines] == [tellers[3].sender.run.hex(), tellers[1].sender.run.hex()]
    assert lines[0]["revision"] < lines[1]["revision"] <= revision
    assert room.roster.news(revision) == (revision, [])


def test_lines_are_newest_start_first(room: Room) -> None:
    """As a list shows them; a copy, so that nobody changes them."""
    for number, at in ((1, 50.0), (2, 70.0), (3, 60.0)):
        teller = named(number)
        room.join(teller)
        room.hear(teller.say(started(f"run{number}", time=at)))
    room.state(named(1).sender.run, after=1.0)
    room.roster.summaries()[0]["name"] = "changed"

    assert [line["name"] for line in room.roster.summaries()] == ["run2", "run3", "run1"]


def test_the_first_to_read_a_history_is_believed(room: Room) -> None:
    """A reader that was slower than the hub's thread gives up his own."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(row(0)))
    first = room.roster.held(RUN)
    assert first is not None

    assert room.roster.adopt(type(first)(RUN)) is first


def test_the_bell_rings_for_whoever_waits(room: Room) -> None:
    """On another thread, when a history has grown."""
    woken = threading.Event()

    def wait() -> None:
        with room.roster.changed:
            ready.set()
            if room.roster.changed.wait(30.0):
                woken.set()

    ready = threading.Event()
    waiter = threading.Thread(target=wait)
    waiter.start()
    ready.wait(30.0)
    room.roster.bump()
    waiter.join(30.0)

    assert woken.is_set()

"""Tests of ``fitwire.watch.stream``: every event exactly once and in order, whatever happens to the hub."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fitwire
from fitwire import Monitor
from fitwire.errors import LinkError
from fitwire.events import EpochEnded, Event, Log, Metrics, RunEnded, RunStarted, Sample
from fitwire.watch.desk import Desk, Local
from fitwire.watch.history import SPAN_ROWS
from fitwire.watch.stream import EventStream
from test_roster import Room
from watching import RUN, Teller, ended, picture, row, started


@pytest.fixture
def room(fitwire_dir: Path) -> Iterator[Room]:
    made = Room(fitwire_dir / "store.sqlite3")
    yield made
    made.close()


@pytest.fixture
def desk(room: Room) -> Iterator[Desk]:
    made = Desk(Local(room.roster, room.path, None))
    yield made
    made.close()


def put(room: Room, teller: Teller, *records: Any) -> None:
    """As the hub's thread does it."""
    if room.roster._entries.get(teller.sender.run) is None or teller.sender.incarnation > 1000:
        room.join(teller)
    room.hear(teller.say(*records))
    room.roster.bump()
    room.state(teller.sender.run, after=1.0)


def close(room: Room, teller: Teller) -> None:
    room.roster.link(teller.sender, room.now, connected=False, gone=True)
    room.state(after=1.0)


def words(events: list[Event]) -> list[str]:
    """Each event in a word."""
    return [f"{type(e).__name__} {e.step if isinstance(e, Metrics | Sample) else ''}".strip() for e in events]


def test_everything_comes_in_order_row_by_row_with_the_end_last(room: Room, desk: Desk) -> None:
    """Metrics, epochs, notes and samples with their arrays; also those that arrived after the end was said."""
    teller = Teller()
    put(room, teller, started(), row(0), row(1), Log(text="hello"), row(1, "epoch", epoch=0), picture(1))
    put(room, teller, ended())
    put(room, teller, picture(2))
    close(room, teller)
    events = list(EventStream(desk, RUN, follow=True))

    assert words(events) == [
        "RunStarted", "Metrics 0", "Metrics 1", "Log", "EpochEnded 1", "Sample 1", "Sample 2", "RunEnded",
    ]  # fmt: skip
    assert isinstance(events[4], EpochEnded)
    assert isinstance(events[6], Sample)
    assert events[6].arrays["image"].tolist() == [[2, 2, 2, 2]]


def test_without_following_it_stops_at_what_is_known(room: Room, desk: Desk) -> None:
    """Of a run that goes on."""
    teller = Teller()
    put(room, teller, started(), row(0))
    events = list(EventStream(desk, RUN, follow=False))

    assert words(events) == ["RunStarted", "Metrics 0"]


def test_rows_that_join_others_are_given_once(room: Room, desk: Desk) -> None:
    """The last stretch grows while it is read; a long one is cut."""
    teller = Teller()
    stream = EventStream(desk, RUN, follow=False)
    put(room, teller, started(), row(0))
    steps: list[int | None] = []
    for step in range(1, 50):
        steps += [e.step for e in stream if type(e) is Metrics]
        put(room, teller, row(step))
        stream._over = False  # looked at again, as one that follows does
    put(room, teller, *(row(step) for step in range(50, 2 * SPAN_ROWS)))
    steps += [e.step for e in stream if type(e) is Metrics]

    assert steps == list(range(2 * SPAN_ROWS))


def test_an_earlier_lifes_end_comes_before_the_next_begins(room: Room, desk: Desk) -> None:
    """And the last end last."""
    first, second = Teller(1000), Teller(2000)
    put(room, first, started(), row(0), ended("failed"), picture(0))
    put(room, second, started(), row(0), ended())
    close(room, second)
    events = list(EventStream(desk, RUN, follow=True))

    assert words(events) == [
        "RunStarted", "Metrics 0", "Sample 0", "RunEnded", "RunStarted", "Metrics 0", "RunEnded",
    ]  # fmt: skip
    assert [e.status for e in events if isinstance(e, RunEnded)] == ["failed", "finished"]
    assert isinstance(events[4], RunStarted)


def test_the_runs_own_end_is_last_also_when_an_earlier_lifes_comes_later(room: Room, desk: Desk) -> None:
    """A dead life's journal is delivered after its successor has ended."""
    first, second = Teller(1000), Teller(2000)
    put(room, second, started(), row(0), ended())
    with room.roster.changed:
        room.roster.couriered(room.store, first.sender, {}, room.now)
    room.hear(first.say(started(), row(0), ended("failed")))
    close(room, second)
    events = list(EventStream(desk, RUN, follow=True))

    assert [e.status for e in events if isinstance(e, RunEnded)] == ["failed", "finished"]
    assert isinstance(events[-1], RunEnded)


def test_a_history_that_was_let_go_and_read_again_gives_nothing_twice(room: Room, desk: Desk) -> None:
    """There samples stand elsewhere among the rest; what is left is what was not given."""
    teller = Teller()
    put(room, teller, started(), *(row(step) for step in range(10)))
    put(room, teller, picture(3), picture(5))
    put(room, teller, *(row(step) for step in range(10, 20)))
    stream = EventStream(desk, RUN, follow=True)
    events = [next(stream) for _ in range(12)]
    room.roster._histories.clear()
    put(room, teller, row(20), picture(20), ended())
    close(room, teller)
    events += list(stream)

    assert sorted(words(events)) == sorted(
        ["RunStarted", "RunEnded", *(f"Metrics {step}" for step in range(21)), "Sample 3", "Sample 5", "Sample 20"]
    )
    assert [e.step for e in events if type(e) is Metrics] == list(range(21))
    assert isinstance(events[-1], RunEnded)


def test_a_sample_that_is_gone_is_passed_over_and_one_that_is_late_is_not(
    room: Room, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the hub is away the caller is told, and may go on where he was."""
    teller = Teller()
    put(room, teller, started(), picture(1), picture(2), ended())
    close(room, teller)
    assert room.store._db is not None
    room.store._db.execute("DELETE FROM blocks WHERE lane=1 AND first=1")
    load, away = Desk.load, [True]

    def unsteady(self: Desk, run: bytes, ref: Any) -> Sample:
        if ref.step == 2 and away.pop():
            away.append(False)
            raise LinkError("the hub is away")
        return load(self, run, ref)

    monkeypatch.setattr(Desk, "load", unsteady)
    stream = EventStream(desk, RUN, follow=True)
    events = [next(stream)]
    with pytest.raises(LinkError):
        next(stream)
    events += list(stream)

    assert words(events) == ["RunStarted", "Sample 2", "RunEnded"]
    assert "sample 'masks' of step 1 is not in the store any more" in caplog.text


def test_a_reader_is_woken_and_lets_go_when_the_monitor_closes(room: Room, desk: Desk) -> None:
    """One thread reads while the hub's adds."""
    teller = Teller()
    put(room, teller, started())
    events: list[Event] = []
    reader = threading.Thread(target=lambda: events.extend(EventStream(desk, RUN, follow=True)))
    reader.start()
    for step in range(20):
        put(room, teller, row(step))
    desk.close()
    reader.join(30.0)

    assert not reader.is_alive()
    assert [e.step for e in events if type(e) is Metrics] == list(range(len(events) - 1))


# -- asynchronous


def test_an_event_loop_gets_the_same(room: Room, desk: Desk) -> None:
    """In order, each once."""
    teller = Teller()
    put(room, teller, started(), *(row(step) for step in range(100)), picture(1), ended())
    close(room, teller)

    async def read() -> list[Event]:
        return [event async for event in EventStream(desk, RUN, follow=True)]

    assert words(asyncio.run(read())) == words(list(EventStream(desk, RUN, follow=True)))


def test_a_cancelled_wait_loses_nothing_and_a_loop_ends_at_once(room: Room, desk: Desk) -> None:
    """``wait_for`` with a time-out, again and again, while nothing comes; then all that came."""
    teller = Teller()
    put(room, teller, started())

    async def read() -> list[Event]:
        stream = EventStream(desk, RUN, follow=True)
        events, timeouts = [await anext(stream)], 0
        for step in range(200):
            if step % 20 == 0:
                put(room, teller, *(row(at) for at in range(step, step + 20)))
            try:
                events.append(await asyncio.wait_for(anext(stream), 0.001 if step % 7 else 0.0))
            except TimeoutError:
                timeouts += 1
        for _ in range(timeouts):
            events.append(await anext(stream))
        assert timeouts > 0
        try:
            await asyncio.wait_for(anext(stream), 0.01)
        except TimeoutError:
            pass
        return events

    assert words(asyncio.run(read())) == ["RunStarted", *(f"Metrics {step}" for step in range(200))]


# -- for real


def test_an_embedded_hub_that_leaves_takes_no_event_with_it(fitwire_dir: Path) -> None:
    """A monitor that had joined it takes its place while the training goes on: each event once, in order."""
    address, path = f"{fitwire_dir}/hub", fitwire_dir / "store.sqlite3"
    first = Monitor(address, store=path)
    second = Monitor(address, store=path)
    events: list[Event] = []
    run = fitwire.init(address, name="calm-fox", wait=30.0)
    stream = second.wait_for_run("calm-fox", timeout=30.0).events()
    reader = threading.Thread(target=lambda: events.extend(stream))
    reader.start()
    for step in range(3000):
        run.log({"loss": float(step)}, step=step)
        if step % 500 == 0:
            run.sample("masks", step=step, image=picture(step).arrays["image"])
        if step == 1500:
            first.close()
    run.finish()
    reader.join(60.0)
    was_hub = second.is_hub
    second.close()

    assert was_hub
    assert not reader.is_alive()
    assert [e.values["loss"] for e in events if type(e) is Metrics and e.per == "batch"] == list(
        map(float, range(3000))
    )
    assert sorted(e.step or 0 for e in events if isinstance(e, Sample)) == [0, 500, 1000, 1500, 2000, 2500]
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunEnded)

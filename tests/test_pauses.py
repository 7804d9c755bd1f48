"""What a watcher makes of commands that a run tells of: the list of them, and a pause, which is neither stall nor pace.

Of ``fitwire.watch.commands``, ``history``, ``states`` and ``roster``, with a clock set by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitwire.events import Command, CommandDone
from fitwire.watch.commands import MAX_COMMANDS, CommandRecord
from fitwire.watch.history import History
from test_roster import Room
from watching import RUN, T0, Teller, ended, row, started, tell

ANNA, BEN = "a" * 32, "b" * 32


@pytest.fixture
def room(fitwire_dir: Path) -> Iterator[Room]:
    made = Room(fitwire_dir / "store.sqlite3")
    yield made
    made.close()


def command(number: int = 1, name: str = "set", client: str = ANNA, **more: Any) -> Command:
    return Command(time=T0, step=3, client=client, number=number, name=name, author="anna@desk", asked=T0 - 1, **more)


def done(number: int = 1, name: str = "set", status: Any = "applied", client: str = ANNA, **more: Any) -> CommandDone:
    more.setdefault("time", T0 + 1)
    return CommandDone(client=client, number=number, name=name, status=status, author="anna@desk", **more)


def statuses(history: History) -> list[tuple[str, int, str]]:
    return [(record.client, record.number, record.status) for record in history.command_records]


# -- the list


def test_a_command_and_its_outcome_are_one_entry() -> None:
    """Who, what, when it was asked, and at which step what became what."""
    history = tell(
        History(RUN),
        Teller().say(command(arguments={"name": "lr", "value": 0.5}), done(step=4, before=1.0, after=0.5, reason="ok")),
    )

    assert history.command_records == [
        CommandRecord(
            who="anna@desk", what="set", arguments={"name": "lr", "value": 0.5}, asked=T0 - 1, status="applied", step=4,
            before=1.0, after=0.5, reason="ok", time=T0 + 1, client=ANNA, number=1,
        )
    ]  # fmt: skip
    assert history.command((ANNA, 1)) == history.command_records[0]
    assert history.command((BEN, 1)) is None


def test_commands_stand_in_the_order_in_which_they_reached_the_run() -> None:
    """Whatever became of them first; one of which only the outcome is known stands there too."""
    history = tell(
        History(RUN),
        Teller().say(
            command(1), command(1, client=BEN), command(2), done(2, status="refused"), done(1, client=BEN), done(5)
        ),
    )

    assert statuses(history) == [
        (ANNA, 1, "waiting"), (BEN, 1, "applied"), (ANNA, 2, "refused"), (ANNA, 5, "applied"),
    ]  # fmt: skip


def test_what_was_accepted_may_be_told_of_again_when_it_is_done() -> None:
    """The last word of the lowest rank counts."""
    first, second = Teller(), Teller(rank=1)
    history = tell(History(RUN), first.say(command(), done(status="accepted", reason="waits for min_epochs")))
    before = statuses(history)
    tell(history, second.say(done(status="failed", rank=1)))
    tell(history, first.say(done(step=9)))

    assert (before, statuses(history)) == ([(ANNA, 1, "accepted")], [(ANNA, 1, "applied")])


@pytest.mark.parametrize("how", ["ended", "restarted"])
def test_what_still_waits_when_its_training_has_ended_was_in_vain(how: str) -> None:
    """Or has been started again: the new life does not carry out what the old one took."""
    teller = Teller()
    history = tell(History(RUN), teller.say(command()))
    before = statuses(history)
    tell(history, teller.say(ended()) if how == "ended" else Teller(2000).say(started()))

    assert (before[0][2], statuses(history)[0][2]) == ("waiting", "expired")
    assert history.command_records[0].reason == "the training ended before it came to it"


def test_of_very_many_commands_the_newest_are_kept_in_memory() -> None:
    """The store has all."""
    history = tell(History(RUN), Teller().say(*(done(number) for number in range(1, MAX_COMMANDS + 11))))

    assert [statuses(history)[0], len(statuses(history))] == [(ANNA, 11, "applied"), MAX_COMMANDS]


# -- a pause


def going(room: Room, rank: int = 0) -> Teller:
    """A training that makes ten steps a second."""
    teller = Teller(rank=rank)
    room.join(teller)
    room.hear(teller.say(started(rank=rank), *(row(step, time=T0 + step / 10) for step in range(100))))
    assert room.state() == "running"
    return teller


def test_a_pause_lasts_until_it_is_ended_however_long(room: Room) -> None:
    """It is no stall; what it does is told at once, and its load goes on."""
    teller = going(room)
    room.hear(teller.say(command(name="pause"), done(name="pause", time=T0 + 10, step=99)))
    seen = [room.state()]
    for _ in range(3):
        room.hear(teller.say(row(99, "time", time=T0 + 20, cpu=1.0)))
        seen.append(room.state(after=3600.0))
    room.hear(teller.say(done(2, "unpause", time=T0 + 10_800)))
    seen += [room.state(), room.state(after=4.0), room.state(after=3.0)]

    assert seen == ["paused"] * 4 + ["running", "running", "stalled"]


@pytest.mark.parametrize("how", ["unpause", "by itself"])
def test_a_pause_says_nothing_of_the_pace(room: Room, how: str) -> None:
    """Neither how fast it goes, nor how long it may be silent, nor when it will be done."""
    teller = going(room)
    before = room.roster.summary(RUN)["progress"]["pace"]
    room.hear(teller.say(done(name="pause", time=T0 + 9.95, step=99)))
    if how == "unpause":
        room.hear(teller.say(done(2, "unpause", time=T0 + 3609.95)))
    room.hear(teller.say(*(row(step, time=T0 + 3600 + step / 10) for step in range(100, 105))))
    seen = [room.state(after=0.2), room.state(after=6.0)]
    history = room.roster.held(RUN)
    assert history is not None
    pace = history.current(0).pace  # type: ignore[union-attr]

    assert seen == ["running", "stalled"]
    assert pace.longest_gap == pytest.approx(0.1, abs=0.01)
    assert (before, pace.of_late, pace.overall) == pytest.approx((0.1, 0.1, 0.1), abs=0.01)


def test_rows_that_were_on_their_way_do_not_end_a_pause(room: Room) -> None:
    """An epoch's values after its last batch, or what another thread says of the same step."""
    teller = going(room)
    room.hear(teller.say(done(name="pause", time=T0 + 10, step=99), row(99, "epoch", epoch=0, time=T0 + 10.1)))
    held = room.state(after=60.0)
    room.hear(teller.say(row(100, time=T0 + 70)))

    assert (held, room.state(after=1.0)) == ("paused", "running")


@pytest.mark.parametrize("status", ["refused", "accepted", "failed"])
def test_only_a_pause_that_was_begun_is_one(room: Room, status: Any) -> None:
    """A refused one changes nothing."""
    teller = going(room)
    room.hear(teller.say(done(name="pause", status=status, time=T0 + 10, step=99)))

    assert room.state() == "running"


def test_when_rank_0_holds_all_hold_and_go_on_together(room: Room) -> None:
    """The others say nothing of it, and their silence is neither a stall nor their pace."""
    first, second = going(room), going(room, rank=1)
    room.hear(first.say(done(name="pause", time=T0 + 10, step=99)))
    seen = [room.state(), room.state(after=600.0)]
    room.hear(first.say(done(2, "unpause", time=T0 + 610)))
    room.hear(second.say(row(100, time=T0 + 610.1)) + first.say(row(100, time=T0 + 610.1)))
    seen += [room.state(), room.state(after=6.0)]
    history = room.roster.held(RUN)
    assert history is not None

    assert seen == ["paused", "paused", "running", "stalled"]
    assert [history.current(rank).pace.longest_gap < 1.0 for rank in (0, 1)] == [True, True]  # type: ignore[union-attr]


def test_a_paused_training_that_ends_or_dies_is_not_paused(room: Room) -> None:
    """Its end is what counts."""
    teller = going(room)
    room.hear(teller.say(done(name="pause", time=T0 + 10, step=99)))
    room.roster.link(teller.sender, room.now, connected=False, gone=True)
    dead = room.state()
    room.join(teller)
    back = room.state()
    room.hear(teller.say(done(2, "stop", time=T0 + 20), ended("interrupted", time=T0 + 21)))

    assert (dead, back, room.state()) == ("lost", "paused", "interrupted")


def test_the_next_hub_sees_that_it_is_paused(room: Room) -> None:
    """It reads it from the store."""
    teller = going(room)
    room.hear(teller.say(done(name="pause", time=T0 + 10, step=99)))
    room.state()
    room.save()
    other = room.again()
    other.join(teller)

    assert other.state(after=60.0) == "paused"
    room.store = other.store

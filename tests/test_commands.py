"""Tests of ``fitwire.protocol.commands``: the machines alone, then all of them over links that lose replies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import DecodeError, EncodeError
from fitwire.protocol.blocks import Identity, Kind, Message, decode_message, encode_message
from fitwire.protocol.commands import (
    AGAIN,
    EARLIER_LIFE,
    FIRST_RANK,
    KEPT,
    MAX_ARGUMENTS,
    MAX_HELD,
    MAX_KNOWN,
    Held,
    Inbox,
    Outbox,
    Request,
    make_request,
    parse_request,
)
from fitwire.protocol.viewer import Asked, Viewer
from fitwire.transport.memory import LossyLink
from fitwire.watch.dispatch import Dispatch
from helpers import ME, Clock

ANNA, BEN = "a" * 32, "b" * 32
NEXT = Identity(ME.run, ME.incarnation + 1, ME.rank)


def asked(number: int = 1, name: str = "stop", client: str = ANNA, until: float = 60.0, **arguments: Any) -> Request:
    return make_request(client, number, name, arguments, author="anna@desk", asked=1.5, deadline=until)


def message(request: Request, now: float = 0.0, to: Identity = ME) -> Message:
    return decode_message(encode_message(Message(Kind.COMMAND, to, body=request.body(now))))


def willing(request: Request) -> str | None:
    return None


class Ear:
    """An inbox, and what it said and took."""

    def __init__(self, sender: Identity = ME, check: Callable[[Request], str | None] = willing) -> None:
        self.inbox, self.check = Inbox(sender), check

    def hear(self, told: Message, now: float = 0.0, since: float | None = None) -> str:
        """What is answered: status and reason."""
        [frames] = self.inbox.receive(told, now, self.check, since)
        answer = decode_message(frames)
        assert (answer.kind, answer.sender) == (Kind.COMMAND_ACK, self.inbox.sender)
        return f"{answer.body['status']} {answer.body['reason']}".strip()

    def took(self) -> list[Any]:
        return [(r.name, r.number) if why is None else (r.name, r.number, why) for r, why in self.inbox.news()]


# -- what travels


def test_a_command_arrives_as_it_was_asked() -> None:
    """All its fields; what is left of its time counts from its arrival, on the clock of whoever has it now."""
    request = asked(7, "set", until=100.0, knob="lr", value=1e-4)

    heard = parse_request(message(request, now=70.0), 5.0)

    assert heard == make_request(
        ANNA, 7, "set", {"knob": "lr", "value": 1e-4}, author="anna@desk", asked=1.5, deadline=35.0
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"x": float("nan")}, "cannot send"),
        ({"x": object()}, "cannot send"),
        ({"x": "y" * MAX_ARGUMENTS}, "at most 32,768"),
        ({1: 0, "1": 0}, "cannot ask for 'do'"),
        ({"x": 10**30}, "cannot ask for 'do'"),
    ],
)
def test_what_the_training_could_not_read_is_not_asked(arguments: dict[Any, Any], told: str) -> None:
    """The asker is told, with the reason, before anything is sent."""
    with pytest.raises(EncodeError, match=told):
        make_request(ANNA, 1, "do", arguments)


@pytest.mark.parametrize(
    ("client", "number", "name"),
    [("a", 1, "stop"), (ANNA, 0, "stop"), (ANNA, 1, ""), (ANNA, 1, "x" * 65), (ANNA, 1, "a\nb"), (ANNA, True, "stop")],
)
def test_a_command_needs_somebody_who_asks_a_number_and_a_name(client: str, number: int, name: str) -> None:
    """Else it has no identity."""
    with pytest.raises(EncodeError, match="cannot ask"):
        make_request(client, number, name, {})


ODD = st.none() | st.booleans() | st.integers(-1, 2) | st.floats(allow_nan=False) | st.text(max_size=3) | st.just(ANNA)


@given(
    st.dictionaries(
        st.sampled_from(["client", "number", "name", "arguments", "author", "asked", "expires"]),
        ODD | st.dictionaries(st.text(max_size=2), ODD, max_size=1),
    )
)
def test_any_body_reads_or_is_refused(body: dict[str, Any]) -> None:
    """Nothing but DecodeError comes of it, and a training that hears it goes on."""
    told = Message(Kind.COMMAND, ME, body=body)
    try:
        parse_request(told, 0.0)
    except DecodeError:
        inbox = Inbox(ME)
        assert inbox.receive(told, 0.0, willing) == []
        assert inbox.bad == 1


# -- the training's end


def test_a_command_that_comes_again_is_taken_once() -> None:
    """Each time it is acknowledged, so that it need not come again."""
    ear = Ear()
    said = [ear.hear(message(asked()), now) for now in (0.0, 0.5, 50.0)]

    assert said == ["accepted", "duplicate", "duplicate"]
    assert ear.took() == [("stop", 1)]
    assert ear.took() == []


def test_what_was_refused_stays_refused_and_is_told_once() -> None:
    """Though it could be carried out by now: the asker has been told that it was not."""
    reasons: list[str | None] = ["lr goes 0 to 1, not 5", None]
    ear = Ear(check=lambda request: reasons.pop(0))
    said = [ear.hear(message(asked(name="set"))) for _ in range(2)]

    assert said == ["refused lr goes 0 to 1, not 5"] * 2
    assert ear.took() == [("set", 1, "lr goes 0 to 1, not 5")]


def test_one_client_may_ask_the_same_again_and_two_may_ask_the_same() -> None:
    """The pair is what counts."""
    ear = Ear()
    for request in (asked(1), asked(2), asked(1, client=BEN)):
        ear.hear(message(request))

    assert ear.took() == [("stop", 1), ("stop", 2), ("stop", 1)]


def test_what_was_asked_of_an_earlier_life_is_not_obeyed() -> None:
    """A job that was put back into the queue does not obey yesterday's stop, and what it took then it knows."""
    ear = Ear(NEXT)
    ear.inbox.remember([(ANNA, 1)])

    assert ear.hear(message(asked(2))) == f"refused {EARLIER_LIFE}"
    assert [ear.hear(message(asked(1), to=to)) for to in (ME, NEXT)] == ["duplicate", "duplicate"]
    assert ear.took() == []


def test_a_command_of_another_run_or_rank_gets_no_answer() -> None:
    """Whoever sends it has lost his way."""
    inbox = Inbox(ME)
    for to in (Identity(b"x" * 16, ME.incarnation), Identity(ME.run, ME.incarnation, 1)):
        assert inbox.receive(message(asked(), to=to), 0.0, willing) == []

    assert inbox.bad == 2
    assert list(inbox.news()) == []


def test_a_command_that_waited_in_a_stopped_process_is_too_late() -> None:
    """It may have come right after the last look, five minutes ago; whoever asked was told that it expired."""
    ear = Ear()

    assert ear.hear(message(asked()), now=300.0, since=0.0) == "expired it came too late"
    assert ear.hear(message(asked(2)), now=300.0, since=290.0) == "accepted"
    [(request, _)] = ear.inbox.news()
    assert request.deadline == 350.0


def test_a_training_remembers_the_newest_commands_only() -> None:
    """Those who ask and ask do not fill its memory."""
    inbox = Inbox(ME, ((ANNA, number) for number in range(1, MAX_KNOWN + 2)))
    ear = Ear()
    ear.inbox = inbox

    assert ear.hear(message(asked(MAX_KNOWN + 1))) == "duplicate"
    assert ear.hear(message(asked(2))) == "duplicate"
    assert ear.hear(message(asked(1))) == "accepted"


# -- the hub's end


class Post:
    """An outbox, and who is there."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.there: Identity | str | None = ME

    def whom(self, run: bytes, rank: int | None) -> Identity | str | None:
        return self.there

    def say(self, now: float) -> list[int]:
        """Numbers of the commands that are said."""
        due = list(self.outbox.due(now, self.whom))
        for held, to in due:
            self.outbox.launched(held, to, now)
        return [held.request.number for held, _ in due]

    def ack(self, request: Request, status: str, now: float, sender: Identity = ME, reason: str = "") -> None:
        body = {"client": request.client, "number": request.number, "status": status, "reason": reason}
        self.outbox.acked(Message(Kind.COMMAND_ACK, sender, body=body), now)

    def take(self, request: Request, now: float = 0.0, to: Identity | None = None) -> Held:
        return self.outbox.take(ME.run, request, now, to)


def test_a_command_is_said_every_half_second_until_it_is_acknowledged() -> None:
    """And never again after."""
    post = Post()
    post.take(asked())
    said = [now / 10 for now in range(16) if post.say(now / 10)]
    post.ack(asked(), "accepted", 1.6)

    assert said == [0.0, AGAIN, 2 * AGAIN, 3 * AGAIN]
    assert [now for now in range(2, 70) if post.say(float(now))] == []


def test_a_command_is_held_until_its_training_is_there() -> None:
    """And goes at once when it is."""
    post = Post()
    post.there = None
    held = post.take(asked())
    before = [post.say(float(now)) for now in range(30)]
    post.there = ME

    assert before == [[]] * 30
    assert held.status == "held"
    assert post.say(30.0) == [1]
    assert (held.status, held.to) == ("sent", ME)


def test_a_command_that_nobody_took_in_its_time_expires() -> None:
    """The reason tells whether anybody was there; it is not sent afterwards."""
    post = Post()
    post.there = None
    lonely = post.take(asked(1))
    post.say(60.0)
    post.there = ME
    unheard = post.take(asked(2, until=120.0), now=60.0)
    said = [post.say(60.0), post.say(120.0), post.say(121.0)]

    assert said == [[2], [], []]
    assert (lonely.status, lonely.reason) == ("expired", "no training came to take it in time")
    assert (unheard.status, unheard.reason) == ("expired", "the training did not answer in time")
    assert list(post.outbox.settled()) == [lonely, unheard]


def test_one_askers_commands_go_one_after_the_other() -> None:
    """A repeated one must not come after the next, or the older of two values would be the last; others go ahead."""
    post = Post()
    for request in (asked(1), asked(2), asked(1, client=BEN)):
        post.take(request)
    first = post.say(0.0)
    post.ack(asked(1), "accepted", 0.1)

    assert first == [1, 1]
    assert post.say(0.1) == [2]


def test_a_command_keeps_to_the_life_it_was_first_sent_to() -> None:
    """When that is gone its successor is not asked, for it may have been carried out."""
    post = Post()
    held = post.take(asked())
    post.say(0.0)
    post.there = NEXT

    assert post.say(0.5) == []
    assert (held.status, held.reason) == ("refused", EARLIER_LIFE)


def test_a_hub_that_comes_after_keeps_to_it_too() -> None:
    """The viewer says which one it was."""
    post = Post()
    post.there = NEXT
    held = post.take(asked(), to=ME)

    assert post.say(0.0) == []
    assert held.reason == EARLIER_LIFE


def test_rank_0_is_waited_for() -> None:
    """It speaks for the others, and may be about to come; when it does not, another that is there is asked."""
    post = Post()
    post.there = Identity(ME.run, ME.incarnation, 1)
    held = post.take(asked())

    assert [post.say(now) for now in (0.0, FIRST_RANK - 0.1, FIRST_RANK)] == [[], [], [1]]
    assert held.to == post.there


def test_a_run_that_is_over_is_not_waited_for() -> None:
    """The hub knows why."""
    post = Post()
    post.there = "the run is over: finished"
    held = post.take(asked())
    post.say(0.0)

    assert (held.status, held.reason) == ("refused", "the run is over: finished")


def test_only_the_one_that_was_asked_can_acknowledge() -> None:
    """Not another process, nor before it was asked."""
    post = Post()
    held = post.take(asked())
    post.ack(asked(), "accepted", 0.0)
    post.say(0.0)
    post.ack(asked(), "accepted", 0.1, NEXT)
    post.ack(asked(2), "accepted", 0.1)
    before = held.status
    post.ack(asked(), "refused", 0.2, reason="no")

    assert before == "sent"
    assert (held.status, held.reason) == ("refused", "no")
    with pytest.raises(DecodeError, match="acknowledgement of nothing"):
        post.ack(asked(), "maybe", 0.3)


def test_a_hub_remembers_long_enough_and_not_too_much() -> None:
    """An answer that was lost is asked for again; those who ask without end are refused."""
    post = Post()
    first = post.take(asked())
    post.say(0.0)
    post.ack(asked(), "accepted", 0.1)
    again = post.take(asked(), 59.0)
    for number in range(2, MAX_HELD + 1):
        post.take(asked(number))
    full = post.take(asked(MAX_HELD + 1))
    post.say(60.0 + KEPT)

    assert again is first
    assert (full.status, full.reason) == ("refused", "the hub holds 1024 commands already")
    assert post.outbox.get(asked().pair) is None


# -- all of it, over bad links


class Wire:
    """A viewer, a hub and a training, with a link in each direction between them.

    Args:
        lost: Share of the replies that are lost, on the way to the hub and on the way to the viewer.
    """

    STEP = 0.05

    def __init__(self, lost: float, seed: int) -> None:
        self.clock = Clock()
        self.viewer = Viewer(jitter=lambda: 0.5)
        self.hub = Dispatch(threading.Condition())
        self.inbox: Inbox | None = Inbox(ME)
        self.executed: list[int] = []
        self.known: list[tuple[str, int]] = []
        self.asked: dict[int, Asked] = {}
        self.to_hub, self.to_training = LossyLink(), LossyLink(doubled=0.2, delay=0.2, seed=seed)
        self.acks = LossyLink(lost, doubled=0.2, delay=0.2, seed=seed + 1)
        self.answers = LossyLink(lost, seed=seed + 2)
        self.viewer.connected(0.0)

    def ask(self, number: int) -> None:
        request = asked(number, until=self.clock() + 60.0)
        self.asked[number] = self.viewer.command(request, Identity(ME.run))

    def whom(self, run: bytes, rank: int | None) -> Identity | None:
        return None if self.inbox is None else self.inbox.sender

    def send(self, to: Identity, frames: list[Any]) -> bool:
        self.to_training.send(frames, self.clock())
        return True

    def answer(self, peer: bytes, frames: list[Any]) -> None:
        self.answers.send(frames, self.clock())

    def turn(self) -> None:
        now = self.clock()
        for frames in self.viewer.due(now):
            self.to_hub.send(frames, now)
        for frames in self.to_hub.receive(now):
            told = decode_message(frames)
            if told.kind == Kind.HELLO:
                self.viewer.receive(encode_message(Message(Kind.WELCOME, body={"nonce": told.body["nonce"]})), now)
            elif (answered := self.hub.asked(b"viewer", told, now)) is not None:
                self.answer(b"viewer", answered)
        self.hub.turn(now, self.whom, self.send, self.answer)
        for frames in self.to_training.receive(now):
            if self.inbox is not None:
                for ack in self.inbox.receive(decode_message(frames), now, willing):
                    self.acks.send(ack, now)
                for request, _ in self.inbox.news():
                    self.executed.append(request.number)
                    self.known.append(request.pair)
        for frames in self.acks.receive(now):
            self.hub.acked(decode_message(frames), now)
        for frames in self.answers.receive(now):
            self.viewer.receive(frames, now)
        self.clock.tick(self.STEP)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / self.STEP)):
            self.turn()

    def said(self) -> set[str]:
        """How the answers read."""
        return {"none" if one.answer is None else str(one.answer.body["status"]) for one in self.asked.values()}


@pytest.mark.parametrize("seed", range(3))
def test_300_commands_over_a_link_that_loses_40_of_100_replies_are_carried_out_once_each(seed: int) -> None:
    """In the order in which they were asked, and the asker hears of each that it was taken."""
    wire = Wire(0.4, 10 * seed)
    for number in range(1, 301):
        wire.ask(number)
        wire.run(1.0)
    wire.run(60.0)

    assert wire.executed == list(range(1, 301))
    assert wire.said() <= {"accepted", "duplicate"}
    assert wire.acks.dropped > 100 and wire.answers.dropped > 100


@pytest.mark.parametrize("seed", range(3))
def test_hubs_that_forget_everything_do_not_have_commands_carried_out_twice(seed: int) -> None:
    """One dies every three seconds, with all that it held; the viewer asks the next one."""
    wire = Wire(0.4, 10 * seed)
    for number in range(1, 101):
        wire.ask(number)
        wire.run(1.0)
        if number % 3 == 0:
            wire.hub = Dispatch(threading.Condition())
            wire.viewer.connected(wire.clock())
    wire.run(90.0)

    assert sorted(wire.executed) == list(range(1, 101))
    assert wire.said() <= {"accepted", "duplicate"}


@pytest.mark.parametrize("remembers", [True, False])
def test_a_training_that_starts_again_carries_out_nothing_that_its_former_life_did(remembers: bool) -> None:
    """With the former's journal it knows them; without, the hub and the viewer keep to the former life."""
    wire = Wire(0.4, 1)
    lives = [ME.incarnation]
    for number in range(1, 101):
        wire.ask(number)
        wire.run(0.4)
        if number % 2 == 0:
            wire.inbox = None
            wire.run(1.0)
            lives.append(lives[-1] + 1)
            wire.inbox = Inbox(Identity(ME.run, lives[-1]), wire.known if remembers else ())
    wire.run(90.0)

    assert len(set(wire.executed)) == len(wire.executed) > 50
    assert wire.said() <= {"accepted", "duplicate", "refused"}


def test_everything_that_was_said_is_replayed_in_vain() -> None:
    """Whoever recorded the line cannot have anything carried out again."""
    wire = Wire(0.0, 5)
    recorded: list[Any] = []
    send = wire.send

    def listen(to: Identity, frames: list[Any]) -> bool:
        recorded.append(frames)
        return send(to, frames)

    wire.send = listen  # type: ignore[method-assign]
    for number in range(1, 11):
        wire.ask(number)
    wire.run(20.0)
    for frames in recorded:
        wire.to_training.send(frames, wire.clock())
    wire.run(5.0)

    assert len(recorded) >= 10
    assert wire.executed == list(range(1, 11))


def test_a_viewer_counts_down_what_is_left_and_gives_up() -> None:
    """A hub that comes late is told how late it is."""
    viewer = Viewer(jitter=lambda: 0.5)
    viewer.joined = True
    viewer.command(asked(), Identity(ME.run))
    told = [decode_message(f).body["expires"] for now in range(0, 100, 2) for f in viewer.due(float(now))]

    assert told == [60.0, 54.0, 48.0, 42.0, 36.0, 30.0, 24.0, 18.0, 12.0, 6.0, 0.0]

"""Tests of ``fitwire.watch.dispatch``: a hub's commands, among viewers that ask twice and peers that mean ill."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fitwire.errors import DecodeError
from fitwire.protocol.blocks import Buffer, Identity, Kind, Message, decode_message, encode_message
from fitwire.protocol.commands import EARLIER_LIFE, Request, make_request
from fitwire.transport.address import Address
from fitwire.watch.dispatch import MAX_ASKERS, Dispatch
from fitwire.watch.hub import Hub
from helpers import ME
from test_hub import Peer
from watching import RUN

ANNA = "a" * 32
CARL = Identity(ME.run, ME.incarnation + 1)


def asked(number: int = 1, until: float = 60.0) -> Request:
    return make_request(ANNA, number, "stop", {}, deadline=until)


class Desk:
    """A dispatch, what it says, and to whom."""

    def __init__(self) -> None:
        self.rung = 0
        desk = self

        class Bell(threading.Condition):
            def notify_all(self) -> None:
                desk.rung += 1
                super().notify_all()

        self.dispatch = Dispatch(Bell())
        self.there: Identity | str | None = ME
        self.reachable = True
        self.said: list[tuple[Identity, int]] = []
        self.answers: list[tuple[bytes, int, str, int]] = []

    def ask(self, peer: bytes = b"v", number: int = 9, request: Request | None = None, to: Any = None) -> str | None:
        """What a viewer hears at once."""
        body = {"id": number, **(request or asked()).body(0.0)}
        told = decode_message(encode_message(Message(Kind.COMMAND, to or Identity(ME.run), body=body)))
        answered = self.dispatch.asked(peer, told, 0.0)
        return None if answered is None else self._read(peer, answered)[2]

    def _read(self, peer: bytes, frames: list[Buffer]) -> tuple[bytes, int, str, int]:
        message = decode_message(frames)
        assert (message.kind, message.sender.run) == (Kind.COMMAND_ACK, ME.run)
        return peer, message.body["id"], message.body["status"], message.sender.incarnation

    def turn(self, now: float = 0.0) -> None:
        def send(to: Identity, frames: list[Buffer]) -> bool:
            if self.reachable:
                self.said.append((to, decode_message(frames).body["number"]))
            return self.reachable

        def answer(peer: bytes, frames: list[Buffer]) -> None:
            self.answers.append(self._read(peer, frames))

        self.dispatch.turn(now, lambda run, rank: self.there, send, answer)

    def ack(self, status: str, number: int = 1) -> None:
        body = {"client": ANNA, "number": number, "status": status, "reason": ""}
        self.dispatch.acked(Message(Kind.COMMAND_ACK, ME, body=body), 0.0)


def test_a_viewer_hears_where_its_command_went_and_what_was_said_of_it() -> None:
    """First the process, so that the next hub can go on with it; and once each."""
    desk = Desk()
    desk.ask()
    desk.turn()
    desk.ack("accepted")
    for _ in range(3):
        desk.turn()

    assert desk.said == [(ME, 1)]
    assert desk.answers == [(b"v", 9, "sent", ME.incarnation), (b"v", 9, "accepted", ME.incarnation)]
    assert desk.rung == 1


def test_who_asks_again_is_answered_again_and_nothing_is_sent_again() -> None:
    """From another connection too; the answer that stood is what it gets."""
    desk = Desk()
    before = desk.ask()
    desk.turn()
    middle = desk.ask(b"w", 10)
    desk.ack("refused")
    desk.turn()
    after = desk.ask(b"x", 11)

    assert (before, middle, after) == (None, "sent", "refused")
    assert [(peer, status) for peer, _, status, _ in desk.answers] == [
        (b"v", "sent"),
        (b"v", "refused"),
        (b"w", "refused"),
    ]
    assert desk.said == [(ME, 1)]


def test_a_process_that_cannot_be_reached_is_not_said_to_have_it() -> None:
    """The next life may have it then."""
    desk = Desk()
    desk.reachable = False
    desk.ask()
    desk.turn()
    desk.there, desk.reachable = CARL, True
    desk.turn(0.1)

    assert desk.said == [(CARL, 1)]
    assert desk.answers == [(b"v", 9, "sent", CARL.incarnation)]


def test_a_viewer_that_knows_where_it_went_is_believed() -> None:
    """An earlier hub had sent it there."""
    desk = Desk()
    desk.there = CARL
    desk.ask(to=ME)
    desk.turn()

    assert desk.said == []
    assert desk.dispatch.stands(ME.run, asked()).reason == EARLIER_LIFE


def test_what_the_run_has_told_of_is_not_sent_again() -> None:
    """A hub that came after finds it in the run's history, whether or not its training remembers."""
    desk = Desk()
    told = {(ME.run, (ANNA, 1))}
    desk.dispatch = Dispatch(threading.Condition(), lambda run, pair: (run, pair) in told)
    desk.ask()
    desk.ask(request=asked(2), number=10)
    desk.turn()
    desk.turn(0.1)

    assert desk.said == [(ME, 2)]
    assert [(number, status) for _, number, status, _ in desk.answers] == [(9, "duplicate"), (10, "sent")]


def test_the_hubs_own_process_asks_without_a_socket() -> None:
    """From any thread, again and again; it is one command."""
    desk = Desk()
    seen = [desk.dispatch.stands(ME.run, asked()).status for _ in range(3)]
    desk.turn()
    seen.append(desk.dispatch.stands(ME.run, asked()).status)
    desk.ack("duplicate")
    found = desk.dispatch.stands(ME.run, asked())

    assert seen == ["held", "held", "held", "sent"]
    assert (found.status, found.taken, found.failed, found.to) == ("duplicate", True, False, ME)
    assert desk.said == [(ME, 1)]


def test_those_who_wait_for_one_command_are_few() -> None:
    """The newest: an earlier connection's viewer does not listen any more."""
    desk = Desk()
    for number in range(MAX_ASKERS + 5):
        desk.ask(b"%d" % number)
    desk.turn()

    assert [int(peer) for peer, *_ in desk.answers] == list(range(5, MAX_ASKERS + 5))


@pytest.mark.parametrize(
    "spoil", [{"id": None}, {"client": "x"}, {"number": 0}, {"expires": "soon"}, {"arguments": []}]
)
def test_what_is_no_command_is_refused_before_it_is_held(spoil: dict[str, Any]) -> None:
    """It is counted by the hub."""
    body = {"id": 9, **asked().body(0.0), **spoil}

    with pytest.raises(DecodeError):
        Desk().dispatch.asked(b"v", Message(Kind.COMMAND, Identity(ME.run), body=body), 0.0)
    with pytest.raises(DecodeError):
        Desk().dispatch.asked(b"v", Message(Kind.COMMAND, body={"id": 9, **asked().body(0.0)}), 0.0)


# -- in a hub


@pytest.fixture
def hub(address: Address, fitwire_dir: Path) -> Iterator[Hub]:
    made = Hub(address, fitwire_dir / "store.sqlite3")
    yield made
    made.close()


def test_only_the_source_that_was_asked_can_answer_and_a_hub_goes_on_after_nonsense(hub: Hub, address: Address) -> None:
    """Neither a viewer nor another training can say that a command was taken."""
    training, other, viewer = Peer(address), Peer(address), Peer(address)
    mine, another = Identity(RUN, 1000), Identity(b"y" * 16, 1000)
    try:
        training.greet(mine)
        other.greet(another)
        for spoil in ({"client": 7}, {"number": -1}, {"expires": None}):
            viewer.say(Kind.COMMAND, {"id": 1, **asked().body(0.0), **spoil}, Identity(RUN))
        viewer.say(Kind.COMMAND, {"id": 1, **asked().body(0.0)}, Identity(RUN))
        told = training.hear(Kind.COMMAND)
        ack = {"client": ANNA, "number": 1, "status": "accepted", "reason": ""}
        viewer.say(Kind.COMMAND_ACK, ack, mine)
        other.say(Kind.COMMAND_ACK, ack, another)
        other.say(Kind.COMMAND_ACK, ack, mine)
        training.say(Kind.COMMAND_ACK, {"client": [], "number": {}}, mine)
        heard = [viewer.hear(Kind.COMMAND_ACK).body["status"]]
        training.hear(Kind.COMMAND)  # said again, so nobody's word was taken for it
        training.say(Kind.COMMAND_ACK, ack, mine)
        heard.append(viewer.hear(Kind.COMMAND_ACK).body["status"])
    finally:
        for one in (training, other, viewer):
            one.close()

    assert (told.sender, told.body["name"]) == (mine, "stop")
    assert heard == ["sent", "accepted"]
    assert hub.counts["bad command"] >= 4
    assert not any(kind.startswith("fault") for kind in hub.counts)

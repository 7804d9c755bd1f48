"""Tests of ``fitwire.protocol.viewer``: the machine alone, and over bad links; time handed in by hand."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwire.errors import EncodeError
from fitwire.protocol.blocks import Buffer, Identity, Kind, Message, decode_message, encode_json, encode_message
from fitwire.protocol.viewer import AGAIN, MAX_BLOCKS, Asked, Viewer
from fitwire.transport.memory import LossyLink
from fitwire.watch.answers import answer, parse_question
from helpers import ME, kinds, picture, records
from test_roster import Room
from watching import RUN, Teller, row, started


def viewer() -> Viewer:
    return Viewer(jitter=lambda: 0.5)


def messages(of: Viewer, now: float) -> list[Message]:
    return [decode_message(frames) for frames in of.due(now)]


def hear(of: Viewer, kind: Kind, body: dict[str, Any], now: float = 0.0, sender: Identity = ME) -> None:
    of.receive(encode_message(Message(kind, sender, body=body)), now)


def joined() -> Viewer:
    """One that the hub has welcomed."""
    made = viewer()
    made.connected(0.0)
    (hello,) = messages(made, 0.0)
    hear(made, Kind.WELCOME, {"nonce": hello.body["nonce"]})
    assert made.joined
    return made


def test_a_hello_is_repeated_until_the_hub_has_said_welcome() -> None:
    """Each pause twice the last, up to 5 s; nothing else is said before."""
    lonely = viewer()
    lonely.connected(0.0)
    lonely.ask(Kind.RUNS, {"since": 0})
    times = [now / 100 for now in range(2000) if kinds(lonely.due(now / 100))]

    assert times[:5] == pytest.approx([0.0, 0.1, 0.3, 0.7, 1.5], abs=0.02)
    assert all(later - sooner <= 5.01 for sooner, later in itertools.pairwise(times))


def test_a_welcome_to_another_hello_is_passed_over() -> None:
    """It may be one that an earlier connection had asked for."""
    made = viewer()
    made.connected(0.0)
    (hello,) = messages(made, 0.0)
    for nonce in (None, "1", 0, hello.body["nonce"] + 1):
        hear(made, Kind.WELCOME, {"nonce": nonce})
    before = made.joined
    hear(made, Kind.WELCOME, {"nonce": hello.body["nonce"]})

    assert (before, made.joined) == (False, True)


def test_a_question_is_asked_once_and_again_after_six_seconds() -> None:
    """A hub holds one for two at most."""
    asker = joined()
    asker.ask(Kind.FETCH, {"run": RUN.hex()}, b'{"have":[]}')
    times = [now / 10 for now in range(150) if messages(asker, now / 10)]

    assert times == [0.0, AGAIN, 2 * AGAIN]


def test_an_answer_is_given_once_with_the_blocks_that_stood_before_it() -> None:
    """Those of other runs are not among them; what was given is not given again."""
    asker = joined()
    mine = asker.ask(Kind.FETCH, {"run": ME.run.hex()})
    other = asker.ask(Kind.FETCH, {"run": (b"x" * 16).hex()})
    piece = asker.ask(Kind.FETCH, {"run": ME.run.hex(), "piece": [1, 0, 1, 1, 0]})
    for block in (records(1, 3), records(4, 1)):
        asker.receive(block.frames, 0.0)
    hear(asker, Kind.GAP, {"to": 9})
    for _ in range(2):
        hear(asker, Kind.ACK, {"id": mine.number})
    answered = list(asker.answered())

    assert [asked.number for asked in answered] == [mine.number]
    assert [(block.kind, block.seq) for block in mine.blocks] == [(Kind.BLOCK, 1), (Kind.BLOCK, 4), (Kind.GAP, 0)]
    assert (other.blocks, piece.blocks) == ([], [])
    assert list(asker.answered()) == []


def test_a_new_connection_asks_all_open_questions_again_and_forgets_half_an_answer() -> None:
    """The hub keeps nothing of a viewer, so nothing is lost with it."""
    asker = joined()
    question = asker.ask(Kind.FETCH, {"run": ME.run.hex()})
    list(asker.due(0.0))
    asker.receive(records(1, 3).frames, 0.1)
    asker.disconnected()
    silent = list(asker.due(0.2))
    asker.connected(1.0)
    (hello,) = messages(asker, 1.0)
    hear(asker, Kind.WELCOME, {"nonce": hello.body["nonce"]}, 1.0)
    again = messages(asker, 1.0)

    assert kinds(silent) in ([], ["hello"])
    assert question.blocks == []
    assert [(message.kind, message.body["id"]) for message in again] == [(Kind.FETCH, question.number)]


def test_an_error_is_an_answer() -> None:
    """Whoever asked is told."""
    asker = joined()
    question = asker.ask(Kind.RUNS, {"since": 0})
    hear(asker, Kind.ERROR, {"id": question.number, "reason": "no such run"})

    assert [asked.answer.body["reason"] for asked in asker.answered() if asked.answer] == ["no such run"]


def test_what_is_not_understood_is_counted_and_changes_nothing() -> None:
    """Spoilt bytes, unknown kinds, answers to nobody's questions."""
    asker = joined()
    question = asker.ask(Kind.RUNS, {"since": 0})
    good = encode_message(Message(Kind.ACK, body={"id": question.number}))
    for frames in ([], [b"x"], [good[0], bytes(good[1])[:-1] + b"!"], [b"y" * 48, b"{}"]):
        asker.receive(frames, 0.0)
    for body in ({}, {"id": None}, {"id": 99}, {"id": [1]}, {"id": True}):
        hear(asker, Kind.ACK, body)
    asker.receive(encode_message(Message(200)), 0.0)  # pyright: ignore

    assert sum(asker.bad.values()) == 4
    assert list(asker.answered()) == []


def test_a_question_that_cannot_be_sent_is_refused_and_not_kept() -> None:
    """Else it would break each later turn."""
    asker = joined()
    with pytest.raises(EncodeError):
        asker.ask(Kind.FETCH, {"run": RUN.hex(), "have": [[2**62] * 4] * 5000})
    good = asker.ask(Kind.FETCH, {"run": RUN.hex()}, encode_json({"have": [[2**62] * 4] * 5000}))

    assert [message.body["id"] for message in messages(asker, 0.0)] == [good.number]


def test_a_hub_that_never_ends_its_answer_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks past the bound are dropped."""
    monkeypatch.setattr("fitwire.protocol.viewer.MAX_BLOCKS", 10)
    asker = joined()
    question = asker.ask(Kind.FETCH, {"run": ME.run.hex()})
    for seq in range(1, 50):
        asker.receive(records(seq).frames, 0.0)

    assert len(question.blocks) == 10
    assert MAX_BLOCKS > 8000


# -- over a link


class Pair:
    """A viewer and a hub's answers, over two directions of a link."""

    def __init__(self, room: Room, there: LossyLink, back: LossyLink) -> None:
        self.room, self.there, self.back = room, there, back
        self.viewer = viewer()
        self.viewer.connected(room.now)
        self.held: dict[int, Any] = {}
        self.done: list[Asked] = []

    def hub(self, frames: list[bytes], now: float) -> None:
        try:
            message = decode_message(frames)
            if message.kind == Kind.HELLO:
                self._send([encode_message(Message(Kind.WELCOME, body={"nonce": message.body.get("nonce")}))], now)
            elif message.kind in (Kind.RUNS, Kind.FETCH):
                question = parse_question(b"v", message, now)
                self.held[question.number] = question
        except ValueError:
            pass

    def _send(self, messages: Any, now: float) -> None:
        for frames in messages:
            self.back.send(frames, now)

    def turn(self) -> None:
        now = self.room.now
        self._out(self.viewer.due(now), now)
        for frames in self.there.receive(now):
            self.hub(frames, now)
        for number, question in list(self.held.items()):
            found = answer(question, self.room.roster, self.room.store, now)
            if found is not None:
                del self.held[number]
                self._send(found, now)
        for frames in self.back.receive(now):
            self.viewer.receive(frames, now)
        self.done += self.viewer.answered()
        self.room.now += 0.05

    def _out(self, messages: Iterator[list[Buffer]], now: float) -> None:
        for frames in messages:
            self.there.send(frames, now)


@settings(max_examples=25)
@given(
    st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.5), st.floats(0, 0.2), st.integers(0, 2**32)
)  # fmt: skip
def test_any_loss_doubling_and_spoiling_costs_time_and_no_answer(
    lost: float, doubled: float, delay: float, flipped: float, seed: int
) -> None:
    """Each question is answered exactly once; the list, a history and a piece of a block."""
    with tempfile.TemporaryDirectory() as folder:
        room = Room(Path(folder) / "store.sqlite3")
        teller = Teller()
        room.join(teller)
        room.hear([*teller.say(started(), *(row(i) for i in range(30))), picture(1, 5000, teller.sender)])
        chances = {"doubled": doubled, "delay": delay, "flipped": flipped}
        pair = Pair(room, LossyLink(lost, **chances, seed=seed), LossyLink(lost, **chances, seed=seed + 1))
        questions = [
            pair.viewer.ask(Kind.RUNS, {"since": 0}),
            pair.viewer.ask(Kind.FETCH, {"run": RUN.hex(), "since": 0}),
            pair.viewer.ask(Kind.FETCH, {"run": RUN.hex(), "piece": [1000, 0, 1, 1, 0]}),
        ]
        for _ in range(20_000):
            if len(pair.done) == 3:
                break
            pair.turn()
        room.store.close()

    assert sorted(asked.number for asked in pair.done) == [question.number for question in questions]
    assert [asked.answer is not None for asked in questions] == [True] * 3

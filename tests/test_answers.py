"""Tests of ``fitwire.watch.answers``: questions as they come, answers as they go, with a store and no socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import DecodeError
from fitwire.events import Dropped
from fitwire.protocol.blocks import (
    BULK,
    RECORDS,
    Kind,
    Message,
    decode_json,
    decode_message,
    encode_json,
    encode_message,
    pack_frames,
)
from fitwire.watch.answers import HOLD, MAX_SOURCES, PAGE_BYTES, Question, answer, parse_question, refuse
from test_roster import Room, named
from watching import RUN, T0, Teller, block_of, ended, picture, row, started


@pytest.fixture
def room(fitwire_dir: Path) -> Iterator[Room]:
    made = Room(fitwire_dir / "store.sqlite3")
    yield made
    made.close()


def ask(kind: Kind, body: dict[str, Any], *buffers: bytes, now: float = 1000.0) -> Question:
    """What a viewer sends, as the hub reads it."""
    frames = encode_message(Message(kind, body={"id": 7, **body}, buffers=buffers))
    return parse_question(b"peer", decode_message(frames), now)


def history_of(have: list[list[int]] | None = None, since: int = 0, run: bytes = RUN) -> Question:
    return ask(Kind.FETCH, {"run": run.hex(), "since": since}, encode_json({"have": have or []}))


def heard(room: Room, question: Question) -> list[Message] | None:
    """The answer as it arrives; None when it is held."""
    found = answer(question, room.roster, room.store, room.now)
    return None if found is None else [decode_message([bytes(frame) for frame in frames]) for frames in found]


def text_of(message: Message) -> dict[str, Any]:
    return decode_json(message.buffers[0], 2**20)


# -- questions


@given(
    st.dictionaries(
        st.sampled_from(["id", "run", "since", "have", "piece", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=40) | st.just(RUN.hex()),
            lambda inner: st.lists(inner, max_size=6),
            max_leaves=20,
        ),
    ),
    st.sampled_from([Kind.RUNS, Kind.FETCH]),
    st.lists(st.binary(max_size=50) | st.just(b'{"have":[[1,2,3,4],5]}') | st.just(b'{"have":7}'), max_size=2),
)  # fmt: skip
def test_any_question_is_understood_or_refused_as_what_it_is(
    body: dict[str, Any], kind: Kind, buffers: list[bytes]
) -> None:
    """Never another error than that for a peer's fault."""
    try:
        question = parse_question(b"p", Message(kind, body=body, buffers=tuple(buffers)), 0.0)
    except DecodeError:
        return

    assert question.kind in ("runs", "history", "piece")
    assert len(question.run) == 16


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.RUNS, {"since": -1}),
        (Kind.RUNS, {"since": 2**63}),
        (Kind.RUNS, {"since": True}),
        (Kind.RUNS, {"id": None, "since": 0}),
        (Kind.FETCH, {}),
        (Kind.FETCH, {"run": "abc"}),
        (Kind.FETCH, {"run": "z" * 32}),
        (Kind.FETCH, {"run": RUN.hex(), "piece": [1, 2, 3]}),
        (Kind.FETCH, {"run": RUN.hex(), "have": [[0, 0, 0]]}),
        (Kind.FETCH, {"run": RUN.hex(), "have": [[0] * 4] * 9, "since": 1.5}),
    ],
)
def test_a_question_that_is_none_is_refused(kind: Kind, body: dict[str, Any]) -> None:
    """The table."""
    with pytest.raises(DecodeError):
        ask(kind, body)


def test_a_list_of_more_sources_than_can_be_is_refused() -> None:
    """A question is not to cost the hub what it costs nobody to ask."""
    rows = [[n, 0, 1, 1] for n in range(MAX_SOURCES + 1)]

    assert len(history_of(rows[:-1]).have) == MAX_SOURCES
    with pytest.raises(DecodeError, match="16385 sources"):
        history_of(rows)


# -- the list of runs


def test_the_list_is_answered_at_once_the_first_time_and_then_when_it_changes(room: Room) -> None:
    """Held while there is nothing new, for two seconds at most."""
    empty = ask(Kind.RUNS, {"since": 0})
    first = heard(room, empty)
    assert first is not None
    since = first[0].body["revision"]
    held = ask(Kind.RUNS, {"since": since}, now=room.now)
    waits = [heard(room, held)]
    room.join(Teller())
    news = heard(room, held)
    assert news is not None
    late = ask(Kind.RUNS, {"since": news[0].body["revision"]}, now=room.now)
    waits.append(heard(room, late))
    room.now += HOLD
    in_vain = heard(room, late)
    assert in_vain is not None

    assert waits == [None, None]
    assert (first[0].kind, first[0].body["id"], text_of(first[0])) == (Kind.RUNS, 7, {"runs": []})
    assert [line["name"] for line in text_of(news[0])["runs"]] == ["calm-fox"]
    assert text_of(in_vain[0]) == {"runs": []}


def test_a_long_list_comes_in_pages_that_a_reader_takes(room: Room) -> None:
    """Runs with the longest names and tags: each page is one JSON text of at most 1 MiB, and each run comes once."""
    long = "\U0001f98a" * 256
    for number in range(60):
        teller = named(number)
        room.join(teller)
        room.hear(teller.say(started(long, project=long, tags=(long,) * 40, time=T0 + number)))
    room.roster.refresh(room.now + 1.0)
    since, pages, more = 0, [], True
    while more:
        page = heard(room, ask(Kind.RUNS, {"since": since}))
        assert page is not None
        pages.append([line["id"] for line in text_of(page[0])["runs"]])
        since, more = page[0].body["revision"], page[0].body["more"]

    assert len(pages) > 2
    assert sorted(run for page in pages for run in page) == sorted(
        named(number).sender.run.hex() for number in range(60)
    )
    assert heard(room, ask(Kind.RUNS, {"since": since})) is None


def test_a_line_that_json_cannot_hold_hides_no_other(room: Room) -> None:
    """It comes as a blank one."""
    for number in range(3):
        room.join(named(number))
    room.roster._entries[named(1).sender.run].summary["progress"] = {"eta": float("nan")}
    page = heard(room, ask(Kind.RUNS, {"since": 0}))
    assert page is not None
    lines = text_of(page[0])["runs"]

    assert [(line["id"], line["name"]) for line in lines] == [
        (named(0).sender.run.hex(), "calm-fox"), (named(1).sender.run.hex(), "?"),
        (named(2).sender.run.hex(), "calm-fox"),
    ]  # fmt: skip


# -- histories


def test_a_history_is_what_is_new_and_the_line_comes_last(room: Room) -> None:
    """Blocks as they were sent, then references and the line; the same question is held until there is more."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(started(), row(0), picture(0)))
    room.state(after=1.0)
    whole = heard(room, history_of())
    assert whole is not None
    line = text_of(whole[-1])["run"]
    follow = history_of([[1000, 0, 2, 1]], line["revision"])
    held = heard(room, follow)
    room.hear(teller.say(row(1)))
    more = heard(room, follow)
    assert more is not None

    assert [message.kind for message in whole] == [Kind.BLOCK, Kind.ACK]
    assert whole[0].buffers == tuple(map(bytes, teller.blocks[-3].frames[2:])) or whole[0].seq == 1
    assert [ref[:4] for ref in text_of(whole[-1])["samples"]] == [[1000, 0, 1, "masks"]]
    assert whole[-1].body["more"] is False
    assert held is None
    assert [(message.kind, message.seq) for message in more] == [(Kind.BLOCK, 3), (Kind.ACK, 0)]


def test_a_held_question_is_answered_after_two_seconds_and_when_the_line_changes(room: Room) -> None:
    """Also when nothing was told: time alone makes a run stalled."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(started(), row(0)))
    room.state(after=1.0)
    revision = room.roster.summary(RUN)["revision"]
    question, patient = history_of([[1000, 0, 2, 0]], revision), history_of([[1000, 0, 2, 0]], revision)
    patient.until = question.until = room.now + HOLD
    held = heard(room, question)
    room.now += HOLD
    in_vain = heard(room, question)
    room.state(after=100.0)
    patient.until = room.now + HOLD
    news = heard(room, patient)

    assert held is None
    assert in_vain is not None
    assert len(in_vain) == 1
    assert news is not None
    assert text_of(news[-1])["run"]["state"] == "stalled"


def test_a_long_history_comes_in_pages_and_the_line_with_the_last(room: Room) -> None:
    """Each about a megabyte; asking with what one has goes on where the last page ended."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(*(row(i, **{f"m{k}": 1.0 for k in range(40)}) for i in range(8000)), picture(1)))
    have, pages = [0, 0], []
    while True:
        page = heard(room, history_of([[1000, 0, *have]]))
        assert page is not None
        pages.append(page)
        for message in page[:-1]:
            assert message.seq == have[RECORDS] + 1
            have[RECORDS] += message.body["n"]
        have[BULK] += len(text_of(page[-1])["samples"])
        if not page[-1].body["more"]:
            break

    assert have == [8000, 1]
    assert len(pages) >= 3
    assert all(sum(len(b) for m in page for b in m.buffers) < PAGE_BYTES + 2**18 for page in pages)


def test_references_come_in_pages_too(room: Room) -> None:
    """A reader takes one JSON text of at most 1 MiB."""
    teller = Teller()
    room.join(teller)
    room.hear([block for i in range(6000) for block in teller.say(picture(i, "n" * 200))])
    numbers: list[int] = []
    while True:
        page = heard(room, history_of([[1000, 0, 0, len(numbers)]]))
        assert page is not None
        assert len(page[-1].buffers[0]) < 2**20
        numbers += [ref[2] for ref in text_of(page[-1])["samples"]]
        if not page[-1].body["more"]:
            break

    assert numbers == list(range(1, 6001))


def test_what_was_given_up_of_the_samples_is_told_too(room: Room) -> None:
    """Else a follower would never have all, and ask without end."""
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(picture(0)))
    room.hear([block_of(teller.sender, 2, Dropped(count=1, what="sample", reason="memory"), lane=BULK)])
    room.state(after=1.0)
    page = heard(room, history_of())
    assert page is not None

    assert [(message.kind, message.lane, message.seq) for message in page[:-1]] == [(Kind.BLOCK, BULK, 2)]
    assert heard(room, history_of([[1000, 0, 0, 2]], room.roster.summary(RUN)["revision"])) is None


def test_looking_at_a_run_that_rests_does_not_load_it_here(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are sent from the store; the asker makes the history."""
    monkeypatch.setattr("fitwire.watch.roster.KEEP_LOADED", 0)
    teller = Teller()
    room.join(teller)
    room.hear(teller.say(started(), row(0), ended()))
    room.roster.link(teller.sender, room.now, connected=False, gone=True)
    room.state(after=1.0)
    revision = room.roster.summary(RUN)["revision"]
    page = heard(room, history_of())
    assert page is not None

    assert [message.kind for message in page] == [Kind.BLOCK, Kind.ACK]
    assert heard(room, history_of([[1000, 0, 3, 0]], revision)) is None
    assert room.roster.held(RUN) is None


def test_a_run_that_is_not_here_is_said_to_be_so(room: Room) -> None:
    """At once, and it is not made."""
    page = heard(room, history_of(run=b"x" * 16))
    assert page is not None

    assert (page[0].kind, page[0].body) == (Kind.ERROR, {"id": 7, "reason": "no such run"})
    assert room.roster.summaries() == []


# -- pieces


def test_a_block_is_fetched_piece_by_piece(room: Room) -> None:
    """Until the whole is there, to the byte."""
    teller = Teller()
    room.join(teller)
    (block,) = teller.say(picture(3, size=2_500_000))
    room.hear([block])
    data = b""
    while True:
        found = heard(room, ask(Kind.FETCH, {"run": RUN.hex(), "piece": [1000, 0, BULK, 1, len(data)]}))
        assert found is not None
        data += bytes(found[0].buffers[0])
        if len(data) == found[0].body["total"]:
            break

    assert data == pack_frames(block.frames)


def test_a_piece_that_is_not_here_is_said_to_be_so(room: Room) -> None:
    """Whatever was asked for."""
    room.join(Teller())
    for place in ([1000, 0, BULK, 1, 0], [2**62, 2**62, 9, 2**62, 2**62]):
        found = heard(room, ask(Kind.FETCH, {"run": RUN.hex(), "piece": place}))
        assert found is not None
        assert (found[0].kind, found[0].body["reason"]) == (Kind.ERROR, "not in this store")


def test_a_refusal_is_a_sentence_of_bounded_length() -> None:
    """Whatever went wrong."""
    message = decode_message(refuse(Question(b"p", 3, "runs"), "x" * 100_000))

    assert (message.kind, message.body["id"], len(message.body["reason"])) == (Kind.ERROR, 3, 500)

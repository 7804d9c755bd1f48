"""Tests of ``fitwire.protocol.source`` and ``lane``: the machine alone, time and bytes handed in by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.protocol.arrays import encode_array
from fitwire.protocol.blocks import (
    BULK,
    CHUNK_BYTES,
    RECORDS,
    Block,
    Identity,
    Kind,
    Message,
    decode_message,
    encode_block,
    pack_frames,
    packed_size,
)
from fitwire.protocol.lane import Flight, Lane
from fitwire.protocol.source import GREETINGS, LOST, PROBE, REASONS, TRANSITIONS, Source, State
from helpers import ME, ListBacklog, frames_of, history, kinds, picture, records

STATES = list(State)


def source_with(blocks: list[Block] | None = None, jitter: float = 0.5) -> Source:
    return Source(ME, {"name": "calm-fox"}, ListBacklog(blocks or []), jitter=lambda: jitter)


def said(source: Source, now: float) -> list[Message]:
    return [decode_message(frames) for frames in source.due(now)]


def places(have: tuple[int, int] = (0, 0), following: Any = None, session: int = 5, **more: Any) -> dict[str, Any]:
    following = following or [[have[0] + 1, 0], [have[1] + 1, 0]]
    return {"session": session, "have": list(have), "next": following, **more}


def welcome(source: Source, now: float = 0.0, have: tuple[int, int] = (0, 0), **more: Any) -> None:
    """Answer the last hello."""
    body = {"nonce": source._nonce, "credit": {"bytes": 2**22, "records": 2**16}, "beat": 2.0}
    source.receive(frames_of(Kind.WELCOME, body | places(have) | more), now)


def streaming(blocks: list[Block] | None = None, **more: Any) -> Source:
    source = source_with(blocks)
    source.connect(0.0)
    assert kinds(source.due(0.0)) == ["hello"]
    welcome(source, **more)
    assert source.state is State.STREAMING
    return source


# -- the table


def put_in(state: State) -> Source:
    """A source in a state, brought there by what brings one there."""
    source = source_with()
    if state is State.IDLE:
        return source
    source.connect(0.0)
    list(source.due(0.0))
    if state is State.REFUSED:
        source.receive(frames_of(Kind.REJECT, {"reason": "auth"}), 0.0)
    elif state is not State.GREETING:
        welcome(source)
    if state is State.SET_ASIDE:
        source.receive(frames_of(Kind.REJECT, {"reason": "superseded"}), 0.0)
    if state is State.ENDED:
        source.goodbye("finished")
        source.receive(frames_of(Kind.BYE_OK, places()), 0.0)
    assert source.state is state
    return source


EVENTS: dict[str, Any] = {
    "connect": lambda source: source.connect(1.0),
    "welcome": lambda source: welcome(source, 1.0),
    "disconnected": lambda source: source.disconnected(1.0),
    "silent": lambda source: list(source.due(1.0 + LOST)),
    "bye_ok": lambda source: (source.goodbye("x"), source.receive(frames_of(Kind.BYE_OK, places()), 1.0)),
    **{
        reason: (lambda source, reason=reason: source.receive(frames_of(Kind.REJECT, {"reason": reason}), 1.0))
        for reason in REASONS
    },
}


def test_every_event_of_the_table_is_tried() -> None:
    """The table has no event that these tests do not bring about."""
    assert {event for _, event in TRANSITIONS} == set(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_each_event_in_each_state_does_what_the_table_says(state: State, event: str) -> None:
    """A pair in the table leads where it says; one that is not changes nothing."""
    source = put_in(state)

    EVENTS[event](source)

    assert source.state is TRANSITIONS.get((state, event), state)


# -- greeting


def test_the_hello_says_who_speaks_and_what_there_is() -> None:
    """Versions, role, a fresh number, and per lane the first and last record that are kept."""
    source = source_with(history([3, 4], [10]))
    source.connect(0.0)

    [hello] = said(source, 0.0)

    assert (hello.kind, hello.sender) == (Kind.HELLO, ME)
    assert hello.body == {
        "name": "calm-fox", "versions": [1], "role": "source", "nonce": 1, "head": [7, 1], "first": [1, 1],
    }  # fmt: skip


def test_the_hello_is_repeated_with_growing_pauses() -> None:
    """A tenth of a second at first, twice as long each time, five seconds at most; each has a number of its own."""
    source = source_with()
    source.connect(0.0)
    times, nonces, now = [], [], 0.0
    while len(times) < 9:
        for message in said(source, now):
            times.append(now)
            nonces.append(message.body["nonce"])
        now = round(now + 0.05, 2)
    pauses = [round(b - a, 2) for a, b in itertools.pairwise(times)]

    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], abs=0.051)
    assert nonces == list(range(1, 10))


def test_hellos_of_many_sources_do_not_come_at_once() -> None:
    """Each pause is spread by a quarter to either side."""
    waits = []
    for jitter in (0.0, 0.999):
        source = source_with(jitter=jitter)
        source.connect(0.0)
        list(source.due(0.0))
        waits.append(next(t / 1000 for t in range(1000) if said(source, t / 1000)))

    assert waits == pytest.approx([GREETINGS[0] * 0.75, GREETINGS[0] * 1.25], abs=0.001)


def test_a_new_connection_is_greeted_at_once() -> None:
    """Whatever pause there was, and whatever was under way, the transport's word starts anew."""
    source = source_with()
    source.connect(0.0)
    for now in range(20):
        list(source.due(float(now)))
    source.connected(20.01)

    assert kinds(source.due(20.01)) == ["hello"]


def test_a_welcome_to_an_older_hello_is_passed_over() -> None:
    """Its positions may be of before what happened since."""
    source = source_with(history([3]))
    source.connect(0.0)
    list(source.due(0.0))
    list(source.due(0.2))
    body = places() | {"nonce": 1}
    source.receive(frames_of(Kind.WELCOME, body), 0.3)

    assert source.state is State.GREETING
    welcome(source, 0.3)
    assert source.state is State.STREAMING


def test_a_busy_hub_is_greeted_again() -> None:
    """Busy is no refusal for good."""
    source = source_with()
    source.connect(0.0)
    list(source.due(0.0))
    source.receive(frames_of(Kind.REJECT, {"reason": "busy"}), 0.0)

    assert source.state is State.GREETING
    assert kinds(source.due(0.2)) == ["hello"]


def test_a_source_that_is_set_aside_knows_by_whom() -> None:
    """The newer incarnation is told, for the one sentence that the user sees; then nothing is sent any more."""
    source = streaming(history([3]))
    source.receive(frames_of(Kind.REJECT, {"reason": "superseded", "newer": ME.incarnation + 1}), 0.0)

    assert (source.state, source.newer) == (State.SET_ASIDE, ME.incarnation + 1)
    assert said(source, 100.0) == []


def test_a_refusal_with_the_name_of_another_event_does_nothing() -> None:
    """The peer names a reason, never a transition."""
    source = streaming()
    for reason in ("bye_ok", "disconnected", "silent", "connect"):
        source.receive(frames_of(Kind.REJECT, {"reason": reason}), 0.0)

    assert source.state is State.STREAMING


# -- streaming within credit


def test_it_starts_after_what_the_hub_has() -> None:
    """have + 1, and what the hub has committed is forgotten here."""
    source = streaming(history([3, 4, 5]), have=(3, 0))

    assert [(m.kind, m.seq) for m in said(source, 0.0)] == [(Kind.BLOCK, 4), (Kind.BLOCK, 8)]
    assert source.backlog.first(RECORDS) == 4


def test_no_more_records_are_under_way_than_credit_allows() -> None:
    """What is not committed stays within the hub's number; each commit makes room."""
    source = streaming(history([10] * 5), credit={"bytes": 2**22, "records": 25})

    assert [m.seq for m in said(source, 0.0)] == [1, 11, 21]
    assert said(source, 0.1) == []
    source.receive(frames_of(Kind.ACK, places((10, 0), [[31, 0], [1, 0]])), 0.1)
    assert [m.seq for m in said(source, 0.1)] == [31]


def test_no_more_bytes_are_under_way_than_credit_allows() -> None:
    """A flood waits here, not in the hub's memory; at most one message goes over."""
    blocks = history([200] * 100)
    source = streaming(blocks, credit={"bytes": 2**16, "records": 2**16})

    sent = sum(packed_size(frames) for frames in source.due(0.0))

    assert 2**16 <= sent < 2**16 + blocks[0].nbytes


@pytest.mark.parametrize("credit", [None, 3, {}, {"bytes": -5, "records": 0}, {"bytes": "x", "records": 2**62}])
def test_a_senseless_credit_still_lets_something_pass(credit: Any) -> None:
    """A hub that grants nothing, or nonsense, gets one block at a time; nothing is raised."""
    source = streaming(history([3]), credit=credit)

    assert kinds(source.due(0.0)) == ["block"]


def test_an_acknowledgement_trims_the_backlog() -> None:
    """What the store has committed is forgotten, and nothing else."""
    source = streaming(history([3, 4], [10]))
    list(source.due(0.0))
    source.receive(frames_of(Kind.ACK, places((3, 0), [[8, 0], [2, 0]])), 0.1)

    assert source.have == [3, 0]
    assert (source.backlog.first(RECORDS), source.backlog.first(BULK)) == (4, 1)
    assert not source.drained


def test_what_was_lost_is_sent_again_once_for_each_complaint() -> None:
    """Many acknowledgements complain of one loss: going back for each would multiply it."""
    source = streaming(history([1] * 5))
    list(source.due(0.0))
    for _ in range(3):
        source.receive(frames_of(Kind.ACK, places((0, 0), [[2, 0], [1, 0]], gap=RECORDS)), 0.05)

    assert [m.seq for m in said(source, 0.05)] == [2, 3, 4, 5]
    assert source.replays == 1
    source.receive(frames_of(Kind.ACK, places((0, 0), [[2, 0], [1, 0]], gap=RECORDS)), 0.5)
    assert [m.seq for m in said(source, 0.5)] == [2, 3, 4, 5]


def test_the_last_message_lost_is_found_by_asking() -> None:
    """Nothing comes after it to show the gap: a second later the source asks, and the pong shows it."""
    source = streaming(history([1, 1]))
    list(source.due(0.0))
    source.receive(frames_of(Kind.ACK, places((1, 0))), 0.1)
    assert said(source, 0.9) == []
    [ping] = said(source, 0.1 + PROBE)
    source.receive(frames_of(Kind.PONG, places((1, 0)) | {"id": ping.body["id"]}), 1.2)

    assert (ping.kind, ping.body["sent"]) == (Kind.PING, [[3, 0], [1, 0]])
    assert [m.seq for m in said(source, 1.2)] == [2]


def test_a_pong_to_an_older_ping_shows_nothing() -> None:
    """What left after it may simply not be there yet."""
    source = streaming(history([1]))
    list(source.due(0.0))
    assert kinds(source.due(PROBE)) == ["ping"]
    assert kinds(source.due(2 * PROBE)) == ["ping"]
    source.receive(frames_of(Kind.PONG, places() | {"id": 1}), 2 * PROBE)

    assert said(source, 2 * PROBE) == []


# -- a hub with another store


def test_a_hub_without_what_was_forgotten_is_told_so() -> None:
    """What an earlier store took is gone from here: a gap with the reason, then the rest."""
    source = streaming(history([3, 4, 5]), have=(7, 0))
    source.connected(1.0)
    list(source.due(1.0))
    welcome(source, 1.0, session=6)

    gap, block = said(source, 1.0)

    assert (gap.kind, gap.lane, gap.seq, gap.body["to"]) == (Kind.GAP, RECORDS, 1, 7)
    assert "another store" in gap.body["reason"]
    assert (block.kind, block.seq) == (Kind.BLOCK, 8)


def test_a_lost_gap_is_said_again() -> None:
    """The hub complains of the place before it, and hears of the gap once more."""
    source = streaming(history([3, 4]), have=(3, 0))
    source.connected(1.0)
    list(source.due(1.0))
    welcome(source, 1.0, session=6)
    assert kinds(source.due(1.0)) == ["gap", "block"]
    source.receive(frames_of(Kind.ACK, places((0, 0), session=6, gap=RECORDS)), 1.1)

    assert kinds(source.due(1.1)) == ["gap", "block"]


def test_an_old_session_cannot_acknowledge_for_a_new_one() -> None:
    """A hub that lost its store must get what only the old one has: its late acks are passed over."""
    source = streaming(history([3, 4]), session=5)
    list(source.due(0.0))
    source.connected(1.0)
    list(source.due(1.0))
    welcome(source, 1.0, session=6)
    source.receive(frames_of(Kind.ACK, places((7, 0), session=5)), 1.1)

    assert source.have == [0, 0]
    assert source.backlog.first(RECORDS) == 1
    assert source.state is State.STREAMING


def test_a_session_never_heard_of_is_greeted() -> None:
    """The hub was restarted and knows us by a hello that came late: its positions are of a welcome we never read."""
    source = streaming(history([3, 4]), session=5)
    source.receive(frames_of(Kind.ACK, places((3, 0), session=9)), 1.0)

    assert (source.state, source.have) == (State.GREETING, [0, 0])
    assert kinds(source.due(1.0)) == ["hello"]


# -- a hostile or buggy hub


@pytest.mark.parametrize(
    "body",
    [
        {"session": 5},
        places((8, 0)),
        places((0, 1)),
        places((3, 0), [[9, 0], [1, 0]]),
        places((3, 0), [[3, 0], [1, 0]]),
        places((3, 0), [[5, -1], [1, 0]]),
        places((3, 0), [[4, 0]]),
        {"session": 5, "have": [3], "next": [[4, 0], [1, 0]]},
        {"session": 5, "have": [3.0, 0], "next": [[4, 0], [1, 0]]},
        {"session": 5, "have": [True, 0], "next": [[4, 0], [1, 0]]},
        {"session": 5, "have": [-1, 0], "next": [[4, 0], [1, 0]]},
        {"session": 5, "have": "70", "next": [[4, 0], [1, 0]]},
        {"session": 5, "have": [3, 0], "next": {"0": 1}},
        {"session": 5, "have": [3, 0], "next": [[4, 0, 0], [1, 0]]},
        {"session": 5, "have": [3, 0], "next": [4, 1]},
    ],
)
def test_positions_that_cannot_be_are_counted_and_change_nothing(body: dict[str, Any]) -> None:
    """A hub cannot have what was never written, nor be behind itself: nothing is trimmed for such a claim."""
    source = streaming(history([3, 4]))
    list(source.due(0.0))
    source.receive(frames_of(Kind.ACK, body), 0.1)

    assert source.bad["ack"] == 1
    assert source.have == [0, 0]
    assert source.backlog.first(RECORDS) == 1


def test_positions_for_another_source_are_not_believed() -> None:
    """A hub that mixes up two ranks must not make one forget what it owes."""
    source = streaming(history([3]))
    list(source.due(0.0))
    other = Identity(ME.run, ME.incarnation, rank=1)
    source.receive(frames_of(Kind.ACK, places((3, 0)), sender=other), 0.1)

    assert (source.bad["sender"], source.have) == (1, [0, 0])


def test_a_place_inside_no_block_sends_nothing_and_recovers() -> None:
    """A hub asks for the middle of a block: there is no such thing, and the next welcome goes on."""
    source = streaming(history([3, 4]))
    list(source.due(0.0))
    source.receive(frames_of(Kind.ACK, places((0, 0), [[2, 0], [1, 0]], gap=RECORDS)), 0.3)
    assert said(source, 0.3) == []
    source.connected(1.0)
    list(source.due(1.0))
    welcome(source, 1.0)

    assert [m.seq for m in said(source, 1.0)] == [1, 4]


def test_an_offset_past_the_end_of_its_block_starts_the_block_anew() -> None:
    """A block may have shrunk to a tombstone since its first chunk left."""
    source = streaming([picture(1, 500_000)])
    source.connected(1.0)
    list(source.due(1.0))
    welcome(source, 1.0, session=6, next=[[1, 0], [1, 900_000]])

    assert said(source, 1.0)[0].body["at"] == 0


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 12) | st.just(2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3), max_leaves=6,
)  # fmt: skip
BODIES = st.dictionaries(
    st.sampled_from(["nonce", "session", "have", "next", "gap", "credit", "beat", "id", "reason", "newer"]),
    ANY | st.just([3, 0]) | st.just([[4, 0], [1, 0]]) | st.just(5) | st.just(1) | st.sampled_from(REASONS),
)


@given(st.lists(st.tuples(st.sampled_from(Kind), BODIES) | st.lists(st.binary(max_size=60), max_size=3), max_size=8))
def test_nothing_that_a_hub_says_is_raised_or_loses_a_record(messages: list[Any]) -> None:
    """Any messages in any order: no error, no endless sending, and only what was claimed to be stored is forgotten."""
    source = source_with(history([3, 4], [200_000]))
    source.connect(0.0)
    list(source.due(0.0))
    for index, message in enumerate(messages):
        frames = frames_of(*message) if isinstance(message, tuple) else message
        source.receive(frames, index * 0.5)
        assert sum(1 for _ in source.due(index * 0.5)) < 50

    assert all(source.backlog.first(lane) <= have + 1 for lane, have in enumerate(source.have))


# -- pictures


def test_a_large_block_crosses_in_chunks_that_add_up() -> None:
    """Together they are the packed block, each says where it belongs, and none is over 1 MiB."""
    block = picture(1, 3_000_000)
    source = streaming([block])
    data, now = b"", 0.0
    while len(data) < block.nbytes:
        for chunk in said(source, now):
            assert (chunk.kind, chunk.lane, chunk.seq) == (Kind.CHUNK, BULK, 1)
            assert (chunk.body["at"], chunk.body["total"], chunk.body["n"]) == (len(data), block.nbytes, 1)
            data += b"".join(map(bytes, chunk.buffers))
            assert len(b"".join(map(bytes, chunk.buffers))) <= CHUNK_BYTES
        now += 0.01
        source.receive(frames_of(Kind.ACK, places((0, 0), [[1, 0], [1, min(len(data), block.nbytes - 1)]])), now)

    assert data == pack_frames(block.frames)


def test_a_loss_passes_between_the_chunks_of_a_picture() -> None:
    """A record that is written while a picture crosses leaves before the picture's next chunk."""
    source = streaming([picture(1, 40 * 2**20)])
    assert set(kinds(source.due(0.0))) == {"chunk"}
    source.backlog.append(records(1))
    source.receive(frames_of(Kind.ACK, places((0, 0), [[1, 0], [1, 262_144]])), 0.01)

    assert kinds(source.due(0.01))[0] == "block"


def test_on_a_slow_line_little_of_a_picture_is_under_way() -> None:
    """When a chunk takes over half a second, the window halves, down to one of 64 KiB: a loss waits behind no more."""
    source = streaming([picture(1, 40 * 2**20)])
    at, now, flights = 0, 0.0, []
    for _ in range(8):
        sizes = [sum(map(len, m.buffers)) for m in said(source, now) if m.kind == Kind.CHUNK]
        flights.append(sum(sizes))
        at, now = at + sum(sizes), now + 0.6
        source.receive(frames_of(Kind.ACK, places((0, 0), [[1, 0], [1, at]])), now)

    assert flights[0] == 2**20
    assert flights[-1] == 2**16


def test_on_a_fast_line_the_window_grows_to_the_credit() -> None:
    """Round trips under a tenth of a second double what may be under way."""
    source = streaming([picture(1, 60 * 2**20)])
    at, now, flights = 0, 0.0, []
    for _ in range(6):
        sizes = [sum(map(len, m.buffers)) for m in said(source, now) if m.kind == Kind.CHUNK]
        flights.append(sum(sizes))
        at, now = at + sum(sizes), now + 0.01
        source.receive(frames_of(Kind.ACK, places((0, 0), [[1, 0], [1, at]])), now)

    assert max(flights) == 2**22


def test_a_chunk_over_many_small_arrays_is_still_a_message() -> None:
    """A sample of 64 arrays has more pieces than a message may have buffers."""
    arrays = [encode_array(np.zeros(4, np.uint8))] * 63 + [encode_array(np.zeros(2_000_000, np.uint8))]
    block = encode_block(ME, BULK, 1, 0, [{"t": "sample", "b": 64}], arrays)
    source = streaming([block])

    assert kinds(source.due(0.0))[0] == "chunk"


# -- heartbeat and silence


def test_a_quiet_source_speaks_every_beat() -> None:
    """The beat is the hub's to set."""
    source = streaming(beat=3.0)
    times = []
    for now in range(12):
        for message in said(source, float(now)):
            times.append((now, message.kind))
            source.receive(frames_of(Kind.PONG, places() | {"id": message.body["id"]}), float(now))

    assert times == [(3, Kind.PING), (6, Kind.PING), (9, Kind.PING)]


def test_what_is_said_anyway_is_heartbeat_enough() -> None:
    """A source that has just sent a record does not ping."""
    source = streaming(beat=3.0)
    source.backlog.append(records(1))

    assert kinds(source.due(2.0)) == ["block"]
    source.receive(frames_of(Kind.ACK, places((1, 0))), 2.0)
    assert [kinds(source.due(t)) for t in (3.0, 4.9, 5.0)] == [[], [], ["ping"]]


@pytest.mark.parametrize("beat", ["x", None, 0, -1, 1e9, [2]])
def test_a_senseless_beat_is_passed_over(beat: Any) -> None:
    """Neither a flood of pings nor silence for ever."""
    source = streaming(beat=beat)

    assert [kinds(source.due(t)) for t in (1.9, 2.0)] == [[], ["ping"]]


def test_a_ping_is_answered() -> None:
    """The hub learns that the process is there, whatever the training does."""
    source = streaming()
    source.receive(frames_of(Kind.PING, {"id": 3}), 0.1)

    assert [(m.kind, m.body) for m in said(source, 0.1)] == [(Kind.PONG, {"id": 3})]


def test_a_hub_that_says_nothing_is_greeted_again() -> None:
    """The connection seems to stand and no word comes: after ten seconds the source says hello, and goes on."""
    source = streaming(history([1]))
    heard = [kind for t in range(int(LOST)) for kind in kinds(source.due(float(t)))]
    assert "hello" not in heard

    assert "hello" in kinds(source.due(LOST))
    welcome(source, LOST)
    assert [m.seq for m in said(source, LOST)] == [1]


# -- goodbye


def test_goodbye_waits_until_all_is_sent() -> None:
    """It stands behind the last record, says what the last ones are, and comes again until it is confirmed."""
    source = streaming(history([2] * 5, [10]), credit={"bytes": 2**22, "records": 4})
    source.goodbye("finished")
    assert "goodbye" not in kinds(source.due(0.0))
    source.receive(frames_of(Kind.ACK, places((8, 0), [[9, 0], [2, 0]])), 0.1)

    *_, goodbye = said(source, 0.1)
    assert goodbye.kind == Kind.GOODBYE
    assert goodbye.body.items() >= {"status": "finished", "final": [10, 1]}.items()
    source.goodbye("finished")
    assert said(source, 0.15) == []
    assert [m.kind for m in said(source, 0.35)] == [Kind.GOODBYE]


def test_the_end_is_confirmed_only_when_all_is_stored() -> None:
    """A confirmation that does not have everything ends nothing."""
    source = streaming(history([2, 2]))
    source.goodbye("finished")
    list(source.due(0.0))
    source.receive(frames_of(Kind.BYE_OK, places((2, 0), [[5, 0], [1, 0]])), 0.1)
    assert source.state is State.STREAMING
    source.receive(frames_of(Kind.BYE_OK, places((4, 0))), 0.2)

    assert (source.state, source.drained) == (State.ENDED, True)
    assert said(source, 60.0) == []


def test_a_confirmation_nobody_asked_for_ends_nothing() -> None:
    """The hub cannot end a run."""
    source = streaming()
    source.receive(frames_of(Kind.BYE_OK, places()), 0.1)

    assert source.state is State.STREAMING


def test_messages_of_the_callers_own_go_out_and_commands_come_in() -> None:
    """The machine carries commands and answers; what they mean is not its business."""
    source = streaming()
    source.receive(frames_of(Kind.COMMAND, {"name": "stop"}), 0.1)
    source.send(Kind.COMMAND_ACK, {"status": "accepted"}, 0.1)

    assert [m.body["name"] for m in source.commands] == ["stop"]
    assert [m.kind for m in said(source, 0.1)] == [Kind.COMMAND_ACK]


def test_a_flood_of_commands_is_bounded() -> None:
    """A peer cannot fill the trainer's memory."""
    source = streaming()
    for number in range(500):
        source.receive(frames_of(Kind.COMMAND, {"id": number}), 0.1)

    assert len(source.commands) == 100


# -- the lane


def test_a_lane_never_goes_back_before_what_is_committed() -> None:
    """An old complaint, overtaken by an acknowledgement, asks for what is gone."""
    lane = Lane()
    for number in range(1, 6):
        lane.launch(Flight((number + 1, 0), 10, 0.0, chunk=False))
    lane.committed(3)

    assert lane.go_back((2, 0), 1.0)
    assert lane.next == (4, 0)
    assert not lane.go_back((9, 0), 2.0)


MOVES = st.tuples(st.sampled_from(["launch", "commit", "back", "land"]), st.integers(1, 30), st.integers(0, 3))


@given(st.lists(MOVES))
def test_bytes_in_flight_are_those_of_the_flights(moves: list[tuple[str, int, int]]) -> None:
    """Whatever happens in whatever order, the sum is right, and flights stay in order between have and next."""
    lane = Lane()
    for now, (move, number, offset) in enumerate(moves):
        if move == "launch":
            after = (lane.next[0], lane.next[1] + offset) if offset else (lane.next[0] + 1, 0)
            lane.launch(Flight(after, number, float(now), chunk=bool(offset)))
        elif move == "commit":
            lane.committed(min(number, lane.next[0] - 1))
        elif move == "back":
            lane.go_back((number, offset), float(now))
        lane.landed((min(number, lane.next[0]), offset if number < lane.next[0] else 0), float(now))

        assert lane.in_flight == sum(flight.nbytes for flight in lane.flights)
        assert lane.next >= (lane.have + 1, 0)
        assert [f.after for f in lane.flights] == sorted(f.after for f in lane.flights)

"""Tests of ``fitwire.protocol.sink``: the hub's machine alone, time and bytes handed in by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.protocol.blocks import (
    BULK,
    MAX_BLOCK_BYTES,
    RECORDS,
    Block,
    Buffer,
    Identity,
    Kind,
    Message,
    decode_message,
    encode_message,
    pack_frames,
)
from fitwire.protocol.sink import GAP_AGAIN, Sink, reject
from helpers import ME, frames_of, kinds, picture, records


def give(sink: Sink, frames: Any, now: float = 0.0) -> None:
    """Hand a message in, as the hub does."""
    sink.receive(decode_message(frames), frames, now)


def said(sink: Sink, now: float = 0.0) -> list[Message]:
    return [decode_message(frames) for frames in sink.due(now)]


def commit(sink: Sink, now: float = 0.0) -> list[Block]:
    blocks = [block for block, _ in sink.take()]
    sink.committed(blocks, now)
    return blocks


def chunk(block: Block, at: int, size: int, change: dict[str, Any] | None = None) -> list[Buffer]:
    packed = pack_frames(block.frames)
    body = {"at": at, "total": len(packed), "n": 1} | (change or {})
    return encode_message(Message(Kind.CHUNK, ME, block.lane, block.first, 0, body, (packed[at : at + size],)))


def quiet(**options: Any) -> Sink:
    """A sink that has nothing of its own to say for now."""
    return Sink(ME, **{"beat": 1e6, "session": 5, **options})


# -- welcome


def test_the_welcome_says_what_is_had_and_what_may_come() -> None:
    """The hello's number back, per lane what is stored and what comes next, credit, beat, and the session."""
    sink = quiet(have=(7, 2), credit=(1000, 10), beat=3.0)
    give(sink, frames_of(Kind.HELLO, {"nonce": 4}))

    [welcome] = said(sink)

    assert (welcome.kind, welcome.sender) == (Kind.WELCOME, ME)
    assert welcome.body == {
        "nonce": 4, "session": 5, "have": [7, 2], "next": [[8, 0], [3, 0]],
        "credit": {"bytes": 1000, "records": 10}, "beat": 3.0,
    }  # fmt: skip


def test_each_machine_has_a_session_of_its_own() -> None:
    """Two lives of a hub are told apart."""
    assert Sink(ME).session != Sink(ME).session


def test_a_hello_in_the_middle_tells_what_was_taken() -> None:
    """A source that greets again goes on after what arrived, committed or not; half a picture starts anew."""
    sink = quiet()
    give(sink, records(1, 3).frames)
    give(sink, chunk(picture(1, 1000), 0, 100))
    give(sink, frames_of(Kind.HELLO, {"nonce": 1}))

    *_, welcome = said(sink)

    assert welcome.body["next"] == [[4, 0], [1, 0]]
    assert welcome.body["have"] == [0, 0]


def test_a_refusal_names_its_reason() -> None:
    """What the hub answers to a hello it cannot accept."""
    message = decode_message(reject(ME, "superseded", newer=9))

    assert (message.kind, message.sender, message.body) == (Kind.REJECT, ME, {"reason": "superseded", "newer": 9})


# -- in order


def test_only_what_comes_next_is_taken() -> None:
    """Blocks in their place come out in order, with what they say."""
    sink = quiet()
    for block in (records(1, 2), records(3, 1), records(4, 5)):
        give(sink, block.frames)

    taken = sink.take()

    assert [(block.first, block.last) for block, _ in taken] == [(1, 2), (3, 3), (4, 8)]
    assert all(message.kind == Kind.BLOCK for _, message in taken)
    assert sink.take() == []


def test_nothing_is_acknowledged_before_it_is_committed() -> None:
    """Taken is not had: only the store's word makes it so."""
    sink = quiet()
    give(sink, records(1, 2).frames)
    assert said(sink) == []
    assert sink.have == [0, 0]
    commit(sink)

    [ack] = said(sink)
    assert (ack.kind, ack.body["have"], ack.body["next"]) == (Kind.ACK, [2, 0], [[3, 0], [1, 0]])


def test_committing_nothing_says_nothing() -> None:
    """An idle hub sends no acknowledgements."""
    sink = quiet()
    sink.committed([], 0.0)

    assert said(sink) == []


def test_lanes_are_counted_apart() -> None:
    """A sample neither waits for a record nor is waited for."""
    sink = quiet()
    give(sink, picture(1, 10).frames)
    give(sink, records(1, 2).frames)
    commit(sink)

    assert sink.have == [2, 1]


def test_a_duplicate_is_put_aside_and_acknowledged_again_once_stored() -> None:
    """The acknowledgement may have been what was lost; but none is given for what is not in the store."""
    sink = quiet()
    give(sink, records(1, 2).frames)
    give(sink, records(1, 2).frames)
    assert said(sink) == []
    commit(sink)
    list(sink.due(0.0))
    give(sink, records(1, 2).frames)

    assert kinds(sink.due(0.0)) == ["ack"]
    assert (sink.duplicates, sink.take()) == (2, [])


def test_a_gap_is_complained_of_with_its_place() -> None:
    """Higher than the next: not taken, and the source is told where to go on."""
    sink = quiet()
    give(sink, records(1, 2).frames)
    give(sink, records(4, 1).frames)

    [complaint] = said(sink)

    assert (complaint.kind, complaint.body["gap"], complaint.body["next"][RECORDS]) == (Kind.ACK, RECORDS, [3, 0])
    assert [block.first for block, _ in sink.take()] == [1]
    assert sink.gaps == 1


def test_one_gap_is_not_complained_of_for_each_block_behind_it() -> None:
    """Again only after a while: a complaint makes the source send all of it anew."""
    sink = quiet()
    for first in range(3, 50):
        give(sink, records(first).frames, now=0.0)
    assert len(said(sink)) == 1
    give(sink, records(50).frames, now=GAP_AGAIN)

    assert len(said(sink)) == 1


def test_a_block_that_begins_too_early_is_a_fault() -> None:
    """Blocks are never cut anew, so one that overlaps what is here is somebody's mistake."""
    sink = quiet()
    give(sink, records(1, 3).frames)
    give(sink, records(2, 5).frames)

    assert sink.bad["sequence"] == 1
    assert [block.first for block, _ in sink.take()] == [1]


def test_a_declared_gap_is_taken_in_its_place() -> None:
    """What the source no longer has is stored as such, so that what is missing has a name."""
    sink = quiet()
    give(sink, frames_of(Kind.GAP, {"to": 7, "reason": "why"}, seq=1))
    give(sink, records(8, 1).frames)

    gap, block = sink.take()

    assert (gap[0].first, gap[0].last, gap[0].count, gap[1].kind) == (1, 7, 7, Kind.GAP)
    assert (block[0].first, sink.gaps) == (8, 1)


def test_a_declared_gap_elsewhere_changes_nothing() -> None:
    """One that is behind was answered already; one that is ahead shows that something is missing before it."""
    sink = quiet()
    give(sink, records(1, 3).frames)
    give(sink, frames_of(Kind.GAP, {"to": 9}, seq=2))
    assert said(sink) == []
    give(sink, frames_of(Kind.GAP, {"to": 9}, seq=6))

    assert [m.body["gap"] for m in said(sink)] == [RECORDS]
    assert [block.last for block, _ in sink.take()] == [3]


# -- chunks


def test_chunks_add_up_to_their_block() -> None:
    """However it was cut; each piece is acknowledged, so that the line's speed is known."""
    sink, block = quiet(), picture(1, 1000)
    acks = []
    for at in range(0, block.nbytes, 400):
        give(sink, chunk(block, at, 400))
        acks += [m.body["next"][BULK] for m in said(sink)]

    [(whole, message)] = sink.take()

    assert acks == [[1, at] for at in range(400, block.nbytes, 400)]
    assert pack_frames(whole.frames) == pack_frames(block.frames)
    assert (message.kind, sink.pending_bytes) == (Kind.BLOCK, 0)


def test_metrics_pass_between_the_chunks_of_a_picture() -> None:
    """A record that arrives in the middle is taken at once, and the picture goes on."""
    sink, block = quiet(), picture(1, 1000)
    give(sink, chunk(block, 0, 500))
    give(sink, records(1).frames)
    assert [b.lane for b, _ in sink.take()] == [RECORDS]
    give(sink, chunk(block, 500, 5000))

    assert [b.lane for b, _ in sink.take()] == [BULK]


def test_a_lost_chunk_is_asked_for_by_its_place() -> None:
    """The complaint names the byte; a chunk that came twice is put aside."""
    sink, block = quiet(), picture(1, 1000)
    give(sink, chunk(block, 0, 300))
    list(sink.due(0.0))
    give(sink, chunk(block, 600, 300))
    give(sink, chunk(block, 0, 300))

    [complaint] = said(sink)

    assert (complaint.body["gap"], complaint.body["next"][BULK]) == (BULK, [1, 300])
    assert (sink.duplicates, sink.pending_bytes) == (1, 300)


def test_a_block_that_shrank_on_the_way_starts_anew() -> None:
    """A sample under pressure becomes a tombstone: what came of the larger one is thrown away."""
    sink = quiet()
    give(sink, chunk(picture(1, 1000), 0, 300))
    give(sink, picture(1, 5).frames)

    [(block, _)] = sink.take()

    assert (block.nbytes, sink.pending_bytes) == (picture(1, 5).nbytes, 0)
    give(sink, chunk(picture(2, 1000), 0, 300))
    give(sink, chunk(picture(2, 500), 300, 100))
    assert said(sink)[-1].body["next"][BULK] == [2, 0]


def test_chunks_that_were_spoilt_together_come_again_from_the_start() -> None:
    """Each piece was whole, the sum is not: the checksum of the block finds it, and the block is asked for."""
    sink, block, other = quiet(), picture(1, 1000), bytearray(pack_frames(picture(1, 1000).frames))
    other[-1] ^= 1
    give(sink, chunk(block, 0, 600))
    list(sink.due(0.0))
    body = {"at": 600, "total": block.nbytes, "n": 1}
    give(sink, encode_message(Message(Kind.CHUNK, ME, BULK, 1, 0, body, (bytes(other[600:]),))))

    [complaint] = said(sink)

    assert (sink.bad["crc"], sink.take()) == (1, [])
    assert (complaint.body["gap"], complaint.body["next"][BULK]) == (BULK, [1, 0])


@pytest.mark.parametrize(
    "change",
    [
        {"at": -1}, {"at": None}, {"at": 0.5}, {"at": True}, {"total": 0}, {"total": -1}, {"total": "9"},
        {"total": MAX_BLOCK_BYTES + 1}, {"total": 50},
    ],
)  # fmt: skip
def test_a_chunk_without_a_sensible_place_or_size_is_counted(change: dict[str, Any]) -> None:
    """No more memory than a block's limit, and none for what cannot be."""
    sink = quiet()
    give(sink, chunk(picture(1, 1000), 0, 100, change))

    assert (sink.bad["chunk"], sink.pending_bytes) == (1, 0)


def test_chunks_of_another_sources_block_are_refused() -> None:
    """The outside says whose it is, and so must the inside."""
    sink = quiet()
    inner = picture(1, 10, sender=Identity(bytes(16), 1, 1))
    give(sink, chunk(inner, 0, inner.nbytes))

    assert (sink.bad["chunk"], sink.take()) == (1, [])


# -- heartbeat


def test_a_ping_is_answered_with_where_the_hub_stands() -> None:
    """The source learns what was lost without anything coming after it."""
    sink = quiet()
    give(sink, records(1, 2).frames)
    give(sink, frames_of(Kind.PING, {"id": 8}), now=0.5)

    [pong] = said(sink, 0.5)

    assert (pong.kind, pong.body["id"], pong.body["next"][RECORDS]) == (Kind.PONG, 8, [3, 0])
    assert sink.heard == 0.5


def test_a_quiet_hub_speaks_every_beat() -> None:
    """Once for each beat in which it has said nothing else."""
    sink = Sink(ME, beat=2.0)
    give(sink, frames_of(Kind.HELLO, {"nonce": 1}), now=1.0)
    assert kinds(sink.due(1.0)) == ["welcome"]

    assert [kinds(sink.due(t)) for t in (2.9, 3.0, 4.9, 5.0)] == [[], ["ping"], [], ["ping"]]


# -- goodbye


def test_the_end_is_confirmed_once_all_of_it_is_stored() -> None:
    """Not when it has arrived: when the store has it."""
    sink = quiet()
    give(sink, records(1, 2).frames)
    give(sink, frames_of(Kind.GOODBYE, {"status": "finished", "final": [2, 0]}))
    assert said(sink) == []
    assert not sink.complete
    commit(sink)

    assert [m.kind for m in said(sink)] == [Kind.ACK, Kind.BYE_OK]
    assert (sink.complete, sink.status, sink.final) == (True, "finished", [2, 0])


def test_a_goodbye_over_a_gap_is_a_complaint() -> None:
    """The last record may be what was lost."""
    sink = quiet()
    give(sink, records(1, 2).frames)
    give(sink, frames_of(Kind.GOODBYE, {"status": "finished", "final": [3, 1]}))

    assert [m.body["gap"] for m in said(sink)] == [RECORDS, BULK]


def test_a_repeated_goodbye_is_confirmed_again() -> None:
    """The confirmation may have been lost."""
    sink = quiet()
    for _ in range(2):
        give(sink, frames_of(Kind.GOODBYE, {"status": "finished", "final": [0, 0]}))
        assert kinds(sink.due(0.0)) == ["bye_ok"]


@pytest.mark.parametrize("final", [None, 3, [], [1], [1, 2, 3], [1, -1], [1, 2.0], [True, 0], [2**63, 0], ["1", "2"]])
def test_a_goodbye_without_sensible_numbers_is_counted(final: Any) -> None:
    """It ends nothing."""
    sink = quiet()
    give(sink, frames_of(Kind.GOODBYE, {"status": "finished", "final": final}))

    assert (sink.bad["goodbye"], sink.final, said(sink)) == (1, None, [])


# -- a hostile or buggy source


def test_another_sources_messages_are_counted_and_nothing_else() -> None:
    """A machine is one source's: no other run, rank or incarnation can write into it."""
    sink = quiet()
    for other in (Identity(bytes(16), ME.incarnation), Identity(ME.run, 1), Identity(ME.run, ME.incarnation, 1)):
        give(sink, records(1, sender=other).frames, now=9.0)

    assert (sink.bad["sender"], sink.take(), sink.heard) == (3, [], 0.0)


def test_a_block_whose_parts_do_not_add_up_is_asked_for_again() -> None:
    """It may have been spoilt before it was summed."""
    sink, body = quiet(), decode_message(records(1).frames).body
    give(sink, frames_of(Kind.BLOCK, body | {"n": 2}, seq=1))

    assert (sink.bad["count"], sink.take()) == (1, [])
    assert [m.body["gap"] for m in said(sink)] == [RECORDS]


@pytest.mark.parametrize("to", [None, "7", 0, 7.0, True, 2**63 - 1, 2**64 - 1])
def test_a_declared_gap_without_a_sensible_end_is_counted(to: Any) -> None:
    """Its numbers go into a database whose integers have 63 bits."""
    sink = quiet()
    give(sink, frames_of(Kind.GAP, {"to": to}, seq=1))

    assert (sink.bad["gap"], sink.take()) == (1, [])


def test_a_kind_from_the_future_is_passed_over() -> None:
    """Heard, and nothing else."""
    sink = quiet()
    give(sink, frames_of(200, {}), now=3.0)

    assert (sink.heard, sink.bad.total(), said(sink)) == (3.0, 0, [])


BODIES = st.dictionaries(
    st.sampled_from(["nonce", "final", "status", "to", "at", "total", "n", "id", "parts", "buffers"]),
    st.none()
    | st.integers(-2, 9)
    | st.just(2**63)
    | st.just([3, 0])
    | st.just([{"n": 1}])
    | st.just([])
    | st.text("a"),
)
MESSAGES = st.builds(
    lambda kind, lane, seq, body, buffers: Message(kind, ME, lane, seq, 0, body, buffers),
    st.sampled_from(list(Kind)), st.sampled_from([RECORDS, BULK]), st.integers(0, 6) | st.just(2**63 - 1),
    BODIES, st.lists(st.binary(max_size=12), max_size=2).map(tuple),
)  # fmt: skip
BLOCKS = [records(1, 2), records(3), records(4, 3), picture(1, 40), picture(2, 9)]
GOOD = st.integers(0, len(BLOCKS) - 1).map(lambda i: decode_message(BLOCKS[i].frames))


@given(st.lists(MESSAGES | GOOD, max_size=12))
def test_whatever_a_source_says_the_numbers_stay_contiguous(messages: list[Message]) -> None:
    """Nothing is raised; what is taken is one run of numbers in each lane, and what is had never runs ahead of it."""
    sink, taken = quiet(), {RECORDS: 0, BULK: 0}
    for now, message in enumerate(messages):
        give(sink, encode_message(message), float(now))
        for block, _ in sink.take():
            assert block.first == taken[block.lane] + 1
            taken[block.lane] = block.last
            sink.committed([block], float(now))
        assert sum(1 for _ in sink.due(float(now))) < 10

    assert sink.have == list(taken.values())

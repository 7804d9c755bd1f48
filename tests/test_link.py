"""Source and sink together, over a link that may be bad: whatever the network does, the store ends the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitwire.protocol.blocks import BULK, CHUNK_BYTES, LANES, RECORDS, Kind, decode_message
from fitwire.protocol.source import LEAST_WINDOW, State
from fitwire.transport.memory import LossyLink
from helpers import Ends, MemoryHub, history, records

LENGTHS = st.lists(st.integers(1, 60), max_size=12)
PICTURES = st.lists(st.sampled_from([1, 1_000, 70_000, 300_000]), max_size=3)
SHARES = st.floats(0.0, 0.4)


@st.composite
def bad_links(draw: st.DrawFn) -> LossyLink:
    """One direction that loses, doubles, delays (and so reorders) and spoils."""
    return LossyLink(
        draw(SHARES), draw(SHARES), draw(st.floats(0.0, 0.5)),
        flipped=draw(st.floats(0.0, 0.2)), seed=draw(st.integers(0, 2**32)),
    )  # fmt: skip


def expected(lengths: list[int], pictures: list[int]) -> dict[tuple[int, int], bytes]:
    """The store as it must be: every block, bit for bit."""
    return {(b.lane, b.first): b"".join(map(bytes, b.frames)) for b in history(lengths, pictures)}


def test_on_a_good_link_everything_crosses_once() -> None:
    """No block is sent twice, none is complained of, the end is confirmed."""
    ends = Ends(history([3, 200, 5], [10, 3_000_000]))
    ends.finish()

    assert ends.hub.packed() == expected([3, 200, 5], [10, 3_000_000])
    assert (ends.source.replays, ends.hub.sink.gaps, ends.hub.sink.duplicates) == (0, 0, 0)
    assert len(ends.said(Kind.HELLO)) == 1
    assert [len(ends.backlog.blocks[lane]) for lane in LANES] == [0, 0]


def test_a_run_that_said_nothing_ends_too() -> None:
    """No record, no sample: the goodbye is confirmed all the same."""
    ends = Ends()
    ends.finish()

    assert ends.hub.sink.complete
    assert ends.hub.store == {}


@settings(max_examples=300)
@given(LENGTHS, PICTURES, bad_links(), bad_links())
def test_any_loss_delay_doubling_and_reordering_ends_in_the_same_store(
    lengths: list[int], pictures: list[int], there: LossyLink, back: LossyLink
) -> None:
    """Each record once, in order, to the last bit; and the source knows it."""
    ends = Ends(history(lengths, pictures), there, back)
    ends.finish()

    assert ends.hub.packed() == expected(lengths, pictures)
    assert ends.hub.numbers(RECORDS) == list(range(1, sum(lengths) + 1))
    assert ends.source.drained


@settings(max_examples=200)
@given(LENGTHS, PICTURES, bad_links(), bad_links(), st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=3))
def test_a_hub_that_dies_and_comes_back_loses_nothing(
    lengths: list[int], pictures: list[int], there: LossyLink, back: LossyLink, deaths: list[tuple[float, bool]]
) -> None:
    """Its store outlives it: whether or not the source notices, the run goes on after what is stored."""
    ends = Ends(history(lengths, pictures), there, back)
    for seconds, noticed in deaths:
        ends.run(seconds)
        ends.hub.restart()
        if noticed:
            ends.source.disconnected(ends.clock())
            ends.source.connected(ends.clock())
    ends.finish()

    assert ends.hub.packed() == expected(lengths, pictures)


@settings(max_examples=200)
@given(LENGTHS, PICTURES, bad_links(), bad_links(), st.floats(0, 2), st.integers(1, 20))
def test_a_hub_that_lost_part_of_its_store_is_told_what_is_gone(
    lengths: list[int], pictures: list[int], there: LossyLink, back: LossyLink, seconds: float, lost: int
) -> None:
    """Every number is in the store once: as its block, or within a gap that is named; and the run still ends."""
    ends = Ends(history(lengths, pictures), there, back)
    ends.run(seconds)
    had = ends.hub.have()
    ends.hub.restart(lost)
    ends.finish()
    gaps = [b for b in ends.hub.store.values() if decode_message(b.frames).kind == Kind.GAP]

    for lane, head in enumerate((sum(lengths), len(pictures))):
        assert sorted(ends.hub.numbers(lane)) == list(range(1, head + 1))
        assert all(gap.last <= had[lane] for gap in gaps if gap.lane == lane)
    whole, named = expected(lengths, pictures), {(gap.lane, gap.first) for gap in gaps}
    assert all(data == whole[key] for key, data in ends.hub.packed().items() if key not in named)


@settings(max_examples=100)
@given(LENGTHS, st.integers(2**16, 2**20), st.integers(1, 300), bad_links(), bad_links())
def test_the_hubs_credit_is_kept_on_any_link(
    lengths: list[int], size: int, number: int, there: LossyLink, back: LossyLink
) -> None:
    """At no time is more uncommitted than the hub allowed, one block aside."""
    ends = Ends(history(lengths), there, back, MemoryHub(credit=(size, number)))
    largest = max((b.count for b in ends.backlog.blocks[RECORDS].values()), default=0)
    ends.source.goodbye("finished")
    while ends.source.state is not State.ENDED:
        ends.turn()
        lane = ends.source._lanes[RECORDS]
        assert lane.next[0] - 1 - lane.have <= number + largest
        assert ends.clock() < 600


def test_a_new_store_gets_everything_that_is_still_here() -> None:
    """An empty hub takes over: what the old one had committed is a named gap, the rest comes."""
    ends = Ends(history([10, 10]))
    ends.run(1.0)
    ends.hub.restart(keep=2)
    ends.backlog.append(records(21, 5))
    ends.finish()

    kinds = {key: (decode_message(b.frames).kind, b.last) for key, b in ends.hub.store.items()}
    assert kinds == {(RECORDS, 1): (Kind.GAP, 20), (RECORDS, 21): (Kind.BLOCK, 25)}


def test_a_picture_never_delays_a_loss() -> None:
    """While 80 MiB cross, each record that is written is stored at the next look, between its chunks."""
    ends = Ends(history([], [80 * 2**20]))
    ends.run_until(lambda: ends.source.state is State.STREAMING)
    waits, number = [], 0
    while ends.hub.have()[BULK] == 0:
        number += 1
        ends.backlog.append(records(number))
        start = ends.clock()
        ends.run_until(lambda number=number: ends.hub.have()[RECORDS] >= number)
        waits.append(ends.clock() - start)
    order = [message.kind for _, message in ends.sent if message.kind in (Kind.BLOCK, Kind.CHUNK)]

    assert number >= 10
    assert max(waits) <= 2 * Ends.STEP
    first, last = order.index(Kind.CHUNK), len(order) - 1 - order[::-1].index(Kind.CHUNK)
    assert order[first:last].count(Kind.BLOCK) >= number - 2
    sizes = [sum(map(len, m.buffers)) for _, m in ends.said(Kind.CHUNK)]
    assert max(sizes) < CHUNK_BYTES + LEAST_WINDOW


def test_a_dead_line_costs_nothing_but_time() -> None:
    """Ten minutes without a network, unnoticed by the transport; then the run is whole."""
    ends = Ends(history([5]))
    ends.run(0.1)
    ends.up = False
    for first in range(6, 206, 10):
        ends.backlog.append(records(first, 10))
        ends.run(30.0)
    quiet = len(ends.sent)
    ends.up = True
    ends.source.goodbye("finished")
    ends.run_until(lambda: ends.source.state is State.ENDED, seconds=700)

    assert ends.hub.numbers() == list(range(1, 206))
    assert quiet < 600 / 2, "a source that hears nothing must not flood the line"


def test_heartbeats_keep_both_ends_informed() -> None:
    """An idle minute is not silence: each end hears the other within two beats."""
    ends = Ends(history([1]))
    ends.run(1.0)
    for _ in range(60):
        ends.run(1.0)
        assert ends.clock() - ends.source.heard <= 4.1
        assert ends.clock() - ends.hub.sink.heard <= 4.1


def test_the_goodbye_waits_for_the_store() -> None:
    """A hub that takes and does not commit ends nothing."""
    ends = Ends(history([5]))
    commit, ends.hub.commit = ends.hub.commit, lambda now: None
    ends.source.goodbye("finished")
    ends.run(5.0)
    assert ends.source.state is State.STREAMING
    ends.hub.commit = commit

    ends.finish()
    assert ends.hub.numbers() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(5))
def test_a_lossy_link_gives_the_same_chances_again(seed: int) -> None:
    """A failing case can be run again: everything comes from one seed."""
    stores = []
    for _ in range(2):
        chance = random.Random(seed)
        links = [LossyLink(0.3, 0.3, 0.3, flipped=0.1, seed=chance.randrange(99)) for _ in range(2)]
        ends = Ends(history([3] * 10, [1000]), *links)
        stores.append((ends.finish(), [message.kind for _, message in ends.sent]))

    assert stores[0] == stores[1]

"""Tests of ``fitwire.watch.stored``: what the disk holds is what was told, or a gap in its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fitwire.events import Dropped, Log, encode_event
from fitwire.protocol.blocks import BULK, Kind, decode_message, encode_block
from fitwire.watch.history import History
from fitwire.watch.store import Store
from fitwire.watch.stored import MAX_SHOWN, bulk_items, load_history, read_block
from watching import RUN, T0, Teller, ended, keep, picture, row, said, started, tell


@pytest.fixture
def store(fitwire_dir: Path) -> Iterator[Store]:
    made = Store(fitwire_dir / "store.sqlite3")
    yield made
    made.close()


def spoil(store: Store, first: int) -> None:
    """Flip a byte near the end of one block."""
    assert store._db is not None
    row_id, blob = store._db.execute("SELECT id, blob FROM blocks WHERE first=?", (first,)).fetchone()
    store._db.execute("UPDATE blocks SET blob=? WHERE id=?", (blob[:-3] + b"!" + blob[-2:], row_id))


def test_a_history_read_back_is_the_one_that_was_told(store: Store) -> None:
    """Curves, lines, samples, config, heads and revision."""
    tellers = [Teller(1000), Teller(1001, 1), Teller(2000)]
    blocks = [
        *tellers[0].say(started(config={"lr": 1}), *(row(i) for i in range(300)), Log(text="hello"), picture(3)),
        *tellers[1].say(row(0, loss=7.0)),
        *tellers[2].say(started(), *(row(i) for i in range(200, 400)), picture(5), ended()),
    ]
    live = tell(History(RUN), blocks)
    keep(store, blocks)
    read = load_history(store, RUN)

    np.testing.assert_array_equal(read.curve("loss").values, live.curve("loss").values)
    assert (read.heads, read.revision, read.ranks) == (live.heads, live.revision, live.ranks)
    assert (read.described("config"), read.lines, read.samples) == (live.described("config"), live.lines, live.samples)
    # A sample may part a stretch of rows in two.
    assert sorted(set(said(read)) - {"Span"}) == sorted(set(said(live)) - {"Span"})


def test_samples_stand_among_the_rest_by_their_times(store: Store) -> None:
    """As near as a block is long; what was given up too."""
    teller = Teller()
    part, _ = encode_event(Dropped(time=T0 + 2.5, count=1, what="sample", reason="memory"))
    blocks = [*teller.say(row(0)), *teller.say(picture(1)), *teller.say(row(2))]
    blocks += [encode_block(teller.sender, BULK, 2, int((T0 + 2.5) * 1e9), [part], [])]
    blocks += [*Teller.say(teller, row(3)), *Teller.say(teller, ended())]
    keep(store, blocks)

    assert said(load_history(store, RUN)) == ["Span", "SampleRef", "Span", "Dropped", "Span", "RunEnded"]


def test_a_spoilt_block_is_a_gap_for_everybody(store: Store) -> None:
    """The rest is read; the gap is counted; its frames can be sent on."""
    teller = Teller()
    blocks = [block for i in range(5) for block in teller.say(row(i))]
    keep(store, blocks)
    spoil(store, 3)
    history = load_history(store, RUN)
    gap, frames = read_block(list(store.blocks(teller.sender))[2])

    assert history.curve("loss").steps.tolist() == [0, 1, 3, 4]
    assert history.dropped == {"records": 1}
    assert (gap.kind, gap.seq, gap.body) == (Kind.GAP, 3, {"to": 3, "reason": "spoilt in the store"})
    assert decode_message(frames) == gap


def test_a_block_in_anothers_place_is_a_gap(store: Store) -> None:
    """It is whole, but it is not what was asked for."""
    teller, other = Teller(), Teller(run=b"another run, 16b")
    keep(store, [*teller.say(row(0)), *other.say(row(5))])
    assert store._db is not None
    (blob,) = store._db.execute("SELECT blob FROM blocks WHERE run=?", (other.sender.run,)).fetchone()
    store._db.execute("UPDATE blocks SET blob=? WHERE run=?", (blob, RUN))

    assert load_history(store, RUN).dropped == {"records": 1}


def test_records_longer_than_a_frame_may_be_are_not_passed_on(store: Store) -> None:
    """No trainer of ours makes such, and a follower's socket would cut the hub off for it."""
    teller = Teller()
    size = MAX_SHOWN + 1
    header = {"dtype": "|u1", "shape": [size]}
    huge = encode_block(teller.sender, 0, 1, 0, [{"t": "hologram", "b": 1}], [(header, bytes(size))])
    store.commit([huge])
    message, frames = read_block(next(store.blocks(teller.sender)))

    assert message.body["reason"] == "too large to be shown"
    assert sum(map(len, frames)) < 1000


def test_what_is_on_the_sample_lane_comes_in_order(store: Store) -> None:
    """Samples and tombstones, from any number on."""
    teller = Teller()
    part, _ = encode_event(Dropped(time=1.0, count=3, what="sample", reason="memory"))
    first = teller.say(picture(0))
    stone = encode_block(teller.sender, BULK, 2, 0, [part], [])
    later = Teller()
    later.packer._next[BULK] = 5
    keep(store, [stone, *later.say(picture(4)), *first])

    def numbers(after: int) -> list[tuple[str, int]]:
        return [(type(i).__name__, getattr(i, "seq", 0) or i.first) for i in bulk_items(store, teller.sender, after)]

    assert numbers(0) == [("SampleRef", 1), ("StoredBlock", 2), ("SampleRef", 5)]
    assert numbers(4) == [("SampleRef", 5)]

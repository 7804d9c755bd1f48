"""Tests of ``fitwire.watch.store``: all or nothing, once, and a sentence for each way a file can be wrong."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from fitwire.errors import StoreError
from fitwire.events import Dropped, encode_event
from fitwire.protocol.blocks import BULK, CHUNK_BYTES, RECORDS, Identity, encode_block, pack_frames
from fitwire.watch.store import SMALL_BYTES, Store
from helpers import picture as picture_block
from helpers import records
from watching import RUN, Teller, keep, picture, row


@pytest.fixture
def path(fitwire_dir: Path) -> Path:
    return fitwire_dir / "store.sqlite3"


def line(number: int, **more: Any) -> dict[str, Any]:
    """A summary as the roster makes them, as far as the store cares."""
    about = {"name": f"run{number}", "project": "p", "started": float(number), "touched": 0.0, "state": "running"}
    return {"id": bytes([number] * 16).hex(), **about, **more}


def test_what_was_committed_is_read_back_to_the_byte(path: Path) -> None:
    """By lane, in order, from any place; by another connection too."""
    who = Identity(RUN, 5, 1)
    blocks = [records(1, 3, who), records(4, 1, who), records(5, 200, who), picture_block(1, 1000, who)]
    store = Store(path)
    keep(store, blocks)
    other = Store(path, write=False)

    for one in (store, other):
        assert [(b.first, b.last) for b in one.blocks(who)] == [(1, 3), (4, 4), (5, 204)]
        assert [b.blob for b in one.blocks(who)] == [pack_frames(b.frames) for b in blocks[:3]]
        assert [b.first for b in one.blocks(who, RECORDS, 3)] == [4, 5]
        assert [(ref.seq, ref.name) for ref in one.samples(who)] == [(1, "masks")]
        assert (one.have(who, RECORDS), one.have(who, BULK), one.have(Identity(RUN, 6, 1), RECORDS)) == (204, 1, 0)
    store.close()
    other.close()


def test_a_block_that_comes_again_changes_nothing(path: Path) -> None:
    """Storing is idempotent: a hub that died between commit and acknowledgement gets it twice."""
    store = Store(path)
    for _ in range(2):
        keep(store, [records(1, 3), picture_block(1, 10)])

    assert len(list(store.blocks(records(1).sender))) == 1
    assert len(list(store.samples(records(1).sender))) == 1
    store.close()


def test_a_large_block_is_stored_in_pieces_and_once(path: Path) -> None:
    """To the byte, whatever its size; one that comes again leaves the first alone."""
    store = Store(path)
    sizes = (CHUNK_BYTES - 1000, CHUNK_BYTES, 2 * CHUNK_BYTES, 3_000_001)
    blocks = [picture_block(number, size) for number, size in enumerate(sizes, 1)]
    for _ in range(2):
        keep(store, blocks)

    assert [b.blob for b in store.blocks(blocks[0].sender, BULK)] == [pack_frames(b.frames) for b in blocks]
    store.close()


def test_a_large_block_that_cannot_be_stored_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row was there before its bytes: a fault between the two takes both back, and what came with them."""
    store = Store(path)
    monkeypatch.setattr("fitwire.watch.store.slice_frames", lambda *what: iter([b"x" * 2**22]))  # past its end
    with pytest.raises((StoreError, ValueError)):
        keep(store, [records(1, 3), picture_block(1, 2_000_000)])

    assert list(store.blocks(records(1).sender)) == []
    assert list(store.blocks(records(1).sender, BULK)) == []
    store.close()


def test_a_commit_stores_all_or_nothing(path: Path) -> None:
    """A number that no column holds spoils the whole of it, with a sentence, and the next goes well."""
    store = Store(path)
    with pytest.raises(StoreError, match="cannot write to the store"):
        store.commit([records(1, 3)], (), [line(1, started=2**70)])
    nothing = (store.have(records(1).sender, RECORDS), store.summaries())
    store.commit([records(1, 3)], (), [line(1)])

    assert nothing == (0, [])
    assert store.have(records(1).sender, RECORDS) == 3
    store.close()


def test_a_full_disk_refuses_and_what_was_stored_stays(path: Path) -> None:
    """Again and again, until there is room; then the same blocks go in."""
    store = Store(path)
    store.commit([records(1, 3)])
    assert store._db is not None
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages}")
    big = picture_block(1, 500_000)
    for _ in range(3):
        with pytest.raises(StoreError, match="full"):
            keep(store, [big])
    store._db.execute("PRAGMA max_page_count=100000")
    keep(store, [big])

    assert store.have(big.sender, BULK) == 1
    assert store.have(big.sender, RECORDS) == 3
    store.close()


def test_a_store_that_became_read_only_refuses(path: Path) -> None:
    """With a sentence that names it."""
    store = Store(path)
    assert store._db is not None
    store._db.execute("PRAGMA query_only=ON")

    with pytest.raises(StoreError, match=r"cannot write to the store .*store.sqlite3.*readonly"):
        store.commit([records(1)])
    store.close()


def test_another_that_writes_is_waited_for_and_then_told_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for so long that trainers take the hub for dead."""
    monkeypatch.setattr("fitwire.watch.store.BUSY", 0.05)
    store = Store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.commit([records(1)])
    other.execute("COMMIT")
    other.close()
    store.commit([records(1)])

    assert store.have(records(1).sender, RECORDS) == 1
    store.close()


# -- files that are no store


def made(path: Path, what: str) -> Path:
    """A file or folder that is wrong in one way."""
    if what == "text":
        path.write_text("this is no database at all\n" * 100)
    elif what == "folder":
        path.mkdir()
    elif what == "no folder":
        (path.parent / "file").write_text("")
        return path.parent / "file" / "store.sqlite3"
    elif what == "foreign":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE recipes (cake TEXT)")
        db.close()
    elif what == "newer":
        Store(path).close()
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
    elif what == "cut":
        store = Store(path)
        keep(store, [picture_block(1, 300_000)])
        store.close()
        path.write_bytes(path.read_bytes()[:40_000])
    return path


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("text", "cannot open the store .* not a database; free or mend it, or name another"),
        ("folder", "cannot open the store .*"),
        ("no folder", "cannot open the store .*; free or mend it, or name another"),
        ("foreign", "is another program's database: name another file for the store"),
        ("newer", r"was made by a newer fitwire \(format 99\): update this one"),
    ],
)
@pytest.mark.parametrize("write", [True, False])
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(
    path: Path, what: str, sentence: str, write: bool
) -> None:
    """With one sentence, and no connection left open."""
    where = made(path, what)
    before = where.read_bytes() if where.is_file() else None
    with pytest.raises(StoreError, match=sentence):
        Store(where, write=write)

    assert (where.read_bytes() if where.is_file() else None) == before


def test_a_file_that_was_cut_is_told_of_when_it_is_read(path: Path) -> None:
    """Never an error of another kind."""
    where = made(path, "cut")
    with pytest.raises(StoreError, match=r"cannot (read|open) the store"):  # noqa: PT012
        store = Store(where, write=False)
        try:
            store.piece(records(1).sender, BULK, 1, 200_000, 1000)
        finally:
            store.close()


def test_only_its_owner_may_read_the_file(path: Path) -> None:
    """Whatever the umask says."""
    store = Store(path)
    store.commit([records(1)])

    assert [p.stat().st_mode & 0o077 for p in path.parent.glob("store.sqlite3*")] == [0, 0, 0]
    store.close()


def test_after_closing_there_is_a_sentence(path: Path) -> None:
    """Closing twice is fine."""
    store = Store(path)
    store.close()
    store.close()

    with pytest.raises(StoreError, match="was closed"):
        store.have(Identity(RUN), RECORDS)
    with pytest.raises(StoreError, match="was closed"):
        store.commit([records(1)])


def test_another_thread_may_read(path: Path) -> None:
    """Threads take turns at one connection."""
    store = Store(path)
    store.commit([records(1, 7)])
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(store.have(records(1).sender, RECORDS)))
    reader.start()
    reader.join()
    store.close()

    assert found == [7]


# -- what lies where


def test_sources_and_the_newest_incarnation_are_found_by_rank(path: Path) -> None:
    """Oldest first; 0 for a rank that never spoke."""
    store = Store(path)
    for incarnation, rank in ((10, 0), (11, 1), (20, 0)):
        store.commit([records(1, 1, Identity(RUN, incarnation, rank))])
    store.commit([records(1, 1, Identity(bytes(15) + b"x", 99, 3))])

    assert store.sources(RUN) == [(10, 0), (11, 1), (20, 0)]
    assert [store.newest_incarnation(RUN, rank) for rank in (0, 1, 2, 3)] == [20, 11, 0, 0]
    store.close()


def test_a_block_is_handed_out_piece_by_piece(path: Path) -> None:
    """Any piece, past the end nothing, and the same bytes in the end; found by any record in it."""
    block = picture_block(1, 200_000)
    store = Store(path)
    keep(store, [block, records(1, 5)])
    whole = pack_frames(block.frames)
    pieces = [store.piece(block.sender, BULK, 1, at, 70_000) for at in (0, 70_000, 140_000)]
    numbers = [store.piece(block.sender, RECORDS, seq, 0, 4) for seq in (1, 3, 5)]

    assert b"".join(piece[1] for piece in pieces if piece) == whole
    assert store.piece(block.sender, BULK, 1, len(whole), 10) == (len(whole), b"")
    assert store.piece(block.sender, BULK, 1, 2**62, 10) == (len(whole), b"")
    assert store.piece(block.sender, BULK, 2, 0, 10) is None
    assert store.piece(block.sender, RECORDS, 6, 0, 10) is None
    assert len(set(numbers)) == 1
    store.close()


def test_what_was_given_up_of_the_samples_is_found_between_them(path: Path) -> None:
    """Blocks of the sample lane that hold no sample; one that is large comes without its bytes."""
    who = records(1).sender
    part, _ = encode_event(Dropped(time=1.0, count=4, what="sample", reason="budget"))
    stone = encode_block(who, BULK, 2, 0, [part], [])
    odd = encode_block(
        who, BULK, 7, 0, [{"t": "hologram", "b": 1}], [({"dtype": "|u1", "shape": [SMALL_BYTES]}, bytes(SMALL_BYTES))]
    )
    store = Store(path)
    keep(store, [picture_block(1, 10), stone, picture_block(6, 10), odd])

    assert [(s.first, s.last, len(s.blob) > 0) for s in store.stones(who)] == [(2, 5, True), (7, 7, False)]
    assert [s.first for s in store.stones(who, 5)] == [7]
    assert [ref.seq for ref in store.samples(who)] == [1, 6]
    store.close()


def test_an_index_of_samples_says_what_is_in_them(path: Path) -> None:
    """Name, step, epoch, time and shapes, without the arrays."""
    teller = Teller()
    store = Store(path)
    keep(store, teller.say(picture(3), picture(7, "edges", size=9)))
    refs = list(store.samples(teller.sender))

    assert [(r.name, r.step, r.arrays) for r in refs] == [
        ("masks", 3, {"image": ("|u1", (1, 4))}),
        ("edges", 7, {"image": ("|u1", (1, 9))}),
    ]
    assert [r.seq for r in store.samples(teller.sender, 1)] == [2]
    store.close()


def test_lines_of_runs_are_replaced_and_a_spoilt_one_hides_no_run(path: Path) -> None:
    """What a spoilt one lacks is taken from the columns beside it."""
    store = Store(path)
    store.commit([], (), [line(2), line(1, reason="old")])
    store.commit([], (), [line(1, reason="new")])
    assert store._db is not None
    store._db.execute("UPDATE runs SET summary='{oops' WHERE name='run2'")

    assert store.summaries() == [line(1, reason="new"), line(2)]
    assert json.dumps(store.summaries())
    store.close()


def test_a_spoilt_index_of_a_sample_still_names_it(path: Path) -> None:
    """The sample itself says its shapes again."""
    teller = Teller()
    store = Store(path)
    keep(store, teller.say(row(0), picture(3)))
    assert store._db is not None
    store._db.execute("UPDATE samples SET arrays='[1'")

    assert [(r.name, r.arrays) for r in store.samples(teller.sender)] == [("masks", {})]
    store.close()

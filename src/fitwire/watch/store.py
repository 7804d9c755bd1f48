"""The hub's database: blocks as they came, an index of samples, and one line a run.

SQLite in WAL mode on a local disk. One blob holds one block, its key is (run, incarnation, rank, lane, first sequence
number), so that storing a block again changes nothing. A :class:`Store` is one connection; threads take turns at it.
What the blocks say is not known here.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fitwire.errors import StoreError
from fitwire.protocol.blocks import BULK, CHUNK_BYTES, RECORDS, Block, Identity, pack_frames, slice_frames

__all__ = ["End", "SampleRef", "Store", "StoredBlock"]

VERSION = 1
"""Of the tables, kept in ``user_version``."""
APPLICATION = int.from_bytes(b"fwst", "big")
"""Kept in ``application_id``: another program's database must not get our tables."""
PAGE_BYTES = 16 * 2**10
"""A piece of a large sample is found by walking its pages: four times fewer than with SQLite's own size."""
BUSY = 2.0
"""Seconds to wait for whoever else writes; trainers must not take the hub for dead meanwhile."""
SMALL_BYTES = 2**16
"""A block of the sample lane without a sample is a tombstone; a larger one is something that is not known here."""

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    run BLOB PRIMARY KEY, name TEXT NOT NULL, project TEXT NOT NULL, started REAL NOT NULL, touched REAL NOT NULL,
    state TEXT NOT NULL, summary TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY, run BLOB NOT NULL, incarnation INTEGER NOT NULL, rank INTEGER NOT NULL,
    lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, size INTEGER NOT NULL, blob BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS blocks_place ON blocks (run, incarnation, rank, lane, first);
CREATE TABLE IF NOT EXISTS samples (
    run BLOB NOT NULL, incarnation INTEGER NOT NULL, rank INTEGER NOT NULL, seq INTEGER NOT NULL,
    name TEXT NOT NULL, step INTEGER, epoch INTEGER, time REAL NOT NULL, arrays TEXT NOT NULL,
    PRIMARY KEY (run, incarnation, rank, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ends (
    run BLOB NOT NULL, incarnation INTEGER NOT NULL, rank INTEGER NOT NULL, lane INTEGER NOT NULL,
    final INTEGER NOT NULL, since INTEGER NOT NULL, digest INTEGER NOT NULL, status TEXT NOT NULL,
    PRIMARY KEY (run, incarnation, rank, lane)
) WITHOUT ROWID;
"""
_INSERT = "INSERT OR IGNORE INTO blocks (run, incarnation, rank, lane, first, last, size, blob)"
_OF = "run=? AND incarnation=? AND rank=? AND lane=?"


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where a sample lies, and what it holds, without its arrays.

    Attributes:
        incarnation: Process life that made it.
        rank: Process that made it.
        seq: Its sequence number on the sample lane.
        name: What it shows.
        step: Index of the last optimizer step done; None before the first.
        epoch: From 0; None when the loop has none.
        time: Unix seconds at the trainer.
        arrays: Name to (dtype string, shape).
    """

    incarnation: int
    rank: int
    seq: int
    name: str
    step: int | None
    epoch: int | None
    time: float
    arrays: dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """One block as it lies in the store: its key and its packed frames.

    Attributes:
        sender: Whose it is.
        lane: 0 for records, 1 for samples.
        first: Sequence number of its first record.
        last: Sequence number of its last.
        blob: Packed frames; empty when they were not read.
    """

    sender: Identity
    lane: int
    first: int
    last: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class End:
    """What the goodbye of a source said of one lane.

    Attributes:
        final: Its last sequence number.
        since: Sequence number after which the checksum begins: 0, unless what was before is gone, or another store's.
        digest: Rolling checksum of its blocks; see ``protocol.digest``.
        status: How it ended; ``"lost"`` from a courier whose trainer said nothing.
    """

    final: int
    since: int
    digest: int
    status: str


class Store:
    """One connection to the database.

    Args:
        path: Of the file; made, with its folder's rights left alone, when ``write``.
        write: Whether tables may be made and blocks added.

    Raises:
        StoreError: The file cannot be opened, is no store, or was made by a newer version.
    """

    def __init__(self, path: str | os.PathLike[str], *, write: bool = True) -> None:
        self.path = Path(path)
        self._db: sqlite3.Connection | None = None
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Made here with these rights, because SQLite would take the umask's.
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            where = f"{self.path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
            self._db = sqlite3.connect(where, uri=True, isolation_level=None, timeout=BUSY, check_same_thread=False)
            self._prepare(self._db, write)
        except (sqlite3.Error, OSError) as error:
            self.close()
            if isinstance(error, StoreError):
                raise
            why = getattr(error, "strerror", None) or error
            raise StoreError(f"cannot open the store {self.path}: {why}; free or mend it, or name another") from error

    def _prepare(self, db: sqlite3.Connection, write: bool) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
        if tables and application != APPLICATION:
            raise StoreError(f"{self.path} is another program's database: name another file for the store")
        if version > VERSION:
            raise StoreError(f"the store {self.path} was made by a newer fitwire (format {version}): update this one")
        if not write:
            return
        if not tables:
            db.execute(f"PRAGMA page_size={PAGE_BYTES}")
            db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute("PRAGMA journal_mode=WAL")
        # A power cut may cost the last moments of the store; a killed hub costs nothing.
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_TABLES)
        db.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        """Close the connection; again, does nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def _open(self, doing: str) -> Generator[sqlite3.Connection]:
        if self._db is None:
            raise StoreError(f"the store {self.path} was closed")
        try:
            yield self._db
        # An OverflowError is a number that no column holds.
        except (sqlite3.Error, OverflowError) as error:
            raise StoreError(f"cannot {doing} the store {self.path}: {error}") from error

    # -- writing

    def commit(
        self,
        blocks: Sequence[Block],
        samples: Sequence[tuple[bytes, SampleRef]] = (),
        summaries: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Store all of this, or nothing of it.

        Raises:
            StoreError: The database refuses, e.g. because the disk is full; nothing was stored.
        """
        with self._open("write to") as db:
            try:
                db.execute("BEGIN IMMEDIATE")
                db.executemany(
                    f"{_INSERT} VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(*_block_row(b), pack_frames(b.frames)) for b in blocks if b.nbytes <= CHUNK_BYTES],
                )
                for block in blocks:
                    if block.nbytes > CHUNK_BYTES:
                        _insert_large(db, block)
                if samples:
                    db.executemany(
                        "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        [
                            (run, s.incarnation, s.rank, s.seq, s.name, s.step, s.epoch, s.time, json.dumps(s.arrays))
                            for run, s in samples
                        ],
                    )
                if summaries:
                    rows = [(bytes.fromhex(s["id"]), *(s[key] for key in _LINE), json.dumps(s)) for s in summaries]
                    db.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # a full disk may have ended it already
                    db.execute("ROLLBACK")
                raise

    def end(self, sender: Identity, ends: Sequence[End]) -> None:
        """Keep what the goodbye of a source said, a lane each; one that tells less than an earlier one is not kept.

        Raises:
            StoreError: The database refuses.
        """
        with self._open("write to") as db:
            rows = [(*_key(sender, lane), e.final, e.since, e.digest, e.status) for lane, e in enumerate(ends)]
            db.executemany(
                "INSERT INTO ends VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET final=excluded.final,"
                " since=excluded.since, digest=excluded.digest, status=excluded.status"
                " WHERE excluded.since<=since OR excluded.final>final",
                rows,
            )

    # -- reading

    def _read(self, sql: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with self._open("read") as db:
            yield from db.execute(sql, values)

    def _first(self, sql: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        with self._open("read") as db:
            return cast("tuple[Any, ...] | None", db.execute(sql, values).fetchone())

    def have(self, sender: Identity, lane: int) -> int:
        """Highest sequence number stored of one lane of one source; 0 when there is none."""
        row = self._first(f"SELECT last FROM blocks WHERE {_OF} ORDER BY first DESC LIMIT 1", _key(sender, lane))
        return int(row[0]) if row else 0

    def newest_incarnation(self, run: bytes, rank: int) -> int:
        """Greatest incarnation of a rank; 0 when the run is unknown."""
        # Probes of the index, where MAX over a rank would walk all blocks of the run.
        number = 2**32
        while number > 0:
            row = self._first("SELECT MAX(incarnation) FROM blocks WHERE run=? AND incarnation<?", (run, number))
            number = int(row[0] or 0) if row else 0
            found = "SELECT 1 FROM blocks WHERE run=? AND incarnation=? AND rank=? LIMIT 1"
            if self._first(found, (run, number, rank)):
                break
        return number

    def ends(self, sender: Identity) -> dict[int, End]:
        """What the goodbye of a source said, by lane; empty when it has said none, or to an earlier version."""
        # A store of an earlier version, opened to be read, lacks the table.
        if self._first("SELECT 1 FROM sqlite_schema WHERE name='ends'", ()) is None:
            return {}
        sql = "SELECT lane, final, since, digest, status FROM ends WHERE run=? AND incarnation=? AND rank=?"
        rows = self._read(sql, (sender.run, sender.incarnation, sender.rank))
        return {lane: End(final, since, digest, status) for lane, final, since, digest, status in rows}

    def sources(self, run: bytes) -> list[tuple[int, int]]:
        """(incarnation, rank) of every source of a run, oldest first."""
        # One probe of the index a source, where DISTINCT or MAX would walk all blocks.
        found: list[tuple[int, int]] = []
        at = (-1, -1)
        while True:
            row = self._first(
                "SELECT incarnation, rank FROM blocks WHERE run=? AND (incarnation, rank) > (?, ?)"
                " ORDER BY incarnation, rank LIMIT 1",
                (run, *at),
            )
            if row is None:
                return found
            at = (int(row[0]), int(row[1]))
            found.append(at)

    def blocks(self, sender: Identity, lane: int = RECORDS, after: int = 0) -> Iterator[StoredBlock]:
        """Blocks of one lane of one source whose first sequence number is above ``after``, in order."""
        sql = f"SELECT first, last, blob FROM blocks WHERE {_OF} AND first>? ORDER BY first"
        for first, last, blob in self._read(sql, (*_key(sender, lane), after)):
            yield StoredBlock(sender, lane, first, last, blob)

    def stones(self, sender: Identity, after: int = 0) -> Iterator[StoredBlock]:
        """Blocks of the sample lane above ``after`` that hold no sample, in order: what was given up."""
        sql = (
            f"SELECT first, last, CASE WHEN size<={SMALL_BYTES} THEN blob ELSE x'' END FROM blocks AS b"
            f" WHERE {_OF} AND first>? AND NOT EXISTS (SELECT 1 FROM samples AS s WHERE s.run=b.run"
            " AND s.incarnation=b.incarnation AND s.rank=b.rank AND s.seq BETWEEN b.first AND b.last) ORDER BY first"
        )
        for first, last, blob in self._read(sql, (*_key(sender, BULK), after)):
            yield StoredBlock(sender, BULK, first, last, blob)

    def piece(self, sender: Identity, lane: int, seq: int, at: int, size: int) -> tuple[int, bytes] | None:
        """Total size, packed, of the block that holds record ``seq``, and ``size`` bytes of it from ``at``.

        None when it is not here.
        """
        sql = f"SELECT id, last FROM blocks WHERE {_OF} AND first<=? ORDER BY first DESC LIMIT 1"
        row = self._first(sql, (*_key(sender, lane), seq))
        if row is None or row[1] < seq:
            return None
        with self._open("read") as db, db.blobopen("blocks", "blob", row[0], readonly=True) as blob:
            total = len(blob)
            blob.seek(min(at, total))
            return total, blob.read(max(0, min(size, total - at)))

    def samples(self, sender: Identity, after: int = 0) -> Iterator[SampleRef]:
        """What samples of one source are stored above sequence number ``after``, in order."""
        rows = self._read(
            "SELECT seq, name, step, epoch, time, arrays FROM samples"
            " WHERE run=? AND incarnation=? AND rank=? AND seq>? ORDER BY seq",
            (sender.run, sender.incarnation, sender.rank, after),
        )
        for seq, name, step, epoch, time, arrays in rows:
            yield SampleRef(sender.incarnation, sender.rank, seq, name, step, epoch, time, _arrays(arrays))

    def summaries(self) -> list[dict[str, Any]]:
        """The line kept of every run, oldest first; what of one is spoilt is left out."""
        found: list[dict[str, Any]] = []
        for run, summary, *line in self._read(f"SELECT run, summary, {', '.join(_LINE)} FROM runs ORDER BY started"):
            known: dict[str, Any] = {"id": bytes(run).hex(), **dict(zip(_LINE, line, strict=True))}
            try:
                found.append(known | json.loads(summary))
            except (ValueError, TypeError):
                found.append(known)
        return found


_LINE = ("name", "project", "started", "touched", "state")


def _key(sender: Identity, lane: int) -> tuple[bytes, int, int, int]:
    return sender.run, sender.incarnation, sender.rank, lane


def _block_row(block: Block) -> tuple[Any, ...]:
    return *_key(block.sender, block.lane), block.first, block.last, block.nbytes


def _insert_large(db: sqlite3.Connection, block: Block) -> None:
    """As the others, piece by piece: SQLite would hold three more copies of it."""
    size = block.nbytes
    row = db.execute(f"{_INSERT} VALUES (?, ?, ?, ?, ?, ?, ?, zeroblob(?))", (*_block_row(block), size))
    if row.rowcount == 1 and row.lastrowid is not None:
        with db.blobopen("blocks", "blob", row.lastrowid) as blob:
            for at in range(0, size, CHUNK_BYTES):
                for piece in slice_frames(block.frames, at, min(CHUNK_BYTES, size - at)):
                    blob.write(piece)


def _arrays(text: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        return {name: (dtype, tuple(shape)) for name, (dtype, shape) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):  # spoilt: the sample itself says it again
        return {}

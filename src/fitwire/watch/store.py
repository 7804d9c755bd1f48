"""The hub's database: blocks as they came, an index of samples, and one line a run.

SQLite in WAL mode on a local disk. One blob holds one block, its key is (run, incarnation, rank, lane, first sequence
number), so that storing a block again changes nothing. A connection belongs to the thread that opened it. What the
blocks say is not known here.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitwire.errors import StoreError
from fitwire.protocol.blocks import RECORDS, Block, Identity, pack_frames

__all__ = ["SampleRef", "Store", "StoredBlock"]

VERSION = 1
"""Of the tables, kept in ``user_version``."""
MAX_BLOB = 2**30

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
"""


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
    """One block as it lies in the store: its key and its packed frames."""

    incarnation: int
    rank: int
    lane: int
    first: int
    last: int
    blob: bytes


class Store:
    """One thread's way into the database.

    Args:
        path: Of the file; made, with its folder's rights left alone, when ``write``.
        write: Whether tables may be made and blocks added.

    Raises:
        StoreError: The file cannot be opened, is no store, or was made by a newer version.
    """

    def __init__(self, path: str | os.PathLike[str], *, write: bool = True) -> None:
        self.path = Path(path)
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Made here with these rights, because SQLite would take the umask's.
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
                self._db = sqlite3.connect(self.path, isolation_level=None, timeout=10.0)
                self._prepare()
            else:
                self._db = sqlite3.connect(
                    self.path.absolute().as_uri() + "?mode=ro", uri=True, isolation_level=None, timeout=10.0
                )
                self._check_version()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"cannot open the store {self.path}: {error}; pass another path, or free the disk"
            ) from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        # A power cut may cost the last moments of the store; a killed hub costs nothing.
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._check_version()
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA user_version={VERSION}")

    def _check_version(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            self._db.close()
            raise StoreError(f"the store {self.path} was made by a newer fitwire (format {version}): update this one")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # -- writing

    def commit(
        self,
        blocks: Sequence[Block],
        samples: Sequence[tuple[bytes, SampleRef]],
        summaries: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Store all of this, or nothing of it.

        Raises:
            StoreError: The database refuses, e.g. because the disk is full; nothing was stored.
        """
        rows = [
            (
                b.sender.run, b.sender.incarnation, b.sender.rank, b.lane, b.first, b.last, b.nbytes,
                pack_frames(b.frames),
            )
            for b in blocks
        ]  # fmt: skip
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    "INSERT OR IGNORE INTO blocks (run, incarnation, rank, lane, first, last, size, blob)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )
                self._db.executemany(
                    "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (run, s.incarnation, s.rank, s.seq, s.name, s.step, s.epoch, s.time, json.dumps(s.arrays))
                        for run, s in samples
                    ],
                )
                self._db.executemany(
                    "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            bytes.fromhex(s["id"]), s["name"], s["project"], s["started"], s["touched"], s["state"],
                            json.dumps(s),
                        )
                        for s in summaries
                    ],
                )  # fmt: skip
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"cannot write to the store {self.path}: {error}") from error

    # -- reading

    def have(self, sender: Identity, lane: int) -> int:
        """Highest sequence number stored of one lane of one source; 0 when there is none."""
        row = self._db.execute(
            "SELECT last FROM blocks WHERE run=? AND incarnation=? AND rank=? AND lane=? ORDER BY first DESC LIMIT 1",
            (sender.run, sender.incarnation, sender.rank, lane),
        ).fetchone()
        return int(row[0]) if row else 0

    def newest_incarnation(self, run: bytes, rank: int) -> int:
        """Greatest incarnation of a rank; 0 when the run is unknown."""
        row = self._db.execute("SELECT MAX(incarnation) FROM blocks WHERE run=? AND rank=?", (run, rank)).fetchone()
        return int(row[0] or 0)

    def sources(self, run: bytes) -> list[tuple[int, int]]:
        """(incarnation, rank) of every source of a run, oldest first."""
        # One probe of the index a source, where DISTINCT would walk all blocks.
        found: list[tuple[int, int]] = []
        at = (-1, -1)
        while True:
            row = self._db.execute(
                "SELECT incarnation, rank FROM blocks WHERE run=? AND (incarnation, rank) > (?, ?)"
                " ORDER BY incarnation, rank LIMIT 1",
                (run, *at),
            ).fetchone()
            if row is None:
                return found
            at = (int(row[0]), int(row[1]))
            found.append(at)

    def blocks(self, sender: Identity, lane: int = RECORDS, after: int = 0) -> Iterator[StoredBlock]:
        """Blocks of one lane of one source whose first sequence number is above ``after``, in order."""
        cursor = self._db.execute(
            "SELECT first, last, blob FROM blocks WHERE run=? AND incarnation=? AND rank=? AND lane=? AND first>?"
            " ORDER BY first",
            (sender.run, sender.incarnation, sender.rank, lane, after),
        )
        for first, last, blob in cursor:
            yield StoredBlock(sender.incarnation, sender.rank, lane, first, last, blob)

    def piece(self, sender: Identity, lane: int, first: int, at: int, size: int) -> tuple[int, bytes] | None:
        """Total size of a block's packed form and ``size`` bytes of it from ``at``; None when it is not here."""
        row = self._db.execute(
            "SELECT id, size FROM blocks WHERE run=? AND incarnation=? AND rank=? AND lane=? AND first=?",
            (sender.run, sender.incarnation, sender.rank, lane, first),
        ).fetchone()
        if row is None:
            return None
        with self._db.blobopen("blocks", "blob", row[0], readonly=True) as blob:
            blob.seek(min(at, len(blob)))
            return len(blob), blob.read(size)

    def samples(self, sender: Identity, after: int = 0) -> list[SampleRef]:
        """What samples of one source are stored above sequence number ``after``, in order."""
        rows = self._db.execute(
            "SELECT seq, name, step, epoch, time, arrays FROM samples"
            " WHERE run=? AND incarnation=? AND rank=? AND seq>? ORDER BY seq",
            (sender.run, sender.incarnation, sender.rank, after),
        )
        return [
            SampleRef(sender.incarnation, sender.rank, seq, name, step, epoch, time, _arrays(arrays))
            for seq, name, step, epoch, time, arrays in rows
        ]

    def summaries(self) -> list[dict[str, Any]]:
        """The line kept of every run, oldest first."""
        rows = self._db.execute("SELECT summary FROM runs ORDER BY started, run")
        return [json.loads(row[0]) for row in rows]


def _arrays(text: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in json.loads(text).items()}

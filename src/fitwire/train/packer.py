"""Accepted records → blocks, on the I/O thread: rows of one metric set become columns, the rest parts of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fitwire.errors import EncodeError
from fitwire.events import Dropped, Event, Per, Sample, encode_event, encode_rows
from fitwire.protocol.blocks import BULK, RECORDS, Block, Buffer, Identity, encode_block

__all__ = ["Packer", "Row"]

MAX_ROWS = 256
"""Records in a block."""
MAX_BYTES = 48 * 2**10
"""A block closes when its values, or what it says in frame 1, pass this: within 64 KiB with room for headers."""
NAN = float("nan")


class Row(NamedTuple):
    """One accepted ``log`` call, as the training thread leaves it.

    ``values`` belongs to the row: nobody changes it any more, except that a value still on its device is filled in.
    """

    time: float
    step: int
    epoch: int | None
    batch: int | None
    per: Per
    values: dict[str, Any]


class Packer:
    """Turn records into blocks and hand those on.

    Args:
        sender: Whose records they are.
        append: Takes each finished block.
        refused: Told of each record that could not be encoded, with the reason; the record becomes a tombstone.
    """

    def __init__(
        self, sender: Identity, append: Callable[[Block], None], refused: Callable[[str], None] = lambda _: None
    ) -> None:
        self.sender = sender
        self._append, self._refused = append, refused
        self._next = [1, 1]
        self._parts: list[dict[str, Any]] = []
        self._buffers: list[tuple[dict[str, Any], Buffer]] = []
        self._count = self._bytes = 0
        self._time = 0.0
        self._rows: list[Row] = []
        self._key: tuple[Per, tuple[str, ...]] | None = None

    def add(self, records: Sequence[Row | Event]) -> None:
        """Pack these, in order; everything is handed on before this returns."""
        for record in records:
            if isinstance(record, Row):
                key = (record.per, tuple(record.values))
                full = len(self._rows) * (len(record.values) + 4) * 8 >= MAX_BYTES
                if key != self._key or full or self._count + len(self._rows) >= MAX_ROWS:
                    self._close_rows()
                    self._key = key
                    if self._count >= MAX_ROWS:
                        self._close()
                self._rows.append(record)
                continue
            self._close_rows()
            self._add_event(record)
        self._close_rows()
        self._close()

    def _add_event(self, event: Event) -> None:
        try:
            part, buffers = encode_event(event)
            if isinstance(event, Sample):
                self._emit(BULK, event.time, [part], buffers)
                return
            self._add_part(part, buffers, event.time)
        except EncodeError as error:
            # Its place in the sequence is not lost with it: the record was accepted.
            self._refused(str(error))
            gone = Dropped(time=event.time, count=1, what=type(event).__name__, reason=str(error)[:200])
            part, buffers = encode_event(gone)
            self._add_part(part, buffers, event.time)

    def _close_rows(self) -> None:
        rows, key = self._rows, self._key
        if not rows or key is None:
            return
        self._rows, self._key = [], None
        index = [
            (r.step, NAN if r.epoch is None else r.epoch, NAN if r.batch is None else r.batch, r.time) for r in rows
        ]
        part, buffers = encode_rows(key[1], key[0], index, [list(r.values.values()) for r in rows])
        self._add_part(part, buffers, rows[0].time)

    def _add_part(self, part: dict[str, Any], buffers: list[tuple[dict[str, Any], Buffer]], time: float) -> None:
        size = sum(len(data) for _, data in buffers) + len(str(part)) * 2
        count = int(part.get("n", 1))
        if self._parts and (
            self._bytes + size > MAX_BYTES or self._count + count > MAX_ROWS or len(self._buffers) + len(buffers) > 60
        ):
            self._close()
        if not self._parts:
            self._time = time
        if buffers:
            part["b"] = len(buffers)
        self._parts.append(part)
        self._buffers.extend(buffers)
        self._count += count
        self._bytes += size

    def _close(self) -> None:
        if not self._parts:
            return
        parts, buffers = self._parts, self._buffers
        self._parts, self._buffers, self._count, self._bytes = [], [], 0, 0
        self._emit(RECORDS, self._time, parts, buffers, numbered=True)

    def _emit(
        self,
        lane: int,
        time: float,
        parts: list[dict[str, Any]],
        buffers: list[tuple[dict[str, Any], Buffer]],
        *,
        numbered: bool = False,
    ) -> None:
        if not numbered and buffers:
            parts[0]["b"] = len(buffers)
        block = encode_block(self.sender, lane, self._next[lane], int(time * 1e9), parts, buffers)
        self._next[lane] = block.last + 1
        self._append(block)

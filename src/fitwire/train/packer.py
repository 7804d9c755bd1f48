"""Accepted records → blocks, on the I/O thread: rows of one metric set become columns, the rest parts of their own.

Whatever the training thread accepted without looking at it closely (the hot path looks only at the type of values) is
put right here, so that no block is made that a hub would refuse: it would be sent for ever.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from fitwire.errors import EncodeError
from fitwire.events import MAX_NAME, Dropped, Event, Per, Sample, encode_event, encode_rows
from fitwire.protocol.arrays import Array
from fitwire.protocol.blocks import BULK, MAX_BLOCK_BYTES, MAX_BUFFERS, RECORDS, Block, Buffer, Identity, encode_block
from fitwire.train.values import MAX_WHOLE, as_whole, plain_text

__all__ = ["MAX_ROWS", "Packer", "Row"]

MAX_ROWS = 1024
"""Records in a block: a loop that logs as fast as it can fills it, and a block costs each end as much as 500 rows."""
MAX_BYTES = 48 * 2**10
"""A block closes when its values, or what it says in frame 1, pass this: within 64 KiB with room for headers."""
MAX_NAME_BYTES = 24 * 2**10
"""UTF-8 bytes of the names of one part; a row with more is split into several records."""
MAX_KNOWN = 1000
"""Metric sets whose names are remembered as checked."""
NAN = float("nan")

Buffers = list[tuple[dict[str, Any], Buffer]]


Row = tuple[float, int, int | None, int | None, Per, dict[str, Any]]
"""One accepted ``log`` call as the training thread leaves it: Unix time, step, epoch, batch, what it is per, values.

The values belong to the row: nobody changes them any more, except that one still on its device is filled in. A plain
tuple, because it is made on the hot path, and because the garbage collector lets go of plain tuples of numbers.
"""

_FIELDS: list[Callable[[Row], Any]] = [operator.itemgetter(index) for index in range(6)]
_TIME, _STEP, _EPOCH, _BATCH, _PER, _VALUES = _FIELDS
_NAMES: Callable[[dict[str, Any]], tuple[str, ...]] = tuple
_NUMBERS: Callable[[dict[str, Any]], Iterable[Any]] = operator.methodcaller("values")


class Packer:
    """Turn records into blocks and hand those on.

    Args:
        sender: Whose records they are.
        append: Takes each finished block.
        refused: Told of what could not be sent, ``refused(what, why)``; a record that is lost with it becomes a
            tombstone.
    """

    def __init__(
        self,
        sender: Identity,
        append: Callable[[Block], None],
        refused: Callable[[str, str], None] = lambda what, why: None,
    ) -> None:
        self.sender = sender
        self._append, self._refused = append, refused
        self._next = [1, 1]
        self._parts: list[dict[str, Any]] = []
        self._buffers: Buffers = []
        self._count = self._bytes = 0
        self._time = 0.0
        self._rows: list[Row] = []
        self._per: Per = "batch"
        self._names: tuple[Any, ...] | None = None
        self._limit = MAX_ROWS
        self._plans: dict[tuple[str, ...], list[dict[str, str]] | None] = {}

    def add(self, records: Sequence[Row | Event]) -> None:
        """Pack these, in order; everything is handed on before this returns."""
        at = 0
        while at < len(records):
            taken = self._add_alike(records, at)
            if not taken:
                taken = min(MAX_ROWS, len(records) - at)
                self._add_singly(records[at : at + taken])
            at += taken
        self._close_rows()
        self._close()

    def _add_alike(self, records: Sequence[Row | Event], at: int) -> int:
        """Take what is there from ``at`` on as one part, if it is rows of one set; returns how many.

        Costs the interpreter's lock, which the training needs: no line of Python is run for a single row.
        """
        first = records[at]
        if type(first) is not tuple:
            return 0
        names = tuple(first[5])
        rows = cast("Sequence[Row]", records[at : at + _limit(len(names))])
        if set(map(type, rows)) != {tuple} or self._plan(names) is not None:
            return 0
        # A list of all their names would wake the garbage collector, for each block.
        alike = all(map(names.__eq__, map(_NAMES, map(_VALUES, rows))))
        if not alike or not all(map(first[4].__eq__, map(_PER, rows))):
            return 0
        self._close_rows()
        self._per, self._names, self._limit = first[4], names, len(rows)
        self._rows = list(rows)
        self._close_rows()
        return len(rows)

    def _add_singly(self, records: Sequence[Row | Event]) -> None:
        for record in records:
            if not isinstance(record, tuple):
                self._close_rows()
                self._add_event(record)
                continue
            # No call is made for a row like the last.
            rows = self._rows
            if record[4] != self._per or tuple(record[5]) != self._names:
                self._add_odd_row(record)
            elif len(rows) < self._limit:
                rows.append(record)
            else:
                self._close_rows()
                self._rows.append(record)

    # -- rows

    def _add_odd_row(self, row: Row) -> None:
        """One whose names are not those of the last."""
        self._close_rows()
        time, step, epoch, batch, per, values = row
        names = tuple(values)
        plan = self._plan(names)
        if plan is None:
            self._per, self._names = per, names
            self._limit = _limit(len(names))
            self._rows.append(row)
            return
        for chosen in plan:
            some = {good: values[name] for name, good in chosen.items()}
            self._add_odd_row((time, step, epoch, batch, per, some))
        if not plan:
            self._bury("metrics", 1, time, "none of its names can be sent")

    def _plan(self, names: tuple[Any, ...]) -> list[dict[str, str]] | None:
        """How a row with these names is to be sent: None as it is, else as rows that take name → good name."""
        if names not in self._plans:
            if len(self._plans) >= MAX_KNOWN:
                self._plans.clear()
            self._plans[names] = self._split(names)
        return self._plans[names]

    def _split(self, names: tuple[Any, ...]) -> list[dict[str, str]] | None:
        rows: list[dict[str, str]] = [{}]
        size, same = 0, True
        for name in names:
            good = plain_text(name)
            if not 0 < len(good) <= MAX_NAME:
                self._refused(good[:40], f"a metric's name needs 1 to {MAX_NAME} characters, not {len(good)}")
                same = False
                continue
            same = same and good == name
            size += len(good.encode()) + 4
            if size > MAX_NAME_BYTES:
                rows.append({})
                size = len(good.encode())
            rows[-1][name] = good
        return None if same and len(rows) == 1 else [row for row in rows if row]

    def _close_rows(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        try:
            index = _index(rows)
        except (TypeError, ValueError, OverflowError):
            rows = [self._mended(row) for row in rows]
            index = _index(rows)
        names = self._names or ()
        width = len(names)
        values = self._numbers(rows, width)
        try:
            part, buffers = encode_rows(names, self._per, cast(Any, index), cast(Any, values))
        except EncodeError as error:
            self._refused("metrics", str(error))
            self._bury("metrics", len(rows), rows[0][0], str(error))
            return
        self._add_part(part, buffers, rows[0][0])

    def _numbers(self, rows: Sequence[Row], width: int) -> Array:
        """The values of rows of ``width`` metrics, ``(n, width)``; what is no number after all counts as NaN."""
        every = itertools.chain.from_iterable(map(_NUMBERS, map(_VALUES, rows)))
        try:
            return np.fromiter(every, np.float64, len(rows) * width).reshape(len(rows), width)
        except Exception:  # a symbolic tensor, which a framework that rewrites code can let slip through
            return np.array([[self._number(*item) for item in row[5].items()] for row in rows])

    def _number(self, name: str, value: Any) -> float:
        try:
            return float(value)
        except Exception as error:
            self._refused(name, f"is no number: {plain_text(error, 100)}")
            return NAN

    def _mended(self, row: Row) -> Row:
        time, *numbers, per, values = row
        whole: list[int | None] = []
        for what, value in zip(("step", "epoch", "batch"), numbers, strict=True):
            try:
                whole.append(None if value is None else as_whole(value))
            except TypeError as error:
                self._refused(what, str(error))
                whole.append(None)
        return time, whole[0] or 0, whole[1], whole[2], per, values

    # -- events

    def _add_event(self, event: Event) -> None:
        try:
            part, buffers = encode_event(event)
            if isinstance(event, Sample):
                size = sum(len(data) for _, data in buffers)
                if size > MAX_BLOCK_BYTES - 2**20:
                    raise EncodeError(f"{event.name!r} takes {size:,} bytes: send fewer examples")
                self._emit(BULK, event.time, [part | {"b": len(buffers)}], buffers)
            else:
                self._add_part(part, buffers, event.time)
        except EncodeError as error:
            self._refused(type(event).__name__.lower(), str(error))
            self._bury(type(event).__name__.lower(), 1, event.time, str(error))

    def _bury(self, what: str, count: int, time: float, why: str) -> None:
        """The place of accepted records in the sequence is not lost with them."""
        reason = plain_text(why, 200)
        self._add_part(*encode_event(Dropped(time=time, count=count, what=what, reason=reason)), time)

    # -- blocks

    def _add_part(self, part: dict[str, Any], buffers: Buffers, time: float) -> None:
        size = sum(len(data) for _, data in buffers) + len(str(part)) * 2
        count = int(part.get("n", 1))
        full = self._bytes + size > MAX_BYTES or self._count + count > MAX_ROWS
        if self._parts and (full or len(self._buffers) + len(buffers) > MAX_BUFFERS - 4):
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
        try:
            self._emit(RECORDS, self._time, parts, buffers)
        except EncodeError as error:
            self._close_singly(parts, buffers, error)

    def _close_singly(self, parts: list[dict[str, Any]], buffers: Buffers, error: EncodeError) -> None:
        """One part of several cannot be sent: it must not take the others with it."""
        if len(parts) == 1:
            if parts[0].get("t") == "dropped":
                raise error  # not even its tombstone: that is a fault of ours
            self._refused(str(parts[0].get("t")), str(error))
            self._bury(str(parts[0].get("t")), int(parts[0].get("n", 1)), self._time, str(error))
            self._close()
            return
        for part in parts:
            taken = int(part.get("b", 0))
            self._parts, self._buffers = [part], buffers[:taken]
            buffers = buffers[taken:]
            self._close()

    def _emit(self, lane: int, time: float, parts: list[dict[str, Any]], buffers: Buffers) -> None:
        wall_ns = min(max(int(time * 1e9), 0), 2**63 - 1)  # a clock may be set to anything
        block = encode_block(self.sender, lane, self._next[lane], wall_ns, parts, buffers)
        self._next[lane] = block.last + 1
        self._append(block)


def _limit(width: int) -> int:
    """Rows of so many metrics in one block."""
    return max(1, min(MAX_ROWS, MAX_BYTES // (8 * (width + 4))))


def _index(rows: Sequence[Row]) -> Array:
    """Step, epoch, batch and time of each row, ``(n, 4)``; raises when one is no whole number that travels."""
    count = len(rows)
    index = np.empty((count, 4))
    index[:, 0] = np.fromiter(map(_STEP, rows), np.float64, count)
    index[:, 3] = np.fromiter(map(_TIME, rows), np.float64, count)
    for column, field in ((1, _EPOCH), (2, _BATCH)):
        numbers = list(map(field, rows))
        absent = numbers.count(None)
        index[:, column] = NAN if absent == count else [NAN if n is None else n for n in numbers]
    fits = np.abs(index[:, :3]) < MAX_WHOLE
    fits[:, 1:] |= np.isnan(index[:, 1:3])
    if not fits.all():
        raise ValueError("a step, epoch or batch that is too large")
    return index

"""Rows whose values a device has not computed yet, and when they are read.

Reading belongs to the training thread: from another it can break the capture of a CUDA graph. So each later call looks
at the oldest rows and reads those that are done; beyond :data:`MAX_LATE` the oldest is read whether it is done or not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fitwire.train.packer import Row
from fitwire.train.values import Late

__all__ = ["MAX_LATE", "LateRow", "Pending"]

MAX_LATE = 64
"""Rows that may wait for their device."""
PATIENCE = 1.0
"""Seconds that a call which must read waits for another thread that is reading."""


@dataclass(slots=True)
class LateRow:
    """A row with gaps; it holds back what was logged after it.

    Attributes:
        row: With :class:`~fitwire.train.values.Late` among its values, until ``settled``.
        settled: Set by the thread that read them, last of all.
    """

    row: Row
    settled: bool = False


class Pending:
    """The rows that wait, oldest first.

    Args:
        bad: Told of a value that its device could not give: ``bad(name, why)``; it counts as NaN.

    Attributes:
        rows: Looked at by the hot path, which does nothing when it is empty.
        keep: Called with a row that was read, before it is called settled.
    """

    def __init__(self, bad: Callable[[str, str], None]) -> None:
        self.rows: deque[LateRow] = deque()
        self.keep: Callable[[LateRow], None] = lambda late: None
        self._bad = bad
        self._reading = threading.Lock()

    def add(self, row: Row) -> LateRow:
        """Let a row wait."""
        late = LateRow(row)
        self.rows.append(late)
        return late

    def settle(self, *, force: bool = False) -> None:
        """Read what devices have computed by now; with ``force`` all, waiting for them."""
        if not self.rows or not self._reading.acquire(timeout=PATIENCE if force else 0):
            return
        try:
            while self.rows and (force or len(self.rows) > MAX_LATE or self._is_done(self.rows[0])):
                self._read(self.rows[0])
                self.rows.popleft()
        finally:
            self._reading.release()

    @staticmethod
    def _is_done(late: LateRow) -> bool:
        return all(value.ready() for value in late.row[5].values() if type(value) is Late)

    def _read(self, late: LateRow) -> None:
        values = late.row[5]
        failures: list[tuple[str, str]] = []
        for name, value in values.items():
            if type(value) is Late:
                try:
                    values[name] = value.read()
                except Exception as error:  # the device's own failure, which training will meet by itself
                    values[name] = float("nan")
                    failures.append((name, f"could not be read from its device: {error}"))
        self.keep(late)
        late.settled = True
        for name, why in failures:
            self._bad(name, why)

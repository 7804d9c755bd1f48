"""Rows whose device is not done: read in order, by the training thread, never waited for without need."""

from __future__ import annotations

import math
import threading
from typing import Any

from fitwire.train.packer import Row
from fitwire.train.pending import MAX_LATE, Pending
from fitwire.train.values import Late


class Device:
    """A tensor that is done when told so."""

    def __init__(self, value: float = 0.5, *, done: bool = False, broken: bool = False) -> None:
        self.value, self.done, self.broken = value, done, broken
        self.reads = 0

    def is_ready(self) -> bool:
        return self.done

    def item(self) -> float:
        self.reads += 1
        if self.broken:
            raise RuntimeError("device lost")
        return self.value


def row(*devices: Device) -> Row:
    return (0.0, 0, None, None, "batch", {f"v{i}": Late(device) for i, device in enumerate(devices)} | {"x": 1.0})


def test_a_row_is_read_once_all_its_devices_are_done() -> None:
    """Not before, and nothing is read twice."""
    pending, one, two = Pending(lambda *_: None), Device(1.0, done=True), Device(2.0)
    late = pending.add(row(one, two))
    pending.settle()

    assert not late.settled and one.reads == 0
    two.done = True
    pending.settle()
    pending.settle()
    assert late.settled and late.row[5] == {"v0": 1.0, "v1": 2.0, "x": 1.0}
    assert (one.reads, two.reads) == (1, 1)


def test_order_is_kept_although_a_later_row_is_done_first() -> None:
    """A row that is done waits for those before it."""
    pending = Pending(lambda *_: None)
    first, second = Device(), Device(done=True)
    rows = [pending.add(row(first)), pending.add(row(second))]
    pending.settle()

    assert [late.settled for late in rows] == [False, False]
    first.done = True
    pending.settle()
    assert [late.settled for late in rows] == [True, True]


def test_no_more_than_64_rows_wait() -> None:
    """Beyond that the oldest is read, done or not."""
    pending = Pending(lambda *_: None)
    rows = [pending.add(row(Device())) for _ in range(MAX_LATE + 3)]
    pending.settle()

    assert [late.settled for late in rows] == [True] * 3 + [False] * MAX_LATE


def test_a_device_that_failed_gives_nan_and_a_reason() -> None:
    """The training will meet the failure by itself."""
    told: list[tuple[str, str]] = []
    pending = Pending(lambda name, why: told.append((name, why)))
    late = pending.add(row(Device(broken=True), Device(2.0)))
    pending.settle(force=True)

    assert late.settled and math.isnan(late.row[5]["v0"]) and late.row[5]["v1"] == 2.0
    assert told == [("v0", "could not be read from its device: device lost")]


def test_many_threads_settle_without_losing_or_doubling_a_row() -> None:
    """Each row is read exactly once."""
    pending = Pending(lambda *_: None)
    devices = [Device(float(i), done=True) for i in range(400)]
    rows: list[Any] = []

    def work(mine: list[Device]) -> None:
        for device in mine:
            rows.append(pending.add(row(device)))
            pending.settle()

    threads = [threading.Thread(target=work, args=(devices[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pending.settle(force=True)

    assert all(late.settled for late in rows)
    assert [device.reads for device in devices] == [1] * 400

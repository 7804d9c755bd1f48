"""Records packed inside the call: none lost, doubled or reordered, whatever interrupts the call, and nothing waits."""

from __future__ import annotations

import contextlib
import gc
import itertools
import mmap
import multiprocessing
import os
import random
import signal
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitwire.errors import JournalError
from fitwire.events import Log, Sample
from fitwire.journal import layout
from fitwire.journal.ring import recover
from fitwire.protocol.blocks import BULK, Identity
from fitwire.train import mapped
from fitwire.train.mapped import Ring
from fitwire.train.pending import LateRow, Pending
from fitwire.train.values import Late
from rings import SMALL, WHO, recovered, ring_with, row, said, steps

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve a file's room")


# -- the promise


ROW_BYTES = 144
"""Of a row of two values."""
RETURNED, BEGUN, TAKEN = range(3)
KILLS = 30


class Ledger:
    """Three numbers that a kill cannot take back: calls that returned, calls begun, records in the journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(4096))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)

    def __setitem__(self, at: int, value: int) -> None:
        struct.pack_into("<Q", self._map, 8 * at, value)

    def __getitem__(self, at: int) -> int:
        return struct.unpack_from("<Q", self._map, 8 * at)[0]


def mixed(step: int) -> Any:
    """Of every kind, told by its step."""
    kind = step % 23
    if kind == 7:
        return Log(time=1.0, rank=2, step=step, text="x" * (step % 700))
    if kind == 11:
        return LateRow((1.0, step, None, None, "batch", {"late": float(step), "b": 1.0}))
    if kind == 13 and step % 5 == 0:
        return Sample(
            time=1.0, rank=2, step=step, name="s", arrays={"image": np.full((1, 30, 60 * (step % 3 + 1)), 1.0)}
        )
    if kind == 17:
        return 1.0, step, np.int64(1), None, "epoch", {"odd": 1.0}
    return row(step, **({"loss": 1.0} if kind % 2 else {"loss": 1.0, "accuracy": 2.0}))


def train_until_killed(folder: Path, path: Path, keeps_up: bool) -> None:
    """Log for ever; a look at each hundredth call takes all into the journal, or nobody ever does."""
    ledger = Ledger(path)
    queue: deque[Any] = deque()
    ring = Ring(folder, WHO, queue, SMALL)
    for step in range(10**9):
        ledger[BEGUN] = step + 1
        record = mixed(step)
        ring.append(record)
        if isinstance(record, LateRow):
            ring.fill(record)
        ledger[RETURNED] = step + 1
        if keeps_up and step % 100 == 99:
            ledger[TAKEN] = ring.last
            queue.clear()
            ring.release(ring.last)


@pytest.mark.parametrize("keeps_up", [True, False], ids=["journal keeps up", "nothing is taken"])
def test_no_record_whose_call_returned_is_lost_by_a_kill(tmp_path: Path, keeps_up: bool) -> None:
    """SIGKILL at a random moment, over and over: each comes back once, in order, and at most the one under way."""
    chance = random.Random(7)
    # Forks of a process that has no thread: one that has may hand its child a lock that nobody will ever release.
    nursery = multiprocessing.get_context("forkserver")
    nursery.set_forkserver_preload([__name__])
    laps = 3 * SMALL // ROW_BYTES if keeps_up else 100
    longest = 0
    for kill in range(KILLS // 2):
        folder = tmp_path / str(kill)
        folder.mkdir()
        ledger = Ledger(tmp_path / f"ledger-{kill}")
        child = nursery.Process(target=train_until_killed, args=(folder, ledger.path, keeps_up))
        child.start()
        end, enough = time.monotonic() + 60.0, chance.randrange(1, 4 * laps)
        while ledger[RETURNED] < enough and time.monotonic() < end:
            time.sleep(0.0005)
        child.kill()
        child.join()
        returned, begun, taken = ledger[RETURNED], ledger[BEGUN], ledger[TAKEN]
        found, faults = recovered(folder, after=taken, firsts=(taken + 1, 1))

        assert child.exitcode == -signal.SIGKILL and returned > 0
        expected = list(range(taken, returned))
        records = [step for step in expected if not isinstance(mixed(step), Sample)]
        samples = [step for step in expected if isinstance(mixed(step), Sample)]
        came = steps(found)
        under_way = [step for step in came if step == returned < begun]
        came = [step for step in came if step != returned]
        if -1 in came and begun > returned:  # a late row that was logged, and killed before it was filled
            assert isinstance(mixed(returned), LateRow) and came.pop(came.index(-1)) == -1
        assert came == records + samples
        assert len(under_way) <= 1
        assert not set(faults) - {"held"}
        longest = max(longest, returned)
    assert longest > laps


def test_what_returned_on_many_threads_keeps_the_queues_order(tmp_path: Path) -> None:
    """The n-th record of the queue is the n-th of the ring, so that a count says how far the journal is."""
    ring = Ring(tmp_path, WHO, deque(), 2**20)

    def work(thread: int) -> None:
        for step in range(1000):
            ring.append(row(1000 * thread + step, **{f"of{thread}": 1.0}))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    found, faults = recovered(tmp_path)

    assert steps(found) == [record[1] for record in ring.queue]
    assert ring.last == len(ring.queue) == len({record[1] for record in ring.queue}) == 8000
    assert not faults and ring.unkept == 0


# -- a call inside a call


class Logging:
    """A number that logs when it is first read, as a signal handler may at that moment."""

    def __init__(self, *records: Any, value: float = 0.5) -> None:
        self.log: Callable[[Any], None] = lambda record: None
        self.records, self.value = records, value

    def __float__(self) -> float:
        records, self.records = self.records, ()
        for record in records:
            self.log(record)
        return self.value


def test_a_call_inside_a_call_is_kept_at_once_and_takes_its_place_behind(tmp_path: Path) -> None:
    """It neither waits for the call it interrupts nor writes over it."""
    ring = ring_with(tmp_path, [row(0)])
    inner = [row(2), Log(time=1.0, rank=2, step=3, text="x"), (1.0, 4, None, None, "time", {5: 1.0})]
    outer = Logging(*inner)
    seen: list[list[Any]] = []

    def log(record: Any) -> None:
        ring.append(record)
        seen.append(steps(recovered(tmp_path)[0]))

    outer.log = log
    ring.append((1.0, 1, None, None, "batch", {"loss": outer}))
    ring.append(row(5))

    assert seen == [[0, 2], [0, 2, 3], [0, 2, 3, 4]]
    assert steps(recovered(tmp_path)[0]) == [0, 1, 2, 3, 4, 5]
    assert [getattr(r, "step", r[1] if isinstance(r, tuple) else None) for r in ring.queue] == [0, 1, 2, 3, 4, 5]
    assert ring.last == 6


def test_late_rows_and_marks_inside_a_call_reach_the_queue(tmp_path: Path) -> None:
    """What is no record has no counter."""
    ring = ring_with(tmp_path, [row(0)])
    mark, late = object(), LateRow(row(2, a=1.0))
    outer = Logging(mark, late)
    outer.log = ring.append
    ring.append((1.0, 1, None, None, "batch", {"loss": outer}))
    ring.fill(late)

    assert list(ring.queue)[2:] == [mark, late]
    assert ring.last == 3
    assert steps(recovered(tmp_path)[0]) == [0, 1, 2]


def test_a_handler_that_logs_between_any_two_steps_of_a_call(tmp_path: Path) -> None:
    """A timer's signal over and over while a loop logs: all are there once, the loop's own in order."""
    ring = Ring(tmp_path, WHO, deque(), 32 * 2**20)
    told = 0

    def handler(*_: Any) -> None:
        nonlocal told
        told += 1  # first: this handler may be interrupted too
        ring.append(row(told, handler=1.0))

    former = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    logged = 0
    try:
        end = time.monotonic() + 60.0
        while told < 200 and time.monotonic() < end:
            ring.append(row(logged))
            logged += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    ring.append(row(logged))
    found, faults = recovered(tmp_path)

    assert sorted(e.step for e in found if "handler" in e.values) == list(range(1, told + 1))
    assert [e.step for e in found if "handler" not in e.values] == list(range(logged + 1))
    assert steps(found) == [record[1] for record in ring.queue]
    assert told >= 200 and not faults and ring.unkept == 0


def interrupted_at(ring: Ring, record: Any, number: int) -> bool:
    """Append, with a Ctrl-C at the so-manieth place where one can come; whether there were so many.

    Python looks for signals behind calls and where functions begin: there, and nowhere else, is a profiler asked.
    """
    count = 0

    def interrupt(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if frame.f_code.co_filename == mapped.__file__ and event in ("c_return", "call"):
            count += 1
            if count == number:
                raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        ring.append(record)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("kind", ["row", "event", "spilled"])
def test_a_ctrl_c_at_any_place_leaves_ring_and_queue_alike(tmp_path: Path, kind: str) -> None:
    """The interrupted record is in both or in neither; what is logged next is not harmed."""
    number, more = 0, True
    while more:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        ring = ring_with(folder, [row(step) for step in range(SMALL // ROW_BYTES if kind == "spilled" else 3)])
        first = len(ring.queue)
        record = Log(time=1.0, rank=2, step=10_000, text="x") if kind == "event" else row(10_000)
        more = interrupted_at(ring, record, number)
        for step in (10_001, 10_002):
            ring.append(row(step))
        queued = [getattr(r, "step", r[1] if isinstance(r, tuple) else None) for r in ring.queue]
        found, _ = recovered(folder)

        assert ring.last == len(ring.queue), number
        assert queued[first:] in ([10_000, 10_001, 10_002], [10_001, 10_002]), number
        came = steps(found)
        # Where the call was cut before its write, a tombstone may stand for it; no returned call is touched.
        assert came == queued or came == [-1 if step == 10_000 else step for step in queued], number
        ring.close()
    assert number > 4


# -- room


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 100)), max_size=12), st.integers(0, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ring_goes_round_and_round(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int]], behind: int
) -> None:
    """Whatever the I/O thread has taken so far, all the rest is there: in the ring, or beside it."""
    folder = tmp_path_factory.mktemp("ring")
    ring = Ring(folder, WHO, deque(), 4096 * 3)
    step = 0
    released: deque[int] = deque([0] * behind)
    taken = 0
    for count, wide in moves:
        for _ in range(count):
            ring.append(row(step, **{f"v{i}": 1.0 for i in range(wide)}) if step % 7 == 0 else row(step))
            step += 1
        released.append(ring.last)
        taken = released.popleft()
        ring.release(taken)

        assert steps(recovered(folder, after=taken)[0]) == list(range(taken, step))
    assert ring.unkept == 0


def test_late_files_go_once_the_journal_has_their_records(tmp_path: Path) -> None:
    """And the ring is used again."""
    ring = ring_with(tmp_path, [row(step) for step in range(2000)])
    assert len(os.listdir(tmp_path)) > 1
    ring.release(1999)
    ring.append(row(2000))
    assert len(os.listdir(tmp_path)) > 1
    ring.release(2001)
    ring.release(2001)
    before = ring._at  # pyright: ignore[reportPrivateUsage]
    ring.append(row(2001))

    assert os.listdir(tmp_path) == ["ring"]
    assert ring._at != before  # pyright: ignore[reportPrivateUsage]
    assert steps(recovered(tmp_path, after=2001)[0]) == [2001]


def test_late_files_are_bounded_and_what_goes_beyond_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits, nothing that was kept is overwritten, and the queue has all."""
    monkeypatch.setattr(mapped, "SPILL_BYTES", 50 * ROW_BYTES)
    full = SMALL // ROW_BYTES
    ring = ring_with(tmp_path, [row(step) for step in range(full + 80)])

    assert ring.unkept == 30 and len(ring.queue) == ring.last == full + 80
    assert steps(recovered(tmp_path)[0]) == list(range(full + 50))

    ring.release(ring.last)
    ring.release(ring.last)
    ring.append(row(5))
    assert steps(recovered(tmp_path, after=full + 80)[0]) == [5]


def test_records_that_were_in_memory_only_leave_a_tombstone_between_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill then says how many it took."""
    ring = ring_with(tmp_path, [row(0)])
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "SPILL_BYTES", 0)
        for step in range(3):
            ring.append(Log(time=1.0, rank=2, step=step, text="x" * 20_000))
    ring.append(row(4))
    found, faults = recovered(tmp_path)

    assert steps(found) == [0, -3, 4]
    assert faults == Counter(missing=3) and ring.unkept == 3


def test_a_journal_that_takes_nothing_costs_no_memory(tmp_path: Path) -> None:
    """A disk that refuses for hours, and a look every 20 ms."""
    ring = Ring(tmp_path, WHO, deque(maxlen=10), 2**20)
    for step in range(5000):
        ring.append(row(step))
        ring.release(0)

    assert len(ring._places) <= mapped.MAX_PLACES  # pyright: ignore[reportPrivateUsage]
    ring.release(5000)
    ring.release(5000)
    assert ring._tail == ring._lap + ring._at  # pyright: ignore[reportPrivateUsage]


def test_rows_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    """As many names but others, the same in another order, one name or none, another kind of point."""
    values = [{"a": 1.0, "b": 2.0}, {"b": 3.0, "a": 4.0}, {"a": 5.0, "c": 6.0}, {"a": 7.0}, {}, {"a": 8.0}, {"b": 9.0}]
    kinds = ["batch", "epoch", "batch", "time"]
    rows = [(1.0, i, 5, None, kind, dict(v)) for i, (kind, v) in enumerate(itertools.product(kinds, values))]
    rows += [(1.0, len(rows) + i, 5, None, "batch", dict(values[i % 3])) for i in range(9)]
    ring_with(tmp_path, rows)
    found, faults = recovered(tmp_path)

    assert [(e.step, e.per, dict(e.values)) for e in found] == [(r[1], r[4], r[5]) for r in rows]
    assert not faults


def test_any_number_of_metric_sets(tmp_path: Path) -> None:
    """A loop that makes up a new name at each step fills the names' area; then rows carry their names themselves."""
    ring = ring_with(tmp_path, [row(step, **{f"a rather long name of a metric {step}": 1.0}) for step in range(6000)])
    found, faults = recovered(tmp_path)

    assert [list(e.values) for e in found] == [[f"a rather long name of a metric {step}"] for step in range(6000)]
    assert ring.unkept == 0 and not faults
    assert len(ring._sets) <= mapped.MAX_SETS  # pyright: ignore[reportPrivateUsage]


def test_a_row_wider_than_a_block_and_a_sample_larger_than_the_ring(tmp_path: Path) -> None:
    """They lie in late files; a wide row comes as the several records that the packer makes of it."""
    wide = {f"{i:04} {'n' * 200}": float(i) for i in range(400)}
    image = np.random.default_rng(0).random((4, 100, 100))
    sample = Sample(time=1.0, rank=2, step=1, name="s", arrays={"image": image})
    ring_with(tmp_path, [(1.0, 0, None, None, "batch", wide), sample, row(2)])
    blocks = recover(tmp_path, WHO)
    found = said(blocks)

    assert {name: value for event in found[:-2] for name, value in event.values.items()} == wide
    assert steps(found)[-2:] == [2, 1] and [b.count for b in blocks if b.lane == BULK] == [1]
    assert np.array_equal(found[-1].arrays["image"], image)


def test_calls_inside_calls_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file each: what goes beyond has its place, and is in memory only."""
    monkeypatch.setattr(mapped, "SPILL_FILES", 3)
    ring = ring_with(tmp_path, [row(0)])
    outer = Logging(*[row(step) for step in range(2, 7)])
    outer.log = ring.append
    ring.append((1.0, 1, None, None, "batch", {"loss": outer}))
    ring.append(row(7))

    assert [record[1] for record in ring.queue] == list(range(8))
    assert steps(recovered(tmp_path)[0]) == [0, 1, 2, 3, 4, -2, 7]
    assert ring.unkept == 2


# -- late rows


class Device:
    """A tensor that is done when told so."""

    def __init__(self, value: float) -> None:
        self.value, self.done = value, False

    def is_ready(self) -> bool:
        return self.done

    def item(self) -> float:
        return self.value


def test_a_row_whose_device_is_late_is_kept_when_it_is_read(tmp_path: Path) -> None:
    """At its own place, before it counts as settled."""
    ring = Ring(tmp_path, WHO, deque(), SMALL)
    pending = Pending(lambda *_: None)
    pending.keep = ring.fill
    devices = [Device(float(i)) for i in range(4)]
    for i, device in enumerate(devices):
        ring.append(pending.add((1.0, 2 * i, None, None, "batch", {"late": Late(device), "b": 1.0})))
        ring.append(row(2 * i + 1))
    assert steps(recovered(tmp_path)[0]) == [-1, 1, -1, 3, -1, 5, -1, 7]

    devices[0].done = devices[1].done = True
    pending.settle()
    found, _ = recovered(tmp_path)
    assert steps(found) == [0, 1, 2, 3, -1, 5, -1, 7]
    assert [e.values["late"] for e in (found[0], found[2])] == [0.0, 1.0]

    pending.settle(force=True)
    assert steps(recovered(tmp_path)[0]) == list(range(8))


def test_a_late_row_that_finds_no_room_is_kept_when_it_is_read(tmp_path: Path) -> None:
    """Likewise one whose names cannot stand in the ring."""
    ring = ring_with(tmp_path, [row(step) for step in range(SMALL // ROW_BYTES)])
    first = ring.last
    lates = [LateRow(row(5000, a=1.0)), LateRow((1.0, 5001, None, None, "batch", {5: 1.0}))]
    for late in lates:
        ring.append(late)
    ring.append(row(5002))
    assert steps(recovered(tmp_path, after=first)[0]) == [-2, 5002]
    for late in lates:
        ring.fill(late)

    assert steps(recovered(tmp_path, after=first)[0]) == [5000, 5001, 5002]
    ring.release(ring.last)
    assert os.listdir(tmp_path) == ["ring"]


# -- the file


def test_a_disk_without_room_makes_no_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller goes on with memory; nothing is left lying about."""

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left"):
        Ring(tmp_path, WHO, deque())

    assert os.listdir(tmp_path) == []


def test_a_ring_is_never_made_over_another(tmp_path: Path) -> None:
    """Its records are somebody's."""
    ring_with(tmp_path, [row(0)])
    with pytest.raises(FileExistsError):
        Ring(tmp_path, WHO, deque())

    assert steps(recovered(tmp_path)[0]) == [0]
    assert os.stat(tmp_path / "ring").st_mode & 0o777 == 0o600
    blocks = os.stat(tmp_path / "ring").st_blocks * 512
    assert blocks >= os.stat(tmp_path / "ring").st_size  # reserved, every page of it


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as a network's, and another that counts as the system's shared memory."""
    memory = tmp_path / "shm"
    memory.mkdir()
    monkeypatch.setattr(layout, "SHARED", memory)
    monkeypatch.setattr(mapped, "file_system", lambda path: "tmpfs" if path == memory else "nfs4")
    return memory


def test_on_a_network_the_ring_lies_in_shared_memory(tmp_path: Path, shared: Path) -> None:
    """A mapped page whose server is gone would end the training; the journal's folder says where the ring is."""
    folder = tmp_path / layout.folder_name(WHO)
    folder.mkdir()
    ring = ring_with(folder, [row(0), Log(time=1.0, rank=2, step=1, text="x" * 10_000)])
    home = shared / f"fitwire-{os.getuid()}" / folder.name

    assert steps(recovered(folder)[0]) == [0, 1]
    assert sorted(os.listdir(home)) == ["late-2", "ring"] and os.listdir(folder) == ["ring"]
    assert home.parent.stat().st_mode & 0o777 == 0o700
    ring.close(keep=True)
    layout.remove(folder)
    assert not home.exists() and not folder.exists()


def test_a_ring_in_shared_memory_goes_when_it_is_closed(tmp_path: Path, shared: Path) -> None:
    """With what lies beside it."""
    folder = tmp_path / layout.folder_name(WHO)
    folder.mkdir()
    ring = ring_with(folder, [row(0), Log(time=1.0, rank=2, step=1, text="x" * 10_000)])
    ring.close()

    assert os.listdir(shared / f"fitwire-{os.getuid()}") == os.listdir(folder) == []


def test_without_shared_memory_a_networks_folder_gets_no_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a mapping that could fail."""
    monkeypatch.setattr(mapped, "file_system", lambda path: "btrfs")
    with pytest.raises(OSError, match="can fail"):
        Ring(tmp_path, WHO, deque())

    assert os.listdir(tmp_path) == []


def test_a_ring_in_shared_memory_that_is_gone_is_a_journal_error(tmp_path: Path, shared: Path) -> None:
    """E.g. read on another host: what the entries say is then all there is."""
    (tmp_path / "ring").write_bytes(layout.ELSEWHERE)
    with pytest.raises(JournalError, match="cannot read"):
        recover(tmp_path, WHO)


def test_a_folder_that_is_deleted_harms_nobody(tmp_path: Path) -> None:
    """The memory stays; what would go to a file is counted."""
    folder = tmp_path / "journal"
    folder.mkdir()
    ring = ring_with(folder, [row(0)])
    (folder / "ring").unlink()
    folder.rmdir()
    for step in range(2000):
        ring.append(row(step))
    ring.append(Log(text="x" * 10_000))
    ring.release(100)
    ring.close()

    assert len(ring.queue) == ring.last == 2002
    assert ring.unkept > 0


def test_after_the_end_records_are_in_memory_only(tmp_path: Path) -> None:
    """Late calls of other threads do no harm; with ``keep`` the files stay for whoever delivers them."""
    ring = ring_with(tmp_path, [row(0), Log(time=1.0, rank=2, step=1, text="x" * 10_000)])
    ring.close(keep=True)
    ring.append(row(2))
    assert steps(recovered(tmp_path)[0]) == [0, 1]
    assert ring.unkept == 1

    other = tmp_path / "other"
    other.mkdir()
    ring = ring_with(other, [row(0), Log(text="x" * 10_000)])
    ring.close()
    assert os.listdir(other) == []


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    """The memory is its parent's; not even a call that was under way at the fork hangs it."""
    ring = ring_with(tmp_path, [row(0)])
    ring._busy = True  # pyright: ignore[reportPrivateUsage]
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(30)
            for step in range(50):
                ring.append(row(1000 + step))
                ring.append(Log(text="x" * 10_000))
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    ring._busy = False  # pyright: ignore[reportPrivateUsage]
    ring.append(row(1))

    assert os.waitstatus_to_exitcode(status) == 0
    assert steps(recovered(tmp_path)[0]) == [0, 1]
    assert os.listdir(tmp_path) == ["ring"]


# -- what it costs


def test_a_row_of_floats_makes_no_system_call(tmp_path: Path) -> None:
    """One call of ours; the rest packs and appends. No file, no lock, no encoding."""
    ring = ring_with(tmp_path, [row(0)])
    record = row(1)
    found: Counter[str] = Counter()

    def hook(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found[frame.f_code.co_name] += 1
        elif event == "c_call":
            found[argument.__name__] += 1

    gc.disable()
    sys.setprofile(hook)
    try:
        ring.append(record)
    finally:
        sys.setprofile(None)
        gc.enable()
    found.pop("setprofile", None)

    assert found == {"append": 2, "len": 1, "pack_into": 1}
    assert steps(recovered(tmp_path)[0]) == [0, 1]


def test_the_queue_gets_what_was_given(tmp_path: Path) -> None:
    """The very objects, odd ones too, so that the I/O thread finds what it would without a ring."""
    odd: list[Any] = [
        row(0),
        (1.0, 2**70, "no", None, "batch", {"x": object()}),
        (1, 2),
        LateRow(row(1)),
        object(),
        None,
    ]
    ring = ring_with(tmp_path, odd)

    assert all(a is b for a, b in zip(ring.queue, odd, strict=True))
    assert ring.last == 4
    assert Identity(WHO.run, WHO.incarnation, WHO.rank) == ring.sender

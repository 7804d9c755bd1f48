"""What is on disk after a run, however it ended, and what a run does without a hub, a disk or room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitwire.errors import AddressError
from fitwire.events import Dropped, Event, Log, MetricRows, Metrics, RunEnded, Sample, decode_events, explode
from fitwire.journal.layout import find_journals, read_about
from fitwire.journal.reader import Journal
from fitwire.protocol.blocks import BULK, RECORDS, decode_message
from fitwire.train import settings as settings_module
from fitwire.train import uplink as uplink_module
from fitwire.train.run import Run
from fitwire.train.settings import Settings
from helpers import run_python, until
from tinyhub import tiny_hub


def started(**settings: Any) -> Run:
    return Run(Settings(**{"name": "test"} | settings))


def told(path: Path, lane: int = RECORDS) -> list[Event]:
    """What a journal holds, as whoever delivers it reads it."""
    found: list[Event] = []
    with Journal(path) as journal:
        seq = journal.first(lane)
        while (block := journal.read(lane, seq)) is not None:
            for _, event in decode_events(decode_message(block.frames)):
                found.extend(explode(event) if isinstance(event, MetricRows) else [event])
            seq = block.last + 1
        assert not journal.faults
    return found


def steps(events: list[Event]) -> list[int | None]:
    return [event.step for event in events if isinstance(event, Metrics) and event.per == "batch"]


def only_journal() -> Path:
    (path,) = find_journals()
    return path


def test_offline_a_run_looks_for_nobody_and_leaves_all_of_it_on_disk(capsys: pytest.CaptureFixture[str]) -> None:
    """No socket is opened; flush means written; the last line says where it is and how to send it."""
    with started(mode="offline") as run:
        for step in range(1000):
            run.log({"loss": float(step)}, step=step)
        run.sample("masks", image=np.zeros((1, 4)))
        assert run.flush(60.0)
    path = only_journal()
    events = told(path)

    assert steps(events) == list(range(1000))
    assert isinstance(events[-1], RunEnded) and events[-1].status == "finished"
    assert [type(event) for event in told(path, BULK)] == [Sample]
    assert f"wait in {path}" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["/dev/null", "x" * 100])
def test_without_any_folder_a_run_trains_on(
    where: str, fitwire_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody asked for the default one, so that it cannot be made or is too long ends no training; strict says no."""
    monkeypatch.setenv("FITWIRE_DIR", str(fitwire_dir / where))
    with started() as run:
        run.log({"loss": 1.0})
    said = capsys.readouterr().err

    assert "set FITWIRE_DIR to " in said and "training on, and no hub is told" in said
    assert ("lost" in said) is (where == "/dev/null")
    with pytest.raises(AddressError):
        started(strict=True)


def test_a_delivered_run_leaves_nothing_on_disk() -> None:
    """The store has it."""
    with tiny_hub(), started(wait=60.0) as run:
        run.log({"loss": 1.0})

    assert list(find_journals()) == []


def test_a_run_that_is_kept_leaves_its_journal_to_its_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fitwire run` may know more of the end than the training does."""
    monkeypatch.setenv("FITWIRE_KEEPER", f"{os.getpid()}:")
    with tiny_hub(), started(wait=60.0) as run:
        run.log({"loss": 1.0})

    assert read_about(only_journal()).keeper == (os.getpid(), None)
    with Journal(only_journal()) as journal:
        assert journal.heads[RECORDS] >= 3 and not any(journal.undelivered)


@pytest.mark.parametrize("durability", ["memory", "process"])
@pytest.mark.parametrize(
    ("last", "code", "status"),
    [
        ("", 0, "finished"),
        ("sys.exit(3)", 3, "finished"),
        ("raise ValueError('bad')", 1, "failed"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "interrupted"),
    ],
)
def test_without_a_hub_every_ending_that_python_knows_leaves_all_of_it_on_disk(
    durability: str, last: str, code: int, status: str
) -> None:
    """Without close, with sys.exit, an exception, Ctrl-C."""
    program = f"""
import sys, fitwire
run = fitwire.init(durability={durability!r})
for step in range(2000):
    run.log({{"loss": float(step)}}, step=step)
{last}
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    events = told(only_journal())

    assert child.returncode == code, child.stderr
    assert steps(events) == list(range(2000))
    assert [event.status for event in events if isinstance(event, RunEnded)] == [status]


def test_a_kill_inside_the_loop_costs_nothing_with_process() -> None:
    """Floats, whole numbers, notes, samples and odd names, up to the very last call before the signal."""
    program = """
import os, numpy as np, fitwire
run = fitwire.init(durability="process")
for step in range(3000):
    values = {"loss": float(step), "n": step, f"odd{step % 5}": np.float32(1)}
    run.log(values, step=step, epoch=step // 100, batch=step % 100)
    if step % 500 == 0:
        run.note(f"note {step}")
        run.sample("masks", step=step, image=np.full((1, 300_000), step, np.float32))
os.kill(os.getpid(), 9)
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    path = only_journal()
    events, samples = told(path), told(path, BULK)

    assert child.returncode == -signal.SIGKILL
    assert steps(events) == list(range(3000))
    rows = [event for event in events if isinstance(event, Metrics) and event.per == "batch"]
    assert all(e.values["loss"] == e.values["n"] == e.step and e.epoch == e.step // 100 for e in rows)
    assert [event.text for event in events if isinstance(event, Log)] == [f"note {i}" for i in range(0, 3000, 500)]
    assert [event.step for event in samples] == list(range(0, 3000, 500))
    assert all((e.arrays["image"] == e.step).all() for e in samples if isinstance(e, Sample))


def test_samples_made_faster_than_the_disk_takes_them_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, the caller does not wait, and each one that is missing has its tombstone."""
    monkeypatch.setattr(uplink_module, "WAITING_BYTES", 2**20)
    monkeypatch.setattr(uplink_module, "LOOK", 0.3)
    with started(mode="offline") as run:
        for step in range(100):
            run.sample("masks", step=step, image=np.zeros((1, 10**5), np.uint8))
    path = only_journal()
    kept = [event for event in told(path, BULK) if isinstance(event, Sample)]
    gone = [event for event in told(path) if isinstance(event, Dropped)]

    assert 10 <= len(kept) < 100
    assert len(kept) + sum(event.count for event in gone) == 100
    assert {event.what for event in gone} == {"sample"}


def test_under_pressure_gauges_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of eight stays; each of the others has its tombstone; metrics are not touched."""
    monkeypatch.setattr(uplink_module.Journal, "pressed", True)
    run = started(mode="offline")
    before = len(run._queue)  # pyright: ignore[reportPrivateUsage]
    for step in range(80):
        run._gauge({"cpu": float(step)})  # pyright: ignore[reportPrivateUsage]
        run.log({"loss": 1.0}, step=step)
    run.finish()
    events = told(only_journal())
    gauges = [event for event in events if isinstance(event, Metrics) and event.per == "time"]
    gone = sum(event.count for event in events if isinstance(event, Dropped) and event.what == "gauges")

    assert before >= 0 and len(gauges) + gone >= 80 and gone >= 70
    assert steps(events) == list(range(80))


def test_without_any_disk_a_run_goes_on_in_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One warning; a hub that comes gets everything."""
    monkeypatch.setattr(uplink_module, "create", _refuse)
    with tiny_hub() as hub:
        run = started(durability="process", wait=60.0)
        for step in range(1000):
            run.log({"loss": float(step)}, step=step)
        assert run.flush(60.0)
        run.finish()

        assert [event.step for event in hub.store.metrics] == list(range(1000))
    printed = capsys.readouterr().err
    assert printed.count("durability='process' is not to be had here") == 1
    assert printed.count("cannot write to the journal's folder: Read-only file system") == 1


def _refuse(*arguments: Any) -> Path:
    raise OSError(30, "Read-only file system")


def test_two_processes_that_begin_in_one_second_are_two_incarnations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though neither knows of the other: the folder says that the number is taken."""
    monkeypatch.setattr(settings_module, "_claim", lambda run, rank, number: 1_700_000_000)
    runs = [started(mode="offline", run_id="same") for _ in range(3)]
    for run in runs:
        run.log({"loss": 1.0})
        run.finish()

    assert [read_about(path).sender.incarnation for path in find_journals()] == [
        1_700_000_000, 1_700_000_001, 1_700_000_002,
    ]  # fmt: skip
    assert all(steps(told(path)) == [0] for path in find_journals())


def test_a_forked_child_leaves_the_journal_alone() -> None:
    """Not a record of it, whether it ends by itself, by an exception or by a kill."""
    run_python(
        """
import os, fitwire
run = fitwire.init(mode="offline", durability="process")
for step in range(100):
    run.log({"loss": float(step)}, step=step)
    if step % 10 == 0:
        pid = os.fork()
        if pid == 0:
            run.log({"loss": -1.0}, step=-1)
            run.note("child")
            run.finish() if step % 20 else os._exit(0)
            os._exit(0)
        os.waitpid(pid, 0)
run.finish()
"""
    )
    events = told(only_journal())

    assert steps(events) == list(range(100))
    assert not [event for event in events if isinstance(event, Log)]


def test_the_end_waits_for_the_disk_and_not_for_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged at the last moment is on disk when finish returns."""
    with started() as run:
        outlet: Any = run._outlet  # pyright: ignore[reportPrivateUsage]
        until(lambda: outlet.backlog.head(RECORDS))
        run.log({"loss": 1.0}, step=7)

    assert steps(told(only_journal())) == [7]

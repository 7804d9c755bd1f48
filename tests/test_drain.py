"""Tests of ``fitwire.watch.drain``: a hub takes by itself what trainers of its machine left."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fitwire
from fitwire import Monitor
from fitwire.journal.layout import HAVE, About, close, encode_have, find_journals
from fitwire.journal.layout import age as real_age
from fitwire.protocol.blocks import RECORDS, Identity
from fitwire.transport.address import Address, resolve
from fitwire.transport.process import started_at
from fitwire.watch import drain
from fitwire.watch.drain import Drainer
from fitwire.watch.hub import Hub
from fitwire.watch.states import State
from helpers import records, until
from journals import hello_of, killed_trainer, write_entries, write_journal
from watching import RUN, block_of, started

LIFE = Identity(RUN, 1000, 0)
KILLED = """
import os, time, fitwire
run = fitwire.init(name="victim", durability=os.environ["DURABILITY"])
for step in range(2000):
    run.log({"loss": float(step)}, step=step)
time.sleep(float(os.environ["PAUSE"]))
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def drainer(address: Address, fitwire_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drainer]:
    """One that looks when the test says so, beside a hub."""
    hub = Hub(address, fitwire_dir / "store.sqlite3", drain=False)
    monkeypatch.setattr(Drainer, "_work", lambda self: None)
    made = Drainer(address, hub.roster.knows)
    yield made
    made.close()
    hub.close()


def left(sender: Identity = LIFE, *, about: About | None = None, folder: Path | None = None) -> Path:
    blocks = [block_of(sender, 1, started("fox")), records(2, 3, sender)]
    return write_journal(blocks, sender, about=about, folder=folder)


@pytest.mark.parametrize(("durability", "pause", "lost"), [("process", "0", 0), ("memory", "0.5", 0)])
def test_a_killed_trainer_is_drained_by_the_next_hub(durability: str, pause: str, lost: int) -> None:
    """All that it had logged is there, with no command given; its journal is gone, and so are the folders."""
    killed_trainer(KILLED, DURABILITY=durability, PAUSE=pause)
    assert len(list(find_journals())) == 1
    with Monitor() as monitor:
        run = monitor.wait_for_run("victim", timeout=60)
        until(lambda: not list(find_journals()), what="the journal is still there")
        until(lambda: run.badge.startswith("complete"))

        assert run.state is State.LOST
        assert run.curve("loss").values.tolist() == [float(step) for step in range(2000 - lost)]
        assert run.badge == ("complete" if durability == "process" else "complete to its last 20 ms")


def test_a_trainer_that_is_killed_while_the_hub_looks_on_is_drained_too() -> None:
    """The hub had half of it, over its own connection."""
    with Monitor() as monitor:
        killed_trainer(KILLED, DURABILITY="process", PAUSE="0")
        run = monitor.wait_for_run("victim", timeout=60)
        until(lambda: run.badge == "complete", what="not drained")

        assert run.curve("loss").values.tolist() == [float(step) for step in range(2000)]
        assert run.state is State.LOST
        until(lambda: not list(find_journals()), what="the journal is still there")


def test_what_a_run_left_that_found_no_hub_is_taken_while_its_process_lives_on() -> None:
    """A notebook's kernel: the run has ended, and its journal was closed."""
    with fitwire.init(name="offline", mode="offline") as run:
        run.log({"loss": 0.5})
    assert len(list(find_journals())) == 1
    with Monitor() as monitor:
        found = monitor.wait_for_run("offline", timeout=60)
        until(lambda: found.badge == "complete")

        assert found.state is State.FINISHED
        until(lambda: not list(find_journals()))


def test_a_living_trainers_journal_is_its_own(drainer: Drainer) -> None:
    """And a keeper's is the keeper's."""
    me = os.getpid()
    living = left(about=About(LIFE, hello_of(me)))
    other = Identity(RUN, 2000, 0)
    kept = left(other, about=About(other, hello_of(), keeper=(me, started_at(me))))
    drainer.look(0.0)

    assert living.exists() and kept.exists()
    assert drainer.counts == {}


def test_lives_are_delivered_oldest_first_and_pointers_followed(drainer: Drainer, tmp_path: Path) -> None:
    """Also from a folder that a training was given."""
    lives = [Identity(RUN, number, 0) for number in (9, 10)]
    paths = [left(sender, folder=tmp_path / str(sender.incarnation)) for sender in reversed(lives)]
    drainer.look(0.0)

    assert drainer.counts == {"records": 8, "journals": 2}
    assert not any(path.exists() for path in paths)


def test_what_cannot_be_delivered_is_tried_less_and_less_and_said_once(
    drainer: Drainer, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that nothing can be read of must not keep the machine busy, nor fill its log."""
    path = write_journal([], LIFE)
    write_entries(path, RECORDS, 1, [os.urandom(500)])
    tries: list[float] = []
    with caplog.at_level(logging.WARNING, "fitwire"):
        for now in range(0, 4000, 2):
            before = drainer.counts["failures"]
            drainer.look(float(now))
            tries += [float(now)] * (drainer.counts["failures"] - before)

    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert pauses == [4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 600.0, 600.0, 600.0, 600.0]
    assert path.exists()
    assert len([r for r in caplog.records if str(path) in r.message and "doctor" in r.message]) == 1


def test_one_that_fails_holds_nobody_up(drainer: Drainer) -> None:
    """The others are delivered in the same look."""
    broken = write_journal([], Identity(RUN, 1, 0))
    write_entries(broken, RECORDS, 1, [os.urandom(500)])
    good = left()
    drainer.look(0.0)

    assert broken.exists() and not good.exists()


def test_the_rest_of_a_run_is_left_to_the_hub_that_has_its_beginning(
    drainer: Drainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a minute; if that one is gone for good, better here than nowhere."""
    path = left()
    (path / HAVE).write_bytes(encode_have((1, 0)))
    drainer.look(0.0)
    assert path.exists()
    monkeypatch.setattr(drain, "age", lambda path: real_age(path) + 3600)
    drainer.look(10.0)

    assert not path.exists()
    assert drainer.counts["records"] == 3


def test_a_hub_that_closes_does_not_wait_for_what_it_drains(fitwire_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delivery is told to stop, and nothing is lost of what is left."""
    begun, told = threading.Event(), threading.Event()

    def deliver(path: Path, address: Address, *, timeout: float, stopped: object) -> object:
        begun.set()
        until(stopped)  # type: ignore[arg-type]
        told.set()
        raise fitwire.errors.JournalError("stopped")

    monkeypatch.setattr(drain, "deliver", deliver)
    path = left()
    hub = Hub(resolve(f"ipc://{fitwire_dir}/hub"), fitwire_dir / "store.sqlite3")
    assert begun.wait(30)
    hub.close()

    assert told.is_set() and path.exists()


def test_a_fault_of_ours_is_logged_once_and_the_drainer_goes_on(
    fitwire_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine would lose its drainer until the next hub."""
    monkeypatch.setattr(drain, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(drain, "find_journals", lambda: 1 / 0)
    hub = Hub(resolve(f"ipc://{fitwire_dir}/hub"), fitwire_dir / "store.sqlite3")
    assert hub.drainer is not None
    drainer = hub.drainer
    with caplog.at_level(logging.ERROR, "fitwire"):
        until(lambda: drainer.counts["faults"] > 3)
    monkeypatch.undo()
    monkeypatch.setenv("FITWIRE_DIR", str(fitwire_dir))
    path = left()
    until(lambda: not path.exists(), what="it does not look any more")
    hub.close()

    assert len(caplog.records) == 1


def test_a_closed_journal_is_an_orphan_for_the_hub_of_its_own_process(drainer: Drainer) -> None:
    """Whoever trains and watches in one process delivers to itself."""
    path = left(about=About(LIFE, hello_of(os.getpid())))
    close(path)
    drainer.look(0.0)

    assert not path.exists()

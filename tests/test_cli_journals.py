"""``fitwire sync``, ``verify`` and ``doctor`` as people and scripts use them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fitwire
from fitwire import Monitor
from fitwire.cli import main, sync
from fitwire.journal.layout import ABOUT, HAVE, About, encode_have, find_journals, segment_name
from fitwire.protocol.blocks import RECORDS, Identity
from fitwire.transport.address import resolve
from fitwire.transport.process import started_at
from fitwire.watch.hub import Hub
from fitwire.watch.store import Store
from helpers import records, until
from journals import flipped, hello_of, killed_trainer, write_entries, write_journal
from watching import RUN, block_of, ended, started

LIFE = Identity(RUN, 1000, 0)
VICTIM = """
import os, time, fitwire
import numpy as np
run = fitwire.init(name="\\x1b[2Jvictim")
for step in range(100):
    run.log({"loss": float(step)}, step=step)
run.sample("pictures", image=np.zeros((1, 4, 4)))
time.sleep(0.5)
os.kill(os.getpid(), 9)
"""


def fitwire_says(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def in_json(*arguments: str) -> Any:
    return json.loads(fitwire_says(*arguments, "--json").stdout)


def left(sender: Identity = LIFE, *, about: About | None = None, folder: Path | None = None, name: str = "fox") -> Path:
    blocks = [block_of(sender, 1, started(name)), records(2, 3, sender), block_of(sender, 5, ended())]
    return write_journal(blocks, sender, about=about, folder=folder, per_segment=1, name=name)


def test_a_killed_trainer_is_delivered_verified_and_nothing_waits() -> None:
    """The whole story, without a hub."""
    killed_trainer(VICTIM)
    before = fitwire_says("doctor").stdout
    [line] = in_json("sync")
    verified = fitwire_says("verify", "last")

    assert "`fitwire sync`" in before and "victim  " in before and "\x1b" not in before
    assert (line["run"], line["records"], line["outcome"], line["left"]) == ("\x1b[2Jvictim", 103, "delivered", 0)
    assert verified.exit_code == 0 and "103 records, all as they were said" in verified.stdout
    assert [run["state"] for run in in_json("ls")] == ["lost"]
    assert in_json("doctor")["journals"] == []
    assert "everything was delivered" in fitwire_says("doctor").stdout
    assert fitwire_says("sync").exit_code == 0 and "everything was delivered" in fitwire_says("sync").stderr


def test_sync_says_of_each_journal_what_became_of_it(fitwire_dir: Path) -> None:
    """Run, rank, records; damage, and what is lost by it; an escape sequence in a name reaches no terminal."""
    left(name="\x1b[31mfox")
    damaged = left(Identity(RUN, 1000, 3), name="broken")
    file = damaged / segment_name(RECORDS, 2)
    file.write_bytes(flipped(file.read_bytes(), 99))
    result = fitwire_says("sync")

    assert result.exit_code == 0
    assert sorted(result.stdout.splitlines()) == [
        "broken rank 3: 2 records delivered, 3 lost to damage on disk, marked as such, met 1 damaged",
        "fox: 5 records delivered",
    ]
    assert list(find_journals()) == []


def test_sync_tells_a_wrong_folder_from_an_empty_one(tmp_path: Path) -> None:
    """Where no journal ever was, nothing was delivered either."""
    (tmp_path / "runs" / "journals").mkdir(parents=True)
    wrong = fitwire_says("sync", str(tmp_path))

    assert wrong.exit_code == 2
    assert "is no data folder and no journal: pass what the training was given as dir=" in wrong.stderr
    assert "everything was delivered" in fitwire_says("sync", str(tmp_path / "runs")).stderr


def test_sync_reads_a_copy_from_another_machine(tmp_path: Path) -> None:
    """Whether its training lives cannot be known: one that is silent is delivered and goes, a fresh one stays too."""
    elsewhere = hello_of() | {"host_key": "cluster/1/2"}
    old = left(about=About(LIFE, elsewhere), folder=tmp_path / "runs")
    then = time.time() - 3600
    for file in old.iterdir():
        os.utime(file, (then, then))
    shutil.copytree(tmp_path / "runs" / "journals", tmp_path / "copy")  # copies keep their times
    fresh = left(Identity(RUN, 2000, 0), about=About(Identity(RUN, 2000, 0), elsewhere), folder=tmp_path / "new")
    first = in_json("sync", str(tmp_path / "copy"))
    second = in_json("sync", str(tmp_path / "new"))

    assert [line["outcome"] for line in first + second] == ["delivered", "delivered"]
    assert list(find_journals(tmp_path / "copy")) == []
    assert fresh.exists() and "another machine" in second[0]["why"]
    assert len(in_json("ls")) == 1


def test_sync_leaves_the_living_alone() -> None:
    """Their own trainer, or their `fitwire run`, delivers."""
    me = os.getpid()
    left(about=About(LIFE, hello_of(me)))
    kept = Identity(RUN, 2000, 0)
    left(kept, about=About(kept, hello_of(), keeper=(me, started_at(me))))
    result = fitwire_says("sync")

    assert result.exit_code == 0
    assert result.stdout.count("skipped") == 2 and "fitwire run" in result.stdout
    assert len(list(find_journals())) == 2


def test_sync_delivers_to_the_hub_that_is_there(fitwire_dir: Path) -> None:
    """Though its own drainer is after the same journal."""
    with Monitor() as monitor:
        left()
        result = fitwire_says("sync")
        until(lambda: [run.badge for run in monitor.runs] == ["complete"])

    assert result.exit_code == 0 and "delivered" in result.stdout
    assert list(find_journals()) == []


def test_sync_waits_for_the_drainer_that_was_quicker(fitwire_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What that has begun, it will end; and what it delivered is no fault."""
    path = left()
    calls: list[Path] = []
    real = sync.deliver

    def contested(where: Path, *args: Any, **how: Any) -> Any:
        calls.append(where)
        done = real(where, *args, **how)
        return dataclasses.replace(done, complete=False, contested=True)

    monkeypatch.setattr(sync, "deliver", contested)
    [line] = in_json("sync")

    assert (line["outcome"], line["why"]) == ("delivered", "by the hub itself")
    assert calls == [path]


def test_sync_to_nobody_leaves_everything_and_fails(fitwire_dir: Path) -> None:
    """Another program listens there; nothing hangs, nothing is lost."""
    path = left()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = fitwire_says("sync", "--address", f"tcp://127.0.0.1:{port}", "--timeout", "0.5")

    assert result.exit_code == 1
    assert "5 left" in result.stdout and "no hub answered" in result.stdout
    assert path.exists()


def test_sync_keeps_what_it_is_told_to_keep(fitwire_dir: Path) -> None:
    """A second time there is nothing to send."""
    path = left()

    assert in_json("sync", "--keep")[0]["records"] == 5
    assert path.exists()
    assert in_json("sync", "--keep")[0]["records"] == 0
    assert in_json("sync")[0]["outcome"] == "delivered"
    assert not path.exists()


def test_sync_goes_on_after_one_that_it_cannot_deliver(fitwire_dir: Path) -> None:
    """Exit code 1 says that something is left."""
    broken = write_journal([], Identity(RUN, 1, 0))
    write_entries(broken, RECORDS, 1, [os.urandom(500)])
    good = left()
    result = fitwire_says("sync")

    assert result.exit_code == 1
    assert broken.exists() and not good.exists()
    assert "can be read" in result.stdout and "5 records delivered" in result.stdout


def test_sync_of_a_wrong_address_is_misuse() -> None:
    """One sentence, and exit code 2, as everywhere."""
    left()
    result = fitwire_says("sync", "--address", "not an address!")

    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_verify_fails_where_the_store_was_changed(fitwire_dir: Path) -> None:
    """And says in which lane; a script reads the exit code."""
    left()
    assert fitwire_says("sync").exit_code == 0
    assert in_json("verify", "fox")["sound"] is True
    db = sqlite3.connect(fitwire_dir / "store.sqlite3")
    with db:
        (blob,) = db.execute("SELECT blob FROM blocks WHERE first=2").fetchone()
        db.execute("UPDATE blocks SET blob=? WHERE first=2", (flipped(blob, len(blob) - 1),))
    db.close()
    result = fitwire_says("verify", "fox")

    assert result.exit_code == 1
    assert "NOT SOUND" in result.stdout and "1 of 1 lanes" in result.stdout
    found = in_json("verify", "fox")
    assert (found["sound"], found["sources"][0]["spoilt"], found["sources"][0]["goodbye"]) == (False, 1, False)


def test_verify_of_a_run_whose_store_is_elsewhere_says_so(fitwire_dir: Path, tmp_path: Path) -> None:
    """The hub knows the run; the store that was named does not."""
    hub = Hub(resolve(), tmp_path / "elsewhere.sqlite3")
    with fitwire.init(name="fox", wait=30) as run:
        run.log({"loss": 1.0})
    until(lambda: [line["complete"] for line in hub.roster.summaries()] == [True])
    (fitwire_dir / "store.sqlite3").unlink(missing_ok=True)
    Store(fitwire_dir / "store.sqlite3").close()
    wrong = fitwire_says("verify", "fox")
    right = fitwire_says("verify", "fox", "--store", str(tmp_path / "elsewhere.sqlite3"))
    hub.close()

    assert (wrong.exit_code, right.exit_code) == (1, 0)
    assert "--store" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_doctor_tells_whose_each_journal_is_and_what_to_do(fitwire_dir: Path) -> None:
    """Four of them, each another case; damage is counted, and nothing is changed."""
    me = os.getpid()
    lives = [Identity(RUN, number, 0) for number in (1, 2, 3, 4)]
    left(lives[0], about=About(lives[0], hello_of(me)))
    left(lives[1], about=About(lives[1], hello_of(), keeper=(me, started_at(me))))
    ended_ = left(lives[2])
    left(lives[3], about=About(lives[3], hello_of() | {"host_key": "other/1/2", "host": "node7\x1b[1m"}))
    (ended_ / HAVE).write_bytes(encode_have((1, 0)))
    os.truncate(ended_ / segment_name(RECORDS, 3), 100)
    before = {file: file.read_bytes() for file in fitwire_dir.rglob("*") if file.is_file()}
    found = in_json("doctor")
    text = fitwire_says("doctor").stdout

    assert [line["life"] for line in found["journals"]] == ["training", "kept", "ended", "unknown"]
    assert "node7" in found["journals"][3]["todo"] and "\x1b" not in text
    assert (found["journals"][2]["records"], found["journals"][2]["faults"]) == (3, {"torn": 1})
    assert found["advice"] == ["1 of them wait for a hub: start one with `fitwire watch`, or run `fitwire sync`"]
    assert {file: file.read_bytes() for file in fitwire_dir.rglob("*") if file.is_file()} == before


def test_doctor_says_where_things_are(fitwire_dir: Path) -> None:
    """Address, hub, store and folder; before there is any of them, and with a hub."""
    alone = in_json("doctor")["facts"]
    with Monitor():
        together = in_json("doctor")["facts"]

    assert alone["hub"].startswith("none") and "not there yet" in alone["store"]
    assert together["hub"] == "is there, knows 0 runs" and "0 runs" in together["store"]
    assert str(fitwire_dir) in alone["data folder"] and str(fitwire_dir) in alone["address"]
    assert "FITWIRE_DIR" in alone["environment"]
    assert in_json("doctor", "--address", "not an address!")["facts"]["address"].startswith("unusable")


def test_doctor_survives_what_it_finds(fitwire_dir: Path) -> None:
    """A spoilt about, a store that is none, a folder that cannot be read as a journal."""
    path = left()
    (path / ABOUT).write_bytes(b"\xff" * 100)
    (path / segment_name(RECORDS, 1)).unlink()
    os.mkfifo(path / segment_name(RECORDS, 1))
    (fitwire_dir / "store.sqlite3").write_bytes(b"no database" * 100)
    found = in_json("doctor")

    assert "unreadable" in found["facts"]["store"]
    assert "cannot be read" in found["journals"][0]["todo"]

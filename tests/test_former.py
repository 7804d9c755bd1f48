"""What a killed trainer left is delivered by the next life of its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import fitwire
from fitwire import Monitor
from fitwire.journal.layout import About, create, find_journals
from fitwire.train.former import former_journals
from fitwire.transport.process import host_key, started_at
from helpers import ME, until

KILLED = """
import os, signal, sys, time, fitwire
run = fitwire.init(sys.argv[1], run_id="again", name="again")
for step in range(1000):
    run.log({"loss": float(step)}, step=step)
while run._outlet.queue or run._outlet.backlog.head(0) < 1000:
    time.sleep(0.01)
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_only_earlier_lives_of_the_same_run_and_rank_whose_process_is_gone_are_taken(tmp_path: Path) -> None:
    """Not another run's, nor a later one's, nor one that is still being written."""
    here = {"host_key": host_key()[:256], "pid": os.getpid(), "pid_started": started_at(os.getpid())}
    dead = {**here, "pid": 2**22 + 1}
    wanted = create(About(replace(ME, incarnation=5), dead))
    elsewhere = create(About(replace(ME, incarnation=6), {"host_key": "another", "pid": 1}), tmp_path)
    create(About(replace(ME, incarnation=7), here))
    create(About(replace(ME, incarnation=5, rank=1), dead))
    create(About(replace(ME, incarnation=9), dead))
    create(About(replace(ME, incarnation=4), dead, keeper=(os.getpid(), started_at(os.getpid()))))

    assert former_journals(replace(ME, incarnation=8), tmp_path) == [wanted.resolve(), elsewhere.resolve()]


def test_the_next_life_delivers_what_the_killed_one_left(tmp_path: Path) -> None:
    """Through a hub that looks at no journal by itself: it has another data folder, as on another machine."""
    address = f"ipc://{tmp_path}/hub"
    child = subprocess.run([sys.executable, "-c", KILLED, address], capture_output=True, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert len(list(find_journals())) == 1
    mine = os.environ["FITWIRE_DIR"]
    os.environ["FITWIRE_DIR"] = str(tmp_path)
    try:
        monitor = Monitor(address, store=tmp_path / "store.sqlite3")
    finally:
        os.environ["FITWIRE_DIR"] = mine
    with monitor, fitwire.init(address, run_id="again", name="again", wait=10.0) as run:
        run.log({"loss": 1000.0}, step=1000)
        seen = monitor.wait_for_run("again")
        until(lambda: len(seen.curve("loss", per="batch").steps) == 1001 if seen.metrics else False)
        until(lambda: len(list(find_journals())) == 1)  # its own

        assert np.array_equal(seen.curve("loss").values, np.arange(1001.0))
    assert list(find_journals()) == []

"""What a keeper makes of a training's end: first on journals made by hand, then with real trainings that are killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitwire import Monitor
from fitwire.events import Event, Log, RunEnded, decode_events, encode_event
from fitwire.journal.entries import encode_entry
from fitwire.journal.layout import About, create, find_journals, segment_name, write_have
from fitwire.journal.reader import Journal
from fitwire.protocol.blocks import RECORDS, Block, Identity, decode_block, encode_block
from fitwire.transport.child import Ended
from fitwire.transport.process import host_key, started_at
from fitwire.watch.keeper import conclude, deliver_all, own_journals, verdict
from fitwire.watch.states import State
from helpers import history, until

GONE = 2**22 - 3
"""A pid that nobody has."""
NOW = time.time()
ENDED = Ended(GONE, NOW - 60, None, int(signal.SIGKILL), "Epoch 3/10\nlast words", oom=False, over=NOW)


def sender(rank: int = 0, run: int = 7) -> Identity:
    return Identity(bytes([run]) * 16, 1_700_000_000, rank)


def end(who: Identity, first: int, status: Any = "finished", at: float = NOW) -> Block:
    """A block that says how a training ended."""
    part, buffers = encode_event(RunEnded(time=at, rank=who.rank, status=status))
    return encode_block(who, RECORDS, first, 0, [part], buffers)


def journal(
    blocks: Sequence[Block], who: Identity | None = None, *, pid: int = GONE, started: float | None = NOW - 60,
    keeper: int | None = None, have: int = 0,
) -> Path:  # fmt: skip
    """The journal of a trainer that this process keeps."""
    who = who or sender()
    hello = {"name": "kept", "host_key": host_key(), "pid": pid, "pid_started": started}
    mine = os.getpid() if keeper is None else keeper
    path = create(About(who, hello, "memory", (mine, started_at(mine))))
    (path / segment_name(RECORDS, 1)).write_bytes(b"".join(map(encode_entry, blocks)) + bytes(4096))
    if have:
        handle = os.open(path / "have", os.O_WRONLY | os.O_CREAT, 0o600)
        write_have(handle, (have, 0))
        os.close(handle)
    return path


def said(path: Path, after: int = 0) -> list[Event]:
    """What a journal's record lane says behind a number."""
    found: list[Event] = []
    with Journal(path) as kept:
        at = max(after + 1, kept.first(RECORDS))
        while (block := kept.read(RECORDS, at)) is not None:
            found.extend(event for _, event in decode_events(decode_block(block.frames)[1]))  # type: ignore[misc]
            at = block.last + 1
    return found


def concluded(ended: Ended = ENDED) -> list[tuple[str | None, str, int | None]]:
    """What this keeper added to its journals."""
    kept = conclude(ended, own_journals(ended)[0], pytest.fail)
    return [(one.status, one.reason, one.left) for one in kept]


@pytest.mark.parametrize(
    ("code", "number", "oom", "own", "status", "reason"),
    [
        (None, 9, False, True, "failed", "killed by SIGKILL"),
        (None, 9, True, True, "failed", "killed by SIGKILL (out of memory)"),
        (None, 11, True, True, "failed", "killed by SIGSEGV"),
        (None, 15, False, True, "interrupted", "killed by SIGTERM"),
        (None, 2, False, True, "interrupted", "killed by SIGINT"),
        (None, 1, False, True, "interrupted", "killed by SIGHUP"),
        (None, 40, False, True, "failed", "killed by signal 40"),
        (3, None, False, True, "failed", "exit code 3"),
        (0, None, False, True, "finished", "exit code 0, without a word"),
        (1, None, False, False, "failed", "its process went without a word; the command ended with exit code 1"),
        (0, None, False, False, "interrupted", "its process went without a word; the command ended with exit code 0"),
        (0, None, True, False, "failed", "killed, it seems for want of memory; the command ended with exit code 0"),
        (137, None, False, False, "failed",
         "its process went without a word; the command ended with exit code 137, as after SIGKILL"),
        (143, None, False, False, "interrupted",
         "its process went without a word; the command ended with exit code 143, as after SIGTERM"),
        (255, None, False, False, "failed", "its process went without a word; the command ended with exit code 255"),
        (None, 15, False, False, "interrupted", "its process went without a word; the command was killed by SIGTERM"),
    ],
)  # fmt: skip
def test_an_end_is_told_as_far_as_it_is_known(
    code: int | None, number: int | None, oom: bool, own: bool, status: str, reason: str
) -> None:
    """Of a process of the command's only this, that it is gone; of the command itself why."""
    ended = Ended(GONE, NOW, code, number, "", oom, NOW)

    assert verdict(ended, own) == (status, reason)


def test_a_training_that_said_nothing_is_ended_with_its_last_words() -> None:
    """At the next numbers, so that a hub takes them as its own."""
    path = journal(history([3, 2], sender=sender()))

    assert concluded() == [("failed", "killed by SIGKILL", 7)]
    log, ending = said(path, after=5)
    assert isinstance(log, Log) and (log.text, log.level) == ("Epoch 3/10\nlast words", "error")
    assert isinstance(ending, RunEnded)
    assert (ending.status, ending.reason, ending.traceback) == ("failed", "killed by SIGKILL", "")
    assert ending.told_by == "keeper"
    assert concluded() == [(None, "", 7)]  # once


def test_a_traceback_among_the_last_words_is_the_runs() -> None:
    """Of an exception that no hook told of."""
    trace = "Traceback (most recent call last):\n  File x\nValueError: bad"
    path = journal(history([1], sender=sender()))
    concluded(replace(ENDED, code=1, signal=None, words=f"loading\n{trace}"))

    ending = said(path)[-1]
    assert isinstance(ending, RunEnded) and (ending.reason, ending.traceback) == ("exit code 1", trace)


@pytest.mark.parametrize(
    ("status", "ago", "pid", "code", "added"),
    [
        ("finished", 1.0, GONE, 0, None),
        ("finished", 1.0, GONE, 3, "failed"),  # sys.exit(3)
        ("finished", 60.0, GONE, 3, None),  # what came after the training failed, not the training
        ("finished", 1.0, GONE - 1, 3, None),  # nor when it was another process
        ("failed", 1.0, GONE, 3, None),
        ("interrupted", 1.0, GONE, 130, None),
    ],
)
@pytest.mark.parametrize("have", [0, 4])
def test_what_a_training_said_of_its_end_stands(
    status: str, ago: float, pid: int, code: int, added: str | None, have: int
) -> None:
    """Unless it said finished only because Python was asked to exit; whether or not a hub has it."""
    blocks = [*history([3], sender=sender()), end(sender(), 4, status, NOW - ago)]
    journal(blocks, pid=pid, have=have)
    found = concluded(replace(ENDED, code=code, signal=None, words=""))

    assert found == [(added, "exit code 3" if added else "", 4 - have + (added is not None))]


def test_a_crash_after_the_end_does_not_change_it() -> None:
    """Libraries crash when the interpreter takes them down; the training had finished."""
    journal([end(sender(), 1)])

    assert concluded(replace(ENDED, signal=int(signal.SIGSEGV))) == [(None, "", 1)]


def test_each_rank_is_ended_and_the_words_are_said_once() -> None:
    """They came from one stderr."""
    paths = [journal(history([2], sender=sender(rank)), sender(rank), pid=GONE - 1 - rank) for rank in range(3)]
    other = journal(history([2], sender=sender(0, 9)), sender(0, 9), pid=GONE - 9)
    assert len(concluded(replace(ENDED, code=1, signal=None))) == 4

    words = [sum(isinstance(event, Log) for event in said(path)) for path in (*paths, other)]
    assert sorted(words[:3]) == [0, 0, 1] and words[3] == 1
    assert all(isinstance(said(path)[-1], RunEnded) for path in (*paths, other))


def test_only_its_own_dead_are_a_keepers_business() -> None:
    """Neither another keeper's, nor those of nobody, nor one whose trainer goes on."""
    mine = journal(history([1], sender=sender()))
    journal(history([1], sender=sender(1)), sender(1), keeper=os.getppid())
    create(About(sender(2), {"host_key": host_key(), "pid": GONE, "pid_started": NOW}))
    living = journal(history([1], sender=sender(3)), sender(3), pid=os.getppid(), started=started_at(os.getppid()))
    over, goes_on = own_journals(ENDED)

    assert [path for path, _ in over] == [mine]
    assert [path for path, _ in goes_on] == [living]


def test_a_journal_that_cannot_be_written_is_told_of_and_left() -> None:
    """The rest is gone on with."""
    path = journal(history([1], sender=sender()))
    journal(history([1], sender=sender(0, 9)), sender(0, 9))
    found = own_journals(ENDED)[0]
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    told: list[str] = []
    kept = conclude(ENDED, found, told.append)

    assert [one.status for one in kept] == [None, "failed"]
    assert len(told) == 1 and path.name in told[0]


def test_what_a_hub_has_goes_and_what_it_has_not_stays() -> None:
    """Where nobody is there."""
    delivered = journal([end(sender(), 1)], have=1)
    waiting = journal([end(sender(1), 1)], sender(1))
    kept = conclude(ENDED, own_journals(ENDED)[0], pytest.fail)

    assert deliver_all(kept, None, 1.0) == {}
    assert (delivered.exists(), waiting.exists()) == (False, True)


# -- with real trainings

TRAINING = """
import os, signal, sys, time
import fitwire
run = fitwire.init(name=os.environ.get("FITWIRE_NAME") or "kept", config={"keeper": "FITWIRE_KEEPER" in os.environ})
for step in range(300):
    run.log({"loss": 1.0 / (step + 1)}, step=step)
time.sleep(0.3)
print("about to end", file=sys.stderr, flush=True)
"""


def fitwire_run(code: str, *options: str, launcher: Sequence[str] = (sys.executable, "-c"), **more: str) -> Any:
    """``fitwire run`` of a training."""
    command = [*launcher, code]
    return subprocess.run(
        [sys.executable, "-m", "fitwire", "run", *options, "--", *command],
        capture_output=True, text=True, timeout=100, env={**os.environ, **more},
    )  # fmt: skip


def whole(run: Any) -> bool:
    """Whether every value of :data:`TRAINING` is there, once and exact."""
    curve = run.curve("loss")
    return np.array_equal(curve.steps, np.arange(300)) and np.array_equal(curve.values, 1.0 / (np.arange(300) + 1))


@pytest.mark.parametrize(
    ("code", "exit_code", "state", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, State.FAILED, "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, State.INTERRUPTED, "killed by SIGTERM"),
        ("os._exit(3)", 3, State.FAILED, "exit code 3"),
        ("os._exit(0)", 0, State.FINISHED, "exit code 0, without a word"),
        ("sys.exit(3)", 3, State.FAILED, "exit code 3"),
        ("raise ValueError('bad')", 1, State.FAILED, "ValueError: bad"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, State.INTERRUPTED, "KeyboardInterrupt"),
        ("", 0, State.FINISHED, ""),
    ],
)
def test_whoever_watches_learns_how_a_training_ended(
    fitwire_dir: Path, code: str, exit_code: int, state: State, reason: str
) -> None:
    """With every value it logged; its journal is gone then, and the exit code is the training's."""
    with Monitor() as monitor:
        done = fitwire_run(TRAINING + code)
        run = monitor.run("kept")
        until(lambda: run.state is state and run.reason == reason, what=f"{run.state} {run.reason} {done.stderr}")

        assert done.returncode == exit_code
        assert whole(run)
        assert list(find_journals()) == [], done.stderr
        words = [event.text for event in run.events(follow=False) if isinstance(event, Log) and event.level == "error"]
        assert words == (["about to end"] if "without" not in reason and reason.startswith(("killed", "exit")) else [])


def test_without_a_hub_the_end_waits_for_the_next_one(fitwire_dir: Path) -> None:
    """The training is told, whole, by the journal it left, once somebody is there to hear of it."""
    done = fitwire_run(TRAINING + "os.kill(os.getpid(), signal.SIGKILL)", "--name", "late", "--project", "tests")
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"fitwire: run late failed \(killed by SIGKILL\) · \d+ records wait for the next hub .*", last)
    assert len(list(find_journals())) == 1
    with Monitor() as monitor:
        run = monitor.wait_for_run("late", timeout=60)
        until(lambda: run.ended, timeout=60)

        assert (run.state, run.reason, run.project) == (State.FAILED, "killed by SIGKILL", "tests")
        assert whole(run)
        until(lambda: not list(find_journals()))


@pytest.mark.parametrize("there", [True, False])
def test_with_durability_process_a_kill_costs_nothing(fitwire_dir: Path, there: bool) -> None:
    """What only the mapped ring had at that moment comes before what is said of the end."""
    code = """
import os, signal
import fitwire
run = fitwire.init(name="kept", durability="process")
for step in range(300):
    run.log({"loss": 1.0 / (step + 1)}, step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with ExitStack() as stack:
        monitor = stack.enter_context(Monitor()) if there else None
        done = fitwire_run(code)
        monitor = monitor or stack.enter_context(Monitor())
        run = monitor.wait_for_run("kept", timeout=60)
        until(lambda: run.ended, timeout=60, what=done.stderr)

        assert (run.state, run.reason) == (State.FAILED, "killed by SIGKILL")
        assert whole(run), done.stderr
        until(lambda: not list(find_journals()))


def test_ranks_end_each_in_its_own_way(fitwire_dir: Path) -> None:
    """One of two is killed; the other has finished, and stays so."""
    code = "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)"
    launcher = (
        f'export WORLD_SIZE=2 LOCAL_WORLD_SIZE=2; RANK=1 {sys.executable} -c "$0" & '
        f'RANK=0 {sys.executable} -c "$0"; wait; exit 1'
    )
    with Monitor() as monitor:
        done = fitwire_run(TRAINING + code, launcher=("sh", "-c", launcher))
        run = monitor.run("kept")
        until(lambda: run.ended, timeout=60)
        ends = {e.rank: (e.status, e.reason) for e in run.events(follow=False) if isinstance(e, RunEnded)}

        assert done.returncode == 1
        assert run.ranks == (0, 1)
        assert ends == {
            0: ("finished", ""),
            1: ("failed", "its process went without a word; the command ended with exit code 1"),
        }
        assert list(find_journals()) == []


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["/nowhere/train.py"], 127, "cannot run /nowhere/train.py: No such file or directory; write `python /nowhere"),
        (["/"], 126, "cannot run /: Permission denied"),
    ],
)
def test_what_cannot_be_run_is_a_sentence_and_a_shells_exit_code(command: list[str], code: int, says: str) -> None:
    """127 when it is not there, 126 when it is no program."""
    done = subprocess.run(
        [sys.executable, "-m", "fitwire", "run", *command], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == code
    assert says in done.stderr.splitlines()[-1]


def test_options_after_the_command_are_its_own(fitwire_dir: Path) -> None:
    """And what ours say reaches it through the environment, as addresses that hold in any folder."""
    code = "import os, sys; print(sys.argv[1:], *(os.environ.get(f'FITWIRE_{n}') for n in ('NAME', 'ADDRESS')))"
    ours = ["--name", "mine", "--address", "tcp://localhost:9"]
    done = subprocess.run(
        [sys.executable, "-m", "fitwire", "run", *ours, sys.executable, "-c", code, "--name", "its", "--help"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "FITWIRE_LOG_LEVEL": "off"},
    )  # fmt: skip

    assert done.stdout == "['--name', 'its', '--help'] mine tcp://127.0.0.1:9\n"
    assert done.stderr == ""

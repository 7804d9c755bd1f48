"""How a process can end, each in a real process, and what the hub hears of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from fitwire.train import ending
from fitwire.train.run import Run
from fitwire.train.settings import Settings
from helpers import until
from tinyhub import Store, tiny_hub

BEGIN = """
import os, sys, threading, time
import fitwire
run = fitwire.init(name="child", wait=60)
run.log({"x": 1.0}, step=4)
"""


def ended(code: str, *, begin: str = BEGIN, kill: int = 0) -> tuple[subprocess.CompletedProcess[str], Store]:
    """Run a training to its end in a process of its own, and give what it left."""
    with tiny_hub() as hub:
        process = subprocess.Popen(
            [sys.executable, "-c", begin + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if kill:
            until(lambda: hub.store.metrics or process.poll() is not None)
            process.send_signal(kill)
        out, err = process.communicate(timeout=100)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err), hub.store


def test_a_script_that_just_ends_has_finished() -> None:
    """Nobody called finish: the interpreter's exit does, and waits for the last record."""
    done, store = ended('run.log({"x": 2.0}, step=5)')

    assert (done.returncode, done.stdout) == (0, "")
    assert store.ended is not None and (store.ended.status, store.ended.step) == ("finished", 5)
    assert [event.values["x"] for event in store.metrics] == [1.0, 2.0]
    assert done.stderr.splitlines() == [
        "fitwire: run child · watch it with fitwire watch",
        "fitwire: run child finished · 6 records delivered",
    ]


def test_an_error_that_nobody_caught_is_told_with_its_traceback() -> None:
    """And Python's own traceback is printed as ever, by whatever hook was there before."""
    begin = "import sys\nsys.excepthook = lambda *error: print('former', error[0].__name__)\n" + BEGIN
    done, store = ended("def train():\n    raise ValueError('bad batch')\ntrain()", begin=begin)

    assert done.returncode == 1 and done.stdout == "former ValueError\n"
    assert store.ended is not None
    assert (store.ended.status, store.ended.reason) == ("failed", "ValueError: bad batch")
    assert "in train" in store.ended.traceback


def test_a_hook_that_did_not_chain_to_ours_hides_no_error() -> None:
    """Python notes the error before it calls any hook."""
    done, store = ended("sys.excepthook = lambda *error: print('theirs')\nraise ValueError('bad batch')")

    assert done.stdout == "theirs\n"
    assert store.ended is not None and store.ended.status == "failed"
    assert "bad batch" in store.ended.traceback


def test_ctrl_c_interrupts_at_once_and_what_was_logged_arrives() -> None:
    """No signal handler of ours is in the way."""
    done, store = ended("while True: time.sleep(0.01)", kill=signal.SIGINT)

    assert done.returncode in (-signal.SIGINT, 130, 1) and "KeyboardInterrupt" in done.stderr
    assert store.ended is not None and store.ended.status == "interrupted"
    assert len(store.metrics) == 1


def test_ctrl_c_inside_flush_and_finish_is_an_interrupt_like_any_other() -> None:
    """Both return to the user at once; the exit sends the rest."""
    done, store = ended(
        "import signal\n"
        "outlet = run._outlet\n"
        "threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()\n"
        "for i in range(3): outlet.queue.append(fitwire.train.pending.LateRow(None))\n"  # never done: a flush must wait
        "try:\n"
        "    begun = time.monotonic()\n"
        "    run.flush(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('flush' if time.monotonic() - begun < 30 else 'late')\n"
        "outlet.queue.clear()\n"
        "run.log({'x': 2.0}, step=5)\n"
        "outlet.queue.append(fitwire.train.pending.LateRow(None))\n"
        "threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()\n"
        "try:\n"
        "    run.finish()\n"
        "except KeyboardInterrupt:\n"
        "    print('finish')\n"
        "outlet.queue.remove(next(r for r in outlet.queue if isinstance(r, fitwire.train.pending.LateRow)))\n"
    )

    assert done.stdout.split() == ["flush", "finish"], done.stderr
    assert done.returncode == 0
    assert [event.values["x"] for event in store.metrics] == [1.0, 2.0]
    assert store.ended is not None and store.ended.status == "finished"


def test_sys_exit_is_an_end_and_os_exit_tells_nothing() -> None:
    """Of the latter the hub learns only that the process is gone."""
    done, store = ended("sys.exit(3)")
    assert done.returncode == 3 and store.ended is not None
    done, store = ended("run.flush(60); os._exit(0)")

    assert store.ended is None and len(store.metrics) == 1
    assert done.stderr.splitlines() == ["fitwire: run child · watch it with fitwire watch"]


def test_threads_end_their_own_runs() -> None:
    """An error in a thread fails the run that it made; the main thread's goes on, whatever happens to a worker."""
    done, store = ended(
        "def work():\n"
        "    mine = fitwire.init(name='worker')\n"
        "    mine.log({'y': 1.0})\n"
        "    raise RuntimeError('in a thread')\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "assert run.status is None\n"
        "def helper(): raise RuntimeError('no training of mine')\n"
        "thread = threading.Thread(target=helper); thread.start(); thread.join()\n"
        "assert run.status is None\n"
    )
    ends = {event.reason: event.status for event in store.events() if type(event).__name__ == "RunEnded"}

    assert done.returncode == 0, done.stderr
    assert ends == {"": "finished", "RuntimeError: in a thread": "failed"}
    assert "in a thread" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_ends_does_not_end_its_parents_run_but_may_have_one_of_its_own() -> None:
    """Neither by its exit nor by its error; a run started in the child works there."""
    done, store = ended(
        "import warnings; warnings.simplefilter('ignore')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    mine = fitwire.init(name='grandchild', wait=60)\n"
        "    mine.log({'y': 1.0})\n"
        "    raise ValueError('in the child')\n"
        "os.waitpid(child, 0)\n"
        "assert run.status is None\n"
    )
    ends = [(event.status, event.reason) for event in store.events() if type(event).__name__ == "RunEnded"]

    assert done.returncode == 0, done.stderr
    assert sorted(ends) == [("failed", "ValueError: in the child"), ("finished", "")]
    assert sorted(event.name for event in store.started) == ["child", "grandchild"]


def test_in_a_notebook_a_failed_cell_ends_the_run_and_a_second_init_ends_the_first() -> None:
    """IPython calls no excepthook; running a cell again closes its previous run, in this kernel alone."""
    pytest.importorskip("IPython")
    done, store = ended(
        "",
        begin=(
            "from IPython.core.interactiveshell import InteractiveShell\n"
            "shell = InteractiveShell.instance()\n"
            "shell.run_cell('import fitwire; run = fitwire.init(name=\"one\", wait=60)')\n"
            "shell.run_cell('run.log({\"x\": 1.0}); 1 / 0')\n"
            "shell.run_cell('first = run; run = fitwire.init(name=\"two\")')\n"
            "shell.run_cell('run.log({\"x\": 2.0})')\n"
            "shell.run_cell('syntax error')\n"
            "shell.run_cell('second = run; run = fitwire.init(name=\"three\")')\n"
            "shell.run_cell('print(first.status, second.status, run.status)')\n"
        ),
    )

    assert done.stdout.splitlines()[-1] == "failed finished None", (done.stdout, done.stderr)
    ends = [(event.status, event.reason) for event in store.events() if type(event).__name__ == "RunEnded"]
    assert ends == [("failed", "ZeroDivisionError: division by zero"), ("finished", ""), ("finished", "")]


def test_a_script_may_have_several_runs_open() -> None:
    """Outside of a notebook a second init leaves the first alone."""
    one, two = (Run(Settings(name=name)) for name in ("one", "two"))

    assert one.status is None and two.status is None
    one.finish()
    two.finish()
    assert not {one, two} & set(ending.open_runs())


def test_a_description_of_an_error_survives_odd_errors() -> None:
    """One whose text cannot be made, one without a text, and one with a long chain."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    chain: BaseException = ValueError("first")
    for i in range(300):
        following = ValueError(f"{i} " + "x" * 1000)
        following.__cause__ = chain
        chain = following

    assert ending.describe(Odd())[:1] == ("failed",)
    assert ending.describe(ValueError())[1] == "ValueError"
    status, line, trace = ending.describe(chain)
    assert status == "failed" and len(line) <= 300 and len(trace) <= ending.MAX_TRACEBACK + 1
    assert trace.rstrip().endswith("x" * 100)


def test_a_cancelled_task_was_interrupted() -> None:
    """asyncio's CancelledError is no fault."""
    import asyncio

    assert ending.describe(asyncio.CancelledError())[0] == "interrupted"


def test_open_runs_are_known_until_they_have_finished() -> None:
    """Whoever made them, on whatever thread."""
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(Run(Settings(name="x"))))
    thread.start()
    thread.join()
    assert made[0] in ending.open_runs()
    made[0].finish()

    assert made[0] not in ending.open_runs()

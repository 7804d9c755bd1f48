"""Commands that are run as if alone, each in real processes: what they find, what reaches them, how they end."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from fitwire.transport.child import WORDS, last_words, oom_kills

RUN = """
import json, os, sys
from fitwire.transport.child import run_child
ended = run_child(sys.argv[2:], dict(os.environ))
with open(sys.argv[1], "w") as file:
    json.dump([ended.code, ended.signal, ended.words, ended.exit_code, ended.pid], file)
"""
WAIT = "import sys, time; print('ready', flush=True); time.sleep(600)"


def command(told: Path, code: str) -> list[str]:
    """A process that runs a Python program and writes to ``told`` how it ended."""
    return [sys.executable, "-c", RUN, str(told), sys.executable, "-c", code]


def run(told: Path, code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Do so to the end."""
    return subprocess.run(command(told, code), timeout=60, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Where a command's end is written."""
    return tmp_path / "ended.json"


def test_a_command_has_our_streams_and_its_end_is_known(told: Path) -> None:
    """Input, output and errors pass as they are, and the last of the errors are kept."""
    code = "import sys; print(sys.stdin.read()[::-1], end=''); sys.stderr.write('one\\ntwo'); sys.exit(3)"
    done = run(told, code, input="abc")
    code_, killed, words, exit_code, _ = json.loads(told.read_text())

    assert (done.stdout, done.stderr) == ("cba", "one\ntwo")
    assert (code_, killed, words, exit_code) == (3, None, "one\ntwo", 3)


def test_what_goes_to_a_file_goes_there_by_itself(told: Path, tmp_path: Path) -> None:
    """Nothing stands between: both streams stay in order, and only what the command wrote is among its last words."""
    log = tmp_path / "log"
    code = (
        "import os, sys\n"
        "for i in range(200): print('out', i, flush=True); print('err', i, file=sys.stderr)\n"
        "print(os.fstat(2).st_ino == os.fstat(1).st_ino)"
    )
    with log.open("w") as file:
        file.write("former\n")
        file.flush()
        subprocess.run(command(told, code), stdout=file, stderr=file, timeout=60)
    lines = log.read_text().splitlines()
    words = json.loads(told.read_text())[2].splitlines()

    assert lines == ["former", *(f"{kind} {i}" for i in range(200) for kind in ("out", "err")), "True"]
    assert words == lines[-50:] and "former" not in words


def test_a_signal_is_told_from_an_exit_code(told: Path) -> None:
    """128 and its number, as a shell has it."""
    run(told, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    assert json.loads(told.read_text())[:2] == [None, 9]
    assert json.loads(told.read_text())[3] == 137


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_sent_to_us_goes_on_to_the_command(told: Path, name: str) -> None:
    """And ends us only by way of the command."""
    code = f"""
import signal, time
heard = []
signal.signal(signal.{name}, lambda *a: heard.append(1))
print("ready", flush=True)
while not heard: time.sleep(0.01)
time.sleep(0.3)
print(len(heard))
"""
    process = subprocess.Popen(command(told, code), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=60)

    assert (process.returncode, out) == (0, "1\n")


def test_what_is_ignored_stays_ignored(told: Path) -> None:
    """As under nohup, or in the background of a script."""
    code = "from signal import *; print(getsignal(SIGHUP) is SIG_IGN, pthread_sigmask(SIG_BLOCK, []))"
    shell = f"trap '' HUP; {sys.executable} -c '{RUN}' {told} {sys.executable} -c '{code}'"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)

    assert done.stdout == "True set()\n", done.stderr


def in_terminal(told: Path, code: str, keys: bytes = b"") -> str:
    """Run it with a terminal of its own, type ``keys`` once it is ready, and give what was on the screen."""
    pid, screen = pty.fork()
    if pid == 0:
        try:
            os.execv(sys.executable, command(told, code))
        finally:
            os._exit(99)
    termios.tcsetwinsize(screen, (33, 77))
    seen, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([screen], [], [], 0.1)[0]:
            try:
                piece = os.read(screen, 4096)
            except OSError:
                break
            seen += piece
            if keys and b"ready" in seen:
                os.write(screen, keys)
                keys = b""
    os.waitpid(pid, 0)
    os.close(screen)
    return seen.decode()


def test_in_a_terminal_the_command_finds_a_terminal(told: Path) -> None:
    """On all three, of the size that ours has; what it writes looks as it would alone."""
    code = (
        "import os, sys, time; time.sleep(0.2)\n"
        "print([os.isatty(fd) for fd in range(3)], os.get_terminal_size(2))\n"
        "sys.stdout.flush(); sys.stderr.write('bar\\rdone\\n')"
    )
    seen = in_terminal(told, code)

    assert "[True, True, True] os.terminal_size(columns=77, lines=33)" in seen
    assert seen.endswith("bar\rdone\r\n")
    assert json.loads(told.read_text())[2] == "done"


def test_ctrl_c_reaches_the_command_once(told: Path) -> None:
    """The terminal has sent it to both of us; we do not send it again, nor die of it."""
    code = """
import signal, sys, time
heard = []
signal.signal(signal.SIGINT, lambda *a: heard.append(1))
print("ready", flush=True)
while not heard: time.sleep(0.01)
time.sleep(0.5)
sys.exit(40 + len(heard))
"""
    in_terminal(told, code, b"\x03")

    assert json.loads(told.read_text())[0] == 41


def test_ctrl_z_stops_both_and_both_go_on(told: Path) -> None:
    """The shell has its prompt back meanwhile."""
    pid, screen = pty.fork()
    if pid == 0:
        try:
            # A shell between: whoever leads a terminal's session is not stopped by it.
            shell = "set -m; " + " ".join(["'" + part.replace("'", "'\\''") + "'" for part in command(told, WAIT)])
            os.execv("/bin/bash", ["bash", "-c", shell + "; echo stopped $?; kill %1; fg; echo over"])
        finally:
            os._exit(99)
    seen, end = b"", time.monotonic() + 60
    while time.monotonic() < end and b"over" not in seen:
        if select.select([screen], [], [], 0.1)[0]:
            try:
                seen += os.read(screen, 4096)
            except OSError:
                break
            if seen.count(b"ready") == 1 and b"^Z" not in seen:
                os.write(screen, b"\x1a")
    os.close(screen)
    os.waitpid(pid, 0)

    assert b"stopped 148" in seen
    assert json.loads(told.read_text())[1] == signal.SIGTERM


def test_who_is_left_behind_holds_nobody(told: Path) -> None:
    """A process that the command started and that still has its stderr open."""
    code = (
        "import subprocess, sys; sys.stderr.write('last\\n')\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=subprocess.DEVNULL)\n"
        "print(child.pid)"
    )
    begun = time.monotonic()
    process = subprocess.Popen(command(told, code), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = int(process.stdout.readline())
    try:
        assert process.wait(60) == 0
        assert time.monotonic() - begun < 60
        assert json.loads(told.read_text())[2] == "last"
    finally:
        os.kill(left, signal.SIGKILL)
        process.communicate()


def test_a_reader_of_ours_that_leaves_does_not_end_the_command(told: Path) -> None:
    """What it says is kept all the same."""
    code = (
        "import sys, time\n"
        "for i in range(300): sys.stderr.write('x' * 1000 + '\\n')\n"
        "sys.stderr.write('to the end\\n'); sys.exit(5)"
    )
    process = subprocess.Popen(command(told, code), stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()

    assert process.wait(60) == 0
    code_, _, words, *_ = json.loads(told.read_text())
    assert code_ == 5 and words.endswith("to the end")


def test_what_cannot_be_run_is_an_error_of_the_system(tmp_path: Path) -> None:
    """Before anything has started, and with the signals as they were."""
    from fitwire.transport.child import run_child

    (tmp_path / "text").write_text("no program")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(FileNotFoundError):
        run_child(["/nowhere/at/all"], {})
    with pytest.raises(PermissionError):
        run_child([str(tmp_path / "text")], {})

    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (b"", ""),
        (b"\n\n", ""),
        (b"a\nb\n", "a\nb"),
        (b"  1/9\r  2/9\r  9/9\ndone\n", "  9/9\ndone"),
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07plain\x1b[2K\n", "red plain"),
        ("fitwire: run x\nTraceback\n  é\n".encode(), "Traceback\n  é"),
        (b"\xff\xfe bad\x00\x08 bytes\tkept", "\ufffd\ufffd bad bytes\tkept"),
        (b"".join(b"%d\n" % i for i in range(100)), "\n".join(map(str, range(50, 100)))),
    ],
)
def test_last_words_are_what_a_terminal_would_show_in_the_end(written: bytes, words: str) -> None:
    """Lines, without what moves a cursor or is drawn over."""
    assert last_words(written) == words


def test_last_words_are_few(told: Path) -> None:
    """Whatever was written, in lines or in none."""
    for written in (b"x" * 100_000, b"y" * 9000 + b"\n" + b"z" * 100, "é".encode() * 50_000):
        words = last_words(written)
        assert 0 < len(words.encode()) <= WORDS
    assert last_words(b"y" * 9000 + b"\n" + b"z" * 100) == "z" * 100


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.events": "oom 3\noom_kill 2\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/memory.events": "oom 3\noom_kill 4\n"}, 4),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.oom_control": "under_oom 0\noom_kill 5\n",
                "proc/vmstat": "oom_kill 9\n",
            },
            5,
        ),
        ({"proc/self/cgroup": "4:memory:/a\n", "proc/vmstat": "pgfault 1\noom_kill 9\n"}, 9),
        ({}, 0),
    ],
    ids=["version 2", "a container's own", "version 1", "the whole machine", "nothing known"],
)
def test_the_system_says_how_many_it_killed_for_want_of_memory(
    tmp_path: Path, files: dict[str, str], count: int
) -> None:
    """Of our own group, where that can be known."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert oom_kills(tmp_path) == count

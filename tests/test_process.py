"""Tests of ``fitwire.transport.process``: what the system says, asked for real."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fitwire.errors import LinkError
from fitwire.transport.process import FileLock, alive, generation, host_key, private_folder, spawn, started_at
from helpers import run_python, until

TRY = "from fitwire.transport.process import FileLock; from pathlib import Path; import sys;"
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def other_process_gets(path: Path) -> bool:
    return run_python(TRY + "print(FileLock(Path(sys.argv[1])).take())", str(path)).strip() == "True"


def test_one_process_holds_the_lock(fitwire_dir: Path) -> None:
    """Another is told no at once; it gets the lock when the first has let go."""
    lock = FileLock(fitwire_dir / "hub.lock")
    assert lock.take()
    assert lock.take(), "who holds it, holds it"
    assert not FileLock(fitwire_dir / "hub.lock").take()
    assert not other_process_gets(lock.path)
    lock.release()
    lock.release()

    assert other_process_gets(lock.path)
    assert lock.take()
    assert lock.path.stat().st_mode & 0o777 == 0o600
    lock.release()


def test_a_killed_process_holds_nothing(fitwire_dir: Path) -> None:
    """The system drops the lock with the process, however it died."""
    path = fitwire_dir / "hub.lock"
    code = TRY + "lock = FileLock(Path(sys.argv[1])); print(lock.take(), flush=True); import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        assert not FileLock(path).take()
        holder.kill()
        holder.wait()

    lock = FileLock(path)
    assert lock.take()
    lock.release()


@forks
def test_a_forked_child_neither_holds_nor_drops_its_parents_lock(fitwire_dir: Path) -> None:
    """A data loader's worker that outlives a killed hub must not keep the next one out, nor let one in too early."""
    printed = run_python(
        """
import os, signal, sys, time
from pathlib import Path
from fitwire.transport.process import FileLock, generation
path = Path(sys.argv[1])
hub = os.fork()
if hub == 0:                        # a hub ...
    lock = FileLock(path)
    lock.take()
    worker = os.fork()
    if worker == 0:                 # ... and its worker, which lives on
        lock.release()
        Path(f"{path}.worker").write_text(f"{os.getpid()} {generation()}")
        time.sleep(600)
    time.sleep(600)
while not (Path(f"{path}.worker").exists() and Path(f"{path}.worker").read_text()):
    time.sleep(0.01)
print(FileLock(path).take())
os.kill(hub, signal.SIGKILL)
os.waitpid(hub, 0)
print(FileLock(path).take())
worker, generations = Path(f"{path}.worker").read_text().split()
os.kill(int(worker), signal.SIGKILL)
print(generations, generation())
""",
        str(fitwire_dir / "hub.lock"),
    )

    assert printed.split() == ["False", "True", "2", "0"]


def test_a_lock_that_cannot_be_is_a_sentence(fitwire_dir: Path) -> None:
    """No such folder, and a link that somebody left in the lock's place."""
    (fitwire_dir / "link").symlink_to(fitwire_dir / "elsewhere")

    for path in (fitwire_dir / "nowhere" / "hub.lock", fitwire_dir / "link"):
        with pytest.raises(LinkError, match=r"cannot lock .*; choose another address"):
            FileLock(path).take()
    assert not (fitwire_dir / "elsewhere").exists()


def test_generation_is_this_processs_own() -> None:
    """It changes in a forked child and nowhere else."""
    before = generation()
    thread = spawn("test", lambda: None)
    thread.join()

    assert generation() == before


def test_host_key_is_the_same_for_two_processes_of_this_host() -> None:
    """A pid means the same to both."""
    printed = run_python("from fitwire.transport.process import host_key; print(host_key())").strip()

    assert printed == host_key()
    assert len(host_key()) < 256


def test_a_process_is_alive_until_it_is_not() -> None:
    """Zombies are dead, and so is a pid that somebody else has now."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    born = started_at(process.pid)
    assert born is not None and abs(born - time.time()) < 60
    assert alive(process.pid)
    assert alive(process.pid, born)
    assert not alive(process.pid, born - 1000)
    process.kill()

    until(lambda: not alive(process.pid, born), what="a zombie counts as dead")
    process.wait()
    assert started_at(process.pid) is None
    assert not alive(process.pid)


def test_a_private_folder_is_closed_to_others(fitwire_dir: Path) -> None:
    """New or old, with its parents made."""
    before = os.umask(0)
    try:
        (fitwire_dir / "open").mkdir(mode=0o777)
        for path in (private_folder(fitwire_dir / "a" / "b"), private_folder(fitwire_dir / "open")):
            assert path.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_another_users_folder_is_refused(fitwire_dir: Path, kind: str) -> None:
    """Nor is a link followed that another user left where the folder should be."""
    path = fitwire_dir / "x"
    if kind == "folder":
        path.mkdir()
    else:
        (fitwire_dir / "mine").mkdir()
        path.symlink_to(fitwire_dir / "mine")
    os.chown(path, 12345, 12345, follow_symlinks=False)

    with pytest.raises(PermissionError, match="belongs to another user: set FITWIRE_DIR"):
        private_folder(path)


def test_a_spawned_thread_never_keeps_an_interpreter_from_ending() -> None:
    """It is a daemon, and bears a name that says whose it is."""
    begun = threading.Event()
    thread = spawn("test", begun.set)
    assert begun.wait(10)

    assert (thread.daemon, thread.name) == (True, "fitwire-test")
    run_python("from fitwire.transport.process import spawn; import time; spawn('x', lambda: time.sleep(600))")

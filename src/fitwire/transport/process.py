"""What the process is: which side of a fork, which host, what POSIX offers. The only module that asks the system.

Everything POSIX-only stands here with a fall-back, so that the rest need not ask.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from fitwire.errors import LinkError

__all__ = ["FileLock", "alive", "generation", "host_key", "private_folder", "spawn", "started_at"]

_generation = 0


def _after_fork() -> None:
    global _generation
    _generation += 1
    for lock in list(_held):
        lock.drop()


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def generation() -> int:
    """How many forks lie between this process and the one that loaded the module.

    Whoever owns a socket or a thread remembers the number: in a child it differs, and nothing is touched there. Reading
    it takes no lock and no system call (``os.getpid`` costs 310 ns).
    """
    return _generation


def host_key() -> str:
    """What two processes must share for a pid to mean the same to both: host, boot and pid namespace."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id",):
        try:
            parts.append(Path(path).read_text().strip())
        except OSError:
            pass
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return "/".join(parts)


def alive(pid: int, started: float | None = None) -> bool:
    """Whether that process of this host is still there; ``started`` (Unix seconds) tells a reused pid apart."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(process.create_time() - started) < 2.0
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def started_at(pid: int) -> float | None:
    """When a process of this host started, in Unix seconds; None when it cannot be known."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter; one that is there is closed to others.

    Raises:
        PermissionError: It, or a link in its place, belongs to somebody else.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform == "win32":
        return path
    # Of a link too: in a folder that all may write to, anybody could have left one.
    if {path.lstat().st_uid, path.stat().st_uid} != {os.getuid()}:
        raise PermissionError(f"{path} belongs to another user: set FITWIRE_DIR to a folder of your own")
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


class FileLock:
    """An exclusive lock on a file, held for life; the system drops it when the process dies.

    A forked child does not hold it, nor keep it held when its parent dies.

    Example:
        >>> lock = FileLock(Path("/tmp/example.lock"))
        >>> lock.take()
        True
        >>> lock.release()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self) -> bool:
        """Try once; False when somebody else holds it.

        Raises:
            LinkError: There can be no such file, or it is not ours to open.
        """
        if self._file is not None:
            return True
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
            handle = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise LinkError(f"cannot lock {self.path}: {error.strerror}; choose another address") from error
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._file = handle
        _held.add(self)
        return True

    def release(self) -> None:
        """Let go; the file stays, so that nobody locks a name that is being removed."""
        _held.discard(self)
        self.drop()

    def drop(self) -> None:
        """Close this process's hold of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def spawn(name: str, work: Callable[[], None]) -> threading.Thread:
    """Start a daemon thread: it never keeps an interpreter from ending."""
    thread = threading.Thread(target=work, name=f"fitwire-{name}", daemon=True)
    thread.start()
    return thread

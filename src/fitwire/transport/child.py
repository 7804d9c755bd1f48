"""A command, run as if nobody stood above it: its streams and signals are its own, and how it ended is known.

Only stderr passes through this process, to keep its last words; where it is a file even that does not, and the file's
end is read afterwards. POSIX only; no run or journal is known here.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fitwire.errors import UsageError
from fitwire.transport.process import spawn, started_at

__all__ = ["Ended", "last_words", "oom_kills", "run_child"]

STDERR = 2
KEPT = 64 * 2**10
"""Bytes of stderr that are remembered: a progress bar draws one line many times over."""
WORDS = 8 * 2**10
"""Bytes of last words, at most; and of how many lines."""
LINES = 50
FAREWELL = 1.0
"""Seconds for what lies in the pipe when the command is over but somebody it left behind still writes."""
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        pid: Of its process, which is no more.
        started: When that began, Unix seconds; None when the system does not say.
        code: Its exit code; None when a signal ended it.
        signal: The signal's number; None when it ended by itself.
        words: The last lines of its stderr, without what only a terminal understands; "" when there were none.
        oom: Whether the system killed a process for want of memory meanwhile, as far as it says.
        over: When it ended, Unix seconds.
    """

    pid: int
    started: float | None
    code: int | None
    signal: int | None
    words: str
    oom: bool
    over: float

    @property
    def exit_code(self) -> int:
        """As a shell has it: the command's own, or 128 and the signal's number."""
        return 128 + self.signal if self.signal is not None else self.code or 0


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Run a command in the foreground, to its end; for the main thread.

    Signals that somebody sends to this process go on to it. Those of the terminal do not, because the terminal sends
    them to both.

    Args:
        command: Its name or path, and its arguments.
        environment: All of it.

    Raises:
        OSError: It cannot be started.
        UsageError: The system cannot tell who sent a signal.
    """
    if not hasattr(signal, "sigwaitinfo") or not hasattr(os, "posix_spawnp"):
        raise UsageError("a command can be kept on Linux only; set FITWIRE_ADDRESS and start it by itself")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # one who inherits that it is ignored never learns how a child ended
    # Ignored by whoever started us, as nohup does, means that the command is to ignore it too.
    asked = [getattr(signal, name) for name in FORWARDED]
    heard = {s for s in asked if signal.getsignal(s) is not signal.SIG_IGN} | {signal.SIGCHLD, signal.SIGWINCH}
    kills = oom_kills()
    # Blocked from here on, so that none comes unseen between two lines of this module.
    former = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    try:
        stderr = _stderr()
        try:
            pid = os.posix_spawnp(
                command[0], list(command), dict(environment), file_actions=stderr.actions(), setsigmask=list(former),
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores for itself
            )  # fmt: skip
            started = started_at(pid)
            stderr.begin()
            status = _attend(pid, heard, stderr)
            over = time.time()
        finally:
            stderr.end()
        while signal.sigtimedwait(heard, 0) is not None:
            pass  # what was meant for the command
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if killed is None else None
    return Ended(pid, started, code, killed, last_words(stderr.kept()), oom_kills() > kills, over)


def _attend(pid: int, heard: set[signal.Signals], stderr: _Inherited) -> int:
    while True:
        told = signal.sigwaitinfo(heard)
        if told.si_signo == signal.SIGCHLD:
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone == pid:
                return status
        elif told.si_signo == signal.SIGWINCH:
            stderr.resize()
        elif told.si_code <= 0:  # by kill(2) and its like; the kernel's own, e.g. of the terminal, are positive
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, told.si_signo)


# -- stderr


def _stderr() -> _Inherited:
    try:
        mode = os.fstat(STDERR).st_mode
    except OSError:  # closed
        return _Inherited()
    if stat.S_ISREG(mode):
        return _File()
    return _Tee(terminal=os.isatty(STDERR))


class _Inherited:
    """The command has our own."""

    def actions(self) -> list[tuple[int, int, int]]:
        """For ``posix_spawn``."""
        return []

    def begin(self) -> None:
        """The command is running."""

    def resize(self) -> None:
        """The terminal has another size."""

    def end(self) -> None:
        """The command is over, or never was."""

    def kept(self) -> bytes:
        """The last bytes it wrote."""
        return b""


class _File(_Inherited):
    """The command has our own, and it can be read: nothing needs to stand between, not even in time."""

    def __init__(self) -> None:
        import fcntl

        appends = fcntl.fcntl(STDERR, fcntl.F_GETFL) & os.O_APPEND
        self._from = os.fstat(STDERR).st_size if appends else os.lseek(STDERR, 0, os.SEEK_CUR)

    def kept(self) -> bytes:
        try:
            handle = os.open(f"/proc/self/fd/{STDERR}", os.O_RDONLY)
        except OSError:
            return b""
        try:
            size = os.fstat(handle).st_size
            start = max(self._from if self._from <= size else 0, size - KEPT)  # less: it was emptied meanwhile
            return os.pread(handle, KEPT, start)
        except OSError:
            return b""
        finally:
            os.close(handle)


class _Tee(_Inherited):
    """The command has a pipe, or a terminal where ours is one, and a thread passes on what comes.

    Args:
        terminal: Whether it is to find a terminal.
    """

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._ours, self._theirs = _terminal_like(STDERR) if terminal else os.pipe()
        self._kept = bytearray()
        self._over_at: float | None = None
        self._thread: threading.Thread | None = None
        self._deaf = False

    def actions(self) -> list[tuple[int, int, int]]:
        return [(os.POSIX_SPAWN_DUP2, self._theirs, STDERR)]

    def begin(self) -> None:
        os.close(self._theirs)
        self._theirs = -1
        self._thread = spawn("stderr", self._pass_on)

    def resize(self) -> None:
        if self._terminal:
            _copy_size(STDERR, self._ours)

    def end(self) -> None:
        self._over_at = time.monotonic()
        if self._thread is not None:
            self._thread.join(2 * FAREWELL)  # a reader of ours that reads no more must not hold us
        if self._theirs >= 0:
            os.close(self._theirs)
        if self._thread is None or not self._thread.is_alive():
            os.close(self._ours)

    def kept(self) -> bytes:
        return bytes(self._kept)

    def _pass_on(self) -> None:
        while True:
            over_at = self._over_at
            ready = select.select([self._ours], [], [], 0 if over_at is not None else 0.1)[0]
            if over_at is not None and (not ready or time.monotonic() - over_at > FAREWELL):
                return
            if not ready:
                continue
            try:
                piece = os.read(self._ours, KEPT)
            except OSError:  # how a terminal says that nobody has it open any more
                return
            if not piece:
                return
            self._kept += piece
            del self._kept[:-KEPT]
            self._write(piece)

    def _write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view and not self._deaf:
            try:
                view = view[os.write(STDERR, view) :]
            except BlockingIOError:
                select.select([], [STDERR], [], 0.1)
            except OSError:  # whoever read it has left: that is no reason for the command to stop
                self._deaf = True


def _terminal_like(model: int) -> tuple[int, int]:
    """Both ends of a terminal of our own, which changes nothing of what is written: the real one does."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    with contextlib.suppress(termios.error):
        settings = termios.tcgetattr(model)
        settings[1] &= ~termios.OPOST
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
    _copy_size(model, ours)
    return ours, theirs


def _copy_size(model: int, to: int) -> None:
    import fcntl
    import termios

    with contextlib.suppress(OSError):
        fcntl.ioctl(to, termios.TIOCSWINSZ, fcntl.ioctl(model, termios.TIOCGWINSZ, bytes(8)))


def last_words(written: bytes) -> str:
    """The last lines of a stderr, as text: at most 50 and 8 KiB, each as a terminal would show it in the end.

    Lines of fitwire's own are left out: they say nothing of an end that nobody announced.
    """
    lines: list[str] = []
    for raw in written.decode("utf-8", "replace").split("\n"):
        # A progress bar goes back to the beginning of its line and draws it anew.
        line = next((part for part in reversed(raw.split("\r")) if part.strip()), "")
        line = _CONTROLS.sub("", _ESCAPES.sub("", line)).rstrip()
        if not line.startswith("fitwire: "):
            lines.append(line)
    text = "\n".join(lines).strip("\n").split("\n")
    found = "\n".join(text[-LINES:])
    while len(found.encode()) > WORDS:
        cut = found.partition("\n")[2]
        found = cut or found[len(found) // 2 :]
    return found.strip("\n")


# -- memory


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the system has killed for want of memory, in this process's control group where it has one.

    Args:
        root: Where the file systems are; another one in tests.
    """
    for path in _counters(root):
        try:
            text = path.read_text()
        except OSError:
            continue
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        if found is not None:
            return int(found[1])
    return 0


def _counters(root: Path) -> Iterator[Path]:
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    base = root / "sys/fs/cgroup"
    for line in groups:
        number, _, rest = line.partition(":")
        kinds, _, where = rest.partition(":")
        where = where.lstrip("/")
        if "memory" in kinds.split(","):  # version 1, whose root group stands for all
            yield base / "memory" / where / "memory.oom_control"
            yield base / "memory/memory.oom_control"
        elif number == "0":
            yield base / where / "memory.events"
            yield base / "memory.events"  # as a container sees its own
    yield root / "proc/vmstat"

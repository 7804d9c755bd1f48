"""One ZeroMQ socket and the one thread that touches it, from set-up to the last byte delivered.

The life of such a pair is here: whose context it is, waking the thread, ending within a bound, at interpreter exit and
after ``fork``. What is said through the socket is the subclasses' business (``pubsub.py``).
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import socket as network
import threading
import time
from abc import ABC, abstractmethod
from typing import Any, cast

import zmq
from zmq.utils.monitor import parse_monitor_message

from fitwire.errors import AddressError, AddressInUse, LinkError, NotOpenError
from fitwire.transport.process import generation

__all__ = ["ContextShare", "SocketThread", "is_exiting", "open_socket", "watch_socket"]

EXIT_SECONDS = 2.0
"""All that interpreter exit may spend on delivering what was accepted but not closed."""

GRACE_SECONDS = 0.5
"""What ``close`` allows above its linger for the thread itself to end."""

_log = logging.getLogger("fitwire.transport")
_living: set[SocketThread] = set()
"""Keeps a dropped, still delivering endpoint alive, and a forked child from collecting its parent's sockets."""

_names = itertools.count()
_exiting = False


class ContextShare:
    """A ZeroMQ context of ours, ended by the last to leave it, or a user's, which is used and never ended.

    An explicit count, because a context that is ended by garbage collection can wait for ever for its own sockets.
    """

    def __init__(self, given: zmq.Context[Any] | None = None) -> None:
        self._given = given
        self._ours: zmq.Context[Any] | None = None
        self._users = 0
        self._lock = threading.Lock()

    def join(self) -> zmq.Context[Any]:
        """Use the context, until a ``leave``."""
        if self._given is not None:
            if self._given.closed:
                raise NotOpenError("the context passed in has been terminated; pass an open one, or none")
            # A shadow makes plain sockets whatever the context's class is (zmq.asyncio has its own).
            return cast("zmq.Context[Any]", zmq.Context.shadow(self._given))  # pyright: ignore[reportUnknownMemberType]
        with self._lock:
            self._users += 1
            if self._ours is None:
                self._ours = zmq.Context()
            return self._ours

    def leave(self) -> None:
        """Done with it; the last to say so ends a context of ours."""
        if self._given is not None:
            return
        with self._lock:
            self._users -= 1
            ours = self._ours if not self._users else None
            if ours is not None:
                self._ours = None
        if ours is not None:
            ours.term()  # every socket in it is closed, with a finite linger


def watch_socket(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """A socket on which libzmq tells what happens to ``socket``.

    pyzmq's own helper names it after the file number, which two sockets may have one after the other.
    """
    name = f"inproc://fitwire-{os.getpid()}-{next(_names)}"
    socket.monitor(name, events)
    context = cast("zmq.Context[Any]", socket.context)  # pyright: ignore[reportUnknownMemberType]
    watcher: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    watcher.setsockopt(zmq.LINGER, 0)
    watcher.connect(name)
    return watcher


def open_socket(
    share: ContextShare, kind: int, options: dict[int, int | bytes], address: str, *, bind: bool, watch: int = 0
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes] | None]:
    """Make a socket, set its options, bind or connect it; nothing is left open when any of that fails.

    Args:
        share: The context to be in.
        kind: Of socket, in ZeroMQ's numbering.
        options: Set before anything else.
        address: To bind or connect to.
        bind: Which of the two.
        watch: Events to be told of from the very first on, in ZeroMQ's bits; 0 for none.

    Returns:
        The socket, and the one that tells the events (None when ``watch`` is 0).

    Raises:
        AddressInUse: Somebody else is bound there.
        AddressError: The address cannot be understood or reached.
        LinkError: The system gives no more sockets.
    """
    port = address.rpartition(":")[2] if address.startswith("tcp:") else ""
    if port.isdecimal() and int(port) > 65535:  # libzmq would take what is left of it modulo 65536
        raise AddressError(f"{address!r}: a port is a number up to 65535")
    context = share.join()
    try:
        made: zmq.Socket[bytes] = context.socket(kind)
    except zmq.ZMQError as error:
        share.leave()
        raise LinkError(f"cannot open a ZeroMQ socket: {error}") from error
    monitor: zmq.Socket[bytes] | None = None
    try:
        for option, value in options.items():
            made.setsockopt(option, value)
        # Before binding: a peer may be waiting at the door, and its coming is told only once.
        monitor = watch_socket(made, watch) if watch else None
        made.bind(address) if bind else made.connect(address)
    except BaseException as error:
        made.close(linger=0)
        if monitor is not None:
            monitor.close(linger=0)
        share.leave()
        if not isinstance(error, zmq.ZMQError):
            raise
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUse(
                address, "another program or window is bound there; close it, or use another port"
            ) from error
        raise AddressError(f"cannot {'bind' if bind else 'connect to'} {address!r}: {error}") from error
    return made, monitor


class SocketThread(ABC):
    """A socket handed to a thread of its own.

    Attributes:
        linger: Seconds that closing may take to deliver what was accepted, when ``close`` is not told otherwise.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        share: ContextShare | None,
        *,
        linger: float,
        monitor: zmq.Socket[bytes] | None = None,
    ) -> None:
        """Take over the socket; nothing runs before ``start``.

        Args:
            socket: To be touched by nobody else from now on.
            share: Whose context it is in, to be left at the end; None when the caller sees to that.
            linger: Seconds that closing may take.
            monitor: What ``watch_socket`` gave for it, if it is watched.
        """
        self.linger = linger
        self._socket = socket
        self._share = share
        self._monitor = monitor
        self._generation = generation()
        self._deadline: float | None = None  # once closing: when it has to be over
        self._over = False
        self._asleep = False
        self._warned_of_fork = False
        self._changed = threading.Condition()
        self._bell, self._ringer = network.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._thread = threading.Thread(target=self._live, name=f"fitwire-{type(self).__name__}", daemon=True)

    def start(self) -> None:
        """Hand the socket over to the thread."""
        _living.add(self)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is going
            self._end()
            raise LinkError(f"cannot start a thread for the socket: {error}") from error

    @property
    def is_open(self) -> bool:
        """Whether it is neither closed nor closing, and its context still runs."""
        return self._deadline is None and not self._over

    def is_forked(self, *, quiet: bool = False) -> bool:
        """Whether this is a forked child, in which the parent's socket must not be touched; says so once.

        To be asked before any lock is taken: the fork may have copied it locked.

        Args:
            quiet: Do not say so: nobody asked for anything.
        """
        if generation() == self._generation:
            return False
        if not quiet and not self._warned_of_fork:
            self._warned_of_fork = True
            _log.warning("opened before a fork: calls in the child process do nothing; open another one there")
        return True

    def request_close(self, linger: float | None = None) -> None:
        """Begin to close, without waiting for it."""
        if self.is_forked(quiet=True):
            return
        deadline = time.monotonic() + max(0.0, self.linger if linger is None else linger)
        with self._changed:
            # Closing again may hurry it, not prolong it.
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            self._changed.notify_all()
        self._ring()

    def close(self, linger: float | None = None) -> None:
        """Deliver what was accepted, for at most ``linger`` seconds (None: as constructed), and close.

        Harmless when it is closed already.
        """
        if self.is_forked(quiet=True):
            return
        self.request_close(linger)
        self.wait_closed((self.linger if linger is None else max(0.0, linger)) + GRACE_SECONDS)

    def wait_closed(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for the thread to have ended."""
        # A garbage collection inside the thread itself may lead here.
        if threading.current_thread() is not self._thread and not self.is_forked(quiet=True):
            with self._changed:
                # Not join alone: one that Ctrl-C ended takes the thread for stopped ever after (Python 3.11).
                ended = self._changed.wait_for(lambda: self._over, timeout)
            if ended:
                self._thread.join(GRACE_SECONDS)

    def _ring(self) -> None:
        """Wake the thread."""
        try:
            self._ringer.send(b"\0")
        except OSError:  # full: it has been rung already; closed: the thread has ended
            pass

    def _unring(self) -> None:
        try:
            while self._bell.recv(4096):
                pass
        except BlockingIOError:
            pass

    @abstractmethod
    def _run(self) -> None:
        """The thread's work, until closing is done."""

    def _live(self) -> None:
        try:
            self._run()
        except zmq.ContextTerminated:  # the user's, by the user: it waits for us to let go, and delivers the rest
            self.request_close()
        except zmq.ZMQError:
            self.request_close(0.0)
            _log.exception("a socket failed; its endpoint is closed")
        finally:
            self._end()

    def _end(self) -> None:
        """Close the socket and wait, within the deadline, until libzmq has delivered what it holds.

        ``zmq_close`` returns at once and delivers behind the scenes, and a process that ends cuts that short. Its end
        shows as MONITOR_STOPPED, also in a user's context, which we may not terminate to find out.
        """
        left = max(0.0, (self._deadline or 0.0) - time.monotonic())
        try:
            if self._monitor is None:
                self._monitor = watch_socket(self._socket, zmq.EVENT_MONITOR_STOPPED)
        except zmq.ZMQError:  # the context is going
            pass
        try:
            self._socket.close(linger=int(left * 1000))
            if self._monitor is not None:
                self._await_stop(self._monitor, time.monotonic() + left + GRACE_SECONDS / 2)
        except zmq.ZMQError:
            pass
        finally:
            if self._monitor is not None:
                self._monitor.close(linger=0)
            if self._share is not None:
                self._share.leave()
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._ringer.close()
            self._bell.close()
            _living.discard(self)

    @staticmethod
    def _await_stop(monitor: zmq.Socket[bytes], until: float) -> None:
        while monitor.poll(max(0, int((until - time.monotonic()) * 1000))):
            if parse_monitor_message(monitor.recv_multipart())["event"] == zmq.EVENT_MONITOR_STOPPED:
                return


def is_exiting() -> bool:
    """Whether the interpreter is about to end and all is closed: a daemon thread's late call is nobody's mistake."""
    return _exiting


def _close_all() -> None:
    """At interpreter exit: deliver and close whatever is still open, all of it within one bound."""
    global _exiting
    _exiting = True
    until = time.monotonic() + EXIT_SECONDS
    for one in list(_living):
        one.request_close(min(one.linger, EXIT_SECONDS))
    for one in list(_living):
        one.wait_closed(max(0.0, until - time.monotonic()) + GRACE_SECONDS)


atexit.register(_close_all)

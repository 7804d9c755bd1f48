"""SLEAP's two wires as sockets: what its window binds, and what its trainers connect.

Each belongs to the one thread that made it. Both ends say XPUB where the originals say PUB: the bytes are the same, and
whoever sends knows whether somebody listens. What is said is not known here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from fitwire.transport.socket_thread import ContextShare, open_socket

__all__ = ["TrainerEnd", "WindowEnd", "is_stopped", "trainer_of"]

MAX_FRAME_BYTES = 2**20
"""A peer that sends longer ones is cut off."""
TAKEN_AT_ONCE = 2000

_COMMON: dict[int, int | bytes] = {
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
    zmq.RCVHWM: 10_000,
    # SLEAP's originals dial every 100 ms; so are they found.
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 1000,
}
_SUB: dict[int, int | bytes] = _COMMON | {
    zmq.LINGER: 0,
    zmq.SUBSCRIBE: b"",
    # Answered by the peer's libzmq, whatever its program is busy with: what does not answer is frozen, or gone.
    zmq.HEARTBEAT_IVL: 2000,
    zmq.HEARTBEAT_TIMEOUT: 6000,
}
_XPUB: dict[int, int | bytes] = _COMMON | {
    zmq.LINGER: 1000,  # finite from birth
    zmq.XPUB_NODROP: 1,
    zmq.SNDHWM: 1000,
    zmq.TCP_KEEPALIVE: 1,
}


class _End:
    """A pair of sockets in a context of their own."""

    def __init__(
        self,
        sub: tuple[str, dict[int, int | bytes]] | None,
        pub: tuple[str, dict[int, int | bytes]],
        *,
        bind: bool,
        watch: int = 0,
    ) -> None:
        self._share = ContextShare()
        self._poller = zmq.Poller()
        self._sub: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._pub, _ = open_socket(self._share, zmq.XPUB, pub[1], pub[0], bind=bind)
        self._left = 1
        try:
            if sub is not None:
                self._sub, self._monitor = open_socket(self._share, zmq.SUB, sub[1], sub[0], bind=bind, watch=watch)
                self._left += 1
        except BaseException:
            self.close(0.0)
            raise
        for one in (self._pub, self._sub, self._monitor):
            if one is not None:
                self._poller.register(one, zmq.POLLIN)

    def send(self, frame: bytes) -> bool:
        """Hand over one message without waiting; False when the other end's queue is full."""
        try:
            self._pub.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _subscriptions(self) -> Iterator[bool]:
        """Yield True for each subscription that came since the last look, and False for each that went."""
        while True:
            try:
                said = self._pub.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            if said[:1] in (b"\x00", b"\x01"):
                yield said[:1] == b"\x01"

    def wait(self, seconds: float) -> None:
        """Wait until something comes, at most so long."""
        self._poller.poll(max(0, round(seconds * 1000)))

    def close(self, linger: float = 1.0) -> None:
        """Deliver what was handed over, for at most ``linger`` seconds, and close."""
        if self._monitor is not None:
            self._monitor.close(0)
        if self._sub is not None:
            self._sub.close(0)
        self._pub.close(round(linger * 1000))
        for _ in range(self._left):
            self._share.leave()  # the last to leave waits for what lingers
        self._left = 0


class TrainerEnd(_End):
    """What a trainer of SLEAP connects: progress to the window, control from it.

    Args:
        progress: Where the window reads.
        control: Where it commands; None not to listen.
    """

    def __init__(self, progress: str, control: str | None) -> None:
        one_by_one = _XPUB | {zmq.IMMEDIATE: 1}  # so that a window that left takes nothing with it
        super().__init__((control, _SUB) if control is not None else None, (progress, one_by_one), bind=False)
        self.heard = False
        """Whether a window reads."""

    def look(self) -> bool:
        """See who reads; whether one has come that was not there at the last look."""
        came = False
        for comes in self._subscriptions():
            came = comes
            self.heard = comes
        return came

    def orders(self) -> Iterator[bytes]:
        """Yield what the window has sent."""
        for _ in range(TAKEN_AT_ONCE):
            if self._sub is None:
                return
            try:
                yield self._sub.recv_multipart(zmq.DONTWAIT)[0]
            except zmq.Again:
                return


class WindowEnd(_End):
    """What SLEAP's window binds: progress of trainers, told apart by their connections, and control of them all.

    Args:
        progress: Where trainers send to; None not to bind it.
        control: Where trainers listen.

    Attributes:
        connected: Connections that stand, by their number; of one that went the number may come again.
        listeners: Trainers that have subscribed to commands.

    Raises:
        AddressInUse: A window of SLEAP's, or another program, is bound there.
        AddressError: The address cannot be bound.
    """

    def __init__(self, progress: str | None, control: str) -> None:
        verbose = _XPUB | {zmq.XPUB_VERBOSER: 1}  # every subscription is told, so that they can be counted
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        super().__init__(
            (progress, _SUB) if progress is not None else None, (control, verbose), bind=True, watch=events
        )
        self.connected: set[int] = set()
        self.listeners = 0

    @property
    def listens_to_progress(self) -> bool:
        """Whether it hears trainers, or just commands them."""
        return self._sub is not None

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """Yield what trainers have sent, each with the number of its connection."""
        for _ in range(TAKEN_AT_ONCE):
            if self._sub is None:
                return
            try:
                frame = self._sub.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            number: Any = frame.get(zmq.SRCFD)
            data = frame.bytes
            while frame.more:  # nothing of SLEAP's has a second frame
                frame = self._sub.recv(copy=False)
            yield int(number), data

    def look(self) -> None:
        """See who came and went; to be called after what they sent was received."""
        for comes in self._subscriptions():
            self.listeners = max(0, self.listeners + (1 if comes else -1))
        while self._monitor is not None and self._monitor.poll(0):
            seen = parse_monitor_message(self._monitor.recv_multipart())
            if seen["event"] == zmq.EVENT_ACCEPTED:
                self.connected.add(int(seen["value"]))
            elif seen["event"] == zmq.EVENT_DISCONNECTED:
                self.connected.discard(int(seen["value"]))

    def await_listener(self, timeout: float) -> bool:
        """Wait until a trainer listens to commands, at most ``timeout`` seconds; whether one does."""
        until = time.monotonic() + timeout
        self.look()
        while not self.listeners and time.monotonic() < until:
            self.wait(min(0.1, until - time.monotonic()))
            self.look()
        return bool(self.listeners)


def trainer_of(connection: int) -> tuple[int, float] | None:
    """The process at the other end of a connection that was accepted here: its pid, and when it started (Unix seconds).

    Args:
        connection: Its number, a file descriptor of libzmq's in this process.

    Returns:
        None when it is not to be had: closed meanwhile, of another user, or in another container.
    """
    import psutil

    try:
        handle = os.dup(connection)  # libzmq may close its own at any moment
    except OSError:
        return None
    try:
        try:
            peer = socket.socket(fileno=handle)
        except OSError:
            os.close(handle)
            raise
        with peer:
            here, there = peer.getsockname(), peer.getpeername()
        for found in psutil.net_connections("tcp4"):
            if found.pid and tuple(found.laddr) == there and tuple(found.raddr) == here:
                return found.pid, psutil.Process(found.pid).create_time()
    except (OSError, psutil.Error):
        pass
    return None


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal, and may be told to go on."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False

"""The two sockets of the link: DEALER where something dials, ROUTER where the hub answers.

Each belongs to the one thread that made it. What ZeroMQ raises is turned into fitwire's own errors here; nothing of the
protocol is known.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import Enum
from typing import Any

import zmq

from fitwire.errors import AddressInUse, LinkError
from fitwire.protocol.blocks import CHUNK_BYTES, Buffer
from fitwire.transport.address import Address

__all__ = ["Dealer", "Router", "Sent"]

ZERO_COPY_BYTES = 64 * 2**10
"""Frames from here on are lent to libzmq instead of copied; below, lending costs more."""
MAX_FRAME_BYTES = 2 * CHUNK_BYTES
"""Nothing we send is longer; a peer that sends more is cut off by libzmq before it is in memory."""
WARM_BYTES = 16 * 2**20
"""Made and let go untouched by a hub: glibc then keeps up to twice as much of what is freed for the next frames, where
it would hand each MiB back to the system and have it cleared again."""
PEER_IN, PEER_OUT = 1_000, 10_000
"""Messages that a hub takes in from one peer before it has looked, and that it keeps for one that does not read.
Credit, and a page of an answer in the smallest blocks, are less: only a flood meets them."""

_MONITORED = struct.Struct("=HI")
"""Event and value, in the first frame that a socket's monitor sends. pyzmq's own reader loads asyncio, a sixth of what
importing the trainer's wing takes."""


class Sent(Enum):
    """What became of a message handed to the socket."""

    YES = "yes"
    FULL = "full"
    GONE = "gone"


# Every option is said, because the defaults differ between versions and none of them is neutral.
_COMMON: dict[int, int] = {
    zmq.LINGER: 0,  # the backlog is the guarantee, not linger
    zmq.IMMEDIATE: 1,  # queue for peers that are there, not for those that may come
    zmq.SNDHWM: 0,  # of a connector: credit bounds what is under way
    zmq.RCVHWM: 0,
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
    zmq.HANDSHAKE_IVL: 3000,
    zmq.HEARTBEAT_IVL: 2000,
    zmq.HEARTBEAT_TIMEOUT: 6000,
    zmq.HEARTBEAT_TTL: 6000,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 2000,
}


def _socket(context: zmq.Context[Any], kind: int, address: Address) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    for option, value in _COMMON.items():
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.IPV6, int("[" in address.text))
    return socket


def _send(socket: zmq.Socket[bytes], frames: Sequence[Buffer]) -> None:
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        flags = zmq.DONTWAIT if index == last else zmq.DONTWAIT | zmq.SNDMORE
        socket.send(frame, flags, copy=len(frame) < ZERO_COPY_BYTES)


class Dealer:
    """A connector: one peer, dialled again for as long as it takes.

    Args:
        address: Of the hub.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._context: zmq.Context[Any] = zmq.Context(1)
        self._socket = _socket(self._context, zmq.DEALER, address)
        events = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(events)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(address.text)

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Send without waiting; False when nobody is connected."""
        try:
            _send(self._socket, frames)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise LinkError(f"cannot send to {self.address.text}: {error}") from error
        return True

    def receive(self) -> list[bytes] | None:
        """The next message, or None."""
        try:
            return self._socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def changes(self) -> list[bool]:
        """What happened to the connection since the last call: True for up, False for down, in order."""
        happened: list[bool] = []
        while self._monitor.poll(0):
            event, _ = _MONITORED.unpack(self._monitor.recv_multipart(zmq.DONTWAIT)[0])
            happened.append(event == zmq.Event.HANDSHAKE_SUCCEEDED)
        return happened

    def wait(self, seconds: float) -> bool:
        """Wait until something arrives or changes, at most so long; True if something did."""
        return bool(self._poller.poll(max(0, round(seconds * 1000))))

    def close(self) -> None:
        """Close at once; nothing lingers."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._context.term()


class Router:
    """The hub's socket: many peers, each known by its routing id.

    Binding a Unix socket takes the path from whoever listens there: take the lock beside it first
    (``process.FileLock``).

    Args:
        address: To bind.

    Raises:
        AddressInUse: Another process holds the port.
        LinkError: The system refuses for another reason.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        bytearray(WARM_BYTES)
        self._context: zmq.Context[Any] = zmq.Context(1)
        self._socket = _socket(self._context, zmq.ROUTER, address)
        # Without it a ROUTER drops what it cannot deliver, in silence: 3,968 of 4,000 measured.
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.RCVHWM, PEER_IN)
        self._socket.setsockopt(zmq.SNDHWM, PEER_OUT)
        try:
            self._socket.bind(address.text)
            if address.path is not None:
                address.path.chmod(0o600)  # a path outside our private folder is open to whom the umask says
        except OSError as error:  # zmq.ZMQError is none
            self.close()
            raise LinkError(f"cannot listen at {address.text}: {error}") from error
        except zmq.ZMQError as error:
            self.close()
            if error.errno == zmq.EADDRINUSE:
                hint = "another program listens there; choose another port, or stop it"
                raise AddressInUse(address.text, hint) from error
            raise LinkError(f"cannot listen at {address.text}: {error}") from error

    def send(self, peer: bytes, frames: Sequence[Buffer]) -> Sent:
        """Send to one peer without waiting."""
        try:
            _send(self._socket, [peer, *frames])
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Sent.GONE
            raise LinkError(f"cannot send from {self.address.text}: {error}") from error
        return Sent.YES

    def receive(self) -> tuple[bytes, list[Buffer]] | None:
        """The next message and who sent it, or None; long frames are lent by libzmq, not copied."""
        try:
            frame = self._socket.recv(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None
        peer = frame.bytes
        frames: list[Buffer] = []
        while frame.more:
            frame = self._socket.recv(copy=False)
            # A short frame would keep the whole of what libzmq read with it.
            frames.append(frame.bytes if len(frame) < ZERO_COPY_BYTES else frame.buffer)
        return peer, frames

    def wait(self, seconds: float) -> bool:
        """Wait until something arrives, at most so long; True if something did."""
        return bool(self._socket.poll(max(0, round(seconds * 1000))))

    def close(self) -> None:
        """Close at once; nothing lingers."""
        self._socket.close(0)
        self._context.term()

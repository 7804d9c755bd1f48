"""Publish and subscribe without blindness: XPUB in place of PUB, and a SUB that is always being read.

Both speak to plain PUB and SUB sockets; on the wire nothing differs. A publisher connects and knows from the peer's
subscription when somebody listens; a subscriber binds. What the frames mean is not known here.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import zmq
from zmq.utils.monitor import parse_monitor_message

from fitwire.errors import NotOpenError
from fitwire.transport.socket_thread import ContextShare, SocketThread, is_exiting, open_socket

__all__ = ["LINGER_SECONDS", "MAX_FRAME_BYTES", "QUEUE_BYTES", "Arrival", "Publisher", "Subscriber"]

LINGER_SECONDS = 5.0
"""Delivering 15 MB to a busy machine takes under one; somebody waiting for a prompt bears about this long."""

MAX_FRAME_BYTES = 2**30
"""Largest frame either way: libzmq drops the connection of a peer that announces more."""

QUEUE_BYTES = 512 * 2**20
"""Bound on what one end holds for the other: a million dicts, or two thousand arrays of 256 kB."""

FRAME_COST = 512
"""Counted on top of a frame's length, so that empty ones fill a queue too."""

_PIPE_MESSAGES = 100
"""libzmq's own queue to the peer: short, because what is in there cannot be counted when it is lost."""

_PUBLISHER_OPTIONS: dict[int, int | bytes] = {
    zmq.LINGER: int(LINGER_SECONDS * 1000),  # finite from birth: libzmq's default waits for ever at exit
    zmq.IMMEDIATE: 1,  # no pipe without a peer: a restarted receiver is not sent the past
    zmq.XPUB_NODROP: 1,  # say Again when full; drop nothing silently
    zmq.SNDHWM: _PIPE_MESSAGES,
    zmq.RCVHWM: 1000,
    zmq.MAXMSGSIZE: 65536,  # only subscriptions come this way
    zmq.RECONNECT_IVL: 20,  # a receiver that starts second is found within 40 ms
    zmq.RECONNECT_IVL_MAX: 0,
    # No ZMTP heartbeat here: a receiver that is full stops reading, so it does not answer, and a heartbeat would cut it
    # off and lose what is under way (measured: 72 of 100). The kernel answers keep-alives for a process that is slow.
    zmq.HEARTBEAT_IVL: 0,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 4,
}
_SUBSCRIBER_OPTIONS: dict[int, int | bytes] = {
    zmq.LINGER: 0,  # it sends nothing but its subscription
    zmq.SUBSCRIBE: b"",
    zmq.SNDHWM: 1000,
    zmq.RCVHWM: 10_000,  # the thread empties it at once; this is for a program that keeps the interpreter's lock
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
    zmq.HEARTBEAT_IVL: 2000,  # a sender's machine that vanished is noticed; safe because this end always reads
    zmq.HEARTBEAT_TIMEOUT: 6000,
    zmq.TCP_KEEPALIVE: 0,
}

_log = logging.getLogger("fitwire.transport")


def _cost(frames: Sequence[bytes]) -> int:
    return sum(len(frame) + FRAME_COST for frame in frames)


class _Peer(enum.Enum):
    """Who listens, and what becomes of what is sent meanwhile."""

    NOT_YET = "hold what is sent until somebody listens"
    HERE = "send"
    GONE = "drop what is sent, counted: the next receiver is not to be shown the past"


class Publisher(SocketThread):
    """Sends in order, never blocks its caller, and knows whether somebody listens.

    Until the first subscription, messages are held (within ``limit_bytes``); while the receiver is gone they are
    dropped. Drops are counted by reason: ``"full"``, ``"no receiver"``, ``"linger"``. Frames that libzmq already had
    taken when a receiver died (at most 100 messages and the kernel's buffer) cannot be counted.

    Attributes:
        dropped: Messages known to be lost, by reason.

    Example:
        >>> publisher = Publisher("tcp://127.0.0.1:9004", ContextShare())
        >>> publisher.send([b"held until somebody listens"])
        1
        >>> publisher.close(linger=0)
        >>> publisher.dropped
        Counter({'linger': 1})
    """

    def __init__(
        self,
        address: str,
        share: ContextShare | None,
        *,
        socket: zmq.Socket[bytes] | None = None,
        linger: float = LINGER_SECONDS,
        limit_bytes: int = QUEUE_BYTES,
        dropped: Counter[str] | None = None,
        warn: bool = True,
    ) -> None:
        """Connect and start.

        Args:
            address: Where the receiver binds.
            share: The context to be in; None only with ``socket``.
            socket: A connected or bound socket to use in place of our own, taken over and closed at the end. Nothing is
                known of its peers, so all is sent at once.
            linger: Seconds that closing may take.
            limit_bytes: Bound on what is held, in bytes, with 512 more for each frame.
            dropped: Counter to go on with.
            warn: Log the first drop of each reason.
        """
        self._warn = warn
        self.dropped: Counter[str] = Counter() if dropped is None else dropped
        self._is_ours = socket is None
        self._peer = _Peer.NOT_YET if socket is None else _Peer.HERE
        self._topics: set[bytes] = set()
        self._arrivals = 0 if socket is None else 1
        self._limit = limit_bytes
        self._outbox: deque[tuple[Sequence[bytes], int]] = deque()
        self._held_bytes = 0
        self._accepted = self._done = 0
        if socket is None:
            assert share is not None
            socket, _ = open_socket(share, zmq.XPUB, _PUBLISHER_OPTIONS, address, bind=False)
        else:
            share = None
        super().__init__(socket, share, linger=linger)
        self.start()

    @property
    def is_heard(self) -> bool:
        """Whether a receiver has subscribed and is still connected."""
        return self._peer is _Peer.HERE

    @property
    def receiver(self) -> int:
        """Which receiver listens, counted from 1 as they come; 0 when none does."""
        return self._arrivals if self.is_heard else 0

    def is_pending(self, ticket: int) -> bool:
        """Whether a message, by the number ``send`` gave it, still waits here."""
        return ticket > self._done

    def send(self, frames: Sequence[bytes], *, keep: bool = False) -> int:
        """Accept one message, without waiting.

        Args:
            frames: Its frames; they are not copied.
            keep: Hold it even while a receiver is gone, for the next one.

        Returns:
            Its number, counted from 1, or 0 when it was dropped (see ``dropped``).

        Raises:
            NotOpenError: After close.
        """
        if self.is_forked():
            return 0
        cost = _cost(frames)
        with self._changed:
            if not self.is_open:
                if is_exiting():  # counted, but not said: nobody can do anything about it
                    self.dropped["linger"] += 1
                    return 0
                raise NotOpenError("the sender has been closed, or its context terminated: call setup() to send again")
            if self._peer is _Peer.GONE and not keep:
                return self._drop("no receiver", 1)
            if self._outbox and self._held_bytes + cost > self._limit:
                return self._drop("full", 1)
            self._outbox.append((frames, cost))
            self._held_bytes += cost
            self._accepted += 1
            ticket = self._accepted
            wake = self._asleep and self.is_heard
        if wake:
            self._ring()
        return ticket

    def _drop(self, reason: str, messages: int) -> int:
        # At interpreter exit nobody can do anything about it, and daemon threads may go on sending into closed doors.
        if self._warn and reason not in self.dropped and not is_exiting():
            _log.warning("messages are being dropped (%s); counted, and not said again", reason)
        self.dropped[reason] += messages
        return 0

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            with self._changed:
                if self._outbox:
                    self._drop("linger", len(self._outbox))
                    self._clear()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._bell, zmq.POLLIN)
        if self._is_ours:
            poller.register(self._socket, zmq.POLLIN)
        pause = 1
        while True:
            was = self._done
            blocked = self._pump()
            pause = 1 if self._done > was else min(2 * pause, 20)
            deadline = self._deadline
            if deadline is not None and (self._is_finished() or time.monotonic() >= deadline):
                return
            with self._changed:
                self._asleep = True
                busy = self.is_heard and bool(self._outbox)
            # POLLOUT says nothing about an XPUB's high-water mark: when full, look again after a pause.
            wait = pause if blocked else 0 if busy else None
            if deadline is not None and wait is None:
                wait = max(1, int((deadline - time.monotonic()) * 1000) + 1)
            poller.poll(wait)
            self._asleep = False
            self._unring()
            if self._is_ours:
                self._read_subscriptions()

    def _is_finished(self) -> bool:
        """Whether closing has nothing to wait for: all is handed over, or who should get it has gone."""
        return not self._outbox or self._peer is _Peer.GONE

    def _pump(self) -> bool:
        """Send a little, so that subscriptions are read in between; whether the peer's queue is full."""
        for _ in range(64):
            if not self.is_heard or not self._outbox:
                return False
            frames, cost = self._outbox[0]
            try:
                # Fullness counts whole messages, so only a first frame can meet it.
                more = zmq.SNDMORE if len(frames) > 1 else 0
                self._socket.send(frames[0], zmq.DONTWAIT | more)
            except zmq.Again:
                return True
            for place, frame in enumerate(frames[1:], 2):
                more = zmq.SNDMORE if place < len(frames) else 0
                self._socket.send(frame, more)
            with self._changed:
                self._outbox.popleft()
                self._held_bytes -= cost
                self._done += 1
        return False

    def _read_subscriptions(self) -> None:
        while True:
            try:
                said = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            with self._changed:
                if said[:1] == b"\x01":
                    if not self._topics:
                        self._arrivals += 1
                    self._topics.add(said[1:])
                    self._peer = _Peer.HERE
                elif said[:1] == b"\x00" and self.is_heard:
                    self._topics.discard(said[1:])
                    if not self._topics:
                        self._lose_receiver()

    def _lose_receiver(self) -> None:
        self._peer = _Peer.GONE
        if self._outbox:
            self._drop("no receiver", len(self._outbox))
            self._clear()

    def _clear(self) -> None:
        self._outbox.clear()
        self._held_bytes = 0
        self._done = self._accepted


class Arrival(NamedTuple):
    """One message as it came.

    Attributes:
        frames: All of its frames.
        at: Monotonic time at which it was read.
    """

    frames: list[bytes]
    at: float


class Subscriber(SocketThread):
    """Binds, reads from that moment on in a thread, and keeps what comes until it is asked for.

    A queue with a counted drop of the newest, and not back-pressure: a receiver that ceases to read stops answering
    heartbeats and is cut off, and the sender's end, not the reader's, would learn of the loss.

    Attributes:
        dropped: Messages that came while the queue was full, under ``"full"``.
        endpoint: The address as bound, with the port when the system chose it; ``""`` for a socket passed in.
    """

    def __init__(
        self,
        address: str,
        share: ContextShare | None,
        *,
        socket: zmq.Socket[bytes] | None = None,
        limit_bytes: int = QUEUE_BYTES,
        dropped: Counter[str] | None = None,
    ) -> None:
        """Bind and start; arguments as for ``Publisher``."""
        self.dropped: Counter[str] = Counter() if dropped is None else dropped
        self.endpoint = ""
        self._limit = limit_bytes
        self._inbox: deque[tuple[Arrival, int]] = deque()
        self._queued_bytes = 0
        self._accepted_fds: set[int] = set()
        self._linked_at: float | None = None
        # Nothing is ever accepted on inproc, and a user's socket may be watched by the user.
        self._sees_links = socket is None and not address.startswith("inproc:")
        monitor = None
        if socket is None:
            assert share is not None
            events = zmq.EVENT_ALL if self._sees_links else 0
            socket, monitor = open_socket(share, zmq.SUB, _SUBSCRIBER_OPTIONS, address, bind=True, watch=events)
            self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        else:
            share = None
        super().__init__(socket, share, linger=0.0, monitor=monitor)
        self.start()

    @property
    def links(self) -> int:
        """How many senders are connected now; 0 where that cannot be known (inproc, a socket passed in)."""
        return len(self._accepted_fds) if self._linked_at is not None else 0

    def is_linked(self, since: float) -> bool:
        """Whether a sender has been connected for ``since`` seconds; True where that cannot be known."""
        at = self._linked_at
        return not self._sees_links or (at is not None and time.monotonic() - at >= since)

    def receive(self, timeout: float | None) -> Arrival | None:
        """The oldest message not yet taken.

        Args:
            timeout: Seconds to wait for one; None waits until one comes or the socket is closed.

        Returns:
            It, or None when none came in time.
        """
        if self.is_forked():
            return None
        with self._changed:
            if not self._inbox and (timeout is None or timeout > 0):
                limit = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
                self._changed.wait_for(lambda: self._inbox or not self.is_open, limit)
            if not self._inbox:
                return None
            arrival, cost = self._inbox.popleft()
            self._queued_bytes -= cost
            return arrival

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._bell, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        while self._deadline is None:
            ready: dict[Any, int] = dict(poller.poll())
            if self._socket in ready:
                self._take()
            if self._monitor in ready:
                self._note_links()
            self._unring()

    def _take(self) -> None:
        """Read what is there, but not for ever: closing must be noticed."""
        for _ in range(1000):
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            cost = _cost(frames)
            with self._changed:
                if self._inbox and self._queued_bytes + cost > self._limit:
                    if not self.dropped["full"]:
                        _log.warning("nobody takes messages and the queue is full; counting what is dropped")
                    self.dropped["full"] += 1
                    continue
                self._inbox.append((Arrival(frames, time.monotonic()), cost))
                self._queued_bytes += cost
                self._changed.notify()

    def _note_links(self) -> None:
        assert self._monitor is not None
        while self._monitor.poll(0):
            seen = parse_monitor_message(self._monitor.recv_multipart())
            event, value = seen["event"], seen["value"]
            if event == zmq.EVENT_ACCEPTED:
                self._accepted_fds.add(value)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:  # does not say whose
                self._linked_at = time.monotonic()
            elif event == zmq.EVENT_DISCONNECTED:
                self._accepted_fds.discard(value)
                if not self._accepted_fds:
                    self._linked_at = None

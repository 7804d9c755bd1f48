"""Dicts and arrays between two processes: ``sleap.message``'s classes, names, defaults and bytes, without its faults.

Either end may be the original module. Use ``PairedSender`` where the training runs, ``PairedReceiver`` where somebody
watches; each learns from a handshake that the other is there. ``Sender`` and ``Receiver`` are one direction alone. The
sending side connects and the receiving side binds; either may start first.

Where this differs from the original, a fault is mended: sending never blocks, what is lost is counted, bad bytes are
counted and not raised, an array arrives as it was (and can be written to), ``close()`` delivers what was accepted,
``check_messages(times_to_check=n)`` takes at most n, and ``push_back_message`` puts back in front.

Nothing here knows of runs, metrics or fitwire's own link. The pairs are written in ``pair.py``, the bytes are
made in ``protocol/plain.py``, and the sockets and threads are ``transport/pubsub.py``'s. After a ``fork`` the child's
calls do nothing: open another one there.

::

    BaseMessageParticipant          one socket, set up when first used
    ├── Sender
    └── Receiver
    PairedMessageParticipant        a Sender's and a Receiver's socket, set up by setup()
    ├── PairedSender                the training's end
    └── PairedReceiver              the watcher's end
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
import zmq

from fitwire.errors import NotOpenError
from fitwire.pair import PairedMessageParticipant, PairedReceiver, PairedSender
from fitwire.protocol.plain import encode_dict
from fitwire.transport.inbox import Inbox, Message
from fitwire.transport.outbox import publish_array, release_with
from fitwire.transport.pubsub import Publisher, Subscriber
from fitwire.transport.socket_thread import ContextShare, SocketThread

__all__ = [
    "BaseMessageParticipant",
    "PairedMessageParticipant",
    "PairedReceiver",
    "PairedSender",
    "Receiver",
    "Sender",
]


@dataclass
class BaseMessageParticipant(ABC):
    """What a ``Sender`` and a ``Receiver`` share: one address, one socket, a life from ``setup()`` to ``close()``.

    A context manager: it is set up on entering and closed on leaving. Two with equal fields are equal, and so they
    cannot be hashed, as in the original.

    Attributes:
        address: Where the receiving side binds, in ZeroMQ's form.
        context: A ZeroMQ context of the caller's to be in; it is never terminated here, and terminating it closes this.
            None: one of its own.
        socket: A bound or connected socket of the caller's to use in place of one of its own; it is taken over, and
            closed with this.
        dropped: Messages known to be lost since construction, by reason.
    """

    address: str = "tcp://127.0.0.1:9001"
    context: zmq.Context[Any] | None = None
    socket: zmq.Socket[bytes] | None = None

    def __post_init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self._share = ContextShare(self.context)
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._is_closed = False

    @property
    @abstractmethod
    def has_peer(self) -> bool:
        """Whether the other end is connected now."""

    @abstractmethod
    def setup(self) -> None:
        """Open the socket; harmless when it is open. The first use does it too, but not after ``close()``."""

    @abstractmethod
    def close(self, linger: float | None = None) -> None:
        """Close the socket; harmless when it is closed, or was never open.

        Args:
            linger: Seconds that delivering what was accepted may take; None for 5.
        """

    def __enter__(self) -> Self:
        self.setup()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, thread: SocketThread) -> None:
        self._finalizer = release_with(self, thread)
        self._is_closed = False

    def _finish(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
            self.socket = None  # it was taken over, and is closed
        self._finalizer = None
        self._is_closed = True

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise NotOpenError(f"this {type(self).__name__} is closed: call setup() to open it again")


@dataclass
class Sender(BaseMessageParticipant):
    """Publishes dicts and arrays to a ``Receiver``: connects, never blocks, and knows whether somebody listens.

    What is sent before the first receiver has come is held for it (up to 512 MiB). Once it has left, messages are
    dropped until the next one comes. ``dropped`` counts: ``"full"``, ``"no receiver"``, ``"linger"`` (not delivered in
    time at closing). What the network had taken when a receiver died cannot be counted: at most 100 messages and the
    system's buffer.

    Example:
        >>> receiver, sender = Receiver("tcp://127.0.0.1:9003"), Sender("tcp://127.0.0.1:9003")
        >>> with receiver, sender:
        ...     sender.send_dict({"epoch": 0, "loss": 0.25})
        ...     receiver.check_message(timeout=5000)
        {'epoch': 0, 'loss': 0.25}
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._publisher: Publisher | None = None

    @property
    def has_peer(self) -> bool:
        """Whether a receiver has subscribed and is still connected; True with a socket passed in."""
        return self._publisher is not None and self._publisher.is_heard

    def setup(self) -> None:
        """Connect; harmless when connected. The first ``send_…`` does it too, but not after ``close()``.

        Raises:
            AddressError: ZeroMQ cannot connect to such an address.
            NotOpenError: The context passed in has been terminated.
        """
        if self._publisher is not None and self._publisher.is_open:
            return
        self._publisher = Publisher(self.address, self._share, socket=self.socket, dropped=self.dropped)
        self._begin(self._publisher)

    def close(self, linger: float | None = None) -> None:
        """Deliver what was accepted, then close; harmless when closed, or never open.

        Args:
            linger: Seconds that delivering may take, None for 5; the rest is dropped, counted under ``"linger"``.
        """
        if self._publisher is not None:
            self._publisher.close(linger)
        self._publisher = None
        self._finish()

    def send_dict(self, data: Mapping[str, Any]) -> None:
        """Send a dict as JSON; it is encoded before this returns.

        Args:
            data: JSON's types, numpy's numbers among them; NaN and infinities travel as bare literals. An array travels
                as nested lists: prefer ``send_array``.

        Raises:
            EncodeError: A value JSON has no word for, or both of the keys ``dtype`` and ``shape``, which announce an
                array; nothing has been sent.
            NotOpenError: After ``close()``.
        """
        self._opened().send(encode_dict(data))

    def send_array(
        self, header_data: Mapping[str, Any], A: npt.ArrayLike, flags: int = 0, copy: bool = True, track: bool = False
    ) -> zmq.MessageTracker | None:
        """Send a dict together with an array; both are copied before this returns.

        Args:
            header_data: As for ``send_dict``; it is not changed. The receiver finds ``dtype`` and ``shape`` added to
                it, and the array under ``ndarray``.
            A: Any shape, strides and byte order; any dtype but objects, structures and those of packages beside numpy.
            flags: 0 or ``zmq.DONTWAIT``, which changes nothing: sending never blocks.
            copy: For the original's sake. The array may be changed after the call either way.
            track: With ``copy=False``, ask for a tracker.

        Returns:
            None, or the tracker asked for; it is done already.

        Raises:
            EncodeError: An array or header that cannot be sent; nothing has been.
            UsageError: Another flag.
            NotOpenError: After ``close()``.
        """
        return publish_array(self._opened(), header_data, A, flags, copy, track)

    def _opened(self) -> Publisher:
        self._refuse_closed()
        if self._publisher is None:
            self.setup()
        assert self._publisher is not None
        return self._publisher


@dataclass
class Receiver(BaseMessageParticipant):
    """Receives what a ``Sender`` publishes: binds, and reads in a thread from that moment on.

    Messages wait here until they are asked for (up to 512 MiB). ``dropped`` counts those beyond, as ``"full"``, and bad
    messages by kind, among them ``"json"``, ``"utf-8"``, ``"frames"``, ``"size"``, ``"dtype"``: they are logged once a
    kind, never raised, and cost no good message.

    Attributes:
        message_queue: Messages given out before those off the socket.

    Example:
        >>> import numpy as np
        >>> with Receiver("tcp://127.0.0.1:9003") as receiver, Sender("tcp://127.0.0.1:9003") as sender:
        ...     sender.send_array({"name": "mask"}, np.eye(2))
        ...     message = receiver.check_message(timeout=5000)
        >>> message["name"], message["ndarray"].tolist()
        ('mask', [[1.0, 0.0], [0.0, 1.0]])
    """

    message_queue: list[Message] = field(default_factory=list[Message])

    def __post_init__(self) -> None:
        super().__post_init__()
        self._inbox: Inbox | None = None

    @property
    def has_peer(self) -> bool:
        """Whether a sender is connected; False where that cannot be known (inproc, a socket passed in)."""
        return self._inbox is not None and self._inbox.subscriber.links > 0

    def setup(self) -> None:
        """Bind and listen; harmless when listening. The first check does it too, but not after ``close()``.

        Raises:
            AddressInUse: Somebody else is bound there; nothing is left half-open.
            AddressError: ZeroMQ cannot bind such an address.
            NotOpenError: The context passed in has been terminated.
        """
        if self._inbox is not None and self._inbox.subscriber.is_open:
            return
        subscriber = Subscriber(self.address, self._share, socket=self.socket, dropped=self.dropped)
        self._inbox = Inbox(subscriber, self.message_queue)
        self._begin(subscriber)

    def close(self, linger: float | None = None) -> None:
        """Stop listening and free the port; harmless when closed. What nobody took is gone.

        Args:
            linger: Of no effect: a receiver has nothing to deliver.
        """
        if self._inbox is not None:
            self._inbox.subscriber.close()
        self._inbox = None
        self._finish()

    def push_back_message(self, message: Message) -> None:
        """Act as if ``message`` had not been received yet: the next check gives it."""
        self.message_queue.insert(0, message)

    def check_message(self, timeout: int = 10, fresh: bool = False) -> Message | None:
        """The next message, if there is one.

        Args:
            timeout: Milliseconds to wait for one; negative waits for as long as it takes.
            fresh: Pass by what was pushed back.

        Returns:
            A dict, or None; an array is under ``"ndarray"``, writeable, its ``dtype`` and ``shape`` beside it.

        Raises:
            AddressInUse: As ``setup``, at the first use.
            NotOpenError: After ``close()``, or once the context passed in is terminated.
        """
        return self._opened().check(timeout, fresh=fresh)

    def check_messages(self, timeout: int = 10, times_to_check: int = 10) -> list[Message]:
        """The messages that have come, until none comes any more.

        Args:
            timeout: Milliseconds to wait for each; a steady sender can hold the call for ``times_to_check`` times that.
            times_to_check: At most so many messages.

        Raises:
            AddressInUse: As ``setup``, at the first use.
            NotOpenError: As ``check_message``.
        """
        return self._opened().check_many(timeout, times_to_check)

    def _opened(self) -> Inbox:
        self._refuse_closed()
        if self._inbox is None:
            self.setup()
        assert self._inbox is not None
        return self._inbox

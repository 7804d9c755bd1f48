"""The two ends of a pair: a socket each way, and a handshake by which each knows that the other is there.

To be imported from ``fitwire.message``, whose docstring says what they are for.
"""

from __future__ import annotations

import secrets
import time
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
import zmq

from fitwire.errors import NotOpenError
from fitwire.protocol.handshake import SETTLE_SECONDS, Asking, is_request, reply_to
from fitwire.protocol.plain import encode_dict
from fitwire.transport.inbox import Inbox, Message
from fitwire.transport.outbox import publish_array, release_with
from fitwire.transport.pubsub import Publisher, Subscriber
from fitwire.transport.socket_thread import ContextShare

__all__ = ["PairedMessageParticipant", "PairedReceiver", "PairedSender"]

_LOOK_SECONDS = 0.005
"""How often a handshake looks whether the other end has come."""
_REPLY_LINGER_SECONDS = 0.5
"""A reply that nobody comes for is worth no longer a wait at closing."""


@dataclass
class PairedMessageParticipant(ABC):
    """What both ends of a pair share: a socket each way, opened by ``setup()`` and closed by ``close()``.

    A context manager: it is set up on entering and closed on leaving; the handshake is yours to ask for. Two are equal
    when their addresses, context and state are (so they cannot be hashed, as in the original).

    Attributes:
        sender_address: Where the other end binds and listens.
        receiver_address: Where this end binds and listens.
        context: A ZeroMQ context of the caller's to be in; it is never terminated here, and terminating it closes this.
            None: one of its own.
        connected: Whether a handshake has succeeded since ``setup()``.
        dropped: Messages known to be lost since construction, by reason, as in ``Sender`` and ``Receiver``.
    """

    sender_address: str
    receiver_address: str
    context: zmq.Context[Any] | None = None
    connected: bool = False

    def __post_init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self._share = ContextShare(self.context)
        self._ends: tuple[Publisher, Inbox] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._was_closed = False

    @classmethod
    def from_tcp_ports(cls, send_port: int, rec_port: int) -> Self:
        """A pair over this machine's own network.

        Args:
            send_port: The port at which the other end listens.
            rec_port: The port at which this end listens.
        """
        return cls(f"tcp://127.0.0.1:{send_port}", f"tcp://127.0.0.1:{rec_port}")

    @property
    @abstractmethod
    def has_peer(self) -> bool:
        """Whether the other end is connected now."""

    @abstractmethod
    def _open_ends(self) -> tuple[Publisher, Inbox]:
        """Bind, then connect."""

    def setup(self) -> None:
        """Bind, connect and listen; harmless when open.

        Raises:
            AddressInUse: Somebody else is bound where this end would listen; nothing is left half-open.
            AddressError: ZeroMQ cannot use such an address.
            NotOpenError: The context passed in has been terminated.
        """
        if self._ends is not None:
            publisher, inbox = self._ends
            if publisher.is_open and inbox.subscriber.is_open:
                return
            self.close(0.0)  # its context was terminated
        publisher, inbox = self._ends = self._open_ends()
        self._finalizer = release_with(self, publisher, inbox.subscriber)

    def close(self, linger: float | None = None) -> None:
        """Deliver what was accepted, then close; harmless when closed, or never open.

        Args:
            linger: Seconds that delivering may take, None for 5; the rest is dropped, counted under ``"linger"``.
        """
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        if self._ends is not None:
            publisher, inbox = self._ends
            publisher.close(linger)
            inbox.subscriber.close()
            self._ends = None
            self._was_closed = True
            self.connected = False

    def __enter__(self) -> Self:
        self.setup()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> tuple[Publisher, Inbox]:
        if self._ends is None:
            state = "closed" if self._was_closed else "not open yet"
            raise NotOpenError(f"this {type(self).__name__} is {state}: call setup() first, or use it in a with block")
        return self._ends


@dataclass
class PairedSender(PairedMessageParticipant):
    """The end that sends: shakes hands with a ``PairedReceiver``, then tells it dicts and arrays.

    What is sent before the first receiver has come is held for it, as by ``Sender``.

    Example:
        >>> import threading
        >>> with PairedReceiver.from_defaults() as watcher, PairedSender.from_defaults() as trainer:
        ...     threading.Thread(target=watcher.receive_handshake).start()
        ...     trainer.send_handshake(timeout_sec=5)
        ...     trainer.send_dict({"epoch": 0, "loss": 0.25})
        ...     watcher.check_messages(timeout=1000, times_to_check=1)
        True
        [{'epoch': 0, 'loss': 0.25}]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._asking: Asking | None = None

    @classmethod
    def from_defaults(cls) -> Self:
        """The training's end at the usual ports: sends to 9001, hears replies at 9002."""
        return cls.from_tcp_ports(9001, 9002)

    @property
    def has_peer(self) -> bool:
        """Whether a receiver has subscribed and is still connected; a handshake says more: that it answers."""
        return self._ends is not None and self._ends[0].is_heard

    def send_handshake(self, timeout_sec: float = 30) -> bool:
        """Ask the other end whether it is there, until it answers.

        Args:
            timeout_sec: Seconds to go on for; 0 tries once.

        Returns:
            Whether it answered, and ``connected`` says so from then on. An answer to an earlier handshake does not
            count; a call that failed is gone on with by the next. Other messages that come meanwhile are thrown away,
            as in the original.

        Raises:
            NotOpenError: Before ``setup()`` or after ``close()``.
        """
        publisher, inbox = self._opened()
        if publisher.is_forked():
            return False
        # One handshake goes on over short calls: an answer may take longer than the caller's patience.
        asking = self._asking = self._asking or Asking(secrets.token_hex(8))
        until = time.monotonic() + timeout_sec
        while True:
            now = time.monotonic()
            is_linked = inbox.subscriber.is_linked(SETTLE_SECONDS)
            request = asking.due(now, receiver=publisher.receiver, is_linked=is_linked)
            if request is not None:
                publisher.send(encode_dict(request))
            taken = inbox.take(max(0.0, min(_LOOK_SECONDS, until - now)))
            self.connected = taken is not None and asking.is_answer(*taken)
            if self.connected:
                self._asking = None
            if self.connected or now >= until:
                return self.connected

    def send_dict(self, data: Mapping[str, Any]) -> None:
        """Send a dict; as ``Sender.send_dict``.

        Raises:
            EncodeError: It cannot be sent; nothing has been.
            NotOpenError: Before ``setup()`` or after ``close()``.
        """
        self._opened()[0].send(encode_dict(data))

    def send_array(
        self, header_data: Mapping[str, Any], A: npt.ArrayLike, flags: int = 0, copy: bool = True, track: bool = False
    ) -> None:
        """Send a dict together with an array; as ``Sender.send_array``, but for the tracker.

        Raises:
            EncodeError: It cannot be sent; nothing has been.
            NotOpenError: Before ``setup()`` or after ``close()``.
            UsageError: A flag other than ``zmq.DONTWAIT``.
        """
        publish_array(self._opened()[0], header_data, A, flags, copy, track)

    def _open_ends(self) -> tuple[Publisher, Inbox]:
        self._asking = None
        replies = Subscriber(self.receiver_address, self._share)
        try:
            return Publisher(self.sender_address, self._share, dropped=self.dropped), Inbox(replies)
        except BaseException:
            replies.close()
            raise


@dataclass
class PairedReceiver(PairedMessageParticipant):
    """The end that watches: answers a ``PairedSender``'s handshake, then takes what it tells.

    It reads in a thread from ``setup()`` on, so a window that is busy loses nothing; see ``Receiver``.

    Example:
        >>> with PairedReceiver.from_defaults() as watcher:
        ...     watcher.receive_handshake(timeout_sec=0)  # nobody is there yet
        ...     watcher.check_messages()
        False
        []
    """

    @classmethod
    def from_defaults(cls) -> Self:
        """The watcher's end at the usual ports: replies to 9002, listens at 9001."""
        return cls.from_tcp_ports(9002, 9001)

    @property
    def has_peer(self) -> bool:
        """Whether a sender is connected now; one that was frozen or whose machine vanished is noticed within 8 s."""
        return self._ends is not None and self._ends[1].subscriber.links > 0

    def receive_handshake(self, timeout_sec: float = 30) -> bool:
        """Wait for the other end to ask, and answer.

        The answer is delivered even if nothing more is called here.

        Args:
            timeout_sec: Seconds to wait; 0 looks once.

        Returns:
            Whether the other end is there: True after its request, which sets ``connected``; after any other message,
            which does not, and is kept for ``check_messages``; and at once when connected already. False when nothing
            came in time.

        Raises:
            NotOpenError: Before ``setup()`` or after ``close()``.
        """
        publisher, inbox = self._opened()
        if publisher.is_forked():
            return False
        now = time.monotonic()
        if not self.connected:
            return self._take_in(inbox.take(max(0.0, timeout_sec)))
        # A sender that has been started again may be asking, too.
        while (taken := inbox.take(0.0)) is not None and self._take_in(taken) and taken[1] < now:
            pass
        return True

    def check_messages(self, ack_handshakes: bool = True, timeout: int = 10, times_to_check: int = 10) -> list[Message]:
        """The messages that have come, until none comes any more.

        Args:
            ack_handshakes: Answer requests for a handshake, and leave them out; False gives them out like any message.
            timeout: Milliseconds to wait for each message.
            times_to_check: Take at most so many, requests included.

        Raises:
            NotOpenError: Before ``setup()`` or after ``close()``.
        """
        messages = self._opened()[1].check_many(timeout, times_to_check)
        if not ack_handshakes:
            return messages
        requests = [message for message in messages if is_request(message)]
        if requests:
            self._respond(requests[-1])
        return [message for message in messages if not is_request(message)]

    def _take_in(self, taken: tuple[Message, float] | None) -> bool:
        """Answer a request, keep anything else behind what is kept already; whether there was something."""
        if taken is None:
            return False
        if is_request(taken[0]):
            self._respond(taken[0])
        else:
            self._opened()[1].queue.append(taken[0])
        return True

    def _respond(self, request: Message) -> None:
        # Kept until the asking end subscribes: its request may have overtaken its own connection for replies.
        self._opened()[0].send(encode_dict(reply_to(request)), keep=True)
        self.connected = True

    def _open_ends(self) -> tuple[Publisher, Inbox]:
        messages = Subscriber(self.receiver_address, self._share, dropped=self.dropped)
        try:
            replies = Publisher(self.sender_address, self._share, linger=_REPLY_LINGER_SECONDS, warn=False)
        except BaseException:
            messages.close()
            raise
        return replies, Inbox(messages)

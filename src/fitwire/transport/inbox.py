"""A subscriber's messages, decoded: the good ones in order, the bad ones counted and left out.

It is where bytes off the network become dicts for the plain pair; handshakes are not known here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

from fitwire.errors import DecodeError, NotOpenError
from fitwire.protocol.plain import after_orphan, decode_message
from fitwire.transport.pubsub import Arrival, Subscriber
from fitwire.transport.socket_thread import is_exiting

__all__ = ["Inbox", "Message"]

Message = dict[str, Any]

_EXIT_PAUSE = 0.01
"""What a daemon thread that goes on asking while the interpreter ends waits, so as not to spin."""

_log = logging.getLogger("fitwire.transport")


class Inbox:
    """What a subscriber receives, behind what has been put back.

    Attributes:
        subscriber: Where it comes from.
        queue: Messages to be given out first.
        dropped: Bad messages by kind (``DecodeError.kind``), in the subscriber's own counter.
    """

    def __init__(self, subscriber: Subscriber, queue: list[Message] | None = None) -> None:
        self.subscriber = subscriber
        self.queue: list[Message] = [] if queue is None else queue
        self.dropped: Counter[str] = subscriber.dropped

    def take(self, timeout: float | None) -> tuple[Message, float] | None:
        """The next good message off the socket.

        Args:
            timeout: Seconds to wait for one; None waits for as long as it takes.

        Returns:
            It and the monotonic time of its coming, or None when none came in time, or waiting was ended by a close.

        Raises:
            NotOpenError: None will come any more: the context was terminated, or the socket failed.
        """
        was_open = self.subscriber.is_open or self.subscriber.is_forked()
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            arrival = self.subscriber.receive(left)
            if arrival is None:
                if is_exiting():
                    time.sleep(_EXIT_PAUSE)
                elif not was_open:
                    raise NotOpenError("no longer listening, its context was terminated: call setup() to listen again")
                return None
            message = self._decode(arrival)
            if message is not None:
                return message, arrival.at
            if until is not None and arrival.at > until:  # a flood of bad ones must not keep us
                return None

    def check(self, timeout_ms: float | None, *, fresh: bool = False) -> Message | None:
        """The next message, from the queue or the socket.

        Args:
            timeout_ms: Milliseconds to wait for one; None or a negative number waits for as long as it takes.
            fresh: Pass the queue by.
        """
        if self.subscriber.is_forked():
            return None
        if self.queue and not fresh:
            return self.queue.pop(0)
        taken = self.take(None if timeout_ms is None or timeout_ms < 0 else timeout_ms / 1000)
        return None if taken is None else taken[0]

    def check_many(self, timeout_ms: float | None, limit: int) -> list[Message]:
        """Messages until none comes within ``timeout_ms`` of the one before, at most ``limit``."""
        messages: list[Message] = []
        while len(messages) < limit:
            try:
                message = self.check(timeout_ms)
            except NotOpenError:
                if not messages:
                    raise
                break  # said at the next call; this one has something to give
            if message is None:
                break
            messages.append(message)
        return messages

    def _decode(self, arrival: Arrival) -> Message | None:
        frames = arrival.frames
        try:
            return decode_message(frames)
        except DecodeError as error:
            if error.kind not in self.dropped:
                _log.warning("a message is left out: %s (more like it are counted, and not said)", error)
            self.dropped[error.kind] += 1
        rest = after_orphan(frames)
        if rest:
            try:
                return decode_message(rest)
            except DecodeError:
                pass
        return None

"""What sending an array, and being dropped unclosed, come to: the same for a single sender and for a pair."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import zmq

from fitwire.errors import UsageError
from fitwire.protocol.plain import encode_array
from fitwire.transport.pubsub import Publisher, Subscriber
from fitwire.transport.socket_thread import SocketThread

__all__ = ["publish_array", "release_with"]


def publish_array(
    publisher: Publisher, header_data: Mapping[str, Any], array: npt.ArrayLike, flags: int, copy: bool, track: bool
) -> zmq.MessageTracker | None:
    """Encode and send, as ``fitwire.message.Sender.send_array`` says it."""
    if flags & ~int(zmq.DONTWAIT):
        raise UsageError(
            f"flags={flags} would glue the next message to this one; leave flags out: sending never blocks"
        )
    publisher.send(encode_array(header_data, array))
    # The array has been copied: there is nothing to wait for, so the tracker tracks nothing and is done.
    return zmq.MessageTracker() if track and not copy else None


def _let_go(*threads: SocketThread) -> None:
    """What dropping an open participant does: its port is free at once, what it sent is delivered behind the scenes."""
    for thread in threads:
        thread.request_close()
    for thread in threads:
        if isinstance(thread, Subscriber):
            thread.close()


def release_with(owner: object, *threads: SocketThread) -> weakref.finalize[Any, Any]:
    """See to it that the threads end when their owner is garbage; to be detached when it closes them itself."""
    finalizer = weakref.finalize(owner, _let_go, *threads)
    finalizer.atexit = False  # interpreter exit is the threads' own business, and within a bound
    return finalizer

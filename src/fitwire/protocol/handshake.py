"""The plain pair's handshake as a machine: when to ask, what counts as an answer, and what to answer.

The messages are ``sleap.message``'s, with an ``id`` added that an original ignores. Time is a number handed in; no
socket is known here.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Asking", "is_request", "reply_to"]

REQUEST, REPLY = "handshake request", "handshake reply"

ASK_SECONDS = 0.1
"""Between two requests, as the original; its first reply may leave before its socket knows that we listen."""
SETTLE_SECONDS = 0.04
"""From the connection of the other end's replies until its socket surely knows that we subscribe: a round trip, on a
machine where every thread has to wait for its turn."""
LINK_SECONDS = 0.5
"""How long a request waits for that connection; a peer may be made so that it connects only once it is asked."""
MAX_ID = 64
"""Characters of a request's id that a reply gives back."""


def is_request(message: dict[str, Any]) -> bool:
    """Whether a message asks for a handshake."""
    return message.get("type") == REQUEST


def reply_to(request: dict[str, Any]) -> dict[str, Any]:
    """What to answer a request with; its id goes back with it, if it has one.

    Example:
        >>> reply_to({"type": "handshake request", "id": "7f"})
        {'type': 'handshake reply', 'id': '7f'}
    """
    tag = request.get("id")
    return {"type": REPLY, "id": tag} if isinstance(tag, str) and len(tag) <= MAX_ID else {"type": REPLY}


class Asking:
    """One handshake, from its first request to its answer.

    A request goes out only once somebody listens, and once the way back is open: an original that is asked too early
    answers into the void, believes that it is connected, and may not answer again. When another receiver takes the
    place of the one that was asked, it all begins again.

    Args:
        tag: Tells the answers to this one from those to another.

    Example:
        >>> asking = Asking("7f")
        >>> asking.due(now=1.0, receiver=1, is_linked=True)
        {'type': 'handshake request', 'id': '7f'}
        >>> asking.is_answer({"type": "handshake reply", "id": "7f"}, at=1.1)
        True
    """

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._receiver = 0
        self._heard_since = 0.0
        self._first_asked: float | None = None
        self._ask_at = 0.0

    def due(self, now: float, *, receiver: int, is_linked: bool) -> dict[str, Any] | None:
        """The request to send now, if it is time for one.

        Args:
            now: Monotonic time, in seconds.
            receiver: A number for whoever has subscribed; 0 for nobody.
            is_linked: Whether the way back has been open for ``SETTLE_SECONDS``.
        """
        if receiver != self._receiver:
            self._receiver, self._heard_since = receiver, now
            self._first_asked, self._ask_at = None, now
        if not receiver or now < self._ask_at or not (is_linked or now - self._heard_since >= LINK_SECONDS):
            return None
        self._ask_at = now + ASK_SECONDS
        if self._first_asked is None:
            self._first_asked = now
        return {"type": REQUEST, "id": self._tag}

    def is_answer(self, message: dict[str, Any], at: float) -> bool:
        """Whether a message is the answer, and not one left over from another handshake.

        Args:
            message: As received.
            at: Monotonic time of its coming, in seconds. An original gives no id back; its answer counts when it came
                after the first request went.
        """
        if message.get("type") != REPLY or self._first_asked is None or at < self._first_asked:
            return False
        return message.get("id", self._tag) == self._tag

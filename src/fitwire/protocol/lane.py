"""One lane of a source: what comes next, what is under way, and going back where something was lost.

Knows positions and times; it does not know blocks, messages or the hub.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["Flight", "Lane", "Position"]

Position = tuple[int, int]
"""(sequence number, byte offset in its block) of what comes next."""

AGAIN = 0.2
"""Seconds before going back to the same place again: one loss makes many complaints."""
NEVER = -1e9


@dataclass(slots=True)
class Flight:
    """One message under way.

    Attributes:
        after: What comes next once it has landed.
        nbytes: Its size.
        sent: When it left.
        chunk: Whether it ends inside its block: such a one has landed when the hub holds it, the others when the hub
            has committed them.
    """

    after: Position
    nbytes: int
    sent: float
    chunk: bool


@dataclass(slots=True)
class Lane:
    """Where one lane stands.

    Attributes:
        next: What is to be sent next.
        have: Highest sequence number the hub has committed.
        flights: What is under way, in order.
        in_flight: Its bytes.
    """

    next: Position = (1, 0)
    have: int = 0
    flights: deque[Flight] = field(default_factory=deque[Flight])
    in_flight: int = 0
    _went_back: tuple[Position, float] = ((0, 0), NEVER)

    def start(self, have: int, position: Position) -> None:
        """Begin where a welcome says; what was under way is forgotten."""
        self.have, self.next, self.in_flight = have, position, 0
        self.flights.clear()
        self._went_back = ((0, 0), NEVER)

    def launch(self, flight: Flight) -> None:
        """A message has left."""
        self.flights.append(flight)
        self.in_flight += flight.nbytes
        self.next = flight.after

    def committed(self, have: int) -> bool:
        """The hub has committed up to ``have``; whether that is news."""
        if have <= self.have:
            return False
        self.have = have
        self.next = max(self.next, (have + 1, 0))
        return True

    def landed(self, position: Position, now: float) -> float | None:
        """Drop what has arrived from the flights, the hub's next being ``position``.

        Returns:
            How long the last of it took, in seconds; None when nothing has.
        """
        took = None
        while self.flights:
            flight = self.flights[0]
            if flight.after > (position if flight.chunk else (self.have + 1, 0)):
                break
            self.flights.popleft()
            self.in_flight -= flight.nbytes
            took = now - flight.sent
        return took

    def went_back_since(self, time: float) -> bool:
        """Whether it went back after ``time``."""
        return self._went_back[1] >= time

    def go_back(self, position: Position, now: float) -> bool:
        """Send from ``position`` on, again; False when there is nothing before ``next``, or it has just been done."""
        position = max(position, (self.have + 1, 0))  # an old complaint must not ask for what is trimmed
        if position >= self.next or (self._went_back[0] == position and now - self._went_back[1] <= AGAIN):
            return False
        self.next = position
        self._went_back = (position, now)
        while self.flights and self.flights[-1].after > position:
            self.in_flight -= self.flights.pop().nbytes
        return True

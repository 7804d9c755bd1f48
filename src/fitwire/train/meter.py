"""Takes the measure of fitwire's own cost, so that it can be shown beside what it watches.

The training thread pays for it only in the few calls that are timed: ``Probe.arm`` asks for the next one, five times a
second at most, by a flag which a call looks at anyway. The rest is counted on the I/O thread, which calls
:meth:`Probe.look` now and then. No socket is known here.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from fitwire.meter import Meter

__all__ = ["Probe"]

ARM_EVERY = 0.2
"""Seconds between two calls that are timed: of a thousand a second every two hundredth, so that the 99th percentile of
their cost knows nothing of it."""
TIMED = 75
"""Calls remembered: the median of so many is steady, and they are of the last fifteen seconds."""
MARK_EVERY = (0.05, 1.0)
"""Seconds between two marks of what was counted: at first, so that a short run has some, and later."""
MARKS = 16
"""Rates are of the last fifteen seconds, as often as the gauges are sent."""


def _nothing() -> None:
    return None


class Probe:
    """What is counted.

    Attributes:
        arm: Asks the run to time its next call; set by the run.
        sent: Bytes sent, counted by the I/O thread.
    """

    def __init__(self) -> None:
        self.arm: Callable[[], None] = _nothing
        self.sent = 0
        self._calls, self._armed = 0, -1e9
        self._timed: deque[int] = deque(maxlen=TIMED)
        self._marks: deque[tuple[float, int, int, float]] = deque(maxlen=MARKS)

    @property
    def has_timed(self) -> bool:
        """Whether a call was timed, so that there is something to tell."""
        return bool(self._timed)

    def timed(self, nanoseconds: int) -> None:
        """One call took so long; called on whatever thread logged."""
        self._timed.append(nanoseconds)

    def look(self, calls: int, now: float) -> None:
        """Called by the I/O thread now and then; asks for another call to be timed if there were any.

        Args:
            calls: Records taken from the queue so far.
            now: Monotonic time, seconds.
        """
        if calls != self._calls and now - self._armed >= ARM_EVERY:
            self._calls, self._armed = calls, now
            self.arm()
        marks = self._marks
        if not marks or now - marks[-1][0] >= min(max(MARK_EVERY[0], (now - marks[0][0]) / MARKS), MARK_EVERY[1]):
            marks.append((now, calls, self.sent, time.thread_time()))

    def read(self, queue: int, dropped: int) -> Meter:
        """How things stand; from any thread.

        Args:
            queue: Records accepted and not confirmed.
            dropped: Records given up.
        """
        timed, marks = list(self._timed), list(self._marks)
        log_us = statistics.median(timed) / 1000 if timed else float("nan")
        if len(marks) < 2:
            return Meter(log_us=log_us, queue=queue, dropped=dropped)
        (then, calls, sent, worked), (now, calls_now, sent_now, worked_now) = marks[0], marks[-1]
        span = now - then
        return Meter(
            log_us=log_us, step_share=min(log_us * 1e-6 * (calls_now - calls) / span, 1.0), queue=queue,
            bytes_per_second=(sent_now - sent) / span, dropped=dropped, io_share=min((worked_now - worked) / span, 1.0),
        )  # fmt: skip

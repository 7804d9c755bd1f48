"""What being watched costs a training: measured there, sent as gauges, shown by every view. Pure.

It knows no thread, no clock and no view.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

__all__ = ["PREFIX", "Meter"]

PREFIX = "fitwire/"
"""Of the gauges that carry it."""


@dataclass(frozen=True, slots=True)
class Meter:
    """What being watched costs a training, of late.

    Attributes:
        log_us: One ``log`` call on the training thread, µs: the median of those that were timed, five a second at
            most; NaN before the first.
        step_share: Share of the training's time that its ``log`` calls take, 0 to 1; with one call a step, of a step.
            NaN before the first was timed.
        queue: Records accepted that the hub's store has not confirmed yet.
        bytes_per_second: Sent; with ``wire="pair"`` those of arrays alone.
        dropped: Records given up under pressure since the start.
        io_share: Share of a core that fitwire's own thread takes to pack and send, 0 to 1.

    Example:
        >>> print(Meter(0.81, 0.0002, 3, 12_400.0, 0, 0.004))
        cost 0.81 µs/call (0.02 % of the time) · I/O thread 0.4 % of a core · queue 3 · 12 kB/s
    """

    log_us: float = math.nan
    step_share: float = math.nan
    queue: int = 0
    bytes_per_second: float = 0.0
    dropped: int = 0
    io_share: float = 0.0

    def gauges(self) -> dict[str, float]:
        """As it travels: ``fitwire/log_us`` and so on; what is not known yet is left out."""
        told = {PREFIX + field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {name: value for name, value in told.items() if math.isfinite(value)}

    @classmethod
    def of_gauges(cls, latest: Callable[[str], float]) -> Meter | None:
        """Read it back.

        Args:
            latest: Gives the newest value of a gauge; NaN when there is none.

        Returns:
            None when nothing was told.
        """
        told = {field.name: latest(PREFIX + field.name) for field in fields(cls)}
        if all(value != value for value in told.values()):
            return None
        return cls(
            told["log_us"], told["step_share"], _whole(told["queue"]), _known(told["bytes_per_second"]),
            _whole(told["dropped"]), _known(told["io_share"]),
        )  # fmt: skip

    def __str__(self) -> str:
        parts: list[str] = []
        if math.isfinite(self.log_us):
            share = "" if not math.isfinite(self.step_share) else f" ({_percent(self.step_share)} of the time)"
            parts.append(f"cost {self.log_us:.2g} µs/call{share}")
        else:
            parts.append("cost not measured yet")
        parts.append(f"I/O thread {_percent(self.io_share)} of a core")
        parts.append(f"queue {self.queue:,}")
        parts.append(_rate(self.bytes_per_second))
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped")
        return " · ".join(parts)


def _whole(value: float) -> int:
    return int(min(max(value, 0.0), 2.0**53)) if value == value else 0


def _known(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %"


def _rate(per_second: float) -> str:
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if per_second >= size:
            value = per_second / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{per_second:.0f} B/s"

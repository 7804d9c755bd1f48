"""CPU, memory and GPU of the training process and its machine, every 15 seconds, on a thread of its own.

psutil and, where it is installed, nvidia-ml-py; what cannot be read is left out, never an error.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from fitwire.transport.process import spawn

__all__ = ["PERIOD", "SystemGauges", "read_gauges"]

PERIOD = 15.0
"""Seconds between two readings."""
FIRST = 1.0
"""Seconds before the first: a start-up is busy enough."""


def read_gauges(process: Any) -> dict[str, float]:
    """One reading.

    Args:
        process: A ``psutil.Process``.

    Returns:
        ``system/cpu`` and ``process/cpu`` in percent (of one core for the process), ``system/memory`` in percent,
        ``process/memory`` in bytes, and for each GPU ``gpu<i>/load`` in percent, ``gpu<i>/memory`` in bytes.
    """
    import psutil

    found: dict[str, float] = {}
    try:
        found["system/cpu"] = float(psutil.cpu_percent())
        found["system/memory"] = float(psutil.virtual_memory().percent)
        found["process/cpu"] = float(process.cpu_percent())
        found["process/memory"] = float(process.memory_info().rss)
    except (psutil.Error, OSError):
        pass
    return found | _gpus()


@functools.cache
def _nvml() -> Any:
    """nvidia-ml-py, ready to be asked, or None; a package that is not there is searched for once."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

        nvml: Any = pynvml
        nvml.nvmlInit()
        return nvml
    except Exception:  # no driver, no card, no package: each has errors of its own, and none is the training's
        return None


def _gpus() -> dict[str, float]:
    found: dict[str, float] = {}
    nvml = _nvml()
    if nvml is None:
        return found
    try:
        for index in range(int(nvml.nvmlDeviceGetCount())):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found[f"gpu{index}/load"] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            found[f"gpu{index}/memory"] = float(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    except Exception:  # a card that was lost or is busy with a reset
        pass
    return found


class SystemGauges:
    """The thread that reads.

    Args:
        told: Takes each reading, on that thread.
        period: Seconds between two.
    """

    def __init__(self, told: Callable[[dict[str, float]], None], period: float = PERIOD) -> None:
        self._told, self._period = told, period
        self._stop = threading.Event()
        self._thread = spawn("gauges", self._work)

    def _work(self) -> None:
        import psutil

        process = psutil.Process()
        process.cpu_percent()  # shares are of the time since the last call; the first gives 0.0
        psutil.cpu_percent()
        if self._stop.wait(min(FIRST, self._period)) or sys.is_finalizing():
            return
        while True:
            values = read_gauges(process)
            if values:
                self._told(values)
            if self._stop.wait(self._period) or sys.is_finalizing():
                return

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()

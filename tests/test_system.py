"""CPU, memory and GPU, read beside the training."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import psutil
import pytest

from fitwire.train import system
from fitwire.train.system import SystemGauges, read_gauges
from helpers import until


def test_one_reading_has_the_machine_and_the_process() -> None:
    """In percent and bytes."""
    found = read_gauges(psutil.Process())

    assert set(found) >= {"system/cpu", "system/memory", "process/cpu", "process/memory"}
    assert 0 < found["system/memory"] <= 100 and found["process/memory"] > 10**6


def test_a_process_that_cannot_be_read_is_left_out() -> None:
    """Never an error."""

    class Gone:
        def cpu_percent(self) -> float:
            raise psutil.NoSuchProcess(1)

    assert "process/cpu" not in read_gauges(Gone())


def test_gpus_are_read_where_the_package_is_and_a_broken_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each card by its number; what the driver raises stays here."""
    broken = False

    def load(handle: int) -> Any:
        if broken:
            raise RuntimeError("NVML: GPU is lost")
        return types.SimpleNamespace(gpu=40 + handle)

    fake: Any = types.ModuleType("pynvml")
    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetCount = lambda: 2
    fake.nvmlDeviceGetHandleByIndex = lambda index: index
    fake.nvmlDeviceGetUtilizationRates = load
    fake.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(used=2**30)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    system._nvml.cache_clear()  # pyright: ignore[reportPrivateUsage]
    try:
        found = read_gauges(psutil.Process())
        broken = True
        lost = read_gauges(psutil.Process())
    finally:
        system._nvml.cache_clear()  # pyright: ignore[reportPrivateUsage]

    assert found["gpu0/load"] == 40.0 and found["gpu1/load"] == 41.0 and found["gpu1/memory"] == 2.0**30
    assert not [name for name in lost if name.startswith("gpu")] and lost["system/memory"] > 0


def test_gauges_come_from_a_thread_of_their_own_until_stopped() -> None:
    """The training thread reads nothing."""
    heard: list[tuple[int, dict[str, float]]] = []
    gauges = SystemGauges(lambda values: heard.append((threading.get_ident(), values)), period=0.01)
    until(lambda: len(heard) >= 2)
    gauges.stop()
    gauges._thread.join(30)  # pyright: ignore[reportPrivateUsage]

    assert not gauges._thread.is_alive()  # pyright: ignore[reportPrivateUsage]
    assert threading.get_ident() not in {thread for thread, _ in heard}

"""What being watched costs: how it is said, carried and read back, and how it is measured."""

from __future__ import annotations

import itertools
import math
import threading

import pytest

from fitwire.meter import PREFIX, Meter
from fitwire.train import meter as measuring
from fitwire.train.meter import ARM_EVERY, MARKS, Probe

FULL = Meter(0.81, 0.0002, 3, 12_400.0, 0, 0.004)


@pytest.mark.parametrize(
    ("meter", "sentence"),
    [
        (FULL, "cost 0.81 µs/call (0.02 % of the time) · I/O thread 0.4 % of a core · queue 3 · 12 kB/s"),
        (Meter(), "cost not measured yet · I/O thread 0 % of a core · queue 0 · 0 B/s"),
        (Meter(12.4), "cost 12 µs/call · I/O thread 0 % of a core · queue 0 · 0 B/s"),
        (
            Meter(1.0, 0.25, 12_345, 2.5e6, 4096, 0.5),
            "cost 1 µs/call (25 % of the time) · I/O thread 50 % of a core · queue 12,345 · 2.5 MB/s · 4,096 dropped",
        ),
        (Meter(1.0, 0.0, 0, 3e9), "cost 1 µs/call (0 % of the time) · I/O thread 0 % of a core · queue 0 · 3.0 GB/s"),
    ],
)
def test_the_cost_is_one_line(meter: Meter, sentence: str) -> None:
    """With its units; what is not known is not said, and drops only when there are any."""
    assert str(meter) == sentence


@pytest.mark.parametrize("meter", [FULL, Meter(5.0, 0.5, 2, 1.0, 7, 0.25)])
def test_it_travels_as_gauges_and_is_read_back(meter: Meter) -> None:
    """Each under its own name."""
    told = meter.gauges()

    assert set(told) == {
        PREFIX + name for name in ("log_us", "step_share", "queue", "bytes_per_second", "dropped", "io_share")
    }
    assert Meter.of_gauges(lambda name: told.get(name, math.nan)) == meter


def test_what_is_not_known_is_left_out_and_what_nobody_told_is_none() -> None:
    """A run that has timed no call yet; one that tells of no meter; wild numbers of a peer."""
    told = Meter(queue=4).gauges()
    back = Meter.of_gauges(lambda name: told.get(name, math.nan))
    wild = Meter.of_gauges(lambda name: math.inf)

    assert "fitwire/log_us" not in told and back is not None
    assert (back.queue, math.isnan(back.log_us), back.io_share) == (4, True, 0.0)
    assert Meter.of_gauges(lambda name: math.nan) is None
    assert wild is not None and str(wild)


# -- measuring


def test_rates_are_of_the_time_between_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred calls of 2 µs a second; 1,000 bytes a second; a tenth of a core."""
    worked = 0.0
    monkeypatch.setattr(measuring.time, "thread_time", lambda: worked)
    probe = Probe()
    for nanoseconds in (1000, 2000, 900_000):  # one of three met a busy core: the median knows
        probe.timed(nanoseconds)
    for second in range(4):
        worked = 0.1 * second
        probe.sent = 1000 * second
        probe.look(100 * second, 50.0 + second)
    meter = probe.read(5, 6)

    assert (meter.log_us, meter.queue, meter.dropped) == (2.0, 5, 6)
    assert meter.step_share == pytest.approx(2e-6 * 100)
    assert (meter.bytes_per_second, meter.io_share) == (pytest.approx(1000.0), pytest.approx(0.1))


def test_rates_are_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of silence after a flood is told as silence."""
    monkeypatch.setattr(measuring.time, "thread_time", lambda: 0.0)
    probe = Probe()
    probe.timed(1000)
    probe.sent = 10**9
    for look in range(20 * MARKS):
        probe.look(10_000, look / 10)
        probe.sent += 0 if look else 10**9
    meter = probe.read(0, 0)

    assert (meter.bytes_per_second, meter.step_share) == (0.0, 0.0)


def test_a_short_run_has_rates_too() -> None:
    """A fifth of a second, looked at every 20 ms."""
    probe = Probe()
    probe.timed(1000)
    for look in range(10):
        probe.sent = 100 * look
        probe.look(look, look * 0.02)

    assert probe.read(0, 0).bytes_per_second == pytest.approx(5000.0)


def test_before_anything_was_seen_there_is_nothing_to_tell() -> None:
    """No division by a time that has not passed."""
    probe = Probe()
    assert str(probe.read(0, 0)) == str(Meter()) and not probe.has_timed
    probe.look(1, 0.0)
    probe.look(2, 0.0)

    assert probe.read(0, 0).io_share == 0.0


def test_a_call_is_timed_now_and_then_and_only_where_calls_are_made() -> None:
    """Five a second at most; none of a training that logs nothing."""
    asked: list[float] = []
    probe = Probe()
    now = 0.0
    probe.arm = lambda: asked.append(now)
    for look in range(500):
        now = look * 0.02
        probe.look(min(look, 250), now)  # after five seconds no more is logged

    assert 5 / ARM_EVERY * 0.8 <= len(asked) <= 5 / ARM_EVERY + 2
    assert asked[-1] <= 5.0 + ARM_EVERY
    assert min(later - before for before, later in itertools.pairwise(asked)) >= ARM_EVERY - 1e-9


def test_reading_it_while_it_is_being_taken_never_fails() -> None:
    """Any thread may ask."""
    probe, over = Probe(), threading.Event()

    def work() -> None:
        count = 0
        while not over.is_set():
            count += 1
            probe.timed(count)
            probe.look(count, count / 10)

    thread = threading.Thread(target=work)
    thread.start()
    meters = [probe.read(0, 0) for _ in range(2000)]
    over.set()
    thread.join(30)

    assert all(meter.io_share <= 1 for meter in meters)

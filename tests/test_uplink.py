"""The I/O thread: through a real socket to a hub that comes, goes, is slow, refuses, or never was."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np
import pytest

from fitwire.events import Dropped, EpochEnded, Log, MetricRows, Metrics, RunStarted, Sample, decode_events
from fitwire.journal.layout import About
from fitwire.journal.reader import Journal as Reader
from fitwire.protocol.blocks import Kind, decode_message
from fitwire.protocol.sink import reject
from fitwire.train import uplink as module
from fitwire.train.journal import Journal
from fitwire.train.outlet import Mark, Record
from fitwire.train.pending import LateRow
from fitwire.train.settings import new_run_id, next_identity
from fitwire.train.uplink import Uplink, shed
from fitwire.transport.address import default_address
from fitwire.transport.zmq import Router
from helpers import until
from test_packer import ME, row
from tinyhub import Store, TinyHub, tiny_hub


class Told:
    """Where warnings go."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.sentences: list[str] = []

    def __call__(self, kind: str, sentence: str) -> None:
        self.kinds.append(kind)
        self.sentences.append(sentence)


def opened(backlog: Journal | None = None, told: Told | None = None) -> Uplink:
    uplink = Uplink(next_identity(new_run_id(), 0), {"name": "x"}, default_address(), told or Told(), backlog)
    uplink.start()
    return uplink


def flushed(uplink: Uplink, timeout: float = 60.0) -> bool:
    mark = Mark(threading.Event())
    uplink.queue.append(mark)
    assert mark.reached.wait(timeout)
    return mark.delivered


def test_20000_records_at_full_speed_arrive_in_order_at_a_slow_hub() -> None:
    """Nothing is lost, nothing doubled, and what was acknowledged is forgotten."""
    with tiny_hub(pause=0.002) as hub:
        uplink = opened()
        for i in range(20_000):
            uplink.queue.append(row(i, {"loss": i * 0.5}))
        peak = 0
        mark = Mark(threading.Event())
        uplink.queue.append(mark)
        while not mark.reached.wait(0.005):
            peak = max(peak, uplink.backlog.nbytes)

        assert mark.delivered
        assert 0 < peak < 2**21
        assert uplink.backlog.nbytes == 0
        assert [event.step for event in hub.store.metrics] == list(range(20_000))
        delivery = uplink.close("finished")
        assert (delivery.delivered, delivery.left, delivery.dropped, delivery.complete) == (20_000, 0, 0, True)


def test_a_hub_that_is_killed_and_started_again_gets_everything() -> None:
    """Across three kills: what it has is not sent again, what is missing is."""
    store = Store()
    uplink = opened()
    for life in range(4):
        hub = TinyHub(store=store)
        for i in range(life * 3000, (life + 1) * 3000):
            uplink.queue.append(row(i, {"loss": float(i)}))
            if i % 500 == 0:
                uplink.queue.append(Sample(time=0.0, step=i, name="m", arrays={"image": np.full((1, 300, 1000), i)}))
        if life == 3:
            assert flushed(uplink)
        else:
            until(lambda start=life * 3000: len(store.metrics) > start)
        hub.kill()
        uplink.queue.append(Log(time=0.0, text=f"the hub was killed {life}"))
    with tiny_hub(store=store):
        assert flushed(uplink)
        uplink.close("finished")

    assert [event.step for event in store.metrics] == list(range(12_000))
    samples = store.of(Sample)
    assert [event.step for event in samples] == list(range(0, 12_000, 500))
    assert all((event.arrays["image"] == event.step).all() for event in samples)
    assert [event.text[-1] for event in store.of(Log)] == ["0", "1", "2", "3"]


def test_without_a_hub_memory_is_bounded_and_a_late_hub_learns_what_is_missing() -> None:
    """The budget is kept; tombstones stand for the rest, epochs and events are all there."""
    uplink = opened(Journal(ME, record_bytes=300_000, bulk_bytes=100_000))
    uplink.queue.append(RunStarted(time=0.0, name="x"))
    for i in range(60_000):
        uplink.queue.append(row(i, {"loss": float(i), "accuracy": 0.5}))
        if i % 6000 == 0:
            uplink.queue.append(row(i, {"val_loss": 0.5}, epoch=i // 6000, per="epoch"))
            uplink.queue.append(Sample(time=0.0, step=i, name="m", arrays={"image": np.zeros((1, 30_000), np.uint8)}))
    until(lambda: not uplink.queue)
    assert uplink.backlog.nbytes < 500_000
    with tiny_hub() as hub:
        assert flushed(uplink)
        uplink.close("finished")

    rows = hub.store.metrics
    assert 0 < len(rows) < 60_000
    assert len(rows) + sum(e.count for e in hub.store.of(Dropped) if e.what == "metrics") == 60_000
    assert [event.step for event in rows] == list(range(60_000 - len(rows), 60_000))
    assert [event.epoch for event in hub.store.epochs] == list(range(10))
    assert len(hub.store.started) == 1
    assert len(hub.store.of(Sample)) + sum(e.count for e in hub.store.of(Dropped) if e.what == "sample") == 10


def test_closing_without_a_hub_is_quick_and_says_what_is_left() -> None:
    """Nobody was ever there: a short look around, no more."""
    uplink = opened()
    uplink.queue.extend([row(i, {"x": 1.0}) for i in range(1000)])
    started = time.monotonic()
    delivery = uplink.close("finished")

    assert time.monotonic() - started < module.DRAIN
    assert (delivery.delivered, delivery.left, delivery.complete) == (0, 1000, False)


def test_closing_after_the_hub_has_gone_is_bounded() -> None:
    """It might come back, but not for ever."""
    uplink = opened()
    with tiny_hub():
        assert uplink.greeted.wait(60)
    uplink.queue.append(row(0, {"x": 1.0}))
    started = time.monotonic()
    delivery = uplink.close("finished")

    assert time.monotonic() - started < 10 * module.DRAIN
    assert (delivery.left, delivery.complete) == (1, False)


def test_closing_twice_is_once() -> None:
    """The second call finds it done."""
    with tiny_hub() as hub:
        uplink = opened()
        uplink.queue.append(row(0, {"x": 1.0}))
        first = uplink.close("failed")

        assert uplink.close("finished") == first
        assert first.complete
        assert [sink.status for sink in hub.sinks.values()] == ["failed"]


def test_a_row_whose_device_is_not_done_holds_back_what_follows_it() -> None:
    """Order is kept; once settled all of it goes."""
    with tiny_hub() as hub:
        uplink = opened()
        values: dict[str, Any] = {"x": "unread"}
        late = LateRow(row(0, values))
        uplink.queue.append(late)
        uplink.queue.append(row(1, {"x": 1.0}))
        assert uplink.greeted.wait(60)
        time.sleep(5 * module.LOOK)
        assert hub.store.metrics == []
        values["x"] = 0.5
        late.settled = True
        assert flushed(uplink)
        uplink.close("finished")

    assert [event.values["x"] for event in hub.store.metrics] == [0.5, 1.0]


class Refusing(TinyHub):
    """Answers every hello with the same refusal."""

    reason, fields = "superseded", {"newer": 77}

    def _turn(self, router: Router, now: float) -> None:
        while (found := router.receive()) is not None:
            message = decode_message(found[1])
            if message.kind == Kind.HELLO:
                router.send(found[0], reject(message.sender, self.reason, **self.fields))


@pytest.mark.parametrize(
    ("reason", "kind", "says"),
    [("superseded", "superseded", "incarnation 77"), ("auth", "refused by the hub", "auth")],
)
def test_a_refused_run_says_so_once_and_keeps_nothing(reason: str, kind: str, says: str) -> None:
    """What is logged from then on does not pile up, and whoever waits is told that it is in vain."""
    told = Told()
    hub = Refusing()
    hub.reason = reason
    uplink = opened(told=told)
    until(lambda: told.kinds)
    uplink.queue.extend([row(i, {"x": 1.0}) for i in range(1000)])

    assert not flushed(uplink)
    until(lambda: not uplink.queue)
    assert told.kinds == [kind] and says in told.sentences[0]
    delivery = uplink.close("finished")
    hub.kill()
    assert (delivery.delivered, delivery.left) == (0, 1000)


@pytest.mark.parametrize("reason", ["superseded", "auth"])
def test_a_refused_run_goes_on_writing_its_journal(reason: str) -> None:
    """What it was set aside with, and what it says afterwards, is there for a courier."""
    told = Told()
    hub = Refusing()
    hub.reason = reason
    sender = next_identity(new_run_id(), 0)
    uplink = Uplink(sender, {"name": "x"}, default_address(), told, about=About(sender))
    uplink.start()
    uplink.queue.append(row(0, {"x": 0.0}))
    until(lambda: told.kinds)
    uplink.queue.extend([row(i, {"x": float(i)}) for i in range(1, 1000)])
    until(lambda: not uplink.queue)
    uplink.queue.append(row(1000, {"x": 1000.0}))

    delivery = uplink.close("finished")
    hub.kill()
    with Reader(delivery.journal) as journal:
        steps: list[float] = []
        while (block := journal.read(0, len(steps) + 1)) is not None:
            for _, event in decode_events(decode_message(block.frames)):
                assert isinstance(event, MetricRows)
                steps.extend(event.columns[0])

    assert (delivery.left, delivery.kept, delivery.complete) == (1001, 1001, False)
    assert steps == list(range(1001))


def test_a_fault_of_ours_is_told_and_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread does not die in silence; a flush returns, the queue stays empty, closing is quick."""

    def broken(*_: Any) -> None:
        raise RuntimeError("a fault")

    told = Told()
    uplink = opened(told=told)
    monkeypatch.setattr(uplink._packer, "add", broken)  # pyright: ignore[reportPrivateUsage]
    uplink.queue.append(row(0, {"x": 1.0}))
    until(lambda: told.kinds)
    for i in range(100):
        uplink.queue.append(row(i, {"x": 1.0}))

    assert not flushed(uplink)
    until(lambda: not uplink.queue)
    assert told.kinds == ["uplink"] and "RuntimeError: a fault" in told.sentences[0]
    assert not uplink.close("finished").complete


def test_a_queue_that_grows_faster_than_it_is_packed_is_cut_with_tombstones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest batch metrics go; events, epochs, marks and their order stay, and every record is accounted for."""
    monkeypatch.setattr(module, "MAX_QUEUE", 2000)
    monkeypatch.setattr(module, "STONE", 300)
    queue: deque[Record] = deque()
    for i in range(3000):
        queue.append(row(i, {"x": 1.0}))
        if i % 1000 == 500:
            queue.append(row(i, {"v": 1.0}, epoch=i // 1000, per="epoch"))
            queue.append(Log(time=0.0, text=str(i)))
    mark = Mark(threading.Event())
    queue.insert(10, mark)
    total = len(queue)
    kept = shed(queue)

    assert len(queue) == 1000
    gone = sum(record.count for record in kept if isinstance(record, Dropped))
    assert gone + sum(not isinstance(record, Dropped) for record in kept) + len(queue) == total
    assert [type(r).__name__ for r in kept if not isinstance(r, Dropped)] == ["Mark", "tuple", "Log", "tuple", "Log"]
    assert kept[0].count == 10 and max(r.count for r in kept if isinstance(r, Dropped)) == 300  # type: ignore[union-attr]


def test_a_cut_queue_reaches_the_hub_with_its_tombstones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through packer, backlog and socket: numbers without a hole."""
    monkeypatch.setattr(module, "MAX_QUEUE", 10_000)
    with tiny_hub() as hub:
        uplink = Uplink(next_identity(new_run_id(), 0), {"name": "x"}, default_address(), Told())
        uplink.queue.extend([row(i, {"x": 1.0}) for i in range(30_000)])
        uplink.start()
        assert flushed(uplink)
        delivery = uplink.close("finished")

    rows = hub.store.metrics
    assert len(rows) in (4999, 5000)  # the mark may have come first
    assert isinstance(rows[0], Metrics) and rows[-1].step == 29_999
    assert hub.store.given_up == 30_000 - len(rows) == delivery.dropped
    assert delivery.delivered == 30_000 and delivery.complete


def test_alone_it_makes_fewer_blocks() -> None:
    """Without a hub nobody waits: rows of a slow loop share a block, so that a day of it fits in memory."""
    uplink = opened()
    for i in range(40):
        uplink.queue.append(row(i, {"x": 1.0}))
        time.sleep(0.005)
    uplink.close("finished")
    blocks, seq = 0, 1
    while (block := uplink.backlog.read(0, seq)) is not None:
        blocks, seq = blocks + 1, block.last + 1

    assert seq == 41
    assert blocks <= 3


def test_an_epoch_and_a_batch_keep_their_kinds() -> None:
    """As events at the hub."""
    with tiny_hub() as hub:
        uplink = opened()
        uplink.queue.append(row(5, {"val_loss": 0.25}, epoch=0, per="epoch"))
        assert flushed(uplink)
        uplink.close("finished")

    assert hub.store.epochs == [EpochEnded(time=5.0, step=5, epoch=0, values={"val_loss": 0.25})]

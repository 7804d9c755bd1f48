"""``wire="sleap"``: what a LossViewer of each generation shows of a training, and what it can do to it."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import Any

import pytest
import zmq

import fitwire
from fitwire.errors import AddressError, HandshakeTimeout, UsageError
from fitwire.train.settings import Settings
from fitwire.train.sleaplink import PACE, SleapUplink, sleap_addresses
from helpers import free_port, until
from sleaps import VERSIONS, Window, window

Ports = tuple[int, int]


@pytest.fixture
def ports() -> Ports:
    return free_port(), free_port()


def started(ports: Ports, **options: Any) -> fitwire.Run:
    return fitwire.init(f"tcp://127.0.0.1:{ports[0]},{ports[1]}", name="shown", wire="sleap", **options)


def train(run: fitwire.Run, epochs: int = 3, batches: int = 20, pause: float = 0.03, **names: str) -> int:
    """A loop of one's own; returns how many batches it did."""
    loss, val = names.get("loss", "train/loss"), names.get("val", "val/loss")
    done = 0
    for epoch in range(epochs):
        for batch in range(batches):
            run.log({loss: 1 / (1 + done), "acc": 0.5}, epoch=epoch, batch=batch)
            done += 1
            time.sleep(pause)
            if run.stop_requested:
                return done
        run.end_epoch({loss: 0.5 / (epoch + 1), val: math.nan if epoch == 0 else 0.25 / epoch}, epoch=epoch)
    return done


@pytest.mark.parametrize("version", VERSIONS)
def test_each_generation_of_window_draws_batches_training_and_validation(ports: Ports, version: str) -> None:
    """No message raises in it; the last batch of each epoch is there, and a NaN in the validation is left out."""
    with window(version, ports) as viewer:
        with started(ports, wait=30) as run:
            train(run)
        until(lambda: viewer.ends)

        assert viewer.errors == [] and viewer.epoch_size == 20 and not viewer.running
        assert viewer.points["train"] == [(20, 0.5), (40, 0.25), (60, 0.5 / 3)]
        assert viewer.points["val"] == [(40, 0.25), (60, 0.125)]
        assert {39, 59} <= {x for x, _ in viewer.points["batch"]}
        assert [(m["epoch"], m["batch"]) for m in viewer.of("batch_end") if m["batch"] == 19] == [
            (e, 19) for e in range(3)
        ]


def test_a_window_that_opens_late_and_one_that_opens_again_show_it_all(ports: Ports) -> None:
    """``train_begin`` is held, and said to each: without it a window shows nothing for the whole run."""
    run = started(ports)
    working = threading.Thread(target=train, args=(run, 30, 10, 0.02))
    working.start()
    time.sleep(1.0)
    for version in ("1.5.2", "1.6.6"):
        with window(version, ports) as viewer:
            until(lambda: len(viewer.points["train"]) > 4)
            assert viewer.messages[0]["event"] == "train_begin" and viewer.errors == []
            assert viewer.points["train"][0][0] == viewer.epoch_size == 10
    working.join(60)
    run.finish()


def test_a_window_that_is_busy_while_training_begins_misses_nothing(ports: Ports) -> None:
    """It is bound but does not read, as a frozen one: PUB would lose what is said meanwhile."""
    with window("1.4.1", ports, reads=False) as viewer, started(ports) as run:
        train(run, epochs=1, batches=20)
        viewer.reading.set()
        until(lambda: viewer.points["train"])
        assert viewer.messages[0]["event"] == "train_begin" and viewer.errors == []


def test_no_more_is_said_than_a_window_can_follow(ports: Ports) -> None:
    """A loop of a thousand batches a second is shown at 40 messages a second, up to its last batch and its end."""
    with window("1.6.6", ports) as viewer:
        with started(ports, wait=30) as run:
            train(run, epochs=4, batches=500, pause=0.001)
        until(lambda: viewer.ends)
        span = viewer.times[-1] - viewer.times[0]

        assert len(viewer.messages) - 1 <= span / PACE * 1.2 + 3
        assert len(viewer.messages) > span / PACE / 4
        assert [m["epoch"] for m in viewer.of("batch_end") if m["batch"] == 499] == [0, 1, 2, 3]
        assert len(viewer.of("epoch_end")) == 4


def test_what_is_said_is_plain_json(ports: Ports) -> None:
    """jsonpickle, which the window decodes with, finds nothing in it to make."""
    with window("1.6.6", ports) as viewer:
        with started(ports, wait=30) as run:
            run.log({"loss": 0.5, "py/object": 1.0, "n": 3}, epoch=0, batch=0)
            run.end_epoch({"loss": 0.5}, epoch=0)
        until(lambda: viewer.ends)

        assert "py/" not in json.dumps(viewer.messages)


# -- what a window can do


def test_stop_early_stops_the_loop_and_is_part_of_its_history(ports: Ports) -> None:
    """The button of an unmodified window; one press, one stop."""
    with window("1.6.6", ports) as viewer, started(ports, wait=30) as run:
        done: list[int] = []
        working = threading.Thread(target=lambda: done.append(train(run, epochs=1000, batches=10, pause=0.01)))
        working.start()
        until(lambda: len(viewer.points["batch"]) > 20)
        viewer.stop()
        working.join(30)

        assert done and done[0] < 10_000 and run.stop_requested


def test_set_lr_turns_the_knob_of_that_name(ports: Ports) -> None:
    """As SLEAP 1.4's controller knows it; a rate beyond the knob's bounds is refused, and training goes on."""
    with window("1.4.1", ports) as viewer, started(ports, wait=30) as run:
        lr = run.knob("lr", 1e-3, low=1e-6, high=1e-1)

        def turned() -> bool:
            viewer.send({"command": "set_lr", "lr": 1e-4})  # lost until the training's socket is there
            run.log({"loss": 1.0})
            return lr.value == 1e-4

        until(turned)
        viewer.send({"command": "set_lr", "lr": 5.0})
        for text in ("[]", "{", '{"py/object": "x"}', '{"command": "dance"}', '{"command": "set_lr", "lr": "x"}'):
            viewer.send(text)
        outlet = run._outlet
        assert isinstance(outlet, SleapUplink)
        until(lambda: sum(outlet.unknown.values()) == 5)
        run.apply()

        assert lr.value == 1e-4 and not run.stop_requested


def test_a_training_that_may_not_be_steered_does_not_listen(ports: Ports) -> None:
    """``control=False``: the window draws, and its button does nothing."""
    with window("1.6.6", ports) as viewer, started(ports, wait=30, control=False) as run:
        run.log({"loss": 1.0}, epoch=0, batch=0)
        until(lambda: viewer.points["batch"])
        viewer.stop()
        time.sleep(0.3)

        assert not run.stop_requested


# -- without a window, and with a wrong one


def test_training_does_not_wait_for_a_window(ports: Ports) -> None:
    """There is none: nothing is said, and the end takes a moment."""
    begun = time.monotonic()
    with started(ports) as run:
        for _ in range(1000):
            run.log({"loss": 1.0})
        assert not run.flush(0.1)

    assert time.monotonic() - begun < 20
    with pytest.raises(HandshakeTimeout):
        started(ports, wait=0.1, strict=True)


def test_flush_waits_until_a_window_was_told(ports: Ports) -> None:
    """What was logged before it is on its way to the window then."""
    with window("1.6.6", ports) as viewer, started(ports, wait=30) as run:
        run.log({"loss": 0.125}, epoch=0, batch=0)
        assert run.flush(30)
        until(lambda: viewer.points["batch"] == [(0, 0.125)])


def test_ranks_but_the_first_say_nothing(ports: Ports) -> None:
    """A window knows no ranks: all of them at one port would draw over each other."""
    uplink = SleapUplink(f"127.0.0.1:{ports[0]},{ports[1]}", lambda kind, text: None, run="x", speaks=False)
    with window("1.6.6", ports) as viewer:
        uplink.start()
        uplink.queue.append((0.0, 0, 0, 0, "batch", {"loss": 1.0}))
        time.sleep(0.3)
        delivery = uplink.close("finished")

        assert viewer.messages == [] and (delivery.left, delivery.complete) == (0, True)


def test_a_window_that_stops_reading_does_not_hold_up_the_end(ports: Ports) -> None:
    """It took the first message, and then no more: closing has its bound all the same."""
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.RCVHWM, 1)
    sub.subscribe("")
    sub.bind(f"tcp://127.0.0.1:{ports[0]}")
    run = started(ports)
    until(lambda: sub.poll(20))
    train(run, epochs=20, batches=2, pause=0.001)
    begun = time.monotonic()
    run.finish()

    assert time.monotonic() - begun < 20
    context.destroy(linger=0)


def test_the_address_is_sleaps_own_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress at 9001, control at 9000."""
    assert sleap_addresses(None) == ("tcp://127.0.0.1:9001", "tcp://127.0.0.1:9000")
    monkeypatch.setenv("FITWIRE_ADDRESS", "tcp://127.0.0.1:5,6")
    assert sleap_addresses(None) == ("tcp://127.0.0.1:5", "tcp://127.0.0.1:6")
    with pytest.raises(AddressError):
        Settings(wire="sleap", address="tcp://127.0.0.1:9001")


@pytest.mark.parametrize("options", [{"mode": "offline"}, {"durability": "process"}])
def test_this_wire_keeps_no_journal(options: dict[str, Any]) -> None:
    """Who asks for one is told, before training begins."""
    with pytest.raises(UsageError, match="wire='sleap' keeps no journal"):
        Settings(wire="sleap", **options)


def test_the_stand_in_for_a_window_raises_where_the_originals_do(ports: Ports) -> None:
    """A message without the name that a generation reads is a KeyError, save in the last."""
    logs = {"1.4.1": {"train_loss": 1.0}, "1.5.2": {"loss": 1.0}, "1.6.6": {"loss": 1.0}}
    for version, values in logs.items():
        viewer = Window(version, (free_port(), free_port()))
        viewer.close()
        viewer.what = ""
        for event in ("batch_end", "epoch_end"):
            message = {"what": "", "event": event, "batch": 0, "logs": values}
            if version == "1.6.6":
                viewer._handle(message)
            else:
                with pytest.raises(KeyError):
                    viewer._handle(message)
        assert viewer.points["train"] == []

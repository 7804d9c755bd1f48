"""Commanding an unmodified SLEAP training with no hub and no window there."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import zmq

from fitwire.errors import AddressError, AddressInUse, UsageError
from fitwire.watch.commands import Outcome
from fitwire.watch.sleapctl import send
from helpers import free_port, until
from sleaps import NN, Callbacks, Keras, window

Ports = tuple[int, int]


@pytest.fixture
def ports() -> Ports:
    return free_port(), free_port()


def asked(ports: Ports, command: str = "stop", timeout: float = 30.0, **options: Any) -> Outcome:
    return send(command, f"tcp://127.0.0.1:{ports[0]},{ports[1]}", timeout, **options)


def training(trainer: Keras | NN, *, epochs: int = 1000, batches: int = 10) -> threading.Thread:
    thread = threading.Thread(target=trainer.fit, args=(epochs, batches), kwargs={"pause": 0.01})
    thread.start()
    return thread


@pytest.mark.parametrize("make", [Keras, NN])
def test_a_stop_is_applied_when_the_training_has_said_that_it_ended(ports: Ports, make: type[Keras] | type[NN]) -> None:
    """The originals do not acknowledge; their end is the answer."""
    trainer = make(ports)
    thread = training(trainer)
    outcome = asked(ports)
    thread.join(30)

    assert (outcome.status, outcome.name, outcome.ok) == ("applied", "stop", True) and trainer.stopped
    trainer.close()


def test_a_stop_is_held_until_the_training_listens(ports: Ports) -> None:
    """A window's, pressed that early, is lost for ever."""
    answers: list[Outcome] = []
    asking = threading.Thread(target=lambda: answers.append(asked(ports)))
    asking.start()
    time.sleep(0.5)
    trainer = Keras(ports)
    thread = training(trainer)
    asking.join(40)
    thread.join(30)

    assert answers[0].status == "applied" and trainer.stopped
    trainer.close()


def test_a_stop_that_nobody_listens_to_expires(ports: Ports) -> None:
    """And is not sent to a training that comes afterwards."""
    outcome = asked(ports, timeout=0.3)
    trainer = Keras(ports)
    time.sleep(0.3)
    trainer.fit(1, 5)

    assert outcome.status == "expired" and "nothing was sent" in outcome.reason and not trainer.stopped
    trainer.close()


def test_a_stop_reaches_a_training_that_looks_long_after(ports: Ports) -> None:
    """A batch may take a minute: what was sent waits in the training's own socket."""
    trainer = Keras(ports)
    time.sleep(0.3)
    outcome = asked(ports, timeout=1.0)
    time.sleep(1.0)
    trainer.obey()

    assert outcome.status == "accepted" and "does not answer" in outcome.reason and trainer.stopped
    trainer.close()


def test_the_learning_rate_is_set_once_the_training_has_shown_that_it_bears_it(ports: Ports) -> None:
    """SLEAP up to 1.4 under Keras 2, when an epoch has ended."""
    trainer = Keras(ports)
    thread = training(trainer, batches=30)
    outcome = asked(ports, "set", lr=1e-4)
    until(lambda: trainer.lr == 1e-4)
    asked(ports)
    thread.join(30)

    assert (outcome.status, outcome.before, outcome.after) == ("accepted", 1e-3, 1e-4)
    trainer.close()


@pytest.mark.parametrize(
    ("make", "why"),
    [(lambda p: Keras(p, keras=3), "would crash"), (NN, "no command but stop")],
    ids=["keras 3", "sleap-nn"],
)
def test_what_a_training_would_die_of_is_not_sent(ports: Ports, make: Any, why: str) -> None:
    """Not with force either."""
    trainer = make(ports)
    thread = training(trainer)
    outcomes = [asked(ports, "set", lr=1e-4, force=force) for force in (False, True)]
    stopped = asked(ports)
    thread.join(30)

    assert [o.status for o in outcomes] == ["refused", "refused"] and all(why in o.reason for o in outcomes)
    assert trainer.crashed is None and stopped.status == "applied"
    trainer.close()


def test_a_training_that_shows_nothing_is_not_set(ports: Ports) -> None:
    """It listens and says nothing: who knows what it would make of it."""
    trainer = Keras(ports)
    outcome = asked(ports, "set", timeout=1.0, lr=1e-4)

    assert outcome.status == "refused" and "not known whether" in outcome.reason and trainer.command() is None
    trainer.close()


def test_two_trainings_at_one_port_are_not_stopped_by_one_word(ports: Ports) -> None:
    """Both would obey; with force they do."""
    both = [Keras(ports), NN(ports)]
    threads = [training(trainer) for trainer in both]
    outcome = asked(ports)
    assert outcome.status == "refused" and "all would obey" in outcome.reason
    assert not any(trainer.stopped for trainer in both)
    assert asked(ports, force=True).ok
    for thread in threads:
        thread.join(30)

    assert all(trainer.stopped for trainer in both)
    for trainer in both:
        trainer.close()


def test_an_open_window_holds_the_ports_and_a_sentence_says_so(ports: Ports) -> None:
    """Its own button is there for it; what can be done is said."""
    with window("1.6.6", ports), pytest.raises(AddressInUse, match="a LossViewer of SLEAP's"):
        asked(ports, timeout=1.0)


def test_a_stop_does_not_need_the_port_of_progress(ports: Ports) -> None:
    """Somebody else may be reading there; then nothing is known of the end."""
    context = zmq.Context()
    reader = context.socket(zmq.SUB)
    reader.bind(f"tcp://127.0.0.1:{ports[0]}")
    trainer: Callbacks = NN(ports)
    thread = training(trainer)  # type: ignore[arg-type]
    outcome = asked(ports)
    thread.join(30)

    assert outcome.status == "accepted" and trainer.stopped
    with pytest.raises(AddressInUse):
        asked(ports, "set", lr=1e-4)
    context.destroy(linger=0)
    trainer.close()


@pytest.mark.parametrize(
    ("command", "options"), [("pause", {}), ("set", {}), ("set", {"lr": float("nan")}), ("set", {"lr": -1.0})]
)
def test_what_cannot_be_asked_is_said_at_once(ports: Ports, command: str, options: dict[str, Any]) -> None:
    """Before any port is bound."""
    with pytest.raises(UsageError):
        asked(ports, command, **options)
    with pytest.raises(AddressError):
        send("stop", "10.0.0.1:9001,9000")

"""A hub that hears SLEAP's own trainings: both dialects, how they end, and what they can be asked."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from fitwire import Monitor
from fitwire.errors import AddressInUse, UsageError
from fitwire.watch import sleapbridge
from fitwire.watch.states import State
from helpers import free_port, until
from sleaps import NN, Callbacks, Keras
from watching import Child, child

Ports = tuple[int, int]


@pytest.fixture
def ports() -> Ports:
    return free_port(), free_port()


def listen(ports: Ports) -> str:
    return f"tcp://127.0.0.1:{ports[0]},{ports[1]}"


@pytest.fixture
def monitor(ports: Ports) -> Iterator[Monitor]:
    with Monitor(wire="sleap", listen=listen(ports)) as made:
        yield made


def linked(trainer: Callbacks) -> None:
    """A moment for its sockets, which in the originals are open long before training begins."""
    time.sleep(0.3)


def test_a_training_of_sleap_up_to_1_4_is_a_run(monitor: Monitor, ports: Ports) -> None:
    """Each batch and each epoch is there, at its step, under SLEAP's own names; it ends as finished."""
    trainer = Keras(ports)
    linked(trainer)
    trainer.fit(3, 4)
    run = monitor.wait_for_run(timeout=30)
    run.wait(timeout=30)

    assert (run.state, run.project, run.info["framework"], run.badge) == (State.FINISHED, "sleap", "sleap", "complete")
    loss = run.curve("loss", per="batch")
    assert loss.steps.tolist() == list(range(12)) and loss.values.tolist() == [1 / (1 + i) for i in range(12)]
    assert run.curve("val_loss").values.tolist() == [0.5, 0.25, 0.5 / 3]
    assert run.curve("val_loss").epochs.tolist() == [0, 1, 2] and run.curve("val_loss").steps.tolist() == [3, 7, 11]
    trainer.close()


def test_a_training_of_sleap_nn_is_a_run_with_each_train_loss_in_its_own_epoch(monitor: Monitor, ports: Ports) -> None:
    """``train/loss``, which comes an epoch late, stands where it belongs, in the last epoch too."""
    trainer = NN(ports)
    linked(trainer)
    trainer.fit(3, 4)
    run = monitor.wait_for_run(timeout=30)
    run.wait(timeout=30)

    assert (run.state, run.info["framework"]) == (State.FINISHED, "sleap-nn")
    train = run.curve("train/loss", per="epoch")
    assert train.epochs.tolist() == [0, 1, 2] and train.values.tolist() == pytest.approx(trainer.losses)
    assert train.steps.tolist() == [3, 7, 11]
    assert run.curve("train/time").epochs.tolist() == [0, 1]  # no message says the last
    assert run.curve("train/confmaps").values.tolist() == [7.0, 8.0, 9.0]
    assert run.curve("val/loss").values.tolist() == [0.5, 0.25, 0.5 / 3]
    assert run.curve("loss", per="batch").steps.tolist() == list(range(12))
    assert "epoch" not in run.metrics
    trainer.close()


def test_two_trainings_at_once_are_two_runs(monitor: Monitor, ports: Ports) -> None:
    """They share a port and say no name; their connections tell them apart. A stop would reach both: refused."""
    first, second = Keras(ports), NN(ports)
    linked(second)
    threads = [threading.Thread(target=t.fit, args=(40, 5), kwargs={"pause": 0.01}) for t in (first, second)]
    for thread in threads:
        thread.start()
    until(lambda: len(monitor.runs) == 2)
    outcome = monitor.runs[0].stop(timeout=10)
    forced = monitor.runs[0].stop(force=True, timeout=10)
    for thread in threads:
        thread.join(30)
    until(lambda: all(run.state is State.FINISHED for run in monitor.runs))

    assert outcome.status == "refused" and "all would obey" in outcome.reason
    assert forced.ok and first.stopped and second.stopped
    assert {run.info["framework"] for run in monitor.runs} == {"sleap", "sleap-nn"}
    for run in monitor.runs:
        steps = run.curve("loss", per="batch").steps.tolist()
        assert steps == list(range(len(steps)))
    first.close()
    second.close()


def test_the_next_model_of_a_pipeline_is_another_run(monitor: Monitor, ports: Ports) -> None:
    """Two fits over one connection: each ``train_begin`` begins a run."""
    trainer = Keras(ports)
    linked(trainer)
    trainer.fit(1, 3)
    trainer.fit(1, 5)
    until(lambda: [run.state for run in monitor.runs] == [State.FINISHED] * 2)

    assert sorted(len(run.curve("loss", per="batch").values) for run in monitor.runs) == [3, 5]
    trainer.close()


# -- one that dies

TRAINER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from sleaps import NN, Keras
import time
ports = (int(sys.argv[2]), int(sys.argv[3]))
trainer = {{"nn": NN, "keras": Keras}}[sys.argv[1]](ports)
time.sleep(0.3)
sys.stdin.readline()
print("1", flush=True)
trainer.fit(int(sys.argv[4]), 10, pause=0.01, **({{"fail": True}} if sys.argv[5] == "fail" else {{}}))
print("2", flush=True)
time.sleep(float(sys.argv[6]))
"""


def trained(dialect: str, ports: Ports, *, epochs: int = 1000, how: str = "", stays: float = 0.0) -> Child:
    made = Child(TRAINER, dialect, str(ports[0]), str(ports[1]), str(epochs), how or "-", str(stays))
    made.say()
    made.read()
    return made


@pytest.mark.parametrize("dialect", ["keras", "nn"])
def test_a_training_that_is_killed_has_failed(monitor: Monitor, ports: Ports, dialect: str) -> None:
    """Its process is gone and no end was said: that is known soon, and the reason names the process."""
    made = trained(dialect, ports)
    try:
        run = monitor.wait_for_run(timeout=30)
        until(lambda: (run.progress.step or 0) > 10)
        made.kill()
        run.wait(timeout=60)
    finally:
        made.close()

    assert run.state is State.FAILED and str(made.pid) in run.reason and "killed" in run.reason


def test_a_training_that_raises_has_failed_though_its_process_lives(
    monitor: Monitor, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sleap-nn says nothing when training raises: its sockets close, and that is all."""
    monkeypatch.setattr(sleapbridge, "PATIENCE", 1.0)
    made = trained("nn", ports, epochs=2, how="fail", stays=60.0)
    try:
        run = monitor.wait_for_run(timeout=30)
        run.wait(timeout=60)
    finally:
        made.close()

    assert run.state is State.FAILED and "closed its connection without saying" in run.reason


def test_a_training_that_ended_and_whose_process_went_on_is_finished(monitor: Monitor, ports: Ports) -> None:
    """What comes after ``train_end``, a kill even, is no longer training."""
    made = trained("keras", ports, epochs=2, stays=60.0)
    try:
        run = monitor.wait_for_run(timeout=30)
        run.wait(timeout=60)
        made.kill()
        time.sleep(0.5)
    finally:
        made.close()

    assert run.state is State.FINISHED


def test_a_training_that_is_stopped_and_goes_on_is_one_run(
    monitor: Monitor, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is frozen long enough to lose its connection has not died, and goes on where it was."""
    monkeypatch.setattr(sleapbridge, "PATIENCE", 1.0)
    made = trained("keras", ports, epochs=200)
    try:
        run = monitor.wait_for_run(timeout=30)
        until(lambda: (run.progress.step or 0) > 10)
        os.kill(made.pid, signal.SIGSTOP)
        bridge = monitor._bridge
        assert bridge is not None
        until(lambda: bridge._gone)
        time.sleep(2.0)
        assert not run.ended
        os.kill(made.pid, signal.SIGCONT)
        before = run.progress.step or 0
        until(lambda: (run.progress.step or 0) > before + 50)
        assert len(monitor.runs) == 1 and not run.ended
    finally:
        made.close()


# -- what can be asked


@pytest.mark.parametrize("make", [Keras, NN])
def test_a_stop_is_applied_when_the_training_has_said_that_it_ended(
    monitor: Monitor, ports: Ports, make: type[Callbacks]
) -> None:
    """The outcome bears the step of the last batch, and is in the run's history before its end."""
    trainer = make(ports)
    linked(trainer)
    thread = threading.Thread(target=trainer.fit, args=(1000, 10), kwargs={"pause": 0.01})  # type: ignore[attr-defined]
    thread.start()
    run = monitor.wait_for_run(timeout=30)
    until(lambda: (run.progress.step or 0) > 5)
    outcome = run.stop()
    thread.join(30)
    run.wait(timeout=30)

    assert (outcome.status, outcome.name) == ("applied", "stop") and trainer.stopped
    assert outcome.step == run.progress.step and run.state is State.FINISHED
    assert [(c.what, c.status) for c in run.commands] == [("stop", "applied")]
    trainer.close()


def test_a_stop_is_held_until_the_training_listens(monitor: Monitor, ports: Ports) -> None:
    """Asked of a training that does not listen yet, it is obeyed once it does; one that never does lets it expire."""
    deaf = Keras(ports, control=False)
    linked(deaf)
    thread = threading.Thread(target=deaf.fit, args=(60, 10), kwargs={"pause": 0.005})
    thread.start()
    run = monitor.wait_for_run(timeout=30)
    expired = run.stop(timeout=1.0)
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(run.stop(timeout=30)))
    asking.start()
    time.sleep(0.5)
    deaf._sub.subscribe("")
    deaf._sub.connect(f"tcp://127.0.0.1:{ports[1]}")
    asking.join(40)
    thread.join(30)

    assert expired.status == "expired"
    assert deaf.stopped and getattr(answers[0], "status", None) == "applied"
    deaf.close()


def test_the_learning_rate_is_set_only_where_it_is_known_to_be_borne(monitor: Monitor, ports: Ports) -> None:
    """Keras 2 has shown itself when its first epoch has ended; before that the command is refused, with the reason."""
    trainer = Keras(ports)
    linked(trainer)
    thread = threading.Thread(target=trainer.fit, args=(1000, 20), kwargs={"pause": 0.02})
    thread.start()
    run = monitor.wait_for_run(timeout=30)
    early = run.set("lr", 1e-4)
    until(lambda: "lr" in run.controls)
    outcome = run.set("lr", 1e-4)
    until(lambda: trainer.lr == 1e-4)
    until(lambda: run.curve("lr", per="epoch").values[-1] == 1e-4)
    wrong = [run.set("momentum", 0.9).status, run.set("lr", -1.0).status, run.checkpoint().status]
    run.stop()
    thread.join(30)

    assert early.status == "refused" and "has not said its learning rate yet" in early.reason
    assert (outcome.status, outcome.before, outcome.after) == ("accepted", 1e-3, 1e-4)
    assert wrong == ["refused"] * 3 and trainer.crashed is None
    trainer.close()


@pytest.mark.parametrize(("make", "why"), [("keras3", "Keras 3 would crash"), ("nn", "knows no command but stop")])
def test_nothing_is_sent_that_a_training_would_die_of(monitor: Monitor, ports: Ports, make: str, why: str) -> None:
    """``set_lr`` ends SLEAP under Keras 3, and sleap-nn knows none: both are refused, and both train on."""
    trainer = Keras(ports, keras=3) if make == "keras3" else NN(ports)
    linked(trainer)
    thread = threading.Thread(target=trainer.fit, args=(1000, 5), kwargs={"pause": 0.01})
    thread.start()
    run = monitor.wait_for_run(timeout=30)
    until(lambda: (run.progress.epoch or 0) > 1)
    outcomes = [run.set("lr", 1e-4), run.pause(), run.request_sample(), run.do("anything")]
    stopped = run.stop()
    thread.join(30)

    assert [o.status for o in outcomes] == ["refused"] * 4 and why in outcomes[0].reason
    assert trainer.crashed is None and stopped.status == "applied"
    trainer.close()


# -- joining late, foreign words, taken ports


def test_a_watcher_that_comes_late_hears_the_rest(ports: Ports) -> None:
    """No ``train_begin`` was heard: there is a run all the same, which says from where on."""
    trainer = NN(ports)
    thread = threading.Thread(target=trainer.fit, args=(30, 5), kwargs={"pause": 0.01})
    thread.start()
    time.sleep(1.0)
    with Monitor(wire="sleap", listen=listen(ports)) as monitor:
        run = monitor.wait_for_run(timeout=30)
        thread.join(60)
        run.wait(timeout=30)
        train, val = run.curve("train/loss", per="epoch"), run.curve("val/loss")

        assert run.state is State.FINISHED and "steps are counted" in run.info["heard_from"]
        assert train.epochs[-1] == 29 or train.epochs[-1] == 28
        by_epoch = dict(zip(train.epochs.tolist(), train.values.tolist(), strict=True))
        assert by_epoch and all(value == pytest.approx(trainer.losses[int(epoch)]) for epoch, value in by_epoch.items())
        assert all(v == 0.5 / (e + 1) for e, v in zip(val.epochs.tolist(), val.values.tolist(), strict=True))
    trainer.close()


def test_what_is_no_word_of_a_trainer_is_counted_and_changes_nothing(monitor: Monitor, ports: Ports) -> None:
    """Handshakes, what only jsonpickle could make, bytes of any kind: the training beside them goes on."""
    trainer = Keras(ports)
    stranger = zmq.Context()
    pub = stranger.socket(zmq.PUB)
    pub.connect(f"tcp://127.0.0.1:{ports[0]}")
    linked(trainer)
    for text in (b"\xff", b"{", b"[1]", b"null", b'{"type": "handshake request"}', b'{"event": {"py/object": "os.x"}}',
                 b'{"py/reduce": [{"py/function": "os.abort"}, {"py/tuple": []}]}', b"[" * 5000):  # fmt: skip
        pub.send(text)
    pub.send_multipart([b'{"event": "nothing"}', b"second"])
    trainer.fit(1, 3)
    run = monitor.wait_for_run(timeout=30)
    run.wait(timeout=30)
    bridge = monitor._bridge
    assert bridge is not None
    until(lambda: sum(bridge.refused.values()) == 9)

    assert len(monitor.runs) == 1 and len(run.curve("loss", per="batch").values) == 3
    assert bridge.refused["fault"] == 0
    stranger.destroy(linger=0)
    trainer.close()


def test_ports_that_are_taken_are_a_sentence(monitor: Monitor, ports: Ports, tmp_path: Path) -> None:
    """A LossViewer that is open holds them; the second watcher says so, and leaves nothing behind."""
    with pytest.raises(AddressInUse, match="a LossViewer of SLEAP's"):
        Monitor(f"{tmp_path}/hub", store=f"{tmp_path}/store", wire="sleap", listen=listen(ports))
    with Monitor(f"{tmp_path}/hub", store=f"{tmp_path}/store") as again:
        assert again.is_hub


def test_where_to_listen_is_only_asked_of_sleaps_wire(tmp_path: Path) -> None:
    """Anything else is a mistake, and said before anything is opened."""
    with pytest.raises(UsageError, match="wire='sleap'"):
        Monitor(f"{tmp_path}/hub", listen="tcp://127.0.0.1:1,2")
    with pytest.raises(UsageError, match="PairedReceiver"):
        Monitor(f"{tmp_path}/hub", wire="pair")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no keys"):
        Monitor(f"{tmp_path}/hub", wire="sleap", listen="tcp://10.0.0.1:9001,9000")


def test_a_watcher_that_joined_a_hub_tells_that_hub(ports: Ports) -> None:
    """The hub is another process; the runs are there, and can be asked from there."""
    code = """
from fitwire.transport.address import resolve
from fitwire.watch.hub import Hub
hub = Hub(resolve(None))
print("0", flush=True)
input()
hub.close()
"""
    with child(code) as hub:
        hub.read()
        with Monitor(wire="sleap", listen=listen(ports)) as joined, Monitor() as other:
            assert not joined.is_hub and not other.is_hub
            trainer = NN(ports)
            linked(trainer)
            thread = threading.Thread(target=trainer.fit, args=(1000, 5), kwargs={"pause": 0.01})
            thread.start()
            outcome = other.wait_for_run(timeout=30).stop()
            thread.join(30)

            assert outcome.status == "applied" and trainer.stopped
            trainer.close()

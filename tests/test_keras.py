"""The Keras front door: what it tells is what Keras says, and training does not notice it.

Runs on whichever backend ``KERAS_BACKEND`` names; a real hub stands at the other end of each.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from fitwire import Monitor, WatchedRun  # noqa: E402
from fitwire.errors import HandshakeTimeout, UnknownRun, UsageError  # noqa: E402
from fitwire.events import Log  # noqa: E402
from fitwire.keras import ZMQProgress  # noqa: E402
from helpers import until  # noqa: E402
from keras_models import (  # noqa: E402
    BACKEND,
    BATCH,
    At,
    Normed,
    Own,
    Recorder,
    X,
    Y,
    line,
    noisy,
    pictures,
    points,
    stream,
    two_headed,
    uncounted,
)

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # Keras reads tensorflow's variables so
]


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    """The hub, and what it knows."""
    with Monitor() as monitor:
        yield monitor


def ended(monitor: Monitor, name: str | None = None) -> WatchedRun:
    """The run, once it has ended and all of it is stored."""
    run = monitor.wait_for_run(name)
    run.wait(timeout=30)
    return run


def epochs(run: WatchedRun, name: str) -> list[float]:
    return run.curve(name, per="epoch").values.tolist()


def steps(run: WatchedRun, name: str = "loss") -> list[int]:
    return run.curve(name, per="batch").steps.tolist()


# -- metrics


def test_every_value_is_the_one_keras_has_to_the_last_bit(monitor: Monitor) -> None:
    """A point for each batch, the last of them ragged; every epoch value equals History's."""
    seen = Recorder()

    kept = pictures().fit(
        X, Y, epochs=3, batch_size=BATCH, validation_data=(X[:20], Y[:20]), class_weight={0: 1.0, 1: 2.0, 2: 0.5},
        verbose=0, callbacks=[ZMQProgress(name="plain"), seen],
    )  # fmt: skip
    run = ended(monitor, "plain")

    assert {name: epochs(run, name) for name in kept.history} == kept.history
    for name in ("loss", "accuracy"):
        curve = run.curve(name, per="batch")
        assert curve.steps.tolist() == list(range(18))
        assert curve.values.tolist() == [logs[name] for _, logs in seen.batches]
    assert run.curve("val_loss", per="epoch").steps.tolist() == [5, 11, 17]
    assert run.state == "finished" and run.badge == "complete"


def test_batch_values_are_keras_running_means_and_say_so(monitor: Monitor) -> None:
    """Losses of 0, 1, 4 and 9 are told as Keras tells them, not undone; the run says what they are."""
    model = line(optimizer=keras.optimizers.SGD(0.0))
    model.set_weights([np.zeros((4, 1)), np.zeros(1)])
    y = np.arange(4.0).reshape(4, 1)

    model.fit(np.zeros((4, 4)), y, batch_size=1, shuffle=False, verbose=0, callbacks=[ZMQProgress()])
    run = ended(monitor)

    np.testing.assert_allclose(run.curve("loss", per="batch").values, [0, 0.5, 5 / 3, 3.5], rtol=1e-6)
    assert run.info["batch_values"] == "running means over the epoch"


def test_validation_every_other_epoch_and_split_off(monitor: Monitor) -> None:
    """``val_`` points stand only at the epochs that had validation."""
    kept = pictures().fit(
        X, Y, epochs=4, batch_size=BATCH, validation_split=0.2, validation_freq=2, verbose=0, callbacks=[ZMQProgress()]
    )
    run = ended(monitor)

    assert epochs(run, "val_loss") == kept.history["val_loss"]
    assert run.curve("val_loss").epochs.tolist() == [1, 3]
    assert run.progress.steps_per_epoch == 5 and run.progress.steps == 20


def test_several_inputs_and_outputs(monitor: Monitor) -> None:
    """Dict inputs, metrics by output, samples by name; predictions equal the model's own, bit for bit."""
    inputs = {"left": X[:40], "meta": points(40)[0]}
    targets = {"a": points(40)[1], "b": np.ones((40, 2), np.float32)}
    few = ({k: v[:3] for k, v in inputs.items()}, {k: v[:3] for k, v in targets.items()})
    model = two_headed()

    kept = model.fit(inputs, targets, epochs=2, verbose=0, callbacks=[ZMQProgress(samples=few, sample_names="both")])
    run = ended(monitor)
    sent = run.samples("both")[-1].arrays
    made = model.predict(few[0], verbose=0)

    assert {name: epochs(run, name) for name in kept.history} == kept.history
    assert set(sent) == {"image.left", "input.meta", "target.a", "target.b", "prediction.a", "prediction.b"}
    assert all(sent[f"prediction.{name}"].tobytes() == made[name].tobytes() for name in made)
    assert sent["image.left"].tobytes() == few[0]["left"].tobytes()


def test_a_model_of_ones_own_with_a_step_of_its_own(monitor: Monitor) -> None:
    """Names from a custom ``train_step``; the model is told of once it is built."""
    model = Own()
    model.compile("sgd", "mse")

    kept = model.fit(*points(40), epochs=2, batch_size=8, verbose=0, callbacks=[ZMQProgress(samples=points(4)[0])])
    run = ended(monitor)

    assert epochs(run, "twice") == kept.history["twice"] and len(steps(run, "twice")) == 10
    assert run.info["model"]["parameters"] == {"total": 5, "trainable": 5, "non_trainable": 0}
    assert run.samples("samples")[-1].arrays["prediction"].shape == (4, 1)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras refuses steps_per_execution on torch")
def test_one_point_for_each_execution_at_its_last_step(monitor: Monitor) -> None:
    """Batches that end at 2, 5, 8 and a shorter last one; samples at every step that was passed."""
    model = line(steps_per_execution=3)

    model.fit(*points(80), epochs=2, batch_size=8, verbose=0,
              callbacks=[ZMQProgress(samples=points(4)[0], sample_freq=4)])  # fmt: skip
    run = ended(monitor)

    assert steps(run) == [2, 5, 8, 9, 12, 15, 18, 19]
    assert [s.step for s in run.samples("samples")] == [5, 8, 12, 15, 19]
    assert run.progress.fraction == 1.0


def test_data_of_unknown_length(monitor: Monitor) -> None:
    """No totals in the first epoch; known and right from its end on."""
    totals: list[Any] = []
    callback = ZMQProgress(samples=points(4)[0], sample_freq=3)
    look = At("on_epoch_begin", lambda epoch, logs=None: totals.append(dict(callback._fit.totals)))

    line().fit(stream(5), epochs=1, verbose=0, callbacks=[callback, look])
    line().fit(uncounted(4), epochs=3, verbose=0, callbacks=[callback, look])
    run = ended(monitor)

    assert totals[0] == {"epochs": 1, "steps_per_epoch": None, "steps": None}
    assert steps(monitor.runs[1]) == [0, 1, 2, 3, 4]
    assert monitor.runs[1].info["totals"] == {"epochs": 1, "steps_per_epoch": 5, "steps": 5}
    assert steps(run) == list(range(12))
    assert run.info["totals"] == {"epochs": 3, "steps_per_epoch": 4, "steps": 12}
    assert [s.step for s in run.samples("samples")] == [2, 5, 8, 11]


def test_fewer_points_when_asked(monitor: Monitor) -> None:
    """``log_freq`` thins batch values out; epoch values are never thinned."""
    x, y = points(48)

    for name, freq in (("none", "epoch"), ("fourth", 4)):
        line().fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[ZMQProgress(name=name, log_freq=freq)])
        ended(monitor, name)

    assert steps(monitor.run("fourth")) == [3, 7, 11]
    with pytest.raises(UnknownRun):
        monitor.run("none").curve("loss", per="batch")
    assert len(epochs(monitor.run("none"), "loss")) == len(epochs(monitor.run("fourth"), "loss")) == 2


# -- learning rate and other callbacks


@pytest.mark.parametrize("first", [True, False])
def test_the_learning_rate_is_the_one_a_scheduler_reports(monitor: Monitor, first: bool) -> None:
    """Whether the scheduler stands before or behind in the list, the value is History's."""
    ours, x, y = ZMQProgress(), *points(32)
    for scheduler in (
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=1e9, cooldown=0),
    ):
        kept = line().fit(
            x, y, epochs=4, verbose=0, callbacks=[ours, scheduler] if first else [scheduler, ours]
        )  # fmt: skip
        run = ended(monitor)

        assert len(set(kept.history["learning_rate"])) > 1
        assert epochs(run, "learning_rate") == kept.history["learning_rate"]


def test_the_learning_rate_of_a_schedule_and_of_several_optimizers(monitor: Monitor) -> None:
    """A schedule is read at each epoch's end; optimizers of a model's own go by their attributes."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=4, decay_rate=0.5)
    line(optimizer=keras.optimizers.SGD(schedule)).fit(*points(32), epochs=2, batch_size=8, verbose=0,
                                                       callbacks=[ZMQProgress(name="decay")])  # fmt: skip
    model = line()
    model.critic = keras.optimizers.SGD(0.5)
    model.fit(*points(32), epochs=1, verbose=0, callbacks=[ZMQProgress(name="two")])
    decay, two = ended(monitor, "decay"), ended(monitor, "two")

    np.testing.assert_allclose(epochs(decay, "learning_rate"), [0.05, 0.025], rtol=1e-6)
    assert decay.config["optimizer"]["learning_rate"]["class"] == "ExponentialDecay"
    assert epochs(two, "learning_rate/critic") == [0.5]
    assert epochs(two, "learning_rate/optimizer") == [float(np.float32(0.01))]


def test_values_that_later_callbacks_add_arrive_too(monitor: Monitor) -> None:
    """Logs that a callback behind this one completes are read at the next begin, and at the end."""
    add = At("on_epoch_end", lambda epoch, logs=None: logs.update(f1=epoch / 10))

    kept = line().fit(*points(32), epochs=3, verbose=0, callbacks=[ZMQProgress(), add])
    run = ended(monitor)

    assert epochs(run, "f1") == kept.history["f1"] == [0.0, 0.1, 0.2]
    assert run.curve("f1").epochs.tolist() == [0, 1, 2]


def test_stopping_early_is_finishing(monitor: Monitor) -> None:
    """EarlyStopping and TerminateOnNaN end the run as finished; a NaN arrives as a NaN."""
    x, y = points(32)
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=0, restore_best_weights=True)
    line().fit(x, y, epochs=9, verbose=0, callbacks=[stop, ZMQProgress(name="early")])
    line().fit(x, y + np.nan, epochs=2, batch_size=8, verbose=0,
               callbacks=[keras.callbacks.TerminateOnNaN(), ZMQProgress(name="nan")])  # fmt: skip
    early, nan = ended(monitor, "early"), ended(monitor, "nan")

    assert early.state == nan.state == "finished"
    assert len(epochs(early, "loss")) == 2
    assert steps(nan) == [0] and np.isnan(nan.curve("loss").values).all()


def test_evaluate_and_predict_send_nothing(monitor: Monitor) -> None:
    """Outside ``fit``, or in the middle of it from another callback, they change neither points nor steps."""
    ours, model, (x, y) = ZMQProgress(), line(), points(32)
    model.evaluate(x, y, verbose=0, callbacks=[ours])
    model.predict(x, verbose=0, callbacks=[ours])
    assert ours.run is None

    def look(epoch: int, logs: Any = None) -> None:
        model.evaluate(x, y, batch_size=1, verbose=0, callbacks=[ours])
        model.predict(x, verbose=0, callbacks=[ours])

    kept = model.fit(x, y, epochs=3, batch_size=8, verbose=0, callbacks=[At("on_epoch_end", look), ours])
    model.evaluate(x, y, verbose=0, callbacks=[ours])
    run = ended(monitor)

    assert len(monitor.runs) == 1
    assert steps(run) == list(range(12)) and epochs(run, "loss") == kept.history["loss"]
    assert run.info["totals"] == {"epochs": 3, "steps_per_epoch": 4, "steps": 12}


# -- what is told without being asked


def test_what_is_told_of_a_training(monitor: Monitor) -> None:
    """Framework, versions, totals, the optimizer, parameter counts, pace; compile's arguments as the config."""
    pictures().fit(X, Y, epochs=2, batch_size=BATCH, validation_split=0.2, verbose=0, callbacks=[ZMQProgress(what="m")])
    run = ended(monitor)
    info = run.info

    assert (info["framework"], info["backend"], info["what"]) == ("keras", BACKEND, "m")
    assert info["versions"]["keras"] == keras.__version__ and info["versions"][BACKEND]
    assert info["totals"] == {"epochs": 2, "steps_per_epoch": 5, "steps": 10}
    assert info["model"]["parameters"] == {"total": 491, "trainable": 483, "non_trainable": 8}
    assert [layer["name"] for layer in info["model"]["layers"]] == ["conv", "norm", "flat", "drop", "head"]
    assert info["optimizer"]["class"] == run.config["optimizer"]["class"] == "Adam"
    assert run.config["loss"] == "sparse_categorical_crossentropy" and run.config["metrics"] == ["accuracy"]
    pace, rate = run.curve("perf/step_time").values, run.curve("perf/samples_per_second").values
    np.testing.assert_allclose(pace * rate, 72 / 5)
    assert run.summary["loss"] == epochs(run, "loss")[-1]


def test_a_config_of_ones_own_goes_before_compiles(monitor: Monitor) -> None:
    """And functions of the user's appear by their names, without Keras's warnings."""
    own = ZMQProgress(name="own", config={"lr": 1})
    line().fit(*points(8), verbose=0, callbacks=[own])
    line(loss=lambda a, b: keras.ops.mean(a - b), metrics=[keras.metrics.MeanSquaredError("m")]).fit(
        *points(8), verbose=0, callbacks=[ZMQProgress(name="function")]
    )

    assert ended(monitor, "own").config == {"lr": 1}
    config = ended(monitor, "function").config
    assert config["loss"] == "lambda" and config["metrics"][0]["class"] == "MeanSquaredError"


# -- fit again, copies, the constructor


def test_each_fit_is_a_run(monitor: Monitor) -> None:
    """A second ``fit`` with the same callback is a second run, its name numbered, its steps from 0."""
    ours, model = ZMQProgress(name="phase"), line()
    for _ in range(2):
        model.fit(*points(32), epochs=2, batch_size=8, verbose=0, callbacks=[ours])
    first, second = ended(monitor, "phase"), ended(monitor, "phase-2")

    assert first.id != second.id
    assert steps(first) == steps(second) == list(range(8))


def test_with_a_run_id_a_second_fit_goes_on(monitor: Monitor) -> None:
    """At the step where the first ended, or where ``initial_epoch`` says."""
    ours, model, (x, y) = ZMQProgress(run_id="mine"), line(), points(32)
    model.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[ours])
    model.fit(x, y, epochs=1, batch_size=8, verbose=0, callbacks=[ours])
    model.fit(x, y, epochs=5, initial_epoch=4, batch_size=8, verbose=0, callbacks=[ours])
    run = until(lambda: monitor.run("mine") if len(monitor.run("mine").curve("loss").steps) == 16 else None)

    assert len(monitor.runs) == 1
    assert steps(run) == [*range(12), *range(16, 20)]
    assert run.curve("loss", per="epoch").epochs.tolist() == [0, 1, 0, 4]
    assert run.info["totals"]["steps"] == 20


def test_a_first_epoch_that_is_not_the_first(monitor: Monitor) -> None:
    """``initial_epoch`` moves the steps with it, so that a resumed curve goes on where it was."""
    line().fit(*points(32), epochs=4, initial_epoch=2, batch_size=8, verbose=0, callbacks=[ZMQProgress()])
    run = ended(monitor)

    assert steps(run) == list(range(8, 16))
    assert run.progress.steps == 16 and run.progress.fraction == 1.0


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])  # noqa: S301
def test_a_copy_keeps_the_arguments_only(monitor: Monitor, make: Any) -> None:
    """Made after a ``fit``, or in the middle of one, it is as good as new."""
    ours = ZMQProgress(name="phase", samples=points(3)[0], tags=["t"])
    copies: list[Any] = []
    line().fit(*points(8), verbose=0,
               callbacks=[ours, At("on_epoch_end", lambda *_: copies.append(make(ours)))])  # fmt: skip
    copies.append(make(ours))

    for other in copies:
        assert other.run is None and other._model is None
        line().fit(*points(8), verbose=0, callbacks=[other])
        assert ended(monitor).name == "phase"
    assert len({run.id for run in monitor.runs}) == 3
    assert [len(run.samples("samples")) for run in monitor.runs] == [1, 1, 1]


def test_making_a_callback_opens_nothing(fitwire_dir: Path) -> None:
    """No file, no thread, no socket before training begins; it declares nothing about threads to Keras."""
    threads = threading.active_count()

    ours = ZMQProgress(samples=(X[:2], Y[:2]))

    assert threading.active_count() == threads and list(fitwire_dir.iterdir()) == []
    assert not hasattr(ours, "async_safe")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"log_freq": "step"}, "log_freq='step': pass 'batch', 'epoch' or a whole number"),
        ({"log_freq": 0}, "log_freq=0"),
        ({"sample_freq": "batch"}, "sample_freq='batch'"),
        ({"samples": (X[:2], Y[:3])}, "2 inputs and 3 targets"),
        ({"mode": "on"}, "mode='on'"),
        ({"wire": "zmq"}, "wire='zmq'"),
        ({"resume": "must"}, "needs run_id"),
        ({"wait": -1}, "wait=-1"),
        ({"what": 3}, "what='3'"),
        ({"address": "tcp://"}, "tcp://"),
    ],
)
def test_a_bad_option_is_refused_by_the_constructor(arguments: dict[str, Any], sentence: str) -> None:
    """In a sentence that names the choices."""
    with pytest.raises(ValueError, match=sentence):
        ZMQProgress(**arguments)


def test_nobody_there_is_no_hindrance() -> None:
    """Training starts at once and ends normally; only ``strict`` with ``wait`` raises; disabled does nothing."""
    model, (x, y) = line(), points(8)
    alone, off = ZMQProgress(), ZMQProgress(mode="disabled", samples=lambda model: 1 / 0, strict=True)
    kept = model.fit(x, y, epochs=2, verbose=0, callbacks=[alone, off])

    assert len(kept.history["loss"]) == 2 and alone.run.status == "finished"
    with pytest.raises(HandshakeTimeout):
        model.fit(x, y, verbose=0, callbacks=[ZMQProgress(wait=0.05, strict=True)])


# -- the training thread


def test_batch_ends_never_touch_the_model(monitor: Monitor) -> None:
    """With any attribute of the model forbidden inside batch hooks, all points arrive; on jax nothing is synced."""

    class Forbidden:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"{name} was touched in a batch hook")

    class Careful(ZMQProgress):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.without_model(super().on_train_batch_begin, batch, logs)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.without_model(super().on_train_batch_end, batch, logs)

        def without_model(self, hook: Any, *args: Any) -> None:
            assert threading.current_thread() is threading.main_thread()
            model, self._model = self._model, Forbidden()
            hook(*args)
            self._model = model

    line().fit(*points(32), epochs=2, batch_size=8, verbose=0,
               callbacks=[Careful(samples=points(4)[0])])  # fmt: skip

    assert steps(ended(monitor)) == list(range(8))


def test_batch_ends_come_in_order_on_the_training_thread(monitor: Monitor) -> None:
    """Keras does not hand them to a pool of its own because of this callback."""
    seen: list[tuple[int, str]] = []

    class Order(ZMQProgress):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append((batch, threading.current_thread().name))
            super().on_train_batch_end(batch, logs)

    line().fit(*points(80), batch_size=8, verbose=0, callbacks=[Order()])

    assert seen == [(batch, "MainThread") for batch in range(10)]


# -- samples


def test_samples_equal_what_the_model_predicts_with_those_weights(monitor: Monitor) -> None:
    """Each epoch's sample, as ``predict`` makes it later from the weights of that epoch, bit for bit."""
    seen, few = Recorder(), (X[:40], Y[:40])
    model = pictures()
    model.fit(X, Y, epochs=3, batch_size=BATCH, verbose=0,
              callbacks=[seen, ZMQProgress(samples=few, sample_names="digits")])  # fmt: skip
    sent = ended(monitor).samples("digits")

    assert [(s.step, s.epoch) for s in sent] == [(5, 0), (11, 1), (17, 2)]
    for sample, weights in zip(sent, seen.weights, strict=True):
        model.set_weights(weights)
        assert sample.arrays["prediction"].tobytes() == model.predict(few[0], verbose=0).tobytes()
        assert sample.arrays["image"].tobytes() == X[:40].tobytes()
        assert sample.arrays["target"].tobytes() == Y[:40].tobytes() and sample.arrays["target"].dtype == Y.dtype


def test_samples_every_few_steps_are_of_that_step(monitor: Monitor) -> None:
    """Made before the next batch: the weights are those that ``step`` left, in the middle of an epoch too."""
    few = X[:5]
    pictures().fit(X, Y, epochs=2, batch_size=BATCH, shuffle=False, verbose=0,
                   callbacks=[ZMQProgress(samples=few, sample_freq=4)])  # fmt: skip
    sent = ended(monitor).samples("samples")
    again = pictures()
    stop = At("on_train_batch_end", lambda batch, logs=None: setattr(again, "stop_training", batch == 3))
    again.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[stop])

    assert [(s.step, s.epoch) for s in sent] == [(3, 0), (7, 1), (11, 1)]
    assert sent[0].arrays["prediction"].tobytes() == again.predict(few, verbose=0).tobytes()


def test_samples_by_a_function(monitor: Monitor) -> None:
    """Its arrays go by the names it gives them."""
    model = pictures()

    def look(trained: Any) -> dict[str, Any]:
        return {"image": X[:2], "heatmap": trained.get_layer("conv").kernel[None, :, :, 0, 0]}

    model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[ZMQProgress(samples=look, sample_freq=3)])
    sent = ended(monitor).samples("samples")

    kernel = keras.ops.convert_to_numpy(model.get_layer("conv").kernel)
    assert [s.step for s in sent] == [2, 5]
    assert sent[1].arrays["heatmap"].tobytes() == kernel[None, :, :, 0, 0].tobytes()


def test_a_sample_that_fails_is_a_warning(monitor: Monitor) -> None:
    """Once, where watchers see it; training goes on. With ``strict`` it is raised."""
    wrong = {"samples": np.zeros((2, 5), np.float32)}
    line().fit(*points(8), epochs=3, verbose=0, callbacks=[ZMQProgress(name="wrong", **wrong)])
    run = ended(monitor, "wrong")
    said = [event.text for event in run.events(follow=False) if isinstance(event, Log)]

    assert run.state == "finished" and len([text for text in said if "no sample" in text]) == 1
    with pytest.raises(Exception, match=r"ZeroDivisionError|division"):
        line().fit(*points(8), verbose=0, callbacks=[ZMQProgress(samples=lambda model: 1 / 0, strict=True)])


def draws(model: Any) -> dict[str, Any]:
    """A function of the user's that does all it should not."""
    random.random()
    np.random.rand()
    keras.random.normal((2,))
    model.evaluate(X[:4], Y[:4], verbose=0)
    return {"prediction": np.asarray(keras.ops.convert_to_numpy(model(X[:4], training=True)))}


@pytest.mark.parametrize(
    "options",
    [{"samples": (X[:5], Y[:5])}, {"samples": X[:5], "sample_freq": 2}, {"samples": draws, "sample_freq": 4}],
    ids=["each epoch", "every 2 steps", "by a careless function"],
)
def test_training_ends_with_the_weights_it_has_without(monitor: Monitor, options: dict[str, Any]) -> None:
    """Weights, optimizer, batch statistics, history and the next random numbers, bit for bit."""

    def train(*callbacks: Any) -> list[Any]:
        model = pictures()
        kept = model.fit(
            X, Y, epochs=3, batch_size=BATCH, shuffle=True, validation_split=0.2, verbose=0, callbacks=list(callbacks)
        )
        variables = [*model.variables, *model.optimizer.variables]
        drawn = [random.random(), float(np.random.rand()), keras.ops.convert_to_numpy(keras.random.normal((2,)))]
        return [kept.history, *(np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in variables), str(drawn)]

    without = train()
    watched = train(ZMQProgress(**options))

    assert watched == without
    assert len(ended(monitor).samples("samples")) == {None: 3, 2: 7, 4: 3}[options.get("sample_freq")]


def test_a_layer_that_changes_when_it_predicts_is_put_back(monitor: Monitor) -> None:
    """Random layers and counters that do not care whether they train."""

    def train(*callbacks: Any) -> list[bytes]:
        model = noisy()
        model.fit(*points(40), epochs=2, batch_size=8, verbose=0, callbacks=list(callbacks))
        return [np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in model.variables]

    assert train(ZMQProgress(samples=points(6)[0], sample_freq=3)) == train()


def test_a_sample_before_a_batch_that_never_comes_costs_nothing(monitor: Monitor) -> None:
    """Data that end where nobody knew: Keras begins one batch more, and a sample may be due right then."""

    def train(*callbacks: Any) -> list[bytes]:
        model = line(optimizer="adam")
        model.fit(uncounted(4), epochs=2, verbose=0, callbacks=list(callbacks))
        return [np.asarray(w).tobytes() for w in model.get_weights()]

    assert train(ZMQProgress(samples=points(6)[0], sample_freq=2)) == train()
    assert [s.step for s in ended(monitor).samples("samples")] == [1, 3, 5, 7]


@pytest.mark.skipif(BACKEND != "torch", reason="only torch modules carry a flag")
def test_each_module_keeps_its_own_flag() -> None:
    """After a sample in the middle of an epoch the model still trains, and a frozen module is still frozen."""
    flags: list[list[bool]] = []
    model = Normed()
    model.compile("sgd", "mse")

    def freeze(batch: int, logs: Any = None) -> None:
        if batch == 1:
            model.norm.eval()
        flags.append([module.training for module in model.modules()])

    callbacks = [At("on_train_batch_begin", freeze), ZMQProgress(samples=points(2)[0], sample_freq=1)]
    model.fit(*points(48), batch_size=8, verbose=0, callbacks=callbacks)

    assert len(flags) == 6 and all(flags[0])
    assert False in flags[1] and True in flags[1]
    assert flags[1:] == [flags[1]] * 5


# -- how it ends


def test_an_exception_that_is_caught_is_told_as_failed(monitor: Monitor) -> None:
    """No hook is called when ``fit`` raises; the end of its callback list says it, and the next ``fit`` is another."""
    ours, model = ZMQProgress(name="caught"), line()

    def explode(batch: int, logs: Any = None) -> None:
        if batch == 2:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        model.fit(*points(40), batch_size=8, verbose=0, callbacks=[ours, At("on_train_batch_end", explode)])
    gc.collect()
    run = ended(monitor, "caught")
    model.fit(*points(8), verbose=0, callbacks=[ours])

    assert run.state == "failed" and steps(run) == [0, 1, 2] and "caught" in run.reason
    assert ended(monitor, "caught-2").state == "finished"


DIES = """
import sys
from keras_models import At, points, line
from fitwire.keras import ZMQProgress

def at_37(batch, logs=None):
    if batch == 37:
        raise {"failed": ValueError, "interrupted": KeyboardInterrupt}[sys.argv[1]]("enough")

at = At("on_train_batch_end", at_37)
line().fit(*points(800), epochs=2, batch_size=8, verbose=0, callbacks=[ZMQProgress(name=sys.argv[1]), at])
"""


def test_an_exception_that_nobody_catches_is_told_with_its_traceback(monitor: Monitor) -> None:
    """Failed at batch 37, or interrupted by Ctrl-C; every point up to it is there."""
    both = {state: program(DIES, state) for state in ("failed", "interrupted")}
    codes = {state: trainer.wait(100) for state, trainer in both.items()}

    assert all(codes.values())
    for state, error in (("failed", "ValueError: enough"), ("interrupted", "KeyboardInterrupt: enough")):
        run = ended(monitor, state)
        assert run.state == state and steps(run) == list(range(38))
        assert "at_37" in run.traceback and error in run.traceback
        assert run.badge == "complete"


LONG = """
import sys
from keras_models import At, X, Y, BATCH, pictures
from fitwire.keras import ZMQProgress

def pause(epoch, logs=None):
    if epoch == 1:
        print("training", flush=True)
        sys.stdin.readline()

kept = pictures().fit(
    X, Y, epochs=20, batch_size=BATCH, validation_split=0.2, verbose=0,
    callbacks=[ZMQProgress(name="long", samples=(X[:4], Y[:4])), At("on_epoch_begin", pause)],
)
print(kept.history)
"""


@pytest.mark.parametrize("first", ["monitor", "trainer"])
def test_twenty_epochs_watched_from_another_process(first: str) -> None:
    """Waiting, running, finished; all points, whichever of the two was there first."""
    trainer = program(LONG, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert trainer.stdin is not None and trainer.stdout is not None
    try:
        if first == "trainer":
            assert trainer.stdout.readline() == "training\n"
        with Monitor() as monitor:
            states: list[str] = []
            run = monitor.wait_for_run("long", timeout=100)
            states.append(str(run.state))
            if first == "monitor":
                assert trainer.stdout.readline() == "training\n"
            until(lambda: run.state == "running" and len(steps(run)) == 5)
            states.append(str(run.state))
            trainer.stdin.write("\n")
            trainer.stdin.flush()
            run.wait(timeout=100)
            states.append(str(run.state))
            history = trainer.stdout.read()

            assert states[-2:] == ["running", "finished"] and states[0] in ("waiting", "running")
            assert history.strip() == str({name: epochs(run, name) for name in sorted(read_names(history))})
            assert steps(run) == list(range(100)) and len(run.samples("samples")) == 20
            assert run.badge == "complete"
        assert trainer.wait(60) == 0
    finally:
        trainer.kill()
        trainer.stdin.close()
        trainer.stdout.close()


def read_names(history: str) -> list[str]:
    return [part.rpartition("'")[2] for part in history.split("': [")[:-1]]


WORKERS = """
import keras
from keras_models import points, line
from fitwire.keras import ZMQProgress

class Data(keras.utils.PyDataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        x, y = points(48)
        return x[index * 8 : index * 8 + 8], y[index * 8 : index * 8 + 8]

if __name__ == "__main__":
    data = Data(workers=2, use_multiprocessing=True)
    line().fit(data, epochs=2, verbose=0, callbacks=[ZMQProgress(name="workers")])
"""


def test_data_from_other_processes(monitor: Monitor) -> None:
    """Loaders that fork neither end the run nor speak for it."""
    code = program(WORKERS).wait(100)
    run = ended(monitor, "workers")

    assert code == 0
    assert run.state == "finished" and run.badge == "complete" and steps(run) == list(range(12))
    assert len(monitor.runs) == 1


def program(code: str, *arguments: str, **streams: int) -> subprocess.Popen[str]:
    """Start a trainer of its own, which speaks to this test's hub."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "FITWIRE_LOG_LEVEL": "off"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, env=environment, **streams)


def test_the_errors_of_options_are_fitwires_own() -> None:
    """So that one ``except FitwireError`` catches them."""
    with pytest.raises(UsageError):
        ZMQProgress(log_freq="often")

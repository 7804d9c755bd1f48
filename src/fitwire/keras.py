"""The front door for Keras 3, on the tensorflow, jax and torch backends: ``ZMQProgress``.

Hooks in, :class:`~fitwire.train.run.Run` calls out. Each ``fit`` is one training, hence one run. The model is touched
only where it is whole: at the begin and end of training and of epochs, and, to predict samples every n steps, before a
batch. Batch ends read nothing but what Keras hands over, because on jax a mere touch of the model costs a copy of its
state. Longer than other files, because a front door is one file.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import keras
import numpy as np

from fitwire.errors import UsageError
from fitwire.keras_controls import Steering, hold_state, own_optimizers, surroundings
from fitwire.train.run import Run
from fitwire.train.samples import SamplePlan, interval, kept
from fitwire.train.settings import Durability, Mode, Resume, Settings, Wire
from fitwire.train.values import as_array
from fitwire.transport.process import spawn

__all__ = ["ZMQProgress"]

UNKNOWN = sys.maxsize
"""Batches in an epoch whose end only its data know."""
RUNNING_MEANS = "running means over the epoch"
"""What Keras's batch values are; told, so that views can label them. Undoing them is wrong when batches differ."""
MAX_LAYERS = 500
"""Layers told of one by one; the sums count all."""


@dataclasses.dataclass(slots=True)
class _Fit:
    """Where one ``fit`` stands.

    Attributes:
        epochs: In all, as ``fit`` was asked.
        batches: In an epoch, or ``UNKNOWN``.
        finalizer: Ends the run if ``fit`` goes away without a word; None when its callback list was not found.
        steering: Does what watchers ask; None where a model of another kind does not allow it.
        epoch: The one that goes on; -1 before the first.
        base: Steps done when it began.
        done: Steps done so far.
        sampled: Steps done when the last sample was made.
        loss: What the last batch logged, to know whether the model's own counters are still of this epoch.
        examples: Seen in this epoch; None when that is not known.
        began: Monotonic time when the epoch's first batch began.
        ended: Monotonic time when its last batch ended.
        paused: Seconds of it spent on samples, and on what watchers asked for.
        sent: Names that were sent at the last epoch's end.
        logs: That epoch's logs, to which callbacks behind this one may have added.
        totals: As last told.
        described: Whether the model was built when it was described.
    """

    epochs: int
    batches: int
    finalizer: Any = None
    steering: Steering | None = None
    epoch: int = -1
    base: int = 0
    done: int = 0
    sampled: int = 0
    loss: Any = None
    examples: float | None = None
    began: float = 0.0
    ended: float = 0.0
    paused: float = 0.0
    sent: frozenset[str] = frozenset()
    logs: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    totals: dict[str, int | None] = dataclasses.field(default_factory=dict[str, int | None])
    described: bool = False


class ZMQProgress(keras.callbacks.Callback):
    """Stream a Keras ``fit`` to whoever watches.

    Sent without being asked: batch and epoch metrics under Keras's own names (batch values are Keras's running means
    over the epoch), ``val_`` values, ``learning_rate``, ``perf/step_time`` and ``perf/samples_per_second``, totals,
    the model's parameter counts, the optimizer, versions, and how it ended.

    Each ``fit`` is a run of its own: with a ``name``, the second is called ``name-2``. With a ``run_id`` a second
    ``fit`` goes on with the same run instead, at the step where the first ended, or at ``initial_epoch`` if told. The
    callback opens nothing before training begins, and may be copied and pickled: copies keep the arguments only.

    Args:
        address: Of the hub; None for the user's own on this machine.
        project: What the run belongs to.
        name: For people; None for one that is made up.
        config: What was set; None for the arguments of ``compile``.
        tags: Words to find it by.
        group: Runs that belong together, e.g. folds.
        run_id: Text of one's own; the same text goes on with the same run.
        resume: ``"auto"`` goes on with a run of that id, ``"must"`` needs one, ``"never"`` starts a new one.
        mode: ``"online"``; ``"offline"`` writes the journal only, for ``fitwire sync``; ``"disabled"`` does nothing.
        dir: Folder for the journal, in which records wait for a hub; None for the data folder.
        wire: ``"fw"``; ``"pair"`` for a ``PairedReceiver``; ``"sleap"`` for SLEAP's LossViewer.
        wait: Seconds to wait for a hub before training without one.
        control: Whether watchers may steer: stop, pause, set the learning rate, save a checkpoint, ask for a sample.
        strict: Raise on what cannot be sent, and when ``wait`` ends without a hub, instead of warning.
        durability: ``"memory"``: a kill of the process may cost what was logged in its last 20 ms; ``"process"``:
            nothing, for a microsecond or two more a call.
        log_freq: ``"batch"``, ``"epoch"`` (no batch values), or every so many batches.
        samples: Examples to predict on: inputs (an array; several as a list or dict), a tuple ``(inputs, targets)``, or
            a function that takes the model and returns a dict of arrays. Training ends with the weights it would have
            without.
        sample_freq: ``"epoch"``, or every so many steps.
        sample_names: What the sample goes by; or a list of one text for each example.
        what: Which model this is, where several are trained for one purpose.

    Attributes:
        run: The run of the ``fit`` that goes on, or of the last one; None before the first.

    Raises:
        UsageError: An argument that cannot be used.

    Example:
        >>> callback = ZMQProgress(name="digits", samples=np.zeros((4, 8, 8, 1)), sample_freq=100)
        >>> callback.run is None
        True
    """

    params: Any
    _model: Any

    def __init__(
        self,
        address: str | None = None,
        *,
        project: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        group: str | None = None,
        run_id: str | None = None,
        resume: Resume = "auto",
        mode: Mode | None = None,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002  the name W&B's users know
        wire: Wire = "fw",
        wait: float = 0.0,
        control: bool = True,
        strict: bool = False,
        durability: Durability = "memory",
        log_freq: str | int = "batch",
        samples: Any = None,
        sample_freq: str | int = "epoch",
        sample_names: str | Sequence[str] | None = None,
        what: str = "",
    ) -> None:
        super().__init__()
        self.run: Run | None = None
        self._settings = Settings(
            address=address, project=project, name=name, config=config, tags=tags, group=group, run_id=run_id,
            resume=resume, mode=mode, dir=dir, wire=wire, wait=wait, control=control, strict=strict,
            durability=durability,
        )  # fmt: skip
        every = interval("log_freq", log_freq, ("batch", "epoch"))
        self._log_every = UNKNOWN if log_freq == "epoch" else every or 1
        self._plan = None if samples is None else SamplePlan(samples, sample_freq, sample_names)
        if self._plan is None:
            interval("sample_freq", sample_freq, ("epoch",))
        if not isinstance(what, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"what={str(what)[:40]!r}: pass a text")
        self._what = what
        self._fits = 0
        self._done = 0
        self._fit: _Fit | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep: the arguments, and what a subclass added."""
        return self.__dict__ | {"run": None, "params": None, "_model": None, "_fit": None, "_fits": 0, "_done": 0}

    # -- hooks

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._fit is not None and self.run is not None:
            self._leave()
            self.run.finish("failed", reason="another fit began before this one had ended")
        # A copy: evaluate() called with this callback puts its own in place of fit's.
        asked: dict[str, Any] = dict(self.params or {})
        fit = _Fit(int(asked.get("epochs") or 0), int(asked.get("steps") or UNKNOWN))
        self._fits += 1
        model = self._whole_model()
        settings = self._settings
        if settings.name and self._fits > 1 and not settings.run_id:
            settings = dataclasses.replace(settings, name=f"{settings.name}-{self._fits}")
        if settings.config is None:
            settings = dataclasses.replace(settings, config=_found(_compiled, model))
        fit.totals = _totals(fit)
        fit.described = bool(getattr(model, "built", False))
        what = {"what": self._what} if self._what else {}
        self.run = Run(settings, {**_facts(model), "totals": fit.totals, **what})
        if settings.mode == "disabled":
            return
        self.run.status_at_exit = "interrupted"
        callbacks, validates = surroundings()
        fit.finalizer = _when_abandoned(self.run, callbacks)
        fit.steering = _found(lambda model: self._steering(fit, model, callbacks, validates), model)
        self._fit = fit

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        fit = self._fit
        if fit is None:
            return
        self._send_added(fit)
        if fit.epoch < 0:
            if epoch > 0 and fit.batches != UNKNOWN:
                fit.done = epoch * fit.batches
            elif epoch == 0 and self._settings.run_id and self._settings.resume != "never":
                fit.done = self._done
            fit.sampled = fit.done
        fit.epoch, fit.base, fit.loss, fit.examples, fit.paused = epoch, fit.done, None, None, 0.0
        self._tell_totals(fit)
        fit.began = fit.ended = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Always on the main thread, and between two steps: the one place to act.
        fit, plan, run = self._fit, self._plan, self.run
        if fit is None:
            return
        if run is not None and run.wants_attention:
            self._obey(fit, run)
        if plan is not None and plan.due(fit.done, fit.sampled):
            self._sample(fit, plan)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        fit, run = self._fit, self.run
        if fit is None or run is None:
            return
        if batch >= fit.batches:
            batch = fit.batches - 1  # a last execution that was shorter than steps_per_execution says
        before, step = fit.done, fit.base + batch
        fit.done = step + 1
        fit.ended = time.monotonic()
        if logs:
            fit.loss = logs.get("loss")
            if fit.done // self._log_every > before // self._log_every:
                run.log(logs, step=step, epoch=fit.epoch, batch=batch)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        # Validation is about to reset the model's counters. Not `self.model`: this may be the middle of an epoch.
        if self._fit is not None and self._fit.examples is None:
            self._fit.examples = _examples_seen(self._model, self._fit)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        fit, run = self._fit, self.run
        if fit is None or run is None:
            return
        logs = {} if logs is None else logs
        model = self._whole_model()
        rates = cast("dict[str, float]", _found(_learning_rates, model) or {})
        own = {name: value for name, value in (rates | _pace(model, fit)).items() if name not in logs}
        values: dict[str, Any] = {**logs, **own}
        run.end_epoch(values, epoch=epoch, step=fit.done - 1)
        fit.logs, fit.sent = logs, frozenset(values)
        if fit.batches == UNKNOWN:
            fit.batches = fit.done - fit.base or UNKNOWN
            self._tell_totals(fit)
        if not fit.described:
            fit.described = True
            run.describe(model=_found(_summary, model))
        plan = self._plan
        if plan is not None and (plan.every is None or plan.due(fit.done, fit.sampled)):
            self._sample(fit, plan)
        if fit.steering is not None:
            fit.steering.epoch_ended(model)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        fit, run = self._fit, self.run
        if fit is None or run is None:
            return
        self._send_added(fit)
        self._leave()
        run.summary.update(dict(fit.logs))
        run.finish()

    # -- inside

    def _whole_model(self) -> Any:
        """The model with its state; on jax that brings it home first, so never ask for it at a batch's end."""
        return cast(Any, self).model

    def _leave(self) -> None:
        fit, self._fit = self._fit, None
        if fit is not None:
            self._done = fit.done
            if fit.finalizer is not None:
                fit.finalizer.detach()

    def _send_added(self, fit: _Fit) -> None:
        """Send what callbacks behind this one added to the epoch's logs after its end."""
        added = {name: value for name, value in fit.logs.items() if name not in fit.sent}
        if added and self.run is not None:
            self.run.end_epoch(added, epoch=fit.epoch, step=fit.done - 1)
            fit.sent |= added.keys()

    def _tell_totals(self, fit: _Fit) -> None:
        totals = _totals(fit)
        if totals != fit.totals and self.run is not None:
            fit.totals = totals
            self.run.describe(totals=totals)

    def _steering(self, fit: _Fit, model: Any, callbacks: Any, validates: bool) -> Steering:
        plan, saver = self._plan, None
        for callback in () if callbacks is None else callbacks.callbacks:
            saver = callback if isinstance(callback, keras.callbacks.ModelCheckpoint) else saver
        sample = None if plan is None else lambda: self._sample(fit, plan)
        return Steering(cast(Run, self.run), model, self._whole_model, sample, saver, validates)

    def _obey(self, fit: _Fit, run: Run) -> None:
        began, before = time.monotonic(), fit.paused
        if fit.steering is not None:
            fit.steering.epoch, fit.steering.step = fit.epoch, fit.done
        run.apply()
        fit.paused = before + time.monotonic() - began

    def _sample(self, fit: _Fit, plan: SamplePlan) -> str:
        """Make one and send it; gives why it could not be made."""
        began, why = time.monotonic(), ""
        fit.sampled = fit.done
        run = cast(Run, self.run)
        model = self._whole_model()  # fit takes the state up again before the batch
        try:
            with kept(model), _state_kept(model):
                if plan.function is not None:
                    arrays = plan.made(plan.function(model))
                else:
                    # Not model(x): the two differ in the last bits.
                    made = model.predict(plan.inputs, verbose=0)
                    arrays = plan.arrays(
                        made, getattr(model, "input_names", None) or (), getattr(model, "output_names", None) or ()
                    )
            run.sample(plan.name, step=max(fit.done - 1, 0), epoch=fit.epoch, **arrays)
        except Exception as error:
            if self._settings.strict:
                raise
            why = f"{type(error).__name__}: {str(error)[:300]}"
            run._warn("sample", f"no sample: {why}")  # pyright: ignore[reportPrivateUsage]
        fit.paused += time.monotonic() - began
        return why


def _when_abandoned(run: Run, callbacks: Any) -> Any:
    """End ``run`` as failed when the callback list of its ``fit`` goes away.

    No hook is called when ``fit`` raises. If nobody catches the exception, ``sys.excepthook`` comes first, with the
    traceback; if somebody does, the list is all that tells.
    """
    if callbacks is None:
        return None
    finalizer = weakref.finalize(callbacks, _abandoned, run)
    finalizer.atexit = False
    return finalizer


def _abandoned(run: Run) -> None:
    def end() -> None:
        run.finish("failed", reason="fit did not come to its end: an exception was raised in it, and caught outside")

    if threading.current_thread() is run.thread:
        end()
    else:  # the collector may run on any thread, the one that `finish` waits for among them
        spawn("ending", end)


@contextmanager
def _state_kept(model: Any) -> Generator[None]:
    """Put back afterwards what a call of the model may change beside its weights.

    Batch statistics, metrics, the states of its random layers, and Keras's own seeds for what has none.
    """
    from keras.src.backend.common import global_state  # pyright: ignore[reportMissingTypeStubs]

    store, key = cast(Any, global_state), "global_seed_generator"
    seeds = store.get_global_attribute(key)
    random = [] if seeds is None else [seeds.state]
    states = {id(v): v for v in (*model.non_trainable_variables, *model.metrics_variables, *random)}.values()
    before = [as_array(variable.value) for variable in states]
    try:
        yield
    finally:
        store.set_global_attribute(key, seeds)  # made on its first use, from Python's random numbers
        for variable, old in zip(states, before, strict=True):
            if as_array(variable.value).tobytes() != old.tobytes():
                variable.assign(old)
        hold_state(model)  # predict() leaves nothing there


def _found(look: Callable[[Any], Any], model: Any) -> Any:
    """What ``look`` finds out about the model, or None: a model may lack anything, and training must go on."""
    try:
        return look(model)
    except Exception:
        return None


def _facts(model: Any) -> dict[str, Any]:
    """What is known before the first batch."""
    backend = str(cast(Any, keras).backend.backend())
    modules = {"keras": keras, backend: sys.modules.get(backend), "numpy": np}
    return {
        "framework": "keras",
        "backend": backend,
        "versions": {name: str(getattr(module, "__version__", "")) for name, module in modules.items()},
        "batch_values": RUNNING_MEANS,
        "model": _found(_summary, model),
        "optimizer": _found(_optimizers, model),
    }


def _totals(fit: _Fit) -> dict[str, int | None]:
    if fit.batches == UNKNOWN:
        return {"epochs": fit.epochs, "steps_per_epoch": None, "steps": None}
    first = max(fit.epoch, 0)
    steps = fit.done + (fit.epochs - first) * fit.batches
    if fit.done > fit.base:  # within an epoch, which has been counted
        steps = fit.base + (fit.epochs - first) * fit.batches
    return {"epochs": fit.epochs, "steps_per_epoch": fit.batches, "steps": steps}


def _learning_rates(model: Any) -> dict[str, float]:
    rates: dict[str, float] = {}
    for name, optimizer in own_optimizers(model).items():
        rate = optimizer.learning_rate  # a variable, or what a schedule makes of the step
        rates[name] = float(as_array(getattr(rate, "value", rate)))
    if len(rates) == 1:
        return {"learning_rate": next(iter(rates.values()))}
    return {f"learning_rate/{name}": rate for name, rate in rates.items()}


def _examples_seen(model: Any, fit: _Fit) -> float | None:
    """How many examples Keras's own loss tracker has weighed in this epoch; None if it cannot be trusted.

    It cannot when somebody evaluated in between, or when a ``train_step`` of the model's own feeds it another way.
    """
    try:
        tracker = model._loss_tracker
        count, mean = float(tracker.count), float(tracker.result())
        keras_own = str(model.train_step.__module__).startswith("keras.")
        if np.isclose(mean, fit.loss, rtol=1e-4, equal_nan=True) and (keras_own or count > fit.done - fit.base):
            return count
    except Exception:
        pass
    return None


def _pace(model: Any, fit: _Fit) -> dict[str, float]:
    """Mean seconds a step, and examples a second, of the epoch's training alone."""
    steps, took = fit.done - fit.base, fit.ended - fit.began - fit.paused
    if steps <= 0 or took <= 0:
        return {}
    examples = _examples_seen(model, fit) if fit.examples is None else fit.examples
    return {"perf/step_time": took / steps} | ({"perf/samples_per_second": examples / took} if examples else {})


def _summary(model: Any) -> dict[str, Any]:
    """Parameter counts, never values."""

    def count(weights: Sequence[Any]) -> int:
        return sum(int(np.prod(w.shape, dtype=np.int64)) for w in weights)

    found: dict[str, Any] = {"name": str(model.name), "class": type(model).__name__}
    if model.built:
        total, trainable = count(model.weights), count(model.trainable_weights)
        found["parameters"] = {"total": total, "trainable": trainable, "non_trainable": total - trainable}
    found["layers"] = [
        {"name": str(layer.name), "class": type(layer).__name__, "parameters": count(layer.weights)}
        for layer in list(model.layers)[:MAX_LAYERS]
    ]
    return found


def _optimizers(model: Any) -> Any:
    found = {name: {"class": type(o).__name__, **_simple(o.get_config())} for name, o in own_optimizers(model).items()}
    return next(iter(found.values())) if len(found) == 1 else found or None


def _compiled(model: Any) -> dict[str, Any]:
    """The arguments of ``compile`` as plain values; those that were not given are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of lambdas, which are only named here
        given = cast("dict[str, Any]", model.get_compile_config())
    plain = {name: _simple(value) for name, value in given.items() if value is not None}
    return plain | {"optimizer": _optimizers(model)}


def _simple(value: Any) -> Any:
    """Keras's serialized form without its wrapping: ``{"class": …, **config}``, and functions by their names."""
    if isinstance(value, (list, tuple)):
        return [_simple(item) for item in cast("Sequence[Any]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    if "class_name" not in fields or "config" not in fields:
        return {name: _simple(item) for name, item in fields.items() if item is not None}
    kind, config = str(fields["class_name"]), fields["config"]
    if kind == "__lambda__":
        return "lambda"
    return {"class": kind, **_simple(config)} if isinstance(config, dict) else _simple(config)

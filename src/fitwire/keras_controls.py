"""What a watcher may ask of a Keras ``fit``: part of the front door in :mod:`fitwire.keras`.

All of it is carried out before a batch, on the thread that trains, where nothing is half done. The model's state is
touched only where a command needs it: on jax that brings it home, and fit takes it up again before the batch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import keras

from fitwire.train.controls import Done, Handler, Knob, make_knob
from fitwire.train.run import Run
from fitwire.train.values import as_array

__all__ = ["Steering", "hold_state", "own_optimizers", "surroundings"]

ENDINGS = (".weights.h5", ".keras")
SCHEDULED = "a LearningRateSchedule sets the learning rate, so it cannot be set to a number"


def own_optimizers(model: Any) -> dict[str, Any]:
    """By attribute: one for most models, several e.g. for a generator and its critic."""
    kind = cast(Any, keras).optimizers.Optimizer
    everything = cast("dict[str, Any]", vars(model))
    found = {name: value for name, value in everything.items() if isinstance(value, kind)}
    if len(found) > 1 and "optimizer" in found and not found["optimizer"].built:
        del found["optimizer"]  # compile()'s default, which a model with optimizers of its own never uses
    return found


def hold_state(model: Any) -> None:
    """Call when the model was touched in the middle of an epoch; does something on jax only.

    Fit takes the state off the model for a batch that never comes, when the data end where nobody knew, and has no
    other place to bring it back from: the weights would be gone, or what was changed.
    """
    if hasattr(model, "_jax_state_synced"):
        whole = {
            "trainable_variables": model.trainable_variables,
            "non_trainable_variables": model.non_trainable_variables,
            "optimizer_variables": model.optimizer.variables,
            "metrics_variables": model.metrics_variables,
        }
        model._jax_state = {kind: [v.value for v in variables] for kind, variables in whole.items()}


def surroundings() -> tuple[Any, bool]:
    """The callback list of the ``fit`` that calls, None if it is not found, and whether that validates."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    for _ in range(20):
        owner = frame.f_locals.get("self")
        if frame.f_back is None:
            break
        if isinstance(owner, keras.callbacks.CallbackList):
            return owner, frame.f_back.f_locals.get("validation_data") is not None
        frame = frame.f_back
    return None, False


class Steering:
    """Carries out what is asked of one ``fit``.

    Args:
        run: Its run.
        model: The bare model: touching its plain attributes moves no state.
        whole: Gives the model with its state.
        sample: Makes a sample now and gives why not; None when none are made.
        saver: The ``ModelCheckpoint`` among the callbacks, if there is one.
        validates: Whether epochs end with a validation.

    Attributes:
        epoch: The one that goes on.
        step: Steps done.
    """

    def __init__(
        self,
        run: Run,
        model: Any,
        whole: Callable[[], Any],
        sample: Callable[[], str] | None,
        saver: Any,
        validates: bool,
    ) -> None:
        self.epoch = self.step = 0
        self._run, self._model, self._whole = run, model, whole
        self._sample, self._saver, self._validates = sample, saver, validates
        self._last_epoch = False
        self._rates: dict[str, Knob] = {}
        handlers: dict[str, Handler] = {
            "stop": self._stop, "stop_after_epoch": self._stop_after_epoch, "checkpoint": self._checkpoint,
        }  # fmt: skip
        run.steered_by(handlers | ({} if sample is None else {"sample": self._make_sample}))
        self._add_rates()

    def _add_rates(self) -> None:
        optimizers = own_optimizers(self._model)
        for name in optimizers:
            knob = make_knob("lr" if len(optimizers) == 1 else f"lr/{name}", self._rate(name), 0.0, None, None, False)
            knob.put = lambda value, name=name: self._set_rate(name, value)
            self._rates[name] = self._run.controls.add_knob(knob)

    def _rate(self, name: str) -> float:
        rate = own_optimizers(self._model)[name].learning_rate
        return float(str(as_array(getattr(rate, "value", rate))[()]))  # as it is written: 0.1, not 0.10000000149

    def _set_rate(self, name: str, value: float) -> Done:
        model = self._whole()
        before = self._rate(name)
        try:
            own_optimizers(model)[name].learning_rate = value
        except TypeError:
            return Done(before, before, "refused", SCHEDULED)
        finally:
            hold_state(model)
        return Done(before, self._rate(name))

    def epoch_ended(self, model: Any) -> None:
        """End the training if that was asked for, and tell of a learning rate that somebody else has set."""
        if self._last_epoch:
            model.stop_training = True
        for name, knob in self._rates.items():
            rate = self._rate(name)
            if rate != knob.value:
                knob.value = rate
                self._run.controls.add_knob(knob)

    def _rest(self) -> str:
        return ", with its closing validation" if self._validates else ""

    def _stop(self, arguments: Mapping[str, Any]) -> Done:
        self._model.stop_training = True
        batches = int(getattr(self._model, "steps_per_execution", 1) or 1)
        more = "the batch that begins now" if batches == 1 else f"the {batches} batches that are executed now"
        return Done(reason=f"the epoch ends after {more}{self._rest()}")

    def _stop_after_epoch(self, arguments: Mapping[str, Any]) -> Done:
        self._last_epoch = True
        return Done(status="accepted", reason=f"training ends after epoch {self.epoch}{self._rest()}")

    def _make_sample(self, arguments: Mapping[str, Any]) -> Done:
        why = cast(Callable[[], str], self._sample)()
        return Done(status="failed" if why else "applied", reason=why)

    def _checkpoint(self, arguments: Mapping[str, Any]) -> Done:
        given = arguments.get("path")
        if given is None and self._saver is None:
            return Done(status="refused", reason="there is no ModelCheckpoint among the callbacks: ask with a path")
        path = self._saver_path() if given is None else Path(str(given)).expanduser()
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is None:
            return Done(status="refused", reason=f"{path.name}: a checkpoint ends in .keras or .weights.h5")
        if not path.parent.is_dir():
            return Done(status="refused", reason=f"there is no folder {path.parent}")
        model = self._whole()
        part = path.with_name(f".{path.name}.{os.getpid()}{ending}")  # half a file never stands under its name
        try:
            (model.save_weights if ending == ".weights.h5" else model.save)(part)
            part.replace(path)
        finally:
            hold_state(model)
            part.unlink(missing_ok=True)
        return Done(after=str(path.absolute()))

    def _saver_path(self) -> Path:
        """Where the ModelCheckpoint saves; beside it, where it keeps the best or names files by what is not known."""
        pattern = str(self._saver.filepath)
        try:
            path = Path(pattern.format(epoch=self.epoch + 1, batch=self.step))
            keep = bool(self._saver.save_best_only)
        except (KeyError, IndexError, ValueError):
            path, keep = Path(pattern), True
        if not keep:
            return path
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), ".keras")
        stem = path.name.removesuffix(ending).partition("{")[0].rstrip("-_.") or "checkpoint"
        return path.with_name(f"{stem}-step-{self.step}{ending}")

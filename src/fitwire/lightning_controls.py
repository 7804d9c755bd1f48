"""What a watcher may ask of a Lightning ``fit``: part of the front door in :mod:`fitwire.lightning`.

All of it is carried out before a training batch, on the thread that trains and on every rank, never within a validation
or a sanity check. What comes then waits for the next batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fitwire.train.controls import Done, Handler, Knob, make_knob
from fitwire.train.run import Run

__all__ = ["Steering", "learning_rates"]

PLATEAU = "ReduceLROnPlateau"
"""Scales the learning rate that it finds: it may be set."""
ENDING = ".ckpt"


def learning_rates(optimizers: Sequence[Any]) -> dict[str, Any]:
    """``learning_rate``; of several, by optimizer and group, named as Lightning's ``LearningRateMonitor`` does."""
    return {name: group["lr"] for name, _, group in _groups(optimizers)}


def _groups(optimizers: Sequence[Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    names: list[str] = []
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        label = f"{kind}-{names.count(kind)}" if kind in names else kind
        names.append(kind)
        for index, group in enumerate(optimizer.param_groups, 1):
            parts = [label] if len(optimizers) > 1 else []
            if len(optimizer.param_groups) > 1:
                parts.append(str(group.get("name") or f"pg{index}"))
            yield "/".join(["learning_rate", *parts]), optimizer, group


class Steering:
    """Carries out what is asked of one ``fit``.

    Args:
        run: Its run.
        trainer: Lightning's.
        sample: Makes a sample now; None when none are made.
    """

    def __init__(self, run: Run, trainer: Any, sample: Callable[[], None] | None) -> None:
        self._run, self._trainer, self._sample = run, trainer, sample
        self._last_epoch = False
        self._rates: dict[str, Knob] = {}
        handlers: dict[str, Handler] = {
            "stop": self._stop, "stop_after_epoch": self._stop_after_epoch, "checkpoint": self._checkpoint,
        }  # fmt: skip
        run.steered_by(handlers | ({} if sample is None else {"sample": self._make_sample}))

    def begin(self) -> None:
        """Offer the learning rates: now the optimizers are there, with what a checkpoint had of them."""
        found = list(_groups(self._trainer.optimizers))
        for name, _, group in found:
            self._add_rate(name.replace("learning_rate", "lr", 1), float(group["lr"]), [name])
        if len(found) > 1:
            self._add_rate("lr", float(found[0][2]["lr"]), [name for name, _, _ in found])

    def _add_rate(self, name: str, rate: float, groups: list[str]) -> None:
        knob = make_knob(name, rate, 0.0, None, None, False)
        knob.put = lambda value: self._set_rate(groups, value)
        self._rates[name] = self._run.controls.add_knob(knob)

    def _set_rate(self, names: list[str], value: float) -> Done:
        chosen = [found for found in _groups(self._trainer.optimizers) if found[0] in names]
        before = [float(group["lr"]) for _, _, group in chosen]
        shown: Any = before[0] if len(set(before)) == 1 else str(before)
        for _, optimizer, _ in chosen:
            owner = self._scheduler_of(optimizer)
            if owner:
                return Done(shown, shown, "refused", f"{owner} sets the learning rate of {type(optimizer).__name__}")
        for _, _, group in chosen:
            if hasattr(group["lr"], "fill_"):  # a tensor, for an optimizer that is captured in a graph
                group["lr"].fill_(value)
            else:
                group["lr"] = value
        return Done(shown, value)

    def _scheduler_of(self, optimizer: Any) -> str:
        for config in self._trainer.lr_scheduler_configs:
            name = type(config.scheduler).__name__
            if getattr(config.scheduler, "optimizer", None) is optimizer and name != PLATEAU:
                return name
        return ""

    def epoch_ended(self) -> None:
        """End the training if that was asked for, and tell of learning rates that somebody else has set."""
        if self._last_epoch:
            self._trainer.should_stop = True
        rates = {name.replace("learning_rate", "lr", 1): rate for name, rate in self._now().items()}
        for name, knob in self._rates.items():
            rate = float(rates.get(name, next(iter(rates.values()))))
            if rate != knob.value:
                knob.value = rate
                self._run.controls.add_knob(knob)

    def _now(self) -> dict[str, Any]:
        return learning_rates(self._trainer.optimizers)

    # -- commands

    def _rest(self) -> str:
        return ", with its closing validation" if self._trainer.enable_validation else ""

    def _stop(self, arguments: Mapping[str, Any]) -> Done:
        self._trainer.should_stop = True
        loop = self._trainer.fit_loop
        least = self._least()
        if least and arguments.get("force"):
            loop.min_epochs, loop.epoch_loop.min_steps = 0, None
        elif least:
            return Done(status="accepted", reason=f"training goes on until {least}; force stops it now")
        return Done(reason=f"the epoch ends after the batch that begins now{self._rest()}")

    def _least(self) -> str:
        """What Lightning trains for at least and has not yet; empty for nothing."""
        loop = self._trainer.fit_loop
        steps = loop.epoch_loop.min_steps
        if steps and self._trainer.global_step < steps:
            return f"min_steps={steps}"
        if loop.min_epochs and loop.epoch_progress.current.processed < loop.min_epochs:
            return f"min_epochs={loop.min_epochs}"
        return ""

    def _stop_after_epoch(self, arguments: Mapping[str, Any]) -> Done:
        self._last_epoch = True
        after = f"training ends after epoch {self._trainer.current_epoch}{self._rest()}"
        least = self._least()
        return Done(status="accepted", reason=f"{after}, or with {least} if that is later" if least else after)

    def _make_sample(self, arguments: Mapping[str, Any]) -> Done:
        cast("Callable[[], None]", self._sample)()
        return Done()

    def _checkpoint(self, arguments: Mapping[str, Any]) -> Done:
        given = arguments.get("path")
        saver = self._trainer.checkpoint_callback
        folder = getattr(saver, "dirpath", None)
        if given is None and not folder:
            return Done(status="refused", reason="there is no ModelCheckpoint among the callbacks: ask with a path")
        if given is None:
            path = Path(str(folder)) / f"step-{self._trainer.global_step}{ENDING}"
        else:
            path = Path(str(given)).expanduser().absolute()
        # Only rank 0 writes, and the others wait for it: all must know beforehand whether it can.
        why = _obstacle(path) if self._trainer.is_global_zero else ""
        if not self._trainer.strategy.reduce_boolean_decision(not why, all=True):
            return Done(status="refused", reason=why or "rank 0 cannot write there")
        self._trainer.save_checkpoint(path, weights_only=False)
        return Done(after=str(path))


def _obstacle(path: Path) -> str:
    """Why nothing can be saved there; empty when it can."""
    if path.is_dir():
        return f"{path} is a folder: name a file in it"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"no folder {path.parent}: {error.strerror or error}"
    return "" if os.access(path.parent, os.W_OK) else f"{path.parent} cannot be written to"

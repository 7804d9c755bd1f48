"""The front door for Lightning: hooks in, ``Run`` calls out.

Works for ``lightning.pytorch`` and for ``pytorch_lightning``, whichever is installed. What Lightning says is read where
it is complete and where reading it computes nothing: its metrics may reduce over ranks when they are asked for.
Longer than most: the constructor spells out every argument, and what is known of Lightning and torch stands here alone.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from fitwire.errors import UsageError
from fitwire.lightning_controls import Steering, learning_rates
from fitwire.train.ranks import Ranks
from fitwire.train.run import Run
from fitwire.train.samples import SamplePlan, interval, kept
from fitwire.train.settings import Durability, Mode, Resume, Settings, Wire, new_run_id
from fitwire.train.terminal import say

if TYPE_CHECKING:
    from lightning.pytorch import Callback

__all__ = ["ZMQProgress"]

F = TypeVar("F", bound=Callable[..., None])

SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")
"""Strategies that spread one model over ranks, so that all of them would have to run it for a sample."""


def _callback_class() -> Any:
    """The base class of whichever Lightning is there: what is loaded already, else what can be.

    The two packages' classes differ, each Trainer takes either's callbacks, and none takes a class of neither.
    """
    packages = ["lightning.pytorch", "pytorch_lightning"]
    for package in sorted(packages, key=lambda name: name not in sys.modules):
        try:
            return import_module(package).Callback
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != package.partition(".")[0]:
                raise
    raise ImportError(
        "fitwire.lightning needs Lightning: pip install 'fitwire[lightning]', or lightning, or pytorch-lightning"
    )


if not TYPE_CHECKING:
    Callback = _callback_class()


def _hook(method: F) -> F:
    """Keep a fault of the monitoring out of the training: said once for each kind, unless ``strict`` asked for it."""

    @functools.wraps(method)
    def guarded(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if self._fit is None:  # no fit is going on: validate, test or predict alone, or the run has ended
            return
        try:
            method(self, trainer, *args, **kwargs)
        except Exception as error:
            if self._settings.strict:
                raise
            self._warn(method.__name__, f"{method.__name__}: {type(error).__name__}: {error}")

    return cast(F, guarded)


class _Readings:
    """Tells what was logged since the last look from what Lightning still has from before.

    Lightning repeats the last value of a name that was not logged again. What was logged anew has memory of its own,
    because the last value is held here and its memory cannot have been used again.
    """

    def __init__(self) -> None:
        self._caches: dict[str, Any] = {}
        self._batch: dict[str, Any] = {}
        self._known: dict[str, Any] = {}

    def batch(self, trainer: Any, but: str = "") -> dict[str, Any]:
        """Values logged with ``on_step`` since the last look, except in the hook named ``but``.

        They are what ``callback_metrics`` and the loggers show, read where asking computes nothing. A tensor on a
        device is handed on as it is, because its number may not be there yet.
        """
        found: dict[str, Any] = {}
        for key, item in trainer.fit_loop.epoch_loop._results.items():
            value = item._forward_cache
            if value is None or not item.meta.on_step or self._caches.get(key) is value or item.meta.fx == but:
                continue
            self._caches[key] = value
            if hasattr(value, "data_ptr"):
                number = value.item() if value.is_cpu and value.numel() == 1 else value
                for name in (item.meta.name, item.meta.forked_name(on_step=True)):
                    self._batch[name], found[name] = value, number
        return found

    def epoch(self, trainer: Any) -> dict[str, Any]:
        """What ``callback_metrics`` holds that is new since the last call and no batch's.

        Called between epochs, when Lightning has nothing left to reduce over ranks, and on every rank.
        """
        metrics = dict(trainer.callback_metrics)
        fresh = {
            name: value
            for name, value in metrics.items()
            if not _same(value, self._known.get(name)) and not _same(value, self._batch.get(name))
        }
        self._known = metrics
        return fresh


def _same(value: Any, former: Any) -> bool:
    if value is former or not hasattr(value, "data_ptr") or not hasattr(former, "data_ptr"):
        return value is former
    return bool(value.data_ptr() == former.data_ptr())


@dataclass
class _Fit:
    """What one call of ``fit`` remembers from hook to hook.

    Attributes:
        epoch, batch, step: Of the last batch that ended; a step is a batch that stepped the optimizer, whatever their
            number, as for Lightning's loggers.
        first: Step of the epoch's first batch; None before it.
        batches: That ended in this fit.
        examples: Of the epoch so far.
        seconds: The epoch's batches took, waiting for data included, validation not.
        mark: When the batch under way began to be waited for, on the monotonic clock.
        sampled: Steps that were done at the last sample.
        validated: Whether a validation ended that has not been told of.
        rates: Learning rates the batch under way is trained with.
        values: Of the last epoch that ended.
        totals: As last told.
        steering: Does what watchers ask; None where not every rank can.
    """

    readings: _Readings = field(default_factory=_Readings)
    epoch: int = 0
    batch: int = 0
    step: int = 0
    first: int | None = None
    batches: int = 0
    examples: int = 0
    seconds: float = 0.0
    mark: float = 0.0
    sampled: int = 0
    validated: bool = False
    rates: dict[str, Any] = field(default_factory=dict[str, Any])
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    totals: dict[str, int | None] = field(default_factory=dict[str, "int | None"])
    steering: Steering | None = None

    def begin_epoch(self) -> None:
        """Nothing of it is known yet."""
        self.first, self.examples, self.seconds, self.validated = None, 0, 0.0, False

    def ended(self, step: int, epoch: int, batch: int, examples: int) -> None:
        """A batch ended."""
        if self.first is None:
            self.first = step
        if self.batches == 0:
            self.sampled = step
        self.step, self.epoch, self.batch = step, epoch, batch
        self.batches += 1
        self.examples += examples
        self.seconds += time.monotonic() - self.mark

    def due(self, every: int) -> bool:
        """Whether the batch that ended last is one to be logged; with 0 none is."""
        return every > 0 and self.batches % every == 0

    def pace(self) -> dict[str, float]:
        """``perf/step_time`` (seconds, mean) and ``perf/samples_per_second`` (of this rank) of the epoch so far."""
        if self.first is None or self.seconds <= 0:
            return {}
        found = {"perf/step_time": self.seconds / (self.step - self.first + 1)}
        return found | ({"perf/samples_per_second": self.examples / self.seconds} if self.examples else {})


class ZMQProgress(Callback):
    """Stream a Lightning fit to whoever watches.

    Sent without being asked: what the module logs, per batch and per epoch, under the names that callbacks know it by;
    ``learning_rate``, ``perf/step_time`` and ``perf/samples_per_second``; totals, the module's parameter counts, the
    optimizers, versions, and how it ended.

    Each ``fit`` is a run of its own, on all ranks the same; with a ``name``, the second is called ``name-2``, with a
    ``run_id`` it goes on with the run. Nothing is opened before training begins. Copies, pickled or not, keep the
    arguments only.

    Args:
        address: Of the hub; None for the user's own on this machine.
        project: What the run belongs to.
        name: For people; None for one that is made up.
        config: What was set; None for the ``hparams`` of the module and of the datamodule.
        tags: Words to find it by.
        group: Runs that belong together, e.g. folds.
        run_id: Text of one's own; the same text goes on with the same run.
        resume: ``"auto"`` goes on with a run of that id, ``"must"`` needs one, ``"never"`` starts a new one.
        mode: ``"online"``; ``"offline"`` writes the journal only, for ``fitwire sync``; ``"disabled"`` does nothing.
        dir: Folder for the journal, in which records wait for a hub; None for the data folder.
        wire: ``"fw"``; ``"pair"`` for a ``PairedReceiver``; ``"sleap"`` for SLEAP's LossViewer.
        wait: Seconds to wait for a hub before training without one.
        control: Whether watchers may steer: stop, pause, set the learning rate, save a checkpoint, ask for a sample.
        strict: Raise what would be a warning: a bad name or value, or no hub within ``wait``.
        durability: ``"memory"``: a kill of the process may cost what was logged in its last 20 ms; ``"process"``:
            nothing, for a microsecond or two more a call.
        log_freq: ``"batch"``, ``"epoch"``, or every so many batches.
        samples: Inputs (a tensor; several by name in a dict), a pair ``(inputs, targets)`` as tuple or list, or a
            function that takes the module and returns a dict of arrays. Called in evaluation mode, without gradients;
            modes, buffers, random states and gradients are put back exactly.
        sample_freq: ``"epoch"``, or every so many optimizer steps.
        sample_names: What the samples go by, or one text for each example.
        what: What is being trained, in a word; watchers see it.

    Attributes:
        run: The run of the last ``fit``; None before it.

    Raises:
        UsageError: An argument that cannot be used; the message names the choices.
        AddressError: An address that cannot be used.

    Example:
        >>> import lightning.pytorch
        >>> callback = ZMQProgress(project="digits", samples=torch.zeros(8, 1, 28, 28), sample_freq=200)
        >>> callback.run is None  # until Trainer(callbacks=[callback]).fit(...)
        True
    """

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
        self._settings = Settings(
            address=address, project=project, name=name, config=config, tags=tags, group=group, run_id=run_id,
            resume=resume, mode=mode, dir=dir, durability=durability, wire=wire, wait=wait, control=control,
            strict=strict,
        )  # fmt: skip
        every = interval("log_freq", log_freq, ("batch", "epoch"))
        self._log_every = every or (1 if log_freq == "batch" else 0)
        interval("sample_freq", sample_freq, ("epoch",))
        self._plan = None if samples is None else SamplePlan(samples, sample_freq, sample_names, pairs=(tuple, list))
        if not isinstance(what, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"what={str(what)[:40]!r}: pass a text")
        self._what = what
        self.run: Run | None = None
        self._fit: _Fit | None = None
        self._fits = 0

    def __getstate__(self) -> dict[str, Any]:
        """The configuration: a copy belongs to another training, often to another process."""
        return self.__dict__ | {"run": None, "_fit": None, "_fits": 0}

    # -- the beginning and the end

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the run. Tuning does not come here: it leaves before, or has the callbacks put away."""
        self._end()
        settings, shared = self._settings, None
        self._fits += 1
        if settings.name and self._fits > 1 and not settings.run_id:
            settings = replace(settings, name=f"{settings.name}-{self._fits}")
        if trainer.world_size > 1:
            # Whatever settings and environment of each rank say: one that skips this would hang the others.
            told = (settings.run_id, settings.name, new_run_id().hex())
            run_id, name, shared = trainer.strategy.broadcast(told)
            if run_id is not None and settings.resume == "never":
                settings = replace(settings, run_id=shared, name=name or run_id, resume="auto")
            else:
                settings = replace(settings, run_id=run_id, name=name)
        self.run, self._fit = None, _Fit()
        try:
            self._begin(trainer, pl_module, settings, shared)
        finally:
            if self.run is None or settings.mode == "disabled":
                self._fit = None
            # Of every rank, too: what one does not hear, none may do.
            if trainer.world_size == 1 or trainer.strategy.reduce_boolean_decision(self._fit is not None, all=True):
                self._steer(trainer, pl_module)

    @_hook
    def _steer(self, trainer: Any, pl_module: Any) -> None:
        run, fit = self._open()
        if trainer.world_size == 1 or Ranks.are_there(trainer.world_size):
            sample = None if self._plan is None else lambda: self._sample(trainer, pl_module)
            fit.steering = Steering(run, trainer, sample)

    @_hook
    def _begin(self, trainer: Any, pl_module: Any, settings: Settings, shared: str | None) -> None:
        if settings.config is None:
            settings = replace(settings, config=_hparams(trainer.datamodule) | _hparams(pl_module))
        info = _about(trainer) | ({"what": self._what} if self._what else {})
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        self.run = Run(settings, info, shared_id=shared, **ranks)
        self.run.status_at_exit = "interrupted"

    @_hook
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell what is being trained; before this, a checkpoint may still have changed it."""
        run, fit = self._open()
        fit.totals = _totals(trainer)
        run.describe(totals=fit.totals, model=_model(pl_module), optimizer=_optimizers(trainer.optimizers))
        if fit.steering is not None:
            fit.steering.begin()
        fit.readings.epoch(trainer)
        fit.mark = time.monotonic()

    @_hook
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last epoch's values are complete now; they are the run's summary."""
        run, fit = self._open()
        self._end_epoch(trainer)
        run.summary.update(fit.values)

    @_hook
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run as failed, with the traceback; as interrupted after Ctrl-C or a signal."""
        run, _ = self._open()
        self._log_rest(trainer)  # computes nothing: the other ranks may not be here
        if isinstance(exception, SystemExit):  # Lightning's answer to SIGTERM
            run.finish("interrupted", reason=f"{type(exception).__name__} {exception}".strip())
        else:
            run.fail(exception)
        self._fit = None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the run, when all other hooks had their chance to fail."""
        if stage == "fit":
            self._end()

    # -- batches

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Send what was logged after our last batch end and what a validation came to; do what watchers ask."""
        self._before_batch(trainer)
        self._obey(trainer)  # also where the former fails: other ranks may wait here

    @_hook
    def _obey(self, trainer: Any) -> None:
        run, fit = self._open()
        if fit.steering is not None:
            began = time.monotonic()
            run.apply()
            fit.mark += time.monotonic() - began
        fit.rates = learning_rates(trainer.optimizers)  # at the batch's end a scheduler has set the next one's

    @_hook
    def _before_batch(self, trainer: Any) -> None:
        run, fit = self._open()
        self._log_rest(trainer)
        if fit.validated:
            fit.validated = False
            run.end_epoch(fit.readings.epoch(trainer), epoch=fit.epoch, step=fit.step)

    @_hook
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Send the batch's values, and samples where they are due."""
        run, fit = self._open()
        done = trainer.fit_loop.epoch_loop._batches_that_stepped
        fit.ended(done, trainer.current_epoch, batch_idx, _examples(batch))
        if fit.due(self._log_every):
            values = fit.readings.batch(trainer)
            for name, rate in fit.rates.items():
                values.setdefault(name, rate)
            run.log(values, step=fit.step, epoch=fit.epoch, batch=batch_idx)
        stepped = not trainer.fit_loop._should_accumulate()
        if self._plan is not None and stepped and self._plan.due(done + 1, fit.sampled):
            fit.sampled = done + 1
            self._sample(trainer, pl_module)
        fit.mark = time.monotonic()

    def _log_rest(self, trainer: Any) -> None:
        """Send what the last batch logged in hooks that Lightning calls after ours."""
        run, fit = self._open()
        if fit.first is None:
            return
        rest = fit.readings.batch(trainer, but="on_train_batch_start")
        if rest and fit.due(self._log_every):
            run.log(rest, step=fit.step, epoch=fit.epoch, batch=fit.batch)

    # -- epochs

    @_hook
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """The batch before is complete."""
        self._log_rest(trainer)

    @_hook
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Remember a validation: told of with its epoch if that ends now, else at the next batch."""
        _, fit = self._open()
        fit.validated = fit.first is not None and not trainer.sanity_checking
        fit.mark = time.monotonic()

    @_hook
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Make the epoch's samples. Its values are not complete yet: the module's own hook comes after this one."""
        self._log_rest(trainer)
        if self._plan is not None and self._plan.every is None:
            self._sample(trainer, pl_module)
        _, fit = self._open()
        if fit.steering is not None:
            fit.steering.epoch_ended()

    @_hook
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The epoch before is complete now, and ``current_epoch`` is already one more."""
        run, fit = self._open()
        self._end_epoch(trainer)
        totals = _totals(trainer)  # loaders may be loaded anew, and gradients accumulated by a schedule
        if totals != fit.totals:
            fit.totals = totals
            run.describe(totals=totals)
        fit.mark = time.monotonic()

    def _end_epoch(self, trainer: Any) -> None:
        run, fit = self._open()
        if fit.first is None:
            return
        values = fit.readings.epoch(trainer)
        for name, value in (fit.rates | fit.pace()).items():
            values.setdefault(name, value)
        run.end_epoch(values, epoch=fit.epoch, step=fit.step)
        fit.values = values
        fit.begin_epoch()

    # -- samples

    def _sample(self, trainer: Any, pl_module: Any) -> None:
        run, fit = self._open()
        plan = self._plan
        strategy = type(trainer.strategy).__name__
        if strategy.startswith(SHARDED):
            self._warn("sharded", f"no samples under {strategy}: parts of the model lie on other ranks")
        elif plan is not None and trainer.is_global_zero:
            with kept(pl_module), _evaluating(pl_module):
                if plan.function is not None:
                    arrays = plan.made(plan.function(pl_module))
                else:
                    arrays = plan.arrays(_predict(trainer, pl_module, plan.inputs))
            run.sample(plan.name, step=fit.step, epoch=fit.epoch, **arrays)

    # -- inside

    def _open(self) -> tuple[Run, _Fit]:
        return cast(Run, self.run), cast(_Fit, self._fit)

    def _end(self) -> None:
        if self.run is not None and self._fit is not None:
            self.run.finish()
        self._fit = None

    def _warn(self, kind: str, sentence: str) -> None:
        if self.run is None:  # it could not be begun
            say("warning", sentence)
        else:
            self.run._warn(kind, sentence)  # pyright: ignore[reportPrivateUsage]


# -- what Lightning and torch say of themselves


def _about(trainer: Any) -> dict[str, Any]:
    package = type(trainer).__module__.partition(".")[0]
    versions = {name: str(getattr(sys.modules.get(name), "__version__", "")) for name in (package, "torch", "numpy")}
    found = {"strategy": type(trainer.strategy).__name__, "accelerator": type(trainer.accelerator).__name__}
    found |= {"precision": str(trainer.precision), "devices": trainer.num_devices}
    return {"framework": package, "versions": versions, "trainer": found | {"fast_dev_run": bool(trainer.fast_dev_run)}}


def _hparams(owner: Any) -> dict[str, Any]:
    return dict(getattr(owner, "hparams", None) or {})


def _totals(trainer: Any) -> dict[str, int | None]:
    """What there will be, where it is certain. ``estimated_stepping_batches`` would set up the data to answer."""
    batches = trainer.num_training_batches
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if 0 < batches < math.inf else None
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    varies = any(len(getattr(callback, "scheduling", ())) > 1 for callback in trainer.callbacks)
    ends = [epochs * per_epoch] if epochs is not None and per_epoch is not None and not varies else []
    # In manual optimization max_steps counts each optimizer's steps, in a mix that only the module knows.
    if trainer.max_steps >= 0 and trainer.lightning_module.automatic_optimization:
        ends.append(trainer.max_steps)
    return {"epochs": epochs, "steps_per_epoch": per_epoch, "steps": min(ends, default=None)}


def _model(module: Any) -> dict[str, Any]:
    """Its class and parameter counts, whole and by child."""

    def counted(part: Any) -> int:
        return sum(p.numel() for p in part.parameters() if not hasattr(p, "materialize"))

    return {
        "name": type(module).__name__,
        "parameters": counted(module),
        "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad and not hasattr(p, "materialize")),
        "layers": [
            {"name": name, "type": type(part).__name__, "parameters": counted(part)}
            for name, part in module.named_children()
        ],
    }


def _optimizers(optimizers: Sequence[Any]) -> Any:
    found = [{"name": type(each).__name__, **getattr(each, "defaults", {})} for each in optimizers]
    return found[0] if len(found) == 1 else found


def _examples(batch: Any) -> int:
    """Length of the first tensor in a batch; 0 when there is none."""
    if hasattr(batch, "shape"):
        return int(batch.shape[0]) if len(batch.shape) else 0
    parts: list[Any] = []
    if isinstance(batch, Mapping):
        parts = list(cast("Mapping[Any, Any]", batch).values())
    elif isinstance(batch, (list, tuple)):
        parts = list(cast("Sequence[Any]", batch))
    return next((count for count in map(_examples, parts) if count), 0)


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value, device=device)
    if isinstance(value, Mapping):
        return {key: _moved(part, device) for key, part in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_moved(part, device) for part in cast("Sequence[Any]", value)]
    return value.to(device) if hasattr(value, "to") else value


def _predict(trainer: Any, module: Any, inputs: Any) -> Any:
    """The module's own output, on its device and in the precision it is trained in."""
    precision = trainer.precision_plugin
    with precision.forward_context():
        return module(precision.convert_input(_moved(inputs, module.device)))


@contextmanager
def _evaluating(module: Any) -> Generator[None]:
    """Evaluation mode without gradients; then buffers and gradients are what they were, to the bit and the object.

    Not ``inference_mode``: a tensor that a module keeps from it cannot be used by autograd later. Flags are set one by
    one, because a module's own ``train()`` may do more than that, merging weights for instance.
    """
    parts = list(module.modules())
    buffers = [(part, name, each, each.detach().clone()) for part in parts for name, each in _buffers(part)]
    gradients = [(each, each.grad) for each in module.parameters()]
    for part in parts:
        part.training = False
    for each, _ in gradients:
        each.grad = None
    try:
        with torch.no_grad():
            yield
    finally:
        for each, gradient in gradients:
            each.grad = gradient
        for part, name, each, copy in buffers:
            part._buffers[name] = each
            if not torch.equal(each, copy):  # writing the same would still count as a change for autograd
                with torch.no_grad():
                    each.copy_(copy)


def _buffers(part: Any) -> list[tuple[str, Any]]:
    return [(name, each) for name, each in part._buffers.items() if each is not None]

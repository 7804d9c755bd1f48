"""The Lightning front door: what it tells is what Lightning says, and training does not notice it."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pl = pytest.importorskip("lightning.pytorch")
torch = pytest.importorskip("torch")

from fitwire import Monitor  # noqa: E402
from fitwire.errors import HandshakeTimeout, UsageError  # noqa: E402
from fitwire.events import Described, Log, RunEnded, RunStarted, Sample  # noqa: E402
from fitwire.lightning import ZMQProgress  # noqa: E402
from fitwire.train import run as run_module  # noqa: E402
from fitwire.train.meter import Probe  # noqa: E402
from fitwire.train.outlet import Delivery  # noqa: E402
from fitwire.train.pending import LateRow  # noqa: E402
from helpers import run_python, until  # noqa: E402
from lightning_models import QUIET, Awkward, Manual, Plain, Regression, examples, loader  # noqa: E402

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*does not have a `train_dataloader` method"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*treespec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:.*consider setting `weights_only"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*`__array__` implementation"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


class Row(NamedTuple):
    """One accepted ``log`` or ``end_epoch``."""

    time: float
    step: int
    epoch: int | None
    batch: int | None
    per: str
    values: dict[str, float]


class Tape:
    """Stands where the link would be and keeps what the training thread appended, in order."""

    made: list[Tape]

    def __init__(self, *_: Any, **__: Any) -> None:
        self.queue: deque[Any] = deque()
        self.probe = Probe()
        self.greeted = threading.Event()
        self.made.append(self)

    def start(self) -> None:
        """Nobody listens."""

    def close(self, status: str) -> Delivery:
        return self.delivery()

    def delivery(self) -> Delivery:
        return Delivery(0, 0, 0, True)

    def offer(self, nbytes: int) -> bool:
        return True

    @property
    def records(self) -> list[Any]:
        found = [record.row if isinstance(record, LateRow) else record for record in self.queue]
        return [Row(*record) if isinstance(record, tuple) else record for record in found]

    def rows(self, per: str, name: str | None = None) -> list[Row]:
        rows = [r for r in self.records if isinstance(r, Row) and r.per == per]
        return [r for r in rows if name is None or name in r.values]

    def curve(self, name: str, per: str = "batch") -> list[float]:
        return [row.values[name] for row in self.rows(per, name)]

    def only(self, kind: type[Any]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]

    def info(self) -> dict[str, Any]:
        found = dict(self.only(RunStarted)[0].info)
        for described in self.only(Described):
            if described.what == "info":
                found |= described.values
        return found


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """One tape for each run that began, in order."""
    Tape.made = []
    monkeypatch.setattr(run_module, "Uplink", Tape)
    monkeypatch.setenv("FITWIRE_LOG_LEVEL", "off")
    return Tape.made


class Reference(pl.loggers.logger.Logger):
    """What any logger of Lightning's is given."""

    name = version = "reference"

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((int(step or 0), dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Not of interest."""

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(step, metrics[name]) for step, metrics in self.logged if name in metrics]


def fit(
    module: Any = Regression,
    *,
    train: Any = None,
    val: Any = None,
    callback: Any = None,
    ckpt_path: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Train a module, or one of a class made after the seed was set; returns the module and the trainer."""
    pl.seed_everything(3, verbose=False)
    module = module() if isinstance(module, type) else module
    callbacks = [ZMQProgress() if callback is None else callback, *options.pop("callbacks", [])]
    trainer = pl.Trainer(**QUIET | {"max_epochs": 3, "callbacks": callbacks} | options)
    trainer.fit(module, loader() if train is None else train, val, ckpt_path=ckpt_path)
    return module, trainer


def labels(rows: list[Row]) -> list[tuple[int, int | None, int | None]]:
    return [(row.step, row.epoch, row.batch) for row in rows]


def test_each_batch_is_a_point_with_its_step_epoch_and_batch(tapes: list[Tape]) -> None:
    """Points per batch are batches; their values are what the module computed, under the names Lightning gives them."""
    module, _ = fit(val=loader(10))

    tape = tapes[0]
    names = ("loss", "loss_step", "only_step", "late")

    assert labels(tape.rows("batch", "loss")) == [(4 * e + b, e, b) for e in range(3) for b in range(4)]
    assert [tape.curve(name) for name in names[:2]] == [module.losses] * 2
    assert tape.curve("only_step") == [2 * loss for loss in module.losses]
    assert not tape.rows("batch", "loss_epoch") and not tape.rows("batch", "val_loss")


def test_every_epoch_value_equals_what_a_logger_is_given(tapes: list[Tape]) -> None:
    """To the last bit, and at the same step; what the module logs in its own epoch end is among them."""
    reference = Reference()
    _, trainer = fit(val=loader(10), logger=reference, log_every_n_steps=1)
    rows = tapes[0].rows("epoch")

    told = {name: [(row.step, row.values[name]) for row in rows] for name in ("loss_epoch", "only_epoch", "mine")}

    assert told == {name: reference.curve(name) for name in told}
    assert tapes[0].curve("val_loss", "epoch") == [v for _, v in reference.curve("val_loss_epoch")]
    assert [row.epoch for row in rows] == [0, 1, 2]
    assert tapes[0].curve("mine", "epoch") == [10.0, 11.0, 12.0]
    assert [(r.step, r.values["loss_step"]) for r in tapes[0].rows("batch", "loss")] == reference.curve("loss_step")
    last = {name: value.item() for name, value in trainer.callback_metrics.items()}
    (summary,) = (event.values for event in tapes[0].only(Described) if event.what == "summary")
    assert {name: value for name, value in rows[-1].values.items() if name in last}.items() <= last.items()
    assert summary == rows[-1].values
    assert set(last) - set(rows[-1].values) == {"loss_step", "only_step", "second", "late"}


def test_what_is_logged_after_our_hook_stays_with_its_batch(tapes: list[Tape]) -> None:
    """Lightning calls the module's own batch end after the callbacks': its values still carry that batch's numbers."""
    module, _ = fit(val=loader(10))

    rows = tapes[0].rows("batch", "late")

    assert [row.values["late"] for row in rows] == [pytest.approx(loss, abs=0) for loss in module.losses]
    assert labels(rows) == labels(tapes[0].rows("batch", "loss"))


def test_a_value_that_was_not_logged_again_is_not_told_again(tapes: list[Tape]) -> None:
    """Lightning repeats the last value of a name; a curve has points only where something was logged."""
    fit()

    assert labels(tapes[0].rows("batch", "second")) == [(4 * e + 1, e, 1) for e in range(3)]


def test_nothing_is_computed_that_lightning_does_not_compute(
    tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch metric may reduce over ranks when it is computed: with us it is as often as without us."""
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

    real, calls = _ResultMetric.compute, [0]

    def counted(self: Any) -> Any:
        calls[0] += 1
        return real(self)

    monkeypatch.setattr(_ResultMetric, "compute", counted)
    counts = []
    for callback in (pl.Callback(), ZMQProgress(samples=examples()[:3])):
        calls[0] = 0
        fit(val=loader(10), callback=callback, val_check_interval=0.5)
        counts.append(calls[0])

    assert counts[0] == counts[1] > 0


def test_a_tensor_on_a_device_is_handed_on_as_it_is(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking it for its number would wait for the device: that is the run's to do, later."""

    class OnDevice(torch.Tensor):
        is_cpu = False

        def item(self) -> float:
            raise AssertionError("waited for the device")

    class Elsewhere(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            result = super().training_step(batch, batch_idx)
            cached = self.trainer.fit_loop.epoch_loop._results["training_step.only_step"]
            cached._forward_cache = cached._forward_cache.as_subclass(OnDevice)
            return result

    kinds: set[tuple[str, str]] = set()
    real = run_module.Run.log

    def log(self: Any, values: Any, *args: Any, **options: Any) -> None:
        kinds.update((name, type(value).__name__) for name, value in values.items())
        real(self, {"loss": values["loss"]}, *args, **options)

    monkeypatch.setattr(run_module.Run, "log", log)
    fit(Elsewhere())

    assert {("only_step", "OnDevice"), ("loss", "float"), ("learning_rate", "float")} <= kinds
    assert ("only_step", "float") not in kinds


def test_torchmetrics_are_told_per_batch_and_per_epoch(tapes: list[Tape]) -> None:
    """A metric object logged as such: its batch value per batch, its accumulated value per epoch."""
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.error = torchmetrics.MeanAbsoluteError()
            self.step_errors: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.step_errors.append(self.error(self(batch[0]), batch[1]).item())
            self.log("mae", self.error, on_step=True, on_epoch=True)
            return self.loss(batch)

    reference = Reference()
    module, _ = fit(Measured(), logger=reference, log_every_n_steps=1)

    assert tapes[0].curve("mae_step") == module.step_errors
    assert tapes[0].curve("mae_epoch", "epoch") == [value for _, value in reference.curve("mae_epoch")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"check_val_every_n_epoch": 2}, [(7, 1)]),
        ({"val_check_interval": 0.5}, [(1, 0), (3, 0), (5, 1), (7, 1), (9, 2), (11, 2)]),
        ({"val_check_interval": 3}, [(2, 0), (6, 1), (10, 2)]),
        ({"limit_val_batches": 0}, []),
    ],
)
def test_each_validation_is_told_once_where_it_happened(
    tapes: list[Tape], options: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    """With its epoch if that ended with it, by itself in the middle, not at all in an epoch that had none."""
    reference = Reference()
    fit(val=loader(10), logger=reference, **options)

    rows = tapes[0].rows("epoch", "val_loss")

    assert [(row.step, row.epoch) for row in rows] == expected
    assert [row.values["val_loss"] for row in rows] == [value for _, value in reference.curve("val_loss_epoch")]
    assert tapes[0].curve("only_epoch", "epoch") == [value for _, value in reference.curve("only_epoch")]


def test_sanity_checking_tells_nothing(tapes: list[Tape]) -> None:
    """Its numbers are of an untrained model and of two batches; the run waits meanwhile."""
    fit(val=loader(10), num_sanity_val_steps=2, max_epochs=1)
    records = tapes[0].records

    first = next(index for index, record in enumerate(records) if isinstance(record, Row))

    # What may be asked of it is told beforehand, too.
    before = [r for r in records[:first] if not isinstance(r, Described) or r.what != "controls"]

    assert [type(record) for record in before] == [RunStarted, Described]
    assert labels(records[first : first + 1]) == [(0, 0, 0)]
    assert len(tapes[0].rows("epoch", "val_loss")) == 1


@pytest.mark.parametrize(
    ("options", "batches", "totals"),
    [
        ({}, 12, (3, 4, 12)),
        ({"fast_dev_run": True}, 1, (1, 1, 1)),
        ({"fast_dev_run": 2}, 2, (1, 2, 2)),
        ({"limit_train_batches": 3}, 9, (3, 3, 9)),
        ({"limit_train_batches": 0}, 0, None),
        ({"max_steps": 6}, 6, (3, 4, 6)),
        ({"max_epochs": -1, "max_steps": 5}, 5, (None, 4, 5)),
        ({"accumulate_grad_batches": 3}, 12, (3, 2, 6)),
    ],
)
def test_totals_are_what_will_be(
    tapes: list[Tape], options: dict[str, Any], batches: int, totals: tuple[int | None, ...] | None
) -> None:
    """Epochs, steps an epoch and steps in all, so that there is an ETA; the training ends exactly there."""
    fit(Plain(), **options)

    tape = tapes[0]
    told = tape.info().get("totals")

    assert len(tape.rows("batch")) == batches
    assert told == (totals and dict(zip(("epochs", "steps_per_epoch", "steps"), totals, strict=True)))
    assert totals is None or tape.rows("batch")[-1].step == (totals[2] or 0) - 1
    assert [end.status for end in tape.only(RunEnded)] == ["finished"]


def test_a_schedule_of_accumulation_leaves_the_end_open(tapes: list[Tape]) -> None:
    """Steps in an epoch are those of the epoch under way; what the later ones will have is not guessed."""
    told = []

    class Looks(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            told.append(tapes[0].info()["totals"])

    schedule = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    fit(Plain(), callback=schedule, callbacks=[ZMQProgress(), Looks()], max_epochs=2)

    assert [(t["steps_per_epoch"], t["steps"]) for t in told] == [(4, None)] * 4 + [(2, None)] * 4
    assert labels(tapes[0].rows("batch"))[3:] == [(3, 0, 3), (4, 1, 0), (4, 1, 1), (5, 1, 2), (5, 1, 3)]


def test_a_stream_without_length_has_no_totals(tapes: list[Tape]) -> None:
    """Nothing is said of what cannot be known."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter([examples()[i] for i in range(20)])

    fit(Plain(), train=torch.utils.data.DataLoader(Stream(), 5))

    assert tapes[0].info()["totals"] == {"epochs": 3, "steps_per_epoch": None, "steps": None}
    assert len(tapes[0].rows("batch")) == 12


def test_batches_that_share_a_step_keep_their_own_batch(tapes: list[Tape]) -> None:
    """With gradients accumulated over three batches, four batches make two steps: the last batch steps by itself."""
    reference = Reference()
    fit(accumulate_grad_batches=3, max_epochs=2, logger=reference, log_every_n_steps=1)

    expected = [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 3), (2, 1, 0), (2, 1, 1), (2, 1, 2), (3, 1, 3)]

    assert labels(tapes[0].rows("batch", "loss")) == expected
    assert [row.step for row in tapes[0].rows("epoch")] == [step for step, _ in reference.curve("loss_epoch")]


def test_a_step_is_a_batch_that_stepped_however_many_optimizers(tapes: list[Tape]) -> None:
    """``global_step`` counts each optimizer's steps; here two optimizers step by hand in every batch."""
    _, trainer = fit(Manual())

    assert [row.step for row in tapes[0].rows("batch", "loss")] == list(range(12))
    assert trainer.global_step == 24
    assert {name: value for name, value in tapes[0].rows("batch")[0].values.items() if name != "loss"} == {
        "learning_rate/SGD": 0.1, "learning_rate/SGD-1/pg1": 0.01, "learning_rate/SGD-1/pg2": 0.02,
    }  # fmt: skip
    assert [each["name"] for each in tapes[0].info()["optimizer"]] == ["SGD", "SGD"]


def test_max_steps_is_no_total_when_optimizers_step_by_hand(tapes: list[Tape]) -> None:
    """It counts each optimizer's steps, and only the module knows how many a batch has."""
    fit(Manual(), max_epochs=-1, max_steps=6)

    assert tapes[0].info()["totals"] == {"epochs": None, "steps_per_epoch": 4, "steps": None}
    assert len(tapes[0].rows("batch")) == 3


def test_the_learning_rate_is_the_one_the_batch_was_trained_with(tapes: list[Tape]) -> None:
    """A schedule that steps each batch has moved on by the batch's end."""
    module, _ = fit()

    assert tapes[0].curve("learning_rate") == module.rates
    assert tapes[0].curve("learning_rate", "epoch") == module.rates[3::4]


def test_a_fit_from_a_checkpoint_goes_on_counting(tapes: list[Tape], tmp_path: Path) -> None:
    """Steps and epochs continue where the first fit ended, and the totals are those of both."""
    _, trainer = fit(max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")

    fit(max_epochs=3, ckpt_path=tmp_path / "two.ckpt", callback=ZMQProgress(samples=examples()[:3], sample_freq=5))

    assert labels(tapes[1].rows("batch", "loss")) == [(8 + b, 2, b) for b in range(4)]
    assert labels(tapes[1].rows("epoch")) == [(11, 2, None)]
    assert tapes[1].info()["totals"]["steps"] == 12
    assert [sample.step for sample in tapes[1].only(Sample)] == [9]


def test_a_fit_from_the_middle_of_an_epoch_goes_on_there(tapes: list[Tape], tmp_path: Path) -> None:
    """Lightning does not announce the epoch then; its batches and its values are told all the same."""
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1)
    fit(max_epochs=2, callbacks=[checkpoint], enable_checkpointing=True)
    fit(
        max_epochs=2,
        ckpt_path=checkpoint.best_model_path,
        callbacks=[copy.deepcopy(checkpoint)],
        enable_checkpointing=True,
    )

    assert labels(tapes[1].rows("batch", "loss")) == [(6, 1, 2), (7, 1, 3)]
    assert labels(tapes[1].rows("epoch")) == [(7, 1, None)]


class Breaks(Plain):
    """Fails in its fifth batch."""

    error: BaseException = ValueError("the fifth batch is bad")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if len(self.losses) == 5:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [(ValueError("bad batch"), ValueError, "failed"), (KeyboardInterrupt(), SystemExit, "interrupted")],
)
def test_an_exception_ends_the_run_with_its_traceback(
    tapes: list[Tape], error: BaseException, raised: type[BaseException], status: str
) -> None:
    """Failed, or interrupted after Ctrl-C; what was logged before is told; the exception goes on to the user."""
    module = Breaks()
    module.error = error
    with pytest.raises(raised):
        fit(module)

    (ended,) = tapes[0].only(RunEnded)

    assert (ended.status, ended.step) == (status, 4)
    assert "in training_step" in ended.traceback and type(error).__name__ in ended.traceback
    assert len(tapes[0].rows("batch")) == 5 and len(tapes[0].rows("epoch")) == 1


def test_a_second_fit_is_a_second_run(tapes: list[Tape]) -> None:
    """The callback can be used again, after an end of any kind; each run has an id of its own."""
    callback = ZMQProgress(name="twice")
    with pytest.raises(ValueError, match="bad"):
        fit(Breaks(), callback=callback)
    first = callback.run.id
    fit(callback=callback, max_epochs=1)

    assert [tape.only(RunEnded)[0].status for tape in tapes] == ["failed", "finished"]
    assert callback.run.id != first and callback.run.name == "twice-2"
    assert labels(tapes[1].rows("batch", "loss")) == [(b, 0, b) for b in range(4)]


def test_validate_test_and_predict_alone_are_no_runs(tapes: list[Tape]) -> None:
    """Only ``fit`` is a training."""
    module, trainer = fit(max_epochs=1)
    told = len(tapes[0].records)
    for work in (trainer.validate, trainer.test, trainer.predict):
        work(module, loader(10), **({} if work == trainer.predict else {"verbose": False}))

    assert len(tapes) == 1 and len(tapes[0].records) == told


def test_a_copy_keeps_the_configuration_only(tapes: list[Tape]) -> None:
    """Pickled or deep-copied, even from inside a fit."""
    copies: list[Any] = []

    class Copies(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if not copies:
                copies.extend((pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)))  # noqa: S301

    callback = ZMQProgress(name="twin", samples=examples()[:3], log_freq=2)
    fit(callback=callback, callbacks=[Copies()], max_epochs=1)
    for twin in copies:
        assert twin.run is None
        fit(callback=twin, max_epochs=1)

    assert [tape.only(RunStarted)[0].name for tape in tapes] == ["twin"] * 3
    assert [len(tape.rows("batch", "loss")) for tape in tapes] == [2, 2, 2]
    assert [len(tape.only(Sample)) for tape in tapes] == [1, 1, 1]


def test_early_stopping_and_checkpoints_go_their_way(tapes: list[Tape], tmp_path: Path) -> None:
    """A run that was stopped early has finished, with the epochs it had."""
    stop = pl.callbacks.EarlyStopping("val_loss", patience=1, min_delta=1e9)
    saved = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    _, trainer = fit(val=loader(10), max_epochs=9, callbacks=[stop, saved], enable_checkpointing=True, min_epochs=1)

    assert trainer.current_epoch == 2
    assert [row.epoch for row in tapes[0].rows("epoch")] == [0, 1]
    assert tapes[0].curve("val_loss", "epoch")[0] == saved.best_model_score.item() or saved.best_model_path
    assert tapes[0].only(RunEnded)[0].status == "finished"


def test_tuning_is_no_run(tapes: list[Tape], tmp_path: Path) -> None:
    """The search for a learning rate calls ``fit``, but trains nothing anybody should watch."""
    trainer = pl.Trainer(**QUIET | {"max_epochs": 1, "callbacks": [ZMQProgress()], "default_root_dir": tmp_path})
    module = Plain()
    pl.tuner.Tuner(trainer).lr_find(module, loader(200, 2), num_training=20, update_attr=False)

    assert tapes == []

    trainer.fit(module, loader())

    assert labels(tapes[0].rows("batch", "loss")) == [(b, 0, b) for b in range(4)]


def test_config_is_the_hparams_of_module_and_datamodule(tapes: list[Tape]) -> None:
    """Unless it was given; the module's win where both have a name."""

    class Data(pl.LightningDataModule):
        def __init__(self, size: int = 5, lr: float = 9.0) -> None:
            super().__init__()
            self.save_hyperparameters(logger=False)

        def train_dataloader(self) -> Any:
            return loader(batch=self.hparams["size"])

    for config in (None, {"mine": 1}):
        trainer = pl.Trainer(**QUIET | {"max_epochs": 1, "callbacks": [ZMQProgress(config=config)]})
        trainer.fit(Plain(), datamodule=Data())

    assert [tape.only(RunStarted)[0].config for tape in tapes] == [{"size": 5, "lr": 0.05, "width": 4}, {"mine": 1}]


def test_what_is_trained_and_with_what_is_told_unasked(tapes: list[Tape]) -> None:
    """Framework and versions, model (counts, no weights), optimizer, epochs' pace."""
    module = Plain()
    module.layer.bias.requires_grad_(False)
    fit(module, callback=ZMQProgress(what="centroid"))

    info = tapes[0].info()

    assert info["framework"] == "lightning" and info["versions"] == {
        "lightning": pl.__version__, "torch": torch.__version__, "numpy": np.__version__,
    }  # fmt: skip
    assert info["model"] == {
        "name": "Plain", "parameters": 5, "trainable": 4,
        "layers": [{"name": "layer", "type": "Linear", "parameters": 5}],
    }  # fmt: skip
    assert info["optimizer"]["name"] == "SGD" and info["optimizer"]["lr"] == 0.05
    assert info["what"] == "centroid"
    for row in tapes[0].rows("epoch"):
        seconds = row.values["perf/step_time"]
        assert row.values["perf/samples_per_second"] == pytest.approx(5 / seconds)


@pytest.mark.parametrize(("log_freq", "batches"), [("batch", range(12)), (5, (4, 9)), ("epoch", ())])
def test_log_freq_says_which_batches_are_told(tapes: list[Tape], log_freq: Any, batches: Any) -> None:
    """Every batch, every n-th, or none; epochs always, and without the values of single batches."""
    module, _ = fit(callback=ZMQProgress(log_freq=log_freq))

    assert [row.step for row in tapes[0].rows("batch", "loss")] == list(batches)
    assert tapes[0].curve("loss") == [module.losses[batch] for batch in batches]
    assert [row.step for row in tapes[0].rows("batch", "late")] == list(batches)
    assert len(tapes[0].rows("epoch", "loss_epoch")) == 3
    assert not tapes[0].rows("epoch", "only_step") and not tapes[0].rows("epoch", "late")


@pytest.mark.parametrize(
    "options",
    [
        {"log_freq": "step"}, {"log_freq": 0}, {"log_freq": True}, {"sample_freq": "batch"}, {"sample_freq": -1},
        {"samples": (torch.zeros(2, 4), torch.zeros(3, 1))}, {"samples": [torch.zeros(2, 4)]}, {"wire": "http"},
        {"resume": "maybe"}, {"mode": "on"}, {"tags": "one"}, {"address": "no address!"}, {"wait": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_option_is_refused_before_anything_starts(options: dict[str, Any]) -> None:
    """In the constructor, by a sentence that names it."""
    with pytest.raises(UsageError) as refusal:
        ZMQProgress(**options)

    assert next(iter(options)) in str(refusal.value) or "address" in options


def test_a_constructor_opens_nothing(fitwire_dir: Path) -> None:
    """No file, folder or thread before a training starts."""
    threads = threading.active_count()
    ZMQProgress(samples=examples()[:3])

    assert list(fitwire_dir.iterdir()) == []
    assert threading.active_count() == threads


def test_disabled_tells_nothing(tapes: list[Tape]) -> None:
    """``mode="disabled"`` leaves the training alone."""
    asked = []
    fit(callback=ZMQProgress(mode="disabled", samples=lambda model: asked.append(model)))

    assert tapes == [] and asked == []


# -- samples


@pytest.mark.parametrize("kind", ["inputs", "tuple", "list", "numpy", "function"])
def test_samples_are_the_models_own_output_on_the_same_weights(tapes: list[Tape], kind: str) -> None:
    """Bit for bit, in evaluation mode, with the weights of the moment; inputs and targets come along as given."""
    x, y = examples()[:3]
    weights: list[dict[str, Any]] = []

    class Keeps(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            weights.append(copy.deepcopy(pl_module.state_dict()))

    given = {
        "inputs": x, "tuple": (x, y), "list": [x, y], "numpy": (x.numpy(), y.numpy()),
        "function": lambda model: {"out": model(x), "training": np.array([model.training])},
    }  # fmt: skip
    fit(Awkward(), callback=ZMQProgress(samples=given[kind], sample_names="lines"), callbacks=[Keeps()])
    samples, twin = tapes[0].only(Sample), Awkward().eval()

    for sample, state in zip(samples, weights, strict=True):
        twin.load_state_dict(state)
        with torch.no_grad():
            expected = twin(x).numpy()

        assert sample.name == "lines"
        assert sample.arrays["out" if kind == "function" else "prediction"].tobytes() == expected.tobytes()
    assert [(s.step, s.epoch) for s in samples] == [(3, 0), (7, 1), (11, 2)]
    if kind == "function":
        assert not any(sample.arrays["training"] for sample in samples)
    else:
        assert set(samples[0].arrays) == {"input", "prediction"} | (set() if kind == "inputs" else {"target"})
        assert samples[0].arrays["input"].tobytes() == x.numpy().tobytes()


@pytest.mark.parametrize(("freq", "steps"), [(1, range(6)), (2, (1, 3, 5)), (4, (3,))])
def test_samples_every_n_steps_are_made_when_a_step_is_done(tapes: list[Tape], freq: int, steps: Any) -> None:
    """Gradients accumulated over three batches: of the four in an epoch, the third and the fourth make a step."""
    callback = ZMQProgress(samples=examples()[:3], sample_freq=freq)
    fit(Plain(), callback=callback, accumulate_grad_batches=3)
    records = [r for r in tapes[0].records if isinstance(r, Sample) or (isinstance(r, Row) and r.per == "batch")]
    before = [
        (records[index - 1].step, records[index - 1].batch, record.step)
        for index, record in enumerate(records)
        if isinstance(record, Sample)
    ]

    assert before == [(step, 2 + step % 2, step) for step in steps]


def careless(model: Any) -> dict[str, Any]:
    """A samples function that does all that can be done wrong."""
    torch.rand(3), np.random.rand(3), random.random()
    model.train()
    with torch.enable_grad():
        model(examples()[:4][0]).sum().backward()
    return {"out": model(examples()[:4][0])}


@pytest.mark.parametrize("samples", [examples()[:4], careless], ids=["pair", "careless"])
@pytest.mark.parametrize("freq", ["epoch", 1, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_ends_with_exactly_the_weights_it_has_without_fitwire(
    tapes: list[Tape], samples: Any, freq: Any, accumulate: int
) -> None:
    """Bit for bit: dropout, batch normalisation, shuffled data, gradients that live from batch to batch."""
    ends: list[Any] = []
    for callback in (pl.Callback(), ZMQProgress(samples=samples, sample_freq=freq)):
        module, trainer = fit(
            Awkward, callback=callback, train=loader(shuffle=True), val=loader(10), accumulate_grad_batches=accumulate
        )
        chance = (torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate())
        flags = [part.training for part in module.modules()]
        state = {name: value.numpy().tobytes() for name, value in module.state_dict().items()}
        ends.append((state, module.losses, chance, flags, trainer.optimizers[0].state_dict()["param_groups"]))

    assert len(tapes[0].only(Sample)) >= 2
    assert ends[0] == ends[1]


def test_gradients_that_live_from_batch_to_batch_are_left_alone(tapes: list[Tape]) -> None:
    """In manual optimization a module may gather them for as long as it likes."""

    class Gathers(Awkward):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            self.manual_backward(self.loss(batch))
            if batch_idx == 2:
                optimizer.step()
                optimizer.zero_grad()

    ends = []
    for callback in (pl.Callback(), ZMQProgress(samples=careless, sample_freq=1)):
        module, _ = fit(Gathers, callback=callback)
        ends.append([p.detach().numpy().tobytes() + p.grad.numpy().tobytes() for p in module.parameters()])

    assert len(tapes[0].only(Sample)) == 12
    assert ends[0] == ends[1]


def test_a_samples_function_that_fails_is_said_once_and_training_goes_on(tapes: list[Tape]) -> None:
    """As a warning to watchers; the module's modes are put back even so."""

    def fails(model: Any) -> Any:
        raise RuntimeError("no such layer")

    module, _ = fit(Awkward(), callback=ZMQProgress(samples=fails, sample_freq=1))
    warnings = [record.text for record in tapes[0].only(Log) if record.level == "warning"]

    assert len(warnings) == 1 and "no such layer" in warnings[0]
    assert len(tapes[0].rows("batch")) == 12 and tapes[0].only(RunEnded)[0].status == "finished"
    assert module.training and not module.layer[4].training


def test_a_strategy_that_spreads_the_model_gets_no_samples(tapes: list[Tape]) -> None:
    """Every rank would have to run it; it is said once."""

    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
        strategy_name = "spread"

    fit(Plain(), callback=ZMQProgress(samples=examples()[:3]), strategy=FSDPStrategy(torch.device("cpu")))

    assert tapes[0].only(Sample) == []
    assert [r.text for r in tapes[0].only(Log)] == [
        "no samples under FSDPStrategy: parts of the model lie on other ranks"
    ]


def test_the_loader_is_iterated_by_nobody_else(tapes: list[Tape]) -> None:
    """Not even for a sample: it would take random numbers and workers."""
    counts = []
    for callback in (pl.Callback(), ZMQProgress(samples=examples()[:3])):
        data, calls = loader(), [0]

        class Counted(type(data)):
            def __iter__(self, calls: list[int] = calls) -> Any:
                calls[0] += 1
                return super().__iter__()

        data.__class__ = Counted
        fit(Plain(), train=data, callback=callback)
        counts.append(calls[0])

    assert counts[0] == counts[1] == 3


def test_strict_raises_what_would_be_a_warning(tapes: list[Tape]) -> None:
    """``strict=True`` is for those who would rather stop."""
    with pytest.raises(UsageError, match="return a dict"):
        fit(Plain(), callback=ZMQProgress(samples=lambda model: 3, strict=True))


def test_a_run_that_cannot_begin_leaves_training_alone(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and the training goes on unwatched."""

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("disk is gone")

    monkeypatch.setattr("fitwire.lightning.Run", broken)
    module, trainer = fit(callback=ZMQProgress(samples=examples()[:3]), val=loader(10))

    assert trainer.global_step == 12 and len(module.losses) == 12


def test_strict_with_a_wait_needs_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a training that nobody answers does not start."""
    monkeypatch.setenv("FITWIRE_LOG_LEVEL", "off")
    callback = ZMQProgress(wait=0.05, strict=True)
    with pytest.raises(HandshakeTimeout):
        fit(callback=callback)

    assert callback.run is None


# -- with a monitor, across processes

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
PROGRAM = Path(__file__).with_name("lightning_program.py")


def start(kind: str, folder: Path, *launcher: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent)}
    command = [sys.executable, *launcher, str(PROGRAM), kind, str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status, and what was written to stderr."""
    try:
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait()
    return process.returncode, errors


def test_twenty_epochs_watched_from_another_process(tmp_path: Path) -> None:
    """Waiting, running, finished; points per batch are batches; every epoch value and sample equals Lightning's own."""
    with Monitor() as monitor:
        process = start("watched", tmp_path)
        run = monitor.wait_for_run(timeout=60)
        assert run.state == "waiting"
        print("", file=process.stdin, flush=True)
        until(lambda: run.progress.step == 39, what="ten epochs")
        assert run.state == "running"
        code, errors = ended_after_line(process)
        until(lambda: run.ended and run.badge == "complete", what="all records")
        kept = json.loads((tmp_path / "0.json").read_text())
        predictions = np.load(tmp_path / "predictions.npy")

        assert (code, run.state, run.name, run.id) == (0, "finished", "watched", kept["id"]), errors
        for name in ("loss", "loss_step"):
            curve = run.curve(name, per="batch")
            assert curve.steps.tolist() == list(range(80)) and curve.values.tolist() == kept["losses"]
        for name in ("loss", "loss_epoch", "only_epoch", "mine", "val_loss", "val_loss_epoch"):
            curve = run.curve(name, per="epoch")
            assert curve.values.tolist() == [epoch[name] for epoch in kept["epochs"]]
            assert curve.epochs.tolist() == list(range(20)) and curve.steps.tolist() == list(range(3, 80, 4))
        assert len(run.samples("samples")) == 20
        for sample, expected in zip(run.samples("samples"), predictions, strict=True):
            assert sample.arrays["prediction"].tobytes() == expected.tobytes()
            assert sample.arrays["target"].tobytes() == examples()[:3][1].numpy().tobytes()
        progress = run.progress
        assert (progress.epoch, progress.epochs, progress.steps, progress.fraction) == (19, 20, 80, 1.0)


def ended_after_line(process: subprocess.Popen[str]) -> tuple[int, str]:
    print("", file=process.stdin, flush=True)
    return ended(process)


def test_an_exception_at_batch_37_is_seen_from_another_process(tmp_path: Path) -> None:
    """Failed, with the traceback and all that was told before."""
    with Monitor() as monitor:
        code, _ = ended(start("breaks", tmp_path))
        run = monitor.wait_for_run(timeout=30)
        until(lambda: run.badge == "complete", what="all records")

        assert code == 1 and run.state == "failed"
        assert run.reason == "RuntimeError: batch 37 holds no example"
        assert "in training_step" in run.traceback and run.traceback.rstrip().endswith(run.reason)
        assert run.curve("loss", per="batch").steps.tolist() == list(range(37))
        assert run.curve("loss_epoch").epochs.tolist() == list(range(9))


@pytest.mark.parametrize(
    ("kind", "launcher"),
    [
        ("ddp", ()),
        ("ddp_spawn", ()),
        ("torchrun", ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")),
    ],
    ids=["ddp", "spawn", "torchrun"],
)
def test_two_ranks_are_one_run(tmp_path: Path, kind: str, launcher: tuple[str, ...]) -> None:
    """However they were started: one id, each rank's own batches, the reduced values alike, and nobody hangs."""
    with Monitor() as monitor:
        code, errors = ended(start(kind, tmp_path, *launcher))
        assert code == 0, errors
        (run,) = monitor.runs
        until(lambda: run.ended and run.badge == "complete", what="all records")
        curves = {name: [run.curve(name, "batch", rank=rank) for rank in (0, 1)] for name in ("loss", "own", "rank")}
        epochs = [
            run.curve(name, "epoch", rank=rank).values.tolist() for name in ("val_loss", "loss") for rank in (0, 1)
        ]

        assert run.ranks == (0, 1) and run.info["world_size"] == 2 and run.state == "finished"
        assert [curve.steps.tolist() for pair in curves.values() for curve in pair] == [list(range(12))] * 6
        assert [set(curve.values) for curve in curves["rank"]] == [{0.0}, {1.0}]
        assert curves["loss"][0].values.tolist() == curves["loss"][1].values.tolist()
        assert epochs[0] == epochs[1] and epochs[2] == epochs[3] and len(epochs[0]) == 3
        assert {sample.rank for sample in run.samples("samples")} == {0} and len(run.samples("samples")) == 3
        for file in tmp_path.glob("?.json"):
            kept = json.loads(file.read_text())
            assert kept["id"] == run.id
            assert curves["own"][int(file.stem)].values.tolist() == kept["losses"]
            assert epochs[0] == [epoch["val_loss"] for epoch in kept["epochs"]]


def test_either_lightning_will_do() -> None:
    """Without both a sentence says what to install; ``pytorch_lightning`` alone will do, for either Trainer."""
    print(
        run_python(
            """
            import sys
            sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
            try:
                import fitwire.lightning
            except ImportError as error:
                assert "fitwire[lightning]" in str(error), error
            del sys.modules["pytorch_lightning"]
            import torch, pytorch_lightning
            from fitwire.lightning import ZMQProgress

            assert issubclass(ZMQProgress, pytorch_lightning.Callback)
            assert "lightning.pytorch" not in sys.modules
            del sys.modules["lightning"]
            import lightning.pytorch

            data = torch.utils.data.DataLoader(torch.ones(6, 2), 2)
            for package in (pytorch_lightning, lightning.pytorch):
                class Module(package.LightningModule):
                    def __init__(self):
                        super().__init__()
                        self.layer = torch.nn.Linear(2, 1)

                    def training_step(self, batch, batch_idx):
                        loss = self.layer(batch).mean()
                        self.log("loss", loss)
                        return loss

                    def configure_optimizers(self):
                        return torch.optim.SGD(self.parameters(), 0.1)

                callback = ZMQProgress()
                package.Trainer(
                    max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False,
                    enable_progress_bar=False, accelerator="cpu",
                ).fit(Module(), data)
                assert (callback.run.status, callback.run.step) == ("finished", 5)
                assert not {k: v for k, v in callback.run.warnings.items() if v}, callback.run.warnings
            """.replace("\n            ", "\n"),
            FITWIRE_LOG_LEVEL="off",
        )
    )

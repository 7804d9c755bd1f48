"""A training that tests start in a process of its own: ``lightning_program.py KIND FOLDER``.

What it computed is written to ``FOLDER``, so that it can be compared with what a monitor was told. ``watched`` waits
for a line on its input before the first batch and again after ten epochs.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from fitwire.lightning import ZMQProgress
from lightning_models import QUIET, Regression, examples, loader

X, Y = examples()[:3]


class Keeps(pl.Callback):
    """Remembers what the framework says of itself, for the test to compare."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.predictions: list[np.ndarray[Any, Any]] = []
        self.asks = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.asks:
            input()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        if self.asks and trainer.current_epoch == 10:
            input()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        flag = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            self.predictions.append(pl_module(X).numpy().copy())
        pl_module.train(flag)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})


class Breaks(Regression):
    """Fails at the 37th batch, counted from 0."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if len(self.losses) == 37:
            raise RuntimeError("batch 37 holds no example")
        return super().training_step(batch, batch_idx)


class Shared(Regression):
    """Logs what needs all ranks."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("own", loss, on_step=True, on_epoch=False)
        self.log("rank", float(self.trainer.global_rank), on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    on_train_batch_end = pl.LightningModule.on_train_batch_end
    on_train_epoch_end = pl.LightningModule.on_train_epoch_end


def main(kind: str, folder: Path) -> None:
    """Train as ``kind`` says."""
    warnings.simplefilter("ignore")
    pl.seed_everything(1, verbose=False)
    ranks = kind not in ("watched", "breaks")
    keeps = Keeps()
    keeps.asks = kind == "watched"
    module = {"watched": Regression, "breaks": Breaks}.get(kind, Shared)()
    callback = ZMQProgress(name=kind, project="tests", samples=(X, Y), wait=20)
    options: dict[str, Any] = {"max_epochs": 3 if ranks else 20, "callbacks": [callback, keeps]}
    if ranks:
        options |= {"devices": 2, "strategy": {"torchrun": "ddp"}.get(kind, kind)}
    trainer = pl.Trainer(**QUIET | options)
    try:
        trainer.fit(module, loader(40) if ranks else loader(), loader(10))
    finally:
        if not ranks:
            np.save(folder / "predictions.npy", np.array(keeps.predictions))
        if kind != "ddp_spawn":
            kept = {"losses": module.losses, "epochs": keeps.epochs[1:], "id": callback.run and callback.run.id}
            (folder / f"{trainer.global_rank}.json").write_text(json.dumps(kept))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

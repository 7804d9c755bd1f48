"""Small Lightning modules for tests and for the programs they start."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}
"""Arguments of a Trainer that says and writes nothing."""


def examples(count: int = 20) -> TensorDataset:
    """The same regression problem each time."""
    chance = torch.Generator().manual_seed(7)
    x = torch.randn(count, 4, generator=chance)
    return TensorDataset(x, x.sum(1, keepdim=True) + 0.1 * torch.randn(count, 1, generator=chance))


def loader(count: int = 20, batch: int = 5, shuffle: bool = False) -> DataLoader[Any]:
    """Four batches of five, if not told otherwise."""
    return DataLoader(examples(count), batch, shuffle=shuffle)


class Regression(pl.LightningModule):
    """Linear regression that logs in every way there is, and remembers what each batch should have been told as."""

    def __init__(self, lr: float = 0.05, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 1)
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return ((self(x) - y) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.seen.append((self.trainer.current_epoch, batch_idx))
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("only_step", 2 * loss)
        self.log("only_epoch", 3 * loss, on_step=False, on_epoch=True)
        if batch_idx == 1:
            self.log("second", loss, on_step=True, on_epoch=False)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.log("late", self.losses[-1], on_step=True, on_epoch=False)

    def on_train_epoch_end(self) -> None:
        self.log("mine", 10.0 + self.current_epoch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), on_step=True, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Plain(Regression):
    """The same without validation, schedule or late logs."""

    validation_step = pl.LightningModule.validation_step
    on_train_batch_end = pl.LightningModule.on_train_batch_end
    on_train_epoch_end = pl.LightningModule.on_train_epoch_end

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class Manual(Plain):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, layer in zip(self.optimizers(), (self.layer, self.other), strict=True):
            optimizer.zero_grad()
            loss = ((layer(batch[0]) - batch[1]) ** 2).mean()
            self.manual_backward(loss)
            optimizer.step()
        self.losses.append(loss.item())
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        first = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        return first, torch.optim.SGD(
            [{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(self.other.parameters())]
        )


class Awkward(Plain):
    """What a careless sample would change: dropout, batch normalisation (one part of it frozen), a tensor kept."""

    validation_step = Regression.validation_step

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
        )
        self.scale: torch.Tensor | None = None

    def on_train_epoch_start(self) -> None:
        self.layer[4].eval()
        self.scale = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is None:  # made at the next call, whoever makes it, and used in backward later
            self.scale = torch.ones(1) * 1.0
        return self.layer(x) * self.scale

"""Train a small Lightning module to take noise off digits: ``python -m fitwire.demo.train_lightning``."""

# pyright: basic
# A user's program: the framework's own names have no types to be strict about.

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fitwire.demo.digits import noisy_digits, options, write_history
from fitwire.lightning import ZMQProgress

EPOCHS = 30


class Denoiser(LightningModule):
    """Three convolutions from a noisy picture to a clean one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Any) -> Any:
        """``(n, 1, 8, 8)`` to the same."""
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """One batch's loss."""
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log what the validation came to."""
        output = self(batch[0])
        self.log("val_loss", nn.functional.mse_loss(output, batch[1]))
        self.log("val_mae", nn.functional.l1_loss(output, batch[1]))

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class History(Callback):
    """Lightning's own epoch values, kept for the comparison at the end: a user has no need of it."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def _keep(self, trainer: Trainer) -> None:
        for name in ("train_loss_epoch", "val_loss", "val_mae"):
            if name in trainer.callback_metrics:
                self.values.setdefault(name, []).append(float(trainer.callback_metrics[name]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch's values are complete when the next one begins."""
        if trainer.current_epoch > 0:
            self._keep(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last one's when training ends."""
        self._keep(trainer)


def main() -> None:
    """Train, as a user would; one line of it is fitwire's."""
    args = options(__doc__, EPOCHS)
    torch.set_num_threads(1)  # so small a model is slower on two, and much slower on two busy ones
    seed_everything(1, verbose=False)
    train, validation = (
        TensorDataset(*(torch.from_numpy(one.transpose(0, 3, 1, 2).copy()) for one in pair)) for pair in noisy_digits()
    )
    history = History()
    progress = ZMQProgress(args.address, project="demo", name="digits", samples=validation[:12])
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[progress, history],
    )
    trainer.fit(Denoiser(), DataLoader(train, batch_size=16, shuffle=True), DataLoader(validation, batch_size=360))
    write_history(args.history, history.values)


if __name__ == "__main__":
    main()

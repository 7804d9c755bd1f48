"""Lightning trainings that tests steer from outside: ``lightning_steered_program.py KIND FOLDER``.

``alone``: a fit that nobody watches, the same one watched, and a long one to be stopped. ``ddp``: a long one on two
ranks. ``loop``: two processes of torchrun with a loop of their own; ``one``: only one of them is watched. What came of
them is written to ``FOLDER``.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from fitwire.lightning import ZMQProgress
from lightning_models import QUIET, Regression, examples, loader

KIND, FOLDER = sys.argv[1], Path(sys.argv[2])


class Slow(pl.Callback):
    """Leaves a watcher time, and keeps what each batch was trained with."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches = 0
        self.rates: list[float] = []
        self.begun: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.batches += 1
        self.rates.append(float(trainer.optimizers[0].param_groups[0]["lr"]))
        self.begun.append(time.time())
        time.sleep(self.seconds)


class Plain(Regression):
    """Without a schedule."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    on_train_batch_end = pl.LightningModule.on_train_batch_end
    on_train_epoch_end = pl.LightningModule.on_train_epoch_end

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)


def weights(module: pl.LightningModule) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in module.parameters())


def trained(callbacks: list[Any], epochs: int, **options: Any) -> tuple[pl.Trainer, Plain]:
    pl.seed_everything(1, verbose=False)
    module = Plain()
    trainer = pl.Trainer(**QUIET | {"callbacks": callbacks, "max_epochs": epochs} | options)
    trainer.fit(module, loader(40), loader(10))
    return trainer, module


def alone() -> None:
    _, plain = trained([], 5)
    _, watched = trained([ZMQProgress(name="paused", wait=20), Slow(0.1)], 5)
    slow = Slow(0.02)
    callback = ZMQProgress(name="steered", wait=20, samples=examples(4)[:][0], sample_freq=10**6)
    trainer, _ = trained([callback, slow], 3000)
    facts = {"same": weights(plain) == weights(watched), "batches": slow.batches, "rate": slow.rates[-1]}
    (FOLDER / "facts.json").write_text(json.dumps(facts | {"epoch": trainer.current_epoch}))


def ddp() -> None:
    slow = Slow(0.01)
    trainer, _ = trained([ZMQProgress(name="ddp", wait=20), slow], 3000, devices=2, strategy="ddp")
    facts = {"batches": slow.batches, "rates": slow.rates, "begun": slow.begun}
    (FOLDER / f"{trainer.global_rank}.json").write_text(json.dumps(facts))


def loop() -> None:
    import torch.distributed as dist

    import fitwire

    dist.init_process_group("gloo")
    rank, rates, begun = dist.get_rank(), [], []
    mode = "disabled" if rank and KIND == "one" else "online"
    with fitwire.init(name=KIND, wait=20, mode=mode) as run:
        lr = run.knob("lr", 0.01, low=0.0, high=1.0)
        for step in range(300 if KIND == "one" else 100_000):
            run.apply()
            if run.stop_requested:
                break
            rates.append(lr.value)
            begun.append(time.time())
            time.sleep(0.03 if rank and step % 50 == 0 else 0.005)  # one rank is late now and then
            dist.all_reduce(torch.ones(1))
            run.log({"loss": 1.0}, step=step)
    (FOLDER / f"{rank}.json").write_text(json.dumps({"batches": len(rates), "rates": rates, "begun": begun}))
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"alone": alone, "ddp": ddp, "loop": loop, "one": loop}[KIND]()

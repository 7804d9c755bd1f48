"""A training as SLEAP's LossViewer shows it: what is to be said next, never how fast.

Windows of three generations are out there, each of which wants the loss under names of its own, and raises for every
message that lacks them; so it is said under all of them. A window cannot be asked how far it is, and follows some 80
messages a second: whoever sends takes one message at a time from here, and of batches the newest is what there is to
take. The last batch of an epoch is always said, because from it the window learns how long an epoch is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fitwire.sleap.words import write_word

__all__ = ["Show"]

TRAIN = ("loss", "train_loss", "train/loss")
"""LossViewer 1.4 reads the first, 1.5 the second, 1.6 the third of an epoch and the first of a batch."""
VALIDATION = ("val_loss", "val/loss")
"""Up to 1.5 the first; 1.6 the second."""
_TRAIN_TOO = ("train_loss_epoch", "train_loss_step", "training_loss", "training/loss", "train.loss")
_VALIDATION_TOO = (
    "val_loss_epoch", "valid_loss", "valid/loss", "validation_loss", "validation/loss", "eval_loss", "eval/loss",
)  # fmt: skip
_NOT_TRAIN = ("val", "test", "eval")
MAX_LOGS = 64
"""Metrics in one message; a window decodes them all to draw one."""
MAX_PAST = 512
"""Epochs that are remembered for a window that opens late; of more, every other is."""
AT_ONCE = 20
"""Epochs that are told one by one; of more that wait, some are left out: three messages each, in two seconds."""


@dataclass(slots=True)
class _Epoch:
    number: int
    batch: int = 0
    logs: dict[str, float] = field(default_factory=dict[str, float])
    end: dict[str, float] = field(default_factory=dict[str, float])
    total: float = 0.0
    losses: int = 0
    first_step: int | None = None


class Show:
    """What a window has been told of a training, and what is to be told next.

    Args:
        what: Which model is trained, in a word; a window compares it with that of its last ``train_begin``.
        name: Of the run.

    Example:
        >>> import json
        >>> show = Show("centroid")
        >>> for batch, loss in enumerate([0.5, 0.25]):
        ...     show.batch({"loss": loss}, epoch=0, batch=batch)
        >>> show.epoch({"loss": 0.375}, epoch=0)
        >>> [json.loads(show.next())["event"] for _ in range(show.waiting)]
        ['train_begin', 'epoch_begin', 'batch_end', 'epoch_end']
    """

    def __init__(self, what: str = "", name: str = "") -> None:
        self.what, self.name = what, name
        self._past: list[_Epoch] = []
        self._now: _Epoch | None = None
        self._over = self._told_of_epochs = False
        self.greet()

    # -- what the training says

    def batch(
        self, values: Mapping[str, Any], *, epoch: int | None = None, batch: int | None = None, step: int = 0
    ) -> None:
        """A batch has ended; without an epoch all belong to the first, without a batch they are counted by step."""
        after = self._past[-1].number + 1 if self._past else 0
        number = max(0, after) if epoch is None else epoch
        if self._now is None or self._now.number != number:
            self._open(number)
        now = self._now
        assert now is not None
        if now.first_step is None:
            now.first_step = step
        now.batch = max(0, step - now.first_step) if batch is None else batch
        now.logs = _plain(values)
        loss = _find(now.logs, TRAIN + _TRAIN_TOO, train=True)
        if loss is not None and math.isfinite(loss):
            now.total += loss
            now.losses += 1
        self._fresh = True

    def epoch(self, values: Mapping[str, Any], *, epoch: int) -> None:
        """An epoch has ended. Values of one that had ended before are only of use to a window that opens later."""
        for past in reversed(self._past):
            if past.number == epoch:
                past.end |= _plain(values)
                return
        self._told_of_epochs = True
        if self._now is None or self._now.number != epoch:
            self._open(epoch)
        self._close(values)

    def end(self) -> None:
        """The training has ended."""
        if self._past and not self._told_of_epochs:  # a loop that never says when an epoch ends
            self._close({})
        self._over = True

    def _open(self, number: int) -> None:
        self._close({})
        last = self._past[-1] if len(self._past) > self._told else None
        if last is not None and last.number == number:  # a validation in the middle of it
            self._past.pop()
            self._now = last
        else:
            self._now = _Epoch(number)

    def _close(self, values: Mapping[str, Any]) -> None:
        now, self._now = self._now, None
        if now is None:
            return
        now.end |= _plain(values)
        self._past.append(now)
        if len(self._past) > MAX_PAST:
            kept = [index for index in range(len(self._past)) if index % 2 == 0 or index == len(self._past) - 1]
            self._told = sum(index < self._told for index in kept)
            self._past = [self._past[index] for index in kept]

    # -- what a window is told

    def greet(self) -> None:
        """A window has opened, or another: it is told all from the beginning."""
        self._begun = self._ended = False
        self._told = 0
        self._said: tuple[int | None, int | None] = (None, None)
        self._queue: deque[bytes] = deque()
        self._fresh = self._now is not None

    @property
    def waiting(self) -> int:
        """Messages there are to be said at the moment, as far as can be told."""
        past = sum(2 + bool(epoch.logs) for epoch in self._past[self._told :])
        current = int(self._fresh) + int(self._opens(self._now)) if self._now is not None and self._now.logs else 0
        return len(self._queue) + past + current + (not self._begun) + (self._over and not self._ended)

    def next(self) -> bytes | None:
        """The next message; None when all is said."""
        if not self._begun:
            self._begun = True
            return write_word("train_begin", self.what, name=self.name, wandb_url=None)
        if not self._queue:
            self._fill()
        if self._queue:
            return self._queue.popleft()
        if self._over and not self._ended:
            self._ended = True
            return write_word("train_end", self.what)
        return None

    def _fill(self) -> None:
        left = len(self._past) - self._told
        if left:
            self._told += max(1, math.ceil(left / AT_ONCE))
            epoch = self._past[self._told - 1]
            self._say_batch(epoch)
            self._queue.append(write_word("epoch_end", self.what, _of_epoch(epoch), epoch=epoch.number))
        elif self._now is not None and self._fresh:
            self._fresh = False
            if _find(self._now.logs, TRAIN + _TRAIN_TOO, train=True) is not None:
                self._say_batch(self._now)

    def _opens(self, epoch: _Epoch | None) -> bool:
        return epoch is not None and self._said[0] != epoch.number

    def _say_batch(self, epoch: _Epoch) -> None:
        if self._opens(epoch):
            self._queue.append(write_word("epoch_begin", self.what, epoch=epoch.number))
        if epoch.logs and self._said != (epoch.number, epoch.batch):
            logs = _with(epoch.logs, TRAIN, _find(epoch.logs, TRAIN + _TRAIN_TOO, train=True), math.nan)
            self._queue.append(write_word("batch_end", self.what, logs, epoch=epoch.number, batch=epoch.batch))
        self._said = (epoch.number, epoch.batch if epoch.logs else None)


def _plain(values: Mapping[str, Any]) -> dict[str, float]:
    """What can be sent. A name of jsonpickle's own would make the window run it; an infinity has no place in a plot."""
    found: dict[str, float] = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if not name.startswith(("py/", "json://")):
            found[name] = number if math.isfinite(number) else math.nan
    return found


def _find(values: Mapping[str, float], names: tuple[str, ...], *, train: bool) -> float | None:
    """The loss among the values, under whatever name the training has for it."""
    for name in names:
        if name in values:
            return values[name]
    for name, value in values.items():
        if "loss" in name.lower() and name.lower().startswith(_NOT_TRAIN) != train:
            return value
    return None


def _with(values: dict[str, float], names: tuple[str, ...], value: float | None, otherwise: float) -> dict[str, float]:
    """The values, and the loss under all of its names."""
    loss = otherwise if value is None else value
    few = dict(list(values.items())[:MAX_LOGS])
    return few | {name: values.get(name, loss) for name in names}


def _of_epoch(epoch: _Epoch) -> dict[str, float]:
    mean = epoch.total / epoch.losses if epoch.losses else math.nan
    logs = _with(epoch.end, TRAIN, _find(epoch.end, TRAIN + _TRAIN_TOO, train=True), mean)
    validation = _find(epoch.end, VALIDATION + _VALIDATION_TOO, train=False)
    # A window takes one that is not finite for the best there will ever be.
    if validation is not None and math.isfinite(validation):
        logs = _with(logs, VALIDATION, validation, math.nan)
    return {name: value for name, value in logs.items() if name not in VALIDATION or math.isfinite(value)}

"""What a SLEAP training says, as events of a run: one machine a training, fed with words and times.

SLEAP up to 1.4 (Keras) says of each batch and epoch what it measured there. sleap-nn says with every message all that
Lightning knows at the moment, so what is new in it has to be found; and what its module logs when an epoch has ended,
``train/loss`` above all, is missing from that epoch's message and stands in the next one's, because Lightning runs the
callback before the module. It stands in the next epoch's first batch already, and is taken from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fitwire.events import Described, EpochEnded, Event, Metrics, RunEnded, RunStarted
from fitwire.sleap.viewers import TRAIN, VALIDATION
from fitwire.sleap.words import Dialect, Order, Word

__all__ = ["Training"]

UNNAMED = frozenset({"", "not_set"})
"""What the original trainers say of which model they train."""
BATCH_NAMES = frozenset({"loss"})
"""Of sleap-nn's metrics the one that a batch has."""
NOT_METRICS = frozenset({"epoch"})
LATE_LOSS = "train/loss"
CLOSE = 1e-5
"""Relative difference up to which two ways of adding up the same losses agree."""


class Training:
    """One training, from its first word to its end.

    Args:
        first: The first word that was heard of it; it is still to be taken.
        now: Unix seconds.

    Attributes:
        dialect: Who speaks; None until a word has shown it.
        step: Of the last batch that ended, counted from the first that was heard; -1 before.
        epoch: The one that goes on; None when not known yet.
        lr: The learning rate as the training last said it; None when it never did.
        ended: Whether it has said that it ended.
        odd: Values that were no numbers.

    Example:
        >>> from fitwire.sleap.words import Word
        >>> begin = Word(event="train_begin", what="centroid", dialect=Dialect.KERAS, logs={})
        >>> training = Training(begin, 0.0)
        >>> [type(event).__name__ for event in training.take(begin, 0.0)]
        ['RunStarted', 'Described']
        >>> batch = Word(event="batch_end", dialect=Dialect.KERAS, batch=0, logs={"loss": 0.5})
        >>> [dict(event.values) for event in training.take(batch, 1.0)]
        [{'loss': 0.5}]
    """

    def __init__(self, first: Word, now: float) -> None:
        self.dialect: Dialect | None = first.dialect
        self.what = "" if first.what in UNNAMED else first.what
        self.step = -1
        self.epoch: int | None = None
        self.lr: float | None = None
        self.ended = False
        self.odd = 0
        self._joined_late = first.event != "train_begin"
        self._begun = False
        self._keras3 = False
        self._base = 0
        self._batch: int | None = None
        self._size = 0
        self._delta = _Delta(fresh=not self._joined_late)

    # -- what it says

    def take(self, word: Word, now: float) -> Iterator[Event]:
        """Yield what a word tells; the first one begins the run.

        Args:
            word: As it came.
            now: Unix seconds at which it came.
        """
        self.dialect = self.dialect or word.dialect
        self.odd += word.odd
        if not self._begun:
            self._begun = True
            yield self._start(word, now)
            yield Described(time=now, what="controls", values={"stop": {"kind": "command"}})
        if word.event == "epoch_begin" and word.epoch is not None:
            self._enter(word.epoch)
        elif word.event == "batch_end":
            yield from self._take_batch(word, now)
        elif word.event == "epoch_end":
            yield from self._take_epoch(word, now)
        elif word.event == "train_end":
            yield from self._take_end(now)

    def died(self, now: float, why: str) -> Iterator[Event]:
        """Yield what is to be said of a training that went without a word."""
        if not self.ended:
            self.ended = True
            yield RunEnded(time=now, step=self._at(), status="failed", reason=why)

    def _start(self, word: Word, now: float) -> RunStarted:
        info: dict[str, Any] = {"framework": str(self.dialect or Dialect.KERAS), "wire": "sleap"}
        if self.what:
            info["what"] = self.what
        if word.url:
            info["wandb_url"] = word.url
        if self._joined_late:
            info["heard_from"] = f"{word.event} on: steps are counted from there"
        return RunStarted(
            time=now, name=word.name or self.what or str(self.dialect or "sleap"), project="sleap", info=info
        )

    def _at(self) -> int | None:
        return self.step if self.step >= 0 else None

    def _enter(self, epoch: int) -> None:
        """An epoch begins; batches and epochs that were not heard are counted as far as their number is known."""
        if epoch == self.epoch:
            return
        if self.epoch is not None and epoch > self.epoch:
            self._size = max(self._size, 0 if self._batch is None else self._batch + 1)
            self._base += self._size * (epoch - self.epoch)
        elif self.epoch is not None:  # it begins anew
            self._base = self.step + 1
        self.epoch, self._batch = epoch, None

    def _take_batch(self, word: Word, now: float) -> Iterator[Event]:
        if word.epoch is not None:
            late = self._delta.late(word.logs) if word.epoch != self._delta.epoch else {}
            if late:
                yield EpochEnded(time=now, step=self._at(), epoch=self._delta.epoch, values=late)
            self._enter(word.epoch)
        batch = word.batch if word.batch is not None else (-1 if self._batch is None else self._batch) + 1
        if self._batch is not None and batch <= self._batch and word.epoch is None:  # the epoch's begin was not heard
            self._enter((self.epoch or 0) + 1)
        self._batch = batch
        self.step = max(self.step + 1, self._base + batch)
        values = self._of_batch(word)
        if values:
            yield Metrics(time=now, step=self.step, epoch=self.epoch, batch=batch, values=values)

    def _of_batch(self, word: Word) -> Mapping[str, float]:
        if self.dialect is not Dialect.NN:
            return self._own(word.logs)
        return self._delta.batch(word.logs, word.epoch, self._batch)

    def _own(self, logs: Mapping[str, float]) -> Mapping[str, float]:
        """Without what a fitwire training says only for a window's sake."""
        if self.dialect is not Dialect.OURS:
            return logs
        kept = dict(logs)
        for names in (TRAIN, VALIDATION):
            there = [name for name in logs if name in names]
            for place, name in enumerate(there):
                if any(_same(logs[name], logs[other]) for other in there[:place]):
                    del kept[name]
        return kept

    def _take_epoch(self, word: Word, now: float) -> Iterator[Event]:
        epoch = word.epoch if word.epoch is not None else self.epoch
        if epoch is None:
            epoch = 0
        if self.epoch is None:
            self.epoch = epoch
        values = self._own(word.logs)
        if self.dialect is Dialect.NN:
            values = self._delta.epoch_end(word.logs, epoch)
        if values:
            yield EpochEnded(time=now, step=self._at(), epoch=epoch, values=values)
        yield from self._learn(word, now)

    def _learn(self, word: Word, now: float) -> Iterator[Event]:
        """Keras 2 says ``lr``, Keras 3 ``learning_rate``; only of the first is it known that it may be set."""
        if self.dialect is not Dialect.KERAS:
            return
        self._keras3 = self._keras3 or "learning_rate" in word.logs
        lr = word.logs.get("lr")
        if lr is not None and math.isfinite(lr) and lr != self.lr and not self._keras3:
            self.lr = lr
            knob = {"kind": "knob", "type": "float", "value": lr, "low": 0.0}
            yield Described(time=now, step=self._at(), what="controls", values={"lr": knob})

    def _take_end(self, now: float) -> Iterator[Event]:
        self.ended = True
        last = self._delta.last_loss()
        if last is not None:
            yield EpochEnded(time=now, step=self._at(), epoch=self._delta.epoch, values={LATE_LOSS: last})
        yield RunEnded(time=now, step=self._at(), status="finished")

    # -- what may be asked of it

    def refusal(self, order: Order) -> str | None:
        """Why it must not be sent an order; None when it may.

        sleap-nn ignores ``set_lr``. SLEAP under Keras 3 dies of it, so it has to have shown that it is not.
        """
        if self.ended:
            return "the training has ended"
        if order.name == "stop" or self.dialect is Dialect.OURS:
            return None
        if self.dialect is Dialect.NN:
            return "sleap-nn knows no command but stop"
        if self._keras3:
            return "SLEAP under Keras 3 would crash"
        if self.dialect is None or self.lr is None:
            return (
                "SLEAP has not said its learning rate yet, by which one knows that this Keras bears to have it set; "
                "it does at the end of an epoch, if ReduceLROnPlateau is on"
            )
        return None


def _same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)


class _Delta:
    """What is new in sleap-nn's messages, each of which says all.

    Args:
        fresh: Whether it is heard from its beginning; then what an epoch's first message lacks is known to come late.

    Attributes:
        epoch: The last whose end was heard; None before.
    """

    def __init__(self, *, fresh: bool) -> None:
        self.epoch: int | None = None
        self._fresh = fresh
        self._per_batch = set(BATCH_NAMES)
        self._late: dict[str, bool] = {}  # what is known of a name: whether it comes an epoch late
        self._said: dict[str, float] = {}  # by the last batch
        self._ended: dict[str, float] | None = None  # by the last epoch's end, while what is late is to come
        self._doubtful: dict[str, float] = {}
        self._first = True
        self._sum, self._count, self._next = 0.0, 0, 0
        self._whole: float | None = None  # mean of the losses of the last epoch, when all of them were heard
        self._proven: bool | None = None

    def batch(self, logs: Mapping[str, float], epoch: int | None, batch: int | None) -> dict[str, float]:
        """What a batch has measured."""
        if self._first and self._fresh:
            self._per_batch |= set(logs) - NOT_METRICS
        self._first = False
        self._said = dict(logs)
        if batch == 0:
            self._sum, self._count, self._next = 0.0, 0, 0
        if batch == self._next and "loss" in logs:
            self._sum, self._count, self._next = self._sum + logs["loss"], self._count + 1, self._next + 1
        else:
            self._next = -1
        return {name: value for name, value in logs.items() if name in self._per_batch}

    def epoch_end(self, logs: Mapping[str, float], epoch: int) -> dict[str, float]:
        """What an epoch has measured, as far as its own message says it."""
        names = [name for name in logs if name not in self._per_batch and name not in NOT_METRICS]
        found: dict[str, float] = {}
        self._doubtful = {}
        for name in names:
            late = self._late.get(name)
            if late is None and name in self._said and _same(self._said[name], logs[name]):
                self._doubtful[name] = logs[name]  # of this epoch, or of the one before
            elif not late:
                if late is None:
                    self._late[name] = False
                found[name] = logs[name]
        self.epoch, self._ended = epoch, dict(logs)
        self._whole = self._sum / self._count if self._count and self._next == self._count else None
        return self._measured(found)

    def _measured(self, found: dict[str, float]) -> dict[str, float]:
        """Without what was not measured again: a group of names of which not one has changed, e.g. ``eval/``."""
        groups: dict[str, bool] = {}
        for name, value in found.items():
            changed = name not in self._said or not _same(self._said[name], value)
            group = name.partition("/")[0]
            groups[group] = groups.get(group, False) or changed
        return {name: value for name, value in found.items() if groups[name.partition("/")[0]]}

    def late(self, logs: Mapping[str, float]) -> dict[str, float]:
        """What the next epoch's first batch tells of the epoch before."""
        ended, self._ended = self._ended, None
        if ended is None:
            return {}
        found: dict[str, float] = {}
        for name, value in logs.items():
            if name in self._per_batch or name in NOT_METRICS or self._late.get(name) is False:
                continue
            if name in self._doubtful:
                if not _same(self._doubtful[name], value):
                    self._late[name] = True
                found[name] = value
            elif self._late.get(name) or name not in ended:
                self._late[name] = True
                found[name] = value
        self._prove(found)
        return found

    def _prove(self, found: Mapping[str, float]) -> None:
        """Is ``train/loss`` the mean of the batches' losses? Then that of the last epoch, never said, is known too."""
        value = found.get(LATE_LOSS)
        if value is None or self._whole is None or self._proven is False:
            return
        self._proven = _same(value, self._whole) or math.isclose(value, self._whole, rel_tol=CLOSE)

    def last_loss(self) -> float | None:
        """``train/loss`` of the last epoch, which no message says."""
        waits = self._ended is not None and self._late.get(LATE_LOSS)
        return self._whole if waits and self._proven else None

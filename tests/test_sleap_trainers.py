"""``sleap/trainers.py``: what a training says, as events, word for word and time as a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from fitwire.events import Described, EpochEnded, Event, Metrics, RunEnded, RunStarted
from fitwire.sleap import Dialect, Order, Training, Word

Told = list[Event]


def word(event: str, dialect: Dialect | None = Dialect.NN, **fields: Any) -> Word:
    return Word(event=event, dialect=dialect, **({"logs": {}} | fields))


def tell(words: Iterable[Word]) -> tuple[Training, Told]:
    words = list(words)
    training = Training(words[0], 0.0)
    return training, [event for now, one in enumerate(words) for event in training.take(one, float(now))]


def epochs(events: Told, name: str) -> list[tuple[int | None, float]]:
    return [(e.epoch, e.values[name]) for e in events if isinstance(e, EpochEnded) and name in e.values]


def steps(events: Told) -> list[int | None]:
    return [e.step for e in events if type(e) is Metrics]


def nn(batches: list[list[float]], *, late: bool = True, begin: bool = True, **more: list[float]) -> list[Word]:
    """A training of sleap-nn: of each epoch the losses; each message says all that is known."""
    known: dict[str, float] = {}
    said = [word("train_begin")] if begin else []
    for epoch, losses in enumerate(batches):
        said.append(word("epoch_begin", epoch=epoch))
        for batch, loss in enumerate(losses):
            known["loss"] = loss
            said.append(word("batch_end", epoch=epoch, batch=batch, logs=dict(known)))
        known["val/loss"] = 0.1 * (epoch + 1)
        known |= {name.replace("_", "/", 1): values[epoch] for name, values in more.items()}
        module = {"train/loss": sum(losses) / len(losses)}
        known |= {} if late else module
        said.append(word("epoch_end", epoch=epoch, logs=dict(known)))
        known |= module
    return [*said, word("train_end")]


def test_a_run_begins_with_the_first_word_and_says_what_can_be_asked() -> None:
    """Its name is the model's where the training says one, else the dialect's; a stop can be asked for always."""
    _, named = tell([word("train_begin", Dialect.KERAS, what="centroid", url="https://wandb.ai/x")])
    _, unnamed = tell([word("train_begin", Dialect.KERAS, what="not_set")])
    _, nothing = tell([word("train_begin")])

    begin, described = named
    assert isinstance(begin, RunStarted) and (begin.name, begin.project) == ("centroid", "sleap")
    assert begin.info == {"framework": "sleap", "wire": "sleap", "what": "centroid", "wandb_url": "https://wandb.ai/x"}
    assert described == Described(time=0.0, what="controls", values={"stop": {"kind": "command"}})
    assert [e.name for e in (unnamed[0], nothing[0]) if isinstance(e, RunStarted)] == ["sleap", "sleap-nn"]


def test_what_comes_an_epoch_late_is_put_where_it_belongs() -> None:
    """Epoch k's ``train/loss`` is missing from its own message; it stands in the first batch of the next."""
    _, events = tell(nn([[4.0, 2.0], [1.0, 3.0], [0.5, 0.25]]))

    assert epochs(events, "train/loss") == [(0, 3.0), (1, 2.0), (2, 0.375)]
    assert epochs(events, "val/loss") == [(0, 0.1), (1, 0.2), (2, pytest.approx(0.3))]
    assert [e.step for e in events if isinstance(e, EpochEnded) and "train/loss" in e.values] == [1, 3, 5]


def test_what_comes_in_time_is_left_where_it_stands() -> None:
    """A later sleap-nn that logs before its callbacks are called needs no putting right."""
    _, events = tell(nn([[4.0, 2.0], [1.0, 3.0]], late=False))

    assert epochs(events, "train/loss") == [(0, 3.0), (1, 2.0)]


def test_the_last_train_loss_is_told_only_where_it_is_known_to_be_the_mean() -> None:
    """With several processes it is not the mean of what one of them says, and nobody says the last."""
    words = nn([[4.0, 2.0], [1.0, 3.0], [0.5, 0.25]])
    foreign = [word(w.event, epoch=w.epoch, batch=w.batch,
                    logs={n: v + 1 if n == "train/loss" else v for n, v in w.logs.items()}) for w in words]  # fmt: skip
    _, events = tell(foreign)
    _, alone = tell(nn([[4.0, 2.0]]))

    assert epochs(events, "train/loss") == [(0, 4.0), (1, 3.0)]
    assert epochs(alone, "train/loss") == []


def test_a_training_heard_from_the_middle_on_is_put_right_all_the_same() -> None:
    """Which values come late shows when they change between an epoch's end and the next batch."""
    words = nn([[4.0, 2.0], [1.0, 3.0], [0.5, 0.25], [8.0, 6.0]])
    _, events = tell(words[5:])  # from within the second epoch

    assert epochs(events, "train/loss") == [(1, 2.0), (2, 0.375), (3, 7.0)]
    assert [epoch for epoch, _ in epochs(events, "val/loss")] == [1, 2, 3]


def test_what_was_not_measured_again_is_not_told_again() -> None:
    """Every message repeats all that is known: an evaluation every other epoch has points in those only."""
    _, events = tell(nn([[1.0], [2.0], [3.0], [4.0]], eval_map=[0.5, 0.5, 0.6, 0.6], eval_pck=[0.1, 0.1, 0.1, 0.1]))

    assert epochs(events, "eval/map") == [(0, 0.5), (2, 0.6)]
    assert epochs(events, "eval/pck") == [(0, 0.1), (2, 0.1)]  # beside one that changed, it was measured


def test_a_batch_says_what_a_batch_measured() -> None:
    """Not the epoch's values that its message carries along."""
    _, events = tell(nn([[4.0, 2.0], [1.0, 3.0]]))

    assert [dict(e.values) for e in events if type(e) is Metrics] == [{"loss": loss} for loss in (4.0, 2.0, 1.0, 3.0)]


def keras(batches: list[int], **last: float) -> list[Word]:
    said = [word("train_begin", Dialect.KERAS)]
    for epoch, count in enumerate(batches):
        said.append(word("epoch_begin", Dialect.KERAS, epoch=epoch))
        said += [word("batch_end", Dialect.KERAS, batch=i, logs={"loss": float(i)}) for i in range(count)]
        said.append(word("epoch_end", None, epoch=epoch, logs={"loss": 1.0, "val_loss": 2.0} | last))
    return said


def test_steps_go_on_through_epochs_of_which_batches_were_lost() -> None:
    """How long an epoch is, is known from the first; PUB loses what it cannot send."""
    words = keras([4, 4, 4, 4])
    lost = [w for i, w in enumerate(words) if i not in (10, 11)]  # the last batches of the second epoch
    lost = [w for w in lost if w.epoch != 2 and not (w.event == "batch_end" and words.index(w) in range(14, 18))]
    _, whole = tell(words)
    _, rest = tell(lost)

    assert steps(whole) == list(range(16))
    assert steps(rest)[:6] == [0, 1, 2, 3, 4, 5] and steps(rest)[-4:] == [12, 13, 14, 15]


def test_an_epoch_whose_begin_was_lost_is_known_by_its_batches() -> None:
    """A batch that is not beyond the last one is another epoch's."""
    words = [w for w in keras([3, 3]) if w.event != "epoch_begin" or w.epoch == 0]
    words = [w for w in words if w.event != "epoch_end" or w.epoch != 0]
    _, events = tell(words)

    assert steps(events) == list(range(6))
    assert [e.epoch for e in events if type(e) is Metrics] == [0, 0, 0, 1, 1, 1]


def test_an_end_and_a_death_are_two_things() -> None:
    """``train_end`` is finished; one that went without it has failed, once, and with the reason."""
    ended, told = tell([*keras([1]), word("train_end", None)])
    died, _ = tell(keras([2]))
    death = list(died.died(9.0, "it was killed"))

    assert isinstance(told[-1], RunEnded) and told[-1].status == "finished"
    assert list(ended.died(9.0, "too late")) == []
    assert (
        death == [RunEnded(time=9.0, step=1, status="failed", reason="it was killed")]
        and list(died.died(9.0, "")) == []
    )


def test_the_learning_rate_is_a_knob_once_keras_2_has_said_it() -> None:
    """``lr`` is Keras 2's name, ``learning_rate`` Keras 3's, under which setting it ends the training."""
    two, told = tell(keras([1, 1], lr=0.001))
    three, never = tell(keras([1, 1], learning_rate=0.001))
    silent, _ = tell(keras([1, 1]))
    other, _ = tell(nn([[1.0], [2.0]])[:-1])
    order = Order("set_lr", 1e-4)

    knobs = [e.values["lr"] for e in told if isinstance(e, Described) and "lr" in e.values]
    assert knobs == [{"kind": "knob", "type": "float", "value": 0.001, "low": 0.0}]
    assert not [e for e in never if isinstance(e, Described) and "lr" in e.values]
    assert two.refusal(order) is None and two.lr == 0.001
    assert "would crash" in (three.refusal(order) or "") and "not said" in (silent.refusal(order) or "")
    assert "no command but stop" in (other.refusal(order) or "")
    assert [t.refusal(Order("stop")) for t in (two, three, silent, other)] == [None] * 4


def test_of_a_fitwire_training_each_value_is_taken_once() -> None:
    """For a window's sake it says its loss under three names; its own stands first."""
    logs = {"train/loss": math.nan, "acc": 0.5, "loss": math.nan, "train_loss": math.nan}
    _, events = tell([word("train_begin", Dialect.OURS, name="calm-fox"),
                      word("batch_end", Dialect.OURS, epoch=0, batch=0, logs=logs),
                      word("epoch_end", Dialect.OURS, epoch=0, logs={"val_loss": 1.0, "val/loss": 1.0})])  # fmt: skip

    assert isinstance(events[0], RunStarted) and events[0].name == "calm-fox"
    assert [list(e.values) for e in events if isinstance(e, Metrics)] == [["train/loss", "acc"], ["val_loss"]]

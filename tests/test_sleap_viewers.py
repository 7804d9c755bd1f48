"""``sleap/viewers.py``: what a LossViewer is told of a training, message by message, at no pace."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from fitwire.sleap import Show
from fitwire.sleap.viewers import AT_ONCE, MAX_LOGS, MAX_PAST, TRAIN, VALIDATION

Message = dict[str, Any]


def drain(show: Show) -> list[Message]:
    """All that there is to say."""
    said: list[Message] = []
    while (frame := show.next()) is not None:
        said.append(json.loads(frame))
    return said


def events(messages: list[Message]) -> list[tuple[str, int | None, int | None]]:
    return [(m["event"], m.get("epoch"), m.get("batch")) for m in messages]


def trained(show: Show, epochs: int, batches: int = 3) -> Show:
    for epoch in range(epochs):
        for batch in range(batches):
            show.batch({"loss": float(batch)}, epoch=epoch, batch=batch, step=epoch * batches + batch)
        show.epoch({"loss": 1.0, "val_loss": 2.0}, epoch=epoch)
    return show


def test_whoever_looks_after_each_call_sees_each_batch() -> None:
    """Begin, epoch, batches, end of epoch, end, in the order that the windows need."""
    show, said = Show("centroid", "calm-fox"), []
    for batch in range(2):
        show.batch({"loss": 0.5}, epoch=0, batch=batch)
        said += drain(show)
    show.epoch({"loss": 0.5}, epoch=0)
    show.end()
    said += drain(show)

    assert events(said) == [
        ("train_begin", None, None), ("epoch_begin", 0, None), ("batch_end", 0, 0), ("batch_end", 0, 1),
        ("epoch_end", 0, None), ("train_end", None, None),
    ]  # fmt: skip
    assert {m["what"] for m in said} == {"centroid"} and said[0]["name"] == "calm-fox"
    assert drain(show) == []


def test_of_batches_the_newest_is_said_and_the_last_of_an_epoch_always() -> None:
    """However seldom one looks: from the last batch a window learns how long an epoch is."""
    said = drain(trained(Show(), 2, batches=100))

    assert events(said) == [
        ("train_begin", None, None), ("epoch_begin", 0, None), ("batch_end", 0, 99), ("epoch_end", 0, None),
        ("epoch_begin", 1, None), ("batch_end", 1, 99), ("epoch_end", 1, None),
    ]  # fmt: skip


def test_a_window_that_opens_late_or_again_is_told_from_the_beginning() -> None:
    """The epochs that were, then what goes on."""
    show = trained(Show(), 2)
    drain(show)
    show.batch({"loss": 9.0}, epoch=2, batch=5)
    drain(show)
    show.greet()

    assert events(drain(show)) == [
        ("train_begin", None, None),
        ("epoch_begin", 0, None), ("batch_end", 0, 2), ("epoch_end", 0, None),
        ("epoch_begin", 1, None), ("batch_end", 1, 2), ("epoch_end", 1, None),
        ("epoch_begin", 2, None), ("batch_end", 2, 5),
    ]  # fmt: skip


def test_of_more_epochs_than_can_be_told_some_are_left_out_but_not_the_newest() -> None:
    """A history of a thousand epochs is told in some sixty messages, and the memory for it is bounded."""
    show = trained(Show(), 1000, batches=1)
    said = drain(show)
    ends = [m["epoch"] for m in said if m["event"] == "epoch_end"]

    assert len(ends) < 4 * AT_ONCE and ends == sorted(set(ends)) and ends[-1] == 999
    assert len(show._past) <= MAX_PAST


@pytest.mark.parametrize("name", ["loss", "train_loss", "train/loss", "train_loss_step", "my_loss", "Loss/total"])
def test_the_loss_is_said_under_every_name_that_a_window_reads(name: str) -> None:
    """Three generations, three names; a message without its own raises in the window."""
    show = Show()
    show.batch({"acc": 0.5, "val_loss": 7.0, name: 0.25}, epoch=0, batch=0)
    show.epoch({"acc": 0.5, name: 0.125, "val_loss": 0.0625}, epoch=0)
    said = {m["event"]: m["logs"] for m in drain(show)}

    assert [said["batch_end"][key] for key in TRAIN] == [0.25] * 3
    assert [said["epoch_end"][key] for key in (*TRAIN, *VALIDATION)] == [0.125] * 3 + [0.0625] * 2
    assert said["epoch_end"][name] == 0.125 and said["epoch_end"]["acc"] == 0.5


def test_values_of_the_trainings_own_are_not_overwritten() -> None:
    """Who logs both a loss and a train_loss means two things by them."""
    show = Show()
    show.epoch({"loss": 1.0, "train_loss": 2.0}, epoch=0)

    assert drain(show)[-1]["logs"] == {"loss": 1.0, "train_loss": 2.0, "train/loss": 1.0}


def test_an_epoch_without_a_training_loss_has_the_mean_of_its_batches() -> None:
    """Lightning may say only the validation's; older windows raise without the other."""
    show = Show()
    for batch, loss in enumerate([1.0, 2.0, 6.0]):
        show.batch({"loss": loss}, epoch=0, batch=batch)
    show.epoch({"val_loss": 4.0}, epoch=0)

    assert drain(show)[-1]["logs"]["train/loss"] == 3.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_validation_loss_that_is_no_number_is_not_said(bad: float) -> None:
    """A window would take it for the best there will ever be; the training loss may be one, and an infinity is none."""
    show = Show()
    show.batch({"loss": bad}, epoch=0, batch=0)
    show.epoch({"loss": bad, "val_loss": bad, "val/acc": 0.5}, epoch=0)
    said = {m["event"]: m["logs"] for m in drain(show)}

    assert not set(said["epoch_end"]) & set(VALIDATION) and said["epoch_end"]["val/acc"] == 0.5
    assert math.isnan(said["epoch_end"]["loss"]) and math.isnan(said["batch_end"]["train_loss"])


def test_names_that_a_window_would_run_are_not_said() -> None:
    """Its jsonpickle calls what such a key names; and what is no number has no place in a plot."""
    show = Show()
    show.batch({"py/object": 1.0, "json://x": 1.0, "text": "x", "loss": 0.5}, epoch=0, batch=0)  # type: ignore[dict-item]
    show.batch({f"m{i}": 1.0 for i in range(500)} | {"loss": 0.5}, epoch=0, batch=1)
    said = drain(show)

    assert set(said[-1]["logs"]) >= set(TRAIN) and len(said[-1]["logs"]) <= MAX_LOGS + len(TRAIN)
    show.batch({"py/object": 1.0, "loss": 0.5}, epoch=0, batch=2)
    assert set(drain(show)[-1]["logs"]) == set(TRAIN)


def test_a_loop_that_says_no_epoch_is_one_epoch() -> None:
    """Its batches are counted by its steps, and no end of an epoch is made up."""
    show = Show()
    for step in range(5, 8):
        show.batch({"loss": 1.0}, step=step)
    show.end()

    assert events(drain(show)) == [
        ("train_begin", None, None), ("epoch_begin", 0, None), ("batch_end", 0, 2), ("train_end", None, None),
    ]  # fmt: skip


def test_a_loop_that_never_says_when_an_epoch_ends_has_ends_all_the_same() -> None:
    """A window draws by the length of an epoch, which it learns at the first end."""
    show = Show()
    for epoch in range(2):
        for batch in range(2):
            show.batch({"loss": float(batch)}, epoch=epoch, batch=batch)
    show.end()

    assert events(drain(show))[3:] == [
        ("epoch_end", 0, None), ("epoch_begin", 1, None), ("batch_end", 1, 1), ("epoch_end", 1, None),
        ("train_end", None, None),
    ]  # fmt: skip


def test_an_epoch_that_is_broken_off_has_no_end() -> None:
    """What Ctrl-C cuts is not an epoch's result."""
    show = trained(Show(), 1)
    show.batch({"loss": 1.0}, epoch=1, batch=0)
    show.end()

    assert [e for e, *_ in events(drain(show))].count("epoch_end") == 1


def test_what_an_ended_epoch_adds_is_kept_for_a_window_that_opens_later() -> None:
    """Values that come late, e.g. of a callback behind ours, do not make a second end."""
    show = trained(Show(), 1)
    drain(show)
    show.epoch({"loss": 3.0}, epoch=0)
    assert drain(show) == []
    show.greet()

    assert [m["logs"]["loss"] for m in drain(show) if m["event"] == "epoch_end"] == [3.0]


def test_a_validation_within_an_epoch_does_not_make_two_of_it() -> None:
    """While nobody has been told of its first end, the epoch goes on."""
    show = Show()
    show.batch({"loss": 1.0}, epoch=0, batch=0)
    show.epoch({"val_loss": 1.0}, epoch=0)
    show.batch({"loss": 3.0}, epoch=0, batch=1)
    show.epoch({"val_loss": 2.0}, epoch=0)
    said = drain(show)

    assert events(said)[1:] == [("epoch_begin", 0, None), ("batch_end", 0, 1), ("epoch_end", 0, None)]
    assert said[-1]["logs"]["val_loss"] == 2.0 and said[-1]["logs"]["loss"] == 2.0


def test_it_counts_what_waits() -> None:
    """Whoever closes asks how much is left."""
    show = trained(Show(), 3)
    show.end()
    counted = show.waiting

    assert counted == len(drain(show)) and show.waiting == 0

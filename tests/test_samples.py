"""``train/samples.py``: which examples, when, by what names; and training left as it was."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fitwire.errors import UsageError
from fitwire.train.samples import SamplePlan, interval, kept

PICTURES = np.zeros((4, 8, 8, 1), np.float32)
ROWS = np.zeros((4, 30), np.float32)
LABELS = np.arange(4)


def test_a_tuple_is_inputs_and_targets_and_a_list_is_several_inputs() -> None:
    """Only a tuple of two means targets; elsewhere a door may say that a list does too."""
    pair, several = SamplePlan((PICTURES, LABELS)), SamplePlan([PICTURES, ROWS])
    lightning = SamplePlan([PICTURES, LABELS], pairs=(tuple, list))

    assert pair.inputs is PICTURES and pair.targets is LABELS
    assert several.targets is None and list(several.arrays(None)) == ["image.0", "input.1"]
    assert lightning.targets is LABELS


@pytest.mark.parametrize(
    ("shape", "role"),
    [
        ((4, 8, 8), "image"),
        ((4, 100, 3), "input"),
        ((4, 5, 5, 3), "image"),
        ((4, 3, 5, 5), "image"),
        ((4, 9, 9, 9), "input"),
        ((4, 6, 6, 6, 1), "input"),
        ((4, 30), "input"),
        ((4,), "input"),
    ],
)
def test_what_looks_like_a_picture_is_called_image(shape: tuple[int, ...], role: str) -> None:
    """A picture is grey from 8 pixels a side, or has one to four channels first or last; the rest is ``input``."""
    found = SamplePlan(np.zeros(shape)).arrays(np.zeros((4, 1)))

    assert list(found) == [role, "prediction"]


def test_several_inputs_targets_and_outputs_go_by_key_name_or_place() -> None:
    """``role.name``: a mapping's key first, else the model's own name for it, else its place."""
    keyed = SamplePlan(({"left": PICTURES, "meta": ROWS}, {"a": LABELS, "b": LABELS}))
    listed = SamplePlan([PICTURES, ROWS])

    assert list(keyed.arrays({"a": ROWS, "b": ROWS})) == [
        "image.left", "input.meta", "target.a", "target.b", "prediction.a", "prediction.b",
    ]  # fmt: skip
    assert list(listed.arrays([ROWS, ROWS], ("left", "meta"), ("a", "b"))) == [
        "image.left", "input.meta", "prediction.a", "prediction.b",
    ]  # fmt: skip
    assert list(listed.arrays([ROWS, ROWS], ("too few",))) == ["image.0", "input.1", "prediction.0", "prediction.1"]


def test_one_name_names_the_sample_and_a_list_names_the_examples() -> None:
    """A list with one text for each example travels beside them as ``text``."""
    unnamed, one, each = (
        SamplePlan(ROWS),
        SamplePlan(ROWS, names="digits"),
        SamplePlan(ROWS, names=["a", "b", "c", "d"]),
    )

    assert (unnamed.name, one.name, SamplePlan(ROWS, names=["digits"]).name) == ("samples", "digits", "digits")
    assert "text" not in one.arrays(ROWS)
    assert each.name == "samples" and each.arrays(ROWS)["text"] == ["a", "b", "c", "d"]


def test_a_sample_is_due_when_a_multiple_was_reached_since_the_last() -> None:
    """With several steps at a time none is skipped, and none is made twice."""
    plan, last, made = SamplePlan(ROWS, 5), 0, list[int]()
    for done in range(0, 40, 3):
        if plan.due(done, last):
            last = done
            made.append(done)

    assert made == [6, 12, 15, 21, 27, 30, 36]
    assert not SamplePlan(ROWS, "epoch").due(10**6, 0)


@pytest.mark.parametrize("value", [0, -1, True, 2.5, "batches", None, np.float64(3)])
def test_a_frequency_that_is_none_is_refused_with_the_choices(value: Any) -> None:
    """Only the words and whole numbers from 1 will do; numpy's are whole numbers too."""
    with pytest.raises(UsageError, match=r"sample_freq=.*'epoch' or a whole number"):
        SamplePlan(ROWS, value)

    assert interval("log_freq", np.int64(3), ("batch",)) == 3


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SamplePlan((ROWS, LABELS, LABELS)), "tuple of 3"),
        (lambda: SamplePlan((ROWS, LABELS[:3])), "4 inputs and 3 targets"),
        (lambda: SamplePlan([ROWS, PICTURES[:2]]), "differ in their number of examples"),
        (lambda: SamplePlan(ROWS[:0]), "at least one"),
        (lambda: SamplePlan(3.0), "needs \\(examples"),
        (lambda: SamplePlan({}), "holds no inputs"),
        (lambda: SamplePlan(ROWS, names=["a", "b"]), "2 names for 4 examples"),
        (lambda: SamplePlan(ROWS, names=""), "1 to 256 characters"),
        (lambda: SamplePlan(ROWS, names=[1, 2, 3, 4]), "pass texts"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_cannot_be_used_is_refused_at_once_in_a_sentence(make: Callable[[], Any], sentence: str) -> None:
    """A callback's constructor fails, not an epoch an hour later."""
    with pytest.raises(UsageError, match=sentence):
        make()


def test_what_a_function_returns_is_checked() -> None:
    """A dict of arrays, none of which is called like an argument of ``sample``."""
    plan = SamplePlan(lambda model: {"mask": ROWS}, names=["a", "b", "c", "d"])

    assert list(plan.made({"mask": ROWS})) == ["mask", "text"]
    with pytest.raises(UsageError, match="returned a ndarray: return a dict"):
        plan.made(ROWS)
    with pytest.raises(UsageError, match="called 'step'"):
        plan.made({"step": ROWS})


def test_a_plan_can_be_pickled() -> None:
    """It travels with its callback to another process."""
    plan: SamplePlan = pickle.loads(pickle.dumps(SamplePlan((PICTURES, LABELS), 7, "digits")))  # noqa: S301

    assert (plan.name, plan.every) == ("digits", 7)
    assert np.array_equal(plan.inputs, PICTURES) and np.array_equal(plan.targets, LABELS)


def test_random_states_are_put_back_even_when_predicting_fails() -> None:
    """Python's and numpy's next numbers are those they would have been."""
    random.seed(1)
    np.random.seed(1)
    expected = [random.random(), float(np.random.rand())]
    random.seed(1)
    np.random.seed(1)

    with pytest.raises(ZeroDivisionError), kept():
        random.random(), np.random.rand(), 1 / 0

    assert [random.random(), float(np.random.rand())] == expected


@pytest.mark.framework
def test_torch_keeps_its_random_state_and_each_module_its_own_flag() -> None:
    """A batch normalisation that was frozen by ``eval()`` stays so while the rest trains."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    model.train()
    model[1].eval()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    with kept(model):
        model.eval()
        torch.rand(5)

    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert torch.equal(torch.rand(3), expected)

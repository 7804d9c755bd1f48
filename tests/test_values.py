"""Numbers, arrays and settings of every kind, without a framework; the frameworks' own are at the end."""

from __future__ import annotations

import argparse
import dataclasses
import decimal
import enum
import fractions
import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from fitwire.train.values import (
    MAX_CHARACTERS,
    Late,
    as_array,
    as_number,
    as_whole,
    plain,
    plain_mapping,
    plain_text,
)


class Odd:
    """Fails at everything it is asked."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__

    def __float__(self) -> float:
        raise RuntimeError("no number")


class OnDevice:
    """What a tensor of an asynchronous device looks like."""

    shape = ()

    def __init__(self, value: float) -> None:
        self.value, self.done = value, False

    def is_ready(self) -> bool:
        if self.value == 13.0:
            raise RuntimeError("deleted")
        return self.done

    def item(self) -> float:
        return self.value


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.1, 0.1),
        (2**60, float(2**60)),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float16(2), 2.0),
        (np.int64(-3), -3.0),
        (np.uint64(2**64 - 1), float(2**64 - 1)),
        (np.bool_(True), 1.0),
        (np.longdouble(0.5), 0.5),
        (np.array(3), 3.0),
        (np.array([[4.0]]), 4.0),
        (decimal.Decimal("0.25"), 0.25),
        (fractions.Fraction(1, 8), 0.125),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (5e-324, 5e-324),
    ],
)
def test_every_single_number_becomes_that_float(value: Any, number: float) -> None:
    """Python's, numpy's and one-element arrays are taken as they are."""
    assert as_number(value) == number
    assert type(as_number(value)) is float


@pytest.mark.parametrize("value", [math.nan, np.float32("nan"), np.array([np.nan]), decimal.Decimal("NaN")])
def test_nan_stays_nan(value: Any) -> None:
    """NaN is a value like any other."""
    assert math.isnan(as_number(value))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0.5", "str '0.5', not a number; note() takes text"),
        (b"1", "note() takes text"),
        (None, "NoneType None, not a number"),
        (1j, "real and imaginary"),
        (np.complex64(1), "real and imaginary"),
        (np.array(1j), "real and imaginary"),
        (np.zeros(3), "shape (3,), not one number: reduce it, or send it with sample()"),
        (np.zeros((0,)), "shape (0,)"),
        ([0.5], "list [0.5], not a number"),
        ({"a": 1}, "dict"),
        (10**400, "not a number"),
        (decimal.Decimal("sNaN"), "not a number"),
        (np.datetime64("2026-01-01"), "not a number"),
        (np.array("x"), "not a number"),
        (Odd(), "Odd ?, not a number (no number)"),
    ],
)
def test_what_is_no_number_is_refused_with_a_reason(value: Any, says: str) -> None:
    """Whatever it raises itself, it comes out as a TypeError that says what to do."""
    with pytest.raises(TypeError) as refused:
        as_number(value)

    assert says in str(refused.value)


def test_a_tensor_that_its_device_has_not_computed_is_not_waited_for() -> None:
    """It comes as Late, and is read when it is ready."""
    tensor = OnDevice(0.5)
    late = as_number(tensor)

    assert isinstance(late, Late)
    assert not late.ready()
    tensor.done = True
    assert late.ready()
    assert late.read() == 0.5


def test_a_tensor_whose_device_failed_counts_as_ready_to_be_read() -> None:
    """Asking whether it is ready never raises into the training."""
    assert Late(OnDevice(13.0)).ready()


@pytest.mark.parametrize(
    ("value", "whole"), [(3, 3), (True, 1), (3.0, 3), (np.int32(7), 7), (np.float64(2.0), 2), (np.array(5), 5)]
)
def test_whole_numbers_of_every_kind_are_steps(value: Any, whole: int) -> None:
    """A step may be numpy's, or a float without a fraction."""
    assert as_whole(value) == whole
    assert type(as_whole(value)) is int


@pytest.mark.parametrize("value", [0.5, "3", None, 2**53, -(2**53), math.nan, math.inf, np.zeros(2), 10**400, Odd()])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    """A float64 column holds no whole number from 2**53 on exactly."""
    with pytest.raises(TypeError, match="not a whole number"):
        as_whole(value)


def test_an_array_is_copied_once_and_owned() -> None:
    """Its owner may reuse the memory at once, and any strides come out in C order."""
    mine = np.arange(12.0).reshape(3, 4)
    for given in (mine, mine.T, mine[:, ::2], np.asfortranarray(mine), mine[::-1]):
        kept = as_array(given)
        expected = given.copy()

        assert kept.flags.owndata and kept.flags.c_contiguous and not np.shares_memory(kept, mine)
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
    "value", [np.ma.masked_array([1], [1]), [object()], [[1], [1, 2]], Odd(), {"a": 1}, np.array([None])]
)
def test_what_is_no_array_of_numbers_is_refused(value: Any) -> None:
    """Masked, ragged and object arrays are refused with a reason."""
    with pytest.raises(TypeError):
        as_array(value)


def test_texts_become_an_array_of_str() -> None:
    """One text for each example."""
    array = as_array(["cat", "a dog", ""])

    assert array.dtype.kind == "U"
    assert array.tolist() == ["cat", "a dog", ""]


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Options:
    lr: float
    layers: tuple[int, ...]


class Raises(dict[str, Any]):
    """A lazy config with a missing value."""

    def items(self) -> Any:
        raise KeyError("missing")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"a": {"b": [1, 2.5, None, True]}}, {"a": {"b": [1, 2.5, None, True]}}),
        ({1: (1, 2), None: {3}}, {"1": [1, 2], "None": [3]}),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (2**70, str(2**70)),
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.array([1, 2]), [1, 2]),
        (np.array(2.5), 2.5),
        (np.zeros(2000), "array of float64, shape (2000,)"),
        (pathlib.PurePosixPath("/data/x"), "/data/x"),
        (Colour.RED, "Colour.RED"),
        (Level.HIGH, 3),
        (Word.YES, "yes"),
        (Options(0.1, (1, 2)), {"lr": 0.1, "layers": [1, 2]}),
        (argparse.Namespace(seed=1), {"seed": 1}),
        (b"ab", "b'ab'"),
        ("a\ud800b", "a?b"),
        ({"a\ud800": 1}, {"a?": 1}),
        (Odd(), "<Odd>"),
        ([Odd()], ["<Odd>"]),
    ],
)
def test_a_setting_becomes_plain_json(value: Any, kept: Any) -> None:
    """What JSON has no word for becomes its text; nothing raises."""
    assert plain(value) == kept
    json.dumps(plain(value), allow_nan=False)


def test_a_setting_that_raises_when_read_becomes_its_text() -> None:
    """A config that cannot be walked does not stop a training."""
    assert plain({"cfg": Raises(a=1)}) == {"cfg": "{'a': 1}"}


def test_settings_are_bounded_however_they_are_built() -> None:
    """A cyclic, deep, wide or long one stays below what one message may carry."""
    cyclic: dict[str, Any] = {}
    cyclic.update({str(i): cyclic for i in range(50)})
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for value in (
        cyclic,
        deep,
        list(range(100_000)),
        {"a": ["\0" * 4000] * 1000},
        {str(i): "x" * 300 for i in range(5000)},
    ):
        text = json.dumps(plain(value))

        assert len(text) < 2**20
        assert len(plain_text(value)) <= 4096
    assert MAX_CHARACTERS * 6 < 2**20


def test_a_mapping_is_copied_whole() -> None:
    """Changing the original later changes nothing."""
    inner = [1]
    kept = plain_mapping({"a": inner})
    inner.append(2)

    assert kept == {"a": [1]}


@pytest.mark.framework
def test_torch_tensors_are_numbers_arrays_and_settings() -> None:
    """Any dtype numpy lacks included; one that requires a gradient is detached; nothing is changed."""
    torch: Any = pytest.importorskip("torch")
    loss = torch.tensor(0.25, requires_grad=True) * 1

    assert as_number(loss) == 0.25
    assert as_number(torch.tensor([3], dtype=torch.int16)) == 3.0
    assert as_number(torch.tensor(0.5, dtype=torch.bfloat16)) == 0.5
    assert as_number(torch.tensor(0.5, dtype=torch.float16)) == 0.5
    assert as_number(torch.nn.Parameter(torch.tensor(2.0))) == 2.0
    assert math.isnan(as_number(torch.tensor(float("nan"))))  # pyright: ignore[reportArgumentType]
    for bad in (torch.zeros(2), torch.tensor(1j), torch.zeros((), device="meta")):
        with pytest.raises(TypeError):
            as_number(bad)
    assert as_whole(torch.tensor(7)) == 7
    weights = torch.arange(6.0, requires_grad=True).reshape(2, 3).T
    np.testing.assert_array_equal(as_array(weights), weights.detach().numpy())
    np.testing.assert_array_equal(as_array(torch.tensor([1 + 2j]).conj()), [1 - 2j])
    half = as_array(torch.tensor([[0.1]], dtype=torch.bfloat16))
    assert half.shape == (1, 1) and float(half[0, 0]) == float(torch.tensor(0.1, dtype=torch.bfloat16))
    with pytest.raises(TypeError):
        as_array(torch.zeros(2, device="meta"))
    assert plain({"lr": torch.tensor(0.5), "device": torch.device("cpu")}) == {"lr": 0.5, "device": "cpu"}
    assert loss.requires_grad


@pytest.mark.framework
def test_tensorflow_tensors_are_numbers_and_arrays() -> None:
    """Eager tensors and variables; a symbolic one has no number and is refused."""
    tf: Any = pytest.importorskip("tensorflow")

    assert as_number(tf.constant(0.25)) == 0.25
    assert as_number(tf.Variable([3.0])) == 3.0
    assert as_number(tf.constant(0.5, tf.bfloat16)) == 0.5
    assert as_whole(tf.constant(4)) == 4
    np.testing.assert_array_equal(as_array(tf.constant([[1, 2]])), [[1, 2]])
    with pytest.raises(TypeError):
        as_number(tf.zeros(2))
    with pytest.raises(TypeError):
        as_number(tf.constant("x"))
    refused: list[str] = []

    @tf.function(autograph=False)
    def traced(x: Any) -> Any:
        try:
            as_number(x)
        except TypeError as error:
            refused.append(str(error))
        return x

    traced(tf.constant(1.0))

    assert len(refused) == 1


@pytest.mark.framework
def test_jax_arrays_are_numbers_and_arrays_and_a_tracer_is_refused() -> None:
    """One that is not ready is late; one that was deleted is no number; inside jit there is none."""
    jax: Any = pytest.importorskip("jax")
    jnp: Any = pytest.importorskip("jax.numpy")
    value = jnp.float32(0.25)
    value.block_until_ready()

    assert as_number(value) == 0.25
    assert as_whole(jnp.int32(4)) == 4
    np.testing.assert_array_equal(as_array(jnp.arange(3)), [0, 1, 2])
    assert as_array(jnp.ones(2, jnp.bfloat16)).dtype.name == "bfloat16"
    refused: list[str] = []

    def traced(x: Any) -> Any:
        try:
            as_number(x)
        except TypeError as error:
            refused.append(str(error))
        return x

    jax.jit(traced)(1.0)
    assert len(refused) == 1
    busy = as_number(jnp.sum(jnp.ones((1024, 1024)) @ jnp.ones((1024, 1024))))
    assert (busy.read() if isinstance(busy, Late) else busy) == 1024.0**3

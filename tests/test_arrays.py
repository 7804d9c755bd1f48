"""Tests of ``fitwire.protocol.arrays``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from fitwire.errors import DecodeError, EncodeError
from fitwire.protocol.arrays import MAX_ARRAY_BYTES, decode_array, encode_array, expected_size

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether dtype, byte order, shape and every bit agree."""
    return one.dtype.str == other.dtype.str and one.shape == other.shape and one.tobytes() == other.tobytes()


def arrays() -> st.SearchStrategy[np.ndarray]:
    """Arrays of every dtype that travels, in either byte order, any shape, and any memory layout."""
    kinds = st.sampled_from([order + name for name in DTYPES for order in "<>"])
    whole = kinds.flatmap(
        lambda kind: nps.arrays(kind, nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    )
    ways = [
        lambda a: a,
        lambda a: a.T,
        lambda a: np.asfortranarray(a),
        lambda a: a[::-1] if a.ndim else a,
        lambda a: a[..., ::2] if a.ndim else a,
        lambda a: np.broadcast_to(a, (2, *a.shape)),
    ]
    return st.builds(lambda array, way: way(array), whole, st.sampled_from(ways))


@given(arrays())
def test_any_array_arrives_bit_for_bit(array: np.ndarray) -> None:
    """Whatever its dtype, byte order, shape or layout, it comes back equal, NaN payloads included."""
    header, data = encode_array(array)

    back = decode_array(header, bytes(data))

    assert same(np.ascontiguousarray(array).reshape(array.shape), back)
    assert len(data) == array.nbytes


@given(arrays())
def test_a_decoded_array_belongs_to_its_reader(array: np.ndarray) -> None:
    """It may be written to, and writing does not reach the bytes it came from."""
    header, data = encode_array(array)
    source = bytes(data)

    back = decode_array(header, memoryview(source))

    assert back.flags.writeable
    back.reshape(-1).view(np.uint8)[:] ^= 1 if back.dtype.kind == "b" else 255
    assert source == bytes(data)


def test_a_contiguous_array_is_lent_not_copied() -> None:
    """The buffer of a C-order array is the array's own memory: 256 MiB must not be held twice."""
    array = np.zeros(8)
    _, data = encode_array(array)

    array[0] = 7.0

    assert np.frombuffer(data)[0] == 7.0


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_small_floats_travel_as_their_bits(name: str) -> None:
    """The floats of ml_dtypes come back as themselves where it is installed, tagged over unsigned bits."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([[0.5, -1.0, np.nan]], dtype=getattr(ml_dtypes, name))

    header, data = encode_array(array)
    back = decode_array(header, data)

    assert header["dtype"] in ("<u2", "|u1")
    assert header["tag"] == name
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_python_numbers_and_lists_are_arrays_too() -> None:
    """What numpy reads as numbers is sent as numpy reads it."""
    header, data = encode_array([[1, 2], [3, 4]])

    assert header == {"dtype": "<i8", "shape": [2, 2]}
    assert decode_array(header, data).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.array([None, 1], dtype=object), "Python objects"),
        (np.array(["a"]), "<U1"),
        (np.array([b"a"]), "S1"),
        (np.array(["2024-01-01"], dtype="M8[D]"), "datetime64"),
        (np.zeros(2, dtype=[("x", "f4")]), "structured"),
        (np.zeros(2, dtype="V3"), "V3"),
        (np.ma.masked_array([1, 2], [0, 1]), "masked"),
        (np.zeros(1, np.longdouble), np.longdouble(0).dtype.name),
        (np.broadcast_to(np.float64(0), (MAX_ARRAY_BYTES // 8 + 1,)), "268,435,464 bytes"),
        (np.zeros((0, 2**50)), "shape"),
    ],
)
def test_what_cannot_travel_is_refused_by_name(array: np.ndarray, word: str) -> None:
    """Objects, structures, masks, text, dates, machine-dependent floats and giants never set out."""
    with pytest.raises(EncodeError, match=word):
        encode_array(array)


def test_what_the_reader_would_refuse_is_refused_by_the_writer() -> None:
    """Sixty-four dimensions, which numpy 2 can hold and numpy 1 cannot, never set out."""
    try:
        array = np.zeros((1,) * 33)
    except ValueError:
        pytest.skip("this numpy holds at most 32 dimensions")

    with pytest.raises(EncodeError, match="33 dimensions"):
        encode_array(array)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({}, "dtype"),
        ({"dtype": "O", "shape": []}, "dtype"),
        ({"dtype": "|O", "shape": []}, "dtype"),
        ({"dtype": "|V8", "shape": []}, "dtype"),
        ({"dtype": "f8", "shape": []}, "dtype"),
        ({"dtype": "<f8,<f8", "shape": []}, "dtype"),
        ({"dtype": ["<f8"], "shape": []}, "dtype"),
        ({"dtype": "<M8", "shape": []}, "dtype"),
        ({"dtype": "<f8"}, "shape"),
        ({"dtype": "<f8", "shape": "12"}, "shape"),
        ({"dtype": "<f8", "shape": [True]}, "shape"),
        ({"dtype": "<f8", "shape": [-1]}, "shape"),
        ({"dtype": "<f8", "shape": [1.0]}, "shape"),
        ({"dtype": "<f8", "shape": [2**48]}, "shape"),
        ({"dtype": "<f8", "shape": [1] * 33}, "shape"),
        ({"dtype": "<f8", "shape": [2**20, 2**20]}, "size"),
        ({"dtype": "<f8", "shape": [2**47] * 30}, "size"),
        ({"dtype": "<f8", "shape": [0, 2**40, 2**40]}, "size"),
        ({"dtype": "<f8", "shape": [2]}, "size"),
        ({"dtype": "<u2", "shape": [4], "tag": "float8_e5m2"}, "dtype"),
        ({"dtype": "<u2", "shape": [4], "tag": ["bfloat16"]}, "dtype"),
        ({"dtype": "|b1", "shape": [8]}, "dtype"),
    ],
)
def test_a_hostile_header_is_refused_before_memory_is_reserved(header: dict[str, Any], kind: str) -> None:
    """Types not on the list, shapes that overflow, and sizes that do not fit the bytes each have their word."""
    with pytest.raises(DecodeError) as caught:
        decode_array(header, b"\x02" * 8)

    assert caught.value.kind == kind


@given(
    st.dictionaries(
        st.sampled_from(["dtype", "shape", "tag"]),
        st.sampled_from(["<f8", "|b1", "<u2", "bfloat16"])
        | st.lists(st.integers(-1, 2**65) | st.booleans(), max_size=40)
        | st.none() | st.floats() | st.text(max_size=5),
    ),
    st.binary(max_size=64),
)  # fmt: skip
def test_any_header_decodes_or_is_refused(header: dict[str, Any], data: bytes) -> None:
    """Nothing but DecodeError comes out, and an array that does is exactly as large as its bytes."""
    try:
        array = decode_array(header, data)
    except DecodeError:
        return

    assert array.nbytes == len(data)
    assert expected_size(header)[2] == len(data)

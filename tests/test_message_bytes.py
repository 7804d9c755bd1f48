"""The plain pair's bytes: what goes out to the letter, what is refused by name, what comes in and is not trusted."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import DecodeError, EncodeError
from fitwire.protocol.plain import MAX_MESSAGE_BYTES, after_orphan, decode_message, encode_array, encode_dict
from fitwire.transport.pubsub import MAX_FRAME_BYTES
from message_end import AWKWARD, fingerprint


def test_a_dict_is_one_frame_of_default_json() -> None:
    """The frame is what ``json.dumps`` gives: spaces, ASCII, bare NaN."""
    data = {"what": "größe", "logs": {"loss": 0.5, "best": [1, None, True]}, "nan": math.nan, "inf": -math.inf}

    assert encode_dict(data) == [json.dumps(data).encode()]


def test_an_array_is_a_header_and_its_bytes() -> None:
    """The header ends with dtype by numpy's name and shape as a list; the bytes are in C order."""
    frames = encode_array({"name": "mask"}, np.array([[1, 2], [3, 4]], dtype=np.int16).T)

    assert frames == [b'{"name": "mask", "dtype": "int16", "shape": [2, 2]}', b"\1\0\3\0\2\0\4\0"]


@pytest.mark.parametrize("name", AWKWARD)
def test_every_awkward_array_comes_back_equal_and_writeable(name: str) -> None:
    """Dtype, shape and every bit are kept, and the receiver may write into what it got."""
    array = AWKWARD[name]
    back = decode_message(encode_array({}, array))["ndarray"]

    assert fingerprint(back) == fingerprint(array)
    assert back.flags.writeable
    assert back.flags.c_contiguous


@pytest.mark.parametrize("value", [np.float32(0.25), np.float16(0.25), np.longdouble(0.25), np.array(0.25)])
def test_numpy_numbers_travel_as_numbers(value: Any) -> None:
    """A framework's float of any width is the float it says."""
    assert encode_dict({"x": value}) == [b'{"x": 0.25}']


def test_other_numpy_values_travel_as_what_they_are() -> None:
    """Integers, truth values, NaN and small arrays need no conversion by the caller."""
    data = {"i": np.int64(2**62), "b": np.True_, "nan": np.float32("nan"), "a": np.array([[1.5, 2.0]], np.float32)}

    assert encode_dict(data) == [b'{"i": 4611686018427387904, "b": true, "nan": NaN, "a": [[1.5, 2.0]]}']


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"bytes", "bytes"),
        ({1, 2}, "set"),
        (1j, "complex"),
        (np.array([1j]), "complex"),
        (object(), "object"),
        ({("a", "b"): 1}, "keys must be"),
        (CIRCLE, "Circular"),
        (DEEP, "recursion"),
        (10**5000, "digits"),
    ],
    ids=["bytes", "set", "complex", "complex-array", "object", "tuple-key", "circle", "deep", "long-int"],
)
def test_a_value_json_has_no_word_for_is_refused_by_the_name_of_its_key(value: object, reason: str) -> None:
    """The error says which key and why."""
    with pytest.raises(EncodeError, match="(?is)'guilty'.*" + reason):
        encode_dict({"innocent": 1, "guilty": value})


@pytest.mark.parametrize("data", [None, [1], "text", 5])
def test_what_is_no_dict_is_refused(data: Any) -> None:
    """A message is a dict; nothing else reaches an original receiver, which would raise."""
    with pytest.raises(EncodeError, match="a message is a dict"):
        encode_dict(data)


def test_a_dict_with_both_marks_of_an_array_is_refused_by_name() -> None:
    """An original receiver would wait for the array for ever."""
    with pytest.raises(EncodeError, match="'dtype' and 'shape'"):
        encode_dict({"dtype": "float32", "shape": [1], "loss": 0.5})

    assert encode_dict({"dtype": "float32"}) == [b'{"dtype": "float32"}']


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([object()]), "Python objects"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]), "structured"),
        (np.zeros(2, dtype=[("a", "O")]), "Python objects"),
        (np.ma.masked_array([1, 2], mask=[True, False]), "masked"),
    ],
)
def test_an_array_that_cannot_travel_is_refused_by_name(array: Any, reason: str) -> None:
    """Objects, structures and masks are named; no byte of them is made."""
    with pytest.raises(EncodeError, match=reason):
        encode_array({}, array)


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy before 2.0 has none")
def test_an_array_of_a_type_without_a_fixed_size_is_refused_by_name() -> None:
    """numpy's variable-width text holds pointers."""
    with pytest.raises(EncodeError, match="dtype"):
        encode_array({}, np.array(["a"], dtype=np.dtypes.StringDType()))


def test_the_callers_header_is_never_changed_and_may_be_used_again() -> None:
    """Neither success nor failure leaves a key in it; a received header can be sent on."""
    header: dict[str, Any] = {"name": "mask", "dtype": "old", "shape": [7]}
    before = dict(header)
    frames = encode_array(header, np.zeros(2, np.uint8))

    assert header == before
    assert json.loads(frames[0]) == {"name": "mask", "dtype": "uint8", "shape": [2]}
    with pytest.raises(EncodeError, match="'ndarray'"):
        encode_array({"ndarray": 1}, np.zeros(2))


def test_the_array_may_change_once_it_is_encoded() -> None:
    """Frameworks reuse their buffers; what was accepted is a copy."""
    array = np.zeros(4)
    frames = encode_array({}, array)
    array[:] = 9.0

    assert not decode_message(frames)["ndarray"].any()


def _header(**keys: object) -> bytes:
    return json.dumps(keys).encode()


BAD: dict[str, tuple[str, list[bytes]]] = {
    "empty": ("json", [b""]),
    "not json": ("json", [b"hello"]),
    "cut short": ("json", [b'{"a": 1']),
    "not utf-8": ("utf-8", [b'{"a": "\xff"}']),
    "byte order mark": ("json", b"\xef\xbb\xbf{}".split(b"|")),
    "deep": ("json", [b"[" * 100_000]),
    "long number": ("json", [b'{"a": ' + b"9" * 5000 + b"}"]),
    "number": ("object", [b"5"]),
    "null": ("object", [b"null"]),
    "list": ("object", [b'["dtype", "shape"]']),
    "text": ("object", [b'"dtype shape"']),
    "two frames": ("frames", [b"{}", b"{}"]),
    "three frames": ("frames", [_header(dtype="u1", shape=[1]), b"\0", b"\0"]),
    "short": ("size", [_header(dtype="f4", shape=[2]), b"1234"]),
    "long": ("size", [_header(dtype="f4", shape=[2]), b"123456789"]),
    "objects": ("dtype", [_header(dtype="object", shape=[1]), b"12345678"]),
    "O": ("dtype", [_header(dtype="|O", shape=[1]), b"12345678"]),
    "structure": ("dtype", [_header(dtype="f4,f4", shape=[1]), b"12345678"]),
    "structure as a list": ("dtype", [_header(dtype=[["a", "f4"]], shape=[1]), b"1234"]),
    "subarray": ("dtype", [_header(dtype="(2,)f4", shape=[1]), b"12345678"]),
    "no dtype": ("dtype", [_header(dtype="banana", shape=[1]), b"1"]),
    "old alias": ("dtype", [_header(dtype="a3", shape=[1]), b"123"]),
    "numpy knows none": ("dtype", [_header(dtype="f7", shape=[1]), b"1234567"]),
    "huge item": ("dtype", [_header(dtype="S999999999999", shape=[1]), b"1"]),
    "dtype null": ("dtype", [_header(dtype=None, shape=[1]), b"12345678"]),
    "shape null": ("shape", [_header(dtype="f4", shape=None), b"1234"]),
    "shape number": ("shape", [_header(dtype="f4", shape=1), b"1234"]),
    "negative": ("shape", [_header(dtype="f4", shape=[-1]), b"1234"]),
    "fraction": ("shape", [_header(dtype="f4", shape=[1.0]), b"1234"]),
    "true": ("shape", [_header(dtype="f4", shape=[True]), b"1234"]),
    "many axes": ("shape", [_header(dtype="f4", shape=[1] * 65), b"1234"]),
    "absurd and empty": ("shape", [_header(dtype="f4", shape=[0, 2**62, 2**62]), b""]),
    "no character": ("dtype", [_header(dtype="<U1", shape=[1]), b"\xff\xff\xff\xff"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_refused_with_a_kind_to_count_by(name: str) -> None:
    """Every kind of bad message raises ``DecodeError`` and nothing else."""
    kind, frames = BAD[name]

    with pytest.raises(DecodeError) as caught:
        decode_message(frames)
    assert caught.value.kind == kind


def test_a_header_without_its_array_is_a_dict_like_any_other() -> None:
    """An original sends it when a header is used for a plain dict; nothing is waited for."""
    assert decode_message([b'{"dtype": "f4", "shape": [2]}']) == {"dtype": "f4", "shape": [2]}


def test_what_is_glued_behind_an_orphaned_header_is_found() -> None:
    """An original that fails over an array glues its next message to that array's header."""
    orphan, glued = _header(dtype="float64", shape=[2, 2]), b'{"loss": 0.5}'

    assert after_orphan([orphan, glued]) == [glued]
    assert not after_orphan([glued, glued])
    assert not after_orphan([b"junk", glued])


def test_both_files_mean_the_same_limit() -> None:
    """What may be encoded may be received: libzmq cuts off whoever announces more."""
    assert MAX_MESSAGE_BYTES == MAX_FRAME_BYTES


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=5).filter(lambda data: not {"dtype", "shape"} <= data.keys()))
def test_any_dict_of_json_comes_back_equal(data: dict[str, Any]) -> None:
    """Text, numbers and nesting of any kind survive."""
    assert decode_message(encode_dict(data)) == data


@given(st.lists(st.binary(max_size=60) | st.just(_header(dtype="f4", shape=[2])), min_size=1, max_size=3))
def test_any_bytes_give_a_dict_or_a_decode_error(frames: list[bytes]) -> None:
    """Nothing else ever comes out of the decoder."""
    try:
        assert isinstance(decode_message(frames), dict)
    except DecodeError:
        after_orphan(frames)


@given(
    st.text(max_size=12) | st.sampled_from(["f4", "<U2", "datetime64[ns]", "|V3", "bool"]),
    st.lists(st.integers(-2, 2**63), max_size=4),
    st.binary(max_size=64),
)
def test_any_header_gives_an_array_or_a_decode_error(dtype: str, shape: list[int], data: bytes) -> None:
    """A hostile header neither raises otherwise nor reserves memory."""
    try:
        message = decode_message([_header(dtype=dtype, shape=shape), data])
    except DecodeError:
        return
    assert message["ndarray"].nbytes == len(data)

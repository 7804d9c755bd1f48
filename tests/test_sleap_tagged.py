"""``protocol/tagged.py``: what jsonpickle wrote, read without importing, calling or making what it names."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import DecodeError
from fitwire.protocol.tagged import FOREIGN, MAX_TEXT_BYTES, decode_tagged
from helpers import run_python


def dtype(letter: str, order: str = "<") -> dict[str, Any]:
    state = {"py/tuple": [3, order, None, None, None, -1, -1, 0]}
    return {"py/reduce": [{"py/type": "numpy.dtype"}, {"py/tuple": [letter, False, True]}, state]}


def scalar(kind: Any, data: str, module: str = "numpy._core.multiarray") -> dict[str, Any]:
    """A numpy scalar as jsonpickle writes one: its dtype, described or referred to, and its bytes."""
    return {"py/reduce": [{"py/function": f"{module}.scalar"}, {"py/tuple": [kind, {"py/b64": data}]}]}


def read(value: Any) -> Any:
    return decode_tagged(json.dumps(value).encode())


HALF, QUARTER = "AAAAPw==", "AACAPg=="  # 0.5 and 0.25 as little-endian float32


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_a_numpy_scalar_is_the_number_that_it_was(module: str) -> None:
    """Of either generation of numpy: floats, integers, truth values, and either byte order."""
    said = {
        "f": scalar(dtype("f4"), HALF, module),
        "d": scalar(dtype("f8"), "AAAAAAAAAEA=", module),
        "i": scalar(dtype("i8"), "AwAAAAAAAAA=", module),
        "b": scalar(dtype("b1", "|"), "AQ==", module),
        "big": scalar(dtype("f4", ">"), "PwAAAA==", module),
    }

    found = read(said)
    assert found == {"f": 0.5, "d": 2.0, "i": 3, "b": True, "big": 0.5}
    assert [type(value) for value in found.values()] == [float, float, int, bool, float]


def test_a_reference_to_a_dtype_is_resolved_as_either_generation_of_jsonpickle_counts() -> None:
    """The second float32 refers to the first one's dtype: jsonpickle counts dicts since 2.0, and did not before."""
    new = {
        "what": "",
        "event": "batch_end",
        "logs": {"loss": scalar(dtype("f4"), HALF), "acc": scalar({"py/id": 3}, QUARTER)},
    }
    old = {
        "event": "batch_end",
        "logs": {"acc": scalar(dtype("f4"), QUARTER), "loss": scalar({"py/id": 1}, HALF)},
        "what": "",
    }
    lists = {"a": [1], "logs": {"l": scalar(dtype("f4"), HALF)}, "x": scalar({"py/id": 2}, QUARTER)}

    assert read(new)["logs"] == {"loss": 0.5, "acc": 0.25}
    assert read(old)["logs"] == {"loss": 0.5, "acc": 0.25}
    assert read(lists)["x"] == 0.25


def test_tuples_sets_bytes_and_repeated_values_are_what_they_were() -> None:
    """``py/tuple``, ``py/set``, ``py/b64`` and ``py/id``; NaN and infinities stand bare."""
    said = b'{"t": {"py/tuple": [1, {"py/tuple": [2]}]}, "s": {"py/set": [1]}, "b": {"py/b64": "/wA="}, "d": {"x": 1}, '
    found = decode_tagged(said + b'"again": {"py/id": 1}, "n": NaN, "i": -Infinity}')

    assert (found["t"], found["s"], found["b"], found["again"]) == ((1, (2,)), {1}, b"\xff\x00", {"x": 1})
    assert math.isnan(found["n"]) and found["i"] == -math.inf


@pytest.mark.parametrize(
    "value",
    [
        {"py/reduce": [{"py/function": "os.abort"}, {"py/tuple": []}]},
        {"py/object": "subprocess.Popen", "args": ["true"]},
        {"py/type": "os.system"}, {"py/function": "os.abort"}, {"py/mod": "antigravity"}, {"py/repr": "os/os.abort()"},
        {"py/newobj": {}}, {"py/iterator": [1]}, {"py/bytes": "x"}, {"py/id": 99}, {"py/id": -1}, {"py/id": "1"},
        {"py/id": 0},  # the message itself, which is not read yet
        {"py/reduce": []}, {"py/reduce": None}, {"py/reduce": [None, None]}, {"py/tuple": 1}, {"py/b64": "?"},
        {"py/set": [[1]]}, scalar(dtype("f4"), "AAAA"), scalar(dtype("O8", "|"), HALF), scalar({"py/id": 0}, HALF),
        scalar(dtype("f4"), HALF, "os"), scalar("f4", HALF), scalar(dtype("f4"), None),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_whatever_only_code_could_make_is_foreign(value: Any) -> None:
    """It is told apart from the good values beside it, which are kept."""
    found = read({"bad": value, "good": 1.5})

    assert found == {"bad": FOREIGN, "good": 1.5}


def test_nothing_a_message_names_is_imported_or_called() -> None:
    """Modules that it names stay unloaded, and a function that would end the process does not run."""
    code = """
import json, sys
from fitwire.protocol.tagged import decode_tagged
before = set(sys.modules)
for tag in ("py/object", "py/type", "py/mod", "py/function", "py/repr", "py/module"):
    decode_tagged(json.dumps({tag: "antigravity", "x": {tag: "this.s"}}).encode())
    decode_tagged(json.dumps({"py/reduce": [{tag: "os.abort"}, {"py/tuple": []}, None, None, None]}).encode())
print(sorted(set(sys.modules) - before))
"""
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize(
    ("frame", "kind"),
    [(b"\xff", "utf-8"), (b"{", "json"), (b"", "json"), (b"[" * 100_000, "json"), (b"[" * 40 + b"]" * 40, "depth"),
     (b" " * (MAX_TEXT_BYTES + 1), "size"), (b"1" * 5000, "json")],
)  # fmt: skip
def test_what_is_no_message_is_refused_by_its_kind(frame: bytes, kind: str) -> None:
    """Whoever counts them learns what came."""
    with pytest.raises(DecodeError) as refused:
        decode_tagged(frame)

    assert refused.value.kind == kind


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_plain_json_is_itself(value: Any) -> None:
    """Without a tag there is nothing to translate."""
    assert read(value) == value


TAGS = st.sampled_from(
    ["py/id", "py/reduce", "py/tuple", "py/set", "py/b64", "py/object", "py/type", "py/function", "x"]
)
TAGGED = st.recursive(
    st.none() | st.integers(-2, 6) | st.sampled_from(["numpy.dtype", "numpy._core.multiarray.scalar", "f4", HALF]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TAGS, inner, max_size=2),
    max_leaves=15,
)


@given(TAGGED)
def test_any_use_of_the_tags_gives_a_value_or_a_refusal(value: Any) -> None:
    """Nothing a peer can write ends whoever reads it."""
    with contextlib.suppress(DecodeError):
        read(value)

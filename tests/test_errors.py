"""Tests of ``fitwire.errors``."""

from __future__ import annotations

import inspect
import re

import pytest

from fitwire import errors


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    """The drawing names every class, its builtin, and the class it hangs from."""
    above: list[str] = []
    drawn: dict[str, tuple[str, str | None]] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    (?P<bars>[│ ]*[├└]── )(?P<name>\w+)(?: \((?P<builtin>\w+)\))?", line)
        if match:
            depth = len(match["bars"]) // 4
            above[depth - 1 :] = [match["name"]]
            drawn[match["name"]] = (above[-2] if depth > 1 else "FitwireError", match["builtin"])
    written = {}
    for name in errors.__all__:
        first, *others = getattr(errors, name).__bases__
        written[name] = (first.__name__, others[0].__name__ if others else None)

    assert written.pop("FitwireError") == ("Exception", None)
    assert drawn == written


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_public_and_says_what_it_means(name: str) -> None:
    """Each has a docstring of its own and comes from the one root."""
    cls = getattr(errors, name)

    assert issubclass(cls, errors.FitwireError)
    assert inspect.getdoc(cls) != inspect.getdoc(Exception)


def test_an_unknown_run_reads_as_its_sentence() -> None:
    """``KeyError`` would show the sentence's repr; nothing at all reads as nothing."""
    assert str(errors.UnknownRun("no run 'x'; there are: y")) == "no run 'x'; there are: y"
    assert str(errors.UnknownRun()) == ""


@pytest.mark.parametrize(
    ("error", "fields", "sentence"),
    [
        (errors.DecodeError("crc", "spoilt"), {"kind": "crc"}, "spoilt"),
        (
            errors.AddressInUse("tcp://127.0.0.1:9010", "another program listens there"),
            {"address": "tcp://127.0.0.1:9010"},
            "tcp://127.0.0.1:9010 is taken: another program listens there",
        ),
        (
            errors.HandshakeTimeout("ipc:///x", 1.25),
            {"address": "ipc:///x", "waited": 1.25},
            "no hub answered at ipc:///x within 1.2 s; start one with `fitwire watch`, "
            "or pass wait=0 to train unwatched",
        ),
        (
            errors.Superseded("calm-fox", 7, 9),
            {"run": "calm-fox", "incarnation": 7, "newer": 9},
            "run calm-fox goes on as incarnation 9; this one (7) sends no more",
        ),
    ],
)
def test_errors_carry_fields_and_build_their_own_sentence(
    error: Exception, fields: dict[str, object], sentence: str
) -> None:
    """A program tests the fields, a person reads the sentence."""
    assert {name: getattr(error, name) for name in fields} == fields
    assert str(error) == sentence

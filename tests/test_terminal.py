"""What a training's terminal hears, and when it does not."""

from __future__ import annotations

import io
import sys

import pytest

from fitwire.train.terminal import say


@pytest.mark.parametrize(
    ("asked", "heard"),
    [
        (None, ["info", "warning", "error"]),
        ("debug", ["debug", "info", "warning", "error"]),
        (" WARNING ", ["warning", "error"]),
        ("error", ["error"]),
        ("off", []),
        ("nonsense", ["info", "warning", "error"]),
    ],
)
def test_fitwire_log_level_says_what_is_heard(
    asked: str | None, heard: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anything not known counts as info; all goes to stderr."""
    if asked is not None:
        monkeypatch.setenv("FITWIRE_LOG_LEVEL", asked)
    for level in ("debug", "info", "warning", "error"):
        say(level, level)
    captured = capsys.readouterr()

    assert captured.err.split() == [word for level in heard for word in ("fitwire:", level)]
    assert captured.out == ""


def test_a_terminal_that_cannot_be_written_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed, absent, or unable to show a character."""
    closed = io.StringIO()
    closed.close()
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stream in (closed, None, narrow):
        monkeypatch.setattr(sys, "stderr", stream)
        say("info", "größe ✓")

    assert narrow.buffer.getvalue() == b"fitwire: gr??e ?\n"  # type: ignore[attr-defined]

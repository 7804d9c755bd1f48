"""Whatever a peer calls its run, a terminal only ever gets letters."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.views.display import display, display_lines, display_value, duration, number

HOSTILE = {
    "clipboard (OSC 52)": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "clipboard, ended by ST": "\x1b]52;c;cm0gLXJmIC8=\x1b\\",
    "title (OSC 0)": "\x1b]0;root@bank\x07",
    "hyperlink (OSC 8)": "\x1b]8;;http://evil.example\x1b\\",
    "colour (CSI)": "\x1b[31;1m",
    "clear the screen": "\x1b[2J\x1b[H",
    "CSI in one byte (C1)": "\x9b31m",
    "OSC in one byte (C1)": "\x9d0;title\x9c",
    "device control": "\x1bP+q544e\x1b\\",
    "reset": "\x1bc",
    "bidirectional override": "\u202e\u2066\u2069\u200f",
    "zero width": "\u200b\u200c\u200d\u2060\ufeff\u00ad",
    "filler that shows nothing": "\u3164\u115f\uffa0\u2800",
    "bell and backspace": "\x07\x08\x7f\x00",
}


@pytest.mark.parametrize("attack", HOSTILE.values(), ids=HOSTILE)
def test_what_a_terminal_obeys_is_taken_out_whole(attack: str) -> None:
    """Not only the first byte of a command goes, but all of it, wherever it stands."""
    assert display(f"lo{attack}ss") == "loss"
    assert display(f"{attack}loss{attack}") == "loss"


def test_a_command_that_never_ends_takes_the_rest_with_it() -> None:
    """A terminal would go on reading it into the next line; so nothing of it is left."""
    assert display("loss\x1b]52;c;never ended") == "loss"


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    """No control, format, surrogate, private or unassigned character, no line break; and never longer than asked."""
    shown = display(text, 30)

    assert len(shown) <= 30
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert display(shown, 30) == shown


@given(st.text(alphabet=st.sampled_from("\x1b[]P\\;0m\x07\x9b\x9dab"), max_size=40))
def test_no_mixture_of_sequences_leaves_an_escape(text: str) -> None:
    """Taking one sequence out must not put another one together."""
    shown = display(text)

    assert not set(shown) & set("\x1b\x07\x9b\x9d")


def test_line_breaks_and_tabs_become_spaces() -> None:
    """A name must not make a second line in a list."""
    assert display("a\nb\tc\r\nd\u2028e") == "a b c  d e"


def test_a_name_of_ten_thousand_characters_is_cut() -> None:
    """It ends in an ellipsis that says so."""
    assert display("x" * 10_000, 40) == "x" * 39 + "…"


def test_a_pile_of_combining_marks_is_cut_down() -> None:
    """Hundreds on one letter paint over the lines above."""
    assert display("e" + "\u0301" * 500 + "f") == "e" + "\u0301" * 3 + "f"


def test_half_a_character_is_marked() -> None:
    """A lone surrogate cannot be printed at all: it would raise."""
    assert display("a\ud800b") == "a\ufffdb"


def test_other_scripts_stay_as_they_are() -> None:
    """Only what does something goes."""
    assert display("потеря 損失 فقدان ε=1e-3 🙂") == "потеря 損失 فقدان ε=1e-3 🙂"


def test_a_traceback_keeps_its_lines_and_indents() -> None:
    """Each line by itself is safe."""
    assert display_lines("Traceback\n  File \x1b[31mx\n    boom") == ["Traceback", "  File x", "    boom"]


def test_values_of_a_config_are_short_and_safe() -> None:
    """Nested ones in a line."""
    assert display_value({"lr": 0.001, "sizes": [1, 2], "on": True, "none": None, "x": "\x1b[1my"}) == (
        "lr 0.001, sizes 1, 2, on true, none none, x y"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (0.0123456, "0.01235"),
        (3e-5, "3e-05"),
        (1234.5678, "1234.6"),
        (99999.0, "99999"),
        (1.2345e12, "1.234e+12"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (-0.25, "-0.25"),
    ],
)
def test_a_number_takes_at_most_nine_cells_and_a_sign(value: float, text: str) -> None:
    """Four digits, whole numbers whole."""
    assert number(value) == text
    assert len(text.lstrip("-")) <= 9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (9.96, "10 s"),
        (59.6, "1:00"),
        (187, "3:07"),
        (7387, "2:03:07"),
        (442800, "5 d 3 h"),
        (-1, "0.0 s"),
    ],
)
def test_a_duration_reads_like_a_clock(seconds: float, text: str) -> None:
    """Seconds, minutes, hours, days."""
    assert duration(seconds) == text


def test_an_unknown_duration_is_a_question_mark() -> None:
    """None, NaN and infinity alike."""
    assert [duration(x) for x in (None, float("nan"), float("inf"))] == ["?", "?", "?"]

"""That each benchmark runs and says one line, and that the page says what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pages import DOCS, ROOT

BENCHMARKS = ROOT / "benchmarks"
TINY: dict[str, list[str]] = {
    "arrays": ["--sizes", "64", "--megabytes", "1", "--rounds", "1"],
    "imports": ["--rounds", "1"],
    "link": ["--values", "2000", "--widths", "2", "--rounds", "1", "--calls", "3"],
    "log_call": [
        "--rounds", "1", "--seconds", "0.1", "--calls", "100", "--only", "hub/memory", "killed hub/memory", "csv",
    ],
    "memory": ["--points", "2000", "--widths", "1", "--stored", "8192", "--rounds", "1"],
    "slowdown": [
        "--steps", "0.3", "--pairs", "2", "--part", "0.01", "--training", "numpy", "--only", "empty", "hub/memory",
    ],
    "sources": ["--sources", "2", "--rate", "50", "--seconds", "0.3", "--long", "0.4"],
}  # fmt: skip


@pytest.fixture(scope="module")
def printed() -> dict[str, dict[str, Any]]:
    """The line of each, which ran with as little as it takes."""
    return {}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that makes the page, from the folder that its scripts are run from."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report as module

    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_one_line_of_json(name: str, printed: dict[str, dict[str, Any]]) -> None:
    """And nothing else on stdout, so that a program can read it; it says which it is and how it was asked."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *TINY[name]],
        capture_output=True, text=True, timeout=100, env={**os.environ, "FITWIRE_LOG_LEVEL": "off"},
    )  # fmt: skip
    lines = done.stdout.splitlines()

    assert done.returncode == 0, done.stderr[-3000:]
    assert len(lines) == 1
    printed[name] = json.loads(lines[0])
    assert printed[name]["benchmark"] == name
    assert "unavailable" not in lines[0]


@pytest.mark.slow
def test_what_is_printed_fills_its_section_and_its_line_of_the_budget(
    report: Any, printed: dict[str, dict[str, Any]]
) -> None:
    """Each section draws what its benchmark says, under the names that it says it under."""
    for name, found in printed.items():
        title, draw = report.SECTIONS[name]

        assert title and "|" in draw(found)
    if len(printed) == len(TINY):
        missing = [verdict.line.key for verdict in report.judge(printed) if verdict.figure is None]
        # Too few sizes, sources, widths and contenders were asked for to judge these.
        assert set(missing) <= {
            "values 1", "values 4", "values 10", "1 MiB", "16 MiB", "held", "hub", "process", "flag", "away",
            "away p99", "away worst",
        }  # fmt: skip


def test_every_benchmark_of_make_bench_is_tried_here_and_drawn(report: Any) -> None:
    """A new one cannot be forgotten in either place."""
    import run

    assert set(run.SCRIPTS) == set(TINY) == set(report.SECTIONS)
    assert all((BENCHMARKS / f"{name}.py").is_file() for name in TINY)


def lines_of(latency: float) -> list[dict[str, Any]]:
    """Results in which a single benchmark was run."""
    about = {"command": "make bench", "date": "2000-01-01", "machine": "a machine", "python": "3.x", "versions": "v"}
    link = {"cases": [], "flood": {"kept": 1.0}, "latency_ms": {"p50": latency, "p99": 20.0, "worst": 21.0}}
    return [{"benchmark": "about", **about}, {"benchmark": "link", **link}]


def test_a_figure_that_falls_short_is_named_with_what_limits_it(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table and below it; one that is kept has no excuse beside it."""
    monkeypatch.setitem(report.LIMITS, "latency", "Because of the moon.")
    good, bad = report.render(lines_of(12.0)), report.render(lines_of(17.5))

    assert "| ≤ 15 ms | 17.5 ms | **no** |" in bad
    assert "**`log()` to the client's code, p50**: 17.5 ms. Because of the moon." in bad
    assert "| ≤ 15 ms | 12 ms | yes |" in good and "moon" not in good


def test_a_figure_that_was_not_measured_is_named(report: Any) -> None:
    """Silence would pass for a promise that is kept."""
    page = report.render(lines_of(12.0))

    assert "not measured | " not in page and "| not measured |" in page
    assert "`python benchmarks/arrays.py` was not measured" in page
    assert "- **a hub's memory of a million records, over their raw size, the largest**: not measured" in page


def test_a_benchmark_that_failed_is_named(report: Any) -> None:
    """With how it failed."""
    lines = [*lines_of(12.0), {"benchmark": "arrays", "failed": "ended with 1, 0 lines"}]

    assert "`python benchmarks/arrays.py` was not measured: ended with 1, 0 lines." in report.render(lines)


def test_figures_are_put_between_the_marks_and_nothing_else_is_touched(report: Any, tmp_path: Path) -> None:
    """What people wrote around them stays."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", "utf-8")
    report.update(page, lines_of(12.0))
    report.update(page, lines_of(12.5))
    text = page.read_text("utf-8")

    assert text.startswith(f"before\n{report.BEGIN}\n") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text and "12.5 ms" in text and " 12 ms" not in text


def test_the_page_says_what_was_measured(report: Any, tmp_path: Path) -> None:
    """Nobody has typed into it: it is what its lines make."""
    if not report.RESULTS.exists():
        pytest.skip("nothing was measured yet: make bench")
    page = tmp_path / "benchmarks.md"
    page.write_text((DOCS / "benchmarks.md").read_text("utf-8"), "utf-8")
    report.update(page, report.read(report.RESULTS))

    assert page.read_text("utf-8") == (DOCS / "benchmarks.md").read_text("utf-8")

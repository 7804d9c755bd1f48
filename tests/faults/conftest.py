"""A stage for each test, and the figures of all at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.harness import SEEDS, SOAK, Stage

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker("faults")
            # pytest's own hang guard; in a soak a single row may take minutes.
            item.add_marker(pytest.mark.timeout(18_000 if SOAK else 240))


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    """Each soak is three, told apart by this."""
    return int(request.param)


@pytest.fixture
def figures(request: pytest.FixtureRequest, record_property: Any) -> Iterator[dict[str, Any]]:
    """What a row measured; printed at the end of a soak, one line of JSON a row."""
    found: dict[str, Any] = {}
    yield found
    record_property("figures", json.dumps({"row": request.node.name, **found}))


@pytest.fixture
def stage(fitwire_dir: Path, seed: int, figures: dict[str, Any]) -> Iterator[Stage]:
    """Processes that end with the test."""
    made = Stage(fitwire_dir, seed, figures)
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not SOAK and terminalreporter.verbosity < 1:
        return
    reports = [report for some in terminalreporter.stats.values() for report in some if hasattr(report, "when")]
    failed = {report.nodeid for report in reports if report.failed}
    for report in reports:
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name == "figures":
                outcome = "failed" if report.nodeid in failed else "passed"
                terminalreporter.write_line(json.dumps({"outcome": outcome, **json.loads(value)}))

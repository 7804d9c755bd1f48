"""That the examples run: every python block of the pages, in order, and every example in a docstring.

A page's blocks are one program, as a reader would type them, run in a process of its own beside a hub. A block that
cannot run alone has ``<!-- fragment: why -->`` above its fence; it must still parse.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fitwire
from fitwire import Monitor
from helpers import run_python
from pages import PAGES, ROOT, blocks, name_of

SRC = ROOT / "src"
HEAVY = re.compile(
    r"^\s*(?:from|import)\s+(?:fitwire\.)?"
    r"(?:keras|tensorflow|torch|jax|lightning|pytorch_lightning|sklearn|scipy|matplotlib|pandas)\b",
    re.MULTILINE,
)
"""What is not installed on every Python that the core is tested on."""


def _param(item: Path, code: str) -> object:
    marks = [pytest.mark.framework] if HEAVY.search(code) else []
    return pytest.param(item, id=name_of(item), marks=marks)


def _program(page: Path) -> str:
    """The page's blocks as one module, each on the lines that it has on the page, so that a traceback names them."""
    lines: list[str] = []
    for block in blocks(page, "python", "py"):
        if not block.fragment:
            lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
    return "\n".join(lines) + "\n"


WITH_CODE = [_param(page, _program(page)) for page in PAGES if _program(page).strip()]
MODULES = [file for file in sorted((SRC / "fitwire").rglob("*.py")) if ">>> " in file.read_text("utf-8")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", WITH_CODE)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """And each run that it started is in the hub's store, complete."""
    script = tmp_path / f"page_{page.stem}.py"  # lightning.py would stand in front of the package
    script.write_text(_program(page), "utf-8")
    with Monitor() as monitor:
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=280, cwd=tmp_path,
            env={**os.environ, "MPLBACKEND": "Agg"},
        )  # fmt: skip
        badges = {run.name: run.badge for run in monitor.runs}

    assert done.returncode == 0, done.stderr[-4000:]
    assert set(badges.values()) <= {"complete"}, badges


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_of_a_page_parses(page: Path) -> None:
    """Fragments too."""
    for block in blocks(page, "python", "py"):
        ast.parse("\n" * (block.line - 1) + block.code, filename=name_of(page))


@pytest.mark.parametrize("module", [_param(file, file.read_text("utf-8")) for file in MODULES])
def test_examples_in_docstrings_say_what_happens(module: Path) -> None:
    """Run as written, with the output as written."""
    dotted = ".".join(module.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    if HEAVY.search(module.read_text("utf-8")):
        code = f"import doctest, {dotted} as m; r = doctest.testmod(m); assert r.attempted and not r.failed, r"
        run_python(code)
        return
    result = doctest.testmod(importlib.import_module(dotted))

    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", [name for name in fitwire.__all__ if name != "__version__"])
def test_public_names_that_are_no_errors_have_an_example(name: str) -> None:
    """An error is met, not made."""
    thing = getattr(fitwire, name)
    if isinstance(thing, type) and issubclass(thing, Exception):
        assert (thing.__doc__ or "").strip()
    else:
        assert ">>> " in (thing.__doc__ or "")

"""What the benchmarks share: processes that answer, quantiles, and the line that each prints.

Imported by scripts that are run by their path, so this folder is where Python looks first.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["HERE", "Child", "at_home", "hub_at", "medians", "print_line", "quantiles", "rounded"]

HERE = Path(__file__).resolve().parent


def rounded(value: Any, digits: int = 3) -> Any:
    """Numbers within ``value`` with so many significant digits: the rest is weather."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if abs(value) < 10**digits else round(value)
    return value


def print_line(name: str, options: Any, **found: Any) -> None:
    """The one line on stdout: what was measured, with what, where."""
    about = {
        "benchmark": name, "cpus": os.cpu_count(), "python": platform.python_version(),
        "options": {key: value for key, value in vars(options).items() if value is not None},
    }  # fmt: skip
    print(json.dumps(about | rounded(found), ensure_ascii=False), flush=True)


def quantiles(taken: Iterable[float]) -> dict[str, float]:
    """Median, 99th percentile and worst."""
    ordered = sorted(taken)
    return {
        "p50": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "worst": ordered[-1],
    }


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each number, its median over the rounds; of ``worst`` the greatest; of anything else the last."""
    found: dict[str, Any] = {}
    for key in rounds[-1]:
        values = [one[key] for one in rounds if key in one]
        if isinstance(values[-1], dict):
            found[key] = medians([value for value in values if isinstance(value, dict)])
        elif isinstance(values[-1], (int, float)) and not isinstance(values[-1], bool):
            found[key] = max(values) if key == "worst" else statistics.median(values)
        else:
            found[key] = values[-1]
    return found


class Child:
    """Another process: a script of this folder that says it is ready, then answers a line with a line of JSON.

    Attributes:
        hello: What it said first.
        process: Itself.
    """

    def __init__(self, script: str | Path, *arguments: object, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        environment = {**os.environ, **(env or {})}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.hello = self.read()
        if not self.hello:
            raise RuntimeError(f"{script} ended with {self.process.wait()} before it was ready")

    def read(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, question: object = "") -> Any:
        """Say a line, get what it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(question)}\n")
        self.process.stdin.flush()
        return json.loads(self.read())

    def close(self) -> None:
        """Close its stdin, which ends it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(20.0)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


@contextmanager
def at_home() -> Generator[Path]:
    """A folder in which fitwire keeps everything meanwhile, and silence about it."""
    with tempfile.TemporaryDirectory(prefix="fw-", ignore_cleanup_errors=True) as folder:
        os.environ["FITWIRE_DIR"] = folder
        os.environ["FITWIRE_LOG_LEVEL"] = "off"
        yield Path(folder)


@contextmanager
def hub_at(folder: Path, name: str = "hub", *options: object) -> Generator[tuple[str, Child]]:
    """A hub in a process of its own, and its address."""
    address = f"ipc://{folder}/{name}"
    child = Child("serve.py", address, folder / f"{name}.sqlite3", *options)
    try:
        yield address, child
    finally:
        child.close()

"""Run every benchmark, print its line, and put the figures into ``docs/benchmarks.md``: what ``make bench`` does.

``--quick`` tries that all of them run, in about a minute; its figures mean nothing and are written nowhere. One that
fails is named and does not take the others with it.

    python benchmarks/run.py [--quick] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

import report
from common import HERE

SCRIPTS: dict[str, tuple[list[str], list[str]]] = {
    "imports": ([], ["--rounds", "3"]),
    "log_call": ([], ["--rounds", "1", "--seconds", "0.6", "--calls", "2000"]),
    "slowdown": ([], ["--steps", "0.3", "--pairs", "4", "--part", "0.05"]),
    "link": ([], ["--rounds", "1", "--values", "50000", "--calls", "20"]),
    "arrays": ([], ["--rounds", "1", "--megabytes", "16", "--sizes", "64", "1024"]),
    "sources": ([], ["--sources", "1", "8", "--seconds", "1", "--long", "2"]),
    "memory": ([], ["--points", "20000", "--stored", "256000", "--rounds", "1"]),
}
"""Of each: its options in full, and to be quick."""
PATIENCE = 1200.0
"""Seconds after which one is given up."""


def machine() -> str:
    """What this was measured on, in words."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
        with open("/proc/meminfo", encoding="utf-8") as file:
            memory = f", {int(file.readline().split()[1]) / 2**20:.0f} GiB"
    except OSError:
        model, memory = platform.processor(), ""
    return f"{os.cpu_count()} cores of {model or platform.machine()}{memory}, {platform.system()} {platform.release()}"


def about(command: str) -> dict[str, Any]:
    """When, where, with what."""
    names = ("pyzmq", "numpy", "torch", "tensorboard", "wandb", "trackio", "requests")
    versions: list[str] = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return {
        "benchmark": "about", "command": command, "date": datetime.date.today().isoformat(), "machine": machine(),
        "python": platform.python_version(), "versions": ", ".join(versions),
    }  # fmt: skip


def run(name: str, options: list[str]) -> dict[str, Any]:
    """One benchmark's line; of one that failed, that it did."""
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), *options], stdout=subprocess.PIPE, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {"benchmark": name, "failed": f"took more than {PATIENCE:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or len(lines) != 1:
        return {"benchmark": name, "failed": f"ended with {done.returncode}, {len(lines)} lines"}
    return json.loads(lines[0])


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only try that they run")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, help="these, keeping the other figures as they are")
    options = parser.parse_args()
    lines = [about("make bench")]
    failed: list[str] = []
    for name in options.only or SCRIPTS:
        full, quick = SCRIPTS[name]
        begun = time.monotonic()
        line = run(name, quick if options.quick else full)
        lines.append(line)
        print(json.dumps(line, ensure_ascii=False), flush=True)
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        failed += [name] if "failed" in line else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    if options.quick:
        report.render(lines)
        return 1 if failed else 0
    if options.only and report.RESULTS.exists():
        new = {line["benchmark"]: line for line in lines}
        kept = [line for line in report.read(report.RESULTS) if line["benchmark"] not in new]
        lines = [lines[0], *kept, *lines[1:]]
    report.RESULTS.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    report.update(report.PAGE, lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

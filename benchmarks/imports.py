"""What do ``import fitwire`` and the start of a run cost?

Fresh interpreters in turn, bytecode cached, each measuring within itself, medians: ``peers`` imports zmq and numpy,
which anything of this kind needs; ``package`` is ``import fitwire``, which loads its public names when they are first
used; ``trainer`` is all that a training uses (``from fitwire import init, Run``), ``watcher`` all that a script that
watches uses (``from fitwire import Monitor``). Over ``peers``: ``…_ratio``. Then in a trainer's process: ``init`` and
``finish`` with nobody there and with a hub, and how long ``fitwire --help`` takes. Prints one JSON line.

    python benchmarks/imports.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import at_home, hub_at, print_line

IMPORTS = {
    "nothing": "pass",
    "peers": "import zmq, numpy",
    "package": "import fitwire",
    "trainer": "from fitwire import init, Run",
    "watcher": "from fitwire import Monitor",
}
TIMED = """
import time
begun = time.perf_counter()
{code}
print(time.perf_counter() - begun)
"""
STARTS = """
import time, fitwire
fitwire.init, fitwire.Run
begun = time.perf_counter()
run = fitwire.init({address!r}, name="start")
started = time.perf_counter()
run.log({{"loss": 0.5}})
time.sleep(0.3)
before = time.perf_counter()
run.finish()
print(started - begun, time.perf_counter() - before)
"""


def told_by(code: str, folder: Path) -> list[float]:
    """Numbers that a fresh interpreter prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder, check=True
    )
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    with at_home() as folder, hub_at(folder, "live") as (address, _):
        for code in IMPORTS.values():
            told_by(TIMED.format(code=code), folder)
        rounds = [
            {name: told_by(TIMED.format(code=code), folder)[0] for name, code in IMPORTS.items()}
            for _ in range(options.rounds)
        ]
        places = {"nobody": f"ipc://{folder}/nobody", "hub": address}
        starts = {
            where: [told_by(STARTS.format(address=place), folder) for _ in range(max(1, options.rounds // 3))]
            for where, place in places.items()
        }
        helps: list[float] = []
        for _ in range(max(1, options.rounds // 3)):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "fitwire", "--help"], capture_output=True, check=True)
            helps.append(time.perf_counter() - begun)
    middle = {name: statistics.median(one[name] for one in rounds) for name in IMPORTS}
    ratios = {
        f"{name}_ratio": statistics.median(one[name] / one["peers"] for one in rounds)
        for name in ("package", "trainer", "watcher")
    }
    print_line(
        "imports", options, import_ms={name: 1000 * value for name, value in middle.items()}, **ratios,
        start_ms={
            where: {
                "init": 1000 * statistics.median(one[0] for one in taken),
                "finish": 1000 * statistics.median(one[1] for one in taken),
            }
            for where, taken in starts.items()
        },
        help_ms=1000 * statistics.median(helps),
    )  # fmt: skip


if __name__ == "__main__":
    main()

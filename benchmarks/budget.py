"""What each figure has to keep to, and what limits those that do not.

Pure: lines of JSON in, verdicts out. A line of the budget whose figure is missing is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["BUDGET", "LIMITS", "Line", "Verdict", "judge"]

Results = dict[str, dict[str, Any]]
"""By name of the benchmark."""

AWAY = ("no hub", "frozen hub", "slow hub", "killed hub")


@dataclass(frozen=True, slots=True)
class Line:
    """One promise.

    Attributes:
        key: Short, for :data:`LIMITS`.
        what: The promise's subject.
        bound: What it is held to.
        least: Whether ``bound`` is the least that is allowed, not the most.
        unit: Of both.
        find: Takes the results, gives the figure.
    """

    key: str
    what: str
    bound: float
    unit: str
    find: Callable[[Results], float]
    least: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise and what became of it; ``figure`` is None, with ``why``, when it could not be measured."""

    line: Line
    figure: float | None
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was kept."""
        if self.figure is None:
            return False
        return self.figure >= self.line.bound if self.line.least else self.figure <= self.line.bound


def _ours(results: Results, name: str, key: str) -> float:
    found = results["log_call"]["fitwire"][name]
    if "unavailable" in found:
        raise LookupError(f"{name}: {found['unavailable']}")
    return float(found[key])


def _worst(key: str, durability: str = "memory") -> Callable[[Results], float]:
    return lambda results: max(_ours(results, f"{kind}/{durability}", key) for kind in AWAY)


def _hub(key: str, name: str = "hub/memory") -> Callable[[Results], float]:
    return lambda results: _ours(results, name, key)


def _slower(results: Results, name: str = "hub/memory") -> float:
    found = results["slowdown"]["cases"]["0.3 ms"]
    if "unavailable" in found[name]:
        raise LookupError(f"{name}: {found[name]['unavailable']}")
    return float(found[name]["points"] - found["empty"]["points"])


def _delivered(width: int) -> Callable[[Results], float]:
    return lambda results: next(
        float(case["fitwire"]["values_per_s"]) for case in results["link"]["cases"] if case["width"] == width
    )


def _share(least_kib: int, most_kib: int) -> Callable[[Results], float]:
    return lambda results: min(
        float(case["link_share"]) for case in results["arrays"]["cases"] if least_kib <= case["kib"] <= most_kib
    )


def _sources(results: Results) -> dict[str, Any]:
    return next(case for case in results["sources"]["cases"] if case["sources"] == 256)


BUDGET = (
    Line("tight", "`log()` of four floats, tight loop, p50", 0.5, "µs", _hub("tight_p50")),
    Line("paced", "… paced at 1 kHz, with a hub, p50", 2.0, "µs", _hub("p50")),
    Line("paced p99", "… p99", 10.0, "µs", _hub("p99")),
    Line("seed", "… p50 as a share of the seed's `send_json`", 1 / 20, "", _hub("of_the_seed")),
    Line("away", "… with no, a frozen, a slow, a killed hub: the largest p50", 2.0, "µs", _worst("p50")),
    Line("away p99", "… the largest p99", 10.0, "µs", _worst("p99")),
    Line("away worst", "… the worst call of all", 100.0, "µs", _worst("worst")),
    Line(
        "process", '… with `durability="process"`: p50 as a share of the seed\'s', 1 / 5, "",
        _hub("of_the_seed", "hub/process"),
    ),
    Line("flag", "reading `run.stop_requested`, tight loop, p50", 0.2, "µs", _hub("tight_p50", "flag/memory")),
    Line("slowdown", "a 0.3 ms training step, slowed more than by an empty callback", 2.0, "points", _slower),
    *(
        Line(f"values {k}", f"stored and acknowledged, records of {k}", 1e6, "values/s", _delivered(k), True)
        for k in (1, 4, 10)
    ),
    Line(
        "seed link", "… the least multiple of the seed's `send_json`/`recv_json`", 10.0, "×",
        lambda r: min(float(case["of_the_seed"]) for case in r["link"]["cases"]), True,
    ),
    Line("1 MiB", "arrays of 1 MiB, the link alone, share of bare TCP", 0.6, "", _share(1024, 1024), True),
    Line("16 MiB", "… from 16 MiB, the least share", 0.8, "", _share(16_384, 1 << 30), True),
    Line(
        "held", "… the caller held, as a multiple of a copy, from 1 MiB, the largest", 1.3, "×",
        lambda r: max(float(case["held"]) for case in r["arrays"]["cases"] if case["kib"] >= 1024),
    ),
    Line(
        "hub", "hub, 256 sources × 20 messages/s × 20 rows", 15.0, "% of a core",
        lambda r: float(_sources(r)["core_percent"]),
    ),
    Line(
        "rate", "256 sources on one hub", 1e5, "values/s", lambda r: float(r["sources"]["long"]["values_per_s"]), True
    ),
    Line(
        "flat", "… memory that grows beside the rows that it keeps", 20.0, "MiB/minute",
        lambda r: float(r["sources"]["long"]["rest_mb_per_minute"]),
    ),
    Line("latency", "`log()` to the client's code, p50", 15.0, "ms", lambda r: float(r["link"]["latency_ms"]["p50"])),
    Line("latency p99", "… p99", 40.0, "ms", lambda r: float(r["link"]["latency_ms"]["p99"])),
    Line(
        "memory", "a hub's memory of a million records, over their raw size, the largest", 2.0, "×",
        lambda r: max(float(case["hub"]) for case in r["memory"]["memory"]),
    ),
    Line(
        "restart", "a hub started again with 10 million stored values lists its runs, the slowest", 1.0, "s",
        lambda r: max(float(case["listed_s"]) for case in r["memory"]["restart"].values()),
    ),
    Line(
        "import", "`from fitwire import init, Run`, over importing zmq and numpy", 1.4, "×",
        lambda r: float(r["imports"]["trainer_ratio"]),
    ),
)  # fmt: skip

_COLD = (
    "Caches: between two calls a millisecond apart other code has filled them. The same call takes a third of a "
    "microsecond in a tight loop; what the machine adds is seen in the empty function and the seed's call beside it."
)
_CONTENDED = (
    "The I/O thread, which takes the interpreter's lock at its look every 20 ms. Of its CPU time 40 % packs rows, "
    "30 % sends and takes the acknowledgement, 10 % writes the journal; in caches that the training has filled packing "
    "takes several times what it takes in a loop of its own."
)
_SUMS = (
    "Walks over memory on two cores that sender and receiver already fill: at each end the CRC32 of each byte beside "
    "the socket's copy. By zlib, where `isal` is not installed, it is the largest of them. From 64 MiB the rates of "
    "the bare socket and of the link vary by a third from run to run."
)

LIMITS: dict[str, str] = {
    "tight": "The interpreter: one call, a look at each value's type, a clock, a copy of the mapping and an append.",
    "paced": _COLD,
    "paced p99": _CONTENDED,
    "seed": _COLD,
    "away": _COLD,
    "away p99": _CONTENDED,
    "away worst": "The scheduler and the interpreter's lock: compare the empty function's and the seed's worst, below.",
    "process": (
        "Caches: packing a record and writing it twice into mapped memory takes a microsecond in a tight loop, "
        "several where other code has run in between."
    ),
    "slowdown": _CONTENDED,
    "values 1": (
        "One `log()` for each value: the call and, in turn with it for the interpreter's lock, half a microsecond of "
        "packing. The hub is idle most of the time: a million records take it a quarter of a second of CPU."
    ),
    "seed link": (
        "The training thread and its I/O thread share one interpreter: `log()` and packing take about a microsecond a "
        "record together, the seed's `send_json` three to five. The hub's CPU would allow for more than ten times."
    ),
    "1 MiB": _SUMS,
    "16 MiB": _SUMS,
    "hub": (
        "The interpreter: what a block costs the hub's thread is, by profile, one half its history (checking columns, "
        "pace, appending), one quarter receiving and decoding, one tenth SQLite. It is a price for each block, hardly "
        "for each row."
    ),
    "flat": (
        "Room that the columns of each history set aside to grow into: an array that is full is copied to one twice "
        "as large. Beside that room, `room_mb_grew` in the line, the hub grew by nothing."
    ),
    "latency": "The I/O thread's look every 20 ms, then the hub's commit and the monitor's question.",
    "import": (
        "Classes: the trainer's wing defines some forty dataclasses, which the standard library makes from source text "
        "at each import; then `hashlib` and `socket`."
    ),
}
"""Of lines that may fall short: what limits them, found by profile. Said in the page only where the figure does."""


def judge(results: Results) -> list[Verdict]:
    """Every line of the budget, in order."""
    found: list[Verdict] = []
    for line in BUDGET:
        try:
            found.append(Verdict(line, line.find(results)))
        except (LookupError, TypeError, ValueError, StopIteration) as error:
            why = str(error) if type(error) is LookupError else "not measured"
            found.append(Verdict(line, None, why))
    return found

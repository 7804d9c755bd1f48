"""From lines of JSON to ``docs/benchmarks.md``: the figures in the page are those that were measured, and no others.

    python benchmarks/report.py [RESULTS [PAGE]]

Writes what stands between the page's two marks. Nothing is measured here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from budget import LIMITS, Results, Verdict, judge
from common import HERE

__all__ = ["BEGIN", "END", "render", "update"]

RESULTS, PAGE = HERE / "results.jsonl", HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def number(value: Any) -> str:
    """For people: three digits, thousands apart."""
    if value is None:
        return ""
    if not isinstance(value, (int, float)):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown; the first column is words, the rest numbers."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)]]
    lines += [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(verdict: Verdict) -> str:
    return "–" if verdict.figure is None else f"{number(verdict.figure)} {verdict.line.unit}".strip()


def _budget(verdicts: Sequence[Verdict]) -> str:
    rows: list[list[str]] = []
    for verdict in verdicts:
        line = verdict.line
        bound = f"{'≥' if line.least else '≤'} {number(line.bound)} {line.unit}".strip()
        word = "yes" if verdict.holds else ("not measured" if verdict.figure is None else "**no**")
        rows.append([line.what, bound, _figure(verdict), word])
    return table(("what", "budget", "measured", "kept"), rows)


def _short(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Each figure that falls short, and why."""
    for verdict in verdicts:
        if verdict.holds:
            continue
        words = f"**{verdict.line.what.removeprefix('… ')}**"
        if verdict.figure is None:
            yield f"- {words}: not measured ({verdict.why})."
        else:
            yield f"- {words}: {_figure(verdict)}. {LIMITS.get(verdict.line.key, 'What limits it is not known yet.')}"


def _log_call(found: dict[str, Any]) -> str:
    rows: list[list[Any]] = []
    for name, one in [*found["fitwire"].items(), *found["peers"].items()]:
        kind, _, durability = name.partition("/")
        words = kind.replace("_", " ") if not durability else f"fitwire, {kind}, `{durability}`"
        if "unavailable" in one:
            rows.append([words, f"not measured: {one['unavailable'].partition(';')[0]}", "", "", "", ""])
        else:
            rows.append([words, *(one[key] for key in ("tight_p50", "p50", "p99", "worst", "of_the_seed"))])
    first = next((one for one in found["fitwire"].values() if "seed" in one), None)
    for name, words in (("seed", "the seed's `send_json`"), ("empty", "an empty function")) if first else ():
        own = first[name]
        rows.append([words, *(own[key] for key in ("tight_p50", "p50", "p99", "worst")), ""])
    head = ("one call of four values, µs", "tight p50", "paced p50", "paced p99", "worst", "p50 of the seed's")
    return table(head, rows)


def _slowdown(found: dict[str, Any]) -> str:
    rows: list[list[Any]] = []
    for target, contenders in found["cases"].items():
        for name, one in contenders.items():
            words = {"empty": "an empty callback", "seed": "the seed's `send_json`"}.get(name, f"fitwire, {name}")
            if "unavailable" in one:
                rows.append([f"{target}: {words}", "not measured", "", ""])
            else:
                rows.append([f"{target}: {words}", one["points"], *one["quartiles"]])
    return table(("a training step of", "slowed by, %", "lower quartile", "upper quartile"), rows)


def _link(found: dict[str, Any]) -> str:
    rows = [
        [
            f"{case['width']} a record", case["fitwire"]["records_per_s"], case["fitwire"]["values_per_s"],
            case["seed"]["records_per_s"], case["of_the_seed"],
        ]
        for case in found["cases"]
    ]  # fmt: skip
    flood, late = found["flood"], {key: number(value) for key, value in found["latency_ms"].items()}
    return (
        table(("values", "records/s", "values/s", "the seed's records/s", "× the seed's"), rows)
        + f"\n\nA loop that does nothing but log, unthrottled, kept {number(100 * flood['kept'])} % of its records; the"
        " rest became tombstones, counted where the run is shown. From `log()` to a monitor's code in another"
        f" process: p50 {late['p50']} ms, p99 {late['p99']} ms, worst {late['worst']} ms."
    )


def _arrays(found: dict[str, Any]) -> str:
    keys = ("memcpy", "tcp", "link", "link_ipc", "stored", "link_share", "stored_share", "held")
    head = ("KiB", "memcpy GB/s", "TCP", "link", "link, ipc", "stored", "link / TCP", "stored / TCP", "held × copy")
    return table(head, ([number(case["kib"]), *(case.get(key) for key in keys)] for case in found["cases"]))


def _sources(found: dict[str, Any]) -> str:
    keys = ("seconds", "core_percent", "blocks_per_s", "values_per_s", "mb", "mb_grew", "histories_mb_grew")
    cases = [*found["cases"], *([found["long"]] if found["long"] else [])]
    head = ("sources", "seconds", "% of a core", "blocks/s", "values/s", "MiB", "grew", "of it rows")
    return table(head, ([str(case["sources"]), *(case[key] for key in keys)] for case in cases))


def _memory(found: dict[str, Any]) -> str:
    keys = ("raw_mb", "hub_mb", "hub", "transient", "monitor")
    head = ("records × values", "raw MiB", "hub MiB", "hub / raw", "at its highest", "monitor / raw")
    rows = ([f"{number(case['records'])} × {case['width']}", *(case[key] for key in keys)] for case in found["memory"])
    again = (
        [f"{name}, {number(case['stored'])} values", *(case[key] for key in ("listed_s", "curve_s", "hub_mb"))]
        for name, case in found["restart"].items()
    )
    restart = table(("runs in the store", "first list, s", "first curve, s", "hub MiB"), again)
    return table(head, rows) + "\n\n" + restart


def _imports(found: dict[str, Any]) -> str:
    times = found["import_ms"]
    words = {
        "peers": "`import zmq, numpy`", "package": "`import fitwire`", "trainer": "`from fitwire import init, Run`",
        "watcher": "`from fitwire import Monitor`",
    }  # fmt: skip
    rows = [[text, times[name], found.get(f"{name}_ratio", 1.0)] for name, text in words.items()]
    for where, one in found["start_ms"].items():
        rows.append([f"`init()`, {where} there; `finish()` {number(one['finish'])} ms", one["init"], ""])
    return table(("what", "ms", "× zmq and numpy"), rows)


SECTIONS = {
    "log_call": ("A log call", _log_call), "slowdown": ("A training step", _slowdown),
    "link": ("Records, end to end", _link), "arrays": ("Arrays", _arrays),
    "sources": ("Many trainings on one hub", _sources), "memory": ("Memory, and a hub started again", _memory),
    "imports": ("Import and start", _imports),
}  # fmt: skip


def render(lines: Sequence[dict[str, Any]]) -> str:
    """What stands between the marks."""
    about = next(line for line in lines if line["benchmark"] == "about")
    results: Results = {line["benchmark"]: line for line in lines if line["benchmark"] != "about"}
    verdicts = judge(results)
    kept = sum(verdict.holds for verdict in verdicts)
    pieces = [
        f"Measured by `{about['command']}` on {about['date']}: {about['machine']}; Python {about['python']}, "
        f"{about['versions']}. The lines as they were printed are in `benchmarks/results.jsonl`.",
        f"## The budget\n\nKept: {kept} of {len(verdicts)}.\n\n" + _budget(verdicts),
    ]
    if short := list(_short(verdicts)):
        pieces.append("## What falls short, and what limits it\n\n" + "\n".join(short))
    for name, (title, draw) in SECTIONS.items():
        found = results.get(name)
        command = f"`python benchmarks/{name}.py`"
        if found is None or "failed" in found:
            why = "" if found is None else f": {found['failed']}"
            pieces.append(f"## {title}\n\n{command} was not measured{why}.")
        else:
            pieces.append(f"## {title}\n\n{command}\n\n{draw(found)}")
    return "\n\n".join(pieces)


def update(page: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Put the figures in their place in the page."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has no place for the figures: it needs {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{render(lines)}\n\n{END}{after}", "utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """Lines as they were printed."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


if __name__ == "__main__":
    update(Path(sys.argv[2]) if len(sys.argv) > 2 else PAGE, read(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS))

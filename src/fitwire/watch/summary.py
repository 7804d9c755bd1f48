"""One line a run, as a list shows it: made from a history and from what is known of its ranks.

It crosses the wire and lies in the store as JSON, so whatever a peer put into it is cut to size here. Pure; no lock, no
socket, no store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, cast

from fitwire.protocol.blocks import BULK
from fitwire.watch.history import MISSING, History
from fitwire.watch.states import Progress, RankFacts, State, duration

__all__ = ["badge_of", "checked_summary", "first_summary", "status_of", "summarize"]

MAX_TAGS = 32
MAX_TEXT = 256
"""Characters of a name, a tag or a reason in a list; the run's history has all of it."""
MAX_GAPS = 8
"""Gaps told of singly."""
LAST_DAY = 253_402_214_400.0
"""The year 9999, in Unix seconds: a calendar can show it."""

_START: dict[str, Any] = {field.name: field.default for field in fields(Progress)}
_BLANK: dict[str, Any] = {
    "id": "", "name": "?", "project": "?", "group": None, "tags": [], "host": "?", "ranks": [], "started": 0.0,
    "touched": 0.0, "state": "lost", "reason": "", "dropped": {}, "complete": False, "settled": True,
    "progress": _START, "revision": 0, "gaps": [], "missing": 0, "cut": False, "durability": "",
    "since": 0.0, "gone": False, "pause": 0.0, "badge": "",
}  # fmt: skip


def _text(value: object, fallback: str = "?") -> str:
    return value[:MAX_TEXT] if isinstance(value, str) and value else fallback


def _moment(value: float) -> float:
    """A peer's time may be anything; a calendar's may not."""
    return min(max(value, 0.0), LAST_DAY) if math.isfinite(value) else 0.0


def first_summary(run: bytes, hello: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The line of a run of which no more than a hello is known; ``now`` in Unix seconds."""
    told = {key: _text(hello.get(key)) for key in ("name", "project", "host")}
    return {**_BLANK, **told, "id": run.hex(), "started": now, "touched": now, "state": "waiting", "settled": False}


def checked_summary(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as another hub tells it, or as an earlier one left it; what it lacks, or has in another form, is blank."""
    found = {key: value if _is_like(value := line.get(key), blank) else blank for key, blank in _BLANK.items()}
    found["progress"] = {**_BLANK["progress"], **_finite(found["progress"] or {})}
    if found["state"] not in set(State):
        found["state"] = _BLANK["state"]
    dropped, gaps = cast("dict[str, Any]", found["dropped"]), cast("list[Any]", found["gaps"])
    found["dropped"] = {str(what)[:40]: count for what, count in dropped.items() if _is_count(count)}
    found["gaps"] = [gap for gap in gaps[:MAX_GAPS] if _is_gap(gap)]
    found["badge"] = badge_of(found)
    return found


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_gap(value: object) -> bool:
    numbers = cast("list[object]", value) if isinstance(value, list) else []
    return len(numbers) == 3 and all(map(_is_count, numbers))


def _is_like(value: object, blank: object) -> bool:
    if isinstance(blank, float):
        return isinstance(value, (int, float)) and math.isfinite(value)
    return type(value) is type(blank) or (blank is None and isinstance(value, str))  # of the group


def summarize(
    former: Mapping[str, Any],
    history: History,
    facts: Mapping[int, RankFacts],
    complete: set[int],
    state: State,
    *,
    cut: bool = False,
    since: float = 0.0,
) -> dict[str, Any]:
    """The line anew.

    Args:
        former: The line as it was.
        history: All that was told.
        facts: What is known of the ranks that count.
        complete: Ranks of which all is stored.
        state: What the run is doing.
        cut: Whether a rank was killed, and all that it left was delivered by another.
        since: When a lost or stalled run was last heard of, Unix seconds; 0 for any other.
    """
    line = dict(former)
    started, info = history.started, history.described("info")
    if started is not None:
        line["name"], line["project"] = started.name, _text(started.project)
        line["group"] = None if started.group is None else started.group[:MAX_TEXT]
        line["tags"] = [tag[:MAX_TEXT] for tag in started.tags[:MAX_TAGS]]
        line["started"] = _moment(history.first_time)
    line["host"] = _text(info.get("host"), line["host"])
    end = history.ended if state.ended else None
    line |= {
        "ranks": list(history.ranks), "state": str(state), "reason": end.reason[:MAX_TEXT] if end is not None else "",
        "dropped": history.dropped, "complete": bool(facts) and complete >= set(facts),
        # A rank that has ended and is still there may have samples under way.
        "settled": state.ended and not any(f.ended and f.connected and r not in complete for r, f in facts.items()),
        "cut": cut, "since": _moment(since), "gone": state is State.LOST and any(f.gone for f in facts.values()),
        "pause": _pause(facts.values()) if state is State.STALLED else 0.0,
        # The weakest promise of any of them; nobody who has one says nothing.
        "durability": min((f.durability for f in facts.values() if f.durability), default=line["durability"]),
    }  # fmt: skip
    gaps = history.gaps
    line["gaps"] = [[gap.lane, gap.first, gap.last] for gap in gaps[:MAX_GAPS]]
    line["missing"] = max(0, len(gaps) - MAX_GAPS)
    source = history.current(min(facts, default=0))
    if source is not None:
        pace = source.pace
        began = _moment(source.started.time) if source.started is not None else line["started"]
        last = _moment(end.time if end is not None else pace.last[0] if pace.last is not None else began)
        line["touched"] = max(line["touched"], last)
        totals = info.get("totals")
        over = state.ended or state is State.LOST  # nobody knows whether it takes the time that is left
        known = cast("dict[str, Any]", totals) if isinstance(totals, dict) else {}
        line["progress"] = _finite(_plain(pace.progress(known, max(0.0, last - began), over)))
    line["badge"] = badge_of(line)
    return line


def _pause(facts: Iterable[RankFacts]) -> float:
    """The longest pause that is usual for them."""
    return max((rank.longest_gap for rank in facts), default=0.0)


def _plain(progress: Progress) -> dict[str, Any]:
    """As ``dataclasses.asdict``, which copies each number as if it were a tree."""
    return {name: getattr(progress, name) for name in _START}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    fields = _BLANK["progress"].keys() & values.keys()
    return {k: None if isinstance(v := values[k], float) and not math.isfinite(v) else v for k in fields}


def badge_of(summary: Mapping[str, Any]) -> str:
    """In a few words, whether all of the run is here; the only place that decides it.

    What is missing and what was given up go first, since both stay so. A trainer that was killed, and whose journal was
    delivered, has told all but its last 20 ms, or all, by its ``durability``.
    """
    state = State(summary["state"])
    lacking = _lacking(summary)
    if lacking:
        return ", ".join(lacking)
    if summary["complete"]:
        return "complete to its last 20 ms" if summary["cut"] and summary["durability"] != "process" else "complete"
    if state is State.LOST:
        step = summary["progress"]["step"]
        return "cut off" if step is None else f"cut off after step {step + 1:,}"  # people count from 1
    return "end not confirmed" if state.ended else "live"


def _lacking(summary: Mapping[str, Any]) -> list[str]:
    gaps, dropped = summary["gaps"], summary["dropped"]
    missing = int(dropped.get(MISSING, 0))
    found: list[str] = []
    if len(gaps) == 1 and not summary["missing"]:
        (lane, first, last) = gaps[0]
        found.append(f"gap {first:,}–{last:,}" + (" in the samples" if lane == BULK else ""))
    elif missing:
        several = f"{len(gaps) + summary['missing']} gaps, " if gaps else ""
        found.append(f"{several}{missing:,} record{'s' * (missing != 1)} missing")
    for what, count in sorted(dropped.items()):
        if count and what != MISSING:
            found.append(f"{count:,} {what.removesuffix('s')}{'s' * (count != 1)} dropped")
    return found


def _short(seconds: float) -> str:
    return duration(seconds) if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def status_of(summary: Mapping[str, Any], now: float) -> str:
    """What the run is doing, in a sentence; ``now`` in Unix seconds."""
    state, since = State(summary["state"]), float(summary["since"])
    for_so_long = f" for {duration(now - since)}" if since else ""
    if state is State.STALLED:
        silent = f"its process is there, but silent{for_so_long}"
        pause = float(summary["pause"])
        return f"stalled: {silent}" + (f"; its longest pause of late was {_short(pause)}" if pause else "")
    if state is State.LOST:
        why = (
            "its process is gone (killed or crashed; `fitwire run` would tell)"
            if summary["gone"]
            else "no connection: its host cannot be reached, or its process is gone"
        )
        return f"lost{for_so_long}: {why}"
    return f"{state}: {summary['reason']}" if summary["reason"] else str(state)

"""One line a run, as a list shows it: made from a history and from what is known of its ranks.

It crosses the wire and lies in the store as JSON, so whatever a peer put into it is cut to size here. Pure; no lock, no
socket, no store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from fitwire.watch.history import History
from fitwire.watch.states import Progress, RankFacts, State

__all__ = ["badge_of", "checked_summary", "first_summary", "summarize"]

MAX_TAGS = 32
MAX_TEXT = 256
"""Characters of a name, a tag or a reason in a list; the run's history has all of it."""
LAST_DAY = 253_402_214_400.0
"""The year 9999, in Unix seconds: a calendar can show it."""

_BLANK: dict[str, Any] = {
    "id": "", "name": "?", "project": "?", "group": None, "tags": [], "host": "?", "ranks": [], "started": 0.0,
    "touched": 0.0, "state": "lost", "reason": "", "dropped": {}, "complete": False, "settled": True,
    "progress": asdict(Progress()), "revision": 0,
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
    return found


def _is_like(value: object, blank: object) -> bool:
    if isinstance(blank, float):
        return isinstance(value, (int, float)) and math.isfinite(value)
    return type(value) is type(blank) or (blank is None and isinstance(value, str))  # of the group


def summarize(
    former: Mapping[str, Any], history: History, facts: Mapping[int, RankFacts], complete: set[int], state: State
) -> dict[str, Any]:
    """The line anew.

    Args:
        former: The line as it was.
        history: All that was told.
        facts: What is known of the ranks that count.
        complete: Ranks of which all is stored.
        state: What the run is doing.
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
    }  # fmt: skip
    source = history.current(min(facts, default=0))
    if source is not None:
        pace = source.pace
        began = _moment(source.started.time) if source.started is not None else line["started"]
        last = _moment(end.time if end is not None else pace.last[0] if pace.last is not None else began)
        line["touched"] = max(line["touched"], last)
        totals = info.get("totals")
        known = cast("dict[str, Any]", totals) if isinstance(totals, dict) else {}
        line["progress"] = _finite(asdict(pace.progress(known, max(0.0, last - began), state.ended)))
    return line


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    fields = _BLANK["progress"].keys() & values.keys()
    return {k: None if isinstance(v := values[k], float) and not math.isfinite(v) else v for k in fields}


def badge_of(summary: Mapping[str, Any]) -> str:
    """In a few words, whether all of the run is here."""
    given_up = [_gone(what, count) for what, count in sorted(summary["dropped"].items()) if count]
    state = State(summary["state"])
    if given_up:
        return ", ".join(given_up)
    if summary["complete"]:
        return "complete"
    return "end not confirmed" if state.ended else "cut off" if state is State.LOST else "live"


def _gone(what: str, count: int) -> str:
    if what == "records":  # nobody knows what they said
        return f"{count:,} record{'s' * (count != 1)} missing"
    return f"{count:,} {what.removesuffix('s')}{'s' * (count != 1)} dropped"

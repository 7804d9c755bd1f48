"""Tests of ``fitwire.watch.summary``: one line a run, whatever a peer put into it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from fitwire.events import Dropped
from fitwire.protocol.blocks import decode_json, encode_json
from fitwire.watch.history import History
from fitwire.watch.states import Progress, RankFacts, State
from fitwire.watch.summary import LAST_DAY, badge_of, checked_summary, first_summary, status_of, summarize
from watching import RUN, T0, Teller, block_of, ended, row, started, tell

UP = RankFacts(1000, connected=True)


def line_of(history: History, state: State = State.RUNNING, **facts: RankFacts) -> dict[str, Any]:
    known = {int(key[1:]): value for key, value in facts.items()} or {0: UP}
    return summarize(first_summary(RUN, {}, T0), history, known, set(), state)


def test_a_hello_is_enough_for_a_line() -> None:
    """Who it says it is; question marks for the rest."""
    line = first_summary(RUN, {"name": "calm-fox", "project": 3, "host": "h" * 999}, T0)

    assert (line["id"], line["name"], line["project"], line["state"]) == (RUN.hex(), "calm-fox", "?", "waiting")
    assert len(line["host"]) == 256
    assert Progress(**line["progress"]) == Progress()


def test_a_line_says_what_a_list_shows() -> None:
    """Names, state, how far it is, when it was last heard of."""
    history = tell(
        History(RUN),
        Teller().say(
            started("wise-owl", project="digits", group="folds", tags=("a", "b"),
                    info={"host": "node7", "totals": {"steps": 40}}),
            row(0), row(10), row(19),
        ),
    )  # fmt: skip
    line = line_of(history)

    assert {key: line[key] for key in ("name", "project", "group", "tags", "host", "ranks", "state", "reason")} == {
        "name": "wise-owl", "project": "digits", "group": "folds", "tags": ["a", "b"], "host": "node7", "ranks": [0],
        "state": "running", "reason": "",
    }  # fmt: skip
    assert (line["started"], line["touched"], line["settled"], line["complete"]) == (T0, T0 + 19, False, False)
    assert Progress(**line["progress"]) == Progress(19, 40, fraction=0.5, eta=20.0, pace=1.0, elapsed=19.0)


def test_an_ended_run_says_why_and_is_settled_once_nobody_has_more_to_send() -> None:
    """A rank that has ended and is still there may have samples under way, until all is stored or it has gone."""
    history = tell(History(RUN), Teller().say(started(), row(1), ended("failed", reason="no memory" * 99)))
    there = RankFacts(1000, ended=State.FAILED, connected=True)
    gone = RankFacts(1000, ended=State.FAILED)
    hangs = RankFacts(1000, connected=True)
    former = first_summary(RUN, {}, T0)

    assert line_of(history, State.FAILED, r0=there)["settled"] is False
    assert line_of(history, State.FAILED, r0=gone)["settled"] is True
    assert line_of(history, State.FAILED, r0=gone, r1=hangs)["settled"] is True
    assert summarize(former, history, {0: there}, {0}, State.FAILED)["settled"] is True
    assert summarize(former, history, {0: there}, {0}, State.FAILED)["complete"] is True
    assert summarize(former, history, {0: there, 1: hangs}, {0}, State.FAILED)["complete"] is False
    assert line_of(history, State.RUNNING, r0=there)["settled"] is False
    reason = line_of(history, State.FAILED, r0=gone)["reason"]
    assert reason == ("no memory" * 99)[:256]


def test_whatever_a_peer_says_of_itself_fits_into_a_page() -> None:
    """Ten thousand tags, a name of the longest, a group of a megabyte, a million kinds of drops."""
    wild = "\U0001f98a" * 5000
    history = tell(
        History(RUN),
        Teller().say(
            started(wild[:256], project=wild[:256], group=wild, tags=(wild[:64],) * 3000,
                    config={"a": {"b": {"c": [1] * 100}}}, info={"host": wild, "totals": "many"}),
            *(Dropped(count=2**52, what=f"{n}{wild}", reason=wild) for n in range(50)),
            ended("failed", reason=wild, traceback=wild),
        ),
    )  # fmt: skip
    line = line_of(history, State.FAILED)

    assert (line["name"], line["tags"]) == (wild[:256], [wild[:64]] * 32)
    assert len(encode_json(line)) < 2**16
    assert decode_json(encode_json({"runs": [line]}), 2**20)["runs"] == [line]


@pytest.mark.parametrize("at", [1e308, -1e308, 9e15, -5.0, 0.0])
def test_a_time_that_no_calendar_shows_is_brought_within_it(at: float) -> None:
    """Views turn these into dates; what is no finite number cannot be said in JSON."""
    line = line_of(tell(History(RUN), [block_of(Teller().sender, 1, started(time=at))]))
    elapsed = line["progress"]["elapsed"]

    assert 0.0 <= line["started"] <= LAST_DAY
    assert 0.0 <= line["touched"] <= LAST_DAY
    assert math.isfinite(elapsed)
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_totals_of_any_kind_leave_numbers_that_a_reader_takes() -> None:
    """The product of two large ones is no number of the wire."""
    told = {"host": "a", "totals": {"epochs": 2**52, "steps_per_epoch": 2**52, "steps": None}}
    line = line_of(tell(History(RUN), Teller().say(started(info=told), row(5))))

    assert line["progress"]["steps"] is None
    assert decode_json(encode_json(line)) == line


# -- lines from elsewhere


@pytest.mark.parametrize(
    "spoilt",
    [{}, {"state": "dancing"}, {"started": math.nan}, {"tags": "a"}, {"progress": {"step": 3, "more": 1}},
     {"progress": None}, {"name": 3, "id": 4}, {"future": "field"}, {"started": 5}, {"group": ["x"]}],
)  # fmt: skip
def test_a_line_from_elsewhere_is_checked_field_by_field(spoilt: dict[str, Any]) -> None:
    """What it lacks or has in another form is blank, what is not known is left out."""
    good = first_summary(RUN, {"name": "calm-fox"}, T0)
    line = checked_summary({**good, **spoilt})

    assert line.keys() == good.keys()
    assert State(line["state"]) in State
    assert json.dumps(line, allow_nan=False)
    assert Progress(**line["progress"]).steps is None
    assert checked_summary(good) == {**good, "badge": "live"}


@pytest.mark.parametrize(
    ("line", "badge"),
    [
        ({"state": "running"}, "live"),
        ({"state": "stalled"}, "live"),
        ({"state": "lost"}, "cut off"),
        ({"state": "lost", "progress": {"step": 1234}}, "cut off after step 1,235"),
        ({"state": "lost", "complete": True, "cut": True}, "complete to its last 20 ms"),
        ({"state": "lost", "complete": True, "cut": True, "durability": "memory"}, "complete to its last 20 ms"),
        ({"state": "lost", "complete": True, "cut": True, "durability": "process"}, "complete"),
        ({"state": "failed", "complete": True, "cut": True, "durability": "process"}, "complete"),
        ({"state": "finished"}, "end not confirmed"),
        ({"state": "finished", "complete": True}, "complete"),
        ({"state": "finished", "complete": True, "dropped": {"sample": 3}}, "3 samples dropped"),
        ({"state": "running", "dropped": {"sample": 1}}, "1 sample dropped"),
        ({"state": "running", "dropped": {"metrics": 4096}}, "4,096 metrics dropped"),
        ({"state": "lost", "dropped": {"records": 1}}, "1 record missing"),
        ({"state": "lost", "dropped": {"records": 5, "sample": 2}}, "5 records missing, 2 samples dropped"),
        (
            {"state": "finished", "complete": True, "dropped": {"records": 200}, "gaps": [[0, 1201, 1400]]},
            "gap 1,201–1,400",
        ),
        (
            {"state": "lost", "dropped": {"records": 3, "sample": 2}, "gaps": [[1, 4, 6]]},
            "gap 4–6 in the samples, 2 samples dropped",
        ),
        (
            {"state": "running", "dropped": {"records": 30}, "gaps": [[0, 1, 10], [0, 21, 40]]},
            "2 gaps, 30 records missing",
        ),
        (
            {"state": "running", "dropped": {"records": 30}, "gaps": [[0, 1, 10]], "missing": 4},
            "5 gaps, 30 records missing",
        ),
        ({"state": "running", "dropped": {"sample": 0}}, "live"),
        ({"state": "running", "dropped": {"sample": "many", "metrics": -3}, "gaps": [3, [0], [0, "a", 4]]}, "live"),
    ],
)
def test_a_badge_says_whether_all_is_here(line: dict[str, Any], badge: str) -> None:
    """The table."""
    checked = checked_summary({**first_summary(RUN, {}, T0), **line})

    assert badge_of(checked) == checked["badge"] == badge


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"state": "running"}, "running"),
        ({"state": "failed", "reason": "killed by SIGKILL (out of memory)"},
         "failed: killed by SIGKILL (out of memory)"),
        ({"state": "stalled", "since": T0 - 12, "pause": 0.25},
         "stalled: its process is there, but silent for 12 s; its longest pause of late was 0.2 s"),
        ({"state": "stalled", "since": T0 - 5, "pause": 0.0123},
         "stalled: its process is there, but silent for 5.0 s; its longest pause of late was 12 ms"),
        ({"state": "stalled"}, "stalled: its process is there, but silent"),
        ({"state": "lost", "since": T0 - 187, "gone": True},
         "lost for 3:07: its process is gone (killed or crashed; `fitwire run` would tell)"),
        ({"state": "lost", "since": T0 - 20},
         "lost for 20 s: no connection: its host cannot be reached, or its process is gone"),
        ({"state": "lost", "since": T0 + 50, "gone": True},  # the hub's clock is ahead
         "lost for 0.0 s: its process is gone (killed or crashed; `fitwire run` would tell)"),
    ],
)  # fmt: skip
def test_what_a_run_is_doing_is_a_sentence(line: dict[str, Any], sentence: str) -> None:
    """Since when it is lost and what is known of why; how long it is silent against its usual pace; how it ended."""
    assert status_of(checked_summary({**first_summary(RUN, {}, T0), **line}), T0) == sentence

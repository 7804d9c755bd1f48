"""Tests of ``fitwire.watch.history``: what is known of a run, from its blocks alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitwire.errors import DecodeError, UnknownRun
from fitwire.events import Alert, Described, Dropped, Log, Metrics, encode_event, encode_rows
from fitwire.protocol.blocks import BULK, RECORDS, Identity, Kind, Message, encode_block
from fitwire.watch.branches import Branch, Gap
from fitwire.watch.history import MAX_KINDS, MAX_LINES, SPAN_ROWS, History, SampleRef, Span, explode_span
from fitwire.watch.states import parse_condition
from helpers import records
from watching import RUN, T0, Teller, block_of, ended, message_of, picture, row, said, started, tell

NAN = float("nan")


def steps_of(history: History, name: str = "loss", **how: Any) -> list[int]:
    return history.curve(name, **how).steps.tolist()


# -- curves


def test_a_curve_is_as_exact_as_it_was_logged() -> None:
    """Steps, epochs, times and values; NaN, infinities and the last bit of a float kept."""
    values = [0.1, NAN, math.inf, -math.inf, 5e-324, 1 / 3]
    teller = Teller()
    blocks = [teller.say(row(i, epoch=i // 2, time=T0 + i / 7, loss=v))[0] for i, v in enumerate(values)]
    curve = tell(History(RUN), blocks).curve("loss")

    np.testing.assert_array_equal(curve.values, values)
    np.testing.assert_array_equal(curve.epochs, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(curve.times, [T0 + i / 7 for i in range(6)])
    assert curve.steps.dtype == np.int64
    assert (curve.name, curve.per, curve.steps.tolist()) == ("loss", "batch", list(range(6)))


def test_a_name_told_per_batch_and_per_epoch_is_two_curves() -> None:
    """Auto is per batch if there is one; metrics by order of appearance, the machine's load apart."""
    teller = Teller()
    history = tell(
        History(RUN),
        teller.say(
            row(0, loss=4.0), row(0, "epoch", epoch=0, loss=3.0, val_loss=2.0), row(0, "time", cpu=50.0),
            row(1, loss=1.0),
        ),
    )  # fmt: skip

    assert (history.metrics, history.gauges) == (["loss", "val_loss"], ["cpu"])
    assert history.curve("loss").values.tolist() == [4.0, 1.0]
    assert history.curve("loss", "epoch").values.tolist() == [3.0]
    assert history.curve("val_loss").per == "epoch"
    assert history.curve("cpu").per == "time"


def test_a_metric_told_with_different_others_is_one_curve_in_order() -> None:
    """Each set of names has columns of its own; a curve joins them by sequence number."""
    teller = Teller()
    rows = [row(i, loss=float(i)) if i % 3 else row(i, loss=float(i), extra=1.0) for i in range(20)]
    history = tell(History(RUN), teller.say(*rows))

    assert steps_of(history) == list(range(20))
    assert steps_of(history, "extra") == list(range(0, 20, 3))
    assert history.latest("loss") == 19.0
    assert history.latest("extra") == 1.0


def test_the_newest_batch_value_goes_before_that_of_the_last_epoch() -> None:
    """In Keras they bear the same name; NaN when there is none of it."""
    teller = Teller()
    history = tell(History(RUN), teller.say(row(0, loss=1.0), row(0, "epoch", epoch=0, loss=9.0, val=3.0)))

    assert (history.latest("loss"), history.latest("val")) == (1.0, 3.0)
    assert math.isnan(history.latest("nothing"))


@pytest.mark.parametrize("how", [{"name": "los"}, {"name": "loss", "per": "time"}, {"name": "loss", "rank": 3}])
def test_a_metric_that_is_not_there_is_refused_with_a_list(how: dict[str, Any]) -> None:
    """The sentence says what there is."""
    history = tell(History(RUN), Teller().say(row(0), row(0, "time", cpu=1.0)))

    with pytest.raises(UnknownRun, match="there are: loss, cpu"):
        history.curve(**how)
    with pytest.raises(UnknownRun, match="none yet"):
        History(RUN).curve("loss")


# -- going on


def test_a_run_that_goes_on_replaces_what_it_took_up_again() -> None:
    """The newest branch is shown; the older rows are kept in what was said."""
    first, second = Teller(1000), Teller(2000)
    history = tell(History(RUN), first.say(*(row(i, loss=i + 0.5) for i in range(10))))
    tell(history, second.say(*(row(i) for i in range(6, 9))))

    assert steps_of(history) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert history.curve("loss").values.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.0, 7.0, 8.0]
    assert sum(item.what.stop - item.what.start for item in history.said if isinstance(item.what, Span)) == 13


def test_a_third_life_cuts_the_second_and_the_first() -> None:
    """From the least step that any later one took up."""
    history = History(RUN)
    for incarnation, steps in ((1000, range(10)), (2000, range(5, 12)), (3000, range(2, 4))):
        tell(history, Teller(incarnation).say(*(row(i, loss=float(incarnation)) for i in steps)))

    assert steps_of(history) == [0, 1, 2, 3]
    assert history.curve("loss").values.tolist() == [1000.0, 1000.0, 3000.0, 3000.0]


def test_epochs_are_cut_by_epochs_and_gauges_not_at_all() -> None:
    """The machine's load of the first life was real, whatever became of its steps."""
    first, second = Teller(1000), Teller(2000)
    history = History(RUN)
    tell(history, first.say(*(row(s, "epoch", epoch=s // 10, acc=1.0) for s in (9, 19, 29)), row(29, "time", cpu=1.0)))
    tell(history, second.say(row(19, "epoch", epoch=1, acc=2.0), row(15, "time", cpu=2.0)))

    assert history.curve("acc").values.tolist() == [1.0, 2.0]
    assert history.curve("cpu").values.tolist() == [1.0, 2.0]


def test_branches_say_where_each_life_began_and_what_it_took_up_again() -> None:
    """The first, one that only went on, one that went back, and one that has told of no step yet."""
    history = History(RUN)
    for number, steps in ((1000, range(10)), (2000, range(10, 20)), (3000, range(15, 18))):
        life = Teller(number)
        tell(history, life.say(started(time=T0 + number), *(row(i, loss=float(number)) for i in steps)))
    tell(history, Teller(4000).say(started(time=T0 + 4000)))

    assert history.branches() == [
        Branch(1000, 0, 9, T0 + 1000, None), Branch(2000, 10, 19, T0 + 2000, None),
        Branch(3000, 15, 17, T0 + 3000, 15), Branch(4000, None, None, T0 + 4000, None),
    ]  # fmt: skip
    assert history.branches(rank=7) == History(RUN).branches() == []
    assert steps_of(history) == list(range(18))
    assert history.curve("loss", branch=2000).steps.tolist() == list(range(20))
    assert history.curve("loss", branch=1000).values.tolist() == [1000.0] * 10
    with pytest.raises(UnknownRun):
        history.curve("loss", branch=500)


def test_a_loop_that_tells_no_steps_with_its_epochs_branches_by_epochs() -> None:
    """All of them bear step 0; the epoch that was done anew goes before the one that was."""
    first, second = Teller(1000), Teller(2000)
    history = History(RUN)
    tell(history, first.say(*(row(0, "epoch", epoch=e, acc=1.0) for e in range(5))))
    tell(history, second.say(row(0, "epoch", epoch=3, acc=2.0)))

    assert history.curve("acc").epochs.tolist() == [0, 1, 2, 3]
    assert history.curve("acc").values.tolist() == [1.0, 1.0, 1.0, 2.0]


def test_a_second_fit_that_counts_its_epochs_anew_replaces_none() -> None:
    """Its steps go on, so it only goes on."""
    first, second = Teller(1000), Teller(2000)
    history = History(RUN)
    tell(history, first.say(row(3, epoch=0), row(3, "epoch", epoch=0, acc=1.0), row(7, "epoch", epoch=1, acc=2.0)))
    tell(history, second.say(row(8, epoch=0), row(11, "epoch", epoch=0, acc=3.0)))

    assert history.curve("acc").values.tolist() == [1.0, 2.0, 3.0]
    assert history.curve("acc").epochs.tolist() == [0.0, 1.0, 0.0]


def test_epochs_beyond_the_step_at_which_a_run_resumed_go_with_their_steps() -> None:
    """Also before the new branch has ended its first epoch."""
    first, second = Teller(1000), Teller(2000)
    history = History(RUN)
    tell(history, first.say(*(row(s, "epoch", acc=1.0) for s in (9, 19, 29))))
    tell(history, second.say(row(12), row(13)))

    assert history.curve("acc").steps.tolist() == [9]


def test_samples_are_those_of_the_newest_branch_in_its_order_also_when_the_older_come_late() -> None:
    """What a dead trainer left is delivered after what its successor said."""
    first, second = Teller(1000), Teller(2000)
    old, new = first.say(*(picture(s) for s in (2, 4, 6))), second.say(row(4), picture(5))
    histories = [tell(History(RUN), [*a, *b]) for a, b in ((old, new), (new, old))]
    seen = [[(ref.incarnation, ref.step) for ref in h.sample_refs("masks")] for h in histories]

    assert seen == [[(1000, 2), (2000, 5)]] * 2
    assert [ref.step for ref in histories[1].sample_refs("masks", 1000)] == [2, 4, 6]


def test_what_a_dead_life_left_does_not_describe_the_one_that_followed() -> None:
    """Delivered late, it adds what only it knew; its notes find their place among the rest by their times."""
    old = Teller(1000).say(
        started(config={"lr": 1, "old": True}, info={"pid": 1}), Log(time=T0 + 1, text="first"),
        Described(what="config", values={"old": False}),
    )  # fmt: skip
    new = Teller(2000).say(started(config={"lr": 2}, info={"pid": 2}), Log(time=T0 + 9, text="second"))
    histories = [tell(History(RUN), [*a, *b]) for a, b in ((old, new), (new, old))]

    assert [h.described("config") for h in histories] == [{"lr": 2, "old": False}] * 2
    assert [h.described("info") for h in histories] == [{"pid": 2}] * 2
    assert [[line.text for line in h.lines_by_time if isinstance(line, Log)] for h in histories] == [
        ["first", "second"]
    ] * 2


def test_lives_may_come_in_any_order() -> None:
    """The hub may hear the newer first: the journal of the older comes late."""
    first, second = Teller(1000).say(*(row(i) for i in range(5))), Teller(2000).say(row(3, loss=0.0))
    orders = [tell(History(RUN), [*a, *b]) for a, b in ((first, second), (second, first))]

    assert [h.curve("loss").values.tolist() for h in orders] == [[0.0, 1.0, 2.0, 0.0]] * 2


# -- ranks


def test_ranks_have_curves_of_their_own_and_the_lowest_speaks() -> None:
    """By default the lowest that has the metric."""
    zero, one = Teller(rank=0), Teller(1001, rank=1)
    history = tell(History(RUN), [*one.say(row(0, loss=1.0, only=5.0)), *zero.say(row(0, loss=0.0))])

    assert history.ranks == [0, 1]
    assert history.curve("loss").values.tolist() == [0.0]
    assert history.curve("loss", rank=1).values.tolist() == [1.0]
    assert history.curve("only").values.tolist() == [5.0]


def test_ranks_of_one_start_need_not_share_their_second() -> None:
    """Each takes its own clock's; the end is a failure if any failed."""
    zero, one = Teller(1000, rank=0), Teller(1002, rank=1)
    history = tell(History(RUN), [*zero.say(started(), ended()), *one.say(ended("failed", reason="oops"))])

    assert history.late == [0, 1]
    assert history.ended is not None
    assert (history.ended.status, history.ended.reason) == ("failed", "oops")


def test_a_job_that_comes_back_with_fewer_ranks_is_judged_by_those() -> None:
    """Rank 1 of the first start failed; the second start has none."""
    blocks = [*Teller(1000, rank=0).say(started()), *Teller(1001, rank=1).say(ended("failed"))]
    history = tell(History(RUN), [*blocks, *Teller(5000, rank=0).say(started(), ended())])

    assert (history.ranks, history.late) == ([0, 1], [0])
    assert history.ended is not None
    assert history.ended.status == "finished"
    assert history.incarnation(0) == 5000
    assert history.incarnation(7) == 0


def test_rank_0_describes_the_run_and_the_others_add_nothing() -> None:
    """What it says later is laid over what it said before, also in its next life."""
    zero, one = Teller(rank=0), Teller(rank=1)
    history = tell(History(RUN), zero.say(started(config={"lr": 1, "depth": 2}, info={"host": "a"})))
    tell(history, one.say(started(config={"lr": 9}, info={"host": "b"}), Described(what="summary", values={"best": 1})))
    tell(history, zero.say(Described(what="config", values={"lr": 3}), Described(what="info", values={"totals": {}})))

    assert history.described("config") == {"lr": 3, "depth": 2}
    assert history.described("info") == {"host": "a", "totals": {}}
    assert history.described("summary") == {}


def test_what_may_be_asked_of_a_run_is_laid_over_like_its_config() -> None:
    """A knob that was turned is told again."""
    teller = Teller()
    lr = {"kind": "knob", "type": "float", "value": 0.1}
    stop = {"kind": "command"}
    told = [Described(what="controls", values={"lr": {**lr, "value": value}, "stop": stop}) for value in (1.0, 0.1)]
    history = tell(History(RUN), teller.say(started(), *told))

    assert history.described("controls") == {"lr": lr, "stop": {"kind": "command"}}


# -- events


def test_everything_is_said_once_in_order_and_rows_that_follow_rows_join() -> None:
    """A block each 20 ms is one span, up to a bound, until something else comes between."""
    teller = Teller()
    blocks = teller.say(started())
    for step in range(50):
        blocks += teller.say(row(step))
    blocks += teller.say(Log(text="half"), *(row(step) for step in range(50, 60)), row(60, "epoch", acc=1.0), ended())
    history = tell(History(RUN), blocks)

    assert said(history) == ["RunStarted", "Span", "Log", "Span", "Span", "RunEnded"]
    spans = [item.what for item in history.said if isinstance(item.what, Span)]
    assert [(s.start, s.stop) for s in spans] == [(0, 50), (50, 60), (0, 1)]
    assert [item.last for item in history.said] == [1, 51, 52, 62, 63, 64]


def test_a_span_does_not_grow_without_end() -> None:
    """What is expanded at once is bounded."""
    teller = Teller()
    history = tell(History(RUN), teller.say(*(row(step) for step in range(2 * SPAN_ROWS + 10))))

    assert all(item.what.stop - item.what.start <= SPAN_ROWS for item in history.said if isinstance(item.what, Span))
    assert sum(item.what.stop - item.what.start for item in history.said if isinstance(item.what, Span)) == 8202


def test_a_span_reads_as_events_from_any_number_on() -> None:
    """One event a row, with its step and values; those already given are left out."""
    teller = Teller()
    history = tell(History(RUN), teller.say(Log(text="a"), *(row(step, epoch=1) for step in range(5))))
    span = history.said[1].what
    assert isinstance(span, Span)
    events = list(explode_span(span))

    assert all(type(event) is Metrics for event in events)
    assert [(e.step, e.epoch, dict(e.values)) for e in events if isinstance(e, Metrics)] == [
        (step, 1, {"loss": float(step)}) for step in range(5)
    ]
    assert [e.step for e in explode_span(span, after=4)] == [3, 4]
    assert list(explode_span(span, after=6)) == []


def test_a_block_that_comes_again_changes_nothing() -> None:
    """Neither curves, nor lines, nor the revision."""
    teller = Teller()
    blocks = teller.say(started(), row(0), Log(text="x"), picture())
    history = tell(History(RUN), blocks)
    before = (history.revision, said(history), history.heads)
    tell(history, blocks)

    assert (history.revision, said(history), history.heads) == before
    assert history.heads == {(1000, 0): [3, 1]}
    assert history.head((1000, 0)) == [3, 1]
    assert history.head((1, 1)) == [0, 0]


def test_samples_are_known_by_name_without_their_arrays() -> None:
    """Shapes and dtypes, in order; a reference that comes again is not doubled."""
    teller = Teller()
    history = tell(History(RUN), teller.say(picture(1), picture(2, "edges"), picture(3)))
    history.add_sample(history.samples["masks"][0])

    assert {name: [r.step for r in refs] for name, refs in history.samples.items()} == {"masks": [1, 3], "edges": [2]}
    assert history.samples["masks"][0].arrays == {"image": ("|u1", (1, 4))}


def test_notes_and_alerts_are_lines_of_which_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that writes a line a step does not fill the memory."""
    monkeypatch.setattr("fitwire.watch.history.MAX_LINES", 3)
    teller = Teller()
    history = tell(History(RUN), teller.say(*(Log(text=str(i)) for i in range(4)), Alert(title="hot")))

    assert [getattr(line, "text", None) or line.title for line in history.lines] == ["2", "3", "hot"]
    assert MAX_LINES > 1000


def test_what_was_given_up_is_counted_by_kind() -> None:
    """Tombstones on either lane, and gaps; kinds and counts that a peer makes up are bounded."""
    teller = Teller()
    history = tell(History(RUN), teller.say(Dropped(count=5, what="metrics", reason="memory")))
    part, _ = encode_event(Dropped(time=1.0, count=2, what="sample", reason="memory"))
    tell(history, [encode_block(teller.sender, BULK, 1, 0, [part], [])])
    history.add(Message(Kind.GAP, teller.sender, RECORDS, 6, 0, {"to": 9, "reason": "trimmed"}), 4)

    assert history.dropped == {"metrics": 5, "sample": 2, "records": 4}
    assert history.heads[1000, 0] == [9, 2]

    for number in range(100):
        part = {"t": "dropped", "n": 1, "f": {"count": -7, "what": f"k{number}" * 100, "reason": "", "time": 1.0}}
        history.add(message_of(encode_block(teller.sender, RECORDS, 10 + number, 0, [part], [])), 1)
    assert len(history.dropped) <= MAX_KINDS + 1
    assert all(len(what) <= 40 and count >= 0 for what, count in history.dropped.items())


def test_gaps_are_told_with_their_places() -> None:
    """Said by a source, or found as a hole in the numbers; neighbours are one; samples by themselves."""
    teller = Teller()
    history = tell(History(RUN), teller.say(row(0), row(1)))
    for first, last in ((3, 4), (5, 9)):
        history.add(
            Message(Kind.GAP, teller.sender, RECORDS, first, 0, {"to": last, "reason": "gone"}), last - first + 1
        )
    history.add(message_of(block_of(teller.sender, 12, Log(text="after a hole"))), 1)
    history.add(Message(Kind.GAP, teller.sender, BULK, 1, 0, {"to": 2, "reason": "gone"}), 2)

    assert history.gaps == [Gap(0, 1000, 0, 3, 11, 1), Gap(0, 1000, 1, 1, 2, 1)]
    assert history.dropped == {"records": 11}
    assert said(history)[-1] == "Dropped"


def test_what_stands_on_the_wrong_lane_is_passed_over() -> None:
    """Followers are sent the samples' references only, and must come to know the same as the hub."""
    teller = Teller()
    (sample,), (lines,) = teller.say(picture()), teller.say(started(), row(0))
    headers, parts = sample.frames[2:], message_of(sample).body
    wrong = encode_block(
        teller.sender, RECORDS, 3, 0, parts["parts"], list(zip(parts["buffers"], headers, strict=True))
    )
    body = message_of(lines).body
    odd = encode_block(
        teller.sender, BULK, 2, 0, body["parts"], list(zip(body["buffers"], lines.frames[2:], strict=True))
    )
    history = tell(History(RUN), [sample, lines, wrong, odd])

    assert said(history) == ["SampleRef", "RunStarted", "Span"]
    assert history.heads == {(1000, 0): [3, 3]}
    assert isinstance(history.said[0].what, SampleRef)


def test_a_record_that_breaks_the_rules_costs_no_more_than_its_block() -> None:
    """What stood before it is taken, what comes after too, and the block does not come again."""
    sender = Identity(RUN, 1000, 0)
    parts: list[dict[str, Any]] = [
        {"t": "log", "f": {"text": "good"}}, {"t": "log", "f": {"text": 7}}, {"t": "log", "f": {"text": "late"}},
    ]  # fmt: skip
    history = History(RUN)
    with pytest.raises(DecodeError):
        history.add(message_of(encode_block(sender, RECORDS, 1, 0, parts, [])), 3)
    tell(history, [encode_block(sender, RECORDS, 4, 0, [{"t": "log", "f": {"text": "next"}}], [])])

    assert [line.text for line in history.lines] == ["good", "next"]


def test_wild_numbers_are_kept_and_break_nothing() -> None:
    """Times and steps at the edge of what the wire carries, epochs that are no whole numbers, steps below zero."""
    times, steps = [1e308, -1e308, 0.0, 1e308], [2**53 - 1, -(2**53) + 1, 0, 5]
    told = [(step, epoch, NAN, at) for step, epoch, at in zip(steps, (2**53 - 1, NAN, -4, 0.5), times, strict=True)]
    part, buffers = encode_rows(["loss"], "batch", told, [[1e308]] * 4)
    history = tell(History(RUN), [encode_block(Identity(RUN, 1, 0), RECORDS, 1, 0, [part | {"b": 1}], buffers)])
    source = history.current(0)

    assert source is not None
    assert history.curve("loss").times.tolist() == times
    progress = source.pace.progress({"steps": 10}, 1.0, False)
    assert progress.fraction is not None
    assert 0.0 <= progress.fraction <= 1.0


# -- looking for a value


def test_a_condition_is_looked_for_among_all_that_was_told_and_then_among_the_new() -> None:
    """Also among steps that a later life took up again; each row is looked at once."""
    first, second = Teller(1000), Teller(2000)
    history = tell(History(RUN), first.say(*(row(i, loss=10.0 - i) for i in range(5))))
    condition, looked = parse_condition("loss < 3"), {}
    nothing = history.first_met("loss", condition.first_met, looked)
    tell(history, second.say(row(2, loss=8.0), row(3, loss=2.5), row(4, loss=1.0)))

    assert nothing is None
    assert history.first_met("loss", condition.first_met, looked) == 2.5
    assert history.first_met("loss", condition.first_met, looked) is None
    assert history.first_met("other", condition.first_met, {}) is None


def test_a_condition_is_judged_by_the_lowest_rank_that_has_the_metric() -> None:
    """As the curve is."""
    history = tell(History(RUN), [*Teller(rank=0).say(row(0, loss=5.0)), *Teller(rank=1).say(row(0, loss=0.0))])
    condition = parse_condition("loss < 3")

    assert history.first_met("loss", condition.first_met, {}) is None


# -- as a whole


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.sampled_from("rle")), max_size=25), st.randoms())
def test_any_cutting_into_blocks_and_any_doubling_gives_the_same_history(told: Any, random: Any) -> None:
    """Ranks interleave as they may, blocks come twice: curves, heads and what was said by each are the same."""
    tellers = [Teller(rank=rank) for rank in range(3)]
    counts = [0, 0, 0]
    blocks = []
    for rank, size, what in told:
        for _ in range(size):
            step = counts[rank] = counts[rank] + 1
            record = row(step) if what == "r" else Log(text=str(step)) if what == "l" else row(step, "epoch", acc=1.0)
            blocks += tellers[rank].say(record)
    doubled = [block for block in blocks for _ in range(random.randint(1, 2))]
    one, two = tell(History(RUN), blocks), tell(History(RUN), doubled)

    assert one.heads == two.heads
    assert said(one) == said(two)
    for name in one.metrics:
        for rank in one.ranks:
            try:
                np.testing.assert_array_equal(one.curve(name, rank=rank).steps, two.curve(name, rank=rank).steps)
            except UnknownRun:
                assert name not in two.metrics or rank in two.ranks


def test_a_thousand_ranks_are_told_apart() -> None:
    """Each has its own curve."""
    history = History(RUN)
    for rank in range(1000):
        tell(history, [records(1, rank % 3 + 1, Identity(RUN, 1000, rank))])

    assert history.ranks == list(range(1000))
    assert [len(history.curve("loss", rank=rank)) for rank in (0, 1, 998, 999)] == [1, 2, 3, 1]

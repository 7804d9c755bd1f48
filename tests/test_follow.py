"""Tests of ``fitwire.watch.follow``: a follower knows what the hub knows, whatever happens to the hub."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitwire.errors import LinkError, UnknownRun
from fitwire.events import Dropped
from fitwire.protocol.blocks import BULK, Block
from fitwire.transport.address import Address, resolve
from fitwire.watch.follow import Follower
from fitwire.watch.history import History
from fitwire.watch.hub import Hub
from fitwire.watch.states import State
from fitwire.watch.store import Store
from helpers import until
from test_hub import start_hub, train
from watching import RUN, Teller, block_of, ended, keep, message_of, picture, row, said, started


@pytest.fixture
def follower(hub: Hub, address: Address) -> Iterator[Follower]:
    made = Follower(address)
    yield made
    made.close()


def feed(hub: Hub, blocks: list[Block]) -> None:
    """As if these had come over the socket."""
    store = Store(hub.store_path)
    with hub.roster.changed:
        for block in blocks:
            sender, entry = block.sender, hub.roster._entries.get(block.sender.run)
            facts = None if entry is None else entry.facts.get(sender.rank)
            if facts is None or facts.incarnation != sender.incarnation:
                hub.roster.joined(store, sender, {"name": "fed"}, time.monotonic())
            keep(store, [block])
            hub.roster.loaded(store, sender.run).add(message_of(block), block.count)
            hub.roster.told(sender, time.monotonic())
            hub.roster.bump()
    store.close()


def listed(follower: Follower, run: bytes = RUN) -> None:
    """Wait until the follower has heard of a run."""
    until(lambda: run.hex() in {line["id"] for line in follower.summaries()})


def same(follower: Follower, hub: Hub, run: bytes = RUN) -> bool:
    """Whether both have heard the same."""
    mine, its = follower.history(run), hub.roster.held(run)
    with hub.roster.changed, follower.changed:
        return its is not None and mine.heads == its.heads


def steps(follower: Follower, run: bytes = RUN) -> list[int]:
    history = follower.history(run)
    with follower.changed:
        return history.curve("loss").steps.tolist()


# -- joining


def test_a_follower_that_comes_late_sees_all_and_one_that_came_early_too(
    hub: Hub, follower: Follower, address: Address
) -> None:
    """Curves, samples, config and lines are the hub's."""
    with train(address, 500, config={"lr": 1}) as run:
        run.sample("masks", image=np.arange(12, dtype=np.uint8).reshape(3, 4))
        run.note("hello")
    which = bytes.fromhex(run.id)
    until(lambda: hub.roster.summary(which)["settled"])
    late = Follower(address)
    for one in (follower, late):
        listed(one, which)
        until(lambda one=one: same(one, hub, which))
        history, its = one.history(which), hub.roster.held(which)
        assert its is not None
        with one.changed:
            np.testing.assert_array_equal(history.curve("loss").values, its.curve("loss").values)
            assert (history.samples, history.lines) == (its.samples, its.lines)
            assert (history.described("config"), history.described("info")) == ({"lr": 1}, its.described("info"))
    late.close()


def test_the_end_is_never_seen_before_the_last_values(hub: Hub, follower: Follower, address: Address) -> None:
    """Whoever sees that a run has finished finds all it said; many times, because it would be a race."""
    for number in range(12):
        with train(address, 0, name=f"run{number}") as run:
            which = bytes.fromhex(run.id)
            listed(follower, which)
            follower.history(which)
            for step in range(300):
                run.log({"loss": float(step)}, step=step)

        def finished(which: bytes = which) -> bool:
            return State(follower.summary(which)["state"]).ended

        until(finished)
        assert steps(follower, which) == list(range(300))


def test_nobody_there_is_a_sentence(address: Address, path: Path) -> None:
    """No hub; a hub that was killed and left its socket; another program."""
    with pytest.raises(LinkError, match=r"no hub answered at ipc://.* within \d.\d s; start one with `fitwire hub ipc"):
        Follower(address)
    dead = start_hub(address, path)
    dead.kill()
    dead.close()
    assert address.path is not None
    assert address.path.exists()
    with pytest.raises(LinkError, match="no hub answered"):
        Follower(address, patience=60.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(LinkError, match="no hub answered"):
            Follower(resolve(f"tcp://127.0.0.1:{other.getsockname()[1]}"), patience=0.3)


def test_three_hundred_runs_are_listed_at_once(hub: Hub, address: Address) -> None:
    """In pages, without a pause between them."""
    for number in range(300):
        teller = Teller(run=number.to_bytes(16, "big"))
        tags = tuple("t" * 200 for _ in range(32))
        feed(hub, teller.say(started(f"run{number}", time=1000.0 + number, tags=tags), ended()))
    until(lambda: all(line["state"] == "finished" for line in hub.roster.summaries()))
    asked: list[Any] = []
    ask = Follower._ask

    def counted(self: Follower, now: float, kind: Any, *rest: Any) -> None:
        asked.append(kind)
        ask(self, now, kind, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitwire.watch.follow.SUMMARIES_EVERY", 1e9)
        patch.setattr(Follower, "_ask", counted)
        follower = Follower(address)
    names = [line["name"] for line in follower.summaries()]
    follower.close()

    assert names == [f"run{number}" for number in reversed(range(300))]
    assert 3 <= len(asked) <= 8


# -- following


def test_ranks_lives_and_what_was_given_up_are_followed(hub: Hub, follower: Follower) -> None:
    """Also a tombstone on the sample lane, of which no reference tells; then nothing more is asked."""
    zero, one, again = Teller(1000, 0), Teller(1001, 1), Teller(2000, 0)
    feed(hub, [*zero.say(started(), *(row(i) for i in range(10)), picture(1)), *one.say(row(0, loss=5.0))])
    listed(follower)
    until(lambda: same(follower, hub))
    feed(hub, [block_of(zero.sender, 2, Dropped(count=1, what="sample", reason="memory"), lane=BULK)])
    feed(hub, [block_of(zero.sender, 3, Dropped(count=1, what="sample", reason="memory"), lane=BULK)])
    feed(hub, again.say(started(), *(row(i) for i in range(5, 8))))
    until(lambda: same(follower, hub))

    assert steps(follower) == list(range(8))
    history = follower.history(RUN)
    with follower.changed:
        assert history.curve("loss", rank=1).values.tolist() == [5.0]
        assert history.dropped == {"sample": 2}
        assert said(history).count("Dropped") == 2
    before = hub.counts["messages"]
    threading.Event().wait(0.5)
    assert hub.counts["messages"] - before < 20


def test_a_hole_in_the_hubs_store_is_passed_over(hub: Hub, follower: Follower) -> None:
    """What stood there is gone for everybody; the rest is shown."""
    teller = Teller()
    blocks = [block for i in range(6) for block in teller.say(row(i))]
    feed(hub, [*blocks[:2], *blocks[4:]])
    listed(follower)
    until(lambda: same(follower, hub))

    assert steps(follower) == [0, 1, 4, 5]


def test_runs_that_have_ended_are_not_asked_for_until_they_go_on(
    hub: Hub, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those only some histories are kept; looked at again, they come again."""
    monkeypatch.setattr("fitwire.watch.follow.KEEP_LOADED", 2)
    tellers = [Teller(run=number.to_bytes(16, "big")) for number in range(1, 6)]
    for teller in tellers:
        feed(hub, teller.say(started(), row(1), ended()))
        hub.roster.link(teller.sender, 0.0, connected=False, gone=True)
    until(lambda: sum(line["settled"] for line in follower.summaries()) == 5)
    kept: list[History] = []
    for teller in tellers:
        assert steps(follower, teller.sender.run) == [1]
        kept.append(follower.history(teller.sender.run))
    until(lambda: len(follower._followed) == 2)
    again = Teller(5000, run=tellers[4].sender.run)
    feed(hub, again.say(started(), row(2)))
    until(lambda: steps(follower, again.sender.run) == [1, 2])

    until(lambda: follower.summary(again.sender.run)["state"] == "running")

    assert follower.history(again.sender.run) is kept[4]
    assert steps(follower, tellers[0].sender.run) == [1]
    assert follower.history(tellers[0].sender.run) is not kept[0]


def test_a_run_that_nobody_told_of_is_unknown(follower: Follower) -> None:
    """At once, without asking."""
    with pytest.raises(UnknownRun, match=f"no run {'78' * 16} at ipc"):
        follower.history(b"x" * 16)
    with pytest.raises(UnknownRun):
        follower.summary(b"x" * 16)


def test_a_fault_here_is_counted_and_the_rest_goes_on(
    hub: Hub, follower: Follower, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a hub sends."""
    feed(hub, Teller().say(started(), row(0)))
    listed(follower)
    broken = [2]
    take = Follower._take_history

    def sometimes(self: Follower, *what: Any) -> None:
        if broken[0]:
            broken[0] -= 1
            raise KeyError("run") if broken[0] else ZeroDivisionError
        take(self, *what)

    monkeypatch.setattr(Follower, "_take_history", sometimes)
    monkeypatch.setattr("fitwire.watch.follow.REFUSED_AGAIN", 0.05)
    with pytest.raises(LinkError, match="did not send the run within"):
        follower.history(RUN, timeout=1.0)

    assert (follower.faults["answer"], follower.faults["fault"]) == (1, 1)
    with train(follower.address, 3) as run:
        listed(follower, bytes.fromhex(run.id))
    assert steps(follower, bytes.fromhex(run.id)) == [0, 1, 2]
    assert len([record for record in caplog.records if record.exc_info]) == 1


# -- samples


def test_a_sample_of_forty_megabytes_arrives_to_the_bit_while_losses_pass(
    hub: Hub, follower: Follower, address: Address
) -> None:
    """Fetched in pieces, once; a second look finds it here."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 10 * 2**20), dtype=np.uint8)
    run = train(address, 10)
    run.sample("masks", image=pixels)
    assert run.flush(60.0)
    which = bytes.fromhex(run.id)
    until(lambda: follower.history(which).samples)
    ref = follower.history(which).samples["masks"][0]
    asked = hub.counts["messages"]
    found = follower.block(which, ref, BULK)
    pieces = hub.counts["messages"] - asked
    asked = hub.counts["messages"]
    again = follower.block(which, ref, BULK)
    run.finish()

    assert pixels.tobytes() in found
    assert again is found
    assert pieces >= 40


def test_only_so_many_samples_are_kept(hub: Hub, follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest used go first; each comes again when it is asked for."""
    monkeypatch.setattr("fitwire.watch.follow.KEEP_BYTES", 25_000)
    teller = Teller()
    feed(hub, [block for i in range(5) for block in teller.say(picture(i, size=10_000))])
    listed(follower)
    until(lambda: len(follower.history(RUN).samples.get("masks", ())) == 5)
    refs = follower.history(RUN).samples["masks"]
    for ref in [*refs, refs[0]]:
        assert bytes([ref.step or 0]) * 10_000 in follower.block(RUN, ref, BULK)

    assert [key[-1] for key in follower._cache] == [5, 1]
    assert follower._cached == sum(map(len, follower._cache.values()))


def test_a_sample_that_is_gone_is_said_to_be_so(hub: Hub, follower: Follower) -> None:
    """With its name and step."""
    teller = Teller()
    feed(hub, teller.say(picture(3)))
    listed(follower)
    until(lambda: follower.history(RUN).samples)
    store = Store(hub.store_path)
    assert store._db is not None
    store._db.execute("DELETE FROM blocks WHERE lane=1")
    store.close()

    with pytest.raises(UnknownRun, match="sample 'masks' of step 3: not in this store"):
        follower.block(RUN, follower.history(RUN).samples["masks"][0], BULK)


# -- a hub that comes and goes


def test_a_hub_that_is_killed_and_started_again_is_followed_on(address: Address, path: Path) -> None:
    """By itself: the curve is whole, nothing doubled; what it knew could be read meanwhile."""
    hub = start_hub(address, path)
    follower = Follower(address)
    run = train(address, 2000)
    try:
        which = bytes.fromhex(run.id)
        assert run.flush(30.0)
        listed(follower, bytes.fromhex(run.id))
        until(lambda: len(steps(follower, which)) == 2000)
        hub.kill()
        hub.close()
        until(lambda: follower.lost is not None)
        meanwhile = len(steps(follower, which))
        for step in range(2000, 4000):
            run.log({"loss": float(step)}, step=step)
        hub = start_hub(address, path)
        run.finish()
        until(lambda: follower.summary(which)["state"] == "finished")

        assert meanwhile == 2000
        assert steps(follower, which) == list(range(4000))
        assert follower.lost is None
    finally:
        follower.close()
        hub.close()


def test_a_hub_with_another_store_does_not_take_away_what_is_known(address: Address, path: Path) -> None:
    """What it does not know of is shown as it was."""
    first = Hub(address, path)
    feed(first, Teller().say(started(), row(0), row(1)))
    follower = Follower(address)
    assert steps(follower) == [0, 1]
    first.close()
    second = Hub(address, path.with_name("other.sqlite3"))
    until(lambda: follower.lost is None)
    with train(address, 2) as run:
        listed(follower, bytes.fromhex(run.id))

    assert steps(follower) == [0, 1]
    follower.close()
    second.close()


def test_whoever_waits_is_told_when_it_closes(hub: Hub, follower: Follower) -> None:
    """Not after half a minute; closing twice is fine."""
    teller = Teller()
    feed(hub, teller.say(picture(3)))
    listed(follower)
    until(lambda: follower.history(RUN).samples)
    ref = follower.history(RUN).samples["masks"][0]
    failures: list[Exception] = []

    def fetch() -> None:
        try:
            follower.block(RUN, ref, BULK, timeout=600.0)
        except LinkError as error:
            failures.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Follower, "_ask_piece", lambda *what: None)
        waiter = threading.Thread(target=fetch)
        waiter.start()
        until(lambda: follower._pieces)
        follower.close()
        follower.close()
        waiter.join(30.0)

    assert not waiter.is_alive()
    assert len(failures) == 1

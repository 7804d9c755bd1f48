"""Tests of ``fitwire.watch.asking``: what a watcher asks, over real sockets, of a training that is a puppet."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitwire import Monitor, WatchedRun
from fitwire.errors import EncodeError, LinkError, UsageError, WaitTimeout
from fitwire.events import Described
from fitwire.protocol.commands import EARLIER_LIFE, Request
from fitwire.transport.address import Address
from fitwire.watch.commands import Outcome
from helpers import until
from puppet import applied, done, puppet
from test_hub import start_hub
from watching import ended, row, started


@pytest.fixture(params=["hub", "joined"])
def monitor(request: pytest.FixtureRequest, address: Address, path: Path) -> Iterator[Monitor]:
    """One that is the hub, or one that joined it: both ask alike."""
    with Monitor(address, store=path) as hub:
        if request.param == "hub":
            yield hub
        else:
            with Monitor(address) as joined:
                yield joined


@pytest.fixture
def joined(address: Address, path: Path) -> Iterator[Monitor]:
    """One that joined a hub in another process, which may be killed."""
    hubs = [start_hub(address, path)]
    with Monitor(address, serve=False) as made:
        made.hubs = hubs  # type: ignore[attr-defined]
        yield made
    for hub in hubs:
        hub.close()


def watched(monitor: Monitor) -> WatchedRun:
    """The puppet's run, once its first batch is known."""
    run = monitor.wait_for_run(timeout=30.0)
    until(lambda: run.state in ("running", "paused"), what=str(run.state))
    return run


class Asking(threading.Thread):
    """A question in a thread of its own; :meth:`answer` waits for it."""

    def __init__(self, question: Callable[[], Outcome]) -> None:
        super().__init__(daemon=True)
        self._question = question
        self._found: list[Any] = []
        self.start()

    def run(self) -> None:
        try:
            self._found.append(self._question())
        except BaseException as error:
            self._found.append(error)

    def answer(self) -> Any:
        self.join(60.0)
        assert self._found, "no answer"
        return self._found[0]


BEGUN = (started(), row(0))


# -- what becomes of it


def test_what_was_asked_comes_home_with_its_step_and_what_it_changed(monitor: Monitor, address: Address) -> None:
    """And stands in the list of what was asked, for everybody."""

    def act(request: Request) -> Any:
        return done(request, "applied", step=1234, before=1e-3, after=request.arguments["value"], author=request.author)

    with puppet(address, *BEGUN, act=act):
        run = watched(monitor)
        outcome = run.set("lr", np.float32(0.5), timeout=30.0)
        [record] = run.commands

    assert (outcome.status, outcome.step, outcome.before, outcome.after) == ("applied", 1234, 1e-3, 0.5)
    assert (outcome.name, outcome.number, outcome.ok) == ("set", 1, True)
    assert (record.what, record.arguments, record.status) == ("set", {"name": "lr", "value": 0.5}, "applied")
    assert (record.step, record.before, record.after, record.client) == (1234, 1e-3, 0.5, outcome.client)
    assert "@" in record.who
    assert abs(record.asked - time.time()) < 60.0


def test_each_way_to_ask_says_what_it_is_documented_to(monitor: Monitor, address: Address) -> None:
    """The names and arguments are what every front door goes by."""
    with puppet(address, *BEGUN) as training:
        run = watched(monitor)
        for ask in (
            run.stop,
            lambda: run.stop(force=True),
            run.stop_after_epoch,
            run.checkpoint,
            lambda: run.checkpoint(Path("/there/it.ckpt")),
            run.pause,
            run.unpause,
            run.request_sample,
            lambda: run.do("shuffle", seed=1, action="x"),
        ):
            assert ask().status == "applied"
        said = [(record.what, dict(record.arguments)) for record in run.commands]

    assert said == [
        ("stop", {}),
        ("stop", {"force": True}),
        ("stop_after_epoch", {}),
        ("checkpoint", {}),
        ("checkpoint", {"path": "/there/it.ckpt"}),
        ("pause", {"max_pause": 3600.0}),
        ("unpause", {}),
        ("sample", {}),
        ("do", {"action": "shuffle", "arguments": {"seed": 1, "action": "x"}}),
    ]
    assert training.took == list(range(1, 10))


@pytest.mark.parametrize("status", ["accepted", "refused", "failed", "expired"])
def test_what_the_training_says_of_it_is_the_outcome(joined: Monitor, address: Address, status: Any) -> None:
    """Also that it takes effect later, and what it waits for."""
    with puppet(address, *BEGUN, act=lambda request: done(request, status, reason="waits for min_epochs")):
        outcome = watched(joined).stop(timeout=30.0)

    assert (outcome.status, outcome.reason) == (status, "waits for min_epochs")
    assert outcome.ok == (status == "accepted")


def test_a_refusal_comes_at_once_with_its_reason_and_is_kept(monitor: Monitor, address: Address) -> None:
    """Nothing was carried out."""
    with puppet(address, *BEGUN, check=lambda request: "lr goes 0 to 1, not 5") as training:
        run = watched(monitor)
        outcome = run.set("lr", 5)
        until(lambda: run.commands and run.commands[0].status == "refused")

    assert (outcome.status, outcome.reason, outcome.step) == ("refused", "lr goes 0 to 1, not 5", None)
    assert run.commands[0].reason == outcome.reason
    assert training.took == []


def test_a_command_is_held_until_its_training_is_back(monitor: Monitor, address: Address) -> None:
    """It was not listening when it was asked."""
    with puppet(address, *BEGUN):
        run = watched(monitor)
    asking = Asking(lambda: run.stop(timeout=30.0))
    time.sleep(0.3)
    with puppet(address, *BEGUN, incarnation=1001) as training:
        outcome = asking.answer()

    assert outcome.status == "applied"
    assert training.took == [1]


def test_a_command_that_nobody_took_expires(monitor: Monitor, address: Address) -> None:
    """Whoever comes later does not obey it."""
    with puppet(address, *BEGUN):
        run = watched(monitor)
    outcome = run.stop(timeout=0.3)
    with puppet(address, *BEGUN, incarnation=1001) as training:
        following = run.stop(timeout=30.0)

    assert (outcome.status, outcome.reason) == ("expired", "no training came to take it in time")
    assert following.status == "applied"
    assert training.took == [2]


def test_a_training_that_has_it_and_does_not_come_to_it_is_told_of(
    monitor: Monitor, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a long validation, say; the list shows that it waits, and, when the training has ended, it was in vain."""
    monkeypatch.setattr("fitwire.watch.asking.HOMEWARD", 0.2)
    with puppet(address, *BEGUN, act=lambda request: None) as training:
        run = watched(monitor)
        outcome = run.stop(timeout=1.0)
        waits = run.commands[0].status
        training.say(ended())
        until(lambda: run.commands[0].status != "waiting")

    assert (outcome.status, waits, run.commands[0].status) == ("expired", "waiting", "expired")
    assert outcome.reason == "the training has it, and did not come to carry it out within 1 s"
    assert run.commands[0].reason == "the training ended before it came to it"


def test_a_run_that_is_over_is_not_asked(monitor: Monitor, address: Address) -> None:
    """The answer comes at once."""
    with puppet(address, *BEGUN, ended()):
        run = monitor.wait_for_run(timeout=30.0)
        until(lambda: run.ended)
    until(lambda: run.stop(timeout=0.3).reason == "the run is over: finished", what="its connection went down")

    assert run.stop().status == "refused"


# -- once, whoever goes meanwhile


def test_a_hub_that_is_killed_meanwhile_does_not_have_it_carried_out_twice(
    joined: Monitor, address: Address, path: Path
) -> None:
    """The next hub hears of it from the viewer, and gives it to the same process, which knows it."""
    with puppet(address, *BEGUN, mute=True) as training:
        run = watched(joined)
        asking = Asking(lambda: run.stop(timeout=50.0))
        until(lambda: training.took)
        hubs = joined.hubs  # type: ignore[attr-defined]
        hubs[0].kill()
        hubs.append(start_hub(address, path))
        training.mute = False
        outcome = asking.answer()
        listed = [(record.what, record.status) for record in run.commands]

    assert outcome.status == "applied"
    assert training.took == [1]
    assert listed == [("stop", "applied")]


def test_what_a_run_told_a_former_hub_of_is_not_carried_out_by_a_life_that_knows_nothing(
    address: Address, path: Path
) -> None:
    """A command that is handed to the next hub, when the training has started again on another machine."""
    with Monitor(address, store=path) as first, puppet(address, *BEGUN):
        run = watched(first)
        before = run.stop(timeout=30.0)
        client = first._desk.client
    with Monitor(address, store=path) as second, puppet(address, *BEGUN, incarnation=1001) as training:
        run = watched(second)
        second._desk.client, second._desk.numbers = client, iter((1, 2))  # type: ignore[assignment]
        again, following = run.stop(timeout=30.0), run.stop(timeout=30.0)

    assert (before.status, again.status, following.status) == ("applied", "applied", "applied")
    assert training.took == [2]


def test_a_monitor_that_takes_the_hubs_place_carries_on_with_what_it_asked(address: Address, path: Path) -> None:
    """It had joined a hub that left."""
    with Monitor(address, store=path) as first, puppet(address, *BEGUN, mute=True) as training:
        with Monitor(address, store=path) as second:
            run = watched(second)
            asking = Asking(lambda: run.stop(timeout=50.0))
            until(lambda: training.took)
            first.close()
            until(lambda: second.is_hub)
            training.mute = False

            assert asking.answer().status == "applied"
        assert training.took == [1]


@pytest.mark.parametrize("knows", [True, False])
def test_a_training_that_starts_again_does_not_obey_what_its_former_life_took(
    joined: Monitor, address: Address, knows: bool
) -> None:
    """Whether or not it knows of it; and whoever asked does not wait for an outcome that cannot come."""
    with puppet(address, *BEGUN, mute=True) as former:
        run = watched(joined)
        asking = Asking(lambda: run.stop(timeout=50.0))
        until(lambda: former.took)
    [(client, number)] = [(joined._desk.client, 1)]
    with puppet(address, *BEGUN, incarnation=1001, known=((client, number),) if knows else ()) as training:
        outcome = asking.answer()

    assert (outcome.status, outcome.reason) == ("refused", EARLIER_LIFE)
    assert training.took == []


def test_a_training_that_was_killed_with_a_command_in_hand_is_not_waited_for(
    monitor: Monitor, address: Address
) -> None:
    """Its successor's start tells that nothing will come of it."""
    with puppet(address, *BEGUN, act=lambda request: None):
        run = watched(monitor)
        asking = Asking(lambda: run.stop(timeout=50.0))
        until(lambda: run.commands)
    with puppet(address, *BEGUN, incarnation=1001):
        outcome = asking.answer()

    assert (outcome.status, outcome.reason) == ("expired", "the training ended before it came to it")


def test_several_monitors_ask_at_once_and_each_gets_its_own(address: Address, path: Path) -> None:
    """Ninety commands in all; each is carried out once, and those of one asker in order."""

    def ask(run: WatchedRun) -> list[Any]:
        return [run.set("x", value, timeout=50.0).after for value in range(30)]

    with (
        Monitor(address, store=path) as hub, Monitor(address) as second, Monitor(address) as third,
        puppet(address, *BEGUN) as training,
    ):  # fmt: skip
        runs = [watched(one) for one in (hub, second, third)]
        asking = [Asking(lambda run=run: ask(run)) for run in runs]  # type: ignore[misc]
        found = [one.answer() for one in asking]
        told = runs[0].commands

    assert found == [list(range(30))] * 3
    assert len(training.took) == 90
    for client in {record.client for record in told}:
        assert [record.number for record in told if record.client == client] == list(range(1, 31))


# -- which process


def test_rank_0_is_asked_and_no_other(joined: Monitor, address: Address) -> None:
    """It speaks for the others, also when it is away for a moment."""
    with puppet(address, *BEGUN, rank=1) as other:
        with puppet(address, *BEGUN):
            run = watched(joined)
            until(lambda: run.ranks == (0, 1))
        asking = Asking(lambda: run.stop(timeout=30.0))
        time.sleep(0.3)
        with puppet(address, *BEGUN, incarnation=1001) as training:
            outcome = asking.answer()

    assert outcome.status == "applied"
    assert (training.took, other.took) == ([1], [])


# -- how it is asked


def test_asking_does_not_hold_up_an_event_loop(monitor: Monitor, address: Address) -> None:
    """And when the waiting is given up, nobody waits on in a thread."""

    async def ask(run: WatchedRun) -> tuple[Outcome, int]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0.001)

        beating = asyncio.create_task(beat())
        outcome = await run.ask("set", name="lr", value=0.25)
        beating.cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.ask("wait"), 0.3)
        return outcome, beats

    with puppet(address, *BEGUN, act=lambda request: None if request.name == "wait" else applied(request)):
        run = watched(monitor)
        before = time.monotonic()
        outcome, beats = asyncio.run(ask(run))

        assert (outcome.status, outcome.after) == ("applied", 0.25)
        assert beats > 3
        assert time.monotonic() - before < 30.0  # a loop that ends waits for its threads


def test_what_may_be_asked_is_told_by_the_newest_life(monitor: Monitor, address: Address) -> None:
    """A knob that changed is told again; what the former life had is gone."""
    knob = {"kind": "knob", "type": "float", "value": 0.1}
    with puppet(
        address, *BEGUN, Described(what="controls", values={"lr": knob, "old": {"kind": "action"}})
    ) as training:
        run = watched(monitor)
        until(lambda: run.controls)
        before = run.controls
        training.say(Described(what="controls", values={"lr": knob | {"value": 0.2}}))
        until(lambda: run.controls["lr"]["value"] == 0.2)
        middle = run.controls
    with puppet(address, *BEGUN, Described(what="controls", values={"stop": {"kind": "command"}}), incarnation=1001):
        until(lambda: "stop" in run.controls)

    assert before == {"lr": knob, "old": {"kind": "action"}}
    assert middle == {"lr": knob | {"value": 0.2}, "old": {"kind": "action"}}
    assert run.controls == {"stop": {"kind": "command"}}
    assert "lr" not in run.config


def test_a_paused_run_shows_as_paused_until_it_goes_on(monitor: Monitor, address: Address) -> None:
    """However long it holds."""
    with puppet(address, *BEGUN) as training:
        run = watched(monitor)
        run.pause()
        until(lambda: run.state == "paused")
        training.say(row(8))
        until(lambda: run.state == "running")
        run.pause()
        until(lambda: run.state == "paused")
        run.unpause()
        until(lambda: run.state == "running")


def test_what_cannot_be_asked_is_an_error_of_the_caller(monitor: Monitor, address: Address) -> None:
    """Said before anything is sent."""
    with puppet(address, *BEGUN) as training:
        run = watched(monitor)
        with pytest.raises(UsageError, match="timeout=0: pass seconds, above 0 and at most 86,400"):
            run.stop(timeout=0)
        with pytest.raises(EncodeError, match="cannot send"):
            run.do("x", y=object())
        assert training.took == []


def test_without_a_hub_nobody_passes_a_command_on(path: Path, address: Address) -> None:
    """A monitor that only reads the store says so."""
    with Monitor(address, store=path) as hub, puppet(address, *BEGUN):
        watched(hub)
    with Monitor(address, store=path, serve=False) as reader, pytest.raises(LinkError, match="no hub is there"):
        reader.run().stop()


def test_a_monitor_that_closes_says_that_it_did_not_hear(address: Address, path: Path) -> None:
    """Whoever waits in another thread is not left waiting."""
    with Monitor(address, store=path) as hub, puppet(address, *BEGUN, act=lambda request: None) as training:
        with Monitor(address) as monitor:
            run = watched(monitor)
            asking = Asking(lambda: run.stop(timeout=50.0))
            until(lambda: training.took)
        found = asking.answer()

        assert isinstance(found, WaitTimeout)
        assert "the monitor was closed before stop had an outcome" in str(found)
        assert hub.is_hub

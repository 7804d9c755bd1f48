"""What may be asked of a training, and that it comes to pass once, in time, and between two steps."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from fitwire.errors import UsageError
from fitwire.protocol.commands import Request
from fitwire.train.controls import Controls, Done, make_knob
from helpers import until


class Training:
    """Controls, and what they told."""

    def __init__(self, *, allowed: bool = True) -> None:
        self.attention = False
        self.told: list[tuple[str, Done]] = []
        self.described: dict[str, Any] = {}
        self.controls = Controls(
            allowed, self._attend, lambda command, done: self.told.append((command.name, done)), self.described.update
        )
        self._number = 0

    def _attend(self, wanted: bool) -> None:
        self.attention = wanted

    def request(self, word: str, /, within: float = 60.0, **arguments: Any) -> Request:
        self._number += 1
        return Request(
            client="0" * 32, number=self._number, name=word, arguments=arguments, deadline=time.monotonic() + within
        )

    def ask(self, word: str, /, **arguments: Any) -> str | None:
        """As the I/O thread does; gives why it was refused."""
        command = self.request(word, **arguments)
        refusal = self.controls.check(command)
        if refusal is None:
            self.controls.take(command)
        return refusal

    def knob(self, name: str = "lr", value: Any = 0.5, **bounds: Any) -> Any:
        defaults: dict[str, Any] = {"low": None, "high": None, "choices": None, "log": False}
        return self.controls.add_knob(make_knob(name, value, **(defaults | bounds)))


def test_a_knob_turns_when_it_is_applied_and_not_before() -> None:
    """Nothing changes in the middle of a step; then it is told, from what to what, and its description with it."""
    training = Training()
    knob = training.knob(low=0.1, high=1.0)
    assert training.ask("set", name="lr", value=0.25) is None
    assert (knob.value, training.attention, training.told) == (0.5, True, [])
    training.controls.apply()

    assert (knob.value, training.attention) == (0.25, False)
    assert training.told == [("set", Done(before=0.5, after=0.25))]
    assert training.described["lr"] == {"kind": "knob", "type": "float", "value": 0.25, "low": 0.1, "high": 1.0}


@pytest.mark.parametrize(
    ("made", "value", "says"),
    [
        ({"value": 0.5, "low": 0.1, "high": 1.0}, 2.0, "lr goes from 0.1 to 1, not 2"),
        ({"value": 0.5, "low": 0.1}, 0.01, "lr goes from 0.1, not 0.01"),
        ({"value": 0.5}, "much", "lr takes a float, not 'much'"),
        ({"value": 0.5}, True, "lr takes a float, not True"),
        ({"value": 0.5}, float("nan"), "finite"),
        ({"value": 3}, 3.5, "lr takes a int, not 3.5"),
        ({"value": "adam", "choices": ["adam", "sgd"]}, "lion", "lr is one of 'adam', 'sgd', not 'lion'"),
        ({"value": "x"}, "y" * 2000, "at most 1000 characters"),
        ({"value": True}, 1, "lr takes a bool, not 1"),
        ({"value": 0.5}, None, "lr takes a float, not None"),
    ],
)
def test_what_a_knob_does_not_take_is_refused_at_once_with_the_reason(
    made: dict[str, Any], value: Any, says: str
) -> None:
    """By the I/O thread, so that whoever asks hears of it while the training is busy."""
    training = Training()
    knob = training.knob(**made)
    refusal = training.ask("set", name="lr", value=value)

    assert refusal is not None and says in refusal
    assert knob.value == made["value"] and not training.attention


def test_whole_numbers_and_floats_are_taken_for_each_other_where_nothing_is_lost() -> None:
    """JSON and people write 1 for 1.0."""
    training = Training()
    rate, layers = training.knob("rate", 0.5), training.knob("layers", 2)
    training.ask("set", name="rate", value=1)
    training.ask("set", name="layers", value=3.0)
    training.controls.apply()

    assert (rate.value, type(rate.value), layers.value, type(layers.value)) == (1.0, float, 3, int)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"name": ""}, "printable"),
        ({"name": "a\nb"}, "printable"),
        ({"value": [1]}, "not a list"),
        ({"value": True, "low": 0}, "only numbers have bounds"),
        ({"low": 2.0, "high": 1.0}, "low=2.0 is above high=1.0"),
        ({"log": True}, "needs a low= above 0"),
        ({"value": 5.0, "high": 1.0}, "goes to 1, not 5"),
        ({"value": "a", "choices": ["a", 1]}, "choice 1 is no str"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_where_it_is_made(made: dict[str, Any], says: str) -> None:
    """A sentence, at the call."""
    with pytest.raises(UsageError) as refused:
        Training().knob(**made)

    assert says in str(refused.value)


def test_numpy_numbers_make_knobs_too() -> None:
    """As they come out of a computation."""
    assert Training().knob(value=np.float64(0.25)).value == 0.25
    assert Training().knob(value=np.int64(3)).kind == "int"


def test_actions_are_called_with_their_arguments_and_what_they_return_is_told() -> None:
    """Between two steps, on the thread that applies."""
    training = Training()
    threads: list[threading.Thread] = []

    def save(path: str = "last") -> str:
        threads.append(threading.current_thread())
        return f"saved {path}"

    training.controls.add_action("checkpoint", save)
    training.ask("checkpoint", path="here")
    training.ask("do", action="checkpoint", arguments={"path": "there"})
    training.ask("checkpoint")
    training.controls.apply()

    assert [done.after for _, done in training.told] == ["saved here", "saved there", "saved last"]
    assert set(threads) == {threading.current_thread()}


def test_an_action_that_fails_is_told_and_ends_nothing() -> None:
    """The training goes on, and so does what waits behind it."""
    training = Training()

    def broken() -> None:
        raise OSError("no room")

    training.controls.add_action("save", broken)
    knob = training.knob()
    training.ask("do", action="save")
    training.ask("set", name="lr", value=0.1)
    training.controls.apply()

    assert training.told[0] == ("do", Done(status="failed", reason="OSError: no room"))
    assert knob.value == 0.1


def test_what_nobody_offers_is_refused_naming_what_there_is() -> None:
    """A person can correct the word."""
    training = Training()
    training.controls.handle({"stop": lambda arguments: Done()})
    training.knob()

    assert training.ask("explode") == "no command 'explode' here; there are: pause, stop, unpause"
    assert training.ask("set", name="ls", value=1.0) == "no knob 'ls' here; there are: lr"
    assert training.ask("do", action="x") == "no action 'x' here; there are: none"


def test_a_training_that_is_not_to_be_steered_refuses_all_and_offers_nothing() -> None:
    """``control=False``."""
    training = Training(allowed=False)
    training.controls.handle({"stop": lambda arguments: Done()})
    training.knob()

    assert training.ask("stop") == "this training is not to be steered (control=False)"
    assert training.described == {}


def test_a_command_that_comes_to_no_boundary_in_time_is_not_carried_out() -> None:
    """An hour's validation must not end in a stop that nobody wants any more."""
    training = Training()
    knob = training.knob()
    training.controls.take(training.request("set", within=-1.0, name="lr", value=0.1))
    training.controls.apply()

    assert knob.value == 0.5
    assert [done.status for _, done in training.told] == ["expired"]


def test_some_commands_wait_for_another_place_in_the_loop_in_their_order() -> None:
    """A loop of one's own stops only where it asks; what can be done before is."""
    training = Training()
    done: list[str] = []
    training.controls.handle({"stop": lambda arguments: done.append("stop") or Done()})
    training.knob()
    for name, arguments in (("stop", {}), ("set", {"name": "lr", "value": 0.1}), ("stop", {})):
        training.ask(name, **arguments)
    training.controls.apply(but=frozenset({"stop"}))
    assert ([name for name, _ in training.told], training.attention) == (["set"], True)
    training.controls.apply()

    assert done == ["stop", "stop"] and not training.attention


def test_a_pause_holds_until_it_is_ended_and_what_comes_meanwhile_is_done() -> None:
    """Knobs turn while it holds; the training thread stays where it is."""
    training = Training()
    training.controls.handle({"stop": lambda arguments: Done()})
    knob = training.knob()
    training.ask("pause", max_pause=600)
    thread = threading.Thread(target=training.controls.apply, daemon=True)
    thread.start()
    until(lambda: training.controls.paused)
    training.ask("set", name="lr", value=0.1)
    until(lambda: knob.value == 0.1)
    assert thread.is_alive()
    training.ask("unpause")
    thread.join(60)

    assert not thread.is_alive() and not training.controls.paused
    assert [name for name, _ in training.told] == ["pause", "set", "unpause"]
    assert training.told[0][1].after == 600


@pytest.mark.parametrize("ends", ["stop", "max_pause", "run"])
def test_a_pause_ends_by_a_stop_by_itself_and_with_the_run(ends: str) -> None:
    """Nothing holds a training for ever."""
    training = Training()
    training.controls.handle({"stop": lambda arguments: Done()})
    training.ask("pause", max_pause=0.2 if ends == "max_pause" else 600)
    thread = threading.Thread(target=training.controls.apply, daemon=True)
    thread.start()
    if ends == "stop":
        training.ask("stop")
    elif ends == "run":
        until(lambda: training.controls.paused)
        training.controls.end("finished")
    thread.join(60)

    assert not thread.is_alive()


def test_what_waits_when_the_run_ends_is_refused() -> None:
    """Whoever asked hears why nothing will come of it."""
    training = Training()
    training.knob()
    training.ask("set", name="lr", value=0.1)
    training.controls.end("failed")

    assert training.told == [("set", Done(status="refused", reason="the run has failed"))]
    assert training.ask("set", name="lr", value=0.1) == "the run has failed"


def test_an_action_that_logs_does_not_apply_what_waits_behind_it() -> None:
    """Else the second would be carried out inside the first."""
    training = Training()
    order: list[str] = []

    def first() -> None:
        training.controls.apply()
        order.append("first")

    training.controls.add_action("first", first)
    training.controls.add_action("second", lambda: order.append("second"))
    training.ask("do", action="first")
    training.ask("do", action="second")
    training.controls.apply()

    assert order == ["first", "second"]


def test_too_much_is_refused() -> None:
    """Neither a script gone wild nor a loop that makes knobs takes the memory."""
    training = Training()
    training.knob()
    refusals = [training.ask("set", name="lr", value=0.1) for _ in range(300)]

    assert refusals.count(None) == 256
    for i in range(255):
        training.knob(f"knob{i}")
    with pytest.raises(UsageError, match="are enough"):
        training.knob("one more")

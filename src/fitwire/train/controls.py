"""What a watcher may ask of this training, and how it comes to pass at a batch boundary.

Commands arrive on the I/O thread, which checks them against what there is and raises a flag. The training thread reads
that flag, and carries out what waits where its framework allows it: nothing is changed from another thread. This module
knows no socket and no framework; a front door says with :meth:`Controls.handle` what it can do.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from fitwire.errors import UsageError
from fitwire.events import MAX_NAME, CommandStatus
from fitwire.protocol.commands import Request
from fitwire.train.values import plain_text

if TYPE_CHECKING:
    from fitwire.train.ranks import Ranks

__all__ = ["STOPS", "Controls", "Done", "Knob", "make_knob"]

MAX_WAITING = 256
"""Commands that wait for a batch boundary; a person asks for one, a script for some."""
MAX_KNOBS = 256
MAX_TEXT = 1000
"""Characters of a text that a knob may take, and of what a command is said to have done."""
MAX_PAUSE = 3600.0
"""Seconds after which a pause ends by itself, unless it was asked for less."""
TURN = 0.02
"""Seconds between two looks of a paused training at what it is asked."""
TOO_LATE = "the training came to no place where it could be done"
STOPS = frozenset({"stop", "stop_after_epoch"})
"""They end a pause; in a loop of one's own they wait until it asks whether to stop."""

KINDS: dict[type, str] = {bool: "bool", int: "int", float: "float", str: "str"}


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a command.

    Attributes:
        before: What it was, where something was changed; plain.
        after: What it is now.
        status: ``"applied"``; ``"accepted"`` when it takes effect later; ``"refused"`` or ``"failed"``.
        reason: Why, or what it waits for.
    """

    before: Any = None
    after: Any = None
    status: CommandStatus = "applied"
    reason: str = ""


Handler = Callable[[Mapping[str, Any]], Done]


@dataclass(slots=True, eq=False)
class Knob:
    """A value that a watcher may change while the training goes on.

    Made by ``Run.knob``. Its ``value`` changes only within the calls that apply what was asked: ``log``, ``apply`` and
    ``stop_requested`` of the thread that trains.

    Attributes:
        name: What it is asked for by.
        value: What it is now.
        low: Least value; None for any.
        high: Greatest value; None for any.
        choices: What it may be; empty for anything within the bounds.
        log: Whether it is best shown on a logarithmic scale.
    """

    name: str
    value: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    log: bool = False
    put: Callable[[Any], Done] | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """``"float"``, ``"int"``, ``"bool"`` or ``"str"``, after the value it was made with."""
        return kind_of(self.value)

    def spec(self) -> dict[str, Any]:
        """What watchers are told of it."""
        told: dict[str, Any] = {"kind": "knob", "type": self.kind, "value": self.value}
        told |= {key: value for key in ("low", "high") if (value := getattr(self, key)) is not None}
        if self.choices:
            told["choices"] = list(self.choices)
        return told | ({"log": True} if self.log else {})

    def checked(self, value: Any) -> Any:
        """The value as the knob takes it.

        Raises:
            ValueError: It does not; the message says what it takes.
        """
        kind, given = self.kind, value
        if kind == "float" and kind_of(given) == "int":
            given = float(given)
        elif kind == "int" and kind_of(given) == "float" and given.is_integer():
            given = int(given)
        if kind_of(given) != kind:
            raise ValueError(f"{self.name} takes a {kind}, not {_shown(value)}")
        if kind == "float" and not math.isfinite(given):
            raise ValueError(f"{self.name} takes a finite number, not {given}")
        if self.choices and given not in self.choices:
            raise ValueError(f"{self.name} is one of {', '.join(map(_shown, self.choices))}, not {_shown(value)}")
        if kind in ("int", "float"):
            self._check_bounds(given)
        elif kind == "str" and len(str(given)) > MAX_TEXT:
            raise ValueError(f"{self.name} takes at most {MAX_TEXT} characters")
        return given

    def _check_bounds(self, value: float) -> None:
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            low = "" if self.low is None else f"from {self.low:g} "
            high = "" if self.high is None else f"to {self.high:g}"
            raise ValueError(f"{self.name} goes {f'{low}{high}'.strip()}, not {value:g}")


def kind_of(value: Any) -> str:
    """``"bool"``, ``"int"``, ``"float"`` or ``"str"``; empty for anything else."""
    return KINDS.get(cast("type[Any]", type(value)), "")


def _shown(value: Any) -> str:
    return plain_text(repr(value), 60)


def make_knob(
    name: str, value: Any, low: float | None, high: float | None, choices: Sequence[Any] | None, log: bool
) -> Knob:
    """A knob that makes sense.

    Raises:
        UsageError: It does not; the message says why.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"knob {name!r}: pass a name of 1 to {MAX_NAME} printable characters")
    if not kind_of(value):
        value = value.item() if hasattr(value, "item") else value
        if not kind_of(value):
            raise UsageError(f"knob {name!r}: pass a float, int, bool or str, not a {type(value).__name__}")
    if kind_of(value) in ("bool", "str") and (low is not None or high is not None):
        raise UsageError(f"knob {name!r}: only numbers have bounds; pass choices= for a {kind_of(value)}")
    if low is not None and high is not None and not low <= high:
        raise UsageError(f"knob {name!r}: low={low} is above high={high}")
    if log and (low is None or low <= 0):
        raise UsageError(f"knob {name!r}: a logarithmic scale needs a low= above 0")
    knob = Knob(name, value, low, high, tuple(choices or ()), log)
    try:
        for choice in knob.choices:
            if kind_of(choice) != knob.kind:
                raise ValueError(f"choice {choice!r} is no {knob.kind}")
        knob.checked(value)
    except ValueError as error:
        raise UsageError(f"knob {name!r}: {error}") from None
    return knob


class Controls:
    """The registry, and what waits.

    Args:
        allowed: Whether watchers may steer.
        attend: Told whether something waits: sets the flag that the training thread reads.
        tell: Told what became of a command: ``tell(command, done)``.
        describe: Told what may be asked for: name to a plain description.

    Attributes:
        paused: Whether the training holds.
        ranks: With whom it carries things out, at the same step; None when it is alone.
    """

    def __init__(
        self,
        allowed: bool,
        attend: Callable[[bool], None],
        tell: Callable[[Request, Done], None],
        describe: Callable[[dict[str, Any]], None],
    ) -> None:
        self.paused = False
        self.ranks: Ranks | None = None
        self._allowed = allowed
        self._attend, self._tell, self._describe = attend, tell, describe
        self._handlers: dict[str, Handler] = {}
        self._knobs: dict[str, Knob] = {}
        self._actions: dict[str, Callable[..., Any]] = {}
        self._waiting: deque[Request] = deque()
        self._applying = False
        self._over = ""

    # -- what can be asked

    def handle(self, handlers: Mapping[str, Handler]) -> None:
        """Have commands carried out on the training thread: name to a function of the arguments.

        A training that carries out any can be paused too.
        """
        new = [name for name in (*handlers, "pause", "unpause") if name not in self._handlers]
        self._handlers |= {"pause": self._never, "unpause": self._unpause, **handlers}
        if new and self._allowed:
            self._describe({name: {"kind": "command"} for name in new})

    @staticmethod
    def _never(arguments: Mapping[str, Any]) -> Done:
        raise AssertionError("a pause is not over when it is carried out")

    def _unpause(self, arguments: Mapping[str, Any]) -> Done:
        was, self.paused = self.paused, False
        return Done(reason="" if was else "it was not paused")

    def handles(self, name: str) -> bool:
        """Whether somebody carries out that command."""
        return name in self._handlers

    def add_knob(self, knob: Knob) -> Knob:
        """Let watchers turn it.

        Raises:
            UsageError: There are too many.
        """
        if knob.name not in self._knobs and len(self._knobs) >= MAX_KNOBS:
            raise UsageError(f"{len(self._knobs)} knobs are enough: group some into one")
        self._knobs[knob.name] = knob
        if self._allowed:
            self._describe({knob.name: knob.spec()})
        return knob

    def add_action(self, name: str, function: Callable[..., Any]) -> None:
        """Let watchers have ``function`` called at a batch boundary.

        Raises:
            UsageError: It is no function, or its name cannot be asked for.
        """
        if not callable(function) or not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"action {name!r}: pass a name and a function")
        self._actions[name] = function
        if self._allowed:
            self._describe({name: {"kind": "action"}})

    # -- on the I/O thread

    def check(self, command: Request) -> str | None:
        """Why a command cannot be carried out; None when it can."""
        if len(self._waiting) >= MAX_WAITING:
            return f"{len(self._waiting)} commands wait already"
        return self._objection(command)

    def _objection(self, command: Request) -> str | None:
        if not self._allowed:
            return "this training is not to be steered (control=False)"
        if self._over:
            return f"the run has {self._over}"
        if self.ranks is not None and self.ranks.why:
            return self.ranks.why
        name = command.name
        if name == "set":
            return self._check_set(command.arguments)
        if name == "do":
            action = command.arguments.get("action")
            return None if action in self._actions else self._unknown(str(action), "action", self._actions)
        if name in self._handlers or name in self._actions:
            return None
        return self._unknown(name, "command", {**self._handlers, **self._actions})

    def _check_set(self, arguments: Mapping[str, Any]) -> str | None:
        knob = self._knobs.get(str(arguments.get("name")))
        if knob is None:
            return self._unknown(str(arguments.get("name")), "knob", self._knobs)
        try:
            knob.checked(arguments.get("value"))
        except ValueError as error:
            return str(error)
        return None

    @staticmethod
    def _unknown(name: str, kind: str, known: Mapping[str, Any]) -> str:
        there = ", ".join(sorted(known)[:20]) or "none"
        return f"no {kind} {plain_text(name, 60)!r} here; there are: {there}"

    def take(self, command: Request) -> None:
        """Have a command carried out at the next boundary."""
        self._waiting.append(command)
        self._attend(True)

    # -- on the training thread

    def apply(self, *, but: frozenset[str] = frozenset()) -> None:
        """Carry out what waits, in order; a pause holds here.

        Args:
            but: Commands that are to wait on, for another place in the loop.
        """
        if self._applying:  # an action that logs
            return
        self._applying = True
        try:
            left: list[Request] = []
            self._attend(False)
            if self.ranks is not None:
                for command in self._agreed(self.ranks)[0]:
                    self._carry_out(command)
                return
            while self._waiting:
                command = self._waiting.popleft()
                if command.name in but and time.monotonic() <= command.deadline:
                    left.append(command)
                else:
                    self._carry_out(command)
            if left:
                self._waiting.extendleft(reversed(left))
                self._attend(True)
        finally:
            self._applying = False

    def _agreed(self, ranks: Ranks, hold: bool = False) -> tuple[list[Request], bool]:
        """What all ranks are to do now, and whether they hold on; rank 0 says what comes too late."""
        waiting: list[Request] = []
        while self._waiting:
            command = self._waiting.popleft()
            if time.monotonic() > command.deadline:
                self._tell(command, Done(status="expired", reason=TOO_LATE))
            elif ranks.rank:
                self._tell(command, Done(status="refused", reason="rank 0 is to be asked"))
            else:
                waiting.append(command)
        agreed, holding = ranks.agree(waiting, hold)
        if ranks.why:
            for command in waiting:
                self._tell(command, Done(status="refused", reason=ranks.why))
            return [], False
        return agreed, holding

    def _carry_out(self, command: Request) -> None:
        if time.monotonic() > command.deadline:
            self._tell(command, Done(status="expired", reason=TOO_LATE))
            return
        reason = self._objection(command)
        if reason is not None:
            self._tell(command, Done(status="refused", reason=reason))
            return
        if command.name == "pause":
            self._pause(command)
            return
        try:
            done = self._function(command)
        except Exception as error:  # an action's own fault must not end the training
            done = Done(status="failed", reason=plain_text(f"{type(error).__name__}: {error}", MAX_TEXT))
        self._tell(command, done)

    def _function(self, command: Request) -> Done:
        name, arguments = command.name, command.arguments
        if name == "set":
            return self._turn(self._knobs[str(arguments["name"])], arguments["value"])
        if name in self._handlers:
            return self._handlers[name](arguments)
        action, given = name, arguments
        if name == "do":
            action, given = str(arguments["action"]), cast("Mapping[str, Any]", arguments.get("arguments") or {})
        result = self._actions[action](**{str(key): value for key, value in given.items()})
        return Done(after=None if result is None else plain_text(str(result), MAX_TEXT))

    def _turn(self, knob: Knob, value: Any) -> Done:
        before, after = knob.value, knob.checked(value)
        done = knob.put(after) if knob.put is not None else Done(before, after)
        if done.status in ("applied", "accepted"):
            knob.value = after
            self._describe({knob.name: knob.spec()})
        return done

    def _pause(self, command: Request) -> None:
        limit = command.arguments.get("max_pause", MAX_PAUSE)
        seconds = float(limit) if isinstance(limit, (int, float)) and 0 < limit <= 7 * 86400 else MAX_PAUSE
        self._tell(command, Done(after=seconds, reason=f"ends by itself after {seconds:g} s"))
        self.paused = True
        until = time.monotonic() + seconds
        try:
            while self.paused:
                hold = time.monotonic() < until and not self._over
                following: list[Request] = []
                if self.ranks is not None:
                    following, hold = self._agreed(self.ranks, hold)
                elif hold and self._waiting:
                    following = [self._waiting.popleft()]
                for request in following:
                    self._carry_out(request)
                    if request.name in STOPS:
                        self.paused = False
                self.paused = self.paused and hold
                if self.paused and (self.ranks is not None or not self._waiting):
                    time.sleep(TURN)
        finally:
            self.paused = False

    def end(self, how: str) -> None:
        """The run has ended: what waits is refused."""
        self._over = how
        while self._waiting:
            self._tell(self._waiting.popleft(), Done(status="refused", reason=f"the run has {how}"))

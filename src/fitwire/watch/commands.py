"""What was asked of a run and what became of it, from what the run itself told: the list that anybody can check later.

Pure; no lock, socket or store is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fitwire.events import Command, CommandDone
from fitwire.protocol.commands import Pair

__all__ = ["CommandRecord", "Commands", "Outcome"]

MAX_COMMANDS = 10_000
"""Commands kept in memory of one run; the store has all."""
WAITING = "waiting"
ENDED_BEFORE = "the training ended before it came to it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a command.

    Attributes:
        status: ``"applied"``; ``"accepted"`` when it takes effect later, of which ``reason`` says what it waits for;
            ``"refused"``, ``"expired"`` or ``"failed"``.
        step: At which it was carried out, index of the last optimizer step done; None when it was not, or before the
            first.
        before: What was changed, as it was; None where nothing was.
        after: What it is now.
        reason: Why, in a sentence; empty where there is nothing to say.
        name: Of the command.
        client: Who asked, 32 hexadecimal digits.
        number: Of the command.

    Example:
        >>> Outcome(status="applied", step=1234, before=0.001, after=0.0001, name="set").ok
        True
    """

    status: str
    step: int | None = None
    before: Any = None
    after: Any = None
    reason: str = ""
    name: str = ""
    client: str = ""
    number: int = 0

    @property
    def ok(self) -> bool:
        """Whether it was carried out or will be."""
        return self.status in ("applied", "accepted")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """One command that reached the run, and what became of it.

    Attributes:
        who: Who asked, for people: user and host, as the asker says.
        what: The command's name.
        arguments: Plain values.
        asked: When, Unix seconds at the asker.
        status: As of an :class:`Outcome`, or ``"waiting"`` while the training has not come to it.
        step: At which it was carried out; None when it was not, or before the first.
        before: What was changed, as it was; None where nothing was.
        after: What it is now.
        reason: Why, in a sentence.
        time: When it was carried out or refused, Unix seconds at the trainer; None while it waits.
        client: Who asked, 32 hexadecimal digits.
        number: Of the command.
    """

    who: str
    what: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    asked: float = 0.0
    status: str = WAITING
    step: int | None = None
    before: Any = None
    after: Any = None
    reason: str = ""
    time: float | None = None
    client: str = ""
    number: int = 0


@dataclass(slots=True)
class _Told:
    """What was told of one command; ``key`` is the incarnation and rank that took it."""

    key: tuple[int, int]
    command: Command | None = None
    done: CommandDone | None = None


class Commands:
    """The commands of one run, in the order in which they reached it."""

    def __init__(self) -> None:
        self._told: dict[Pair, _Told] = {}

    def add(self, key: tuple[int, int], event: Command | CommandDone) -> None:
        """Take what a source told; ``key`` is its incarnation and rank."""
        pair = (event.client, event.number)
        told = self._told.get(pair)
        if told is None:
            told = self._told[pair] = _Told(key)
            if len(self._told) > MAX_COMMANDS:
                del self._told[next(iter(self._told))]
        if isinstance(event, Command):
            told.command = told.command or event
        elif told.done is None or told.done.rank >= event.rank:  # an accepted one may be told of again, when it is done
            told.done = event

    def record(self, pair: Pair, over: Callable[[tuple[int, int]], bool]) -> CommandRecord | None:
        """One of them; ``over`` says whether that life of that rank is, so that nothing will come of what waits."""
        told = self._told.get(pair)
        return None if told is None else _record(pair, told, over(told.key))

    def records(self, over: Callable[[tuple[int, int]], bool]) -> Iterator[CommandRecord]:
        """Yield all of them; see :meth:`record`."""
        for pair, told in self._told.items():
            yield _record(pair, told, over(told.key))


def _record(pair: Pair, told: _Told, over: bool) -> CommandRecord:
    command, done = told.command, told.done
    ended = done is None and over
    return CommandRecord(
        who=command.author if command is not None else done.author if done is not None else "",
        what=command.name if command is not None else done.name if done is not None else "",
        arguments=command.arguments if command is not None else {},
        asked=command.asked if command is not None else 0.0,
        status=done.status if done is not None else "expired" if ended else WAITING,
        step=done.step if done is not None else None,
        before=done.before if done is not None else None,
        after=done.after if done is not None else None,
        reason=done.reason if done is not None else ENDED_BEFORE if ended else "",
        time=done.time if done is not None else None,
        client=pair[0], number=pair[1],
    )  # fmt: skip

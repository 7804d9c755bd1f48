"""The half of a ``Run`` through which a watcher's wishes reach the loop: knobs, actions, stop, pause.

The training thread pays for it by reading a flag. What waits is carried out only within calls of that thread: in a loop
of one's own by ``log``, ``stop_requested`` and ``apply``, under a framework where its front door says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fitwire.protocol.commands import Request
from fitwire.train.controls import STOPS, Controls, Done, Knob, make_knob
from fitwire.train.ranks import Ranks

__all__ = ["Steered"]


class Steered:
    """What ``Run`` inherits of it.

    Attributes:
        controls: What can be asked for, and what waits.
        wants_attention: Whether something waits; set by the I/O thread, and all that a batch has to read.
    """

    controls: Controls
    thread: threading.Thread
    wants_attention: bool = False
    rank: int
    _stop: bool = False
    _own_loop: bool = False
    _others: int = 0
    _willing: bool = True

    def _begin_steering(self, allowed: bool, others: int) -> None:
        self._others, self._willing = others, allowed
        self.controls = Controls(allowed, self._attend, self._tell_outcome, self._say_controls)

    def _tell_taken(self, request: Request) -> None:
        raise NotImplementedError

    def _tell_outcome(self, command: Request, done: Done) -> None:
        raise NotImplementedError

    def _say_controls(self, specs: dict[str, Any]) -> None:
        raise NotImplementedError

    def _warn(self, kind: str, sentence: str) -> None:
        raise NotImplementedError

    def _attend(self, wanted: bool) -> None:
        self.wants_attention = wanted

    def refusal(self, request: Request) -> str | None:
        """Called on the I/O thread: why a command cannot be carried out; None when it can."""
        return self.controls.check(request)

    def take(self, request: Request, refusal: str | None) -> None:
        """Called on the I/O thread: a command came, and was refused at once if there is a reason."""
        self._tell_taken(request)
        if refusal is None:
            self.controls.take(request)
        else:
            self._tell_outcome(request, Done(status="refused", reason=refusal))

    def steered_by(self, handlers: Mapping[str, Callable[[Mapping[str, Any]], Done]]) -> None:
        """For front doors: these carry the commands out, and :meth:`apply` is called where the framework allows it."""
        self._own_loop = False
        self.controls.handle(handlers)

    def knob(
        self,
        name: str,
        value: Any,
        low: float | None = None,
        high: float | None = None,
        choices: Sequence[Any] | None = None,
        log: bool = False,
    ) -> Knob:
        """Let watchers change a value while the training goes on.

        Args:
            name: What it is asked for by; ``"lr"`` is what `fitwire set RUN lr=…` means.
            value: What it is now: a float, int, bool or str; what it is set to will be of the same type.
            low: Least value, for numbers.
            high: Greatest value, for numbers.
            choices: What it may be, instead of bounds or besides.
            log: Show it on a logarithmic scale.

        Returns:
            The knob; its ``value`` changes at the next ``log``, ``apply`` or ``stop_requested``, never in between.

        Raises:
            UsageError: A value, bound or name that makes no sense.

        Example:
            >>> from fitwire.loop import init
            >>> with init(mode="disabled") as run:
            ...     lr = run.knob("lr", 1e-3, low=1e-6, high=1.0, log=True)
            ...     lr.value
            0.001
        """
        return self.controls.add_knob(make_knob(name, value, low, high, choices, log))

    def action(self, name: str, function: Callable[..., Any]) -> None:
        """Let watchers have ``function`` called between two steps, on the training thread.

        Args:
            name: What it is asked for by; ``"checkpoint"`` and ``"sample"`` are what the commands of those names call.
            function: Takes the keyword arguments it was asked with, if any; what it returns is shown as text.

        Raises:
            UsageError: It is no function.
        """
        self.controls.add_action(name, function)

    def apply(self) -> None:
        """Carry out now what watchers have asked for; for a place in the loop where nothing is half done.

        With several ranks that ``torch.distributed`` has brought together each of them calls it once a step, and all
        carry out the same before the same step. Then it is the only place where anything is carried out.
        """
        if self._others:
            self._meet()
            ranks = self.controls.ranks
            if ranks is not None:
                if ranks.due():
                    self.controls.apply()
                return
        if self.wants_attention:
            self.controls.apply(but=STOPS if self._own_loop else frozenset())

    def _meet(self) -> None:
        """Bring the ranks together at the first call, if torch has."""
        if self.controls.ranks is None:
            if Ranks.are_there(self._others + 1):
                self.controls.ranks = Ranks(self.rank, self._willing, lambda sentence: self._warn("ranks", sentence))
            else:
                self._others = 0  # each is alone

    @property
    def stop_requested(self) -> bool:
        """Whether a watcher has asked for this training to end; reading it costs next to nothing.

        With several ranks it changes in :meth:`apply`, on all of them at the same step.
        """
        if self.wants_attention and not self._others:
            self.controls.apply()
        return self._stop

    def steer_loop(self) -> None:
        """For a loop of one's own: it can be paused where it logs, and stops where it reads :attr:`stop_requested`."""
        self._own_loop = True
        self.controls.handle({"stop": self._stop_loop})

    def _stop_loop(self, arguments: Mapping[str, Any]) -> Done:
        self._stop = True
        return Done(reason="the loop ends where it asks")

    def _apply_in_log(self) -> None:
        if self._own_loop and not self._others and threading.current_thread() is self.thread:
            self.apply()

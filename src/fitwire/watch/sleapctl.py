"""Tell an unmodified SLEAP training to stop, or its learning rate, with no hub and no window there.

A window's command is lost when the training does not listen yet. Here it is held until one does. Nothing is ever sent
that could end one: SLEAP under Keras 3 dies of ``set_lr``, so it is sent only to a training that has shown that it is
another.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from fitwire.errors import AddressInUse, DecodeError, UsageError
from fitwire.sleap import Dialect, Order, Training, parse_ports, read_word, write_order
from fitwire.transport.lossviewer import WindowEnd
from fitwire.watch.commands import Outcome
from fitwire.watch.sleapbridge import open_window

__all__ = ["send"]

LOOK = 0.05
SETTLING = 0.3
"""Seconds to wait for a second training after the first has come to listen: each dials every 0.1 s."""


def send(
    command: str,
    address: str | None = None,
    timeout: float = 60.0,
    *,
    lr: float | None = None,
    force: bool = False,
) -> Outcome:
    """Send one command to the SLEAP training at a pair of ports, as soon as it listens.

    Args:
        command: ``"stop"``, or ``"set"`` for the learning rate.
        address: ``tcp://127.0.0.1:9001,9000``, as the training has it; None for that.
        timeout: Seconds to wait for a training to listen, and to show what is to be known of it.
        lr: With ``"set"``, the learning rate.
        force: Send it also where more than one training would obey. It does not make one take what it would die of.

    Returns:
        ``"applied"`` when the training then said that it ended; ``"accepted"`` when it was sent and nothing more is
        known; ``"refused"`` or ``"expired"``, with the reason, when nothing was sent.

    Raises:
        UsageError: Another command, or no learning rate.
        AddressInUse: A LossViewer or a watcher is bound there; then that one has to be asked.
        AddressError: The address cannot be used.
    """
    order = _order(command, lr)
    write_order(order)  # raises what is wrong with it
    progress, control = parse_ports(address)
    until = time.monotonic() + max(0.0, timeout)
    with contextlib.closing(_window(progress, control, order)) as window:
        asking = _Asking(window, order, force)
        try:
            return asking.run(until)
        except TimeoutError as late:
            return Outcome(status="expired", reason=f"{late} within {timeout:g} s; nothing was sent", name=command)


def _order(command: str, lr: float | None) -> Order:
    if command == "stop":
        return Order("stop")
    if command in ("set", "set_lr"):
        if lr is None:
            raise UsageError("pass the learning rate: lr=1e-4")
        return Order("set_lr", float(lr))
    raise UsageError(f"a training of SLEAP knows no command but stop and, up to 1.4, set lr; not {command[:40]!r}")


def _window(progress: str, control: str, order: Order) -> WindowEnd:
    """To stop a training one need not hear it; to set its learning rate one must know what it is."""
    try:
        return open_window(progress, control)
    except AddressInUse as taken:
        if order.name == "stop" and taken.address == progress:
            return open_window(None, control)
        raise


@dataclass(slots=True)
class _Asking:
    window: WindowEnd
    order: Order
    force: bool
    training: Training | None = None
    connection: int = -1
    several: bool = False

    def run(self, until: float) -> Outcome:
        """Wait for whom it is for, send it, and see what comes of it.

        Raises:
            TimeoutError: There was nobody to send it to.
        """
        name = "stop" if self.order.name == "stop" else "set"
        if not self.window.await_listener(max(0.0, until - time.monotonic())):
            raise TimeoutError("no training of SLEAP came to listen for commands")
        self._hear_until(min(until, time.monotonic() + SETTLING))
        refusal = self._refusal()
        while refusal and self._may_yet_show(refusal) and time.monotonic() < until:
            self._hear_until(time.monotonic() + LOOK)
            refusal = self._refusal()
        if refusal:
            return Outcome(status="refused", reason=refusal, name=name)
        before = self.training.lr if self.training is not None else None
        if not self.window.send(write_order(self.order)):
            return Outcome(status="failed", reason="the training does not take commands in", name=name)
        if self.order.lr is not None:
            reason = "it was sent to the training, which does not answer"
            return Outcome(
                status="accepted", before=before, after=self.order.lr, reason=reason, name=name, step=self._step
            )
        return self._await_end(until, name)

    def _refusal(self) -> str:
        if (self.window.listeners > 1 or self.several) and not self.force:
            return f"{self.window.listeners} trainings listen at this port, and all would obey"
        if self.order.name == "stop":
            return ""
        if self.training is None:
            return "nothing was heard of the training, so that it is not known whether it would bear it"
        return self.training.refusal(self.order) or ""

    def _may_yet_show(self, refusal: str) -> bool:
        """Whether waiting may help: a learning rate is said when an epoch has ended."""
        if self.window.listeners > 1 or self.several:
            return False
        return self.training is None or (
            self.training.dialect in (None, Dialect.KERAS)
            and self.training.lr is None
            and not self.training.ended
            and "Keras 3" not in refusal
        )

    def _await_end(self, until: float, name: str) -> Outcome:
        """A stop counts as applied when the training has then said that it ended."""
        while time.monotonic() < until and self.window.listens_to_progress:
            self._hear_until(min(until, time.monotonic() + LOOK))
            if self.training is not None and self.training.ended:
                return Outcome(status="applied", step=self._step, name=name)
            if not self.window.listeners and not self.window.connected:
                break
        reason = "it was sent to the training, which does not answer; nothing was heard of its end"
        return Outcome(status="accepted", reason=reason, step=self._step, name=name)

    def _hear_until(self, until: float) -> None:
        while True:
            for connection, frame in self.window.receive():
                with contextlib.suppress(DecodeError):
                    word = read_word(frame)
                    if self.training is None or word.event == "train_begin":
                        self.training, self.connection = Training(word, time.time()), connection
                    self.several = self.several or connection != self.connection
                    for _ in self.training.take(word, time.time()):
                        pass
            self.window.look()
            left = until - time.monotonic()
            if left <= 0:
                return
            self.window.wait(left)

    @property
    def _step(self) -> int | None:
        return self.training.step if self.training is not None and self.training.step >= 0 else None

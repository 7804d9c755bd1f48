"""Ask a run for something, and wait until it says what became of it: the half of ``WatchedRun`` that acts.

The command goes by way of the hub; what became of it is a record of the run, seen like any other. When the hub leaves
meanwhile, it is handed to the next one, and still carried out once. It knows no view.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import threading
import time
from typing import Any

import numpy as np

from fitwire.errors import LinkError, UsageError, WaitTimeout
from fitwire.protocol.commands import EXPIRES, MAX_EXPIRES, Request, make_request
from fitwire.watch.commands import WAITING, CommandRecord, Outcome
from fitwire.watch.desk import Desk
from fitwire.watch.dispatch import Standing

__all__ = ["Asking"]

HOMEWARD = 3.0
"""Seconds after a command has expired for which its outcome may still be on its way."""


def _author() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # nobody of a name has this number, as in some containers
        return f"uid {os.getuid()}@{socket.gethostname()}" if hasattr(os, "getuid") else socket.gethostname()


class Asking:
    """What ``WatchedRun`` inherits of it."""

    _desk: Desk
    _run: bytes

    @property
    def controls(self) -> dict[str, Any]:
        """What may be asked of the run, as its newest life told it.

        Name to what it is: ``{"kind": "command"}``, ``{"kind": "action"}``, or a knob: ``{"kind": "knob", "type":
        "float", "value": 0.001, "low": 1e-06, "high": 1.0}``, with ``choices`` or ``log`` where it has them.
        """
        return self._desk.ask(self._run, lambda h: h.controls)

    @property
    def commands(self) -> list[CommandRecord]:
        """What was asked of the run, by anybody, and what became of it; in the order in which it reached the run."""
        return self._desk.ask(self._run, lambda h: h.command_records)

    def stop(self, force: bool = False, *, timeout: float = EXPIRES) -> Outcome:
        """End the training after the batch it is in, as if it had come to its end.

        Args:
            force: Also where the framework was told to train on at least so long.
            timeout: Seconds for which it may wait to be carried out; after them it is not, ever.

        Returns:
            What became of it; its ``reason`` says what still runs, e.g. a closing validation.

        Raises:
            LinkError: No hub is there, and this monitor may not be one.
        """
        return self._command("stop", {"force": True} if force else {}, timeout)

    def stop_after_epoch(self, *, timeout: float = EXPIRES) -> Outcome:
        """End the training when the epoch it is in is done; arguments and result as of :meth:`stop`."""
        return self._command("stop_after_epoch", {}, timeout)

    def set(self, name: str, value: float | int | bool | str, *, timeout: float = EXPIRES) -> Outcome:
        """Turn a knob, e.g. the learning rate.

        Args:
            name: A knob out of :attr:`controls`; ``"lr"`` is the learning rate.
            value: What it is to be.
            timeout: As of :meth:`stop`.

        Returns:
            With ``before`` and ``after``; ``"refused"`` out of its bounds, or where a schedule owns it.
        """
        return self._command("set", {"name": name, "value": value}, timeout)

    def checkpoint(self, path: str | os.PathLike[str] | None = None, *, timeout: float = EXPIRES) -> Outcome:
        """Have the training written to disk, on its own machine.

        Args:
            path: Where; None for where the training writes its checkpoints.
            timeout: As of :meth:`stop`.

        Returns:
            With the file's path in ``after``.
        """
        return self._command("checkpoint", {} if path is None else {"path": os.fspath(path)}, timeout)

    def pause(self, max_pause: float = 3600.0, *, timeout: float = EXPIRES) -> Outcome:
        """Have the training hold between two batches.

        Args:
            max_pause: Seconds after which it goes on by itself.
            timeout: As of :meth:`stop`.
        """
        return self._command("pause", {"max_pause": max_pause}, timeout)

    def unpause(self, *, timeout: float = EXPIRES) -> Outcome:
        """Have a paused training go on."""
        return self._command("unpause", {}, timeout)

    def request_sample(self, *, timeout: float = EXPIRES) -> Outcome:
        """Have predictions on samples made now; they come as any other sample."""
        return self._command("sample", {}, timeout)

    def do(self, action: str, /, *, timeout: float = EXPIRES, **arguments: Any) -> Outcome:
        """Have one of the training's own actions done.

        Args:
            action: An action out of :attr:`controls`.
            timeout: As of :meth:`stop`.
            **arguments: For its function; plain values.

        Returns:
            With what the function returned, as text, in ``after``.
        """
        return self._command("do", {"action": action, "arguments": arguments}, timeout)

    async def ask(self, command: str, /, *, timeout: float = EXPIRES, **arguments: Any) -> Outcome:
        """Any of these, without holding up an event loop.

        Cancelling it gives the waiting up, not the command, which may be carried out all the same.

        Args:
            command: ``"stop"``, ``"set"``, ``"checkpoint"``, ``"pause"``, ``"unpause"``, ``"sample"``, ``"do"``.
            timeout: As of :meth:`stop`.
            **arguments: As the command takes them: ``await run.ask("set", name="lr", value=1e-4)``.
        """
        given_up = threading.Event()
        try:
            return await asyncio.to_thread(self._command, command, arguments, timeout, given_up)
        finally:
            given_up.set()

    def _command(
        self, name: str, arguments: dict[str, Any], timeout: float, given_up: threading.Event | None = None
    ) -> Outcome:
        if not 0 < timeout <= MAX_EXPIRES:
            raise UsageError(f"timeout={timeout!r}: pass seconds, above 0 and at most {MAX_EXPIRES:,.0f}")
        desk = self._desk
        backend, deadline = desk.backend, time.monotonic() + timeout
        request = make_request(
            desk.client, next(desk.numbers), name, _plain(arguments), author=_author(), asked=time.time(),
            deadline=deadline,
        )  # fmt: skip
        standing = backend.command(self._run, request)

        def look() -> Outcome | None:
            nonlocal standing
            standing = desk.backend.command(self._run, request, standing.to)
            if given_up is not None and given_up.is_set():
                return _outcome(request, status="expired")
            return self._told_of(request) or _failed(request, standing)

        found = desk.wait_for(look, timeout + HOMEWARD)
        if found is not None:
            return found
        if desk.closing.is_set():
            raise WaitTimeout(f"the monitor was closed before {name} had an outcome; the training may carry it out")
        if standing.taken:
            reason = f"the training has it, and did not come to carry it out within {timeout:g} s"
        else:
            reason = standing.reason or f"nobody took it within {timeout:g} s"
        return _outcome(request, status="expired", reason=reason)

    def _told_of(self, request: Request) -> Outcome | None:
        """What the run has told of it."""
        try:
            record = self._desk.ask(self._run, lambda h: h.command(request.pair))
        except LinkError:  # the hub is away; it, or another, comes back
            return None
        if record is None or record.status == WAITING:
            return None
        return _outcome(
            request, status=record.status, step=record.step, before=record.before, after=record.after,
            reason=record.reason,
        )  # fmt: skip


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in arguments.items()}


def _failed(request: Request, standing: Standing) -> Outcome | None:
    """What the link alone can tell: a refusal, or that nobody ever had it."""
    final = standing.status == "refused" or (standing.status == "expired" and standing.to is None)
    return _outcome(request, status=standing.status, reason=standing.reason) if final else None


def _outcome(request: Request, *, status: str, **more: Any) -> Outcome:
    return Outcome(status=status, name=request.name, client=request.client, number=request.number, **more)

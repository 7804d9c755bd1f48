"""How a process ends, as far as it can be known without a signal handler.

A chained ``sys.excepthook`` (in IPython the cell's error event) gives the traceback, ``atexit`` the rest; ``os._exit``
and a kill tell nothing, and the hub sees the process gone. This module keeps the open runs of this process; it knows
nothing of how they are sent.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from fitwire.train.values import plain_text

if TYPE_CHECKING:
    from fitwire.train.run import Run

__all__ = ["describe", "forget", "in_notebook", "open_runs", "watch"]

MAX_TRACEBACK = 60_000
"""Characters; the end of a traceback says more than its beginning."""

_open: weakref.WeakSet[Run] = weakref.WeakSet()
_installed = False
_cells_watched = False


def open_runs() -> list[Run]:
    """Runs of this process that have not finished, in no order."""
    return list(_open)


def watch(run: Run) -> None:
    """Finish ``run`` when the process ends, if nobody has by then."""
    _open.add(run)
    _install()
    _watch_cells()


def forget(run: Run) -> None:
    """The run has finished, and there is nothing of it left to send."""
    _open.discard(run)


def describe(error: BaseException) -> tuple[Literal["failed", "interrupted"], str, str]:
    """Status, one line and traceback of an exception that ended a training."""
    # A task's CancelledError goes by its name: asyncio is not loaded for it.
    given_up = isinstance(error, (KeyboardInterrupt, GeneratorExit)) or type(error).__name__ == "CancelledError"
    text = plain_text("".join(traceback.format_exception(error)), sys.maxsize)
    if len(text) > MAX_TRACEBACK:
        text = "…" + text[-MAX_TRACEBACK:]
    line = plain_text("".join(traceback.format_exception_only(error)).strip(), sys.maxsize).splitlines()
    return "interrupted" if given_up else "failed", (line or [type(error).__name__])[0][:300], text


def _crashed(error: BaseException | None, thread: threading.Thread | None) -> None:
    if error is None or isinstance(error, SystemExit):
        return
    for run in open_runs():
        # Another thread's training goes on.
        if run.thread is thread:
            run.fail(error)


def _install() -> None:
    global _installed
    if _installed:
        return
    _installed = True
    former, former_thread = sys.excepthook, threading.excepthook

    def excepthook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        _crashed(value, threading.current_thread())
        former(kind, value, trace)

    def thread_hook(args: Any) -> None:
        _crashed(args.exc_value, args.thread)
        former_thread(args)

    sys.excepthook = excepthook
    threading.excepthook = thread_hook
    atexit.register(_finish_all)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_deafen)


def _deafen() -> None:
    """In a forked child: every public call reads this flag before any lock, which may have been copied held."""
    for run in open_runs():
        run._deafen()  # pyright: ignore[reportPrivateUsage]


def _finish_all() -> None:
    # Python notes the error before it calls any hook, so a hook that did not chain to ours hides nothing.
    error = None if hasattr(sys, "ps1") or in_notebook() else getattr(sys, "last_value", None)
    for run in open_runs():
        if error is not None and run.thread is threading.main_thread() and run.status is None:
            run.fail(error)
        else:
            run.finish(run.status_at_exit)


def _shell() -> Any:
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None


def in_notebook() -> bool:
    """Whether cells are being run, in Jupyter or IPython."""
    return _shell() is not None


def _watch_cells() -> None:
    """In IPython an exception ends the cell, not the process, and no excepthook is called."""
    global _cells_watched
    shell = None if _cells_watched else _shell()
    if shell is None:
        return
    _cells_watched = True

    def after_cell(result: Any) -> None:
        _crashed(getattr(result, "error_in_exec", None), threading.current_thread())

    shell.events.register("post_run_cell", after_cell)

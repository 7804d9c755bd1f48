"""How a process ends, as far as it can be known without a signal handler.

A chained ``sys.excepthook`` (in IPython the cell's error event) gives the traceback, ``atexit`` the rest. This module
keeps the open runs of this process; it knows nothing of how they are sent.
"""

from __future__ import annotations

import atexit
import sys
import threading
import traceback
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fitwire.transport.process import generation

if TYPE_CHECKING:
    from fitwire.train.run import Run

__all__ = ["describe", "forget", "open_runs", "watch"]

MAX_TRACEBACK = 60_000
"""Characters; the end of a traceback says more than its beginning."""

_open: weakref.WeakSet[Run] = weakref.WeakSet()
_installed = False


def open_runs() -> list[Run]:
    """Runs of this process that have not finished."""
    return list(_open)


def watch(run: Run) -> None:
    """Finish ``run`` when the process ends, if nobody has by then."""
    _open.add(run)
    _install()


def forget(run: Run) -> None:
    """The run has finished."""
    _open.discard(run)


def describe(error: BaseException) -> tuple[str, str, str]:
    """Status, one line and traceback of an exception that ended a training."""
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    text = "".join(traceback.format_exception(error))
    if len(text) > MAX_TRACEBACK:
        text = "…" + text[-MAX_TRACEBACK:]
    line = "".join(traceback.format_exception_only(error)).strip().splitlines() or [type(error).__name__]
    return status, line[0][:300], text


def _crashed(error: BaseException | None, thread: int | None = None) -> None:
    if error is None or isinstance(error, SystemExit):
        return
    for run in open_runs():
        if thread is None or run.thread == thread:
            run.fail(error)


def _install() -> None:
    global _installed
    if _installed:
        return
    _installed = True
    born = generation()
    former, former_thread = sys.excepthook, threading.excepthook

    def excepthook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if generation() == born:
            _crashed(value, threading.get_ident())
        former(kind, value, trace)

    def thread_hook(args: Any) -> None:
        if generation() == born:
            _crashed(args.exc_value, threading.get_ident())
        former_thread(args)

    sys.excepthook = excepthook
    threading.excepthook = thread_hook
    _watch_cells()

    @atexit.register
    def _finish_all() -> None:  # pyright: ignore[reportUnusedFunction]
        if generation() != born:
            return
        for run in open_runs():
            run.finish(run.status_at_exit)


def _watch_cells() -> None:
    """In IPython an exception ends the cell, not the process, and no excepthook is called."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    if shell is None:
        return

    def after_cell(result: Any) -> None:
        _crashed(getattr(result, "error_in_exec", None), threading.get_ident())

    shell.events.register("post_run_cell", after_cell)

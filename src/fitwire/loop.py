"""The front door for a loop of one's own: ``fitwire.init``."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from fitwire.train import ending
from fitwire.train.run import Run
from fitwire.train.settings import Durability, Mode, Resume, Settings, Wire

__all__ = ["init"]


def init(
    address: str | None = None,
    *,
    project: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    group: str | None = None,
    run_id: str | None = None,
    resume: Resume = "auto",
    mode: Mode | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002  the name W&B's users know
    durability: Durability = "memory",
    wire: Wire = "fw",
    wait: float = 0.0,
    control: bool = True,
    strict: bool = False,
) -> Run:
    """Start to tell of a training; returns at once, whether anybody listens or not.

    In a notebook the run that an earlier call started is finished first: a cell may be run again.

    Arguments go before environment variables (``FITWIRE_ADDRESS``, ``FITWIRE_PROJECT``, ``FITWIRE_NAME``,
    ``FITWIRE_RUN_ID``, ``FITWIRE_MODE``, ``FITWIRE_DIR``, ``FITWIRE_LOG_LEVEL``), those before defaults.

    Args:
        address: Of the hub; None for the user's own on this machine.
        project: What the run belongs to.
        name: For people; None for one that is made up.
        config: What was set: names to plain values, which may be nested; ``run.config`` may be changed later.
        tags: Words to find it by.
        group: Runs that belong together, e.g. folds.
        run_id: Text of one's own; the same text goes on with the same run.
        resume: ``"auto"`` goes on with a run of that id, ``"must"`` needs one, ``"never"`` starts a new one.
        mode: ``"online"``; ``"offline"`` writes the journal only, for ``fitwire sync``; ``"disabled"`` does nothing.
        dir: Folder for the journal, in which records wait for a hub; None for the data folder.
        durability: ``"memory"``: a kill of the process may cost what was logged in its last 20 ms; ``"process"``:
            nothing, for a microsecond or two more a call.
        wire: ``"fw"``; ``"pair"`` for a ``PairedReceiver`` (address ``tcp://host:9001,9002``); ``"sleap"`` for SLEAP's
            LossViewer (``tcp://host:9001,9000``).
        wait: Seconds to wait for a hub before going on without one.
        control: Whether watchers may steer: stop, pause, turn knobs, call actions.
        strict: Raise on a bad name or value, and when ``wait`` ends without a hub, instead of warning.

    Returns:
        The run; use it as a context manager so that an exception is told.

    Raises:
        UsageError: An argument that cannot be used.
        HandshakeTimeout: With ``strict``, nobody answered within ``wait``.

    Example:
        >>> with init(name="example", mode="disabled") as run:
        ...     for step in range(3):
        ...         run.log({"loss": 1 / (step + 1)}, step=step)
    """
    settings = Settings(
        address=address, project=project, name=name, config=config, tags=tags, group=group, run_id=run_id,
        resume=resume, mode=mode, dir=dir, durability=durability, wire=wire, wait=wait, control=control, strict=strict,
    )  # fmt: skip
    if ending.in_notebook():
        _close_former()
    run = Run(settings)
    run.steer_loop()
    _made.add(run)
    return run


_made: weakref.WeakSet[Run] = weakref.WeakSet()
"""Runs made here, as opposed to by a callback."""


def _close_former() -> None:
    """A cell that is run again starts its run again: the former one has ended."""
    thread = threading.current_thread()
    for run in ending.open_runs():
        if run in _made and run.thread is thread:
            run.finish()

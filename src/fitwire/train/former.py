"""What earlier process lives of a run left on disk, delivered beside what the present one says.

A hub on the same machine does this by itself; a node whose hub is elsewhere has nobody but the next life of the run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from fitwire.errors import FitwireError
from fitwire.journal.courier import Delivered, deliver
from fitwire.journal.layout import find_journals, life_of, read_about
from fitwire.protocol.blocks import Identity
from fitwire.transport.address import Address
from fitwire.transport.process import spawn

__all__ = ["deliver_former", "former_journals"]

PATIENCE = 30.0
"""Seconds without progress after which one journal is left to others."""


def former_journals(sender: Identity, folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Journals of earlier incarnations of this run and rank that nobody writes or looks after, oldest first.

    One whose process ran on another host, or cannot be known, counts: a newer incarnation has taken over from it.
    """
    found: dict[Path, None] = {}
    for place in (None, folder) if folder is not None else (None,):
        for path in find_journals(place):
            try:
                about = read_about(path)
            except FitwireError:
                continue
            whose = about.sender
            earlier = (whose.run, whose.rank) == (sender.run, sender.rank) and whose.incarnation < sender.incarnation
            if earlier and not (life := life_of(about)).trainer and not life.keeper:
                found[path.resolve()] = None
    return list(found)


def deliver_former(
    sender: Identity,
    address: Address,
    greeted: threading.Event,
    stopped: Callable[[], bool],
    folder: str | os.PathLike[str] | None = None,
    told: Callable[[Delivered], None] = lambda delivered: None,
) -> threading.Thread:
    """Deliver them in a thread of their own, once the present one's hub has answered.

    Args:
        sender: The present incarnation.
        address: Of the hub.
        greeted: Set when the hub has answered.
        stopped: True ends the delivery, e.g. because the run has ended; what is left stays on disk.
        folder: Where the run writes its journals; None for the data folder.
        told: Told of each journal that was delivered or left.
    """

    def work() -> None:
        paths = former_journals(sender, folder)
        if not paths:
            return
        while not greeted.wait(1.0):
            if stopped():
                return
        for path in paths:
            if stopped():
                return
            try:
                told(deliver(path, address, timeout=PATIENCE, stopped=stopped))
            except FitwireError:
                continue  # `fitwire doctor` tells of it

    return spawn("former", work)

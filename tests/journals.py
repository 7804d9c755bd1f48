"""Journals for tests, written by hand: what a trainer would leave, and what a disk makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fitwire.journal.entries import encode_entry
from fitwire.journal.layout import About, create, segment_name
from fitwire.protocol.blocks import LANES, Block, Identity
from fitwire.transport.process import host_key, started_at
from helpers import ME

GONE = 2**22 + 1
"""A pid that no system gives."""


def hello_of(pid: int = GONE, **more: Any) -> dict[str, Any]:
    """What a trainer of this host says of itself; by default one that is no more."""
    born = started_at(pid) if pid != GONE else 1.0
    return {"name": "calm-fox", "project": "default", "host": "here", "host_key": host_key()[:256], "pid": pid,
            "pid_started": born} | more  # fmt: skip


def write_entries(path: Path, lane: int, number: int, entries: Iterable[bytes], blank: int = 256) -> Path:
    """A segment of these, with room behind them as one that was set aside has."""
    file = path / segment_name(lane, number)
    file.write_bytes(b"".join(entries) + bytes(blank))
    return file


def write_journal(
    blocks: Sequence[Block],
    sender: Identity = ME,
    *,
    folder: str | os.PathLike[str] | None = None,
    per_segment: int = 1000,
    about: About | None = None,
    **hello: Any,
) -> Path:
    """The journal of a trainer that said these blocks and is gone; ``per_segment`` of them in each file."""
    path = create(about or About(sender, hello_of(**hello)), folder)
    for lane in LANES:
        own = [encode_entry(block) for block in blocks if block.lane == lane]
        for number, at in enumerate(range(0, len(own), per_segment), 1):
            write_entries(path, lane, number, own[at : at + per_segment])
    return path


def killed_trainer(code: str, **environment: str) -> None:
    """Run a training that kills itself with ``os.kill(os.getpid(), 9)``."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env={**os.environ, **environment}
    )
    assert done.returncode == -9, done.stderr


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """With one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)

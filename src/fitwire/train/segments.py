"""The files of a journal: segments that are written from their beginning to their end, read back, and deleted.

Nothing is mapped into memory, because a page that the disk cannot give would kill the training; and nothing is synced,
because what the kernel has survives the death of the process. An ``OSError`` of any call reaches the caller, and what
was written before it stays good. This module does not know blocks.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitwire.journal.layout import HAVE, close, is_network_folder, remove, segment_name, write_have
from fitwire.protocol.blocks import LANES, Buffer

__all__ = ["Segment", "Segments"]

FIRST = (2**20, 4 * 2**20)
"""Bytes of the first segment of each lane; each is twice the last."""
LARGEST = (16 * 2**20, 32 * 2**20)
MANY_PIECES = 512
"""Buffers in one call; the system allows 1024."""
COPIED = 2**20
"""Bytes at a time of a file that is written once more."""
JOINED = 2**14
"""Buffers smaller than this are joined: a copy costs less than a place in the call."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file.

    Attributes:
        lane: 0 for records, 1 for samples.
        path: Of the file.
        handle: It, open.
        size: Bytes set aside for it.
        end: Where the next entry goes.
        live: Entries in it that are still needed.
        lost: Whether somebody deleted it; what is in it can still be read.
        owners: What the caller keeps of each entry, in order.
    """

    lane: int
    path: Path
    handle: int
    size: int
    end: int = 0
    live: int = 0
    lost: bool = False
    owners: deque[Any] = field(default_factory=deque[Any])


class Segments:
    """All segments of one journal.

    Args:
        make: Makes the journal's folder when the first segment is needed, and returns it.

    Attributes:
        path: The folder, once it is made.
        first_entry: Gives what a lane's new segment begins with; None for nothing.
        largest: Per lane, bytes that a segment may grow to, larger entries aside.
    """

    def __init__(self, make: Callable[[], Path]) -> None:
        self._make = make
        self.path: Path | None = None
        self.first_entry: Callable[[int], bytes | None] = lambda lane: None
        self.largest: list[int] = list(LARGEST)
        self._held: list[list[Segment]] = [[] for _ in LANES]
        self._numbers = [itertools.count(1) for _ in LANES]
        self._sizes: list[int] = list(FIRST)
        self._have: int | None = None
        self._preallocates = True

    def nbytes(self, lane: int) -> int:
        """Bytes set aside for a lane."""
        return sum(segment.size for segment in self._held[lane])

    def oldest(self, lane: int) -> Segment | None:
        """The oldest segment of a lane, unless it is the one being written."""
        held = self._held[lane]
        return held[0] if len(held) > 1 else None

    def open(self) -> Path:
        """Make the folder if need be.

        Raises:
            OSError: It cannot be made.
        """
        if self.path is None:
            self.path = self._make()
            self._preallocates = not is_network_folder(self.path)
        return self.path

    def write(self, lane: int, entries: Sequence[Sequence[Buffer]]) -> list[tuple[Segment, int]]:
        """Append entries, as many as fit into one segment, at least one.

        Args:
            lane: 0 for records, 1 for samples.
            entries: Each in pieces.

        Returns:
            Of each entry that was written, its segment and where it begins.

        Raises:
            OSError: The disk refuses; nothing of these entries counts.
        """
        sizes = [sum(map(len, pieces)) for pieces in entries]
        segment = self._current(lane, sizes[0])
        places: list[tuple[Segment, int]] = []
        pieces: list[Buffer] = []
        at = segment.end
        for entry, size in zip(entries, sizes, strict=True):
            if places and (at + size > segment.size or len(pieces) + len(entry) > MANY_PIECES):
                break
            places.append((segment, at))
            if size <= JOINED:
                pieces.append(b"".join(entry))
            else:
                pieces.extend(entry)
            at += size
        _write_at(segment.handle, pieces, segment.end, at - segment.end)
        segment.end = at
        segment.live += len(places)
        return places

    def _current(self, lane: int, needed: int) -> Segment:
        held = self._held[lane]
        if held and held[-1].end + needed <= held[-1].size:
            return held[-1]
        opening = self.first_entry(lane) or b""
        needed += len(opening)
        size = max(min(self._sizes[lane], self.largest[lane]), needed)
        path, handle = self._create(lane)
        try:
            size = self._set_aside(handle, size, needed)
            if opening:
                _write_at(handle, [opening], 0, len(opening))
        except OSError:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        self._sizes[lane] = min(self._sizes[lane] * 2, self.largest[lane])
        segment = Segment(lane, path, handle, size, end=len(opening))
        held.append(segment)
        for former in list(held[:-1]):
            self._drop_if_done(former)
        return segment

    def _set_aside(self, handle: int, size: int, needed: int) -> int:
        """Have the disk promise the space now, so that it is not refused in the middle; returns how much it is."""
        if not self._preallocates or not hasattr(os, "posix_fallocate"):
            return size
        while True:
            try:
                os.posix_fallocate(handle, 0, size)
                return size
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    self._preallocates = False
                    return size
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or size == needed:
                    raise
                os.ftruncate(handle, 0)
                size = max(size // 2, needed)

    def read(self, segment: Segment, at: int, size: int) -> bytes:
        """Bytes of a segment.

        Raises:
            OSError: The disk refuses, or has fewer.
        """
        parts: list[bytes] = []
        left = size
        while left:
            part = os.pread(segment.handle, left, at)
            if not part:
                raise OSError(errno.EIO, "the journal is shorter than it was")
            parts.append(part)
            at += len(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self, segment: Segment) -> None:
        """One entry of a segment is no longer needed; a segment that holds none goes."""
        segment.live -= 1
        self._drop_if_done(segment)

    def _drop_if_done(self, segment: Segment) -> None:
        held = self._held[segment.lane]
        if segment.live <= 0 and segment in held and segment is not held[-1]:
            held.remove(segment)
            os.close(segment.handle)
            try:
                segment.path.unlink()
            except OSError:
                pass  # it stays, and is known as delivered by its numbers

    def vanished(self) -> bool:
        """Whether what is being written was deleted by somebody: it would go with this process."""
        current = [held[-1] for held in self._held if held]
        return any(not segment.lost and os.fstat(segment.handle).st_nlink == 0 for segment in current)

    def start_anew(self) -> None:
        """What is written to was deleted: make a folder anew, and write to it once more what is still needed.

        What the disk refuses of it can be read on, until this process ends.
        """
        self.path = None
        if self._have is not None:
            os.close(self._have)
            self._have = None
        for held in self._held:
            for segment in held:
                try:
                    if segment.live > 0 and os.fstat(segment.handle).st_nlink == 0:
                        self._write_again(segment)
                except OSError:
                    segment.lost = True
            if held and (held[-1].lost or held[-1].live <= 0):
                held[-1].end, held[-1].lost = held[-1].size, True

    def _write_again(self, segment: Segment) -> None:
        path, handle = self._create(segment.lane)
        try:
            size = self._set_aside(handle, segment.size, segment.end)
            for at in range(0, segment.end, COPIED):
                part = self.read(segment, at, min(COPIED, segment.end - at))
                _write_at(handle, [part], at, len(part))
        except OSError:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        os.close(segment.handle)
        segment.path, segment.handle, segment.size = path, handle, size

    def _create(self, lane: int) -> tuple[Path, int]:
        path = self.open() / segment_name(lane, next(self._numbers[lane]))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        return path, os.open(path, flags, 0o600)

    def note_have(self, have: tuple[int, int]) -> None:
        """Note up to where a hub has acknowledged each lane.

        Raises:
            OSError: The disk refuses.
        """
        if self.path is None:
            return
        if self._have is None:
            self._have = os.open(self.path / HAVE, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        write_have(self._have, have)

    def close(self, *, delete: bool) -> None:
        """Let go of the files; with ``delete`` the journal goes, else what is not used of its last segments."""
        for held in self._held:
            for segment in held:
                if not delete and segment is held[-1]:
                    try:
                        os.ftruncate(segment.handle, segment.end)
                    except OSError:
                        pass
                os.close(segment.handle)
            held.clear()
        if self._have is not None:
            os.close(self._have)
            self._have = None
        if self.path is None:
            return
        if delete:
            remove(self.path)
        else:
            with contextlib.suppress(OSError):
                close(self.path)


def _write_at(handle: int, pieces: list[Buffer], at: int, size: int) -> None:
    if hasattr(os, "pwritev"):
        written = os.pwritev(handle, pieces, at)
    else:
        os.lseek(handle, at, os.SEEK_SET)
        written = os.write(handle, b"".join(pieces))
    if written != size:  # a disk that filled up meanwhile; the next try overwrites what was begun
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

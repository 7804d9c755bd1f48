"""``durability="process"``: each record packed into mapped memory inside the call that logs it, so no kill can lose it.

:meth:`Ring.append` stands in the place of the queue's own: one call at a time it counts the record, packs it and
appends it. So the n-th record in the ring is the n-th in the queue, and the I/O thread, which counts what it takes, can
say up to which one the journal has all, and where the ring may be used again. A row of floats makes no system call and
takes no lock. What finds no room, or is large, goes to a file by one write, which a kill cannot unsay either. The form
of the bytes is ``journal/ring.py``'s.

One call at a time: nothing comes between the two halves of ``busy, self._busy = self._busy, True``, because Python
looks for signals and other threads behind calls, where functions begin and where loops turn, and nowhere else. A lock
would cost half as much again when caches are cold. A Python without its interpreter lock gets no ring.

Longer than most files here: what may be interrupted at any byte is read best on one page.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import operator
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitwire.errors import EncodeError
from fitwire.events import MAX_NAME, Event, Per
from fitwire.journal.layout import ELSEWHERE, RING, file_system, shared_home
from fitwire.journal.ring import (
    ABSENT,
    INNER,
    LATE,
    NAMES_AT,
    NAMES_BYTES,
    RING_AT,
    Shape,
    encode_head,
    encode_names,
    encode_thing,
)
from fitwire.protocol.blocks import Block, Buffer, Identity
from fitwire.train.packer import MAX_BYTES, MAX_NAME_BYTES, Packer
from fitwire.train.pending import LateRow
from fitwire.transport.process import private_folder

__all__ = ["Ring"]

SIZE = 4 * 2**20
"""Some 23,000 rows of four values; the journal takes them every 20 ms."""
SAFE = {"ext2", "ext3", "ext4", "xfs", "tmpfs"}
"""File systems that write a page where it was allocated. On others (btrfs, zfs, overlays, a network's) writing to a
mapped page may need room that is not there, and the answer is a signal that ends the training."""
MAX_SETS = 4096
SMALL = 64 * 2**10
"""Bytes of a block that get a second checksum; one of a megabyte would take a millisecond."""
SPILL_BYTES = 256 * 2**20
"""Late files altogether; what comes then is only in memory, as with ``durability="memory"``."""
SPILL_FILES = 1024
MAX_PLACES = 1024
"""Moments between which room is given back; a journal that takes nothing must not make them pile up."""
FILE_BYTES = 2**20
"""A late file is closed beyond, so that it can go when its records are in the journal."""
PATIENCE = 0.010
"""Seconds that the I/O thread waits for a call that is under way; it comes again."""
OTHERS = 10.0
"""Seconds that a call waits for another thread's, which may be writing a large sample to a slow disk."""
NAP = 0.00005


@dataclass(slots=True)
class _File:
    """A late file: the counter of its last record, and its bytes."""

    last: int
    nbytes: int


@dataclass(slots=True)
class _Place:
    """Where a held row's values are to go; ``at`` is None when there was no room, or its names cannot stand here."""

    late: LateRow
    counter: int
    at: int | None
    shape: Shape | None


_Form = tuple[str, int, Callable[[Any], Any], Callable[..., None], bytes, int]
"""What the last row was like: per, number of names, what takes their values, how it is packed, how its record begins,
its bytes. One load on the hot path; another order of the same names is the same."""


def _never(*_: Any) -> None:
    raise AssertionError("no row has these names")


NO_FORM: _Form = ("", -1, _never, _never, b"", 0)

_open: weakref.WeakSet[Ring] = weakref.WeakSet()


def _after_fork() -> None:
    for ring in list(_open):
        ring.deafen()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Ring:
    """The ring of one run, and the end of its queue that the training threads see.

    Args:
        folder: The journal's. On a file system that could fail under a mapped page the ring lies in shared memory.
        sender: Whose records they are.
        queue: Where the I/O thread takes them.
        size: Bytes for records.

    Attributes:
        queue: As passed; nothing but :meth:`append` may append records to it.
        last: Counter of the last record, which is also their number.
        unkept: Records that are in memory only, because nothing took them.
        home: The folder it lies in, with its late files.

    Raises:
        OSError: There is no room for it, or no file system that is safe; nothing was made.

    Example:
        >>> import tempfile
        >>> queue = deque()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ring = Ring(Path(folder), Identity(run=b"r" * 16), queue)
        ...     ring.append((0.0, 0, None, None, "batch", {"loss": 0.5}))
        ...     ring.close()
        >>> len(queue), ring.last
        (1, 1)
    """

    def __init__(self, folder: Path, sender: Identity, queue: deque[Any], size: int = SIZE) -> None:
        # What each call reads comes first, so that it lies together.
        self._busy = self._loose = False
        self._form: _Form = NO_FORM
        self._at, self._limit, self.last = RING_AT, 0, 0
        # Counted and kept, not yet known to be in the queue: only a Ctrl-C in that moment leaves it here.
        self._step: Any = None
        self._push = queue.append
        self._map: mmap.mmap
        self.queue = queue
        self.sender = sender
        self.unkept = 0
        self.home = self._folder = folder
        self._size = size - size % 4096
        self._seed = int.from_bytes(os.urandom(4), "little")
        self._map = self._make()
        self._dead = False
        self._noted = 0
        # A record goes to ``_at`` while that is below ``_limit``; virtual: where this lap began, and the oldest record.
        self._end = self._limit = RING_AT + self._size
        self._lap, self._tail = 0, RING_AT
        self._places: deque[tuple[int, int]] = deque()
        self._sets: dict[tuple[Any, ...], Shape | None] = {}
        self._names_at = NAMES_AT
        self._held: dict[int, _Place] = {}
        self._inner: deque[tuple[Any, str | None, int]] = deque()
        self._inners = itertools.count(1)
        self._files: dict[str, _File] = {}
        self._file: tuple[int, str] | None = None
        self._spilled = 0
        _open.add(self)

    # -- making the file

    def _make(self) -> mmap.mmap:
        if not hasattr(os, "posix_fallocate"):
            raise OSError("this system cannot reserve a file's room")
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            raise OSError("this Python runs without its interpreter lock")
        if file_system(self._folder) not in SAFE:
            home = shared_home(self._folder)
            if file_system(home.parent.parent) != "tmpfs":
                raise OSError(f"{self._folder} lies where mapped pages can fail, and there is no {home.parent.parent}")
            private_folder(home.parent)
            home.mkdir(mode=0o700)
            self.home = home
        handle = os.open(self.home / RING, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, RING_AT + self._size)
            made = mmap.mmap(handle, RING_AT + self._size)
            # Each page is touched now, not by the training; where a reservation was a promise only, this collects it.
            for at in range(0, len(made), 2**20):
                os.pwrite(handle, bytes(min(2**20, len(made) - at)), at)
                made[at : at + 2**20] = bytes(min(2**20, len(made) - at))
            head = encode_head(self.sender, self._size, self._seed)
            made[: len(head)] = head
            if self.home != self._folder:
                self._write_new(self._folder / RING, [ELSEWHERE])
            return made
        except OSError:
            self._unmake()
            raise
        finally:
            os.close(handle)

    def _unmake(self) -> None:
        for path in {self.home / RING, self._folder / RING}:
            path.unlink(missing_ok=True)
        if self.home != self._folder:
            self.home.rmdir()

    @staticmethod
    def _write_new(path: Path, pieces: Sequence[Buffer]) -> None:
        """Make a file of these bytes.

        Raises:
            OSError: Not all could be written; then there is no file.
        """
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        size = sum(map(len, pieces))
        try:
            if os.writev(handle, pieces) == size:
                return
        except OSError:
            pass
        finally:
            os.close(handle)
        path.unlink(missing_ok=True)
        raise OSError(f"cannot write {size:,} bytes to {path}")

    # -- what training threads call

    def append(self, record: Any) -> None:
        """Keep a record where no kill takes it, and append it to the queue; what is no record is appended only.

        Never waits for a disk that has no room, and raises nothing of its own: what cannot be kept is counted.
        """
        busy, self._busy = self._busy, True
        if busy and not self._enter(OTHERS):
            self._interrupt(record)
            return
        try:
            time, step, epoch, batch, per, values = record
            same, width, get, pack_into, head, size = self._form
            if per != same or len(values) != width:
                _, _, get, pack_into, head, size = self._form_of(per, tuple(values))
            try:
                numbers = get(values)
            except KeyError:  # as many, but others
                _, _, get, pack_into, head, size = self._form_of(per, tuple(values))
                numbers = get(values)
            stop = self._at + size
            if stop > self._limit:
                stop = self._find_room(size)
            counter = self.last + 1
            half = (
                head, counter, time, step, ABSENT if epoch is None else epoch, ABSENT if batch is None else batch,
                *numbers,
            )  # fmt: skip
            if stop:
                pack_into(self._map, stop - size, *half, *half)
                # Not before it is packed, and with no call between, so that a Ctrl-C finds all of it or nothing.
                self._at, self.last, self._step = stop, counter, record
            else:
                blob = bytearray(size)
                pack_into(blob, 0, *half, *half)
                self.last, self._step = counter, record
                self._spill([bytes(blob)], counter)
            self._push(record)
            self._step = None
        except Exception:  # no row, or a value that is no float after all: as the packer mends it
            if self._step is None:
                self._append_other(record)
        finally:
            try:
                if self._step is not None or self._loose:
                    self._mend()
            finally:
                self._busy = False

    def _enter(self, patience: float) -> bool:
        """Wait until no other call is under way, and begin one; False at once if this very thread is inside one."""
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while (frame := frame.f_back) is not None:
            if frame.f_code in _ENTERED and frame.f_locals.get("self") is self:
                return False
        end = time.monotonic() + patience
        while True:
            busy, self._busy = self._busy, True
            if not busy:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(NAP)

    def _append_other(self, record: Any) -> None:
        if isinstance(record, LateRow):
            self._hold(record)
        elif isinstance(record, (tuple, Event)):
            self._append_thing(record)
        else:
            self.queue.append(record)

    def _append_thing(self, record: Any) -> None:
        """What is not a row of floats, as the blocks that the packer makes of it."""
        counter = self.last + 1
        pieces = self._pieces(record, counter)
        size = sum(map(len, pieces))
        stop = self._find_room(size) if pieces and size <= self._size // 16 else 0
        if stop:
            self._map[stop - size : stop - 4] = b"".join(pieces[:-1])
            self._map[stop - 4 : stop] = bytes(pieces[-1])
            self._at, self.last, self._step = stop, counter, record
        else:
            self.last, self._step = counter, record
            self._spill(pieces, counter)
        self.queue.append(record)
        self._step = None

    def _pieces(self, record: Any, counter: int) -> list[Buffer]:
        blocks: list[Block] = []
        try:
            Packer(self.sender, blocks.append).add([record])
            checked = sum(block.nbytes for block in blocks) <= SMALL
            return encode_thing(blocks, counter, self._seed, checked=checked) if blocks else []
        except Exception:  # the I/O thread will meet it too, and says so
            return []

    def _hold(self, late: LateRow) -> None:
        """Keep a place for a row whose values are still on their device."""
        time, step, epoch, batch, per, values = late.row
        counter = self.last + 1
        place = _Place(late, counter, None, None)
        stop = 0
        try:
            shape = self._shape_of(per, tuple(values))
            stop = self._find_room(shape.held_size) if shape is not None else 0
            if shape is not None and stop:
                where = (time, step, ABSENT if epoch is None else epoch, ABSENT if batch is None else batch)
                shape.hold(self._map, stop - shape.held_size, counter, where)
                place.at, place.shape = stop - shape.held_size, shape
        except Exception:  # a step or epoch that is no number
            stop = 0
        self._held[id(late)] = place
        self._at, self.last, self._step = stop or self._at, counter, late
        self.queue.append(late)
        self._step = None

    def fill(self, late: LateRow) -> None:
        """Keep the values of a late row that were just read; before it is called settled."""
        place = self._held.pop(id(late), None)
        if place is None or self._dead:
            return
        try:
            if place.at is not None and place.shape is not None:
                place.shape.fill(self._map, place.at, tuple(late.row[5].values()))
                return
            name = f"{LATE}{place.counter}"
            size = self._write_beside(name, self._pieces(late.row, place.counter))
            self._files[name] = _File(place.counter, size)
        except Exception:
            self.unkept += 1

    # -- metric sets

    def _shape_of(self, per: Per, names: tuple[Any, ...]) -> Shape | None:
        """How rows of these names lie here; None when they are to be written out each time."""
        key = (per, *names)
        try:
            shape = self._sets[key]
        except KeyError:
            if len(self._sets) >= MAX_SETS:
                return None
            shape = self._new_set(per, names)
            self._sets[key] = shape
        return shape

    def _form_of(self, per: Per, names: tuple[Any, ...]) -> _Form:
        """Remember what rows are like now; one that cannot stand here fails where it is packed."""
        shape = self._shape_of(per, names)
        if shape is not None:
            wanted = names if len(names) > 1 else 2 * names
            self._form = per, len(names), operator.itemgetter(*wanted), shape.pack_into, shape.head, shape.size
            return self._form
        return NO_FORM

    def _new_set(self, per: Per, names: tuple[Any, ...]) -> Shape | None:
        number = len(self._sets) + 1
        if not names or not all(type(name) is str and 0 < len(name) <= MAX_NAME for name in names):
            return None
        try:
            head, text = encode_names(number, per, names, self._seed)
        except EncodeError:
            return None
        end = self._names_at + len(head) + len(text)
        if len(text) > MAX_NAME_BYTES or 8 * (len(names) + 4) > MAX_BYTES or end > NAMES_AT + NAMES_BYTES:
            return None
        self._map[self._names_at + len(head) : end] = text
        self._map[self._names_at : self._names_at + len(head)] = head
        self._names_at = end
        return Shape(number, len(names), self._seed)

    # -- room

    def _find_room(self, size: int) -> int:
        """End of the next free place of ``size`` bytes, at the beginning of the next lap if need be; 0: there is none.

        The record's own store moves :attr:`_at`; until then the place is as free as before.
        """
        if self._dead:
            return 0
        tail = self._tail  # moved by the I/O thread
        limit = min(tail + self._size - self._lap, self._end)
        if self._at + size <= limit:
            self._limit = limit
            return self._at + size
        following = min(tail - self._lap, self._end)
        if limit < self._end or RING_AT + size > following:
            return 0
        self._lap, self._at, self._limit = self._lap + self._size, RING_AT, following
        return RING_AT + size

    def _spill(self, pieces: Sequence[Buffer], counter: int) -> None:
        """Write a record to the late file, by one write; else it is in memory only."""
        size = sum(map(len, pieces))
        if not self._may_spill(size):
            self.unkept += 1
            return
        try:
            if self._file is None:
                name = f"{LATE}{counter}"
                self._files[name] = _File(counter, 0)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self.home / name, flags, 0o600), name
            handle, name = self._file
            file = self._files[name]
            file.last = counter
            written = os.writev(handle, pieces)
        except OSError:
            written = -1
        else:
            file.nbytes += written
            self._spilled += written
        if written != size:
            self.unkept += 1
        # What was written in part would stand in the way of what came behind it.
        if self._file is not None and (written != size or self._files[self._file[1]].nbytes >= FILE_BYTES):
            self._close_file()

    def _may_spill(self, size: int) -> bool:
        files = len(self._files) + len(self._inner)
        return 0 < size <= SPILL_BYTES - self._spilled and files < SPILL_FILES and not self._dead

    def _write_beside(self, name: str, pieces: Sequence[Buffer]) -> int:
        """A record in a file of its own; gives its bytes.

        Raises:
            OSError: It found no room.
        """
        size = sum(map(len, pieces))
        if not self._may_spill(size):
            raise OSError(errno.ENOSPC, "no room for late records")
        self._write_new(self.home / name, pieces)
        self._spilled += size
        return size

    def _close_file(self) -> None:
        if self._file is not None:
            handle, self._file = self._file[0], None
            os.close(handle)

    # -- a call inside a call

    def _interrupt(self, record: Any) -> None:
        """Logged by a signal handler that interrupted another log call of its thread, at any point of it.

        What that call was about must not be touched, so the record lies in a file of its own until it gets its place.
        """
        name = None
        size = 0
        try:
            if isinstance(record, (tuple, Event)):
                name = f"{INNER}{next(self._inners)}"
                size = self._write_beside(name, self._pieces(record, 0))
        except Exception:
            name = None
            self.unkept += 1
        self._inner.append((record, name, size))
        self._loose = True

    def _mend(self) -> None:
        """Put right what an interrupted call left, as the last thing in a call."""
        if (record := self._step) is not None:
            self._step = None
            if not (self.queue and self.queue[-1] is record):
                self.queue.append(record)
        self._loose = False  # before looking: one more may come meanwhile
        while self._inner:
            self._adopt(*self._inner.popleft())

    def _adopt(self, record: Any, name: str | None, size: int) -> None:
        """Give a record that was logged inside another call its place."""
        if not isinstance(record, (tuple, Event)):
            self._append_other(record)
            return
        self.last = counter = self.last + 1
        if name is not None:
            try:
                os.rename(self.home / name, self.home / f"{LATE}{counter}")
                self._files[f"{LATE}{counter}"] = _File(counter, size)
            except OSError:
                self.unkept += 1
                self._spilled -= size
        self.queue.append(record)

    # -- what the I/O thread calls

    def release(self, upto: int) -> None:
        """The journal has all records up to this counter: their room may be used again, their files go.

        To be called at every look: room is given back in steps from one call to the next.
        """
        busy, self._busy = self._busy, True
        if busy and not self._enter(PATIENCE):
            return
        gone: list[str] = []
        try:
            if self._step is not None or self._loose:
                self._mend()
            self._note_place()
            tail = self._tail
            while self._places and self._places[0][0] <= upto:
                tail = self._places.popleft()[1]
            self._tail = tail
            if self._file is not None and self._files[self._file[1]].last <= upto:
                self._close_file()
            current = self._file[1] if self._file is not None else ""
            gone = [name for name, file in list(self._files.items()) if file.last <= upto and name != current]
            for name in gone:
                self._spilled -= self._files.pop(name).nbytes
        finally:
            self._busy = False
        for name in gone:
            (self.home / name).unlink(missing_ok=True)

    def _note_place(self) -> None:
        if self.last == self._noted:
            return
        self._noted = self.last
        if len(self._places) >= MAX_PLACES:
            for at in range(len(self._places) - 2, -1, -2):
                del self._places[at]
        self._places.append((self.last, self._lap + self._at))

    def close(self, *, keep: bool = False) -> None:
        """Use it no more; what is appended from now on is in memory only.

        Args:
            keep: Leave the files: the journal does not hold all records.
        """
        busy, self._busy = self._busy, True
        entered = not busy or self._enter(PATIENCE)
        if entered and (self._step is not None or self._loose):
            self._mend()
        self._dead = True
        self._limit = -1
        if entered:
            self._close_file()
            self._busy = False
        files, self._files = list(self._files), {}
        _open.discard(self)
        if keep:
            return
        for name in files:
            (self.home / name).unlink(missing_ok=True)
        self._unmake()

    def deafen(self) -> None:
        """Called in a forked child: the memory is the parent's."""
        self._dead = True
        self._limit = -1
        self._busy = False


_ENTERED = {Ring.append.__code__, Ring.release.__code__, Ring.close.__code__}
"""What a call is inside while it is under way."""

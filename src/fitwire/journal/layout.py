"""Where journals lie, whose they are, and whether anybody still writes them.

One folder a source, ``journals/<run>-<rank>-<incarnation>`` in the data folder, or in the folder a training was given;
then a pointer in the data folder says where, so that the machine's own hub finds it. No lock is taken: on a network's
file system one may hang. This module does not know what the segments hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fitwire.errors import DecodeError, JournalError
from fitwire.protocol.blocks import Identity
from fitwire.protocol.strict_json import decode_json
from fitwire.transport.address import data_folder
from fitwire.transport.process import alive, host_key, private_folder

__all__ = [
    "ABOUT", "ELSEWHERE", "POINTER", "RING", "About", "Life", "create", "file_system", "find_journals", "folder_name",
    "CLOSED", "close", "is_network_folder", "is_orphan", "journals_folder", "keeper_of", "life_of", "ring_home",
    "shared_home", "read_about", "read_have", "remove", "segment_name", "segments", "write_have",
]  # fmt: skip

ABOUT = "about.json"
CLOSED = "closed"
"""There once its trainer writes no more, although the process may live on: a notebook's does."""
HAVE = "have"
RING = "ring"
ELSEWHERE = b"fitwire: this ring lies in shared memory\n"
"""Stands in the ring's file when the ring does not."""
SHARED = Path("/dev/shm")
"""A file system in memory, where every Linux has one: its files outlive a process, and its pages never fail."""
POINTER = ".at"
"""Ending of a file that names a folder elsewhere."""
MAX_ABOUT = 64 * 2**10
SILENT = 600.0
"""Seconds without a word after which a trainer of an earlier boot is believed to be gone: two hosts may share a name,
and a living one writes its gauges every 15 s."""

_FOLDER = re.compile(r"([0-9a-f]{32})-(\d{1,10})-(\d{1,10})")
_SEGMENT = re.compile(r"([01])-(\d{6,12})\.fwj")
_HAVE = struct.Struct("<QQI")
_NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "glusterfs", "panfs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.gcsfuse", "fuse.s3fs", "fuse.juicefs", "pvfs2", "orangefs",
}  # fmt: skip
"""File systems on which a mapped page can fail when the network does, which would kill the training (SIGBUS)."""


@dataclass(frozen=True, slots=True)
class About:
    """What a journal says of itself.

    Attributes:
        sender: Whose records it holds.
        hello: What the source's hello says: project, name, host and so on.
        durability: ``"memory"`` or ``"process"``.
        keeper: Process of a ``fitwire run`` that looks after it: pid, and its start in Unix seconds (None when
            unknown); None when nobody does.
    """

    sender: Identity
    hello: dict[str, Any] = field(default_factory=dict[str, Any])
    durability: str = "memory"
    keeper: tuple[int, float | None] | None = None


def folder_name(sender: Identity) -> str:
    """Of one source's journal."""
    return f"{sender.run.hex()}-{sender.rank}-{sender.incarnation}"


def journals_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where the journals lie: in ``folder``, else in the data folder; not made here.

    Raises:
        StoreError: There is no data folder.
    """
    return data_folder(folder) / "journals"


def create(about: About, folder: str | os.PathLike[str] | None = None) -> Path:
    """Make the folder of a new journal, for this user alone, and say in it whose it is.

    Args:
        about: Whose it is.
        folder: The training's own; None for the data folder.

    Raises:
        OSError: It cannot be made, is there already, or the disk is full.
    """
    base = private_folder(journals_folder(folder))
    path = base / folder_name(about.sender)
    path.mkdir(mode=0o700)
    try:
        _write_new(path / ABOUT, json.dumps(_about_to_json(about)).encode())
    except OSError:
        _delete(path)
        raise
    if folder is not None:
        _point_to(path)
    return path


def _point_to(path: Path) -> None:
    # Without it `fitwire sync FOLDER` still finds the journal; only the machine's hub does not.
    with contextlib.suppress(OSError):
        base = private_folder(journals_folder())
        if base.resolve() != path.parent.resolve():
            _write_new(base / (path.name + POINTER), os.fsencode(path.absolute()))


def _write_new(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def _about_to_json(about: About) -> dict[str, Any]:
    sender = about.sender
    return {
        "format": 1, "run": sender.run.hex(), "rank": sender.rank, "incarnation": sender.incarnation,
        "hello": about.hello, "durability": about.durability, "keeper": about.keeper,
    }  # fmt: skip


def read_about(path: Path) -> About:
    """What the journal in this folder says of itself.

    Raises:
        JournalError: It is no journal's folder, or belongs to somebody else.
    """
    match = _FOLDER.fullmatch(path.name)
    if match is None:
        raise JournalError(f"{path} is no journal: its name is not RUN-RANK-INCARNATION")
    sender = Identity(bytes.fromhex(match[1]), int(match[3]), int(match[2]))
    try:
        if sys.platform != "win32" and path.stat().st_uid != os.getuid():
            raise JournalError(f"{path} belongs to another user")
        found = decode_json(_read_small(path / ABOUT, MAX_ABOUT))
    except (OSError, DecodeError) as error:
        if isinstance(error, JournalError):
            raise
        # A disk that was full from the start; the entries' own checksums say whose they are.
        if isinstance(error, FileNotFoundError) and not path.is_dir():
            raise JournalError(f"{path} is not there") from None
        return About(sender)
    hello, keeper, durability = found.get("hello"), found.get("keeper"), found.get("durability")
    pair = cast("list[Any]", keeper) if isinstance(keeper, list) else []
    return About(
        sender,
        cast("dict[str, Any]", hello) if isinstance(hello, dict) else {},
        durability if durability in ("memory", "process") else "memory",
        _process(*pair) if len(pair) == 2 else None,
    )


def _read_small(path: Path, most: int) -> bytes:
    """The beginning of a file; of a pipe or a device that somebody put there, nothing.

    Raises:
        OSError: It cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        return os.read(handle, most) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    finally:
        os.close(handle)


def _process(pid: object, started: object) -> tuple[int, float | None] | None:
    if type(pid) is not int or not 0 < pid < 2**31:
        return None
    return pid, float(started) if isinstance(started, (int, float)) else None


def keeper_of(text: str | None) -> tuple[int, float | None] | None:
    """The process that ``FITWIRE_KEEPER`` names, ``PID:START``; None when it names none."""
    pid, _, started = (text or "").partition(":")
    try:
        return _process(int(pid), float(started) if started else None)
    except ValueError:
        return None


def find_journals(folder: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Folders of journals in ``folder`` (a training's, a data folder, a folder of journals, or one journal).

    Without one, those in the data folder and those it points to. In order of their names, so a run's incarnations come
    oldest first.
    """
    if folder is not None:
        chosen = Path(folder).expanduser().absolute()
        if _FOLDER.fullmatch(chosen.name):
            yield chosen
            return
        # A copy of a folder of journals may go by any name.
        inner = chosen / "journals"
        yield from _found_in(inner if inner.is_dir() else chosen)
        return
    try:
        base = journals_folder()
    except OSError:
        return
    yield from _found_in(base)


def _found_in(base: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(base), key=_order)
    except OSError:
        return
    for name in names:
        if _FOLDER.fullmatch(name):
            yield base / name
        elif name.endswith(POINTER) and _FOLDER.fullmatch(name.removesuffix(POINTER)):
            try:
                target = Path(os.fsdecode(_read_small(base / name, 4096)))
            except OSError:
                continue
            if target.name == name.removesuffix(POINTER) and target.is_absolute() and target.is_dir():
                yield target
            elif not target.parent.is_dir() or target.name != name.removesuffix(POINTER):
                continue  # a folder that is not mounted now
            else:
                with contextlib.suppress(OSError):
                    (base / name).unlink()


def _order(name: str) -> tuple[str, int, int]:
    match = _FOLDER.match(name)
    return (match[1], int(match[3]), int(match[2])) if match else ("", 0, 0)


@dataclass(frozen=True, slots=True)
class Life:
    """Who is behind a journal.

    Attributes:
        trainer: Whether its process is there; None when that cannot be known from here.
        keeper: Whether a ``fitwire run`` looks after it.
    """

    trainer: bool | None
    keeper: bool

    @property
    def orphan(self) -> bool:
        """Whether nobody else will deliver it."""
        return self.trainer is False and not self.keeper


def life_of(about: About) -> Life:
    """Whether the trainer of a journal, or its keeper, is still there."""
    hello = about.hello
    here = hello.get("host_key") == host_key()[:256]
    who = _process(hello.get("pid"), hello.get("pid_started"))
    trainer = alive(*who) if here and who is not None else None
    return Life(trainer, here and about.keeper is not None and alive(*about.keeper))


def close(path: Path) -> None:
    """Say that nobody writes to a journal any more.

    Raises:
        OSError: The disk refuses.
    """
    os.close(os.open(path / CLOSED, os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))


def is_orphan(path: Path, about: About) -> bool:
    """Whether nobody writes to a journal of this host any more, and nobody else will deliver it."""
    life = life_of(about)
    if life.keeper:
        return False
    if life.trainer is False or (path / CLOSED).exists():
        return True
    return life.trainer is None and _of_an_earlier_boot(about.hello.get("host_key")) and age(path) > SILENT


def _of_an_earlier_boot(key: object) -> bool:
    """Whether a trainer ran on this host before it was started anew, by the host's name."""
    theirs, ours = str(key).split("/"), host_key().split("/")
    return len(theirs) > 1 < len(ours) and theirs[0] == ours[0] and theirs[1] != ours[1]


def segment_name(lane: int, number: int) -> str:
    """File of a lane's segment; numbers grow."""
    return f"{lane}-{number:06d}.fwj"


def segments(path: Path, lane: int) -> list[tuple[int, Path]]:
    """A lane's segments, oldest first: number and file."""
    found: list[tuple[int, Path]] = []
    try:
        names = os.listdir(path)
    except OSError:
        return []
    for name in names:
        match = _SEGMENT.fullmatch(name)
        if match is not None and int(match[1]) == lane:
            found.append((int(match[2]), path / name))
    return sorted(found)


def encode_have(have: tuple[int, int]) -> bytes:
    """What is written of acknowledged positions."""
    head = _HAVE.pack(*have, 0)[:16]
    return head + struct.pack("<I", zlib.crc32(head))


def write_have(handle: int, have: tuple[int, int]) -> None:
    """Note in the open file ``handle`` up to where a hub has acknowledged each lane.

    Raises:
        OSError: The disk refuses.
    """
    os.pwrite(handle, encode_have(have), 0)


def read_have(path: Path) -> tuple[int, int]:
    """Up to where a hub had acknowledged each lane; zeros when that is not known."""
    try:
        data = _read_small(path / HAVE, _HAVE.size)
        records, bulk, crc = _HAVE.unpack(data)
    except (OSError, struct.error):
        return 0, 0
    return (records, bulk) if crc == zlib.crc32(data[:16]) and max(records, bulk) < 2**62 else (0, 0)


def shared_home(path: Path) -> Path:
    """Where the ring of the journal in ``path`` lies when it does not lie there; only from this host to be seen."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return SHARED / f"fitwire-{user}" / path.name


def ring_home(path: Path) -> Path:
    """The folder that holds a journal's ring: its own, or one in shared memory.

    What stands in the file is never taken for a path: a journal may have been copied here by anybody.
    """
    try:
        with open(path / RING, "rb") as file:
            return shared_home(path) if file.read(len(ELSEWHERE)) == ELSEWHERE else path
    except OSError:
        return path


def _delete(path: Path) -> None:
    # Not by shutil: it would be imported at the end of a training, and evaluates text then, after which the interpreter
    # no longer ends by the signal where Ctrl-C ended the program. A journal's folder holds files alone.
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            with contextlib.suppress(OSError):
                (path / name).unlink()
        path.rmdir()


def remove(path: Path) -> None:
    """Delete a journal that was delivered, and the pointer to it; what cannot be deleted stays."""
    if _FOLDER.fullmatch(path.name) and (home := ring_home(path)) != path:
        _delete(home)
    _delete(path)
    with contextlib.suppress(OSError):
        (journals_folder() / (path.name + POINTER)).unlink()


def age(path: Path) -> float:
    """Seconds since anything was written to a journal."""
    newest = 0.0
    with contextlib.suppress(OSError):
        newest = max(entry.stat().st_mtime for entry in os.scandir(path))
    return max(0.0, time.time() - newest)


def is_network_folder(path: Path) -> bool:
    """Whether a folder lies on a network's file system, as far as the system tells (Linux)."""
    return file_system(path) in _NETWORK


def file_system(path: Path) -> str:
    """The kind of file system that a folder lies on, e.g. ``"ext4"``; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    where = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        mount = fields[4].replace("\\040", " ")
        inside = where == mount or where.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind

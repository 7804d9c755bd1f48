"""What a training was asked to do about being watched: arguments over environment over defaults, checked early."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fitwire.errors import StoreError, UsageError
from fitwire.events import MAX_NAME
from fitwire.protocol.blocks import Identity
from fitwire.transport.address import data_folder, resolve
from fitwire.transport.process import private_folder

__all__ = [
    "Durability",
    "Mode",
    "Resume",
    "Settings",
    "Wire",
    "identify",
    "ranks_from_environment",
    "run_id_of",
]

Mode = Literal["online", "offline", "disabled"]
Resume = Literal["auto", "must", "never"]
Wire = Literal["fw", "pair", "sleap"]
Durability = Literal["memory", "process"]

MAX_INCARNATION = 2**32 - 1
"""It travels in 32 bits."""
FORGOTTEN_AFTER = 366 * 86_400
"""Seconds after which nobody needs to know any more which incarnation of a run was the last."""

_ADJECTIVES = (
    "amber brisk calm clear deft eager fleet fond gentle golden keen kind lively lucid merry mild neat noble plain "
    "quick quiet rapid ready sharp silver smooth snug solid steady still sunny swift tidy vivid warm wise"
)
_NOUNS = (
    "badger beaver bison crane curlew dolphin falcon finch fox gannet heron ibex jay kestrel lark lemur lynx marten "
    "newt ocelot orca osprey otter owl panda plover puffin raven robin seal starling stoat swan tern toucan wren"
)


def _choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise UsageError(f"{name}={value!r}: pass one of {', '.join(map(repr, get_args(choices)))}")


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value.strip()) <= MAX_NAME:
        raise UsageError(f"{name}={str(value)[:40]!r}: pass a text of 1 to {MAX_NAME} characters")
    return value.strip().encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Settings:
    """How one training is to be watched; see ``fitwire.init`` for what each means.

    Raises:
        UsageError: A value that cannot be used; the message names the choices.
        AddressError: An address that cannot be used.
    """

    address: str | None = None
    project: str | None = None
    name: str | None = None
    config: Mapping[str, Any] | None = None
    tags: Sequence[str] = ()
    group: str | None = None
    run_id: str | None = None
    resume: Resume = "auto"
    mode: Mode | None = None
    dir: str | os.PathLike[str] | None = None
    durability: Durability = "memory"
    wire: Wire = "fw"
    wait: float = 0.0
    control: bool = True
    strict: bool = False

    def __post_init__(self) -> None:
        environment = os.environ.get
        put = object.__setattr__
        put(self, "mode", self.mode or environment("FITWIRE_MODE") or "online")
        put(self, "project", _text("project", self.project or environment("FITWIRE_PROJECT") or None) or "default")
        put(self, "name", _text("name", self.name or environment("FITWIRE_NAME") or None))
        put(self, "group", _text("group", self.group))
        put(self, "run_id", _text("run_id", self.run_id or environment("FITWIRE_RUN_ID") or None))
        if isinstance(self.tags, str):
            raise UsageError(f"tags={self.tags!r}: pass a list of texts")
        put(self, "tags", tuple(str(_text("tags", tag)) for tag in self.tags))
        _choice("resume", self.resume, Resume)
        _choice("mode", str(self.mode), Mode)
        _choice("durability", self.durability, Durability)
        _choice("wire", self.wire, Wire)
        if self.wire != "fw" and (self.mode == "offline" or self.durability == "process"):
            raise UsageError(
                f"wire={self.wire!r} keeps no journal: pass mode='online' and durability='memory', or wire='fw'"
            )
        if self.resume == "must" and self.run_id is None:
            raise UsageError("resume='must' needs run_id=, the run to go on with")
        if isinstance(self.wait, bool) or not isinstance(self.wait, (int, float)) or not 0 <= self.wait < 1e6:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"wait={self.wait!r}: pass seconds, 0 to train at once")
        if self.config is not None and not isinstance(self.config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"config is a {type(self.config).__name__}: pass a mapping of names to values")
        self._check_address()

    def _check_address(self) -> None:
        if self.mode == "disabled":
            return
        if self.wire == "fw":
            if self.address or os.environ.get("FITWIRE_ADDRESS"):  # the default makes a folder: not before training
                resolve(self.address)
            return
        if self.wire == "sleap":
            from fitwire.train.sleaplink import sleap_addresses

            sleap_addresses(self.address)
            return
        from fitwire.train.pairlink import pair_addresses

        pair_addresses(self.address)

    def named(self, run: bytes) -> str:
        """The run's name: given, the text of ``run_id``, or one made from its id, so that all ranks make the same."""
        if self.name or self.run_id:
            return str(self.name or self.run_id)
        chance = random.Random(run)  # of our own: the user's random state stays theirs
        return f"{chance.choice(_ADJECTIVES.split())}-{chance.choice(_NOUNS.split())}-{chance.randrange(1, 100)}"


def new_run_id() -> bytes:
    """A fresh UUIDv7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, then chance, so that ids sort by their start."""
    stamp = time.time_ns() // 1_000_000
    raw = bytearray(stamp.to_bytes(6, "big") + secrets.token_bytes(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw)


def run_id_of(text: str) -> bytes:
    """16 bytes of a ``run_id``: itself when it is 32 hexadecimal digits, else a hash of it."""
    try:
        raw = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        raw = b""
    return raw if len(raw) == 16 else hashlib.sha256(text.encode()).digest()[:16]


_jobs: dict[str, int] = {}


def ranks_from_environment() -> tuple[int, int, str | None]:
    """Rank, world size, and the text of an id that all ranks of this job share, if a launcher says so.

    Understands torchrun (``RANK``, ``WORLD_SIZE``, ``TORCHELASTIC_RUN_ID``) and Slurm (``SLURM_PROCID``,
    ``SLURM_NTASKS``, ``SLURM_JOB_ID``). Each call counts as one training of the job: the second ``init`` of every rank
    shares another id than the first.
    """
    env = os.environ
    try:
        if "RANK" in env and "WORLD_SIZE" in env:
            rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
            job = _torchrun_job(size)
        elif int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
            # Without a step it is the batch script itself, which says task 0 of many and is alone.
            rank, size = int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"])
            job = f"slurm-{env.get('SLURM_JOB_ID')}-{env.get('SLURM_STEP_ID')}"
        else:
            return 0, 1, None
    except ValueError:
        return 0, 1, None
    if size < 2 or not 0 <= rank < size or job is None:
        return max(rank, 0), max(size, 1), None
    _jobs[job] = _jobs.get(job, 0) + 1
    return rank, size, f"{job}-{_jobs[job]}"


def _torchrun_job(size: int) -> str | None:
    env = os.environ
    job = env.get("TORCHELASTIC_RUN_ID", "none")
    if job != "none":
        return f"torchrun-{job}"
    if env.get("LOCAL_WORLD_SIZE") == str(size):  # one host: the launcher's own process is what the ranks share
        from fitwire.transport.process import host_key, started_at

        return f"torchrun-{host_key()}-{os.getppid()}-{started_at(os.getppid())}"
    return None


_incarnations: dict[tuple[bytes, int], int] = {}


def next_identity(run: bytes, rank: int, *, claim: bool = False) -> Identity:
    """A new incarnation: Unix seconds, or one more than the last that is known.

    Args:
        run: Its id.
        rank: Of this process.
        claim: Whether other processes may have been this run: then the number is looked up, and noted, in the data
            folder. One that is started again within the same second, or after the clock was set back, would otherwise
            be taken for the former, or for older than it.
    """
    number = max(int(time.time()), _incarnations.get((run, rank), 0) + 1)
    if claim:
        try:
            number = _claim(run, rank, number)
        except (OSError, StoreError):  # no folder, a full disk: the clock has to do
            pass
    _incarnations[run, rank] = number
    return Identity(run, number, rank)


def _claim(run: bytes, rank: int, number: int) -> int:
    """The first incarnation from ``number`` on that no process before has had, as far as the data folder knows.

    An empty file bears the number in its name, because making one is atomic where locks may hang.
    """
    folder = private_folder(data_folder() / "lives")
    mine = f"{run.hex()}-{rank}"
    known: list[int] = []
    for name in os.listdir(folder):
        whose, _, text = name.rpartition("-")
        last = int(text) if text.isdecimal() else 0
        if whose == mine and last < MAX_INCARNATION:
            known.append(last)
        elif last < number - FORGOTTEN_AFTER:
            (folder / name).unlink(missing_ok=True)
    number = max([number, *(last + 1 for last in known)])
    while True:
        try:
            os.close(os.open(folder / f"{mine}-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            break
        except FileExistsError:
            number += 1
    for last in known:
        (folder / f"{mine}-{last}").unlink(missing_ok=True)
    return number


def identify(
    settings: Settings, rank: int | None = None, world_size: int | None = None, shared_id: str | None = None
) -> tuple[Identity, int]:
    """Who this process is in which run.

    Args:
        settings: Their ``run_id`` and ``resume``.
        rank: Of this process; None to ask the launcher's environment.
        world_size: Number of processes; None likewise.
        shared_id: Text of an id that all ranks share; None likewise.

    Returns:
        Run, incarnation and rank; and the number of processes.
    """
    found_rank, found_size, found_id = (0, 1, None) if rank is not None else ranks_from_environment()
    shared = shared_id or found_id
    text = settings.run_id or shared
    if settings.run_id is not None and settings.resume == "never":
        text = f"{settings.run_id} {shared}" if shared else None
    run = new_run_id() if text is None else run_id_of(text)
    here = found_rank if rank is None else rank
    claim = text is not None and settings.mode != "disabled" and settings.wire == "fw"
    return next_identity(run, here, claim=claim), found_size if world_size is None else world_size

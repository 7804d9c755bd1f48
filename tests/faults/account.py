"""What a store holds of a run, set against the ledgers of its process lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faults.ledger import Ledger, check_of, pixels_of
from fitwire.errors import DecodeError
from fitwire.events import Dropped, MetricRows, RunEnded, RunStarted, Sample, decode_events
from fitwire.protocol.blocks import BULK, LANES, RECORDS, Identity, Kind, Message, decode_message, unpack_frames
from fitwire.train.settings import run_id_of
from fitwire.watch.store import Store, StoredBlock

__all__ = ["Account", "Verdict", "account_of", "verdict_of"]


@dataclass
class Account:
    """All that the store has of a run.

    Attributes:
        rows: ``(n, life, slot, check, step)`` of the trainers' records, float64 ``(5, k)``, in the order of the
            sources' starts and, of each, of its sequence numbers.
        sources: (incarnation, rank) of each.
        samples: (incarnation, number of the sample as its pixels say, or -1 when they say nonsense), in order.
        dropped: Records that tombstones stand for, by kind.
        missing: Records that gaps stand for.
        holes: Sequence numbers that are simply not there, or there twice.
        spoilt: Blocks that cannot be read.
        starts: ``RunStarted`` events; ends likewise.
    """

    rows: np.ndarray = field(default_factory=lambda: np.empty((5, 0)))
    sources: list[tuple[int, int]] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    holes: int = 0
    spoilt: int = 0
    starts: int = 0
    ends: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """How an account compares with the ledgers.

    Attributes:
        returned: Calls of ``log`` that came back.
        stored: Rows of those calls in the store.
        lost: Calls that came back and are nowhere.
        doubled: Rows that are there more than once.
        disordered: Rows of a thread that stand before an earlier one.
        wrong: Rows whose value is not the one that belongs to their number.
        phantom: Rows of calls that never came back, other than one a thread that a kill cut short.
        tails: Per (life, slot) with something lost: seconds from the first lost call to the last call.
        inner: Lost calls that are followed by one which is there.
    """

    returned: int
    stored: int
    lost: int
    doubled: int
    disordered: int
    wrong: int
    phantom: int
    tails: tuple[float, ...]
    inner: int

    @property
    def figures(self) -> dict[str, Any]:
        """As one line of a report."""
        found: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("returned", "stored", "lost", "doubled", "disordered", "wrong", "phantom")
        }
        if self.tails:
            found["longest_tail_ms"] = round(1000 * max(self.tails), 1)
        return found

    @property
    def faults(self) -> dict[str, int]:
        """What is wrong, whatever was lost; empty when all is well."""
        named = {name: getattr(self, name) for name in ("doubled", "disordered", "wrong", "phantom")}
        return {name: number for name, number in named.items() if number}


def _messages(store: Store, sender: Identity, lane: int, account: Account) -> Iterator[Message]:
    following = 1
    for block in store.blocks(sender, lane):
        account.holes += abs(block.first - following)
        following = block.last + 1
        message = _read(block)
        if message is None:
            account.spoilt += 1
        else:
            yield message


def _read(block: StoredBlock) -> Message | None:
    try:
        return decode_message(unpack_frames(block.blob))
    except DecodeError:
        return None


def account_of(path: Path, run_id: str) -> Account:
    """Read all that a store has of a run, without the help of what reads it for viewers."""
    account = Account()
    pieces: list[np.ndarray] = []
    store = Store(path, write=False)
    try:
        for incarnation, rank in store.sources(run_id_of(run_id)):
            account.sources.append((incarnation, rank))
            sender = Identity(run_id_of(run_id), incarnation, rank)
            for lane in LANES:
                for message in _messages(store, sender, lane, account):
                    if message.kind == Kind.GAP:
                        account.missing += message.body["to"] - message.seq + 1
                        continue
                    for _, event in decode_events(message, arrays=lane == BULK):
                        _take(account, pieces, incarnation, lane, event)
    finally:
        store.close()
    if pieces:
        account.rows = np.concatenate(pieces, axis=1)
    return account


def _take(account: Account, pieces: list[np.ndarray], incarnation: int, lane: int, event: Any) -> None:
    if isinstance(event, MetricRows):
        if event.names == ("n", "life", "slot", "check") and lane == RECORDS:
            pieces.append(np.concatenate((event.columns[4:], event.columns[:1])))
    elif isinstance(event, Sample):
        account.samples.append((incarnation, _number_of(event)))
    elif isinstance(event, Dropped):
        account.dropped[event.what] += event.count
    elif isinstance(event, RunStarted):
        account.starts += 1
    elif isinstance(event, RunEnded):
        account.ends.append(event.status)


def _number_of(sample: Sample) -> int:
    """Which sample it is, by its pixels; -1 when they are not all what they must be."""
    pixels = sample.arrays["image"]
    # The inverse of the odd multiplier modulo 2**32 gives the number back.
    number = (int(pixels[0, 0]) - 1) * pow(2654435761, -1, 2**32) % 2**32
    same = number < 2**24 and np.array_equal(pixels, pixels_of(number, pixels.nbytes))
    return number if same else -1


def verdict_of(rows: np.ndarray, lives: Mapping[int, tuple[Ledger, int]]) -> Verdict:
    """Set rows of an account against ledgers.

    Args:
        rows: As :attr:`Account.rows`.
        lives: By number of the process life: its ledger, and the number that it began with.
    """
    n, life, slot, check, step = rows
    lost = doubled = disordered = phantom = inner = stored = wrong = 0
    known = np.zeros(len(n), bool)
    tails: list[float] = []
    for number, (ledger, first) in lives.items():
        for thread in range(ledger.slots):
            mine = (life == number) & (slot == thread)
            known |= mine
            wrong += int((check_of(n[mine].astype(np.uint64), number, thread) != check[mine]).sum())
            told = n[mine].astype(np.int64) - first
            count = ledger.count(thread)
            disordered += int((np.diff(told) < 0).sum())
            unique = np.unique(told)
            doubled += len(told) - len(unique)
            # A kill between the call's end and the ledger's note leaves one that is not in the ledger.
            phantom += int((unique > count).sum() + (unique < 0).sum())
            gone = np.setdiff1d(np.arange(count), unique, assume_unique=True)
            stored += int((unique < count).sum())
            lost += len(gone)
            if len(gone):
                tails.append(ledger.tail(thread, int(gone[0])))
                inner += int((gone < (unique.max() if len(unique) else 0)).sum())
    wrong += int((~known).sum() + (n != step).sum())
    returned = sum(ledger.total() for ledger, _ in lives.values())
    return Verdict(returned, stored, lost, doubled, disordered, wrong, phantom, tuple(tails), inner)

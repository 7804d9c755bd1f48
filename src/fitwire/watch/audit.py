"""Whether what the store has of a run is what its trainers said: block by block, and by rolling checksums.

Three parties may be asked: the store, the goodbye of each source, and a journal that is still there. This module reads
and compares; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fitwire.errors import DecodeError, FitwireError
from fitwire.events import Dropped, decode_events
from fitwire.journal.layout import read_about
from fitwire.journal.reader import Journal
from fitwire.protocol.blocks import LANES, Block, Identity, Kind, Message, checksum_of, decode_message, unpack_frames
from fitwire.protocol.blocks import block_of as checked_block
from fitwire.protocol.digest import fold
from fitwire.watch.store import Store, StoredBlock

__all__ = ["LaneReport", "audit"]


@dataclass(slots=True)
class LaneReport:
    """One lane of one source.

    Attributes:
        sender: Run, incarnation and rank.
        lane: 0 for records, 1 for samples.
        blocks: In the store.
        records: In them, tombstones included.
        dropped: Of those, records that were given up; their tombstones are here.
        missing: Records that are not here and never will be: the source could not send them any more.
        spoilt: Blocks that do not decode.
        breaks: Places where sequence numbers do not go on.
        digest: Rolling checksum of the store's blocks, over what the goodbye or the journal covers; None without.
        goodbye: Whether it is what the goodbye said; None when none was said, or it cannot be compared.
        journal: Whether the blocks of a journal that is still there are the store's; None when there is no journal.
        undelivered: Records of that journal that the store has not.
    """

    sender: Identity
    lane: int
    blocks: int = 0
    records: int = 0
    dropped: int = 0
    missing: int = 0
    spoilt: int = 0
    breaks: int = 0
    digest: int | None = None
    goodbye: bool | None = None
    journal: bool | None = None
    undelivered: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing contradicts anything."""
        return not self.spoilt and not self.breaks and self.goodbye is not False and self.journal is not False


def audit(store: Store, run: bytes, journals: Iterable[Path] = ()) -> list[LaneReport]:
    """Compare all that is known of a run, source by source, oldest first.

    Args:
        store: That holds it.
        run: Its id, 16 bytes.
        journals: Folders of journals; those of other runs are passed over.

    Raises:
        StoreError: The database cannot be read.
    """
    kept: dict[Identity, Path] = {}
    for path in journals:
        try:
            sender = read_about(path).sender
        except FitwireError:
            continue
        if sender.run == run:
            kept[sender] = path
    senders = {Identity(run, incarnation, rank): None for incarnation, rank in store.sources(run)}
    found: list[LaneReport] = []
    for sender in senders | dict.fromkeys(kept):
        for lane in LANES:
            report = LaneReport(sender, lane)
            sums = _walk(store, report)
            _compare_goodbye(store, report, sums)
            if sender in kept:
                _compare_journal(kept[sender], report, sums)
            if report.blocks or report.undelivered:
                found.append(report)
    return found


_Sums = dict[int, tuple[int, int]]
"""By first sequence number: the last one, and the block's own checksum."""


def _walk(store: Store, report: LaneReport) -> _Sums:
    sums: _Sums = {}
    following = 1
    for stored in store.blocks(report.sender, report.lane):
        report.blocks += 1
        report.records += stored.last - stored.first + 1
        report.breaks += stored.first != following
        following = stored.last + 1
        try:
            message, crc = _checked(stored)
        except DecodeError:
            report.spoilt += 1
            continue
        if message.kind == Kind.GAP:
            report.missing += stored.last - stored.first + 1
        else:
            report.dropped += sum(_dropped(message))
            sums[stored.first] = (stored.last, crc)
    return sums


def _checked(stored: StoredBlock) -> tuple[Message, int]:
    frames = unpack_frames(stored.blob)
    message = decode_message(frames)
    if (message.sender, message.lane, message.seq) != (stored.sender, stored.lane, stored.first):
        raise DecodeError("sequence", "another block")
    if message.kind == Kind.GAP:
        return message, 0
    block = checked_block(message, frames)
    if block.last != stored.last:
        raise DecodeError("count", "another number of records")
    return message, checksum_of(block)


def _dropped(message: Message) -> Iterator[int]:
    try:
        yield from (e.count for _, e in decode_events(message, arrays=False) if isinstance(e, Dropped))
    except DecodeError:  # it was counted when it came
        return


def _rolled(sums: _Sums, since: int, final: int) -> int | None:
    """The rolling checksum over the store's blocks after ``since``; None when they are not all here."""
    value, at = 0, since
    while at < final:
        if at + 1 not in sums:
            return None
        first = at + 1
        at, crc = sums[first]
        value = fold(value, first, at - first + 1, crc)
    return value if at == final else None


def _compare_goodbye(store: Store, report: LaneReport, sums: _Sums) -> None:
    end = store.ends(report.sender).get(report.lane)
    if end is None or end.final == 0 or end.since >= end.final:
        return
    report.digest = _rolled(sums, end.since, end.final)
    report.goodbye = report.digest == end.digest


def _compare_journal(path: Path, report: LaneReport, sums: _Sums) -> None:
    head = max((last for last, _ in sums.values()), default=0)
    try:
        with Journal(path) as journal:
            for block in _journalled(journal, report.lane):
                if block.first > head:
                    report.undelivered += block.count
                else:
                    same = sums.get(block.first) == (block.last, checksum_of(block))
                    report.journal = same and report.journal is not False
    except FitwireError:
        return  # `fitwire doctor` says what is wrong with it


def _journalled(journal: Journal, lane: int) -> Iterator[Block]:
    seq = journal.first(lane)
    while (block := journal.read(lane, seq)) is not None:
        yield block
        seq = block.last + 1

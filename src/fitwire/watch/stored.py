"""From the store to what it means: blocks checked as they are read, and a run's whole history.

What is spoilt on the disk reads as a gap in its place, for whoever reads it: the hub, and those who follow one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from fitwire.errors import DecodeError
from fitwire.protocol.blocks import (
    CHUNK_BYTES,
    RECORDS,
    Buffer,
    Identity,
    Kind,
    Message,
    decode_message,
    encode_message,
    unpack_frames,
)
from fitwire.watch.history import History
from fitwire.watch.store import SampleRef, Store, StoredBlock

__all__ = ["bulk_items", "grow_history", "load_history", "read_block"]

MAX_SHOWN = 2 * CHUNK_BYTES
"""No trainer of ours makes a block of records that is longer, and no follower's socket takes a longer frame."""


def read_block(block: StoredBlock) -> tuple[Message, Sequence[Buffer]]:
    """A block as a message and its frames; a gap in its place when it cannot be read."""
    reason = "too large to be shown" if len(block.blob) > MAX_SHOWN or not block.blob else "spoilt in the store"
    try:
        if 0 < len(block.blob) <= MAX_SHOWN:
            frames = unpack_frames(block.blob)
            message = decode_message(frames)
            if (message.sender, message.lane, message.seq) == (block.sender, block.lane, block.first):
                return message, frames
    except DecodeError:
        pass
    message = Message(Kind.GAP, block.sender, block.lane, block.first, 0, {"to": block.last, "reason": reason})
    return message, encode_message(message)


def bulk_items(store: Store, sender: Identity, after: int = 0) -> Iterator[SampleRef | StoredBlock]:
    """What a source has said on its sample lane above ``after``, in order: samples, and what was given up."""
    samples = ((ref.seq, ref) for ref in store.samples(sender, after))
    stones = ((stone.first, stone) for stone in store.stones(sender, after))
    return (item for _, item in heapq.merge(samples, stones, key=lambda pair: pair[0]))


def load_history(store: Store, run: bytes) -> History:
    """Read a run's whole history.

    Raises:
        StoreError: The database cannot be read.
    """
    history = History(run)
    grow_history(store, history)
    return history


def grow_history(store: Store, history: History, blocks: int | None = None) -> bool:
    """Read what a history lacks.

    Args:
        store: To read from.
        history: Of one run; it may know a part already.
        blocks: How many blocks of records to read at most; None for all.

    Returns:
        Whether that was all.

    Raises:
        StoreError: The database cannot be read; what was read before is taken.
    """
    for incarnation, rank in store.sources(history.run):
        sender = Identity(history.run, incarnation, rank)
        records, samples = history.head((incarnation, rank))
        bulk = bulk_items(store, sender, samples)
        item = next(bulk, None)
        for block in store.blocks(sender, RECORDS, records):
            if blocks is not None:
                if blocks <= 0:
                    return False
                blocks -= 1
            message, _ = read_block(block)
            # Samples find their place among the rest by their times, as near as a block is long.
            while item is not None and _time_of(item) < message.wall_ns / 1e9:
                _take_bulk(history, item)
                item = next(bulk, None)
            _take(history, message, block)
        while item is not None:
            _take_bulk(history, item)
            item = next(bulk, None)
    return True


def _time_of(item: SampleRef | StoredBlock) -> float:
    return item.time if isinstance(item, SampleRef) else read_block(item)[0].wall_ns / 1e9


def _take_bulk(history: History, item: SampleRef | StoredBlock) -> None:
    if isinstance(item, SampleRef):
        history.add_sample(item)
    else:
        _take(history, read_block(item)[0], item)


def _take(history: History, message: Message, block: StoredBlock) -> None:
    try:
        history.add(message, block.last - block.first + 1)
    except DecodeError:  # it was counted when it came; what it said before the fault was taken
        pass

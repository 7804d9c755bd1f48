"""The hub's end of one source, as a machine: it takes only what comes next, and says what it has.

A block is *taken* when it arrived in its place, *had* when the store has committed it; only then is it acknowledged.
Lower is a duplicate, higher a gap: the source is told and goes back. This module knows no socket, thread, clock or
database.
"""

from __future__ import annotations

import itertools
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fitwire.errors import DecodeError
from fitwire.protocol.blocks import (
    LANES,
    MAX_BLOCK_BYTES,
    Block,
    Buffer,
    Identity,
    Kind,
    Message,
    block_of,
    decode_packed,
    encode_message,
    sum_of_buffers,
)
from fitwire.protocol.crc import joined
from fitwire.protocol.room import Room
from fitwire.protocol.source import BEAT

__all__ = ["CREDIT_BYTES", "CREDIT_RECORDS", "Sink", "reject"]

CREDIT_BYTES = 8 * 2**20
"""What one source may have under way: eight pieces of a picture, so that neither end waits for the other, and enough
for a gigabit's 60 ms; small enough for 256 sources."""
CREDIT_RECORDS = 65_536
GAP_AGAIN = 0.05
"""Seconds before the same gap is complained of again."""


def reject(to: Identity, reason: str, **fields: Any) -> list[Buffer]:
    """The refusal of a hello: ``reason`` is version, auth, superseded, unknown or busy."""
    return encode_message(Message(Kind.REJECT, to, body={"reason": reason, **fields}))


@dataclass(slots=True)
class _Arriving:
    """A block that comes in chunks.

    Attributes:
        first: Its sequence number.
        total: Its size, packed.
        data: Room for it.
        size: Bytes that are there.
        crc: CRC32 of those.
    """

    first: int
    total: int
    data: memoryview
    size: int = 0
    crc: int = 0

    def add(self, piece: Buffer) -> None:
        """The bytes that come next."""
        end = self.size + len(piece)
        self.data[self.size : end] = piece
        self.size = end


class Sink:
    """The machine. Store what :meth:`take` gives, call :meth:`committed`, send what is due.

    When the store refuses for good, forget the machine and answer ``unknown``: the source greets again, and a new one
    starts from what the store has.

    Args:
        sender: The source's run, incarnation and rank.
        have: Per lane, the highest sequence number in the store.
        credit: Bytes and records the source may have under way.
        beat: Seconds of silence after which a side speaks.
        session: Tells this machine's acknowledgements from an earlier one's; drawn when None.
        room: Memory for blocks that come in chunks; those of one hub share it.

    Attributes:
        duplicates: Blocks that came again and were put aside.
        gaps: Times something was missing.
        bad: Messages that were not understood, by kind of fault.
        heard: When the source last said anything, on the caller's clock.
        final: Per lane, the last sequence number there will be, once the goodbye has told it.
        status: What the goodbye said, else None.
        digest: Per lane, the rolling checksum that the goodbye told, else None.
        since: Per lane, the sequence number after which that begins.
    """

    def __init__(
        self,
        sender: Identity,
        have: Sequence[int] = (0, 0),
        credit: tuple[int, int] = (CREDIT_BYTES, CREDIT_RECORDS),
        beat: float = BEAT,
        session: int | None = None,
        room: Room | None = None,
    ) -> None:
        self.sender = sender
        self._room = Room() if room is None else room
        self.session = secrets.randbits(31) if session is None else session
        self.have = list(have)
        self.duplicates = self.gaps = 0
        self.bad: Counter[str] = Counter()
        self.heard = 0.0
        self.final: list[int] | None = None
        self.status: str | None = None
        self.digest: list[int] | None = None
        self.since = [0 for _ in LANES]
        self._credit, self._beat = credit, beat
        self._taken = list(have)
        self._fresh: list[tuple[Block, Message]] = []
        self._chunks: list[_Arriving | None] = [None for _ in LANES]
        self._complained: list[tuple[tuple[int, int], float]] = [((0, 0), -1e9) for _ in LANES]
        self._out: deque[list[Buffer]] = deque()
        self._said = 0.0
        self._owes_ack = False
        self._bye_said = False
        self._pings = itertools.count(1)

    @property
    def complete(self) -> bool:
        """Whether the source has ended and the store has all of it."""
        return self.final is not None and all(h >= f for h, f in zip(self.have, self.final, strict=True))

    @property
    def pending_bytes(self) -> int:
        """Bytes of a block that is still arriving."""
        return sum(part.size for part in self._chunks if part)

    def _places(self) -> dict[str, Any]:
        following = [
            [taken + 1, chunk.size if chunk else 0] for taken, chunk in zip(self._taken, self._chunks, strict=True)
        ]
        return {"session": self.session, "have": list(self.have), "next": following}

    def receive(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        """Take one message of this source; what is wrong with it is counted and changes nothing."""
        if message.sender != self.sender:
            self.bad["sender"] += 1
            return
        self.heard = now
        try:
            handler = _HANDLERS.get(message.kind)
            if handler is not None:
                handler(self, message, frames, now)
        except DecodeError as error:
            self.bad[error.kind] += 1
            # What was spoilt on the way has to come again.
            if message.kind in (Kind.BLOCK, Kind.CHUNK):
                self._complain(message.lane, now)

    def _on_hello(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        self._chunks = [None for _ in LANES]  # it starts such a block anew
        self.final = self.digest = None  # and says goodbye anew: another process may go on where one has ended
        credit = {"bytes": self._credit[0], "records": self._credit[1]}
        body = {"nonce": message.body.get("nonce"), "credit": credit, "beat": self._beat}
        self._say(Kind.WELCOME, body | self._places(), now)

    def _on_block(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        self._take(block_of(message, frames), message, now)

    def _on_ping(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        self._say(Kind.PONG, {"id": message.body.get("id")} | self._places(), now)

    def _on_goodbye(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        final = _numbers(message.body.get("final"))
        if final is None:
            raise DecodeError("goodbye", "a goodbye without final numbers")
        self.final, self.status = final, str(message.body.get("status"))[:40]
        self.digest, self.since = _numbers(message.body.get("digest")), _numbers(message.body.get("since")) or [0, 0]
        for lane, number in enumerate(self.final):
            if self._taken[lane] < number:
                self._complain(lane, now)
        self._bye_said = False

    def _take(self, block: Block, message: Message, now: float) -> None:
        lane, following = block.lane, self._taken[block.lane] + 1
        if block.last < following:
            self.duplicates += 1
            if block.last <= self.have[lane]:
                self._owes_ack = True
        elif block.first > following:
            self._complain(lane, now)
        elif block.first < following:
            raise DecodeError("sequence", f"a block {block.first}-{block.last} that begins before {following}")
        else:
            self._taken[lane] = block.last
            self._chunks[lane] = None
            self._fresh.append((block, message))

    def _on_chunk(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        lane, seq = message.lane, message.seq
        at, total = message.body.get("at"), message.body.get("total")
        size = sum(len(piece) for piece in message.buffers)
        if type(at) is not int or type(total) is not int or not 0 < total <= MAX_BLOCK_BYTES or at < 0 or size == 0:
            raise DecodeError("chunk", "a chunk without place or size")
        if seq <= self._taken[lane]:
            self.duplicates += 1
            return
        if seq > self._taken[lane] + 1:
            self._complain(lane, now)
            return
        held = self._chunks[lane]
        if held is None or held.total != total:  # the first, or of a block that has shrunk to a tombstone meanwhile
            self._chunks[lane] = None  # its room may serve again
            held = self._chunks[lane] = _Arriving(seq, total, self._room.take(total))
        if at > held.size:
            self._complain(lane, now)
        elif at < held.size:
            self.duplicates += 1
        elif at + size > total:
            self._chunks[lane] = None
            raise DecodeError("chunk", "a chunk past the end of its block")
        else:
            for piece in message.buffers:
                held.add(piece)
            held.crc = joined(held.crc, sum_of_buffers(frames), size)
            if held.size < total:
                self._owes_ack = True
            else:
                self._finish_block(held, lane, now)

    def _finish_block(self, held: _Arriving, lane: int, now: float) -> None:
        self._chunks[lane] = None
        block, inner = decode_packed(held.data, held.crc)
        if block.sender != self.sender or block.lane != lane or block.first != held.first:
            raise DecodeError("chunk", "chunks that hold another source's block")
        self._take(block, inner, now)

    def _on_gap(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        last, following = message.body.get("to"), self._taken[message.lane] + 1
        if type(last) is not int or not message.seq <= last < 2**63 - 1:
            raise DecodeError("gap", "a gap without an end")
        if message.seq == following:
            count = last - message.seq + 1
            self._taken[message.lane] = last
            self._chunks[message.lane] = None
            self.gaps += 1
            self._fresh.append((Block(self.sender, message.lane, message.seq, count, tuple(frames)), message))
        elif message.seq > following:
            self._complain(message.lane, now)

    def _complain(self, lane: int, now: float) -> None:
        places = self._places()
        seq, offset = places["next"][lane]
        place = (seq, offset)
        if self._complained[lane][0] != place or now - self._complained[lane][1] >= GAP_AGAIN:
            self._complained[lane] = (place, now)
            self.gaps += 1
            self._say(Kind.ACK, places | {"gap": lane}, now)

    def take(self) -> list[tuple[Block, Message]]:
        """Blocks that arrived in their place since the last call, to be stored."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def committed(self, blocks: Sequence[Block], now: float) -> None:
        """The store has these now: acknowledge them."""
        for block in blocks:
            self.have[block.lane] = max(self.have[block.lane], block.last)
        self._owes_ack = self._owes_ack or bool(blocks)

    def due(self, now: float) -> Iterator[list[Buffer]]:
        """Yield what is to be sent to the source now: one acknowledgement for all that came since the last time."""
        if self._owes_ack:
            self._owes_ack = False
            self._say(Kind.ACK, self._places(), now)
        if self.complete and not self._bye_said:
            self._bye_said = True
            self._say(Kind.BYE_OK, self._places(), now)
        if now - self._said >= self._beat:
            self._say(Kind.PING, {"id": next(self._pings)}, now)
        while self._out:
            yield self._out.popleft()

    def _say(self, kind: Kind, body: dict[str, Any], now: float) -> None:
        self._said = now
        self._out.append(encode_message(Message(kind, self.sender, body=body)))


def _numbers(value: object) -> list[int] | None:
    """A number for each lane; None when it is anything else."""
    numbers = cast("list[object]", value) if isinstance(value, list) else []
    good = [n for n in numbers if type(n) is int and 0 <= n < 2**63]
    return good if len(good) == len(numbers) == len(LANES) else None


_HANDLERS: dict[int, Callable[[Sink, Message, Sequence[Buffer], float], None]] = {
    Kind.HELLO: Sink._on_hello,  # pyright: ignore[reportPrivateUsage]
    Kind.BLOCK: Sink._on_block,  # pyright: ignore[reportPrivateUsage]
    Kind.CHUNK: Sink._on_chunk,  # pyright: ignore[reportPrivateUsage]
    Kind.GAP: Sink._on_gap,  # pyright: ignore[reportPrivateUsage]
    Kind.PING: Sink._on_ping,  # pyright: ignore[reportPrivateUsage]
    Kind.GOODBYE: Sink._on_goodbye,  # pyright: ignore[reportPrivateUsage]
}

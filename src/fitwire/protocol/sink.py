"""The hub's end of one source, as a machine: it takes only what comes next, and says what it has.

A block is *taken* when it arrived in its place, *had* when the store has committed it; only then is it acknowledged.
Lower is a duplicate, higher a gap: the source is told and goes back. This module knows no socket, thread, clock or
database.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
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
    decode_block,
    encode_message,
    packed_size,
    unpack_frames,
)
from fitwire.protocol.source import BEAT

__all__ = ["CREDIT_BYTES", "CREDIT_RECORDS", "Sink", "reject"]

CREDIT_BYTES = 4 * 2**20
"""What one source may have under way: enough for a gigabit's 30 ms, small enough for 256 sources."""
CREDIT_RECORDS = 65_536
GAP_AGAIN = 0.05
"""Seconds before the same gap is complained of again."""


def reject(to: Identity, reason: str, **fields: Any) -> list[Buffer]:
    """The refusal of a hello: ``reason`` is version, auth, superseded, unknown or busy."""
    return encode_message(Message(Kind.REJECT, to, body={"reason": reason, **fields}))


class Sink:
    """The machine. Store what :meth:`take` gives, call :meth:`committed`, send what is due.

    Args:
        sender: The source's run, incarnation and rank.
        have: Per lane, the highest sequence number in the store.
        credit: Bytes and records the source may have under way.
        beat: Seconds of silence after which a side speaks.

    Attributes:
        duplicates: Blocks that came again and were put aside.
        gaps: Times something was missing.
        bad: Messages that were not understood, by kind of fault.
        heard: When the source last said anything, on the caller's clock.
        final: Per lane, the last sequence number there will be, once the goodbye has told it.
        status: What the goodbye said, else None.
    """

    def __init__(
        self,
        sender: Identity,
        have: Sequence[int] = (0, 0),
        credit: tuple[int, int] = (CREDIT_BYTES, CREDIT_RECORDS),
        beat: float = BEAT,
    ) -> None:
        self.sender = sender
        self.have = list(have)
        self.duplicates = self.gaps = 0
        self.bad: Counter[str] = Counter()
        self.heard = 0.0
        self.final: list[int] | None = None
        self.status: str | None = None
        self._credit, self._beat = credit, beat
        self._taken = list(have)
        self._fresh: list[tuple[Block, Message]] = []
        self._chunks: list[tuple[int, int, bytearray] | None] = [None for _ in LANES]
        self._complained: list[tuple[tuple[int, int], float]] = [((0, 0), -1e9) for _ in LANES]
        self._out: deque[list[Buffer]] = deque()
        self._said = 0.0
        self._bye_said = False
        self._pings = itertools.count(1)

    @property
    def complete(self) -> bool:
        """Whether the source has ended and the store has all of it."""
        return self.final is not None and all(h >= f for h, f in zip(self.have, self.final, strict=True))

    @property
    def pending_bytes(self) -> int:
        """Bytes of a block that is still arriving."""
        return sum(len(part[2]) for part in self._chunks if part)

    def _places(self) -> dict[str, Any]:
        following = [
            [taken + 1, len(chunk[2]) if chunk and chunk[0] == taken + 1 else 0]
            for taken, chunk in zip(self._taken, self._chunks, strict=True)
        ]
        return {"have": list(self.have), "next": following}

    def receive(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        """Take one message of this source; what is wrong with it is counted and changes nothing."""
        self.heard = now
        try:
            self._receive(message, frames, now)
        except DecodeError as error:
            self.bad[error.kind] += 1
            # What was spoilt on the way has to come again.
            if message.kind in (Kind.BLOCK, Kind.CHUNK):
                self._complain(message.lane, now)

    def _receive(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        kind = message.kind
        if kind == Kind.HELLO:
            nonce = message.body.get("nonce")
            credit = {"bytes": self._credit[0], "records": self._credit[1]}
            self._chunks = [None for _ in LANES]  # it starts such a block anew
            self._say(Kind.WELCOME, {"nonce": nonce, "credit": credit, "beat": self._beat} | self._places(), now)
        elif kind == Kind.BLOCK:
            self._take(block_of(message, frames), message, now)
        elif kind == Kind.CHUNK:
            self._take_chunk(message, now)
        elif kind == Kind.GAP:
            self._take_gap(message, frames, now)
        elif kind == Kind.PING:
            self._say(Kind.PONG, {"id": message.body.get("id")} | self._places(), now)
        elif kind == Kind.GOODBYE:
            final = message.body.get("final")
            if not isinstance(final, list) or len(cast("list[object]", final)) != len(LANES):
                raise DecodeError("goodbye", "a goodbye without final numbers")
            numbers = [n for n in cast("list[object]", final) if type(n) is int and n >= 0]
            if len(numbers) != len(LANES):
                raise DecodeError("goodbye", "a goodbye without final numbers")
            self.final, self.status = numbers, str(message.body.get("status"))[:40]
            for lane, number in enumerate(numbers):
                if self._taken[lane] < number:
                    self._complain(lane, now)
            self._bye_said = False
            self._say_bye(now)

    def _take(self, block: Block, message: Message, now: float) -> None:
        lane, following = block.lane, self._taken[block.lane] + 1
        if block.last < following:
            self.duplicates += 1
            if block.last <= self.have[lane]:
                self._say(Kind.ACK, self._places(), now)
        elif block.first > following:
            self._complain(lane, now)
        elif block.first < following:
            raise DecodeError("sequence", f"a block {block.first}-{block.last} that begins before {following}")
        else:
            self._taken[lane] = block.last
            self._chunks[lane] = None
            self._fresh.append((block, message))

    def _take_chunk(self, message: Message, now: float) -> None:
        lane, seq = message.lane, message.seq
        at, total = message.body.get("at"), message.body.get("total")
        size = sum(len(piece) for piece in message.buffers)
        if type(at) is not int or type(total) is not int or not 0 < total <= MAX_BLOCK_BYTES or at < 0 or size == 0:
            raise DecodeError("chunk", "a chunk without place or size")
        held = self._chunks[lane]
        if seq <= self._taken[lane]:
            self.duplicates += 1
            return
        if at == 0 and seq == self._taken[lane] + 1 and (held is None or held[:2] != (seq, total)):
            held = self._chunks[lane] = (seq, total, bytearray())
        if held is None or held[:2] != (seq, total) or at > len(held[2]):
            self._complain(lane, now)
            return
        if at < len(held[2]):
            self.duplicates += 1
            return
        if at + size > total:
            self._chunks[lane] = None
            raise DecodeError("chunk", "a chunk past the end of its block")
        for piece in message.buffers:
            held[2].extend(piece)
        if len(held[2]) < total:
            self._say(Kind.ACK, self._places(), now)
            return
        self._chunks[lane] = None
        block, inner = decode_block(unpack_frames(held[2]))
        if block.sender != self.sender or block.lane != lane or block.first != seq:
            raise DecodeError("chunk", "chunks that hold another source's block")
        self._take(block, inner, now)

    def _take_gap(self, message: Message, frames: Sequence[Buffer], now: float) -> None:
        last, following = message.body.get("to"), self._taken[message.lane] + 1
        if type(last) is not int or last < message.seq:
            raise DecodeError("gap", "a gap without an end")
        if message.seq == following:
            count = last - message.seq + 1
            self._taken[message.lane] = last
            self.gaps += 1
            self._fresh.append((Block(self.sender, message.lane, message.seq, count, tuple(frames)), message))

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
        if blocks:
            self._say(Kind.ACK, self._places(), now)
            self._say_bye(now)

    def _say_bye(self, now: float) -> None:
        if self.complete and not self._bye_said:
            self._bye_said = True
            self._say(Kind.BYE_OK, self._places(), now)

    def due(self, now: float) -> Iterator[list[Buffer]]:
        """Yield what is to be sent to the source now."""
        if now - self._said >= self._beat:
            self._say(Kind.PING, {"id": next(self._pings)}, now)
        while self._out:
            yield self._out.popleft()

    def _say(self, kind: Kind, body: dict[str, Any], now: float) -> None:
        self._said = now
        self._out.append(encode_message(Message(kind, self.sender, body=body)))


def block_size(block: Block) -> int:
    """Bytes a block takes in the store."""
    return packed_size(block.frames)

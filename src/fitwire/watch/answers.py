"""What a viewer asks of a hub → the messages that answer it.

Viewers ask, the hub answers, and keeps nothing of them but the question: whoever asks again after a lost connection
says what he has and gets the rest. A question with nothing new to answer is held until there is, at most for
:data:`HOLD` seconds. No socket is known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from fitwire.errors import DecodeError, EncodeError, UnknownRun
from fitwire.events import MAX_TEXT_BYTES
from fitwire.protocol.blocks import (
    BULK,
    RECORDS,
    Buffer,
    Identity,
    Kind,
    Message,
    decode_json,
    encode_json,
    encode_message,
)
from fitwire.watch.roster import Roster
from fitwire.watch.store import SampleRef, Store
from fitwire.watch.stored import bulk_items, read_block
from fitwire.watch.summary import checked_summary

__all__ = ["HOLD", "Question", "answer", "parse_question", "refuse"]

HOLD = 2.0
"""Longest wait for news; then the answer says that there are none."""
PAGE_BYTES = 2**20
"""Blocks in one answer: the asker asks again when it has taken them, so a slow one is never flooded."""
PAGE_BLOCKS = 4000
"""The same in blocks: a socket keeps 10,000 messages for one that does not read."""
PIECE_BYTES = 2**20
TEXT_BYTES = 2**19
"""Of lines of runs, or of references to samples, in one answer, which is read as one JSON text of at most 1 MiB."""
MAX_SOURCES = 16_384

Heads = dict[tuple[int, int], tuple[int, int]]
"""(incarnation, rank) → highest sequence number of each lane."""


@dataclass(slots=True)
class Question:
    """One question of one viewer.

    Attributes:
        peer: Routing id of who asked.
        number: The asker's own, to tell answers apart.
        kind: ``"runs"``, ``"history"`` or ``"piece"``.
        since: The revision it knows.
        run: Which run, 16 bytes.
        have: Per source, the sequence numbers it has of each lane.
        piece: (incarnation, rank, lane, sequence number, offset) of bytes of a block.
        until: When it is answered all the same.
        seen: What stood when it was looked at and held: revisions of the history and of the line.
    """

    peer: bytes
    number: int
    kind: str
    since: int = 0
    run: bytes = bytes(16)
    have: Heads = field(default_factory=dict[Any, Any])
    piece: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    until: float = 0.0
    seen: tuple[int, int] = (-1, -1)


def _numbers(value: object, count: int) -> tuple[int, ...]:
    items: list[object] = cast("list[object]", value) if isinstance(value, list) else []
    if len(items) != count or not all(type(item) is int and 0 <= item < 2**63 for item in items):
        raise DecodeError("question", f"{str(items)[:60]} is not {count} numbers")
    return tuple(cast("list[int]", items))


def parse_question(peer: bytes, message: Message, now: float) -> Question:
    """Check what a viewer sent.

    Raises:
        DecodeError: It is no question.
    """
    body = message.body
    (number,) = _numbers([body.get("id")], 1)
    question = Question(peer, number, "runs", until=now + HOLD)
    if message.kind == Kind.RUNS:
        (question.since,) = _numbers([body.get("since")], 1)
        return question
    question.run = _run_id(body.get("run"))
    if "piece" in body:
        question.kind = "piece"
        question.piece = cast("tuple[int, int, int, int, int]", _numbers(body["piece"], 5))
        return question
    question.kind = "history"
    (question.since,) = _numbers([body.get("since", 0)], 1)
    # Of a job with many ranks and lives it does not fit into frame 1.
    told = decode_json(message.buffers[0], MAX_TEXT_BYTES) if message.buffers else body
    have = told.get("have")
    rows = cast("list[object]", have) if isinstance(have, list) else []
    if len(rows) > MAX_SOURCES:
        raise DecodeError("question", f"{len(rows)} sources")
    for row in rows:
        incarnation, rank, records, bulk = _numbers(row, 4)
        question.have[incarnation, rank] = (records, bulk)
    return question


def _run_id(value: object) -> bytes:
    try:
        run = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        run = b""
    if len(run) != 16:
        raise DecodeError("question", "no run id")
    return run


def answer(question: Question, roster: Roster, store: Store, now: float) -> Iterator[list[Buffer]] | None:
    """Answer now, or None to ask again later.

    Raises:
        StoreError: The database cannot be read; so may going through the answer.
    """
    return _ANSWERS[question.kind](question, roster, store, now)


def refuse(question: Question, reason: str) -> list[Buffer]:
    """The answer that there is none."""
    return _say(question, Kind.ERROR, {"reason": reason[:500]})


def _say(question: Question, kind: Kind, body: dict[str, Any], *buffers: Buffer) -> list[Buffer]:
    return encode_message(Message(kind, Identity(question.run), body={"id": question.number, **body}, buffers=buffers))


def _answer_runs(question: Question, roster: Roster, store: Store, now: float) -> Iterator[list[Buffer]] | None:
    revision, lines = roster.news(question.since)
    if not lines and question.since and now < question.until:
        return None
    page: list[bytes] = []
    size = 0
    for line in lines:
        text = _line_text(line)
        size += len(text) + 1
        if page and size > TEXT_BYTES:
            break
        page.append(text)
        question.since = line["revision"]
    more = len(page) < len(lines)
    body = {"revision": question.since if more else revision, "more": more}
    return iter([_say(question, Kind.RUNS, body, b'{"runs":[' + b",".join(page) + b"]}")])


def _line_text(line: dict[str, Any]) -> bytes:
    try:
        return encode_json(line)
    except EncodeError:  # one spoilt line must not hide all the others
        return encode_json(checked_summary({"id": line["id"], "revision": line["revision"]}))


def _answer_history(question: Question, roster: Roster, store: Store, now: float) -> Iterator[list[Buffer]] | None:
    with roster.changed:
        try:
            summary = roster.summary(question.run)
        except UnknownRun:
            return iter([refuse(question, "no such run")])
        history = roster.held(question.run)
        stands = (history.revision if history is not None else 0, int(summary["revision"]))
        if question.seen == stands and now < question.until:
            return None
        question.seen = stands
        heads = history.heads if history is not None else _stored_heads(store, question.run)
    behind = [key for key, head in heads.items() if any(map(int.__gt__, head, question.have.get(key, (0, 0))))]
    if not behind and summary["revision"] == question.since and now < question.until:
        return None
    return _page(question, store, sorted(behind), summary)


def _stored_heads(store: Store, run: bytes) -> Heads:
    """Of a run that does not go on: that somebody looks at it is no reason to load it here too."""
    found: Heads = {}
    for key in store.sources(run):
        sender = Identity(run, *key)
        found[key] = (store.have(sender, RECORDS), store.have(sender, BULK))
    return found


def _page(
    question: Question, store: Store, sources: list[tuple[int, int]], summary: dict[str, Any]
) -> Iterator[list[Buffer]]:
    """Blocks of records, and of what was given up of the samples; the last message holds the rest."""
    left, count, text_left, more = PAGE_BYTES, PAGE_BLOCKS, TEXT_BYTES, False
    refs: list[list[Any]] = []
    for incarnation, rank in sources:
        sender = Identity(question.run, incarnation, rank)
        records, bulk = question.have.get((incarnation, rank), (0, 0))
        for block in store.blocks(sender, RECORDS, records):
            if left <= 0 or count <= 0:
                more = True
                break
            _, frames = read_block(block)
            left, count = left - sum(map(len, frames)), count - 1
            yield list(frames)
        for item in bulk_items(store, sender, bulk):
            if text_left <= 0 or count <= -PAGE_BLOCKS:
                more = True
                break
            if isinstance(item, SampleRef):
                refs.append([incarnation, rank, item.seq, item.name, item.step, item.epoch, item.time, item.arrays])
                text_left -= len(encode_json({"": refs[-1]}))
            else:
                count -= 1
                yield list(read_block(item)[1])
    yield _say(question, Kind.ACK, {"more": more}, encode_json({"run": summary, "samples": refs}))


def _answer_piece(question: Question, roster: Roster, store: Store, now: float) -> Iterator[list[Buffer]]:
    incarnation, rank, lane, seq, at = question.piece
    found = store.piece(Identity(question.run, incarnation, rank), lane, seq, at, PIECE_BYTES)
    if found is None:
        yield refuse(question, "not in this store")
        return
    total, data = found
    yield _say(question, Kind.ACK, {"total": total, "at": at}, data)


_ANSWERS: dict[str, Any] = {"runs": _answer_runs, "history": _answer_history, "piece": _answer_piece}

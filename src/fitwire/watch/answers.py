"""What a viewer asks of a hub → the messages that answer it.

Viewers ask, the hub answers, and keeps nothing of them but the question: whoever asks again after a lost connection
says what he has and gets the rest. A question with nothing new to answer is held until there is, at most for
:data:`HOLD` seconds. No socket is known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from fitwire.errors import DecodeError, UnknownRun
from fitwire.protocol.blocks import (
    BULK,
    LANES,
    RECORDS,
    Buffer,
    Identity,
    Kind,
    Message,
    encode_json,
    encode_message,
    unpack_frames,
)
from fitwire.watch.roster import Roster
from fitwire.watch.store import Store

__all__ = ["HOLD", "Question", "answer", "parse_question"]

HOLD = 2.0
"""Longest wait for news; then the answer says that there are none."""
PAGE_BYTES = 2**20
"""Blocks in one answer: the asker asks again when it has taken them, so a slow one is never flooded."""
PIECE_BYTES = 2**20
RUNS_AT_ONCE = 100
REFS_BYTES = 2**19
"""Of references to samples in one answer, which is read as one JSON text of at most 1 MiB."""
MAX_SOURCES = 4096


@dataclass(slots=True)
class Question:
    """One question of one viewer.

    Attributes:
        peer: Routing id of who asked.
        number: The asker's own, to tell answers apart.
        kind: ``"runs"``, ``"history"`` or ``"piece"``.
        since: The revision it knows.
        run: Which run, 16 bytes.
        have: Per source (incarnation, rank), the sequence numbers it has of each lane.
        piece: (incarnation, rank, lane, first, offset) of bytes of a block.
        until: When it is answered all the same.
        seen: Revision of the history when it was held.
    """

    peer: bytes
    number: int
    kind: str
    since: int = 0
    run: bytes = bytes(16)
    have: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict[Any, Any])
    piece: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    until: float = 0.0
    seen: int = -1


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
    have = body.get("have")
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
    """Answer now, or None to ask again later."""
    return _ANSWERS[question.kind](question, roster, store, now)


def _say(question: Question, kind: Kind, body: dict[str, Any], *buffers: Buffer) -> list[Buffer]:
    return encode_message(Message(kind, Identity(question.run), body={"id": question.number, **body}, buffers=buffers))


def _answer_runs(question: Question, roster: Roster, store: Store, now: float) -> Iterator[list[Buffer]] | None:
    lines = [line for line in roster.summaries() if line["revision"] > question.since]
    if not lines and question.since and now < question.until:
        return None
    lines.sort(key=lambda line: line["revision"])
    page, revision = lines[:RUNS_AT_ONCE], roster.revision
    if len(lines) > RUNS_AT_ONCE:
        revision = page[-1]["revision"]
        page = [line for line in lines if line["revision"] <= revision]
    body = {"revision": revision, "more": len(page) < len(lines)}
    return iter([_say(question, Kind.RUNS, body, encode_json({"runs": page}))])


def _answer_history(question: Question, roster: Roster, store: Store, now: float) -> Iterator[list[Buffer]] | None:
    with roster.changed:
        try:
            summary = roster.summary(question.run)
        except UnknownRun:
            return iter([_say(question, Kind.ERROR, {"reason": "no such run"})])
        history = roster.history(store, question.run)
        if question.seen == history.revision and summary["revision"] == question.since and now < question.until:
            return None
        question.seen = history.revision
        behind = {
            key: head for key, head in history.heads.items()
            if head[RECORDS] > question.have.get(key, (0, 0))[RECORDS]
            or head[BULK] > question.have.get(key, (0, 0))[BULK]
        }  # fmt: skip
        if not behind and summary["revision"] == question.since and now < question.until:
            return None
    return _page(question, store, sorted(behind), summary)


def _page(
    question: Question, store: Store, sources: list[tuple[int, int]], summary: dict[str, Any]
) -> Iterator[list[Buffer]]:
    left, refs_left, more = PAGE_BYTES, REFS_BYTES, False
    refs: list[list[Any]] = []
    for incarnation, rank in sources:
        sender = Identity(question.run, incarnation, rank)
        records, bulk = question.have.get((incarnation, rank), (0, 0))
        for block in store.blocks(sender, RECORDS, records):
            if left <= 0:
                more = True
                break
            left -= len(block.blob)
            yield list(unpack_frames(block.blob))
        for ref in store.samples(sender, bulk):
            if refs_left <= 0:
                more = True
                break
            refs.append([incarnation, rank, ref.seq, ref.name, ref.step, ref.epoch, ref.time, ref.arrays])
            refs_left -= len(encode_json({"": refs[-1]}))
    body = {"more": more, "lanes": len(LANES)}
    yield _say(question, Kind.ACK, body, encode_json({"run": summary, "samples": refs}))


def _answer_piece(question: Question, roster: Roster, store: Store, now: float) -> Iterator[list[Buffer]]:
    incarnation, rank, lane, first, at = question.piece
    found = store.piece(Identity(question.run, incarnation, rank), lane, first, at, PIECE_BYTES)
    if found is None:
        yield _say(question, Kind.ERROR, {"reason": "not in this store"})
        return
    total, data = found
    yield _say(question, Kind.ACK, {"total": total, "at": at}, data)


_ANSWERS: dict[str, Any] = {"runs": _answer_runs, "history": _answer_history, "piece": _answer_piece}

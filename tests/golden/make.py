"""Write the golden messages: one file of hexadecimal digits for each kind, by version of the wire.

What is in them must be readable by every later version, and must be what this one writes. Run it when the wire gets a
new version, never to make a test pass::

    python tests/golden/make.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fitwire.events import (
    Alert,
    Command,
    CommandDone,
    Described,
    Dropped,
    Event,
    Log,
    RunEnded,
    RunStarted,
    Sample,
    encode_event,
    encode_rows,
)
from fitwire.protocol.blocks import (
    BULK,
    RECORDS,
    VERSION,
    Buffer,
    Identity,
    Kind,
    Message,
    encode_block,
    encode_message,
    pack_frames,
    slice_frames,
)

FOLDER = Path(__file__).parent / f"v{VERSION}"
ME = Identity(bytes(range(16)), 1_700_000_000, 3)
WALL_NS = 1_700_000_000_123_456_789
NAN, INF = float("nan"), float("inf")

PLACES: dict[str, Any] = {"session": 77, "have": [250, 2], "next": [[257, 0], [3, 1_048_576]]}
BODIES: dict[Kind, dict[str, Any]] = {
    Kind.HELLO: {
        "name": "calm-fox-7", "project": "cells", "versions": [1], "role": "source", "nonce": 1,
        "head": [256, 3], "first": [1, 1],
    },
    Kind.WELCOME: {"nonce": 1, "credit": {"bytes": 4_194_304, "records": 65_536}, "beat": 2.0} | PLACES,
    Kind.REJECT: {"reason": "superseded", "newer": 1_700_000_001},
    Kind.ACK: PLACES | {"gap": 1},
    Kind.FETCH: {"id": 5, "run": ME.run.hex(), "have": [[1_700_000_000, 3, 250, 2]]},
    Kind.GAP: {"to": 12, "reason": "already delivered to another store"},
    Kind.PING: {"id": 9, "sent": [[257, 0], [4, 0]]},
    Kind.PONG: {"id": 9} | PLACES,
    Kind.GOODBYE: {"status": "finished", "final": [256, 3]},
    Kind.BYE_OK: PLACES,
    Kind.COMMAND: {
        "id": 3, "client": "0a" * 16, "number": 1, "name": "set", "arguments": {"name": "lr", "value": 0.0001},
        "author": "anna@desk", "asked": 1.5, "expires": 59.75,
    },
    Kind.COMMAND_ACK: {"client": "0a" * 16, "number": 1, "status": "refused", "reason": "lr goes 0 to 1, not 5"},
    Kind.COMMAND_DONE: {"client": "0a", "id": 1, "status": "applied", "step": 41},
    Kind.ERROR: {"id": 5, "reason": "no such run"},
    Kind.RUNS: {"id": 4, "since": 0},
}  # fmt: skip

EVENTS: dict[str, Event] = {
    "run_started": RunStarted(
        time=1.5, rank=3, name="calm-fox-7", project="cells", group="folds", tags=("a", "ü"),
        config={"lr": 0.001, "layers": [3, 4]}, info={"framework": "keras", "totals": {"epochs": 2, "steps": None}},
    ),
    "described": Described(time=2.0, rank=3, step=4, what="summary", values={"best": 0.5}),
    "described_long": Described(time=2.0, rank=3, what="info", values={"model": "x" * 1100}),
    "log": Log(time=2.5, rank=3, step=5, text="Grüße ✓", level="debug"),
    "alert": Alert(time=3.0, rank=3, step=6, title="loss is NaN", text="at step 6", level="error"),
    "run_ended": RunEnded(time=4.0, rank=3, step=7, status="failed", reason="ValueError: x", traceback="Traceback …"),
    "command": Command(
        time=4.5, rank=3, step=7, client="0a" * 16, number=1, name="set", arguments={"name": "lr", "value": 0.0001},
        author="anna@desk", asked=4.0,
    ),
    "command_done": CommandDone(
        time=4.6, rank=3, step=8, client="0a" * 16, number=1, name="set", status="applied", before=0.001, after=0.0001,
        author="anna@desk",
    ),
    "dropped": Dropped(time=5.0, rank=3, count=17, what="metrics", reason="no hub took it in time"),
    "sample": Sample(
        time=6.0, rank=3, step=8, epoch=1, name="masks",
        arrays={
            "image": np.arange(8, dtype=np.uint8).reshape(2, 2, 2),
            "prediction": np.array([[0.5, NAN], [-INF, 0.25]], dtype=np.float16),
            "text": np.array([["a"], ["ßx"]]),
        },
    ),
}  # fmt: skip
ROWS = [(0.0, 0.0, 0.0, 1.25), (1.0, NAN, NAN, 1.5)]
VALUES = [[0.5, NAN], [INF, -0.0]]


def messages() -> dict[str, list[Buffer]]:
    """Every golden message as frames, by name."""
    made: dict[str, list[Buffer]] = {}
    for kind, body in BODIES.items():
        lane, seq = (RECORDS, 3) if kind == Kind.GAP else (RECORDS, 0)
        made[kind.name.lower()] = encode_message(Message(kind, ME, lane, seq, WALL_NS, body))
    part, buffers = encode_rows(["loss", "acc"], "batch", ROWS, VALUES)
    metrics = encode_block(ME, RECORDS, 257, WALL_NS, [part | {"b": len(buffers)}], buffers)
    made["block_metrics"] = list(metrics.frames)
    for name, event in EVENTS.items():
        part, buffers = encode_event(event)
        lane = BULK if name == "sample" else RECORDS
        made[f"block_{name}"] = list(encode_block(ME, lane, 5, WALL_NS, [part | {"b": len(buffers)}], buffers).frames)
    pieces = tuple(slice_frames(made["block_sample"], 10, 100))
    made["chunk"] = encode_message(Message(Kind.CHUNK, ME, BULK, 5, 0, {"at": 10, "total": 900, "n": 1}, pieces))
    return made


def path_of(name: str) -> Path:
    """Where a golden message lies."""
    return FOLDER / f"{name}.hex"


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    for name, frames in messages().items():
        digits = pack_frames(frames).hex()
        path_of(name).write_text("\n".join(digits[i : i + 96] for i in range(0, len(digits), 96)) + "\n")


if __name__ == "__main__":
    main()

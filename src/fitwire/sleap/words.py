"""The messages of SLEAP's two wires, one JSON object each, and where they travel.

Progress goes from the trainer to the window (port 9001): ``{"what", "event", "epoch"|"batch", "logs"}``. Control goes
back (port 9000): ``{"command": "stop"}`` or ``{"command": "set_lr", "lr": number}``. Both ends of the originals decode
with jsonpickle; plain JSON is all that is written here, and all that they need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from fitwire.errors import DecodeError, UsageError
from fitwire.events import MAX_NAME, WHOLE
from fitwire.protocol.tagged import decode_tagged
from fitwire.transport.address import two_ports

__all__ = ["PORTS", "Dialect", "Order", "Word", "parse_ports", "read_order", "read_word", "write_order", "write_word"]

PORTS = (9001, 9000)
"""SLEAP's: progress to the first, control from the second; the window binds both."""
MAX_METRICS = 1024
"""In one message."""
MAX_TEXT = 200
BY = "fitwire"
"""Under the key ``by``, which no original has or looks at."""

EVENTS = frozenset({
    "train_begin", "epoch_begin", "batch_begin", "batch_start", "batch_end", "epoch_end", "train_end",
})  # fmt: skip


class Dialect(StrEnum):
    """Who speaks."""

    KERAS = "sleap"  # SLEAP up to 1.4
    NN = "sleap-nn"  # what trains for SLEAP from 1.5 on
    OURS = "fitwire"  # a fitwire training with wire="sleap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One message of a trainer.

    Attributes:
        event: One of ``EVENTS``.
        what: Which model is trained, as the trainer says; the originals leave it empty or ``"not_set"``.
        dialect: Whose message it looks like; None where both would say it so.
        epoch: From 0; None where the message has none.
        batch: Within its epoch, from 0; None likewise.
        logs: Name to number; NaN and infinities as they were.
        url: Of the run at Weights & Biases, if it says so.
        name: Of the run, if a fitwire training says so.
        odd: Values that were no numbers.
    """

    event: str
    what: str = ""
    dialect: Dialect | None = None
    epoch: int | None = None
    batch: int | None = None
    logs: Mapping[str, float]
    url: str = ""
    name: str = ""
    odd: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """One message of a window.

    Attributes:
        name: ``"stop"`` or ``"set_lr"``.
        lr: The learning rate to be set; None for a stop.
    """

    name: str
    lr: float | None = None


def parse_ports(address: str | None) -> tuple[str, str]:
    """Where progress is sent to, and where control comes from, as ZeroMQ writes it.

    Args:
        address: ``tcp://127.0.0.1:9001,9000``, progress first; None or empty for that.

    Raises:
        AddressError: Malformed, or beyond this machine: these sockets know no keys.
    """
    return two_ports((address or "").strip(), "sleap", PORTS, "-R -R")


# -- progress


def read_word(frame: bytes) -> Word:
    """What a trainer said.

    Raises:
        DecodeError: Nothing that a trainer of SLEAP says.
    """
    said: object = decode_tagged(frame)
    if not isinstance(said, dict):
        raise DecodeError("object", f"not an object: {frame[:40]!r}")
    fields = cast("dict[str, Any]", said)
    event = fields.get("event")
    if not isinstance(event, str) or event not in EVENTS:
        raise DecodeError("event", f"event {str(event)[:40]!r} is none of a trainer's")
    logs, odd = _numbers(fields.get("logs"))
    return Word(
        event=event, what=_text(fields.get("what")), dialect=_dialect(fields), epoch=_index(fields.get("epoch")),
        batch=_index(fields.get("batch")), logs=logs, url=_text(fields.get("wandb_url")),
        name=_text(fields.get("name")) if fields.get("by") == BY else "", odd=odd,
    )  # fmt: skip


def _dialect(fields: Mapping[str, Any]) -> Dialect | None:
    """By the marks in which the two differ; an end of an epoch, say, may bear none."""
    if fields.get("by") == BY:
        return Dialect.OURS
    event, logs = fields["event"], fields.get("logs")
    if event == "batch_start" or "wandb_url" in fields or (event == "batch_end" and "epoch" in fields):
        return Dialect.NN
    if event in ("batch_begin", "batch_end"):
        return Dialect.KERAS
    if event in ("train_begin", "epoch_begin"):
        return Dialect.KERAS if isinstance(logs, dict) else Dialect.NN
    if isinstance(logs, dict) and any("/" in str(name) for name in cast("dict[Any, Any]", logs)):
        return Dialect.NN
    return None


def _numbers(logs: object) -> tuple[dict[str, float], int]:
    found: dict[str, float] = {}
    odd = 0
    for name, value in cast("dict[Any, Any]", logs).items() if isinstance(logs, dict) else ():
        try:
            if not isinstance(value, (int, float)) or not 0 < len(name) <= MAX_NAME or len(found) >= MAX_METRICS:
                raise TypeError
            name.encode()  # half of a character has no place in a block
            found[name] = float(value)
        except (TypeError, ValueError, OverflowError):
            odd += 1
    return found, odd


def _index(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < WHOLE else None


def _text(value: object) -> str:
    return value[:MAX_TEXT].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def write_word(event: str, what: str, logs: Mapping[str, float] | None = None, **fields: Any) -> bytes:
    """A message that every generation of LossViewer, and sleap-rtc, can read."""
    return json.dumps({"what": what, "event": event, **fields, "logs": dict(logs or {}), "by": BY}).encode()


# -- control


def read_order(frame: bytes) -> Order:
    """What a window asked for.

    Raises:
        DecodeError: Nothing that is known here.
    """
    said: object = decode_tagged(frame)
    command = cast("dict[str, Any]", said).get("command") if isinstance(said, dict) else None
    if command == "stop":
        return Order("stop")
    if command == "set_lr":
        lr = cast("dict[str, Any]", said).get("lr")
        if isinstance(lr, (int, float)) and not isinstance(lr, bool) and 0 <= lr < math.inf:
            return Order("set_lr", float(lr))
    raise DecodeError("command", f"command {str(command)[:40]!r} is none of a window's")


def write_order(order: Order) -> bytes:
    """A command as the original trainers read it; nothing else may ever be sent to them, for it would end them.

    Raises:
        UsageError: It is none of theirs, or the learning rate is none.
    """
    if order.name == "stop":
        return json.dumps({"command": "stop"}).encode()
    lr = order.lr
    if order.name != "set_lr":
        raise UsageError(f"SLEAP's trainers know 'stop' and 'set_lr', not {order.name[:40]!r}")
    if not isinstance(lr, float) or not 0 <= lr < math.inf:
        raise UsageError(f"lr={lr}: pass a learning rate, a finite number from 0")
    return json.dumps({"command": "set_lr", "lr": lr}).encode()

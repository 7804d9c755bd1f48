"""One end of a plain pair, for tests: ours, or one shaped like the original out of nothing but PUB and SUB sockets.

Run as a script it is a process of its own: ``message_end.py KIND ROLE SEND_PORT REC_PORT [PLAN]``.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

import numpy as np
import zmq

AWKWARD: dict[str, np.ndarray[Any, Any]] = {
    "float16": np.array([[0.5, -1.0], [np.nan, np.inf]], dtype=np.float16),
    "big-endian": np.arange(6, dtype=">f8").reshape(2, 3),
    "unicode": np.array(["loss", "", "größe"]),
    "bytes": np.array([b"ab", b"", b"abc"]),
    "datetime64": np.array(["2024-02-29", "NaT"], dtype="datetime64[ns]"),
    "bool": np.array([True, False, True]),
    "complex": np.array([1 + 2j, complex(np.nan, -0.0)]),
    "void": np.array([b"\x01\x02\x03", b"\xff\x00\xff"], dtype="V3"),
    "0-d": np.array(3.5),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4)),
    "strided": np.arange(40, dtype=np.uint16).reshape(5, 8)[::-2, 1::3],
    "read-only": np.broadcast_to(np.arange(3.0), (2, 3)),
}
DICTS = 300


def fingerprint(array: np.ndarray[Any, Any]) -> list[object]:
    """What must be equal: dtype, shape, and every element's bytes in C order."""
    return [array.dtype.str, list(array.shape), array.tobytes(order="C").hex()]


class SeedSender:
    """The original's sending end as its contract describes it."""

    def __init__(self, send_port: int, rec_port: int) -> None:
        self.context = zmq.Context()
        self.out, self.replies = self.context.socket(zmq.PUB), self.context.socket(zmq.SUB)
        self.out.connect(f"tcp://127.0.0.1:{send_port}")
        self.replies.subscribe("")
        self.replies.bind(f"tcp://127.0.0.1:{rec_port}")

    def send_handshake(self, seconds: float = 30) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.send_dict({"type": "handshake request"})
            if self.replies.poll(10) and json.loads(self.replies.recv()).get("type") == "handshake reply":
                return True
            time.sleep(0.1)
        return False

    def send_dict(self, data: dict[str, Any]) -> None:
        self.out.send(json.dumps(data).encode())

    def send_array(self, header: dict[str, Any], array: np.ndarray[Any, Any]) -> None:
        # Only C order: the original scrambles the others.
        header = {**header, "dtype": str(array.dtype), "shape": array.shape}
        self.out.send_multipart([json.dumps(header).encode(), np.array(array, order="C").tobytes()])

    def close(self) -> None:
        self.out.close(linger=5000)
        self.replies.close(linger=0)
        self.context.term()


class SeedReceiver:
    """The original's receiving end: it reads only while it is asked to, and answers each request once."""

    def __init__(self, send_port: int, rec_port: int) -> None:
        self.context = zmq.Context()
        self.out, self.messages = self.context.socket(zmq.PUB), self.context.socket(zmq.SUB)
        self.out.connect(f"tcp://127.0.0.1:{send_port}")
        self.messages.subscribe("")
        self.messages.bind(f"tcp://127.0.0.1:{rec_port}")

    def receive_handshake(self, seconds: float = 30) -> bool:
        if not self.messages.poll(int(seconds * 1000)):
            return False
        assert json.loads(self.messages.recv())["type"] == "handshake request"
        self.out.send(b'{"type": "handshake reply"}')
        return True

    def check_message(self, timeout: int = 10) -> dict[str, Any] | None:
        while self.messages.poll(timeout):
            message = json.loads(self.messages.recv())
            if message.get("type") == "handshake request":
                self.out.send(b'{"type": "handshake reply"}')
                continue
            if "dtype" in message and "shape" in message:
                values = np.frombuffer(self.messages.recv(), dtype=message["dtype"])
                message["ndarray"] = values.reshape(message["shape"])
            return message
        return None

    def close(self) -> None:
        self.out.close(linger=500)
        self.messages.close(linger=0)
        self.context.term()


def tell(end: Any) -> None:
    """Send the whole programme."""
    for number in range(DICTS):
        end.send_dict({"number": number})
    for name, array in AWKWARD.items():
        end.send_array({"name": name}, array)
    end.send_dict({"end": True})


def summary(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What arrived, in a form that can be printed and compared."""
    arrays = [[m["name"], *fingerprint(m["ndarray"])] for m in messages if "name" in m]
    return {"numbers": [m["number"] for m in messages if "number" in m], "arrays": arrays}


EXPECTED = {
    "numbers": list(range(DICTS)),
    "arrays": [[name, *fingerprint(array)] for name, array in AWKWARD.items()],
}


def _make(kind: str, role: str, send_port: int, rec_port: int) -> Any:
    if kind == "seed":
        return (SeedSender if role == "send" else SeedReceiver)(send_port, rec_port)
    from fitwire.message import PairedReceiver, PairedSender

    end = (PairedSender if role == "send" else PairedReceiver).from_tcp_ports(send_port, rec_port)
    end.setup()
    return end


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


def main(kind: str, role: str, send_port: int, rec_port: int, plan: str) -> None:
    end = _make(kind, role, send_port, rec_port)
    _say("up")
    if role == "receive":
        _say(end.receive_handshake(30))
        while plan == "handshake only" and not select.select([sys.stdin], [], [], 0)[0]:
            end.check_message(20)  # the original answers only while it looks
        messages: list[dict[str, Any]] = []
        while plan == "all" and not (messages and "end" in messages[-1]):
            message = end.check_message(1000)
            messages += [message] if message is not None else []
        _say(summary(messages))
        end.close()
        return
    if plan == "again":  # a first receiver is to come and go
        _say(end.send_handshake(30))
        sys.stdin.readline()
    if plan != "blind":
        _say(end.send_handshake(30))
    if plan == "dicts":
        for number in range(2000):
            end.send_dict({"number": number})
    elif plan in ("arrays", "exit"):
        for number in range(60):
            end.send_array({"number": number}, np.full(32_768, number, dtype=np.float64))
    elif plan == "idle":
        sys.stdin.readline()
    else:
        tell(end)
    if plan != "exit":
        end.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])

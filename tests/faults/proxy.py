"""A bad line on loopback: TCP between a trainer and its hub that delays, stalls, breaks, crawls and lies.

Knows as much of ZMTP (ZeroMQ's framing, https://rfc.zeromq.org/spec/23/) as it takes to spoil what was said and leave
the framing alone, so that each spoilt message can be counted at the other end.
"""

from __future__ import annotations

import queue
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

__all__ = ["BadLine"]

GREETING = 64
"""Bytes before the first ZMTP frame."""


class _Spoiler:
    """Follows the frames of one direction and flips a bit in the body of one message out of so many."""

    def __init__(self, flips: Callable[[], bool], chance: random.Random) -> None:
        self._flips, self._chance = flips, chance
        self._skip = GREETING
        self._head = bytearray()
        self._body = 0
        self._at: int | None = None
        self._in_message = self._spoils = False
        self.done = 0

    def pass_on(self, data: bytes) -> bytes:
        out = bytearray(data)
        at = 0
        while at < len(out):
            if self._skip:
                taken = min(self._skip, len(out) - at)
                self._skip -= taken
                at += taken
            elif self._body:
                taken = min(self._body, len(out) - at)
                if self._at is not None and self._at < taken:
                    out[at + self._at] ^= 1 << self._chance.randrange(8)
                    self.done += 1
                    self._at = None
                elif self._at is not None:
                    self._at -= taken
                self._body -= taken
                at += taken
            else:
                self._head.append(out[at])
                at += 1
                self._begin_frame()
        return bytes(out)

    def _begin_frame(self) -> None:
        flags = self._head[0]
        if len(self._head) < (9 if flags & 2 else 2):
            return
        self._body = struct.unpack(">Q", self._head[1:9])[0] if flags & 2 else self._head[1]
        self._head.clear()
        if flags & 4:  # a command of ZMTP's own: heartbeats
            return
        if not self._in_message:
            self._spoils = self._flips()
        self._in_message = bool(flags & 1)
        # One bit a message, in whichever of its frames chance picks; the last takes it if no other did.
        if self._spoils and self._body and (not self._in_message or self._chance.random() < 0.5):
            self._at = self._chance.randrange(self._body)
            self._spoils = False


class _Line:
    """One connection through the proxy: two directions, a reader and a writer thread each."""

    def __init__(self, proxy: BadLine, near: socket.socket, far: socket.socket) -> None:
        self.proxy = proxy
        self.ends = (near, far)
        self.dead = False
        self.spoilers: list[_Spoiler] = []
        for upwards, (source, sink) in ((True, (near, far)), (False, (far, near))):
            ready: queue.Queue[tuple[float, bytes] | None] = queue.Queue(maxsize=2000)
            spoiler = _Spoiler(lambda up=upwards: proxy.draws_flip(up), proxy.chance)
            self.spoilers.append(spoiler)
            for work in (self._read, self._write):
                threading.Thread(target=work, args=(source, sink, ready, spoiler), daemon=True).start()

    def _read(self, source: socket.socket, sink: socket.socket, ready: queue.Queue, spoiler: _Spoiler) -> None:
        try:
            while not self.proxy.closed:
                # Not in recv: a socket that somebody reads from would send its RST only afterwards.
                if not select.select([source], [], [], 0.05)[0]:
                    continue
                # Little at a time through a slow line: what is in here is under way, and cannot be taken back.
                data = source.recv(4096 if self.proxy.rate else 65536)
                if not data:
                    break
                ready.put((time.monotonic() + self.proxy.delay, self.proxy.scramble(spoiler.pass_on(data))))
        except (OSError, ValueError):  # closed, by the other thread or by us
            pass
        ready.put(None)

    def _write(self, source: socket.socket, sink: socket.socket, ready: queue.Queue, spoiler: _Spoiler) -> None:
        while (item := ready.get()) is not None:
            due, data = item
            time.sleep(max(0.0, due - time.monotonic()))
            while not self.proxy.closed and (self.dead or self.proxy.hole.is_set()):
                time.sleep(0.005)
            try:
                self._write_out(sink, data)
            except OSError:
                break
        if not self.dead:
            self.close()

    def _write_out(self, sink: socket.socket, data: bytes) -> None:
        piece = self.proxy.piece or len(data)
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            sink.sendall(part)
            if self.proxy.rate:
                time.sleep(len(part) / self.proxy.rate)

    def close(self, *, reset: bool = False) -> None:
        for end in self.ends:
            try:
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            if reset:
                end.close()


class BadLine:
    """A listener on loopback in front of a hub's port.

    Args:
        port: Of the hub.
        chance: To draw from.

    Attributes:
        port: To connect to.
        delay: Seconds that each byte is under way, each direction.
        rate: Bytes a second, each direction; 0 for no bound.
        piece: Bytes in one write; 0 for as they come.
        hole: While set, what comes in goes nowhere, and nothing says so.
        flip_every: Of so many messages upwards, one has a bit flipped in its body; 0 for none.
        scramble_every: Of so many bytes, one has a bit flipped, framing and all; 0 for none.
        accepted: Connections so far.
    """

    def __init__(self, port: int, chance: random.Random) -> None:
        self._target, self.chance = port, chance
        self.delay = 0.0
        self.rate = self.piece = self.flip_every = self.scramble_every = 0
        self.hole = threading.Event()
        self.accepted = 0
        self.scrambled = 0
        self.closed = False
        self._lines: list[_Line] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def flipped(self) -> int:
        """Messages that were spoilt, each by one bit."""
        return sum(spoiler.done for line in self._lines for spoiler in line.spoilers)

    def _accept(self) -> None:
        while not self.closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            self._lines.append(_Line(self, near, far))

    def draws_flip(self, upwards: bool) -> bool:
        """Whether the message that begins now is to be spoilt."""
        return bool(upwards and self.flip_every and self.chance.random() < 1 / self.flip_every)

    def scramble(self, data: bytes) -> bytes:
        """Flip bits anywhere, framing and all."""
        if not self.scramble_every:
            return data
        out = bytearray(data)
        at = int(self.chance.expovariate(1 / self.scramble_every))
        while at < len(out):
            out[at] ^= 1 << self.chance.randrange(8)
            self.scrambled += 1
            at += 1 + int(self.chance.expovariate(1 / self.scramble_every))
        return bytes(out)

    def reset(self) -> None:
        """Break every connection with RST."""
        self._end(lambda line: line.close(reset=True))

    def half_close(self) -> None:
        """Tell both ends that the other has no more to say."""
        self._end(_Line.close)

    def half_open(self) -> None:
        """Every connection stands on, and nothing comes through any more: a host that lost its power."""
        for line in self._lines:
            line.dead = True

    def _end(self, how: Callable[[_Line], None]) -> None:
        for line in self._lines:
            how(line)

    def close(self) -> None:
        self.closed = True
        self._listener.close()
        for line in self._lines:
            line.close(reset=True)

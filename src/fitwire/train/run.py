"""``Run``: what a training says of itself, from any framework or none.

On the training thread a call checks and appends; the rest is the I/O thread's. This module knows no framework.
"""

from __future__ import annotations

import logging
import operator
import os
import platform
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Literal, cast

from fitwire._version import __version__
from fitwire.errors import FitwireError, HandshakeTimeout, UsageError
from fitwire.events import (
    MAX_NAME,
    Alert,
    Described,
    Event,
    Log,
    Per,
    RunEnded,
    RunStarted,
    Sample,
)
from fitwire.protocol.arrays import Array, encode_array
from fitwire.train import ending
from fitwire.train.packer import Row
from fitwire.train.settings import Settings, new_run_id, next_identity, ranks_from_environment, run_id_of
from fitwire.train.system import SystemGauges
from fitwire.train.uplink import LateRow, Mark, Uplink
from fitwire.train.values import Late, as_array, as_number, plain
from fitwire.transport.address import resolve
from fitwire.transport.process import generation, host_key, spawn, started_at

__all__ = ["Run"]

logger = logging.getLogger("fitwire")

MAX_LATE = 64
"""Rows that may wait for their device; then the oldest is read, whether it is done or not."""

_mono, _now = time.monotonic, time.time


class Settable(MutableMapping[str, Any]):
    """A mapping whose changes are told to watchers: ``run.config`` and ``run.summary``."""

    def __init__(self, values: Mapping[str, Any], told: Callable[[dict[str, Any]], None]) -> None:
        self._values: dict[str, Any] = {str(key): plain(value) for key, value in values.items()}
        self._told = told

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        raise UsageError(f"{key!r} cannot be taken back: watchers have it; set it to None")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def update(self, *args: Any, **values: Any) -> None:
        """Set several values in one message."""
        changed: dict[str, Any] = {str(key): plain(value) for key, value in dict(*args, **values).items()}
        self._values.update(changed)
        if changed:
            self._told(changed)


class Run:
    """One training that is being told of.

    Made by ``fitwire.init`` or by a callback; starts at once, and never waits for anybody unless ``wait`` says so.
    Usable as a context manager: an exception inside ends it as failed, with the traceback.

    Args:
        settings: How it is to be watched.
        info: What is known of it: ``framework``, ``versions``, ``totals`` and so on; plain values.
        rank: Process of a distributed training; None to ask the launcher's environment.
        world_size: Number of those processes.
        shared_id: Text of an id that all ranks share; None to ask the environment.

    Attributes:
        id: 32 hexadecimal digits.
        name: For people.
        rank: Process of a distributed training, 0 else.
        status: None while it goes on, then ``finished``, ``failed`` or ``interrupted``.
        thread: Identifier of the thread that made it.
        status_at_exit: What it counts as when the process ends without a word.
        warnings: What went wrong with the monitoring, counted by kind.
    """

    def __init__(
        self,
        settings: Settings,
        info: Mapping[str, Any] | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        shared_id: str | None = None,
    ) -> None:
        found_rank, found_size, found_id = (0, 1, None) if rank is not None else ranks_from_environment()
        self.rank = found_rank if rank is None else rank
        size = found_size if world_size is None else world_size
        text = settings.run_id or shared_id or found_id
        fresh = text is None or (settings.resume == "never" and settings.run_id is not None)
        run = new_run_id() if fresh else run_id_of(str(text))
        sender = next_identity(run, self.rank)
        self.id = run.hex()
        self.name = settings.named()
        self.status: str | None = None
        self.thread = threading.get_ident()
        self.status_at_exit: Literal["finished", "interrupted"] = "finished"
        self.warnings: Counter[str] = Counter()
        self.settings = settings
        self.config = Settable(settings.config or {}, lambda changed: self._say_described("config", changed))
        self.summary = Settable({}, lambda changed: self._say_described("summary", changed))
        self._born = generation()
        self._mute = settings.mode == "disabled"
        self._strict = settings.strict
        self._step = -1
        self._late: deque[LateRow] = deque()
        self._bad_names: set[str] = set()
        self._ending = threading.Lock()
        self._queue: deque[Any] = deque()
        self._uplink: Uplink | None = None
        self._gauges: SystemGauges | None = None
        if self._mute:
            return
        hello = {
            "name": self.name, "project": settings.project, "host": socket.gethostname()[:MAX_NAME],
            "host_key": host_key()[:MAX_NAME], "pid": os.getpid(), "pid_started": started_at(os.getpid()),
            "world_size": size, "fitwire": __version__, "can": [],
        }  # fmt: skip
        found = {
            "host": hello["host"], "pid": hello["pid"], "world_size": size, "fitwire": __version__,
            "python": platform.python_version(), "platform": platform.platform(),
        }  # fmt: skip
        self._start(sender, hello, found | cast("dict[str, Any]", plain(dict(info or {}))))

    def _start(self, sender: Any, hello: dict[str, Any], info: dict[str, Any]) -> None:
        settings = self.settings
        if settings.wire == "pair":
            from fitwire.train.pairlink import PairUplink

            uplink: Any = PairUplink(settings.address, self._warn, run=self.name)
            place = str(uplink.address)
        else:
            address = resolve(settings.address)
            uplink = Uplink(sender, hello, address, self._warn)
            place = address.text
        self._uplink = cast(Uplink, uplink)
        self._queue = uplink.queue
        self._append_event(
            RunStarted(
                time=_now(), rank=self.rank, name=self.name, project=str(settings.project), group=settings.group,
                tags=tuple(settings.tags), config=dict(self.config), info=info,
            )
        )  # fmt: skip
        uplink.start()
        self._gauges = SystemGauges(self._gauge)
        ending.watch(self)
        if self.rank == 0:
            at = "" if settings.address is None and "FITWIRE_ADDRESS" not in os.environ else f" {place}"
            how = f"fitwire watch{at}" if settings.wire == "fw" else f"a PairedReceiver at {place}"
            _say("info", f"run {self.name} · watch it with {how}")
        if settings.wait > 0 and not uplink.greeted.wait(settings.wait):
            timeout = HandshakeTimeout(place, settings.wait)
            if settings.strict:
                self.finish("failed", reason="no hub answered")
                raise timeout
            self._warn("handshake", f"{timeout}; training on, unwatched for now")

    # -- what the training thread calls

    def log(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        epoch: int | None = None,
        batch: int | None = None,
    ) -> None:
        """Say what was measured at a step.

        Args:
            values: Name to number: Python or numpy numbers, or arrays and tensors of one element. Good values are kept
                when others are not; of each bad name one warning is given.
            step: Index of the last optimizer step done, from 0; None for one more than the last.
            epoch: From 0. Given without ``step`` and ``batch``, the values are those of a whole epoch.
            batch: Within its epoch, from 0.

        Raises:
            UsageError: With ``strict=True``, a name or value that cannot be logged.
        """
        if self._mute or generation() != self._born:
            self._unheard()
            return
        per: Per = "batch"
        if step is None:
            if epoch is not None and batch is None:
                per, step = "epoch", max(self._step, 0)
            else:
                step = self._step + 1
        elif type(step) is not int:
            step = self._index("step", step)
        self._step = step
        if self._late:
            self._settle()
        for value in values.values():
            if type(value) is not float:
                self._log_slowly(values, step, epoch, batch, per)
                return
        if self._strict:
            self._log_slowly(values, step, epoch, batch, per)
            return
        self._queue.append(Row(_now(), step, epoch, batch, per, dict(values)))

    def end_epoch(self, values: Mapping[str, Any], epoch: int, step: int | None = None) -> None:
        """Say what an epoch came to; ``step`` is the last optimizer step done in it, None for the last logged."""
        if self._mute or generation() != self._born:
            self._unheard()
            return
        self._settle(force=True)
        if step is not None:
            self._step = self._index("step", step)
        self._log_slowly(values, max(self._step, 0), epoch, None, "epoch")

    def sample(
        self,
        name: str,
        *,
        step: int | None = None,
        epoch: int | None = None,
        image: Any = None,
        target: Any = None,
        prediction: Any = None,
        mask: Any = None,
        heatmap: Any = None,
        keypoints: Any = None,
        boxes: Any = None,
        series: Any = None,
        classes: Any = None,
        text: Any = None,
        **arrays: Any,
    ) -> None:
        """Send arrays of a few examples, as they are; each is copied once, here.

        Args:
            name: What it shows, e.g. ``"masks"``.
            step: Index of the last optimizer step done; None for the last logged.
            epoch: From 0.
            image: Shape ``(examples, ...)``, like all others; any real or complex dtype up to 64 bits a part.
            target: What the model should have said.
            prediction: What it said; a mapping for several outputs.
            mask: Drawn over the image.
            heatmap: Drawn as intensity.
            keypoints: ``(examples, points, 2)``, in pixels of the image.
            boxes: ``(examples, boxes, 4)``, in pixels: left, top, right, bottom.
            series: Drawn as lines.
            classes: Probabilities or scores, ``(examples, classes)``.
            text: A list of str, one for each example.
            arrays: More, by names of your own.

        Raises:
            UsageError: With ``strict=True``, what cannot be sent.
        """
        if self._mute or generation() != self._born:
            self._unheard()
            return
        given = {
            "image": image, "target": target, "prediction": prediction, "mask": mask, "heatmap": heatmap,
            "keypoints": keypoints, "boxes": boxes, "series": series, "classes": classes, "text": text, **arrays,
        }  # fmt: skip
        owned: dict[str, Array] = {}
        for key, value in _flat(given):
            try:
                owned[key] = as_array(value)
                if key != "text":
                    encode_array(owned[key])  # refuses by name, before it is accepted
            except (TypeError, ValueError) as error:
                owned.pop(key, None)
                self._bad(f"sample {name}: {key}", str(error))
        if not owned:
            return
        try:
            at = max(self._step, 0) if step is None else self._index("step", step)
            self._append_event(Sample(time=_now(), rank=self.rank, step=at, epoch=epoch, name=name, arrays=owned))
        except ValueError as error:
            self._bad(f"sample {name}", str(error))

    def note(self, text: str, level: Literal["debug", "info", "warning", "error"] = "info") -> None:
        """Send a line of text; ``level`` is ``debug``, ``info``, ``warning`` or ``error``."""
        if self._mute or generation() != self._born:
            self._unheard()
            return
        try:
            self._append_event(Log(time=_now(), rank=self.rank, step=self._at(), text=plain(str(text)), level=level))
        except ValueError as error:
            self._bad("note", str(error))

    def alert(
        self, title: str, text: str = "", level: Literal["debug", "info", "warning", "error"] = "warning"
    ) -> None:
        """Send something a person should see; ``level`` is ``debug``, ``info``, ``warning`` or ``error``."""
        if self._mute or generation() != self._born:
            self._unheard()
            return
        try:
            words = {"title": plain(str(title)), "text": plain(str(text))}
            self._append_event(Alert(time=_now(), rank=self.rank, step=self._at(), level=level, **words))
        except ValueError as error:
            self._bad("alert", str(error))

    def describe(self, **info: Any) -> None:
        """Add to what is known of the training: ``totals``, ``model``, ``optimizer`` and so on; plain values."""
        if not self._mute and generation() == self._born:
            self._say_described("info", cast("dict[str, Any]", plain(info)))

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until the hub's store has all that was accepted so far; False if it has not within ``timeout`` s."""
        if self._mute or self._uplink is None or generation() != self._born:
            return True
        self._settle(force=True)
        mark = Mark(threading.Event())
        self._queue.append(mark)
        return mark.reached.wait(timeout)

    def finish(
        self,
        status: Literal["finished", "failed", "interrupted"] = "finished",
        *,
        reason: str = "",
        traceback: str = "",
    ) -> None:
        """End the run; what follows is ignored. Takes at most two seconds, for the last records to be delivered."""
        if generation() != self._born:
            return
        with self._ending:
            if self.status is not None:
                return
            self.status = status
        ending.forget(self)
        uplink = self._uplink
        if self._mute or uplink is None:
            self._mute = True
            return
        if self._gauges is not None:
            self._gauges.stop()
        self._settle(force=True)
        try:
            ended = RunEnded(
                time=_now(), rank=self.rank, step=self._at(), status=status, reason=reason, traceback=traceback
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        finally:
            self._mute = True
        self._append_event(ended)
        result = uplink.close(status)
        if self.rank == 0:
            self._say_end(status, reason, result.delivered, result.left, result.dropped)

    def _say_end(self, status: str, reason: str, delivered: int, left: int, dropped: int) -> None:
        line = f"run {self.name} {status}" + (f" ({reason})" if reason else "")
        line += f" · {delivered:,} records delivered"
        if dropped:
            line += f", {dropped:,} of them given up under pressure"
        if left:
            line += f", {left:,} lost: no hub took them (start one with `fitwire watch` before or while you train)"
        _say("warning" if left else "info", line)

    def fail(self, error: BaseException) -> None:
        """End the run because of an exception: failed, or interrupted after Ctrl-C."""
        status, line, trace = ending.describe(error)
        self.finish(cast(Any, status), reason=line, traceback=trace)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None or (isinstance(value, SystemExit) and value.code in (None, 0)):
            self.finish()
        else:
            self.fail(value)

    def __repr__(self) -> str:
        return f"<Run {self.name} {self.id[:13]} {self.status or 'running'}>"

    # -- what is known of it

    @property
    def step(self) -> int:
        """Index of the last step that was logged; -1 before the first."""
        return self._step

    @property
    def delivered(self) -> int:
        """Records the hub has stored so far."""
        return self._uplink.delivery().delivered if self._uplink is not None else 0

    # -- inside

    def _at(self) -> int | None:
        return self._step if self._step >= 0 else None

    def _append_event(self, event: Event) -> None:
        self._queue.append(event)

    def _gauge(self, values: dict[str, float]) -> None:
        """Called on the gauges' thread."""
        if not self._mute:
            self._queue.append(Row(_now(), max(self._step, 0), None, None, "time", values))

    def _say_described(self, what: Literal["config", "summary", "info"], values: dict[str, Any]) -> None:
        if not self._mute and generation() == self._born:
            self._append_event(Described(time=_now(), rank=self.rank, step=self._at(), what=what, values=values))

    def _index(self, what: str, value: Any) -> int:
        try:
            number = operator.index(value.item() if hasattr(value, "item") else value)
            if abs(number) >= 2**53:
                raise ValueError("too large")
            return number
        except (TypeError, ValueError) as error:
            try:
                if float(value).is_integer() and abs(float(value)) < 2**53:
                    return int(float(value))
            except (TypeError, ValueError, OverflowError):
                pass
            self._bad(what, f"{str(value)[:40]!r} is no whole number ({error})")
            return self._step + 1

    def _log_slowly(
        self, values: Mapping[str, Any], step: int, epoch: int | None, batch: int | None, per: Per
    ) -> None:
        clean: dict[str, Any] = {}
        waiting = False
        if epoch is not None and type(epoch) is not int:
            epoch = self._index("epoch", epoch)
        if batch is not None and type(batch) is not int:
            batch = self._index("batch", batch)
        for name, value in values.items():
            key = name if type(name) is str else str(name)
            if not 0 < len(key) <= MAX_NAME:
                self._bad(key[:40], f"a metric's name needs 1 to {MAX_NAME} characters")
                continue
            try:
                number = as_number(value)
            except TypeError as error:
                self._bad(key, str(error))
                continue
            waiting = waiting or type(number) is Late
            clean[key] = number
        if not clean and values:
            return
        row = Row(_now(), step, epoch, batch, per, clean)
        if not waiting:
            self._queue.append(row)
            return
        late = LateRow(row)
        self._late.append(late)
        self._queue.append(late)
        if len(self._late) > MAX_LATE:
            self._settle(at_least=1)

    def _settle(self, *, force: bool = False, at_least: int = 0) -> None:
        """Read what devices have computed by now, oldest first; on the training thread, where it is safe."""
        while self._late:
            late = self._late[0]
            values = late.row.values
            waiting = {name: value for name, value in values.items() if type(value) is Late}
            if not (force or at_least > 0 or all(value.ready() for value in waiting.values())):
                return
            at_least -= 1
            for name, value in waiting.items():
                try:
                    values[name] = value.read()
                except Exception as error:  # the device's own failure, which training will meet by itself
                    values[name] = float("nan")
                    self._bad(name, f"could not be read from its device: {error}")
            late.settled = True
            self._late.popleft()

    def _bad(self, name: str, why: str) -> None:
        sentence = f"{name!r} {why}"
        if self._strict:
            raise UsageError(sentence)
        self._warn(f"bad value {name}", sentence)

    def _warn(self, kind: str, sentence: str) -> None:
        """Once for each kind on the terminal and to watchers; counted always."""
        self.warnings[kind] += 1
        if self.warnings[kind] == 1:
            _say("warning", sentence)
            if not self._mute:
                self._queue.append(
                    Log(time=_now(), rank=self.rank, step=self._at(), text=plain(sentence), level="warning")
                )

    def _unheard(self) -> None:
        """A call in a forked child, or after the end: nothing happens, and it is said once."""
        if generation() != self._born and not self.warnings["fork"]:
            self.warnings["fork"] += 1
            _say("warning", f"run {self.name} belongs to the parent process: calls in a forked child do nothing")
        elif self.status is not None and not self.warnings["ended"]:
            self.warnings["ended"] += 1
            _say("warning", f"run {self.name} has ended: what is logged now goes nowhere")


def _flat(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            for part, inner in cast("Mapping[object, object]", value).items():
                yield f"{key}.{part}", inner
        elif value is not None:
            yield key, value


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "off": 100}


def _say(level: str, line: str) -> None:
    """One line on stderr; ``FITWIRE_LOG_LEVEL`` (debug, info, warning, error, off) says from which level on."""
    asked = os.environ.get("FITWIRE_LOG_LEVEL", "info").lower()
    if _LEVELS[level] < _LEVELS.get(asked, 20) or sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        return
    try:
        sys.stderr.write(f"fitwire: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # a closed stderr is no reason to stop a training
        pass


_ = (FitwireError, spawn, logger)

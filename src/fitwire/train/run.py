"""``Run``: what a training says of itself, from any framework or none.

On the training thread a call checks and appends; the rest is the I/O thread's. This module knows no framework. It is
longer than a file should be because the class is the public surface, and most of it is docstrings and signatures.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, cast, get_args

from fitwire._version import __version__
from fitwire.errors import AddressError, HandshakeTimeout, UsageError
from fitwire.events import (
    MAX_NAME,
    Alert,
    Command,
    CommandDone,
    Described,
    DescribedWhat,
    Dropped,
    Event,
    Level,
    Log,
    Per,
    RunEnded,
    RunStarted,
    Sample,
    Status,
)
from fitwire.journal.layout import About, keeper_of
from fitwire.meter import Meter
from fitwire.protocol.arrays import MAX_ARRAY_BYTES, Array, encode_array
from fitwire.protocol.blocks import Identity
from fitwire.protocol.commands import Request
from fitwire.train import ending
from fitwire.train.controls import Done
from fitwire.train.mappings import Settable
from fitwire.train.outlet import Delivery, Mark, Outlet, Record
from fitwire.train.packer import Row
from fitwire.train.pending import Pending
from fitwire.train.settings import Settings, identify
from fitwire.train.steering import Steered
from fitwire.train.system import SystemGauges
from fitwire.train.terminal import say
from fitwire.train.uplink import Uplink
from fitwire.train.values import MAX_WHOLE, Late, as_array, as_number, as_whole, plain, plain_mapping, plain_text
from fitwire.transport.address import Address, resolve
from fitwire.transport.process import generation, host_key, started_at

__all__ = ["Run"]

MAX_ARRAYS = 60
"""Arrays in one sample."""
MAX_WARNINGS = 100
"""Kinds of warning that are said; the rest is counted. A loop can make up a new bad name at every step."""

_now = time.time


class Run(Steered):
    """One training that is being told of.

    Made by ``fitwire.init`` or by a callback; starts at once, and never waits for anybody unless ``wait`` says so.
    Usable as a context manager: an exception inside ends it as failed, with the traceback. Any thread may call. In a
    forked child, and in a copy made by pickling, calls do nothing, which is said once.

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
        config: What was set, a mapping; what is changed in it is told to watchers.
        summary: Results, likewise.
        settings: As passed.
        status: None while it goes on, then ``finished``, ``failed`` or ``interrupted``.
        thread: The thread that made it.
        status_at_exit: What it counts as when the process ends without a word.
        warnings: What went wrong with the monitoring, counted by kind.

    Example:
        >>> from fitwire.train.settings import Settings
        >>> with Run(Settings(name="example", mode="disabled")) as run:
        ...     run.log({"loss": 0.5}, step=0)
        >>> run.status
        'finished'
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
        sender, size = identify(settings, rank, world_size, shared_id)
        self._may_go_on = settings.run_id is not None and settings.resume != "never"
        self.id = sender.run.hex()
        self.name = settings.named(sender.run)
        self.rank = sender.rank
        self.settings = settings
        self.status: Status | None = None
        self.thread = threading.current_thread()
        self.status_at_exit: Status = "finished"
        self.warnings: Counter[str] = Counter()
        self.config = Settable(settings.config or {}, partial(self._say_described, "config"))
        self.summary = Settable({}, partial(self._say_described, "summary"))
        self._born = generation()
        self._mute = settings.mode == "disabled"
        self._strict = settings.strict
        self._aside = True  # whether a call of `log` leaves the hot path: not to be heard, or to be timed
        self._step: int = -1
        self._stop = False
        self._begin_steering(settings.control and not self._mute and settings.wire != "pair", size - 1)
        self._copied = self._told = False
        self._reason = ""
        self._ending = threading.RLock()
        self._pending = Pending(self._bad)
        self._late = self._pending.rows
        self._queue: deque[Record] = deque()
        self._append = self._queue.append
        self._outlet: Outlet | None = None
        self._gauges: SystemGauges | None = None
        if not self._mute:
            self._start(sender, size, plain_mapping(info or {}))

    def _start(self, sender: Identity, size: int, info: dict[str, Any]) -> None:
        settings = self.settings
        self._outlet = outlet = self._open(sender, size)
        self._queue, self._append = outlet.queue, outlet.queue.append
        if settings.durability == "process" and isinstance(outlet, Uplink):
            self._keep_each(outlet)
        outlet.probe.arm = self._time_next
        found = {
            "host": socket.gethostname(), "pid": os.getpid(), "world_size": size, "fitwire": __version__,
            "python": platform.python_version(), "platform": platform.platform(),
        }  # fmt: skip
        self._append_event(
            RunStarted(
                time=_now(), rank=self.rank, name=self.name, project=str(settings.project), group=settings.group,
                tags=tuple(settings.tags), config=dict(self.config), info=found | info,
            )
        )  # fmt: skip
        outlet.start()
        self._gauges = SystemGauges(self._gauge)
        ending.watch(self)
        if self.rank == 0:
            at = "" if settings.address is None and "FITWIRE_ADDRESS" not in os.environ else f" {outlet.place}"
            other = "SLEAP's LossViewer" if settings.wire == "sleap" else "a PairedReceiver"
            how = f"fitwire watch{at}" if settings.wire == "fw" else f"{other} at {outlet.place}"
            say("info", f"run {self.name} · watch it with {how}")
        try:
            self._await(outlet, settings.wait)
        except BaseException as error:
            self.fail(error)
            raise

    def _keep_each(self, uplink: Uplink) -> None:
        try:
            ring = uplink.keep_each()
        except OSError as error:
            sentence = f"durability='process' is not to be had here: {error}; a kill may cost the last 20 ms"
            self._warn("durability", sentence)
            return
        self._append, self._pending.keep = ring.append, ring.fill

    def _open(self, sender: Identity, size: int) -> Outlet:
        settings = self.settings
        if settings.wire == "pair":
            from fitwire.train.pairlink import PairUplink

            return PairUplink(settings.address, self._warn, run=self.name)
        if settings.wire == "sleap":
            from fitwire.train.sleaplink import SleapUplink

            told = SleapUplink(settings.address, self._warn, run=self.name, speaks=sender.rank == 0)
            told.steered = self if settings.control else None
            return told
        hello: dict[str, Any] = {
            "name": self.name, "project": settings.project, "host": socket.gethostname()[:MAX_NAME],
            "host_key": host_key()[:MAX_NAME], "pid": os.getpid(), "pid_started": started_at(os.getpid()),
            "world_size": size, "fitwire": __version__, "durability": settings.durability, "can": [],
        }  # fmt: skip
        about = About(sender, hello, settings.durability, keeper_of(os.environ.get("FITWIRE_KEEPER")))
        address = None if settings.mode == "offline" else self._hub_address()
        uplink = Uplink(sender, hello, address, self._warn, about=about, folder=settings.dir)
        uplink.steered = self
        if address is not None and self._may_go_on:
            from fitwire.train.former import deliver_former

            deliver_former(sender, address, uplink.greeted, lambda: self.status is not None, settings.dir)
        return uplink

    def _hub_address(self) -> Address | None:
        try:
            return resolve(self.settings.address)
        except AddressError as error:
            if self._strict or self.settings.address or os.environ.get("FITWIRE_ADDRESS"):
                raise
            # Nobody asked for that folder: a full or read-only disk is no reason not to train.
            self._warn("address", f"{error}; training on, and no hub is told")
            return None

    def _await(self, outlet: Outlet, wait: float) -> None:
        if wait <= 0 or outlet.greeted.wait(wait):
            return
        timeout = HandshakeTimeout(outlet.place, wait)
        if self._strict:
            self.finish("failed", reason="no hub answered in time")
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
        """Say what was measured at a step; appends and returns.

        Args:
            values: Name to number: Python or numpy numbers, or arrays and tensors of one element. Good values are kept
                when others are not; of each bad name one warning is given.
            step: Index of the last optimizer step done, from 0; None for one more than the last.
            epoch: From 0. Given without ``step`` and ``batch``, the values are those of a whole epoch.
            batch: Within its epoch, from 0.

        Raises:
            UsageError: With ``strict=True``, a name or value that cannot be logged.
        """
        if self._aside:
            self._log_aside(values, step, epoch, batch)
            return
        per: Per = "batch"
        if step is None:
            if epoch is not None and batch is None:
                per, step = "epoch", self._last()
            else:
                self._step = step = self._step + 1
        else:
            if type(step) is not int:
                step = self._whole("step", step, self._step + 1)
            self._step = step
        if self._late:
            self._pending.settle()
        try:
            for value in values.values():
                if type(value) is not float:
                    break
            else:
                if not self._strict:
                    # What is not looked at here, the packer looks at: it has the time.
                    self._append((_now(), step, epoch, batch, per, dict(values)))
                    return
        except AttributeError:
            self._bad("log", f"takes a mapping of names to numbers, not a {type(values).__name__}")
            return
        self._log_slowly(values, step, epoch, batch, per)

    def end_epoch(self, values: Mapping[str, Any], epoch: int, step: int | None = None) -> None:
        """Say what an epoch came to.

        Args:
            values: As for :meth:`log`.
            epoch: From 0.
            step: Index of the last optimizer step done in it; None for the last logged.
        """
        if self._mute:
            self._unheard()
            return
        self._pending.settle(force=True)
        if step is not None:
            self._step = self._whole("step", step, self._last())
        self._log_slowly(values, self._last(), epoch, None, "epoch")

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
        if self._mute:
            self._unheard()
            return
        self._pending.settle()
        given = {
            "image": image, "target": target, "prediction": prediction, "mask": mask, "heatmap": heatmap,
            "keypoints": keypoints, "boxes": boxes, "series": series, "classes": classes, "text": text, **arrays,
        }  # fmt: skip
        owned = self._owned(plain_text(name), given)
        if not owned:
            return
        at = self._last() if step is None else self._whole("step", step, self._last())
        epoch = self._maybe_whole("epoch", epoch)
        if self._outlet is not None and not self._outlet.offer(sum(array.nbytes for array in owned.values())):
            why = "made faster than it can be written"
            self._append_event(Dropped(time=_now(), rank=self.rank, step=at, count=1, what="sample", reason=why))
            return
        self._tell(
            f"sample {name}",
            lambda: Sample(
                time=_now(), rank=self.rank, step=at, epoch=epoch, name=plain_text(name, MAX_NAME), arrays=owned
            ),
        )

    def note(self, text: str, level: Level = "info") -> None:
        """Send a line of text; ``level`` is ``debug``, ``info``, ``warning`` or ``error``."""
        if self._mute:
            self._unheard()
            return
        self._pending.settle()
        self._tell(
            "note", lambda: Log(time=_now(), rank=self.rank, step=self._at(), text=plain_text(text), level=level)
        )

    def alert(self, title: str, text: str = "", level: Level = "warning") -> None:
        """Send something a person should see; ``level`` is ``debug``, ``info``, ``warning`` or ``error``."""
        if self._mute:
            self._unheard()
            return
        self._pending.settle()
        words = {"title": plain_text(title), "text": plain_text(text)}
        self._tell("alert", lambda: Alert(time=_now(), rank=self.rank, step=self._at(), level=level, **words))

    def describe(self, **info: Any) -> None:
        """Add to what is known of the training: ``totals``, ``model``, ``optimizer`` and so on; plain values."""
        self._say_described("info", plain_mapping(info))

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until the hub's store has all that was accepted so far.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it has; False at once when nothing can be sent any more.
        """
        if self._outlet is None or generation() != self._born:
            return True
        if self._mute:
            return self._outlet.delivery().left == 0
        self._pending.settle(force=True)
        mark = Mark(threading.Event())
        self._append(mark)
        self._outlet.hurry = True
        mark.reached.wait(timeout)
        return mark.delivered

    def finish(self, status: Status = "finished", *, reason: str = "", traceback: str = "") -> None:
        """End the run; what follows is ignored. Takes at most two seconds, for the last records to be delivered.

        Args:
            status: ``finished``, ``failed`` or ``interrupted``.
            reason: One line: why.
            traceback: Of the exception, when there was one.

        Raises:
            UsageError: An unknown status.
        """
        if generation() != self._born:
            return
        if status not in get_args(Status):
            raise UsageError(f"status={str(status)[:40]!r}: pass one of {', '.join(map(repr, get_args(Status)))}")
        with self._ending:
            if self.status is None:
                self.status = status
                self._reason = plain_text(reason, 300)
            if not self._mute:
                self._close_book(self.status, self._reason, plain_text(traceback, 2 * ending.MAX_TRACEBACK))
        if self._outlet is None:
            return
        # A Ctrl-C while this waits goes to the user at once; the interpreter's exit waits for what is left of it.
        delivery = self._outlet.close(self.status)
        ending.forget(self)
        if self.rank == 0 and not self._told:
            self._told = True
            self._say_end(delivery, self._outlet.greeted.is_set())

    def fail(self, error: BaseException) -> None:
        """End the run because of an exception: failed, or interrupted after Ctrl-C."""
        status, line, trace = ending.describe(error)
        self.finish(status, reason=line, traceback=trace)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None or (isinstance(value, SystemExit) and value.code in (None, 0)):
            self.finish()
        else:
            self.fail(value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _mute_copy, (self.name, self.id, dict(self.config), self.rank)

    def __repr__(self) -> str:
        return f"<Run {self.name} {self.id[:13]} {self.status or 'running'}>"

    # -- what is known of it

    @property
    def step(self) -> int:
        """Index of the last step that was logged; -1 before the first."""
        return self._step

    @property
    def meter(self) -> Meter:
        """What being watched costs this training, of late."""
        if self._outlet is None:
            return Meter()
        delivery = self._outlet.delivery()
        return self._outlet.probe.read(delivery.left, delivery.dropped)

    @property
    def delivered(self) -> int:
        """Records the hub has stored so far."""
        return self._outlet.delivery().delivered if self._outlet is not None else 0

    # -- inside

    def _attend(self, wanted: bool) -> None:
        """Called on the I/O thread when a command came, on the training thread when none waits any more."""
        self.wants_attention = wanted
        if wanted:
            self._aside = True

    def _tell_taken(self, request: Request) -> None:
        told = Command(
            time=_now(), rank=self.rank, step=self._at(), client=request.client, number=request.number,
            name=request.name, arguments=request.arguments, author=request.author, asked=request.asked,
        )  # fmt: skip
        self._append_event(told)

    def _tell_outcome(self, command: Request, done: Done) -> None:
        told = CommandDone(
            time=_now(), rank=self.rank, step=self._at(), client=command.client, number=command.number,
            name=command.name, status=done.status, reason=plain_text(done.reason, 300),
            before=plain(done.before), after=plain(done.after), author=command.author,
        )  # fmt: skip
        self._append_event(told)

    def _say_controls(self, specs: dict[str, Any]) -> None:
        self._say_described("controls", specs)

    def _time_next(self) -> None:
        """Called on the I/O thread: the next ``log`` is to be timed."""
        self._aside = True

    def _log_aside(self, values: Mapping[str, Any], step: int | None, epoch: int | None, batch: int | None) -> None:
        """A call that is not heard, or one that is timed; one in many, so that the others need not look at a clock."""
        if self._mute:
            self._unheard()
            return
        if self.wants_attention:
            self._apply_in_log()
        self._aside = False
        if self._mute:  # another thread has just ended it
            self._aside = True
        begun = time.perf_counter_ns()
        self.log(values, step, epoch, batch)
        if self._outlet is not None:
            self._outlet.probe.timed(time.perf_counter_ns() - begun)
        if self.wants_attention:  # for another thread than this, or another place than this call
            self._aside = True

    def _last(self) -> int:
        return max(self._step, 0)

    def _at(self) -> int | None:
        return self._step if self._step >= 0 else None

    def _append_event(self, event: Event) -> None:
        self._append(event)
        if self._outlet is not None:
            self._outlet.hurry = True

    def _tell(self, what: str, make: Any) -> None:
        """Append an event that may turn out to be wrong."""
        try:
            self._append_event(make())
        except ValueError as error:
            self._bad(what, str(error))

    def _gauge(self, values: dict[str, float]) -> None:
        """Called on the gauges' thread."""
        if not self._mute:
            self._append((_now(), self._last(), None, None, "time", values | self.meter.gauges()))

    def _say_described(self, what: DescribedWhat, values: dict[str, Any]) -> None:
        if self._mute:
            self._unheard()
            return
        self._append_event(Described(time=_now(), rank=self.rank, step=self._at(), what=what, values=values))

    def _whole(self, what: str, value: Any, otherwise: int) -> int:
        found = self._maybe_whole(what, value)
        return otherwise if found is None else found

    def _maybe_whole(self, what: str, value: Any) -> int | None:
        try:
            return None if value is None else as_whole(value)
        except TypeError as error:
            self._bad(what, str(error))
            return None

    def _log_slowly(self, values: Mapping[str, Any], step: int, epoch: Any, batch: Any, per: Any) -> None:
        """Any values; what the hot path leaves to the packer is checked here, where ``strict`` can raise."""
        if not -MAX_WHOLE < step < MAX_WHOLE:
            step = self._whole("step", step, 0)
        epoch, batch = self._maybe_whole("epoch", epoch), self._maybe_whole("batch", batch)
        clean: dict[str, Any] = {}
        waiting = False
        for name, value in values.items():
            key = name if type(name) is str else plain_text(name)
            if not 0 < len(key) <= MAX_NAME:
                self._bad(key[:40], f"a metric's name needs 1 to {MAX_NAME} characters, not {len(key)}")
                continue
            try:
                clean[key] = number = as_number(value)
                waiting = waiting or type(number) is Late
            except TypeError as error:
                self._bad(key, str(error))
        if clean or not values:
            row: Row = (_now(), step, epoch, batch, per, clean)
            self._append(self._pending.add(row) if waiting else row)
            if waiting:
                self._pending.settle()

    def _owned(self, name: str, given: Mapping[str, Any]) -> dict[str, Array]:
        """One copy of each array that can be sent."""
        owned: dict[str, Array] = {}
        for key, value in _flat(given):
            try:
                array = as_array(value)
                if array.dtype.kind != "U":  # text has a way of its own
                    encode_array(array)  # refuses by name, before it is accepted
                if array.ndim == 0 or len(array) == 0:
                    raise ValueError(f"needs shape (examples, ...), got {array.shape}")
                if len(owned) >= MAX_ARRAYS or array.nbytes + sum(a.nbytes for a in owned.values()) > MAX_ARRAY_BYTES:
                    raise ValueError(f"is too much: a sample holds {MAX_ARRAYS} arrays and {MAX_ARRAY_BYTES:,} bytes")
                owned[plain_text(key)] = array
            except (TypeError, ValueError) as error:
                self._bad(f"sample {name}: {key}", str(error))
        if not owned and all(value is None for value in given.values()):
            self._bad(f"sample {name}", "holds no array: pass image=, target=, prediction= …")
        return owned

    def _close_book(self, status: Status, reason: str, traceback: str) -> None:
        if self._gauges is not None:
            self._gauges.stop()
        self._pending.settle(force=True)
        self.controls.end(status)
        if self._outlet is not None and self._outlet.probe.has_timed:
            self._gauge({})  # so that a short run has told what it cost
        self._append_event(
            RunEnded(time=_now(), rank=self.rank, step=self._at(), status=status, reason=reason, traceback=traceback)
        )
        self._mute = self._aside = True

    def _say_end(self, delivery: Delivery, greeted: bool) -> None:
        line = f"run {self.name} {self.status}" + (f" ({self._reason})" if self._reason else "")
        line += f" · {delivery.delivered:,} records delivered"
        if delivery.dropped:
            line += f", {delivery.dropped:,} given up under pressure"
        if delivery.left:
            line += self._say_left(delivery, greeted)
        say("warning" if delivery.left > delivery.kept else "info", line)

    def _say_left(self, delivery: Delivery, greeted: bool) -> str:
        lost, line = delivery.left - delivery.kept, ""
        if delivery.kept:
            line += f", {delivery.kept:,} wait in {delivery.journal}: the next hub here takes them, or `fitwire sync`"
        if lost > 0:
            why = "not taken in time" if greeted else "nobody answered"
            line += f", {lost:,} lost ({why})"
        return line

    def _deafen(self) -> None:
        """Called in a forked child, before anything else runs there."""
        self._mute = self._aside = True

    def _bad(self, name: str, why: str) -> None:
        sentence = f"{name!r} {why}"
        if self._strict:
            raise UsageError(sentence)
        self._warn(f"bad value {name}", sentence)

    def _warn(self, kind: str, sentence: str) -> None:
        """Once for each kind on the terminal and to watchers; counted always."""
        if kind not in self.warnings and len(self.warnings) >= MAX_WARNINGS:
            kind, sentence = "more", "more warnings follow; they are counted and not said"
        self.warnings[kind] += 1
        if self.warnings[kind] > 1:
            return
        say("warning", plain_text(sentence))
        if not self._mute:
            self._append(Log(time=_now(), rank=self.rank, step=self._at(), text=plain_text(sentence), level="warning"))

    def _unheard(self) -> None:
        """A call in a forked child, in a copy, or after the end: nothing happens, and it is said once."""
        if self._copied:
            kind, why = "copy", f"a copy of run {self.name} sends nothing: it belongs to the process that started it"
        elif generation() != self._born:
            kind, why = "fork", f"run {self.name} belongs to the parent process: calls in a forked child do nothing"
        elif self.status is not None and self._outlet is not None:
            kind, why = "ended", f"run {self.name} has ended: what is logged now goes nowhere"
        else:
            return
        self.warnings[kind] += 1
        if self.warnings[kind] == 1:
            say("warning", why)


def _mute_copy(name: str, run_id: str, config: dict[str, Any], rank: int) -> Run:
    """What a pickled run becomes elsewhere, e.g. in a data loader's worker."""
    run = Run(Settings(name=name, run_id=run_id, config=config, mode="disabled"), rank=rank)
    run._copied = True  # pyright: ignore[reportPrivateUsage]
    return run


def _flat(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            for part, inner in cast("Mapping[object, object]", value).items():
                yield f"{key}.{part}", inner
        elif value is not None:
            yield key, value

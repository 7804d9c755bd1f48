"""``WatchedRun``: one run as far as it is known now, its samples and its events.

It asks its :class:`~fitwire.watch.desk.Desk` anew each time, so it never shows the past. It knows no view.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, overload

import numpy as np

from fitwire.errors import ConditionNotMet, UnknownRun, UsageError, WaitTimeout
from fitwire.events import Alert, Log
from fitwire.meter import Meter
from fitwire.protocol.arrays import Array
from fitwire.watch.asking import Asking
from fitwire.watch.branches import Branch, Gap
from fitwire.watch.desk import Desk
from fitwire.watch.history import History
from fitwire.watch.series import PERS, Columns, Curve
from fitwire.watch.states import Progress, State, parse_condition
from fitwire.watch.store import SampleRef
from fitwire.watch.stream import EventStream
from fitwire.watch.summary import badge_of, status_of

__all__ = ["SampleList", "WatchedRun", "WatchedSample"]

Found = TypeVar("Found")


@dataclass(slots=True, eq=False)
class WatchedSample:
    """Arrays of a few examples at one step; fetched when first asked for, then kept.

    Attributes:
        name: What it shows.
        step: Index of the last optimizer step done.
        epoch: From 0; None when the loop has none.
        time: Unix seconds at the trainer.
        rank: Process that made it.
        shapes: By role or name: dtype string and shape, known without fetching.
    """

    name: str
    step: int | None
    epoch: int | None
    time: float
    rank: int
    shapes: dict[str, tuple[str, tuple[int, ...]]]
    _source: tuple[Desk, bytes, SampleRef]
    _arrays: dict[str, Array] | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """By role or name, bit for bit as the trainer had them, writeable.

        Raises:
            UnknownRun: The store has let go of it.
            LinkError: The hub did not send it.
        """
        if self._arrays is None:
            desk, run, ref = self._source
            self._arrays = dict(desk.load(run, ref).arrays)
        return self._arrays

    def __repr__(self) -> str:
        what = ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in self.shapes.items())
        return f"<WatchedSample {self.name} at step {self.step}: {what}>"


class SampleList(Sequence[WatchedSample]):
    """The samples of one name, oldest first, as they were when asked for."""

    def __init__(self, desk: Desk, run: bytes, refs: list[SampleRef]) -> None:
        self._desk, self._run, self._refs = desk, run, refs

    def __len__(self) -> int:
        return len(self._refs)

    @overload
    def __getitem__(self, index: int) -> WatchedSample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleList: ...
    def __getitem__(self, index: int | slice) -> WatchedSample | SampleList:
        if isinstance(index, slice):
            return SampleList(self._desk, self._run, self._refs[index])
        ref = self._refs[index]
        source = (self._desk, self._run, ref)
        return WatchedSample(ref.name, ref.step, ref.epoch, ref.time, ref.rank, ref.arrays, source)


class WatchedRun(Asking):
    """One run, as far as it is known now; every attribute is read anew.

    Got from a :class:`Monitor`. Equal to another of the same run and monitor.

    Example:
        >>> import fitwire, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with fitwire.Monitor(f"{folder}/hub", store=f"{folder}/store.sqlite3") as monitor:
        ...     with fitwire.init(f"{folder}/hub", name="example", config={"lr": 0.1}, wait=5) as run:
        ...         for loss in (0.5, 0.25):
        ...             run.log({"loss": loss})
        ...     watched = monitor.run("example")
        ...     watched.wait("loss < 0.3", timeout=10), watched.config["lr"], watched.curve("loss").steps
        (0.25, 0.1, array([0, 1]))
    """

    def __init__(self, desk: Desk, run: bytes) -> None:
        self._desk, self._run = desk, run

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WatchedRun) and (self._desk, self._run) == (other._desk, other._run)

    def __hash__(self) -> int:
        return hash((id(self._desk), self._run))

    def __repr__(self) -> str:
        return f"<WatchedRun {self.name} {self.id[:8]} {self.state}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: state, progress, badge and cost, in three lines; nothing of a peer's is markup."""
        progress = self.progress
        done = "" if progress.step is None else f", step {progress.step + 1:,}"
        lines = [f"{self.status_text}{done} · {self.badge}", str(self.meter or "")]
        rest = "".join(f"<br>{html.escape(line)}" for line in lines if line)
        return f"<div><b>{html.escape(self.name)}</b> {self.id[:8]}{rest}</div>"

    # -- what it is

    @property
    def _line(self) -> dict[str, Any]:
        return self._desk.backend.summary(self._run)

    def _ask(self, question: Callable[[History], Found]) -> Found:
        return self._desk.ask(self._run, question)

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self._run.hex()

    @property
    def name(self) -> str:
        """For people; not unique."""
        return str(self._line["name"])

    @property
    def project(self) -> str:
        """What it belongs to."""
        return str(self._line["project"])

    @property
    def group(self) -> str | None:
        """Runs that belong together; None without one."""
        return cast("str | None", self._line["group"])

    @property
    def tags(self) -> tuple[str, ...]:
        """Words to find it by."""
        return tuple(self._line["tags"])

    @property
    def host(self) -> str:
        """Where it runs."""
        return str(self._line["host"])

    @property
    def started(self) -> float:
        """When it began, Unix seconds at the trainer."""
        return float(self._line["started"])

    @property
    def ranks(self) -> tuple[int, ...]:
        """Processes that have spoken, e.g. ``(0,)``."""
        return tuple(self._line["ranks"])

    @property
    def config(self) -> dict[str, Any]:
        """What the user set, as last told."""
        return self._ask(lambda h: h.described("config"))

    @property
    def summary(self) -> dict[str, Any]:
        """Results, as last told."""
        return self._ask(lambda h: h.described("summary"))

    @property
    def info(self) -> dict[str, Any]:
        """What was found: host, pid, world_size, framework, versions, totals, model, optimizer and so on."""
        return self._ask(lambda h: h.described("info"))

    # -- how it goes

    @property
    def state(self) -> State:
        """``waiting``, ``running``, ``paused``, ``stalled``, ``lost``, ``finished``, ``failed`` or ``interrupted``."""
        return State(self._line["state"])

    @property
    def ended(self) -> bool:
        """Whether it finished, failed or was interrupted."""
        return self.state.ended

    @property
    def settled(self) -> bool:
        """Whether it has ended and nothing of it is still under way."""
        return self.ended and bool(self._line["settled"])

    @property
    def reason(self) -> str:
        """Why it ended, in a line; empty when it finished or goes on."""
        return str(self._line["reason"])

    @property
    def traceback(self) -> str:
        """Of the exception that ended it; empty without one."""
        return self._ask(lambda h: "" if h.ended is None else h.ended.traceback)

    @property
    def status_text(self) -> str:
        """What it is doing, in a sentence: how it ended, since when it is lost, how long it has been silent."""
        return status_of(self._line, time.time())

    @property
    def since(self) -> float | None:
        """Since when it is lost, or has been silent when it is stalled, Unix seconds; None in any other state."""
        return float(self._line["since"]) or None

    @property
    def badge(self) -> str:
        """Whether all of it is here, in a few words; the same in every view.

        ``"live"``, ``"complete"``, ``"complete to its last 20 ms"`` (it was killed), ``"3 samples dropped"``,
        ``"gap 1,201–1,400"`` (records that are missing), ``"cut off after step 100"`` (steps counted from 1) and the
        like.
        """
        return badge_of(self._line)

    @property
    def progress(self) -> Progress:
        """Step, epoch, totals, ETA and pace."""
        return Progress(**self._line["progress"])

    @property
    def revision(self) -> int:
        """Grows whenever more of it is known."""
        return self._ask(lambda h: h.revision) + int(self._line["revision"])

    # -- what it told

    @property
    def metrics(self) -> list[str]:
        """Names of metrics, the framework's own, in order of appearance."""
        return self._ask(lambda h: h.metrics)

    @property
    def gauges(self) -> list[str]:
        """Names of what is measured by the clock: ``system/cpu``, ``process/memory`` and so on."""
        return self._ask(lambda h: h.gauges)

    @property
    def meter(self) -> Meter | None:
        """What being watched costs it, by its lowest rank; None while it has not said.

        It is told with the gauges, every 15 s, and at the end.
        """
        return self._ask(lambda h: Meter.of_gauges(h.latest))

    def latest(self, name: str) -> float:
        """The newest value of a metric; NaN when there is none."""
        return self._ask(lambda h: h.latest(name))

    @property
    def branches(self) -> list[Branch]:
        """Its process lives, oldest first.

        A run that resumes from an earlier step branches off there. Curves and samples show the newest branch; what it
        took up again is kept, and is to be had by ``branch=``.
        """
        return self._ask(lambda h: h.branches())

    @property
    def gaps(self) -> list[Gap]:
        """Records that are missing: lost in a store, or delivered to another; none in a run that is complete."""
        return self._ask(lambda h: h.gaps)

    def curve(self, name: str, per: str = "auto", rank: int | None = None, branch: int | None = None) -> Curve:
        """One metric, exact.

        Args:
            name: One of :attr:`metrics` or :attr:`gauges`.
            per: ``"batch"``, ``"epoch"``, ``"time"``, or ``"auto"``: per batch if there is one.
            rank: Process; None for the lowest that has it.
            branch: An incarnation out of :attr:`branches`: the curve as it was before later ones took steps of it up
                again. None for the newest.

        Raises:
            UnknownRun: There is no such metric; the message lists what there is.
            UsageError: ``per`` is none of these.
        """
        if per not in ("auto", "batch", "epoch", "time"):
            raise UsageError(f"per={per!r}: pass 'auto', 'batch', 'epoch' or 'time'")
        return self._ask(lambda h: h.curve(name, per, rank, branch))

    @property
    def sample_names(self) -> list[str]:
        """Names of samples, in order of appearance."""
        return self._ask(lambda h: list(h.samples))

    def samples(self, name: str, branch: int | None = None) -> SampleList:
        """The samples of one name, oldest first; their arrays are fetched when asked for.

        Args:
            name: One of :attr:`sample_names`.
            branch: As for :meth:`curve`.

        Raises:
            UnknownRun: There is no such sample; the message lists what there is.
        """
        return SampleList(self._desk, self._run, self._ask(lambda h: h.sample_refs(name, branch)))

    @property
    def lines(self) -> list[Log | Alert]:
        """Notes and alerts, oldest first."""
        return self._ask(lambda h: h.lines_by_time)

    def events(self, follow: bool = True) -> EventStream:
        """Everything that was told, in order, from the beginning; to be iterated with ``for`` or ``async for``.

        All branches are in it, also what a later one took up again; each begins with a ``RunStarted``.

        Args:
            follow: Wait for more until the run has ended; else stop at what is known.
        """
        return EventStream(self._desk, self._run, follow)

    def wait(self, until: str | None = None, timeout: float | None = None) -> float | None:
        """Wait for a metric, or for the end.

        Args:
            until: ``NAME op NUMBER``, e.g. ``"val_loss < 0.2"``; any value told so far counts. None for the end.
            timeout: Seconds; None for ever.

        Returns:
            The value that met it; None when waiting for the end.

        Raises:
            WaitTimeout: Not in time.
            ConditionNotMet: The run ended and no value had met it.
            UsageError: ``until`` is not of that form.
        """
        condition = parse_condition(until) if until is not None else None
        seek = None if condition is None else self.seek(condition.name, condition.first_met)

        def look() -> float | Literal[True] | None:
            line = self._line  # before the values: with the end, the last of them is there
            if seek is None:
                return True if line["settled"] and State(line["state"]).ended else None
            met = seek()
            return True if met is None and State(line["state"]).ended else met

        found = self._desk.wait_for(look, timeout)
        if found is None:
            what = "end" if condition is None else f"have {condition}"
            why = "before the monitor was closed" if self._desk.closing.is_set() else f"within {timeout or 0:g} s"
            raise WaitTimeout(f"run {self.name} did not {what} {why}; it is {self.state}")
        if condition is None:
            return None
        if found is True:
            raise ConditionNotMet(self.name, str(condition), str(self.state), self.latest(condition.name))
        return found

    def seek(self, metric: str, first: Callable[[Array], float | None]) -> Callable[[], float | None]:
        """Look for a value among all that are told of a metric, each once.

        Args:
            metric: Its name.
            first: Given values, float64 ``(n,)``, gives the one looked for, or None.

        Returns:
            A function that looks through what came since it was last called, at first through all.
        """
        looked: tuple[History | None, dict[Columns, int]] = (None, {})

        def look() -> float | None:
            nonlocal looked
            backend, history = self._desk.history(self._run)
            if history is not looked[0]:
                looked = (history, {})
            with backend.changed:
                return history.first_met(metric, first, looked[1])

        return look

    # -- taking it away

    def to_numpy(self) -> dict[str, dict[str, Array]]:
        """All curves: ``{"loss": {"steps": …, "epochs": …, "times": …, "values": …}, "loss/epoch": …}``.

        Of the newest branch, by the lowest rank that has them; other branches are to be had from :meth:`curve`. A name
        told both per batch and per epoch stands twice, the second time with ``/epoch``.
        """

        def found(history: History) -> dict[str, dict[str, Array]]:
            out: dict[str, dict[str, Array]] = {}
            for name in history.metrics + history.gauges:
                for per in PERS:
                    try:
                        curve = history.curve(name, per)
                    except UnknownRun:
                        continue
                    key = name if name not in out else f"{name}/{per}"
                    out[key] = {w: getattr(curve, w) for w in ("steps", "epochs", "times", "values")}
            return out

        return self._ask(found)

    def to_dataframe(self, kind: Literal["auto", "pandas", "polars"] = "auto") -> Any:
        """All curves, of the newest branch, as one table: name, per, rank, step, epoch, time, value; a row a point.

        Args:
            kind: Which library; ``"auto"`` takes pandas where installed, else polars.

        Raises:
            UsageError: That library is not installed.
        """
        table = _table(self._ask(_curves))
        for library in ("pandas", "polars") if kind == "auto" else (kind,):
            try:
                module = __import__(library)
            except ImportError:
                continue
            return module.DataFrame(table)
        raise UsageError(
            f"to_dataframe needs {'pandas or polars' if kind == 'auto' else kind}: pip install it, or use to_numpy()"
        )


def _curves(history: History) -> list[tuple[int, Curve]]:
    """All curves of all ranks."""
    curves: list[tuple[int, Curve]] = []
    for name in history.metrics + history.gauges:
        for per in PERS:
            for rank in history.ranks:
                try:
                    curves.append((rank, history.curve(name, per, rank)))
                except UnknownRun:
                    continue
    return curves


def _table(curves: list[tuple[int, Curve]]) -> dict[str, Any]:
    """Columns of all points, a row a point."""
    sizes = [len(curve) for _, curve in curves]

    def repeated(values: list[Any], dtype: Any) -> Array:
        return np.repeat(np.array(values, dtype=dtype), sizes)

    def joined(what: str, dtype: Any) -> Array:
        empty: Array = np.empty(0, dtype)
        return np.concatenate([empty, *(cast(Array, getattr(curve, what)) for _, curve in curves)])

    return {
        "name": repeated([curve.name for _, curve in curves], object),
        "per": repeated([curve.per for _, curve in curves], object),
        "rank": repeated([rank for rank, _ in curves], np.int64),
        "step": joined("steps", np.int64),
        "epoch": joined("epochs", np.float64),
        "time": joined("times", np.float64),
        "value": joined("values", np.float64),
    }

"""All that is known of one run, built from its blocks in the order they were stored.

The same class serves the hub and whoever follows one, so both always agree. It knows no socket, store or view, and no
thread: its owner's lock guards it.

When a run goes on as a new incarnation from an earlier step, the newest branch is what its curves show; the rows it
replaces are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from fitwire.errors import UnknownRun
from fitwire.events import (
    Alert,
    Described,
    Dropped,
    Event,
    Log,
    MetricRows,
    Per,
    RunEnded,
    RunStarted,
    Sample,
    decode_events,
    explode,
)
from fitwire.protocol.arrays import Array
from fitwire.protocol.blocks import BULK, Message
from fitwire.watch.series import PERS, Columns, Curve
from fitwire.watch.states import Pace
from fitwire.watch.store import SampleRef

__all__ = ["History", "SourceHistory", "SourceKey", "Span", "explode_span", "sample_ref"]

MAX_LINES = 10_000
"""Notes and alerts kept in memory of one run; the store has all."""

SourceKey = tuple[int, int]
"""(incarnation, rank)"""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``start`` to ``stop`` of one :class:`Columns`: metrics in their place among other events."""

    columns: Columns
    start: int
    stop: int
    rank: int


@dataclass(slots=True)
class SourceHistory:
    """What one rank of one incarnation has told."""

    heads: list[int] = field(default_factory=lambda: [0, 0])
    columns: dict[tuple[Per, tuple[str, ...]], Columns] = field(default_factory=dict[Any, Columns])
    first_step: dict[Per, int] = field(default_factory=dict[Any, int])
    started: RunStarted | None = None
    ended: RunEnded | None = None
    pace: Pace = field(default_factory=Pace)
    told: bool = False
    dropped: dict[str, int] = field(default_factory=dict[str, int])


def sample_ref(incarnation: int, seq: int, sample: Sample) -> SampleRef:
    """What the store's index keeps of a sample."""
    arrays = {name: (values.dtype.str, tuple(values.shape)) for name, values in sample.arrays.items()}
    return SampleRef(incarnation, sample.rank, seq, sample.name, sample.step, sample.epoch, sample.time, arrays)


class History:
    """One run.

    Args:
        run: Its id, 16 bytes.

    Attributes:
        revision: Grows with every block.
        said: Everything in order: spans of metric rows, events, and samples as references.
        lines: Notes and alerts, oldest first.
        samples: References by sample name, oldest first.
    """

    def __init__(self, run: bytes) -> None:
        self.run = run
        self.revision = 0
        self.said: list[Span | Event | SampleRef] = []
        self.lines: list[Log | Alert] = []
        self.samples: dict[str, list[SampleRef]] = {}
        self._sources: dict[SourceKey, SourceHistory] = {}
        self._described: dict[str, dict[str, Any]] = {"config": {}, "summary": {}, "info": {}}
        self._metrics: dict[str, Per] = {}
        self._gauges: dict[str, None] = {}

    # -- building

    def add(self, message: Message, count: int) -> list[SampleRef]:
        """Take a stored block (or gap) of ``count`` records; returns the samples it held.

        A block that is already here changes nothing.

        Raises:
            DecodeError: A record in it breaks the rules; those before it were taken.
        """
        key = (message.sender.incarnation, message.sender.rank)
        source = self._source(key)
        if message.seq <= source.heads[message.lane]:
            return []
        source.heads[message.lane] = message.seq + count - 1
        self.revision += 1
        found: list[SampleRef] = []
        for seq, event in decode_events(message, arrays=False):
            if isinstance(event, MetricRows):
                self._add_rows(source, event, seq)
            elif isinstance(event, Sample):
                found.append(sample_ref(key[0], seq, event))
            else:
                self._add_event(source, key, event)
        for ref in found:
            self._add_sample(ref)
        return found

    def add_sample(self, ref: SampleRef) -> None:
        """Take a sample from the store's index, or from another hub's."""
        source = self._source((ref.incarnation, ref.rank))
        if ref.seq > source.heads[BULK]:
            source.heads[BULK] = ref.seq
            self.revision += 1
            self._add_sample(ref)

    def _source(self, key: SourceKey) -> SourceHistory:
        return self._sources.setdefault(key, SourceHistory())

    def _add_sample(self, ref: SampleRef) -> None:
        self.samples.setdefault(ref.name, []).append(ref)
        self.said.append(ref)

    def _add_rows(self, source: SourceHistory, rows: MetricRows, seq: int) -> None:
        key = (rows.per, rows.names)
        columns = source.columns.get(key)
        if columns is None:
            columns = source.columns[key] = Columns(rows.names, rows.per)
            for name in rows.names:
                (self._gauges if rows.per == "time" else self._metrics).setdefault(name, cast(Any, rows.per))
        start = len(columns)
        columns.append(rows.columns, seq)
        self.said.append(Span(columns, start, len(columns), rows.rank))
        steps, epochs, batches, times = rows.columns[:4]
        least = int(steps.min())
        source.first_step[rows.per] = min(least, source.first_step.get(rows.per, least))
        if rows.per == "time":
            return
        source.told = True
        pace = source.pace
        if rows.per == "epoch":
            pace.epochs_done = max(pace.epochs_done, int(np.nanmax(epochs, initial=-1)) + 1)
        gap = float(np.diff(times).max(initial=0.0))
        epoch, batch = float(epochs[-1]), float(batches[-1])
        pace.told(
            float(times[-1]), int(steps[-1]),
            None if epoch != epoch else int(epoch), None if batch != batch else int(batch), gap,
        )  # fmt: skip

    def _add_event(self, source: SourceHistory, key: SourceKey, event: Event) -> None:
        self.said.append(event)
        if isinstance(event, RunStarted):
            source.started = event
            # Rank 0 speaks for the run; the others may only add.
            if event.rank == 0 or not self._described["info"]:
                self._described["config"] |= event.config
                self._described["info"] |= event.info
        elif isinstance(event, Described):
            if key[1] == min(rank for _, rank in self._sources):
                self._described[event.what] |= event.values
        elif isinstance(event, RunEnded):
            source.ended = event
        elif isinstance(event, (Log, Alert)):
            self.lines.append(event)
            del self.lines[:-MAX_LINES]
        elif isinstance(event, Dropped):
            source.dropped[event.what] = source.dropped.get(event.what, 0) + event.count

    # -- asking

    @property
    def heads(self) -> dict[SourceKey, list[int]]:
        """Per source, the highest sequence number of each lane."""
        return {key: list(source.heads) for key, source in self._sources.items()}

    @property
    def ranks(self) -> list[int]:
        """Ranks that ever spoke."""
        return sorted({rank for _, rank in self._sources})

    @property
    def incarnation(self) -> int:
        """The newest process life; 0 when nobody has spoken."""
        return max((incarnation for incarnation, _ in self._sources), default=0)

    @property
    def started(self) -> RunStarted | None:
        """How the run said it began: by its lowest rank, newest incarnation."""
        told = [(rank, -number) for (number, rank), s in self._sources.items() if s.started is not None]
        return self._sources[-min(told)[1], min(told)[0]].started if told else None

    @property
    def first_time(self) -> float:
        """Unix seconds at which its first incarnation began; 0 when unknown."""
        return min((s.started.time for s in self._sources.values() if s.started is not None), default=0.0)

    def current(self, rank: int) -> SourceHistory | None:
        """The newest incarnation of a rank."""
        numbers = [number for number, of in self._sources if of == rank]
        return self._sources[max(numbers), rank] if numbers else None

    def described(self, what: str) -> dict[str, Any]:
        """``"config"``, ``"summary"`` or ``"info"``, as last told."""
        return dict(self._described[what])

    @property
    def metrics(self) -> list[str]:
        """Names in order of appearance, system gauges left out."""
        return list(self._metrics)

    @property
    def gauges(self) -> list[str]:
        """Names of what is measured by the clock: the machine's and the process's load."""
        return list(self._gauges)

    @property
    def ended(self) -> RunEnded | None:
        """How the run ended, by its newest incarnation; a failure of any rank goes before the rest."""
        ends = [s.ended for (number, _), s in self._sources.items() if number == self.incarnation and s.ended]
        return min(ends, key=lambda end: (end.status != "failed", end.status != "interrupted", end.rank), default=None)

    @property
    def dropped(self) -> dict[str, int]:
        """Records that were given up, by kind."""
        found: dict[str, int] = {}
        for source in self._sources.values():
            for what, count in source.dropped.items():
                found[what] = found.get(what, 0) + count
        return found

    def curve(self, name: str, per: str = "auto", rank: int | None = None) -> Curve:
        """One metric as it was logged; see ``WatchedRun.curve``.

        Raises:
            UnknownRun: No such metric; the message lists what there is.
        """
        chosen = self._resolve(name, per)
        ranks = [rank] if rank is not None else self.ranks
        for one in ranks:
            pieces = list(self._pieces(name, chosen, one))
            if pieces:
                columns = np.concatenate(pieces, axis=1)
                return Curve(name, chosen, columns[0].astype(np.int64), columns[1], columns[3], columns[5])
        told = ", ".join(self.metrics + self.gauges) or "none yet"
        where = "" if rank is None else f" of rank {rank}"
        raise UnknownRun(f"no metric {name!r}{where} per {chosen} in this run; there are: {told}")

    def _resolve(self, name: str, per: str) -> Per:
        if per != "auto":
            return cast(Per, per)
        kinds = {key[0] for source in self._sources.values() for key in source.columns if name in key[1]}
        found: list[Per] = [kind for kind in PERS if kind in kinds]
        return found[0] if found else "batch"

    def _pieces(self, name: str, per: Per, rank: int) -> Iterator[Array]:
        """Rows of one rank by incarnation, oldest first; what a later one took up again is left out."""
        numbers = sorted(number for number, of in self._sources if of == rank)
        for index, number in enumerate(numbers):
            source = self._sources[number, rank]
            found = [c.of(name) for (kind, names), c in source.columns.items() if kind == per and name in names]
            if not found:
                continue
            rows = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
            if len(found) > 1:
                rows = rows[:, np.argsort(rows[4], kind="stable")]
            if per != "time":
                later = [self._sources[n, rank].first_step.get(per) for n in numbers[index + 1 :]]
                cut = min((step for step in later if step is not None), default=None)
                if cut is not None:
                    rows = rows[:, rows[0] < cut]
            yield rows

    def latest(self, name: str) -> float:
        """The newest value of a metric, by the lowest rank that has it; NaN when there is none."""
        for (_, _), source in sorted(self._sources.items(), key=lambda item: (-item[0][0], item[0][1])):
            # Batch values are newer than those of the last epoch, which bear the same name in Keras.
            told = [c.newest(name) for (kind, names), c in source.columns.items() if name in names and kind != "epoch"]
            told = told or [c.newest(name) for (_, names), c in source.columns.items() if name in names]
            if told:
                return max(told)[1]
        return float("nan")


def explode_span(span: Span) -> Iterator[Event]:
    """The rows of a span one by one, as events."""
    yield from explode(
        MetricRows(span.columns.names, span.columns.per, span.columns.rows(span.start, span.stop), span.rank)
    )

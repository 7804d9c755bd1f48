"""All that is known of one run, built from its blocks in the order they were stored.

The same class serves the hub and whoever follows one, so both always agree. It knows no socket, store or view, and no
thread: its owner's lock guards it.

When a run goes on as a new incarnation from an earlier step, the newest branch is what its curves show; the rows it
replaces are kept. Longer than most files here, so that how a history is built and how it is asked stand together.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import numpy as np

from fitwire.errors import UnknownRun
from fitwire.events import (
    Alert,
    Command,
    CommandDone,
    Described,
    DescribedWhat,
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
from fitwire.protocol.blocks import BULK, RECORDS, Kind, Message
from fitwire.protocol.commands import Pair
from fitwire.watch.branches import Branch, Gap, branch_point, goes_before
from fitwire.watch.commands import CommandRecord, Commands
from fitwire.watch.series import PERS, Columns, Curve
from fitwire.watch.states import Pace
from fitwire.watch.store import SampleRef

__all__ = [
    "MISSING",
    "History",
    "Said",
    "SourceHistory",
    "SourceKey",
    "Span",
    "explode_span",
    "sample_ref",
]

MAX_LINES = 10_000
"""Notes and alerts kept in memory of one run; the store has all."""
SPAN_ROWS = 4096
"""Rows that one :class:`Span` may grow to: a block each 20 ms would otherwise weigh more than what it says."""
SAME_START = 60
"""Seconds within which the ranks of one start begin, each taking its own clock's second for its incarnation."""
MAX_KINDS = 16
"""Kinds of records that may be told of as given up; there are three."""
MAX_GAPS = 256
"""Gaps of one source that are kept singly; all are counted."""
GOES_ON = frozenset({"unpause", "stop", "stop_after_epoch"})
"""Commands that end a pause."""
MISSING = "records"
"""The kind of what is missing: nobody knows what it said."""

SourceKey = tuple[int, int]
"""(incarnation, rank)"""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``start`` to ``stop`` of one :class:`Columns`: metrics in their place among other events."""

    columns: Columns
    start: int
    stop: int
    rank: int


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that was told, and its place.

    Attributes:
        key: Who said it.
        lane: 0 for records, 1 for samples.
        last: Its sequence number; of a span, that of the last row.
        what: Rows, an event, or a sample without its arrays.
    """

    key: SourceKey
    lane: int
    last: int
    what: Span | Event | SampleRef


@dataclass(slots=True)
class SourceHistory:
    """What one rank of one incarnation has told.

    Attributes:
        heads: Per lane, the highest sequence number.
        columns: Rows by what they are per, and the names of their set.
        first_step: By what rows are per, the least step.
        spoke: Grows with all but the machine's load, which goes on when the training hangs.
        told: Whether a batch or an epoch was told of.
        dropped: Records that were given up, by kind.
        gaps: Records that are missing, oldest first: lane, first and last sequence number, the step before.
        held: While it holds because it was asked to: since when, Unix seconds, and after which step.
    """

    heads: list[int] = field(default_factory=lambda: [0, 0])
    columns: dict[tuple[Per, tuple[str, ...]], Columns] = field(default_factory=dict[Any, Columns])
    first_step: dict[Per, int] = field(default_factory=dict[Any, int])
    started: RunStarted | None = None
    ended: RunEnded | None = None
    pace: Pace = field(default_factory=Pace)
    spoke: int = 0
    told: bool = False
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    gaps: list[tuple[int, int, int, int | None]] = field(default_factory=list[Any])
    held: tuple[float, int | None] | None = None

    @property
    def first(self) -> int | None:
        """Where it branches off: its first step; None before it."""
        return branch_point(self.first_step)

    def miss(self, lane: int, first: int, last: int) -> None:
        """Records ``first`` to ``last`` are not here."""
        self.dropped[MISSING] = self.dropped.get(MISSING, 0) + last - first + 1
        if self.gaps and self.gaps[-1][0] == lane and self.gaps[-1][2] + 1 == first:
            self.gaps[-1] = (lane, self.gaps[-1][1], last, self.gaps[-1][3])
        elif len(self.gaps) < MAX_GAPS:
            self.gaps.append((lane, first, last, self.pace.step))


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
        said: Everything in order. Only the last may still change: rows that follow rows of the same set join them.
        lines: Notes and alerts, as they came.
        samples: References by sample name, oldest first.
        ranks: Ranks that ever spoke, lowest first.
        late: Those of them that belong to the newest start; a job may come back with fewer.
    """

    def __init__(self, run: bytes) -> None:
        self.run = run
        self.revision = 0
        self.said: list[Said] = []
        self.lines: list[Log | Alert] = []
        self.samples: dict[str, list[SampleRef]] = {}
        self.ranks: list[int] = []
        self.late: list[int] = []
        self._sources: dict[SourceKey, SourceHistory] = {}
        self._lives: dict[int, list[int]] = {}
        # By incarnation: what a dead one left may come after what its successor said, which goes before it.
        self._described: dict[str, dict[int, dict[str, Any]]] = {what: {} for what in get_args(DescribedWhat)}
        self._commands = Commands()
        self._metrics: dict[str, None] = {}
        self._gauges: dict[str, None] = {}

    # -- building

    def add(self, message: Message, count: int) -> None:
        """Take a stored block (or gap) of ``count`` records; one that is already here changes nothing.

        Metrics and events are told on one lane, samples on the other; what stands on the wrong one is passed over.

        Raises:
            DecodeError: A record in it breaks the rules; those before it were taken.
        """
        key, lane = (message.sender.incarnation, message.sender.rank), message.lane
        source = self._source(key)
        if message.seq <= source.heads[lane]:
            return
        # A lane of records has no holes but those that were lost in the store; samples have a tombstone each.
        if lane == RECORDS and message.seq > source.heads[lane] + 1:
            source.miss(lane, source.heads[lane] + 1, message.seq - 1)
        source.heads[lane] = message.seq + count - 1
        self.revision += 1
        for seq, event in decode_events(message, arrays=False):
            if isinstance(event, MetricRows):
                if lane == RECORDS:
                    self._add_rows(source, key, event, seq)
            elif isinstance(event, Sample):
                if lane == BULK:
                    self._add_sample(sample_ref(key[0], seq, event))
            elif lane == RECORDS or isinstance(event, Dropped):
                self.said.append(Said(key, lane, seq, event))
                if message.kind == Kind.GAP:
                    source.miss(lane, message.seq, source.heads[lane])
                else:
                    self._add_event(source, key, event)
            source.spoke += not (isinstance(event, MetricRows) and event.per == "time")

    def add_sample(self, ref: SampleRef) -> None:
        """Take a sample from the store's index, or from another hub's."""
        source = self._source((ref.incarnation, ref.rank))
        if ref.seq > source.heads[BULK]:
            source.heads[BULK] = ref.seq
            source.spoke += 1
            self.revision += 1
            self._add_sample(ref)

    def _source(self, key: SourceKey) -> SourceHistory:
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = SourceHistory()
            bisect.insort(self._lives.setdefault(key[1], []), key[0])
            self.ranks = sorted(self._lives)
            restart = max((lives[-1] for lives in self._lives.values() if len(lives) > 1), default=0)
            self.late = [rank for rank in self.ranks if self._lives[rank][-1] > restart - SAME_START]
        return source

    def _add_sample(self, ref: SampleRef) -> None:
        self.samples.setdefault(ref.name, []).append(ref)
        self.said.append(Said((ref.incarnation, ref.rank), BULK, ref.seq, ref))

    def _add_rows(self, source: SourceHistory, key: SourceKey, rows: MetricRows, seq: int) -> None:
        columns = source.columns.get((rows.per, rows.names))
        if columns is None:
            columns = source.columns[rows.per, rows.names] = Columns(rows.names, rows.per)
            names = self._gauges if rows.per == "time" else self._metrics
            names.update(dict.fromkeys(rows.names))
        start = len(columns)
        columns.append(rows.columns, seq)
        self._say_rows(key, columns, start, seq + len(rows) - 1)
        least = int(rows.columns[0].min())
        source.first_step[rows.per] = min(least, source.first_step.get(rows.per, least))
        if rows.per != "time":
            source.told = True
            if source.held is not None and (source.held[1] is None or rows.columns[0, -1] > source.held[1]):
                self._go_on(source, float(rows.columns[3, 0]))
            _keep_pace(source.pace, rows)

    def _say_rows(self, key: SourceKey, columns: Columns, start: int, last: int) -> None:
        if self.said:
            former = self.said[-1].what
            if isinstance(former, Span) and former.columns is columns and len(columns) - former.start <= SPAN_ROWS:
                self.said.pop()
                start = former.start
        self.said.append(Said(key, RECORDS, last, Span(columns, start, len(columns), key[1])))

    def _add_event(self, source: SourceHistory, key: SourceKey, event: Event) -> None:
        if isinstance(event, RunStarted):
            source.started = event
            # Rank 0 speaks for the run; the others may only add.
            if event.rank == 0 or not any(self._described["info"].values()):
                self._describe("config", key, event.config)
                self._describe("info", key, event.info)
        elif isinstance(event, Described):
            if key[1] == self.ranks[0]:
                self._describe(event.what, key, event.values)
        elif isinstance(event, RunEnded):
            source.ended = event
        elif isinstance(event, (Command, CommandDone)):
            self._commands.add(key, event)
            if isinstance(event, CommandDone) and event.status == "applied":
                if event.name == "pause":
                    source.held = (event.time, event.step)
                elif event.name in GOES_ON and source.held is not None:
                    self._go_on(source, event.time)
        elif isinstance(event, (Log, Alert)):
            self.lines.append(event)
            del self.lines[:-MAX_LINES]
        elif isinstance(event, Dropped):
            what = event.what[:40] if event.what in source.dropped or len(source.dropped) < MAX_KINDS else "records"
            source.dropped[what] = source.dropped.get(what, 0) + max(0, event.count)

    def _go_on(self, source: SourceHistory, time: float) -> None:
        """A pause is over: it is no sign of how fast the run goes, for none of its ranks."""
        assert source.held is not None
        began, source.held = source.held[0], None
        paces = [s.pace for rank in self.late if (s := self.current(rank)) is not None]
        for pace in [source.pace, *(pace for pace in paces if pace is not source.pace)]:
            if pace.last is not None and pace.last[0] <= time:
                pace.skip(time - began)

    def _describe(self, what: str, key: SourceKey, values: Mapping[str, Any]) -> None:
        self._described[what].setdefault(key[0], {}).update(values)

    # -- asking

    @property
    def heads(self) -> dict[SourceKey, list[int]]:
        """Per source, the highest sequence number of each lane."""
        return {key: list(source.heads) for key, source in self._sources.items()}

    def head(self, key: SourceKey) -> list[int]:
        """Per lane, the highest sequence number of a source; zeros when it has not spoken."""
        source = self._sources.get(key)
        return [0, 0] if source is None else source.heads

    @property
    def started(self) -> RunStarted | None:
        """How the run said it began: by its lowest rank, newest incarnation."""
        for rank in self.late + self.ranks:
            for number in reversed(self._lives[rank]):
                started = self._sources[number, rank].started
                if started is not None:
                    return started
        return None

    @property
    def first_time(self) -> float:
        """Unix seconds at which its first incarnation began; 0 when unknown."""
        return min((s.started.time for s in self._sources.values() if s.started is not None), default=0.0)

    def incarnation(self, rank: int) -> int:
        """The newest process life of a rank; 0 when it has not spoken."""
        return self._lives[rank][-1] if rank in self._lives else 0

    def current(self, rank: int) -> SourceHistory | None:
        """The newest incarnation of a rank."""
        return self._sources.get((self.incarnation(rank), rank))

    def described(self, what: str) -> dict[str, Any]:
        """``"config"``, ``"summary"``, ``"info"`` or ``"controls"``, as last told."""
        merged: dict[str, Any] = {}
        for number in sorted(self._described[what]):
            merged |= self._described[what][number]
        return merged

    @property
    def controls(self) -> dict[str, Any]:
        """What may be asked of the run's newest life: name to what it is."""
        newest = self.incarnation(self.ranks[0]) if self.ranks else 0
        return dict(self._described["controls"].get(newest, {}))

    @property
    def command_records(self) -> list[CommandRecord]:
        """What was asked of the run, and what became of it, in the order in which it reached the run."""
        return list(self._commands.records(self._is_over))

    def command(self, pair: Pair) -> CommandRecord | None:
        """One of these; None when the run has not told of it."""
        return self._commands.record(pair, self._is_over)

    def _is_over(self, key: SourceKey) -> bool:
        source = self._sources.get(key)
        return key[0] < self.incarnation(key[1]) or (source is not None and source.ended is not None)

    def is_paused(self, rank: int) -> bool:
        """Whether a rank holds because it was asked to; the lowest is asked for all of them."""
        sources = [self.current(one) for one in dict.fromkeys((rank, min(self.late, default=rank)))]
        return any(source is not None and source.held is not None for source in sources)

    @property
    def lines_by_time(self) -> list[Log | Alert]:
        """Notes and alerts, oldest first, also where those of a dead incarnation came late."""
        if all(len(numbers) == 1 for numbers in self._lives.values()):
            return list(self.lines)
        return sorted(self.lines, key=lambda line: line.time)

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
        """How the run ended, by its newest start; a failure of any rank goes before the rest."""
        ends = [s.ended for rank in self.late if (s := self.current(rank)) is not None and s.ended is not None]
        return min(ends, key=lambda end: (end.status != "failed", end.status != "interrupted", end.rank), default=None)

    @property
    def dropped(self) -> dict[str, int]:
        """Records that were given up, by kind."""
        found: dict[str, int] = {}
        for source in self._sources.values():
            for what, count in source.dropped.items():
                found[what] = found.get(what, 0) + count
        return found

    @property
    def gaps(self) -> list[Gap]:
        """Records that are missing, by rank and incarnation."""
        return [
            Gap(rank, number, *gap) for rank in self.ranks for number in self._lives[rank]
            for gap in self._sources[number, rank].gaps
        ]  # fmt: skip

    def branches(self, rank: int | None = None) -> list[Branch]:
        """The process lives of a rank (None: the lowest), oldest first, and where each began."""
        if not self.ranks:
            return []
        rank = self.ranks[0] if rank is None else rank
        found: list[Branch] = []
        for number in self._lives.get(rank, []):
            source = self._sources[number, rank]
            first, last = source.first, source.pace.step
            before = max((b.last_step for b in found if b.last_step is not None), default=None)
            again = first is not None and before is not None and first <= before
            started = source.started.time if source.started is not None else 0.0
            found.append(Branch(number, first, last, started, first if again else None))
        return found

    def curve(self, name: str, per: str = "auto", rank: int | None = None, branch: int | None = None) -> Curve:
        """One metric as it was logged; see ``WatchedRun.curve``.

        Raises:
            UnknownRun: No such metric; the message lists what there is.
        """
        chosen = self._resolve(name, per)
        ranks = [rank] if rank is not None else self.ranks
        for one in ranks:
            pieces = list(self._pieces(name, chosen, one, branch))
            if pieces:
                columns = np.concatenate(pieces, axis=1)
                return Curve(name, chosen, columns[0].astype(np.int64), columns[1], columns[3], columns[5])
        told = ", ".join(self.metrics + self.gauges) or "none yet"
        where = "" if rank is None else f" of rank {rank}"
        raise UnknownRun(f"no metric {name!r}{where} per {chosen} in this run; there are: {told}")

    def _resolve(self, name: str, per: str) -> Per:
        if per != "auto":
            return cast(Per, per)
        kinds = {c.per for source in self._sources.values() for c in source.columns.values() if name in c}
        found: list[Per] = [kind for kind in PERS if kind in kinds]
        return found[0] if found else "batch"

    def _pieces(self, name: str, per: Per, rank: int, branch: int | None) -> Iterator[Array]:
        """Rows of one rank by incarnation, oldest first; what a later one took up again is left out."""
        numbers = [n for n in self._lives.get(rank, []) if branch is None or n <= branch]
        for index, number in enumerate(numbers):
            source = self._sources[number, rank]
            found = [c.of(name) for c in source.columns.values() if c.per == per and name in c]
            if not found:
                continue
            rows = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
            if len(found) > 1:
                rows = rows[:, np.argsort(rows[4], kind="stable")]
            if per != "time":
                for later in numbers[index + 1 :]:
                    after = self._sources[later, rank]
                    rows = rows[:, goes_before(rows, per, after.first_step, after.pace.first_epoch)]
            yield rows

    def sample_refs(self, name: str, branch: int | None = None) -> list[SampleRef]:
        """Samples of one name, oldest first, of the newest branch or of one as it was.

        Raises:
            UnknownRun: No such sample; the message lists what there is.
        """
        if name not in self.samples:
            raise UnknownRun(f"no sample {name!r} in this run; there are: {', '.join(self.samples) or 'none yet'}")
        refs = list(self.samples[name])
        if all(len(numbers) == 1 for numbers in self._lives.values()):
            return refs
        if branch is not None:
            refs = [ref for ref in refs if ref.incarnation <= branch]
        # What a dead trainer left may be delivered after what its successor said.
        refs.sort(key=lambda ref: self._lives[ref.rank].index(ref.incarnation))
        return [ref for ref in refs if not self._is_replaced(ref, branch)]

    def _is_replaced(self, ref: SampleRef, branch: int | None) -> bool:
        later = (n for n in self._lives[ref.rank] if ref.incarnation < n and (branch is None or n <= branch))
        firsts = [first for n in later if (first := self._sources[n, ref.rank].first) is not None]
        return ref.step is not None and bool(firsts) and ref.step >= min(firsts)

    def latest(self, name: str) -> float:
        """The newest value of a metric, by the lowest rank that has it; NaN when there is none."""
        for (_, _), source in sorted(self._sources.items(), key=lambda item: (-item[0][0], item[0][1])):
            # Batch values are newer than those of the last epoch, which bear the same name in Keras.
            having = [c for c in source.columns.values() if name in c]
            told = [c.newest(name) for c in having if c.per != "epoch"] or [c.newest(name) for c in having]
            if told:
                return max(told, key=operator.itemgetter(0))[1]
        return float("nan")

    def first_met(self, name: str, met: Callable[[Array], float | None], looked: dict[Columns, int]) -> float | None:
        """The first value of a metric that ``met`` finds among those told since the last look; None when none does.

        By the lowest rank that has the metric; of all incarnations, also where a later one took its steps up again.

        Args:
            name: Of the metric.
            met: Takes float64 ``(n,)``.
            looked: Rows that were looked at, by set; kept by the caller from one look to the next.
        """
        having = [(key[1], c) for key, s in self._sources.items() for c in s.columns.values() if name in c]
        lowest = min((rank for rank, _ in having), default=0)
        for rank, columns in having:
            start, stop = looked.get(columns, 0), len(columns)
            if rank == lowest and start < stop:
                looked[columns] = stop
                found = met(columns.values(name, start, stop))
                if found is not None:
                    return found
        return None


def _keep_pace(pace: Pace, rows: MetricRows) -> None:
    index = rows.columns[:4]
    first, last = index[:, 0].tolist(), index[:, -1].tolist()  # one by one they cost more than all that follows
    gap = 0.0
    if len(rows) > 1:
        with np.errstate(over="ignore"):  # of a peer that makes times up
            gap = max(gap, float(np.subtract(index[3, 1:], index[3, :-1]).max()))
    if pace.first_epoch is None and first[1] == first[1]:
        pace.first_epoch = int(first[1])
    if rows.per == "epoch":
        pace.epochs_done = max(pace.epochs_done, int(np.nanmax(index[1], initial=-1)) + 1)
    if pace.last is None:
        pace.told(first[3], int(first[0]), None, None)
    else:
        gap = max(gap, first[3] - pace.last[0])
    step, epoch, batch, time = last
    pace.rows += len(rows)
    pace.after_epoch = rows.per == "epoch"
    pace.told(
        time, int(step), None if epoch != epoch else int(epoch), None if batch != batch else int(batch), gap
    )  # fmt: skip


def explode_span(span: Span, after: int = 0) -> Iterator[Event]:
    """The rows of a span one by one, as events; those with sequence numbers up to ``after`` are left out."""
    start = span.columns.place(after, span.start, span.stop)
    yield from explode(MetricRows(span.columns.names, span.columns.per, span.columns.rows(start, span.stop), span.rank))

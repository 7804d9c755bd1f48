"""What is said: typed events ⇄ the parts of a block.

An event is frozen and checked at birth. This module knows what records mean; it does not know how bytes are laid out
(``protocol/blocks.py``), who sends them, or when. Metrics travel many rows at a time, as float64 columns, so that NaN
and infinities are exact; everything else is small fields and, for samples, raw arrays. Longer than most files here, so
that what an event is and how it travels stand on one page.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np

from fitwire.errors import DecodeError, EncodeError
from fitwire.protocol.arrays import MAX_ARRAY_BYTES, Array, decode_array, encode_array, expected_size
from fitwire.protocol.blocks import KNOWN, Buffer, Kind, Message, decode_json, encode_json, read_text

__all__ = [
    "ROLES",
    "Alert",
    "Command",
    "CommandDone",
    "CommandStatus",
    "Described",
    "DescribedWhat",
    "Dropped",
    "EpochEnded",
    "Event",
    "Log",
    "MetricRows",
    "Metrics",
    "Per",
    "RunEnded",
    "RunStarted",
    "Sample",
    "decode_events",
    "encode_event",
    "encode_rows",
    "explode",
]

Per = Literal["batch", "epoch", "time"]
"""What one point of a curve stands for: a batch, an epoch, or a moment (system gauges)."""

DescribedWhat = Literal["config", "summary", "info", "controls"]
Level = Literal["debug", "info", "warning", "error"]
Status = Literal["finished", "failed", "interrupted"]

ROLES = (
    "image", "target", "prediction", "mask", "heatmap", "keypoints", "boxes", "series", "classes", "text", "input",
)  # fmt: skip
"""What an array of a sample is, so that a view can draw it; any other name is drawn by its shape."""

MAX_NAME = 256
"""Characters of a metric's or sample's name."""
MAX_TEXT_BYTES = 2**20
"""A config, traceback or note as JSON; longer ones are cut where they are made."""
INLINE_BYTES = 1024
"""Fields longer than this travel as a buffer, so that frame 1 stays small."""
INLINE_DEPTH = 12
"""Fields that could be nested deeper than this do too: frame 1 allows 16, and they stand three deep in it."""
WHOLE = 2**53
"""Steps, epochs and batches are below it: a float64 column holds no greater whole number exactly."""

COLUMNS = ("step", "epoch", "batch", "time")
"""Columns before the values; an absent epoch or batch is NaN."""
_BOUNDS = np.array([[WHOLE], [WHOLE], [WHOLE], [np.inf]])


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"{kind} name {str(name)[:40]!r} needs 1 to {MAX_NAME} characters")


def _check_choice(what: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{what} is {str(value)[:40]!r}: pass one of {', '.join(get_args(choices))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What every event carries.

    Attributes:
        time: Unix seconds at the trainer when it was said.
        rank: Process that said it; 0 when training is not distributed.
        step: Index of the last optimizer step done, from 0 per run; None before the first.
    """

    time: float = 0.0
    rank: int = 0
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(_Said):
    """A training began, or began again as a new incarnation.

    Attributes:
        name: The run's name, for people.
        project: What it belongs to.
        group: Runs that belong together, e.g. folds; None without one.
        tags: Words to find it by.
        config: What the user set: hyper-parameters, plain JSON values.
        info: What was found: framework, versions, host, pid, world_size, totals, model, optimizer.
    """

    name: str
    project: str = "default"
    group: str | None = None
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        _check_name("run", self.name)
        _check_name("project", self.project)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described(_Said):
    """Something about the run was added or changed; ``values`` are merged over what was known.

    Attributes:
        what: ``"config"`` (what the user set), ``"summary"`` (results), ``"info"`` (what was found) or ``"controls"``
            (what may be asked of it: name to ``kind``, and of a knob its ``type``, ``value``, ``low``, ``high``,
            ``choices`` and ``log``).
        values: Plain JSON values.
    """

    what: DescribedWhat
    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_choice("what", self.what, DescribedWhat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(_Said):
    """Values at one step.

    Attributes:
        values: Name to number; NaN and infinities as they were.
        per: ``"batch"``, or ``"time"`` for system gauges.
        epoch: From 0; None when the loop has none.
        batch: Within its epoch, from 0; None when not told.
    """

    values: Mapping[str, float]
    per: Per = "batch"
    epoch: int | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded(Metrics):
    """Values of a whole epoch, validation included."""

    per: Per = "epoch"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample(_Said):
    """Model inputs, targets and outputs for a few examples, taken at one step.

    Attributes:
        name: What it shows, e.g. ``"masks"``.
        arrays: By role or name (``"image"``, ``"target"``, ``"prediction"`` …): shape ``(examples, ...)``, the dtype
            they had; ``text`` is an array of str.
        epoch: From 0; None when the loop has none.
    """

    name: str
    arrays: Mapping[str, Array]
    epoch: int | None = None

    def __post_init__(self) -> None:
        _check_name("sample", self.name)
        if not self.arrays:
            raise ValueError(f"sample {self.name!r} holds no array: pass image=, target=, prediction= …")
        for key, values in self.arrays.items():
            _check_name("array", key)
            if values.ndim == 0 or len(values) == 0:
                raise ValueError(f"sample {self.name!r}: {key} needs shape (examples, ...), got {values.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(_Said):
    """A line of text from the trainer.

    Attributes:
        text: What it says.
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """

    text: str
    level: Level = "info"

    def __post_init__(self) -> None:
        _check_choice("level", self.level, Level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert(_Said):
    """Something the trainer wants a person to see.

    Attributes:
        title: In a few words.
        text: In full.
        level: ``debug``, ``info``, ``warning`` or ``error``.
    """

    title: str
    text: str = ""
    level: Level = "warning"

    def __post_init__(self) -> None:
        _check_choice("level", self.level, Level)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(_Said):
    """A training ended.

    Attributes:
        status: ``finished``, ``failed`` or ``interrupted``.
        reason: One line: why; empty when it finished.
        traceback: The exception's, when there was one.
        told_by: ``"keeper"`` when ``fitwire run`` says it, because the training said nothing; None for itself.
    """

    status: Status
    reason: str = ""
    traceback: str = ""
    told_by: str | None = None

    def __post_init__(self) -> None:
        _check_choice("status", self.status, Status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped(_Said):
    """Records that were accepted and had to be given up, in their own place.

    Attributes:
        count: How many.
        what: Their kind: ``"sample"`` or ``"metrics"``; ``"records"`` when nobody knows.
        reason: Why.
        first_step: Least step among them; None when they had none.
        last_step: Greatest step among them.
        values: What is left of metrics: name to ``[n, min, max, mean, last]`` of its finite values.
    """

    count: int
    what: str
    reason: str
    first_step: int | None = None
    last_step: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])


CommandStatus = Literal["applied", "accepted", "refused", "expired", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(_Said):
    """What a watcher asked for, as the training took it.

    Attributes:
        client: 32 hexadecimal digits: who asks, for the life of a client.
        number: Of the command, from 1 for each client; the two together are carried out once.
        name: ``"stop"``, ``"set"``, ``"pause"`` and so on.
        arguments: Plain JSON values.
        author: For people: user and host, as the client says.
        asked: Unix seconds at the client.
    """

    client: str
    number: int
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    author: str = ""
    asked: float = 0.0

    def __post_init__(self) -> None:
        _check_name("command", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandDone(_Said):
    """What became of a command; ``step`` is the one at which it was carried out.

    Attributes:
        client: As of the command.
        number: As of the command.
        name: As of the command.
        status: ``"applied"``; ``"accepted"`` when it takes effect later; ``"refused"``, ``"expired"`` or ``"failed"``.
        reason: Why, or what it waits for.
        before: What was changed, as it was; None where nothing was.
        after: What it is now.
        author: As of the command.
    """

    client: str
    number: int
    name: str
    status: CommandStatus
    reason: str = ""
    before: Any = None
    after: Any = None
    author: str = ""

    def __post_init__(self) -> None:
        _check_name("command", self.name)
        _check_choice("status", self.status, CommandStatus)


@dataclass(frozen=True, slots=True, eq=False)
class MetricRows:
    """Many rows of one set of metrics, as they travel.

    Attributes:
        names: Of the ``k`` metrics.
        per: What a row stands for.
        columns: float64 ``(4 + k, n)``: step, epoch, batch, time (Unix seconds), then the values; an absent epoch or
            batch is NaN.
        rank: Process that said it.
    """

    names: tuple[str, ...]
    per: Per
    columns: Array
    rank: int = 0

    def __len__(self) -> int:
        return int(self.columns.shape[1])


Event = (
    RunStarted | Described | Metrics | EpochEnded | Sample | Log | Alert | RunEnded | Dropped | Command | CommandDone
)

_TYPES: dict[str, type[Any]] = {
    "run_started": RunStarted,
    "described": Described,
    "log": Log,
    "alert": Alert,
    "run_ended": RunEnded,
    "dropped": Dropped,
    "sample": Sample,
    "command": Command,
    "command_done": CommandDone,
}
_WORDS = {cls: word for word, cls in _TYPES.items()}

Part = tuple[dict[str, Any], list[tuple[dict[str, Any], Buffer]]]


def encode_rows(
    names: Sequence[str], per: Per, rows: Sequence[tuple[float, float, float, float]], values: Sequence[Sequence[float]]
) -> Part:
    """Encode rows of one metric set as a part of a block.

    Args:
        names: Of the ``k`` metrics.
        per: What a row stands for.
        rows: ``n`` times step, epoch, batch, time; NaN for what is absent.
        values: ``n`` times ``k`` numbers.

    Raises:
        EncodeError: The names take over 1 MiB, or a name cannot travel.
    """
    columns = np.empty((len(COLUMNS) + len(names), len(rows)))
    columns[: len(COLUMNS)] = np.array(rows, dtype=np.float64).T
    if names:
        columns[len(COLUMNS) :] = np.array(values, dtype=np.float64).T
    part: dict[str, Any] = {"t": "metrics", "n": len(rows), "per": per}
    buffers: list[tuple[dict[str, Any], Buffer]] = [encode_array(columns)]
    text = encode_json({"names": list(names)})
    if len(text) > INLINE_BYTES:
        buffers.insert(0, _text_buffer(text, "fields"))
    else:
        part["names"] = list(names)
    return part, buffers


def _text_buffer(text: bytes, means: str) -> tuple[dict[str, Any], Buffer]:
    if len(text) > MAX_TEXT_BYTES:
        raise EncodeError(f"{means} of {len(text):,} bytes, at most {MAX_TEXT_BYTES:,}")
    return {"dtype": "|u1", "shape": [len(text)], "as": means}, text


def encode_event(event: Event) -> Part:
    """Encode one event other than metrics as a part of a block, with the buffers it needs.

    Raises:
        EncodeError: It holds what cannot travel.
    """
    word = _WORDS.get(type(event))
    if word is None:
        raise EncodeError(f"{type(event).__name__} does not travel as a single event")
    fields: dict[str, Any] = {"time": event.time}
    if event.step is not None:
        fields["step"] = event.step
    buffers: list[tuple[dict[str, Any], Buffer]] = []
    for key in event.__dataclass_fields__:
        if key in ("time", "rank", "step", "arrays"):
            continue
        value = getattr(event, key)
        if value is not None and not (key == "values" and not value and word == "dropped"):
            fields[key] = list(cast("tuple[str, ...]", value)) if isinstance(value, tuple) else value
    part: dict[str, Any] = {"t": word}
    if isinstance(event, Dropped):
        part["n"] = event.count
    text = encode_json(fields)
    if len(text) > INLINE_BYTES or text.count(b"{") + text.count(b"[") > INLINE_DEPTH:
        buffers.append(_text_buffer(text, "fields"))
    else:
        part["f"] = fields
    try:
        # Read back what the user's own values made: the other end must not be the first to find it wrong.
        _checked_fields(word, decode_json(text, MAX_TEXT_BYTES))
    except DecodeError as error:
        raise EncodeError(f"cannot send {word}: {error}") from None
    if isinstance(event, Sample):
        buffers.extend(_sample_buffer(key, values) for key, values in event.arrays.items())
    return part, buffers


def _sample_buffer(name: str, values: Array) -> tuple[dict[str, Any], Buffer]:
    if values.dtype.kind != "U":
        header, data = encode_array(values)
        return header | {"name": name}, data
    header, data = _text_buffer(encode_json({"text": values.reshape(-1).tolist()}), "text")
    return header | {"name": name, "of": list(values.shape), "width": max(1, values.dtype.itemsize // 4)}, data


def decode_events(message: Message, *, arrays: bool = True) -> Iterator[tuple[int, MetricRows | Event]]:
    """Yield what a block says, each with the sequence number of its first record.

    Types this version does not know are passed over. A ``GAP`` reads as :class:`Dropped`.

    Args:
        message: A decoded block whose counts and sizes were checked (``blocks.block_of``), or one without its
            buffers when ``arrays`` is false.
        arrays: Whether to rebuild the arrays of samples; without them ``Sample`` is yielded with empty stand-ins of
            the right shape and dtype.

    Raises:
        DecodeError: A field is missing, of the wrong type or out of its range.
    """
    seq, rank = message.seq, message.sender.rank
    if message.kind == Kind.GAP:
        last = message.body.get("to")
        if type(last) is not int or last < seq:
            raise DecodeError("gap", "a gap without an end")
        yield (
            seq,
            Dropped(count=last - seq + 1, what="records", reason=str(message.body.get("reason"))[:200], rank=rank),
        )
        return
    plan = _known_plan(message.text) if message.text else None
    if plan is not None and len(message.buffers) == len(plan):
        for (words, per, count), buffer in zip(plan, message.buffers, strict=True):
            yield seq, MetricRows(words, per, _checked_columns(buffer, len(words), count), rank)
            seq += count
        return
    headers = cast("list[dict[str, Any]]", message.body["buffers"])
    at = 0
    for part in cast("list[dict[str, Any]]", message.body["parts"]):
        taken = part.get("b", 0)
        if type(taken) is not int or not 0 <= taken <= len(headers) - at:
            raise DecodeError("parts", "a part that takes buffers that are not there")
        mine, at = range(at, at + taken), at + taken
        count = cast(int, part.get("n", 1))
        word = part.get("t")
        try:
            if word == "metrics":
                yield seq, _decode_rows(part, count, headers, mine, message.buffers, rank)
            elif isinstance(word, str) and word in _TYPES:
                yield seq, _decode_event(word, part, headers, mine, message.buffers, rank, arrays)
        except DecodeError:
            raise
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DecodeError("event", f"{str(word)[:40]}: {str(error)[:120]}") from None
        seq += count


_RowPlan = tuple[tuple[str, ...], Per, int]
"""Names, what a row stands for, rows."""


@functools.lru_cache(KNOWN)
def _known_plan(text: bytes) -> tuple[_RowPlan, ...] | None:
    """What a frame 1 says that tells of nothing but rows with one buffer each; None of any other."""
    body = read_text(text)
    headers = cast("list[dict[str, Any]]", body["buffers"])
    parts = cast("list[dict[str, Any]]", body["parts"])
    if len(parts) != len(headers) or not all(_is_plain_rows(part) for part in parts):
        return None
    try:
        return tuple(
            (_row_names(part.get("names"), part, header, part.get("n", 1)), part["per"], part.get("n", 1))
            for part, header in zip(parts, headers, strict=True)
        )
    except (DecodeError, ValueError, TypeError):  # said when it is read part by part
        return None


def _is_plain_rows(part: dict[str, Any]) -> bool:
    buffers: object = part.get("b")
    return part.get("t") == "metrics" and type(buffers) is int and buffers == 1


def _decode_rows(
    part: dict[str, Any], count: int, headers: list[dict[str, Any]], mine: range, buffers: Sequence[Buffer], rank: int
) -> MetricRows:
    names, own = part.get("names"), list(mine)
    if names is None and len(own) == 2 and headers[own[0]].get("as") == "fields":
        names = decode_json(buffers[own.pop(0)], MAX_TEXT_BYTES).get("names")
    if len(own) != 1:
        raise DecodeError("event", "metrics without names or columns")
    words = _row_names(names, part, headers[own[0]], count)
    return MetricRows(words, part["per"], _checked_columns(buffers[own[0]], len(words), count), rank)


def _row_names(names: object, part: dict[str, Any], header: dict[str, Any], count: int) -> tuple[str, ...]:
    """Check all that is said of rows but their numbers."""
    _check_choice("per", part.get("per"), Per)
    if not isinstance(names, list):
        raise DecodeError("event", "metrics without names or columns")
    for name in cast("list[object]", names):
        _check_name("metric", name)
    words = tuple(cast("list[str]", names))
    if len(set(words)) != len(words):
        raise DecodeError("event", "a metric that stands twice in one row")
    if header.get("dtype") != "<f8" or header.get("shape") != [len(COLUMNS) + len(words), count]:
        raise DecodeError("event", f"columns of {header.get('shape')} for {len(words)} metrics, {count} rows")
    return words


def _checked_columns(buffer: Buffer, width: int, count: int) -> Array:
    """float64 ``(4 + width, count)``, a view of the buffer."""
    if len(buffer) != 8 * (len(COLUMNS) + width) * count:
        raise DecodeError("size", f"{len(buffer):,} bytes for {count} rows of {width} metrics")
    columns: Array = np.frombuffer(buffer, "<f8").reshape(len(COLUMNS) + width, count)
    index = columns[: len(COLUMNS)]
    good = np.abs(index) < _BOUNDS
    good[1:3] |= np.isnan(index[1:3])  # NaN says that there is none
    if not good.all():
        if not good[1:3].all():
            raise DecodeError("event", "an epoch or batch that is no number")
        raise DecodeError("event", "a step or time that is no number")
    return columns


_FIELDS: dict[str, tuple[type, ...]] = {
    "time": (int, float), "step": (int,), "epoch": (int,), "name": (str,), "project": (str,), "group": (str,),
    "tags": (list,), "config": (dict,), "info": (dict,), "what": (str,), "values": (dict,), "text": (str,),
    "level": (str,), "title": (str,), "status": (str,), "reason": (str,), "traceback": (str,), "count": (int,),
    "first_step": (int,), "last_step": (int,), "told_by": (str,), "client": (str,), "number": (int,),
    "arguments": (dict,), "author": (str,), "asked": (int, float), "before": (), "after": (),
}  # fmt: skip
"""Types of each field as JSON has it; any for none."""


def _decode_event(
    word: str,
    part: dict[str, Any],
    headers: list[dict[str, Any]],
    mine: range,
    buffers: Sequence[Buffer],
    rank: int,
    arrays: bool,
) -> Event:
    fields: object = part.get("f")
    own = list(mine)
    if fields is None and own and headers[own[0]].get("as") == "fields":
        fields = decode_json(buffers[own.pop(0)], MAX_TEXT_BYTES) if len(buffers) else {"time": 0.0, "name": "?"}
    if not isinstance(fields, dict):
        raise DecodeError("event", f"{word} without fields")
    known = _checked_fields(word, cast("dict[str, Any]", fields)) | {"rank": rank}
    if word == "sample":
        named = {headers[i]["name"]: _sample_array(headers[i], i, buffers, arrays) for i in own}
        if len(named) != len(own) or not all(isinstance(name, str) for name in named):
            raise DecodeError("event", "a sample whose arrays have no names of their own")
        known["arrays"] = named
    return cast("Event", _TYPES[word](**known))


def _checked_fields(word: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that this version knows of an event, with the types they must have."""
    known: dict[str, Any] = {}
    for key, value in fields.items():
        if key not in _TYPES[word].__dataclass_fields__ or key not in _FIELDS:
            continue
        types = _FIELDS[key]
        if types and (isinstance(value, bool) or not isinstance(value, types)):
            raise DecodeError("event", f"{word}.{key} is a {type(value).__name__}")
        if types and isinstance(value, int) and abs(value) >= WHOLE:
            raise DecodeError("event", f"{word}.{key} is {value}, at most 2**53")
        known[key] = value
    known["time"] = float(known.get("time", 0.0))
    if "tags" in known:
        known["tags"] = tuple(str(tag)[:MAX_NAME] for tag in known["tags"])
    return known


def _sample_array(header: dict[str, Any], index: int, buffers: Sequence[Buffer], real: bool) -> Array:
    if header.get("as") == "text":
        return _text_array(header, buffers[index] if real else None)
    if not real:
        dtype, shape, _ = expected_size(header)
        # A view of one element: the right shape and dtype without the memory.
        return np.broadcast_to(np.empty((), dtype), shape)
    return decode_array(header, buffers[index])


def _text_array(header: dict[str, Any], buffer: Buffer | None) -> Array:
    width, shape = header.get("width"), header.get("of")
    if type(width) is not int or not 0 < width <= MAX_TEXT_BYTES:
        raise DecodeError("event", f"text of {str(width)[:40]} characters")
    # numpy gives every text the width of the longest: one long one among many short ones is a bomb.
    _, dims, size = expected_size({"dtype": "<u4", "shape": shape})
    if size * width > MAX_ARRAY_BYTES:
        raise DecodeError("size", f"texts that take {size * width:,} bytes, at most {MAX_ARRAY_BYTES:,}")
    dtype = np.dtype(f"<U{width}")
    if buffer is None:
        return np.broadcast_to(np.empty((), dtype), dims)
    texts = decode_json(buffer, MAX_TEXT_BYTES).get("text")
    items = cast("list[object]", texts) if isinstance(texts, list) else []
    if len(items) != size // 4 or not all(isinstance(item, str) and len(item) <= width for item in items):
        raise DecodeError("event", f"text that is not {size // 4} texts of at most {width} characters")
    return np.array(items, dtype=dtype).reshape(dims)


def explode(rows: MetricRows) -> Iterator[Metrics]:
    """Yield rows one by one, as events."""
    cls = EpochEnded if rows.per == "epoch" else Metrics
    for column in rows.columns.T.tolist():
        step, epoch, batch, time, *values = cast("list[float]", column)
        yield cls(
            time=time, rank=rows.rank, step=int(step), per=rows.per,
            epoch=None if epoch != epoch else int(epoch), batch=None if batch != batch else int(batch),
            values=dict(zip(rows.names, values, strict=True)),
        )  # fmt: skip

"""``docs/protocol.md`` says what the code does: its numbers, tables and fields are compared with the code."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import fitwire
from fitwire import events
from fitwire.protocol.arrays import encode_array, expected_size
from fitwire.protocol.blocks import HEAD, MAGIC, VERSION, Kind, decode_message
from fitwire.protocol.sink import reject
from fitwire.protocol.source import GREETINGS, TRANSITIONS
from fitwire.protocol.viewer import Viewer
from fitwire.transport.memory import LossyLink
from helpers import ME, Ends, frames_of, history, records
from pages import DOCS
from test_commands import Wire

PAGE = (DOCS / "protocol.md").read_text("utf-8")


def table(*columns: str) -> list[list[str]]:
    """Rows of the page's table with these column names."""
    head = "| " + " | ".join(columns) + " |\n"
    assert PAGE.count(head) == 1, f"no table {columns}"
    rows = re.match(r"\|[- |]+\|\n((?:\|.*\|\n)+)", PAGE[PAGE.index(head) + len(head) :])
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[1].splitlines()]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def tree_of(module: str) -> ast.Module:
    return ast.parse(Path(fitwire.__file__).parent.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))


LIMITS = {words(name)[0]: ast.literal_eval(value) for name, value, _ in table("name", "value", "bounds")}
KINDS = {
    name: (int(number), who, words(fields)) for name, number, who, fields in table("kind", "number", "from", "fields")
}
OWN = {"project", "host", "host_key", "pid", "pid_started", "world_size", "fitwire", "durability", "can"}
"""What a hello says of the run, not of the link."""


def test_the_version_is_the_codes() -> None:
    """In the title, in the text, in frame 0."""
    assert PAGE.startswith(f"# The wire: fw/{VERSION}\n")
    assert f"The version is **{VERSION}**." in PAGE


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_is_the_codes(name: str) -> None:
    """The table has the value that the constant has."""
    module, _, constant = name.rpartition(".")

    assert getattr(importlib.import_module(f"fitwire.{module}"), constant) == LIMITS[name]


@pytest.mark.parametrize(
    "module", ["protocol.blocks", "protocol.arrays", "protocol.strict_json", "protocol.commands", "events"]
)
def test_no_limit_of_the_wire_is_left_out(module: str) -> None:
    """A constant that bounds a message has a row."""
    targets = [target for node in tree_of(module).body if isinstance(node, ast.Assign) for target in node.targets]
    named = {target.id for target in targets if isinstance(target, ast.Name)}

    assert {f"{module}.{name}" for name in named if name.startswith("MAX_")} <= set(LIMITS)


def test_numbers_in_the_text_are_the_tables() -> None:
    """What a sentence says in its own units is what the constant says."""
    said = {
        f"after {GREETINGS[0]:g} s, twice as long each time, at most\n{GREETINGS[1]:g} s",
        f"{LIMITS['protocol.blocks.MAX_BUFFERS']} buffers",
        f"1 to {LIMITS['protocol.blocks.MAX_RECORDS']}",
        f"at most {LIMITS['protocol.strict_json.MAX_DEPTH']} levels",
        f"of at most {LIMITS['protocol.strict_json.MAX_HEADER_BYTES'] // 1024} KiB",
        f"At most {LIMITS['protocol.arrays.MAX_DIMS']} dimensions",
        f"dimensions and {LIMITS['protocol.arrays.MAX_ARRAY_BYTES'] >> 20} MiB",
        f"at most {LIMITS['protocol.blocks.MAX_BLOCK_BYTES'] >> 20} MiB",
        f"over {LIMITS['events.INLINE_BYTES']} bytes as JSON",
        f"could be nested over {LIMITS['events.INLINE_DEPTH']} deep",
        f"heard for {LIMITS['protocol.source.LOST']:g} s",
        f"again after {LIMITS['protocol.sink.GAP_AGAIN']} s",
        f"again after {LIMITS['protocol.lane.AGAIN']} s",
        f"asked again after {LIMITS['protocol.viewer.AGAIN']:g} s",
        f"over {LIMITS['protocol.source.LEAST_WINDOW'] >> 10} KiB crosses",
        f"`MAXMSGSIZE` {LIMITS['transport.zmq.MAX_FRAME_BYTES'] >> 20} MiB",
        f"takes in {LIMITS['transport.zmq.PEER_IN']:,} messages",
        f"at most a day, {LIMITS['protocol.commands.EXPIRES']:g} unless the asker says otherwise",
        f"none comes within {LIMITS['protocol.commands.FIRST_RANK']:g} s",
        f"says the command again every {LIMITS['protocol.commands.AGAIN']:g} s",
        f"remembers the last {LIMITS['protocol.commands.MAX_KNOWN']:,} commands",
    }

    assert {sentence for sentence in said if " ".join(sentence.split()) not in " ".join(PAGE.split())} == set()


def test_frame_0_is_laid_out_as_drawn() -> None:
    """Each field of the table unpacks from its offset and size."""
    values = (MAGIC, VERSION, 9, 1, 5, 3, 7, bytes(range(16)), 2**40, 2**50)
    head, at = HEAD.pack(*values), 0
    rows = table("offset", "bytes", "field", "holds")
    for (offset, size, _, _), value in zip(rows, values, strict=True):
        piece = head[int(offset) : int(offset) + int(size)]
        assert int(offset) == at
        assert piece == value if isinstance(value, bytes) else int.from_bytes(piece, "little") == value
        at += int(size)

    assert at == HEAD.size
    assert [row[2] for row in rows] == [
        "magic", "version", "kind", "lane", "buffers", "rank", "incarnation", "run", "seq", "wall",
    ]  # fmt: skip


def test_the_kinds_are_the_codes() -> None:
    """Every kind, with its number."""
    assert {name: number for name, (number, _, _) in KINDS.items()} == {kind.name: int(kind) for kind in Kind}


def heard_fields() -> dict[str, set[frozenset[str]]]:
    """What source and sink really say, over bad links and across restarts."""
    found: dict[str, set[frozenset[str]]] = defaultdict(set)
    for seed in range(6):
        back = LossyLink(0.2, seed=seed)
        ends = Ends(history([3] * 9, [3_000_000]), LossyLink(0.2, seed=seed + 50), back)
        carry = back.send

        def listen(frames: list[bytes], now: float, carry: object = carry) -> None:
            message = decode_message(frames)
            found[Kind(message.kind).name].add(frozenset(message.body))
            carry(frames, now)  # type: ignore[operator]

        back.send = listen  # type: ignore[method-assign]
        ends.run(9.0)
        ends.hub.restart(keep=3)
        ends.backlog.append(records(28, 2))
        ends.run(9.0)
        ends.finish()
        for _, message in ends.sent:
            found[Kind(message.kind).name].add(frozenset(message.body))
    return found


def test_the_fields_of_each_kind_are_what_is_said() -> None:
    """A field that is always there is listed, one that is sometimes there has a mark, and no other is said."""
    found = heard_fields()
    unheard = []
    for kind in ("HELLO", "WELCOME", "REJECT", "BLOCK", "CHUNK", "ACK", "GAP", "PING", "PONG", "GOODBYE", "BYE_OK"):
        listed = set(KINDS[kind][2]) - OWN
        sometimes = {word.rstrip("?") for word in listed if word.endswith("?")}
        always = {word for word in listed if not word.endswith("?")}
        for said in found[kind]:
            assert always <= said <= always | sometimes, (kind, set(said))
        every, some = frozenset.intersection(*found[kind]), frozenset.union(*found[kind])
        unheard += [(kind, word) for word in sorted(sometimes) if word in every or word not in some]

    # these come from the hub's greeting alone, which is not run here
    assert unheard == [("REJECT", "newer"), ("REJECT", "versions")]
    assert set(decode_message(reject(ME, "superseded", newer=1)).body) == {"reason", "newer"}


def test_a_runs_own_hello_is_listed() -> None:
    """What a training says of itself on top of the link's fields."""
    tree = tree_of("train.run")
    found = [
        {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict) and ast.unparse(node.target) == "hello"
    ]

    assert found
    assert found[0] | {"versions", "role", "nonce", "head", "first"} == set(KINDS["HELLO"][2])


def test_what_a_viewer_says_is_listed() -> None:
    """Its hello, and its two questions."""
    viewer = Viewer(jitter=lambda: 0.5)
    viewer.connected(0.0)
    [hello] = [decode_message(frames) for frames in viewer.due(0.0)]
    viewer.receive(frames_of(Kind.WELCOME, {"nonce": hello.body["nonce"]}), 0.0)
    viewer.ask(Kind.RUNS, {"since": 0})
    asked = [decode_message(frames) for frames in viewer.due(0.0)]

    assert set(hello.body) < set(KINDS["HELLO"][2])
    assert [set(message.body) for message in asked] == [{"id", "since"}]
    assert {"id", "since?"} < set(KINDS["RUNS"][2])


def test_what_is_said_of_a_command_is_listed() -> None:
    """By the viewer, the hub and the training, whatever becomes of it."""
    found: dict[str, set[frozenset[str]]] = defaultdict(set)
    statuses: set[str] = set()
    wire = Wire(0.4, 0)

    def listen(link: LossyLink) -> None:
        carry = link.send

        def send(frames: list[bytes], now: float) -> None:
            message = decode_message(frames)
            found[Kind(message.kind).name].add(frozenset(message.body))
            statuses.update({message.body["status"]} if message.kind == Kind.COMMAND_ACK else ())
            carry(frames, now)

        link.send = send  # type: ignore[method-assign,assignment]

    for link in (wire.to_hub, wire.to_training, wire.acks, wire.answers):
        listen(link)
    for number in range(1, 20):
        wire.ask(number)
        wire.run(1.0)
    wire.inbox = None
    wire.ask(20)
    wire.run(61.0)

    assert statuses == {"sent", "accepted", "duplicate", "expired"}
    for kind in ("COMMAND", "COMMAND_ACK"):
        listed = set(KINDS[kind][2])
        sometimes = {word.rstrip("?") for word in listed if word.endswith("?")}
        always = {word for word in listed if not word.endswith("?")}
        every, some = frozenset.intersection(*found[kind]), frozenset.union(*found[kind])
        assert (every, some) == (always, always | sometimes), kind


def test_the_table_of_states_is_the_codes() -> None:
    """Every transition, and no other."""
    drawn = {(state, event): after for state, event, after in table("state", "on", "becomes")}

    assert drawn == {(state.value, event): after.value for (state, event), after in TRANSITIONS.items()}


def test_the_types_of_record_are_the_codes() -> None:
    """Every type, with the fields that it has."""
    listed = {words(kind)[0]: words(fields) for kind, fields in table("`t`", "fields")}
    assert listed.pop("metrics")[:1] == ["per"]

    assert listed == {
        word: [f for f in ("time", "step", *cls.__dataclass_fields__) if f not in ("rank", "arrays")][:2]
        + [f for f in cls.__dataclass_fields__ if f not in ("time", "step", "rank", "arrays")]
        for word, cls in events._TYPES.items()
    }


def test_the_types_of_array_are_the_codes() -> None:
    """Each that the page lists travels, in either byte order."""
    for kind, sizes in {"i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16), "b": (1,)}.items():
        for size in sizes:
            for order in "<>":
                dtype = f"{order}{kind}{size}"
                header, _ = encode_array(np.zeros(2, dtype))
                assert expected_size(header)[2] == 2 * size
    assert set(re.findall(r"`((?:b?float)\w+)`", PAGE)) == {"bfloat16", "float8_e4m3fn", "float8_e5m2"}

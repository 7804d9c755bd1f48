"""One run, one badge, one measure of its cost: every view shows the same."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

import fitwire
from fitwire.cli import main as cli
from fitwire.events import Dropped, Log
from fitwire.protocol.blocks import RECORDS, Block, Identity, Kind, Message, encode_message
from fitwire.views.text import draw, watch_plain
from fitwire.watch.monitor import Monitor
from helpers import until
from test_roster import Room
from watching import RUN, Teller, block_of, ended, keep, message_of, row, started


@pytest.fixture
def room(fitwire_dir: Path) -> Iterator[Room]:
    made = Room(fitwire_dir / "store.sqlite3")
    yield made
    made.close()


def told(room: Room, kind: str) -> None:
    """A run with that badge, in the store."""
    teller = Teller()
    durability = "process" if kind == "killed, nothing lost" else "memory"
    room.roster.joined(room.store, teller.sender, {"name": "calm-fox", "durability": durability}, room.now)
    room.hear(teller.say(started("calm-fox"), *(row(step) for step in range(10))))
    if kind == "dropped":
        room.hear(teller.say(Dropped(count=3, what="sample", reason="memory")))
    if kind == "gap":
        _gap(room, teller.sender, 12, 40)
    if kind == "hole":
        room.hear([block_of(teller.sender, 41, Log(text="after it"))])
    if kind in ("complete", "dropped", "gap"):
        room.hear([block_of(teller.sender, {"complete": 12, "dropped": 15, "gap": 41}[kind], ended())])
        room.roster.completed(teller.sender, "finished")
    if kind.startswith("killed"):
        room.roster.completed(teller.sender, "lost")
    room.roster.link(teller.sender, room.now, connected=False, gone=True)
    room.state(after=1.0)
    room.save()


def _gap(room: Room, sender: Identity, first: int, last: int) -> None:
    message = Message(Kind.GAP, sender, RECORDS, first, 0, {"to": last, "reason": "delivered to another store"})
    block = Block(sender, RECORDS, first, last - first + 1, tuple(encode_message(message)))
    keep(room.store, [block])
    with room.roster.changed:
        room.roster.loaded(room.store, sender.run).add(message_of(block), block.count)
        room.roster.told(sender, room.now)


BADGES = {
    "complete": "complete",
    "dropped": "3 samples dropped",
    "gap": "gap 12–40",
    "hole": "gap 12–40",
    "cut off": "cut off after step 10",
    "killed": "complete to its last 20 ms",
    "killed, nothing lost": "complete",
}


def shown(store: Path, *command: str) -> str:
    """What a command prints; no hub is there, so it reads the store."""
    found = CliRunner().invoke(cli, [*command, "--store", str(store), "--address", str(store.parent / "nobody")])
    assert found.exit_code == 0, found.output
    return found.output


@pytest.mark.parametrize(("kind", "badge"), BADGES.items(), ids=list(BADGES))
def test_every_view_shows_the_same_badge(room: Room, kind: str, badge: str) -> None:
    """The list, the page, the live frame, the notebook, JSON of each, a script, and the store's own line."""
    told(room, kind)
    store = room.path
    with closing(sqlite3.connect(store)) as db:
        (line,) = db.execute("SELECT summary FROM runs").fetchone()
    with Monitor(str(store.parent / "nobody"), store=store, serve=False) as monitor:
        run = monitor.run("last")
        frame = Console(file=io.StringIO(), width=160, height=40)
        with frame.capture() as captured:
            frame.print(draw([run], "here", 160, 30, colour=False))
        several = Console(file=io.StringIO(), width=200)
        with several.capture() as listed:
            several.print(draw([run, run], "here", 200, 30, colour=False))
        seen = [run.badge, captured.get(), listed.get().splitlines()[1], run._repr_html_()]
    texts = [*seen[1:], shown(store, "ls"), shown(store, "show", "last")]
    objects = [
        json.loads(line), json.loads(shown(store, "ls", "--json"))[0],
        json.loads(shown(store, "show", "last", "--json")), json.loads(shown(store, "get", "last", "loss", "--json")),
    ]  # fmt: skip

    assert seen[0] == badge
    assert [text for text in texts if badge not in text] == []
    assert [found["badge"] for found in objects] == [badge] * 4


def test_every_view_shows_what_being_watched_costs(fitwire_dir: Path) -> None:
    """The trainer, the script, the page, the live frame, the pipe, the notebook and JSON."""
    store, address = fitwire_dir / "store.sqlite3", str(fitwire_dir / "hub")
    lines: list[str] = []
    with Monitor(address, store=store) as monitor:
        with fitwire.init(address, name="costs", wait=30) as run:
            until(lambda: run.log({"loss": 1.0}) or run.meter.io_share > 0, what="two marks of the other thread")
            assert run.flush(30)
            mine = run.meter
        watched = monitor.run("costs")
        watched.wait(timeout=30)
        until(lambda: watched.badge == "complete")
        meter = watched.meter
        watch_plain(monitor, lambda: [watched], lines.append, lambda: True)
        frame = Console(file=io.StringIO(), width=160, height=40)
        with frame.capture() as captured:
            frame.print(draw([watched], address, 160, 30, colour=False))
        notebook, gauges = watched._repr_html_(), watched.gauges
    page, told = shown(store, "show", "last"), json.loads(shown(store, "show", "last", "--json"))

    assert meter is not None and meter.log_us > 0 and meter.dropped == 0
    assert mine.log_us > 0 and mine.queue == 0 and mine.bytes_per_second > 0 and 0 < mine.io_share <= 1
    sentence = str(meter)
    assert sentence.startswith(f"cost {meter.log_us:.2g} µs/call (") and " · queue " in sentence
    assert [text for text in (captured.get(), lines[-1], notebook, page) if sentence not in text] == []
    assert told["meter"]["log_us"] == meter.log_us and "fitwire/log_us" in gauges
    assert "fitwire/" not in page.partition("machine")[2]


def test_a_branch_is_marked_in_every_view(room: Room) -> None:
    """Where it resumed, and what it did anew; curves, JSON and the table show the newest, the older is to be had."""
    first, second = Teller(1000), Teller(2000)
    room.join(first)
    room.hear(first.say(started("calm-fox"), *(row(step, loss=1.0) for step in range(30))))
    room.join(second)
    room.hear(
        second.say(started("calm-fox", time=1_700_000_500.0), *(row(s, loss=2.0) for s in range(20, 25)), ended())
    )
    room.roster.completed(second.sender, "finished")
    room.roster.link(second.sender, room.now, connected=False, gone=True)
    room.state(after=1.0)
    room.save()
    store = room.path
    with Monitor(str(store.parent / "nobody"), store=store, serve=False) as monitor:
        run = monitor.run("last")
        frame = Console(file=io.StringIO(), width=120, height=40)
        with frame.capture() as captured:
            frame.print(draw([run], "here", 120, 30, colour=False))
        curve, older = run.curve("loss"), run.curve("loss", branch=1000)
        numpy, table = run.to_numpy()["loss"]["steps"].tolist(), list(run.events(follow=False))
    told = json.loads(shown(store, "show", "last", "--json"))["branches"]
    tail = shown(store, "tail", "last", "-n", "40")
    got = json.loads(shown(store, "get", "last", "loss", "--branch", "1000", "--json"))

    assert "resumed at step 21, in place of what was told up to step 30" in captured.get()
    assert "┊" in captured.get()
    assert "resumed at step 21, in place" in shown(store, "show", "last")
    assert "· resumed at step 21, in place of what was told from there" in tail and tail.count("resumed") == 1
    assert [branch["replaced_from"] for branch in told] == [None, 20]
    assert numpy == curve.steps.tolist() == list(range(25)) and curve.values[20:].tolist() == [2.0] * 5
    assert older.steps.tolist() == got["steps"] == list(range(30))
    assert len(table) == 2 + 30 + 5 + 1  # all that was told, of either


def test_a_lost_run_says_since_when_and_a_notebook_takes_no_markup_from_a_peer(room: Room) -> None:
    """In the list, on the page, in the frame; names are text."""
    teller = Teller()
    evil = "<script>alert(1)</script>"
    room.join(teller)
    room.hear(teller.say(started(evil), row(0)))
    room.roster.link(teller.sender, room.now, connected=False, gone=True)
    room.state(after=187.0)
    room.save()
    store = room.path
    with Monitor(str(store.parent / "nobody"), store=store, serve=False) as monitor:
        run = monitor.run("last")
        frame = Console(file=io.StringIO(), width=120, height=40)
        with frame.capture() as captured:
            frame.print(draw([run], "here", 120, 30, colour=False))
        since, notebook = run.since, run._repr_html_()
    sentence = "its process is gone (killed or crashed; `fitwire run` would tell)"

    assert since is not None and "? lost 3:0" in shown(store, "ls")
    assert [text for text in (captured.get(), shown(store, "show", "last")) if "for 3:0" not in text] == []
    assert all(sentence in text for text in (captured.get(), shown(store, "show", "last")))
    assert "<script" not in notebook and "&lt;script&gt;" in notebook
    assert RUN.hex()[:8] in notebook

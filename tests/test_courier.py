"""Tests of ``fitwire.journal.courier``: what a dead trainer left, delivered once and whole."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fitwire
from fitwire.errors import JournalError
from fitwire.journal import courier, reader
from fitwire.journal.courier import deliver
from fitwire.journal.entries import encode_entry
from fitwire.journal.layout import HAVE, About, encode_have, find_journals, read_have, segment_name
from fitwire.journal.reader import Journal
from fitwire.protocol.blocks import BULK, RECORDS, Block, Identity, Kind, decode_message, encode_message
from fitwire.protocol.blocks import Message as Said
from fitwire.transport.address import Address
from fitwire.transport.zmq import Dealer, Router
from fitwire.watch.audit import audit
from fitwire.watch.hub import Hub
from fitwire.watch.store import Store
from fitwire.watch.stored import load_history
from fitwire.watch.summary import badge_of
from helpers import picture, records, until
from journals import flipped, hello_of, write_entries, write_journal
from watching import RUN, block_of, ended, started

LIFE = Identity(RUN, 1000, 0)
"""Of a run whose own blocks say who they are, for a hub."""


@pytest.fixture
def hub(address: Address, fitwire_dir: Path) -> Iterator[Hub]:
    """Without a drainer, which would be quicker than the test."""
    made = Hub(address, fitwire_dir / "store.sqlite3", drain=False)
    yield made
    made.close()


def life(*lengths: int, pictures: int = 0, sender: Identity = LIFE, status: str = "") -> list[Block]:
    """A run's blocks: how it began, rows, samples, and how it ended."""
    blocks = [block_of(sender, 1, started("fox"))]
    for count in lengths:
        blocks.append(records(blocks[-1].last + 1, count, sender))
    if status:
        blocks.append(block_of(sender, blocks[-1].last + 1, ended(status)))
    return blocks + [picture(seq, 1000, sender) for seq in range(1, pictures + 1)]


def stored(hub: Hub, sender: Identity = LIFE, lane: int = RECORDS) -> list[tuple[int, int]]:
    store = Store(hub.store_path, write=False)
    try:
        return [(block.first, block.last) for block in store.blocks(sender, lane)]
    finally:
        store.close()


def line(hub: Hub) -> dict[str, Any]:
    return hub.roster.summary(RUN)


def test_a_journal_is_delivered_and_goes(hub: Hub, address: Address) -> None:
    """Every record of both lanes is in the store when it is gone."""
    path = write_journal(life(3, 4, 500, pictures=3), LIFE)
    done = deliver(path, address)

    assert done == courier.Delivered("calm-fox", 0, 511, 0, complete=True, removed=True)
    assert not path.exists()
    assert stored(hub) == [(1, 1), (2, 4), (5, 8), (9, 508)]
    assert stored(hub, lane=BULK) == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("status", "durability", "state", "badge"),
    [("", "memory", "lost", "complete to its last 20 ms"), ("", "process", "lost", "complete"),
     ("failed", "memory", "failed", "complete"), ("finished", "process", "finished", "complete")],
)  # fmt: skip
def test_a_run_is_what_its_journal_says(
    hub: Hub, address: Address, status: str, durability: str, state: str, badge: str
) -> None:
    """A trainer that said how it ended, and one that was killed: nobody takes the courier's end for the run's."""
    deliver(write_journal(life(3, status=status), LIFE, about=About(LIFE, hello_of(), durability)), address)
    until(lambda: line(hub)["complete"], what="not all of it is known to be here")
    until(lambda: line(hub)["state"] == state, what=f"it is {line(hub)['state']}")

    assert badge_of(line(hub)) == badge


def test_a_journal_may_be_kept(hub: Hub, address: Address) -> None:
    """It then knows that all of it was delivered; the next time nothing is sent, and it goes."""
    path = write_journal(life(3, pictures=1), LIFE)
    kept = deliver(path, address, keep=True)
    assert (kept.complete, kept.removed, path.exists()) == (True, False, True)
    assert read_have(path) == (4, 1)

    again = deliver(path, address)
    assert (again.records, again.complete, again.removed) == (0, True, True)


def test_what_a_hub_had_already_is_not_sent_again(hub: Hub, address: Address) -> None:
    """The trainer had delivered half, and its note of that was lost with it."""
    blocks = life(3, 4, 5)
    first = write_journal(blocks[:2], LIFE)
    deliver(first, address)
    done = deliver(write_journal(blocks, LIFE), address)

    assert (done.records, done.complete) == (9, True)
    assert stored(hub) == [(1, 1), (2, 4), (5, 8), (9, 13)]


def test_what_its_trainer_delivered_and_trimmed_is_not_summed_wrongly(hub: Hub, address: Address) -> None:
    """The usual end of a killed trainer: the hub has the beginning, the journal the last moments only."""
    blocks = life(3, 4, 5)
    deliver(write_journal(blocks[:2], LIFE), address)
    rest = write_journal(blocks[1:], LIFE)
    (rest / HAVE).write_bytes(encode_have((4, 0)))
    done = deliver(rest, address)
    store = Store(hub.store_path, write=False)
    (report,) = audit(store, RUN)
    end = store.ends(LIFE)[RECORDS]
    store.close()

    assert (done.records, done.complete) == (9, True)
    assert (end.since, end.final, report.goodbye, report.sound) == (4, 13, True, True)


def test_without_a_hub_it_is_left_in_a_bounded_time(address: Address) -> None:
    """And a sentence says so."""
    path = write_journal(life(3), LIFE)
    began = time.monotonic()
    done = deliver(path, address, timeout=0.3)

    assert time.monotonic() - began < 10
    assert (done.records, done.left, done.complete, done.removed) == (0, 4, False, False)
    assert "no hub answered" in done.why and str(address) in done.why
    assert not done.contested
    with Journal(path) as journal:
        assert journal.undelivered == (4, 0)


def test_whoever_delivers_can_stop(hub: Hub, address: Address) -> None:
    """What was taken until then is noted."""
    path = write_journal(life(3), LIFE)

    assert not deliver(path, address, stopped=lambda: True).complete
    assert path.exists()


def test_a_hub_that_comes_later_is_found(address: Address, fitwire_dir: Path) -> None:
    """Within the patience it has."""
    path = write_journal(life(3), LIFE)
    results: list[courier.Delivered] = []
    thread = threading.Thread(target=lambda: results.append(deliver(path, address, timeout=30)))
    thread.start()
    time.sleep(0.3)
    hub = Hub(address, fitwire_dir / "store.sqlite3", drain=False)
    thread.join(30)
    hub.close()

    assert results[0].complete and not path.exists()


def test_a_hub_that_dies_on_the_way_costs_nothing(address: Address, fitwire_dir: Path) -> None:
    """Its successor is asked what it has."""
    blocks = life(*[200] * 100, pictures=50)
    path = write_journal(blocks, LIFE)
    results: list[courier.Delivered] = []
    hub = Hub(address, fitwire_dir / "store.sqlite3", drain=False)
    thread = threading.Thread(target=lambda: results.append(deliver(path, address, timeout=30)))
    thread.start()
    until(lambda: hub.counts["blocks"] > 5)
    hub.close()
    hub = Hub(address, fitwire_dir / "store.sqlite3", drain=False)
    thread.join(60)
    found = stored(hub)
    hub.close()

    assert results[0].complete
    assert found == [(block.first, block.last) for block in blocks if block.lane == RECORDS]


def test_damage_is_delivered_as_marks_and_said(hub: Hub, address: Address) -> None:
    """What is behind it comes all the same, and the run shows how much is missing."""
    path = write_journal(life(3, 4, 5, status="finished"), LIFE, per_segment=2)
    file = path / segment_name(RECORDS, 2)
    file.write_bytes(flipped(file.read_bytes(), 100))
    done = deliver(path, address)
    store = Store(hub.store_path, write=False)
    dropped = load_history(store, RUN).dropped
    store.close()

    assert (done.complete, done.lost, done.faults) == (True, 4, {"damaged": 1})
    assert dropped == {"records": 4}
    assert stored(hub) == [(1, 1), (2, 4), (5, 8), (9, 13), (14, 14)]


def test_a_journal_of_which_nothing_can_be_read_stays(hub: Hub, address: Address) -> None:
    """Somebody may know better; the hub hears of no run."""
    path = write_journal([])
    write_entries(path, RECORDS, 1, [os.urandom(500)])
    done = deliver(path, address, timeout=5)

    assert path.exists() and not done.complete
    assert done.faults == {"torn": 1} and "can be read" in done.why
    assert hub.roster.summaries() == []


def test_an_empty_journal_goes_without_a_hub(address: Address) -> None:
    """A training that was killed before its first look; there is nothing to deliver."""
    path = write_journal([])
    done = deliver(path, address)

    assert done.removed and not path.exists()


def test_a_hub_that_has_more_ends_it(hub: Hub, address: Address) -> None:
    """The trainer's disk refused for a while, and it sent from memory."""
    blocks = life(3, 4, 5)
    deliver(write_journal(blocks, LIFE), address)
    done = deliver(write_journal(blocks[:2], LIFE), address)

    assert (done.records, done.left, done.complete) == (0, 0, True)


def test_what_came_meanwhile_keeps_the_folder(hub: Hub, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper added its word after the journal was opened: the next courier takes it."""
    path = write_journal(life(3), LIFE)
    monkeypatch.setattr(courier, "LOOK", 0.0)
    real = reader.Journal.save

    def save(journal: Journal) -> None:
        if not (path / segment_name(RECORDS, 2)).exists():
            write_entries(path, RECORDS, 2, [encode_entry(block_of(LIFE, 5, ended("failed")))])
        real(journal)

    monkeypatch.setattr(reader.Journal, "save", save)
    first = deliver(path, address)
    assert (first.complete, first.removed, path.exists()) == (True, False, True)

    second = deliver(path, address)
    assert (second.records, second.removed) == (1, True)
    assert stored(hub)[-1] == (5, 5)


def test_a_disk_that_hangs_up_is_no_reason_for_marks(
    hub: Hub, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left for another time."""
    path = write_journal(life(3, 4), LIFE)
    real = os.pread
    calls = iter(range(1000))

    def pread(handle: int, size: int, at: int) -> bytes:
        if next(calls) > 1:
            raise OSError(5, "Input/output error")
        return real(handle, size, at)

    monkeypatch.setattr(reader.os, "pread", pread)
    with pytest.raises(JournalError, match="Input/output error"):
        deliver(path, address)
    monkeypatch.undo()

    assert deliver(path, address).complete
    assert stored(hub) == [(1, 1), (2, 4), (5, 8)]


# -- beside others at the same hub


def test_a_living_trainer_is_not_disturbed(hub: Hub, address: Address) -> None:
    """A courier with its identity is turned away, and the trainer goes on."""
    run = fitwire.init(str(address), name="fox", wait=30)
    run.log({"loss": 1.0})
    assert run.flush(30)
    [source] = [link.sink.sender for link in hub._links.values()]
    path = write_journal(life(3, sender=source), source, folder=address.path.parent / "copy")  # type: ignore[union-attr]
    done = deliver(path, address, timeout=10)
    run.log({"loss": 2.0})

    assert run.flush(30)
    assert (done.complete, done.contested, done.records) == (False, True, 0)
    assert path.exists()
    run.finish()


def test_an_older_life_is_delivered_beside_the_living(hub: Hub, address: Address) -> None:
    """It supersedes nobody, is superseded by nobody, and what is live stays so."""
    run = fitwire.init(str(address), name="fox", run_id=RUN.hex(), wait=30)
    run.log({"loss": 1.0}, step=7)
    assert run.flush(30)
    done = deliver(write_journal(life(3, 4, status="failed"), LIFE), address)
    until(lambda: line(hub)["state"] == "running")
    run.log({"loss": 2.0}, step=8)

    assert run.flush(30)
    assert done.complete
    assert stored(hub) == [(1, 1), (2, 4), (5, 8), (9, 9)]
    assert line(hub)["state"] == "running" and not line(hub)["complete"]
    run.finish()
    until(lambda: line(hub)["complete"])
    assert line(hub)["state"] == "finished"


def test_an_older_life_changes_nothing_of_a_run_that_is_over(hub: Hub, address: Address) -> None:
    """Also when the hub had to be told of that by its store."""
    with fitwire.init(str(address), name="fox", run_id=RUN.hex(), wait=30) as run:
        run.log({"loss": 1.0}, step=7)
    until(lambda: line(hub)["complete"])
    hub.close()
    again = Hub(address, hub.store_path, drain=False)
    deliver(write_journal(life(3), LIFE), address)
    until(lambda: again.counts["blocks"] >= 2)
    again.roster.refresh(time.monotonic(), at_once=True)
    found = again.roster.summary(RUN)
    again.close()

    assert (found["state"], found["complete"]) == ("finished", True)


def test_of_two_couriers_one_is_turned_away(hub: Hub, address: Address) -> None:
    """The second hears that somebody is at it; nothing is stored twice."""
    peer = RawCourier(address, pid=1)
    peer.greet()
    done = deliver(write_journal(life(3), LIFE), address, timeout=10)

    assert (done.complete, done.contested) == (False, True)
    peer.close()
    until(lambda: deliver_again(address).complete)
    assert stored(hub) == [(1, 1), (2, 4)]


def deliver_again(address: Address) -> courier.Delivered:
    return deliver(next(find_journals()), address, timeout=10)


def test_a_trainer_that_lives_after_all_takes_over(hub: Hub, address: Address) -> None:
    """Its journal had been copied; the courier is sent away, and no record is lost or doubled."""
    peer = RawCourier(address, pid=1)
    peer.greet()
    link = Dealer(address)
    until(lambda: True in link.changes())
    hello = {"versions": [1], "role": "source", "nonce": 5, "name": "fox"}
    link.send(encode_message(Said(Kind.HELLO, LIFE, body=hello)))

    assert peer.hear(Kind.REJECT).body["reason"] == "superseded"
    assert until(lambda: kind_of(link.receive())) == Kind.WELCOME
    link.close()
    peer.close()


def kind_of(frames: list[bytes] | None) -> int | None:
    return decode_message(frames).kind if frames else None


class RawCourier:
    """A courier that greets and then says nothing."""

    def __init__(self, address: Address, pid: int) -> None:
        self.link = Dealer(address)
        self.pid = pid
        until(lambda: True in self.link.changes())

    def greet(self) -> None:
        hello = {"versions": [1], "role": "courier", "nonce": 1, "name": "fox", "pid": self.pid}
        self.link.send(encode_message(Said(Kind.HELLO, LIFE, body=hello)))
        self.hear(Kind.WELCOME)

    def hear(self, kind: Kind) -> Said:
        def found() -> Said | None:
            frames = self.link.receive()
            message = decode_message(frames) if frames else None
            return message if message is not None and message.kind == kind else None

        return until(found)

    def close(self) -> None:
        self.link.close()


def test_its_hello_says_whose_it_is_and_whose_courier(address: Address) -> None:
    """What the trainer said of itself, cut to size, but the process that delivers."""
    router = Router(address)
    path = write_journal(life(3), LIFE, name="n" * 1000, can=["x"] * 50)
    thread = threading.Thread(target=lambda: deliver(path, address, timeout=1))
    thread.start()
    try:
        _, frames = until(router.receive)
        hello = decode_message(frames)
    finally:
        thread.join(30)
        router.close()

    assert hello.sender == LIFE
    assert (hello.body["role"], hello.body["durability"], hello.body["pid"]) == ("courier", "memory", os.getpid())
    assert hello.body["name"] == "n" * 256 and "can" not in hello.body


def test_a_journal_whose_rest_another_store_has_tells_the_gap(hub: Hub, address: Address) -> None:
    """The hub that had the beginning is away for good: what is here is delivered, what is not is named."""
    path = write_journal(life(3, 4, 5), LIFE)
    (path / HAVE).write_bytes(encode_have((4, 0)))
    done = deliver(path, address)
    store = Store(hub.store_path, write=False)
    gaps = [(gap.first, gap.last) for gap in load_history(store, RUN).gaps]
    store.close()

    assert (done.records, done.complete, gaps) == (9, True, [(1, 4)])

"""Tests of ``fitwire.watch.hub``: real sockets, hostile peers, disks that refuse, hubs that are killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fitwire
from fitwire.errors import AddressInUse, StoreError
from fitwire.protocol.blocks import RECORDS, VERSION, Identity, Kind, Message, decode_message, encode_message
from fitwire.train.run import Run
from fitwire.transport.address import Address, resolve
from fitwire.transport.zmq import Dealer
from fitwire.watch.hub import MAX_ASKED, Hub, take_address
from fitwire.watch.states import State
from fitwire.watch.store import Store
from fitwire.watch.stored import load_history
from helpers import free_port, history, records, until
from watching import RUN, Child, Teller, child, started

HUB = """
import sys
from fitwire.transport.address import resolve
from fitwire.watch.hub import Hub
hub = Hub(resolve(sys.argv[1]), sys.argv[2])
print("true", flush=True)
sys.stdin.readline()
hub.close()
"""
TRAINER = """
import sys, time, json, fitwire
run = fitwire.init(sys.argv[1], name="victim", wait=30)
run.log({"loss": 0.0})
print(json.dumps(run.flush(30)), flush=True)
time.sleep(600)
"""


NOBODY = Identity()


MAD: list[dict[str, Any]] = [
    {"t": "run_started"},
    {"t": "run_started", "f": {"name": ""}},
    {"t": "run_started", "f": {"name": "x", "tags": 3}},
    {"t": "run_started", "f": {"name": "deep", "config": {"a": {"b": {"c": {"d": {"e": {}}}}}}}},
    {"t": "run_started", "f": {"name": "t" * 256, "tags": ["t" * 30] * 1500, "time": 1e308}},
    {"t": "run_ended", "f": {"status": "bored"}},
    {"t": "metrics"},
    {"t": "metrics", "names": ["a"], "per": "batch"},
    {"t": "metrics", "names": 3},
    {"t": "sample"},
    {"t": "sample", "f": {"name": "s"}, "b": 70},
    {"t": 7},
    {"t": None},
    {"t": "dropped", "f": {"count": -(2**50), "what": "w", "reason": "r"}},
    {"t": "log", "f": {"text": "t", "level": "?"}},
    {"t": "described", "f": {"what": "soul", "values": {}}},
    {"t": "run_ended", "f": {"status": "failed", "time": -1e308}},
]
"""Parts of blocks that are whole, and say what nobody of ours would."""


class Peer:
    """A bare socket at a hub, that says what it likes."""

    def __init__(self, address: Address) -> None:
        self.link = Dealer(address)
        until(lambda: True in self.link.changes(), what="no connection")

    def say(self, kind: int, body: dict[str, Any] | None = None, sender: Identity = NOBODY, **more: Any) -> None:
        assert self.link.send(encode_message(Message(kind, sender, body=body or {}, **more)))

    def raw(self, *frames: bytes) -> None:
        assert self.link.send(frames)

    def hear(self, kind: Kind) -> Message:
        """The next message of this kind; others are passed over."""

        def found() -> Message | None:
            frames = self.link.receive()
            message = decode_message(frames) if frames else None
            return message if message is not None and message.kind == kind else None

        return until(found, what=f"no {kind.name}")

    def greet(self, sender: Identity, **who: Any) -> Message:
        """Say hello as a source; returns the welcome."""
        self.say(Kind.HELLO, {"versions": [VERSION], "role": "source", "nonce": 1, "name": "peer", **who}, sender)
        return self.hear(Kind.WELCOME)

    def close(self) -> None:
        self.link.close()


@pytest.fixture
def peer(address: Address, hub: Hub) -> Iterator[Peer]:
    made = Peer(address)
    yield made
    made.close()


def train(address: Address, count: int = 100, name: str = "calm-fox", **how: Any) -> Run:
    """A run that has logged ``count`` losses."""
    run = fitwire.init(str(address), name=name, wait=30.0, **how)
    for step in range(count):
        run.log({"loss": float(step)}, step=step)
    return run


def losses(path: Path, run: str) -> list[float]:
    """What the store holds of a run, read with a connection of its own."""
    store = Store(path, write=False)
    try:
        return load_history(store, bytes.fromhex(run)).curve("loss").values.tolist()
    finally:
        store.close()


def line(hub: Hub, run: bytes) -> dict[str, Any]:
    return hub.roster.summary(run)


# -- storing


def test_what_a_trainer_logged_is_in_the_store_when_it_is_told_so(hub: Hub, address: Address, path: Path) -> None:
    """Each value once, in order; and the run is complete."""
    with train(address, 5000) as run:
        assert run.flush(30.0)
        stored = losses(path, run.id)
    until(lambda: line(hub, bytes.fromhex(run.id))["complete"])

    assert stored == [float(step) for step in range(5000)]
    assert line(hub, bytes.fromhex(run.id))["state"] == "finished"


def test_a_store_that_refuses_loses_nothing_once_it_takes_again(
    hub: Hub, address: Address, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk: trainers keep what it does not take, the hub tries again, one sentence is said."""
    run = train(address, 10)
    assert run.flush(30.0)
    assert hub._store._db is not None
    pages = hub._store._db.execute("PRAGMA page_count").fetchone()[0]
    hub._store._db.execute(f"PRAGMA max_page_count={pages}")
    for step in range(10, 60_000):
        run.log({"loss": float(step)}, step=step)
    until(lambda: hub.counts["store refused"] >= 2)
    acknowledged = run.flush(0.1)
    hub._store._db.execute("PRAGMA max_page_count=1000000")
    delivered = run.flush(60.0)
    run.finish()

    assert (acknowledged, delivered) == (False, True)
    assert losses(path, run.id) == [float(step) for step in range(60_000)]
    assert [r.getMessage() for r in caplog.records if "trainers keep what it does not take" in r.getMessage()] != []
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1


def test_a_slow_store_is_given_little_at_a_time_so_that_trainers_go_on_hearing_of_it(
    hub: Hub, address: Address, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a commit took too long, the next are smaller, however much waits; what was logged is stored all the same."""
    monkeypatch.setattr("fitwire.watch.hub.COMMIT", 0.01)
    sizes: list[int] = []
    commit = Store.commit

    def slow(self: Store, blocks: Any, *rest: Any) -> None:
        sizes.append(len(blocks))
        time.sleep(0.02 * len(blocks))
        commit(self, blocks, *rest)

    monkeypatch.setattr(Store, "commit", slow)
    run = train(address, 60_000)
    flushed = run.flush(60.0)
    run.finish()
    first = next(index for index, size in enumerate(sizes) if size)

    assert flushed
    assert losses(path, run.id) == [float(step) for step in range(60_000)]
    assert len(sizes) > 10
    assert max(sizes[first + 1 :]) == 1


def test_the_list_is_saved_with_the_blocks_so_that_no_run_is_without_its_line(
    hub: Hub, address: Address, path: Path
) -> None:
    """A hub that is killed a moment later must not have blocks of a run that nobody knows."""
    run = train(address, 1)
    assert run.flush(30.0)
    store = Store(path, write=False)
    known = [summary["id"] for summary in store.summaries()]
    store.close()
    run.finish()

    assert known == [run.id]


# -- the address


def test_a_second_hub_cannot_take_the_address_and_the_first_goes_on(hub: Hub, address: Address, path: Path) -> None:
    """libzmq would hand a living socket's path over; the lock beside it does not."""
    with pytest.raises(AddressInUse, match="is taken: a hub is there already; look with `fitwire watch`"):
        Hub(address, path.with_name("other.sqlite3"))
    with train(address, 3) as run:
        assert run.flush(30.0)

    assert losses(path, run.id) == [0.0, 1.0, 2.0]
    assert not path.with_name("other.sqlite3").exists()


def test_an_address_is_free_again_when_its_hub_has_closed(address: Address, path: Path) -> None:
    """Closing twice is fine."""
    for _ in range(3):
        hub = Hub(address, path)
        hub.close()
        hub.close()
    lock = take_address(address)

    assert lock is not None
    lock.release()


def test_a_tcp_port_that_another_program_holds_is_one_clear_sentence(path: Path) -> None:
    """And one that a hub holds too."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(AddressInUse, match=r"tcp://127.0.0.1:\d+ is taken: another program listens there; choose"):
            Hub(resolve(f"tcp://127.0.0.1:{other.getsockname()[1]}"), path)
    first = Hub(resolve(f"tcp://127.0.0.1:{free_port()}"), path)
    with pytest.raises(AddressInUse):
        Hub(first.address, path)
    first.close()


def test_a_store_that_cannot_be_opened_leaves_the_address_free(address: Address, path: Path) -> None:
    """One sentence, and the next hub can have it."""
    path.write_text("no database " * 1000)
    with pytest.raises(StoreError, match="cannot open the store"):
        Hub(address, path)
    path.unlink()
    Hub(address, path).close()


def test_a_store_that_is_spoilt_inside_is_told_of_at_the_start(address: Address, path: Path) -> None:
    """Not a hub that seems to run and does not."""
    Store(path).close()
    store = Store(path)
    assert store._db is not None
    store._db.execute("DROP TABLE runs")
    store._db.execute("CREATE TABLE runs (odd TEXT)")
    store.close()

    with pytest.raises(StoreError, match="cannot read the store"):
        Hub(address, path)


# -- hostile peers


def test_no_bytes_end_the_hub(hub: Hub, address: Address, peer: Peer, path: Path) -> None:
    """Random frames, and good messages of every kind with a byte changed, cut or added; then it works as before."""
    chance = random.Random(7)
    teller = Teller()
    good: list[list[bytes]] = [[bytes(f) for f in block.frames] for block in history([3, 5], [100])]
    good += [[bytes(f) for f in block.frames] for block in teller.say(started(config={"a": [1] * 50}))]
    for kind in [*Kind, 99, 255]:
        for body in ({}, {"versions": [VERSION], "role": "source"}, {"id": 1, "since": 0, "run": RUN.hex()}):
            for sender in (Identity(), Identity(RUN, 5, 1), Identity(b"\xff" * 16, 2**32 - 1, 2**32 - 1)):
                message = Message(kind, sender, chance.randrange(2), chance.randrange(2**62), 0, dict(body))
                good.append([bytes(f) for f in encode_message(message)])
    for frames in good:
        peer.raw(*frames)
        changed = [bytearray(frame) for frame in frames]
        spot = chance.choice([frame for frame in changed if frame])
        spot[chance.randrange(len(spot))] ^= 1 << chance.randrange(8)
        peer.raw(*map(bytes, changed))
        peer.raw(*[frame[: chance.randrange(len(frame) + 1)] for frame in frames])
        peer.raw(*frames, b"more")
        peer.raw(*[chance.randbytes(chance.randrange(60)) for _ in range(chance.randrange(1, 5))])
    with train(address, 5) as run:
        assert run.flush(30.0)

    assert losses(path, run.id) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert sum(count for name, count in hub.counts.items() if name.startswith("bad")) > 100
    assert not [name for name in hub.counts if name.startswith("fault")]


def test_a_source_of_our_own_grammar_with_mad_contents_ends_nothing(hub: Hub, address: Address, peer: Peer) -> None:
    """Blocks that are whole and say nonsense are kept, acknowledged and passed over."""
    sender = Identity(b"m" * 16, 1, 0)
    peer.greet(sender)
    for seq, part in enumerate(MAD, 1):
        peer.say(Kind.BLOCK, {"n": 1, "parts": [part], "buffers": []}, sender, seq=seq)

    def stored() -> bool:
        store = Store(hub.store_path, write=False)
        try:
            return store.have(sender, RECORDS) == len(MAD)
        finally:
            store.close()

    until(stored)
    until(lambda: line(hub, sender.run)["state"] == "failed")
    assert line(hub, sender.run)["name"] == "t" * 256
    assert not [name for name in hub.counts if name.startswith("fault")]
    with train(address, 2) as run:
        assert run.flush(30.0)


def test_a_fault_of_ours_while_one_is_answered_is_counted_and_told_and_the_rest_goes_on(
    hub: Hub, address: Address, peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The asker hears of it, and does not ask for ever; trainers notice nothing; one traceback is logged."""

    def broken(*what: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fitwire.watch.hub.answer", broken)
    for number in range(3):
        peer.say(Kind.RUNS, {"id": number, "since": 0})
        answer = peer.hear(Kind.ERROR)
    with train(address, 2) as run:
        assert run.flush(30.0)

    assert (answer.body["id"], answer.body["reason"]) == (2, "a fault in the hub")
    assert hub.counts["fault question"] == 3
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize("where", ["_receive", "_serve", "_keep"])
def test_a_fault_anywhere_in_a_turn_is_survived(
    hub: Hub, address: Address, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once broken, then well again: what was said is stored."""
    real, broken = getattr(hub, where), [3]

    def sometimes(*what: Any) -> Any:
        if broken[0]:
            broken[0] -= 1
            raise ZeroDivisionError
        return real(*what)

    monkeypatch.setattr(hub, where, sometimes)
    with train(address, 20) as run:
        assert run.flush(30.0)

    assert broken == [0]
    assert losses(hub.store_path, run.id) == [float(step) for step in range(20)]


def test_a_viewer_may_not_have_the_hub_hold_any_number_of_questions(hub: Hub, address: Address, peer: Peer) -> None:
    """Past the bound it is told so; others are answered."""
    peer.say(Kind.RUNS, {"id": 0, "since": 0})
    since = peer.hear(Kind.RUNS).body["revision"]
    for number in range(1, MAX_ASKED + 50):
        peer.say(Kind.RUNS, {"id": number, "since": since + 10**6})
    refused = peer.hear(Kind.ERROR)
    other = Peer(address)
    other.say(Kind.RUNS, {"id": 1, "since": 0})
    answered = other.hear(Kind.RUNS)
    other.close()

    assert refused.body["reason"] == "too many questions at once"
    assert answered.body["id"] == 1
    until(lambda: not hub._questions)
    assert not hub._asked


def test_a_version_that_is_not_spoken_here_is_refused(peer: Peer) -> None:
    """With those that are."""
    peer.say(Kind.HELLO, {"versions": [99], "role": "source"}, Identity(RUN, 1, 0))
    refusal = peer.hear(Kind.REJECT)

    assert (refusal.body["reason"], refusal.body["versions"]) == ("version", [VERSION])


# -- who is who


def test_a_source_that_did_not_greet_is_told_that_it_is_unknown(peer: Peer) -> None:
    """A restarted hub makes it greet again."""
    block = records(1, 3)
    peer.raw(*map(bytes, block.frames))

    assert peer.hear(Kind.REJECT).body["reason"] == "unknown"


def test_a_newer_life_supersedes_and_an_older_is_refused(hub: Hub, address: Address, peer: Peer, path: Path) -> None:
    """What the older had said by then is kept; it is told which goes on."""
    old, new = Identity(RUN, 1000, 0), Identity(RUN, 2000, 0)
    peer.greet(old)
    for block in history([3], sender=old):
        peer.raw(*map(bytes, block.frames))
    newer = Peer(address)
    newer.greet(new)
    told = peer.hear(Kind.REJECT)
    peer.say(Kind.HELLO, {"versions": [VERSION], "role": "source", "nonce": 5}, old)
    refused = peer.hear(Kind.REJECT)
    newer.close()

    assert (told.body["reason"], told.body["newer"]) == ("superseded", 2000)
    assert (refused.body["reason"], refused.body["newer"]) == ("superseded", 2000)
    until(lambda: losses(path, RUN.hex()) == [1.0, 2.0, 3.0])


def test_two_processes_of_one_identity_do_not_mix_their_numbers(hub: Hub, address: Address, peer: Peer) -> None:
    """The second is refused; the first may come back on another connection."""
    sender = Identity(RUN, 1000, 0)
    peer.greet(sender, pid=1, host_key="here", pid_started=5.0)
    second = Peer(address)
    hello = {"versions": [VERSION], "role": "source", "nonce": 1, "host_key": "here", "pid_started": 5.0}
    second.say(Kind.HELLO, {**hello, "pid": 2}, sender)
    refusal = second.hear(Kind.REJECT)
    second.say(Kind.HELLO, {**hello, "pid": 1}, sender)
    welcome = second.hear(Kind.WELCOME)
    second.close()

    assert refusal.body["reason"] == "superseded"
    assert welcome.body["have"] == [0, 0]


def test_sources_that_went_away_leave_their_place(hub: Hub, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that lives for months must not say busy for those of last week; who comes back goes on."""
    monkeypatch.setattr("fitwire.watch.hub.LOOK_AFTER", 0.05)
    monkeypatch.setattr("fitwire.watch.hub.FORGET_AFTER", 0.1)
    monkeypatch.setattr("fitwire.watch.hub.MAX_SOURCES", 1)
    gone = Peer(address)
    gone.greet(Identity(RUN, 1, 0))
    for block in history([4], sender=Identity(RUN, 1, 0)):
        gone.raw(*map(bytes, block.frames))
    gone.hear(Kind.ACK)
    gone.close()
    until(lambda: not hub._links)
    other, back = Peer(address), Peer(address)
    other.greet(Identity(b"o" * 16, 1, 0))
    back.say(Kind.HELLO, {"versions": [VERSION], "role": "source", "nonce": 1}, Identity(RUN, 1, 0))
    busy = back.hear(Kind.REJECT)
    other.close()
    until(lambda: not hub._links)
    welcome = back.greet(Identity(RUN, 1, 0))
    back.close()

    assert busy.body["reason"] == "busy"
    assert welcome.body["have"] == [4, 0]
    assert hub._peers.keys() == {link.peer for link in hub._links.values()}


# -- killed for real


def test_a_trainer_that_is_killed_is_lost_because_its_process_is_gone(
    hub: Hub, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the silence of its connection would say so."""
    monkeypatch.setattr("fitwire.watch.states.LOST_AFTER", 1e9)
    with child(TRAINER, str(address)) as trainer:
        assert trainer.read() is True
        (summary,) = hub.roster.summaries()
        run = bytes.fromhex(summary["id"])
        until(lambda: line(hub, run)["state"] == "running")
        trainer.kill()
        until(lambda: line(hub, run)["state"] == "lost")


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals")
def test_a_trainer_that_is_stopped_is_stalled_and_not_lost(
    hub: Hub, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is there: it may go on, and then runs as before."""
    monkeypatch.setattr("fitwire.watch.states.STALLED_AFTER", 0.3)
    monkeypatch.setattr("fitwire.watch.states.LOST_AFTER", 0.5)
    monkeypatch.setattr("fitwire.watch.hub.LOOK_AFTER", 0.1)
    with child(TRAINER.replace("time.sleep(600)", "\nwhile True: run.log({'loss': 1.0}); time.sleep(0.05)"),
               str(address)) as trainer:  # fmt: skip
        assert trainer.read() is True
        run = bytes.fromhex(hub.roster.summaries()[0]["id"])
        until(lambda: (line(hub, run)["progress"]["step"] or 0) > 20)  # its pace is known
        os.kill(trainer.pid, signal.SIGSTOP)
        until(lambda: line(hub, run)["state"] == "stalled")
        seen = {line(hub, run)["state"] for _ in range(100) if time.sleep(0.02) is None}
        os.kill(trainer.pid, signal.SIGCONT)
        until(lambda: line(hub, run)["state"] == "running")

    assert seen == {"stalled"}


def start_hub(address: Address, path: Path) -> Child:
    made = Child(HUB, str(address), path)
    assert made.read() is True
    return made


def test_a_hub_that_is_killed_again_and_again_loses_and_doubles_nothing(address: Address, path: Path) -> None:
    """The trainer goes on meanwhile; each value is in the store once, in order."""
    hub = start_hub(address, path)
    try:
        run = train(address, 100)
        step = 100
        for _ in range(4):
            for _ in range(3000):
                run.log({"loss": float(step)}, step=step)
                step += 1
            time.sleep(random.Random(step).random() * 0.1)
            hub.kill()
            hub.close()
            for _ in range(500):
                run.log({"loss": float(step)}, step=step)
                step += 1
            hub = start_hub(address, path)
        run.finish()
        assert run.flush(30.0)
    finally:
        hub.close()

    assert losses(path, run.id) == [float(at) for at in range(step)]
    later = Hub(address, path)
    state = line(later, bytes.fromhex(run.id))["state"]
    later.close()
    assert State(state) is State.FINISHED

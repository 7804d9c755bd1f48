"""Tests of ``fitwire.watch.monitor``: joins the hub or is it, takes its place, finds runs, comes through forks."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fitwire
from fitwire import Monitor
from fitwire.errors import AddressInUse, LinkError, StoreError, UnknownRun, UsageError, WaitTimeout
from fitwire.transport.address import resolve
from fitwire.watch.desk import Local
from fitwire.watch.hub import take_address
from helpers import free_port, run_python, until
from test_hub import start_hub, train
from watching import child

TRAIN = """
import sys, time, fitwire
with fitwire.init(sys.argv[1], name=sys.argv[2], wait=30) as run:
    print("true", flush=True)
    for step in range(2000):
        run.log({"loss": float(step)}, step=step)
        time.sleep(0.0005)
"""


@pytest.fixture
def address(fitwire_dir: Path) -> str:
    return f"ipc://{fitwire_dir}/hub"


@pytest.fixture
def path(fitwire_dir: Path) -> Path:
    return fitwire_dir / "store.sqlite3"


@pytest.fixture
def monitor(address: str, path: Path) -> Iterator[Monitor]:
    with Monitor(address, store=path) as made:
        yield made


# -- joining, and being the hub


def test_the_first_is_the_hub_and_the_next_join_it(monitor: Monitor, address: str, path: Path) -> None:
    """All show the same."""
    with Monitor(address, store=path) as second, Monitor(address) as third:
        with train(second._address, 50):
            pass
        watched = [one.wait_for_run("calm-fox", timeout=30.0) for one in (monitor, second, third)]
        for one in watched:
            one.wait(timeout=30.0)

        assert [one.is_hub for one in (monitor, second, third)] == [True, False, False]
        assert [one.connected for one in (monitor, second, third)] == [True, True, True]
        assert [one.address for one in (monitor, second, third)] == [address] * 3
        assert [one.curve("loss").steps.tolist() for one in watched] == [list(range(50))] * 3
        assert [one.badge for one in watched] == ["complete"] * 3


def test_without_an_argument_it_is_the_users_own_hub(fitwire_dir: Path) -> None:
    """Address and store of the environment; a training that names none finds it."""
    with Monitor() as monitor:
        with fitwire.init(name="calm-fox", wait=30.0) as run:
            run.log({"loss": 1.0})
        monitor.wait_for_run(timeout=30.0).wait(timeout=30.0)

        assert monitor.is_hub
        assert monitor.address.startswith(f"ipc://{fitwire_dir}")
    assert (fitwire_dir / "store.sqlite3").exists()


def test_a_hub_on_tcp_is_joined_as_well(path: Path) -> None:
    """Whoever binds first is it."""
    address = f"127.0.0.1:{free_port()}"
    with Monitor(address, store=path) as first, Monitor(address, store=path) as second:
        with train(first._address, 10):
            pass
        watched = second.wait_for_run("calm-fox", timeout=30.0)
        watched.wait(timeout=30.0)

        assert (first.is_hub, second.is_hub) == (True, False)
        assert watched.curve("loss").steps.tolist() == list(range(10))


def test_a_port_that_another_program_holds_is_one_sentence(path: Path) -> None:
    """It is no hub: nobody answers there."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(AddressInUse, match="another program listens there; choose another port, or stop it"):
            Monitor(f"127.0.0.1:{other.getsockname()[1]}", store=path)


def test_a_store_that_cannot_be_opened_is_one_sentence(address: str, path: Path, monitor: Monitor) -> None:
    """For who would be the hub; who joins one needs none."""
    bad = path.with_name("bad")
    bad.write_text("no database " * 1000)
    with Monitor(address, store=bad) as joined:
        assert not joined.is_hub
    with pytest.raises(StoreError, match="cannot open the store"):
        Monitor(f"{address}2", store=bad)


def test_a_wire_it_does_not_know_is_refused(address: str) -> None:
    """With what there is."""
    with pytest.raises(UsageError, match="wire='morse': a Monitor watches 'fw' and 'sleap'"):
        Monitor(address, wire="morse")  # pyright: ignore


def test_many_at_once_make_one_hub(address: str, path: Path) -> None:
    """Whoever is first; the others join, though it has hardly opened."""
    made: list[Monitor] = []
    starters = [threading.Thread(target=lambda: made.append(Monitor(address, store=path))) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(60.0)
    hubs = sum(one.is_hub for one in made)
    for one in sorted(made, key=lambda one: one.is_hub):
        one.close()

    assert (len(made), hubs) == (8, 1)


def test_two_trainings_are_watched_by_three_monitors_at_once(address: str, path: Path, monitor: Monitor) -> None:
    """Each sees both, whole."""
    others = [Monitor(address, store=path) for _ in range(2)]
    with child(TRAIN, address, "one") as first, child(TRAIN, address, "two") as second:
        assert (first.read(), second.read()) == (True, True)
        for one in (monitor, *others):
            for name in ("one", "two"):
                watched = one.wait_for_run(name, timeout=30.0)
                watched.wait(timeout=60.0)
                assert watched.curve("loss").steps.tolist() == list(range(2000))
                assert watched.badge == "complete"
    for one in others:
        one.close()


# -- hubs that leave


def test_when_the_embedded_hub_leaves_another_takes_its_place(address: str, path: Path) -> None:
    """Twice over, while a training goes on; its curve is whole at the last, and on the disk."""
    monitors = [Monitor(address, store=path) for _ in range(3)]
    run = train(monitors[0]._address, 500)
    step = 500
    revisions = [monitors[2].revision]
    for leaving in monitors[:2]:
        assert leaving.is_hub
        leaving.close()
        for _ in range(500):
            run.log({"loss": float(step)}, step=step)
            step += 1
        left = monitors[monitors.index(leaving) + 1 :]
        until(lambda left=left: any(one.is_hub for one in left))
        until(lambda left=left: all(one.connected for one in left))
        monitors[monitors.index(leaving) + 1 :] = sorted(left, key=lambda one: not one.is_hub)
        revisions.append(left[-1].revision)
    assert run.flush(60)  # closing alone waits for two seconds, and finding the new hub may take longer
    run.finish()
    last = monitors[2]
    watched = last.wait_for_run("calm-fox", timeout=30.0)
    watched.wait(timeout=30.0)
    values = watched.curve("loss").values.tolist()
    last.close()

    assert values == [float(at) for at in range(1500)]
    with Monitor(address, store=path, serve=False) as later:
        assert later.run().curve("loss").values.tolist() == values


def test_when_a_hub_is_killed_a_monitor_takes_its_place_and_shows_what_it_knew(address: str, path: Path) -> None:
    """Asked at any moment meanwhile it answers; waiting goes on."""
    hub = start_hub(resolve(address), path)
    with Monitor(address, store=path) as monitor:
        run = train(monitor._address, 300)
        watched = monitor.wait_for_run("calm-fox", timeout=30.0)
        assert watched.wait("loss >= 299", timeout=30.0) == 299.0
        hub.kill()
        hub.close()
        seen = set()
        while not monitor.is_hub:
            seen.add(len(watched.curve("loss")))
        for step in range(300, 600):
            run.log({"loss": float(step)}, step=step)
        run.finish()

        assert watched.wait("loss >= 599", timeout=30.0) == 599.0
        watched.wait(timeout=30.0)
        assert watched.curve("loss").steps.tolist() == list(range(600))
        assert seen <= {300}


def test_a_monitor_that_cannot_take_the_place_says_so_once_and_tries_again(
    address: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its store is no store; when it is mended, it does."""
    bad = path.with_name("bad")
    bad.write_text("no database " * 1000)
    first = Monitor(address, store=path)
    with Monitor(address, store=bad) as second:
        first.close()
        until(lambda: "cannot take its place" in caplog.text)
        assert not second.connected
        bad.unlink()
        until(lambda: second.is_hub)

    assert caplog.text.count("cannot take its place") == 1


# -- without being the hub


def test_a_monitor_that_may_not_serve_shows_the_store(address: str, path: Path) -> None:
    """No hub, an empty store, one that a hub left, one whose hub was killed; it never becomes the hub."""
    with Monitor(address, store=path, serve=False) as empty:
        assert (empty.runs, empty.is_hub, empty.connected) == ([], False, False)
        with pytest.raises(UnknownRun, match="no run has been seen yet: start a training"):
            empty.run()
        with pytest.raises(WaitTimeout, match=r"no run within 0\.01 s at ipc://.*; is a training started with"):
            empty.wait_for_run(timeout=0.01)
    hub = start_hub(resolve(address), path)
    run = train(resolve(address), 5)
    assert run.flush(30.0)
    with Monitor(address, store=path, serve=False) as joined:
        assert (joined.connected, joined.run().state) == (True, "running")
        assert joined.run().curve("loss").last == 4.0
        hub.kill()
        hub.close()
        until(lambda: not joined.connected)
        assert joined.run().curve("loss").last == 4.0
    with Monitor(address, store=path, serve=False) as left:
        assert (left.connected, left.run().state) == (False, "lost")
        assert left.run().curve("loss").steps.tolist() == list(range(5))
    run.finish()


def test_without_serving_and_on_tcp_the_store_is_shown_too(path: Path) -> None:
    """When nobody answers."""
    with Monitor(f"127.0.0.1:{free_port()}", store=path, serve=False) as monitor:
        assert monitor.runs == []


# -- finding runs


def test_runs_are_found_by_name_by_id_and_as_the_last(monitor: Monitor) -> None:
    """The newest of a name; sentences for what is not there."""
    ids = []
    for name in ("a", "b", "a"):
        with train(monitor._address, 1, name=name) as run:
            ids.append(run.id)
        until(lambda run=run: any(one.id == run.id and one.ended for one in monitor.runs))

    assert [run.id for run in monitor.runs] == ids[::-1]
    assert monitor.run().id == monitor.run("last").id == ids[2]
    assert (monitor.run("a").id, monitor.run("b").id) == (ids[2], ids[1])
    assert [monitor.run(which).id for which in ids] == ids
    assert monitor.run(f"{ids[1][:8]}-{ids[1][8:]}".upper()).id == ids[1]
    common = next(ids[0][:size] for size in range(32, 0, -1) if all(one.startswith(ids[0][:size]) for one in ids))
    assert len(common) >= 4  # they begin with the time
    with pytest.raises(UnknownRun, match=f"3 runs have ids that begin with {common}: write more of it"):
        monitor.run(common)
    with pytest.raises(UnknownRun, match="no run 'c'; the newest are: a, b"):
        monitor.run("c")
    with pytest.raises(UnknownRun, match="no run"):
        monitor.run(ids[0][:2])


def test_waiting_for_a_run_takes_the_newest_known_or_the_next(monitor: Monitor, address: str, path: Path) -> None:
    """By name where one is given; ``new`` passes over those that are known."""
    with train(monitor._address, 1, name="old"):
        pass
    with Monitor(address, store=path) as joined:
        for one in (monitor, joined):
            assert one.wait_for_run(timeout=30.0).name == "old"
            with pytest.raises(WaitTimeout, match="no run 'next' within"):
                one.wait_for_run("next", timeout=0.01)
            with pytest.raises(WaitTimeout, match="no run within"):
                one.wait_for_run(new=True, timeout=0.01)
        found: list[str] = []
        waiters = [
            threading.Thread(target=lambda one=one, new=new: found.append(one.wait_for_run(new=new, timeout=60.0).name))
            for one in (monitor, joined)
            for new in (True, False)
        ]
        for waiter in waiters:
            waiter.start()
        until(lambda: len(found) == 2)
        with train(monitor._address, 1, name="next"):
            pass
        for waiter in waiters:
            waiter.join(60.0)

        assert sorted(found) == ["next", "next", "old", "old"]


def test_a_view_is_woken_when_anything_changes(monitor: Monitor, address: str, path: Path) -> None:
    """By a revision that grows; at once when it has changed already; after the time-out at the latest."""
    with Monitor(address, store=path) as joined:
        for one in (monitor, joined):
            before = one.revision
            with train(monitor._address, 1):
                after = one.wait_for_change(before, 60.0)
            assert after > before
            assert one.wait_for_change(before) == one.revision
    until(lambda: all(run.ended for run in monitor.runs))
    still = monitor.revision
    assert monitor.wait_for_change(still, 0.01) >= still


# -- the end


def test_closing_twice_does_nothing_and_what_was_read_stays(address: str, path: Path) -> None:
    """A run that was looked at can be looked at after the ``with`` block."""
    first = Monitor(address, store=path)
    second = Monitor(address, store=path)
    with train(first._address, 3):
        pass
    watched = [one.wait_for_run("calm-fox", timeout=30.0) for one in (first, second)]
    for one in watched:
        one.wait(timeout=30.0)
        assert one.curve("loss").last == 2.0
    for one in (second, second, first, first):
        one.close()

    assert [one.curve("loss").last for one in watched] == [2.0, 2.0]
    assert [one.state for one in watched] == ["finished", "finished"]


def test_a_script_that_forgets_to_close_ends_all_the_same(address: str, path: Path) -> None:
    """With nothing said, and the store in order."""
    code = """
import sys, fitwire
monitor = fitwire.Monitor(sys.argv[1], store=sys.argv[2])
joined = fitwire.Monitor(sys.argv[1], store=sys.argv[2])
run = fitwire.init(sys.argv[1], name="calm-fox", wait=30)
run.log({"loss": 1.0})
run.finish()
print(joined.wait_for_run("calm-fox").wait("loss == 1", timeout=30))
"""
    assert run_python(code, address, str(path)) == "1.0\n"
    with Monitor(address, store=path) as monitor:
        assert monitor.run().curve("loss").last == 1.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_nothing_with_it_and_the_parent_goes_on(monitor: Monitor, address: str, path: Path) -> None:
    """Of the hub and of one that joined: asked in a child they refuse, closing there closes nothing here."""
    code = """
import os, sys, warnings, fitwire
from fitwire.errors import NotOpenError
warnings.simplefilter("ignore")
monitors = [fitwire.Monitor(sys.argv[1], store=sys.argv[2]) for _ in range(2)]
with fitwire.init(sys.argv[1], name="calm-fox", wait=30) as run:
    run.log({"loss": 1.0})
watched = [monitor.wait_for_run("calm-fox", timeout=30) for monitor in monitors]
for one in watched:
    one.wait(timeout=30)
sys.stdout.flush()
for _ in range(5):
    pid = os.fork()
    if not pid:
        refused = 0
        for monitor, run in zip(monitors, watched):
            for ask in (lambda: monitor.runs, lambda: run.curve("loss"), lambda: run.wait(), lambda: monitor.is_hub,
                        lambda: next(run.events())):
                try:
                    ask()
                except NotOpenError:
                    refused += 1
            monitor.close()
        os._exit(refused)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
with fitwire.init(sys.argv[1], name="after", wait=30) as run:
    run.log({"loss": 2.0})
for monitor in monitors:
    print(monitor.wait_for_run("after", timeout=30).wait("loss == 2", timeout=30))
    monitor.close()
"""
    out = run_python(code, f"{address}2", str(path.with_name("other.sqlite3")))

    assert out.split() == ["10"] * 5 + ["2.0"] * 2


def test_nothing_is_left_open(address: str, path: Path) -> None:
    """No thread, no connection to the store: the file can be opened by the next."""
    before = {thread.ident for thread in threading.enumerate()}
    with Monitor(address, store=path) as hub, Monitor(address, store=path) as joined:
        with train(hub._address, 2) as run:
            run.sample("masks", image=np.zeros((2, 3), np.uint8))
        for one in (hub, joined):
            one.wait_for_run("calm-fox", timeout=30.0).wait(timeout=30.0)
            assert one.run().samples("masks")[0].arrays
        backend = hub._desk.backend
    left = {thread.name for thread in threading.enumerate() if thread.ident not in before}

    assert left == set()
    assert isinstance(backend, Local)
    assert backend._store is None
    assert not path.with_name("store.sqlite3-wal").exists()


def test_a_hub_that_holds_the_address_and_never_answers_is_a_sentence(
    address: str, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """After some patience: it may just be opening."""
    monkeypatch.setattr("fitwire.watch.monitor.PATIENCE", 0.5)
    lock = take_address(resolve(address))
    assert lock is not None
    with pytest.raises(LinkError, match=r"no hub answered at ipc://.*; start one with `fitwire hub"):
        Monitor(address, store=path)
    lock.release()

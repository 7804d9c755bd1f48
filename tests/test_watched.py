"""Tests of ``fitwire.watch.watched``: what a person asks of one run, from a store and from a live training."""

from __future__ import annotations

import importlib.util
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fitwire
from fitwire import Monitor
from fitwire.errors import ConditionNotMet, UnknownRun, UsageError, WaitTimeout
from fitwire.events import Alert, Described, Dropped, Log
from fitwire.watch.desk import Desk, local_store
from fitwire.watch.states import State
from fitwire.watch.watched import WatchedRun
from helpers import until
from test_roster import Room
from watching import RUN, T0, Teller, ended, picture, row, started

NAN = float("nan")


@pytest.fixture
def path(fitwire_dir: Path) -> Path:
    return fitwire_dir / "store.sqlite3"


class Shelf:
    """Runs in a store, to be looked at without a hub."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.room = Room(path)
        self.desks: list[Desk] = []

    def put(self, *records: Any, incarnation: int = 1000, rank: int = 0, complete: bool = True) -> WatchedRun:
        """Store what a run told, and look at it."""
        teller = Teller(incarnation, rank)
        self.room.join(teller)
        self.room.hear(teller.say(*records))
        if complete:
            self.room.roster.completed(teller.sender)
        self.room.roster.link(teller.sender, self.room.now, connected=False, gone=True)
        self.room.state(after=1.0)
        self.room.save()
        self.desks.append(Desk(local_store(self.path)))
        return WatchedRun(self.desks[-1], RUN)

    def close(self) -> None:
        for desk in self.desks:
            desk.close()
        self.room.store.close()


@pytest.fixture
def shelf(path: Path) -> Iterator[Shelf]:
    made = Shelf(path)
    yield made
    made.close()


@pytest.fixture
def live(fitwire_dir: Path, path: Path) -> Iterator[tuple[Monitor, Monitor]]:
    """A hub, and a monitor that joined it: what the one shows the other must."""
    with Monitor(f"{fitwire_dir}/hub", store=path) as hub, Monitor(f"{fitwire_dir}/hub", store=path) as joined:
        yield hub, joined


# -- what it is and how it goes


def test_a_run_says_what_it_is(shelf: Shelf) -> None:
    """Names, config with what was laid over it, results, what was found."""
    run = shelf.put(
        started("wise-owl", project="digits", group="folds", tags=("a", "b"), config={"lr": 1, "depth": 2},
                info={"host": "node7", "pid": 5, "totals": {"steps": 4}}),
        Described(what="config", values={"lr": 3}), Described(what="summary", values={"best": 0.5}),
        row(0), row(3), Log(text="hello"), Alert(title="hot"), ended(time=T0 + 8),
    )  # fmt: skip

    assert (run.id, run.name, run.project, run.group) == (RUN.hex(), "wise-owl", "digits", "folds")
    assert (run.tags, run.ranks, run.host, run.started) == (("a", "b"), (0,), "node7", T0)
    assert (run.config, run.summary) == ({"lr": 3, "depth": 2}, {"best": 0.5})
    assert run.info == {"host": "node7", "pid": 5, "totals": {"steps": 4}}
    assert [getattr(line, "text", "") or line.title for line in run.lines] == ["hello", "hot"]
    assert (run.state, run.ended, run.badge, run.status_text) == (State.FINISHED, True, "complete", "finished")
    assert (run.progress.step, run.progress.steps, run.progress.fraction) == (3, 4, 1.0)
    assert (run.progress.eta, run.progress.elapsed) == (None, 8.0)
    assert repr(run) == f"<WatchedRun wise-owl {RUN.hex()[:8]} finished>"
    assert run == WatchedRun(run._desk, RUN)
    assert len({run, WatchedRun(run._desk, RUN)}) == 1


@pytest.mark.parametrize(
    ("last", "state", "text", "badge"),
    [
        ([ended("failed", reason="no", traceback="Traceback …")], "failed", "failed: no", "complete"),
        ([ended("interrupted", reason="Ctrl-C")], "interrupted", "interrupted: Ctrl-C", "complete"),
        ([], "lost", "its process is gone (killed or crashed; `fitwire run` would tell)", "cut off after step 1"),
        ([Dropped(count=3, what="sample", reason="memory"), ended()], "finished", "finished", "3 samples dropped"),
    ],
)  # fmt: skip
def test_how_a_run_ended_is_a_sentence(shelf: Shelf, last: list[Any], state: str, text: str, badge: str) -> None:
    """With the traceback where there is one."""
    run = shelf.put(started(), row(0), *last, complete=bool(last))

    lost, _, rest = run.status_text.partition(": ") if state == "lost" else ("", "", run.status_text)

    assert (run.state, rest, run.badge) == (state, text, badge)
    assert lost.startswith("lost for ") == (run.since is not None) == (state == "lost")
    assert run.traceback == ("Traceback …" if state == "failed" else "")


# -- curves, tables, samples


def test_curves_are_asked_for_by_name_kind_and_rank(shelf: Shelf) -> None:
    """A wrong kind names the right ones; a wrong name says what there is."""
    run = shelf.put(started(), row(0, loss=2.0), row(0, "epoch", epoch=0, loss=1.5, acc=0.5), row(0, "time", cpu=9.0))

    assert (run.metrics, run.gauges) == (["loss", "acc"], ["cpu"])
    assert [run.curve("loss").last, run.curve("loss", "epoch").last, run.latest("acc")] == [2.0, 1.5, 0.5]
    with pytest.raises(UsageError, match="per='step': pass 'auto', 'batch', 'epoch' or 'time'"):
        run.curve("loss", "step")
    with pytest.raises(UnknownRun, match="no metric 'los' per batch in this run; there are: loss, acc, cpu"):
        run.curve("los")
    with pytest.raises(UnknownRun, match="no metric 'loss' of rank 3"):
        run.curve("loss", rank=3)


def test_a_run_becomes_arrays_and_a_table(shelf: Shelf) -> None:
    """All ranks in the table; a name told twice stands twice among the arrays."""
    pytest.importorskip("pandas")
    shelf.put(row(0, loss=7.0), rank=1, complete=False)
    run = shelf.put(started(), row(0, loss=2.0), row(1, loss=NAN), row(1, "epoch", epoch=0, loss=1.5))
    arrays, table = run.to_numpy(), run.to_dataframe()

    assert list(arrays) == ["loss", "loss/epoch"]
    np.testing.assert_array_equal(arrays["loss"]["values"], [2.0, NAN])
    assert arrays["loss/epoch"]["epochs"].tolist() == [0.0]
    assert list(table.columns) == ["name", "per", "rank", "step", "epoch", "time", "value"]
    assert table[["per", "rank", "step"]].values.tolist() == [
        ["batch", 0, 0],
        ["batch", 0, 1],
        ["batch", 1, 0],
        ["epoch", 0, 1],
    ]
    with pytest.raises(UsageError, match="needs polar_bears: pip install it, or use to_numpy"):
        run.to_dataframe("polar_bears")  # pyright: ignore
    assert len(shelf.put(started()).to_dataframe()) == 4


def test_an_empty_run_is_an_empty_table(shelf: Shelf) -> None:
    """With the same columns and dtypes."""
    pytest.importorskip("pandas")
    table = shelf.put(started()).to_dataframe()

    assert (len(table), str(table["step"].dtype), str(table["value"].dtype)) == (0, "int64", "float64")


def test_samples_are_a_list_whose_arrays_come_when_asked_for(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each; they may be written to; slices and negative indices as of any list."""
    run = shelf.put(started(), *(picture(step) for step in range(5)), picture(9, "edges"))
    samples = run.samples("masks")
    loads: list[Any] = []
    load = Desk.load
    monkeypatch.setattr(Desk, "load", lambda *what: loads.append(what) or load(*what))
    last = samples[-1]
    last.arrays["image"][0, 0] = 77

    assert run.sample_names == ["masks", "edges"]
    assert (len(samples), [s.step for s in samples[1:3]], len(samples[1:])) == (5, [1, 2], 4)
    assert (last.name, last.step, last.rank, last.shapes) == ("masks", 4, 0, {"image": ("|u1", (1, 4))})
    assert last.arrays["image"].tolist() == [[77, 4, 4, 4]]
    assert len(loads) == 1
    assert samples[-1].arrays["image"].tolist() == [[4, 4, 4, 4]]
    assert repr(last) == "<WatchedSample masks at step 4: image |u1[1, 4]>"
    with pytest.raises(UnknownRun, match="no sample 'mask' in this run; there are: masks, edges"):
        run.samples("mask")
    with pytest.raises(IndexError):
        samples[5]


DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ">f4", ">i2"]


@pytest.mark.parametrize("which", [0, 1], ids=["hub", "joined"])
def test_every_dtype_arrives_bit_for_bit(live: tuple[Monitor, Monitor], which: int) -> None:
    """Every number's every pattern, text, no element at all, a transposed view, bfloat16."""
    raw = np.random.default_rng(3).integers(0, 256, 960, dtype=np.uint8)
    arrays: dict[str, Any] = {}
    for name in DTYPES:
        dtype = np.dtype(name)
        values = (raw % 2).astype(bool) if name == "bool" else raw.view(dtype)
        arrays["a" + name.replace(">", "big_")] = values.reshape(4, -1)
    arrays["view"] = raw.reshape(30, 32).T[:4]
    arrays["none"] = np.empty((4, 0, 3), np.float32)
    arrays["text"] = np.array(["a", "ß", "\U0001f98a\0x", ""])
    if importlib.util.find_spec("ml_dtypes"):
        import ml_dtypes

        arrays["brain"] = raw.view(ml_dtypes.bfloat16).reshape(4, -1)
    with fitwire.init(live[0].address, name="calm-fox", wait=30.0) as run:
        run.sample("all", **arrays)
    watched = live[which].wait_for_run("calm-fox")
    watched.wait(timeout=30.0)
    found = watched.samples("all")[0].arrays

    assert found.keys() == arrays.keys()
    for name, sent in arrays.items():
        assert (found[name].dtype, found[name].shape) == (sent.dtype, sent.shape), name
        assert found[name].tobytes() == np.ascontiguousarray(sent).tobytes(), name
        assert found[name].flags.writeable


# -- waiting


@pytest.mark.parametrize(
    ("until", "value"),
    [
        ("loss < 2", 1.0), ("loss <= 2", 2.0), ("loss > 3", 4.0), ("loss >= 3", 4.0), ("loss == 2", 2.0),
        ("loss != 4", 3.0), ("loss < 1e9", 4.0), ("odd != 5", NAN), ("val > 0", 0.5),
    ],
)  # fmt: skip
def test_a_condition_that_was_met_is_met(shelf: Shelf, until: str, value: float) -> None:
    """The first value that met it, however long ago; NaN meets only unequal."""
    run = shelf.put(
        started(),
        *(row(i, loss=4.0 - i) for i in range(4)),
        row(4, odd=NAN),
        row(4, "epoch", epoch=0, val=0.5),
        ended(),
    )

    np.testing.assert_equal(run.wait(until, timeout=0.0), value)


@pytest.mark.parametrize("until", ["loss < 0", "odd > 0", "odd == nan", "nothing > 0"])
def test_a_condition_that_can_no_longer_be_met_is_told_at_once(shelf: Shelf, until: str) -> None:
    """With the last value; without waiting for the time to pass."""
    run = shelf.put(started(), row(0, loss=1.0), row(1, odd=NAN), ended("failed", reason="oops"))
    with pytest.raises(
        ConditionNotMet, match=r"run calm-fox is failed and .* was never met; the last value is"
    ) as caught:
        run.wait(until)

    assert (caught.value.state, isinstance(caught.value, TimeoutError)) == ("failed", True)


def test_a_wait_without_a_condition_waits_for_the_end(shelf: Shelf) -> None:
    """None when it is there; WaitTimeout says what it is instead; nonsense is refused first."""
    lost = shelf.put(started(), row(0), complete=False)
    with pytest.raises(WaitTimeout, match=r"run calm-fox did not end within 0\.01 s; it is lost"):
        lost.wait(timeout=0.01)
    with pytest.raises(WaitTimeout, match=r"run calm-fox did not have loss < -1 within 0\.01 s; it is lost"):
        lost.wait("loss < -1", timeout=0.01)
    with pytest.raises(UsageError, match="is no condition"):
        lost.wait("loss")

    assert shelf.put(started(), ended(), incarnation=2000).wait(timeout=0.0) is None


def test_a_value_of_a_branch_that_was_replaced_counts_and_those_after_it_are_looked_at(shelf: Shelf) -> None:
    """The curve has become shorter, and none of the new values is passed over."""
    shelf.put(started(), *(row(i, loss=9.0) for i in range(100)), complete=False)
    run = shelf.put(started(), row(10, loss=8.0), row(11, loss=1.0), ended(), incarnation=2000)

    assert run.wait("loss < 2", timeout=0.0) == 1.0
    assert run.wait("loss > 8.5", timeout=0.0) == 9.0


@pytest.mark.parametrize("which", [0, 1], ids=["hub", "joined"])
def test_waiting_for_a_live_run(live: tuple[Monitor, Monitor], which: int) -> None:
    """Woken when the value comes, and when the run ends; each value is looked at once, not the curve anew."""
    monitor = live[which]
    with fitwire.init(live[0].address, name="calm-fox", wait=30.0) as run:
        run.log({"loss": 5.0})
        watched = monitor.wait_for_run("calm-fox", timeout=30.0)
        got: list[Any] = []
        waiters = [
            threading.Thread(target=lambda: got.append(watched.wait("loss < 1", timeout=60.0))),
            threading.Thread(target=lambda: got.append(watched.wait(timeout=60.0))),
        ]
        for waiter in waiters:
            waiter.start()
        for loss in (3.0, NAN, 0.5, 0.25):
            run.log({"loss": loss})
            time.sleep(0.05)
        waiters[0].join(60.0)
        alive = waiters[1].is_alive()
    waiters[1].join(60.0)

    assert alive
    assert got == [0.5, None]
    assert watched.curve("loss").values[-1] == 0.25


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_reaches_whoever_waits(shelf: Shelf) -> None:
    """At once, also without a time-out; and the monitor works afterwards."""
    run = shelf.put(started(), row(0), complete=False)
    threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run.wait()

    assert run.curve("loss").last == 0.0


def test_a_monitor_that_closes_lets_its_waiters_go(live: tuple[Monitor, Monitor]) -> None:
    """With a sentence."""
    caught: list[BaseException] = []

    def wait(watched: WatchedRun) -> None:
        try:
            watched.wait("loss < -1")
        except WaitTimeout as error:
            caught.append(error)

    with fitwire.init(live[0].address, name="calm-fox", wait=30.0) as run:
        run.log({"loss": 5.0})
        waiters = [threading.Thread(target=wait, args=(m.wait_for_run("calm-fox", timeout=30.0),)) for m in live]
        for waiter in waiters:
            waiter.start()
        time.sleep(0.1)
        live[1].close()
        waiters[1].join(30.0)
        assert not waiters[1].is_alive()
    live[0].close()
    waiters[0].join(30.0)

    assert "before the monitor was closed" in str(caught[0])
    assert len(caught) == 2


def test_the_revision_of_a_run_grows_with_what_is_known_of_it(live: tuple[Monitor, Monitor]) -> None:
    """Views draw anew when it does."""
    with fitwire.init(live[0].address, name="calm-fox", wait=30.0) as run:
        run.log({"loss": 1.0})
        assert run.flush(30.0)
        watched = [monitor.wait_for_run("calm-fox", timeout=30.0) for monitor in live]
        until(lambda: all(not math.isnan(w.latest("loss")) for w in watched))
        before = [w.revision for w in watched]
        run.log({"loss": 2.0})
        until(lambda: all(w.latest("loss") == 2.0 for w in watched))

        assert all(w.revision > b for w, b in zip(watched, before, strict=True))

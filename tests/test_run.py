"""``Run``: what a training says, from the call to the hub's store."""

from __future__ import annotations

import copy
import decimal
import math
import os
import pickle
import sys
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

import fitwire
from fitwire.errors import HandshakeTimeout, UsageError
from fitwire.events import Alert, Command, CommandDone, Described, Log, Metrics, Sample
from fitwire.protocol.blocks import Kind, Message, encode_message
from fitwire.protocol.commands import make_request
from fitwire.train import run as module
from fitwire.train.run import Run
from fitwire.train.settings import Settings
from helpers import until
from tinyhub import Store, TinyHub, tiny_hub


def started(**settings: Any) -> Run:
    return Run(Settings(**{"name": "test", "wait": 60.0} | settings))


class Late:
    """A tensor that its device computes when told so."""

    shape = ()

    def __init__(self, value: float) -> None:
        self.value, self.done = value, False

    def is_ready(self) -> bool:
        return self.done

    def item(self) -> float:
        return self.value


def test_what_is_logged_arrives_exactly_with_its_step_epoch_and_batch() -> None:
    """Floats to the last bit, in the order of the calls."""
    values = [0.1, math.nan, math.inf, -math.inf, -0.0, 5e-324]
    with tiny_hub() as hub, started() as run:
        for i, value in enumerate(values):
            run.log({"loss": value, "n": float(i)}, step=10 * i, epoch=1, batch=i)
        assert run.flush(60)
        found = hub.store.metrics

        assert [(e.step, e.epoch, e.batch) for e in found] == [(10 * i, 1, i) for i in range(6)]
        assert np.array([e.values["loss"] for e in found]).tobytes() == np.array(values).tobytes()
        assert [e.values["n"] for e in found] == [0, 1, 2, 3, 4, 5]
        assert run.step == 50 and run.delivered == hub.store.have(hub.store.senders()[0])[0]


def test_a_step_that_is_not_given_is_one_more_than_the_last() -> None:
    """From 0; values of an epoch belong to the last step."""
    with tiny_hub() as hub, started() as run:
        run.log({"x": 1.0}, epoch=0)
        run.log({"x": 2.0})
        run.log({"x": 3.0})
        run.log({"v": 4.0}, epoch=0)
        run.log({"x": 5.0}, step=40, epoch=1)
        run.log({"x": 6.0}, epoch=1, batch=2)
        run.log({"v": 7.0}, epoch=1)
        run.end_epoch({"v": 8.0}, epoch=2)
        run.end_epoch({"v": 9.0}, epoch=3, step=60)
        run.log({"x": 10.0})
        run.flush(60)

        rows = [(next(iter(e.values.values())), e.step, e.epoch) for e in hub.store.metrics]
        assert rows == [(2.0, 0, None), (3.0, 1, None), (5.0, 40, 1), (6.0, 41, 1), (10.0, 61, None)]
        epochs = [(next(iter(e.values.values())), e.step, e.epoch) for e in hub.store.epochs]
        assert epochs == [(1.0, 0, 0), (4.0, 1, 0), (7.0, 41, 1), (8.0, 41, 2), (9.0, 60, 3)]


def test_the_callers_dict_may_change_after_the_call() -> None:
    """Frameworks reuse theirs."""
    logs = {"x": 0.0}
    with tiny_hub() as hub, started() as run:
        for i in range(100):
            logs["x"] = float(i)
            run.log(logs)
        run.flush(60)

        assert [e.values["x"] for e in hub.store.metrics] == [float(i) for i in range(100)]


def test_any_number_is_taken_and_each_bad_name_is_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The good values stay; the warning goes to the terminal and to watchers."""
    with tiny_hub() as hub, started() as run:
        for _ in range(3):
            run.log({
                "i": 1, "b": True, "f32": np.float32(0.5), "zero_d": np.array(2), "dec": decimal.Decimal("0.25"),
                "big": 2**60, "huge": 10**400, "text": "no", "vector": np.zeros(3), "none": None, 7: 1.5, "": 1.0,
            })  # fmt: skip
        run.log({"text": "still no"})
        run.flush(60)

        good = {"i": 1.0, "b": 1.0, "f32": 0.5, "zero_d": 2.0, "dec": 0.25, "big": float(2**60), "7": 1.5}
        assert [e.values for e in hub.store.metrics] == [good] * 3
        notes = [event.text for event in hub.store.of(Log)]
    lines = capsys.readouterr().err.splitlines()[1:-1]
    assert [line.split("'")[1] for line in lines] == ["huge", "text", "vector", "none", ""]
    assert [f"fitwire: {note}" for note in notes] == lines
    assert run.warnings["bad value text"] == 4


def test_strict_raises_in_the_call_and_sends_nothing_of_it() -> None:
    """A bad value, name, step, epoch, array, level or argument."""
    with tiny_hub(), started(strict=True) as run:
        for call in (
            lambda: run.log({"loss": "x"}),
            lambda: run.log({"": 1.0}),
            lambda: run.log({"loss": 1.0}, step=0.5),  # type: ignore[arg-type]
            lambda: run.log({"loss": 1.0}, step=2**60),
            lambda: run.log({"loss": 1.0}, epoch="one"),  # type: ignore[arg-type]
            lambda: run.log(5.0),  # type: ignore[arg-type]
            lambda: run.sample("m", image=object()),
            lambda: run.sample("m"),
            lambda: run.note("x", level="loud"),  # type: ignore[arg-type]
        ):
            with pytest.raises(UsageError):
                call()


def test_without_strict_the_same_calls_never_raise() -> None:
    """A monitoring fault does not stop a training; good values of such a call arrive."""
    with tiny_hub() as hub, started() as run:
        run.log({"loss": 1.0}, step=0.5)  # type: ignore[arg-type]
        run.log({"loss": 2.0}, step=2**60)
        run.log({"loss": 3.0, "i": 1}, step=2**60)
        run.log({"loss": 4.0}, step=np.int32(7), epoch="one", batch=np.int64(3))  # type: ignore[arg-type]
        run.log(5.0)  # type: ignore[arg-type]
        run.log({})
        run.sample("m", image=object(), text="not a list", target=np.zeros(()))
        run.sample("", image=np.zeros(1))
        run.note("x", level="loud")  # type: ignore[arg-type]
        run.alert("x", level="loud")  # type: ignore[arg-type]
        assert run.flush(60)

        rows = [(e.step, e.epoch, e.batch, e.values.get("loss")) for e in hub.store.metrics]
        assert rows[0] == (0, None, None, 1.0) and rows[3] == (7, None, 3, 4.0) and rows[4] == (9, None, None, None)
        assert [row[3] for row in rows] == [1.0, 2.0, 3.0, 4.0, None]


def test_eight_threads_log_at_once_and_every_record_arrives_once() -> None:
    """No lock, no loss: each thread's own order is kept."""
    with tiny_hub() as hub, started() as run:

        def work(who: int) -> None:
            for i in range(2000):
                run.log({f"t{who}": float(i)}, step=i)
                if i % 500 == 0:
                    run.sample(f"s{who}", image=np.full((1, 2), i), step=i)
                    run.config[f"c{who}"] = i

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert run.flush(60)

        for who in range(8):
            mine = [e.values[f"t{who}"] for e in hub.store.metrics if f"t{who}" in e.values]
            assert mine == [float(i) for i in range(2000)]
            assert [e.step for e in hub.store.of(Sample) if e.name == f"s{who}"] == [0, 500, 1000, 1500]
        assert {e.values.get(f"c{w}") for e in hub.store.of(Described) for w in range(8)} >= {0, 500, 1000, 1500}


def test_a_sample_is_copied_at_the_call_and_arrives_bit_for_bit() -> None:
    """Every dtype that travels, any strides, several outputs by name, text; the caller may overwrite its arrays."""
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    heat = np.asfortranarray(np.random.default_rng(0).normal(size=(2, 5)).astype(">f4"))
    given = {"image": image.transpose(0, 2, 1), "heatmap": heat, "mask": np.array([[True], [False]])}
    expected = {key: value.copy() for key, value in given.items()}
    with tiny_hub() as hub, started() as run:
        run.log({"x": 1.0}, step=7)
        run.sample(
            "masks",
            prediction={"a": np.array([1j, 2j]), "b": [[1], [2]]},
            text=["cat", "dog"],
            extra=np.ones(2),
            **given,
        )
        image[:] = 0
        heat[:] = 0
        run.sample("later", step=np.int64(9), epoch=np.int64(1), image=np.zeros((1, 2)))
        assert run.flush(60)
        first, second = hub.store.of(Sample)

    assert (first.name, first.step, first.epoch, second.step, second.epoch) == ("masks", 7, None, 9, 1)
    assert set(first.arrays) == {"image", "heatmap", "mask", "prediction.a", "prediction.b", "text", "extra"}
    for key, value in expected.items():
        assert first.arrays[key].dtype == value.dtype
        np.testing.assert_array_equal(first.arrays[key], value)
    assert first.arrays["text"].tolist() == ["cat", "dog"]


def test_the_good_arrays_of_a_sample_are_sent_without_the_bad() -> None:
    """Each bad one is named once."""
    with tiny_hub() as hub, started() as run:
        for _ in range(2):
            run.sample(
                "m",
                image=np.zeros((2, 2)),
                target=np.array([object()]),
                mask=np.zeros((0, 2)),
                when=np.array(["2026"], "M8[D]"),
            )
        run.sample("n", target=np.ma.masked_array([1], [1]))
        run.flush(60)

        assert [list(event.arrays) for event in hub.store.of(Sample)] == [["image"], ["image"]]
    bad = [key.removeprefix("bad value sample ") for key in run.warnings]
    assert bad == ["m: target", "m: mask", "m: when", "n: target"]


def test_notes_alerts_and_descriptions_arrive_with_their_step() -> None:
    """Texts that cannot be written as UTF-8 are mended; config and summary are told as they change."""
    with (
        tiny_hub() as hub,
        started(config={"lr": 0.1, "deep": {"a": (1, 2)}, "nan": math.nan}, tags=("a",), group="g") as run,
    ):
        run.note("begun \ud800")
        run.log({"x": 1.0}, step=3)
        run.alert("diverging", "loss is nan", level="error")
        run.config.update(lr=0.2)
        run.summary["best"] = np.float32(0.5)
        run.describe(totals={"epochs": 3, "steps": None}, model="m")
        run.flush(60)
        begin = hub.store.started[0]

        assert (begin.name, begin.project, begin.group, begin.tags) == ("test", "default", "g", ("a",))
        assert begin.config == {"lr": 0.1, "deep": {"a": [1, 2]}, "nan": "nan"}
        assert begin.info["pid"] == os.getpid() and begin.info["world_size"] == 1
        assert begin.info["fitwire"] == fitwire.__version__
        assert [(e.text, e.step) for e in hub.store.of(Log)] == [("begun ?", None)]
        assert [(e.title, e.text, e.level, e.step) for e in hub.store.of(Alert)] == [
            ("diverging", "loss is nan", "error", 3)
        ]
        assert [(e.what, e.values) for e in hub.store.of(Described)] == [
            ("config", {"lr": 0.2}),
            ("summary", {"best": 0.5}),
            ("info", {"totals": {"epochs": 3, "steps": None}, "model": "m"}),
        ]
        assert run.config["lr"] == 0.2


def test_the_end_says_how_and_what_follows_is_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    """One line at the start, one at the end; a call after it is warned of once and changes nothing."""
    with tiny_hub() as hub:
        run = started()
        run.log({"x": 1.0})
        run.finish()
        run.finish("failed")
        for _ in range(3):
            run.log({"x": 2.0})
            run.sample("m", image=np.zeros(1))
            run.note("late")
            run.config["late"] = 1
        assert run.flush()
        until(lambda: hub.store.ended)

        assert run.status == "finished"
        assert hub.store.ended is not None and hub.store.ended.status == "finished"
        assert [e.values for e in hub.store.metrics] == [{"x": 1.0}]
        assert [sink.complete for sink in hub.sinks.values()] == [True]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "fitwire: run test · watch it with fitwire watch",
        "fitwire: run test finished · 4 records delivered",
        "fitwire: run test has ended: what is logged now goes nowhere",
    ]


def test_an_exception_inside_ends_the_run_as_failed_with_its_traceback() -> None:
    """And goes on its way."""
    with tiny_hub() as hub:
        with pytest.raises(ZeroDivisionError), started() as run:  # noqa: PT012  the block is what is tested
            run.log({"x": 1.0}, step=37)
            1 / 0
        end = until(lambda: hub.store.ended)

    assert (end.status, end.reason, end.step) == ("failed", "ZeroDivisionError: division by zero", 37)
    assert "1 / 0" in end.traceback and "test_run.py" in end.traceback


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(0), "finished"),
        (SystemExit(None), "finished"),
        (SystemExit(3), "failed"),
        (GeneratorExit(), "interrupted"),
        (ValueError("größe \ud800"), "failed"),
        (RuntimeError("x" * 500_000), "failed"),
    ],
)
def test_what_left_the_block_decides_the_status(error: BaseException, status: str) -> None:
    """Ctrl-C interrupts, a clean exit finishes, anything else fails; odd texts are mended and long ones cut."""
    with tiny_hub() as hub:
        with pytest.raises(type(error)), started():
            raise error
        end = until(lambda: hub.store.ended)

    assert end.status == status
    assert len(end.reason) <= 300 and len(end.traceback) <= 60_001


def test_without_a_hub_nothing_waits_and_the_end_says_what_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """Training starts at once and ends normally."""
    begun = time.monotonic()
    with started(wait=0) as run:
        for _ in range(100):
            run.log({"x": 1.0})
        assert not run.flush(0.1)

    assert time.monotonic() - begun < 20
    assert run.status == "finished" and run.delivered == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fitwire: run test finished · 0 records delivered, 103 wait in /")
    assert last.endswith(": the next hub here takes them, or `fitwire sync`")


def test_two_million_rows_without_a_hub_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small budget, so that it is reached: what is kept stays below it, what had to go is counted."""
    from fitwire.train import journal, uplink

    made = partial(journal.Journal, record_bytes=2**20, disk_bytes=(8 * 2**20, 2**20))
    monkeypatch.setattr(uplink, "Journal", made)
    monkeypatch.setattr(uplink, "MAX_QUEUE", 50_000)
    run = started(wait=0)
    outlet: Any = run._outlet  # pyright: ignore[reportPrivateUsage]
    peak = 0
    for i in range(2_000_000):
        run.log({"x": 1.0, "y": 2.0}, step=i)
        if i % 10_000 == 0:
            peak = max(peak, outlet.backlog.nbytes)
            if len(outlet.queue) > 100_000:  # this thread yields to nobody: a training would
                until(lambda: len(outlet.queue) < 50_000)
    until(lambda: not outlet.queue)
    run.finish()
    delivery = outlet.delivery()

    assert peak < 4 * 2**20  # the cache, and what is packed in one look
    assert 1_800_000 < delivery.dropped < 2_000_000
    assert delivery.left >= 2_000_002  # a reading of the gauges may be among them


def test_wait_awaits_the_hub_and_trains_anyway(capsys: pytest.CaptureFixture[str]) -> None:
    """A hub that comes within it is met; else a warning, and with strict an error."""
    Run(Settings(name="unmet", wait=0.05)).finish()
    assert "no hub answered" in capsys.readouterr().err
    with pytest.raises(HandshakeTimeout, match=r"within 0\.1 s"):
        Run(Settings(name="strict", wait=0.05, strict=True))
    assert "run strict failed (no hub answered in time)" in capsys.readouterr().err
    hub: list[TinyHub] = []
    timer = threading.Timer(0.2, lambda: hub.append(TinyHub()))
    timer.start()
    run = Run(Settings(name="met", wait=60, strict=True))
    timer.join()

    assert hub[0].hellos[0]["name"] == "met"
    run.finish()
    hub[0].kill()


def test_the_same_run_id_goes_on_as_a_greater_incarnation() -> None:
    """The run is one, its life another; ``never`` starts a new one."""
    store = Store()
    with tiny_hub(store=store):
        for resume in ("auto", "must", "never"):
            with started(run_id="fold 3", resume=resume) as run:
                run.log({"x": 1.0})
                assert run.name == "test"

    first, second, third = store.senders()
    assert first.run == second.run != third.run
    assert second.incarnation > first.incarnation
    assert run.id == third.run.hex()


def test_values_on_a_device_are_read_later_in_their_order() -> None:
    """At a later call once they are done, at the end of the epoch and at the end of all in any case."""
    with tiny_hub() as hub, started() as run:
        first, second, third = Late(1.0), Late(2.0), Late(3.0)
        run.log({"loss": first, "lr": 0.1})
        run.log({"loss": 10.0})
        until(lambda: run._outlet is not None and run._outlet.greeted.is_set())  # pyright: ignore[reportPrivateUsage]
        time.sleep(0.1)
        assert hub.store.metrics == []
        first.done = True
        run.log({"loss": second})
        until(lambda: len(hub.store.metrics) == 2)
        run.end_epoch({"val": 5.0}, epoch=0)
        until(lambda: len(hub.store.metrics) == 3)
        run.log({"loss": third})
        run.finish()

        values = [e.values["loss"] for e in hub.store.metrics]
        assert values == [1.0, 10.0, 2.0, 3.0]
        assert hub.store.ended is not None


def test_a_run_that_is_disabled_does_nothing_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    """No thread, no word, every call harmless."""
    before = set(threading.enumerate())
    with started(mode="disabled", config={"lr": 1}) as run:
        run.log({"x": "anything"}, step="x")  # type: ignore[arg-type]
        run.sample("m", image=object())
        run.note("x")
        run.alert("x")
        run.describe(a=1)
        run.end_epoch({}, epoch=0)
        run.config["b"] = 2
        assert run.flush() and not run.stop_requested and run.delivered == 0

    assert run.status == "finished" and dict(run.config) == {"lr": 1, "b": 2}
    assert set(threading.enumerate()) <= before
    assert capsys.readouterr() == ("", "")


def test_a_pickled_or_copied_run_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    """A data loader's worker that got one along does not send; the original goes on."""
    with tiny_hub() as hub, started(config={"lr": 0.1}) as run:
        for other in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):  # noqa: S301  made on this line
            assert (other.id, other.name, dict(other.config)) == (run.id, run.name, {"lr": 0.1})
            other.log({"x": 1.0})
            other.log({"x": 2.0})
            other.finish()
        run.log({"x": 3.0})
        run.flush(60)

        assert [e.values for e in hub.store.metrics] == [{"x": 3.0}]
    assert capsys.readouterr().err.count("a copy of run test sends nothing") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_a_forked_child_calls_do_nothing_and_nothing_hangs() -> None:
    """Even when locks were held at the fork; it is said once, and the parent goes on."""
    with tiny_hub() as hub, started() as run:
        run.log({"x": 1.0}, step=0)
        run._ending.acquire()  # pyright: ignore[reportPrivateUsage]
        run._pending._reading.acquire()  # pyright: ignore[reportPrivateUsage]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # what a data loader's worker does with a run it inherited
            status = 1
            try:
                os.dup2(writer, 2)
                sys.stderr = os.fdopen(2, "w")
                for _ in range(3):
                    run.log({"x": 2.0}, step=1)
                    run.log({"x": "slow"}, step=1)
                run.sample("m", image=np.zeros(1))
                run.end_epoch({"x": 1.0}, epoch=0)
                run.config["a"] = 1
                run.flush()
                run.finish()
                run.fail(ValueError("x"))
                status = 0 if run.status is None and run.warnings["fork"] > 3 else 2
            finally:
                os._exit(status)
        run._ending.release()  # pyright: ignore[reportPrivateUsage]
        run._pending._reading.release()  # pyright: ignore[reportPrivateUsage]
        os.close(writer)
        found: list[int] = []
        waiter = threading.Thread(target=lambda: found.append(os.waitpid(child, 0)[1]))
        waiter.start()
        waiter.join(60)
        if not found:
            os.kill(child, 9)
        run.log({"x": 3.0}, step=2)
        assert run.flush(60)

        assert [os.waitstatus_to_exitcode(status) for status in found] == [0]
        assert [e.values["x"] for e in hub.store.metrics] == [1.0, 3.0]
        with os.fdopen(reader) as said:
            assert said.read().splitlines() == [
                "fitwire: run test belongs to the parent process: calls in a forked child do nothing"
            ]


def test_a_flood_of_bad_names_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    """A name made up at each step is a warning each time, but not for ever."""
    run = started(wait=0)
    for i in range(1000):
        run.log({f"bad {i}": "x"})
    run.finish()

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 + module.MAX_WARNINGS + 1
    assert lines[-2] == "fitwire: more warnings follow; they are counted and not said"
    assert run.warnings.total() == 1000


def test_an_unknown_status_is_refused_and_the_run_goes_on() -> None:
    """The message names the choices."""
    run = started(wait=0)
    with pytest.raises(UsageError, match="'finished', 'failed', 'interrupted'"):
        run.finish("done")  # type: ignore[arg-type]

    assert run.status is None
    run.finish()
    assert repr(run).endswith("finished>")


def test_ctrl_c_while_finishing_goes_to_the_user_and_what_is_left_is_sent_after() -> None:
    """The second call, as at interpreter exit, waits for the rest and says the line."""
    with tiny_hub() as hub:
        run = started()
        outlet: Any = run._outlet  # pyright: ignore[reportPrivateUsage]
        close, calls = outlet.close, []

        def interrupted(status: str) -> Any:
            calls.append(status)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return close(status)

        outlet.close = interrupted
        run.log({"x": 1.0})
        with pytest.raises(KeyboardInterrupt):
            run.finish()
        assert run in fitwire.train.ending.open_runs()
        run.finish("failed")

        assert run not in fitwire.train.ending.open_runs()
        assert hub.store.ended is not None and hub.store.ended.status == "finished"
        assert len(hub.store.metrics) == 1 and isinstance(hub.store.metrics[0], Metrics)


# -- steered


def ask(hub: TinyHub, run: Run, number: int, word: str, /, **arguments: Any) -> None:
    """Send a command as a hub does."""
    outlet: Any = run._outlet  # pyright: ignore[reportPrivateUsage]
    sender = outlet.source.sender
    request = make_request("0" * 32, number, word, arguments, deadline=60.0)
    hub.send(encode_message(Message(Kind.COMMAND, sender, body=request.body(0.0))))


def outcomes(hub: TinyHub) -> list[tuple[str, str]]:
    return [(event.name, event.status) for event in hub.store.of(CommandDone)]


def test_a_loop_of_ones_own_is_steered_between_its_steps() -> None:
    """A knob turns in `log`, a stop waits until the loop asks; both are records of the run, in their order."""
    with tiny_hub() as hub:
        run = fitwire.init(name="steered", wait=60.0)
        knob = run.knob("lr", 0.5, low=0.0, high=1.0)
        ask(hub, run, 1, "stop")
        ask(hub, run, 2, "set", name="lr", value=0.25)
        ask(hub, run, 3, "set", name="lr", value=5.0)
        until(lambda: run.wants_attention and len(hub.store.of(Command)) == 3)
        assert knob.value == 0.5
        run.log({"loss": 1.0}, step=7)
        assert knob.value == 0.25 and run.wants_attention
        assert run.stop_requested and not run.wants_attention
        run.finish()

    assert outcomes(hub) == [("set", "refused"), ("set", "applied"), ("stop", "applied")]
    assert [event.step for event in hub.store.of(CommandDone)][1:] == [None, 7]


def test_a_command_that_comes_again_is_carried_out_once() -> None:
    """Its answer was lost, say."""
    with tiny_hub() as hub, fitwire.init(name="steered", wait=60.0) as run:
        called: list[int] = []
        run.action("count", lambda: called.append(1))
        for _ in range(5):
            ask(hub, run, 1, "do", action="count")
        until(lambda: run.wants_attention)
        time.sleep(0.1)
        run.apply()
        run.apply()

        assert called == [1]


def test_another_thread_that_logs_does_not_carry_out_what_was_asked() -> None:
    """The thread that trains does, where it is between two steps."""
    with tiny_hub() as hub, fitwire.init(name="steered", wait=60.0) as run:
        knob = run.knob("lr", 0.5)
        ask(hub, run, 1, "set", name="lr", value=0.25)
        until(lambda: run.wants_attention)
        other = threading.Thread(target=run.log, args=({"x": 1.0},))
        other.start()
        other.join()
        assert knob.value == 0.5
        run.log({"x": 1.0})

        assert knob.value == 0.25


@pytest.mark.parametrize("made", ["callback's", "not to be steered"])
def test_a_run_that_offers_nothing_refuses_at_once(made: str) -> None:
    """Whoever asks hears why, and the training hears nothing of it."""
    with tiny_hub() as hub:
        run = started() if made == "callback's" else fitwire.init(name="steered", wait=60.0, control=False)
        ask(hub, run, 1, "stop")
        until(lambda: hub.store.of(CommandDone))
        assert not run.wants_attention and not run.stop_requested
        run.finish()

    assert outcomes(hub) == [("stop", "refused")]

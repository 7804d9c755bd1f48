"""``wire="pair"``: what a ``PairedReceiver`` hears, and that training never waits for one."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq

import fitwire
from fitwire.errors import AddressError, HandshakeTimeout
from fitwire.message import PairedReceiver
from fitwire.train import pairlink as module
from fitwire.train.outlet import DRAIN, Mark
from fitwire.train.pairlink import PairUplink, pair_addresses
from helpers import free_port, until

Dict = dict[str, Any]


class Gui:
    """A watcher of the plain pair, reading in a thread like a window's timer does."""

    def __init__(self, ports: tuple[int, int], *, slow: float = 0.0) -> None:
        self.messages: list[Dict] = []
        self._stop = threading.Event()
        self._receiver = PairedReceiver(f"tcp://127.0.0.1:{ports[1]}", f"tcp://127.0.0.1:{ports[0]}")
        self._receiver.setup()
        self._slow = slow
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            self.messages.extend(self._receiver.check_messages(timeout=10, times_to_check=50))
            self._stop.wait(self._slow)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60)
        self._receiver.close()

    def of(self, kind: str) -> list[Dict]:
        return [message for message in self.messages if message["type"] == kind]


@pytest.fixture
def ports() -> tuple[int, int]:
    """Two that are free."""
    return free_port(), free_port()


@pytest.fixture
def gui(ports: tuple[int, int]) -> Iterator[Gui]:
    """One that is there from the beginning."""
    watcher = Gui(ports)
    yield watcher
    watcher.close()


def started(ports: tuple[int, int], **options: Any) -> fitwire.Run:
    return fitwire.init(f"tcp://127.0.0.1:{ports[0]},{ports[1]}", name="pair", wire="pair", **options)


def test_a_training_is_told_in_dicts_of_six_keys_and_one_array_a_role(ports: tuple[int, int], gui: Gui) -> None:
    """Begin, batches, epochs, samples and the end, in their order; the address is shown at the start."""
    image, mask = np.arange(12.0).reshape(2, 3, 2), np.array([[1], [0]], dtype=np.uint8)
    with started(ports, wait=60) as run:
        run.log({"loss": 0.5, "n": np.float32(0.25)}, step=0, epoch=0, batch=0)
        run.log({"loss": math.nan}, step=1, epoch=0, batch=1)
        run.sample("masks", image=image.transpose(0, 2, 1), mask=mask, text=["a", "b"], epoch=0)
        run.note("has no word on this wire")
        run.end_epoch({"val_loss": 0.125}, epoch=0)
        assert run.flush(60)
    until(lambda: gui.of("train_end"))

    assert [message["type"] for message in gui.messages] == [
        "train_begin", "batch", "batch", "sample", "sample", "sample", "epoch", "train_end",
    ]  # fmt: skip
    begin, first, second = gui.messages[:3]
    assert begin == {"type": "train_begin", "run": "pair", "epoch": None, "batch": None, "step": None, "logs": {}}
    assert first == {
        "type": "batch", "run": "pair", "epoch": 0, "batch": 0, "step": 0, "logs": {"loss": 0.5, "n": 0.25},
    }  # fmt: skip
    assert math.isnan(second["logs"]["loss"])
    samples = {message["role"]: message for message in gui.of("sample")}
    assert {(m["run"], m["name"], m["epoch"], m["step"]) for m in samples.values()} == {("pair", "masks", 0, 1)}
    np.testing.assert_array_equal(samples["image"]["ndarray"], image.transpose(0, 2, 1))
    np.testing.assert_array_equal(samples["mask"]["ndarray"], mask)
    assert samples["mask"]["ndarray"].dtype == np.uint8 and samples["text"]["ndarray"].tolist() == ["a", "b"]
    epoch, end = gui.messages[-2:]
    assert (epoch["epoch"], epoch["batch"], epoch["step"], epoch["logs"]) == (0, None, 1, {"val_loss": 0.125})
    assert (end["status"], end["step"], end["logs"]) == ("finished", 1, {"val_loss": 0.125})


def test_a_receiver_that_comes_later_hears_it_from_the_beginning(ports: tuple[int, int]) -> None:
    """Messages are held until the handshake completes; training does not wait for it."""
    begun = time.monotonic()
    run = started(ports)
    for i in range(500):
        run.log({"loss": float(i)}, step=i)
    assert time.monotonic() - begun < 30
    assert not run.flush(0.1)
    watcher = Gui(ports)
    assert run.flush(60)
    run.finish()
    until(lambda: watcher.of("train_end"))
    watcher.close()

    assert watcher.messages[0]["type"] == "train_begin"
    assert [message["step"] for message in watcher.of("batch")] == list(range(500))


def test_a_failed_training_says_so(ports: tuple[int, int], gui: Gui) -> None:
    """With the reason."""
    with pytest.raises(ValueError, match="bad"), started(ports, wait=60):
        raise ValueError("bad")
    end = until(lambda: gui.of("train_end"))[0]

    assert (end["status"], end["reason"]) == ("failed", "ValueError: bad")


def test_without_a_receiver_messages_are_held_within_a_bound_and_counted(
    ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oldest batches and samples go; beginning, epochs and end never do; ending is quick."""
    monkeypatch.setattr(module, "MAX_HELD", 400)
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 100_000)
    run = started(ports)
    link: Any = run._outlet  # pyright: ignore[reportPrivateUsage]
    for i in range(5000):
        run.log({"loss": float(i)}, step=i)
        if i % 500 == 499:
            run.end_epoch({"val": float(i)}, epoch=i // 500)
            run.sample("m", image=np.zeros((1, 20_000), np.uint8))
    until(lambda: not link.queue)
    held = list(link._held)
    run.finish()

    assert len(held) <= 400 and link._held_bytes <= 100_000
    kinds = [header["type"] for header, _ in held]
    assert kinds.count("train_begin") == 1 and kinds.count("epoch") == 10
    assert [header["step"] for header, _ in held if header["type"] == "batch"][-1] == 4999
    assert len(held) + link.delivery().dropped == 5000 + 10 + 10 + 1
    assert link.delivery().delivered == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert "0 records delivered" in last and f"{link.delivery().dropped:,} given up" in last


def test_wait_awaits_the_handshake(ports: tuple[int, int]) -> None:
    """As on our own wire: strict raises, else it trains unwatched."""
    with pytest.raises(HandshakeTimeout):
        started(ports, wait=0.05, strict=True)

    run = started(ports, wait=0.05)
    run.finish()
    assert run.warnings["handshake"] == 1


def test_a_receiver_that_dies_never_holds_the_training_and_the_next_is_told_what_began(ports: tuple[int, int]) -> None:
    """What is said in between is held for the next one."""
    first = Gui(ports)
    run = started(ports, wait=60)
    run.log({"loss": 0.0}, step=0)
    assert run.flush(60)
    until(lambda: first.of("batch"))
    first.close()
    link: Any = run._outlet  # pyright: ignore[reportPrivateUsage]
    until(lambda: not link._sender.has_peer)
    time.sleep(10 * module.LOOK)
    for i in range(1, 2000):
        run.log({"loss": float(i)}, step=i)
    second = Gui(ports)
    assert run.flush(60)
    run.finish()
    until(lambda: second.of("train_end"))
    second.close()

    assert second.messages[0]["type"] == "train_begin"
    assert [message["step"] for message in second.of("batch")] == list(range(1, 2000))
    delivery = link.delivery()
    assert (delivery.left, delivery.dropped) == (0, 0)


def test_a_receiver_that_never_reads_never_holds_the_training(ports: tuple[int, int]) -> None:
    """It answers the handshake and freezes: calls return, the end is bounded."""
    watcher = PairedReceiver(f"tcp://127.0.0.1:{ports[1]}", f"tcp://127.0.0.1:{ports[0]}")
    watcher.setup()
    run = started(ports)
    assert watcher.receive_handshake(60)
    for i in range(20_000):
        run.log({"loss": float(i)}, step=i)
    begun = time.monotonic()
    run.finish()

    assert time.monotonic() - begun < 10 * (DRAIN + 1)
    assert run.status == "finished"
    watcher.close()


def test_a_taken_port_is_said_once_and_tried_again(ports: tuple[int, int], gui: Gui) -> None:
    """Another training holds it: this one goes on untold, and takes it when it is free."""
    holder = started(ports, wait=60)
    run = started(ports)
    until(lambda: run.warnings["pair"])
    run.log({"loss": 0.5}, step=3)
    holder.finish()
    assert run.flush(60)
    run.finish()
    until(lambda: len(gui.of("train_end")) == 2)

    assert [message["step"] for message in gui.of("batch")] == [3]


def test_an_unmodified_receiver_of_the_seed_understands_it(ports: tuple[int, int]) -> None:
    """Plain SUB and PUB and the seed's bytes, with nothing of ours at that end."""
    context: zmq.Context[Any] = zmq.Context()
    sub, pub = context.socket(zmq.SUB), context.socket(zmq.PUB)
    sub.setsockopt(zmq.SUBSCRIBE, b"")
    sub.bind(f"tcp://127.0.0.1:{ports[0]}")
    pub.connect(f"tcp://127.0.0.1:{ports[1]}")
    heard: list[tuple[Dict, bytes]] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            if not sub.poll(10):
                continue
            header = json.loads(sub.recv())
            data = sub.recv() if "dtype" in header and "shape" in header else b""
            if header["type"] == "handshake request":
                pub.send(json.dumps({"type": "handshake reply"}).encode())
            else:
                heard.append((header, data))

    thread = threading.Thread(target=work)
    thread.start()
    with started(ports, wait=60) as run:
        run.log({"loss": 0.5}, step=0, epoch=0, batch=0)
        run.sample("m", image=np.arange(4, dtype=np.int16).reshape(2, 2).T)
        assert run.flush(60)
    until(lambda: heard and heard[-1][0]["type"] == "train_end")
    stop.set()
    thread.join()
    context.destroy(linger=0)

    assert [header["type"] for header, _ in heard] == ["train_begin", "batch", "sample", "train_end"]
    header, data = heard[2]
    image = np.frombuffer(data, header["dtype"]).reshape(header["shape"])
    assert (header["name"], header["role"], image.tolist()) == ("m", "image", [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, ("tcp://127.0.0.1:9001", "tcp://127.0.0.1:9002")),
        ("tcp://127.0.0.1:1,2", ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")),
        ("localhost:9001,9002", ("tcp://127.0.0.1:9001", "tcp://127.0.0.1:9002")),
    ],
)
def test_an_address_names_both_ports(text: str | None, found: tuple[str, str]) -> None:
    """The receiver's first; the seed's by default."""
    assert pair_addresses(text) == found


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "127.0.0.1:9001", "127.0.0.1:0,1", "127.0.0.1:1,1", "x:1,70000", "ipc:///a"]
)
def test_a_malformed_address_says_how_to_write_it(text: str) -> None:
    """One sentence."""
    with pytest.raises(AddressError, match=r"write tcp://127\.0\.0\.1:9001,9002"):
        pair_addresses(text)


@pytest.mark.parametrize("text", ["gpu-box:9001,9002", "10.0.0.5:9001,9002", "127.0.0.1.example.org:1,2"])
def test_another_machine_is_reached_through_ssh_only(text: str) -> None:
    """These sockets know no keys."""
    with pytest.raises(AddressError, match="ssh -L"):
        pair_addresses(text)


def test_the_environment_names_the_ports_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument goes before it."""
    monkeypatch.setenv("FITWIRE_ADDRESS", "127.0.0.1:5,6")

    assert pair_addresses(None) == ("tcp://127.0.0.1:5", "tcp://127.0.0.1:6")
    assert pair_addresses("127.0.0.1:7,8")[0] == "tcp://127.0.0.1:7"


def test_a_fault_of_ours_is_told_and_reaches_nobody(ports: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue does not pile up, a flush returns, closing is quick."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fault")

    told: list[str] = []
    monkeypatch.setattr(module, "PairedSender", broken)
    link = PairUplink(f"127.0.0.1:{ports[0]},{ports[1]}", lambda kind, sentence: told.append(sentence), run="x")
    link.start()
    until(lambda: told)
    link.queue.append((0.0, 0, None, None, "batch", {"x": 1.0}))
    mark = Mark(threading.Event())
    link.queue.append(mark)
    assert mark.reached.wait(60)

    assert not mark.delivered
    assert "RuntimeError: a fault" in told[0]
    assert link.close("finished").left == 1


def test_arrays_of_every_byte_order_and_small_floats_arrive(ports: tuple[int, int], gui: Gui) -> None:
    """Big-endian stays what it is; a dtype that numpy alone cannot name comes as float32."""
    ml_dtypes: Any = pytest.importorskip("ml_dtypes")
    with started(ports, wait=60) as run:
        run.sample("m", image=np.array([[1.5, 2]], ">f4"), target=np.array([[0.5]], ml_dtypes.bfloat16))
        assert run.flush(60)
    until(lambda: gui.of("train_end"))
    arrays = {message["role"]: message["ndarray"] for message in gui.of("sample")}

    assert arrays["image"].dtype == np.dtype(">f4") and arrays["image"].tolist() == [[1.5, 2.0]]
    assert arrays["target"].dtype == np.float32 and arrays["target"].tolist() == [[0.5]]

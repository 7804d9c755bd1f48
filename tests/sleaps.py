"""SLEAP's ends as their sources have them, for tests without SLEAP: three windows, and the callbacks of two trainers.

Written after LossViewer of SLEAP 1.4.1, 1.5.2 and 1.6.6, the callbacks of SLEAP 1.4.1 and those of sleap-nn 0.3.5: what
they send and read, what they raise on, when they look. They decode JSON where those decode jsonpickle, which for plain
JSON is the same.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq

Dict = dict[str, Any]

VERSIONS = ("1.4.1", "1.5.2", "1.6.6")


class Window:
    """A LossViewer: its sockets, read as its timer does, and its handler of messages.

    Attributes:
        points: Of ``batch``, ``train`` and ``val``, each as (x, y).
        messages: All that came, in order, with the monotonic time of each.
        errors: What its handler raised.
    """

    def __init__(self, version: str, ports: tuple[int, int], *, what: str = "centroid", reads: bool = True) -> None:
        self.version = version
        self.points: dict[str, list[tuple[int, float]]] = {"batch": [], "train": [], "val": []}
        self.messages: list[Dict] = []
        self.times: list[float] = []
        self.errors: list[BaseException] = []
        self.what, self.running, self.ends = what, False, 0
        self.epoch, self.epoch_size, self.last_batch = 0, 1, 0
        self._context = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.subscribe("")
        self._sub.bind(f"tcp://127.0.0.1:{ports[0]}")
        self._control = self._context.socket(zmq.PUB)
        self._control.bind(f"tcp://127.0.0.1:{ports[1]}")
        self.reading = threading.Event()
        if reads:
            self.reading.set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.is_set():
            if not self.reading.wait(0.05):
                continue
            for _ in range(11):
                if not self._sub.poll(10, zmq.POLLIN):
                    break
                message = json.loads(self._sub.recv_string())
                self.messages.append(message)
                self.times.append(time.monotonic())
                try:
                    self._handle(message)
                except Exception as error:  # Qt prints it, and the window goes on
                    self.errors.append(error)
                    break
            self._over.wait(0.02)

    def _handle(self, message: Dict) -> None:
        if message["event"] == "train_begin":
            self.running, self.what = True, message["what"]
        if message.get("what", "") != self.what:
            return
        self.running = True
        if message["event"] == "train_end":
            self.running, self.ends = False, self.ends + 1
        elif message["event"] == "epoch_begin":
            self.epoch = message["epoch"]
        elif message["event"] == "epoch_end":
            self.epoch_size = max(self.epoch_size, self.last_batch + 1)
            self._epoch_end(message["logs"], (self.epoch + 1) * self.epoch_size)
        elif message["event"] == "batch_end":
            self.last_batch = message["batch"]
            logs = message["logs"]
            loss = {
                "1.4.1": lambda: logs["loss"],
                "1.5.2": lambda: logs["train_loss"],
                "1.6.6": lambda: logs.get("loss", logs.get("train_loss")),
            }[self.version]()
            if loss is not None:
                self.points["batch"].append((self.epoch * self.epoch_size + message["batch"], loss))

    def _epoch_end(self, logs: Dict, x: int) -> None:
        train = {
            "1.4.1": lambda: logs["loss"],
            "1.5.2": lambda: logs["train_loss"],
            "1.6.6": lambda: logs.get("train/loss", logs.get("train_loss")),
        }[self.version]()
        if train is not None:
            self.points["train"].append((x, train))
        val = logs.get("val/loss", logs.get("val_loss")) if self.version == "1.6.6" else logs.get("val_loss")
        if val is not None:
            self.points["val"].append((x, val))

    def of(self, event: str) -> list[Dict]:
        return [message for message in self.messages if message["event"] == event]

    def stop(self) -> None:
        """Its button *Stop Early*."""
        self._control.send_string(json.dumps({"command": "stop"}))

    def send(self, message: Any) -> None:
        """Anything at its control port; SLEAP 1.4 can set the learning rate."""
        self._control.send_string(message if isinstance(message, str) else json.dumps(message))

    def close(self) -> None:
        self._over.set()
        self._thread.join(30)
        self._context.destroy(linger=0)


@contextmanager
def window(version: str, ports: tuple[int, int], **options: Any) -> Iterator[Window]:
    made = Window(version, ports, **options)
    try:
        yield made
    finally:
        made.close()


class Callbacks:
    """What both trainers have: PUB and SUB that connect when they are made, one look at commands after each batch.

    Attributes:
        stopped: Whether a stop was obeyed.
        lr: The learning rate.
        crashed: What the controller raised, which ends the training.
    """

    def __init__(
        self, ports: tuple[int, int], encode: Callable[[Any], str] = json.dumps, *, control: bool = True
    ) -> None:
        self._encode = encode
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.connect(f"tcp://127.0.0.1:{ports[0]}")
        self._sub = self._context.socket(zmq.SUB)
        if control:
            self._sub.subscribe("")
            self._sub.connect(f"tcp://127.0.0.1:{ports[1]}")
        self.stopped = False
        self.lr = 1e-3
        self.crashed: BaseException | None = None

    def send(self, **message: Any) -> None:
        self._pub.send_string(self._encode(message))

    def command(self) -> Any:
        return json.loads(self._sub.recv_string()) if self._sub.poll(10, zmq.POLLIN) else None

    def close(self, linger: int = 1000) -> None:
        self._context.destroy(linger=linger)


class Keras(Callbacks):
    """SLEAP up to 1.4: ``fit`` of Keras with its two callbacks.

    Args:
        ports: Progress, control.
        keras: 2, which says ``lr`` when an epoch has ended and bears to have it set; or 3, which does neither.
        options: As of :class:`Callbacks`.
    """

    def __init__(self, ports: tuple[int, int], *, keras: int = 2, **options: Any) -> None:
        super().__init__(ports, **options)
        self._keras, self._what = keras, "not_set"

    def obey(self) -> None:
        message = self.command()
        if message is None:
            return
        if message["command"] == "stop":
            self.stopped = True
        elif message["command"] == "set_lr":
            if self._keras == 3:
                raise AttributeError("'Adam' object has no attribute 'lr'")
            self.lr = message["lr"]

    def fit(
        self, epochs: int, batches: int, *, pause: float = 0.0, number: Callable[[float], Any] = float, end: bool = True
    ) -> None:
        self.send(what=self._what, event="train_begin", logs={})
        logs: Dict = {}
        for epoch in range(epochs):
            self.send(what=self._what, event="epoch_begin", epoch=epoch, logs={})
            for batch in range(batches):
                self.send(what=self._what, event="batch_begin", batch=batch, logs={})
                logs = {"loss": number(1 / (1 + epoch * batches + batch)), "acc": number(0.5)}
                self.send(what=self._what, event="batch_end", batch=batch, logs=logs)
                time.sleep(pause)
                try:
                    self.obey()
                except Exception as error:
                    self.crashed = error
                    self.close()
                    return
                if self.stopped:
                    break
            rate = {"lr": number(self.lr)} if self._keras == 2 else {"learning_rate": self.lr}
            self.send(
                what=self._what,
                event="epoch_end",
                epoch=epoch,
                logs=logs | {"val_loss": number(0.5 / (epoch + 1))} | rate,
            )
            if self.stopped:
                break
        if end:
            self.send(what=self._what, event="train_end", logs=logs)


class NN(Callbacks):
    """sleap-nn: Lightning's loop with its two callbacks, whose messages say all that Lightning knows by then.

    The module logs ``loss`` with each batch, ``train/confmaps`` with each batch for the epoch, ``val/loss`` in the
    validation, and ``train/loss`` with others in ``on_train_epoch_end``, which Lightning calls after the callbacks'.

    Attributes:
        losses: ``train/loss`` as the module logged it, by epoch.
    """

    losses: list[float]

    def fit(self, epochs: int, batches: int, *, pause: float = 0.0, fail: bool = False, late: bool = True) -> None:
        self.losses = []
        metrics: dict[str, float] = {}
        self.send(what="", event="train_begin", logs=None, wandb_url=None)
        for epoch in range(epochs):
            self.send(what="", event="epoch_begin", logs=None, epoch=epoch)
            total = 0.0
            for batch in range(batches):
                self.send(what="", event="batch_start", logs=None, batch=batch)
                metrics["loss"] = 1 / (1 + epoch * batches + batch)
                total += metrics["loss"]
                time.sleep(pause)
                self.send(what="", event="batch_end", logs=dict(metrics), epoch=epoch, batch=batch)
                message = self.command()
                if message is not None and message.get("command") == "stop":
                    self.stopped = True
                if fail and epoch == epochs - 1:  # on_exception: the sockets are closed, and no word is said
                    self.close()
                    return
                if self.stopped:
                    break
            metrics |= {"val/loss": 0.5 / (epoch + 1), "val/time": 0.1 + epoch, "epoch": float(epoch)}
            metrics["train/confmaps"] = 7.0 + epoch
            self.losses.append(total / (batch + 1))
            module = {"train/loss": self.losses[-1], "train/time": 1.0 + epoch, "train/lr": 1e-4}
            metrics |= {} if late else module
            self.send(what="", event="epoch_end", logs=dict(metrics), epoch=epoch)
            metrics |= module
            if self.stopped:
                break
        self.send(what="", event="train_end", logs=None)

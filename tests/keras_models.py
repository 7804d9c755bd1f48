"""Small Keras models, data and callbacks for tests and for the programs they start; the same on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

BATCH = 16
BACKEND = keras.backend.backend()

_chance = np.random.default_rng(7)
X = _chance.random((90, 8, 8, 1), dtype=np.float32)
"""Six batches of 16, the last of 10."""
Y = _chance.integers(0, 3, 90)


def pictures(**compiled: Any) -> keras.Model:
    """A classifier with everything that has state: dropout, batch normalisation, an optimizer with momentum."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dropout(0.3, name="drop"),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ],
        name="pictures",
    )
    settings = {"optimizer": keras.optimizers.Adam(1e-2), "metrics": ["accuracy"]} | compiled
    model.compile(loss="sparse_categorical_crossentropy", **settings)
    return model


def line(**compiled: Any) -> keras.Model:
    """The cheapest model: four numbers to one."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile(**{"optimizer": "sgd", "loss": "mse"} | compiled)
    return model


def points(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Data for :func:`line`."""
    chance = np.random.default_rng(count)
    return chance.random((count, 4), dtype=np.float32), chance.random((count, 1), dtype=np.float32)


class Own(keras.Model):
    """Sub-classed, not built before its first batch, with a ``train_step`` that returns names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, *args: Any) -> Any:
        made = super().train_step(*args)
        logs = made[0] if BACKEND == "jax" else made
        logs = {**logs, "twice": logs["loss"] * 2}
        return (logs, made[1]) if BACKEND == "jax" else logs


class Normed(keras.Model):
    """Sub-classed, with a normalisation that can be told not to train."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = keras.layers.BatchNormalization()
        self.dense = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(self.norm(x))


def two_headed() -> keras.Model:
    """Two named inputs, two named outputs, metrics of each."""
    keras.utils.set_random_seed(3)
    left, meta = keras.layers.Input((8, 8, 1), name="left"), keras.layers.Input((4,), name="meta")
    both = keras.layers.Concatenate()([keras.layers.Flatten()(left), meta])
    outputs = {"a": keras.layers.Dense(1, name="a")(both), "b": keras.layers.Dense(2, name="b")(both)}
    model = keras.Model({"left": left, "meta": meta}, outputs)
    model.compile("sgd", loss={"a": "mse", "b": "mse"}, metrics={"a": ["mae"], "b": ["mae", "mse"]})
    return model


class Noisy(keras.layers.Layer):
    """Draws numbers and counts calls whether it trains or not, as a sampling layer does."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.seeds = keras.random.SeedGenerator(5)

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any) -> Any:
        self.calls.assign_add(1.0)
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def noisy() -> keras.Model:
    """A model whose predictions would change its training if nobody put its states back."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.layers.Input((4,)), Noisy(), keras.layers.Dropout(0.2), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    return model


class Recorder(keras.callbacks.Callback):
    """What Keras itself says at each hook, and at each epoch's end the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, dict[str, float]]] = []
        self.weights: list[list[np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.batches.append((batch, dict(logs or {})))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.weights.append([np.array(w) for w in self.model.get_weights()])


class At(keras.callbacks.Callback):
    """Does something at one hook."""

    def __init__(self, hook: str, act: Callable[..., Any]) -> None:
        super().__init__()
        setattr(self, hook, act)


def stream(batches: int, size: int = 8) -> Iterator[Any]:
    """Data whose length only their end tells, as often as they are asked again."""
    x, y = points(batches * size)
    for i in range(batches):
        yield x[i * size : (i + 1) * size], y[i * size : (i + 1) * size]


def uncounted(batches: int, size: int = 8) -> Any:
    """Data that can be gone through again and again, but do not say how long they are."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        shapes = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))
        return tf.data.Dataset.from_generator(lambda: stream(batches, size), output_signature=shapes)
    import torch

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return stream(batches, size)

    return torch.utils.data.DataLoader(Stream(), batch_size=None)

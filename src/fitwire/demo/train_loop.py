"""Train a small network in plain numpy to take noise off digits: ``python -m fitwire.demo.train_loop``."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

import fitwire
from fitwire.demo.digits import noisy_digits, options, write_history
from fitwire.protocol.arrays import Array

EPOCHS = 30
BATCH = 16


class Network:
    """64 pixels → 256 → 256 → 64 pixels, with Adam; gradients by hand."""

    def __init__(self, rate: float) -> None:
        self.random = np.random.default_rng(1)
        sizes = (64, 256, 256, 64)
        self.weights = [self.random.standard_normal((a + 1, b)) * np.sqrt(2 / a) for a, b in pairwise(sizes)]
        self.moments = [(np.zeros_like(w), np.zeros_like(w)) for w in self.weights]
        self.rate, self.steps = rate, 0

    def _layers(self, x: Array) -> list[Array]:
        outputs = [x.reshape(len(x), -1).astype(np.float64)]
        for index, weights in enumerate(self.weights):
            z = np.concatenate((outputs[-1], np.ones((len(x), 1))), axis=1) @ weights
            outputs.append(np.maximum(z, 0) if index < 2 else 1 / (1 + np.exp(-z)))
        return outputs

    def predict(self, x: Array) -> Array:
        """Pictures in the shape they came in."""
        return self._layers(x)[-1].reshape(x.shape)

    def step(self, x: Array, y: Array) -> float:
        """One step of Adam; returns the loss before it."""
        outputs, target = self._layers(x), y.reshape(len(y), -1)
        error = outputs[-1] - target
        delta = 2 * error / error.size * outputs[-1] * (1 - outputs[-1])
        self.steps += 1
        for index in reversed(range(len(self.weights))):
            inputs = np.concatenate((outputs[index], np.ones((len(x), 1))), axis=1)
            gradient = inputs.T @ delta
            delta = (delta @ self.weights[index].T)[:, :-1] * (outputs[index] > 0)
            first, second = self.moments[index]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            # The averages begin at zero; this takes their bias off.
            scale = np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
            self.weights[index] -= self.rate * scale * first / (np.sqrt(second) + 1e-8)
        return float(np.mean(error**2))


def main() -> None:
    """Train, as a user would; the lines with ``run`` are fitwire's."""
    args = options(__doc__, EPOCHS)
    (x, y), (xv, yv) = noisy_digits()
    network, history = Network(rate=1e-3), {"train/loss": list[float](), "val/loss": list[float]()}
    with fitwire.init(args.address, project="demo", name="digits", config={"rate": 1e-3, "batch": BATCH}) as run:
        run.describe(totals={"epochs": args.epochs, "steps_per_epoch": len(x) // BATCH})
        for epoch in range(args.epochs):
            order = network.random.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
            losses: list[float] = []
            for batch, chosen in enumerate(order):
                losses.append(network.step(x[chosen], y[chosen]))
                run.log({"train/loss": losses[-1]}, step=network.steps - 1, epoch=epoch, batch=batch)
            values = {"train/loss": float(np.mean(losses)), "val/loss": float(np.mean((network.predict(xv) - yv) ** 2))}
            run.end_epoch(values, epoch=epoch)
            run.sample("digits", epoch=epoch, image=xv[:12], target=yv[:12], prediction=network.predict(xv[:12]))
            for name, value in values.items():
                history[name].append(value)
    write_history(args.history, history)


if __name__ == "__main__":
    main()

"""What the three trainings of the demo share: noisy handwritten digits, and what they are told on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fitwire.protocol.arrays import Array

__all__ = ["noisy_digits", "options", "write_history"]

NOISE = 0.3
"""Standard deviation of the noise, where a pixel is 0 to 1: a digit is still a digit, but no pleasure to read."""
VALIDATION = 360


def noisy_digits() -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """scikit-learn's 1,797 digits, made noisy.

    Returns:
        For training and for validation: noisy and clean pictures, float32 ``(n, 8, 8, 1)``, 0 to 1.
    """
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    random = np.random.default_rng(7)
    clean = np.asarray(load_digits().images, np.float32)[..., None] / 16  # pyright: ignore
    clean = clean[random.permutation(len(clean))]
    noisy = np.clip(clean + NOISE * random.standard_normal(clean.shape), 0, 1).astype(np.float32)
    return (noisy[VALIDATION:], clean[VALIDATION:]), (noisy[:VALIDATION], clean[:VALIDATION])


def options(about: str | None, epochs: int) -> argparse.Namespace:
    """Read ``--address``, ``--epochs`` and ``--history`` from the command line."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--address", help="of the hub; the user's own on this machine when left out")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--history", type=Path, help="where to write what each epoch came to, as JSON")
    return parser.parse_args()


def write_history(path: Path | None, history: Mapping[str, Sequence[float]]) -> None:
    """Write what the training itself says each epoch came to; Python's JSON keeps every bit of a float."""
    if path is not None:
        path.write_text(json.dumps({name: list(map(float, values)) for name, values in history.items()}))

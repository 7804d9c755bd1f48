"""A training that tests steer from outside: ``keras_steered_program.py FOLDER``.

Three fits: one that nobody watches, the same one watched, and a long one to be stopped. What came of them is written to
``FOLDER/facts.json``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from fitwire.keras import ZMQProgress
from keras_models import BATCH, X, Y, line, pictures, points

FOLDER = Path(sys.argv[1])


class Slow(keras.callbacks.Callback):
    """Leaves a watcher time, and counts."""

    def __init__(self, watcher: ZMQProgress, seconds: float) -> None:
        super().__init__()
        self.watcher, self.seconds, self.batches = watcher, seconds, 0
        self.knob: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        assert self.watcher.run is not None
        self.knob = self.watcher.run.knob("noise", 0.5, low=0.0, high=1.0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        time.sleep(self.seconds)


def weights(model: keras.Model) -> bytes:
    return b"".join(np.ascontiguousarray(w).tobytes() for w in model.get_weights())


plain = pictures()
plain.fit(X, Y, batch_size=BATCH, epochs=10, verbose=0)

watched = pictures()
watcher = ZMQProgress(name="paused", wait=20)
watched.fit(X, Y, batch_size=BATCH, epochs=10, verbose=0, callbacks=[watcher, Slow(watcher, 0.1)])

model = line()
watcher = ZMQProgress(name="steered", wait=20, samples=points(4)[0], sample_freq=10**6)
slow = Slow(watcher, 0.02)
saver = keras.callbacks.ModelCheckpoint(str(FOLDER / "model.keras"), save_freq=10**9)
model.fit(
    *points(160), batch_size=16, epochs=3000, verbose=0, validation_data=points(16), callbacks=[watcher, slow, saver]
)
facts = {
    "same": weights(plain) == weights(watched),
    "batches": slow.batches,
    "rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
    "noise": slow.knob.value,
}
(FOLDER / "facts.json").write_text(json.dumps(facts))

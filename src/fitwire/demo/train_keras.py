"""Train a small Keras model to take noise off digits: ``python -m fitwire.demo.train_keras``."""

# pyright: basic, reportArgumentType=false
# A user's program: the framework's own names have no types to be strict about.

from __future__ import annotations

import keras

from fitwire.demo.digits import noisy_digits, options, write_history
from fitwire.keras import ZMQProgress

EPOCHS = 30


def main() -> None:
    """Train, as a user would; one line of it is fitwire's."""
    args = options(__doc__, EPOCHS)
    keras.utils.set_random_seed(1)
    (x, y), (xv, yv) = noisy_digits()
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid"),
        ]
    )
    model.compile("adam", loss="mse", metrics=["mae"])
    progress = ZMQProgress(args.address, project="demo", name="digits", samples=(xv[:12], yv[:12]))
    history = model.fit(
        x, y, batch_size=16, epochs=args.epochs, validation_data=(xv, yv), verbose=0, callbacks=[progress]
    )
    write_history(args.history, history.history)


if __name__ == "__main__":
    main()

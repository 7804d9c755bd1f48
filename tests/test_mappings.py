"""``run.config`` and ``run.summary``: what is set is kept plainly and told at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fitwire.errors import UsageError
from fitwire.train.mappings import Settable


def test_changes_are_told_once_for_each_update() -> None:
    """One message for all that an update sets, none for what was there, none for nothing."""
    told: list[dict[str, Any]] = []
    config = Settable({"lr": 0.1}, told.append)
    config["lr"] = 0.2
    config.update({"a": np.int64(1)}, b=(1, 2))
    config.update()
    config.setdefault("lr", 5)

    assert told == [{"lr": 0.2}, {"a": 1, "b": [1, 2]}]
    assert dict(config) == {"lr": 0.2, "a": 1, "b": [1, 2]}
    assert len(config) == 3 and "a" in config and repr(config) == repr(dict(config))


def test_what_was_told_cannot_be_taken_back() -> None:
    """Deleting says what to do instead."""
    config = Settable({"lr": 0.1}, lambda changed: None)
    with pytest.raises(UsageError, match="set it to None"):
        del config["lr"]

    assert dict(config) == {"lr": 0.1}

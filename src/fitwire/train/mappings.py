"""``run.config`` and ``run.summary``: mappings whose changes are told to watchers. Who tells them is not known here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from fitwire.errors import UsageError
from fitwire.train.values import plain_mapping

__all__ = ["Settable"]


class Settable(MutableMapping[str, Any]):
    """Names to plain values; whatever is set is kept as JSON has it and told at once.

    Args:
        values: To begin with; these are not told.
        told: Takes each change.

    Example:
        >>> told = []
        >>> config = Settable({"lr": 0.1}, told.append)
        >>> config.update(lr=0.2, layers=(1, 2))
        >>> told
        [{'lr': 0.2, 'layers': [1, 2]}]
    """

    def __init__(self, values: Mapping[str, Any], told: Callable[[dict[str, Any]], None]) -> None:
        self._values = plain_mapping(values)
        self._told = told

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        raise UsageError(f"{key!r} cannot be taken back: watchers have it; set it to None")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def update(self, *args: Any, **values: Any) -> None:
        """Set several values in one message; arguments as for ``dict.update``."""
        changed = plain_mapping(dict(*args, **values))
        self._values.update(changed)
        if changed:
            self._told(changed)

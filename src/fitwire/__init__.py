"""Stream a training, live, from wherever it runs to whoever watches.

What this module lists is the whole public surface beside the front doors; each name is loaded when it is first used, so
that a trainer never pays for the watcher's wing, nor a watcher for the trainer's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fitwire._version import __version__
from fitwire.errors import (
    AddressError,
    AddressInUse,
    DecodeError,
    EncodeError,
    FitwireError,
    HandshakeTimeout,
    LinkError,
    NotOpenError,
    ProtocolError,
    StoreError,
    Superseded,
    UnknownRun,
    UsageError,
    WaitTimeout,
)

if TYPE_CHECKING:
    from fitwire.loop import init
    from fitwire.train.run import Run
    from fitwire.watch.monitor import Monitor, WatchedRun

__all__ = [
    "AddressError",
    "AddressInUse",
    "DecodeError",
    "EncodeError",
    "FitwireError",
    "HandshakeTimeout",
    "LinkError",
    "Monitor",
    "NotOpenError",
    "ProtocolError",
    "Run",
    "StoreError",
    "Superseded",
    "UnknownRun",
    "UsageError",
    "WaitTimeout",
    "WatchedRun",
    "__version__",
    "init",
]

_LAZY = {
    "Monitor": "fitwire.watch.monitor",
    "Run": "fitwire.train.run",
    "WatchedRun": "fitwire.watch.monitor",
    "init": "fitwire.loop",
}


def __getattr__(name: str) -> object:
    """Load a public name on its first use (PEP 562)."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'fitwire' has no attribute {name!r}")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

"""Every error fitwire raises, split by whose fault it is.

::

    FitwireError
    ├── UsageError (ValueError)             ours to mend: a wrong argument or call
    │   ├── EncodeError                     a value that cannot be sent
    │   ├── AddressError                    an address that cannot be used as asked
    │   └── NotOpenError (RuntimeError)     used before it was opened or after it was closed
    ├── UnknownRun (KeyError)               no run, metric or sample by that name
    ├── ProtocolError                       the peer's fault: bytes that break the rules
    │   └── DecodeError (ValueError)        a frame, block or array that does not parse
    ├── LinkError (ConnectionError)         the network's or the machine's fault
    │   ├── AddressInUse                    somebody else holds the address
    │   ├── HandshakeTimeout (TimeoutError) nobody answered in time
    │   └── Superseded                      a newer incarnation of the run has taken over
    ├── WaitTimeout (TimeoutError)          what was waited for did not happen in time
    │   └── ConditionNotMet                 the run ended, and it never happened
    ├── StoreError (OSError)                the hub's database cannot be read or written
    └── JournalError (OSError)              a trainer's journal cannot be read or delivered

This module knows nothing of the rest of the package.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "AddressInUse",
    "ConditionNotMet",
    "DecodeError",
    "EncodeError",
    "FitwireError",
    "HandshakeTimeout",
    "JournalError",
    "LinkError",
    "NotOpenError",
    "ProtocolError",
    "StoreError",
    "Superseded",
    "UnknownRun",
    "UsageError",
    "WaitTimeout",
]


class FitwireError(Exception):
    """Root of all that fitwire raises on purpose."""


class UsageError(FitwireError, ValueError):
    """A wrong argument or a call at the wrong time; the message says what to pass instead."""


class EncodeError(UsageError):
    """A value that cannot be sent; nothing of it has been."""


class AddressError(UsageError):
    """An address that is malformed, or that cannot be used safely as asked."""


class NotOpenError(UsageError, RuntimeError):
    """Used before it was opened, or after it was closed."""


class UnknownRun(FitwireError, KeyError):
    """No run, metric or sample goes by that name."""

    def __str__(self) -> str:  # KeyError would show the repr of the sentence
        return str(self.args[0]) if self.args else ""


class ProtocolError(FitwireError):
    """The peer sent what the protocol does not allow."""


class DecodeError(ProtocolError, ValueError):
    """Bytes that do not parse as what they claim to be.

    Attributes:
        kind: A short, fixed word for counting, e.g. ``"crc"`` or ``"json"``.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class LinkError(FitwireError, ConnectionError):
    """The network, the socket or the machine did not do its part."""


class AddressInUse(LinkError):
    """Somebody else holds the address."""

    def __init__(self, address: str, hint: str) -> None:
        self.address = address
        super().__init__(f"{address} is taken: {hint}")


class HandshakeTimeout(LinkError, TimeoutError):
    """No hub answered the hello in time."""

    def __init__(self, address: str, waited: float) -> None:
        self.address, self.waited = address, waited
        super().__init__(
            f"no hub answered at {address} within {waited:.1f} s; start one with `fitwire watch`, "
            "or pass wait=0 to train unwatched"
        )


class Superseded(LinkError):
    """A newer incarnation of this run and rank has taken over."""

    def __init__(self, run: str, incarnation: int, newer: int) -> None:
        self.run, self.incarnation, self.newer = run, incarnation, newer
        super().__init__(f"run {run} goes on as incarnation {newer}; this one ({incarnation}) sends no more")


class WaitTimeout(FitwireError, TimeoutError):
    """What was waited for did not happen in time."""


class ConditionNotMet(WaitTimeout):
    """The run ended, and what was waited for had never happened."""

    def __init__(self, run: str, condition: str, state: str, last: float) -> None:
        self.run, self.condition, self.state, self.last = run, condition, state, last
        super().__init__(f"run {run} is {state} and {condition} was never met; the last value is {last:g}")


class StoreError(FitwireError, OSError):
    """The hub's database cannot be opened, read or written."""


class JournalError(FitwireError, OSError):
    """A trainer's journal cannot be read or delivered; what it holds stays where it is."""

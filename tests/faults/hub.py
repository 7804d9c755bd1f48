"""A hub for the tests of faults, as a program: ``python -m faults.hub PLAN``.

Prints ``listening``; then, for each line on stdin, one line of JSON with what it has counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fitwire.protocol.blocks import Block, Message
from fitwire.protocol.sink import Sink
from fitwire.transport.address import resolve
from fitwire.watch.hub import Hub
from fitwire.watch.store import Store


class CountingHub(Hub):
    """Counts greetings of sources, and those of a source that was being heard: each is a connection given up."""

    def _greet_source(self, peer: bytes, message: Message, *rest: Any) -> None:
        self.counts["hellos"] += 1
        known = [link.sink for link in self._links.values() if link.sink.sender == message.sender]
        # The first greeting may be said more than once, on a slow line: not one after records have come.
        if any(any(sink.have) for sink in known):
            self.counts["greeted again"] += 1
        super()._greet_source(peer, message, *rest)

    def faults(self) -> Counter[str]:
        found = Counter({key: n for key, n in self.counts.items() if key.startswith("bad ")})
        for sink in sinks:
            found.update({f"bad {kind}": n for kind, n in sink.bad.items()})
        return found


sinks: list[Sink] = []
longest = [0.0]
"""Seconds that the slowest commit was made to take."""
_make = Sink.__init__


def _remembered(self: Sink, *args: Any, **named: Any) -> None:
    _make(self, *args, **named)
    sinks.append(self)


def slow_down(per_record: float) -> None:
    """Make the store take so many seconds a record."""
    commit = Store.commit

    def slow(self: Store, blocks: Sequence[Block], *rest: Any) -> None:
        seconds = per_record * sum(block.count for block in blocks)
        longest[0] = max(longest[0], seconds)
        time.sleep(seconds)
        commit(self, blocks, *rest)

    Store.commit = slow  # type: ignore[method-assign]


def main() -> None:
    plan = json.loads(sys.argv[1])
    Sink.__init__ = _remembered  # type: ignore[method-assign]
    if plan.get("per_record"):
        slow_down(plan["per_record"])
    hub = CountingHub(resolve(plan.get("address")), plan.get("store"))
    print("listening", flush=True)
    for _ in sys.stdin:
        counted = dict(hub.counts) | dict(hub.faults())
        counted["duplicates"] = sum(sink.duplicates for sink in sinks)
        counted["longest_commit"] = longest[0]
        counted["gaps"] = sum(sink.gaps for sink in sinks)
        print(json.dumps(counted), flush=True)
    hub.close()


if __name__ == "__main__":
    main()

"""What watchers ask of a training on several ranks: rank 0 is asked, and all of them do it before the same step.

Every few steps all ranks come together in one small reduction, on a gloo group of their own so that nothing waits for a
GPU. It says whether rank 0 has been asked for something; only then that is sent to the others. What ranks could judge
differently, such as clocks and how long a pause lasts, is judged by rank 0. This module takes torch where a training on
several ranks has imported it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

from fitwire.protocol.commands import Request

__all__ = ["Ranks"]

SHARE = 0.001
"""Part of the step time that coming together may cost, at most."""
LONGEST = 0.5
"""Seconds between two meetings, at most, whatever they cost."""
MOST = 1000
"""Steps between two meetings, at most: later ones may take longer."""
TRIED = 5
GIVE_UP = timedelta(minutes=10)
"""After which a rank that does not come is waited for no longer, and nothing is obeyed any more."""
SENT = ("client", "number", "name", "arguments", "author", "asked")


class Ranks:
    """The ranks of one training; made by all of them at the same place, and called by all equally often.

    Args:
        rank: Of this process.
        willing: Whether this one may be steered; if any may not, none is.
        warn: Told, in a sentence, that the ranks cannot come together any more.

    Attributes:
        rank: As passed.
        every: Steps between two meetings.
        why: Why nothing is obeyed; empty while it is.
    """

    def __init__(self, rank: int, willing: bool, warn: Callable[[str], None]) -> None:
        self._torch: Any = sys.modules["torch"]
        self._dist: Any = self._torch.distributed
        self._warn = warn
        self.rank, self.every, self.why = rank, 1, ""
        self._steps, self._met = 0, time.monotonic()
        self._cost = math.inf
        self._group: Any = None
        try:
            self._group = self._dist.new_group(backend="gloo", timeout=GIVE_UP)
            told = self._torch.tensor([int(willing)])
            self._dist.all_reduce(told, op=self._dist.ReduceOp.MIN, group=self._group)
        except RuntimeError as error:
            self._break(error)
            return
        if not int(told):
            self.why = "not every rank of this training is to be steered (control=False, or mode='disabled')"
        for _ in range(TRIED):  # what it costs; how long a step takes is not known yet
            self.agree([])
        self.every, self._steps = 1, -1  # the first step is still to come

    @staticmethod
    def are_there(size: int) -> bool:
        """Whether torch has brought ``size`` processes together."""
        torch = sys.modules.get("torch")
        dist: Any = getattr(torch, "distributed", None)
        return bool(
            dist is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() == size
        )

    def due(self) -> bool:
        """Whether to come together before this step; to be asked once a step."""
        self._steps += 1
        return self._steps >= self.every

    def agree(self, asked: Sequence[Request], hold: bool = False) -> tuple[list[Request], bool]:
        """What rank 0 was asked, on every rank.

        Args:
            asked: What waits here; only rank 0's counts.
            hold: Whether rank 0 wants all to hold on.

        Returns:
            The commands, which do not expire any more, and whether to hold on.
        """
        if self._group is None:
            return [], False
        try:
            return self._agree(asked, hold)
        except RuntimeError as error:
            self._break(error)
            return [], False

    def _break(self, error: RuntimeError) -> None:
        """A rank has gone, or does not come: the training's own collectives will say so, if it is more than that."""
        self._group = None
        self.why = f"the ranks of this training do not come together: {str(error)[:200]}"
        self._warn(f"{self.why}; nothing that is asked of it is done from here on")

    def _agree(self, asked: Sequence[Request], hold: bool) -> tuple[list[Request], bool]:
        began = time.monotonic()
        data = _packed(asked) if self.rank == 0 else b""
        step = (began - self._met) / max(self._steps, 1)
        said = [len(data), int(hold), self._wanted(step)] if self.rank == 0 else [0, 0, 0]
        told = self._torch.tensor(said, dtype=self._torch.int64)
        self._dist.all_reduce(told, op=self._dist.ReduceOp.MAX, group=self._group)
        size, holding, self.every = (int(number) for number in told.tolist())
        self._steps, self._met = 0, time.monotonic()
        self._cost = min(self._cost, self._met - began)  # the least: a late rank is waited for in any case
        if size == 0:
            return [], bool(holding)
        payload = self._torch.zeros(size, dtype=self._torch.uint8)
        if self.rank == 0:
            payload = self._torch.tensor(list(data), dtype=self._torch.uint8)
        self._dist.broadcast(payload, src=0, group=self._group)
        return _unpacked(bytes(payload.tolist())), bool(holding)

    def _wanted(self, step: float) -> int:
        if not math.isfinite(self._cost) or step <= 0:
            return 1
        wanted = math.ceil(self._cost / (SHARE * step))
        return max(1, min(wanted, math.ceil(LONGEST / step), 2 * self.every, MOST))


def _packed(asked: Sequence[Request]) -> bytes:
    if not asked:
        return b""
    told = [{key: getattr(request, key) for key in SENT} | {"arguments": dict(request.arguments)} for request in asked]
    return json.dumps(told).encode()


def _unpacked(data: bytes) -> list[Request]:
    return [Request(**told, deadline=math.inf) for told in cast("list[dict[str, Any]]", json.loads(data))]

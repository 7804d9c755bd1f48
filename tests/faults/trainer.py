"""A training for the tests of faults, as a program: ``python -m faults.trainer PLAN`` with the plan as JSON.

It logs numbered records on one or more threads and notes in the ledger each call that returned. Prints ``ready`` when
it has begun to log, and at its end one line of JSON: how the delivery stood and how long closing took.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Plan"]


@dataclass
class Plan:
    """What the training is to do.

    Attributes:
        ledger: Path of its ledger.
        life: Number of its process life, from 0.
        first: Number of its first record and step.
        count: Records of each thread.
        interval: Seconds from one record to the next; 0 for as fast as it goes.
        threads: That log.
        sample_every: Records between two samples; 0 for none.
        sample_bytes: Of each sample's array.
        flush: Seconds to wait at the end until all is delivered; 0 not to.
        ending: ``finish``, ``nothing``, ``exit``, ``raise``, ``os._exit`` or ``wait`` (until killed).
        act: A deed from :data:`ACTS` at half of the records.
        seconds: How long the act takes.
        init: Further arguments of ``fitwire.init``.
    """

    ledger: str
    name: str = "faults"
    life: int = 0
    first: int = 0
    count: int = 10_000
    interval: float = 0.001
    threads: int = 1
    sample_every: int = 0
    sample_bytes: int = 4096
    flush: float = 60.0
    ending: str = "finish"
    act: str = ""
    seconds: float = 0.0
    init: dict[str, Any] = field(default_factory=dict)

    def dumps(self) -> str:
        return json.dumps(asdict(self))


def log_numbers(run: Any, ledger: Any, plan: Plan, slot: int, act: Any) -> None:
    """What one thread does."""
    from faults.ledger import check_of, pixels_of

    start = time.monotonic()
    sampled = 0
    clock = time.monotonic_ns
    for index in range(plan.count):
        n = plan.first + index
        if index == plan.count // 2 and slot == 0:
            act()
        values = {"n": float(n), "life": float(plan.life), "slot": float(slot),
                  "check": float(check_of(n, plan.life, slot))}  # fmt: skip
        began = clock()
        run.log(values, step=n)
        ledger.returned(slot, index, began)
        if plan.sample_every and index % plan.sample_every == 0:
            pixels = pixels_of(sampled, plan.sample_bytes)
            began = clock()
            run.sample("numbers", image=pixels, step=n)
            sampled += 1
            ledger.sampled(slot, sampled, began)
        if plan.interval:
            ahead = start + (index + 1) * plan.interval - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)


# -- deeds in the middle of a training


def hold_the_lock(seconds: float) -> None:
    """Sleep in C without letting the interpreter go: no Python thread of this process runs meanwhile."""
    import ctypes

    held = ctypes.PyDLL(None)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        held.usleep(ctypes.c_uint(min(999_999, int(left * 1e6) + 1)))


_offset = 0.0
_real_time = time.time


def jump(seconds: float) -> None:
    """Set this process's clock."""
    global _offset
    _offset += seconds


def _jumping_time() -> float:
    return _real_time() + _offset


def fork_often(run: Any, times: int) -> dict[str, int]:
    """Fork while other threads log; each child logs, samples and ends, at times as an interpreter ends."""
    import numpy as np

    hung = failed = 0
    for turn in range(times):
        child = os.fork()
        if child == 0:
            run.log({"n": 1e9 + turn, "life": 666.0, "slot": 0.0, "check": 0.0})
            run.sample("child", image=np.zeros((1, 4), np.uint8))
            run.note("of a child")
            run.flush(1)
            if turn % 2:
                run.finish()
            os._exit(0)
        hung_now, status = _wait_for(child, 20.0)
        hung += hung_now
        failed += status != 0
    return {"forks": times, "hung": hung, "failed": failed}


def _wait_for(child: int, timeout: float) -> tuple[bool, int]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return False, status
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return True, -1


ACTS = {
    "": lambda seconds: None,
    "hold the lock": hold_the_lock,
    "jump": jump,
    "jump back": lambda seconds: jump(-seconds),
}


def main() -> None:
    plan = Plan(**json.loads(sys.argv[1]))
    if "jump" in plan.act:
        time.time = _jumping_time  # before fitwire takes hold of it
    import fitwire
    from faults.ledger import Ledger

    ledger = Ledger(plan.ledger)
    run = fitwire.init(name=plan.name, **plan.init)
    print("ready", flush=True)
    report: dict[str, Any] = {}

    def act() -> None:
        if plan.act in ACTS:
            ACTS[plan.act](plan.seconds)

    workers = [
        threading.Thread(target=log_numbers, args=(run, ledger, plan, slot, act)) for slot in range(1, plan.threads)
    ]
    for worker in workers:
        worker.start()
    if plan.act == "fork":
        report |= fork_often(run, int(plan.seconds))
    else:
        log_numbers(run, ledger, plan, 0, act)
    for worker in workers:
        worker.join()
    print("logged", flush=True)
    if plan.flush:
        report["flushed"] = run.flush(plan.flush)
    end(run, plan, report)


def end(run: Any, plan: Plan, report: dict[str, Any]) -> None:
    """End as the plan says; tells how it went where there is a chance to."""
    began = time.monotonic()
    if plan.ending == "finish":
        run.finish()
        report["closing"] = time.monotonic() - began
    report |= {"delivered": run.delivered, "warnings": dict(run.warnings)}
    print(json.dumps(report), flush=True)
    if plan.ending == "exit":
        sys.exit(3)
    elif plan.ending == "raise":
        raise RuntimeError("the training broke")
    elif plan.ending == "os._exit":
        os._exit(4)
    elif plan.ending == "wait":
        time.sleep(600)


if __name__ == "__main__":
    main()

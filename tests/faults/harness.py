"""Start, kill and question the processes of one test, and judge what is left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faults.account import Account, Verdict, account_of, verdict_of
from faults.ledger import Ledger
from faults.trainer import Plan
from helpers import until

__all__ = ["GONE", "SEEDS", "SOAK", "Hub", "Program", "Stage", "Trainer", "fitwire", "pick"]

SOAK = bool(os.environ.get("FITWIRE_SOAK"))
"""Full lengths and three seeds, instead of one and shortened waits."""
SEEDS = (1, 2, 3) if SOAK else (1,)
GUARD = 120.0
"""Seconds after which something hangs."""
NEVER_WAITS = 0.5
"""Seconds that no ``log`` call may take while something is down for longer: a call that waited for it would. The rest
is what two busy cores and the interpreter's lock can do to any line of Python."""


GONE = 0.5
"""Seconds that a kill may cost on busy cores, of 0.02 on idle ones; what it did cost is among the figures."""


def pick(short: Any, full: Any) -> Any:
    """The first in an everyday run, the second in a soak."""
    return full if SOAK else short


def fitwire(*arguments: str | Path) -> tuple[int, str]:
    """Run a command; returns its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "fitwire", *map(str, arguments)],
        capture_output=True, text=True, timeout=GUARD, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


class Program:
    """A Python module run as a process; its lines are read as they come, so that it never waits for us."""

    def __init__(
        self, module: str, *arguments: str, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        tests = str(Path(__file__).parent.parent)
        path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **(environment or {}), "PYTHONPATH": path}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.lines: deque[str] = deque()
        self.errors: deque[str] = deque(maxlen=1000)
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: Any, lines: deque[str]) -> None:
        for line in pipe:
            lines.append(line.rstrip("\n"))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """What it wrote to stderr."""
        return "\n".join(self.errors)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def line(self, timeout: float = GUARD) -> str:
        """The next line it prints."""
        until(lambda: bool(self.lines) or not self.running, timeout=timeout, what="a line")
        if not self.lines:
            for reader in self._readers:
                reader.join(GUARD)
        assert self.lines, f"{self.process.args} ended with {self.process.poll()}: {self.said}"
        return self.lines.popleft()

    def expect(self, line: str) -> None:
        """Wait for this line, which must be the next."""
        found = self.line()
        assert found == line, f"{found!r} instead of {line!r}: {self.said}"

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As ``kill -9`` does."""
        if self.running:
            self.process.kill()
        self.process.wait(GUARD)

    def wait(self, timeout: float = GUARD) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.process.args} has not ended within {timeout} s: {self.said}") from None
        for reader in self._readers:
            reader.join(GUARD)
        return code

    def close(self) -> None:
        self.kill()
        for reader in self._readers:
            reader.join(GUARD)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Hub(Program):
    """A hub that listens, in a process of its own."""

    def counts(self) -> Counter[str]:
        """What it has counted: messages, hellos, greetings of sources that were being heard, faults by kind."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return Counter(json.loads(self.line()))


class Trainer(Program):
    """A training, in a process of its own, with its ledger."""

    def __init__(self, plan: Plan, **how: Any) -> None:
        self.plan = plan
        self.ledger = Ledger(plan.ledger, plan.threads, plan.count)
        super().__init__("faults.trainer", plan.dumps(), **how)

    @property
    def logged(self) -> int:
        """Calls of ``log`` that returned so far."""
        return self.ledger.total()

    def reach(self, count: int) -> None:
        """Wait until so many calls have returned."""
        until(lambda: self.logged >= count or not self.running, timeout=GUARD, what=f"record {count}")
        assert self.logged >= count, f"ended at record {self.logged}: {self.said}"

    def report(self) -> dict[str, Any]:
        """Wait for its end as planned; what it says of it."""
        code = self.wait(self.plan.flush + GUARD)
        assert self.lines, f"ended with {code} and said nothing: {self.said}"
        return {**json.loads(self.lines[-1]), "code": code}


class Stage:
    """The processes of one test.

    Args:
        folder: Where the store and the ledgers lie.
        seed: Of the chance in it.
        figures: Filled with what was measured.

    Attributes:
        chance: To draw from.
        trainers: All that were started, by life.
    """

    def __init__(self, folder: Path, seed: int, figures: dict[str, Any]) -> None:
        self.folder, self.figures = folder, figures
        self.chance = random.Random(seed)
        self.store = folder / "store.sqlite3"
        self.run_id = f"faults-{seed}"
        self.trainers: list[Trainer] = []
        self.prefix: tuple[str, ...] = ()
        self._programs: list[Program] = []
        self._closers: list[Callable[[], None]] = []

    def hub(self, address: str | None = None, **plan: Any) -> Hub:
        """Start a hub and wait until it listens."""
        plan |= {"address": address, "store": str(self.store)}
        hub = self._keep(Hub("faults.hub", json.dumps(plan), prefix=self.prefix))
        hub.expect("listening")
        return hub

    def trainer(self, *, ready: bool = True, environment: Mapping[str, str] | None = None, **plan: Any) -> Trainer:
        """Start a training, the next life of the run, and wait until it has begun; further names as :class:`Plan`."""
        life = len(self.trainers)
        init = {"run_id": self.run_id, **plan.pop("init", {})}
        ledger = str(self.folder / f"ledger-{life}")
        trainer = self._keep(
            Trainer(Plan(ledger=ledger, life=life, init=init, **plan), prefix=self.prefix, environment=environment)
        )
        self.trainers.append(trainer)
        if ready:
            trainer.expect("ready")
        return trainer

    def _keep(self, program: Any) -> Any:
        self._programs.append(program)
        return program

    def at_end(self, close: Callable[[], None]) -> None:
        """Have this called when the test is over."""
        self._closers.append(close)

    def pause(self, low: float, high: float) -> None:
        """Let time pass, by chance."""
        time.sleep(self.chance.uniform(low, high))

    def account(self) -> Account:
        """What the store holds."""
        return account_of(self.store, self.run_id)

    def judge(self) -> Verdict:
        """What the store holds, against the ledgers; noted in the figures."""
        verdict = self._verdict()
        self.figures |= verdict.figures
        longest = max(trainer.ledger.longest() for trainer in self.trainers)
        self.figures["longest_call_ms"] = round(1000 * longest, 3)
        return verdict

    def _verdict(self) -> Verdict:
        return self.judge_only(self.trainers)

    def judge_only(self, trainers: Sequence[Trainer]) -> Verdict:
        """What the store holds of some of the process lives, against their ledgers."""
        rows = self.account().rows
        lives = {trainer.plan.life: (trainer.ledger, trainer.plan.first) for trainer in trainers}
        if len(lives) < len(self.trainers):
            rows = rows[:, np.isin(rows[1], list(lives))]
        return verdict_of(rows, lives)

    def settle(self, timeout: float = 30.0) -> Verdict:
        """Judge once nothing is missing, or no journal is left to deliver; after ``timeout`` seconds at the latest."""
        until_then = time.monotonic() + timeout
        while time.monotonic() < until_then:
            idle = not self.journals()  # asked first: what it held is in the store before it goes
            if self.store.exists() and (idle or not self._verdict().lost):
                break
            time.sleep(0.2)
        return self.judge()

    def is_whole(self) -> bool:
        """Whether the store holds each returned call once, in order, as it was, and nothing else; notes the figures.

        What is not so is noted too, so that a failure names it.
        """
        verdict, account = self.judge(), self.account()
        numbers = [number for _, number in account.samples]
        sampled = [n for t in self.trainers for n in range(t.ledger.samples())]
        odd: dict[str, Any] = {
            "lost": verdict.lost, **verdict.faults, "dropped": dict(account.dropped), "missing": account.missing,
            "holes": account.holes, "spoilt": account.spoilt, "samples": [] if numbers == sampled else numbers,
        }  # fmt: skip
        odd = {name: value for name, value in odd.items() if value}
        self.figures |= {"odd": odd} if odd else {"samples": len(numbers)}
        return not odd

    def journals(self) -> list[Path]:
        """Folders of journals that were not delivered."""
        return sorted(path for path in (self.folder / "journals").glob("*-*-*") if path.is_dir())

    def never_waited(self) -> bool:
        """Whether no ``log`` call took so long that it can have waited for anything."""
        return all(trainer.ledger.longest() < NEVER_WAITS for trainer in self.trainers)

    def close(self) -> None:
        for close in reversed(self._closers):
            close()
        for program in reversed(self._programs):
            # One that a test has stopped cannot die of a signal it is not there to take, except this one.
            if program.running:
                program.signal(signal.SIGCONT)
            program.close()

"""Lines between a trainer and its hub that stall, break, crawl and lie."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from faults.harness import Hub, Stage, Trainer, pick
from faults.proxy import BadLine
from helpers import free_port


@pytest.fixture
def hub_port() -> int:
    """A port for the hub."""
    return free_port()


@pytest.fixture
def hub(stage: Stage, hub_port: int) -> Hub:
    """A hub on TCP."""
    return stage.hub(f"tcp://127.0.0.1:{hub_port}")


@pytest.fixture
def line(stage: Stage, hub: Hub, hub_port: int) -> BadLine:
    """A way to it that can be made bad."""
    made = BadLine(hub_port, stage.chance)
    stage.at_end(made.close)
    return made


def train(stage: Stage, line: BadLine, **plan: object) -> Trainer:
    """Start a training at the end of a bad line, with some samples."""
    plan = {"interval": pick(0.0005, 0.0015), "sample_every": 500, "sample_bytes": 20_000, "flush": 100.0} | plan
    return stage.trainer(init={"address": line.address, **plan.pop("init", {})}, **plan)  # type: ignore[dict-item]


def is_done(stage: Stage, hub: Hub, line: BadLine, trainer: Trainer) -> bool:
    """Wait for its end; whether all is there and it never waited."""
    report = trainer.report()
    stage.figures |= {"connections": line.accepted, "greeted_again": hub.counts()["greeted again"]}
    return bool(report["flushed"]) and stage.is_whole() and stage.never_waited()


def test_black_holes(stage: Stage, hub: Hub, line: BadLine) -> None:
    """Silence shorter than what counts as lost costs nothing, and nobody reconnects because of it."""
    times, seconds = pick((2, 2.0), (3, 4.0))
    trainer = train(stage, line, interval=pick(0.0008, 0.002))
    for turn in range(times):
        trainer.reach((turn + 1) * 7000 // times)
        line.hole.set()
        time.sleep(seconds)
        line.hole.clear()

    assert is_done(stage, hub, line, trainer), stage.figures
    assert (line.accepted, hub.counts()["greeted again"]) == (1, 0)


@pytest.mark.parametrize("end", ["reset", "half_close"])
def test_connections_that_end(stage: Stage, hub: Hub, line: BadLine, end: str) -> None:
    """After each RST, or half-close, the trainer dials again once and goes on where the store is."""
    times = pick(4, 20)
    trainer = train(stage, line)
    for turn in range(times):
        trainer.reach((turn + 1) * 9000 // (times + 1))
        getattr(line, end)()

    assert is_done(stage, hub, line, trainer), stage.figures
    assert 2 <= line.accepted <= times + 1


def test_half_open_connection(stage: Stage, hub: Hub, line: BadLine) -> None:
    """A peer that has gone without a word is found out by the heartbeat; nothing is missing afterwards."""
    times = pick(1, 3)
    trainer = train(stage, line, interval=pick(0.001, 0.004))
    for turn in range(times):
        trainer.reach(2000 + 3000 * turn)
        line.half_open()

    assert is_done(stage, hub, line, trainer), stage.figures
    assert line.accepted == times + 1


def _one_byte(line: BadLine) -> None:
    line.piece = 1


def _delay(line: BadLine) -> None:
    line.delay = 0.2


def _slow(line: BadLine) -> None:
    line.rate = 64_000


@pytest.mark.parametrize("worsen", [_one_byte, _delay, _slow], ids=["one_byte_writes", "delay_200ms", "64_kB_a_second"])
def test_slow_lines(stage: Stage, hub: Hub, line: BadLine, worsen: Callable[[BadLine], None]) -> None:
    """A line that is merely slow loses nothing and is not given up."""
    worsen(line)

    assert is_done(stage, hub, line, train(stage, line)), stage.figures
    assert (line.accepted, hub.counts()["greeted again"]) == (1, 0)


def test_bit_flips_in_messages(stage: Stage, hub: Hub, line: BadLine) -> None:
    """Each spoilt message is refused and counted by kind, and comes again; no wrong value is stored."""
    line.flip_every = 20
    done = is_done(stage, hub, line, train(stage, line))
    bad = {kind: n for kind, n in hub.counts().items() if kind.startswith("bad ")}
    stage.figures |= {"flipped": line.flipped, **bad}

    assert done, stage.figures
    assert line.flipped > pick(5, 20)
    assert sum(bad.values()) == line.flipped


def test_bit_flips_anywhere(stage: Stage, hub: Hub, line: BadLine) -> None:
    """Flips that hit ZeroMQ's own framing may cost the connection, never a record, nor a right value."""
    trainer = train(stage, line, interval=pick(0.001, 0.003))
    trainer.reach(500)
    line.scramble_every = 15_000
    trainer.reach(8000)
    line.scramble_every = 0
    done = is_done(stage, hub, line, trainer)
    stage.figures |= {"flipped": line.scrambled, **hub.counts()}

    assert done, stage.figures
    assert line.scrambled > 3


# -- a link that is cut, where the system lets us


@pytest.fixture
def network(stage: Stage) -> Iterator[Callable[[bool], None]]:
    """A network of its own, whose loopback goes down and up; skipped where that takes rights we lack."""
    name = f"fw-{stage.folder.name[-8:]}"
    made = (
        subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False) if _has_ip() else None
    )
    if made is None or made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip() if made else 'no ip command'}")

    def put(up: bool) -> None:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up" if up else "down"], check=True)

    put(True)
    stage.prefix = ("ip", "netns", "exec", name)
    yield put
    stage.close()
    subprocess.run(["ip", "netns", "del", name], check=True)


def _has_ip() -> bool:
    return subprocess.run(["sh", "-c", "command -v ip"], capture_output=True, check=False).returncode == 0


def test_link_down(stage: Stage, network: Callable[[bool], None], hub_port: int) -> None:
    """A network that goes and comes back costs nothing, and nobody reconnects because of it."""
    times, seconds = pick((2, 2.0), (3, 4.0))
    address = f"tcp://127.0.0.1:{hub_port}"
    hub = stage.hub(address)
    trainer = stage.trainer(interval=pick(0.0008, 0.002), init={"address": address})
    for turn in range(times):
        trainer.reach((turn + 1) * 7000 // times)
        network(False)
        time.sleep(seconds)
        network(True)
    report = trainer.report()
    stage.figures |= {"greeted_again": hub.counts()["greeted again"]}

    assert report["flushed"]
    assert stage.is_whole(), stage.figures
    assert stage.never_waited()
    assert hub.counts()["greeted again"] == 0

"""Journals on disks that are full, small, read-only or gone, and what is left of one that was spoilt."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from faults.harness import GUARD, SOAK, Stage, fitwire, pick
from helpers import until

SMALL = "8m"
CLOSING = 10.0
"""Seconds of guard for an end that has 2.5; the figure beside it is what it took."""


def kept_alone(stage: Stage, **plan: object) -> None:
    """Train to the end with no hub anywhere."""
    report = stage.trainer(flush=0.0, **plan).report()
    stage.figures["closing_s"] = round(report["closing"], 3)

    assert report["code"] == 0
    assert report["closing"] < CLOSING
    assert stage.never_waited()


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_no_hub_at_all_then_sync(stage: Stage, durability: str) -> None:
    """A training that nobody ever heard ends at once; ``sync`` delivers its journal whole, and ``verify`` agrees."""
    kept_alone(stage, interval=0.0002, sample_every=100, sample_bytes=20_000, init={"durability": durability})
    waiting = len(stage.journals())
    synced, verified = fitwire("sync"), fitwire("verify", "last")

    assert waiting == 1
    assert synced[0] == 0, synced
    assert stage.is_whole(), (stage.figures, synced)
    assert stage.account().ends == ["finished"]
    assert verified[0] == 0, verified
    assert stage.journals() == []


def test_bit_flips_in_the_journal(stage: Stage) -> None:
    """A spoilt block is told of as a gap and counted; all others are delivered, and no wrong value is."""
    kept_alone(stage, interval=0.0002, sample_every=100, sample_bytes=20_000)
    (journal,) = stage.journals()
    segments = sorted(journal.glob("*.fwj"))
    flips = pick(12, 40)
    for _ in range(flips):
        flip_a_bit(stage, segments)
    _, said = fitwire("sync")
    verdict, account = stage.judge(), stage.account()
    numbers = [number for _, number in account.samples]
    told = account.missing + sum(account.dropped.values())
    gone = verdict.lost + 100 - len(numbers)
    stage.figures |= {"flips": flips, "told_missing": told, "samples": len(numbers), "said": said.strip()[-200:]}

    assert (verdict.wrong, verdict.doubled, verdict.phantom, verdict.disordered) == (0, 0, 0, 0)
    assert -1 not in numbers
    assert len(numbers) == len(set(numbers))
    assert 0 < gone < verdict.returned
    # Records of the run's own, its start, its end and its gauges, may be among those that are told to be missing.
    assert gone <= told + account.holes <= gone + 20


def flip_a_bit(stage: Stage, segments: list[Path]) -> None:
    """Flip one bit of what was written; a preallocated rest is zeros, which nobody reads."""
    while True:
        path = stage.chance.choice(segments)
        data = bytearray(path.read_bytes())
        at = stage.chance.randrange(len(data))
        if any(data[at : at + 64]):
            data[at] ^= 1 << stage.chance.randrange(8)
            path.write_bytes(data)
            return


# -- disks


@pytest.fixture
def small_disk(stage: Stage) -> Iterator[Path]:
    """A file system of 8 MiB; skipped where that takes rights we lack."""
    yield from mounted(stage, ["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=700", "fitwire-faults"])


@pytest.fixture
def failing_disk(stage: Stage) -> Iterator[Path]:
    """A file system that can be made to fail under open files, as one does that finds itself damaged."""
    image = stage.folder / "image"
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be made here: {error}")
    yield from mounted(stage, ["mount", "-o", "loop", image])


def mounted(stage: Stage, command: list[str | Path]) -> Iterator[Path]:
    """Mount at a folder for the length of a test."""
    folder = stage.folder / "disk"
    folder.mkdir()
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    stage.close()
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no room on a disk."""
    try:
        with (folder / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


def make_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def fail(folder: Path) -> None:
    """Have the kernel find the file system damaged: from here on it is read-only, open files and all."""
    subprocess.run(["mount", "-o", "remount,abort", folder], check=True)


def vanish(folder: Path) -> None:
    """Delete the journals, as a cleaner of scratch folders does."""
    subprocess.run(["rm", "-rf", folder / "journals"], check=True)


def train_on_a_bad_disk(stage: Stage, disk: Path, durability: str, harm: Callable[[Path], None]) -> None:
    """Train; the hub goes, the disk goes bad, the hub comes back."""
    hub = stage.hub()
    trainer = stage.trainer(
        interval=pick(0.0006, 0.002), sample_every=100, sample_bytes=100_000,
        init={"dir": str(disk), "durability": durability},
    )  # fmt: skip
    trainer.reach(3000)
    hub.kill()
    harm(disk)
    trainer.reach(7000)
    stage.hub()
    report = trainer.report()
    stage.figures["warnings"] = report["warnings"]

    assert (report["code"], report["flushed"]) == (0, True)
    assert stage.is_whole(), stage.figures
    assert stage.never_waited()
    assert trainer.said.count("cannot write to") == 1


@pytest.mark.parametrize("harm", [fill, vanish])
@pytest.mark.parametrize("durability", ["memory", "process"])
def test_disk_goes_bad(stage: Stage, small_disk: Path, harm: Callable[[Path], None], durability: str) -> None:
    """The training does not notice, one sentence is said, and what the memory held is delivered."""
    train_on_a_bad_disk(stage, small_disk, durability, harm)


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_disk_becomes_read_only(stage: Stage, failing_disk: Path, durability: str) -> None:
    """Likewise when the kernel takes the disk away under the open files."""
    train_on_a_bad_disk(stage, failing_disk, durability, fail)


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_small_disk_and_no_hub(stage: Stage, small_disk: Path, durability: str) -> None:
    """More than 8 MiB of journal: the training is unharmed, what had to go is told of, metrics go last."""
    trainer = stage.trainer(
        interval=0.0005, sample_every=100, sample_bytes=2**20, flush=0.0, ending="wait",
        init={"dir": str(small_disk), "durability": durability},
    )  # fmt: skip
    trainer.expect("logged")
    alone = trainer.running
    stage.hub()
    numbers = wait_for_samples(stage, trainer.ledger.samples())
    verdict, account = stage.settle(60.0), stage.account()
    stage.figures |= {"samples": len(numbers), "tombstones": dict(account.dropped)}

    assert alone
    assert (verdict.lost, verdict.faults, account.holes, account.missing) == (0, {}, 0, 0)
    assert len(numbers) + account.dropped["sample"] == 100
    assert -1 not in numbers
    assert stage.never_waited()
    assert trainer.running


def wait_for_samples(stage: Stage, sampled: int) -> list[int]:
    """Wait until every sample, or its tombstone, is in the store."""

    def told() -> bool:
        account = stage.account()
        return len(account.samples) + account.dropped["sample"] >= sampled

    until(lambda: stage.store.exists() and told(), timeout=GUARD)
    return [number for _, number in stage.account().samples]


@pytest.mark.parametrize("harm", [fill, make_read_only])
@pytest.mark.parametrize("durability", ["memory", "process"])
def test_disk_is_bad_from_the_start(
    stage: Stage, small_disk: Path, harm: Callable[[Path], None], durability: str
) -> None:
    """Without a journal there is the memory: a hub that is there gets everything."""
    harm(small_disk)
    stage.hub()
    trainer = stage.trainer(interval=0.0002, init={"dir": str(small_disk), "durability": durability})
    report = trainer.report()

    assert (report["code"], report["flushed"]) == (0, True)
    assert stage.is_whole(), stage.figures
    assert stage.never_waited()


@pytest.mark.parametrize("durability", ["memory", "process"])
def test_quota(stage: Stage, durability: str) -> None:
    """No file may grow beyond 64 KiB: what a quota, or ``ulimit -f``, makes of a journal harms no training."""
    stage.hub()
    stage.prefix = ("prlimit", "--fsize=65536")
    trainer = stage.trainer(interval=pick(0.0003, 0.001), sample_every=500, init={"durability": durability})
    report = trainer.report()

    assert (report["code"], report["flushed"]) == (0, True)
    assert stage.is_whole(), stage.figures
    assert stage.never_waited()


@pytest.mark.skipif(not SOAK, reason="one of a soak's: an hour at 1 kHz, as fast as it goes")
def test_an_hour_without_a_hub(stage: Stage) -> None:
    """3.6 million records wait on disk, not in memory, and are delivered afterwards."""
    trainer = stage.trainer(count=3_600_000, interval=0.0, flush=0.0, ending="wait")
    trainer.reach(100_000)
    watched = psutil.Process(trainer.pid)
    base = watched.memory_info().rss
    trainer.expect("logged")
    grown = watched.memory_info().rss - base
    stage.hub()
    verdict = stage.settle(GUARD)
    stage.figures["grown_mb"] = round(grown / 1e6, 1)

    assert (verdict.lost, verdict.faults) == (0, {})
    assert grown < 150e6

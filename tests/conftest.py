"""What every test starts from: a folder of its own, nothing of the caller's environment, quiet frameworks."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from fitwire.transport.address import Address, resolve

if TYPE_CHECKING:
    from fitwire.watch.hub import Hub

# Said before any framework is imported, here or in a child: they read these once.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Threads that spin for each other on busy cores make a model of a few hundred weights a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A job in a shell's background, or under nohup, ignores these, and so would every program that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGQUIT"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_DFL)

# Two busy cores make any deadline a coin toss; on a build machine the same commit must give the same answer.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

LAUNCHERS = ("FITWIRE_", "SLURM_", "TORCHELASTIC_")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def fitwire_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's hub and store lie; children inherit it through ``FITWIRE_DIR``.

    Not ``tmp_path``: a Unix socket's path may take 107 bytes, and pytest's folders can be longer.
    """
    for name in list(os.environ):
        if name.startswith(LAUNCHERS) or name in RANKS:
            monkeypatch.delenv(name)
    folder = Path(tempfile.mkdtemp(prefix="fw-", dir="/tmp" if os.path.isdir("/tmp") else None))
    monkeypatch.setenv("FITWIRE_DIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def address(fitwire_dir: Path) -> Address:
    """Where the hub of this test listens."""
    return resolve(f"ipc://{fitwire_dir}/hub")


@pytest.fixture
def path(fitwire_dir: Path) -> Path:
    """Its store."""
    return fitwire_dir / "store.sqlite3"


@pytest.fixture
def hub(address: Address, path: Path) -> Iterator[Hub]:
    """One in this process."""
    from fitwire.watch.hub import Hub

    made = Hub(address, path)
    yield made
    made.close()

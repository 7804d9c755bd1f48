"""Several processes of one training, as launchers start them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from fitwire.train.settings import run_id_of
from tinyhub import TinyHub, tiny_hub

CODE = """
import fitwire
for training in range(2):
    with fitwire.init(wait=60) as run:
        run.log({"rank": float(run.rank)}, step=0)
        assert run.flush(60)
"""


def launched(hub: TinyHub, environments: list[Mapping[str, str]]) -> list[str]:
    """Start one process for each environment, wait for all, and give what each printed to stderr."""
    assert hub.hellos == []
    processes = [
        subprocess.Popen([sys.executable, "-c", CODE], stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
        for env in environments
    ]
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


@pytest.mark.parametrize(
    "environment",
    [
        lambda rank: {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        lambda rank: {"RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job"},
        lambda rank: {"SLURM_PROCID": rank, "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"},
    ],
    ids=["torchrun on one host", "torchrun with an id", "slurm"],
)
def test_two_ranks_share_each_run_its_name_and_one_word(environment: object) -> None:
    """Two trainings in a row are two runs, each with two ranks; only rank 0 speaks on the terminal."""
    assert callable(environment)
    with tiny_hub() as hub:
        said = launched(hub, [environment("0"), environment("1")])
        senders = hub.store.senders()
        begun = hub.store.started

    runs = {sender.run for sender in senders}
    assert len(runs) == 2
    for run in runs:
        assert sorted(sender.rank for sender in senders if sender.run == run) == [0, 1]
    assert len({event.name for event in begun}) == 2 and {event.info["world_size"] for event in begun} == {2}
    assert sorted((event.rank, event.values["rank"]) for event in hub.store.metrics) == [
        (0, 0.0),
        (0, 0.0),
        (1, 1.0),
        (1, 1.0),
    ]
    assert [len(lines.splitlines()) for lines in said] == [4, 0]


def test_an_id_of_the_environment_is_the_run_of_all_ranks_and_lives() -> None:
    """What is said wins over what is guessed; the second training goes on with the same run."""
    with tiny_hub() as hub:
        launched(hub, [{"FITWIRE_RUN_ID": "mine", "RANK": rank, "WORLD_SIZE": "2"} for rank in "01"])
        senders = hub.store.senders()

    assert {sender.run for sender in senders} == {run_id_of("mine")}
    for rank in (0, 1):
        lives = [sender.incarnation for sender in senders if sender.rank == rank]
        assert len(lives) == 2 and lives[0] < lives[1]


def test_processes_without_a_launcher_are_runs_of_their_own() -> None:
    """Two on one machine do not meet by accident."""
    with tiny_hub() as hub:
        launched(hub, [{}, {}])

        assert len({sender.run for sender in hub.store.senders()}) == 4

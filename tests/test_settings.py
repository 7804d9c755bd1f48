"""What a training was asked to do: arguments over environment over defaults, and checked before it begins."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fitwire.errors import AddressError, UsageError
from fitwire.train import settings as module
from fitwire.train.settings import (
    Settings,
    identify,
    new_run_id,
    next_identity,
    ranks_from_environment,
    run_id_of,
)


def test_without_anything_said_there_are_defaults() -> None:
    """A made-up name, project ``default``, online."""
    found = Settings()

    assert (found.project, found.name, found.mode, found.run_id, found.wait) == ("default", None, "online", None, 0.0)


@pytest.mark.parametrize(
    ("variable", "field"),
    [("FITWIRE_PROJECT", "project"), ("FITWIRE_NAME", "name"), ("FITWIRE_RUN_ID", "run_id"), ("FITWIRE_MODE", "mode")],
)
def test_an_argument_goes_before_the_environment(variable: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the environment before the default; an empty variable counts as none."""
    default = getattr(Settings(), field)
    monkeypatch.setenv(variable, "disabled")
    assert getattr(Settings(), field) == "disabled"
    assert getattr(Settings(**{field: "online"}), field) == "online"
    monkeypatch.setenv(variable, "")

    assert getattr(Settings(), field) == default


def test_the_address_of_the_environment_is_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constructor fails early; a run that is disabled asks for none."""
    monkeypatch.setenv("FITWIRE_ADDRESS", "no address")
    with pytest.raises(AddressError):
        Settings()
    assert Settings(address="127.0.0.1:9010").address == "127.0.0.1:9010"

    assert Settings(mode="disabled").mode == "disabled"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mode": "on"}, "mode='on': pass one of 'online'"),
        ({"durability": "disk"}, "durability='disk': pass one of 'memory', 'process'"),
        ({"wire": "pair", "mode": "offline"}, "wire='pair' keeps no journal"),
        ({"durability": "x"}, "durability='x': pass one of 'memory'"),
        ({"wire": "rope"}, "wire='rope': pass one of 'fw', 'pair', 'sleap'"),
        ({"wire": "x"}, "wire='x': pass one of 'fw', 'pair'"),
        ({"resume": "yes"}, "resume='yes': pass one of 'auto', 'must', 'never'"),
        ({"resume": "must"}, "needs run_id="),
        ({"name": ""}, None),
        ({"name": " "}, "pass a text of 1 to 256"),
        ({"name": "x" * 257}, "pass a text of 1 to 256"),
        ({"name": 5}, "pass a text of 1 to 256"),
        ({"tags": "a"}, "tags='a': pass a list of texts"),
        ({"tags": [1]}, "tags='1': pass a text"),
        ({"group": ""}, "group=''"),
        ({"config": [1]}, "config is a list: pass a mapping"),
        ({"wait": -1}, "wait=-1: pass seconds"),
        ({"wait": True}, "wait=True: pass seconds"),
        ({"wait": float("nan")}, "wait=nan: pass seconds"),
        ({"wait": "5"}, "wait='5': pass seconds"),
        ({"address": "tcp://example.org:9010"}, "example.org"),
        ({"wire": "pair", "address": "127.0.0.1:9001"}, "tcp://127.0.0.1:9001,9002"),
    ],
)
def test_a_bad_option_fails_at_birth_naming_the_choices(arguments: dict[str, Any], says: str | None) -> None:
    """One sentence that says what to pass instead."""
    if says is None:
        assert Settings(**arguments).name is None
        return
    with pytest.raises(UsageError) as refused:
        Settings(**arguments)

    assert says in str(refused.value)


def test_a_made_up_name_is_the_same_on_every_rank_and_leaves_chance_alone() -> None:
    """It comes from the run's id; the user's random state is theirs."""
    random.seed(7)
    np.random.seed(7)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    names = {Settings().named(new_run_id()) for _ in range(200)}

    assert len(names) > 190
    assert Settings().named(bytes(16)) == Settings().named(bytes(16))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[union-attr, index]
    assert Settings(run_id="fold 3").named(bytes(16)) == "fold 3"
    assert Settings(run_id="fold 3", name="x").named(bytes(16)) == "x"


def test_run_ids_are_uuids_that_sort_by_their_start() -> None:
    """Version 7, variant 2, and the milliseconds first."""
    first = new_run_id()
    time.sleep(0.002)
    second = new_run_id()

    assert first < second and len(first) == 16
    assert first[6] >> 4 == 7 and first[8] >> 6 == 2


def test_a_text_of_ones_own_is_hashed_and_an_id_is_itself() -> None:
    """The same text is the same run."""
    run = new_run_id()

    assert run_id_of(run.hex()) == run
    assert run_id_of("fold 3") == run_id_of("fold 3") != run_id_of("fold 4")
    assert len(run_id_of("fold 3")) == 16


def test_a_later_incarnation_is_greater_even_within_a_second() -> None:
    """It supersedes the one before."""
    run = new_run_id()
    numbers = [next_identity(run, 0).incarnation for _ in range(3)]

    assert numbers == sorted(set(numbers))
    assert abs(numbers[0] - time.time()) < 5


def test_a_later_incarnation_is_greater_though_another_process_made_the_former(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that is started again within the same second, or after the clock was set back, is not its former self."""
    monkeypatch.setattr(module.time, "time", lambda: 1_700_000_000.0)

    numbers = []
    for _ in range(3):
        monkeypatch.setattr(module, "_incarnations", {})  # as in a process that knows of no other
        numbers.append(identify(Settings(run_id="again"))[0].incarnation)
    monkeypatch.setattr(module.time, "time", lambda: 1_600_000_000.0)
    monkeypatch.setattr(module, "_incarnations", {})
    numbers.append(identify(Settings(run_id="again"))[0].incarnation)

    assert numbers == [1_700_000_000, 1_700_000_001, 1_700_000_002, 1_700_000_003]


def test_which_incarnation_was_last_takes_one_small_file_a_run(
    monkeypatch: pytest.MonkeyPatch, fitwire_dir: Path
) -> None:
    """Older ones of the run go, those of others only after a year; a run with an id of its own leaves none."""
    now = [1_700_000_000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    for name in ("one", "one", "two"):
        identify(Settings(run_id=name))
    identify(Settings())
    identify(Settings(run_id="three", mode="disabled"))
    ours = {name: run_id_of(name).hex() for name in ("one", "two", "four")}

    before = sorted(path.name for path in (fitwire_dir / "lives").iterdir())
    now[0] += 400 * 86_400
    identify(Settings(run_id="four"))
    after = [path.name for path in (fitwire_dir / "lives").iterdir()]

    assert before == sorted([f"{ours['one']}-0-1700000001", f"{ours['two']}-0-1700000000"])
    assert after == [f"{ours['four']}-0-{int(now[0])}"]


def test_without_a_folder_the_clock_says_which_incarnation_it_is(
    monkeypatch: pytest.MonkeyPatch, fitwire_dir: Path
) -> None:
    """A data folder that cannot be written to does not keep a training from starting."""
    (fitwire_dir / "lives").write_text("in the way")
    monkeypatch.setattr(module.time, "time", lambda: 1_700_000_000.0)

    assert identify(Settings(run_id="unlucky"))[0].incarnation == 1_700_000_000


def test_no_launcher_means_one_process() -> None:
    """Rank 0 of 1, an id of one's own."""
    assert ranks_from_environment() == (0, 1, None)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "job7"}, (1, 4, "torchrun-job7-1")),
        ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "job7"}, (0, 1, None)),
        ({"RANK": "2", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}, (2, 4, None)),
        ({"RANK": "x", "WORLD_SIZE": "4"}, (0, 1, None)),
        ({"RANK": "4", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "j"}, (4, 4, None)),
        (
            {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0"},
            (1, 2, "slurm-42-0-1"),
        ),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "42"}, (0, 1, None)),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0"}, (0, 1, None)),
    ],
)
def test_launchers_are_understood(
    environment: dict[str, str], found: tuple[int, int, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's and Slurm's variables; a batch script outside of a step, or nonsense, is one process."""
    monkeypatch.setattr(module, "_jobs", {})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert ranks_from_environment() == found


def test_the_second_training_of_a_job_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every rank alike, so that they still share it."""
    monkeypatch.setattr(module, "_jobs", {})
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job"}.items():
        monkeypatch.setenv(name, value)
    first, second = identify(Settings())[0], identify(Settings())[0]

    assert first.run == run_id_of("torchrun-job-1") and second.run == run_id_of("torchrun-job-2")


def test_resume_never_starts_a_run_of_its_own_that_ranks_still_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the named run nor a different one on each rank."""
    monkeypatch.setattr(module, "_jobs", {})
    given = Settings(run_id="mine", resume="never")
    alone = identify(given)[0].run
    ranks = [identify(given, rank, 2, "shared")[0].run for rank in (0, 1)]

    assert alone != run_id_of("mine") and alone != identify(given)[0].run
    assert ranks[0] == ranks[1] != run_id_of("mine")
    assert identify(dataclasses.replace(given, resume="auto"))[0].run == run_id_of("mine")


def test_what_a_framework_says_of_ranks_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A front door knows better than variables left over from a launcher."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    who, size = identify(Settings(), rank=1, world_size=2, shared_id="abc")

    assert (who.rank, size, who.run) == (1, 2, run_id_of("abc"))

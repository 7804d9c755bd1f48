"""``fitwire.init`` and what ``import fitwire`` costs."""

from __future__ import annotations

import doctest
import inspect
import json
import random
from typing import Any

import numpy as np
import pytest

import fitwire
from fitwire import loop
from fitwire.errors import UsageError
from fitwire.events import Sample
from fitwire.train import run as run_module
from fitwire.train.settings import Settings, run_id_of
from helpers import run_python
from tinyhub import tiny_hub

HEAVY = (
    "torch",
    "tensorflow",
    "keras",
    "jax",
    "lightning",
    "sklearn",
    "matplotlib",
    "rich",
    "click",
    "zmq",
    "numpy",
    "psutil",
)


def test_the_loop_of_the_readme_runs() -> None:
    """A loop of one's own, word for word but for the model."""
    loader = [(np.full((8, 4), i), np.full((8, 4), i + 1)) for i in range(401)]
    with tiny_hub() as hub:
        with fitwire.init(project="digits", name="baseline", config={"lr": 3e-4}, wait=60) as run:
            for step, (x, y) in enumerate(loader):
                loss, grad_norm, p = np.float32(1 / (step + 1)), 0.5, x + y
                run.log({"train/loss": loss, "grad_norm": grad_norm}, step=step)
                if step % 200 == 0:
                    run.sample("masks", image=x[:8], target=y[:8], prediction=p[:8])
                if run.stop_requested:
                    break
            assert run.flush(60)
        begin = hub.store.started[0]

        assert (begin.name, begin.project, begin.config) == ("baseline", "digits", {"lr": 3e-4})
        losses = [event.values["train/loss"] for event in hub.store.metrics]
        assert losses == [float(np.float32(1 / (step + 1))) for step in range(401)]
        assert [event.step for event in hub.store.of(Sample)] == [0, 200, 400]
        np.testing.assert_array_equal(hub.store.of(Sample)[1].arrays["prediction"], loader[200][0] + loader[200][1])


def test_its_arguments_are_those_of_the_settings_with_the_same_defaults() -> None:
    """Nothing is dropped between the front door and what reads it."""
    asked = inspect.signature(fitwire.init).parameters
    kept = inspect.signature(Settings).parameters

    assert list(asked) == list(kept)
    assert {name: p.default for name, p in asked.items()} == {name: p.default for name, p in kept.items()}
    given: dict[str, Any] = {
        "address": "127.0.0.1:9,10", "project": "p", "name": "n", "config": {"a": 1}, "tags": ["t"], "group": "g",
        "run_id": "r", "resume": "never", "mode": "disabled", "dir": "/tmp", "durability": "memory", "wire": "pair",
        "wait": 1.0, "control": False, "strict": True,
    }  # fmt: skip
    run = fitwire.init(**given)

    assert {name: getattr(run.settings, name) for name in given} == given | {"tags": ("t",)}


def test_the_environment_says_what_arguments_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the way to the hub: arguments, then the environment, then defaults."""
    monkeypatch.setenv("FITWIRE_PROJECT", "from environment")
    monkeypatch.setenv("FITWIRE_NAME", "also")
    monkeypatch.setenv("FITWIRE_RUN_ID", "job 7")
    with tiny_hub() as hub:
        with fitwire.init(name="argument", wait=60) as run:
            run.flush(60)
        begin = hub.store.started[0]
        hello = hub.hellos[0]

    assert (begin.name, begin.project) == ("argument", "from environment") == (hello["name"], hello["project"])
    assert run.id == run_id_of("job 7").hex()


def test_the_address_of_the_environment_is_used_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fitwire_dir: Any
) -> None:
    """Somebody who watches has to be told it."""
    monkeypatch.setenv("FITWIRE_ADDRESS", f"ipc://{fitwire_dir}/elsewhere")
    with tiny_hub() as hub, fitwire.init(name="x", wait=60) as run:
        assert run.flush(60)

        assert len(hub.store.started) == 1
    assert f"watch it with fitwire watch ipc://{fitwire_dir}/elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [{"mode": "file"}, {"durability": "disk"}, {"wire": "rope"}, {"wait": -1}])
def test_what_this_version_does_not_do_is_refused_before_training(arguments: dict[str, Any]) -> None:
    """A sentence, at the call."""
    with pytest.raises(UsageError):
        fitwire.init(**arguments)


def test_the_users_random_state_is_untouched() -> None:
    """By starting, greeting again and again, logging, sampling and ending: the weights would differ."""
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    with fitwire.init() as run:
        run.log({"x": 1.0})
        run.sample("m", image=np.zeros((1, 2)))

    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[union-attr, index]


def test_importing_fitwire_loads_nothing_it_does_not_need() -> None:
    """No framework, no view, no socket and no numpy, until a name that needs them is used."""
    code = f"""
import sys, json, fitwire
first = [name for name in {HEAVY!r} if name in sys.modules]
fitwire.init
second = [name for name in {HEAVY!r} if name in sys.modules]
others = ("fitwire.watch", "fitwire.views", "fitwire.cli", "fitwire.keras", "fitwire.lightning")
views = [name for name in sys.modules if name.startswith(others)]
print(json.dumps([first, second, views]))
"""
    first, second, views = json.loads(run_python(code))

    assert first == []
    assert set(second) <= {"zmq", "numpy", "psutil"}
    assert views == []


def test_what_is_public_is_what_all_lists() -> None:
    """Each name is there, sorted, shown by ``dir``, and no other can be had."""
    assert fitwire.__all__ == sorted(fitwire.__all__)
    for name in fitwire.__all__:
        if name not in ("Monitor", "WatchedRun"):
            assert getattr(fitwire, name) is not None
    assert set(fitwire.__all__) <= set(dir(fitwire))
    with pytest.raises(AttributeError, match="has no attribute 'Moniter'"):
        fitwire.Moniter  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [loop, run_module])
def test_the_examples_of_the_docstrings_run(module: Any) -> None:
    """As they stand."""
    outcome = doctest.testmod(module)

    assert outcome.attempted > 0 and outcome.failed == 0

"""The command line as people and scripts use it: what is printed, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import fitwire
from fitwire.cli import COMMANDS, main
from fitwire.cli.shared import as_json, short_ids
from fitwire.watch.monitor import Monitor
from helpers import run_python, until

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"


def fitwire_says(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments)


def spawn(*arguments: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "fitwire", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def tell(name: str = "digits", status: str = "finished", **given: Any) -> None:
    """A run told to whoever is the hub, from beginning to end."""
    run = fitwire.init(name=name, config={"lr": 0.1, "name": "\x1b[2Jx"}, wait=30, **given)
    for step, loss in enumerate((4.0, float("nan"), 0.1, float("inf"), 0.3)):
        run.log({"loss": loss}, step=step, epoch=step // 3, batch=step % 3)
    run.end_epoch({"val_loss": 0.1 + 0.2}, epoch=0, step=2)
    run.end_epoch({"val_loss": 0.25}, epoch=1, step=4)
    run.sample("pictures", image=np.zeros((2, 8, 8), np.float32))
    run.note("half way")
    reason, trace = ("boom", "Traceback\n  boom") if status == "failed" else ("", "")
    assert run.flush(30)
    run.finish(status, reason=reason, traceback=trace)  # type: ignore[arg-type]


@pytest.fixture
def told(fitwire_dir: Path) -> Path:
    """A store with one finished and one failed run, and no hub."""
    with Monitor() as monitor:
        tell()
        monitor.run("digits").wait(timeout=30)
        tell("broken", "failed", project="other")
        monitor.run("broken").wait(timeout=30)
        until(lambda: all(run.badge == "complete" for run in monitor.runs))
    return fitwire_dir


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_can_be_parsed(name: str) -> None:
    """And says in a first sentence, whole in the list of commands, what the command does."""
    result = fitwire_says(name, "--help")
    example = re.search(r"Example:\n +fitwire (.*)", result.output)

    assert result.exit_code == 0
    assert example is not None and example[1].split()[0] == name
    words = re.split(r"\s+(?:&&|#)", example[1])[0].replace("'val_loss < 0.2'", "val_loss<0.2").split()
    command = main.get_command(click.Context(main), name)
    assert command is not None
    command.make_context(name, words[1:]).close()
    assert "..." not in next(line for line in fitwire_says("--help").output.splitlines() if line.split()[:1] == [name])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_every_documented_option_is_there(name: str) -> None:
    """The page and the program say the same."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    section = re.search(rf"^## fitwire {name}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    table = [line.split("|")[1] for line in section[1].splitlines() if line.startswith("| `-")]
    documented = {option for cell in table for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", cell)}
    has = {option for one in command.params if isinstance(one, click.Option) for option in one.opts}

    assert documented == has


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["show"], ["ls", "--nosuch"], ["ls", "-n", "0"], ["get", "last"], ["wait", "last", "--until", "huh"],
     ["wait", "last", "--timeout", "-1"], ["ls", "--address", "not an address!"], ["demo", "--framework", "nosuch"]],
)  # fmt: skip
def test_misuse_is_one_sentence_on_stderr_and_exit_code_2(arguments: list[str]) -> None:
    """No traceback, no usage page; it says what to do."""
    result = fitwire_says(*arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("fitwire: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["show", "last"], ["tail", "nosuch"], ["get", "last", "loss"], ["wait", "last"]])
def test_a_run_that_is_not_there_is_one_sentence_and_exit_code_1(arguments: list[str]) -> None:
    """Before the first run too."""
    result = fitwire_says(*arguments)

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and "run" in result.stderr


def test_an_empty_list_is_no_failure() -> None:
    """A script gets an empty array, a person a hint."""
    assert json.loads(fitwire_says("ls", "--json").stdout) == []
    assert fitwire_says("ls").exit_code == 0
    assert "start a training" in fitwire_says("ls").stderr


def test_ls_lists_newest_first_and_narrows(told: Path) -> None:
    """Names, states, ids that are long enough to be told apart."""
    lines = fitwire_says("ls").stdout.splitlines()
    ids = [line.split()[0] for line in lines[1:]]

    assert [line.split()[1] for line in lines[1:]] == ["broken", "digits"]
    assert "✗ failed" in lines[1] and "✓ finished" in lines[2] and "complete" in lines[1]
    assert all(fitwire_says("show", one).exit_code == 0 for one in ids)
    assert [run["name"] for run in json.loads(fitwire_says("ls", "--project", "other", "--json").stdout)] == ["broken"]
    assert [run["name"] for run in json.loads(fitwire_says("ls", "--state", "finished", "--json").stdout)] == ["digits"]
    assert [run["name"] for run in json.loads(fitwire_says("ls", "-n", "1", "--json").stdout)] == ["broken"]


def test_show_says_everything_and_obeys_nothing(told: Path) -> None:
    """For people without a character that a terminal obeys, for scripts with all of it."""
    text = fitwire_says("show", "broken").stdout
    whole = json.loads(fitwire_says("show", "broken", "--json").stdout)

    for part in ("broken", "failed: boom", "complete", "lr  0.1", "val 0.25", "best 0.25 at epoch 2",
                 "pictures: 1 times", "Traceback", "  boom"):  # fmt: skip
        assert part in text
    assert "\x1b" not in text
    assert whole["config"] == {"lr": 0.1, "name": "\x1b[2Jx"}
    assert (whole["state"], whole["reason"], whole["traceback"]) == ("failed", "boom", "Traceback\n  boom")
    assert whole["samples"] == {"pictures": 1}
    assert whole["latest"]["val_loss"] == 0.25


def test_get_is_exact(told: Path) -> None:
    """To the last bit, and what is no number stays what it is."""
    lines = fitwire_says("get", "digits", "loss").stdout.splitlines()
    whole = json.loads(fitwire_says("get", "digits", "val_loss", "--json").stdout)
    odd = json.loads(fitwire_says("get", "digits", "loss", "--json", "-n", "4").stdout)

    assert lines[0].split("\t") == ["step", "epoch", "time", "value"]
    assert [(line.split("\t")[0], line.split("\t")[1], line.split("\t")[3]) for line in lines[1:]] == [
        ("0", "0", "4.0"), ("1", "0", "nan"), ("2", "0", "0.1"), ("3", "1", "inf"), ("4", "1", "0.3"),
    ]  # fmt: skip
    assert (whole["per"], whole["steps"], whole["epochs"], whole["values"]) == (
        "epoch",
        [2, 4],
        [0, 1],
        [0.1 + 0.2, 0.25],
    )
    assert odd["values"] == ["nan", 0.1, "inf", 0.3]


def test_an_unknown_metric_names_those_there_are(told: Path) -> None:
    """So that one need not look them up."""
    result = fitwire_says("get", "digits", "accuracy")

    assert result.exit_code == 1
    assert "loss, val_loss" in result.stderr


def test_tail_ends_with_the_end(told: Path) -> None:
    """In the order of their times, samples among the rest; of their arrays the shape."""
    lines = fitwire_says("tail", "broken", "-n", "4").stdout.splitlines()
    events = [json.loads(line) for line in fitwire_says("tail", "broken", "-n", "100", "--json").stdout.splitlines()]

    assert "failed: boom" in lines[-1] and "half way" in lines[-3] and "pictures: image float32 [2, 8, 8]" in lines[-4]
    assert "cost " in lines[-2] and "fitwire/" not in lines[-2]
    assert [event["event"] for event in events if event["event"] != "metrics" or event["per"] == "batch"] == [
        "run_started", "described", *["metrics"] * 5, "epoch_ended", "epoch_ended", "sample", "log", "run_ended",
    ]  # fmt: skip
    assert events[-4]["arrays"] == {"image": {"dtype": "<f4", "shape": [2, 8, 8]}}
    assert fitwire_says("tail", "broken", "-n", "0").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "outcome"),
    [
        (["digits"], 0, "ended"),
        (["broken"], 1, "ended"),
        (["digits", "--until", "val_loss < 0.27"], 0, "met"),
        (["digits", "--until", "val_loss < 0.2"], 1, "not met"),
        (["broken", "--until", "loss > 1"], 0, "met"),
    ],
)
def test_the_exit_code_of_wait_says_how_it_went(told: Path, arguments: list[str], code: int, outcome: str) -> None:
    """A script needs nothing else; a person gets a sentence, on stderr if it went badly."""
    said, whole = fitwire_says("wait", *arguments), fitwire_says("wait", *arguments, "--json")

    assert (said.exit_code, whole.exit_code) == (code, code)
    assert (said.stdout == "") == (code != 0) and (said.stderr == "") == (code == 0)
    assert json.loads(whole.stdout)["outcome"] == outcome


def test_wait_times_out_like_timeout(fitwire_dir: Path) -> None:
    """Exit code 124, while the run goes on; and it is met as soon as the value comes."""
    hub = spawn("hub", "--json")
    try:
        assert hub.stdout is not None and json.loads(hub.stdout.readline())["store"] == str(
            fitwire_dir / "store.sqlite3"
        )
        with fitwire.init(name="slow", wait=30) as run:
            run.log({"loss": 1.0})
            assert run.flush(30)
            late = fitwire_says("wait", "slow", "--until", "loss < 0.5", "--timeout", "0.2")
            waiting = spawn("wait", "slow", "--until", "loss < 0.5", "--json")
            run.log({"loss": 0.25})
            met, _ = waiting.communicate(timeout=60)
    finally:
        hub.terminate()
        hub.communicate(timeout=30)

    assert (late.exit_code, late.stdout) == (124, "")
    assert "loss < 0.5" in late.stderr
    assert (waiting.returncode, json.loads(met)["value"]) == (0, 0.25)


def test_a_hub_stays_until_it_is_told_to_go(fitwire_dir: Path) -> None:
    """It says where it is and how to watch; a second one is refused; what it was told is in the store afterwards."""
    hub = spawn("hub")
    try:
        assert hub.stdout is not None
        greeting = "".join(hub.stdout.readline() for _ in range(4))
        second = fitwire_says("hub")
        tell("kept")
        followed = spawn("tail", "kept", "-f", "-n", "1")
        tail, _ = followed.communicate(timeout=60)
    finally:
        hub.send_signal(signal.SIGTERM)
        _, errors = hub.communicate(timeout=30)
    where = fitwire_says("hub", "--where").stdout.strip()

    assert where in greeting and "fitwire watch" in greeting and "ssh" in greeting
    assert where.startswith(str(fitwire_dir))
    assert second.exit_code == 1 and "a hub is there already" in second.stderr and second.stderr.count("\n") == 1
    assert "finished" in tail and followed.returncode == 0
    assert (hub.returncode, errors) == (0, "")
    assert [run["name"] for run in json.loads(fitwire_says("ls", "--json").stdout)] == ["kept"]


def test_watching_through_a_pipe_is_plain_and_ends_with_the_run(fitwire_dir: Path) -> None:
    """It becomes the hub, tells each epoch, and knows no control codes; Ctrl-C ends it with 0 else."""
    watch = spawn("watch", "--run", "digits", "--until-end")
    until(lambda: Path(fitwire_says("hub", "--where").stdout.strip()).exists(), what="the hub")
    tell()
    text, errors = watch.communicate(timeout=60)
    endless = spawn("watch", "--run", "last", "--json")
    assert endless.stdout is not None
    line = json.loads(endless.stdout.readline())
    endless.send_signal(signal.SIGINT)
    endless.communicate(timeout=30)

    assert (watch.returncode, errors) == (0, "")
    assert text.splitlines()[-1].startswith("digits  complete  cost ")
    assert text.splitlines()[-4:-1] == [
        "digits  epoch 1  val_loss 0.3",
        "digits  epoch 2  val_loss 0.25",
        "digits  finished",
    ]
    assert not set(text) & set("\x1b\r")
    assert (line["name"], line["latest"]["val_loss"], endless.returncode) == ("digits", 0.25, 0)


def test_a_reader_that_leaves_early_is_no_error(told: Path) -> None:
    """``fitwire get … | head -1``."""
    command = f"{sys.executable} -m fitwire get digits loss | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("step\tepoch\ttime\tvalue\n", "")


def test_a_terminal_that_knows_only_ascii_gets_question_marks(told: Path) -> None:
    """Rather than a traceback."""
    done = subprocess.run([sys.executable, "-m", "fitwire", "ls"], capture_output=True, timeout=60,
                          env={**os.environ, "PYTHONIOENCODING": "ascii"})  # fmt: skip

    assert done.returncode == 0
    assert b"? finished" in done.stdout


def test_colours_are_for_terminals_that_want_them(told: Path) -> None:
    """Neither a pipe nor NO_COLOR; a terminal otherwise."""
    code = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "fitwire", "ls"])
text = b""
while True:
    try:
        piece = os.read(terminal, 4096)
    except OSError:
        break
    if not piece:
        break
    text += piece
os.waitpid(pid, 0)
print(b"\\x1b[" in text and b"32m" in text)
"""
    told_colour = {"TERM": "xterm-256color", "COLUMNS": "100"}

    assert run_python(code, **told_colour).strip() == "True"
    assert run_python(code, NO_COLOR="1", **told_colour).strip() == "False"
    assert "\x1b" not in fitwire_says("ls").stdout


def test_json_is_strict_and_ascii() -> None:
    """Numbers that JSON has not are strings; no character that a terminal obeys is in it as it is."""
    text = as_json({"a": [float("nan"), float("inf"), float("-inf"), 0.1, None], "b": "\x1b\u202eé", "c": np.arange(2)})

    assert text == '{"a": ["nan", "inf", "-inf", 0.1, null], "b": "\\u001b\\u202e\\u00e9", "c": [0, 1]}'


def test_ids_are_as_long_as_it_takes() -> None:
    """They begin with the time, so those of one minute begin alike."""

    class Known:
        def __init__(self, id: str) -> None:
            self.id = id

    runs: Any = [Known("ab" * 16), Known("ab" * 10 + "c" * 12), Known("f" * 32)]

    assert list(short_ids(runs).values()) == ["ab" * 10 + "a", "ab" * 10 + "c", "f" * 8]


def test_a_command_loads_only_what_it_needs() -> None:
    """``fitwire hub`` on a login node draws nothing."""
    code = """
import sys
from click.testing import CliRunner
from fitwire.cli import main
assert CliRunner().invoke(main, ["hub", "--where"]).exit_code == 0
unwanted = {"rich.live", "fitwire.views.text", "fitwire.train.run", "keras", "torch"}
print(sorted(unwanted & set(sys.modules)))
"""

    assert run_python(code).strip() == "[]"


def test_what_was_asked_and_what_became_of_it_is_one_line_each() -> None:
    """Who, what, from what to what, and why; names and texts of a peer are made harmless."""
    from fitwire.cli.shared import event_json, event_line
    from fitwire.events import Command, CommandDone

    asked = Command(
        time=1.0, client="ab", number=1, name="set", arguments={"name": "lr", "value": 0.1}, author="me@here"
    )
    done = CommandDone(
        time=1.0, step=7, client="ab", number=1, name="set", status="applied", before=1.0, after=0.1, author="me@here"
    )
    refused = CommandDone(client="ab", number=2, name="stop\x1b[2J", status="refused", reason="not\x1b[2J allowed")

    assert "asked by me@here: set" in event_line(asked) and "0.1" in event_line(asked)
    assert event_line(done).endswith("set by me@here applied at step 8: 1 → 0.1")
    assert "refused" in event_line(refused) and "\x1b" not in event_line(refused)
    assert event_json(done)["event"] == "command_done"

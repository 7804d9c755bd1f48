"""The text view over a real hub: what a frame holds, that it fits, and what a pipe gets."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import fitwire
from fitwire.train.run import Run
from fitwire.views.text import draw, how_far, watch_live, watch_plain
from fitwire.watch.monitor import Monitor, WatchedRun
from fitwire.watch.states import Progress
from helpers import until


@pytest.fixture
def monitor(fitwire_dir: Path) -> Iterator[Monitor]:
    """A hub of this test's own."""
    with Monitor(str(fitwire_dir / "hub"), store=fitwire_dir / "store.sqlite3") as opened:
        yield opened


def train(monitor: Monitor, name: str = "digits", epochs: int = 3, **given: object) -> Run:
    """A run that has told a few epochs with samples, and goes on."""
    run = fitwire.init(monitor.address, name=name, project="demo", wait=30, **given)  # type: ignore[arg-type]
    run.describe(totals={"epochs": 10, "steps_per_epoch": 20})
    pictures = np.random.default_rng(0).random((6, 8, 8))
    for epoch in range(epochs):
        for batch in range(20):
            step = 20 * epoch + batch
            run.log({"loss": 1 / (step + 1)}, step=step, epoch=epoch, batch=batch)
        run.end_epoch({"loss": 0.5 / (epoch + 1), "val_loss": 0.6 / (epoch + 1)}, epoch=epoch)
        run.sample("pictures", epoch=epoch, image=pictures, target=pictures, prediction=pictures / 2)
    assert run.flush(30)
    if epochs:  # a run's line is judged anew ten times a second
        until(lambda: (told := monitor.runs[0].progress).step == 20 * epochs - 1 and told.epochs == 10)
    return run


def text_of(
    monitor: Monitor, width: int, height: int, colour: bool = False, runs: list[WatchedRun] | None = None
) -> str:
    """A frame as it would be printed."""
    out = Console(file=io.StringIO(), width=width, height=height, color_system="truecolor" if colour else None,
                  force_terminal=colour, highlight=False)  # fmt: skip
    with out.capture() as captured:
        out.print(draw(monitor.runs if runs is None else runs, monitor.address, width, height, colour))
    return captured.get()


def test_a_frame_shows_how_far_how_well_and_what_it_looks_like(monitor: Monitor) -> None:
    """State, name, progress, paired metrics with the best, a curve, the newest sample with its roles, the last note."""
    with train(monitor) as run:
        run.note("learning rate halved", level="warning")
        assert run.flush(30)
        frame = text_of(monitor, 100, 40)

    for part in ("● running", "digits", "demo", "live", "30%", "epoch 3/10", "step 60/200", "0.01667", "0.2 epoch 3",
                 "t loss", "v val_loss", "pictures at step 60", "image", "target", "prediction",
                 "learning rate halved"):  # fmt: skip
        assert part in frame
    assert any(0x2800 < ord(char) < 0x2900 for char in frame)
    assert "▓" in frame


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (40, 12), (200, 60), (30, 6), (20, 3)])
def test_a_frame_never_outgrows_the_terminal(monitor: Monitor, size: tuple[int, int]) -> None:
    """Otherwise each redraw would push the last one up."""
    width, height = size
    with train(monitor), train(monitor, "second", group="folds"):
        frames = [text_of(monitor, width, height, runs=runs) for runs in (monitor.runs, monitor.runs[:1], [])]

    for frame in frames[:2]:
        lines = frame.rstrip("\n").split("\n")
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
    assert "no run yet" in frames[2].replace("\n", " ")


def test_several_runs_are_a_list_above_the_newest(monitor: Monitor) -> None:
    """Each in a line with what matters."""
    with train(monitor, "first"), train(monitor, "second"):
        lines = text_of(monitor, 110, 30).split("\n")

    assert "second" in lines[0] and "first" in lines[1] and "30%" in lines[1] and "loss 0.2" in lines[1]
    assert lines[2] == "─" * 110
    assert "second" in lines[3]


def test_a_run_that_failed_says_why(monitor: Monitor) -> None:
    """With the end of the traceback."""
    with pytest.raises(ZeroDivisionError), train(monitor):
        _ = 1 / 0
    watched = monitor.run("digits")
    watched.wait(timeout=30)
    frame = text_of(monitor, 100, 40)

    assert "✗ failed" in frame
    assert "ZeroDivisionError: division by zero" in frame
    assert "took" in frame


def test_a_classification_is_shown_in_words(monitor: Monitor) -> None:
    """Target, prediction, right or wrong, and how sure."""
    with train(monitor, epochs=0) as run:
        run.log({"loss": 1.0})
        run.sample("verdicts", target=[3, 1], prediction=np.eye(4)[[3, 2]])
        assert run.flush(30)
        frame = text_of(monitor, 100, 30)

    assert "target 3 predicted 3 ✓" in frame
    assert "target 1 predicted 2 ✗" in frame


def test_nothing_of_a_peer_reaches_the_terminal_as_a_command(monitor: Monitor) -> None:
    """Names of the run, of metrics and samples, notes and tracebacks: no escape but rich's own, and no markup."""
    evil = "\x1b]52;c;aGk=\x07\u202e[red]x[/red]"
    run = train(monitor, f"run{evil}")
    run.log({f"loss{evil}": 1.0, "y" * 250: 2.0})
    run.sample(f"sample{evil}", **{f"odd{evil}": np.zeros((1, 8, 8))})
    run.note(f"note{evil}\x1b[2J")
    run.finish("failed", reason=f"error{evil}", traceback=f"Traceback{evil}\n  in{evil}")
    monitor.runs[0].wait(timeout=30)
    plain, coloured = text_of(monitor, 160, 50), text_of(monitor, 160, 50, colour=True)

    assert not set(plain) & set("\x1b\x07\u202e")
    assert "\x1b]" not in coloured and "\x1b[2J" not in coloured and "\u202e" not in coloured
    assert "run[red]x[/red]" in plain and "note[red]x[/red]" in plain


def test_watching_live_ends_with_the_run_and_leaves_its_last_frame(monitor: Monitor) -> None:
    """Without a key pressed."""
    run = train(monitor)
    watched = monitor.run("digits")
    out = Console(
        file=io.StringIO(), width=100, height=30, force_terminal=True, color_system="truecolor", highlight=False
    )
    view = threading.Thread(target=watch_live, args=(monitor, lambda: [watched], out, lambda: watched.ended))
    view.start()
    until(lambda: "running" in out.file.getvalue(), what="a frame")
    run.finish()
    view.join(30)

    assert not view.is_alive()
    assert "finished" in out.file.getvalue().rsplit("running", 1)[1]


def test_nothing_is_drawn_while_nothing_changes(monitor: Monitor) -> None:
    """A quiet run costs no output, over ssh least of all."""
    train(monitor).finish()
    watched = monitor.run("digits")
    watched.wait(timeout=30)
    until(lambda: watched.badge == "complete")
    out = Console(file=io.StringIO(), width=100, height=30, force_terminal=True, highlight=False)
    over = threading.Event()
    view = threading.Thread(target=watch_live, args=(monitor, lambda: [watched], out, over.is_set))
    view.start()
    until(lambda: out.file.getvalue().count("digits") >= 2, what="two frames: the first, and the one that looks again")
    time.sleep(0.5)  # what is asserted is that nothing happens: there is nothing to wait for
    before = len(out.file.getvalue())
    time.sleep(0.5)
    after = len(out.file.getvalue())
    over.set()
    view.join(30)

    assert after == before


def test_a_pipe_gets_a_line_for_each_epoch_and_none_twice(monitor: Monitor) -> None:
    """In the order it happened, state first and last."""
    run = train(monitor)
    watched = monitor.run("digits")
    lines: list[str] = []
    view = threading.Thread(
        target=watch_plain, args=(monitor, lambda: [watched], lines.append, lambda: watched.settled)
    )
    view.start()
    until(lambda: len(lines) >= 4)
    run.end_epoch({"loss": 0.125, "val_loss": float("nan")}, epoch=3)
    run.finish()
    view.join(30)

    assert not view.is_alive()
    assert [line for line in lines if "epoch" in line] == [
        "digits  epoch 1/10  loss 0.5  val_loss 0.6",
        "digits  epoch 2/10  loss 0.25  val_loss 0.3",
        "digits  epoch 3/10  loss 0.1667  val_loss 0.2",
        "digits  epoch 4/10  loss 0.125  val_loss nan",
    ]
    assert lines[0].split() == ["digits", "running"] and lines[-2].split() == ["digits", "finished"]
    assert lines[-1] == f"digits  complete  {watched.meter}" and "µs/call" in lines[-1]


@pytest.mark.parametrize(
    ("progress", "ended", "text"),
    [
        (Progress(), False, ""),
        (Progress(step=0, epoch=0), False, "epoch 1  step 1"),
        (
            Progress(step=811, steps=3600, epoch=6, epochs=30, fraction=0.2, eta=21.3, pace=0.0082),
            False,
            "epoch 7/30  step 812/3,600  8.2 ms/step  21 s left",
        ),
        (Progress(step=9, steps=10, pace=2.5, elapsed=187.0, eta=1.0), True, "step 10/10  2.5 s/step  took 3:07"),
    ],
)
def test_how_far_says_what_is_known_and_no_more(progress: Progress, ended: bool, text: str) -> None:
    """For people, who count from 1."""
    assert how_far(progress, ended) == text

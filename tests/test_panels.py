"""What is drawn of a run: which metrics are one quantity, what was best, what fits a width, what a range is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from fitwire.errors import UnknownRun
from fitwire.views.panels import (
    Pair,
    best_of,
    chart,
    epoch_values,
    higher_is_better,
    pair_metrics,
    resumed_lines,
    rows,
    ticks,
)
from fitwire.watch.branches import Branch
from fitwire.watch.series import Curve


def curve(name: str, values: object, per: str = "batch", steps: object = None, epochs: object = None) -> Curve:
    """A curve of these values, one a step."""
    array = np.asarray(values, np.float64)
    at = np.arange(len(array)) if steps is None else np.asarray(steps)
    of = np.full(len(array), np.nan) if epochs is None else np.asarray(epochs, np.float64)
    return Curve(name, per, at.astype(np.int64), of, np.arange(len(array), dtype=np.float64), array)  # type: ignore[arg-type]


class FakeRun:
    """Curves by name and kind, as a ``WatchedRun`` gives them."""

    def __init__(self, *curves: Curve) -> None:
        self.curves: Mapping[tuple[str, str], Curve] = {(one.name, one.per): one for one in curves}
        self.branches: list[Branch] = []

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.curves))

    def curve(self, name: str, per: str = "auto", rank: int | None = None) -> Curve:
        for kind in ("batch", "epoch") if per == "auto" else (per,):
            if (name, kind) in self.curves:
                return self.curves[name, kind]
        raise UnknownRun(f"no metric {name!r}")


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["loss", "mae", "val_loss", "val_mae"],
         [Pair("loss", "loss", None, "val_loss"), Pair("mae", "mae", None, "val_mae")]),
        (["train/loss", "val/loss"], [Pair("loss", "train/loss", None, "val/loss")]),
        (["train_loss", "validation_loss"], [Pair("loss", "train_loss", None, "validation_loss")]),
        (
            ["train_loss_step", "val_loss", "train_loss_epoch"],
            [Pair("loss", "train_loss_step", "train_loss_epoch", "val_loss")],
        ),
        (["loss_step", "loss_epoch"], [Pair("loss", "loss_step", "loss_epoch", None)]),
        (["val_loss_step", "val_loss_epoch"], [Pair("loss", None, None, "val_loss_epoch")]),
        (["time_per_step"], [Pair("time_per_step", "time_per_step")]),
        (["loss", "val_loss", "test_loss"],
         [Pair("loss", "loss", None, "val_loss"), Pair("test_loss", val="test_loss")]),
        (["loss", "train/loss"], [Pair("loss", "loss"), Pair("train/loss", "train/loss")]),
        (["perf/step_time", "learning_rate", "loss"],
         [Pair("loss", "loss"), Pair("learning_rate", "learning_rate"), Pair("perf/step_time", "perf/step_time")]),
        ([], []),
    ],
)  # fmt: skip
def test_names_that_are_one_quantity_are_paired(names: list[str], pairs: list[Pair]) -> None:
    """Keras's, Lightning's and slash names; fitwire's own last; none is lost."""
    assert pair_metrics(names) == pairs


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("val_loss", False),
        ("train/mse", False),
        ("valAccuracy", True),
        ("val/acc_top1", True),
        ("dice_loss", False),
        ("learning_rate", None),
        ("accident", None),
        ("mAP", True),
        ("iou", True),
    ],
)
def test_a_name_says_whether_more_is_better(name: str, higher: bool | None) -> None:
    """By whole words, loss before the rest; what is not known is not guessed."""
    assert higher_is_better(name) is higher


def test_the_best_value_is_the_least_loss_and_where_it_was() -> None:
    """NaN and infinities are never best."""
    found = best_of(curve("loss", [3.0, np.nan, 1.0, -np.inf, 2.0], steps=[9, 19, 29, 39, 49], epochs=range(5)))

    assert found is not None
    assert (found.value, found.step, found.epoch, found.where) == (1.0, 29, 2, "epoch 3")


def test_the_best_accuracy_is_the_greatest_and_may_know_no_epoch() -> None:
    """Then the step says where."""
    found = best_of(curve("acc", [0.1, 0.9, 0.5]))

    assert found is not None
    assert (found.value, found.where) == (0.9, "step 2")


@pytest.mark.parametrize("values", [[np.nan, np.nan], [np.inf], []])
def test_there_is_no_best_of_nothing_finite(values: list[float]) -> None:
    """Nor an error."""
    assert best_of(curve("loss", values)) is None


def test_a_row_shows_the_newest_batch_and_judges_whole_epochs() -> None:
    """A running mean of few batches may be low by chance; the best is of the validation if there is one."""
    run = FakeRun(
        curve("loss", [5.0, 0.001, 4.0]),
        curve("loss", [3.0, 2.0], "epoch", epochs=[0, 1]),
        curve("val_loss", [2.5, 2.6], "epoch", epochs=[0, 1]),
        curve("mae", [9.0, 0.001, 8.0]),
        curve("mae", [7.0, 6.0], "epoch", epochs=[0, 1]),
    )
    loss, mae = rows(run)

    assert (loss.train, loss.val) == (4.0, 2.6)
    assert loss.best is not None and loss.best.value == 2.5
    assert mae.best is not None and mae.best.value == 6.0


def test_a_chart_keeps_every_spike_however_narrow() -> None:
    """One point in a million, in forty columns."""
    values = np.full(1_000_000, 0.5)
    values[777_777] = 9.0
    drawn = chart(FakeRun(curve("loss", values)), 40)

    assert drawn is not None
    assert drawn.lines[0].points.high.max() == 9.0
    assert len(drawn.lines[0].points.x) <= 40
    assert drawn.y == (0.5, 9.0)


def test_a_chart_marks_where_a_value_was_no_number() -> None:
    """And its range is of the finite ones."""
    values = np.linspace(1, 0, 100)
    values[50], values[70] = np.nan, np.inf
    drawn = chart(FakeRun(curve("loss", values)), 10)

    assert drawn is not None
    assert np.flatnonzero(drawn.lines[0].points.broken).tolist() == [5, 7]
    assert np.isfinite(drawn.y).all()


def test_a_first_loss_far_above_the_rest_does_not_flatten_it() -> None:
    """What comes in the first tenth may lie beyond the range; a later spike never does."""
    values = np.r_[np.full(5, 100.0), np.linspace(1.0, 0.5, 195)]
    later = values.copy()
    later[100] = 50.0
    first, second = chart(FakeRun(curve("loss", values)), 40), chart(FakeRun(curve("loss", later)), 40)

    assert first is not None and second is not None
    assert first.y[1] < 1.1
    assert second.y[1] == 50.0
    assert first.lines[0].points.high.max() == 100.0


def test_train_and_validation_share_a_chart_and_its_steps() -> None:
    """They can be compared column by column."""
    run = FakeRun(curve("loss", np.linspace(1, 0, 100)), curve("val_loss", [0.8, 0.4], "epoch", steps=[49, 99]))
    drawn = chart(run, 20)

    assert drawn is not None
    assert [(line.name, line.role) for line in drawn.lines] == [("loss", "train"), ("val_loss", "val")]
    assert drawn.x == (0, 99)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], [0.0], [np.nan], [1e308, -1e308], [np.inf, -np.inf]])
def test_a_chart_always_has_a_range_to_draw_in(values: list[float]) -> None:
    """One point, equal points, none that is finite, the ends of float64."""
    drawn = chart(FakeRun(curve("loss", values)), 10)

    assert drawn is not None
    assert np.isfinite(drawn.y).all() and np.isfinite(drawn.y[1] - drawn.y[0])
    assert drawn.y[0] < drawn.y[1] and drawn.x[0] < drawn.x[1]


def test_there_is_no_chart_of_what_is_not_there() -> None:
    """A run without metrics, or a quantity it does not have."""
    assert chart(FakeRun(), 10) is None
    assert chart(FakeRun(curve("loss", [1.0])), 10, "accuracy") is None


@pytest.mark.parametrize(
    ("low", "high", "most", "found"),
    [
        (0, 99, 5, (0, 20, 40, 60, 80)),
        (0.02, 0.085, 4, (0.02, 0.04, 0.06, 0.08)),
        (-1, 1, 3, (-1, 0, 1)),
        (0, 1e6, 3, (0, 500_000, 1_000_000)),
        (5, 5, 3, ()),
        (0, 1, 0, ()),
    ],
)
def test_ticks_are_few_and_round(low: float, high: float, most: int, found: tuple[float, ...]) -> None:
    """1, 2 or 5 times a power of ten apart, never more than asked."""
    assert ticks(low, high, most) == pytest.approx(found)


def test_where_a_run_resumed_is_marked_and_said() -> None:
    """One that only went on, one that went back, one that has not told of a step."""
    run = FakeRun(curve("loss", range(20)))
    run.branches = [
        Branch(1, 0, 9, 0.0, None), Branch(2, 10, 19, 0.0, None), Branch(3, 15, 17, 0.0, 15),
        Branch(4, None, None, 0.0, None),
    ]  # fmt: skip
    drawn = chart(run, 10)

    assert drawn is not None and drawn.resumed == (10, 15)
    assert resumed_lines(run) == ["resumed at step 11", "resumed at step 16, in place of what was told up to step 20"]
    assert resumed_lines(FakeRun(curve("loss", [1.0]))) == []


def test_epochs_are_gathered_over_all_metrics() -> None:
    """Batch values and what was told of no epoch are left out."""
    run = FakeRun(
        curve("loss", [9.0, 8.0]),
        curve("loss", [2.0, 1.0], "epoch", epochs=[0, 1]),
        curve("val_loss", [3.0], "epoch", epochs=[1]),
        curve("odd", [3.0], "epoch"),
    )

    assert epoch_values(run) == {0: {"loss": 2.0}, 1: {"loss": 1.0, "val_loss": 3.0}}

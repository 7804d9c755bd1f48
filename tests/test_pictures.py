"""What an array of a sample looks like, by its role, shape and dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fitwire.views.pictures import Tile, fit, tiles


def only(role: str, values: Any, **others: Any) -> Tile:
    """The tile of the first example's array ``role``."""
    arrays = {role: np.asarray(values), **{key: np.asarray(value) for key, value in others.items()}}
    return next(tile for tile in tiles(arrays, 1)[0] if tile.role == role)


@pytest.mark.parametrize(
    ("role", "shape", "dtype", "size"),
    [
        ("image", (2, 8, 8), "f4", (8, 8)),
        ("image", (2, 8, 9, 1), "f4", (8, 9)),
        ("image", (2, 1, 8, 9), "f4", (8, 9)),
        ("image", (2, 3, 16, 20), "u1", (16, 20)),
        ("image", (2, 16, 20, 3), "u1", (16, 20)),
        ("image", (2, 16, 20, 4), "f8", (16, 20)),
        ("heatmap", (2, 32, 40, 13), "f4", (32, 40)),
        ("prediction", (2, 13, 32, 40), "f2", (32, 40)),
        ("mask", (2, 8, 8), "?", (8, 8)),
        ("image", (2, 1, 1, 8, 8), "f4", (8, 8)),
        ("spectrum", (2, 8, 8), "c8", (8, 8)),
    ],
)
def test_an_array_with_two_sides_is_a_picture(
    role: str, shape: tuple[int, ...], dtype: str, size: tuple[int, int]
) -> None:
    """Channels first, last, many or none; it becomes red, green and blue."""
    tile = only(role, np.ones(shape, dtype))

    assert tile.pixels is not None
    assert tile.pixels.shape == (*size, 3)
    assert tile.pixels.dtype == np.uint8


def test_black_and_white_are_zero_and_one_where_that_is_meant() -> None:
    """A dim picture stays dim; other ranges are stretched."""
    dim = only("image", np.linspace(0, 0.6, 16).reshape(1, 4, 4))
    wide = only("image", np.linspace(-5, 20, 16).reshape(1, 4, 4))

    assert dim.pixels is not None and wide.pixels is not None
    assert (dim.pixels.min(), dim.pixels.max()) == (0, 153)
    assert (wide.pixels.min(), wide.pixels.max()) == (0, 255)


def test_bytes_are_shown_as_they_are() -> None:
    """uint8 runs from 0 to 255, whatever is in this one."""
    tile = only("image", np.full((1, 4, 4), 100, np.uint8))

    assert tile.pixels is not None
    assert np.unique(tile.pixels).tolist() == [100]


def test_a_prediction_is_painted_on_its_targets_scale() -> None:
    """So that they can be compared: half as bright is half as bright."""
    target = np.zeros((1, 4, 4))
    target[0, 0, 0] = 10.0
    tile = only("prediction", target / 2, target=target)

    assert tile.pixels is not None
    assert tile.pixels.max() == 128


def test_colours_keep_their_channels() -> None:
    """Red is red with channels first and last."""
    red = np.zeros((1, 3, 4, 4), np.uint8)
    red[:, 0] = 255
    first, last = only("image", red), only("image", np.moveaxis(red, 1, -1))

    assert first.pixels is not None and last.pixels is not None
    assert first.pixels[0, 0].tolist() == last.pixels[0, 0].tolist() == [255, 0, 0]


def test_what_is_no_number_is_marked() -> None:
    """A NaN is magenta, not black; an infinity is white or black."""
    values = np.zeros((1, 4, 4))
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    tile = only("image", values)

    assert tile.pixels is not None
    assert tile.pixels[0, :3].tolist() == [[200, 0, 200], [255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize("values", [np.full((1, 4, 4), np.nan), np.zeros((1, 4, 4)), np.full((1, 4, 4), 1e308)])
def test_a_picture_of_nothing_much_is_no_error(values: np.ndarray) -> None:
    """All NaN, all equal, as great as can be."""
    assert only("image", values).pixels is not None


def test_classes_of_a_mask_have_colours_of_their_own() -> None:
    """Neighbouring numbers differ, the background is black."""
    tile = only("mask", np.arange(16).reshape(1, 4, 4) % 4)

    assert tile.pixels is not None
    assert len(np.unique(tile.pixels.reshape(-1, 3), axis=0)) == 4
    assert tile.pixels[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("target", "prediction", "text", "right"),
    [
        ([3], [[0.1, 0.1, 0.1, 0.7]], "target 3 predicted 3", True),
        ([[1]], [[0.1, 0.1, 0.1, 0.7]], "target 1 predicted 3", False),
        ([[0, 1, 0]], [[-2.0, 5.0, 1.0]], "target 1 predicted 1", True),
        ([1], [[0.93]], "target 1 predicted 0.93", True),
        ([1], [[0.2]], "target 1 predicted 0.2", False),
        ([1], [0.2], "target 1 predicted 0.2", False),
    ],
)
def test_a_classification_says_whether_it_is_right(target: Any, prediction: Any, text: str, right: bool) -> None:
    """Labels, one-hot rows, probabilities, logits, one output for two classes."""
    tile = only("prediction", prediction, target=target)

    assert (tile.text, tile.right) == (text, right)


def test_logits_become_probabilities_for_the_bars() -> None:
    """They add up to one, and the greatest stays the greatest."""
    tile = only("prediction", [[1000.0, -np.inf, np.nan, 999.0]])

    assert tile.bars is not None
    assert tile.bars.sum() == pytest.approx(1)
    assert int(tile.bars.argmax()) == 0


def test_a_series_is_bars_and_a_number_is_a_number() -> None:
    """What is neither picture nor class."""
    series, value = only("series", np.arange(200.0)[None]), only("prediction", [[0.125]])

    assert series.bars is not None and len(series.bars) == 200
    assert value.text == "0.125"


def test_text_from_a_peer_is_made_safe() -> None:
    """It is data, wherever it stands."""
    assert only("text", ["\x1b]0;x\x07seven"]).text == "seven"


def test_tiles_come_example_by_example_input_first() -> None:
    """As many as asked, and as every array has."""
    arrays = {
        "prediction": np.zeros((5, 8, 8)),
        "other": np.zeros((3, 8, 8)),
        "image": np.zeros((5, 8, 8)),
        "target": np.zeros((5, 8, 8)),
    }
    found = tiles(arrays, 4)

    assert [[tile.role for tile in example] for example in found] == [["image", "target", "prediction", "other"]] * 3


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (256, 256), (300, 17), (3, 500), (1, 1)])
def test_a_picture_fits_and_keeps_its_proportions(rows: int, columns: int) -> None:
    """Never beyond the room it has, never nothing; greater only by whole factors."""
    pixels = np.random.default_rng(0).integers(0, 255, (rows, columns, 3), dtype=np.uint8)
    found = fit(pixels, 40, 24)

    assert 1 <= found.shape[0] <= 24 and 1 <= found.shape[1] <= 40
    assert found.dtype == np.uint8
    if rows <= 24 and columns <= 40:
        assert found.shape[0] % rows == 0 and found.shape[0] // rows == found.shape[1] // columns


def test_shrinking_takes_the_mean_of_areas() -> None:
    """A fine chequerboard becomes grey, not black or white by chance."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = fit(np.repeat(board[..., None], 3, axis=2), 16, 16)

    assert found.shape == (16, 16, 3)
    assert set(np.unique(found)) == {128}

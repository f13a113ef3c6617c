"""Conditions in pictures: words, their places, and colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from advect.core.types import Category, DataSpec, Length, Quantity
from advect.data.captions import Colouring, colouring, condition_words, fit, font
from advect.data.images.modality import LINE, image_grid
from advect.data.modality import condition_columns
from advect.data.sequences.modality import series_plot
from advect.data.vectors.plot import scatter_plot, vector_plot

KIND = Category(("a", "b", "c"), (0.5, 0.25, 0.25))
DAY = Quantity(("day",), (10.0,), (2.0,), ((10.0,),), unit="D", origin=18262)
DOSE = Quantity(("dose",), (1.0,), (2.0,), ((1.0,),))
SPEC = DataSpec((2,), "vector", {"kind": KIND, "day": DAY, "dose": DOSE})
COND = {
    "kind": torch.tensor([2, -1, 0]),
    "day": torch.tensor([[-5.0], [0.0], [torch.nan]]),
    "dose": torch.tensor([[1.0], [-0.25], [torch.nan]]),
}


def test_captions_are_values_of_the_data_with_names_if_there_are_several() -> None:
    title, words = condition_words(condition_columns(COND, SPEC))
    assert title == "kind, day, dose"
    assert words == [
        "kind c\nday 2020-01-01\ndose 3",
        "kind none\nday 2020-01-11\ndose 0.5",
        "kind a\nday none\ndose none",
    ]
    assert condition_words(condition_columns({"kind": COND["kind"]}, SPEC)) == ("kind", ["c", "none", "a"])
    many = {f"n{i}": ["x", "y"] for i in range(40)}
    assert condition_words(many) == ("n0, n1, n2 and 37 more", ["n0 x\nn1 x\nn2 x", "n0 y\nn1 y\nn2 y"])
    assert condition_words({}) == ("", [])


@pytest.mark.parametrize(
    "caption", ["7", "animals-nature", "people and bodies", "Ärzte ohne Grenzen e.V.", "动物和自然" * 9]
)
def test_captions_stay_within_their_image(caption: str) -> None:
    for width in (30, 48, 64, 200):
        lines = fit(caption, width, 10)
        assert 1 <= len(lines) <= 2 and all(font(10).getlength(line) <= width for line in lines)
        left = caption.replace(" ", "")
        assert left.startswith(lines[0].replace(" ", "").rstrip("…")) and (lines == [caption] or len(lines) == 2)


def test_shared_captions_stand_above_their_columns_and_others_below_their_images() -> None:
    x = torch.zeros(6, 1, 48, 48)  # black, so that letters are all that is neither black nor white
    plain = image_grid(x, 0, 1, columns=3)
    above = image_grid(x, 0, 1, columns=3, captions=["a", "b", "c"] * 2, title="kind")
    below = image_grid(x, 0, 1, columns=3, captions=list("abcabd"), title="kind")
    assert above.width == below.width == plain.width
    assert (above.height, below.height) == (plain.height + 2 * LINE, plain.height + 3 * LINE)
    letters = lambda grid: ((np.asarray(grid) > 0) & (np.asarray(grid) < 255)).any(1)
    assert not letters(plain).any()
    assert letters(above)[: 2 * LINE].any() and not letters(above)[2 * LINE + 2 :].any()
    assert letters(below)[LINE + 2 + 48 : 2 * LINE + 48 + 2].any() and letters(below)[-LINE:].any()


def test_points_are_coloured_by_the_first_category_or_number_that_varies() -> None:
    found = colouring(COND, SPEC)
    assert found is not None and found.title == "kind (beside day, dose)" and found.values.tolist() == [2, -1, 0]
    assert [name for name, _ in found.groups(np.arange(3))] == ["a", "c", "none"]
    same = {**COND, "kind": torch.zeros(3, dtype=torch.int64)}
    found = colouring(same, SPEC)
    assert found is not None and found.unit == "D" and found.values[:2].tolist() == [18262, 18272]
    assert colouring({}, SPEC) is None
    length = DataSpec((2, 1), "sequence", {"length": Length((1.0, 1.0))})
    assert colouring({"length": torch.tensor([1, 2])}, length) is None
    many = Colouring("c", np.repeat(np.arange(30), np.arange(30)), tuple(map(str, range(30))))
    names = [name for name, _ in many.groups(np.arange(len(many.values)))]
    assert names == [*map(str, range(21, 30)), "others"]


def colours(image) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3)}


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_plots_of_vectors_show_every_group_in_its_colour(dim: int) -> None:
    x = torch.randn(60, dim, generator=torch.Generator().manual_seed(0)).double()
    by_kind = Colouring("kind", np.arange(60) % 3, ("a", "b", "c"))
    plot = scatter_plot if dim <= 2 else vector_plot
    found = colours(plot(x, x, colours=by_kind)) - colours(plot(x, x))
    near = lambda rgb: any(np.abs(np.subtract(pixel, rgb)).max() < 50 for pixel in found)
    assert near((255, 127, 14)) and near((44, 160, 44))  # the second and third of tab10


def test_lines_have_captions_of_their_own() -> None:
    x = torch.zeros(3, 5, 1)
    plain, told = series_plot(x), series_plot(x, captions=["one", "two", "three"])
    assert colours(plain) != colours(told) and plain.size == told.size

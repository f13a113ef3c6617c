"""Pictures: which value lands on which pixel."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from advect.core.errors import UserError
from advect.core.types import Category, DataSpec
from advect.data.figure import save_png
from advect.data.images.modality import image_grid
from advect.data.modality import modality_of
from advect.data.sequences.modality import series_plot
from advect.data.vectors.plot import scatter_plot, vector_plot


def blue_pixels(image: Image.Image) -> int:
    """How many pixels have the colour of samples."""
    pixels = np.asarray(image).astype(int)
    return int((pixels[..., 2] - pixels[..., 0] > 60).sum())


class Pixels:
    low, high = 0.0, 16.0

    def inverse(self, x):
        return x


def test_values_land_where_they_should():
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 1] = 16
    x[2] = torch.tensor([[-5.0, 99.0], [torch.nan, 8.0]])
    grid = np.asarray(image_grid(x, 0, 16, columns=2, min_pixels=1))
    assert grid.shape == (2 + 2 * 4, 2 + 2 * 4)
    assert grid[2:4, 2:4].tolist() == [[0, 0], [0, 0]]
    assert grid[2:4, 6:8].tolist() == [[0, 255], [0, 0]]
    assert grid[6:8, 2:4].tolist() == [[0, 255], [0, 128]]
    assert (grid[6:8, 6:8] == 255).all() and (grid[4:6] == 255).all()


def test_small_images_are_enlarged_by_a_whole_factor():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    grid = np.asarray(image_grid(x, 0, 63, min_pixels=48))[2:-2, 2:-2]
    assert grid.shape == (48, 48)
    assert (grid.reshape(8, 6, 8, 6) == grid[::6, ::6][:, None, :, None]).all()
    assert image_grid(torch.zeros(1, 1, 64, 64), 0, 1).size == (68, 68)


def test_channels_become_colours_or_lie_side_by_side():
    x = torch.tensor([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    colour = image_grid(x, 0, 1, min_pixels=1)
    assert colour.mode == "RGB" and colour.getpixel((2, 2)) == (255, 128, 0)
    five = image_grid(torch.zeros(1, 5, 2, 2), 0, 1, min_pixels=1)
    assert five.mode == "L" and five.size == (5 * 2 + 4, 2 + 4)


def test_rows_bound_the_grid():
    x = torch.zeros(30, 1, 4, 4)
    assert image_grid(x, 0, 1, columns=4, rows=2, min_pixels=1).size == (2 + 4 * 6, 2 + 2 * 6)


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        (torch.zeros(2, 8, 8), {}, r"x must be images \(N, C, H, W\)"),
        (torch.zeros(0, 1, 8, 8), {}, "N >= 1"),
        (torch.zeros(1, 1, 8, 8), {"columns": 0}, "must be at least 1, got 0"),
        (torch.zeros(1, 1, 8, 8), {"high": 0}, "low must be below high, got 0 and 0"),
    ],
)
def test_mistakes_are_told(x, options, text):
    with pytest.raises(UserError, match=text):
        image_grid(x, 0, **({"high": 1} | options))


def test_a_column_for_each_class():
    digits = DataSpec((1, 8, 8), "image", {"label": Category(tuple("0123456789"), (0.1,) * 10)})
    assert modality_of(digits, Pixels()).plot(torch.zeros(20, 1, 8, 8), {}).width == 2 + 10 * 50
    plain = DataSpec((1, 8, 8), "image", {})
    assert modality_of(plain, Pixels()).plot(torch.zeros(20, 1, 8, 8), {}).width == 2 + 8 * 50
    grey = modality_of(plain, Pixels()).plot(torch.full((1, 1, 8, 8), 8.0), {})
    assert grey.getpixel((10, 10)) == 128


def test_images_without_a_pixel_range_span_their_own(tmp_path):
    class Standard:
        def inverse(self, x):
            return x

    plain = DataSpec((1, 2, 2), "image", {})
    image = modality_of(plain, Standard()).plot(torch.tensor([[[[-3.0, 5.0], [1.0, torch.nan]]]]), {})
    assert image.getextrema() == (0, 255)
    assert modality_of(plain, Standard()).plot(torch.zeros(1, 1, 2, 2), {}).getpixel((5, 5)) == 0


def test_a_picture_is_written_whole(tmp_path):
    image = image_grid(torch.rand(4, 3, 8, 8), 0, 1)
    save_png(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as read:
        assert read.format == "PNG" and np.array_equal(np.asarray(read), np.asarray(image))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_scatter_shows_samples_over_data(dimension):
    generator = torch.Generator().manual_seed(0)
    data, samples = (torch.randn(300, dimension, generator=generator) for _ in range(2))
    image = scatter_plot(samples, data)
    assert image.size == (512, 512) and blue_pixels(image) > 300
    assert (np.asarray(scatter_plot(samples)) != np.asarray(image)).any()


def test_scatter_survives_far_and_broken_samples():
    generator = torch.Generator().manual_seed(0)
    data, samples = torch.rand(200, 2, generator=generator), torch.rand(200, 2, generator=generator)
    calm = blue_pixels(scatter_plot(samples, data))
    samples[0] = 1e9
    assert blue_pixels(scatter_plot(samples, data)) > 0.9 * calm  # the axes did not make room for it
    samples[1:] = torch.nan
    samples[0] = torch.nan
    assert scatter_plot(samples, data).size == (512, 512)
    assert scatter_plot(samples).size == (512, 512)


def test_scatter_refuses_other_shapes():
    with pytest.raises(UserError, match=r"x must be vectors \(N, D\)"):
        scatter_plot(torch.zeros(3, 2, 2))
    with pytest.raises(UserError, match="reference must have the dimension of x, got 3 and 2"):
        scatter_plot(torch.zeros(3, 2), torch.zeros(3, 3))


def test_many_dimensions_are_components_beside_quantiles():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(300, 5, generator=generator)
    data[:50, 1] = torch.nan  # a missing value
    match, off = vector_plot(data, data), vector_plot(data * 3, data)
    assert match.size == off.size == (1024, 512)
    assert (np.asarray(match)[:, 512:] != np.asarray(off)[:, 512:]).any()
    assert vector_plot(data).size == vector_plot(data, data, features=[]).size == (512, 512)
    constant = torch.zeros(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert vector_plot(constant, constant).size == (1024, 512)
    with pytest.raises(UserError, match="reference must have the dimension of x, got 4 and 5"):
        vector_plot(data, data[:, :4])


def test_sequences_are_drawn_to_their_length_beside_data():
    x = torch.ones(20, 30, 1)
    short, long = (series_plot(x, torch.full((20,), n), x) for n in (3, 30))
    assert short.size == long.size and blue_pixels(long) > blue_pixels(short) + 1000
    assert series_plot(x[:2], None, x[:2]).height < long.height
    assert series_plot(torch.full((2, 1, 6), torch.nan)).width == 1024
    with pytest.raises(UserError, match=r"x must be sequences \(N, L, C\), got shape \(2, 3\)"):
        series_plot(torch.zeros(2, 3))

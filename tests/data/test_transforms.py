from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from advect.core.errors import UserError
from advect.data import (
    Arrays,
    Cells,
    Identity,
    PixelScale,
    SequenceTransform,
    Standardize,
    Table,
    transform_from_config,
)
from advect.data.arrays import in_type
from advect.data.whiten import Whiten

AWKWARD = Standardize([0.1, -1e-300, 1 / 3, 1e17], [1e-8, 2**-52, 0.3, 7.0])


@pytest.mark.parametrize("transform", [Identity(), PixelScale(0.1, 0.7), PixelScale(0, 255, integer=True), AWKWARD])
def test_config_survives_json_to_the_last_bit(transform):
    config = transform.to_config()
    text = json.dumps(config)
    assert json.loads(text) == config
    assert transform_from_config(json.loads(text)) == transform


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 16), (-5, 250), (0, 65535)])
def test_every_whole_number_of_the_range_comes_back_exactly(low, high):
    values = torch.arange(low, high + 1)
    scale = PixelScale(low, high, integer=True)
    model = scale.forward(values)
    assert model.dtype == torch.float32
    assert (model.min(), model.max()) == (-1, 1)
    assert torch.equal(scale.inverse(model), values.float())


def test_eight_bits_go_the_same_way_as_floats():
    bits = torch.arange(256, dtype=torch.uint8)
    scale = PixelScale(0, 255)
    assert torch.equal(scale.forward(bits), scale.forward(bits.double()))
    assert bits.tolist() == list(range(256))


def test_the_way_back_ends_inside_the_range():
    model = torch.tensor([-1e9, -1.0001, 0.0, 1.0001, 1e9])
    assert PixelScale(0, 255, integer=True).inverse(model).tolist() == [0, 0, 128, 255, 255]
    assert PixelScale(-2, 4).inverse(model).tolist() == [-2, -2, 1, 4, 4]


def test_forward_leaves_its_argument_alone():
    for transform in (Identity(), PixelScale(0, 4), Standardize([1.0], [2.0])):
        x = torch.tensor([[1.0], [3.0]])
        transform.forward(x)
        transform.inverse(x)
        assert x.tolist() == [[1.0], [3.0]]


def test_standardised_columns_have_mean_0_and_deviation_1():
    x = np.random.default_rng(0).normal([5, -3, 1e6], [0.1, 100, 1], (9000, 3))  # more rows than one block
    transform = Standardize.fit(x)
    model = transform.forward(torch.from_numpy(x)).double()
    assert torch.allclose(model.mean(0), torch.zeros(3, dtype=torch.double), atol=1e-6)
    assert torch.allclose(model.std(0, unbiased=False), torch.ones(3, dtype=torch.double), atol=1e-6)
    np.testing.assert_allclose(transform.inverse(model), x, rtol=1e-6, atol=1e-5)


def test_a_constant_column_stays_finite_where_the_held_out_rows_differ():
    transform = Standardize.fit(np.full((10, 1), 0.1))
    assert transform.forward(torch.tensor([[0.1], [1.1]])).flatten().tolist() == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_features_come_back_exactly_whatever_the_model_makes(dtype):
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(dtype)
    x[:, 1], x[:, 2], x[:, 3] = 0.1, -1e5, np.arange(20) == 3
    transform = transform_from_config(json.loads(json.dumps(Standardize.fit(x).to_config())))
    assert (transform.inverse(torch.randn(50, 4)).numpy()[:, 1:3] == x[0, 1:3]).all()
    assert Standardize.fit(x[4:], x[:4]).constant == (1, 2)  # the held-out part tells that the last one varies
    assert Standardize.fit(x[4:]).constant == (1, 2, 3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PixelScale(1, 1), "low < high, got [1.0, 1.0]"),
        (lambda: PixelScale(0, float("inf")), "finite low < high"),
        (lambda: Standardize([0.0, 1.0], [1.0]), "got 2 and 1 numbers"),
        (lambda: Standardize([], []), "got 0 and 0 numbers"),
        (lambda: Standardize([0.0, 1.0], [1.0, 0.0]), "feature 1 has mean 1.0 and std 0.0"),
        (lambda: Standardize([float("nan")], [1.0]), "feature 0 has mean nan"),
        (lambda: transform_from_config({"kind": "pixelscale"}), "did you mean 'pixel_scale'?"),
        (lambda: transform_from_config({}), "unknown transform kind None; choose from identity"),
        (lambda: transform_from_config({"kind": "pixel_scale", "low": 0}), "high"),
        (lambda: transform_from_config({"kind": "identity", "low": 0}), "low"),
    ],
)
def test_bad_input(build, words):
    with pytest.raises(UserError) as error:
        build()
    assert words in str(error.value)


@pytest.mark.parametrize(
    "transform", [Identity(), PixelScale(0, 255), Standardize([1.0, -2.0, 0.5], [0.5, 3.0, 2.0])], ids=lambda t: t.kind
)
def test_log_det_is_that_of_the_jacobian_by_differentiation(transform):
    x = torch.tensor([1.0, 2.0, 3.0])
    jacobian = torch.autograd.functional.jacobian(lambda x: transform.forward(x[None])[0], x)
    assert transform.log_det(3) == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-300, 1e300, 8e307])
def test_values_of_any_size_are_compared_in_units_whose_squares_fit(size):
    x = size * np.random.default_rng(0).uniform(-1, 1, size=(200, 2))
    transform = Standardize.fit(x)
    back = transform.inverse(transform.forward(torch.from_numpy(x)))
    near = (transform.centred(back) / transform.unit).float().numpy()
    wanted = x / transform.unit
    np.testing.assert_allclose(near - near.mean(0), wanted - wanted.mean(0), atol=2e-6)
    assert 0.25 < near.std() < 2


@pytest.mark.parametrize(("offset", "spread"), [(1.7e9, 1e3), (1e15, 3.0), (3.0, 1e-12), (0.0, 1e-12), (0.0, 1e200)])
def test_a_spread_survives_any_offset(offset, spread):
    x = offset + spread * np.random.default_rng(0).normal(size=(200, 2))
    sequences = SequenceTransform.fit([x], np.zeros(1, int))
    for transform, data in ((Standardize.fit(x), x), (sequences, x.reshape(10, 20, 2))):
        model = transform.forward(torch.from_numpy(data))
        assert model.dtype == torch.float32
        assert float(model.std()) == pytest.approx(1, rel=0.02)
        back = transform.inverse(model).numpy()
        assert np.abs((back - data) / spread).max() < 1e-6
        if spread < 1e30 and transform is not sequences:
            assert float(transform.centred(torch.from_numpy(back)).float().std()) == pytest.approx(spread, rel=0.05)


def test_values_that_differ_by_rounding_are_constant():
    transform = Standardize.fit(np.array([[0.3], [0.1 + 0.2]]))
    assert transform.std == (1.0,)


def test_real_pixels_far_from_zero_keep_their_differences():
    scale = PixelScale(1e6, 1e6 + 1)
    x = 1e6 + torch.rand(50, dtype=torch.float64)
    assert float((scale.inverse(scale.forward(x)) - x).abs().max()) < 1e-6


class TestWhiten:
    def test_moments_round_trip_and_density(self) -> None:
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.normal(size=(500, 3)) @ [[3, 1, 0], [0, 0.1, 0], [0, 5, 2]] + 40)
        inner = Standardize.fit(x.numpy())
        whiten = Whiten.fit(inner, inner.forward(x))
        z = whiten.forward(x)
        assert z.mean(0).abs().max() < 1e-5 and torch.allclose(z.T.cov(correction=0), torch.eye(3), atol=0.05)
        assert torch.allclose(whiten.inverse(z).double(), x, rtol=1e-5)
        jacobian = torch.func.jacfwd(lambda y: whiten.forward(y[None])[0].double())(x[0])
        assert whiten.log_det(3) == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-4)

    def test_columns_that_are_constant_or_alike_have_finite_units(self) -> None:
        x = torch.randn(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = torch.cat([x, 2 * x, torch.ones_like(x)], 1)
        inner = Standardize.fit(x.numpy())
        z = Whiten.fit(inner, inner.forward(x)).forward(x)
        assert z.isfinite().all() and z.abs().max() < 10

    def test_it_comes_back_from_its_configuration(self) -> None:
        x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
        inner = Standardize.fit(x.numpy())
        whiten = Whiten.fit(inner, inner.forward(x))
        again = transform_from_config(json.loads(json.dumps(whiten.to_config())), whiten.tensors())
        assert torch.equal(again.forward(x), whiten.forward(x))


def test_rows_with_holes_are_not_whitened():
    y = torch.tensor([[0.0, 1.0], [torch.nan, 2.0], [1.0, 0.0]])
    with pytest.raises(UserError, match="rows with holes are not whitened"):
        Whiten.fit(Identity(), y)

    def test_a_singular_root_is_refused(self) -> None:
        with pytest.raises(UserError, match="lower triangle"):
            Whiten(Identity(), torch.zeros(2), torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("size", "dtype"), [(3.3e38, np.float32), (3e38, np.float64), (6e4, np.float16), (8e307, np.float64)]
)
@pytest.mark.parametrize("kind", ["vectors", "images", "table", "cells"])
def test_nothing_infinite_comes_out_of_columns_of_any_size(kind: str, size: float, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = np.stack([rng.permutation(np.linspace(-size, size, 64)), rng.normal(size=64)], 1).astype(dtype)
    if kind == "cells":
        if dtype != np.float32:
            pytest.skip("counts are float32")
        anndata = pytest.importorskip("anndata")
        transform: Any = Cells(anndata.AnnData(abs(x)), normalise=False, log1p=False, held_out=0.0).transform
    elif kind == "table":
        transform = Table(pd.DataFrame(x, columns=["a", "b"]), held_out=0.0).transform
    else:
        pixels = {"value_range": (-size, size)} if kind == "images" else {}
        transform = Arrays(x if kind == "vectors" else x.reshape(8, 1, 4, 4), held_out=0.0, **pixels).transform
    far = torch.tensor([-60.0, -9.0, -1.0, 0.0, 1.0, 9.0, 60.0])
    shape = (1, 4, 4) if kind == "images" else (2,)
    y = transform.inverse(far.view(-1, *[1] * len(shape)).expand(-1, *shape))
    assert torch.isfinite(y).all()
    first = y.flatten(1)[:, 0]
    assert (first.diff() >= 0).all() and first[-1] > size / 2
    told = in_type(y, {"dtype": np.dtype(dtype).name})
    assert told.dtype == dtype and np.isfinite(told).all()


@pytest.mark.parametrize("build", [Arrays, lambda x, **given: Table(pd.DataFrame(x, columns=["a", "b"]), **given)])
def test_columns_wider_than_float64_are_refused(build: Any) -> None:
    x = np.array([[-1e308, 0.0], [1e308, 1.0], [0.0, 2.0]])
    with pytest.raises(UserError, match=r"(feature 0|column 'a') lies from -1e.308 to 1e.308, further apart"):
        build(x, held_out=0.0)
    with pytest.raises(UserError, match=r"the pixel range lies from -1e.308 to 1e.308"):
        PixelScale(-1e308, 1e308)

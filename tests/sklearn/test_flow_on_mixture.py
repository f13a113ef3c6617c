"""FlowModel on a Gaussian mixture: choice by held-out rows, densities, pickles, refusals."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from advect import FlowModel
from advect.core.errors import UserError
from advect.data.whiten import Whiten
from advect.sklearn.mixture_base import MixtureKind, choose_mixture, fit_mixture, usual_base

QUICK: dict[str, Any] = {"hidden": 16, "steps": 20, "device": "cpu", "random_state": 0, "options": {"threads": 1}}


def _two(n: int, seed: int = 0) -> np.ndarray:
    """Rows of two Gaussians, far apart."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) * [1.0, 0.2] + np.where(rng.random(n) < 0.3, 8.0, 0.0)[:, None]


def test_held_out_rows_find_the_number_of_components() -> None:
    x = torch.from_numpy(_two(600)).float()
    assert choose_mixture(x[:500], x[500:], 0).components == 2


def test_one_component_is_the_gaussian_of_the_rows() -> None:
    x = torch.from_numpy(_two(300)).float()
    law = fit_mixture(x, MixtureKind(1, 1e-6), 0)
    expected = torch.distributions.MultivariateNormal(x.double().mean(0), x.double().mT.cov(correction=0))
    torch.testing.assert_close(law.log_prob(x), expected.log_prob(x.double()), atol=1e-3, rtol=0.0)


def test_where_the_network_gains_nothing_the_mixture_is_the_density() -> None:
    x, new = _two(400), _two(400, 1)
    model = FlowModel(**QUICK).fit(x)
    assert model.n_iter_ == 0
    tuned = GaussianMixture(2, random_state=0).fit(x).score(new)
    assert model.score(new) == pytest.approx(tuned, abs=0.02)
    drawn = model.sample(4000)
    assert (drawn[:, 0] > 4).mean() == pytest.approx(0.3, abs=0.05)
    assert np.isfinite(model.transform(new[:5])).all()


def test_a_closed_density_is_that_of_the_flow() -> None:
    x = _two(400)
    model = FlowModel(**{**QUICK, "density_steps": 100}).fit(x)
    closed = model.score_samples(x[:20])
    model.flow_.net.alone = False
    integrated = model.score_samples(x[:20])
    assert not np.array_equal(closed, integrated)
    np.testing.assert_allclose(closed, integrated, atol=5e-3)


def test_what_a_closed_density_does_not_need_is_still_checked() -> None:
    model = FlowModel(**QUICK).fit(_two(300))
    assert model.n_iter_ == 0
    x = torch.from_numpy(_two(3)).float()
    with pytest.raises(UserError, match="solver"):
        model.flow_.log_prob(x, solver="nope")
    assert torch.equal(model.flow_.log_prob(x.numpy()), model.flow_.log_prob(x))  # pyright: ignore[reportArgumentType]


def test_a_pickle_gives_the_same_numbers() -> None:
    model = FlowModel(**QUICK).fit(_two(300))
    other = pickle.loads(pickle.dumps(model))
    assert np.array_equal(other.score_samples(_two(9)), model.score_samples(_two(9)))
    assert np.array_equal(other.sample(9), model.sample(9))


def test_training_goes_on_from_the_mixture() -> None:
    model = FlowModel(**QUICK).fit(_two(300)).partial_fit(_two(300))
    assert model.n_iter_ > 0 or model.validation_curve_
    assert np.isfinite(model.score(_two(50)))


def test_labels_images_and_no_mixture_leave_it_out() -> None:
    x = _two(300)
    for fitted in (FlowModel(**QUICK, base=None).fit(x), FlowModel(**QUICK).fit(x, x[:, 0] > 4)):
        assert fitted._fitted.base is None


@pytest.mark.parametrize(
    ("arguments", "y", "said"),
    [
        ({"base": "normal"}, None, "'normal'"),
        ({"base": "mixture"}, True, "knows nothing of y"),
        ({"base": "mixture", "coupling": "ot"}, None, "independent coupling"),
        ({"base": "mixture", "early_stopping": False}, None, "early_stopping"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(arguments: dict[str, Any], y: bool | None, said: str) -> None:
    x = _two(300)
    with pytest.raises(UserError, match=said):
        FlowModel(**QUICK, **arguments).fit(x, x[:, 0] > 4 if y else None)


@pytest.mark.parametrize("x", [_two(30).repeat(10, 0), _two(300).round()], ids=["copies", "few values"])
def test_rows_that_repeat_have_no_spikes(x: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # of clusters fewer than components
        model = FlowModel(steps=60, hidden=16, random_state=0, device="cpu").fit(x)
    assert model.n_iter_ > 0 and model.score(x) < 2
    with pytest.raises(UserError, match="rows repeat others"):
        FlowModel(base="mixture", steps=5, device="cpu").fit(x)


@pytest.mark.parametrize(
    ("shape", "minutes", "used"),
    [((10_000, 5), None, True), ((1000, 32), None, True), ((10_000, 32), None, False), ((500, 5), 0.5, False)],
)
def test_the_default_is_left_out_where_it_would_take_long(
    shape: tuple[int, int], minutes: float | None, used: bool
) -> None:
    assert usual_base(torch.zeros(shape), minutes) == used


def test_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="more than 200 rows"):
        FlowModel(**QUICK, base="mixture").fit(_two(100))


@pytest.mark.parametrize(("columns", "whitened"), [(32, True), (33, False)])
def test_wide_arrays_are_standardised_alone(columns: int, whitened: bool) -> None:
    x = np.random.default_rng(0).normal(size=(60, columns))
    for data in (x, pd.DataFrame(x, columns=[f"c{i}" for i in range(columns)])):
        model = FlowModel(**{**QUICK, "steps": 2}, early_stopping=False).fit(data)
        assert isinstance(model.flow_.transform, Whiten) == whitened
        assert model._fitted.base is None

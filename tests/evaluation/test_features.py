"""Features without a network: values, or principal components of training rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import advect as library
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.core.errors import UserError
from advect.evaluation.feature_network import FeatureNetwork
from advect.evaluation.features import FeatureSpace, Projection


def test_large_samples_are_compared_by_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 200, generator=generator) @ torch.randn(200, 768, generator=generator)
    images = x.reshape(400, 3, 16, 16)
    z = Projection.fit(images)(images).double()
    assert z.shape == (400, 128) and torch.equal(z, Projection.fit(images)(images).double())
    values = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0)
    torch.testing.assert_close(z.var(0)[:64], values[:64], rtol=0.01, atol=0)


def test_small_samples_are_compared_as_they_are() -> None:
    x = torch.randn(10, 2, 16, 16)
    assert torch.equal(Projection.fit(x)(x), x.flatten(1))


def test_two_flows_to_the_same_units_share_their_features_and_others_do_not(moons_run: Path, digits_run: Path) -> None:
    open_space = lambda run: FeatureSpace(library.load(run), build_dataset(parse_config(run / "config.yaml")[1].data))
    moons, again, digits = (open_space(run).features for run in (moons_run, moons_run, digits_run))
    assert moons.exact == again.exact != digits.exact
    assert (moons.name, digits.name) == ("data space", "pixel space, black 0 and white 1")
    assert moons.standardise and not digits.standardise
    space = open_space(moons_run)
    with pytest.raises(UserError, match=r"--features net\.pt is for images, and these are vector data"):
        network = object.__new__(FeatureNetwork)
        network.name = "net.pt"
        FeatureSpace(space.flow, space.dataset, network)

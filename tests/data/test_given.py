"""Samples of which some entries are known, in model units, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data import Cells
from advect.data.images.modality import Images
from advect.data.transforms import PixelScale

NAN = float("nan")


def images() -> Images:
    return Images(DataSpec((2, 1, 3), "image", {}), PixelScale(0, 255, integer=True))


def test_a_pixel_is_known_over_all_channels_or_asked_for() -> None:
    assert images().groups.tolist() == [[[0, 1, 2]], [[0, 1, 2]]]
    x = torch.tensor([[[[0, NAN, 255]], [[51, NAN, 102]]]])
    z = images().given(x)
    assert z.isnan().tolist() == x.isnan().tolist()
    assert torch.allclose(z[..., 0], torch.tensor([[[-1.0], [-0.6]]]))
    assert torch.equal(images().transform.inverse(z)[~x.isnan()], x[~x.isnan()])
    x[0, 0, 0, 1] = 3
    with pytest.raises(UserError, match="given knows entry 1 of row 0 in part"):
        images().given(x)


@pytest.mark.parametrize(
    ("value", "words"),
    [(NAN, "knows nothing"), (0.0, "asks for nothing"), (float("inf"), "has an infinite value in row 1")],
)
def test_what_is_no_question_is_refused(value: float, words: str) -> None:
    x = torch.full((2, 2, 1, 3), value)
    x[0] = 0.0 if value == float("inf") else value
    with pytest.raises(UserError, match=words):
        images().given(x)
    with pytest.raises(UserError, match=r"given must have shape \(n, 2, 1, 3\), got \(2, 3\)"):
        images().given(torch.zeros(2, 3))


def test_genes_are_given_but_no_components() -> None:
    anndata = pytest.importorskip("anndata")
    counts = np.random.default_rng(0).poisson(3.0, (50, 6)).astype(np.float32)
    genes = Cells(anndata.AnnData(counts)).modality
    x = genes.transform.inverse(torch.zeros(2, 6))
    x[0, 2:] = NAN
    z = genes.given(x)
    assert torch.equal(z.isnan(), x.isnan()) and z[~x.isnan()].abs().max() < 1e-5
    with pytest.raises(UserError, match=r"--posterior mmps.*, or train on genes \(--pca None\)"):
        Cells(anndata.AnnData(counts), pca=2).modality.given(x)

"""Files of cells of which some genes are known, and what is written of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from advect.core.errors import UserError
from advect.data import Cells

anndata = pytest.importorskip("anndata")
pd = pytest.importorskip("pandas")
RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(4.0, (60, 6)).astype(np.float32) + np.eye(60, 6, dtype=np.float32)


def made(counts: np.ndarray, genes: list[str], **obs):
    names = [f"c{i}" for i in range(len(counts))]
    return anndata.AnnData(counts, pd.DataFrame(obs, index=names), pd.DataFrame(index=genes))


GENES = [f"G{i}" for i in range(6)]


def cells(**options) -> Cells:
    return Cells(made(COUNTS, GENES, type=["a", "b"] * 30), conditions=["type"], held_out=0.0, **options)


@pytest.mark.parametrize("space", ["expression", "counts"])
def test_known_counts_are_those_of_training_and_stay_as_they_were(tmp_path: Path, space: str) -> None:
    source = cells(space=space)
    totals, counts = COUNTS[:4].sum(1), COUNTS[:4, [3, 1, 0]].copy()
    counts[2, 1] = np.nan
    panel = made(counts, ["G3", "G1", "G0"], type=["a", "b", "a", "b"], total_counts=totals)
    panel.write_h5ad(tmp_path / "panel.h5ad")
    rows = source.modality.read_given(tmp_path / "panel.h5ad")
    assert rows.conditions == {"type": ["a", "b", "a", "b"]}
    trained = source.train.fetch(np.arange(4)).x1
    asked = torch.tensor([False, False, True, False, True, True]).repeat(4, 1)
    asked[2, 1] = True
    assert torch.equal(rows.values.isnan(), asked)
    assert torch.allclose(rows.values[~asked], trained[~asked], atol=1e-4)
    x = source.transform.inverse(trained).repeat_interleave(2, 0)
    files = source.modality.write_given(x, {}, rows, 2, tmp_path)
    assert [f.name for f in files] == ["draw-1.h5ad", "draw-2.h5ad", "samples.png"]
    found = anndata.read_h5ad(files[1])
    assert list(found.var_names) == GENES and found.obs["type"].tolist() == ["a", "b", "a", "b"]
    if space == "expression":  # the drawn values are the cells' own, and become their counts again
        assert np.array_equal(found.X, COUNTS[:4])
    assert np.array_equal(found.X[~asked.numpy()], COUNTS[:4][~asked.numpy()])
    assert (found.X.round() == found.X).all()


def test_expression_is_taken_as_such(tmp_path: Path) -> None:
    source = cells()
    x = np.log1p(COUNTS[:3] * 1e4 / COUNTS[:3].sum(1, keepdims=True))
    x[:, 2:] = np.nan
    made(x, GENES).write_h5ad(tmp_path / "panel.h5ad")
    rows = source.modality.read_given(tmp_path / "panel.h5ad")
    assert torch.allclose(rows.values[:, :2], source.train.fetch(np.arange(3)).x1[:, :2], atol=1e-4)
    found = anndata.read_h5ad(source.modality.write_given(torch.full((3, 6), 1.5), {}, rows, 1, tmp_path)[0])
    assert np.array_equal(found.X[:, :2], x[:, :2]) and (found.X[:, 2:] == 1.5).all()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    panel = made(COUNTS[:3, :2], GENES[:2])
    for value, source, words in (
        (panel, cells(), r"give these in obs\['total_counts'\], or expression"),
        (panel, cells(pca=2), r"ask it by posterior sampling \(--posterior mmps\)"),
        (made(COUNTS[:3, :2], ["g0", "g1"]), cells(), "has 3 cells and 0 of the flow's genes, such as 'G0'"),
        (made(-COUNTS[:3, :2], GENES[:2]), cells(), "has values below 0"),
        (made(COUNTS[:3], GENES, total_counts=COUNTS[:3].sum(1)), cells(), "asks for nothing"),
    ):
        value.write_h5ad(tmp_path / "panel.h5ad")
        with pytest.raises(UserError, match=words):
            source.modality.read_given(tmp_path / "panel.h5ad")
    (tmp_path / "text.h5ad").write_text("no")
    with pytest.raises(UserError, match=r"is not an \.h5ad file, or a damaged one"):
        cells().modality.read_given(tmp_path / "text.h5ad")

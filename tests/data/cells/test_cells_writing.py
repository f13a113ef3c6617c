from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tqdm import tqdm

anndata = pytest.importorskip("anndata")
pd = pytest.importorskip("pandas")

from advect.core.errors import UserError  # noqa: E402
from advect.core.random import CounterRng  # noqa: E402
from advect.core.types import NULL  # noqa: E402
from advect.data import Cells, to_counts, write_h5ad  # noqa: E402
from advect.data.cells.write import join_h5ad  # noqa: E402

N, D = 80, 9


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(1, 3, (2, D))[np.arange(N) % 2]).astype(np.float32)
    var = pd.DataFrame(
        {
            "length": np.arange(D, dtype=np.int32),
            "score": np.where(np.arange(D) == 2, np.nan, np.arange(D) / 3).astype(np.float32),
            "mito": np.arange(D) % 2 == 0,
            "symbol": [f"ß{i}" for i in range(D)],
            "class": pd.Categorical(["x", "y", "z"] * 3, categories=["z", "y", "x", "w"], ordered=True),
            "exons": pd.array([None, *range(D - 1)], dtype="Int64"),
            "kept": pd.array([None, *[i % 2 == 0 for i in range(D - 1)]], dtype="boolean"),
        },
        index=pd.Index([f"G{i}" for i in range(D)], name="gene_id"),
    )
    obs = pd.DataFrame(
        {"type": np.array(["a", "b"])[np.arange(N) % 2], "dose": np.linspace(1, 5, N)},
        index=[str(i) for i in range(N)],
    )
    return anndata.AnnData(X=x, obs=obs, var=var)


def written(path, *arguments, **options):
    write_h5ad(path / "new.h5ad", *arguments, **options)
    return anndata.read_h5ad(path / "new.h5ad")


@pytest.fixture
def source(data):
    return Cells(data, conditions=["type"], continuous=["dose"], held_out=0)


def test_var_comes_back_equal_from_json_alone(tmp_path, data, source):
    facts = json.loads(json.dumps(source.metadata, allow_nan=False))
    data.write_h5ad(tmp_path / "old.h5ad")
    new = written(tmp_path, torch.rand(5, D), facts)
    pd.testing.assert_frame_equal(new.var, anndata.read_h5ad(tmp_path / "old.h5ad").var)
    kept = Cells(data, genes=["G4", "G1"]).metadata
    pd.testing.assert_frame_equal(written(tmp_path, torch.rand(5, 2), kept).var, new.var.loc[["G4", "G1"]])


def test_training_cells_come_back_as_they_were(tmp_path, data, source):
    batch = source.train.fetch(np.arange(N))
    new = written(tmp_path, source.transform.inverse(batch.x1), source.metadata, conditions=batch.cond)
    sums = data.X.sum(1, keepdims=True)
    np.testing.assert_allclose(np.asarray(new.to_df()), np.log1p(data.X / sums * 1e4), rtol=1e-4, atol=1e-4)
    assert new.obs["type"].tolist() == data.obs["type"].tolist()
    np.testing.assert_allclose(new.obs["dose"], data.obs["dose"], rtol=1e-6)
    assert dict(new.uns["advect"]) == {"space": "expression", "log1p": True, "target_sum": 1e4}


def test_what_is_not_given_is_empty_in_obs(tmp_path, source):
    cond = {"type": torch.tensor([1, -1]), "dose": torch.tensor([[float("nan")], [0.0]])}
    new = written(tmp_path, torch.rand(2, D), source.metadata, conditions=cond, notes={"seed": 3})
    assert new.obs["type"].isna().tolist() == [False, True] and new.obs["type"].iloc[0] == "b"
    assert new.obs["dose"].isna().tolist() == [True, False] and new.obs["dose"].iloc[1] == pytest.approx(3)
    assert new.uns["advect"]["seed"] == 3


@pytest.mark.parametrize("dtype", ["int64", "uint8", "Int16", "float32", "float64"])
def test_numbers_of_obs_come_back_in_their_type(tmp_path, data, dtype):
    data.obs["age"] = pd.Series(20 + 3 * np.arange(N) % 50, index=data.obs.index).astype(dtype)
    source = Cells(data, continuous=["age"], held_out=0)
    batch = source.train.fetch(np.arange(N))
    new = written(tmp_path, torch.rand(N, D), source.metadata, conditions=batch.cond)
    pd.testing.assert_series_equal(new.obs["age"], data.obs["age"], check_index=False)
    quantity = source.spec.conditions["age"]
    half = torch.tensor([[(25.5 - quantity.mean[0]) / quantity.std[0]]])
    assert written(tmp_path, torch.rand(1, D), source.metadata, conditions={"age": half}).obs["age"].iloc[0] == 25.5
    past = torch.tensor([[(300.0 - quantity.mean[0]) / quantity.std[0]]])
    assert written(tmp_path, torch.rand(1, D), source.metadata, conditions={"age": past}).obs["age"].iloc[0] == 300


def test_counts_are_whole_and_of_the_sizes_of_the_training_cells(tmp_path, data, source):
    x = source.transform.inverse(source.train.fetch(np.arange(N)).x1)
    new = written(tmp_path, x, source.metadata, space="counts")
    values, sizes = np.asarray(new.to_df()), data.X.sum(1)
    assert new.uns["advect"]["space"] == "counts"
    assert (values >= 0).all() and (values == np.round(values)).all()
    assert values.sum(1) == pytest.approx(np.median(sizes), abs=D / 2)
    many = to_counts(x[:1].expand(4000, D), source.metadata, CounterRng(0, 0, 4000)).sum(1).numpy()
    np.testing.assert_allclose(np.quantile(many, [0.1, 0.5, 0.9]), np.quantile(sizes, [0.1, 0.5, 0.9]), atol=3)


def test_mostly_zero_cells_are_written_sparse(tmp_path, source):
    from scipy.sparse import issparse

    x = torch.zeros(4, D)
    x[:, 0] = 1
    new = written(tmp_path, x, source.metadata)
    assert issparse(new.X)
    assert np.array_equal(new.to_df().to_numpy(), x.numpy())


@pytest.mark.parametrize("shares", [(0.2, 0.4, 0.1), (0.9, 0.1, 0.95), (0.9, 0.8, 0.7)])
def test_files_of_parts_are_joined_to_that_of_all_cells(tmp_path, source, shares):
    x = torch.cat([torch.rand(30, D) * (torch.rand(30, D) < share) for share in shares])
    dose = torch.randn(90, 1)
    dose[3] = torch.nan
    cond = {"type": torch.arange(90) % 3 - 1, "dose": dose}
    whole = written(tmp_path, x, source.metadata, conditions=cond, notes={"seed": 3})
    parts = [tmp_path / f"{first}.h5ad" for first in (0, 30, 60)]
    for first, path in zip((0, 30, 60), parts, strict=True):
        rows = slice(first, first + 30)
        own = {name: value[rows] for name, value in cond.items()}
        write_h5ad(path, x[rows], source.metadata, conditions=own, notes={"seed": 3}, first=first)
    join_h5ad(parts, tmp_path / "joined.h5ad", tqdm(disable=True))
    joined = anndata.read_h5ad(tmp_path / "joined.h5ad")
    assert type(joined.X) is type(whole.X) and joined.X.dtype == whole.X.dtype == np.float32
    for name in ("indptr", "indices", "data") if sum(shares) < 1.5 else ():
        assert getattr(joined.X, name).dtype == getattr(whole.X, name).dtype
        assert np.array_equal(getattr(joined.X, name), getattr(whole.X, name))
    assert np.array_equal(joined.to_df(), x.numpy())
    pd.testing.assert_frame_equal(joined.obs, whole.obs)
    pd.testing.assert_frame_equal(joined.var, whole.var)
    assert joined.uns["advect"] == whole.uns["advect"]


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (torch.rand(3, 4), {}, r"x must have shape \(n, 9\), a column for each gene, got \(3, 4\)"),
        (torch.rand(3, D), {"conditions": {"tpe": torch.zeros(3)}}, "conditions has 'tpe'"),
        (torch.rand(3, D), {"conditions": {"type": torch.zeros(2)}}, r"for each of 3 cells, got 2"),
        (torch.rand(3, D), {"space": "log"}, "space must be 'expression' or 'counts', got 'log'"),
    ],
)
def test_bad_input(tmp_path, source, x, options, words):
    with pytest.raises(UserError, match=words):
        write_h5ad(tmp_path / "x.h5ad", x, source.metadata, **options)
    assert not list(tmp_path.iterdir())


def test_counts_do_not_become_expression(tmp_path, data):
    with pytest.raises(UserError, match="trained to give counts"):
        write_h5ad(tmp_path / "x.h5ad", torch.rand(3, D), Cells(data, space="counts").metadata, space="expression")
    with pytest.raises(UserError, match="x is counts already"):
        to_counts(torch.rand(3, D), Cells(data, space="counts").metadata)


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.arange(N) % 3, "int64"),
        (np.arange(N) % 3, "uint8"),
        (np.arange(N) % 2 == 0, "bool"),
        (np.arange(N) % 2 / 4, "float32"),
        (pd.array([7, None] * (N // 2), "Int64"), "Int64"),
        (pd.Categorical(np.arange(N) % 3, categories=[2, 0, 1], ordered=True), "category"),
        (pd.Categorical(np.array(["b", "a"])[np.arange(N) % 2], categories=["b", "a"]), "category"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_categories_come_back_in_their_type(tmp_path, data, values, dtype, absent):
    data.obs["kind"] = pd.Series(values, data.obs.index).astype(dtype)
    data.write_h5ad(tmp_path / "data.h5ad")
    cells = Cells(tmp_path / "data.h5ad", conditions=["kind"], held_out=0)
    facts = json.loads(json.dumps(cells.metadata))
    batch = cells.train.fetch(np.arange(N))
    codes = batch.cond["kind"].clone()
    codes[:1] = NULL if absent else codes[:1]
    new = written(tmp_path, cells.transform.inverse(batch.x1), facts, conditions={"kind": codes}).obs["kind"]
    old = data.obs["kind"].where([not absent, *[True] * (N - 1)])
    assert new.isna().tolist() == old.isna().tolist()
    assert new.dropna().tolist() == old.dropna().tolist()
    types = [{type(value) for value in column.dropna().tolist()} for column in (new, data.obs["kind"])]
    assert types[0] == types[1]
    if dtype == "category":
        assert (new.cat.categories.tolist(), new.cat.ordered) == (old.cat.categories.tolist(), old.cat.ordered)
    elif not absent:
        assert str(new.dtype) == dtype

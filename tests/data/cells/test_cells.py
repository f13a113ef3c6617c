from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

anndata = pytest.importorskip("anndata")
pd = pytest.importorskip("pandas")
import scipy.sparse as sp  # noqa: E402

from advect.core.errors import UserError  # noqa: E402
from advect.core.random import CounterRng  # noqa: E402
from advect.core.types import NULL  # noqa: E402
from advect.data import Cells, transform_from_config  # noqa: E402
from advect.sources import Empirical  # noqa: E402

N, D = 120, 30
GENES = [f"G{i}" for i in range(D)]


def counts(n: int = N, seed: int = 0) -> np.ndarray:
    """Sparse counts of three types of cells; gene 5 is in no cell."""
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.5, 4, (3, D)) * (np.arange(D) != 5)
    return rng.poisson(means[np.arange(n) % 3]).astype(np.float32)


def table(x=None, **columns) -> anndata.AnnData:
    x = counts() if x is None else x
    n = x.shape[0]
    obs = pd.DataFrame({"type": np.array(["a", "b", "c"])[np.arange(n) % 3], **columns})
    obs.index = [f"cell{i}" for i in range(n)]
    return anndata.AnnData(X=x, obs=obs, var=pd.DataFrame(index=GENES[: x.shape[1]]))


def everything(split):
    return split.fetch(np.arange(len(split)))


def log_normalised(x: np.ndarray, target: float = 1e4) -> np.ndarray:
    return np.log1p(x.astype(np.float64) / x.sum(1, keepdims=True) * target)


@pytest.fixture(params=["csr", "csc", "dense", "csr on disk", "dense on disk", "compressed on disk", "layer", "held"])
def stored(request, tmp_path):
    """(path, arguments) of the same counts in every layout."""
    layout, x = request.param, counts()
    make = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray, "compressed": sp.csr_matrix}
    data = table(make.get(layout.split()[0], sp.csr_matrix)(x))
    if layout == "held":
        return data, {}
    if layout == "layer":
        data.layers["counts"], data.X = data.X, sp.csr_matrix(-x)
    data.write_h5ad(tmp_path / "x.h5ad", compression="gzip" if layout.startswith("compressed") else None)
    return tmp_path / "x.h5ad", {"backed": "disk" in layout, **({"layer": "counts"} if layout == "layer" else {})}


def test_every_layout_gives_the_same_cells(stored):
    path, arguments = stored
    options = {"conditions": ["type"], "highly_variable": 12, "target_sum": 100}
    want, got = Cells(table(), **options), Cells(path, **arguments, **options)
    assert got.fingerprint == want.fingerprint and got.transform == want.transform and got.spec == want.spec
    for a, b in ((got.train, want.train), (got.held_out, want.held_out)):
        assert torch.equal(everything(a).x1, everything(b).x1)
        assert torch.equal(everything(a).cond["type"], everything(b).cond["type"])
    picks = np.array([7, 3, 3, 90, 0])
    assert torch.equal(got.train.fetch(picks).x1, everything(want.train).x1[picks])
    with ThreadPoolExecutor(4) as pool:
        for batch in pool.map(got.train.fetch, [picks] * 12):
            assert torch.equal(batch.x1, everything(want.train).x1[picks])


def test_normalisation_is_the_formula():
    x = counts()
    source = Cells(table(sp.csr_matrix(x)), target_sum=500)
    expected = log_normalised(x, 500)
    train = expected[source.train.cells]
    std = train.std(0)
    expected = (expected - train.mean(0)) / np.where(std > 0, std + 1e-8, 1)
    np.testing.assert_allclose(everything(source.train).x1, expected[source.train.cells], atol=1e-5)
    np.testing.assert_allclose(everything(source.held_out).x1, expected[source.held_out.cells], atol=1e-5)
    raw = Cells(table(x), normalise=False, log1p=False, standardise=False)
    assert np.array_equal(everything(raw.train).x1, x[raw.train.cells])


def test_the_library_is_that_of_all_genes_whichever_are_kept():
    x = counts()
    source = Cells(table(x), genes=["G7", "G2"], standardise=False)
    np.testing.assert_allclose(
        everything(source.train).x1, log_normalised(x)[source.train.cells][:, [7, 2]], rtol=1e-5
    )
    assert source.metadata["var"]["genes"] == ["G7", "G2"]


def test_both_ways_in_expression_and_in_counts():
    x = counts()
    expression = Cells(table(x), held_out=0)
    back = expression.transform.inverse(everything(expression.train).x1)
    np.testing.assert_allclose(back, log_normalised(x), rtol=1e-4, atol=1e-4)
    whole = Cells(table(x), held_out=0, space="counts")
    library = np.median(x.sum(1))
    back = whole.transform.inverse(everything(whole.train).x1)
    np.testing.assert_allclose(back, np.round(x / x.sum(1, keepdims=True) * library), atol=1)  # halves may tip
    assert (back == back.round()).all() and back.sum(1).median() == pytest.approx(library, rel=0.05)
    torch.testing.assert_close(whole.transform.inverse(whole.transform.forward(back)), back)


@pytest.mark.parametrize("backed", [False, True])
def test_components_are_those_of_the_dense_matrix(tmp_path, backed):
    from sklearn.decomposition import PCA

    x = counts(400, seed=3)
    table(sp.csr_matrix(x)).write_h5ad(tmp_path / "x.h5ad")
    source = Cells(tmp_path / "x.h5ad", pca=4, standardise=False, backed=backed)
    dense = log_normalised(x)[source.train.cells]
    exact = PCA(4, svd_solver="full").fit(dense)
    scores = everything(source.train).x1.double().numpy()
    np.testing.assert_allclose(scores.var(0, ddof=1), exact.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(np.abs(scores), np.abs(exact.transform(dense)), atol=1e-3)
    unclipped = np.maximum(exact.inverse_transform(exact.transform(dense)), 0)
    z, (expression, counted) = everything(source.train).x1, source.transform.parts
    np.testing.assert_allclose(expression.inverse(counted.projection.inverse(z)), unclipped, atol=1e-3)


def test_components_converge_where_the_matrix_is_wider_than_the_search():
    from sklearn.decomposition import PCA

    from advect.data.cells.matrix import as_rows, moments, principal_components

    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(300, 8)) @ rng.normal(size=(8, 700)) + rng.normal(size=(300, 700)), 0)
    matrix, rows = as_rows(sp.csr_matrix(x)), np.arange(300)
    components, variance = principal_components(matrix, rows, moments(matrix, rows)[0], 6)
    exact = PCA(6, svd_solver="full").fit(x)
    np.testing.assert_allclose(variance * 300 / 299, exact.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(np.abs(components @ exact.components_.T), np.eye(6), atol=1e-3)


def test_standardised_components_are_stored_beside_json():
    source = Cells(table(), pca=3)
    x = everything(source.train).x1
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    again = transform_from_config(source.transform.to_config(), source.transform.tensors())
    assert again.inverse(x).shape == (len(x), D)
    assert torch.equal(again.inverse(x), source.transform.inverse(x))


def test_highly_variable_genes_are_those_that_stand_out():
    rng = np.random.default_rng(1)
    x = rng.poisson(rng.uniform(1, 30, D), (600, D)).astype(np.float32)
    marked = [4, 11, 26]
    x[:, marked] *= rng.integers(0, 2, (600, 1)) * 2  # on in half of the cells, off in the others
    source = Cells(table(sp.csr_matrix(x)), highly_variable=3)
    assert source.metadata["var"]["genes"] == [GENES[i] for i in marked]
    among = Cells(table(sp.csr_matrix(x)), highly_variable=2, genes=["G26", "G1", "G4", "G2"])
    assert among.metadata["var"]["genes"] == ["G26", "G4"]


def test_nothing_is_made_dense_but_the_rows_of_a_fetch(tmp_path, monkeypatch):
    table(sp.csc_matrix(counts(300))).write_h5ad(tmp_path / "x.h5ad")
    for kind in (sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array):

        def few(self, *args, _toarray=kind.toarray, **options):
            assert self.shape[0] <= 8, f"{self.shape} made dense"
            return _toarray(self, *args, **options)

        monkeypatch.setattr(kind, "toarray", few)
    monkeypatch.setattr("advect.data.cells.counts.BATCH", 8)
    for options in ({}, {"highly_variable": 10}, {"pca": 3}, {"control": "type=a"}):
        batch = Cells(tmp_path / "x.h5ad", **options).train.fetch(np.arange(8))
        assert len(batch.x1) == 8


def test_equal_cells_fall_on_one_side_and_order_does_not_matter():
    x = counts()
    x[60:] = x[:60]  # each cell twice
    source = Cells(table(x), held_out=0.3)
    assert {i % 60 for i in source.train.cells}.isdisjoint(i % 60 for i in source.held_out.cells)
    assert len(source.held_out) == 36
    turned = Cells(table(x[::-1].copy()), held_out=0.3)
    assert {N - 1 - i for i in turned.train.cells} == set(source.train.cells.tolist())
    assert set(Cells(table(x), held_out=0.3, seed=1).train.cells) != set(source.train.cells)


def test_conditions_by_name_and_in_deviations_empty_ones_not_given():
    dose = np.arange(N, dtype=float)
    dose[3] = np.nan
    kind = pd.Categorical(np.array(["high", "low"])[np.arange(N) % 2], categories=["low", "never", "high"])
    kind[4] = np.nan
    source = Cells(table(dose=dose, kind=kind), conditions=["kind", "type"], continuous=["dose"], held_out=0)
    assert source.spec.conditions["kind"].names == ("low", "high")
    assert source.spec.conditions["kind"].frequencies == pytest.approx((60 / 119, 59 / 119))
    quantity, cond = source.spec.conditions["dose"], everything(source.train).cond
    known = dose[~np.isnan(dose)]
    assert (quantity.names, quantity.mean, quantity.std) == (("dose",), (known.mean(),), (known.std(),))
    assert set(quantity.examples) <= {(v,) for v in known}
    assert cond["kind"][:6].tolist() == [1, 0, 1, 0, NULL, 0]
    assert cond["dose"].shape == (N, 1) and cond["dose"].dtype == torch.float32
    assert cond["dose"].isnan().flatten().nonzero().flatten().tolist() == [3]
    np.testing.assert_allclose(cond["dose"][~np.isnan(dose), 0], (known - known.mean()) / known.std(), rtol=1e-5)


def perturbed(control_types=("a", "b")) -> anndata.AnnData:
    """Cells whose gene 0 tells control (0) from drug (50), and gene 1 their type."""
    x = counts()
    kind = np.array(["a", "b", "c"])[np.arange(N) % 3]
    drug = np.where((np.arange(N) % 2 == 0) & np.isin(kind, control_types), "control", "drug")
    x[:, 0], x[:, 1] = np.where(drug == "control", 0, 50), np.arange(N) % 3
    return table(x, drug=drug)


def test_controls_start_cells_of_their_own_type():
    options = {"normalise": False, "log1p": False, "standardise": False, "conditions": ["type", "drug"]}
    source = Cells(perturbed(), control="drug=control", **options)
    assert source.spec.conditions["drug"].names == ("drug",)
    for split in (source.train, source.held_out):
        batch = split.fetch(np.arange(len(split)), CounterRng(0, 0, len(split)))
        assert (batch.x1[:, 0] == 50).all() and (batch.x0[:, 0] == 0).all()
        paired = batch.x1[:, 1] < 2  # there is no control of type c
        if split is source.train:
            assert (batch.x0[paired, 1] == batch.x1[paired, 1]).all()
            assert set(batch.x0[~paired, 1].tolist()) == {0, 1}
    many = np.zeros(4000, dtype=np.int64)
    drawn = source.train.fetch(many, CounterRng(1, 0, 4000)).x0.unique(dim=0, return_counts=True)[1]
    assert len(drawn) > 10 and drawn.min() > 0.7 * drawn.float().mean()
    fixed = source.train.fetch(np.arange(5)).x0
    assert torch.equal(fixed, source.train.fetch(np.arange(5)).x0)


def test_no_control_cell_of_training_starts_a_held_out_one():
    source = Cells(perturbed(("a", "b", "c")), control="drug=control", held_out=0.3, standardise=False)
    train = {row.numpy().tobytes() for row in source.controls()[0]}
    for i in range(5):
        x0 = source.held_out.fetch(np.arange(len(source.held_out)), CounterRng(i, 0, len(source.held_out))).x0
        assert not train & {row.numpy().tobytes() for row in x0}


def test_stored_controls_start_samples_without_the_data():
    source = Cells(perturbed(), control="drug=control", conditions=["type"])
    x, cond = source.controls()
    assert len(x) == len(source._starts) and cond.keys() == {"type"}
    few, few_cond = source.controls(limit=7)
    assert len(few) == len(few_cond["type"]) == 7
    wanted = {"type": torch.zeros(50, dtype=torch.long)}
    x0 = Empirical(x, cond=cond).sample_matching(wanted, (50, D), CounterRng(0, 0, 50))
    of_type_a = source.transform.inverse(x0)[:, 1]
    assert of_type_a.abs().max() < 1e-3  # gene 1 is 0 in type a alone


def log_like() -> anndata.AnnData:
    return table(log_normalised(counts()).astype(np.float32))


def with_value(value: float) -> anndata.AnnData:
    x = counts()
    x[17, 3] = value
    return table(sp.csr_matrix(x))


def with_twins() -> anndata.AnnData:
    data = table()
    data.var_names = ["G0", *GENES[:-1]]
    return data


@pytest.mark.parametrize(
    ("data", "arguments", "words"),
    [
        (log_like, {}, "looks log-normalised already: its values are not whole"),
        (log_like, {"normalise": False}, "--no-normalise --no-log1p"),
        (log_like, {"normalise": False, "log1p": False, "space": "counts"}, "does not hold counts"),
        (lambda: with_value(-2.5), {}, "holds negative values, down to -2.5"),
        (lambda: with_value(np.nan), {}, "holds 1 NaN or infinite values, the first in cell 17"),
        (with_twins, {}, "has 1 duplicate gene names, the first 'G0'; AnnData.var_names_make_unique()"),
        (table, {"conditions": ["typ"]}, "conditions names 'typ', which obs has not; did you mean 'type'?"),
        (table, {"conditions": "type"}, "conditions must be a list of columns, got 'type'"),
        (table, {"conditions": ["type", "type"]}, "'type' is named twice"),
        (table, {"continuous": ["type"]}, "column 'type' does not hold numbers"),
        (lambda: table(e=[None] * N), {"conditions": ["e"]}, "column 'e' has no value in any cell"),
        (lambda: table(e=[np.nan] * N), {"continuous": ["e"]}, "column 'e' has no value in any training cell"),
        (lambda: table(e=np.arange(N) / 7), {"conditions": ["e"]}, "give it to continuous instead"),
        (lambda: table(length=["x"] * N), {"conditions": ["length"]}, "rename the column"),
        (table, {"control": "type"}, "control must be 'column=value'"),
        (table, {"control": "typ=a"}, "did you mean 'type'?"),
        (table, {"control": "type=d"}, "no cell has type 'd'; choose from a, b, c"),
        (lambda: table(e=["x"] * N), {"control": "e=x"}, "all cells have e=x"),
        (table, {"layer": "raw"}, "has no layer 'raw'; it has none"),
        (table, {"genes": ["G1", "G2x"]}, "genes names 'G2x', which var has not; did you mean 'G2"),
        (table, {"genes": ["G1", "G1"]}, "all different"),
        (table, {"highly_variable": 30}, "highly_variable must lie in 1 to 29"),
        (table, {"pca": 31}, "pca must lie in 1 to 30"),
        (table, {"target_sum": -1}, "target_sum must be above 0 and at most 1,000,000,000,000, got -1"),
        (table, {"held_out": 1}, "held_out must be at least 0 and below 1"),
        (lambda: table(np.zeros((9, D), np.float32)), {}, "every training cell is empty"),
        (lambda: [1, 2], {}, "path must be an .h5ad file or an AnnData object, got list"),
        (lambda: "nowhere.h5ad", {}, "is not a file"),
    ],
)
def test_bad_input(data, arguments, words):
    with pytest.raises(UserError) as error:
        Cells(data(), **arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bad_files(tmp_path):
    (tmp_path / "text.h5ad").write_text("gene,cell")
    with pytest.raises(UserError, match=r"text\.h5ad is not an \.h5ad file, or a damaged one"):
        Cells(tmp_path / "text.h5ad")
    table(sp.csc_matrix(counts())).write_h5ad(tmp_path / "columns.h5ad")
    with pytest.raises(UserError, match=r"stored by columns, and backed=True reads rows"):
        Cells(tmp_path / "columns.h5ad", backed=True)
    anndata.AnnData(obs=table().obs, var=table().var).write_h5ad(tmp_path / "empty.h5ad")
    with pytest.raises(UserError, match=r"empty\.h5ad has no X, nor a layer; save counts in X"):
        Cells(tmp_path / "empty.h5ad")
    for part, words in ((table()[:0], f"has 0 cells and {D} genes"), (table()[:, :0], f"has {N} cells and 0 genes")):
        part.copy().write_h5ad(tmp_path / "none.h5ad")
        for data in (part, tmp_path / "none.h5ad"):
            with pytest.raises(UserError, match=words):
                Cells(data)


def test_an_empty_cell_stays_empty():
    x = counts()
    x[10] = 0
    source = Cells(table(x), standardise=False, held_out=0)
    assert (source.train.fetch(np.array([10])).x1 == 0).all()


def test_a_file_of_something_else(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file["X"] = counts()
    with pytest.raises(UserError, match="has no tables obs and var"):
        Cells(tmp_path / "x.h5ad")


def test_numbers_as_categories_are_in_their_own_order():
    source = Cells(table(plate=np.array([10, 2, 9])[np.arange(N) % 3]), conditions=["plate"])
    assert source.spec.conditions["plate"].names == ("2", "9", "10")


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_an_object_that_is_backed_gives_the_cells_of_one_in_memory(tmp_path, kind):
    make = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[kind]
    table(make(counts())).write_h5ad(tmp_path / "x.h5ad")
    backed, held = Cells(anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")), Cells(table())
    assert backed.fingerprint == held.fingerprint
    assert torch.equal(everything(backed.train).x1, everything(held.train).x1)


@pytest.mark.parametrize("how", ["file", "on disk", "object", "backed"])
def test_raw_is_a_layer_with_genes_of_its_own(tmp_path, how):
    full = table(sp.csr_matrix(counts()))
    data = full[:, :10].copy()
    data.raw, data.X = full, log_normalised(counts() + 1)[:, :10]
    data.write_h5ad(tmp_path / "x.h5ad")
    path = {"object": data, "backed": anndata.read_h5ad(tmp_path / "x.h5ad", backed="r")}.get(how, tmp_path / "x.h5ad")
    with pytest.raises(UserError, match=r"looks log-normalised already.*\(--layer raw\)"):
        Cells(path)
    cells = Cells(path, layer="raw", backed=how == "on disk")
    assert cells.spec.shape == (D,) and cells.metadata["var"]["genes"] == GENES
    assert torch.equal(everything(cells.train).x1, everything(Cells(full).train).x1)


@pytest.mark.parametrize("standardise", [True, False])
def test_a_gene_that_no_cell_varies_in_comes_back_as_it_is(standardise):
    x = counts() + 1.0
    x[:, 3], x[:, 4], x[:, 5] = 0, 1.1, 0
    options = {"normalise": False, "log1p": False, "standardise": standardise}
    source = Cells(table(x), **options)
    x[source.held_out.cells[0], 5] = 7  # a gene of the held-out cells alone is not constant
    again = Cells(table(x), genes=[f"G{i}" for i in (3, 4, 5, 6)], **options)
    back = again.transform.inverse(torch.rand(50, 4) + 1)
    assert (back[:, 0] == 0).all() and (back[:, 1] == np.float32(1.1)).all()
    assert back[:, 3].std() > 0

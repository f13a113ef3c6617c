"""What lies on disk when samples have been written, for each kind of data; flows are made by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.types import LENGTH, Category, DataSpec, Quantity
from advect.data import Cells, Dataset, Identity, Sequences, Table
from advect.data.tables.files import read_table
from advect.data.transforms import PixelScale
from advect.evaluation.quality import measure_quality
from advect.model.conditions import encoded
from advect.model.flow import Flow
from advect.sources import Empirical


class Still(nn.Module):
    """The velocity 0: samples are where the flow starts."""

    def forward(self, x_t: Tensor, t: Tensor, cond: dict | None = None) -> Tensor:
        return torch.zeros_like(x_t)


def flow_on(source: Dataset, /, **options) -> Flow:
    return Flow(Still(), source.spec, source.transform, facts=source.metadata, **options)


def written(flow: Flow, folder: Path, n: int = 6, **cond) -> tuple[Tensor, dict[str, Tensor], list[Path]]:
    conditions = flow.conditions(n, cond)
    x = flow.sample(n, steps=1, cond=encoded(conditions)).x
    files = flow.modality.write(x, conditions, folder)
    assert sorted(files) == sorted(folder.iterdir())
    Image.open(folder / "samples.png").verify()
    return x, conditions, files


def ragged() -> Sequences:
    rng = np.random.default_rng(0)
    return Sequences([rng.normal(5, 1, (2 + i % 4, 2)) for i in range(40)])


def frame():
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(1)
    age = rng.integers(18, 90, 80)
    height = np.where(rng.random(80) < 0.3, np.nan, rng.normal(170, 10, 80))
    city = pd.Categorical(rng.choice(["Graz", "Wien, Land"], 80))
    return pd.DataFrame({"age": age, "city": city, "height": height, "sick": rng.choice([True, False], 80)})


def cells(**options) -> Cells:
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    counts = np.random.default_rng(2).poisson(2.0, (60, 7)).astype(np.float32) + np.eye(60, 7, dtype=np.float32)
    names = [f"c{i}" for i in range(60)]
    obs = pd.DataFrame({"type": ["a", "b"] * 30, "drug": ["none", "none", "x", "x"] * 15}, index=names)
    var = pd.DataFrame({"chromosome": range(7)}, index=[f"G{i}" for i in range(7)])
    return Cells(anndata.AnnData(counts, obs=obs, var=var), conditions=["type"], **options)


def test_sequences_are_zero_after_their_drawn_or_named_length() -> None:
    flow = flow_on(ragged())
    conditions = flow.conditions(200)
    x = flow.sample(200, steps=1, cond=encoded(conditions)).x
    assert conditions[LENGTH].unique().tolist() == [2, 3, 4, 5]
    real = torch.arange(5) < conditions[LENGTH][:, None]
    assert (x[real] != 0).all() and (x[~real] == 0).all()
    assert abs(x[real].mean() - 5) < 0.3  # the data's units
    assert (flow.sample(3, steps=1, cond={LENGTH: 2}).x[:, 2:] == 0).all()
    assert torch.equal(flow.sample(200, steps=1, trajectory=True).x[-1], x)


def test_sequences_are_an_archive_that_is_data_again_and_one_row_a_step(tmp_path: Path) -> None:
    flow = flow_on(ragged())
    x, conditions, files = written(flow, tmp_path)
    assert [f.name for f in files] == ["samples.npz", "samples.csv", "samples.png"]
    with np.load(tmp_path / "samples.npz") as saved:
        assert np.array_equal(saved["values"], x.numpy())
        assert saved["lengths"].tolist() == conditions[LENGTH].tolist() and saved["lengths"].dtype == np.int64
    again = Sequences(tmp_path / "samples.npz", held_out=0.0)
    assert len(again.train) == 6 and again.spec.conditions.keys() == {LENGTH}
    table = read_table(tmp_path / "samples.csv")
    assert list(table.columns) == ["id", "step", "value_0", "value_1"]
    assert table["id"].value_counts(sort=False).tolist() == conditions[LENGTH].tolist()
    assert table["value_1"][0] == pytest.approx(float(x[0, 0, 1]))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_come_back_in_their_own_format_and_types(tmp_path: Path, suffix: str) -> None:
    data = frame()
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
        data.to_parquet(tmp_path / "data.parquet")
    else:
        data.to_csv(tmp_path / "data.csv", index=False)
    (tmp_path / "out").mkdir()
    x, _, files = written(flow_on(Table(tmp_path / f"data{suffix}", conditions=["sick"])), tmp_path / "out", n=50)
    assert x.dtype == torch.float64 and x.shape == (50, 3)
    assert [f.name for f in files] == [f"samples{suffix}", "samples.png"]
    new = read_table(files[0])
    assert list(new.columns) == ["age", "city", "height", "sick"] and len(new) == 50
    assert new["age"].dtype == "int64" and new["age"].between(18, 90).all() and new["sick"].dtype == bool
    assert set(new["city"]) == {"Graz", "Wien, Land"} and 0 < new["height"].isna().sum() < 50


def test_cells_are_h5ad_with_their_genes_and_conditions(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    for space in ("expression", "counts"):
        (tmp_path / space).mkdir()
        x, _, files = written(flow_on(cells(space=space)), tmp_path / space, type="b")
        assert [f.name for f in files] == ["samples.h5ad", "samples.png"]
        new = anndata.read_h5ad(files[0])
        values = new.X if isinstance(new.X, np.ndarray) else new.X.toarray()
        assert np.array_equal(values, x.numpy()) and new.uns["advect"]["space"] == space
        assert (values == values.round()).all() == (space == "counts")
        assert new.obs["type"].tolist() == ["b"] * 6 and list(new.var_names) == [f"G{i}" for i in range(7)]
        assert new.var["chromosome"].tolist() == list(range(7))


def test_components_are_written_as_counted_cells_by_the_seed(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    flow, x = flow_on(cells(pca=3, space="counts")), torch.rand(5, 7) * 3
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        files = flow.modality.write(x, flow.conditions(5), tmp_path / name, seed=seed)
        values = anndata.read_h5ad(files[0]).X
        found.append(values if isinstance(values, np.ndarray) else values.toarray())
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert all((v == v.round()).all() and (v == 0).any() for v in found)


def test_a_flow_from_controls_starts_at_those_of_its_own_type() -> None:
    source = cells(control="drug=none")
    x, cond = source.controls()
    flow = flow_on(source, source=Empirical(x, cond=cond))
    for name, number in (("a", 0), ("b", 1)):
        wanted = source.transform.inverse(x[cond["type"] == number])
        own = flow.sample(20, steps=1, cond={"type": name}).x
        assert (torch.cdist(own, wanted).min(1).values < 1e-4).all() and len(own.unique(dim=0)) > 3
    ten = flow.sample(10, steps=1, seed=3).x
    assert torch.equal(flow.sample(4, steps=1, seed=3, batch_size=3).x, ten[:4])


def test_vectors_are_an_archive_and_a_table_with_named_conditions(tmp_path: Path) -> None:
    dose = Quantity(("dose",), (10.0,), (2.0,), ((10.0,),))
    spec = DataSpec((2,), "vector", {"kind": Category(("x", "y"), (0.5, 0.5)), "dose": dose})
    x, _, files = written(Flow(Still(), spec, Identity()), tmp_path, n=3, kind=["y", None, "x"], dose=12.0)
    assert [f.name for f in files] == ["samples.npz", "samples.csv", "samples.png"]
    with np.load(files[0]) as saved:
        assert np.array_equal(saved["x"], x.numpy()) and saved["kind"].tolist() == ["y", "", "x"]
    with files[1].open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["x1", "x2", "kind", "dose"] and [row[2] for row in rows] == ["y", "", "x"]
    assert np.array_equal(np.array([row[:2] for row in rows], dtype=np.float32), x.numpy())
    assert [float(row[3]) for row in rows] == [12.0] * 3


def test_single_images_are_written_on_demand_and_refused_for_other_data(tmp_path: Path) -> None:
    flow = Flow(Still(), DataSpec((1, 4, 4), "image", {}), Identity())
    files = flow.modality.write(flow.sample(2, steps=1).x, {}, tmp_path, individual=True)
    assert [f.name for f in files] == ["samples.npz", "samples.png", "sample-000000.png", "sample-000001.png"]
    assert Image.open(files[2]).size == (4, 4)
    with pytest.raises(UserError, match="this flow makes sequence data"):
        flow_on(ragged()).modality.write(torch.zeros(1, 5, 2), {}, tmp_path, individual=True)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_single_image_has_the_pixels_of_the_sample(channels: int, mode: str, tmp_path: Path) -> None:
    x = torch.randint(0, 256, (2, channels, 3, 5)).float()
    flow = Flow(Still(), DataSpec((channels, 3, 5), "image", {}), PixelScale(0, 255, integer=True))
    image = Image.open(flow.modality.write(x, {}, tmp_path, individual=True)[-1])
    assert image.mode == mode
    assert np.array_equal(np.asarray(image).reshape(3, 5, channels), x[1].movedim(0, 2).numpy())


def test_samples_that_have_numbers_count_on_from_the_first_ones(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    flow = Flow(Still(), DataSpec((1, 4, 4), "image", {}), Identity())
    for source, shape in ((ragged(), (5, 2)), (cells(), (7,))):
        conditions = flow_on(source).conditions(2)
        flow_on(source).modality.write(torch.rand(2, *shape), conditions, tmp_path, first=40)
    flow.modality.write(torch.ones(2, 1, 4, 4), {}, tmp_path, individual=True, first=40)
    assert set(read_table(tmp_path / "samples.csv")["id"]) == {40, 41}
    assert list(anndata.read_h5ad(tmp_path / "samples.h5ad").obs_names) == ["generated-40", "generated-41"]
    assert [f.name for f in sorted(tmp_path.glob("sample-*"))] == ["sample-000040.png", "sample-000041.png"]


@pytest.mark.parametrize("kind", ["sequences", "table", "cells"])
def test_the_same_samples_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    source = {"sequences": ragged, "table": lambda: Table(frame()), "cells": cells}[kind]()
    written_twice = []
    for now in (1e9, 1.7e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        (tmp_path / str(now)).mkdir()
        files = written(flow_on(source), tmp_path / str(now))[2]
        written_twice.append({file.name: file.read_bytes() for file in files})
    assert written_twice[0] == written_twice[1]


def test_what_has_no_density_says_so_in_its_own_words() -> None:
    table = flow_on(Table(frame()))
    with pytest.raises(UserError, match=r"column .age. is scaled by quantiles, whose log_det depends on the value"):
        table.log_prob(table.sample(2, steps=1).x)
    with pytest.raises(UserError, match="sequences of different lengths have no common log_det"):
        flow_on(ragged()).log_prob(torch.zeros(2, 5, 2), cond={LENGTH: 5})
    with pytest.raises(UserError, match="components of 7 genes have no density per gene"):
        flow_on(cells(pca=3)).log_prob(torch.zeros(2, 7), cond={"type": "a"})


def test_data_of_another_shape_than_the_network_sees_is_encoded_and_decoded() -> None:
    flow = flow_on(cells(pca=3))
    assert flow.data_shape == (7,) and flow.spec.shape == (3,)
    x = flow.sample(2, steps=1, cond={"type": "a"}).x
    z = flow.encode(x, cond={"type": "a"}, steps=1)
    assert z.shape == (2, 3) and flow.decode(z, cond={"type": "a"}, steps=1).shape == (2, 7)
    with pytest.raises(UserError, match=r"x must have shape \(n, 7\), got \(2, 3\)"):
        flow.encode(z)


@pytest.mark.parametrize("kind", ["sequences", "table", "cells"])
def test_each_kind_is_drawn_over_its_data_and_measured(tmp_path: Path, kind: str) -> None:
    kinds = {"sequences": ragged, "table": lambda: Table(frame(), held_out=0.4), "cells": lambda: cells(pca=3)}
    source = kinds[kind]()
    flow = flow_on(source)
    conditions = flow.conditions(20)
    x = flow.sample(20, steps=1, cond=encoded(conditions)).x
    width, height = flow.modality.plot(x, conditions, flow.modality.reference(source.held_out)).size
    assert width == 1024 and 300 < height < 800
    found = measure_quality(flow, source, tmp_path, nfes=(1, 2))
    features = {
        "sequences": "the scaled channels",
        "table": "the table's scaled columns",
        "cells": "the flow's 3 components of expression",
    }
    assert found["frechet"]["features"] == features[kind]
    assert set(found["marginals"]) >= (set() if kind == "sequences" else {"kolmogorov_smirnov", "correlation_error"})
    with np.load(tmp_path / "trajectories.npz") as saved:
        assert saved["x"].shape == ((10, 4, 5, 2) if kind == "sequences" else (10, 200, 2))


def test_vectors_of_parquet_come_back_as_such_a_file(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    spec = DataSpec((2,), "vector", {"label": Category(("x", "y"), (0.5, 0.5))})
    flow = Flow(Still(), spec, Identity(), facts={"kind": "vectors", "column": "embedding", "label": "y"})
    x, _, files = written(flow, tmp_path, n=3, label=["y", "x", "x"])
    assert [f.name for f in files] == ["samples.parquet", "samples.png"]
    table = parquet.read_table(files[0])
    assert table.column_names == ["embedding", "y"] and str(table.schema[0].type).startswith("fixed_size_list<")
    assert table["embedding"].to_pylist() == x.tolist() and table["y"].to_pylist() == ["y", "x", "x"]

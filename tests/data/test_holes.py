"""Data with holes: what is fitted to the values there are, what is compared, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.data import Arrays, Dataset, Table, without_copies
from advect.data.array_files import ArrayFile
from advect.data.holes import complete_rows
from advect.data.transforms import Standardize
from advect.doctor.data import check_infinite, measure_values
from advect.losses import FlowMatching
from advect.masks import RandomMask
from advect.model.flow import Flow
from advect.networks import MLP
from advect.networks.base import WithGiven

NAN = float("nan")


def frame(n: int = 300, holes: float = 0.2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    whole = pd.DataFrame(
        {
            "real": rng.normal(3, 2, n),
            "count": rng.integers(0, 9, n).astype(float),
            "kind": rng.choice(["a", "b", "c"], n).astype(object),
            "sure": rng.choice(["yes", "no"], n).astype(object),
            "same": 5.0,
        }
    )
    lost = rng.random(whole.shape) < holes
    lost[:, 3] = False
    return whole.mask(lost)


def both(source: Dataset) -> Tensor:
    return torch.cat([split.fetch(np.arange(len(split))).x1 for split in (source.train, source.held_out)])


def test_a_table_with_holes_has_nan_over_whole_columns_and_comes_back() -> None:
    data = frame()
    source = Table(data, holes=True)
    x, groups = both(source), source.modality.groups
    assert groups.tolist() == [0, 1, 2, 2, 2, 3]
    assert x.shape[1] == 6  # no indicator of missing values
    for column in range(4):
        own = x[:, groups == column].isnan()
        assert bool((own.all(1) == own.any(1)).all())
        assert int(own[:, 0].sum()) == int(data.iloc[:, column].isna().sum())
    told = source.holes
    assert told is not None
    lost = data.iloc[:, :4].isna().to_numpy()
    assert (told.rows, told.entries, told.of_rows, told.of_entries) == (lost.any(1).sum(), lost.sum(), 300, 1200)
    back = source.transform.inverse(x)
    assert torch.equal(back[:, :4].isnan(), torch.stack([x[:, groups == c][:, 0].isnan() for c in range(4)], 1))
    numbers = torch.from_numpy(data["count"].to_numpy())
    assert torch.equal(back[:, 1].nan_to_num(-1).sort().values, numbers.nan_to_num(-1).sort().values)


def test_scalings_are_those_of_the_values_there_are() -> None:
    data = frame()
    for scaling in ("standard", "quantile"):
        source = Table(data, holes=True, held_out=0.0, scaling=scaling)
        alone = Table(data[["real"]].dropna(), held_out=0.0, scaling=scaling)
        assert (
            source.transform.to_config()["columns"][0]["scaling"]
            == alone.transform.to_config()["columns"][0]["scaling"]
        )
    x = data[["real", "count"]].to_numpy()
    x = x[~np.isnan(x).all(1)]
    fitted = Arrays(x, holes=True, held_out=0.0).transform
    assert isinstance(fitted, Standardize)
    np.testing.assert_allclose([fitted.mean, fitted.std], [np.nanmean(x, 0), np.nanstd(x, 0)], rtol=1e-12)


def test_without_holes_nothing_changes() -> None:
    data = frame(holes=0.0)
    source, plain = Table(data, holes=True), Table(data)
    assert source.holes is None
    assert source.fingerprint == plain.fingerprint
    assert torch.equal(both(source), both(plain))
    assert complete_rows(source) is source


def test_samples_are_compared_with_complete_rows_alone(caplog: pytest.LogCaptureFixture) -> None:
    source = Table(frame(), holes=True)
    with caplog.at_level("INFO"):
        real = complete_rows(source)
    assert "samples are compared with complete rows alone" in caplog.text
    assert not bool(both(real).isnan().any())
    assert len(both(real)) == 300 - source.holes.rows  # type: ignore[union-attr]
    assert len(source.real.train) == len(real.train) < len(source.train)
    assert real.fingerprint != source.fingerprint
    behind = source.modality.reference(source.held_out)
    assert behind is not None
    assert not bool(behind.x1.isnan().any())
    with pytest.raises(UserError, match="rows with holes are not compared"):
        source.modality.data(source.train, np.arange(50))


def test_copies_may_have_holes() -> None:
    data = frame().join(pd.DataFrame(np.random.default_rng(1).normal(size=(300, 3)), columns=["d", "e", "f"]))
    data = pd.concat([data, data.iloc[:20]], ignore_index=True)
    source = without_copies(Table(data, holes=True))
    assert source.copies is not None
    assert len(source.copies) > 0
    assert source.holes is not None
    assert source.holes.of_rows == len(both(source)) == 320 - len(source.copies)
    assert not bool(both(source.real).isnan().any())


def test_the_doctor_tells_holes_and_takes_them_for_no_trouble() -> None:
    stats = measure_values(Table(frame(), holes=True), 300)
    assert check_infinite(stats) is None
    assert stats.holes.startswith("holes in ")
    assert abs(stats.mean) < 1


def test_vectors_of_files_may_have_holes(tmp_path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    lost = np.random.default_rng(1).random(x.shape) < 0.2
    lost[:, 0] = False
    x[lost] = np.nan
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(60) % 2)
    lists = [[None if np.isnan(v) else float(v) for v in row] for row in x]
    parquet.write_table(pa.table({"v": lists}), tmp_path / "x.parquet")
    for name in ("x.npy", "x.npz", "x.parquet"):
        source = ArrayFile(tmp_path / name, holes=True, held_out=0.0)
        assert source.holes is not None
        assert source.holes.entries == lost.sum()
        np.testing.assert_allclose(source.transform.mean, np.nanmean(x.astype(float), 0), rtol=1e-6)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="--holes"):
            ArrayFile(tmp_path / name)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([[1.0, 2.0], [NAN, NAN], [2.0, 3.0]], "row 1 of arrays has no value at all"),
        ([[1.0, NAN], [2.0, NAN], [2.0, NAN]], "feature 1 has no value to train on"),
        (
            [[1.0, NAN], [2.0, np.inf], [2.0, 1.0]],
            "x holds 1 infinite values in 1 of 3 rows, the first .inf. in row 1",
        ),
    ],
)
def test_arrays_without_a_value_are_refused(x: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Arrays(np.array(x), holes=True, held_out=0.0)


def test_images_with_unknown_pixels_and_rows_without_values_are_refused(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 5, 5, 1), 0.5, np.float32))
    with pytest.raises(UserError, match="holds images"):
        ArrayFile(tmp_path / "x.npy", holes=True)
    with pytest.raises(UserError, match="holds images"):
        Arrays(np.zeros((4, 1, 5, 5), np.uint8), holes=True)
    with pytest.raises(UserError, match="row 3 of table has no value at all"):
        Table(pd.DataFrame({"a": [1.0, 2.0, 3.0, NAN], "b": [2.0, NAN, 1.0, NAN]}), holes=True, held_out=0.0)


def test_training_with_holes_reaches_the_law_of_complete_data() -> None:
    rng = np.random.default_rng(0)
    root = np.array([[1.0, 0, 0], [1.2, 0.9, 0], [-0.5, 0.6, 0.4]])
    whole = rng.normal(size=(4000, 3)) @ root.T + [3.0, -1.0, 0.5]
    lost = rng.random(whole.shape) < 0.2
    lost[lost.all(1)] = False
    source = Arrays(np.where(lost, np.nan, whole), holes=True, held_out=0.0)
    torch.manual_seed(0)
    net = WithGiven(MLP(3, width=64, depth=3, inputs=3), "vector")
    loss_fn = FlowMatching(mask=RandomMask(entries=source.modality.entries))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 700)
    for _ in range(700):
        loss = loss_fn(net, source.train.fetch(rng.integers(0, 4000, 256))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    flow = Flow(net.eval(), source.spec, source.transform, masked=True)
    x = flow.sample(4000, steps=20, batch_size=4000, seed=1).x.numpy()
    # Zeros in place of holes would take a fifth of each variance and a third of each covariance.
    np.testing.assert_allclose(x.mean(0), whole.mean(0), atol=0.08)
    np.testing.assert_allclose(np.cov(x.T), np.cov(whole.T), atol=0.13)
    known = np.tile([4.0, np.nan, np.nan], (4000, 1))
    y = flow.sample(4000, given=known, steps=20, batch_size=4000, seed=2).x.numpy()
    assert set(y[:, 0].tolist()) == {4.0}
    np.testing.assert_allclose(y[:, 1:].mean(0), [-1 + 1.2, 0.5 - 0.5], atol=0.12)

"""Posterior samples of flows: any path and prediction, data units, rows, conditions."""

from __future__ import annotations

import math
from pathlib import Path as File

import pytest
import torch
from torch import Tensor, nn

import advect
from advect.core import registry
from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data import Identity
from advect.data.cells.transform import Components
from advect.data.tables.columns import Categories, Number
from advect.data.tables.scaling import StandardScaling
from advect.data.tables.transform import TableTransform
from advect.data.transforms import Standardize, Transform
from advect.data.whiten import Whiten
from advect.losses.flow_matching import Kind
from advect.model.flow import Flow
from advect.paths import AffinePath, BrownianBridge, LipmanOT, Schedule
from advect.paths.analytic import GaussianMixture
from advect.solvers.posterior import Blur, ColumnSums, Downsample, Masked

COVARIANCE = torch.tensor([[[1.5, 0.6], [0.6, 0.8]]], dtype=torch.float64)
SUMS, Y, NOISE = ColumnSums([[0, 1]]), torch.tensor([1.0]), 0.3
SCHEDULES = [s for s in (registry.get("path", n) for n in registry.choices("path")) if issubclass(s, Schedule)]


class Exact(nn.Module):
    """The ideal network of a law, for a prediction."""

    def __init__(self, law: GaussianMixture, prediction: str) -> None:
        super().__init__()
        self.field = getattr(law, prediction)

    def forward(self, x_t: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.field(x_t, t)


def exact_flow(
    path: AffinePath, prediction: Kind = "velocity", transform: Transform | None = None
) -> tuple[Flow, GaussianMixture]:
    law = GaussianMixture(torch.tensor([[1.0, -0.5]]), covariances=COVARIANCE, path=path)
    spec = DataSpec((2,), "vector", {})
    return Flow(Exact(law, prediction), spec, transform or Identity(), path=path, prediction=prediction), law


def assert_posterior(x: Tensor, law: GaussianMixture, tolerance: float = 0.06) -> None:
    exact = law.given(torch.ones(1, 2), Y, NOISE)
    assert exact.covariances is not None
    torch.testing.assert_close(x.mean(0), exact.means[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(x.T.cov().double(), exact.covariances[0], rtol=0.1, atol=tolerance)


@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "score"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.part_name)
def test_the_exact_posterior_by_any_path_and_prediction(schedule: type[Schedule], prediction: Kind) -> None:
    flow, law = exact_flow(AffinePath(schedule()), prediction)
    drawn = flow.sample_posterior(1500, measurement=SUMS, y=Y, noise=NOISE, batch_size=1500)
    assert drawn.nfe == 100
    assert_posterior(drawn.x, law)


def test_paths_with_noise_left_at_the_data() -> None:
    for path in (AffinePath(LipmanOT(sigma_min=0.1)), AffinePath(sigma_min=0.1)):
        flow, law = exact_flow(path)
        x = flow.sample_posterior(1500, measurement=SUMS, y=Y, noise=NOISE, batch_size=1500).x
        exact = law.given(torch.ones(1, 2), Y, NOISE)
        assert exact.covariances is not None
        wide = exact.covariances[0] + 0.1**2 * torch.eye(2)
        torch.testing.assert_close(x.mean(0), exact.means[0], rtol=0, atol=0.06)
        torch.testing.assert_close(x.T.cov().double(), wide, rtol=0.1, atol=0.06)


def test_measurement_and_samples_are_in_data_units() -> None:
    scale = Standardize(mean=[10.0, -5.0], std=[4.0, 2.0])
    flow, law = exact_flow(AffinePath(), transform=scale)
    matrix = torch.tensor([[0.25, 0.5]])  # of data units: x_1 + x_2 + 0 of model units
    x = flow.sample_posterior(1500, measurement=matrix, y=Y, noise=NOISE, batch_size=1500).x
    assert_posterior(scale.forward(x), law)
    inside = flow.sample_posterior(50, measurement=SUMS, y=Y, noise=NOISE, model_units=True).x
    torch.testing.assert_close(inside, scale.forward(x[:50]), rtol=1e-3, atol=1e-3)


def test_known_entries_come_back_exactly() -> None:
    flow, _ = exact_flow(AffinePath(), transform=Standardize(mean=[10.0, -5.0], std=[4.0, 2.0]))
    given = torch.tensor([[12.3, torch.nan], [torch.nan, 0.7]])
    for method in registry.choices("posterior"):
        if method != "reward":
            x = flow.sample_posterior(2, given=given, method=method, steps=20).x
            assert x[0, 0] == given[0, 0] and x[1, 1] == given[1, 1] and x.isfinite().all()
    same = flow.sample_posterior(3, given=given[0]).x
    masked = flow.sample_posterior(3, measurement=Masked([True, False]), y=[12.3, 0.0]).x
    assert (same[:, 0] == 12.3).all() and torch.equal(same, masked)


def test_a_row_of_which_nothing_is_known_is_drawn_beside_others(moons_run: File) -> None:
    flow = advect.load(moons_run)
    given = [[math.nan, math.nan], [0.5, math.nan], [math.nan, math.nan]]
    for method in ("dps", "pigdm", "mmps", "repaint"):
        x = flow.sample_posterior(3, given=given, method=method, steps=4).x
        assert x[1, 0] == 0.5 and bool(torch.isfinite(x).all())


def test_a_row_depends_on_the_seed_and_its_place_alone(moons_run: File) -> None:
    flow = advect.load(moons_run)
    y = torch.linspace(-1, 1, 10)[:, None]
    ask = {"measurement": SUMS, "y": y, "noise": 0.2, "steps": 5, "seed": 3}
    for method in ("mmps", "pigdm", "dps"):
        ten = flow.sample_posterior(10, **ask, method=method).x
        few = flow.sample_posterior(10, **ask, method=method, batch_size=3).x
        torch.testing.assert_close(few, ten, rtol=1e-4, atol=1e-5)
        some = flow.sample_posterior(10, **ask, method=method, rows=range(5, 8)).x
        torch.testing.assert_close(some, ten[5:8], rtol=1e-4, atol=1e-5)
        assert torch.equal(flow.sample_posterior(10, **ask, method=method).x, ten)


def test_images_by_class_and_guidance_and_a_reward(digits_run: File) -> None:
    flow = advect.load(digits_run)
    for a, shape in ((Downsample(4), (1, 2, 2)), (Blur(1.0), (1, 8, 8))):
        x = flow.sample_posterior(
            3, measurement=a, y=torch.full(shape, 8.0), noise=0.5, steps=4, cond={"label": 7}, guidance=2.0
        )
        assert x.shape == (3, 1, 8, 8) and x.x.min() >= 0 and x.x.max() <= 16 and x.cond["label"].tolist() == [7] * 3
    brightness = lambda x: x.flatten(1).mean(1)
    dark, bright = (flow.sample_posterior(20, reward=lambda x, s=s: s * brightness(x), steps=10) for s in (-5, 5))
    assert brightness(bright.x).mean() > brightness(dark.x).mean() + 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({}, "give one of measurement .with y., given and reward"),
        ({"given": [torch.nan, 1.0], "reward": lambda x: x.sum(1)}, "give one of"),
        ({"measurement": SUMS}, "measurement and y belong together"),
        ({"measurement": SUMS, "y": [1.0, 2.0]}, "y must have the shape of"),
        ({"measurement": SUMS, "y": [1.0], "noise": -1.0}, "noise .* must be >= 0"),
        ({"measurement": SUMS, "y": [1.0], "method": "repaint"}, "takes known elements alone"),
        ({"measurement": 3, "y": [1.0]}, "a measurement is a matrix, a function"),
        ({"measurement": Blur(1.0), "y": [1.0]}, "Blur needs images"),
        ({"given": [1.0, 2.0]}, "asks for nothing"),
        ({"given": [torch.nan, torch.nan]}, "knows nothing"),
        ({"given": [[1.0, torch.nan]] * 4}, "given must have shape"),
        ({"reward": lambda x: x.sum(1), "noise": 1.0}, "a reward has none"),
        ({"given": [1.0, torch.nan], "method": "mmsp"}, "did you mean 'mmps'"),
        ({"given": [1.0, torch.nan], "rows": range(9)}, "rows must be a range"),
        ({"given": [1.0, torch.nan], "guidance": 2.0}, "no conditions to guide by"),
    ],
)
def test_bad_input(ask: dict, message: str) -> None:
    flow, _ = exact_flow(AffinePath())
    with pytest.raises(UserError, match=message):
        flow.sample_posterior(2, **ask)


def test_other_paths_are_refused() -> None:
    for path in (BrownianBridge(0.5), AffinePath(gaussian_source=False)):
        flow, _ = exact_flow(AffinePath())
        flow.path = path
        with pytest.raises(UserError, match="posterior sampling needs an affine path from Gaussian noise"):
            flow.sample_posterior(2, given=[1.0, torch.nan])


def test_known_entries_of_whitened_data() -> None:
    root = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    whiten = Whiten(
        Standardize(mean=[10.0, -5.0], std=[4.0, 2.0]), torch.tensor([0.5, 0.0], dtype=torch.float64), root
    )
    law = GaussianMixture(torch.zeros(1, 2), stds=1.0)
    flow = Flow(Exact(law, "velocity"), DataSpec((2,), "vector", {}), whiten)
    x = flow.sample_posterior(1500, given=[12.0, torch.nan], batch_size=1500).x.double()
    mean, scale = torch.tensor([10.0 + 4 * 0.5, -5.0]), torch.tensor([[4.0, 0], [0, 2]]).double()
    cov = scale @ root @ root.T @ scale
    assert (x[:, 0] == 12).all()
    assert abs(x[:, 1].mean() - (mean[1] + cov[0, 1] / cov[0, 0] * (12 - mean[0]))) < 0.25
    assert abs(x[:, 1].var() / (cov[1, 1] - cov[0, 1] ** 2 / cov[0, 0]) - 1) < 0.15


def test_known_genes_of_components_need_a_noise() -> None:
    v = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]])
    genes = Components(v, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    flow = Flow(Exact(GaussianMixture(torch.zeros(1, 2), stds=1.0), "velocity"), DataSpec((2,), "vector", {}), genes)
    given = torch.tensor([2.0, 2.0, 4.0, torch.nan])  # of components 1.5 and 1.5, but for noise
    with pytest.raises(UserError, match="3 entries, which the 2 principal components"):
        flow.sample_posterior(2, given=given)
    x = flow.sample_posterior(500, given=given, noise=0.1).x
    near = GaussianMixture(torch.zeros(1, 2), stds=1.0).given(v.T[:3], given[:3] - genes.mean[:3], 0.1)
    torch.testing.assert_close(x.mean(0), genes.inverse(near.means)[0], rtol=0, atol=0.03)


def test_numbers_of_a_table_are_measured_before_they_are_rounded(tmp_path: File) -> None:
    columns = [
        Number(name="a", dtype="int64", low=0.0, high=9.0, decimals=0, scaling=StandardScaling(4.0, 2.0)),
        Number(name="b", dtype="int64", low=0.0, high=9.0, decimals=0, scaling=StandardScaling(4.0, 2.0)),
        Categories(name="c", dtype="object", names=("x", "y")),
    ]
    law = GaussianMixture(torch.zeros(1, sum(c.width for c in columns)), stds=1.0)
    flow = Flow(Exact(law, "velocity"), DataSpec(law.shape, "table", {}), TableTransform(columns))
    x = flow.sample_posterior(200, measurement=ColumnSums([[0, 1]]), y=[12.0], noise=0.1).x
    assert (x == x.round()).all() and abs(x[:, :2].sum(1).mean() - 12) < 0.2 and x[:, :2].sum(1).std() < 1.2
    with pytest.raises(UserError, match="the log-reward does not change with x"):
        flow.sample_posterior(2, reward=lambda x: x[:, 2])
    with pytest.raises(UserError, match="does not change with x"):
        flow.sample_posterior(2, measurement=torch.tensor([[0.0, 0, 1]]), y=[1.0])

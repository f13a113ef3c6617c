"""Samples against held-out data: the numbers of the metrics themselves, whatever the processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advect as package
from advect.commands.evaluate import evaluate
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import Batch
from advect.data import Dataset, Split
from advect.evaluation import FeatureNetwork
from advect.evaluation.callback import measure, online_evaluator
from advect.evaluation.evaluator import Evaluator, SampleRequest
from advect.evaluation.features import FeatureSpace
from advect.evaluation.protocol import EvalConfig
from advect.metrics import energy_distance, frechet_distance, kernel_distance
from advect.metrics.statistics import subsample
from advect.model.flow import Flow
from forked import run_ranks

SLOW = pytest.mark.slow


def opened(run: Path) -> tuple[Flow, Dataset]:
    return package.load(run), build_dataset(parse_config(run / "config.yaml")[1].data)


def numbers(evaluator: Evaluator) -> dict[str, float]:
    return measure(evaluator, SampleRequest(n=len(evaluator.rows.floor), seed=3))


def online(run: Path, *, samples: int = 300) -> dict[str, float]:
    return numbers(online_evaluator(*opened(run), samples=samples, features=None))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what is computed of data."""
    monkeypatch.setenv("ADVECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def in_data_units(flow: Flow, source: Dataset, name: str, count: int) -> Tensor:
    """``count`` rows of a split, as an evaluation chooses them."""
    split = getattr(source, name)
    return flow.transform.inverse(split.fetch(subsample(len(split), count, 0).sort().values.numpy()).x1)


def mixed(x: Tensor, limit: int) -> Tensor:
    """At most ``limit`` rows, as a summary chooses them."""
    return x[subsample(len(x), 10_000, 0)][:limit]


def test_vectors_have_the_distances_of_the_samples_that_the_flow_draws(moons_run: Path) -> None:
    flow, source = opened(moons_run)
    found = online(moons_run)
    assert found is not None
    assert [*found] == ["frechet", "frechet_se", "energy", "energy_se", "frechet_floor", "energy_floor"]
    x, real = flow.sample(300, seed=3).x, in_data_units(flow, source, "train", 300)
    held_out = in_data_units(flow, source, "held_out", 10_000)
    assert found["frechet"] == pytest.approx(frechet_distance(x, held_out), rel=1e-6)
    assert found["frechet_floor"] == pytest.approx(frechet_distance(real, held_out), rel=1e-6)
    for name, some in (("energy", x), ("energy_floor", real)):
        expected = energy_distance(mixed(some, 300), mixed(held_out, 5000), unbiased=True)
        assert found[name] == pytest.approx(expected, rel=1e-6)
    assert found["frechet"] > 3 * found["frechet_floor"]


class First(Split):
    """The first of the samples of a split."""

    def __init__(self, split: Split, count: int) -> None:
        self._split, self._count = split, count

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        return self._split.fetch(indices, rng)


class Sums(nn.Module):
    """Three numbers of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), x[:, :, :100].mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("features") / "sums.pt"
    torch.jit.script(Sums()).save(str(file))
    return file


def test_images_are_seen_in_0_to_255_by_a_network_of_ones_own(digits_run: Path, network: Path) -> None:
    flow, source = opened(digits_run)
    source.held_out = First(source.held_out, 60)
    found = numbers(online_evaluator(flow, source, samples=100, features=network))
    assert found is not None
    assert list(found) == ["frechet", "frechet_se", "kernel", "kernel_se", "frechet_floor", "kernel_floor"]
    see = lambda x: FeatureNetwork(network)((x * 255 / 16).round())
    x, real = (see(x) for x in (flow.sample(100, seed=3).x, in_data_units(flow, source, "train", 100)))
    held_out = see(in_data_units(flow, source, "held_out", len(source.held_out)))
    assert found["frechet"] == pytest.approx(frechet_distance(x, held_out), rel=1e-5)
    assert found["frechet_floor"] == pytest.approx(frechet_distance(real, held_out), rel=1e-5)
    for name, some in (("kernel", x), ("kernel_floor", real)):
        expected = kernel_distance(mixed(some, 100), mixed(held_out, 10_000)).value
        assert found[name] == pytest.approx(expected, rel=1e-5)


def test_advect_eval_finds_the_same_numbers(digits_run: Path, tmp_path: Path) -> None:
    ours = online(digits_run, samples=300)
    request = EvalConfig(num_samples=300, metrics=("frechet", "kernel"), seed=3, output=tmp_path / "result.json")
    _, result = evaluate(digits_run, request)
    (way,) = result["points"]
    assert ours is not None
    for name in ("frechet", "kernel"):
        assert ours[name] == pytest.approx(way["metrics"][name]["mean"], rel=1e-5)
        assert ours[f"{name}_floor"] == pytest.approx(result["floor"]["metrics"][name], rel=1e-5)


def test_wide_data_are_compared_in_components(advect: Callable[..., None], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "wide.npy", (rng.normal(size=(400, 5)) @ rng.normal(size=(5, 600))).astype(np.float32))
    advect("train --data wide.npy --run-dir run --width 8 --max-steps 2 --sample-every 0")
    evaluator = online_evaluator(*opened(tmp_path / "run"), samples=100, features=None)
    assert evaluator.space.features.name.startswith("the first 128 principal components")
    found = numbers(evaluator)
    assert found["frechet"] > found["frechet_floor"] > 0


def measured(run: str, samples: int) -> dict[str, float]:
    return online(Path(run), samples=samples)


@pytest.mark.parametrize(
    ("world", "samples"), [(3, 1000), pytest.param(2, 1000, marks=SLOW), pytest.param(4, 300, marks=SLOW)]
)
def test_several_processes_find_what_one_does_to_the_bit(
    moons_run: Path, cache: Path, world: int, samples: int
) -> None:
    one = measured(str(moons_run), samples)
    shutil.rmtree(cache)
    assert run_ranks(world, measured, str(moons_run), samples) == [one] + [{}] * (world - 1)


def test_data_are_looked_at_once_and_again_where_the_cache_is_damaged(
    moons_run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = online(moons_run)
    files = {file: file.read_bytes() for file in cache.glob("*.safetensors")}
    assert len(files) == 4  # statistics of either split, and two floors
    with monkeypatch.context() as patch:
        patch.setattr(FeatureSpace, "data", None)
        assert online(moons_run) == first
    for file, whole in files.items():
        file.write_bytes(whole[:100])
    assert online(moons_run) == first
    assert {file: file.read_bytes() for file in cache.glob("*.safetensors")} == files
    online(moons_run, samples=200)
    assert len(list(cache.glob("*.safetensors"))) == 7  # other training rows


def test_no_more_than_a_chunk_is_looked_at_at_once(moons_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], FeatureSpace.samples

    def watched(self: FeatureSpace, x: Tensor, *arguments, **options):
        seen.append(len(x))
        return real(self, x, *arguments, **options)

    monkeypatch.setattr(FeatureSpace, "samples", watched)
    online(moons_run, samples=1000)
    assert seen == [256, 256, 256, 232]


def test_too_few_rows_and_features_that_do_not_fit_are_told(
    moons_run: Path, digits_run: Path, network: Path, cache: Path
) -> None:
    flow, source = opened(moons_run)
    with pytest.raises(UserError, match=r"--eval-features .*sums\.pt is for images, and these are vector data"):
        online_evaluator(flow, source, features=network, samples=100)
    with pytest.raises(UserError, match=r"features .*none\.pt is no file"):
        online_evaluator(*opened(digits_run), features=Path("none.pt"), samples=100)
    source.held_out = First(source.held_out, 3)
    with pytest.raises(UserError, match=r"--eval-every compares with 20 held-out samples or more.*have 3"):
        online_evaluator(flow, source, features=None, samples=100)
    assert not cache.exists()

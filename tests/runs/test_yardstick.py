"""Samples against held-out data: the numbers of the metrics themselves, whatever the processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advect as package
from advect.core.errors import UserError
from advect.data import Source
from advect.evaluation import FeatureNetwork
from advect.metrics import energy_distance, frechet_distance, kernel_distance
from advect.runs import yardstick
from advect.runs.arguments import parse_config
from advect.runs.build import build_source
from advect.runs.flow import Flow
from advect.runs.yardstick import Yardstick
from processes import run_ranks


def opened(run: Path) -> tuple[Flow, Source]:
    return package.load(run), build_source(parse_config(run / "config.yaml")[1].data)


def stick(run: Path, cache: Path, *, samples: int = 300, features: Path | None = None, seed: int = 3) -> Yardstick:
    return Yardstick(*opened(run), samples=samples, features=features, seed=seed, cache=cache)


def in_data_units(flow: Flow, source: Source, name: str, count: int) -> Tensor:
    """``count`` rows of a split, spread evenly."""
    split = getattr(source, name)
    places = np.linspace(0, len(split) - 1, count).round().astype(int)
    return flow.transform.inverse(split.fetch(places).x1)


def test_vectors_have_the_distances_of_the_samples_that_the_flow_draws(moons_run: Path, tmp_path: Path) -> None:
    flow, source = opened(moons_run)
    found = stick(moons_run, tmp_path / "cache").measure()
    assert found is not None and list(found) == ["frechet", "energy", "frechet_floor", "energy_floor"]
    x, real = flow.sample(300, seed=3), in_data_units(flow, source, "train", 300)
    held_out = in_data_units(flow, source, "held_out", 10_000)
    some = held_out[np.linspace(0, 9999, 2000).round()]
    assert found["frechet"] == pytest.approx(frechet_distance(x, held_out), rel=1e-6)
    assert found["frechet_floor"] == pytest.approx(frechet_distance(real, held_out), rel=1e-6)
    assert found["energy"] == pytest.approx(energy_distance(x, some), rel=1e-6)
    assert found["energy_floor"] == pytest.approx(energy_distance(real, some), rel=1e-6)
    assert found["frechet"] > 3 * found["frechet_floor"]


class Sums(nn.Module):
    """Three numbers of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), x[:, :, :100].mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("features") / "sums.pt"
    torch.jit.script(Sums()).save(str(file))
    return file


def test_images_are_seen_in_0_to_255_by_a_network_of_ones_own(digits_run: Path, tmp_path: Path, network: Path) -> None:
    flow, source = opened(digits_run)
    found = stick(digits_run, tmp_path, samples=100, features=network).measure()
    assert found is not None and list(found) == ["frechet", "kernel", "frechet_floor", "kernel_floor"]
    see = lambda x: FeatureNetwork(network)((x * 255 / 16).round())
    x, real = (see(x) for x in (flow.sample(100, seed=3), in_data_units(flow, source, "train", 100)))
    held_out = see(in_data_units(flow, source, "held_out", len(source.held_out)))
    assert found["frechet"] == pytest.approx(frechet_distance(x, held_out), rel=1e-5)
    assert found["frechet_floor"] == pytest.approx(frechet_distance(real, held_out), rel=1e-5)
    assert found["kernel"] == pytest.approx(kernel_distance(x, held_out, seed=3).value, rel=1e-5)
    assert found["kernel_floor"] == pytest.approx(kernel_distance(real, held_out, seed=3).value, rel=1e-5)


def test_wide_data_are_compared_in_components_and_the_first_process_fits_them(
    advect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "wide.npy", (rng.normal(size=(400, 5)) @ rng.normal(size=(5, 600))).astype(np.float32))
    advect("train --data wide.npy --run-dir run --width 8 --max-steps 2 --sample-every 0")
    monkeypatch.setattr(yardstick, "FIT_BYTES", 50 * 4 * 600)
    found = stick(tmp_path / "run", tmp_path / "cache", samples=100)
    assert found.features.dimensions == 49 and found.space.startswith("the first 49 principal components")
    measured = found.measure()
    assert measured is not None and measured["frechet"] > measured["frechet_floor"] > 0


def measured(run: str, cache: str, samples: int) -> dict | None:
    return stick(Path(run), Path(cache), samples=samples).measure()


@pytest.mark.parametrize(("world", "samples"), [(3, 301), pytest.param(3, 20, marks=pytest.mark.slow)])
def test_several_processes_find_what_one_does(moons_run: Path, tmp_path: Path, world: int, samples: int) -> None:
    one = measured(str(moons_run), str(tmp_path / "one"), samples)
    first, *others = run_ranks(world, measured, str(moons_run), str(tmp_path / "many"), samples)
    assert first == pytest.approx(one, rel=1e-5)
    assert others == [None] * (world - 1)


def test_the_reference_is_measured_once_and_anew_where_it_is_damaged(
    moons_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stick(moons_run, tmp_path).measure()
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Yardstick, "_real", None)
        assert stick(moons_run, tmp_path).measure() == first
    file.write_bytes(whole[:100])
    assert stick(moons_run, tmp_path).measure() == first
    assert file.read_bytes() == whole
    stick(moons_run, tmp_path, samples=200).measure()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_memory_does_not_grow_with_the_samples(
    moons_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yardstick, "KEPT", 50)
    seen = []
    real = Yardstick._map

    def watched(self: Yardstick, x: Tensor) -> Tensor:
        seen.append(len(x))
        return real(self, x)

    monkeypatch.setattr(Yardstick, "_map", watched)
    found = stick(moons_run, tmp_path, samples=1000)
    assert found.reference is not None and len(found.reference.some) == 50
    found.measure()
    assert max(seen) == 256


def test_too_few_rows_and_features_that_do_not_fit_are_told(moons_run: Path, digits_run: Path, network: Path) -> None:
    flow, source = opened(moons_run)
    options = {"samples": 100, "seed": 0, "cache": Path("cache")}
    with pytest.raises(UserError, match=r"--eval-features .*sums\.pt looks at grey or coloured images.*vector"):
        Yardstick(flow, source, features=network, **options)
    with pytest.raises(UserError, match=r"features .*none\.pt is no file"):
        Yardstick(*opened(digits_run), features=Path("none.pt"), **options)
    source.held_out = Few()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"--eval-every compares with 20 held-out samples or more.*have 3"):
        Yardstick(flow, source, features=None, **options)
    assert not Path("cache").exists()


class Few:
    def __len__(self) -> int:
        return 3

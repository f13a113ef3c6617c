"""Exported files against ``Flow.sample``: the same samples from the same noise, by torch.export and ONNX Runtime."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advect.core import registry
from advect.core.types import LENGTH, Category, Condition, DataSpec, Length, Quantity
from advect.data.transforms import Identity, PixelScale, Standardize, Transform
from advect.export.files import CARD, EXAMPLE
from advect.model.flow import Flow
from advect.networks.base import TwoTimes
from advect.paths import AffinePath
from advect.sources import noise_of

SHAPES = {"vector": (3,), "image": (1, 8, 8), "sequence": (6, 2)}
LABEL = Category(("a", "b", "c"), (0.2, 0.3, 0.5))
AGE = Quantity(("age",), (40.0,), (10.0,), ((35.0,), (50.0,)))
FORMATS = ("torch-export", "onnx")


def shaken(net: Any) -> Any:
    """A network whose output is not 0, as that of a new one is."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def flow_of(
    name: str,
    arguments: Mapping[str, Any],
    conditions: Mapping[str, Condition] | None = None,
    transform: Transform | None = None,
    **method: Any,
) -> Flow:
    cls: Any = registry.get("network", name)
    shape, conditions = SHAPES[cls.takes], dict(conditions or {})
    sizes = {n: len(c.names) for n, c in conditions.items() if isinstance(c, Category)}
    given = {"dim": shape[0]} if cls.takes == "vector" else {"shape": shape}
    if any(isinstance(c, Quantity) for c in conditions.values()):
        from advect.networks.embeddings import Vector

        sizes |= {n: Vector(len(c.mean)) for n, c in conditions.items() if isinstance(c, Quantity)}  # pyright: ignore
    net = shaken(cls(**given, **arguments, conditions=sizes))
    spec = DataSpec(shape, {"vector": "vector", "image": "image", "sequence": "sequence"}[cls.takes], conditions)
    return Flow(net, spec, transform or Identity(), **method)


def run_files(folder: Path, what: str, inputs: list[Tensor]) -> Tensor:
    """What a user of the files does, with no part of advect."""
    card = json.loads((folder / CARD).read_text())
    file = folder / card[what]["file"]
    if card["format"] == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [one["name"] for one in card[what]["inputs"]]
        assert [one.name for one in session.get_inputs()] == names
        return torch.from_numpy(session.run(None, dict(zip(names, [x.numpy() for x in inputs], strict=True)))[0])
    with torch.no_grad():
        return torch.export.load(file).module()(*inputs)


def check(flow: Flow, folder: Path, format: str, cond: Mapping[str, Any] | None = None, **how: Any) -> None:
    """Samples of 1 and of 5 rows, where 3 were traced, are those of the flow within 1e-5."""
    if format == "onnx":
        pytest.importorskip("onnxscript")
    flow.export(folder, format=format, cond=cond, **how)  # pyright: ignore
    for rows in (1, 5):
        wanted = flow.sample(rows, seed=7, cond=cond, **how)
        names = [name for name in flow.spec.conditions if name not in (cond or {})]
        given = [wanted.encoded[name] for name in names]
        got = run_files(folder, "sampler", [flow.noise(rows, seed=7, cond=cond), *given])
        scale = max(1.0, float(wanted.x.abs().max()))
        assert got.dtype == wanted.x.dtype
        assert float((got - wanted.x).abs().max()) < 1e-5 * scale


NETWORKS = [
    pytest.param(name, arguments, id=f"{name}-{i}", marks=() if (name, i) == ("mlp", 0) else pytest.mark.slow)
    for name in registry.choices("network")
    for i, arguments in enumerate(registry.get("network", name).part_examples or ({},))
]


@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
@pytest.mark.parametrize("format", [pytest.param("torch-export"), pytest.param("onnx", marks=pytest.mark.slow)])
def test_every_network_gives_the_samples_and_velocities_of_the_flow(
    name: str, arguments: dict, format: str, tmp_path: Path
) -> None:
    flow = flow_of(name, arguments, {"label": LABEL})
    check(flow, tmp_path / "out", format, steps=3)
    x, t, label = flow.noise(4, seed=1), torch.tensor([0.0, 0.3, 0.9, 1.0]), torch.tensor([0, 2, -1, 1])
    wanted = flow.velocity({"label": label})(x, t)
    got = run_files(tmp_path / "out", "network", [x, t, label])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("interval", [None, (0.3, 0.8)])
@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_guidance_and_its_interval(format: str, interval: tuple | None, scale: float, tmp_path: Path) -> None:
    flow = flow_of(
        "mlp", {"width": 16, "depth": 2}, {"label": LABEL, "age": AGE}, Standardize([1.0, 2, 3], [3.0, 1, 2])
    )
    check(flow, tmp_path / "out", format, steps=4, solver="heun", guidance=scale, guidance_interval=interval)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_a_fixed_condition_is_no_input(format: str, tmp_path: Path) -> None:
    flow = flow_of("mlp", {"width": 16, "depth": 2}, {"label": LABEL, "age": AGE})
    check(flow, tmp_path / "out", format, steps=2, cond={"label": "b"}, guidance=3.0)
    card = json.loads((tmp_path / "out" / CARD).read_text())
    assert card["fixed"] == {"label": 1} and list(card["conditions"]) == ["age"]
    assert [one["name"] for one in card["sampler"]["inputs"]] == ["noise", "age"]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("path", ["vp", "cosine", "trigonometric", "polynomial", "lipman-ot", "ddpm"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise"])
def test_every_path_and_prediction(format: str, path: str, prediction: str, tmp_path: Path) -> None:
    flow = flow_of(
        "mlp", {"width": 16, "depth": 2}, path=AffinePath(registry.get("path", path)()), prediction=prediction
    )
    check(flow, tmp_path / "out", format, steps=4, solver="rk4")


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_sequences_of_several_lengths_are_zero_after_their_end(format: str, tmp_path: Path) -> None:
    lengths = Length((0.1, 0.1, 0.2, 0.2, 0.2, 0.2))
    flow = flow_of("transformer", {"width": 16, "depth": 1, "heads": 2}, {LENGTH: lengths})
    check(flow, tmp_path / "out", format, steps=2)
    got = run_files(tmp_path / "out", "sampler", [torch.ones(2, 6, 2), torch.tensor([2, 6])])
    assert not got[0, 2:].any() and got[1, 5].all()


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_images_return_to_the_units_of_their_pixels(format: str, tmp_path: Path) -> None:
    arguments = {"model_channels": 8, "channel_mult": (1, 1), "attention_resolutions": ()}
    flow = flow_of("unet", arguments, transform=PixelScale(0.0, 16.0))
    check(flow, tmp_path / "out", format, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_steps_of_a_flow_map_have_two_times(format: str, tmp_path: Path) -> None:
    from advect.core.types import STEP
    from advect.networks.embeddings import Vector

    net = shaken(TwoTimes(registry.get("network", "mlp")(3, width=16, depth=2, conditions={STEP: Vector(1)})))
    flow = Flow(net, DataSpec((3,), "vector", {}), Identity(), learns_steps="any")
    check(flow, tmp_path / "out", format, steps=2, solver="flow-map")
    x, t = torch.ones(2, 3), torch.tensor([[0.0, 0.5], [0.5, 1.0]])
    torch.testing.assert_close(run_files(tmp_path / "out", "network", [x, t]), net(x, t), atol=1e-5, rtol=1e-5)


def test_the_example_is_what_the_flow_draws_and_the_card_tells_it(tmp_path: Path) -> None:
    flow = flow_of("mlp", {"width": 16, "depth": 2}, {"label": LABEL}, Standardize([1.0, 2, 3], [3.0, 1, 2]))
    files = flow.export(tmp_path / "out", steps=3, num_samples=6, seed=3)
    assert [file.name for file in files] == ["network.pt2", "sampler.pt2", EXAMPLE, CARD]
    drawn, example = flow.sample(6, steps=3, seed=3), np.load(tmp_path / "out" / EXAMPLE)
    np.testing.assert_array_equal(example["samples"], drawn.x.numpy())
    np.testing.assert_array_equal(example["label"], drawn.encoded["label"].numpy())
    card = json.loads((tmp_path / "out" / CARD).read_text())
    assert card["conditions"]["label"]["codes"] == {"a": 0, "b": 1, "c": 2}
    assert (card["solver"], card["steps"], card["nfe"], card["data"]["units"]) == ("midpoint", 3, 6, "data")
    assert card["sampler"]["inputs"][0] == {"name": "noise", "dtype": "float32", "shape": ["batch", 3]}


def test_noise_is_where_samples_start() -> None:
    flow = flow_of("mlp", {"width": 16, "depth": 2}, path=AffinePath(sigma_min=0.5))
    noise = flow.noise(4000, seed=2)
    assert torch.equal(noise[:3], flow.initial_noise.sample(noise_of(2, range(3), 3), (3,), {}))
    assert abs(float(noise.std()) - math.hypot(1, 0.5)) < 0.02
    start = flow.sample(3, seed=2, steps=2, trajectory=True).x[0]
    assert torch.equal(noise[:3], start)

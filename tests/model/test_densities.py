"""Densities of flows against closed forms, and in float32 whatever the precision of training."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from advect import load
from advect.config.presets import PRESETS
from advect.core import registry
from advect.core.errors import UserError
from advect.core.types import Category, DataSpec
from advect.data import Identity
from advect.data.transforms import PixelScale
from advect.model.flow import Flow
from advect.networks import MLP
from advect.paths import AffinePath, BrownianBridge, CondOT, GaussianMixture, Trigonometric

SHAPES = {"vector": (3,), "image": (1, 8, 8), "sequence": (4, 2)}


class Field(nn.Module):
    """A field without parameters."""

    def __init__(self, field: Any) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.field(x, t)


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The registered network of that name with random weights, and the shape of its data."""
    cls: Any = registry.get("network", name)
    shape = SHAPES[cls.takes]
    size = {"shape": shape} if "shape" in registry.parameters(cls) else {"dim": shape[0]}
    torch.manual_seed(0)
    net = cls(**size, **getattr(cls, "part_examples", ({},))[0])
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net, shape


@pytest.mark.parametrize("name", registry.choices("network"))
def test_every_network_has_the_density_of_its_float32_weights(name: str) -> None:
    net, shape = network(name)
    modality = "image" if len(shape) == 3 else "vector" if len(shape) == 1 else "sequence"
    half, full = (Flow(net, DataSpec(shape, modality, {}), Identity(), autocast=a) for a in (torch.bfloat16, None))
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    way = {"steps": 4, "solver": "euler"}
    for run in ("log_prob", "bits_per_dim", "encode", "decode"):
        assert torch.equal(getattr(half, run)(x, **way), getattr(full, run)(x, **way))
    back = half.decode(half.encode(x, steps=24), steps=24)
    assert (back - x).norm() / x.norm() < 8 * torch.finfo(torch.float32).eps  # bfloat16's would be 1e-3
    assert not torch.equal(half.sample(2, steps=2).x, full.sample(2, steps=2).x)  # these are bfloat16's


def grey_levels(place: Path, preset: str) -> str:
    """Writes data for a preset of images of 8 to 32 pixels, or of tables; its name and the flags for them."""
    rng = np.random.default_rng(0)
    if preset == "table":
        np.savetxt(place / "a.csv", rng.normal(size=(40, 3)), delimiter=",", header="a,b,c", comments="")
        return f"table --data-dir {place / 'a.csv'} --scaling standard"
    if preset == "cifar10":
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            table = rng.integers(0, 256, (3, 3073), dtype=np.uint8)
            table[:, 0] %= 10
            (place / f"{name}.bin").write_bytes(table.tobytes())
    elif preset == "fashion-mnist":
        for part in ("train", "t10k"):
            for name, array in (("images-idx3", rng.integers(0, 256, (9, 28, 28))), ("labels-idx1", np.arange(9))):
                header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
                (place / f"{part}-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    else:
        for i in range(40):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return f"{preset} --data-dir {place}"


NETWORKS = {"images": ("--image-size 16", "--image-size 8 --network dit --width 24 --depth 1")}
MIXED = [
    (name, more)
    for name, preset in PRESETS.items()
    if preset.config.training.mixed_precision
    for more in NETWORKS.get(name, ("",))
]


@pytest.mark.parametrize(("preset", "more"), MIXED)
def test_a_preset_of_mixed_precision_has_densities_of_float32(advect, tmp_path, monkeypatch, preset, more) -> None:
    """Trained in bfloat16, whatever the processor, and held against the same weights taken for those of float32."""
    way = Flow._way
    monkeypatch.setattr(Flow, "_way", lambda self, solver, steps: way(self, "euler", 2))  # for the time it takes
    size = "--max-steps 2 --batch-size 4 --sample-every 0 --num-samples 2 --num-workers 0 --half bf16 --device cpu"
    (tmp_path / "data").mkdir()
    advect("train", grey_levels(tmp_path / "data", preset), "--run-dir run", size, more)
    measure = "--metrics likelihood --likelihood-samples 2 --num-samples 2 --num-steps 1 --output"
    advect("eval run", measure, "half.json")
    half = load("run")
    assert half.autocast == torch.bfloat16
    for p in half.net.parameters():  # an untrained net predicts zero
        torch.nn.init.normal_(p, std=0.02, generator=torch.Generator().manual_seed(p.numel()))
    full = copy.copy(half)
    full.autocast = None
    x = half.sample(2, steps=2).x
    for run in ("log_prob",) if preset == "table" else ("log_prob", "bits_per_dim"):
        value, exact = (getattr(flow, run)(x, trace="hutchinson") for flow in (half, full))
        assert torch.equal(value, exact) and value.isfinite().all()
    z = half.encode(x)
    assert torch.equal(z, full.encode(x)) and torch.equal(half.decode(z), full.decode(z))
    assert not torch.equal(half.sample(2, steps=2).x, full.sample(2, steps=2).x)
    monkeypatch.setattr("advect.model.load.pick_precision", lambda *_: None)
    advect("eval run", measure, "full.json")
    told = [next(iter(json.loads(Path(f"{n}.json").read_text())["flow"].values())) for n in ("half", "full")]
    assert told[0] == told[1] and math.isfinite(told[0]["mean"])


MEAN, STD = 9.3, 1.7


def test_bits_of_whole_numbers_are_a_bound_of_their_code_length() -> None:
    """A flow of N(9.3, 1.7^2) on whole numbers from 0 to 255, which occur with the mass of their bins."""
    scale = PixelScale(0, 255, integer=True)
    unit = 2 / 255  # model units a level
    mean = torch.tensor([[MEAN * unit - 1]], dtype=torch.float64)
    law = GaussianMixture(mean, stds=STD * unit, path=AffinePath(CondOT()))
    flow = Flow(Field(law.velocity), DataSpec((1,), "vector", {}), scale)
    k = torch.arange(5, 15).float()[:, None]
    bits = flow.bits_per_dim(k.repeat(40, 1)).double().view(40, -1)  # a draw of the noise for every row
    normal = torch.distributions.Normal(torch.tensor(MEAN, dtype=torch.float64), STD)
    code = -(normal.cdf(k + 0.5) - normal.cdf(k - 0.5)).log2()[:, 0]
    expected = (0.5 * math.log(2 * math.pi * STD**2) + ((k[:, 0] - MEAN) ** 2 + 1 / 12) / (2 * STD**2)) / math.log(2)
    error = bits.std(0) / 40**0.5
    assert ((bits.mean(0) - expected).abs() < 5 * error + 2e-3).all()  # of uniform noise on the bin
    assert (bits.mean(0) > code - 3 * error - 2e-3).all() and not torch.equal(bits[0], bits[1])
    real = k + 0.25  # numbers that are not whole have a density of their own
    assert torch.equal(flow.bits_per_dim(real, seed=0), flow.bits_per_dim(real, seed=1))


@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_a_bridge_between_gaussians_has_the_density_of_its_end(sigma: float, solver: str) -> None:
    """x_t ~ N(t m, V) with V = (1 - t)^2 + t^2 s^2 + sigma^2 t (1 - t), whose velocity is m + V' / (2 V) (x - t m)."""
    m, s = 1.5, 0.6

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None].double()
        variance = (1 - t) ** 2 + t**2 * s**2 + sigma**2 * t * (1 - t)
        slope = -2 * (1 - t) + 2 * t * s**2 + sigma**2 * (1 - 2 * t)
        return (m + slope / (2 * variance) * (x - t * m)).to(x.dtype)

    flow = Flow(Field(velocity), DataSpec((1,), "vector", {}), Identity(), path=BrownianBridge(sigma))
    x = torch.linspace(-1, 4, 101)[:, None]
    exact = torch.distributions.Normal(m, s).log_prob(x)[:, 0]
    assert (flow.log_prob(x, solver=solver).exp() - exact.exp()).abs().max() < 3e-3
    assert flow.sample(4000, steps=50).x.mean() == pytest.approx(m, abs=4 * s / 4000**0.5)


def mlp_flow(conditions: dict[str, int] | None = None, **options: Any) -> Flow:
    """A flow of two columns by a small MLP of moderate weights."""
    torch.manual_seed(0)
    net = MLP(2, width=32, conditions=conditions)
    with torch.no_grad():
        net.last.weight.mul_(2)
    known = {name: Category(tuple(map(str, range(n))), (1 / n,) * n) for name, n in (conditions or {}).items()}
    return Flow(net, DataSpec((2,), "vector", known), Identity(), **options)


PATHS: dict[str, dict[str, Any]] = {
    "straight": {},
    "trigonometric": {"path": AffinePath(Trigonometric())},
    "bridge": {"path": BrownianBridge(0.5)},
}


@pytest.mark.parametrize("name", PATHS)
def test_densities_to_a_tolerance_are_those_of_many_steps(name: str) -> None:
    flow, x = mlp_flow(**PATHS[name]), torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    many = flow.log_prob(x, steps=80)
    for tolerance in (1e-2, 1e-3):
        assert (flow.log_prob(x, tolerance=tolerance) - many).abs().max() < tolerance


def test_rows_to_a_tolerance_have_their_own_conditions_whatever_the_others() -> None:
    flow, x = mlp_flow({"label": 3}), torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    x[::4] *= 8  # takes other steps
    labels = [i % 3 for i in range(30)]
    whole = flow.log_prob(x, cond={"label": labels}, tolerance=1e-3)
    torch.testing.assert_close(whole, flow.log_prob(x, cond={"label": labels}, steps=80), rtol=1e-5, atol=1e-3)
    for i in (0, 7, 12):
        one = flow.log_prob(x[i : i + 1], cond={"label": [labels[i]]}, tolerance=1e-3)
        torch.testing.assert_close(one, whole[i : i + 1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 1e-3, "steps": 20}, "tolerance is 0.001, which steps does not use; leave one of them out"),
        ({"tolerance": 1e-3, "solver": "dopri5"}, "tolerance is 0.001, which solver does not use"),
        ({"tolerance": 1e-3, "trace": "hutchinson"}, "tolerance is 0.001, which trace='hutchinson' does not use"),
        ({"tolerance": 1e-5}, "tolerance must be from 0.0001 to 1 in float32, got 1e-05; 1e-3 is usual"),
        ({"tolerance": 0.0}, "tolerance must be from 0.0001 to 1 in float32, got 0"),
        ({"tolerance": math.nan}, "tolerance must be from 0.0001 to 1 in float32, got nan"),
    ],
)
def test_tolerances_that_cannot_be_met_or_are_not_used(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mlp_flow().log_prob(torch.zeros(2, 2), **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("dim", "std"), [(1, 0.02), (1, 1e-3), (2, 1e-3), (5, 1e-3)])
def test_narrow_data_far_apart_have_densities_to_the_tolerance(dim: int, std: float, dtype: torch.dtype) -> None:
    """Fixed steps are up to 0.15 nats off, and steps that heed the state alone 2.4."""
    rng, path = torch.Generator().manual_seed(dim), AffinePath(CondOT())
    means = 1.5 * torch.randn(4, dim, generator=rng, dtype=torch.float64)
    which = torch.randint(4, (120,), generator=rng)
    x = (means[which] + std * torch.randn(120, dim, generator=rng, dtype=torch.float64)).to(dtype)
    law = GaussianMixture(means, stds=std, path=path)
    net = Field(lambda x, t: law.velocity(x, t).to(x.dtype))
    flow = Flow(net, DataSpec((dim,), "vector", {}), Identity(), path=path)
    each = torch.distributions.Normal(means, std).log_prob(x.double()[:, None]).sum(2)
    assert (flow.log_prob(x, tolerance=1e-3).double() - each.logsumexp(1) + math.log(4)).abs().max() < 1e-3


def test_a_velocity_that_turns_too_often_for_any_steps_is_said() -> None:
    turns = Field(lambda x, t: 100 * x * torch.sin(6e3 * t)[:, None])
    flow = Flow(turns, DataSpec((1,), "vector", {}), Identity())
    with pytest.raises(UserError, match="does not come past"):
        flow.log_prob(torch.linspace(-1, 1, 5)[:, None], tolerance=1e-3)

"""Densities of flows against closed forms, and in float32 whatever the precision of training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advect.core import registry
from advect.core.types import DataSpec
from advect.data import Identity
from advect.data.transforms import PixelScale
from advect.model.flow import Flow
from advect.paths import AffinePath, BrownianBridge, CondOT, GaussianMixture

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
    assert (half.decode(half.encode(x, steps=8), steps=8) - x).abs().max() < 1e-4
    assert not torch.equal(half.sample(2, steps=2).x, full.sample(2, steps=2).x)  # these are bfloat16's


def test_likelihood_of_a_u_net_of_mixed_precision(advect, tmp_path: Path) -> None:
    size = "--max-steps 2 --model-channels 8 --batch-size 8 --sample-every 0 --num-samples 4 --mixed-precision"
    advect("train digits --run-dir run", size)
    advect("eval run --metrics likelihood --likelihood-samples 2 --num-samples 2 --num-steps 1 --output a.json")
    bits = json.loads(Path("a.json").read_text())["flow"]["bits_per_dim"]
    assert bits["samples"] == 2 and math.isfinite(bits["mean"])


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

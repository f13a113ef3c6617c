"""The recurrence of a sampler against the solvers that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advect.core import registry
from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data.transforms import Identity
from advect.export.recurrence import MOST_CALLS, find_recurrence
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.paths import AffinePath
from advect.sources import noise_of

PATHS = ("cond-ot", "cosine", "vp", "polynomial", "trigonometric")


def flow_on(path: str, prediction: str = "velocity") -> Flow:
    spec = DataSpec((2,), "vector", {})
    affine = AffinePath(registry.get("path", path)())
    return Flow(nn.Identity(), spec, Identity(), path=affine, prediction=prediction)  # pyright: ignore


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "data"])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m"])
@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_a_recurrence_ends_where_the_solver_does(path: str, prediction: str, solver: str, grid: str) -> None:
    flow = flow_on(path, prediction)
    config = SamplerConfig(solver, 7, grid).resolve(flow.sampler)
    integrator = flow._integrator(config, False)
    r = find_recurrence(integrator, flow.nfe(config) or 0)
    field = lambda x, t: torch.sin(3 * x) + t[:, None]  # of no linear kind
    x0 = torch.linspace(-2, 2, 10, dtype=torch.float64).view(5, 2)
    wanted = integrator(field, x0, noise_of(0, range(5), 5))
    xs: list[Tensor] = [r.start * x0]
    us: list[Tensor] = []
    for i, t in enumerate(r.times):
        us.append(field(xs[-1], t.expand(5)))
        terms = [w * x for w, x in zip(r.inputs[i], xs[::-1], strict=False)]
        terms += [w * u for w, u in zip(r.outputs[i], us[::-1], strict=False)]
        xs.append(sum(terms, torch.zeros_like(x0)))
    torch.testing.assert_close(xs[-1], wanted, atol=1e-11, rtol=1e-11)


def test_eulers_method_keeps_one_state_and_one_output() -> None:
    flow = flow_on("cond-ot")
    config = SamplerConfig("euler", 4, "uniform")
    r = find_recurrence(flow._integrator(config, False), 4)
    assert r.inputs.shape == r.outputs.shape == (4, 1) and r.start == 1
    torch.testing.assert_close(torch.cat([r.inputs, r.outputs], 1), torch.tensor([[1.0, 0.25]] * 4).double())
    assert r.times.tolist() == [[0.0], [0.25], [0.5], [0.75]]


def test_too_many_calls_are_refused() -> None:
    flow = flow_on("cond-ot")
    config = SamplerConfig("euler", 4, "uniform")
    with pytest.raises(UserError, match=r"calls the network 2,001 times"):
        find_recurrence(flow._integrator(config, False), MOST_CALLS + 1)

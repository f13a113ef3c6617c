"""Sweeps over solvers, grids and costs."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from advect.core import registry
from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data import Identity
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig, plan_sweep
from advect.networks import MLP
from advect.paths import AffinePath, Path

OWN = SamplerConfig(solver="heun", steps=7, grid="cosine")
COST = Flow(MLP(2), DataSpec((2,), "vector", {}), Identity()).nfe


def test_a_sweep_of_nothing_is_the_flows_own_sampler() -> None:
    assert plan_sweep(OWN, COST) == [SamplerConfig("heun", 7, "cosine")]
    assert plan_sweep(OWN, COST, solvers=["euler"], steps=[3, 9]) == [
        SamplerConfig("euler", 3, "cosine"),
        SamplerConfig("euler", 9, "cosine"),
    ]


def test_each_solver_takes_the_costs_that_it_can_meet_and_an_adaptive_one_comes_once() -> None:
    ways = plan_sweep(
        OWN, COST, solvers=["euler", "midpoint", "rk4", "dopri5"], grids=["uniform", "edm"], nfes=[1, 4, 4]
    )
    assert ways == [
        *(SamplerConfig("euler", n, grid) for grid in ("uniform", "edm") for n in (1, 4)),
        *(SamplerConfig("midpoint", 2, grid) for grid in ("uniform", "edm")),
        *(SamplerConfig("rk4", 1, grid) for grid in ("uniform", "edm")),
        SamplerConfig("dopri5", None, None),
    ]


def test_the_stochastic_equation_has_its_own_solvers_steps_and_costs() -> None:
    assert plan_sweep(OWN, COST, diffusion=0.5) == [SamplerConfig("ab2", 250, "cosine", 0.5)]
    found = plan_sweep(OWN, COST, solvers=["euler-maruyama", "heun"], nfes=[7, 8], diffusion="sigma")
    # Heun's last step asks for the velocity once.
    assert [(way.solver, way.steps) for way in found] == [("euler-maruyama", 7), ("euler-maruyama", 8), ("heun", 4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solvers": ["midpont"]}, "solver 'midpont' is not known; did you mean 'midpoint'?"),
        ({"grids": ["unifrom"]}, "grid 'unifrom' is not known; did you mean 'uniform'?"),
        ({"nfes": [4], "steps": [4]}, "--nfe and --num-steps contradict each other"),
        ({"steps": [4, 0]}, "steps must be at least 1 and at most 100,000, got 4 0"),
        (
            {"solvers": ["rk4"], "nfes": [2, 3]},
            "--nfe 2 3 holds none that rk4 can meet, at 4 a step and at least 4 in all; add another",
        ),
        ({"solvers": ["dopri5"], "nfes": [2]}, "--nfe is given, but dopri5 chooses its own steps"),
        ({"solvers": ["euler-maruyama"]}, "solver 'euler-maruyama' is for the stochastic equation; give --diffusion"),
        (
            {"solvers": ["euler"], "diffusion": 1.0},
            "solver 'euler' does not take a diffusion; choose from euler-maruyama, ab2, heun",
        ),
    ],
)
def test_mistakes_are_told(options: dict, words: str) -> None:
    with pytest.raises(UserError) as told:
        plan_sweep(OWN, COST, **options)
    assert str(told.value).startswith(words)


def path_of(name: str) -> Path:
    """The registered path of that name."""
    cls = registry.get("path", name)
    part = cls(**getattr(cls, "part_examples", ({},))[0])
    return part if isinstance(part, Path) else AffinePath(part)


PATHS = {name: path_of(name) for name in registry.choices("path")}
KINDS = ("velocity", "data", "noise", "score")


class Toward(nn.Module):
    """A field that is finite everywhere; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.calls += 1
        return -0.1 * x


def samplers() -> list[SamplerConfig]:
    """Every solver on every grid, in one step and in more, and the stochastic ones."""
    found = {name: registry.get("solver", name) for name in registry.choices("solver")}
    solvers = [name for name, solver in found.items() if not (solver.adaptive or solver.two_times or solver.jumps)]
    return [
        SamplerConfig(solver, steps, grid, g)
        for grid in registry.choices("grid")
        for steps in (1, 5)
        for g, names in ((None, solvers), (0.5, registry.choices("sde-solver")))
        for solver in names
    ]


@pytest.mark.parametrize("t_eps", [1e-3, 0.05])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_promised_number_of_evaluations_is_the_counted_one(path: str, kind: str, t_eps: float) -> None:
    affine = isinstance(PATHS[path], AffinePath)
    if not affine and kind != "velocity":
        pytest.skip("other paths are trained on their velocity")
    net = Toward()
    flow = Flow(net, DataSpec((2,), "vector", {}), Identity(), path=PATHS[path], prediction=kind, t_eps=t_eps)
    for config in samplers():
        needs_affine = config.diffusion is not None or config.ode_solver.affine_only
        if needs_affine and not affine:
            continue
        net.calls = 0
        promised, samples = flow.nfe(config), flow.sample(3, **config.arguments())
        assert promised == samples.nfe == net.calls, config
    assert flow.nfe(SamplerConfig("dopri5")) is None


@pytest.mark.parametrize("path", ["cond-ot", "vp", "cosine", "bridge"])
@pytest.mark.parametrize("grid", registry.choices("grid"))
def test_a_sweep_by_evaluations_costs_what_was_asked_for(path: str, grid: str) -> None:
    flow = Flow(Toward(), DataSpec((2,), "vector", {}), Identity(), path=PATHS[path], t_eps=0.05)
    asked = [8, 9, 10, 11, 20, 50]
    ways = plan_sweep(flow.sampler, flow.nfe, solvers=["euler", "rk4"], grids=[grid], nfes=asked)
    euler = [flow.nfe(way) for way in ways if way.solver == "euler"]
    assert euler == asked
    assert {flow.nfe(way) for way in ways} <= set(asked)


def test_a_sweep_takes_the_next_number_of_evaluations_below_where_none_can_be_met() -> None:
    flow = Flow(Toward(), DataSpec((2,), "vector", {}), Identity(), path=PATHS["bridge"], t_eps=0.05)
    ways = plan_sweep(flow.sampler, flow.nfe, solvers=["midpoint"], nfes=[1, 8, 16])
    assert [flow.nfe(way) for way in ways] in ([7, 15], [8, 16])

"""Sweeps over solvers, grids and costs."""

from __future__ import annotations

import pytest

from advect.core.errors import UserError
from advect.model.sampler_config import SamplerConfig, plan_sweep

OWN = SamplerConfig(solver="heun", steps=7, grid="cosine")


def test_a_sweep_of_nothing_is_the_flows_own_sampler() -> None:
    assert plan_sweep(OWN) == [SamplerConfig("heun", 7, "cosine")]
    assert plan_sweep(OWN, solvers=["euler"], steps=[3, 9]) == [
        SamplerConfig("euler", 3, "cosine"),
        SamplerConfig("euler", 9, "cosine"),
    ]


def test_each_solver_takes_the_costs_that_it_can_meet_and_an_adaptive_one_comes_once() -> None:
    ways = plan_sweep(OWN, solvers=["euler", "midpoint", "rk4", "dopri5"], grids=["uniform", "edm"], nfes=[1, 4, 4])
    assert ways == [
        *(SamplerConfig("euler", n, grid) for grid in ("uniform", "edm") for n in (1, 4)),
        *(SamplerConfig("midpoint", 2, grid) for grid in ("uniform", "edm")),
        *(SamplerConfig("rk4", 1, grid) for grid in ("uniform", "edm")),
        SamplerConfig("dopri5", None, None),
    ]


def test_the_stochastic_equation_has_its_own_solvers_steps_and_costs() -> None:
    assert plan_sweep(OWN, diffusion=0.5) == [SamplerConfig("ab2", 250, "cosine", 0.5)]
    found = plan_sweep(OWN, solvers=["euler-maruyama", "heun"], nfes=[7, 8], diffusion="sigma")
    # Heun's last step asks for the velocity once.
    assert [(way.solver, way.steps) for way in found] == [("euler-maruyama", 7), ("euler-maruyama", 8), ("heun", 4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solvers": ["midpont"]}, "solver 'midpont' is not known; did you mean 'midpoint'?"),
        ({"grids": ["unifrom"]}, "grid 'unifrom' is not known; did you mean 'uniform'?"),
        ({"nfes": [4], "steps": [4]}, "--nfe and --num-steps contradict each other"),
        ({"steps": [4, 0]}, "--num-steps must be at least 1, got 0"),
        ({"solvers": ["rk4"], "nfes": [2, 3]}, "--nfe 2 3 holds none that rk4 can meet, at 4 a step"),
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
        plan_sweep(OWN, **options)
    assert str(told.value).startswith(words)

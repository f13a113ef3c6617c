from __future__ import annotations

import math
from itertools import pairwise

import plane_mixture as mixture
import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.registry import choices
from advect.core.types import Batch, DataSpec
from advect.data import Identity
from advect.model.flow import Flow
from advect.paths import AffinePath, BrownianBridge, CondOT, FiniteData
from advect.solvers import integrate, integrate_sde, log_prob
from advect.sources import Empirical, MatchedGaussian

N = 4000


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zero(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


# --- The marginals are those of the flow, for any g. ---


def ks(a: Tensor, b: Tensor) -> float:
    """The two-sample statistic of Kolmogorov and Smirnov, in units of sqrt(1/n + 1/m)."""
    both = torch.cat([a, b]).sort().values
    gap = torch.searchsorted(a.sort().values, both, right=True) / len(a) - torch.searchsorted(
        b.sort().values, both, right=True
    ) / len(b)
    return float(gap.abs().max()) / math.sqrt(1 / len(a) + 1 / len(b))


DIRECTIONS = [torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64) for a in (0.0, 0.8, 1.6, 2.4)]


def worst_ks(x: Tensor, t: float) -> float:
    exact = mixture.sample(4 * N, t, seed=99)
    return max(ks(x @ d, exact @ d) for d in DIRECTIONS)


def worst_moment(x: Tensor, t: float) -> float:
    """Mean and second moments against many exact samples, in standard errors."""
    features = lambda y: torch.cat([y, y.square(), y[:, :1] * y[:, 1:]], 1)
    a, b = features(x), features(mixture.sample(25 * N, t, seed=7))
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return float(((a.mean(0) - b.mean(0)) / error).abs().max())


# A statistic above 2.2 has probability 2 exp(-2 * 2.2^2) = 1.3e-4; there are 16 a diffusion.
KS, MOMENT = 2.2, 4.5

FIVE = {
    "0.5": 0.5,
    "2": 2.0,
    "sigma": "sigma",
    "ddpm": "ddpm",
    "a function": lambda t: 0.2 + 2 * torch.sin(math.pi * t).square(),
}


@pytest.mark.parametrize("g", FIVE.values(), ids=FIVE.keys())
def test_the_sde_keeps_the_marginals_of_the_flow_for_five_g(g):
    states = integrate_sde(
        mixture.velocity,
        mixture.score,
        noise(N),
        diffusion=g,
        solver="heun",
        steps=60,
        last_step="noisy",
        generator=CounterRng(1, 0, N),
        trajectory=True,
    )
    assert states.shape == (61, N, 2)
    for t in (0.25, 0.5, 0.75, 1.0):
        x = states[round(60 * t)]
        assert worst_ks(x, t) < KS
        assert worst_moment(x, t) < MOMENT
    # It is another process: the paths are not the flow's.
    flow = integrate(mixture.velocity, noise(N), steps=60)
    assert (states[-1] - flow).square().mean().sqrt() > 0.1


def test_the_statistics_see_a_sde_without_its_score():
    wrong = integrate_sde(mixture.velocity, zero, noise(N), diffusion=1.0, steps=60, generator=CounterRng(1, 0, N))
    assert worst_ks(wrong, 1.0) > 2 * KS and worst_moment(wrong, 1.0) > 2 * MOMENT


@pytest.mark.parametrize("name", choices("diffusion"))
@pytest.mark.parametrize("score", [mixture.score, None])
def test_euler_maruyama_with_every_named_diffusion(name, score):
    x = integrate_sde(
        mixture.velocity, score, noise(N), diffusion=name, steps=150, generator=torch.Generator().manual_seed(0)
    )
    assert worst_ks(x, 1.0) < 1.5 * KS  # the bias of order 1 comes in


@pytest.mark.parametrize("solver", ["euler-maruyama", "heun"])
def test_from_data_to_noise_it_keeps_the_marginals_too(solver):
    x1 = mixture.sample(N, 1.0, seed=5)
    states = integrate_sde(
        mixture.velocity,
        mixture.score,
        x1,
        t0=1.0,
        t1=0.0,
        steps=100,
        solver=solver,
        last_step="noisy",
        generator=CounterRng(3, 0, N),
        trajectory=True,
    )
    for t in (0.5, 0.0):
        assert worst_ks(states[round(100 * (1 - t))], t) < 1.2 * KS


def test_without_noise_it_is_the_flow():
    run = lambda score, solver: integrate_sde(
        mixture.velocity, score, noise(9), diffusion=0.0, solver=solver, steps=20, last_step="noisy"
    )
    for solver, same in (("euler-maruyama", "euler"), ("heun", "heun")):
        torch.testing.assert_close(
            run(mixture.score, solver), integrate(mixture.velocity, noise(9), solver=same, steps=20)
        )
    torch.testing.assert_close(
        run(None, "euler-maruyama"), integrate(mixture.velocity, noise(9), solver="euler", steps=20)
    )


@pytest.mark.parametrize("g", [0.5, 2.0, "ddpm"])
def test_from_the_velocity_alone_heun_keeps_the_marginals(g):
    states = integrate_sde(
        mixture.velocity,
        None,
        noise(N),
        diffusion=g,
        solver="heun",
        steps=120,
        generator=CounterRng(1, 0, N),
        trajectory=True,
    )
    for t in (0.25, 0.5, 0.75, 1.0):
        assert worst_ks(states[round(120 * t)], t) < KS
        assert worst_moment(states[round(120 * t)], t) < MOMENT


# --- Stiff scores. ---

ROWS = torch.tensor([[-1.0, 0.5], [0.3, 2.0], [1.5, -1.0]], dtype=torch.float64)
SIX = [0.1, 0.5, 1.0, 3.0, "ddpm", "increasing-decreasing"]


@pytest.mark.parametrize("g", SIX)
@pytest.mark.parametrize("solver", ["euler-maruyama", "heun"])
def test_no_g_explodes_on_finite_data(g, solver):
    """The score of finite data grows like 1 / sigma^2, so that explicit steps with g > 0 at t = 1 diverge."""
    law = FiniteData(ROWS)
    for steps in (1, 10, 300):
        x = integrate_sde(
            law.velocity, None, noise(500), diffusion=g, steps=steps, solver=solver, generator=CounterRng(0, 0, 500)
        )
        if steps == 1:
            continue
        distance = torch.cdist(x, ROWS).min(1)
        assert distance.values.quantile(0.98) < 1e-6  # else still between two rows at the last step
        shares = torch.bincount(distance.indices, minlength=3) / 500
        assert steps < 300 or (shares - 1 / 3).abs().max() < 0.09


def test_an_explicit_score_that_is_too_stiff_is_slowed_down_with_a_warning(caplog):
    law, warned = FiniteData(ROWS), "lowered there, which keeps the marginals"
    x = integrate_sde(law.velocity, law.score, noise(500), diffusion=1.0, steps=1000, generator=CounterRng(0, 0, 500))
    assert torch.cdist(x, ROWS).min(1).values.max() < 0.02
    assert [warned in record.message for record in caplog.records] == [True]
    integrate_sde(mixture.velocity, mixture.score, noise(9), steps=200)
    assert len(caplog.records) == 1


def test_from_data_to_noise_the_velocity_alone_does():
    x1 = mixture.sample(N, 1.0, seed=5)
    x0 = integrate_sde(
        mixture.velocity, None, x1, diffusion=1.0, t0=1.0, t1=0.0, steps=100, generator=CounterRng(3, 0, N)
    )
    assert worst_ks(x0, 0.0) < 1.2 * KS


# --- Orders, on dX = -a X dt + g(t) dW, whose solution is known along each path. ---

A = 1.5


class Paths(CounterRng):
    """Brownian paths on a fine grid, of which a solver is handed the increments over its own steps."""

    def __init__(self, fine: Tensor) -> None:
        super().__init__(0, 0, fine.shape[1])
        self.fine, self.taken, self.stride = fine, 0, 1

    def normal(self, shape, *, device=None, dtype=torch.float32):
        part = self.fine[self.taken : self.taken + self.stride]
        self.taken += self.stride
        return (part.sum(0) / math.sqrt(self.stride)).reshape(*shape)


def strong_errors(g, g_square_integral, sizes, solver="euler-maruyama"):
    """The root mean square of X_1 less the exact solution, for each number of steps, along the same paths."""
    fine, n = 1024, 4000
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(fine, n, generator=generator, dtype=torch.float64)
    errors = []
    times = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine
    # The exact noise of X_1: int exp(-A (1 - s)) g(s) dW(s), on a grid 16 times finer than the finest solved.
    exact = math.exp(-A) + ((torch.exp(-A * (1 - times)) * g(times) / math.sqrt(fine))[:, None] * z).sum(0)
    assert float((exact - math.exp(-A)).var()) == pytest.approx(g_square_integral, rel=0.1)
    for steps in sizes:
        paths = Paths(z)
        paths.stride = fine // steps
        x = integrate_sde(
            lambda x, t: -A * x,
            zero,
            torch.ones(n, 1, dtype=torch.float64),
            diffusion=g,
            solver=solver,
            steps=steps,
            last_step="noisy",
            generator=paths,
        )
        errors.append(float((x[:, 0] - exact).square().mean().sqrt()))
    return errors


def rates(errors, factor=2):
    return [math.log(a / b) / math.log(factor) for a, b in pairwise(errors)]


@pytest.mark.parametrize("solver", ["euler-maruyama", "heun"])
def test_strong_order_is_1_where_g_is_smooth(solver):
    # Euler-Maruyama's 1/2 is for noise that depends on the state; additive noise of smooth g gives 1.
    smooth = lambda t: 1 + t
    variance = float(
        torch.trapezoid(*(lambda s: (torch.exp(-2 * A * (1 - s)) * (1 + s) ** 2, s))(torch.linspace(0, 1, 999)))
    )
    errors = strong_errors(smooth, variance, (8, 16, 32, 64), solver)
    assert rates(errors) == pytest.approx([1.0] * 3, abs=0.12)


def test_strong_order_is_a_half_where_g_jumps():
    # At 1/3 the jump lies at the same share of its step for steps of 1/4, 1/16 and 1/64.
    jump = lambda t: torch.where(t < 1 / 3, 0.0, 6.0).to(t.dtype)
    variance = 36 * (1 - math.exp(-2 * A * 2 / 3)) / (2 * A)
    errors = strong_errors(jump, variance, (4, 16, 64))
    assert rates(errors, 4) == pytest.approx([0.5] * 2, abs=0.15)


class Signs(CounterRng):
    """Noise of signs, such that the 2^k rows go through all ways of k steps: expectations have no sampling error."""

    def __init__(self, k: int) -> None:
        super().__init__(0, 0, 2**k)
        self.step = 0

    def normal(self, shape, *, device=None, dtype=torch.float32):
        bit = (torch.arange(self.count) >> self.step) & 1
        self.step += 1
        return (2.0 * bit - 1).to(dtype).reshape(*shape)


@pytest.mark.parametrize(("solver", "order"), [("euler-maruyama", 1), ("heun", 2)])
def test_weak_order(solver, order):
    """E X_1 and E X_1^2 of a linear equation need only two moments of the noise, which signs have."""
    g, mean, errors = (lambda t: 1 + t), math.exp(-A), []
    s = torch.linspace(0, 1, 20001, dtype=torch.float64)
    second = mean**2 + float(torch.trapezoid(torch.exp(-2 * A * (1 - s)) * (1 + s) ** 2, s))
    for k in (4, 8, 16):
        ones = torch.ones(2**k, 1, dtype=torch.float64)
        x = integrate_sde(
            lambda x, t: -A * x, zero, ones, diffusion=g, solver=solver, steps=k, last_step="noisy", generator=Signs(k)
        )
        errors.append((abs(float(x.mean()) - mean), abs(float(x.square().mean()) - second)))
    for moment in zip(*errors, strict=True):
        assert rates(moment)[-1] == pytest.approx(order, abs=0.25)


# --- The last step. ---


def test_last_steps():
    x0, steps = noise(40), 10
    options = {"diffusion": 0.7, "steps": steps}
    run = lambda last, **more: integrate_sde(
        mixture.velocity, mixture.score, x0, last_step=last, generator=CounterRng(0, 0, 40), **options, **more
    )
    before = run("noisy", trajectory=True)[-2]
    t = torch.full((40,), 0.9, dtype=torch.float64)
    u, s = mixture.velocity(before, t), mixture.score(before, t)
    torch.testing.assert_close(run("mean"), before + 0.1 * (u + 0.7**2 / 2 * s))
    torch.testing.assert_close(run("euler"), before + 0.1 * u)
    torch.testing.assert_close(run("tweedie"), before + 0.1 * u)  # on the straight path the two are one
    rest = (run("noisy") - run("mean")) / (0.7 * math.sqrt(0.1))
    assert float(rest.std()) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("last", ["mean", "euler", "tweedie"])
@pytest.mark.parametrize("solver", ["euler-maruyama", "heun"])
def test_nothing_is_asked_at_the_end(last, solver):
    asked = []
    velocity = lambda x, t: asked.append(float(t[0])) or -x
    integrate_sde(velocity, None, noise(3), steps=4, solver=solver, last_step=last)
    assert max(asked) == 0.75


# --- Noise. ---


def test_a_rows_noise_depends_on_seed_step_and_row_alone():
    run = lambda x, rng: integrate_sde(mixture.velocity, mixture.score, x, steps=10, generator=rng)
    whole = run(noise(6), CounterRng(5, 0, 6))
    parts = [run(noise(6)[:2], CounterRng(5, 0, 2, total=6)), run(noise(6)[2:], CounterRng(5, 0, 4, start=2, total=6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    assert not torch.equal(run(noise(6), CounterRng(6, 0, 6)), whole)
    state = torch.random.get_rng_state()
    run(noise(6), torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(3, 1), (2, 1, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_are_kept_and_no_graph(shape, dtype):
    x0 = torch.ones(shape, dtype=dtype, requires_grad=True)
    x = integrate_sde(lambda x, t: -x, None, x0, steps=3, generator=CounterRng(0, 0, shape[0]))
    assert x.shape == shape and x.dtype == dtype and not x.requires_grad


# --- Mistakes. ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "euler"}, r"solver 'euler' does not take a diffusion; .*euler-maruyama"),
        ({"last_step": "maen"}, r"last_step 'maen' is not known; did you mean 'mean'\?"),
        ({"diffusion": "sigmma"}, r"diffusion 'sigmma' is not known; did you mean 'sigma'\?"),
        ({"diffusion": -1.0}, r"the diffusion g must be finite and >= 0, got -1.0 at t = 0"),
        ({"diffusion": lambda t: 1 / t}, r"must be finite and >= 0, got inf at t = 0"),
        ({"diffusion": lambda t: 1 - 2 * t}, r"must be finite and >= 0, got -0.5 at t = 0.75"),
        ({"diffusion": lambda t: torch.ones(2)}, r"one number a time, \(5,\), got \(2,\)"),
        ({"steps": 0}, "steps must be at least 1"),
        (
            {"schedule": CondOT(), "diffusion": 0.5},
            "schedule is given, but score, diffusion and last_step do not use it",
        ),
        ({"last_step": "tweedie", "t1": 0.5}, "last_step 'tweedie' predicts the data, at t = 1, but t1 is 0.5"),
    ],
)
def test_wrong_arguments(arguments, message):
    score = arguments.pop("score", mixture.score)
    with pytest.raises(UserError, match=message):
        integrate_sde(mixture.velocity, score, noise(3), **{"steps": 4, **arguments})


def test_whole_numbers_are_refused():
    x = torch.ones(2, 2, dtype=torch.int64)
    message = r"x[01] holds torch\.int64, and a flow needs real numbers; give x[01]\.float\(\)"
    for run in (
        lambda: integrate_sde(mixture.velocity, mixture.score, x),
        lambda: integrate(mixture.velocity, x),
        lambda: log_prob(mixture.velocity, x),
        lambda: AffinePath().sample(x, x, torch.rand(2)),
        lambda: Batch(x),
    ):
        with pytest.raises(UserError, match=message):
            run()


@pytest.mark.parametrize(
    "parts",
    [
        {"path": AffinePath(gaussian_source=False)},
        {"path": BrownianBridge(0.5)},
        {"source": MatchedGaussian(2.0, 1.0)},
        {"source": Empirical(torch.zeros(4, 2))},
    ],
    ids=str,
)
def test_a_flow_whose_velocity_gives_no_score_takes_no_diffusion(parts):
    flow = Flow(nn.Identity(), DataSpec((2,), "vector", {}), Identity(), **parts)
    with pytest.raises(UserError, match=r"--diffusion needs (the score|an affine path)"):
        flow.sample(2, diffusion=0.5)


@pytest.mark.parametrize(("bad", "t"), [(0.55, "0.7"), (-1.0, "0.1")])
def test_the_first_broken_time_is_named(bad, t):
    velocity = lambda x, t: torch.where(t[:, None] > bad, torch.nan, x)
    with pytest.raises(
        UserError, match=rf"'euler-maruyama' is not finite from t = {t} on.*take an earlier checkpoint"
    ):
        integrate_sde(velocity, mixture.score, noise(3), steps=10)
    with pytest.raises(UserError, match="from t = 0 on"):
        integrate_sde(mixture.velocity, mixture.score, torch.full((2, 2), torch.nan), steps=3)

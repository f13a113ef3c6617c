from __future__ import annotations

import math

import plane_mixture as mixture
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.solvers import bits_per_dim, dequantise, elementwise_log_det, integrate, log_prob
from advect.solvers.likelihood import (
    ExactDivergence,
    HutchinsonDivergence,
    draw_probes,
)

ONE = torch.ones((), dtype=torch.float64)


def exact_log_prob(x: Tensor) -> Tensor:
    return mixture.log_density(x, torch.ones(len(x), dtype=torch.float64))


def gaussian_flow(x: Tensor, t: Tensor) -> Tensor:
    """Carries N(0, I) to N(2, 1/4 I)."""
    t = t.reshape(-1, *(1 for _ in x.shape[1:]))
    return 2 + (t / 4 - (1 - t)) / (t**2 / 4 + (1 - t) ** 2) * (x - 2 * t)


def small_net(width: int = 3) -> nn.Module:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(width + 1, 16), nn.Tanh(), nn.Linear(16, width))

        def forward(self, x, t):
            return self.layers(torch.cat([x, t[:, None]], 1))

    return Net().double()


class Attention(nn.Module):
    """One layer of fused attention, whose CPU kernel has no forward derivative."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(4, 12).double()

    def forward(self, x, t):
        q, k, v = self.qkv(x + t[:, None, None]).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def jacobian_trace(net, x, t):
    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda y, i=i: net(y[None], t[i : i + 1])[0], x[i])
            .reshape(x[i].numel(), -1)
            .trace()
            for i in range(len(x))
        ]
    )


# --- The density. ---


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": 1e-7, "atol": 1e-7},
        {"solver": "rk4", "steps": 60},
        {"solver": "rk4", "steps": 40, "grid": "cosine"},
    ],
    ids=str,
)
def test_the_density_of_a_mixture_to_a_ten_thousandth(options):
    x1 = torch.cat([mixture.sample(40, 1.0, seed=0), torch.tensor([[0.0, 0.0], [2.5, -2.0]], dtype=torch.float64)])
    torch.testing.assert_close(log_prob(mixture.velocity, x1, **options), exact_log_prob(x1), rtol=0, atol=1e-4)


def test_the_density_of_a_mixture_at_the_default_tolerance():
    x1 = mixture.sample(40, 1.0, seed=0)
    torch.testing.assert_close(log_prob(mixture.velocity, x1), exact_log_prob(x1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(5, 1), (4, 3), (3, 2, 3, 2)])
@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_any_shape_and_chunk(shape, chunk):
    x1 = 2 + torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.distributions.Normal(2 * ONE, 0.5 * ONE).log_prob(x1).flatten(1).sum(1)
    found = log_prob(gaussian_flow, x1, chunk=chunk)
    assert found.shape == shape[:1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_density_integrates_to_one():
    side = torch.linspace(-6, 6, 61, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    mass = log_prob(mixture.velocity, points, rtol=1e-4, atol=1e-4).exp().sum() * float(side[1] - side[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-3)


def test_quadrature_over_the_states_is_exact_with_a_quarter_of_the_traces():
    x = torch.linspace(0, 4, 9, dtype=torch.float64)[:, None].expand(-1, 3)
    exact, traced = torch.distributions.Normal(2 * ONE, 0.5 * ONE).log_prob(x).sum(1), []

    def error(steps, **nodes):
        return (log_prob(gaussian_flow, x, solver="rk4", steps=steps, **nodes) - exact).abs().max().item()

    for steps in (10, 20):
        assert error(steps, nodes=steps) < error(steps)
    assert error(40, nodes=40) < 1e-6
    assert error(40, nodes=2) > 1e-3  # two nodes are too few
    net = small_net()
    counted = lambda x, t: (traced.append(x.requires_grad), net(x, t))[1]
    z = torch.randn(5, 3, dtype=torch.float64)
    few = log_prob(counted, z, solver="midpoint", steps=30, nodes=7)
    assert sum(traced) == 7
    torch.testing.assert_close(few, log_prob(net, z, solver="midpoint", steps=300), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="nodes is 5, and must be at least 1 for a solver of fixed steps"):
        log_prob(net, z, solver="dopri5", nodes=5)


def test_encoding_changes_volume_by_its_own_jacobian():
    net, x1 = small_net(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    encode = lambda x: integrate_with_graph(net, x, steps=40)
    volume = [torch.autograd.functional.jacobian(lambda y: encode(y[None])[0], row).slogdet()[1] for row in x1]
    x0 = encode(x1)
    at_source = -0.5 * (x0.square().sum(1) + 3 * math.log(2 * math.pi))
    found = log_prob(net, x1, solver="rk4", steps=40)
    torch.testing.assert_close(found, (at_source + torch.stack(volume)).detach(), rtol=0, atol=1e-7)


def integrate_with_graph(net, x, steps):
    from advect.solvers import RK4

    *_, end = RK4().iterate(net, x, torch.linspace(1, 0, steps + 1).tolist())
    return end


def test_another_source_and_the_preprocessings_jacobian():
    x1 = mixture.sample(10, 1.0, seed=2)
    plain = log_prob(mixture.velocity, x1)
    halves = torch.linspace(-1, 1, 10, dtype=torch.float64)
    torch.testing.assert_close(log_prob(mixture.velocity, x1, log_det=halves), plain + halves)
    flat = log_prob(mixture.velocity, x1, source=lambda x0: torch.zeros(len(x0), dtype=torch.float64))
    x0 = integrate(mixture.velocity, x1, solver="dopri5", t0=1.0, t1=0.0)
    normal = -0.5 * (x0.square().sum(1) + 2 * math.log(2 * math.pi))
    torch.testing.assert_close(plain - flat, normal, rtol=0, atol=1e-4)


def test_the_density_of_the_data_before_a_scaling():
    # y = (x + 3) / 4 of a standard normal x, under the flow that stands still: density of N(3/4... ) by hand.
    y = torch.tensor([[0.0], [0.5], [0.75]], dtype=torch.float64)
    to_model = lambda y: 4 * y - 3
    found = log_prob(lambda x, t: 0 * x, to_model(y), log_det=elementwise_log_det(to_model, y))
    expected = torch.distributions.Normal(0.75 * ONE, 0.25 * ONE).log_prob(y)[:, 0]
    torch.testing.assert_close(found, expected)
    squared = elementwise_log_det(lambda y: y.square(), torch.tensor([[1.0, 2.0], [0.5, 3.0]]))
    torch.testing.assert_close(squared, torch.tensor([math.log(2 * 4), math.log(1 * 6)]))
    with pytest.raises(UserError, match="a derivative that is 0 or not finite"):
        elementwise_log_det(lambda y: y.clamp(max=0.0), torch.ones(2, 2))


# --- The trace. ---


@pytest.mark.parametrize("net", [small_net(4), Attention()], ids=["mlp", "attention"])
@pytest.mark.parametrize("graph", [False, True])
def test_the_trace_is_that_of_the_jacobian(net, graph):
    shape = (3, 5, 4) if isinstance(net, Attention) else (3, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.rand(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, trace = ExactDivergence(net, 7, create_graph=graph)(x, t)
    torch.testing.assert_close(u, net(x, t))
    torch.testing.assert_close(trace, jacobian_trace(net, x, t))
    assert trace.requires_grad == graph


def test_a_velocity_without_gradient_in_x_is_refused_unless_it_is_the_same_everywhere():
    x = torch.randn(4, 2)
    still = log_prob(lambda x, t: torch.ones_like(x), x, solver="euler", steps=2)
    torch.testing.assert_close(still, log_prob(lambda x, t: 0 * x, x - 1, solver="euler", steps=2))
    other = torch.ones(2, requires_grad=True)
    torch.testing.assert_close(log_prob(lambda x, t: other.expand(4, 2), x, solver="euler", steps=2), still)
    with pytest.raises(
        UserError, match="no gradient in x, as densities and posteriors need; compute it without torch"
    ):
        log_prob(torch.no_grad()(lambda x, t: -x), x, solver="euler", steps=2)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased(noise):
    net, n = small_net(), 20_000
    x = torch.tensor([[0.3, -0.5, 1.0]], dtype=torch.float64).expand(n, 3)
    t = torch.full((n,), 0.4, dtype=torch.float64)
    net.requires_grad_(False)
    estimate = HutchinsonDivergence(net, draw_probes(x, 1, noise, CounterRng(0, 0, n)))(x, t)[1]
    exact = float(jacobian_trace(net, x[:1], t[:1]))
    assert float(estimate.std()) > 1e-3
    assert abs(float(estimate.mean()) - exact) < 4 * float(estimate.std()) / math.sqrt(n)


def test_probes_are_what_they_are_called():
    x = torch.zeros(2000, 3, 2)
    for noise in ("rademacher", "gaussian"):
        v = draw_probes(x, 2, noise, CounterRng(0, 0, 2000))
        assert v.shape == (2, 2000, 3, 2)
        second = (v.flatten(2)[..., None] * v.flatten(2)[..., None, :]).mean((0, 1))
        torch.testing.assert_close(second, torch.eye(6), rtol=0, atol=0.1)
    assert set(draw_probes(x, 1, "rademacher").unique().tolist()) == {-1.0, 1.0}


def test_signs_are_exact_for_a_diagonal_jacobian_and_better_than_gaussians():
    x1 = 2 + torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = log_prob(gaussian_flow, x1)
    signs = log_prob(gaussian_flow, x1, trace="hutchinson", generator=CounterRng(0, 0, 5))
    torch.testing.assert_close(signs, exact, rtol=0, atol=1e-6)
    spread = [
        (
            log_prob(gaussian_flow, x1, trace="hutchinson", noise="gaussian", probes=k, generator=CounterRng(0, 0, 5))
            - exact
        )
        .square()
        .mean()
        for k in (1, 100)
    ]
    assert spread[1] < spread[0] / 10


def test_hutchinsons_density_is_unbiased_at_a_given_solution():
    x1 = mixture.sample(1, 1.0, seed=3).expand(3000, 2)
    options = {"solver": "rk4", "steps": 12}
    estimate = log_prob(mixture.velocity, x1, trace="hutchinson", generator=CounterRng(0, 0, 3000), **options)
    exact = float(log_prob(mixture.velocity, x1[:1], **options))
    assert abs(float(estimate.mean()) - exact) < 4 * float(estimate.std()) / math.sqrt(3000) + 1e-9


def test_a_rows_probes_depend_on_seed_and_row_alone():
    x1 = mixture.sample(4, 1.0, seed=3)
    run = lambda x, rng: log_prob(mixture.velocity, x, trace="hutchinson", solver="midpoint", steps=5, generator=rng)
    parts = [run(x1[:1], CounterRng(1, 0, 1, total=4)), run(x1[1:], CounterRng(1, 0, 3, start=1, total=4))]
    torch.testing.assert_close(torch.cat(parts), run(x1, CounterRng(1, 0, 4)))


# --- Gradients. ---


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize(
    "options", [{"solver": "midpoint", "steps": 6}, {"solver": "dopri5"}], ids=["midpoint", "dopri5"]
)
def test_gradients_in_parameters_and_data(trace, options):
    net, x1 = small_net(), torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x1.requires_grad_()
    run = lambda graph: log_prob(
        net,
        x1,
        trace=trace,
        generator=CounterRng(0, 0, 3) if trace == "hutchinson" else None,
        create_graph=graph,
        **options,
    )
    assert not run(False).requires_grad
    weight = net.layers[0].weight
    by_weight, by_data = torch.autograd.grad(run(True).sum(), (weight, x1))
    for tensor, gradient, place in ((weight, by_weight, (2, 1)), (x1, by_data, (1, 0))):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                tensor[place] += shift
                values.append(run(False).sum())
                tensor[place] -= shift
        difference = float(values[0] - values[1]) / 2e-5
        assert float(gradient[place]) == pytest.approx(difference, rel=1e-3, abs=1e-6)


def test_the_gradient_in_the_data_is_the_score():
    x1 = mixture.sample(10, 1.0, seed=4).requires_grad_()
    found = log_prob(mixture.velocity, x1, solver="rk4", steps=40, create_graph=True)
    (gradient,) = torch.autograd.grad(found.sum(), x1)
    exact = mixture.score(x1.detach(), torch.ones(10, dtype=torch.float64))
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-3)


# --- Bits per dimension. ---


def test_bits_of_uniform_bytes_are_eight():
    # Uniform on [0, 256): log density -log 256 an element, in bytes and, with its bin, in bytes over 255.
    nats = torch.full((3,), -12 * math.log(256))
    torch.testing.assert_close(bits_per_dim(nats, 12), torch.full((3,), 8.0))
    scaled = nats + 12 * math.log(255)
    torch.testing.assert_close(bits_per_dim(scaled, 12, bin_width=1 / 255), torch.full((3,), 8.0))


def test_dequantised_numbers_stay_in_their_bins():
    x = torch.arange(12).reshape(3, 2, 2)
    y = dequantise(x, generator=CounterRng(0, 0, 3))
    assert y.dtype == torch.float32 and torch.equal(y.floor().long(), x) and not torch.equal(y, x.float())
    z = dequantise(x / 255, bin_width=1 / 255, generator=CounterRng(0, 0, 3))
    torch.testing.assert_close(z * 255, y, rtol=1e-5, atol=1e-5)


# --- Mistakes. ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trace": "exakt"}, r"trace 'exakt' is not known; did you mean 'exact'\?"),
        ({"probes": 2}, "probes is given, but trace 'exact' does not use it; leave it out"),
        ({"noise": "gaussian"}, "noise is given, but trace 'exact' does not use it"),
        ({"generator": CounterRng(0, 0, 2)}, "generator is given, but trace 'exact' does not use it"),
        ({"trace": "hutchinson", "chunk": 4}, "chunk is given, but trace 'hutchinson' does not use it"),
        ({"trace": "hutchinson", "noise": "gauss"}, r"noise 'gauss' is not known; did you mean 'gaussian'\?"),
        ({"trace": "hutchinson", "probes": 0}, "probes must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"solver": "dpmpp2m"}, "solver 'dpmpp2m' cannot integrate a divergence; take 'dopri5' or 'midpoint'"),
        ({"solver": "dopri"}, r"solver 'dopri' is not known; did you mean 'dopri5'\?"),
        ({"steps": 10}, "steps is 10, but solver 'dopri5' chooses its own steps"),
        ({"solver": "rk4", "rtol": 1e-3}, "solver 'rk4' does not use rtol"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        log_prob(mixture.velocity, mixture.sample(2, 1.0, seed=0), **arguments)


def test_a_velocity_that_breaks_is_found_where_it_does():
    broken = lambda x, t: torch.where(t[:, None] < 0.55, torch.nan, x)
    with pytest.raises(UserError, match=r"not finite from t = 0\.4 on"):
        log_prob(broken, mixture.sample(2, 1.0, seed=0), solver="euler", steps=10)


@pytest.mark.parametrize(
    "call", [lambda: bits_per_dim(torch.zeros(1), 0), lambda: dequantise(torch.zeros(1), bin_width=0.0)]
)
def test_wrong_numbers(call):
    with pytest.raises(UserError, match=r"dims must be at least 1|bin_width must be finite and > 0"):
        call()


def test_attention_of_pytorch_has_gradients_of_densities() -> None:
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    velocity = lambda x, t: attention(x, x, x, need_weights=False)[0]
    value = log_prob(velocity, x, solver="euler", steps=2, create_graph=True)
    value.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())

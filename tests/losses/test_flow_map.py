"""Losses of flow maps: their fixed points are the maps of the flow, known in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from advect.config.build import build_network
from advect.config.config import network
from advect.core import registry
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import NULL, Batch, Conditions, DataSpec
from advect.losses import Consistency, ImprovedMeanFlow, Lagrangian, MeanFlow, Progressive, Shortcut
from advect.metrics import energy_distance
from advect.paths import BrownianBridge
from advect.solvers import integrate
from advect.times import Importance

FEW = [name for name in registry.choices("loss") if registry.get("loss", name).learns_steps]
MEAN, STD = torch.tensor([1.0, -0.5], dtype=torch.float64), torch.tensor([0.3, 2.0], dtype=torch.float64)


def moments(t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, 2) of x_t on the straight path to N(MEAN, STD^2)."""
    t = t[:, None].double()
    return t * MEAN, ((1 - t) ** 2 + (t * STD) ** 2).sqrt()


def velocity(x: Tensor, t: Tensor) -> Tensor:
    mean, std = moments(t)
    at = t[:, None].double()
    return MEAN + (x - mean) * (at * STD**2 - (1 - at)) / std**2


def exact(x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
    """Average velocity (B, 2) from t[:, 0] to t[:, 1]: X = m_e + (sd_e / sd_s) (x - m_s)."""
    start, end = (t, t) if t.ndim == 1 else t.unbind(1)
    (m_s, sd_s), (m_e, sd_e) = moments(start), moments(end)
    length = (end - start)[:, None].double()
    average = (m_e + sd_e / sd_s * (x - m_s) - x) / torch.where(length > 0, length, 1.0)
    return torch.where(length > 0, average, velocity(x, start))


def batch(n: int = 400) -> Batch:
    x1 = MEAN + STD * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(x1)


def drawn(loss: Any, n: int = 400, seed: int = 1) -> Any:
    """A path sample of exact velocities, whose steps are not so short that differences lose digits."""
    sample, _ = loss.sample(batch(n), CounterRng(seed, 0, n))
    t = sample.t.double()
    t = torch.where((t[:, 1:] - t[:, :1]).abs() < 1e-3, t[:, :1], t)
    return replace(sample, t=t, u_t=velocity(sample.x_t, t[:, 0]))


@pytest.mark.parametrize("name", FEW)
def test_the_exact_map_is_its_own_target(name: str) -> None:
    loss = registry.get("loss", name)(diagonal=0.25)
    sample = drawn(loss)
    far = sample.t[:, 1] > sample.t[:, 0]
    assert 250 < far.sum() < 320 and bool((~far).any())
    target = loss.aim(exact, sample, None).u_t
    error = (target[far] - exact(sample.x_t[far], sample.t[far])).abs().max()
    assert error < (0.1 if name == "shortcut" else 1e-9)  # its shortest steps are two of Euler's
    torch.testing.assert_close(target[~far], sample.u_t[~far])
    output = torch.where(far[:, None], exact(sample.x_t, sample.t), sample.u_t)
    assert loss.compare(output, loss.aim(exact, sample, None)).max() < (4e-3 if name == "shortcut" else 1e-12)


@pytest.mark.parametrize("name", FEW)
def test_another_map_is_not(name: str) -> None:
    loss = registry.get("loss", name)(diagonal=0.0)
    wrong = lambda x, t, cond=None: 1.5 * exact(x, t, cond)
    sample = drawn(loss)
    assert loss.compare(wrong(sample.x_t, sample.t), loss.aim(wrong, sample, None)).mean() > 1e-3


def test_the_noise_of_a_mean_flows_target_has_mean_zero() -> None:
    """It is linear in u_t, whose mean over x_t is the velocity."""
    loss = MeanFlow(diagonal=0.0)
    sample = drawn(loss)
    up, down, middle = (
        loss.aim(exact, replace(sample, u_t=sample.u_t + shift), None).u_t for shift in (1.0, -1.0, 0.0)
    )
    torch.testing.assert_close((up + down) / 2, middle)
    assert (up - down).abs().mean() > 1


def test_improved_mean_flow_has_less_noise() -> None:
    conditional, _ = MeanFlow(diagonal=0.0).sample(batch(), CounterRng(1, 0, 400))
    conditional = replace(conditional, t=conditional.t.double())
    errors = [
        (loss.aim(exact, conditional, None).u_t - exact(conditional.x_t, conditional.t)).square().mean()
        for loss in (MeanFlow(diagonal=0.0), ImprovedMeanFlow(diagonal=0.0))
    ]
    assert errors[1] < 0.8 * errors[0]


def test_shares_and_orders_of_times() -> None:
    for loss in (MeanFlow(diagonal=0.75), Lagrangian(diagonal=0.5), Shortcut(finest=8), Consistency()):
        t = loss.draw_times(4000, CounterRng(2, 0, 4000), torch.device("cpu"))
        far = t[:, 1] > t[:, 0]
        assert int(far.sum()) == round((1 - loss.diagonal) * 4000)
        assert bool((t >= 0).all() and (t <= 1).all())
        if isinstance(loss, Shortcut):
            counts = 1 / (t[far, 1] - t[far, 0])
            assert sorted({round(c) for c in counts.tolist()}) == [1, 2, 4, 8]
            torch.testing.assert_close(t[far, 0] * counts, (t[far, 0] * counts).round())
        if isinstance(loss, Consistency):
            assert bool((t[far, 1] == 1).all())


@pytest.mark.parametrize(("name", "steps"), [("lagrangian", 300), ("shortcut", 400), ("improved-mean-flow", 300)])
def test_a_trained_network_draws_two_modes_in_one_step(name: str, steps: int) -> None:
    def data(n: int, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        sign = torch.randint(0, 2, (n, 1), generator=g) * 2.0 - 1
        return sign * torch.tensor([[1.5, 0.0]]) + 0.3 * torch.randn(n, 2, generator=g)

    loss = registry.get("loss", name)(diagonal=0.5)
    net = build_network(network("mlp", width=64, depth=4), DataSpec((2,), "vector", {}), two_times=True)
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        optimizer.zero_grad()
        loss(net, Batch(data(256, step)), CounterRng(step, 0, 256)).mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        one = integrate(net, z, solver="flow-map", steps=1)
        euler = integrate(net, z, solver="euler", steps=1)
    reference = data(2000, 10**6)
    assert energy_distance(one, reference) < 0.06 < 0.3 < energy_distance(euler, reference)


IMAGE_NETWORKS = {
    "unet": {"model_channels": 16, "channel_mult": (1, 2), "attention_resolutions": (), "num_res_blocks": 1},
    "dit": {"width": 64, "depth": 2, "heads": 2, "patch_size": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean-flow", "improved-mean-flow", "eulerian", "lagrangian", "consistency"])
@pytest.mark.parametrize("kind", IMAGE_NETWORKS)
def test_image_networks_with_smooth_times_learn_digits_in_one_step(kind: str, name: str) -> None:
    """Of sines of 1000 t the losses with derivatives in time went above 10 within 200 steps."""
    x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    config = network(kind, **IMAGE_NETWORKS[kind], dropout=0.0, time_embedding="smooth")
    net = build_network(config, DataSpec((1, 8, 8), "image", {}), two_times=True)
    loss, steps, losses = registry.get("loss", name)(), 100, []
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    z = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    far = lambda: energy_distance(integrate(net, z, solver="flow-map", steps=1).flatten(1), x[1200:].flatten(1))
    with torch.no_grad():
        before = far()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        rows = torch.randint(1200, (64,), generator=torch.Generator().manual_seed(step))
        value = loss(net, Batch(x[rows]), CounterRng(step, 0, 64)).mean()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(value.item())
    assert max(losses) < 3
    if name != "consistency":  # whose errors are normalised
        assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    with torch.no_grad():
        assert far() < (0.7 if name == "consistency" else 0.5) * before


def test_built_in_guidance_moves_conditional_targets_away_from_the_unconditional_velocity() -> None:
    def net(x: Tensor, t: Tensor, cond: Conditions | None) -> Tensor:
        assert cond is not None
        return torch.where((cond["label"] == NULL)[:, None], 7.0, 100.0).expand_as(x).to(x.dtype)

    loss = MeanFlow(diagonal=0.999, guided=3.0, cond_dropout=0.5)
    sample, _ = loss.sample(batch(4), CounterRng(1, 0, 4))
    sample = replace(sample, t=sample.t[:, :1].expand(-1, 2))
    target = loss.aim(net, sample, {"label": torch.tensor([0, NULL, 1, 2])}).u_t
    labelled = torch.tensor([0, 2, 3])
    torch.testing.assert_close(target[labelled], 7.0 + 3 * (sample.u_t[labelled] - 7.0))
    torch.testing.assert_close(target[1], sample.u_t[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prediction": "data"}, "mean-flow learns average velocities, got prediction 'data'"),
        ({"path": BrownianBridge(0.5)}, "needs a path with a finite velocity at both ends"),
        ({"times": Importance()}, "draws pairs of times"),
        ({"guided": 2.0}, "no sample is trained without its conditions"),
    ],
)
def test_what_has_no_flow_map_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MeanFlow(**arguments)


def test_a_network_of_one_time_is_told_how_to_take_two() -> None:
    net = build_network(network("mlp", width=8), DataSpec((2,), "vector", {}))
    with pytest.raises(UserError, match=r"takes one time a sample, got t of shape \(2, 2\), .*TwoTimes"):
        MeanFlow()(net, Batch(torch.randn(8, 2)), CounterRng(0, 0, 8))


def test_adaptive_weights_bound_the_loss_and_leave_its_zero() -> None:
    loss = Progressive(adaptive=1.0, diagonal=0.0)
    sample = drawn(loss)
    aimed = loss.aim(exact, sample, None)
    assert loss.compare(aimed.u_t + 1000.0, aimed).max() <= 1.0
    assert loss.compare(aimed.u_t, aimed).max() == 0

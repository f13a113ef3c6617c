"""Every optimiser and learning-rate schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advect.core import registry
from advect.training import LearningRate, Optimizer, RateSchedule, hidden_matrices, named_params

OPTIMIZERS, SCHEDULES = registry.choices("optimizer"), registry.choices("lr-schedule")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def optimizer_of(name: str, net: nn.Module) -> Optimizer:
    given = {"params": named_params(net), "hidden": hidden_matrices(net), "weight_decay": 0.01}
    cls = registry.get("optimizer", name)
    return cls(**{key: value for key, value in given.items() if key in registry.parameters(cls)})


def train(net: nn.Module, optimizer: Optimizer, steps: int, bad: Tensor | None = None) -> float:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    loss = torch.zeros(())
    for _ in range(steps):
        loss = (net(x) - x.flip(1)).square().mean()
        loss.backward()
        optimizer.step(1e-2, bad)
    return loss.item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_lowers_a_loss_and_drops_the_gradients(name: str) -> None:
    net = network()
    optimizer = optimizer_of(name, net)
    assert train(net, optimizer, 100) < 0.5 * train(network(), optimizer, 1)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_step_changes_nothing(name: str) -> None:
    net = network()
    train(net, optimizer_of(name, net), 3, bad=torch.ones(()))
    for after, before in zip(net.parameters(), network().parameters(), strict=True):
        assert torch.equal(after, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_state_goes_on_bit_for_bit(name: str) -> None:
    nets = network(), network()
    first, second = (optimizer_of(name, net) for net in nets)
    train(nets[0], first, 5)
    nets[1].load_state_dict(nets[0].state_dict())
    second.load({key: value.clone() for key, value in first.tensors().items()}, 5)
    assert train(nets[0], first, 5) == train(nets[1], second, 5)
    for key, value in first.tensors().items():
        assert torch.equal(second.tensors()[key], value), key


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_starts_at_the_peak_and_stays_within_it(name: str) -> None:
    schedule: RateSchedule = registry.get("lr-schedule", name)()
    rate = LearningRate(peak=0.3, warmup=10, total=110, schedule=schedule)
    assert rate(10) == pytest.approx(0.3)
    assert all(0 <= rate(step) <= 0.3 for step in range(200))
    longer = LearningRate(peak=0.3, warmup=10, total=210, schedule=schedule)
    assert schedule.by_length or [rate(step) for step in range(200)] == [longer(step) for step in range(200)]

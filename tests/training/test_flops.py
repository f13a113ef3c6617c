"""The count of a step's arithmetic, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advect.core.device import device_peak, peak_flops
from advect.networks import MLP
from advect.training.state import on_meta
from advect.training.step import step_flops


def test_of_an_mlp() -> None:
    net, batch = MLP(3, width=16, depth=4, time_features=1), 10
    layers = [(3 + 1 + 2, 16), (16, 16), (16, 16), (16, 3)]
    products = [2 * batch * n_in * n_out for n_in, n_out in layers]
    expected = 3 * sum(products) - products[0]  # no gradient for the data
    assert step_flops(on_meta(net), torch.zeros(batch, 3), torch.zeros(batch)) == expected
    assert all(p.device.type == "cpu" and p.grad is None for p in net.parameters())


class Convolutions(nn.Module):
    """Two convolutions, the second with stride 2, and with it the first computed again in the backward."""

    def __init__(self, grad_checkpointing: bool = False) -> None:
        super().__init__()
        self.grad_checkpointing = grad_checkpointing
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2, padding=1)

    def forward(self, x_t, t, cond=None):
        if self.grad_checkpointing:
            return self.second(torch.utils.checkpoint.checkpoint(self.first, x_t, use_reentrant=False))
        return self.second(self.first(x_t))


@pytest.mark.parametrize("again", [False, True])
def test_of_convolutions_with_and_without_computing_them_again(again: bool) -> None:
    batch = 5
    first, second = 2 * batch * 12 * 12 * 9 * 3 * 8, 2 * batch * 6 * 6 * 9 * 8 * 4
    net = Convolutions(again)
    assert step_flops(on_meta(net), torch.zeros(batch, 3, 12, 12), torch.zeros(batch)) == 2 * first + 3 * second
    assert net.grad_checkpointing == again


class Looks(nn.Module):
    def forward(self, x_t, t, cond=None):
        return x_t if x_t.sum() > 0 else -x_t


def test_a_network_that_looks_at_values_has_no_count() -> None:
    assert step_flops(on_meta(Looks()), torch.zeros(2, 3), torch.zeros(2)) is None


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H200", torch.bfloat16, 989.5),
        ("NVIDIA H100 80GB HBM3", torch.float16, 989.5),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756.0),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312.0),
        ("NVIDIA A10G", torch.bfloat16, 70.0),
        ("NVIDIA L4", torch.bfloat16, 121.0),
        ("NVIDIA L40S", torch.bfloat16, 362.0),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2),
        ("Tesla V100-SXM2-16GB", torch.float16, 125.0),
        ("Tesla T4", torch.bfloat16, None),
        ("NVIDIA H200", torch.float32, None),
        ("Some new device", torch.bfloat16, None),
    ],
)
def test_peaks_are_those_of_the_device_named(name: str, dtype: torch.dtype, tera: float | None) -> None:
    assert peak_flops(name, dtype) == (None if tera is None else tera * 1e12)


def test_a_cpu_has_no_known_peak() -> None:
    assert device_peak(torch.device("cpu"), torch.bfloat16) is None

"""GELU in bfloat16 on a CPU is PyTorch's to the rounding of bfloat16, derivative and all."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from advect.networks.layers import tanh_gelu


def _both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, true = tanh_gelu(leaf), F.gelu(exact, approximate="tanh")
    y.sum().backward()
    true.sum().backward()
    assert leaf.grad is not None and exact.grad is not None
    return y.detach(), true.detach(), leaf.grad, exact.grad


def test_every_bfloat16_gives_the_nearest_value_and_slope() -> None:
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    # more than one chunk
    x = codes[codes.isfinite() & (codes.abs() < 1e4)].repeat(2 * torch.get_num_threads())
    y, true, slope, true_slope = _both(x)
    # half a unit of eight bits, and float32's own rounding where 1 - s or 1 + tanh cancels
    torch.testing.assert_close(y.double(), true, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(slope.double(), true_slope, rtol=2**-8, atol=2e-6)


def test_other_types_and_evaluation_are_pytorchs_own() -> None:
    x = torch.linspace(-4, 4, 101)
    assert tanh_gelu(x.requires_grad_()).equal(F.gelu(x, approximate="tanh"))
    half = x.detach().bfloat16()
    assert tanh_gelu(half).equal(F.gelu(half, approximate="tanh"))
    _, slope = torch.func.jvp(tanh_gelu, (half,), (torch.ones_like(half),))
    assert slope[50] == 0.5


def test_a_gradient_in_another_layout_is_taken() -> None:
    x = torch.randn(6, 4, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    leaf = x.requires_grad_()
    weight = torch.arange(24.0).view(4, 6).t().bfloat16()
    (tanh_gelu(leaf) * weight).sum().backward()
    assert leaf.grad is not None
    (ones,) = torch.autograd.grad(tanh_gelu(leaf).sum(), leaf)
    torch.testing.assert_close(leaf.grad, weight * ones)

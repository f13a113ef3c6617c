from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.types import Code, DataSpec
from advect.losses import PosteriorHead
from advect.networks import MLP
from advect.networks.evidence import WithEvidence
from advect.paths import AffinePath, CondOT, Trigonometric
from product_mixture import CODES, SIZES, shares


class Zero(nn.Module):
    """A network of output 0 that keeps what it sees."""

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        self.seen = x
        return torch.zeros_like(x)


def codes_of(size: int) -> Tensor:
    """Codes of a category (size, elements)."""
    hot = 2 * torch.eye(size, dtype=torch.float64) - 1
    return hot[:, 1:] if size == 2 else hot


@pytest.mark.parametrize("schedule", [CondOT(), Trigonometric()])
def test_a_network_of_output_0_has_the_posterior_of_each_category_by_its_own_elements(schedule):
    path, net = AffinePath(schedule), Zero()
    t = torch.linspace(0.02, 0.95, 50, dtype=torch.float64)
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = PosteriorHead(CODES, path).mean(WithEvidence(net, CODES, path)(x, t), x, t)
    alpha, sigma = path.coefficients(t)[:2]
    for code, size, p in zip(CODES, SIZES, shares(), strict=True):
        own, every = x[:, code.start : code.start + code.size], codes_of(size)
        far = (own[:, None] - alpha[:, None, None] * every).square().sum(2) / (2 * sigma[:, None].square())
        expected = (p.log() - far).softmax(1) @ every
        assert torch.allclose(mean[:, code.start : code.start + code.size], expected, atol=1e-6)
        assert torch.allclose(net.seen[:, code.start : code.start + code.size], expected, atol=1e-6)


def test_it_is_finite_at_both_ends_and_passes_numbers_on():
    codes, net = (Code(1, (0.2, 0.3, 0.5)), Code(4, (0.25,))), Zero()
    made = WithEvidence(net, codes, AffinePath())
    x = 3 * torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    for time in (0.0, 1.0):
        output = made(x, torch.full((6,), time))
        assert bool(torch.isfinite(output).all()) and net.seen.abs()[:, 1:5].max() <= 1
        assert torch.equal(net.seen[:, [0, 5, 6]], x[:, [0, 5, 6]]) and not output[:, [0, 5, 6]].any()
    at_0 = made(x, torch.zeros(6))
    assert torch.allclose(at_0[:, 1:4].softmax(1), torch.tensor([0.2, 0.3, 0.5]).expand(6, 3))
    assert torch.allclose(at_0[:, 4].sigmoid(), torch.tensor(0.25))


def test_its_shares_are_in_the_weights():
    first = WithEvidence(MLP(4, width=8), (Code(0, (0.2, 0.3, 0.5)),), AffinePath())
    second = WithEvidence(MLP(4, width=8), (Code(0, (0.4, 0.3, 0.3)),), AffinePath())
    second.load_state_dict(first.state_dict())
    x, t = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.rand(5)
    assert torch.equal(first(x, t), second(x, t))


@pytest.mark.parametrize("codes", [(Code(0, (0.5, 0.5)), Code(1, (0.5,))), (Code(3, (0.4, 0.6)),)])
def test_codes_that_overlap_or_leave_the_sample_are_refused(codes):
    with pytest.raises(UserError, match="overlap, or end beyond element 4"):
        DataSpec((4,), "table", {}, codes=codes)

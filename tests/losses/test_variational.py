from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import GIVEN, Batch, Entries
from advect.losses import FlowMatching, PosteriorHead, VariationalFlowMatching
from advect.masks import RandomMask
from advect.paths import AffinePath, BrownianBridge, Trigonometric

CODES = ((0, 3), (3, 1), (4, 4))
"""A category of three values, one of two, one of four."""
SIZES = (3, 2, 4)


def one_hot(categories: Tensor) -> Tensor:
    """Categories (n, 3) of SIZES as codes (n, 8)."""
    parts = []
    for column, size in zip(categories.unbind(1), SIZES, strict=True):
        hot = torch.nn.functional.one_hot(column, size).double() * 2 - 1
        parts.append(hot[:, 1:] if size == 2 else hot)
    return torch.cat(parts, 1)


CELLS = torch.tensor(list(itertools.product(*map(range, SIZES))))
"""All 24 combinations."""


def joint(seed: int = 0) -> Tensor:
    """A mixture of three products of laws of the categories: probabilities (24,)."""
    g = torch.Generator().manual_seed(seed)
    law = torch.zeros(len(CELLS), dtype=torch.float64)
    for weight in (0.5, 0.3, 0.2):
        own = [torch.rand(size, generator=g, dtype=torch.float64).pow(3) + 0.01 for size in SIZES]
        own = [p / p.sum() for p in own]
        law += weight * math.prod((p[c] for p, c in zip(own, CELLS.unbind(1), strict=True)), start=torch.ones(24))
    return law


def cells_given(x: Tensor, t: Tensor, path: AffinePath) -> Tensor:
    """Posterior (n, 24) of the combinations given x_t = x, by Bayes' rule."""
    c = path.coefficients(t.double())
    far = (x.double()[:, None] - c.alpha[:, None, None] * one_hot(CELLS)).square().sum(2)
    return (joint().log() - far / (2 * c.sigma[:, None].square())).softmax(1)


def exact_logits(x: Tensor, t: Tensor, path: AffinePath) -> Tensor:
    """Logits (n, 8) of each category given x_t = x."""
    p, parts = cells_given(x, t, path), []
    for column, size in zip(CELLS.unbind(1), SIZES, strict=True):
        own = torch.stack([p[:, column == k].sum(1) for k in range(size)], 1).clamp(min=1e-300).log()
        parts.append(own[:, 1:] - own[:, :1] if size == 2 else own)
    return torch.cat(parts, 1)


def draws(n: int, seed: int = 0) -> Batch:
    cells = torch.multinomial(joint(), n, replacement=True, generator=torch.Generator().manual_seed(seed))
    return Batch(one_hot(CELLS[cells]))


@pytest.mark.parametrize("path", [AffinePath(), AffinePath(Trigonometric())], ids=["straight", "trigonometric"])
def test_the_head_of_exact_logits_has_the_exact_posterior_mean(path):
    t = torch.linspace(0.05, 0.95, 64, dtype=torch.float64)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = PosteriorHead(CODES, path).mean(exact_logits(x, t, path), x, t)
    assert torch.allclose(mean, cells_given(x, t, path) @ one_hot(CELLS), atol=1e-9)


def test_the_posterior_minimises_the_loss_and_its_excess_is_the_divergence_to_it():
    n, path, loss = 40_000, AffinePath(), VariationalFlowMatching(codes=CODES)
    shift = torch.tensor([0.3, -0.2, 0.1, 0.5, 0.0, 0.4, -0.4, 0.2], dtype=torch.float64)
    batch, rng = draws(n), lambda: CounterRng(0, 0, n)
    sample, _ = loss.sample(batch, rng())
    best = loss.compare(exact_logits(sample.x_t, sample.t, path), sample)
    worse = loss.compare(exact_logits(sample.x_t, sample.t, path) + shift, sample)
    # Sum over the codes of KL(posterior | shifted posterior), which the excess is on average.
    expected = torch.zeros(n, dtype=torch.float64)
    own = exact_logits(sample.x_t, sample.t, path)
    for start, size in CODES:
        p, q = own[:, start : start + size], (own + shift)[:, start : start + size]
        if size == 1:
            p, q = torch.cat([torch.zeros_like(p), p], 1), torch.cat([torch.zeros_like(q), q], 1)
        expected += (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1) / len(CODES)
    gap = worse - best - expected
    assert expected.mean() > 0.01
    assert abs(gap.mean()) < 4 * gap.std() / n**0.5


def test_at_time_0_the_least_loss_is_the_entropy_of_the_categories():
    n, loss = 50_000, VariationalFlowMatching(codes=CODES)
    x1 = draws(n).x1
    sample = AffinePath().sample(torch.randn(n, 8, dtype=torch.float64), x1, torch.zeros(n, dtype=torch.float64))
    found, law, entropy = loss.compare(exact_logits(sample.x_t, sample.t, AffinePath()), sample), joint(), 0.0
    for column, size in zip(CELLS.unbind(1), SIZES, strict=True):
        p = torch.stack([law[column == k].sum() for k in range(size)])
        entropy -= float((p * p.log()).sum()) / len(CODES)
    assert abs(found.mean() - entropy) < 4 * found.std() / n**0.5


def test_the_exact_head_draws_the_exact_joint_law():
    n, steps, path = 20_000, 60, AffinePath()
    head, x = PosteriorHead(CODES, path), torch.randn(20_000, 8, generator=torch.Generator().manual_seed(3)).double()
    for i in range(steps):
        t, u = torch.full((n,), i / steps, dtype=torch.float64), (i + 1) / steps
        mean = head.mean(exact_logits(x, t, path), x, t)
        half, middle = (i + 0.5) / steps, torch.full((n,), (i + 0.5) / steps, dtype=torch.float64)
        y = mean + (x - mean) * (1 - half) / (1 - i / steps)
        mean = head.mean(exact_logits(y, middle, path), y, middle)
        x = x + (mean - y) / (1 - half) * (u - i / steps)
    cell = (x @ one_hot(CELLS).T - one_hot(CELLS).square().sum(1) / 2).argmax(1)
    shares = torch.bincount(cell, minlength=24) / n
    # 24 shares of 20,000 draws differ from their law by about half the sum of sqrt(2 p (1 - p) / (pi n)) by chance.
    chance = float((joint() * (1 - joint()) * 2 / (math.pi * n)).sqrt().sum() / 2)
    assert 0.5 * float((shares - joint()).abs().sum()) < 2 * chance + 0.002


def test_of_numbers_alone_it_is_flow_matching():
    x1 = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    net = lambda x, t, cond: (2 * x).sin() + t[:, None]
    for prediction in ("velocity", "data"):
        options = {"prediction": prediction, "path": AffinePath(Trigonometric())}
        ours = VariationalFlowMatching(**options)(net, Batch(x1), CounterRng(1, 0, 256))
        theirs = FlowMatching(**options)(net, Batch(x1), CounterRng(1, 0, 256))
        assert torch.allclose(ours, theirs)


def test_of_both_it_is_the_mean_over_entries_and_a_mask_spares_whole_codes():
    n, codes = 64, ((0, 3), (4, 1))
    x1 = torch.cat([one_hot(CELLS)[:1, :3].expand(n, 3), torch.randn(n, 1).double(), torch.ones(n, 1).double()], 1)
    entries = Entries(torch.tensor([0, 0, 0, 1, 2]))
    net = lambda x, t, cond: torch.zeros_like(x)
    plain = VariationalFlowMatching(codes=codes)
    sample, _ = plain.sample(Batch(x1), CounterRng(0, 0, n))
    expected = (math.log(3) + math.log(2) + sample.u_t[:, 3].square()) / 3
    assert torch.allclose(plain(net, Batch(x1), CounterRng(0, 0, n)), expected)
    masked = VariationalFlowMatching(codes=codes, mask=RandomMask(entries=entries))
    sample, cond = masked.sample(Batch(x1), CounterRng(0, 0, n))
    assert cond is not None
    asked = cond[GIVEN].isnan()
    expected = math.log(3) * asked[:, 0] + math.log(2) * asked[:, 4] + sample.u_t[:, 3].square() * asked[:, 3]
    assert torch.allclose(masked.compare(torch.zeros_like(x1), sample), expected / 3)


def test_a_code_between_categories_has_the_mean_of_their_costs():
    head = PosteriorHead(((0, 3), (3, 1)), AffinePath())
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([[1.0, -1, -1, -1], [-1, 1, -1, 1]])
    costs = torch.stack([head.surprise(logits, end.expand(5, 4)) for end in ends])
    between = (0.25 * ends[0] + 0.75 * ends[1]).expand(5, 4)
    assert torch.allclose(head.surprise(logits, between), 0.25 * costs[0] + 0.75 * costs[1], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": BrownianBridge(0.5)}, "needs a path whose velocity follows from the data"),
        ({"path": AffinePath(sigma_min=0.1, gaussian_source=False)}, "without jitter"),
        ({"prediction": "noise"}, "take velocity or data"),
    ],
)
def test_what_tells_no_velocity_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        VariationalFlowMatching(**options)

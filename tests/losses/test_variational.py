from __future__ import annotations

import math

import pytest
import torch

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import GIVEN, Batch, Code, Entries
from advect.losses import FlowMatching, PosteriorHead, VariationalFlowMatching
from advect.masks import RandomMask
from advect.paths import AffinePath, BrownianBridge, Trigonometric
from product_mixture import (
    CELLS,
    CODES,
    SIZES,
    by_chance,
    cells_given,
    draws,
    exact_logits,
    joint,
    one_hot,
    total_variation,
)


@pytest.mark.parametrize("path", [AffinePath(), AffinePath(Trigonometric())], ids=["straight", "trigonometric"])
def test_the_head_of_exact_logits_has_the_exact_posterior_mean(path):
    t = torch.linspace(0.05, 0.95, 64, dtype=torch.float64)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = PosteriorHead(CODES, path).mean(exact_logits(x, t, path), x, t)
    assert torch.allclose(mean, cells_given(x, t, path) @ one_hot(CELLS), atol=1e-9)


def test_the_posterior_minimises_the_loss_and_its_excess_is_the_divergence_to_it():
    n, path, loss = 20_000, AffinePath(), VariationalFlowMatching(codes=CODES)
    shift = torch.tensor([0.3, -0.2, 0.1, 0.5, 0.0, 0.4, -0.4, 0.2], dtype=torch.float64)
    batch, rng = draws(n), lambda: CounterRng(0, 0, n)
    sample, _ = loss.sample(batch, rng())
    best = loss.compare(exact_logits(sample.x_t, sample.t, path), sample)
    worse = loss.compare(exact_logits(sample.x_t, sample.t, path) + shift, sample)
    # Sum over the codes of KL(posterior | shifted posterior), which the excess is on average.
    expected = torch.zeros(n, dtype=torch.float64)
    own = exact_logits(sample.x_t, sample.t, path)
    for start, size in ((code.start, code.size) for code in CODES):
        p, q = own[:, start : start + size], (own + shift)[:, start : start + size]
        if size == 1:
            p, q = torch.cat([torch.zeros_like(p), p], 1), torch.cat([torch.zeros_like(q), q], 1)
        expected += (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1) / len(CODES)
    gap = worse - best - expected
    assert expected.mean() > 0.01
    assert abs(gap.mean()) < 4 * gap.std() / n**0.5


def test_at_time_0_the_least_loss_is_the_entropy_of_the_categories():
    n, loss = 20_000, VariationalFlowMatching(codes=CODES)
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
    assert total_variation(cell, joint()) < 2 * by_chance(joint(), n) + 0.002


def test_of_numbers_alone_it_is_flow_matching():
    x1 = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    net = lambda x, t, cond: (2 * x).sin() + t[:, None]
    for prediction in ("velocity", "data"):
        options = {"prediction": prediction, "path": AffinePath(Trigonometric())}
        ours = VariationalFlowMatching(**options)(net, Batch(x1), CounterRng(1, 0, 256))
        theirs = FlowMatching(**options)(net, Batch(x1), CounterRng(1, 0, 256))
        assert torch.allclose(ours, theirs)


def test_of_both_it_is_the_mean_over_entries_and_a_mask_spares_whole_codes():
    n, codes = 64, (CODES[0], Code(4, (0.5,)))
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
    head = PosteriorHead(CODES[:2], AffinePath())
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

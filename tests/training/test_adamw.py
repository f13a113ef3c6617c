from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from advect.core.errors import UserError
from advect.training import AdamW, CosineDecay, LearningRate
from advect.training.optim import clip_gradients, gradient_norm

SHAPES = [(5, 3), (3,), (2, 1, 3, 3), (1,)]
RATE = LearningRate(peak=0.05, warmup=5, total=20, schedule=CosineDecay())


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {f"p{i}": nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for i, s in enumerate(SHAPES)}


def give_gradients(params: dict[str, nn.Parameter], step: int) -> None:
    """Noisy gradients of unlike sizes; the last parameter's is always zero."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params.values()):
        noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.grad = (noise + p.detach()) * 10.0 ** (1 - 2 * i) * (i < len(SHAPES) - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.01, "betas": (0.8, 0.95), "eps": 1e-4}]
)
def test_twenty_steps_are_those_of_torch(options, dtype):
    mine, torchs = parameters(dtype), parameters(dtype)
    optimizer = AdamW(mine, **options)
    reference = torch.optim.AdamW(torchs.values(), foreach=False, **{"weight_decay": 0.0, **options})
    for step in range(20):
        give_gradients(mine, step)
        give_gradients(torchs, step)
        reference.param_groups[0]["lr"] = RATE(step)
        reference.step()
        optimizer.step(RATE(step))
    for name in mine:
        tolerance = {"rtol": 2e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
        torch.testing.assert_close(mine[name], torchs[name], **tolerance)


def test_continued_from_stored_moments_it_is_the_same_to_the_last_bit():
    whole, halves = parameters(), parameters()
    first, second = AdamW(whole, weight_decay=0.1), AdamW(halves, weight_decay=0.1)
    for step in range(20):
        if step == 9:
            stored = {k: v.clone() for k, v in second.tensors().items()}
            second = AdamW(halves, weight_decay=0.1)
            second.load(stored, 0)
        for params, optimizer in ((whole, first), (halves, second)):
            give_gradients(params, step)
            optimizer.step(RATE(step))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_loaded_moments_are_copies():
    optimizer = AdamW(parameters())
    stored = {name: torch.ones_like(value) for name, value in optimizer.tensors().items()}
    optimizer.load(stored, 3)
    give = parameters()
    assert all(optimizer.tensors()[name] is not value for name, value in stored.items())
    assert all((optimizer.exp_avg[name] == 1).all() and (optimizer.exp_avg_sq[name] == 1).all() for name in give)


def test_a_checkpoint_that_does_not_count_updates_has_one_a_step():
    optimizer = AdamW(parameters())
    optimizer.load({k: v for k, v in optimizer.tensors().items() if k != "updates"}, 7)
    assert optimizer.tensors()["updates"] == 7


def test_gradients_are_let_go_of():
    params = parameters()
    give_gradients(params, 0)
    AdamW(params).step(0.1)
    assert all(p.grad is None for p in params.values())


def test_weight_decay_alone_shrinks_and_a_rate_of_zero_rests():
    p = nn.Parameter(torch.full((4,), 2.0))
    optimizer = AdamW({"p": p}, weight_decay=0.5)
    for lr, expected in ((0.1, 2.0 * 0.95), (0.1, 2.0 * 0.95**2), (0.0, 2.0 * 0.95**2)):
        p.grad = torch.zeros(4)
        optimizer.step(lr)
        torch.testing.assert_close(p.detach(), torch.full((4,), expected))


def test_a_parameter_without_gradient_stays_and_the_others_move_as_torchs_own():
    params, torchs = parameters(), parameters()
    optimizer, reference = AdamW(params), torch.optim.AdamW(torchs.values(), 0.05, weight_decay=0.0)
    for step in range(3):
        give_gradients(params, step)
        give_gradients(torchs, step)
        params["p1"].grad = torchs["p1"].grad = None
        optimizer.step(0.05)
        reference.step()
    assert torch.equal(params["p1"], parameters()["p1"])
    for name in params:
        torch.testing.assert_close(params[name], torchs[name], rtol=2e-5, atol=1e-6)


def test_arguments_are_validated():
    with pytest.raises(UserError, match=r"weight_decay must be at least 0 and at most 1,000,000, got -0\.1"):
        AdamW({}, weight_decay=-0.1)
    with pytest.raises(UserError, match=r"AdamW\.betas must be at least 0 and below 1, got 0\.9 1\.5"):
        AdamW({}, betas=(0.9, 1.5))
    with pytest.raises(UserError, match=r"AdamW\.eps must be above 0 and at most 1, got 0\.0"):
        AdamW({}, eps=0.0)


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 12.0, 1e6])
def test_clipping_is_that_of_torch(max_norm):
    mine, torchs = parameters(), parameters()
    give_gradients(mine, 0)
    give_gradients(torchs, 0)
    grads = [p.grad for p in mine.values()]
    norm = gradient_norm(grads)
    clip_gradients(grads, max_norm, norm)
    expected = clip_grad_norm_(list(torchs.values()), max_norm)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(mine.values(), torchs.values(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_clipping_keeps_the_direction():
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    norm = gradient_norm(grads)
    assert norm == 5.0
    clip_gradients(grads, 1.0, norm)
    assert [g.flatten().tolist() for g in grads] == [pytest.approx([0.6, 0.0]), pytest.approx([0.8])]
    assert gradient_norm(grads) == pytest.approx(1.0)


def test_a_broken_gradient_shows_in_the_norm():
    assert gradient_norm([torch.tensor([1.0, float("nan")])]).isnan()
    assert gradient_norm([torch.tensor([float("inf")])]).isinf()

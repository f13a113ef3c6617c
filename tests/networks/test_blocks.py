from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from advect.networks import DiT, ResidualMLP, SequenceTransformer, UNet
from advect.networks.layers import attend
from advect.networks.unet import FiLM, ResidualBlock, SelfAttention, group_norm, largest_divisor


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (7, 1), (31, 1), (32, 2), (37, 1), (48, 3), (128, 8), (512, 32), (1024, 32)]
)
def test_groups_divide_any_width(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_largest_divisor() -> None:
    assert [largest_divisor(12, k) for k in (0, 1, 5, 6, 11, 100)] == [1, 1, 4, 6, 6, 12]


def test_film_sets_mean_and_deviation_of_each_sample() -> None:
    film = FiLM(32, 2)
    scale_shift = torch.cat([torch.full((32,), 3.0), torch.full((32,), -0.5)])
    torch.nn.init.zeros_(film.modulation.bias)
    film.modulation.weight.data = torch.stack([torch.zeros(64), scale_shift], 1)
    h = 5 + 2 * torch.randn(2, 32, 8, 8)
    plain, modulated = film(h, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert plain.mean().item() == pytest.approx(0, abs=1e-4)
    assert plain.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert modulated.mean().item() == pytest.approx(-0.5, abs=1e-3)
    assert modulated.std(correction=0).item() == pytest.approx(4, abs=1e-2)


def test_a_new_block_is_its_skip_connection() -> None:
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(ResidualBlock(8, 8, 16, 0.1)(x, emb), x)
    assert torch.equal(SelfAttention(8, 4)(x), x)


def test_plain_attention_is_the_fused_one() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(
    ("channels", "head_width", "heads"), [(64, 64, 1), (96, 64, 1), (512, 64, 8), (6, 4, 1), (9, 2, 3)]
)
def test_heads_divide_any_width_and_attention_knows_no_places(channels: int, head_width: int, heads: int) -> None:
    attention = SelfAttention(channels, head_width)
    assert attention.heads == heads
    torch.nn.init.normal_(attention.out.weight)
    x, order = torch.randn(2, channels, 3, 5), torch.randperm(15)

    def shuffle(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)[:, :, order].unflatten(2, (3, 5))

    torch.testing.assert_close(attention(shuffle(x)), shuffle(attention(x)), atol=1e-4, rtol=1e-4)


def test_one_place_hears_of_all_others() -> None:
    attention = SelfAttention(8, 4)
    torch.nn.init.normal_(attention.out.weight)
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    attention(x)[0, :, 0, 0].sum().backward()
    assert x.grad is not None and x.grad.abs().sum(1).min() > 0


def test_dropout_is_for_training_only() -> None:
    block, x, emb = ResidualBlock(8, 8, 4, 0.5), torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    torch.nn.init.normal_(block.conv2.weight)
    assert not torch.equal(block(x, emb), block(x, emb))
    block.eval()
    assert torch.equal(block(x, emb), block(x, emb))
    without = ResidualBlock(8, 8, 4, 0.0)
    torch.nn.init.normal_(without.conv2.weight)
    assert torch.equal(without(x, emb), without(x, emb))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: UNet((1, 8, 8), model_channels=8, channel_mult=(1, 2), attention_resolutions=(4,)), (1, 8, 8)),
        (lambda: DiT((3, 4, 8), width=16, depth=2, heads=2), (3, 4, 8)),
        (lambda: SequenceTransformer((7, 3), width=16, depth=2, heads=2), (7, 3)),
        (lambda: ResidualMLP(3, width=16, depth=2), (3,)),
    ],
)
def test_a_new_network_of_residual_blocks_predicts_zero(net, shape) -> None:
    assert not net()(torch.randn(4, *shape), torch.rand(4)).any()

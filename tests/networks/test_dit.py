from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from advect.core.errors import UserError
from advect.networks import DiT
from advect.networks.embeddings import (
    coordinates,
    grid_rotation,
    grid_sincos,
    line_rotation,
    rotate,
)
from advect.networks.layers import PLAIN_TOKENS, attend

SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}


def awake(net: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return net.eval()


@pytest.mark.parametrize(
    ("size", "patch", "width", "millions"),
    [
        ("S", 2, 384, 33),
        ("B", 2, 768, 130),
        ("L", 2, 1024, 458),
        ("XL", 2, 1152, 675),
        ("S", 4, 384, 33),
        ("B", 8, 768, 131),
        ("XL", 8, 1152, 676),
    ],
)
def test_sizes_have_the_parameters_of_the_paper(size: Any, patch: int, width: int, millions: int) -> None:
    """The paper's net has a second output for each pixel, the learned variance; its table leaves positions out."""
    with torch.device("meta"):
        net = DiT((4, 32, 32), size=size, patch_size=patch, conditions={"label": 1000})
    ours = sum(p.numel() for p in net.parameters())
    variance = (width + 1) * patch**2 * 4
    positions = (32 // patch) ** 2 * width
    assert round((ours + variance) / 1e6) == millions
    if (size, patch) == ("XL", 2):
        assert ours + variance + positions == 675_129_632


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("resize", ["interpolate", "extrapolate"])
def test_other_resolutions_and_aspects(positions: Any, resize: Any) -> None:
    net = awake(DiT((3, 8, 8), **SMALL, positions=positions, resize=resize, registers=1))
    for shape in ((3, 16, 16), (3, 4, 12), (3, 2, 2), (3, 8, 8)):
        x = torch.randn(2, *shape)
        out = net(x, torch.rand(2))
        assert out.shape == x.shape and out.isfinite().all()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_come_back_to_their_places(patch: int) -> None:
    """Without blocks to mix them, tokens see their own patch alone."""
    net = awake(DiT((2, 8, 8), width=16, depth=1, heads=2, patch_size=patch))
    nn.init.zeros_(net.get_submodule("blocks.0.modulation").weight)  # pyright: ignore[reportArgumentType]
    nn.init.zeros_(net.get_submodule("blocks.0.modulation").bias)  # pyright: ignore[reportArgumentType]
    x = torch.randn(1, 2, 8, 8)
    changed = x.clone()
    changed[0, 1, 5, 2] += 1
    moved = (net(changed, torch.tensor([0.5])) - net(x, torch.tensor([0.5])))[0].abs().amax(0) > 1e-6
    rows, columns = moved.nonzero().T
    assert set((rows // patch).tolist()) == {5 // patch} and set((columns // patch).tolist()) == {2 // patch}


def test_interpolated_places_span_the_trained_range() -> None:
    assert coordinates(4, 4, "interpolate").tolist() == [0, 1, 2, 3] == coordinates(4, 8, "extrapolate").tolist()
    wide = coordinates(8, 4, "interpolate")
    assert wide.tolist() == [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25]


def test_every_place_of_a_grid_has_its_own_sines() -> None:
    places = grid_sincos(torch.arange(4.0), torch.arange(6.0), 16)
    assert places.shape == (24, 16) and len(torch.unique(places, dim=0)) == 24
    torch.testing.assert_close(places.square().sum(1), torch.full((24,), 8.0))


def test_rotated_scores_depend_on_the_difference_of_places_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(a: float, b: float) -> float:
        turn = lambda x, place: rotate(x, line_rotation(torch.tensor([place], dtype=torch.float64), 8))
        return (turn(q, a) * turn(k, b)).sum().item()

    assert score(3, 8) == pytest.approx(score(103, 108)) and score(0, 0) == pytest.approx((q * k).sum().item())
    assert score(3, 8) != pytest.approx(score(3, 9), abs=1e-3)


def test_rotated_scores_on_a_grid_depend_on_both_differences_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def scores(row: float, column: float) -> torch.Tensor:
        rows, columns = (torch.arange(3, dtype=torch.float64) + first for first in (row, column))
        rotation = grid_rotation(rows, columns, 8)
        return rotate(q.expand(-1, -1, 9, -1), rotation)[0, 0] @ rotate(k.expand(-1, -1, 9, -1), rotation)[0, 0].T

    torch.testing.assert_close(scores(0, 0), scores(5, 11))
    assert len(torch.unique(scores(0, 0)[4].round(decimals=9))) == 9


@pytest.mark.parametrize("tokens", [9, PLAIN_TOKENS + 1])
def test_masked_attention_is_attention_over_the_real_keys(tokens: int) -> None:
    q, k, v = torch.randn(3, 2, 2, tokens, 4, dtype=torch.float64)
    real = torch.arange(tokens) < torch.tensor([5, tokens])[:, None]
    masked = attend(q, k, v, real)
    torch.testing.assert_close(masked[:1], attend(q[:1], k[:1, :, :5], v[:1, :, :5]))
    torch.testing.assert_close(masked[1:], attend(q[1:], k[1:], v[1:]))


def test_qk_norm_bounds_the_scores() -> None:
    net = awake(DiT((1, 4, 4), **SMALL, qk_norm=True))
    with torch.no_grad():
        net.get_submodule("blocks.0.attention.qkv").weight.mul_(1e4)  # pyright: ignore[reportCallIssue]
    assert net(torch.randn(2, 1, 4, 4), torch.rand(2)).isfinite().all()


def test_compiles_to_one_graph() -> None:
    net = awake(DiT((1, 8, 8), **SMALL, positions="rotary", registers=2, conditions={"label": 3}))
    x, t, cond = torch.randn(2, 1, 8, 8), torch.rand(2), {"label": torch.tensor([0, -1])}
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x, t, cond), net(x, t, cond))


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((3, 30, 32), {"patch_size": 4}, "height divisible by 4, since patch_size is 4, got 30; use 28 and 32"),
        ((5,), {}, r"must be \(channels, height, width\), got \(5,\); for vectors take MLP"),
        ((3, 8, 8), {"size": "M"}, "DiT.size has no choice 'M'"),
        ((3, 8, 8), {"size": None, "width": 16, "heads": 2}, "depth is missing"),
        ((3, 8, 8), {"heads": 5}, "width must be a multiple of 4 heads = 20, got 384; use 380"),
        ((3, 8, 8), {"norm": "batch"}, "DiT.norm has no choice 'batch'"),
        ((3, 8, 8), {"positions": "learned"}, "DiT.positions has no choice"),
        ((3, 8, 8), {"registers": -1}, "DiT.registers must be at least 0"),
        ((3, 8, 8), {"dropout": 1.0}, r"DiT.dropout must be at least 0 and below 1"),
        ((3, 8, 8), {"time_embedding": "cosine"}, "has no choice 'cosine'"),
    ],
)
def test_arguments_out_of_range(shape: tuple[int, ...], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message), torch.device("meta"):
        DiT(shape, **arguments)


def test_inputs_that_do_not_fit() -> None:
    net = DiT((1, 8, 8), **SMALL)
    with pytest.raises(UserError, match=r"x_t of shape \(B, 1, H, W\), got \(2, 3, 8, 8\)"):
        net(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(UserError, match="width divisible by 2"):
        net(torch.zeros(2, 1, 8, 7), torch.zeros(2))

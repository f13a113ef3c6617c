from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from advect.core.errors import UserError
from advect.core.types import NULL
from advect.networks import UNet
from advect.networks.unet import usual_channels

SMALL: dict[str, Any] = {"model_channels": 16, "channel_mult": (1, 2), "attention_resolutions": (4,), "dropout": 0.0}


def awake(net: UNet) -> UNet:
    """The net with every parameter that starts at zero moved off it."""
    torch.manual_seed(1)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return net


def channels_last(net: UNet) -> UNet:
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  PyTorch's stub lacks it


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((1, 8, 8), SMALL),
        ((3, 12, 20), {"model_channels": 10, "channel_mult": (1, 3, 2), "attention_resolutions": (10,)}),
        ((5, 7, 3), {"model_channels": 7, "channel_mult": (2,), "attention_resolutions": (), "num_res_blocks": 3}),
        (
            (2, 16, 16),
            {"model_channels": 8, "channel_mult": (1, 2, 2), "attention_resolutions": (16, 8, 4), "head_width": 3},
        ),
    ],
)
def test_output_has_the_shape_of_the_input_and_every_parameter_learns(
    shape: tuple[int, int, int], arguments: dict[str, Any]
) -> None:
    net = awake(UNet(shape, **arguments, conditions={"label": 3}))
    x, t = torch.randn(4, *shape), torch.rand(4)
    out = net(x, t, {"label": torch.tensor([NULL, 0, 1, 2])})
    assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    out.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_new_net_predicts_zero() -> None:
    assert not UNet((1, 8, 8), **SMALL)(torch.randn(2, 1, 8, 8), torch.rand(2)).any()


def test_the_default_has_62_million_parameters_at_64x64() -> None:
    with torch.device("meta"):
        net = UNet((3, 64, 64))
    assert sum(p.numel() for p in net.parameters()) == 62_478_467


def test_attention_sits_where_it_is_asked_for_and_in_the_middle() -> None:
    net = UNet((3, 64, 32), model_channels=4, channel_mult=(1, 1, 1), attention_resolutions=(32,), num_res_blocks=1)
    assert [stage.attention is not None for stage in net.down] == [False, True, False]
    assert [stage.attention is not None for stage in net.middle] == [True, False]
    assert [stage.attention is not None for stage in net.up] == [False, True, False]


def test_time_and_conditions_change_each_sample_alone() -> None:
    net = awake(UNet((1, 8, 8), **SMALL, conditions={"label": 10})).eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7])
    base = net(x, t)
    torch.testing.assert_close(net(x, t, {"label": torch.tensor([NULL, NULL])}), base)
    for changed in (net(x, t, {"label": torch.tensor([NULL, 3])}), net(x, torch.tensor([0.2, 0.1]))):
        torch.testing.assert_close(changed[0], base[0])
        assert (changed[1] - base[1]).abs().max() > 1e-3


def test_channels_last_gives_the_same_numbers() -> None:
    net = awake(UNet((3, 8, 8), **SMALL)).double()
    x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    expected = net(x, t)
    net = channels_last(net)
    out = net(x.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_every_feature_map_stays_channels_last() -> None:
    net = channels_last(awake(UNet((3, 8, 8), **SMALL)))
    strayed = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
            if out.ndim == 4 and not out.is_contiguous(memory_format=torch.channels_last):
                strayed.append(name)

        return hook

    for name, module in net.named_modules():
        module.register_forward_hook(look(name))
    net(torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last), torch.rand(2))
    assert strayed == []


def test_bfloat16_autocast_is_close() -> None:
    net = channels_last(awake(UNet((1, 8, 8), **SMALL)))
    x, t = torch.randn(8, 1, 8, 8), torch.rand(8)
    exact = net(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x, t)
    assert low.dtype == torch.float32
    assert (low - exact).norm() < 0.05 * exact.norm()


def test_the_jacobian_works_in_both_directions() -> None:
    small = {**SMALL, "model_channels": 2, "num_res_blocks": 1}
    net, t = awake(UNet((1, 4, 4), **small)).double(), torch.rand(1, dtype=torch.float64)
    x, v, w = torch.randn(3, 1, 1, 4, 4, dtype=torch.float64)
    pushed = torch.func.jvp(lambda x: net(x, t), (x,), (v,))[1]
    pulled = torch.func.vjp(lambda x: net(x, t), x)[1](w)[0]
    assert (w * pushed).sum().item() == pytest.approx((v * pulled).sum().item(), rel=1e-9)


def test_compiles_to_one_graph() -> None:
    net = awake(UNet((1, 8, 8), **SMALL, conditions={"label": 10}))
    x, t, cond = torch.randn(2, 1, 8, 8), torch.rand(2), {"label": torch.tensor([NULL, 3])}
    whole = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(x, t, cond), net(x, t, cond))


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        (
            (3, 30, 32),
            {"channel_mult": (1, 2, 2, 4)},
            "height divisible by 8, since channel_mult has 4 levels, got 30; use 24 and 32",
        ),
        ((3, 32, 4), {"channel_mult": (1, 2, 2, 4)}, "width divisible by 8, .* got 4; use 8, or fewer levels"),
        ((64,), {}, r"must be \(channels, height, width\), got \(64,\); for vectors use MLP"),
        ((3, 32, 32), {"attention_resolutions": (16, 7)}, "names 7, but the feature maps have sizes 32, 16, 8, 4"),
        ((3, 32, 32), {"channel_mult": ()}, "UNet.channel_mult must name a multiple"),
        ((3, 32, 32), {"dropout": 1.0}, r"UNet.dropout must be at least 0 and below 1, got 1.0; 0.1 is usual"),
        ((3, 32, 32), {"num_res_blocks": 0}, "UNet.num_res_blocks must be at least 1 and at most 100, got 0"),
        ((3, 32, 32), {"model_channels": 0}, "UNet.model_channels must be at least 1 and at most 65,536, got 0"),
        ((3, 32, 32), {"head_width": 0}, "UNet.head_width must be at least 1 and at most 65,536, got 0"),
    ],
)
def test_arguments_out_of_range(shape: tuple[int, ...], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(shape, **arguments)


def test_defaults_fit_every_size() -> None:
    """The defaults of 64 x 64 are those of the CelebA project, and a level is added at each doubling beyond."""
    with torch.device("meta"):
        for side in (8, 9, 16, 28, 48, 50, 96, 100, 128, 192, 250, 256):
            net = UNet((3, side, side), model_channels=32)
            assert net(torch.empty(1, 3, side, side), torch.empty(1)).shape == (1, 3, side, side)
    same = {"channel_mult": (1, 2, 2, 4), "attention_resolutions": (16, 8)}
    with torch.device("meta"):
        for side in (32, 64):
            names = UNet((3, side, side), model_channels=32).state_dict().keys()
            assert names == UNet((3, side, side), model_channels=32, **same).state_dict().keys()
    assert [len(usual_channels((3, side, side))) for side in (48, 96, 128, 256)] == [4, 5, 5, 6]


def test_inputs_of_another_shape() -> None:
    net = UNet((1, 8, 8), **SMALL)
    with pytest.raises(UserError, match=r"x_t of shape \(B, 1, H, W\), got \(2, 3, 8, 8\)"):
        net(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(UserError, match=r"t must have shape \(2,\)"):
        net(torch.zeros(2, 1, 8, 8), torch.zeros(()))


def test_patches_become_channels_and_come_back() -> None:
    net = awake(UNet((3, 16, 8), **SMALL, patch_size=2)).eval()
    assert net.stem.in_channels == 12
    x = torch.randn(2, 3, 16, 8)
    assert net(x, torch.rand(2)).shape == x.shape
    with pytest.raises(UserError, match="height divisible by 4, since channel_mult has 2 levels and patch_size is 2"):
        UNet((1, 6, 8), **SMALL, patch_size=2)
    assert net(torch.randn(2, 3, 8, 20), torch.rand(2)).shape == (2, 3, 8, 20)
    with pytest.raises(UserError, match="width divisible by 4"):
        net(torch.randn(2, 3, 8, 10), torch.rand(2))
    with pytest.raises(UserError, match="names 8, but the feature maps have sizes 4, 2"):
        UNet((1, 8, 8), **{**SMALL, "attention_resolutions": (8,)}, patch_size=2)

"""The Inception network of the Frechet Inception distance, for weights that come as a plain dict of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advect.core.errors import UserError

Layer = tuple[str, int, tuple[int, int], int]
"""Name, channels that come out, size of the kernel, stride."""

FEATURES, SIDE = 2048, 299
"""Features that come out, and height and width of the images that go in."""


class Convolution(nn.Module):
    """Convolution, normalisation by running statistics, ReLU; padded to keep the size where the stride is 1."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int, padded: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, out, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Chains of convolutions side by side, and a pool of the input, joined along the channels.

    A chain that ends in "a" and "b" forks there, and both ends are joined. ``pool`` is "mean" (without counting the
    padding) or "max", followed by the convolution ``branch_pool``, or "halve", a pool of stride 2 by itself.
    """

    def __init__(self, channels: int, chains: list[list[Layer]], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.pool, self.chains = pool, [[name for name, *_ in chain] for chain in chains]
        self.out = pooled or channels
        for chain in chains:
            width = channels
            for name, out, kernel, stride in chain:
                self.add_module(name, Convolution(width, out, kernel, stride, stride == 1))
                width = width if name.endswith("a") else out
            self.out += width * (2 if chain[-1][0].endswith("b") else 1)
        if pooled:
            self.branch_pool = Convolution(channels, pooled, (1, 1), 1, False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, H', W'), halved where the pool halves."""
        found = [part for chain in self.chains for part in self._follow(x, chain)]
        if self.pool == "halve":
            return torch.cat([*found, F.max_pool2d(x, 3, 2)], 1)
        pool = F.max_pool2d(x, 3, 1, 1) if self.pool == "max" else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*found, self.branch_pool(pool)], 1)

    def _follow(self, x: Tensor, chain: list[str]) -> list[Tensor]:
        forked = chain[-1].endswith("b")
        for name in chain[:-2] if forked else chain:
            x = self.get_submodule(name)(x)
        return [self.get_submodule(name)(x) for name in chain[-2:]] if forked else [x]


def _small(channels: int, pooled: int) -> Block:
    double = [("branch3x3dbl_1", 64, (1, 1), 1), ("branch3x3dbl_2", 96, (3, 3), 1), ("branch3x3dbl_3", 96, (3, 3), 1)]
    five = [("branch5x5_1", 48, (1, 1), 1), ("branch5x5_2", 64, (5, 5), 1)]
    return Block(channels, [[("branch1x1", 64, (1, 1), 1)], five, double], "mean", pooled)


def _first_halving() -> Block:
    double = [("branch3x3dbl_1", 64, (1, 1), 1), ("branch3x3dbl_2", 96, (3, 3), 1), ("branch3x3dbl_3", 96, (3, 3), 2)]
    return Block(288, [[("branch3x3", 384, (3, 3), 2)], double], "halve")


def _long(width: int) -> Block:
    wide, tall = (1, 7), (7, 1)
    kernels = [(1, 1), tall, wide, tall, wide]
    double = [(f"branch7x7dbl_{i}", width if i < 5 else 192, k, 1) for i, k in enumerate(kernels, 1)]
    seven = [("branch7x7_1", width, (1, 1), 1), ("branch7x7_2", width, wide, 1), ("branch7x7_3", 192, tall, 1)]
    return Block(768, [[("branch1x1", 192, (1, 1), 1)], seven, double], "mean", 192)


def _second_halving() -> Block:
    kernels = [(1, 1), (1, 7), (7, 1), (3, 3)]
    seven = [(f"branch7x7x3_{i}", 192, k, 2 if i == 4 else 1) for i, k in enumerate(kernels, 1)]
    return Block(768, [[("branch3x3_1", 192, (1, 1), 1), ("branch3x3_2", 320, (3, 3), 2)], seven], "halve")


def _forked(channels: int, pool: str) -> Block:
    fork = lambda name: [(f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)]
    three = [("branch3x3_1", 384, (1, 1), 1), *fork("branch3x3_2")]
    double = [("branch3x3dbl_1", 448, (1, 1), 1), ("branch3x3dbl_2", 384, (3, 3), 1), *fork("branch3x3dbl_3")]
    return Block(channels, [[("branch1x1", 320, (1, 1), 1)], three, double], pool, 192)


class Inception(nn.Module):
    """Inception v3 (Szegedy et al. 2016) as TensorFlow's graph of 2015-12-05 has it, up to its 2,048 features.

    It differs from the later network of that name in its pools: means do not count the padding, and the last block
    takes the maximum. Parameters have the names under which PyTorch ports of that graph are published.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = [(3, 32, 3, 2, False), (32, 32, 3, 1, False), (32, 64, 3, 1, True), (64, 80, 1, 1, False)]
        names = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
        for name, (channels, out, side, stride, padded) in zip(names, [*stem, (80, 192, 3, 1, False)], strict=True):
            self.add_module(name, Convolution(channels, out, (side, side), stride, padded))
        blocks = [_small(192, 32), _small(256, 64), _small(288, 64), _first_halving()]
        blocks += [*map(_long, (128, 160, 160, 192)), _second_halving(), _forked(1280, "mean"), _forked(2048, "max")]
        places = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]
        for place, block in zip(places, blocks, strict=True):
            self.add_module(f"Mixed_{place}", block)

    def forward(self, x: Tensor) -> Tensor:
        """Images x (N, 3, 299, 299), about -1 to 1, to features (N, 2048)."""
        for name, module in self.named_children():
            x = module(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x.mean((2, 3))

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor]) -> Inception:
        """The network with these weights, by name; those of the classifier that follows the features are left out.

        Raises UserError where a weight is missing, is of another shape, or is not known.
        """
        net = cls()
        wanted = net.state_dict()
        given = {k: v for k, v in weights.items() if not k.startswith(("fc.", "AuxLogits."))}
        counters = {k for k in wanted if k.endswith("num_batches_tracked")}
        for name in (set(wanted) ^ set(given)) - counters:
            what = f"has no {name}" if name in wanted else f"has {name}, which that network has not"
            raise UserError(f"the state dict {what}; give the 2015 FID Inception's weights, or a TorchScript file")
        for name in set(wanted) - counters:
            if given[name].shape != wanted[name].shape:
                raise UserError(
                    f"{name} of the state dict must be {tuple(wanted[name].shape)}, got {tuple(given[name].shape)}; "
                    "give the 2015 FID Inception's weights"
                )
        net.load_state_dict(cast(dict[str, Tensor], given), strict=False)
        return net

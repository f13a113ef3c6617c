"""Features of images by a network from a file."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.files import digest

Layer = tuple[str, int, tuple[int, int], int]
"""Name, output channels, kernel size, stride."""

SIDE = 299
"""Input height and width of the Inception network."""


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU; size-preserving padding at stride 1."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int, padded: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, out, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Parallel chains of convolutions and a pool, concatenated along channels.

    A chain that ends in "a" and "b" forks there. ``pool`` is "mean" (excluding padding) or "max", with the convolution
    ``branch_pool``, or "halve", of stride 2.
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
        """(N, C, H, W) to (N, out, H', W'), halved by the pool "halve"."""
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
    """Inception v3 (Szegedy et al. 2016) as in TensorFlow's graph of 2015-12-05, up to its 2,048 features.

    Mean pools exclude padding, and the last block pools by maximum. Parameters are named as in the PyTorch ports.
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
    def from_weights(cls, weights: Mapping[str, Tensor]) -> Inception:
        """Network with these weights by name, without the classifier.

        Raises UserError for a missing, unknown or differently shaped weight.
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


class FeatureNetwork:
    """Map images (N, C, H, W) of 0 to 255 to features (N, d), in batches.

    Images are rounded, grey ones repeated to three channels, resized to ``size`` (bilinear, not antialiased, corners
    not aligned), and normalised as ``(x - mean) / std``; defaults as in Heusel et al. (2017). Distances are comparable
    only if all of this agrees.

    Args:
        path: a TorchScript file, from (N, 3, size, size) to (N, d) or (N, d, 1, 1), or the 2015 FID Inception's
            state dict, in a .safetensors or PyTorch file. **A TorchScript file runs the code in it: use trusted
            files only.** Nothing is downloaded.
        size: input height and width.
        mean, std: one number or one a channel, in units of 0 to 255.
        bf16: compute in bfloat16, two to four times faster where supported; not comparable with float32.
        batch: images at once.
        device: device of the network.

    Attributes:
        name: file name.
        identity: hexadecimal sha256 of the file and the preparation of images.
        sha256: sha256 of the file.
        dimensions: d.

    Raises:
        UserError: no such network in the file, or an argument out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: int = SIDE,
        mean: float | Sequence[float] = 128.0,
        std: float | Sequence[float] = 128.0,
        bf16: bool = False,
        batch: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        for argument, value in (("size", size), ("batch", batch)):
            if value < 1:
                raise UserError(f"{argument} must be at least 1, got {value}")
        self._size, self._batch, self._device, self._bf16 = size, batch, torch.device(device), bf16
        self._mean, self._std = _channels(mean, "mean"), _channels(std, "std")
        if not (self._std > 0).all():
            raise UserError(f"std must be > 0, got {std}; 128 is the Inception network's")
        path = Path(path)
        if not path.is_file():
            raise UserError(f"features {path} is no file; give a TorchScript file or the weights of the FID Inception")
        self.sha256 = digest(path)
        prepared = f"{self.sha256} {size} {self._mean.flatten().tolist()} {self._std.flatten().tolist()} bilinear"
        prepared += " bfloat16" if bf16 else ""
        self.identity = hashlib.sha256(prepared.encode()).hexdigest()
        self.name, self._net = path.name, _load(path, self._device)
        self.dimensions = self._forward(torch.zeros(1, 3, size, size)).shape[1]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Map images x (N, C, H, W), C 1 or 3, to (N, d), float32 on the CPU.

        Raises UserError for other shapes, non-finite values, and values in [-1, 1].
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
            raise UserError(
                f"images must be (N, 1 or 3, H, W) with N >= 1, got {tuple(x.shape)}; {self.name} takes no others"
            )
        return torch.cat([self._forward(self._prepare(part)) for part in x.detach().split(self._batch)])

    def _prepare(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            if not torch.isfinite(x).all():
                raise UserError("images have NaN or infinite values; leave those out")
            if x.abs().max() <= 1 and (x != x.round()).any():
                raise UserError("images must be in units of 0 to 255, got values in [-1, 1]; scale them")
        x = x.to(self._device, torch.float32).round().clamp(0, 255).expand(-1, 3, -1, -1)
        x = F.interpolate(x, (self._size, self._size), mode="bilinear", align_corners=False)
        return (x - self._mean.to(x)) / self._std.to(x)

    @torch.no_grad()
    def _forward(self, x: Tensor) -> Tensor:
        try:
            # Convolutions on the CPU take four fifths of the time in this order.
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                found = self._net(x.to(self._device, memory_format=torch.channels_last))
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise UserError(
                f"features {self.name} cannot read images of {self._size} x {self._size} ({last})"
            ) from error
        if not isinstance(found, Tensor) or found.shape[0] != len(x) or found.flatten(1).shape[1] != found.shape[1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"features {self.name} must return (N, d) for images (N, 3, H, W), got {got}; wrap it")
        return found.flatten(1).float().cpu()


def _channels(value: float | Sequence[float], argument: str) -> Tensor:
    """One number, or one a channel, as (1 or 3, 1, 1)."""
    numbers = torch.atleast_1d(torch.as_tensor(value, dtype=torch.float32))
    if numbers.shape not in ((1,), (3,)) or not torch.isfinite(numbers).all():
        raise UserError(f"{argument} must be one finite number or three, got {value}")
    return numbers[:, None, None]


def _load(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Network of a file, by content and not by name."""
    try:
        if _is_script(path):
            net = torch.jit.load(str(path), map_location=device)
            # One well-known file gives class probabilities unless it is asked otherwise.
            if "return_features" in str(net.forward.schema):
                raise UserError(
                    f"features {path} resizes images by its own rule; give a network that takes them as is"
                )
            return net.eval()
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"features {path} is neither a TorchScript file nor a state dict that loads without running code; "
            "see how it was saved, or download it again"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise UserError(f"features {path} holds no state dict, which maps names to tensors; save net.state_dict()")
    try:
        return Inception.from_weights(weights).eval().to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in the stub
    except UserError as error:
        raise UserError(f"features {path}: {error}") from error


def _is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).parts[1:2] == ("code",) for name in archive.namelist())

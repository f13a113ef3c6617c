"""Features of images by a network from a file that the user names."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from advect.core.errors import UserError
from advect.evaluation.inception import SIDE, Inception


class FeatureNetwork:
    """Maps images (N, C, H, W) of 0 to 255 to the features (N, d) of a network, in batches.

    Images are rounded to whole numbers, as they would be in a file; grey ones become red, green and blue alike. They
    are resized to ``size`` (bilinear, not antialiased, corners not aligned) and given to the network as
    ``(x - mean) / std``. The defaults are those of the Inception network of Heusel et al. (2017). Feature distances
    agree between two programs only where all of this does: other programs antialias.

    Args:
        path: a TorchScript file, whose network takes (N, 3, size, size) and returns (N, d) or (N, d, 1, 1); or the
            2015 FID Inception's weights as a state dict, in a .safetensors file or one of PyTorch's. **A TorchScript
            file runs the code it holds when it is loaded and used: name only files whose origin you trust.** State
            dicts run none. There is no default, and nothing is downloaded.
        size: height and width the network wants.
        mean, std: one number, or one a channel, in units of 0 to 255.
        bf16: let the network compute in bfloat16: two to four times faster where the device has it, and features that
            agree to two or three digits, so that they count as others.
        batch: how many images the network gets at once.
        device: where it runs.

    Attributes:
        name: the file's name.
        identity: sha256 of the file and of how images are prepared, in hexadecimal; equal features need an equal one.
        sha256: of the file alone.
        dimensions: d.

    Raises:
        UserError: the file is missing or holds no such network, or an argument is out of range.
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
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        prepared = f"{self.sha256} {size} {self._mean.flatten().tolist()} {self._std.flatten().tolist()} bilinear"
        prepared += " bfloat16" if bf16 else ""
        self.identity = hashlib.sha256(prepared.encode()).hexdigest()
        self.name, self._net = path.name, _load(path, self._device)
        self.dimensions = self._forward(torch.zeros(1, 3, size, size)).shape[1]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Map images x (N, C, H, W), C being 1 or 3, to (N, d), float32 on the CPU.

        Raises UserError for other shapes, values that are not finite, and values in [-1, 1] that are no bytes.
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
    """The number, or one a channel, as (1 or 3, 1, 1)."""
    numbers = torch.atleast_1d(torch.as_tensor(value, dtype=torch.float32))
    if numbers.shape not in ((1,), (3,)) or not torch.isfinite(numbers).all():
        raise UserError(f"{argument} must be one finite number or three, got {value}")
    return numbers[:, None, None]


def _load(path: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network of a file, by what the file holds and not by its name."""
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
        return Inception.of_weights(weights).eval().to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in the stub
    except UserError as error:
        raise UserError(f"features {path}: {error}") from error


def _is_script(path: Path) -> bool:
    """Whether a file is a zip archive with code, as TorchScript has and PyTorch's files of tensors have not."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(Path(name).parts[1:2] == ("code",) for name in archive.namelist())

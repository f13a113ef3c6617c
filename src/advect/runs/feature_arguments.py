"""The flags that name a network for the features of images, for every command that measures."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch

from advect.core.errors import UserError
from advect.evaluation import FeatureNetwork
from advect.evaluation.inception import SIDE


@dataclass(frozen=True, kw_only=True)
class FeatureArguments:
    """The network in whose features images are compared, and how images are prepared for it."""

    # File with the network, such as the Inception of 2015; a TorchScript file runs the code in it. By default the
    # values themselves up to 512 of them, else 128 principal components.
    features: Path | None = None

    feature_size: int = SIDE
    """Height and width that it wants; 224 for DINOv2."""
    feature_mean: tuple[float, ...] = (128.0,)
    """What it wants subtracted from values of 0 to 255, one number or three; 123.7 116.3 103.5 for DINOv2."""
    feature_std: tuple[float, ...] = (128.0,)
    """What it wants them divided by then; 58.4 57.1 57.4 for DINOv2."""
    feature_bf16: bool = False
    """Compute in bfloat16: faster where the device has it, and comparable with the same only."""

    def __post_init__(self) -> None:
        changed = [f.name for f in fields(self) if f.name != "features" and getattr(self, f.name) != f.default]
        if self.features is None and changed:
            raise UserError(f"--{changed[0].replace('_', '-')} does nothing without --features; give it, too")

    def network(self, device: torch.device) -> FeatureNetwork | None:
        """The network on a device; None where none is named. Raises UserError for a file or values that do not do."""
        if self.features is None:
            return None
        return FeatureNetwork(
            self.features,
            size=self.feature_size,
            mean=self.feature_mean,
            std=self.feature_std,
            bf16=self.feature_bf16,
            device=device,
        )

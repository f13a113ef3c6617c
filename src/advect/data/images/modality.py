"""Images: files, a grid, pixels in [0, 255] for a feature network."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from advect.core.types import Batch, Category, Conditions
from advect.data.base import Split
from advect.data.images.plot import image_grid
from advect.data.modality import Modality, write_npz


class Images(Modality):
    """Images (C, H, W): samples.npz with ``x``, and a grid."""

    name = "image"
    usual_preset = "images"
    metrics = ("frechet", "kernel", "manifolds", "class_shares", "straightness")
    online_metrics = ("frechet", "kernel")
    reflow_metrics = ("frechet", "kernel")
    pair_storage = "bf16"
    shown = 16
    most_plotted = 100
    space = "pixel space"
    is_image = True

    def reference(self, held_out: Split) -> Batch | None:
        """None: a grid shows samples alone."""
        return None

    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """A grid with a column for each value of the first category when there are 2 to 16, else of 8 columns.

        Black and white are the transform's ``low`` and ``high``; where it has none, the range of x.
        """
        values = next((len(c.names) for c in self.spec.conditions.values() if isinstance(c, Category)), 0)
        low, high = self.pixel_range or _range(x)
        return image_grid(x, low, high, columns=values if 2 <= values <= 16 else 8)

    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        return [write_npz(folder, {"x": x}, conditions, self.spec)]

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """The values of black and white, where the transform knows them."""
        low, high = getattr(self.transform, "low", None), getattr(self.transform, "high", None)
        return None if low is None or high is None else (low, high)


def _range(x: Tensor) -> tuple[float, float]:
    finite = x[torch.isfinite(x)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return low, high if low < high else low + 1


MODALITY = Images

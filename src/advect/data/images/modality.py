"""Images: files, a grid, pixels in [0, 255] for a feature network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from advect.core.registry import register
from advect.core.types import Batch, Category, Conditions
from advect.data.base import Split
from advect.data.images.plot import image_grid
from advect.data.modality import FINE, EstimatorDefaults, Modality, Verdict, write_npz


@register("image")
class Images(Modality):
    """Images (C, H, W): samples.npz with ``x``, and a grid."""

    layout = "image"
    usual_preset = "images"
    metrics = ("frechet", "kernel", "manifolds", "class_shares", "straightness")
    online_metrics = ("frechet", "kernel")
    reflow_metrics = ("frechet", "kernel")
    pair_stores = ("bf16", "float32", "uint8")
    estimator = EstimatorDefaults("unet", 2000, 1e-3)
    shown = 16
    most_plotted = 100
    space = "pixel space"
    value_name = "pixels"
    feature_networks = True
    marginals = False

    @classmethod
    def check_range(cls, *, mean: float, std: float, extreme: float) -> Verdict:
        if std < 0.1:
            title = "The images use a small part of the range of pixels: they are nearly uniform"
            fix = "pixels from 0 to 255, or from 0 to 1 as real numbers; or the right --value-range"
            return Verdict("problem", title, fix)
        if not -1.01 <= mean <= 1.01:
            return Verdict("problem", "The pixels lie outside their range", "the right --value-range")
        return FINE

    @classmethod
    def check_constant(cls, share: float) -> Verdict:
        title = "Some features never change"
        if share <= 0.5:
            return Verdict("ok", title)
        return Verdict("note", title, "crop the images, where it is an empty border")

    def check_output(self, *, individual: bool = False) -> None:
        pass

    def describe(self, shape: Sequence[int]) -> str:
        return f"{' x '.join(map(str, shape))} images"

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
        return [write_npz(folder, {"x": x}, conditions)]

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """The values of black and white, where the transform knows them."""
        low, high = getattr(self.transform, "low", None), getattr(self.transform, "high", None)
        return None if low is None or high is None else (low, high)


def _range(x: Tensor) -> tuple[float, float]:
    finite = x[torch.isfinite(x)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return low, high if low < high else low + 1

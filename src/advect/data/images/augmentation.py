"""Augmentation that does not leak: training images are changed at random, and the network is told how.

What a sample of the flow is given at the end, nothing, is what unchanged images are given in training, so the flow has
their law, and learns from the changed ones what they share (Jun et al. 2020, "Distribution augmentation for generative
modeling"; Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", appendix F.2).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from advect.core.bounds import NonNegative
from advect.core.errors import UserError
from advect.core.random import Generator, normal, uniform
from advect.core.registry import name_of, register
from advect.core.types import AUGMENTATION, Batch
from advect.data.base import Dataset, Split

if TYPE_CHECKING:
    from advect.data.images.folder import ImageSplit

Probability = Annotated[float, Meta(ge=0, le=1)]
D = TypeVar("D", bound=Dataset)

FEW = 5000
"""Photographs up to which they are changed in all ways by default, since a network would learn them by heart."""


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """Changes of images by ``size`` numbers each, all zero for none.

    Args:
        conditioned: tell the network, so that samples look like unchanged images; without, like the changed ones.
    """

    conditioned: bool = True

    part_kind: ClassVar[str] = "augmentation"
    size: ClassVar[int]
    square: ClassVar[bool] = False
    """Whether images must be square."""

    @abstractmethod
    def draw(self, n: int, generator: Generator = None) -> Tensor:
        """Random changes (n, size)."""

    @abstractmethod
    def apply(self, x: Tensor, change: Tensor) -> Tensor:
        """Images x (B, C, H, W) after the changes (B, size); those without one stay as they are, bit for bit."""

    def __call__(self, x: Tensor, generator: Generator = None) -> tuple[Tensor, Tensor]:
        """Changed images, and the condition ``AUGMENTATION`` (B, size) that tells how."""
        change = self.draw(len(x), generator)
        return self.apply(x, change), torch.where((change == 0).all(1, keepdim=True), math.nan, change)


@register("none")
@dataclass(frozen=True, kw_only=True)
class NoAugmentation(Augmentation):
    """Images as they are."""

    part_given: ClassVar[tuple[str, ...]] = ("conditioned",)
    size: ClassVar[int] = 0

    def draw(self, n: int, generator: Generator = None) -> Tensor:
        return torch.zeros(n, 0)

    def apply(self, x: Tensor, change: Tensor) -> Tensor:
        return x


@register("flip")
@dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """Mirror images, left to right.

    Args:
        mirrored: share of the images that are mirrored.
    """

    mirrored: Probability = 0.5
    size: ClassVar[int] = 1

    def draw(self, n: int, generator: Generator = None) -> Tensor:
        return (uniform((n, 1), generator) < self.mirrored).float()

    def apply(self, x: Tensor, change: Tensor) -> Tensor:
        return _where(change[:, 0] != 0, x.flip(3), x)


@register("crop")
@dataclass(frozen=True, kw_only=True)
class Crop(Augmentation):
    """Mirror images, and shift them by whole pixels, what comes in being a reflection at the edge.

    Args:
        mirrored: share of the images that are mirrored.
        shifted: share that are shifted.
        largest: longest shift, as a share of height and width.
    """

    mirrored: Probability = 0.5
    shifted: Probability = 0.5
    largest: Annotated[float, Meta(gt=0, le=0.5)] = 0.125
    size: ClassVar[int] = 3

    def draw(self, n: int, generator: Generator = None) -> Tensor:
        u = uniform((n, 4), generator)
        shift = self.largest * (2 * u[:, 2:] - 1) * (u[:, 1:2] < self.shifted)
        return torch.cat([(u[:, :1] < self.mirrored).float(), shift], 1)

    def apply(self, x: Tensor, change: Tensor) -> Tensor:
        x = _where(change[:, 0] != 0, x.flip(3), x)
        height, width = x.shape[2:]
        rows, columns = (
            _reflected(torch.arange(size) - (share * size).round().long()[:, None], size)
            for share, size in ((change[:, 1], height), (change[:, 2], width))
        )
        x = x.gather(2, rows[:, None, :, None].expand_as(x))
        return x.gather(3, columns[:, None, None, :].expand_as(x))


@register("symmetries")
@dataclass(frozen=True, kw_only=True)
class Symmetries(Augmentation):
    """The eight symmetries of a square, for pictures from above, of cells or of matter; none loses a pixel."""

    size: ClassVar[int] = 3
    square: ClassVar[bool] = True

    def draw(self, n: int, generator: Generator = None) -> Tensor:
        u = uniform((n, 2), generator)
        turns = (4 * u[:, 1]).floor()
        # Whether mirrored first, and the turn's point on the circle less that of none: 0 quarters are (0, 0).
        cos, sin = (f(turns * math.pi / 2).round() for f in (torch.cos, torch.sin))
        return torch.stack([(u[:, 0] < 0.5).float(), cos - 1, sin], 1)

    def apply(self, x: Tensor, change: Tensor) -> Tensor:
        x = _where(change[:, 0] != 0, x.flip(3), x)
        for quarters, cos, sin in ((1, 0, 1), (2, -1, 0), (3, 0, -1)):
            x = _where((change[:, 1] == cos - 1) & (change[:, 2] == sin), x.rot90(quarters, (2, 3)), x)
        return x


@register("geometric")
@dataclass(frozen=True, kw_only=True)
class Geometric(Augmentation):
    """Mirror, zoom, rotate, stretch and shift images, each in a share of them (Karras et al. 2022).

    Args:
        mirrored: share of the images that are mirrored.
        probability: share that each of the others changes.
        zoom: standard deviation of the octaves by which images grow.
        rotation: largest angle, as a share of a half turn.
        stretch: standard deviation of the octaves by which images grow along one direction and shrink across it.
        shift: standard deviation of shifts, as a share of height and width.
    """

    mirrored: Probability = 0.5
    probability: Probability = 0.12
    zoom: NonNegative = 0.2
    rotation: Probability = 1.0
    stretch: NonNegative = 0.2
    shift: NonNegative = 0.125
    size: ClassVar[int] = 8

    def draw(self, n: int, generator: Generator = None) -> Tensor:
        u, z = uniform((n, 7), generator), normal((n, 4), generator, dtype=torch.float32)
        zoomed, turned, stretched, shifted = (u[:, 1:5] < self.probability).float().unbind(1)
        angle, stretch = self.rotation * math.pi * (2 * u[:, 5] - 1) * turned, self.stretch * z[:, 1] * stretched
        across = 2 * math.pi * u[:, 6]  # twice the direction, as stretching is the same along it and against it
        change = [
            (u[:, 0] < self.mirrored).float(),
            self.zoom * z[:, 0] * zoomed,
            angle.cos() - 1,
            angle.sin(),
            stretch * across.cos(),
            stretch * across.sin(),
            self.shift * z[:, 2] * shifted,
            self.shift * z[:, 3] * shifted,
        ]
        return torch.stack(change, 1) + 0.0  # no -0.0

    def apply(self, x: Tensor, change: Tensor) -> Tensor:
        x = _where(change[:, 0] != 0, x.flip(3), x)
        moved = (change[:, 1:] != 0).any(1)
        if not moved.any():
            return x
        x = x.clone()
        x[moved] = _resampled(x[moved], change[moved])
        return x


def _where(these: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Images of ``x`` where ``these`` (B,), else of ``other``."""
    return torch.where(these[:, None, None, None], x, other)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places 0 .. size - 1 for any, reflected at the edges, which are seen twice."""
    around = places.remainder(2 * size)
    return torch.minimum(around, 2 * size - 1 - around)


def _inverse(change: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inverse of the linear part of changes (B, 8) of :class:`Geometric`: its elements xx, xy, yx and yy, (B,) each.

    A point p from the middle goes to ``S R p + shift``, with rotation and zoom R and stretch S.
    """
    cos, sin = change[:, 2] + 1, change[:, 3]
    size, along, across = torch.exp2(-change[:, 1]), change[:, 4], change[:, 5]
    s = (along**2 + across**2).sqrt()
    # S = exp(M log 2), M = ((along, across), (across, -along)): M^2 = s^2, so S^-1 = cosh - M sinh / s.
    even, odd = (s * math.log(2)).cosh(), (s * math.log(2)).sinh() / s.clamp(min=1e-30)
    xx, xy, yy = even - odd * along, -odd * across, even + odd * along
    return (
        size * (cos * xx + sin * xy),
        size * (cos * xy + sin * yy),
        size * (cos * xy - sin * xx),
        size * (cos * yy - sin * xy),
    )


def _resampled(x: Tensor, change: Tensor) -> Tensor:
    """Images x (B, C, H, W) after changes (B, 8) without their flips, reflected at the edges, within their range.

    Element by element and in float64, since products of matrices, and functions in float32, round by the size of the
    batch.
    """
    height, width = x.shape[2:]
    change = change.double()
    xx, xy, yx, yy = (element[:, None, None] for element in _inverse(change))
    right, down = (change[:, i, None, None] for i in (6, 7))
    # Pixels from the middle, of the point seen at a pixel.
    column = torch.arange(width) - (width - 1) / 2 - right * width
    row = (torch.arange(height) - (height - 1) / 2)[:, None] - down * height
    grid = torch.stack([(xx * column + xy * row) / (width / 2), (yx * column + yy * row) / (height / 2)], 3)
    moved = F.grid_sample(x, grid.to(x.dtype), mode="bicubic", padding_mode="reflection", align_corners=False)
    return moved.clamp(x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))


class AugmentedSplit(Split):
    """Another split's images, changed where they are fetched with an rng, with the condition that tells how."""

    def __init__(self, split: Split, augmentation: Augmentation) -> None:
        self._split, self._augmentation = split, augmentation
        self.shards, self.buckets, self.shapes = split.shards, split.buckets, split.shapes

    def __len__(self) -> int:
        return len(self._split)

    @property
    def files(self) -> ImageSplit | None:
        return self._split.files

    def fetch(self, indices: np.ndarray, rng: Generator = None, *bucket: int | None) -> Batch:
        batch = self._split.fetch(indices, rng, *bucket)
        if rng is None:
            return batch
        x1, told = self._augmentation(batch.x1, rng)
        if not self._augmentation.conditioned:
            return replace(batch, x1=x1)
        return replace(batch, x1=x1, cond={**(batch.cond or {}), AUGMENTATION: told})

    def origin(self, indices: np.ndarray) -> tuple[Split, np.ndarray]:
        return self._split.origin(indices)

    def row_names(self, indices: np.ndarray) -> list[str]:
        return self._split.row_names(indices)


def usual_augmentation(data: type[Dataset], rows: int) -> str:
    """Name of the augmentation of ``rows`` training samples of a format by default."""
    if not data.photographs:
        return "none"
    return "geometric" if rows <= FEW else "flip"


def augmented(dataset: D, augmentation: Augmentation) -> D:
    """The data set with training images so changed. Raises UserError for data that are no images, or not such."""
    name = name_of(augmentation)
    if isinstance(augmentation, NoAugmentation):
        return dataset
    if dataset.modality.layout != "image":
        what = f"{dataset.name} has {dataset.spec.modality} data"
        raise UserError(f"--augment {name} needs images, and {what}; leave it out")
    for _, height, width in (dataset.spec.shape, *dataset.train.shapes):
        if augmentation.square and height != width:
            raise UserError(f"--augment {name} needs square images, and these are {height} x {width}; take flip")
    made = copy.copy(dataset)
    made.__dict__.pop("modality", None)  # made of the spec
    made.augmentation, made.train = name, AugmentedSplit(dataset.train, augmentation)
    made.spec = replace(dataset.spec, augmentation=augmentation.size if augmentation.conditioned else 0)
    return made

"""Masks: laws of the entries that a flow is given in training, so that it answers conditional questions.

A sample's entries (columns, pixels, a channel at a step) are known or drawn, each as a whole. The flow of the drawn
ones given the known ones is learned for all masks of the law at once, as the minimiser of the loss is the marginal
velocity under whatever the network is given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from advect.core import registry
from advect.core.bounds import Count, Share
from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator, uniform
from advect.core.registry import register
from advect.core.types import LENGTH, Entries, without_padding

Ratio = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Mask(ABC):
    """A law of what is known.

    Args:
        entries: those of a sample.
        unconditional: share of samples in which nothing is known, so that plain samples stay good.
    """

    entries: Entries
    unconditional: Share = 0.1

    part_kind: ClassVar[str] = "mask"
    part_given: ClassVar[tuple[str, ...]] = ("entries",)
    layout: ClassVar[tuple[int, str] | None] = None
    """Axes that a sample must have, and the kind of data that has them."""

    def __post_init__(self) -> None:
        if self.layout and self.entries.groups.ndim != self.layout[0]:
            raise UserError(
                f"{type(self).__name__} needs {self.layout[1]}, and samples have shape "
                f"{tuple(self.entries.groups.shape)}; take --mask random"
            )

    @abstractmethod
    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        """Which elements are known, bool (B, *S), of data x1 (B, *S), sequences of ``lengths`` (B,) real steps."""

    def sample(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        """:meth:`known`, with a share of samples in which nothing is."""
        known = self.known(x1, lengths, generator)
        free = uniform((len(x1),), generator, device=x1.device) < self.unconditional
        return known & ~free.reshape(-1, *[1] * (x1.ndim - 1))

    def given(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        """The condition ``GIVEN`` (B, *S) of a draw of the mask; NaN in x1 are entries that the data lack."""
        given = torch.where(self.sample(x1, lengths, generator), x1, math.nan)
        return torch.where(x1.isnan(), math.inf, given)

    def relate(self, x1: Tensor, given: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x1 and the condition ``given`` (B, *S) as the flow learns them."""
        return x1, given

    def _spread(self, known: Tensor, x1: Tensor) -> Tensor:
        """Whether each element of x1 (B, *S) is known, of its entries ``known`` (B, entries)."""
        return known[:, self.entries.of(x1.shape[1:]).to(x1.device)]

    def _whole(self, known: Tensor) -> Tensor:
        """Entries of ``known`` (B, *S) as their first element is: all steps have the start of a sequence's times."""
        return known.flatten(1)[:, self.entries.first.to(known.device)].reshape(known.shape)

    def _draw(self, n: int, x1: Tensor, generator: Generator) -> Tensor:
        """Uniform numbers (B, n)."""
        return uniform((len(x1), n), generator, device=x1.device)


@register("none")
@dataclass(frozen=True, kw_only=True)
class NoMask(Mask):
    """Nothing is known: the flow answers no conditional questions."""

    part_given: ClassVar[tuple[str, ...]] = ("entries", "unconditional")

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        return torch.zeros_like(x1, dtype=torch.bool)


@register("random")
@dataclass(frozen=True, kw_only=True)
class RandomMask(Mask):
    """Each entry is known with a rate drawn for each sample.

    Args:
        least: smallest rate.
        most: largest rate.
    """

    least: Ratio = 0.0
    most: Ratio = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise UserError(f"RandomMask.least is {self.least}, above RandomMask.most {self.most}; exchange them")

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        u = self._draw(1 + self.entries.count(x1.shape[1:]), x1, generator)
        rate = self.least + (self.most - self.least) * u[:, :1]
        return self._spread(u[:, 1:] < rate, x1)


@register("columns")
@dataclass(frozen=True, kw_only=True)
class ColumnsMask(Mask):
    """The same columns are known in each sample.

    Args:
        known_columns: their names, or numbers from 0 on.
    """

    known_columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.known_columns or len(self._known) == self.entries.count():
            what = "none" if not self.known_columns else "all"
            raise UserError(f"ColumnsMask.known_columns names {what} of the columns; name some of them")

    @cached_property
    def _known(self) -> list[int]:
        names = self.entries.names or tuple(map(str, range(self.entries.count())))
        for name in self.known_columns:
            if name not in names:
                raise UserError(f"ColumnsMask.known_columns names {name!r}{did_you_mean(name, names)}")
        return sorted({names.index(name) for name in self.known_columns})

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        known = torch.zeros(len(x1), self.entries.count(), dtype=torch.bool, device=x1.device)
        known[:, self._known] = True
        return self._spread(known, x1)


@register("prefix")
@dataclass(frozen=True, kw_only=True)
class PrefixMask(Mask):
    """All but the last steps of a sequence are known: a forecast.

    Args:
        horizon: steps to draw, one number or the smallest and largest; default from one to all but the first.
        relative: learn and draw sequences less the mean of the known steps of each channel, as the levels of many
            series drift (an instance normalisation: Kim et al. 2022, "Reversible instance normalization").
    """

    horizon: Sequence[Count] = ()
    relative: bool = False
    layout: ClassVar[tuple[int, str] | None] = (2, "sequences (steps, channels)")

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.entries.groups.shape[0]
        ordered = list(self.horizon) == sorted(self.horizon)
        if len(self.horizon) > 2 or not ordered or (self.horizon and self.horizon[-1] >= steps):
            words = " ".join(map(str, self.horizon))
            raise UserError(
                f"PrefixMask.horizon must be one number of steps, or the smallest and largest, below {steps}, "
                f"those of a sequence; got {words}"
            )

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        steps = x1.shape[1]
        low, high = (1, max(steps - 1, 1)) if not self.horizon else (self.horizon[0], self.horizon[-1])
        drawn = low + (self._draw(1, x1, generator) * (high - low + 1)).long()
        last = torch.full_like(drawn, steps) if lengths is None else lengths[:, None].to(drawn)
        known = torch.arange(steps, device=x1.device) < last - drawn
        return self._whole(known[:, :, None].expand_as(x1))

    def relate(self, x1: Tensor, given: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.relative:
            return x1, given
        level = known_level(given, lengths)
        return x1 - level, given - level


def known_level(given: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean (B, L, C) of the known steps of each channel in the condition ``given`` (B, L, C); 0 where none is known,
    and in the padding of sequences of ``lengths`` (B,).
    """
    known = given.isfinite()
    mean = torch.where(known, given, 0.0).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    cond = {} if lengths is None else {LENGTH: lengths}
    return without_padding(mean.expand_as(given), cond)


@register("blocks")
@dataclass(frozen=True, kw_only=True)
class BlocksMask(Mask):
    """All but some spans of steps of a sequence are known.

    Args:
        count: number of spans.
        longest: largest share of the steps in a span.
    """

    count: Annotated[int, Meta(ge=1, le=1000)] = 1
    longest: Annotated[float, Meta(gt=0, le=1)] = 0.5
    layout: ClassVar[tuple[int, str] | None] = (2, "sequences (steps, channels)")

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        u = self._draw(2 * self.count, x1, generator)
        steps = torch.full_like(u[:, :1], x1.shape[1]) if lengths is None else lengths[:, None].to(u)
        size = 1 + (u[:, ::2] * (self.longest * steps)).floor().clamp(max=steps - 1)
        first = (u[:, 1::2] * (steps - size + 1)).floor()
        place = torch.arange(x1.shape[1], device=x1.device)[:, None]
        drawn = (place >= first[:, None]) & (place < (first + size)[:, None])
        return self._whole(~drawn.any(2)[:, :, None].expand_as(x1))


@register("boxes")
@dataclass(frozen=True, kw_only=True)
class BoxesMask(Mask):
    """All of an image but a rectangle is known.

    Args:
        least: smallest side, as a share of the image's.
        most: largest side.
    """

    least: Annotated[float, Meta(gt=0, le=1)] = 0.2
    most: Annotated[float, Meta(gt=0, le=1)] = 0.8
    layout: ClassVar[tuple[int, str] | None] = (3, "images (channels, height, width)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise UserError(f"BoxesMask.least is {self.least}, above BoxesMask.most {self.most}; exchange them")

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        u, inside = self._draw(4, x1, generator), []
        for axis, side in enumerate(x1.shape[2:]):
            share = self.least + (self.most - self.least) * u[:, 2 * axis : 2 * axis + 1]
            size = (share * side).round().clamp(1, side)
            first = (u[:, 2 * axis + 1 : 2 * axis + 2] * (side - size + 1)).floor()
            place = torch.arange(side, device=x1.device)
            inside.append((place >= first) & (place < first + size))
        box = inside[0][:, :, None] & inside[1][:, None, :]
        return ~box[:, None].expand_as(x1)


@register("half")
@dataclass(frozen=True, kw_only=True)
class HalfMask(Mask):
    """One half of an image is known, the left, right, upper or lower one."""

    layout: ClassVar[tuple[int, str] | None] = (3, "images (channels, height, width)")

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        which = (self._draw(1, x1, generator) * 4).long()[:, :, None]
        height, width = x1.shape[2:]
        upper = (torch.arange(height, device=x1.device) < height // 2)[None, :, None].expand(1, height, width)
        left = (torch.arange(width, device=x1.device) < width // 2).expand(1, height, width)
        first = torch.where(which < 2, left, upper)
        return (first ^ (which % 2 == 1))[:, None].expand_as(x1)


@register("genes")
@dataclass(frozen=True, kw_only=True)
class GenesMask(Mask):
    """As many entries are known in each sample, others in each: a panel of genes.

    Args:
        panel: their number.
    """

    panel: Count = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.panel >= self.entries.count():
            raise UserError(
                f"GenesMask.panel must be below the number of entries, {self.entries.count():,}, got {self.panel:,}"
            )

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        rank = self._draw(self.entries.count(), x1, generator).argsort(1).argsort(1)
        return self._spread(rank < self.panel, x1)


@register("mixture")
@dataclass(frozen=True, kw_only=True)
class MixtureMask(Mask):
    """Several masks in equal shares, each with its own defaults.

    Args:
        of: their names.
    """

    of: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.of:
            raise UserError("MixtureMask.of names no mask; name two or more, such as random prefix")
        _ = self._masks

    @cached_property
    def _masks(self) -> list[Mask]:
        return [registry.get("mask", name)(entries=self.entries) for name in self.of]

    def known(self, x1: Tensor, lengths: Tensor | None = None, generator: Generator = None) -> Tensor:
        which = (self._draw(1, x1, generator)[:, 0] * len(self._masks)).long()
        each = torch.stack([mask.known(x1, lengths, generator) for mask in self._masks])
        return each[which, torch.arange(len(x1), device=x1.device)]

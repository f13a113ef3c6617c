"""Measurements ``y = A(x) + noise`` of samples: A, its derivative and the derivative's transpose.

A part of the measurement is a row: ``A(x (B, *S)) -> (B, *M)``, row i of row i alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advect.core.bounds import Count, Positive, bounded
from advect.core.errors import UserError

Map = Callable[[Tensor], Tensor]


class Tangent(NamedTuple):
    """A near one x (B, *S): its ``value`` (B, *M), ``push(u (B, *S))`` = A' u and ``pull(v (B, *M))`` = A'^T v."""

    value: Tensor
    push: Map
    pull: Map


class Measurement(ABC):
    """A differentiable A; derivatives are PyTorch's, in reverse mode."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A(x) (B, *M) of x (B, *S)."""

    def near(self, x: Tensor) -> Tangent:
        """A and its derivative at x (B, *S). Raises UserError if A has none."""
        at = x.detach().requires_grad_()
        with torch.enable_grad():
            value = self(at)
            if not value.requires_grad:
                raise UserError(
                    f"{type(self).__name__} has no gradient in x; compute it by PyTorch, without rounding, "
                    "torch.no_grad and detach"
                )
            v = torch.zeros_like(value, requires_grad=True)
            (slope,) = torch.autograd.grad(value, at, v, create_graph=True, materialize_grads=True)

        def pull(v: Tensor) -> Tensor:
            return torch.autograd.grad(value, at, v.to(value.dtype), retain_graph=True, materialize_grads=True)[0]

        def push(u: Tensor) -> Tensor:  # the transpose of the transpose, which is linear in v
            return torch.autograd.grad(slope, v, u, retain_graph=True, materialize_grads=True)[0]

        return Tangent(value.detach(), push, pull)

    def rows(self, rows: slice | Tensor, shape: Sequence[int]) -> Measurement:
        """The measurement of these samples of ``shape`` S, of one that differs by sample."""
        return self

    def observed(self, y: Tensor) -> Tensor:
        """y with zeros where the measurement says nothing."""
        return y

    def fullest(self, shape: Sequence[int]) -> int:
        """Which sample of ``shape`` S it says most of, of one that differs by sample."""
        return 0


class LinearMeasurement(Measurement):
    """A linear A; its adjoint is PyTorch's unless it has one."""

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        """A^T v (B, *S), shaped as ``like``, of v (B, *M)."""
        at = torch.zeros_like(like, requires_grad=True)
        with torch.enable_grad():
            value = self(at)
            if not value.requires_grad:
                raise UserError(
                    f"{type(self).__name__} has no gradient in x; give its adjoint, or compute it by PyTorch"
                )
            return torch.autograd.grad(value, at, v.to(value.dtype), materialize_grads=True)[0]

    def near(self, x: Tensor) -> Tangent:
        return Tangent(self(x), self, lambda v: self.adjoint(v, x))


class Linear(LinearMeasurement):
    """A matrix (M, D), dense or sparse, of the D elements of a sample; or a linear function, with any adjoint.

    ``adjoint(v (B, *M)) -> (B, *S)``. Whether a function is linear is taken on trust.
    """

    def __init__(self, a: Tensor | np.ndarray | Sequence | Map, adjoint: Map | None = None) -> None:
        matrix = None if callable(a) else a if isinstance(a, Tensor) else torch.as_tensor(np.asarray(a))
        if matrix is not None and (matrix.ndim != 2 or adjoint is not None):
            what = "an adjoint as well" if adjoint is not None else f"shape {tuple(matrix.shape)}"
            raise UserError(f"Linear takes a matrix (M, D) or a function with its adjoint, got {what}")
        self.matrix, self.function, self.transpose = matrix, a, adjoint

    def __call__(self, x: Tensor) -> Tensor:
        if self.matrix is None:
            return self.function(x)  # pyright: ignore[reportCallIssue]
        flat = x.flatten(1)
        if self.matrix.shape[1] != flat.shape[1]:
            raise UserError(
                f"Linear has a matrix of shape {tuple(self.matrix.shape)}, but a sample has {flat.shape[1]} elements"
            )
        return (self.matrix.to(x.device, x.dtype) @ flat.mT).mT

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        if self.matrix is not None:
            return (self.matrix.to(v.device, v.dtype).mT @ v.mT).mT.reshape(like.shape)
        return super().adjoint(v, like) if self.transpose is None else self.transpose(v)


class Differentiable(Measurement):
    """Any function A(x (B, *S)) -> (B, *M) of PyTorch operations; methods take its derivative at their estimate."""

    def __init__(self, function: Map) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class Masked(LinearMeasurement):
    """The elements of ``mask``, True where known: (*S), or (n, *S) where each of n samples has its own."""

    def __init__(self, mask: Tensor | np.ndarray | Sequence) -> None:
        self.mask = torch.as_tensor(np.asarray(mask) if not isinstance(mask, Tensor) else mask)
        if self.mask.dtype != torch.bool:
            raise UserError(f"Masked needs a mask of truth values, True where known, got {self.mask.dtype}")

    def __call__(self, x: Tensor) -> Tensor:
        if self.mask.shape not in (x.shape, x.shape[1:]):
            raise UserError(
                f"Masked has a mask of shape {tuple(self.mask.shape)}, but samples have {tuple(x.shape[1:])}; "
                "give one for all, or one each"
            )
        return torch.where(self.mask.to(x.device), x, 0.0)

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        return self(v)

    def rows(self, rows: slice | Tensor, shape: Sequence[int]) -> Masked:
        return self if self.mask.ndim == len(shape) else Masked(self.mask[rows])

    def observed(self, y: Tensor) -> Tensor:
        return torch.where(self.mask.to(y.device), y, 0.0)

    def fullest(self, shape: Sequence[int]) -> int:
        return 0 if self.mask.ndim == len(shape) else int(self.mask.flatten(1).sum(1).argmax())


@bounded
class Blur(LinearMeasurement):
    """Gaussian blur of deviation ``std`` pixels of images (B, C, H, W), whose edges are repeated outwards."""

    def __init__(self, std: Positive) -> None:
        self.std, self.radius = std, max(1, math.ceil(3 * std))

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise UserError(f"Blur needs images (B, C, H, W), got {tuple(x.shape)}; give a function of your own")
        at = torch.arange(-self.radius, self.radius + 1, device=x.device, dtype=x.dtype)
        kernel = (-at.square() / (2 * self.std**2)).exp()
        kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
        wide = F.pad(x, (self.radius,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(wide, kernel, groups=x.shape[1]), kernel.mT, groups=x.shape[1])


@bounded
class Downsample(LinearMeasurement):
    """Means of blocks: ``factor`` x ``factor`` pixels of images (B, C, H, W), or steps of sequences (B, L, C)."""

    def __init__(self, factor: Count) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        axes = {4: (2, 3), 3: (1,)}.get(x.ndim)
        if axes is None or any(x.shape[axis] % self.factor for axis in axes):
            raise UserError(
                f"Downsample.factor is {self.factor}, which must divide height and width of images, or the steps of "
                f"sequences, but samples have shape {tuple(x.shape[1:])}"
            )
        for axis in axes:
            x = x.unflatten(axis, (-1, self.factor)).mean(axis + 1)
        return x

    def adjoint(self, v: Tensor, like: Tensor) -> Tensor:
        for axis in {4: (2, 3), 3: (1,)}[like.ndim]:
            v = v.repeat_interleave(self.factor, axis) / self.factor
        return v


class ColumnSums(LinearMeasurement):
    """Sums of columns of vectors (B, D): one for each of ``groups``, lists of columns such as [[0, 1], [2, 5]]."""

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        if not groups or any(len(group) == 0 or min(group) < 0 for group in groups):
            raise UserError(f"ColumnSums.groups must be lists of columns, numbered from 0, got {groups!r:.100}")
        self.groups = [torch.tensor(list(group)) for group in groups]

    def __call__(self, x: Tensor) -> Tensor:
        last = max(int(group.max()) for group in self.groups)
        if x.ndim != 2 or last >= x.shape[1]:
            raise UserError(
                f"ColumnSums.groups names column {last}, but samples have shape {tuple(x.shape[1:])}; "
                "columns are numbered from 0"
            )
        return torch.stack([x[:, group.to(x.device)].sum(1) for group in self.groups], 1)


class Through(Measurement):
    """A measurement of ``inverse(x)``, as of samples in data units."""

    def __init__(self, inner: Measurement, inverse: Map) -> None:
        self.inner, self.inverse = inner, inverse

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner(self.inverse(x))

    def rows(self, rows: slice | Tensor, shape: Sequence[int]) -> Through:
        return Through(self.inner.rows(rows, shape), self.inverse)

    def observed(self, y: Tensor) -> Tensor:
        return self.inner.observed(y)

    def fullest(self, shape: Sequence[int]) -> int:
        return self.inner.fullest(shape)


def as_measurement(a: Measurement | Tensor | np.ndarray | Map) -> Measurement:
    """The measurement, or one of a matrix or a differentiable function. Raises UserError for anything else."""
    if isinstance(a, Measurement):
        return a
    if isinstance(a, Tensor | np.ndarray):
        return Linear(a)
    if callable(a):
        return Differentiable(a)
    raise UserError(f"a measurement is a matrix, a function, or a part such as Masked(mask), got {a!r:.100}")

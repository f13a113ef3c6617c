"""The divergence of a velocity: the trace of its Jacobian, exactly or by random probes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import jvp, vmap

from advect.core import random
from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator
from advect.sampling.solvers import Velocity

NOISES = ("rademacher", "gaussian")


class QuadraticForms:
    """``v^T J v`` for vectors v, J the Jacobian of ``velocity`` in x, for each sample by itself.

    In forward mode, all vectors at once, since it needs no graph; in reverse mode, one vector after the other, from
    the first time on that an operator of the velocity turns out to have no forward derivative.
    Row i of the velocity must depend on row i of x alone: batch normalisation in training mode, say, is no such map.
    """

    def __init__(self, velocity: Velocity, *, create_graph: bool = False) -> None:
        self.velocity, self.create_graph, self.forward_mode = velocity, create_graph, True

    def __call__(self, x: Tensor, t: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity (B, *S) at x (B, *S), t (B,), and the forms (K, B) of vectors (K, B, *S)."""
        if self.forward_mode:
            try:
                return self._forward(x, t, vectors)
            except NotImplementedError:
                self.forward_mode = False
        return self._reverse(x, t, vectors)

    def _forward(self, x: Tensor, t: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous()  # dual numbers cannot be made of memory that elements share

        def form(v: Tensor) -> tuple[Tensor, Tensor]:
            u, moved = jvp(lambda y: self.velocity(y, t), (x,), (v,))[:2]
            return u, (moved * v).flatten(1).sum(1)

        u, forms = vmap(form, out_dims=(None, 0), randomness="same")(vectors)  # type: ignore[arg-type]
        return u, forms

    @torch.enable_grad()
    def _reverse(self, x: Tensor, t: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        at = x if self.create_graph and x.requires_grad else x.detach().requires_grad_()
        u = self.velocity(at, t)
        forms = []
        for v in vectors:
            (pulled,) = torch.autograd.grad(u, at, v, retain_graph=True, create_graph=self.create_graph)
            forms.append((pulled * v).flatten(1).sum(1))
        return (u if self.create_graph else u.detach()), torch.stack(forms)


class ExactDivergence:
    """The trace by one basis vector an element of x, ``chunk`` of them at once."""

    def __init__(self, forms: QuadraticForms, chunk: int) -> None:
        if chunk < 1:
            raise UserError(f"chunk must be at least 1, got {chunk}; 32 is usual")
        self.forms, self.chunk = forms, chunk

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity (B, *S) and its divergence (B,) at x (B, *S), t (B,)."""
        size = math.prod(x.shape[1:])
        u, total = x, x.new_zeros(len(x))
        for first in range(0, size, self.chunk):
            elements = torch.arange(first, min(first + self.chunk, size), device=x.device)
            basis = torch.nn.functional.one_hot(elements, size).to(x.dtype).view(-1, 1, *x.shape[1:])
            u, forms = self.forms(x, t, basis.expand(-1, *x.shape))
            total = total + forms.sum(0)
        return u, total


class HutchinsonDivergence:
    """The mean of ``v^T J v`` over probes v (K, B, *S) of covariance I: unbiased (Hutchinson 1990).

    The probes stay the same along a solution, so that its ODE is a smooth one (Grathwohl et al. 2019, "FFJORD",
    section 3.1).
    """

    def __init__(self, forms: QuadraticForms, probes: Tensor) -> None:
        self.forms, self.probes = forms, probes

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity (B, *S) and an estimate of its divergence (B,) at x (B, *S), t (B,)."""
        u, forms = self.forms(x, t, self.probes)
        return u, forms.mean(0)


def draw_probes(x: Tensor, count: int, noise: str, generator: Generator = None) -> Tensor:
    """``count`` vectors (count, B, *S) of covariance I, of signs ("rademacher") or normal ("gaussian").

    Signs give the least variance of all independent entries (Hutchinson 1990, proposition 1).
    """
    if count < 1:
        raise UserError(f"probes must be at least 1, got {count}")
    if noise not in NOISES:
        raise UserError(f"noise {noise!r} is not known{did_you_mean(str(noise), NOISES)}")
    shape = (len(x), count, *x.shape[1:])
    if noise == "gaussian":
        return random.normal(shape, generator, device=x.device, dtype=x.dtype).movedim(1, 0)
    signs = random.uniform(shape, generator, device=x.device) < 0.5
    return torch.where(signs, -1.0, 1.0).to(x.dtype).movedim(1, 0)

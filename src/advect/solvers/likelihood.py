"""Log-density of a flow by the instantaneous change of variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advect.core import random
from advect.core.derivatives import UnfusedAttention, input_derivatives
from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator
from advect.core.types import check_floating
from advect.solvers.base import Solver, Velocity, all_finite, expanded_times, get_solver, not_finite
from advect.solvers.dormand_prince import DormandPrince, worst_sample
from advect.solvers.integrate import explain_divergence, solver_times

NOISES = ("rademacher", "gaussian")

CHUNK = 32
"""Rows of a Jacobian at once."""


class Linearised:
    """``velocity`` near x (B, *S) at t (B,): its value, and the Jacobian J in x, by row, from the left.

    Row i of the velocity must depend on row i of x only. Reverse mode: PyTorch's forward mode is one for all threads
    of a process.

    Attributes:
        u: the velocity (B, *S).
        batched: whether vectors are pulled all at once, unless an operator has no rule for it.
    """

    def __init__(
        self, velocity: Velocity, x: Tensor, t: Tensor, *, create_graph: bool = False, batched: bool = True
    ) -> None:
        self.create_graph, self.batched = create_graph, batched
        self._at = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad(), UnfusedAttention(), nullcontext() if create_graph else input_derivatives():
            self._u = velocity(self._at, t)
            if not self._u.requires_grad and not torch.equal(velocity(self._at + 0.1, t), self._u):
                raise UserError(
                    "velocity has no gradient in x, as densities and posteriors need; compute it without "
                    "torch.no_grad and detach"
                )
        self.u = self._u if create_graph else self._u.detach()

    def pull(self, vectors: Tensor) -> Tensor:
        """``J^T v`` (K, B, *S) for vectors v (K, B, *S)."""
        if not self._u.requires_grad:  # the same everywhere
            return torch.zeros_like(vectors)
        if self.batched and len(vectors) > 1:
            try:
                return self._pull(vectors, together=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # such as of channels-last convolutions
                self.batched = False
        return torch.stack([self._pull(v, together=False) for v in vectors])

    def _pull(self, vectors: Tensor, *, together: bool) -> Tensor:
        options: dict[str, Any] = {"retain_graph": True, "create_graph": self.create_graph, "materialize_grads": True}
        pull = lambda v: torch.autograd.grad(self._u, self._at, v, **options)[0]
        return torch.func.vmap(pull)(vectors) if together else pull(vectors)

    def rows(self, chunk: int) -> Iterator[tuple[int, Tensor]]:
        """Rows of J for the elements of u, ``chunk`` at once: (K, B, D) with the first of the K elements."""
        size = math.prod(self.u.shape[1:])
        for first in range(0, size, chunk):
            elements = torch.arange(first, min(first + chunk, size), device=self.u.device)
            basis = F.one_hot(elements, size).to(self.u.dtype).view(-1, 1, *self.u.shape[1:])
            yield first, self.pull(basis.expand(-1, *self.u.shape)).flatten(2)


class ExactDivergence:
    """Trace by one basis vector an element of x, ``chunk`` at once."""

    def __init__(self, velocity: Velocity, chunk: int, *, create_graph: bool = False) -> None:
        if chunk < 1:
            raise UserError(f"chunk must be at least 1, got {chunk}; 32 is usual")
        self.velocity, self.chunk, self.create_graph, self._batched = velocity, chunk, create_graph, True

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, *S) and divergence (B,) at x (B, *S), t (B,)."""
        near = Linearised(self.velocity, x, t, create_graph=self.create_graph, batched=self._batched)
        total = x.new_zeros(len(x))
        for first, rows in near.rows(self.chunk):
            total = total + rows.diagonal(first, 0, 2).sum(1)
        self._batched = near.batched
        return near.u, total


class HutchinsonDivergence:
    """Mean of ``v^T J v`` over probes v (K, B, *S) of covariance I: unbiased (Hutchinson 1990).

    The probes are fixed along a solution (Grathwohl et al. 2019, "FFJORD", section 3.1).
    """

    def __init__(self, velocity: Velocity, probes: Tensor, *, create_graph: bool = False) -> None:
        self.velocity, self.probes, self.create_graph, self._batched = velocity, probes, create_graph, True

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, *S) and estimated divergence (B,) at x (B, *S), t (B,)."""
        near = Linearised(self.velocity, x, t, create_graph=self.create_graph, batched=self._batched)
        total = (near.pull(self.probes) * self.probes).flatten(2).sum(2).mean(0)
        self._batched = near.batched
        return near.u, total


def draw_probes(x: Tensor, count: int, noise: str, generator: Generator = None) -> Tensor:
    """``count`` vectors (count, B, *S) of covariance I: signs ("rademacher", least variance) or normal
    ("gaussian").
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


Divergence = ExactDivergence | HutchinsonDivergence


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """Log density (B,) of N(0, I) at x (B, *S), in nats."""
    flat = x.flatten(1)
    return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))


def log_prob(
    velocity: Velocity,
    x1: Tensor,
    *,
    source: Callable[[Tensor], Tensor] = standard_normal_log_prob,
    solver: str | Solver = "dopri5",
    steps: int | None = None,
    grid: str | Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    trace: Literal["exact", "hutchinson"] = "exact",
    chunk: int | None = None,
    probes: int | None = None,
    noise: Literal["rademacher", "gaussian"] | None = None,
    generator: Generator = None,
    log_det: Tensor | float = 0.0,
    nodes: int | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Log density (B,), in nats, of data x1 (B, *S) under the flow of ``velocity(x, t (B,))``.

    ``log p_1(x_1) = log p_0(x_0) - int_0^1 div u_t(x_t) dt`` along the solution that ends in x1 (Chen et al. 2018,
    "Neural ordinary differential equations", theorem 1; Lipman et al. 2023, appendix C), state and integral solved as
    one system.

    Args:
        source: log density (B,) of the source at x0 (B, *S); default N(0, I).
        t0, t1: times of the source and of x1.
        solver, steps, grid, rtol, atol, max_steps: as in :func:`integrate`; tolerances include the integral.
            "dpmpp2m" is refused.
        trace: "exact" costs as many passes as x has elements, ``chunk`` (32) at once; "hutchinson" costs
            ``probes`` (1), unbiased.
        noise: entries of the probes, "rademacher" (default) or "gaussian", from ``generator``.
        log_det: log |det| (B,) of the preprocessing's Jacobian, in nats, for the density of raw data; see
            :func:`elementwise_log_det`.
        nodes: Gauss-Legendre nodes of the integral over the states of a solver of fixed steps, none longer than those
            of a uniform grid of ``steps``: as many as steps are about as accurate as one system by Runge-Kutta of
            order 4, with a quarter of the traces. None solves state and integral as one system.
        create_graph: make the density differentiable in x1 and the parameters.

    Uses unfused attention. Raises UserError for an unknown name, an unused option, and
    a non-finite state.
    """
    check_floating(x1=x1)
    method = get_solver(solver, rtol=rtol, atol=atol, max_steps=max_steps)
    if method.affine_only or method.two_times or method.jumps:
        raise UserError(f"solver {method.name!r} cannot integrate a divergence; take 'dopri5' or 'midpoint'")
    if isinstance(method, DormandPrince) and method.norm is worst_sample:
        method = replace(method, norm=_state_and_integral)
    if nodes is not None and (method.adaptive or nodes < 1):
        raise UserError(f"nodes is {nodes}, and must be at least 1 for a solver of fixed steps, None for 'dopri5'")
    if nodes is not None and grid is not None:
        raise UserError("grid is given, and nodes place the steps; leave one of them out")
    times = solver_times(method, steps, grid, t0=t1, t1=t0, trajectory=False)
    divergence = make_divergence(
        velocity,
        x1,
        trace=trace,
        chunk=chunk,
        probes=probes,
        noise=noise,
        generator=generator,
        create_graph=create_graph,
    )
    with torch.set_grad_enabled(create_graph):
        if nodes is None:
            x0, change = _solve_both(divergence, x1, method, times)
        else:
            x0, change = _solve_apart(divergence, x1, method, times, nodes)
        return source(x0) + change + log_det


def make_divergence(
    velocity: Velocity,
    x: Tensor,
    *,
    trace: str = "exact",
    chunk: int | None = None,
    probes: int | None = None,
    noise: str | None = None,
    generator: Generator = None,
    create_graph: bool = False,
) -> Divergence:
    """The divergence of ``velocity`` at states like x (B, *S), with the arguments of :func:`log_prob`."""
    _check_trace(trace, chunk=chunk, probes=probes, noise=noise, generator=generator)
    if trace == "exact":
        return ExactDivergence(velocity, CHUNK if chunk is None else chunk, create_graph=create_graph)
    probe = draw_probes(x, 1 if probes is None else probes, noise or "rademacher", generator)
    return HutchinsonDivergence(velocity, probe, create_graph=create_graph)


def _solve_both(divergence: Divergence, x1: Tensor, method: Solver, times: list[float]) -> tuple[Tensor, Tensor]:
    """x0 (B, *S), and the integral of the divergence from 1 to 0 (B,), as one more column."""

    def system(z: Tensor, t: Tensor) -> Tensor:
        u, trace = divergence(z[:, :-1].reshape(x1.shape), t)
        return torch.cat([u.flatten(1), trace[:, None]], 1)

    start = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), 1)], 1)
    *_, z = method.iterate(system, start, times)
    if not all_finite(z):
        raise explain_divergence(system, start, method, times)
    return z[:, :-1].reshape(x1.shape), z[:, -1]


def _solve_apart(
    divergence: Divergence, x1: Tensor, method: Solver, times: list[float], nodes: int
) -> tuple[Tensor, Tensor]:
    """x0 (B, *S), and the integral of the divergence (B,) by Gauss-Legendre quadrature over the states."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    half, middle = (times[-1] - times[0]) / 2, (times[-1] + times[0]) / 2
    weight_at = dict(zip((middle + half * points).tolist(), (half * weights).tolist(), strict=True))
    step, grid = abs(times[-1] - times[0]) / (len(times) - 1), times[:1]
    for t in (*weight_at, times[-1]):
        grid += [*np.linspace(grid[-1], t, math.ceil(abs(t - grid[-1]) / step - 1e-9) + 1).tolist()[1:-1], t]
    x, change = x1, x1.new_zeros(len(x1))
    for t, x in zip(grid[1:], method.iterate(divergence.velocity, x1, grid), strict=True):
        if t in weight_at:
            change = change + weight_at[t] * divergence(x, expanded_times([t], x)[0])[1]
            if not all_finite(change):
                raise not_finite(method.name, t)
    if not all_finite(x):
        raise explain_divergence(divergence.velocity, x1, method, grid)
    return x, change


def _state_and_integral(error: Tensor) -> float:
    """Error norm of the state (a mean over elements) and of the integral separately."""
    return max(worst_sample(error[:, :-1]), error[:, -1].abs().amax().item())


def _check_trace(trace: str, *, chunk: object, probes: object, noise: object, generator: object) -> None:
    unused = {
        "exact": {"probes": probes, "noise": noise, "generator": generator},
        "hutchinson": {"chunk": chunk},
    }
    if trace not in unused:
        raise UserError(f"trace {trace!r} is not known{did_you_mean(str(trace), unused)}")
    for name, value in unused[trace].items():
        if value is not None:
            raise UserError(f"{name} is given, but trace {trace!r} does not use it; leave it out")


def elementwise_log_det(transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log |det| (B,) of the Jacobian at x (B, *S) of a differentiable elementwise map, such as a scaling.

    Raises UserError where a derivative is 0 or not finite.
    """
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(transform(at).sum(), at)
    values = slope.abs().log().flatten(1)
    if not torch.isfinite(values).all():
        raise UserError(
            "the transform has a derivative that is 0 or not finite, so that there is no density before it"
        )
    return values.sum(1)


def dequantise(x: Tensor, *, bin_width: float = 1.0, generator: Generator = None) -> Tensor:
    """x (B, *S) plus uniform noise on [0, bin_width), for integer data.

    The expected log density plus the number of elements times log(bin_width) bounds the log probability from below
    (Theis et al. 2016, "A note on the evaluation of generative models"). Raises UserError unless bin_width > 0.
    """
    _check_bin(bin_width)
    dtype = x.dtype if x.dtype.is_floating_point else torch.float32
    return x + bin_width * random.uniform(x.shape, generator, device=x.device, dtype=dtype)


def bits_per_dim(log_prob: Tensor, dims: int, *, bin_width: float = 1.0) -> Tensor:
    """Bits per dimension (B,) from ``log_prob`` (B,), in nats: ``-(log_prob / dims + log(bin_width)) / log(2)``.

    ``bin_width`` is the spacing of dequantised values, such as 1 for bytes and 1/255 for bytes over 255. Raises
    UserError unless dims >= 1 and bin_width > 0.
    """
    if dims < 1:
        raise UserError(f"dims must be at least 1, got {dims}; it is the number of elements of one sample")
    _check_bin(bin_width)
    return -(log_prob / dims + math.log(bin_width)) / math.log(2)


def _check_bin(bin_width: float) -> None:
    if not 0 < bin_width < math.inf:
        raise UserError(f"bin_width must be finite and > 0, got {bin_width}; for bytes it is 1")

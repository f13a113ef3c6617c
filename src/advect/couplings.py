"""Couplings of the source and data samples of a batch, by permuting x0; see docs/couplings.md."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from advect.core import random
from advect.core.bounds import NonNegative, Positive
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.registry import register
from advect.core.types import LENGTH, Conditions, check_pair, is_null, real_steps


class Coupling(ABC):
    """Pairing of x0 (B, *S) with x1 (B, *S) and its conditions that keeps both marginals in expectation."""

    part_kind: ClassVar[str] = "coupling"
    independent: ClassVar[bool] = False
    """Whether x0 and x1 stay independent."""
    needs_conditions: ClassVar[bool] = False
    across_conditions: ClassVar[bool] = False
    """Whether rows are matched whatever their conditions, which biases samples given a condition."""

    @abstractmethod
    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        """Return (x0, x1, cond), with rows matched."""


@register("independent")
@dataclass(frozen=True)
class Independent(Coupling):
    """Pair row i with row i: x0 and x1 stay independent."""

    independent = True

    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        check_pair(x0, x1)
        return x0, x1, cond


@register("pairs")
@dataclass(frozen=True)
class DataPairs(Coupling):
    """Keep the pairs of the data, those of --pairs."""

    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        check_pair(x0, x1)
        return x0, x1, cond


@dataclass(frozen=True)
class GivenPairs(Coupling):
    """Known pairs: x0 = ``partner(x1, cond)`` (B, *S), such as the blurred or control version of x1.

    Source samples are not used. Raises UserError for partners of another shape.
    """

    partner: Callable[[Tensor, Conditions | None], Tensor]

    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        x0 = self.partner(x1, cond)
        check_pair(x0, x1)
        return x0, x1, cond


def squared_distances(x1: Tensor, x0: Tensor, real: Tensor | None = None) -> Tensor:
    """``|x1_i - x0_j|^2`` (B, B), in float32 at least, by one matrix product after centring.

    Of sequences (B, L, C) whose ``real`` steps (B, L) are not all, x0_j counts where x1_i is real, as in training.
    """
    a, b = x1.flatten(1), x0.flatten(1)
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    if real is None:
        centre = a.mean(0)
        a, b = a - centre, b - centre
    with torch.autocast(a.device.type, enabled=False):  # mixed precision would round the cost, and pair otherwise
        if real is None:
            return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2)
        mask = real[:, :, None].expand_as(x1).flatten(1).to(dtype)
        a = a * mask
        return torch.addmm(a.square().sum(1)[:, None] + mask @ b.square().T, a, b.T, alpha=-2)


def assign(cost: Tensor) -> Tensor:
    """Permutation p (B,) with the least ``sum_i cost[i, p_i]``, exact, on the CPU.

    Shortest augmenting paths (Crouse 2016) by SciPy, on the flattened cost of large batches; faster than the network
    simplex (bench/coupling.py). Raises UserError for a non-finite cost.
    """
    from scipy.optimize import linear_sum_assignment

    cost = cost.detach()
    if not bool(torch.isfinite(cost).all()):
        raise UserError("x0 and x1 must be finite to be paired by transport, and a distance between them is not")
    if len(cost) > 64:
        cost = flatten_cost(cost)
    return torch.from_numpy(linear_sum_assignment(cost.double().cpu().numpy())[1])


def flatten_cost(cost: Tensor) -> Tensor:
    """The cost (B, B) less a price for each row and each column, in float64; the optimal permutation is unchanged.

    Prices of entropic transport (Cuturi 2013) at three falling temperatures, which leave the solver little to do.
    """
    cost = cost.double()
    cost = cost - cost.mean(0)
    cost -= cost.amin(1, keepdim=True)
    flat = cost.float()
    scale = cost.std(correction=0).clamp(min=1e-30).float()
    prices = torch.zeros(2, len(cost), dtype=torch.float64, device=cost.device)
    for temperature in (0.1, 0.02, 0.005):
        # Limits far from float32's keep the products from subnormal numbers, which are slow.
        kernel = flat.div(-temperature * scale).clamp_(-50, 20).exp_()
        u, v = torch.ones(2, len(cost), device=cost.device)
        with torch.autocast(cost.device.type, enabled=False):
            for _ in range(20):
                u = 1 / (kernel @ v)
                v = 1 / (kernel.T @ u)
        row, column = temperature * scale * torch.stack([u, v]).log()
        flat = flat - row[:, None] - column
        prices += torch.stack([row, column])
    return cost.sub_(prices[0][:, None]).sub_(prices[1])


@register("ot")
@dataclass(frozen=True)
class ExactOT(Coupling):
    """The permutation of x0 with the least total squared distance to x1.

    Minibatch optimal transport (Tong et al. 2024, "Improving and generalizing flow-based generative models", section
    3.2.4; Pooladian et al. 2023), without replacement. Biases the source given a condition, see
    :class:`ConditionalOT`.
    """

    across_conditions = True

    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        check_pair(x0, x1)
        return x0[transport(x0, x1, real_steps(cond, x1)).to(x0.device)], x1, cond


def transport(x0: Tensor, x1: Tensor, real: Tensor | None = None) -> Tensor:
    """Rows of x0 (B,) that exact transport pairs with the rows of x1; in one dimension by sorting."""
    if len(x1) < 2:
        return torch.arange(len(x1))
    if math.prod(x1.shape[1:]) == 1:
        rows = torch.empty(len(x1), dtype=torch.long)
        rows[x1.flatten().argsort().cpu()] = x0.flatten().argsort().cpu()
        return rows
    return assign(squared_distances(x1, x0, real))


@register("conditional-ot")
@dataclass(frozen=True, kw_only=True)
class ConditionalOT(Coupling):
    """Exact transport whose cost includes the conditions, which keeps the source independent of them.

    Pairing the noise of one row with a datum of another condition costs ``penalty`` times the mean distance, for each
    category that differs, and ``continuous`` times it for a mean squared difference of a continuous condition or a
    length (after C2OT: Cheng & Schwing 2025, "The curse of conditions", who take the cosine). An infinite penalty
    restricts transport to groups of equal categories, and leaves the source given a category unbiased. Raises
    UserError for a negative price, and without conditions.

    Args:
        penalty: price of a partner of another category, relative to the mean distance; 0 ignores categories.
        continuous: price of a mean squared difference of a continuous condition, relative to the mean distance; 30
            moves the noise's mean by less than 0.02 deviations a deviation of the condition.
    """

    needs_conditions = True

    penalty: Annotated[float, Meta(ge=0)] = math.inf
    continuous: NonNegative = 30.0

    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        check_pair(x0, x1)
        if not cond:
            raise UserError("ConditionalOT needs conditions, and the batch has none; take ExactOT")
        cost = _relative(squared_distances(x1, x0, real_steps(cond, x1)))
        categories = []
        for name, value in cond.items():
            if name == LENGTH or value.is_floating_point():
                missing = is_null(value) if name != LENGTH else torch.zeros_like(value, dtype=torch.bool)
                numbers = torch.nan_to_num(value.reshape(len(x1), -1).double())
                cost = cost + self.continuous * _relative(squared_distances(numbers, numbers)).to(cost.device)
                value = missing
            categories.append(value.reshape(len(x1), -1).long())
        return x0[self._assign(cost, torch.cat(categories, 1)).to(x0.device)], x1, cond

    def _assign(self, cost: Tensor, categories: Tensor) -> Tensor:
        """The rows of x0 for a cost (B, B) and categories (B, K)."""
        if not math.isinf(self.penalty):
            mismatch = (categories[:, None] != categories[None]).sum(2).to(cost)
            return assign(cost + self.penalty * mismatch)
        rows = torch.arange(len(cost))
        groups = categories.unique(dim=0, return_inverse=True)[1]
        for group in groups.unique():
            here = (groups == group).nonzero()[:, 0]
            members = here.cpu()
            rows[members] = members[assign(cost[here][:, here])]
        return rows


def _relative(cost: Tensor) -> Tensor:
    """A cost in units of its mean."""
    return cost / cost.mean().clamp(min=1e-30)


@register("sinkhorn")
@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Coupling):
    """Entropic transport (Cuturi 2013) in the log domain on the batch's device; partners are drawn from its plan.

    Draws with replacement: each row of x0 is used once in expectation. Gains little in many dimensions.

    Args:
        epsilon: regularisation, relative to the mean squared distance; smaller is closer to exact and needs
            more iterations.
        iterations: number of fixed-point iterations.
    """

    across_conditions = True
    epsilon: Positive = 0.05
    iterations: Annotated[int, Meta(ge=1, le=100_000)] = 100

    def log_plan(self, x0: Tensor, x1: Tensor, real: Tensor | None = None) -> Tensor:
        """Logarithm of the plan (B, B), rows for x1; rows sum to one, columns nearly so."""
        cost = squared_distances(x1, x0, real)
        kernel = -cost / (self.epsilon * cost.mean()).clamp(min=1e-30)
        for _ in range(self.iterations):
            kernel = kernel - kernel.logsumexp(0, keepdim=True)
            kernel = kernel - kernel.logsumexp(1, keepdim=True)
        return kernel

    def pair(
        self, x0: Tensor, x1: Tensor, cond: Conditions | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor, Conditions | None]:
        check_pair(x0, x1)
        plan = self.log_plan(x0, x1, real_steps(cond, x1))
        u = random.uniform(plan.shape, generator, device=plan.device).clamp(min=2.0**-25)
        return x0[(plan - (-u.log()).log()).argmax(1)], x1, cond

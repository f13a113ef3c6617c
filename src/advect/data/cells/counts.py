"""Components of counts: the expected expression given their scores, and counts drawn around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import CounterRng, Generator, Stream, stream_seed
from advect.core.records import Record, as_record
from advect.data.cells.matrix import CellMatrix
from advect.data.cells.transform import Chain, Components, Expression
from advect.data.transforms import Transform

STEPS, BATCH, RATE = 300, 512, 0.05
"""Steps of Adam, cells of each and its learning rate, for the regression."""

PRIOR = 3.0
"""Precision of the Gaussian prior of weights, for scores of deviation 1; see docs/experiments/cells.md."""

LOWEST, HIGHEST = -60.0, 16.0
"""Smallest and largest logarithm of a rate."""


class _Units(Record):
    target_sum: Annotated[float, Meta(gt=0, le=10**12)] | None
    log1p: bool


@dataclass(frozen=True, eq=False)
class CountComponents(Transform):
    """Scores on k principal components; the inverse is the expression that counts with these scores have.

    Given its scores z, counts of a cell of library size l are negative binomial, of mean ``l exp(bias + W z)`` and
    variance ``mean + mean^2 / dispersion``: scVI's likelihood (Lopez et al. 2018, "Deep generative modeling for
    single-cell transcriptomics") with a linear predictor. Scores hold some of the counting noise of their own cell, so
    the law of the rest is fitted, not assumed. log l is linear in z, with residuals of the training cells.

    Args:
        components, mean: of :class:`Components`, for expression.
        weights: W (D, k).
        bias: (D,), log of the mean per unit of library size.
        dispersion: (D,), > 0.
        library: (k + 1,), weights and intercept of log l.
        residuals: (101,), percentiles of the residuals of log l, and of l in ``sizes``.
        target_sum, log1p: of :class:`Expression`.
    """

    components: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    dispersion: Tensor = field(repr=False)
    library: Tensor = field(repr=False)
    residuals: Tensor = field(repr=False)
    sizes: Tensor = field(repr=False)
    target_sum: float | None = 1e4
    log1p: bool = True
    kind: ClassVar[str] = "count_components"
    mixes: ClassVar[str] = "principal components"

    def __post_init__(self) -> None:
        d, k = len(self.mean), len(self.components)
        shapes = {"weights": (d, k), "bias": (d,), "dispersion": (d,), "library": (k + 1,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise UserError(f"{name} must have shape {shape}, got {tuple(getattr(self, name).shape)}")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CountComponents)
            and self.to_config() == other.to_config()
            and all(torch.equal(value, other.tensors()[name]) for name, value in self.tensors().items())
        )

    def __hash__(self) -> int:
        return hash((self.kind, tuple(self.components.shape)))

    @property
    def projection(self) -> Components:
        """The principal components alone."""
        return Components(self.components, self.mean)

    @classmethod
    def fit(
        cls,
        projection: Components,
        scale: Expression,
        counts: CellMatrix,
        expression: CellMatrix,
        libraries: np.ndarray,
        cells: np.ndarray,
        *,
        seed: int = 0,
    ) -> CountComponents:
        """Fit to ``cells`` (n,) of counts and expression (N, D) of library sizes (N,), ones without a target sum."""
        cells = cells[libraries[cells] > 0]
        basis, mean = projection.components.T.numpy(), projection.mean
        scores = torch.cat([torch.from_numpy(rows @ basis).float() for _, rows in expression.blocks(cells)])
        scores -= projection.components @ mean
        spread = scores.std(0, correction=0).clamp(min=1e-6)
        z, sizes = scores / spread, torch.from_numpy(libraries[cells]).double().log()
        design = torch.cat([z.double(), torch.ones(len(z), 1, dtype=torch.float64)], 1)
        ridge = design.T @ design + torch.eye(design.shape[1], dtype=torch.float64)
        library = torch.linalg.solve(ridge, design.T @ sizes)
        percent = torch.linspace(0, 1, 101, dtype=torch.float64)
        total = sum(np.asarray(rows.sum(0, dtype=np.float64)).reshape(-1) for _, rows in counts.blocks(cells))
        start = torch.from_numpy(total / libraries[cells].sum()).float().clamp(min=1e-12).log()
        weights, bias, dispersion = _regression(z, start, counts, libraries, cells, seed)
        return cls(
            components=projection.components,
            mean=projection.mean,
            weights=weights / spread,
            bias=bias,
            dispersion=dispersion,
            library=torch.cat([library[:-1] / spread, library[-1:]]),
            residuals=(sizes - design @ library).quantile(percent),
            sizes=sizes.quantile(percent[[0, -1]]),
            target_sum=scale.target_sum,
            log1p=scale.log1p,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.projection.forward(x)

    def inverse(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        logs = torch.addmm(self.bias.to(x.device), x, self.weights.to(x.device).T)
        highest = HIGHEST if self.target_sum is None else 0.0  # of a library, no more than all
        rates = logs.clamp(LOWEST, highest).exp() * (self.target_sum or 1.0)
        return rates.log1p() if self.log1p else rates

    def draw(self, x: Tensor, generator: Generator = None) -> Tensor:
        """Expression of cells (B, D) whose counts are drawn around :meth:`inverse`'s x (B, D)."""
        rates = (x.double().expm1() if self.log1p else x.double()) / (self.target_sum or 1.0)
        logs = rates.clamp(min=np.exp(LOWEST)).log()
        u = random.uniform((len(x),), generator, dtype=torch.float64)
        chance = random.uniform(x.shape, generator, dtype=torch.float64).numpy()
        sizes = torch.ones(len(x), dtype=torch.float64)
        if self.target_sum is not None:
            z = torch.linalg.lstsq(self.weights.double(), (logs - self.bias.double()).T, driver="gelsd").solution.T
            place = (u * 100).clamp(max=99.999)
            low, rest = place.long(), place.frac()
            noise = self.residuals[low] * (1 - rest) + self.residuals[low + 1] * rest
            sizes = (z @ self.library[:-1] + self.library[-1] + noise).clamp(*self.sizes.tolist()).exp()
        counts = negative_binomial(chance, (rates * sizes[:, None]).numpy(), self.dispersion.double().numpy())
        drawn = torch.from_numpy(counts) * ((self.target_sum or 1.0) / sizes)[:, None]
        return (drawn.log1p() if self.log1p else drawn).to(x)

    def log_det(self, elements: int) -> float:
        return self.projection.log_det(elements)

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "target_sum": self.target_sum, "log1p": self.log1p}

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("target_sum", "log1p")}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> CountComponents:
        own = as_record(config, _Units, f"the {cls.kind} transform")
        return cls(**tensors, target_sum=own.target_sum, log1p=own.log1p)


def count_noise(x: Tensor, transform: Transform, generator: Generator = None) -> Tensor:
    """Draw cells (B, D) with counts around the expected cells x (B, D), both in the transform's data units.

    Args:
        x: result of ``transform.inverse``.
        transform: of components of counts.
        generator: draws library sizes and counts.

    Raises:
        UserError: the transform is another.
    """
    parts = transform.parts if isinstance(transform, Chain) else (transform,)
    counted = next((part for part in parts if isinstance(part, CountComponents)), None)
    if counted is None:
        raise UserError("count_noise needs a flow of components of counts (--pca on whole numbers); take x as it is")
    scale = next((part for part in parts if isinstance(part, Expression)), None)
    if scale is None or scale.space == "expression":
        return counted.draw(x, generator)
    drawn = counted.draw(scale.forward(x), generator)
    return scale.counts(drawn).round()


def negative_binomial(chance: np.ndarray, mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """Smallest k (B, D), float64, with ``P(K <= k) >= chance`` for counts of ``mean`` (B, D), ``dispersion`` (D,)."""
    from scipy.stats import nbinom  # half a second to import

    dispersion = np.broadcast_to(dispersion, mean.shape)
    success = dispersion / (dispersion + mean)
    counts = np.zeros_like(mean)
    some = chance > success**dispersion  # most are none
    counts[some] = nbinom.ppf(chance[some], dispersion[some], success[some])
    return counts


def _dense(rows: Any) -> Tensor:
    return torch.from_numpy(rows.toarray()).float()


def _regression(
    z: Tensor, start: Tensor, counts: CellMatrix, libraries: np.ndarray, cells: np.ndarray, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (D, k), bias (D,) and dispersion (D,) of the likeliest negative binomials of standardised scores z.

    Adam on batches, with gradients in closed form, as zeros, which are most, then cost no logarithm of gamma.
    """
    n, k = z.shape
    design = torch.cat([z, torch.ones(n, 1)], 1)
    p = torch.cat([torch.zeros(len(start), k), start[:, None], torch.zeros(len(start), 1)], 1)
    first, second = torch.zeros_like(p), torch.zeros_like(p)
    prior = torch.tensor([PRIOR] * k + [0.0, 0.1]) / n
    # Epoch 1: counts of samples are drawn in epoch 0.
    rng = CounterRng(stream_seed(seed, Stream.COUNTS), 1, STEPS * min(BATCH, n))
    picks = (random.uniform((STEPS * min(BATCH, n),), rng, dtype=torch.float64) * n).long().view(STEPS, -1)
    for i, chosen in enumerate(picks):
        a, rows = design[chosen], cells[chosen.numpy()]
        c, sizes = _dense(counts.rows(rows)), torch.from_numpy(libraries[rows]).float()
        theta = p[:, -1].exp()
        mean = (a @ p[:, :-1].T + sizes.log()[:, None]).clamp_(max=HIGHEST).exp_()
        total = mean + theta
        slope = ((mean - c) * theta / total).T @ a
        there = c.nonzero(as_tuple=True)
        x, t = c[there], theta[there[1]]
        gamma = torch.zeros_like(theta).index_add_(0, there[1], torch.digamma(x + t) - torch.digamma(t))
        spread = (theta / total).log().sum(0) + len(c) - ((theta + c) / total).sum(0) + gamma
        gradient = torch.cat([slope, -(spread * theta)[:, None]], 1) / len(c) + prior * p
        first = first.lerp_(gradient, 0.1)
        second = second.lerp_(gradient.square(), 0.01)
        rate = RATE / 2 * (1 + np.cos(np.pi * i / STEPS)) / (1 - 0.9 ** (i + 1))
        p -= rate * first / ((second / (1 - 0.99 ** (i + 1))).sqrt() + 1e-8)
    return p[:, :k].clone(), p[:, k].clone(), p[:, -1].clamp(-8, 8).exp()

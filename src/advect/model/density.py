"""Densities of a trained flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from advect.core.bounds import Seed, Steps, bounded
from advect.core.device import contiguous
from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import LENGTH
from advect.model.conditions import ConditionValue
from advect.model.coordinates import Coordinates, FieldOf, Within
from advect.model.given import questions
from advect.paths import AffinePath
from advect.solvers import Solver

if TYPE_CHECKING:
    from advect.model.flow import Flow


@bounded
def log_prob(
    self: Flow,
    x: Tensor,
    *,
    cond: Mapping[str, ConditionValue] | None = None,
    given: Any = None,
    tolerance: float | None = None,
    steps: Steps | None = None,
    solver: str | Solver | None = None,
    trace: Literal["exact", "hutchinson"] = "exact",
    seed: Seed = 0,
) -> Tensor:
    """Log-density (n,) of data x (n, *S) per data unit, in nats, by change of variables.

    It is that of :meth:`sample`'s law, in float32 whatever the precision of training, through the same coordinates
    and exact steps at the ends. Conditions not in ``cond`` are null. With ``given``, values as in :meth:`sample` or
    True where an entry is known, it is the conditional density of the other entries.

    Args:
        tolerance: estimated error of each row, in nats, from 1e-4 to 1, by steps that each row chooses, whatever the
            other rows: for narrow data, and for less than the cost of ``steps`` where they are easy.
        steps, solver: the same number of steps for all rows, 50 of "rk4" by default, or of "dopri5".
        trace: "exact" costs a derivative per element, "hutchinson" one, in ``steps``, unbiased but for the
            determinants of the exact steps, with which the density is at most the exact one.
        seed: of the probes of "hutchinson".

    Raises UserError for a bad argument, a velocity too rough for the ``tolerance``, and unless the source has a
    density, sequences are of one length and the data have a density.
    """
    self.check_continuous("log_prob")
    x = self._checked(x, self.data_shape)
    log_det = self.transform.log_det(x[0].numel()) if given is None else 0.0
    if not self.source.has_density:
        raise UserError(
            f"log_prob needs a source with a density, and this flow starts from {type(self.source).__name__}"
        )
    if LENGTH in self.spec.conditions:
        raise UserError("log_prob needs samples of one size, and this flow makes sequences of several lengths")
    scheme = _scheme(self, tolerance, steps, solver, trace)
    model, conditions = self.transform.forward(x).to(self.device), self._given(len(x), cond)
    closed: Any = getattr(self.net, "closed_log_prob", None)
    if given is None and closed is not None and (known := closed(model)) is not None:
        return (known + log_det).float().cpu()
    with self._full_precision() as exact:
        exact.net = contiguous(self.net)
        if given is None:
            part = self._on_device(conditions)
            field_of: FieldOf = lambda rows: exact._field(
                scheme.way, part if rows is None else {name: value[rows] for name, value in part.items()}
            )
            rng = CounterRng(stream_seed(seed, Stream.LOG_PROB), 0, len(x))
            return (scheme(field_of, model, rng) + log_det).float().cpu()
        value = torch.zeros(len(x), dtype=torch.float64)
        for question in questions(self, x, given):
            rows, y = question.rows, question.asked_of(model)
            asked: FieldOf = lambda some, q=question: (q if some is None else q.of(some)).field(
                exact, scheme.way, conditions, model
            )
            rng = CounterRng.at(stream_seed(seed, Stream.LOG_PROB), 0, rows, total=len(x))
            value[rows] = scheme(asked, y, rng).double().cpu() + question.log_det
        return value.float()


@dataclass(frozen=True)
class _Scheme:
    """How the ODE of a density is solved: to a ``tolerance``, or by ``method`` over the grid of ``times``."""

    way: Coordinates
    times: list[float]
    method: Solver
    trace: str
    tolerance: float | None
    source: Callable[[Tensor], Tensor]

    def __call__(self, field_of: FieldOf, x1: Tensor, rng: CounterRng) -> Tensor:
        """Log density (B,) of x1 (B, *S) in model units."""
        options: dict[str, Any] = {"trace": self.trace}
        if self.trace == "hutchinson":
            options["generator"] = rng
        within = None if self.tolerance is None else Within(self.tolerance, field_of)
        return self.way.log_prob(field_of(None), x1, self.source, self.method, self.times, options, within)


def _scheme(
    flow: Flow, tolerance: float | None, steps: int | None, solver: str | Solver | None, trace: str
) -> _Scheme:
    """The scheme of a call's arguments. Raises UserError for a tolerance that is not used."""
    fixed = [name for name, value in (("steps", steps), ("solver", solver)) if value is not None]
    if trace == "hutchinson":
        fixed.append("trace='hutchinson'")
    if tolerance is not None and fixed:
        raise UserError(f"tolerance is {tolerance:g}, which {fixed[0]} does not use; leave one of them out")
    way, times, method = flow._way("rk4" if solver is None else solver, 50 if steps is None else steps)
    jitter = flow.path.sigma_min if isinstance(flow.path, AffinePath) else 0.0
    source = lambda x0: flow.source.log_prob(x0, jitter=jitter)
    return _Scheme(way, times, method, trace, tolerance, source)

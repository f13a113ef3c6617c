"""A sampler of fixed steps as a recurrence over calls of the network, which a graph repeats in one loop.

Solvers, coordinates and exact end steps are all linear in the initial state and in what the field returned before. Run
once on basis vectors in place of states, an integrator therefore tells how the input of each call is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.model.integrators import Integrator
from advect.sources import noise_of

MOST_CALLS = 2000
"""Most evaluations of a sampler: the coefficients are found from a square matrix of so many rows."""

_INPUTS, _OUTPUTS = 4, 2
_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Recurrence:
    """``x_(i+1) = sum_m inputs[i, m] x_(i-m) + sum_m outputs[i, m] u_(i-m)``, ``u_i = field(x_i, t_i)``, i = 0 .. N-1.

    ``x_0 = start x`` for noise x, and ``x_N`` is the sample in model units.

    Attributes:
        times: (N, 1) t of each call, or (N, 2) start and end of its step.
        inputs, outputs: (N, k) coefficients of the last k inputs, k <= 4, and outputs, k <= 2, newest first.
        start: factor of the noise.
    """

    times: Tensor
    inputs: Tensor
    outputs: Tensor
    start: float


def find_recurrence(integrator: Integrator, calls: int) -> Recurrence:
    """Recurrence of an integrator without random numbers of its own, of ``calls`` evaluations, in float64.

    Raises UserError for more than ``MOST_CALLS``, and where four inputs and two outputs do not tell the next input.
    """
    if not 0 < calls <= MOST_CALLS:
        raise UserError(
            f"the sampler calls the network {calls:,} times, and an exported one does 1 to {MOST_CALLS:,} times; "
            "give --num-steps, such as 50"
        )
    basis, seen, times = torch.eye(calls + 1, dtype=torch.float64), [], []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x[0].clone())
        times.append(t.double().reshape(-1).tolist())
        return basis[len(seen)][None].clone()

    found = integrator(field, basis[:1].clone(), noise_of(0, range(1), 1))[0]
    rows = [row.numpy() for row in (*seen, found.double())]
    assert len(seen) == calls, "a sampler calls the network as often as it says"
    weights = np.stack([_coefficients(rows, i) for i in range(calls)])
    inputs, outputs = weights[:, :_INPUTS], weights[:, _INPUTS:]
    return Recurrence(
        torch.tensor(times, dtype=torch.float64),
        torch.from_numpy(_used(inputs)),
        torch.from_numpy(_used(outputs)),
        float(rows[0][0]),
    )


def _used(weights: np.ndarray) -> np.ndarray:
    """Columns up to the last that is used, the first one at least."""
    used = np.flatnonzero(weights.any(0))
    return weights[:, : int(used.max(initial=0)) + 1].copy()


def _coefficients(rows: list[np.ndarray], i: int) -> np.ndarray:
    """Coefficients (6,) of row i + 1 in the last inputs and outputs: the fewest, and of these the smallest."""
    width = len(rows[0])
    columns = np.zeros((width, _INPUTS + _OUTPUTS + 1))
    there = [m for m in range(_INPUTS) if m <= i]
    for m in there:
        columns[:, m] = rows[i - m]
    for m in range(min(_OUTPUTS, i + 1)):
        columns[i + 1 - m, _INPUTS + m] = 1.0
        there.append(_INPUTS + m)
    columns[:, -1] = rows[i + 1]
    small: np.ndarray = np.linalg.qr(columns, mode="r")  # pyright: ignore[reportAssignmentType]
    target, limit = small[:, -1], _TOLERANCE * max(1.0, float(np.linalg.norm(rows[i + 1])))
    for count in range(1, len(there) + 1):
        fitting = []
        for support in combinations(there, count):
            value, *_ = np.linalg.lstsq(small[:, list(support)], target, rcond=1e-14)
            if np.linalg.norm(small[:, list(support)] @ value - target) <= limit:
                found = np.zeros(_INPUTS + _OUTPUTS)
                found[list(support)] = value
                fitting.append(found)
        if fitting:
            return min(fitting, key=lambda found: float(np.abs(found).sum()))
    raise UserError("this solver keeps more of its past than an export does; take midpoint, heun, rk4 or ab2")

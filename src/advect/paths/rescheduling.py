"""Sampling under another schedule than that of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.paths.base import align
from advect.paths.convert import refuse
from advect.paths.schedules import Schedule

_TOLERANCE = 1e-5


class ScheduleMap(NamedTuple):
    """``X_r = scale x_t`` at the new time r: old time ``t``, ``scale`` c, ``d_scale`` dc/dr, ``speed`` c dt/dr."""

    t: Tensor
    scale: Tensor
    d_scale: Tensor
    speed: Tensor


def schedule_map(r: Tensor, old: Schedule, new: Schedule) -> ScheduleMap:
    """Time and scale of the ``old`` path that match the ``new`` one at r, in float64.

    Both have the same alpha / sigma; derivatives follow from ::

        A = c alpha,  S = c sigma                    capitals: the new coefficients at r
        A' = c' alpha + c t' alpha',  S' = c' sigma + c t' sigma'

    Raises UserError for noise levels outside the old schedule, infinite derivatives of the new one, and where the old
    velocity vanishes.
    """
    r = r.double()
    big = new.coefficients(r)
    t = old.time_of(big.alpha, big.sigma)
    small = old.coefficients(t)
    norm = torch.hypot(small.alpha, small.sigma)
    scale = torch.hypot(big.alpha, big.sigma) / norm
    out_of_reach = (small.alpha * big.sigma - small.sigma * big.alpha).abs() > _TOLERANCE * norm.square() * scale
    refuse(out_of_reach, lambda: _range(old, new))
    refuse(
        ~(torch.isfinite(big.d_alpha) & torch.isfinite(big.d_sigma)),
        lambda: f"{new} has no velocity where its derivatives are infinite; stay 0.001, say, away from that end",
    )
    determinant = small.sigma * small.d_alpha - small.alpha * small.d_sigma
    refuse(
        determinant == 0,
        lambda: f"the velocity along {old} says nothing where it stands still; stay 0.001, say, away from there",
    )
    speed = (small.sigma * big.d_alpha - small.alpha * big.d_sigma) / determinant
    d_scale = (big.d_sigma * small.d_alpha - big.d_alpha * small.d_sigma) / determinant
    # Where an old derivative is infinite, the other coefficient alone gives c'.
    d_scale = torch.where(small.d_sigma.isinf(), big.d_alpha / small.alpha, d_scale)
    d_scale = torch.where(small.d_alpha.isinf(), big.d_sigma / small.sigma, d_scale)
    # Neither a GPU nor compiled code has raised above.
    undefined = out_of_reach | ~torch.isfinite(big.d_alpha) | ~torch.isfinite(big.d_sigma) | (determinant == 0)
    return ScheduleMap(t, *(torch.where(undefined, torch.nan, value) for value in (scale, d_scale, speed)))


def _range(old: Schedule, new: Schedule) -> str:
    ends = old.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    first, last = (round(t, 6) for t in new.time_of(ends.alpha, ends.sigma).tolist())
    return f"{old} knows the noise levels of {new} only from t = {first:g} to {last:g}; integrate between these"


def change_schedule(
    velocity: Callable[[Tensor, Tensor], Tensor], old: Schedule, new: Schedule
) -> Callable[[Tensor, Tensor], Tensor]:
    """Velocity along ``new`` of a flow whose ``velocity(x, t)`` belongs to ``old``.

    ``U_r(x) = (c' / c) x + c t' u_t(x / c)`` with (t, c) of :func:`schedule_map`; exact: the same noise gives the same
    samples, up to solver error.

    Karras et al. 2022, "Elucidating the design space of diffusion-based generative models"; Pokle et al. 2024,
    "Training-free linear image inverses via flows"; Lipman et al. 2024, "Flow matching guide and code".
    """
    for name, schedule in (("old", old), ("new", new)):
        if not isinstance(schedule, Schedule):
            raise UserError(f"change_schedule.{name} must be a Schedule, such as CondOT(), got {schedule!r}")

    def changed(x: Tensor, r: Tensor) -> Tensor:
        t, c, d_c, speed = schedule_map(r, old, new)
        u = velocity(x / align(c, x), t.to(r.dtype))
        return align(d_c / c, x) * x + align(speed, x) * u

    return changed

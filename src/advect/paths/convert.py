"""Conversions between velocity, data, noise and score of an affine path.

For ``x_t = alpha x_1 + sigma x_0``::

    data      E[x_1 | x_t]              noise   E[x_0 | x_t]
    velocity  alpha' data + sigma' noise        with   x_t = alpha data + sigma noise
    score     grad log p_t(x_t) = -noise / sigma

The score needs x_0 ~ N(0, I) independent of x_1 (Tweedie's formula), without couplings such as optimal transport.

Functions take ``(value, x, alpha, sigma, d_alpha, d_sigma)``, with value and x (B, *S) and coefficients that broadcast
over x (see ``core.types.expand_right``). They raise UserError where the result is undetermined: a score where sigma =
0, data from noise where alpha = 0, a velocity where a derivative of the schedule is infinite.

Ma et al. 2024, "SiT"; Lipman et al. 2024, "Flow matching guide and code", Table 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.core.types import expand_right
from advect.paths.schedules import Coefficients

KINDS = ("velocity", "data", "noise", "score")
"""Names for :func:`convert`."""


def refuse(where: Tensor, message: str | Callable[[], str]) -> None:
    """Raise UserError where any element is true; unchecked on GPUs, which would stall, and in compiled code."""
    if where.device.type == "cpu" and not torch.compiler.is_compiling() and where.any():
        raise UserError(message if isinstance(message, str) else message())


def _or_nan(value: Tensor, undefined: Tensor) -> Tensor:
    """``value``, NaN where ``undefined``: what :func:`refuse` cannot raise on a GPU or in compiled code."""
    return torch.where(undefined, torch.nan, value)


def _positive(sigma: Tensor, what: str) -> Tensor:
    refuse(sigma == 0, f"{what} is not defined where sigma = 0, at t = 1 of most schedules; stay at t <= 0.999, say")
    return _or_nan(sigma, sigma == 0)


def _some(alpha: Tensor, what: str) -> Tensor:
    refuse(alpha == 0, f"{what} is not defined where alpha = 0, at t = 0 of most schedules; stay at t >= 0.001, say")
    return _or_nan(alpha, alpha == 0)


def _finite(d_alpha: Tensor, d_sigma: Tensor) -> None:
    refuse(
        ~(torch.isfinite(d_alpha) & torch.isfinite(d_sigma)),
        "there is no velocity where d_alpha or d_sigma is infinite; stay 0.001, say, away from that end",
    )


def _determinant(alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor) -> Tensor:
    """sigma alpha' - alpha sigma' > 0: sigma^2 times the derivative of alpha / sigma."""
    _finite(d_alpha, d_sigma)
    determinant = sigma * d_alpha - alpha * d_sigma
    refuse(
        determinant == 0, "the velocity says nothing where the schedule stands still; stay 0.001, say, away from there"
    )
    return _or_nan(determinant, determinant == 0)


def velocity_from_data(
    data: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """u = alpha' data + sigma' (x - alpha data) / sigma."""
    _finite(d_alpha, d_sigma)
    return d_alpha * data + d_sigma / _positive(sigma, "the velocity of a prediction of data") * (x - alpha * data)


def velocity_from_noise(
    noise: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """u = alpha' (x - sigma noise) / alpha + sigma' noise."""
    _finite(d_alpha, d_sigma)
    return d_alpha / _some(alpha, "the velocity of a prediction of noise") * (x - sigma * noise) + d_sigma * noise


def velocity_from_score(
    score: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """u = alpha' (x + sigma^2 score) / alpha - sigma' sigma score."""
    _finite(d_alpha, d_sigma)
    data = (x + sigma.square() * score) / _some(alpha, "the velocity of a score")
    return d_alpha * data - d_sigma * sigma * score


def data_from_velocity(
    velocity: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """data = (sigma u - sigma' x) / (sigma alpha' - alpha sigma')."""
    determinant = _determinant(alpha, sigma, d_alpha, d_sigma)
    return (sigma * velocity - d_sigma * x) / determinant


def data_from_noise(
    noise: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """data = (x - sigma noise) / alpha."""
    return (x - sigma * noise) / _some(alpha, "the data of a prediction of noise")


def data_from_score(
    score: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """data = (x + sigma^2 score) / alpha."""
    return (x + sigma.square() * score) / _some(alpha, "the data of a score")


def noise_from_velocity(
    velocity: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """noise = (alpha' x - alpha u) / (sigma alpha' - alpha sigma')."""
    determinant = _determinant(alpha, sigma, d_alpha, d_sigma)
    return (d_alpha * x - alpha * velocity) / determinant


def noise_from_data(data: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor) -> Tensor:
    """noise = (x - alpha data) / sigma."""
    return (x - alpha * data) / _positive(sigma, "the noise of a prediction of data")


def noise_from_score(
    score: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """noise = -sigma score."""
    return -sigma * score


def score_from_velocity(
    velocity: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """score = (alpha u - alpha' x) / (sigma (sigma alpha' - alpha sigma'))."""
    _positive(sigma, "the score")
    return -noise_from_velocity(velocity, x, alpha, sigma, d_alpha, d_sigma) / sigma


def score_from_data(data: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor) -> Tensor:
    """score = (alpha data - x) / sigma^2."""
    return (alpha * data - x) / _positive(sigma, "the score").square()


def score_from_noise(
    noise: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, d_alpha: Tensor, d_sigma: Tensor
) -> Tensor:
    """score = -noise / sigma."""
    return -noise / _positive(sigma, "the score")


_FUNCTIONS = {
    ("data", "velocity"): velocity_from_data,
    ("noise", "velocity"): velocity_from_noise,
    ("score", "velocity"): velocity_from_score,
    ("velocity", "data"): data_from_velocity,
    ("noise", "data"): data_from_noise,
    ("score", "data"): data_from_score,
    ("velocity", "noise"): noise_from_velocity,
    ("data", "noise"): noise_from_data,
    ("score", "noise"): noise_from_score,
    ("velocity", "score"): score_from_velocity,
    ("data", "score"): score_from_data,
    ("noise", "score"): score_from_noise,
}


def convert(value: Tensor, x: Tensor, coefficients: Coefficients, source: str, target: str) -> Tensor:
    """Convert ``value`` (B, *S), a ``source`` at x (B, *S), to ``target``, both in KINDS.

    Coefficients are (B,) or broadcast over x. Raises UserError for unknown names, shapes that do not match, and an
    undetermined target.
    """
    for name in (source, target):
        if name not in KINDS:
            raise UserError(f"there is no {name!r} to convert{did_you_mean(name, KINDS)}")
    if value.shape != x.shape:
        raise UserError(f"the {source} must have the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}")
    if source == target:
        return value
    return _FUNCTIONS[source, target](value, x, *(expand_right(c, x).to(x.dtype) for c in coefficients))


def data_minus_noise(value: Tensor, x: Tensor, coefficients: Coefficients, source: str) -> Tensor:
    """data - noise (B, *S) from ``value``, a ``source`` in KINDS at x; coefficients (B,), of which float64 helps.

    It has no pole where data or noise alone has one that the other's cancels.
    """
    alpha, sigma, d_alpha, d_sigma = coefficients
    both = alpha + sigma
    match source:
        case "velocity":
            determinant = sigma * d_alpha - alpha * d_sigma
            of_x, of_value = -(d_alpha + d_sigma) / determinant, both / determinant
        case "data":
            of_x, of_value = -1 / sigma, both / sigma
        case "noise":
            of_x, of_value = 1 / alpha, -both / alpha
        case "score":
            of_x, of_value = 1 / alpha, both * sigma / alpha
        case _:
            raise UserError(f"there is no {source!r} to convert{did_you_mean(source, KINDS)}")
    return expand_right(of_x, x).to(x.dtype) * x + expand_right(of_value, x).to(x.dtype) * value

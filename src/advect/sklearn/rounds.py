"""Sequential refinement for one observation by truncated proposals.

Each round simulates parameters drawn from the prior where the posterior learned up to then has nearly all its mass.
There the proposal is the prior but for a constant, and so are the parameters of earlier rounds that lie there:
training on these with the plain loss needs no correction (Deistler, Goncalves & Macke 2022, "Truncated proposals for
scalable and hassle-free simulation-based inference", who keep those outside too).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from advect.core.errors import UserError
from advect.core.files import atomic_write, claim_folder, explain_disk_errors, regular
from advect.sklearn.priors import Prior
from advect.sklearn.settings import warn
from advect.sklearn.simulate import Simulations

LEFT_OUT = 1e-4
"""Share of the posterior's mass outside the region that the next round simulates."""

DRAWS = 4000
"""Draws of the posterior that tell the region, and proposals tried at once."""

_RARE = 0.01
"""Share of proposals inside the region below which they are resampled from the posterior instead."""

_MORE = 5
"""Draws of the posterior, for each proposal, that are resampled."""

_FEW = 0.02
"""Share of effective draws below which resampling is warned of."""

Density = Callable[[np.ndarray], np.ndarray]


class Proposals(NamedTuple):
    """Parameters theta (n, D) of a round, and which simulations up to then (m,) lie in its region."""

    theta: np.ndarray
    inside: np.ndarray


def joined(found: Simulations, inside: np.ndarray, new: Simulations) -> Simulations:
    """The simulations ``inside`` (n,), and new ones."""
    theta, x = np.concatenate([found.theta[inside], new.theta]), np.concatenate([found.x[inside], new.x])
    return Simulations(theta, x, found.failed + new.failed)


class Region:
    """Where a density of latents (n, d) is highest: of nearly all its mass, and within a box around its draws.

    Attributes:
        threshold: least log density inside.
    """

    def __init__(self, log_density: Density, drawn: np.ndarray) -> None:
        """``log_density`` (n,) of latents, and draws (n, d) of it."""
        self.log_density = log_density
        self.threshold = float(np.quantile(log_density(drawn), LEFT_OUT))
        low, high = drawn.min(0), drawn.max(0)
        margin = 0.05 * (high - low)
        self.low, self.high = low - margin, high + margin

    def contains(self, z: np.ndarray) -> np.ndarray:
        """Mask (n,) of latents z (n, d)."""
        inside = ((z >= self.low) & (z <= self.high)).all(1)
        inside[inside] = self.log_density(z[inside]) >= self.threshold
        return inside


def truncated_draws(
    prior: Prior, region: Region, draw: Callable[[int], np.ndarray], n: int, rng: np.random.Generator
) -> np.ndarray:
    """n latents (n, d) of the prior inside the region, by rejection; where that accepts less than one in a hundred, by
    resampling draws of the posterior, ``draw(m)`` (m, d), with a warning where few of them count.
    """
    found, tried, accepted = [], 0, 0
    while accepted < n:
        z = _candidates(prior, region, rng)
        found.append(z[region.contains(z)])
        tried, accepted = tried + len(z), accepted + len(found[-1])
        if accepted < _RARE * tried:
            return _resampled(prior, region, draw, n, rng)
    return np.concatenate(found)[:n]


def _candidates(prior: Prior, region: Region, rng: np.random.Generator) -> np.ndarray:
    """Latents of the prior (DRAWS, d), inside the box alone where they are independent and normal."""
    if not prior.normal:
        return prior.to_latent(prior.sample(DRAWS, int(rng.integers(2**31))))[0]
    flip = region.low > 0  # the left tail of the normal law is the precise one
    low, high = np.where(flip, -region.high, region.low), np.where(flip, -region.low, region.high)
    u = ndtr(low) + (ndtr(high) - ndtr(low)) * rng.uniform(size=(DRAWS, prior.latent))
    z = np.clip(ndtri(u), low, high)
    return np.where(flip, -z, z)


def _resampled(
    prior: Prior, region: Region, draw: Callable[[int], np.ndarray], n: int, rng: np.random.Generator
) -> np.ndarray:
    """n draws (n, d) of the posterior inside the region, with weights by which they are of the prior."""
    z = draw(max(DRAWS, _MORE * n))
    log_q = region.log_density(z)
    theta = prior.to_theta(z)
    log_weights = prior.log_prob(theta) - prior.to_latent(theta)[1] - log_q
    log_weights[log_q < region.threshold] = -np.inf
    weights = np.exp(log_weights - log_weights.max())
    share = weights.sum() ** 2 / (weights**2).sum() / len(z)
    if share < _FEW:
        warn(
            f"the prior is so wide beside the posterior that {share * len(z):.0f} distinct parameters, about, are in "
            f"the {n:,} of this round; take more rounds of fewer simulations"
        )
    places = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(n) + rng.uniform()) / n)
    return z[rng.permutation(places.clip(max=len(z) - 1))]


class KeptRounds:
    """Proposals of each round in a folder, if any, of one call."""

    def __init__(self, folder: str | os.PathLike[str] | None, theta: np.ndarray, x_obs: np.ndarray) -> None:
        """Of the first round's ``theta`` and an observation. Raises UserError for a folder of others."""
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        with claim_folder(self.folder, "folder"):
            for name, value in (("observation.npy", x_obs), ("round-1.npy", theta)):
                there = self._read(self.folder / name)
                if there is not None and not np.array_equal(there, value):
                    raise UserError(
                        f"folder {self.folder} holds rounds of another observation, prior, seed or number of "
                        "simulations; take another"
                    )
                self._write(self.folder / name, value)

    def place(self, number: int) -> Path | None:
        """Folder of the simulations of a round, counted from 1."""
        return None if self.folder is None else self.folder / f"round-{number}"

    def read(self, number: int) -> Proposals | None:
        """Those of a round after the first, if they are kept."""
        if self.folder is None:
            return None
        theta, inside = (self._read(self.folder / f"round-{number}{end}.npy") for end in ("", "-inside"))
        return None if theta is None or inside is None else Proposals(theta, inside)

    def keep(self, number: int, given: Proposals) -> None:
        if self.folder is not None:
            self._write(self.folder / f"round-{number}-inside.npy", given.inside)
            self._write(self.folder / f"round-{number}.npy", given.theta)

    def _read(self, path: Path) -> np.ndarray | None:
        if not path.exists():
            return None
        try:
            return np.load(regular(path), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it and the later rounds") from error

    def _write(self, path: Path, value: np.ndarray) -> None:
        def save(partial: Path) -> None:
            with partial.open("wb") as file:  # by name NumPy would add an ending
                np.save(file, value)

        with explain_disk_errors("repeat the call"):
            atomic_write(path, save)

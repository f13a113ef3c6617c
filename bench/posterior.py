"""Posterior sampling with exact denoisers against exact posteriors, in energy distance.

Data are Gaussian mixtures of D dimensions, ``--laws`` of them at random: "gaussian" has one component, of random
covariance; "near" five of deviation 0.6 with means N(0, I), which overlap; "apart" five of deviation 0.25. Each is
measured once: the first half of the elements ("mask"), or D / 4 random sums ("sums"), with a noise. Every method draws
``--rows`` samples, which are compared with as many of the exact posterior, a mixture in closed form (for a noise of 0,
that of 1e-3). "exact" compares these with others of their own, the floor; "prior" ignores y. The unbiased energy
distance is divided by that of the prior, and its median and largest value over the laws are told.

    python bench/posterior.py > table.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from advect.core import registry
from advect.core.random import CounterRng
from advect.metrics.mmd import energy_with_error
from advect.paths.analytic import GaussianMixture
from advect.solvers.posterior import Linear, Masked, Observation, PosteriorMethod, posterior_sample

METHODS = {
    "dps": ("dps", {}),
    "dps, ODE": ("dps", {"eta": 0.0}),
    "pigdm": ("pigdm", {}),
    "pigdm, ODE": ("pigdm", {"eta": 0.0}),
    "mmps": ("mmps", {}),
    "mmps, ODE": ("mmps", {"eta": 0.0}),
    "mmps, 1 iteration": ("mmps", {"iterations": 1}),
    "repaint, once": ("repaint", {"resamples": 1}),
    "repaint, 4 times": ("repaint", {"resamples": 4}),
    "repaint, 10 times": ("repaint", {}),
    "repaint, 30 times": ("repaint", {"resamples": 30}),
}


def law(kind: str, d: int, g: torch.Generator) -> GaussianMixture:
    """A random mixture."""
    if kind == "gaussian":
        root = torch.randn(1, d, d, dtype=torch.float64, generator=g)
        covariances = root @ root.mT / d + 0.1 * torch.eye(d)
        return GaussianMixture(torch.randn(1, d, generator=g), covariances=covariances)
    return GaussianMixture(torch.randn(5, d, generator=g), stds={"near": 0.6, "apart": 0.25}[kind])


def questions(d: int, g: torch.Generator) -> Iterator[tuple[str, Masked | Linear, Tensor]]:
    """Measurements with their matrices."""
    mask = torch.arange(d) < d // 2
    yield "mask", Masked(mask), torch.eye(d)[mask]
    matrix = torch.randn(max(1, d // 4), d, generator=g) / d**0.5
    yield "sums", Linear(matrix), matrix


def drawn(method: PosteriorMethod, data: GaussianMixture, ask: Observation, n: int, steps: int) -> Tensor:
    rng = CounterRng(0, 0, n)
    return posterior_sample(data.data, rng.normal((n, *data.shape)), ask, method=method, steps=steps, generator=rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--laws", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--noises", type=float, nargs="+", default=[0.0, 0.3])
    a = parser.parse_args()
    ratios: dict[tuple[str, ...], dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for kind in ("gaussian", "near", "apart"):
        g = torch.Generator().manual_seed(0)
        for _ in range(a.laws):
            data = law(kind, a.dim, g)
            x1 = data.draw(1, g)[0]
            for what, part, matrix in questions(a.dim, g):
                for noise in a.noises:
                    y = matrix @ x1 + noise * torch.randn(len(matrix), generator=g)
                    exact = data.given(matrix, y, max(noise, 1e-3))
                    truth = exact.draw(a.rows, g)
                    ask = Observation.of(
                        part, matrix.T @ y if what == "mask" else y, noise, a.rows, (a.dim,), torch.device("cpu")
                    )
                    cell = ratios.setdefault((what, f"{noise:g}", kind), {})
                    prior = energy_with_error(data.draw(a.rows, g), truth)[0]
                    cell.setdefault("exact", []).append(energy_with_error(exact.draw(a.rows, g), truth)[0] / prior)
                    for label, (name, options) in METHODS.items():
                        if name == "repaint" and what != "mask":
                            continue
                        began = time.perf_counter()
                        x = drawn(registry.get("posterior", name)(**options), data, ask, a.rows, a.steps)
                        seconds.setdefault(label, []).append(time.perf_counter() - began)
                        cell.setdefault(label, []).append(energy_with_error(x, truth)[0] / prior)
    report(ratios, seconds)


def report(ratios: dict[tuple[str, ...], dict[str, list[float]]], seconds: dict[str, list[float]]) -> None:
    """Print a table: a row a method, a column each of what was measured, the noise and the data."""
    cells = list(ratios)
    print("| method | " + " | ".join(f"{what} {noise}, {kind}" for what, noise, kind in cells) + " | seconds |")
    print("|---" * (len(cells) + 2) + "|")
    for label in ("exact", *METHODS):
        found = [ratios[cell].get(label) for cell in cells]
        told = [f"{statistics.median(v):.3f} ({max(v):.2f})" if v else "" for v in found]
        cost = f"{statistics.median(seconds[label]):.2f}" if label in seconds else ""
        print(f"| {label} | " + " | ".join(told) + f" | {cost} |")


if __name__ == "__main__":
    main()

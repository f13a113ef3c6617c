"""Time and error of `log_prob` to a tolerance of 1e-3 nats beside 50 steps of "rk4", in 2 to 30 columns.

A FlowModel learns bent Gaussians of two widths; ``--rows`` of its rows are taken by both in turns, on one thread, so
that a busy machine is busy for both. The table has medians of CPU seconds, and the largest and mean distance, in nats,
from 150 steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from interleave import machine

from advect import FlowModel
from advect.model.flow import Flow

WAYS: dict[str, dict[str, Any]] = {"tolerance 1e-3": {"tolerance": 1e-3}, "50 steps": {}}


def data(columns: int, rows: int) -> np.ndarray:
    """Five Gaussians (rows, columns), bent by a neighbour's square."""
    rng = np.random.default_rng(columns)
    means, widths = 2 * rng.standard_normal((5, columns)), 0.15 + 0.5 * rng.random((5, columns))
    which = rng.integers(5, size=rows)
    x = means[which] + widths[which] * rng.standard_normal((rows, columns))
    return np.sinh(0.5 * x) + 0.3 * np.roll(x, 1, 1) ** 2


def contest(flow: Flow, x: torch.Tensor, rounds: int) -> dict[str, tuple[float, float, float]]:
    """CPU seconds, largest and mean error of each way."""
    best = flow.log_prob(x, steps=150).double()
    errors = {name: (flow.log_prob(x, **how).double() - best).abs() for name, how in WAYS.items()}
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, how in WAYS.items():
            began = time.process_time()
            flow.log_prob(x, **how)
            taken[name].append(time.process_time() - began)
    return {name: (statistics.median(taken[name]), e.max().item(), e.mean().item()) for name, e in errors.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, nargs="+", default=[2, 5, 10, 30])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, PyTorch {torch.__version__}")
    print("| columns | density | CPU s | times as fast | error, largest | mean |\n|---|---|---|---|---|---|")
    for columns in args.columns:
        x = data(columns, 4000)
        model = FlowModel(steps=args.steps, base=None, early_stopping=False, random_state=0, device="cpu").fit(x)
        found = contest(model.flow_, torch.from_numpy(x[: args.rows]).float(), args.rounds)
        slowest = found["50 steps"][0]
        for name, (seconds, largest, mean) in found.items():
            print(
                f"| {columns} | {name} | {seconds:.2f} | {slowest / seconds:.1f} | {largest:.1e} | {mean:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

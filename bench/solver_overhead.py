"""Overhead of each solver over the bare network: 64 samples, a 4 x 256 MLP, float32, one thread, 100 evaluations.

The bare contestant calls the network as often, at a time tensor that exists already, and does nothing else. Each
round times it and then a solver, so that a noisy machine is noisy for both; the table has the median of the ratios
and their quartiles. The adaptive solver is given the tolerance at which it needs about 100 evaluations on this
network, and is measured by the evaluation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from interleave import machine
from torch import Tensor

from advect.core.device import tune_process
from advect.core.registry import choices
from advect.networks import MLP
from advect.solvers import Solution, Solver, get_solver, solve

EVALUATIONS = 100
TARGETS = {False: 1.05, True: 1.20}


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def tolerance(run: Callable[[float], Solution]) -> float:
    """The tolerance at which the adaptive solver comes nearest to the number of evaluations asked for."""
    candidates = [10 ** (-k / 4) for k in range(4, 28)]
    return min(candidates, key=lambda tol: abs(run(tol).nfe - EVALUATIONS))


def contest(rounds: int) -> list[str]:
    """One line of the table for each solver."""
    torch.manual_seed(0)
    net = MLP(2, width=256, depth=4).eval().requires_grad_(False)
    x0, t = torch.randn(64, 2), torch.rand(64)

    def bare(calls: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(calls):
                net(x0, t)

        return work

    def adaptive(tol: float) -> Solution:
        return solve(net, x0, solver="dopri5", rtol=tol, atol=tol, max_steps=10_000)

    tol = tolerance(adaptive)
    lines = []
    for name in choices("solver"):
        solver = get_solver(name)
        steps = next(n for n in range(1, EVALUATIONS + 1) if (solver.nfe(n) or EVALUATIONS) >= EVALUATIONS)

        def run(solver: Solver = solver, steps: int = steps) -> Tensor:
            return adaptive(tol).x if solver.adaptive else solve(net, x0, solver=solver, steps=steps).x

        calls = adaptive(tol).nfe if solver.adaptive else solver.nfe(steps) or 0
        alone = bare(calls)
        with torch.no_grad():
            alone()
            run()
            pairs = [(seconds(alone), seconds(run)) for _ in range(rounds)]
        ratios = [after / before for before, after in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        each = statistics.median(before for before, _ in pairs) / calls
        verdict = "yes" if middle <= TARGETS[solver.adaptive] else "no"
        lines.append(
            f"| {name} | {calls} | {each * 1e6:.0f} | {100 * (middle - 1):+.1f}% "
            f"| {100 * (low - 1):+.1f}% to {100 * (high - 1):+.1f}% | {verdict} |"
        )
    return lines


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_process()
    print(f"{machine()}, PyTorch {torch.__version__}")
    print(
        "| solver | evaluations | bare network, us a call | overhead, median | quartiles | within 5% (dopri5: 20%) |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(contest(args.rounds)))


if __name__ == "__main__":
    main()

"""Overhead of each solver over the bare network: 64 samples, a 4 x 256 MLP, float32, one thread, 100 evaluations.

The bare contestant calls the network as often, at a time tensor that exists already, and does nothing else. Each
round times it and then a solver, so that a noisy machine is noisy for both; the table has the median of the ratios
and their quartiles. The adaptive solver is given the tolerance at which it needs about 100 evaluations on this
network, and is measured by the evaluation.

``--densities UNITS`` measures instead the exact density of 30 columns (scikit-learn's breast cancer, a FlowModel of
layers of so many units, float64, 20 steps of "rk4"): one system of state and integral, its trace in forward mode, as
until November 2026, and in reverse mode; and the integral by quadrature. CPU seconds of 1,000 rows, in turns, and the
largest and mean distance, in nats, from the density in 100 steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from interleave import machine
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.func import jvp, vmap

from advect import FlowModel
from advect.core.device import tune_process
from advect.core.registry import choices
from advect.networks import MLP
from advect.sklearn.mixture import double_precision
from advect.solvers import Solution, Solver, Velocity, get_solver, solve
from advect.solvers.likelihood import ExactDivergence, _solve_apart, _solve_both, standard_normal_log_prob

EVALUATIONS = 100
TARGETS = {False: 1.05, True: 1.20}


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes."""
    began = clock()
    work()
    return clock() - began


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


Trace = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def forward_mode(velocity: Velocity) -> Trace:
    """Velocity (B, D) and divergence (B,) by dual numbers over all basis vectors at once."""

    def divergence(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        basis = torch.eye(x.shape[1], dtype=x.dtype)[:, None].expand(-1, *x.shape)
        push = lambda v: jvp(lambda y: velocity(y, t), (x,), (v,))[:2]
        u, moved = vmap(push, out_dims=(None, 0))(basis)  # pyright: ignore[reportArgumentType]
        return u, (moved * basis).sum((0, 2))

    return divergence


def densities(units: int, rounds: int, rows: int = 256) -> list[str]:
    """A line of the table for each way to the density."""
    data = load_breast_cancer(return_X_y=True)[0]
    model = FlowModel(hidden=units, steps=600, early_stopping=False, random_state=0, options={"threads": 1}).fit(data)
    flow = double_precision(model.flow_)
    way, x = flow.coordinates, flow.transform.forward(torch.from_numpy(data[:rows]))
    velocity, method = way.velocity(flow._field(way, {})), get_solver("rk4")
    exact, grid = ExactDivergence(velocity, 32), lambda steps: torch.linspace(1, 0, steps + 1).tolist()
    ways: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "one system, forward mode": lambda: _solve_both(forward_mode(velocity), x, method, grid(20)),  # pyright: ignore
        "one system, reverse mode": lambda: _solve_both(exact, x, method, grid(20)),
        "quadrature, reverse mode": lambda: _solve_apart(exact, x, method, grid(20), 21),
    }
    density = lambda found: standard_normal_log_prob(found[0]) + found[1]
    with torch.no_grad():
        best = density(_solve_apart(exact, x, method, grid(100), 125))
        errors = {name: (density(run()) - best).abs() for name, run in ways.items()}
        taken = [{name: seconds(run, time.process_time) for name, run in ways.items()} for _ in range(rounds)]
    first = next(iter(ways))
    return [
        f"| {name} | {statistics.median(row[name] for row in taken) * 1000 / rows:.1f} "
        f"| {statistics.median(row[first] / row[name] for row in taken):.2f} "
        f"| {error.max().item():.1e} | {error.mean().item():.1e} |"
        for name, error in errors.items()
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--densities", type=int, metavar="UNITS")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_process()
    print(f"{machine()}, PyTorch {torch.__version__}")
    if args.densities:
        print("| density | CPU s for 1,000 rows | times as fast | error, largest | mean |\n|---|---|---|---|---|")
        print("\n".join(densities(args.densities, args.rounds)))
        return
    print(
        "| solver | evaluations | bare network, us a call | overhead, median | quartiles | within 5% (dopri5: 20%) |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(contest(args.rounds)))


if __name__ == "__main__":
    main()

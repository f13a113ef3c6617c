"""Frechet distance of samples of the stochastic equation, by its g(t), beside that of the ODE.

Every g has the marginals of the ODE, so that with enough steps the distances differ by the network's errors alone. The
aim, at 250 steps: within 10% of the ODE's.

    advect train digits --run-dir RUN --sample-every 0
    python bench/diffusions.py RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from interleave import machine

from advect.commands.evaluate import evaluate
from advect.core.registry import choices
from advect.evaluation.protocol import EvalConfig

DIFFUSIONS = ("0.25", "0.5", "1", "2", *(name for name in choices("diffusion") if name != "constant"))


def measure(run: Path, **options: Any) -> tuple[float, dict[str, Any]]:
    """The Frechet distance of the floor, and the result's point, of samples with these options."""
    _, result = evaluate(run, EvalConfig(metrics=("frechet",), **options))
    (point,) = result["points"]
    return result["floor"]["metrics"]["frechet"], point


def main() -> None:
    """Print a row for the ODE and for every g."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="trained run")
    parser.add_argument("--num-samples", type=int, default=1797)
    parser.add_argument("--num-steps", type=int, default=250)
    parser.add_argument("--diffusions", nargs="+", default=DIFFUSIONS)
    a = parser.parse_args()
    print(f"<!-- {machine()} -->\n\n| g | solver | evaluations | Frechet | to the ODE's |\n|---|---|---|---|---|")
    floor, ode = measure(a.run, num_samples=a.num_samples)
    base = ode["metrics"]["frechet"]["mean"]
    print(f"| none, the ODE | {ode['solver']} | {ode['nfe']} | {base:.2f} | |", flush=True)
    for g in a.diffusions:
        _, point = measure(a.run, num_samples=a.num_samples, num_steps=(a.num_steps,), diffusion=g)
        found = point["metrics"]["frechet"]["mean"]
        print(f"| {g} | {point['solver']} | {point['nfe']} | {found:.2f} | {found / base - 1:+.1%} |", flush=True)
    print(f"| other data of the floor | | | {floor:.2f} | |")


if __name__ == "__main__":
    main()

"""Do the metrics of ``advect eval`` order runs of rising quality?

    for k in 1 3 10 30 100; do
        advect train digits --run-dir digits-$k --max-steps $((20 * k)) --lr-warmup-steps $k
    done
    python bench/metrics_order.py digits-1 digits-3 digits-10 digits-30 digits-100

Runs in rising order of quality, of the same data. A line a metric: its value for each run, the floor, and whether each
run is better than the one before ("ordered"), or equal or worse only within both 95% intervals ("within"), or neither
("NO").
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from advect.commands.evaluate import evaluate
from advect.evaluation.features import FeatureConfig
from advect.evaluation.protocol import EvalConfig
from advect.evaluation.results import figure

HIGHER = ("precision", "recall", "density", "coverage", "class_accuracy", "mean_r2", "variance_r2")
"""Metrics, or starts of their names, of which more is better; of the others less."""


def verdict(metrics: Sequence[dict[str, Any]], higher: bool) -> str:
    """Whether a metric orders runs of rising quality; ties count as within."""
    sign = 1 if higher else -1
    gains = [sign * (b["mean"] - a["mean"]) for a, b in pairwise(metrics)]
    if all(gain > 0 for gain in gains):
        return "ordered"
    reach = lambda metric: (metric["interval"][1] - metric["interval"][0]) / 2 if metric["interval"] else 0.0
    slack = [reach(a) + reach(b) for a, b in pairwise(metrics)]
    return "within" if all(gain >= -allowed for gain, allowed in zip(gains, slack, strict=True)) else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--features", default=None)
    parser.add_argument("--metrics", nargs="*", default=())
    a = parser.parse_args()
    points, floor, left_out = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for i, run in enumerate(a.runs):
            config = EvalConfig(
                features=FeatureConfig(features=a.features),
                num_samples=a.num_samples,
                num_steps=(a.num_steps,),
                metrics=tuple(a.metrics),
                output=Path(folder) / f"{i}.json",
            )
            _, result = evaluate(run, config)
            points.append(result["points"][0]["metrics"])
            floor, left_out = result["floor"], left_out | result["left_out"]
    print(f"| metric | {' | '.join(run.name for run in a.runs)} | floor | |")
    print("|---" * (len(a.runs) + 3) + "|")
    for name in points[0]:
        found = [point[name] for point in points if name in point]
        cells = [figure(metric["mean"], metric["interval"]) for metric in found]
        real = figure(floor["metrics"][name], floor["intervals"].get(name)) if name in floor["metrics"] else ""
        told = verdict(found, name.startswith(HIGHER)) if len(found) == len(points) else "missing"
        print(f"| {name} | {' | '.join(cells)} | {real} | {told} |", flush=True)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")


if __name__ == "__main__":
    main()

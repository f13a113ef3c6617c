"""Generated cells beside held-out ones, the real-versus-real floor, and Gaussians fitted to the training cells.

    python bench/cells.py CELLS.h5ad --condition label --run-dir runs/baron
    python bench/cells.py CELLS.h5ad --condition label --run runs/baron/a --run runs/baron/b

The first form trains the preset ``cells`` (flags after ``--`` go to ``advect train``), the second takes trained runs.
All rows have as many cells of each type as are held out, in log-normalised expression of the same genes; each is drawn
with several seeds, and the table shows mean and standard deviation over them:

- training: real training cells, the floor. A row that is better than it has copied.
- flow: what a run's flow gives. Of a flow of components that is the expected expression; "flow, counted" draws
  counts around it (``advect.data.count_noise``), as ``advect sample`` does.
- Gaussian per type: independent genes.
- PCA and Gaussian per type: as many components as the run has, a covariance shrunk by Ledoit & Wolf's rule, and back.
- PCA and Gaussian, counted: counts drawn around those, as around the flow's. What of the flow's lead is the flow's
  own shows here.
- components of training cells, counted: what a perfect flow of these components would reach.

Types of two training cells or fewer take the deviations that all types share. What is negative becomes 0 in all rows.
Energy distance and MMD are unbiased, so that 0 is what equal laws have on average. Those "within" are means over types
of ``--at-least`` held-out cells, each counting alike. ``copies`` is the share of cells whose nearest training cell is
nearer than the 5th percentile of the held-out cells' distances to theirs, in 50 components: 5% is what new cells have.
``AUC`` is that of a random forest that tells a set from the held-out cells, cross-validated: 0.5 if it cannot.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from torch import Tensor

import advect
from advect.core.random import CounterRng
from advect.data import Cells, Expression, count_noise
from advect.data.transforms import Transform
from advect.metrics import (
    energy_distance,
    mean_r2,
    median_distance,
    nearest_neighbours,
    rbf_mmd,
    variance_r2,
    within,
    zero_share,
)


@dataclass(frozen=True)
class Real:
    """Training and held-out cells (N, D) and (M, D) with their types (N,) and (M,), and the facts of the file."""

    train: Tensor
    types: Tensor
    held_out: Tensor
    wanted: Tensor
    facts: Any
    scores: Tensor
    transform: Transform
    """Scores (N, k) of the training cells, and the transform from scores to expected expression."""

    @classmethod
    def read(cls, path: Path, condition: str, genes: int, held_out: float, components: int) -> Real:
        """The split that a run of the same file, genes, share and seed 0 has; without scaling, zeros stay exact."""
        options = {"conditions": [condition], "highly_variable": genes, "held_out": held_out, "standardise": False}
        source, reduced = Cells(path, **options), Cells(path, **options, pca=components)
        scores = reduced.train.fetch(np.arange(len(reduced.train))).x1
        a, b = (split.fetch(np.arange(len(split))) for split in (source.train, source.held_out))
        assert a.cond is not None and b.cond is not None
        order = b.cond[condition].argsort(stable=True)
        return cls(
            a.x1, a.cond[condition], b.x1[order], b.cond[condition][order], source.metadata, scores, reduced.transform
        )


Draw = Callable[[int], Tensor]
"""From a seed to cells (M, D) of the types wanted."""


def training(real: Real) -> Draw:
    """Real cells, each once as long as there are enough of its type."""

    return lambda seed: real.train[places_of(real, seed)]


def places_of(real: Real, seed: int) -> Tensor:
    """Training cells (M,) of the types wanted."""
    rng, places = np.random.default_rng(seed), np.empty(len(real.wanted), np.int64)
    for kind in real.wanted.unique():
        pool, asked = np.flatnonzero(real.types == kind), np.flatnonzero(real.wanted == kind)
        places[asked] = rng.choice(pool, len(asked), replace=len(asked) > len(pool))
    return torch.from_numpy(places)


def gaussians(real: Real, x: np.ndarray, *, independent: bool) -> Draw:
    """A Gaussian for each type of the rows x (N, k) of the training cells."""
    types = real.types.numpy()
    shared = np.sqrt(np.mean([x[types == kind].var(0) for kind in np.unique(types)], 0))
    roots: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for kind in np.unique(types):
        rows = x[types == kind]
        if len(rows) <= 2:
            root = np.diag(shared)
        elif independent:
            root = np.diag(rows.std(0))
        else:
            values, vectors = np.linalg.eigh(ledoit_wolf(rows)[0])
            root = vectors * np.sqrt(values.clip(min=0))
        roots[int(kind)] = (rows.mean(0), root)

    def draw(seed: int) -> Tensor:
        z = np.random.default_rng(seed).normal(size=(len(real.wanted), x.shape[1]))
        parts = [roots[kind][0] + roots[kind][1] @ row for kind, row in zip(real.wanted.tolist(), z, strict=True)]
        return torch.from_numpy(np.stack(parts)).float()

    return draw


def flow_draw(run: Path, condition: str, real: Real) -> tuple[Draw, Draw | None]:
    """What a run's flow gives, in expression, and cells counted around it if that is an expectation."""
    flow = advect.load(run)
    if flow.facts.get("var", {}).get("genes") != real.facts["var"]["genes"]:
        sys.exit(f"{run} was trained on other genes; train it with the same file, --genes and --held-out")
    labels = real.facts["obs"][condition]["labels"]
    cond = {condition: [labels[kind] for kind in real.wanted.tolist()]}
    draw = lambda seed: flow.sample(len(real.wanted), cond=cond, seed=seed).x
    counted = lambda seed: count_noise(draw(seed), flow.transform, CounterRng(seed, 1, len(real.wanted)))
    return draw, counted if flow.facts.get("counted") else None


def contestants(real: Real, runs: list[Path], condition: str) -> dict[str, Draw]:
    """All rows of the table by name."""
    count = lambda z, seed: count_noise(real.transform.inverse(z), real.transform, CounterRng(seed, 1, len(z)))
    rows: dict[str, Draw] = {"training": training(real)}
    rows["components of training cells, counted"] = lambda seed: count(real.scores[places_of(real, seed)], seed)
    for run in runs:
        draw, counted = flow_draw(run, condition, real)
        name = "flow" if len(runs) == 1 else f"flow {run.name}"
        rows |= {f"{name}, counted": counted} if counted else {}
        rows[name] = draw
    project = gaussians(real, real.scores.double().numpy(), independent=False)
    end = Expression(smallest=0.0).inverse
    plain = gaussians(real, real.train.double().numpy(), independent=True)
    rows["Gaussian per type"] = lambda seed: end(plain(seed))
    rows["PCA and Gaussian per type"] = lambda seed: real.transform.inverse(project(seed))
    rows["PCA and Gaussian, counted"] = lambda seed: count(project(seed), seed)
    return rows


class Score:
    """All measures of a set of cells (M, D) against the held-out ones."""

    def __init__(self, real: Real, at_least: int) -> None:
        self.real, self.at_least = real, at_least
        self.scale = median_distance(real.held_out)
        self.pca = PCA(50, random_state=0).fit(real.train.numpy())
        own = self._nearest(real.held_out)
        self.near = float(own.quantile(0.05))

    def _nearest(self, x: Tensor) -> Tensor:
        a, b = (torch.from_numpy(self.pca.transform(v.numpy())) for v in (x, self.real.train))
        return nearest_neighbours(a, b).distances[:, 0]

    def _forest(self, x: Tensor) -> float:
        both = np.concatenate([self.real.held_out.numpy(), x.numpy()])
        which = np.repeat([0, 1], [len(self.real.held_out), len(x)])
        forest = RandomForestClassifier(200, min_samples_leaf=2, random_state=0)
        chance = np.asarray(cross_val_predict(forest, both, which, cv=5, method="predict_proba"))
        return float(roc_auc_score(which, chance[:, 1]))

    def __call__(self, x: Tensor) -> dict[str, float]:
        y, kinds = self.real.held_out, self.real.wanted
        distance = lambda a, b: energy_distance(a, b, unbiased=True)
        inside = lambda measure: float(
            np.mean(list(within(measure, x, y, kinds, kinds, at_least=self.at_least).values()))
        )
        return {
            "energy": distance(x, y),
            "MMD x1000": 1e3 * rbf_mmd(x, y, scale=self.scale, unbiased=True),
            "energy within": inside(distance),
            "R2 means within": inside(mean_r2),
            "R2 variances within": inside(variance_r2),
            "zeros": zero_share(x),
            "AUC": self._forest(x),
            "copies": float((self._nearest(x) < self.near).double().mean()),
        }


def table(rows: dict[str, Draw], score: Score, seeds: int) -> None:
    """Print a row for each contestant as it is measured."""
    head = list(score(score.real.held_out))
    print("| | " + " | ".join(head) + " |\n|---" + "|---" * len(head) + "|", flush=True)
    for name, draw in rows.items():
        found = [score(draw(seed)) for seed in range(seeds)]
        values = np.array([[f[key] for key in head] for f in found])
        mean, spread = values.mean(0), values.std(0, ddof=1) if seeds > 1 else values.std(0)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def draw_picture(real: Real, rows: dict[str, Draw], path: Path) -> None:
    """Two components of the training cells: held-out cells, and each set beside them, coloured by type."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    (column,) = real.facts["obs"].values()
    names = column["labels"]
    sets = {"held out": real.held_out, **{name: draw(0) for name, draw in rows.items()}}
    pca = PCA(2, random_state=0).fit(real.train.numpy())
    figure, axes = plt.subplots(1, len(sets), figsize=(3.2 * len(sets), 3.4), sharex=True, sharey=True)
    for axis, (name, x) in zip(axes, sets.items(), strict=True):
        z = pca.transform(x.numpy())
        for kind in real.wanted.unique().tolist():
            some = (real.wanted == kind).numpy()
            axis.scatter(*z[some].T, s=5, color=plt.get_cmap("tab20")(kind % 20), label=names[kind], linewidths=0)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=7, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=110)


def train(args: argparse.Namespace, flags: list[str]) -> Path:
    """Train the preset on the file, with more flags of ``advect train``; the run folder."""
    command = [sys.executable, "-m", "advect", "train", "cells", "--data-dir", str(args.cells)]
    command += ["--conditions", args.condition, "--highly-variable", str(args.genes)]
    command += ["--held-out", str(args.held_out), "--pca", str(args.components), "--run-dir", str(args.run_dir)]
    subprocess.run([*command, *flags], check=True)
    return args.run_dir


def main() -> None:
    """Train where no run is given, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, help="an .h5ad file of counts")
    parser.add_argument("--condition", required=True, help="the column of obs that holds the types")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--components", type=int, default=50)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--at-least", type=int, default=20, help="held-out cells that a type needs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--run", type=Path, action="append", default=[], help="a trained run; may be given again")
    parser.add_argument("--run-dir", type=Path, help="where to train, if no run is given")
    parser.add_argument("--picture", type=Path, help="a PNG of two components")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:at])
    if not args.run and args.run_dir is None:
        parser.error("give --run, or --run-dir to train")
    runs = args.run or [train(args, sys.argv[at + 1 :])]
    real = Real.read(args.cells, args.condition, args.genes, args.held_out, args.components)
    rows = contestants(real, runs, args.condition)
    names = real.facts["obs"][args.condition]["labels"]
    counts = {names[k]: int((real.wanted == k).sum()) for k in real.wanted.unique().tolist()}
    genes = real.train.shape[1]
    print(f"{len(real.train)} training and {len(real.held_out)} held-out cells of {genes} genes; held out: {counts}")
    print(f"zeros: training {zero_share(real.train):.3f}, held out {zero_share(real.held_out):.3f}")
    if args.picture:
        draw_picture(real, {k: d for k, d in rows.items() if "counted" in k or k == "Gaussian per type"}, args.picture)
    table(rows, Score(real, args.at_least), args.seeds)


if __name__ == "__main__":
    main()

"""Genes of cells drawn from a measured panel by a flow trained with --mask genes, beside ridge regression.

    python bench/gene_panels.py baron_pancreas.h5ad --minutes 10

Of held-out cells 200 of 2,000 variable genes are given, log-normalised, and the others drawn. One flow answers all
panels; ridge regression is fitted for each on the training cells, its penalty chosen on a fifth of them. A row a
method, the mean over panels: the correlation of each gene with the truth over the cells, its mean (r) and median, and
the mean of the ``--top`` genes of largest expression; the mean square error in deviations (mse); the share of zeros in
what is drawn; and that of the truth within the central 90% of draws (cover). "shuffled" gives each cell the genes of
another training cell.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from interleave import machine, train_run

import advect
from advect.data import Cells

PENALTIES = (10.0, 100.0, 1000.0, 10_000.0)


def expression(path: Path, genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out cells (N, D), in the split of a run of seed 0, of most variable genes."""
    data = Cells(path, highly_variable=genes, held_out=0.2, standardise=False)
    train, rest = (s.fetch(np.arange(len(s))).x1.double().numpy() for s in (data.train, data.held_out))
    return train, rest


def ridge(train: np.ndarray, rest: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """The genes (M, D - 200) of ``rest`` by regression on the panel."""
    mean, std = train.mean(0), np.where(train.std(0) > 0, train.std(0), 1)
    z, q = (train - mean) / std, ((rest - mean) / std)[:, panel]
    fifth = len(z) // 5

    def fit(z: np.ndarray, penalty: float) -> np.ndarray:
        x = z[:, panel]
        return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ z[:, ~panel])

    error = lambda penalty: np.square(z[:fifth][:, panel] @ fit(z[fifth:], penalty) - z[:fifth][:, ~panel]).mean()
    return q @ fit(z, min(PENALTIES, key=error)) * std[~panel] + mean[~panel]


def draw(flow: advect.Flow, rest: np.ndarray, panel: np.ndarray, draws: int, steps: int) -> np.ndarray:
    """Draws (draws, M, D - 200) of the genes of ``rest``, given the panel."""
    given = np.where(panel, rest, np.nan)
    x = flow.sample(draws * len(rest), given=np.tile(given, (draws, 1)), steps=steps, progress=True).x
    return x.double().numpy().reshape(draws, *rest.shape)[:, :, ~panel]


def measure(drawn: np.ndarray, truth: np.ndarray, point: np.ndarray, std: np.ndarray, top: np.ndarray) -> list[float]:
    """Numbers of a row for draws (K, M, G) and a point estimate (M, G) of the truth (M, G)."""
    a, b = point - point.mean(0), truth - truth.mean(0)
    size = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    varied = (b * b).sum(0) > 0
    r = np.where(size > 0, (a * b).sum(0) / np.where(size > 0, size, 1), 0.0)
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    cover = ((low <= truth) & (truth <= high)).mean() if len(drawn) >= 10 else np.nan
    mse = np.square((point - truth) / std).mean()
    return [r[varied].mean(), float(np.median(r[varied])), r[top & varied].mean(), mse, (drawn[0] <= 0).mean(), cover]


def training(a: argparse.Namespace) -> list[object]:
    """Words for the preset ``cells`` on genes, given panels of 200."""
    words = ["cells", "--data-dir", a.file, "--highly-variable", a.genes, "--held-out", 0.2, "--mask", "genes"]
    words += ["--mask-panel", a.panel, "--max-minutes", a.minutes]
    return [*words, *(["--max-steps", a.max_steps] if a.max_steps else []), *a.flags]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="an .h5ad file of counts")
    parser.add_argument("--run", type=Path, default=Path("runs/panels"), help="trained there unless it exists")
    parser.add_argument("--minutes", type=float, default=10, help="of training")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--panel", type=int, default=200)
    parser.add_argument("--panels", type=int, default=3, help="panels of random genes")
    parser.add_argument("--rows", type=int, default=400, help="most held-out cells")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--top", type=int, default=200)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of advect train, to the end")
    a = parser.parse_args()
    print(machine())
    train_run(a.run, training(a))
    train, rest = expression(a.file, a.genes)
    rest, flow, rows = rest[: a.rows], advect.load(a.run), {}
    std, rng, seconds = np.where(train.std(0) > 0, train.std(0), 1), np.random.default_rng(0), 0.0
    expressed = np.isin(np.arange(a.genes), train.mean(0).argsort()[-a.top :])
    for _ in range(a.panels):
        panel = np.isin(np.arange(a.genes), rng.choice(a.genes, a.panel, replace=False))
        truth, began = rest[:, ~panel], time.monotonic()
        drawn = draw(flow, rest, panel, a.draws, a.num_steps)
        seconds += time.monotonic() - began
        found = {"mean of training cells": train[:, ~panel].mean(0)[None].repeat(len(rest), 0)}
        found |= {"ridge regression": ridge(train, rest, panel), "flow, mean of draws": drawn.mean(0)}
        found |= {"flow, one draw": drawn[0], "shuffled": train[rng.integers(len(train), size=len(rest))][:, ~panel]}
        for name, point in found.items():
            some = drawn if name.startswith("flow") else point[None]
            rows.setdefault(name, []).append(measure(some, truth, point, std[~panel], expressed[~panel]))
    print(
        f"{len(rest):,} cells, {a.panels} panels of {a.panel} of {a.genes:,} genes, {a.draws} draws in {seconds:.0f} s"
    )
    print(f"zeros of the truth: {(rest == 0).mean():.3f}")
    print("| method | r | median r | r, expressed | mse | zeros | cover |\n" + "|---" * 7 + "|")
    for name, row in rows.items():
        cells = ["" if np.isnan(v) else f"{v:.3f}" for v in np.mean(row, 0)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

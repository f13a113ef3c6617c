"""Forecasts of ETTh by a flow trained with --mask prefix, against seasonal naive and ridge regression.

    python ../shared/data/get.py series
    python bench/forecast.py SERIES/ETTh.csv --minutes 15

96 hours of 7 columns are given and 24 drawn, in the usual split of 12, 4 and 4 months (Zhou et al. 2021), in
deviations of the training months. Every window of the test months counts, or each ``--stride``-th. CRPS is that of an
ensemble without bias (Ferro 2014); of a point forecast it is the absolute error. Baselines are also made distributions
by adding errors that they made on training windows. With ``--alone`` the flow is one of vectors, each the hours of one
column, told which, and its held-out rows are the windows of the validation months; else one of sequences, all columns
together. What the flow learns is less the mean of the known hours, by the flow itself ("own", --mask-relative) or by
this program ("mean"), or the errors of the ridge regression ("ridge").
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

GIVEN, HORIZON = 96, 24
MONTH = 30 * 24
PARTS = {"train": (0, 12 * MONTH), "val": (12 * MONTH - GIVEN, 16 * MONTH), "test": (16 * MONTH - GIVEN, 20 * MONTH)}

Point = Callable[[np.ndarray], np.ndarray]
"""Forecasts (n, HORIZON, C) of known hours (n, GIVEN, C)."""


def windows(z: np.ndarray, part: str, stride: int = 1) -> np.ndarray:
    """Windows (n, GIVEN + HORIZON, C) of one of ``PARTS``."""
    first, end = PARTS[part]
    steps = GIVEN + HORIZON
    return np.stack([z[i : i + steps] for i in range(first, end - steps + 1, stride)])


def seasonal_naive(known: np.ndarray) -> np.ndarray:
    """The same hours of the day before."""
    return known[:, -HORIZON:]


def ridge(train: np.ndarray, penalty: float) -> Point:
    """Linear map of the known hours less the last one, one a channel, fitted to all training windows."""
    maps = []
    for c in range(train.shape[2]):
        x, y = _lags(train[:, :GIVEN, c]), train[:, GIVEN:, c] - train[:, GIVEN - 1 : GIVEN, c]
        maps.append(np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y))

    def forecast(known: np.ndarray) -> np.ndarray:
        each = [_lags(known[..., c]) @ m + known[:, -1:, c] for c, m in enumerate(maps)]
        return np.stack(each, 2)

    return forecast


def _lags(known: np.ndarray) -> np.ndarray:
    """Hours (n, GIVEN) less the last one, and 1."""
    return np.concatenate([known - known[:, -1:], np.ones((len(known), 1))], 1)


def crps(draws: np.ndarray, truth: np.ndarray) -> float:
    """Mean CRPS of draws (n, m, ...) at the truth (n, ...)."""
    m = draws.shape[1]
    if m == 1:
        return float(np.abs(draws[:, 0] - truth).mean())
    near = np.abs(draws - truth[:, None]).mean()
    weights = (2 * np.arange(1, m + 1) - m - 1).reshape(-1, *[1] * (truth.ndim - 1))
    spread = (np.sort(draws, 1) * weights).sum(1) * 2 / (m * (m - 1))  # mean |X - X'| of two draws
    return float(near - spread.mean() / 2)


def measure(draws: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """CRPS, squared error of the mean, and coverage of the central 90% of draws (n, m, HORIZON, C)."""
    found = {"crps": crps(draws, truth), "mse": float(np.square(draws.mean(1) - truth).mean())}
    if draws.shape[1] > 1:
        low, high = np.quantile(draws, (0.05, 0.95), axis=1)
        found["coverage"] = float(((low <= truth) & (truth <= high)).mean())
    return found


def with_errors(point: np.ndarray, errors: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """``m`` draws of a point forecast (n, HORIZON, C) with errors (k, HORIZON, C) of training windows."""
    return point[:, None] + errors[rng.integers(len(errors), size=(len(point), m))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/etth"), help="trained there unless it exists")
    parser.add_argument("--relative", choices=("own", "mean", "ridge"), help="see docs/experiments/forecast.md")
    parser.add_argument("--alone", action="store_true", help="learn and draw each column alone")
    parser.add_argument("--minutes", type=float, default=15, help="of training")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--rows", type=int, help="most windows measured, spread evenly")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--part", choices=("val", "test"), default="test")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of advect train, to the end")
    a = parser.parse_args()
    x = np.genfromtxt(a.file, delimiter=",", skip_header=1)[:, 1:]
    mean, std = x[: 12 * MONTH].mean(0), x[: 12 * MONTH].std(0)
    z = (x - mean) / std
    train, val, test = windows(z, "train"), windows(z, "val"), windows(z, a.part, a.stride)
    test = test[np.linspace(0, len(test) - 1, min(a.rows or len(test), len(test))).round().astype(int)]
    known, truth = test[:, :GIVEN], test[:, GIVEN:]
    error = lambda penalty: np.square(ridge(train, penalty)(val[:, :GIVEN]) - val[:, GIVEN:]).mean()
    linear = ridge(train, min((1.0, 10.0, 100.0, 1000.0), key=error))
    rng = np.random.default_rng(0)
    rows: dict[str, dict[str, float]] = {}
    for name, point in (("seasonal naive", seasonal_naive), ("ridge", linear)):
        rows[name] = measure(point(known)[:, None], truth)
        errors = train[:, GIVEN:] - point(train[:, :GIVEN])
        rows[f"{name} with its errors"] = measure(with_errors(point(known), errors, a.draws, rng), truth)
    began = time.monotonic()
    how = a.relative or ("mean" if a.alone else "own")
    if how == "own" and a.alone:
        parser.error("--relative own is of sequences (--mask-relative); take mean or ridge with --alone")
    base = linear if how == "ridge" else lambda known: known.mean(1, keepdims=True).repeat(HORIZON, 1)
    prepare, level = (lambda w: relative(w, base)), base(known)[:, None]
    if how == "own":
        prepare, level, a.flags = (lambda w: w), 0.0, ["--mask-relative", *a.flags]
    flags = ["--max-minutes", a.minutes, *(["--max-steps", a.max_steps] if a.max_steps else []), *a.flags]
    if not a.run.exists():
        train_flow(a.run, prepare(train), prepare(val), flags, alone=a.alone)
        print(f"trained for {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    began = time.monotonic()
    answer = draw_alone if a.alone else draw
    draws = level + answer(a.run, prepare(test)[:, :GIVEN], a.draws, a.num_steps)
    seconds = time.monotonic() - began
    rows[f"flow ({how}{', alone' if a.alone else ''})"] = measure(draws, truth)
    print(f"{len(test):,} windows of {a.part}, {a.draws} draws each; drawn in {seconds:.0f} s")
    for name, row in rows.items():
        print(f"{name:28} " + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    (a.run / f"forecast-{a.part}.json").write_text(json.dumps(rows, indent=1) + "\n")


def relative(w: np.ndarray, base: Point) -> np.ndarray:
    """Windows less the mean of their known hours, and what follows less a point forecast."""
    known = w[:, :GIVEN]
    return np.concatenate([known - known.mean(1, keepdims=True), w[:, GIVEN:] - base(known)], 1)


def train_flow(run: Path, w: np.ndarray, held_out: np.ndarray, flags: list, *, alone: bool) -> None:
    """Train a flow of these windows by ``advect train``."""
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.parent / f"{run.name}-windows.npz"
    if alone:
        (x_train, y_train), (x_test, y_test) = columns(w), columns(held_out)
        np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
        words = ["train", "arrays", "--mask", "columns", "--mask-known-columns", *range(GIVEN), "--label-dropout", 0]
    else:
        np.savez(file, values=w.astype(np.float32))
        words = ["train", "sequences", "--held-out", 0, "--mask", "prefix", "--mask-horizon", HORIZON]
    words += ["--data-dir", file, "--run-dir", run, "--sample-every", 0, *flags]
    subprocess.run([sys.executable, "-m", "advect", *map(str, words)], check=True)


def columns(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows (n, H, C) as vectors (n C, H), and the number of each one's column."""
    return w.transpose(0, 2, 1).reshape(-1, w.shape[1]).astype(np.float32), np.tile(np.arange(w.shape[2]), len(w))


def draw_alone(run: Path, known: np.ndarray, draws: int, steps: int) -> np.ndarray:
    """:func:`draw` by a flow of single columns."""
    import advect

    flow, found = advect.load(run), []
    for block in np.array_split(known, max(known.shape[0] * known.shape[2] * draws // 100_000, 1)):
        x, of = columns(block)
        given = np.concatenate([x, np.full((len(x), HORIZON), np.nan)], 1).repeat(draws, 0)
        cond = {"label": of.repeat(draws)}
        z = flow.sample(len(given), given=given, cond=cond, steps=steps, batch_size=4096, progress=True).x
        found.append(z[:, GIVEN:].numpy().reshape(len(block), known.shape[2], draws, HORIZON).transpose(0, 2, 3, 1))
    return np.concatenate(found)


def draw(run: Path, known: np.ndarray, draws: int, steps: int) -> np.ndarray:
    """Draws (n, draws, HORIZON, C) after known hours (n, GIVEN, C)."""
    import advect

    flow, found = advect.load(run), []
    for block in np.array_split(known, max(len(known) * draws // 20_000, 1)):
        given = np.full((len(block), GIVEN + HORIZON, block.shape[2]), np.nan)
        given[:, :GIVEN] = block
        x = flow.sample(len(block) * draws, given=given.repeat(draws, 0), steps=steps, progress=True).x
        found.append(x[:, GIVEN:].numpy().reshape(len(block), draws, HORIZON, -1))
    return np.concatenate(found)


if __name__ == "__main__":
    main()

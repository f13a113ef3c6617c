"""What ``advect train --data PATH`` learns with no other flag than time and condition, beside flags set by hand.

    python bench/default_runs.py power.npy adult.csv:income cells.h5ad:cell_type faces/ --rows 100 1000 --minutes 2 5

A data set is PATH or PATH:CONDITION; of arrays (.npy), tables (.csv), cells (.h5ad) and folders of images the first N
rows or files after a fixed shuffle are taken, "all" takes all. A line a run: steps, minutes promised and taken,
seconds to the first picture, the Frechet distance to held-out rows beside its floor (as many real rows), classes
asked for that a classifier finds beside those it finds on held-out rows, and the held-out loss less the training loss
of the last tenth, where it was watched. ``--by-hand FLAGS`` adds a run of the same minutes with these flags for each,
as often as given.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from interleave import machine

METRICS = ["frechet", "class_accuracy"]
ADVECT = [sys.executable, "-m", "advect"]
SAMPLES = "1000"


def subset(path: Path, rows: str, folder: Path) -> Path:
    """The first rows of a file, or files of a folder, after a shuffle of seed 0."""
    if rows == "all":
        return path
    count, rng = int(rows), np.random.default_rng(0)
    chosen = lambda n: np.sort(rng.permutation(n)[:count])
    target = folder / f"{path.stem}-{rows}{path.suffix}"
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        for i in chosen(len(files)):
            place = target / files[i].relative_to(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[i], place)
    elif path.suffix == ".npy":
        x = np.load(path, mmap_mode="r")
        np.save(target, x[chosen(len(x))])
    elif path.suffix == ".csv":
        head, *lines = path.read_text().splitlines(keepends=True)
        target.write_text(head + "".join(lines[i] for i in chosen(len(lines))))
    elif path.suffix == ".h5ad":
        import anndata

        cells = anndata.read_h5ad(path)
        cells[chosen(cells.n_obs)].copy().write_h5ad(target)
    else:
        sys.exit(f"{path} is no .npy, .csv, .h5ad or folder, of which rows can be taken; give --rows all")
    return target


def train(data: Path, condition: str, minutes: float, flags: list[str], folder: Path) -> dict[str, Any]:
    """Train; figures of the run."""
    start = time.time()
    words = ["train", "--data", str(data), "--max-minutes", f"{minutes:g}", "--run-dir", str(folder), *flags]
    words += ["--conditions", condition] if condition else []
    done = subprocess.run([*ADVECT, *words], capture_output=True, text=True)
    taken = (time.time() - start) / 60
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    pictures = [p.stat().st_mtime for p in (folder / "samples").rglob("*.png")]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses, held_out = ([row[key] for row in rows if key in row] for key in ("loss", "eval_held_out_loss"))
    return {
        "steps": max(row["step"] for row in rows),
        "minutes": taken,
        "picture": min(pictures, default=np.nan) - start,
        "gap": held_out[-1] - float(np.mean(losses[-max(len(losses) // 10, 1) :])) if held_out else np.nan,
    }


def evaluate(folder: Path) -> dict[str, Any]:
    """Figures of ``advect eval``."""
    output = folder / "evaluation.json"
    words = ["eval", str(folder), "--num-samples", SAMPLES, "--metrics", *METRICS, "--output", str(output)]
    done = subprocess.run([*ADVECT, *words], capture_output=True, text=True)
    found = json.loads(output.read_text()) if done.returncode == 0 else {"points": [], "floor": {"metrics": {}}}
    return {
        "metrics": {k: v["mean"] for k, v in found["points"][0]["metrics"].items()} if found["points"] else {},
        "floor": found["floor"]["metrics"],
        "told": done.stderr.strip().splitlines()[-1:] if done.returncode else [],
    }


def right(values: dict[str, float]) -> str:
    """The share of classes that a classifier finds right, of the first condition."""
    named = [v for k, v in values.items() if k.startswith("class_accuracy_") and not k.endswith("_se")]
    return f"{named[0]:.3f}" if named else ""


def line(name: str, minutes: float, flags: str, got: dict[str, Any]) -> str:
    metrics, floor = got["metrics"], got["floor"]
    distance = "; ".join(got["told"])
    if "frechet" in metrics:
        distance = f"{metrics['frechet']:.3g} ({floor.get('frechet', np.nan):.3g})"
    classes = f"{right(metrics)} ({right(floor)})" if right(metrics) else ""
    gap = "" if np.isnan(got["gap"]) else f"{got['gap']:+.3f}"
    figures = f"{got['minutes']:.2f} | {got['picture']:.0f} | {distance} | {classes} | {gap}"
    return f"| {name} | {flags or 'defaults'} | {got['steps']:,} | {minutes:g} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="PATH or PATH:CONDITION")
    parser.add_argument("--rows", nargs="+", default=["all"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[2.0])
    parser.add_argument("--by-hand", action="append", default=[], metavar="FLAGS", help='such as "--batch-size 8"')
    a = parser.parse_args()
    print(
        f"{machine()}\n\n| data | flags | steps | minutes | taken | first picture, s | Frechet distance (floor) ",
        end="",
    )
    print("| class right (real) | held-out less training loss |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for given in a.data:
        path, _, condition = given.partition(":")
        for rows in a.rows:
            for minutes in a.minutes:
                for flags in ("", *a.by_hand):
                    with tempfile.TemporaryDirectory() as folder:
                        data = subset(Path(path), rows, Path(folder))
                        run = Path(folder) / "run"
                        got = train(data, condition, minutes, shlex.split(flags), run)
                        got |= evaluate(run)
                    print(line(f"{Path(path).stem} {rows}", minutes, flags, got), flush=True)


if __name__ == "__main__":
    main()

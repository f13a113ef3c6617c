"""Peak memory and time of ``advect eval`` at two numbers of samples: the one stays, the other grows.

    python bench/eval_memory.py
    python bench/eval_memory.py --samples 5000 50000 200000 --side 32

Trains a tiny flow on random colour images, as vectors, so that drawing costs little, and evaluates it in a process of
its own for each number. An evaluation keeps of a set moments and at most 10,000 rows, so that its memory is the
same from there on. ``drawn`` is what the samples and their features would take together.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROGRAM = """
import resource, sys
from pathlib import Path
from advect.commands.evaluate import evaluate
from advect.evaluation.protocol import EvalConfig

n, metrics = int(sys.argv[1]), tuple(sys.argv[2:])
request = EvalConfig(num_samples=n, num_steps=(2,), solver=("euler",), metrics=metrics, output=Path(f"{n}.json"))
evaluate(Path("run"), request)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    """Print a line for each number of samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--metrics", nargs="+", default=["frechet", "kernel", "manifolds"])
    args = parser.parse_args()
    size = 3 * args.side**2
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "ADVECT_CACHE": str(Path(folder, "cache"))}
        np.save(Path(folder, "x.npy"), np.random.default_rng(0).normal(size=(5000, size)).astype(np.float32))
        flags = "--width 16 --depth 1 --max-steps 20 --batch-size 64 --sample-every 0 --run-dir run"
        train = [sys.executable, "-m", "advect", "train", "--data", "x.npy", *flags.split()]
        subprocess.run(train, cwd=folder, env=env, check=True, capture_output=True)
        print("| samples | peak memory, MB | seconds | drawn, MB |\n|---|---|---|---|", flush=True)
        for n in [100, *args.samples]:  # the first one fills the cache
            began = time.monotonic()
            words = [sys.executable, "-c", PROGRAM, str(n), *args.metrics]
            done = subprocess.run(words, cwd=folder, env=env, check=True, capture_output=True, text=True)
            peak = int(done.stdout.split()[-1]) / (2**20 if sys.platform == "darwin" else 2**10)
            took, drawn = time.monotonic() - began, n * (size + 128) * 4 / 2**20
            print(f"| {n:,} | {peak:,.0f} | {took:.0f} | {drawn:,.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""Milliseconds of a coupling: batches of 256 and 1024, in 2 and 3,072 dimensions, one thread.

advect's exact and entropic couplings, called as the training step calls them, against torchcfm's
``OTPlanSampler(method="exact").sample_plan``, which draws pairs from the same plan. All get the same batches: noise,
and a mixture of eight Gaussians on a circle.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

from interleave import Contestant, machine, race, serve

HERE = Path(__file__).resolve().parent
NAMES = {"exact": "advect ExactOT", "sinkhorn": "advect Sinkhorn"}


def contestant(name: str, file: str) -> None:
    """Run advect's coupling and answer the protocol."""
    import torch

    from advect.couplings import ExactOT, Sinkhorn

    torch.set_num_threads(1)
    x0, x1 = torch.load(file)
    coupling = ExactOT() if name == "exact" else Sinkhorn()

    def work(n: int) -> None:
        for _ in range(n):
            coupling.pair(x0, x1)

    serve(work)


def write_batches(file: Path, batch: int, dimensions: int) -> None:
    """Save noise and a mixture of eight Gaussians (batch, dimensions), whose centres lie on a circle."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, batch, dimensions, generator=generator)
    angle = torch.randint(8, (batch,), generator=generator) * math.pi / 4
    x1 *= 0.2
    x1[:, :2] += 2 * torch.stack([angle.cos(), angle.sin()], 1)
    torch.save((x0, x1), file)


def main() -> None:
    """Race the couplings at each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="Python with torchcfm: make bench-peers")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.contestant:
        contestant(*args.contestant)
        return
    if not Path(args.peers).exists():
        sys.exit(f"{args.peers} does not exist; run: make bench-peers")
    print(machine())
    names = [*NAMES.values(), "torchcfm 1.0.7 exact"]
    print(f"| batch | dimensions | {' | '.join(f'{name}, ms' for name in names)} | torchcfm / ExactOT |")
    print("|---|---|---|---|---|---|")
    for batch in (256, 1024):
        for dimensions in (2, 3072):
            print(row(batch, dimensions, names, args.peers, args.rounds), flush=True)


def row(batch: int, dimensions: int, names: list[str], peers: str, rounds: int) -> str:
    """Race at one size: the medians, and the median over the rounds of the ratio of the exact ones."""
    with tempfile.TemporaryDirectory() as folder:
        file, units = Path(folder) / "batches.pt", 2560 // batch
        write_batches(file, batch, dimensions)
        runners = [
            Contestant(name, sys.executable, Path(__file__), "--contestant", key, str(file), threads=1)
            for key, name in NAMES.items()
        ]
        peer = HERE / "peers" / "torchcfm_coupling.py"
        runners.append(Contestant(names[-1], peers, peer, str(file), threads=1))
        race(runners, rounds=rounds, units=units, warmup=2)
    cells = [f"{statistics.median(c.seconds) / units * 1e3:.1f}" for c in runners]
    ratio = statistics.median(b / a for a, b in zip(runners[0].seconds, runners[-1].seconds, strict=True))
    return f"| {batch} | {dimensions:,} | {' | '.join(cells)} | {ratio:.2f} |"


if __name__ == "__main__":
    main()

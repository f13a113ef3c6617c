"""Hold advect's paths, targets and couplings against torchcfm 1.0.7 and flow_matching 1.0.10 on the same inputs.

Run `make bench-peers` once, then: python bench/compare_numbers.py. Prints the largest difference of each number,
relative to its size, and exits with 1 where one is above 1e-5.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from advect.core.types import expand_right
from advect.couplings import ExactOT
from advect.paths import (
    AffinePath,
    BetaLinear,
    BrownianBridge,
    CondOT,
    LipmanOT,
    Polynomial,
    Trigonometric,
    VariancePreserving,
)


def ours(x0: torch.Tensor, x1: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers from advect; the peers' noise ``eps`` is put where ours would be drawn."""
    out: dict[str, torch.Tensor] = {}

    def affine(name: str, schedule, start: torch.Tensor, jitter: float = 0.0) -> None:
        point = AffinePath(schedule).sample(start, x1, t)
        out[f"{name}: x_t"], out[f"{name}: u_t"] = point.x_t + jitter * eps, point.u_t

    affine("torchcfm cond-ot", CondOT(), x0, 0.1)
    affine("torchcfm lipman", LipmanOT(0.1), eps)
    affine("torchcfm trigonometric", Trigonometric(), x0, 0.1)
    affine("flow_matching cond-ot", CondOT(), x0)
    affine("flow_matching trigonometric", Trigonometric(), x0)
    affine("flow_matching vp linear", VariancePreserving(lambda t: (1 - t.square()).sqrt()), x0)  # their alpha is t
    affine("flow_matching ddpm", BetaLinear(), x0)
    affine("flow_matching polynomial", Polynomial(2), x0)
    bridge = BrownianBridge(0.5)
    x_t = torch.lerp(x0, x1, expand_right(t, x1)) + 0.5 * expand_right((t * (1 - t)).sqrt(), x1) * eps
    out["torchcfm bridge: x_t"] = x_t
    out["torchcfm bridge: u_t"] = bridge.conditional_velocity(x_t, t, x1=x1, x0=x0)
    a, b, _ = ExactOT().pair(x0, x1)
    out["torchcfm exact transport: cost"] = (a - b).square().sum()
    return out


def main() -> None:
    """Compare, print, and exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="Python with both peers: make bench-peers")
    peers = Path(parser.parse_args().peers)
    if not peers.exists():
        sys.exit(f"{peers} does not exist; run: make bench-peers")
    g = torch.Generator().manual_seed(0)
    x0, x1, eps = (torch.randn(128, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    inputs = {"x0": x0, "x1": x1, "t": 0.01 + 0.98 * torch.rand(128, generator=g, dtype=torch.float64), "eps": eps}
    with tempfile.TemporaryDirectory() as room:
        there, here = Path(room) / "outputs.npz", Path(room) / "inputs.npz"
        np.savez(here, **{name: value.numpy() for name, value in inputs.items()})  # pyright: ignore[reportArgumentType]
        script = Path(__file__).parent / "peers" / "peer_numbers.py"
        subprocess.run([str(peers), str(script), str(here), str(there)], check=True)
        theirs = {name: torch.tensor(value) for name, value in np.load(there).items()}
    found, worst = ours(**inputs), 0.0
    print("| number | largest difference, relative |\n|---|---|")
    for name, value in theirs.items():
        gap = ((found[name] - value).abs().max() / value.abs().max()).item()
        worst = max(worst, gap)
        print(f"| {name} | {gap:.1e} |")
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main()

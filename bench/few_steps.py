"""Few-step losses on two Gaussian modes in the plane: energy distance to the data by number of evaluations.

Each loss trains the same MLP from nothing on batches of 512, by Adam with a linear decay, and is drawn by ``flow-map``
in 1, 2 and 4 steps and by 50 of the midpoint rule; ``flow-matching`` is drawn by Euler's method. The mean and the
range over the seeds of 4,000 samples against as many of the data, whose own distance is the floor.
"""

from __future__ import annotations

import argparse
import time

import torch
from interleave import machine
from torch import Tensor

from advect.config.build import build_network
from advect.config.config import network
from advect.core import registry
from advect.core.types import Batch, DataSpec
from advect.metrics import energy_distance
from advect.solvers import integrate

LOSSES = ("flow-matching", *(name for name in registry.choices("loss") if registry.get("loss", name).learns_steps))
SAMPLES = 4000


def data(n: int, generator: torch.Generator) -> Tensor:
    """Modes at (+-1.5, 0) of deviation 0.3, as likely as each other."""
    sign = torch.randint(0, 2, (n, 1), generator=generator) * 2.0 - 1
    return sign * torch.tensor([[1.5, 0.0]]) + 0.3 * torch.randn(n, 2, generator=generator)


def run(name: str, steps: int, seed: int) -> list[float]:
    """Energy distances of 1, 2, 4 steps and 50 of the midpoint rule, and CPU-seconds of the training."""
    loss = registry.get("loss", name)()  # pyright: ignore[reportCallIssue]
    spec = DataSpec((2,), "vector", {})
    net = build_network(network("mlp", width=128, depth=4), spec, two_times=loss.learns_steps is not None, seed=seed)
    optimizer, generator = torch.optim.Adam(net.parameters(), 2e-3), torch.Generator().manual_seed(seed)
    began = time.process_time()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 1.5 * (1 - step / steps))
        optimizer.zero_grad()
        loss(net, Batch(data(512, generator)), generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    seconds = time.process_time() - began
    z, reference = torch.randn(SAMPLES, 2, generator=generator), data(SAMPLES, generator)
    few = "flow-map" if loss.learns_steps else "euler"
    ways = [(few, 1), (few, 2), (few, 4), ("midpoint", 50)]
    with torch.no_grad():
        ends = [integrate(net, z, solver=solver, steps=n) for solver, n in ways]
    return [*(energy_distance(end, reference) for end in ends), seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("losses", nargs="*", default=LOSSES)
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print("| loss | 1 step | 2 | 4 | midpoint, 50 | CPU-seconds |\n|---|---|---|---|---|---|", flush=True)
    for name in a.losses:
        found = torch.tensor([run(name, a.steps, seed) for seed in range(a.seeds)])
        cells = [f"{v.mean():.4f} ({v.min():.4f} to {v.max():.4f})" for v in found[:, :4].T]
        print(f"| {' | '.join([f'`{name}`', *cells, f'{found[:, 4].mean():.0f}'])} |", flush=True)
    generator = torch.Generator().manual_seed(99)
    floor = energy_distance(data(SAMPLES, generator), data(SAMPLES, generator))
    print(f"floor: {floor:.4f}")


if __name__ == "__main__":
    main()

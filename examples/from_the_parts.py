"""Flow matching from the parts alone: no engine, no configuration. Run: python examples/from_the_parts.py"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import advect
from advect.core.types import Batch


def main(steps: int) -> None:
    """Train on the moons and print how far samples are from held-out points, beside the floor."""
    torch.manual_seed(0)
    data = advect.data.Moons(n=5000)
    net = advect.networks.MLP(2, width=128, depth=4)
    loss_fn = advect.losses.FlowMatching(
        path=advect.paths.AffinePath(advect.paths.CondOT()),
        source=advect.sources.Gaussian(),
        coupling=advect.couplings.Independent(),
        times=advect.times.Stratified(),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    x1, held_out = (part.fetch(np.arange(len(part))).x1 for part in (data.train, data.held_out))
    for _ in range(steps):
        batch = Batch(x1[torch.randint(len(x1), (256,))])
        loss = loss_fn(net, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        samples = advect.solvers.integrate(lambda x, t: net(x, t), torch.randn(2000, 2), solver="midpoint", steps=20)
    distance = advect.metrics.frechet_distance(samples, held_out[:2000])
    floor = advect.metrics.frechet_distance(x1[:2000], held_out[:2000])
    print(f"loss {loss.item():.3f}, Frechet distance to held-out points {distance:.4f}, floor {floor:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    main(parser.parse_args().steps)

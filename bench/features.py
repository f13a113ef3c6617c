"""Distances between real CIFAR-10 images and noised ones in the features of a network, and without one.

Sets of N images each: ``test`` (the reference), ``train`` (the floor: other real images), and ``test`` with Gaussian
noise of a standard deviation in units of 0 to 255, rounded. Spaces: the network of ``--features``, and the first 128
principal components of the training pixels. Features are kept in ``--cache``, so that a second run is quick.

    python bench/features.py --data CIFAR --features inception.pt --n 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advect.core.random import CounterRng
from advect.data import Cifar
from advect.evaluation.feature_network import FeatureNetwork
from advect.evaluation.features import Projection
from advect.evaluation.workspace import ReferenceCache
from advect.metrics import (
    GaussianFit,
    frechet_at_infinity,
    frechet_distance,
    kernel_distance,
    precision_recall,
    two_sample_test,
)

REFERENCE = "test"


def image_sets(source: Cifar, n: int, noise: list[float]) -> dict[str, Tensor]:
    """Images (n, 3, 32, 32) of 0 to 255 by the name of the set, spread evenly over the files."""
    sets = {}
    for name, split in (("train", source.train), (REFERENCE, source.held_out)):
        places = np.linspace(0, len(split) - 1, n).round().astype(np.int64)
        sets[name] = source.transform.inverse(split.fetch(places).x1)
    test = sets[REFERENCE]
    for sigma in noise:
        shaken = test + sigma * CounterRng(0, 0, n).normal(test.shape)
        sets[f"test + noise {sigma:g}"] = shaken.round().clamp(0, 255)
    return sets


def features_of(path: Path, sets: dict[str, Tensor], cache: ReferenceCache, fingerprint: str) -> dict[str, Tensor]:
    """Features (n, d) of each set, from the cache where they are there."""
    network = FeatureNetwork(path)
    found = {}
    for name, x in sets.items():
        key = {"data": fingerprint, "set": name, "rows": len(x), "features": network.identity}
        found[name] = cache.get(key, lambda x=x: {"features": network(x)})["features"]
        print(f"<!-- {name}: {tuple(found[name].shape)} by {network.name} {network.sha256[:12]} -->", flush=True)
    return found


def table(space: str, sets: dict[str, Tensor], unit: float) -> None:
    """Print each set's distances to the reference; kernel distances times ``unit``."""
    reference = sets[REFERENCE].double()
    fit = GaussianFit.from_samples(reference)
    names = [
        "Frechet",
        "at infinite N",
        f"kernel x {unit:g}",
        "precision",
        "recall",
        "density",
        "coverage",
        "told apart",
    ]
    print(f"\n{space}, {reference.shape[1]} dimensions\n\n| set | {' | '.join(names)} |\n{'|---' * 9}|", flush=True)
    for name, x in sets.items():
        if name == REFERENCE:
            continue
        kernel, near = kernel_distance(x, reference), precision_recall(x, reference)
        # The classifier looks at 64 principal components, as trees take long for 2,048 columns.
        small = Projection.fit(torch.cat([x, reference]).float()).pca
        rows = [torch.from_numpy(small.transform(v.float().numpy())) if small else v for v in (x, reference)]
        told = two_sample_test(rows[0][:, :64], rows[1][:, :64])
        cells = [
            f"{frechet_distance(x, reference):.4g}",
            f"{frechet_at_infinity(x, fit, points=5, smallest=len(x) // 2).value:.4g}",
            f"{kernel.value * unit:.3g} ± {kernel.standard_error * unit:.2g}",
            *(f"{share:.3f}" for share in (near.precision, near.recall, near.density, near.coverage)),
            f"{told.accuracy:.3f} ± {told.standard_error:.3f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table a space."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of CIFAR-10")
    parser.add_argument("--features", type=Path, required=True, help="a TorchScript file or a state dict")
    parser.add_argument("--cache", type=Path, default=Path("runs/feature-cache"))
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--noise", type=float, nargs="*", default=[10, 25])
    args = parser.parse_args()
    source = Cifar(args.data)
    sets = image_sets(source, args.n, args.noise)
    table(
        args.features.name, features_of(args.features, sets, ReferenceCache(args.cache), source.fingerprint), unit=1000
    )
    components = Projection.fit(sets["train"])
    table("Principal components of pixels / 255", {k: components(v) / 255 for k, v in sets.items()}, unit=1000)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

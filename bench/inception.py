"""How near a run's images are to held-out ones in the features of FID's Inception network, beside real images.

The network is a TorchScript file that maps images (B, 3, 299, 299) in [-1, 1] to features (B, 2048); it is not part of
advect. The Frechet distance (FD; Heusel et al. 2017) depends on the number of images; the kernel distance (KD, cubic
polynomial, unbiased, in thousandths; Binkowski et al. 2018) does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from advect import load
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.evaluation.features import FeatureSpace
from advect.metrics import frechet_distance, subsample

BATCH = 50


def inception_features(network: torch.jit.ScriptModule, images: Tensor) -> Tensor:
    """Features (N, 2048) of images (N, 1 or 3, H, W), 0 to 255, computed in bfloat16."""
    found = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for part in images.split(BATCH):
            large = F.interpolate(part.float().expand(-1, 3, -1, -1), (299, 299), mode="bilinear", align_corners=False)
            found.append(network(((large - 128) / 128).contiguous(memory_format=torch.channels_last)).float())
    return torch.cat(found)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of x (N, D) and y (M, D) under ``(a . b / D + 1)^3``."""

    def mean(a: Tensor, b: Tensor) -> float:
        products = (a.double() @ b.double().T / a.shape[1] + 1) ** 3
        if a is not b:
            return float(products.mean())
        return float((products.sum() - products.diagonal().sum()) / (len(a) * (len(a) - 1)))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def main() -> None:
    """Measure and print a line each for the samples and for real training images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--network", type=Path, required=True, help="the TorchScript file")
    parser.add_argument("--images", type=int, default=2000, help="samples, and real training images for the floor")
    parser.add_argument("--held-out", type=int, default=5000, help="at most so many held-out images")
    parser.add_argument("--solver", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--guidance", type=float, default=1.0)
    args = parser.parse_args()
    network = torch.jit.load(args.network).eval()
    flow = load(args.run)
    source = build_dataset(parse_config(args.run / "config.yaml")[1].data)
    space, pick = FeatureSpace(flow, source), lambda split, n: subsample(len(split), n, 0).sort().values
    given = {name: value for name in ("steps", "solver") if (value := getattr(args, name)) is not None}
    samples = flow.sample(args.images, guidance=args.guidance, **given).x
    real = space.whole(source.train, pick(source.train, args.images))
    test = inception_features(network, space.whole(source.held_out, pick(source.held_out, args.held_out)))
    for name, images in (("samples", samples), ("training images", real)):
        x = inception_features(network, images.clamp(0, 255))
        fd, kd = frechet_distance(x, test), 1000 * kernel_distance(x, test)
        print(f"{len(x):,} {name} against {len(test):,} held-out images: FD {fd:.2f}, KD {kd:.2f}", flush=True)


if __name__ == "__main__":
    main()

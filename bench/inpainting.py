"""Halves of pictures completed by a flow trained with --mask half, beside nearest neighbours and the floor.

    python bench/inpainting.py FASHION-MNIST --minutes 10 --picture halves.png

Of held-out pictures of Fashion-MNIST one half is given, the left, right, upper and lower one in turn, and the other
drawn. A row a method:

- Frechet: distance to other held-out pictures in the features of a network trained on the training part.
- class: share of the completed pictures in the class of the true one, by a linear classifier of those features.
- error: root mean square of a drawn pixel's, of 255; and of the mean of ``--draws`` completions (mean).
- spread: standard deviation of a drawn pixel over completions, 0 for a method that has one answer.

"true pictures" are the floor. Neighbours are those of the training pictures whose given half is nearest: the one that
is, or the mean of ten. Distances of a few thousand pictures depend on their number; compare within a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from interleave import machine, train_run
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import advect
from advect.core.types import Entries
from advect.data import Dataset, FashionMnist, Split
from advect.evaluation.learned_network import learned_network
from advect.evaluation.workspace import open_cache
from advect.masks import HalfMask
from advect.metrics import frechet_distance

REFERENCE = 8000
"""Most pictures of the reference."""


def pictures(dataset: Dataset, split: Split, places: np.ndarray) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, H, W), 0 to 255, and their classes (n,)."""
    x, cond = dataset.modality.data(split, places)
    return x.float(), cond["label"]


def halves(n: int, shape: Sequence[int]) -> Tensor:
    """Which pixels of n pictures are given, (n, *shape): those of a ``HalfMask``."""
    mask = HalfMask(entries=Entries(torch.arange(int(np.prod(shape))).reshape(*shape)), unconditional=0.0)
    return mask.sample(torch.zeros(n, *shape), generator=torch.Generator().manual_seed(0))


def neighbours(x: Tensor, known: Tensor, train: Tensor, k: int) -> Tensor:
    """The k training pictures nearest to each of x (n, *S) in what is known, (k, n, *S)."""
    found = torch.empty(k, *x.shape)
    patterns, of = known.flatten(1).unique(dim=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        rows, there = (of == i).nonzero()[:, 0], train.flatten(1)[:, pattern]
        for part in rows.split(200):
            near = torch.cdist(x[part].flatten(1)[:, pattern], there).topk(k, largest=False).indices
            found[:, part] = train[near.T]
    return found


def complete(run: Path, x: Tensor, known: Tensor, draws: int, steps: int) -> Tensor:
    """Completions (draws, n, *S) by a run's flow."""
    given = torch.where(known, x, torch.nan).repeat(draws, 1, 1, 1)
    return advect.load(run).sample(len(given), given=given, steps=steps, progress=True).x.view(draws, *x.shape)


def grid(x: Tensor, known: Tensor, drawn: Tensor, columns: int, scale: int = 2) -> Image.Image:
    """Rows of pictures: the given half on blue, three completions, the true picture."""
    tile = lambda v: np.concatenate(list(v[:columns, 0].round().clamp(0, 255).byte().numpy()), 1)
    mark, rows = tile(known.float() * 255) == 0, [tile(x), *(tile(v) for v in drawn[:3]), tile(x)]
    colour = np.stack([np.concatenate(rows)] * 3, 2)
    colour[: len(mark)][mark] = (60, 90, 160)
    picture = Image.fromarray(colour)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def training(a: argparse.Namespace) -> list[object]:
    """Words for the preset ``fashion-mnist``, without labels, given halves."""
    words = ["fashion-mnist", "--data-dir", a.data, "--no-labels", "--mask", "half", "--max-minutes", a.minutes]
    return [*words, *(["--max-steps", a.max_steps] if a.max_steps else []), *a.flags]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of Fashion-MNIST's four files")
    parser.add_argument("--run", type=Path, default=Path("runs/halves"), help="trained there unless it exists")
    parser.add_argument("--minutes", type=float, default=10, help="of training")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--rows", type=int, default=2000, help="pictures to complete")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--picture", type=Path, help="PNG file of some completions")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of advect train, to the end")
    a = parser.parse_args()
    print(machine())
    train_run(a.run, training(a))
    data = FashionMnist(a.data)
    network = learned_network(data, open_cache(), torch.device("cpu"))
    assert network is not None
    order = np.random.default_rng(0).permutation(len(data.held_out))
    train, classes = pictures(data, data.train, np.arange(len(data.train)))
    x, labels = pictures(data, data.held_out, order[: a.rows])
    reference = network(pictures(data, data.held_out, order[a.rows :][:REFERENCE])[0])
    judge = LogisticRegression(C=0.1, max_iter=1000).fit(network(train[:10_000]).numpy(), classes[:10_000].numpy())
    known = halves(a.rows, data.spec.shape)
    began = time.monotonic()
    drawn = complete(a.run, x, known, a.draws, a.num_steps)
    seconds = time.monotonic() - began
    near = torch.where(known, x, neighbours(x, known, train, 10))
    found = {"true pictures": x[None], "flow": drawn, "nearest neighbour": near[:1], "mean of ten": near.mean(0)[None]}
    print(f"{a.rows:,} pictures, {a.draws} completions each in {seconds:.0f} s, {len(reference):,} others compared")
    print("| method | Frechet | class | error | error of the mean | spread |\n" + "|---" * 6 + "|")
    for name, some in found.items():
        features = network(some[0].clamp(0, 255))
        rms = lambda v: v[~known].square().mean().sqrt().item()
        right = judge.score(features.numpy(), labels.numpy())
        spread = some.std(0)[~known].mean().item() if len(some) > 1 else 0.0
        errors = f"{rms(some[0] - x):.1f} | {rms(some.mean(0) - x):.1f} | {spread:.1f}"
        print(f"| {name} | {frechet_distance(features, reference):.3f} | {right:.3f} | {errors} |", flush=True)
    if a.picture:
        grid(x, known, drawn, 20).save(a.picture, optimize=True)


if __name__ == "__main__":
    main()

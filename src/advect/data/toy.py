"""Toy data: two moons and 8x8 digits."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from advect.core.bounds import NonNegative, Seed
from advect.core.random import mix
from advect.core.registry import register
from advect.data.base import ArrayDataset, Rows
from advect.data.transforms import PixelScale, Standardize

SPLIT_SEED = 0


@register("digits")
class Digits(ArrayDataset):
    """8x8 grey digits (1, 8, 8), values 0 to 16, condition ``label`` "0" to "9" (Alpaydin & Kaynak 1998, UCI).

    899 training and 898 held-out samples, each class halved: in the order of a hash of ``SPLIT_SEED`` and the index,
    every second digit of a class is held out. Both halves keep the original order.
    """

    def __init__(self) -> None:
        # Here and not above: scikit-learn takes most of a second to import.
        from sklearn.datasets import load_digits

        pixels, target = load_digits(return_X_y=True)
        target = np.asarray(target)
        rows = Rows(np.asarray(pixels, np.float32).reshape(-1, 1, 8, 8), {"label": target.astype(np.int64)})
        order = sorted(range(len(target)), key=lambda i: (target[i], mix(SPLIT_SEED, i)))
        super().__init__(
            name="digits",
            train=rows[np.sort(order[::2])],
            held_out=rows[np.sort(order[1::2])],
            transform=PixelScale(0, 16, integer=True),
            names={"label": tuple("0123456789")},
        )


@register("moons")
class Moons(ArrayDataset):
    """Points (2,) on two half circles of radius 1, without conditions, standardised for the model.

    Args:
        n: points per split; the splits are drawn independently.
        noise: standard deviation of Gaussian noise on both coordinates.
        seed: seed of both draws.

    Raises:
        UserError: n or noise is out of range.
    """

    part_given: ClassVar[tuple[str, ...]] = ("n", "seed")

    def __init__(
        self, *, n: Annotated[int, Meta(ge=2, le=10**8)] = 10_000, noise: NonNegative = 0.05, seed: Seed = 0
    ) -> None:
        # Here and not above: scikit-learn takes most of a second to import.
        from sklearn.datasets import make_moons

        def draw(split: int) -> np.ndarray:
            return np.asarray(make_moons(n, noise=noise, random_state=mix(seed, split) >> 32)[0])

        x = draw(0)
        super().__init__(name="moons", train=Rows(x), held_out=Rows(draw(1)), transform=Standardize.fit(x))

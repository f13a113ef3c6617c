"""The 1,797 handwritten digits that ship inside scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np

from advect.core.random import mix
from advect.data.source import ArraySource, Rows
from advect.data.transforms import PixelScale

SPLIT_SEED = 0


class Digits(ArraySource):
    """8x8 grey digits (1, 8, 8), values 0 to 16, condition ``label`` "0" to "9" (Alpaydin & Kaynak 1998, UCI).

    Half is for training (899) and half held out (898), each class halved: sorted by class and, within a class, by
    a hash of ``SPLIT_SEED`` and the index, every second digit is held out. Both halves keep the original order.
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

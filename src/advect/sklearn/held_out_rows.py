"""Rows that a fit holds out, what they tell, and its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.threads import timed
from advect.data.base import random_split

_FOLDS = 5

_TRAINING_SHARE = 0.9
"""Share of a fit's time for training; the rest is for scores."""

_TIMED = 0.2
"""Seconds of steps by which their number is estimated."""


class Budget:
    """Minutes of a fit, for several trainings."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * _TRAINING_SHARE * minutes

    def share(self, trainings: int = 1) -> float | None:
        """Minutes for the next of so many."""
        return None if self._end is None else max(self._end - time.monotonic(), 1e-3) / 60 / trainings

    def steps(self, take: Callable[[], object], trainings: int) -> int:
        """Steps, about, that each of so many trainings has time for, by some of them, which ``take`` takes."""
        take()  # the first is slower
        left = 60 * (self.share(trainings) or float("inf"))
        return int(left / timed(take, min(_TIMED, left / 20)))


def split_rows(n: int, share: float, seed: int, *, folded: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and held-out rows, once, or by five folds."""
    train, held_out = random_split(n, share, seed=seed)
    if not len(held_out):
        raise UserError(f"early_stopping needs at least 2 rows, n_samples = {n}; leave it out")
    if not folded:
        return [(train, held_out)]
    place = np.empty(n, np.int64)
    place[CounterRng(stream_seed(seed, Stream.HELD_OUT), 0, n).permutation().numpy()] = np.arange(n) % min(_FOLDS, n)
    return [((place != k).nonzero()[0], (place == k).nonzero()[0]) for k in range(min(_FOLDS, n))]


def mean_curve(runs: Sequence[tuple[list[int], list[float]]]) -> tuple[list[float], int]:
    """Mean held-out loss of trainings, each (steps, losses), at each evaluation, the last of one standing for those it
    did not make; and the step of the lowest.
    """
    longest = max((steps for steps, _ in runs), key=len)
    whole = [losses + losses[-1:] * len(longest) for _, losses in runs]
    curve = [float(np.mean(losses)) for losses in zip(*whole, strict=False)][: len(longest)]
    return curve, longest[int(np.argmin(curve))]

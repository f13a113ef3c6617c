"""Whether a sample shows the class that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Category
from advect.evaluation.features import Features
from advect.evaluation.judge import Judge, labelled_rows


@dataclass(frozen=True)
class Fidelity:
    """Agreement between the class asked for and the class a classifier of real data sees.

    Attributes:
        share: the share of samples that it assigns to the class asked for, in [0, 1].
        classifier_accuracy: its share of correct answers on real training data, which it has not seen.
        by_class: for each class asked for, its name, how many samples, and their share.
        samples, fitted_on, checked_on: how many samples, held-out rows and training rows took part.
    """

    share: float
    classifier_accuracy: float
    by_class: list[tuple[str, int, float]]
    samples: int
    fitted_on: int
    checked_on: int


def measure_fidelity(
    samples: Tensor,
    asked: Tensor,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    features: Features,
    category: Category,
    standardise: bool = False,
    limit: int = 5000,
    seed: int = 0,
) -> Fidelity | None:
    """Ask a :class:`Judge`, fitted to held-out data, which class each sample shows.

    ``samples (n, *S)`` were drawn for the classes ``asked (n,)``; ``train`` and ``held_out`` are pairs of data
    (N, *S) and labels (N,), of which at most ``limit`` rows are used and rows without a label left out.
    ``standardise`` scales each feature by itself, for vectors whose columns have units of their own. Returns
    None when the held-out labels, or those asked for, do not allow it (fewer than two classes, none asked for).
    """
    if len(samples) != len(asked):
        raise UserError(f"asked must hold one class a sample, got {len(asked)} for {len(samples)} samples")
    x_check, y_check = labelled_rows(*train, limit, seed)
    x, y = labelled_rows(samples, asked, len(samples), seed)
    judge = Judge.fit(held_out, features=features, standardise=standardise, limit=limit, seed=seed)
    if judge is None or not len(y) or not len(y_check):
        return None
    right = judge(x) == y
    accuracy = float((judge(x_check) == y_check).double().mean())
    present = [int(c) for c in y.unique()]
    by_class = [(category.names[c], int((y == c).sum()), float(right[y == c].double().mean())) for c in present]
    return Fidelity(float(right.double().mean()), accuracy, by_class, len(y), judge.fitted_on, len(y_check))

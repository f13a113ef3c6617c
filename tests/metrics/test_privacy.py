"""Copies, closest records and membership, and alpha-precision, where they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from advect.core.errors import UserError
from advect.core.registry import get
from advect.metrics import alpha_precision, beta_recall, memorisation, privacy
from advect.metrics.base import EvalContext
from advect.metrics.statistics import SampleStatistics


def normal(n: int, seed: int, *, scale: float = 1.0, columns: int = 3) -> Tensor:
    return scale * torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))


def test_copies_are_counted_and_told_by_the_attack() -> None:
    train, held_out = normal(400, 0), normal(200, 1)
    copied = torch.cat([train[:150], normal(150, 2)])
    found = privacy(copied, train, held_out)
    assert found.copies == 0.5 and found.held_out_copies == 0 and found.rows == 200
    assert found.closest_record > 0.55 and found.membership_auc > 0.5 + 4 * found.membership_error
    assert privacy(train, train, held_out).membership_auc == 1  # each is a copy, and no other row is


def test_new_rows_tell_nothing_and_rows_of_others_the_opposite() -> None:
    train, held_out, new = normal(800, 3), normal(800, 4), normal(800, 5)
    found = privacy(new, train, held_out)
    assert found.copies == 0 and found.closest_record == pytest.approx(0.5, abs=4 * found.closest_record_error)
    assert found.membership_auc == pytest.approx(0.5, abs=4 * found.membership_error)
    assert privacy(held_out, train, held_out).membership_auc == 0


def test_ties_count_half_and_the_area_is_that_of_scikit_learn() -> None:
    same = torch.zeros(30, 2)
    found = privacy(same, same, same)
    assert (found.copies, found.held_out_copies, found.closest_record, found.membership_auc) == (1, 1, 0.5, 0.5)
    samples, train, held_out = (normal(40, seed).round() for seed in (6, 7, 8))
    near = [torch.cdist(rows.double(), samples.double()).min(1).values for rows in (train, held_out)]
    area = roc_auc_score(np.repeat([1, 0], 40), -torch.cat(near).numpy())
    assert privacy(samples, train, held_out).membership_auc == pytest.approx(area)
    known = memorisation(samples, train, held_out)
    assert privacy(samples, train, held_out, known=known) == privacy(samples, train, held_out)
    with pytest.raises(UserError, match="privacy needs samples, training and held-out rows, got 40, 40 and 0"):
        privacy(samples, train, held_out[:0])


def test_the_floor_is_of_held_out_rows() -> None:
    train, held_out = normal(50, 9), torch.cat([normal(30, 10), normal(50, 9)[:10]])
    summary = lambda x: SampleStatistics.from_parts([{"features": x, "samples": x}], len(x))
    context = EvalContext(summary(train), summary(held_out), train_samples=train, held_out_samples=held_out)
    metric = get("metric", "privacy")()
    assert metric.floor(summary(train), summary(held_out), context)["copies"] == 0.25
    assert metric.compare(summary(train[:20]), summary(held_out), context)["copies"] == 1


def test_alpha_precision_and_beta_recall_are_one_for_one_law_and_apart_for_few_modes() -> None:
    y = normal(2000, 11)
    assert alpha_precision(normal(2000, 12), y) > 0.97
    assert alpha_precision(y, y) == pytest.approx(1, abs=2e-3) and beta_recall(y, y) == pytest.approx(1, abs=2e-3)
    # All samples at the centre: P is 1 at all levels, and sum |1 - a| is sum a.
    assert alpha_precision(torch.zeros(10, 3) + y.mean(0), y) == pytest.approx(0, abs=1e-9)
    assert alpha_precision(100 + normal(10, 13), y) == pytest.approx(0, abs=1e-12)
    assert beta_recall(y[:40], y) < 0.3  # few samples, though each is a row
    assert beta_recall(normal(2000, 14, scale=0.1), y) < 0.2


def test_features_of_other_units_count_alike_and_constant_ones_not() -> None:
    x, y = (torch.cat([normal(500, seed), torch.full((500, 1), -0.1)], 1) for seed in (15, 16))
    units = torch.tensor([1.0, 1e4, 1e-4, 1.0])
    metric = get("metric", "alpha_precision")()
    summary = lambda rows: SampleStatistics.from_parts([{"features": rows}], len(rows))
    numbers = lambda a, b: metric.compare(
        summary(a), summary(b), EvalContext(summary(b), summary(b), standardise=True)
    )
    found = numbers(x, y)
    assert found["alpha_precision"] > 0.9 and 0.3 < found["beta_recall"] < 0.7  # a row in two has a nearer sample
    assert numbers(x * units, y * units) == pytest.approx(found, abs=1e-3)

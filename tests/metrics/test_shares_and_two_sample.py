"""Class shares by hand and by simulation; the classifier test's level and power."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from advect.core.errors import UserError
from advect.metrics import class_shares, two_sample_test


def test_shares_by_hand_leave_rows_without_a_class_out() -> None:
    found = class_shares(torch.tensor([0, 0, 1, 3, -1]), torch.tensor([0, 1, 1, 2]), classes=5)
    assert found.x.tolist() == [0.5, 0.25, 0, 0.25, 0] and found.y.tolist() == [0.25, 0.5, 0.25, 0, 0]
    assert found.distance == 0.5


def test_the_floor_is_the_mean_of_the_distance_between_sets_of_one_law() -> None:
    rng = np.random.default_rng(0)
    draw = lambda n: torch.from_numpy(rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]))
    found = [class_shares(draw(300), draw(900), classes=4) for _ in range(400)]
    distances = np.array([f.distance for f in found])
    assert np.mean([f.floor for f in found]) == pytest.approx(distances.mean(), rel=0.06)


def test_equal_laws_pass_about_as_often_as_they_must() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(400, 3, generator=generator)
    found = [two_sample_test(draw(), draw(), classifier=LogisticRegression(), seed=i) for i in range(200)]
    accuracies = np.array([f.accuracy for f in found])
    assert abs(accuracies.mean() - 0.5) < 4 * 0.025 / 200**0.5
    assert accuracies.std() == pytest.approx(0.025, rel=0.25) and found[0].rows == 400
    assert found[0].standard_error == pytest.approx(0.025, rel=0.02)
    assert np.mean([f.p_value < 0.05 for f in found]) < 0.09


def test_shifts_have_the_accuracy_of_the_best_classifier() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(4000, 2, generator=generator) + s for s in (0.0, torch.tensor([1.0, 0.0])))
    best = stats.norm.cdf(0.5)
    for classifier, lost in ((None, 0.05), (LogisticRegression(), 0.02)):  # trees overfit two columns a little
        found = two_sample_test(x, y[:3900], classifier=classifier)
        assert best - lost < found.accuracy < best + 0.02 and found.p_value < 1e-20
        assert found.rows == 3900


def test_the_default_sees_what_no_single_column_shows() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(2000, 2, generator=generator) for _ in range(2))
    y[:, 1] = 0.9 * y[:, 0] + 0.19**0.5 * y[:, 1]  # the same marginals, correlated
    assert two_sample_test(x, y).p_value < 1e-10
    assert two_sample_test(x, y, classifier=LogisticRegression()).p_value > 1e-4
    apart = two_sample_test(x, y + 100)
    assert apart.accuracy == 1 and apart.standard_error == 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: two_sample_test(x[:19], x), "N >= 20"),
        (lambda x: two_sample_test(x, x, test_share=1.0), "test_share must leave rows"),
        (lambda x: two_sample_test(x, x[:, :1]), "same features, got 2 and 1"),
        (lambda x: two_sample_test(x, x * torch.nan), "y has NaN"),
        (lambda x: class_shares(x, x, classes=3), "x must be .N,. whole numbers below 3"),
        (lambda x: class_shares(torch.tensor([0, 3]), torch.tensor([0]), classes=3), "up to 3"),
        (lambda x: class_shares(torch.tensor([0]), torch.tensor([-1]), classes=3), "y has no row with a class"),
    ],
)
def test_mistakes_are_told(call, text: str) -> None:
    with pytest.raises(UserError, match=text):
        call(torch.arange(1.0, 61).reshape(30, 2))

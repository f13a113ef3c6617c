"""Class shares as a classifier of held-out digits sees them."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from advect.evaluation import Features, measure_shares


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32)[:, None], torch.tensor(bunch.target)


def seen(samples: torch.Tensor, digits: tuple[torch.Tensor, torch.Tensor], **options):
    images, labels = digits
    features = Features.fit(images, kind="image")
    train, held_out = (images[:600], labels[:600]), (images[900:], labels[900:])
    return measure_shares(samples, train, held_out, features=features, classes=10, **options)


def test_real_digits_lie_at_the_floor_and_a_dropped_class_at_its_share(digits) -> None:
    images, labels = digits
    fresh, kind = images[600:900], labels[600:900]
    found = seen(fresh, digits)
    assert found.classifier_accuracy > 0.92 and found.fitted_on == len(images) - 900
    assert found.shares.distance < 1.5 * found.shares.floor < 0.15
    without = seen(fresh[kind > 1], digits)
    assert without.shares.distance == pytest.approx(0.2, abs=0.05) and without.shares.x[:2].max() < 0.03
    assert seen(fresh[kind == 3], digits).shares.x[3] > 0.9


def test_labels_are_not_needed_of_all_rows_and_two_classes_are(digits) -> None:
    images, labels = digits
    part = labels.clone()
    part[:300] = -1
    assert seen(images[:50], (images, part), limit=400).fitted_on == 400
    assert seen(images[:50], (images, labels * 0)) is None
    part[:600] = -1
    assert seen(images[:50], (images, part)) is None

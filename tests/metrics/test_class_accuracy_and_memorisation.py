"""The class asked for, and copies of training data."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from advect.core.types import NULL, Category
from advect.metrics import ProbeClassifier, class_accuracy, memorisation

DIGITS = Category(tuple("0123456789"), (0.1,) * 10)


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32)[:, None], torch.tensor(bunch.target)


def judge(x, asked, digits, **options):
    images, labels = digits
    flat = lambda v: v.flatten(1)
    probe = ProbeClassifier.fit((flat(images[900:]), labels[900:]), **options)
    if probe is None:
        return None
    return class_accuracy(probe, (flat(x), asked), category=DIGITS)


def test_real_digits_show_their_class_and_wrongly_labelled_ones_do_not(digits):
    images, labels = digits
    right = judge(images[:300], labels[:300], digits)
    assert right.share > 0.92 and right.classifier_accuracy > 0.94
    assert [name for name, _, _ in right.by_class] == list("0123456789")
    assert sum(n for _, n, _ in right.by_class) == right.samples == 300
    wrong = judge(images[:300], (labels[:300] + 1) % 10, digits)
    assert wrong.share < 0.05
    assert wrong.classifier_accuracy == right.classifier_accuracy


def test_the_unit_of_pixels_does_not_matter(digits):
    images, labels = digits
    plain = judge(images[:200] + 0.5, labels[:200], digits)
    scaled = judge((images[:200] + 0.5) * 16, labels[:200], (images * 16, labels))
    assert plain == scaled


def test_samples_without_a_class_are_left_out_and_one_class_cannot_be_judged(digits):
    images, labels = digits
    asked = labels[:100].clone()
    asked[:40] = NULL
    assert judge(images[:100], asked, digits).samples == 60
    assert judge(images[:100], labels[:100], (images, labels * 0)) is None
    assert judge(images[:100], labels[:100] * 0 + NULL, digits) is None


def test_few_rows_are_used_of_many(digits):
    found = judge(*(x[:50] for x in digits), digits, limit=200)
    assert found.fitted_on == 200


def test_a_classifier_near_chance_says_so_and_does_not_judge(digits):
    images, labels = digits
    flat = images[:600].flatten(1)
    able = ProbeClassifier.fit((flat, labels[:600]))
    assert able is not None and able.accuracy > 0.9 and not able.mistrust and able.majority < 0.12
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    blind = ProbeClassifier.fit((noise, labels[:600]))
    assert blind is not None and blind.accuracy < 0.2
    assert blind.mistrust.startswith(f"the classifier is right on {blind.accuracy:.0%} of real rows of other folds")
    rare = (torch.arange(600) % 10 == 0).long()  # right on 90% by a constant answer
    assert ProbeClassifier.fit((noise, rare)).mistrust


def test_copies_are_told_from_new_samples():
    generator = torch.Generator().manual_seed(0)
    train, held_out, new = (torch.randn(1000, 4, generator=generator) for _ in range(3))
    honest = memorisation(new, train, held_out)
    assert honest.share_closer < 0.04
    assert (held_out.shape[0] * 0.01) == (honest.held_out_distances < honest.threshold).sum()
    copied = memorisation(train[:300] + 1e-4, train, held_out)
    assert copied.share_closer == 1.0
    assert copied.sample_distances.max() < 1e-3


def test_shown_samples_run_from_the_closest_to_the_farthest_beside_their_neighbours():
    generator = torch.Generator().manual_seed(1)
    train, held_out, new = (torch.randn(100, 1, 2, 2, generator=generator) for _ in range(3))
    found = memorisation(new, train, held_out, shown=5, k=2)
    assert found.distances[0, 0] == found.sample_distances.min()
    assert found.distances[-1, 0] == found.sample_distances.max()
    assert found.neighbours.shape == (5, 2, 1, 2, 2)
    gaps = (found.samples[:, None] - found.neighbours).flatten(2).norm(dim=2)
    assert torch.allclose(gaps.double(), found.distances, atol=1e-6)

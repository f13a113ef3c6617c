"""Shares of runs of tokens against counts by hand."""

from __future__ import annotations

import pytest
import torch

from advect.core.errors import UserError
from advect.metrics import ngram_distance
from advect.metrics.tokens import BitsMetric


def test_total_variation_of_runs_is_that_of_their_counts():
    x, y = torch.tensor([[1, 2, 1, 2]]), torch.tensor([[1, 1, 2, 2], [2, 2, 2, 2]])
    assert ngram_distance(x, y, 1) == pytest.approx(1 / 2 - 2 / 8)
    # of x: 12 21 12; of y: 11 12 22 22 22 22
    assert ngram_distance(x, y, 2) == pytest.approx((abs(2 / 3 - 1 / 6) + 1 / 3 + 1 / 6 + 4 / 6) / 2)
    assert ngram_distance(x, x, 3) == 0 and ngram_distance(x, 5 + x, 2) == pytest.approx(1)
    with pytest.raises(UserError, match="with L >= 5"):
        ngram_distance(x, y, 5)


def test_bits_are_those_of_all_tokens_together():
    parts = [
        {"bits": torch.tensor([8.0, 4.0]), "tokens": torch.tensor([4.0, 4.0])},
        {"bits": torch.tensor([3.0]), "tokens": torch.tensor([2.0])},
    ]
    found = BitsMetric().reduce(iter(parts), None)
    assert found["mean"] == pytest.approx(15 / 10) and found["samples"] == 3 and found["tokens"] == 10

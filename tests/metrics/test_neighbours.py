"""Nearest neighbours against a search by brute force."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from advect.core.errors import UserError
from advect.metrics import nearest_neighbours
from advect.metrics.precision_recall import block_rows


@pytest.mark.parametrize("rows", [7, 64, 10_000])
@pytest.mark.parametrize("k", [1, 5])
def test_equals_scikit_learn_whatever_the_blocks(rows, k, monkeypatch):
    monkeypatch.setattr(
        sys.modules["advect.metrics.precision_recall"], "block_rows", lambda dimension, memory_mb: rows
    )
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(90, 1, 4, 4)), rng.normal(size=(333, 1, 4, 4))
    found = nearest_neighbours(torch.from_numpy(queries), torch.from_numpy(references), k=k)
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(references.reshape(333, -1))
    distances, indices = search.kneighbors(queries.reshape(90, -1))
    assert np.array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-10)


def test_a_copy_is_found_at_exactly_zero_far_from_the_origin():
    references = torch.rand(500, 30, generator=torch.Generator().manual_seed(0)) + 1e4
    found = nearest_neighbours(references[[3, 77]], references)
    assert found.indices.tolist() == [[3], [77]]
    assert found.distances.tolist() == [[0.0], [0.0]]


def test_bytes_are_compared_as_numbers():
    found = nearest_neighbours(torch.tensor([[0, 250]], dtype=torch.uint8), torch.tensor([[10, 240], [0, 0]]))
    assert found.indices.tolist() == [[0]]
    assert found.distances[0, 0] == pytest.approx(200**0.5)


@pytest.mark.parametrize("dimension", [2, 784, 12288, 10**7])
def test_a_block_fits_the_memory(dimension):
    rows = block_rows(dimension, 256)
    assert rows == 1 or 16 * rows * (rows + dimension) <= 256 * 2**20


@pytest.mark.parametrize(
    ("queries", "references", "k", "text"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 2), 1, "same dimension, got 3 and 2"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, r"k must be in 1 .. 4 .* got 5"),
        (torch.zeros(0, 3), torch.zeros(4, 3), 1, "queries must be"),
        (torch.full((2, 3), torch.inf), torch.zeros(4, 3), 1, "queries has NaN or infinite"),
    ],
)
def test_mistakes_are_told(queries, references, k, text):
    with pytest.raises(UserError, match=text):
        nearest_neighbours(queries, references, k=k)

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advect.core.errors import UserError
from advect.core.types import Batch
from advect.training import Loader
from advect.training.loader import ShardSampler


class Sharded:
    """Examples that are their own indices, in shards."""

    def __init__(self, shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return sum(self.shards)

    def fetch(self, indices, rng=None) -> Batch:
        return Batch(torch.from_numpy(indices).double())


def test_order_is_pinned():
    # A resumed run relies on it: a change here changes the data that an old run goes on with.
    assert ShardSampler([3, 2, 4], 7, together=2).indices(0, 9).tolist() == [2, 1, 0, 3, 4, 8, 7, 6, 5]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    together=st.integers(1, 13),
    seed=st.integers(0, 2**64 - 1),
    cuts=st.lists(st.integers(0, 130), max_size=6),
)
def test_each_epoch_visits_every_example_once_however_it_is_cut(sizes, together, seed, cuts):
    order, n = ShardSampler(sizes, seed, together=together), sum(sizes)
    edges = [0, *sorted(cuts), 3 * n + 130]
    process_group = np.concatenate([order.indices(a, b - a) for a, b in pairwise(edges)])
    for epoch in range(3):
        assert sorted(process_group[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert (process_group == ShardSampler(sizes, seed, together=together).indices(0, len(process_group))).all()


def test_few_shards_are_touched_at_a_time_and_all_of_these_are_mixed():
    order = ShardSampler([50] * 20, 3, together=4)
    groups = order.indices(0, 1000).reshape(5, 200) // 50
    assert [len(set(group)) for group in groups] == [4] * 5
    for group in groups:
        assert len(set(group[:25])) == 4
    assert not np.array_equal(order.indices(0, 1000), order.indices(1000, 1000))
    assert not np.array_equal(order.indices(0, 1000), ShardSampler([50] * 20, 4, together=4).indices(0, 1000))
    assert set(order.indices(0, 200) // 50) != set(order.indices(1000, 200) // 50)


def test_ranks_with_places_of_their_own_take_examples_of_their_own():
    order, size, ranks = ShardSampler([7, 30, 2, 11], 0, together=2), 10, 2
    parts = [
        order.indices(step * size + rank * size // ranks, size // ranks) for step in range(5) for rank in range(ranks)
    ]
    assert sorted(np.concatenate(parts)) == list(range(50))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_loader_keeps_to_the_shards_and_resumes_whatever_the_workers(workers):
    def run(loader, steps):
        try:
            return torch.stack([loader.batch(step).x1 for step in steps])
        finally:
            loader.close()

    shards = [10] * 30
    whole = run(Loader(Sharded(shards), 20, seed=5), range(30))
    assert sorted(whole[:15].flatten().tolist()) == list(range(300))
    assert all(len(set((batch // 10).tolist())) <= 8 for batch in whole[:4])
    resumed = Loader(Sharded(shards), 20, seed=5, workers=workers)
    resumed.start_at(11, 220)
    assert torch.equal(run(resumed, range(11, 30)), whole[11:])


@pytest.mark.parametrize(("sizes", "together", "words"), [([3], 0, "together must be"), ([0, 0], 8, "not all 0")])
def test_bad_arguments(sizes, together, words):
    with pytest.raises(UserError, match=words):
        ShardSampler(sizes, 0, together=together)

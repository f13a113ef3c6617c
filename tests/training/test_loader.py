from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import Batch
from advect.training import Loader
from advect.training.loader import BucketSampler, EpochSampler


class Numbers:
    """Examples that are their own indices, beside a random number of each row."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def fetch(self, indices: np.ndarray, rng: CounterRng | None = None) -> Batch:
        assert rng is not None and indices.dtype == np.int64
        noise = rng.uniform((len(indices),), dtype=torch.float64)
        return Batch(torch.stack([torch.from_numpy(indices.astype(np.float64)), noise], 1))


def batches(loader: Loader, steps) -> torch.Tensor:
    """Batches (steps, batch_size, 2) of these steps."""
    try:
        return torch.stack([loader.batch(step).x1 for step in steps])
    finally:
        loader.close()


# --- The order ---


def test_order_is_pinned():
    # A resumed run relies on it: a change here changes the data that an old run goes on with.
    assert EpochSampler(10, 7).indices(0, 10).tolist() == [7, 8, 0, 6, 3, 1, 5, 4, 9, 2]
    assert EpochSampler(10, 7).indices(10, 10).tolist() == [3, 6, 1, 9, 0, 4, 2, 8, 7, 5]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), cuts=st.lists(st.integers(0, 130), max_size=6))
def test_each_epoch_is_a_permutation_however_it_is_cut(n, seed, cuts):
    order = EpochSampler(n, seed)
    edges = [0, *sorted(cuts), 3 * n + 130]
    process_group = np.concatenate([order.indices(a, b - a) for a, b in pairwise(edges)])
    for epoch in range(3):
        assert sorted(process_group[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert (process_group == EpochSampler(n, seed).indices(0, len(process_group))).all()


def test_epochs_and_seeds_have_their_own_order():
    order = EpochSampler(1000, 3)
    orders = [order.indices(1000 * epoch, 1000) for epoch in range(4)] + [EpochSampler(1000, 4).indices(0, 1000)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).sum() < 10  # one is expected


def test_a_far_epoch_needs_no_walk():
    assert sorted(EpochSampler(5, 0).indices(5 * 10**12, 5)) == list(range(5))


# --- The batches ---


@pytest.mark.parametrize(("n", "size"), [(10, 4), (3, 8), (7, 7), (1, 5)])
def test_batches_follow_the_order_across_epochs(n, size):
    seen = batches(Loader(Numbers(n), size, seed=3), range(12))[..., 0].flatten().long()
    for epoch in range(12 * size // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_a_batch_is_a_function_of_its_step():
    forwards = batches(Loader(Numbers(10), 4, seed=3), range(8))
    backwards = batches(Loader(Numbers(10), 4, seed=3), reversed(range(8)))
    assert torch.equal(forwards, backwards.flip(0))
    assert len(torch.unique(forwards[..., 1])) == 32
    assert not torch.equal(forwards, batches(Loader(Numbers(10), 4, seed=4), range(8)))


def test_random_numbers_of_a_step_do_not_depend_on_the_batch_size_before_it():
    small, large = Loader(Numbers(100), 4, seed=3).batch(5).x1, Loader(Numbers(100), 6, seed=3).batch(5).x1
    assert torch.equal(small[:, 1], large[:4, 1])


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(workers):
    steps = range(3, 25)
    alone = batches(Loader(Numbers(37), 8, seed=1), steps)
    assert torch.equal(batches(Loader(Numbers(37), 8, seed=1, workers=workers), steps), alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_start_at_continues_where_so_many_samples_were_seen(workers):
    whole = batches(Loader(Numbers(37), 8, seed=1), range(20))
    loader = Loader(Numbers(37), 8, seed=1, workers=workers)
    loader.start_at(9, 72)
    assert torch.equal(batches(loader, range(9, 20)), whole[9:])


def test_another_batch_size_continues_with_the_samples_not_yet_seen():
    first = batches(Loader(Numbers(24), 4, seed=1), range(3))[..., 0]
    loader = Loader(Numbers(24), 6, seed=1)
    loader.start_at(3, 12)
    rest = batches(loader, range(3, 5))[..., 0]
    assert sorted(torch.cat([first.flatten(), rest.flatten()]).tolist()) == list(range(24))


def test_what_was_loaded_ahead_is_forgotten_when_the_start_moves():
    def moved(workers: int) -> torch.Tensor:
        loader = Loader(Numbers(1000), 8, seed=1, workers=workers)
        loader.batch(0)
        loader.start_at(1, 500)
        return batches(loader, range(1, 6))

    assert torch.equal(moved(2), moved(0))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_in_fetch_reaches_the_caller(workers):
    class Broken(Numbers):
        def fetch(self, indices, rng=None):
            raise UserError("7.png cannot be read")

    with pytest.raises(UserError, match=r"7\.png cannot be read"):
        batches(Loader(Broken(10), 4, workers=workers), range(1))


def test_close_ends_the_threads_and_the_loader_can_go_on():
    loader = Loader(Numbers(10), 4, seed=1, workers=3)
    alone = batches(Loader(Numbers(10), 4, seed=1), range(4))
    assert torch.equal(batches(loader, range(2)), alone[:2])
    assert not [t for t in threading.enumerate() if t.name.startswith("advect-loader")]
    assert torch.equal(batches(loader, range(2, 4)), alone[2:])
    loader.close()


def test_a_run_does_not_load_the_whole_data_ahead():
    examples = Numbers(10_000)
    fetched = []
    examples.fetch = lambda indices, rng=None: fetched.append(len(indices)) or Batch(torch.zeros(4, 1))
    loader = Loader(examples, 4, workers=2)
    batches(loader, range(3))
    assert len(fetched) <= 3 + 5


@pytest.mark.parametrize(
    ("n", "arguments", "message"),
    [
        (0, {"batch_size": 4}, r"the training split has no example; see that the data folder is the right one"),
        (5, {"batch_size": 0}, r"batch_size must be at least 1, got 0; 128 is usual"),
        (5, {"batch_size": 4, "workers": -1}, r"num_workers must be >= 0, got -1; 0 loads in the training thread"),
    ],
)
def test_arguments_out_of_range(n, arguments, message):
    with pytest.raises(UserError, match=message):
        Loader(Numbers(n), **arguments)


# --- Buckets ---

BUCKETS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [37, 50, 3, 20]))


class Sized(Numbers):
    """Examples with a size, which a batch shows."""

    buckets = BUCKETS

    def fetch(self, indices, rng=None, bucket=None):
        assert bucket is not None
        batch = super().fetch(indices, rng)
        return Batch(torch.cat([batch.x1, torch.full((len(indices), 1), float(bucket), dtype=torch.float64)], 1))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any),
    batch=st.integers(1, 9),
    start=st.integers(0, 8),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_each_epoch_of_buckets_is_a_permutation_however_it_is_cut(sizes, batch, start, cuts):
    buckets = np.repeat(np.arange(len(sizes)), sizes)
    n, order = len(buckets), BucketSampler(buckets, 5, batch, start=start % batch)
    edges = [0, *sorted(cuts), 3 * n + 200]
    whole = np.concatenate([order.indices(a, b - a) for a, b in pairwise(edges)])
    for epoch in range(3):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == list(range(n))
    again = BucketSampler(buckets, 5, batch, start=start % batch)
    assert (again.indices(0, len(whole)) == whole).all()


@pytest.mark.parametrize("start", [0, 5])
def test_batches_hold_one_bucket_but_for_the_rests(start):
    size, order = 8, BucketSampler(BUCKETS, 3, 8, start=start)
    batches = order.indices(start, 110 * size).reshape(-1, size)  # of eight epochs, none a whole number of batches
    mixed = sum(len(set(BUCKETS[batch])) > 1 for batch in batches)
    assert mixed <= 8 * 3  # of 110: 5, 2, 3 and 4 examples are over, and the batch across the ends
    first, second = (order.indices(e * 110, 110).tolist() for e in (0, 1))
    assert sorted(first) == sorted(second) and first != second


def test_batches_of_buckets_are_a_function_of_their_step_and_continue():
    whole = batches(Loader(Sized(110), 8, seed=1), range(40))
    assert torch.equal(batches(Loader(Sized(110), 8, seed=1, workers=2), range(40)), whole)
    later = Loader(Sized(110), 8, seed=1)
    later.start_at(17, 17 * 8)
    assert torch.equal(batches(later, range(17, 40)), whole[17:])
    halves = [batches(Loader(Sized(110), 4, seed=1, rank=r, world=2), range(40)) for r in (0, 1)]
    assert torch.equal(torch.cat(halves, 1), whole)
    real = BUCKETS[whole[..., 0].long()]
    assert (real == whole[..., 2].numpy()).mean() > 0.85 and (whole[..., 2] == whole[:, :1, 2]).all()

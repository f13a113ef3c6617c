"""What every source distribution promises."""

from __future__ import annotations

import pytest
import torch
from parts import examples

from advect.core import random
from advect.core.random import CounterRng
from advect.sources import (
    Custom,
    Empirical,
)


def exponential(shape, generator, device, dtype):
    return -random.uniform(shape, generator, device=device, dtype=dtype).log1p()


class AnyShape(Empirical):
    """An Empirical made for the shape it is asked for: contracts ask for several."""

    def __init__(self):
        super().__init__(torch.zeros(1, 1))

    def sample(self, shape, generator=None, *, device=None, dtype=torch.float32):
        x = torch.randn(10_000, *shape[1:], generator=torch.Generator().manual_seed(0))
        return Empirical(x).sample(shape, generator, device=device, dtype=dtype)


SOURCES = [
    *(source for source in examples("source").values() if not source.discrete),
    Custom(exponential),
    AnyShape(),
]
SHAPES = [(1, 1), (6, 3), (6, 1, 4, 4), (6, 2, 3, 5)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
class TestSource:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_dtype_are_those_asked_for(self, source, shape, dtype):
        x = source.sample(shape, dtype=dtype)
        assert x.shape == shape and x.dtype == dtype and x.isfinite().all()
        assert source.sample(shape).dtype == torch.float32
        like = source.sample_like(torch.zeros(shape, dtype=dtype))
        assert like.shape == shape and like.dtype == dtype

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_generator_alone_decides(self, source, shape):
        before = torch.random.get_rng_state()
        for make in (lambda seed: CounterRng(seed, 0, shape[0]), lambda seed: torch.Generator().manual_seed(seed)):
            first, again, other = (source.sample(shape, make(seed)) for seed in (1, 1, 2))
            assert torch.equal(first, again)
            assert not torch.equal(first, other)
        assert torch.equal(before, torch.random.get_rng_state())

    @pytest.mark.parametrize("shape", SHAPES[1:])
    def test_a_shared_batch_joins_to_the_whole(self, source, shape):
        whole = source.sample(shape, CounterRng(5, 6, 6))
        parts = [
            source.sample((n, *shape[1:]), CounterRng(5, 6, n, start=start, total=6)) for start, n in ((0, 1), (1, 5))
        ]
        assert torch.equal(torch.cat(parts), whole)

    def test_rows_differ(self, source):
        x = source.sample((50, 8), CounterRng(0, 0, 50))
        assert len(torch.unique(x, dim=0)) == 50

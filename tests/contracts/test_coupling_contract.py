"""What every coupling promises."""

from __future__ import annotations

import pytest
import torch
from parts import examples

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.couplings import ConditionalOT, GivenPairs, Sinkhorn

COUPLINGS = [
    *examples("coupling").values(),
    ConditionalOT(penalty=0.5),
    Sinkhorn(iterations=20),
    GivenPairs(lambda x1, cond: x1.flip(0)),
]


def batch(n: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    x0, x1 = torch.randn(2, n, *shape, generator=torch.Generator().manual_seed(n))
    return x0, x1, {"label": torch.arange(n), "batch": torch.arange(n) * 10}


def rows(x: torch.Tensor) -> list[list[float]]:
    return sorted(x.flatten(1).tolist())


@pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda coupling: type(coupling).__name__)
class TestCoupling:
    @pytest.mark.parametrize("shape", [(1, 2), (7, 3), (8, 1, 2, 2)])
    def test_only_the_order_changes_and_a_sample_keeps_its_conditions(self, coupling, shape):
        x0, x1, cond = batch(*shape)
        y0, y1, y_cond = coupling.pair(x0, x1, cond, CounterRng(0, 0, shape[0]))
        starts = rows(x1 if isinstance(coupling, GivenPairs) else x0)
        assert all(row in starts for row in rows(y0))
        assert torch.equal(y1, x1)
        assert y0.shape == y1.shape == shape and y0.dtype == x0.dtype
        assert torch.equal(y1, x1[y_cond["label"]])
        assert torch.equal(y_cond["batch"], y_cond["label"] * 10)

    def test_without_conditions_there_are_none(self, coupling):
        x0, x1, _ = batch(4, 2)
        if coupling.needs_conditions:
            with pytest.raises(UserError, match="needs conditions, and the batch has none"):
                coupling.pair(x0, x1)
            return
        assert coupling.pair(x0, x1)[2] is None

    def test_arguments_are_not_changed(self, coupling):
        x0, x1, cond = batch(6, 2)
        coupling.pair(x0, x1, cond)
        again = batch(6, 2)
        assert torch.equal(x0, again[0]) and torch.equal(x1, again[1])
        assert all(torch.equal(cond[k], again[2][k]) for k in cond)

    def test_the_generator_alone_decides(self, coupling):
        before = torch.random.get_rng_state()
        for make in (lambda: CounterRng(1, 2, 6), lambda: torch.Generator().manual_seed(1)):
            first, again = (coupling.pair(*batch(6, 2), make()) for _ in range(2))
            assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
        assert torch.equal(before, torch.random.get_rng_state())

    def test_shapes_that_differ_are_refused(self, coupling):
        if isinstance(coupling, GivenPairs):
            coupling = GivenPairs(lambda x1, cond: x1[:, :2])
        with pytest.raises(UserError, match="x0 and x1 must have the same shape"):
            coupling.pair(torch.zeros(4, 2), torch.zeros(4, 3))

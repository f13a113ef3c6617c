from __future__ import annotations

import pytest
import torch

from advect.core.errors import UserError
from advect.couplings import Independent


def test_independent_pairs_row_by_row_and_copies_nothing():
    x0, x1, cond = torch.randn(4, 2), torch.randn(4, 2), {"label": torch.arange(4)}
    paired = Independent().pair(x0, x1, cond)
    assert all(a is b for a, b in zip(paired, (x0, x1, cond), strict=True))


def test_independent_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    Independent().pair(torch.zeros(4, 2), torch.zeros(4, 2), None, generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("a", "b"), [((4, 2), (3, 2)), ((4, 2), (4, 3)), ((4, 1, 2, 2), (4, 4))])
def test_batches_that_do_not_fit_are_refused(a, b):
    with pytest.raises(UserError, match="x0 and x1 must have the same shape"):
        Independent().pair(torch.zeros(a), torch.zeros(b))

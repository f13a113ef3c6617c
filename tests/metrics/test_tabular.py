"""Columns and pairs of columns against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats.contingency import association

from advect.core.errors import UserError
from advect.metrics import association_error, associations, column_gaps

NAN = float("nan")
KINDS = [False, False, True, True]


def mixed(n: int, seed: int) -> torch.Tensor:
    """Two numbers, one with ties and gaps, and two categories, all dependent."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    b = np.round(a + rng.normal(size=n))
    kind = np.digitize(a + rng.normal(size=n), [-1, 0.5])
    other = np.where(rng.random(n) < 0.6, kind, rng.integers(0, 4, n))
    b[rng.random(n) < 0.2] = NAN
    return torch.from_numpy(np.stack([a, b, kind * 7.0, other], 1))


def test_gaps_agree_with_scipy_and_by_hand() -> None:
    x, y = mixed(300, 0), mixed(200, 1) * 1.1
    found = column_gaps(x, y, categorical=[False] * 4)
    late = [torch.where(v.isnan(), 1e9, v).numpy() for v in (x[:, 1], y[:, 1])]
    assert found[0] == pytest.approx(stats.ks_2samp(x[:, 0].numpy(), y[:, 0].numpy()).statistic)
    assert found[1] == pytest.approx(stats.ks_2samp(*late).statistic)
    # Shares (1/2, 1/4, 0, 1/4 missing) and (1/4, 0, 1/2, 1/4): half of 1/4 + 1/4 + 1/2.
    p, q = torch.tensor([[1.0], [1], [5], [NAN]]), torch.tensor([[1.0], [9], [9], [NAN]])
    assert column_gaps(p, q, categorical=[True]).tolist() == [0.5]
    # All values equal, and one in four missing instead of none.
    assert column_gaps(torch.tensor([[2.0]] * 3 + [[NAN]]), torch.full((5, 1), 2.0), categorical=[False]) == 0.25


def test_associations_agree_with_scipy() -> None:
    x = mixed(400, 2)
    found = associations(x, categorical=KINDS)
    assert torch.equal(found, found.T) and found.diagonal().tolist() == [1] * 4
    a, b, kind, other = x.numpy().T
    given = ~np.isnan(b)
    assert found[0, 1] == pytest.approx(stats.spearmanr(a[given], b[given]).statistic)
    table = np.array([[((kind == k) & (other == o)).sum() for o in range(4)] for k in (0, 7, 14)])
    assert found[2, 3] == pytest.approx(association(table, method="cramer"))
    # Kruskal and Wallis' H, corrected for ties, is (n - 1) times the squared correlation ratio of the ranks.
    for i, j, rows in ((0, 2, slice(None)), (1, 3, given)):
        values, groups = x.numpy()[rows, i], x.numpy()[rows, j]
        h = stats.kruskal(*(values[groups == g] for g in np.unique(groups))).statistic
        assert found[i, j] ** 2 == pytest.approx(h / (len(values) - 1))


def test_extremes_of_association() -> None:
    line = torch.arange(8.0)
    group = (line >= 4).double()
    x = torch.stack([line, -(line**3), group, 1 - group, torch.ones(8)], 1)
    kinds = [False, False, True, True, False]
    found = associations(x, categorical=kinds)
    assert found[0, 1] == pytest.approx(-1) and found[2, 3] == pytest.approx(1)
    assert found[4, :4].tolist() == [0] * 4  # what does not vary hangs together with nothing
    shuffled = torch.tensor([0.0, 1, 0, 1, 1, 0, 1, 0])  # as many of each in both halves
    assert associations(torch.stack([group, shuffled], 1), categorical=[True, True])[0, 1] == 0
    apart = torch.cat([x[:, :2], x[:, :1]], 1)
    turned = torch.cat([x[:, :2] * torch.tensor([1, -1]), x[:, :1]], 1)
    # Of three pairs two turn from -1 to 1 and one stays.
    assert association_error(apart, turned, categorical=[False] * 3) == pytest.approx(4 / 3)


def test_missing_categories_are_a_category_and_missing_numbers_are_left_out() -> None:
    x = torch.tensor([[NAN, 1.0], [NAN, 1.0], [3, 2], [3, 2], [3, NAN]])
    assert associations(x, categorical=[True, True])[0, 1] == pytest.approx(
        association(np.array([[2, 0, 0], [0, 2, 1]]), method="cramer")
    )
    assert associations(x, categorical=[True, False])[0, 1] == pytest.approx(1)
    assert associations(x, categorical=[False, False])[0, 1] == 0  # two rows with both, and one value in the first


def test_order_keeping_maps_change_nothing() -> None:
    x, y = mixed(100, 3), mixed(120, 4)
    for measure in (column_gaps, association_error):
        before = torch.as_tensor(measure(x, y, categorical=KINDS))
        curved = [torch.cat([t[:, :2].exp(), t[:, 2:]], 1) for t in (x, y)]
        torch.testing.assert_close(torch.as_tensor(measure(*curved, categorical=KINDS)), before)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: column_gaps(x, x[:, :2], categorical=KINDS), r"y must be \(N, 4\), a column for each .* \(3, 2\)"),
        (lambda x: column_gaps(x[:0], x, categorical=KINDS), r"x must be \(N, 4\).* \(0, 4\)"),
        (lambda x: associations(x / 0, categorical=KINDS), "x has infinite values in column 1"),
        (lambda x: association_error(x[:, :1], x[:, :1], categorical=[True]), "two columns or more, got 1"),
    ],
)
def test_mistakes_are_told(call, text: str) -> None:
    with pytest.raises(UserError, match=text):
        call(torch.tensor([[0.0, 1, 2, 3]] * 3))

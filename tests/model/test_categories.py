"""Flows of categories: a network of exact logits draws the exact law, by whatever solver and question."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advect import FlowModel
from advect.core.types import GIVEN, DataSpec
from advect.data import TableTransform
from advect.data.tables.coded import CodedCategories
from advect.losses import PosteriorHead
from advect.model.flow import Flow
from advect.paths import AffinePath, CondOT, Trigonometric
from product_mixture import CELLS, CODES, SIZES, by_chance, exact_logits, joint, one_hot, total_variation

COLUMNS, NAMES = ("first", "second", "third"), ("abc", "de", "fghi")
N = 4000


class Exact(nn.Module):
    """Logits by Bayes' rule; ``known`` entries are those of cond["given"], and the condition "first" is the first."""

    def __init__(self, path: AffinePath) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        given = (cond or {}).get(GIVEN)
        known = None if given is None else given.isfinite()
        x = x if given is None or known is None else torch.where(known, given.to(x.dtype), x)
        return exact_logits(x, t, self.path, known).to(x.dtype)


def flow(path: AffinePath, **options: Any) -> Flow:
    columns = [
        CodedCategories(name=name, dtype="object", names=tuple(word))
        for name, word in zip(COLUMNS, NAMES, strict=True)
    ]
    transform = TableTransform(columns)
    assert transform.code_places == tuple((code.start, code.size) for code in CODES)
    facts = {"order": list(COLUMNS), "transform": transform.to_config(), "conditions": []}
    spec = DataSpec((8,), "table", {}, codes=CODES)
    head = PosteriorHead(CODES, path)
    return Flow(Exact(path), spec, transform, path=path, head=head, facts=facts, **options)


def cells_of(rows: Tensor) -> Tensor:
    """Combinations (n,) of rows (n, 3) in table units."""
    return (rows.long()[:, None] == CELLS).all(2).int().argmax(1)


@pytest.mark.parametrize("path", [CondOT(), Trigonometric()], ids=["straight", "trigonometric"])
@pytest.mark.parametrize(
    "how",
    [
        {"solver": "euler", "steps": 100},
        {"solver": "midpoint", "steps": 30},
        {"solver": "heun", "steps": 30},
        {"solver": "rk4", "steps": 20},
        {"solver": "ab2", "steps": 60},
        {"solver": "dpmpp2m", "steps": 60},
        {"solver": "dopri5"},
        {"solver": "euler-maruyama", "diffusion": 1.0, "steps": 150},
    ],
    ids=lambda how: how["solver"],
)
def test_every_solver_draws_the_exact_joint_law(path, how):
    rows = flow(AffinePath(path)).sample(N, batch_size=N, seed=1, **how).x
    assert total_variation(cells_of(rows), joint()) < 2 * by_chance(joint(), N) + 0.005


def test_few_steps_end_at_a_category_of_every_column():
    x = flow(AffinePath()).sample(200, steps=2, solver="euler", model_units=True).x
    assert x.abs().max() < 1.001  # a mean of codes, as the last step goes to the prediction


def test_what_is_given_of_a_row_draws_the_rest_of_its_exact_conditional_law():
    for column in range(3):
        given = torch.full((N, 3), torch.nan, dtype=torch.float64)
        given[:, column] = 1.0
        rows = flow(AffinePath(), masked=True).sample(N, given=given, batch_size=N, steps=30, seed=2).x
        law = joint() * (CELLS[:, column] == 1)
        law = law / law.sum()
        assert bool((rows[:, column] == 1).all())
        assert total_variation(cells_of(rows), law) < 2 * by_chance(law, N) + 0.005


def test_the_denoiser_is_the_mean_of_the_codes_and_the_score_follows_from_it():
    made, t = flow(AffinePath()), torch.full((64,), 0.6)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    mean = made.denoiser()(x, t)
    assert torch.allclose(mean[:, :3].sum(1), torch.full((64,), -1.0), atol=1e-5)  # 2 softmax - 1, of three
    assert torch.allclose(made.score()(x, t), (0.6 * mean - x) / 0.4**2, atol=1e-4)
    assert torch.allclose(made.velocity()(x, t), (mean - x) / 0.4, atol=1e-4)


def test_encoded_rows_come_back():
    made = flow(AffinePath())
    rows = CELLS.double()
    z = made.encode(rows, steps=100)
    assert torch.equal(made.decode(z, steps=100), rows)
    assert z.shape == one_hot(CELLS).shape


def test_a_trained_flow_approaches_the_joint_law_and_is_bits_of_its_seed():
    pd = pytest.importorskip("pandas")
    cells = CELLS[torch.multinomial(joint(), 6000, replacement=True, generator=torch.Generator().manual_seed(0))]
    frame = pd.DataFrame({c: [NAMES[i][k] for k in cells[:, i].tolist()] for i, c in enumerate(COLUMNS)})
    model = FlowModel(hidden=(64, 64, 64), steps=700, early_stopping=False, random_state=0).fit(frame)
    assert model.flow_.head is not None
    rows = model.sample(6000)
    found = torch.tensor([[NAMES[i].index(v) for v in rows[c]] for i, c in enumerate(COLUMNS)]).T
    apart = [torch.bincount(column, minlength=size) / 6000 for column, size in zip(cells.T, SIZES, strict=True)]
    product = torch.stack([apart[i][CELLS[:, i]] for i in range(3)]).prod(0).double()
    told, chance = total_variation(cells_of(found), joint()), by_chance(joint(), 6000)
    # Columns that are independent are 5 times as far.
    assert told < 0.05 < 0.5 * 0.5 * float((product - joint()).abs().sum()), (told, chance)
    assert model.sample(50).equals(pickle.loads(pickle.dumps(model)).sample(50))

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import GIVEN, LENGTH, Batch, Entries
from advect.losses import FlowMatching
from advect.losses.score_matching import ScoreMatching
from advect.masks import (
    BlocksMask,
    BoxesMask,
    ColumnsMask,
    GenesMask,
    HalfMask,
    Mask,
    MixtureMask,
    PrefixMask,
    RandomMask,
)

COLUMNS = Entries(torch.tensor([0, 0, 1, 2, 2, 2]), ("age", "sex", "job"))
STEPS = Entries(torch.arange(40).reshape(20, 2))
PIXELS = Entries(torch.arange(48).reshape(1, 6, 8).expand(3, 6, 8))


def drawn(mask: Mask, n: int = 400, lengths: Tensor | None = None) -> Tensor:
    """Masks (n, *S) of what is known where anything is."""
    x = torch.zeros(n, *mask.entries.groups.shape)
    return mask.known(x, lengths, CounterRng(0, 0, n))


def test_half_of_the_entries_are_known_by_a_rate_of_each_sample():
    known = drawn(RandomMask(entries=Entries(torch.arange(100))), 2000).float().mean(1)
    assert known.mean().item() == pytest.approx(0.5, abs=0.02)
    assert known.std().item() == pytest.approx((1 / 12 + 1 / 600) ** 0.5, abs=0.01)  # of the rate, and of the draws
    assert 0.3 <= drawn(RandomMask(entries=STEPS, least=0.4, most=0.4)).float().mean().item() <= 0.5


def test_named_columns_are_known_with_all_their_elements():
    known = drawn(ColumnsMask(entries=COLUMNS, known_columns=["job", "age"]), 3)
    assert known.tolist() == [[True, True, False, True, True, True]] * 3


def test_a_column_without_elements_may_be_named():
    entries = Entries(torch.tensor([0, 0, 1]), ("age", "sex", "country"))
    known = drawn(ColumnsMask(entries=entries, known_columns=["age", "country"]), 2)
    assert known.tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize(("horizon", "low", "high"), [((5,), 5, 5), ((3, 7), 3, 7), ((), 1, 19)])
def test_a_forecast_knows_all_but_the_last_steps(horizon, low, high):
    known = drawn(PrefixMask(entries=STEPS, horizon=horizon))
    ahead = (~known[:, :, 0]).sum(1)
    assert torch.equal(known[:, :, 0], torch.arange(20) < 20 - ahead[:, None])
    assert torch.equal(known[:, :, 0], known[:, :, 1])
    assert (ahead.min(), ahead.max()) == (low, high)


def test_a_forecast_of_a_shorter_sequence_ends_at_its_length():
    lengths = torch.tensor([20, 10, 4])
    known = drawn(PrefixMask(entries=STEPS, horizon=(4,)), 3, lengths)
    assert known[:, :, 0].sum(1).tolist() == [16, 6, 0]


def test_blocks_are_spans_of_at_most_their_share():
    asked = ~drawn(BlocksMask(entries=STEPS, longest=0.25))[:, :, 0]
    starts = asked & ~torch.roll(asked, 1, 1)
    starts[:, 0] = asked[:, 0]
    assert bool((starts.sum(1) == 1).all())
    assert asked.sum(1).unique().tolist() == [1, 2, 3, 4, 5]
    two = ~drawn(BlocksMask(entries=STEPS, longest=0.25, count=2))[:, :, 0]
    assert two.sum(1).float().mean() > asked.sum(1).float().mean()


def test_the_box_asked_for_is_a_rectangle_in_all_channels():
    asked = ~drawn(BoxesMask(entries=PIXELS, least=0.3, most=0.6))
    rows, columns = asked[:, 0].any(2), asked[:, 0].any(1)
    assert torch.equal(asked, (rows[:, :, None] & columns[:, None, :])[:, None].expand_as(asked))
    assert rows.sum(1).unique().tolist() == [2, 3, 4] and columns.sum(1).unique().tolist() == [2, 3, 4, 5]


def test_each_half_of_an_image_is_known_in_a_quarter_of_the_samples():
    known = drawn(HalfMask(entries=PIXELS), 800)[:, 1]
    assert bool((known.sum((1, 2)) == 24).all())
    left, upper = torch.arange(8) < 4, (torch.arange(6) < 3)[:, None]
    for half in (left, ~left, upper, ~upper):
        share = (known == half.expand(6, 8)).all(2).all(1).float().mean().item()
        assert share == pytest.approx(0.25, abs=0.05)


def test_a_panel_has_as_many_genes_in_each_cell_and_others():
    known = drawn(GenesMask(entries=Entries(torch.arange(50)), panel=8))
    assert bool((known.sum(1) == 8).all())
    assert known.float().mean(0).sub(0.16).abs().max() < 0.08


def test_a_mixture_draws_each_mask_as_often():
    mixture, blocks = MixtureMask(entries=STEPS, of=("prefix", "blocks")), BlocksMask(entries=STEPS)
    last = lambda mask: (~drawn(mask, 4000)[:, -1, 0]).float().mean().item()  # that of a forecast is always asked
    assert last(mixture) == pytest.approx((1 + last(blocks)) / 2, abs=0.03)


def test_a_share_of_samples_is_drawn_whole():
    mask = ColumnsMask(entries=COLUMNS, known_columns=["age"], unconditional=0.25)
    known = mask.sample(torch.zeros(4000, 6), generator=CounterRng(0, 0, 4000))
    assert known.any(1).float().mean().item() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ColumnsMask(entries=COLUMNS), "names none of the columns"),
        (lambda: ColumnsMask(entries=COLUMNS, known_columns=["age", "sex", "job"]), "names all of the columns"),
        (lambda: ColumnsMask(entries=COLUMNS, known_columns=["jobs"]), "names 'jobs'; did you mean 'job'"),
        (lambda: PrefixMask(entries=COLUMNS), "needs sequences"),
        (lambda: PrefixMask(entries=STEPS, horizon=(20,)), "below 20, those of a sequence; got 20"),
        (lambda: PrefixMask(entries=STEPS, horizon=(7, 3)), "smallest and largest"),
        (lambda: BoxesMask(entries=STEPS), "needs images"),
        (lambda: BoxesMask(entries=PIXELS, least=0.9), "exchange them"),
        (lambda: GenesMask(entries=COLUMNS), "must be below the number of entries, 3"),
        (lambda: RandomMask(entries=COLUMNS, least=0.9, most=0.1), "exchange them"),
        (lambda: MixtureMask(entries=COLUMNS), "names no mask"),
        (lambda: MixtureMask(entries=COLUMNS, of=("random", "boxes")), "needs images"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def perfect(batch: Batch, loss: FlowMatching | ScoreMatching, rng: CounterRng) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the right output with a wrong one at what is given, of one wrong where asked, and ``GIVEN``."""
    sample, cond = loss.sample(batch, rng)
    assert cond is not None
    given, target = cond[GIVEN], sample.x0 if isinstance(loss, ScoreMatching) else sample.u_t
    asked = given.isnan()
    return (
        loss.compare(torch.where(asked, target, 1e3), sample),
        loss.compare(torch.where(asked, target + 1, target), sample),
        given,
    )


@pytest.mark.parametrize("kind", ["flow", "score"])
def test_what_is_known_or_missing_costs_nothing(kind):
    x1 = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    x1[::3, 2] = torch.nan
    mask = RandomMask(entries=COLUMNS)
    loss = FlowMatching(mask=mask) if kind == "flow" else ScoreMatching(mask=mask, prediction="noise")
    right, wrong, given = perfect(Batch(x1), loss, CounterRng(0, 0, 200))
    assert torch.equal(right, torch.zeros(200))
    torch.testing.assert_close(wrong, given.isnan().float().mean(1))
    assert torch.equal(given.isinf(), x1.isnan())
    assert torch.equal(given[given.isfinite()], x1[given.isfinite()])
    whole = given.isnan().float()  # an entry of several elements is asked for as a whole
    assert torch.equal(whole[:, 0], whole[:, 1]) and torch.equal(whole[:, 3], whole[:, 5])


def test_a_coupling_of_noise_and_data_is_refused_with_a_mask():
    from advect.couplings import ExactOT

    with pytest.raises(UserError, match="drawn apart from the data"):
        FlowMatching(mask=RandomMask(entries=COLUMNS), coupling=ExactOT())


def test_a_forecast_relative_to_what_is_known_learns_no_level():
    x1 = torch.randn(6, 8, 2, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([8, 8, 5, 8, 6, 8])
    x1 = x1 * (torch.arange(8) < lengths[:, None])[..., None]
    shift = torch.tensor([100.0, -3.0]) * (torch.arange(8) < lengths[:, None])[..., None]
    mask = PrefixMask(entries=Entries(torch.arange(16).reshape(8, 2)), horizon=(2,), relative=True, unconditional=0.0)
    loss, found = FlowMatching(mask=mask), []
    for x in (x1, x1 + shift):
        sample, cond = loss.sample(Batch(x, {LENGTH: lengths}), CounterRng(0, 0, 6))
        found.append((sample.x_t, sample.u_t, cond[GIVEN]))
        known = cond[GIVEN].isfinite()
        assert torch.where(known, cond[GIVEN], 0.0).sum(1).abs().max() < 1e-4
        assert (sample.x_t[2, 5:] == 0).all() and (sample.u_t[2, 5:] == 0).all()  # padding stays
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5, equal_nan=True)
    free = PrefixMask(entries=mask.entries, horizon=(2,), relative=True, unconditional=0.999)
    sample, cond = FlowMatching(mask=free).sample(Batch(x1 + shift, {LENGTH: lengths}), CounterRng(0, 0, 6))
    assert cond[GIVEN].isnan().all() and torch.equal(sample.x1, x1 + shift)  # with nothing known there is no level

from __future__ import annotations

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, mix, stream_seed

DTYPES = [torch.float32, torch.float64]


def largest_correlation(rows: torch.Tensor) -> float:
    """The largest |correlation| between two of the rows (k, n), in standard deviations of an honest one."""
    r = np.corrcoef(rows.double().numpy())
    np.fill_diagonal(r, 0)
    return float(np.abs(r).max()) * math.sqrt(rows.shape[1])


# --- The stream itself: resumed runs and comparisons with older results rely on these very numbers. ---

UNIFORM_64 = [[0.703570517170287, 0.3277925343385065], [0.4186762781516524, 0.990374230882777]]
UNIFORM_24 = [[7490506, 4516116, 13091928], [16172143, 7088549, 8242330]]
NORMAL = [[0.9204174, -0.0401483, 0.2405242], [-0.9298817, -0.91525, -0.1675766]]
NORMAL_64 = [[0.4020438819445446, -0.42019635135864786], [1.210664028808337, 0.849447657763163]]
PERMUTED = [4, 7]
MIXED = 0x6AE515C1C0AC7E37


def test_mix_of_one_word_is_splitmix64():
    # The published first three outputs of SplitMix64 from state 0, and the first two from 1234567.
    golden = 0x9E3779B97F4A7C15
    assert [mix(k * golden) for k in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mix(1234567), mix(1234567 + golden)] == [6457827717110365317, 3203168211198807973]


def test_stream_is_pinned():
    rng = CounterRng(42, 7, 2, start=3, total=8)
    assert rng.uniform((2, 2), dtype=torch.float64).tolist() == UNIFORM_64
    assert (rng.uniform((2, 3)) * 2**24).tolist() == UNIFORM_24
    torch.testing.assert_close(rng.normal((2, 3)), torch.tensor(NORMAL), rtol=0, atol=2e-6)
    torch.testing.assert_close(
        rng.normal((2, 2), dtype=torch.float64), torch.tensor(NORMAL_64, dtype=torch.float64), rtol=0, atol=1e-14
    )
    assert rng.permutation().tolist() == PERMUTED
    assert mix(1, 2, 3) == MIXED


# --- Positions: a row's numbers depend on its place in the global batch alone. ---

SHAPES = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(1, 23),
    cuts=st.lists(st.integers(0, 23), max_size=3),
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_parts_join_to_the_whole_batch(total, cuts, shape, dtype, seed):
    def draw(start: int, stop: int) -> list[torch.Tensor]:
        rng = CounterRng(seed, 11, stop - start, start=start, total=total)
        size = (stop - start, *shape)
        draws = [rng.uniform(size, dtype=dtype), rng.normal(size, dtype=dtype), rng.permutation()]
        return [*draws, rng.normal(size, dtype=dtype)]

    edges = sorted({0, total, *(cut for cut in cuts if cut < total)})
    parts = [draw(a, b) for a, b in itertools.pairwise(edges)]
    for whole, pieces in zip(draw(0, total), zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


@pytest.mark.parametrize("width", [1, 3, 17, 1000, 3073])
def test_long_rows_are_the_same_bits_wherever_they_are_computed(width):
    # Vector instructions work on blocks that begin elsewhere in a part than in the whole.
    whole = CounterRng(1, 2, 5).normal((5, width))
    for row in range(5):
        assert torch.equal(CounterRng(1, 2, 1, start=row, total=5).normal((1, width)), whole[row : row + 1])


def test_more_rows_leave_the_first_ones_as_they_are():
    assert torch.equal(CounterRng(1, 2, 9).normal((9, 3))[:4], CounterRng(1, 2, 4).normal((4, 3)))


def test_a_place_keeps_its_number_in_the_millions():
    start = 2**40 + 12345
    far = CounterRng(1, 2, 4, start=start, total=start + 4).uniform((4, 3), dtype=torch.float64)
    near = CounterRng(1, 2, 2, start=start + 2, total=start + 4).uniform((2, 3), dtype=torch.float64)
    assert torch.equal(far[2:], near)


def test_draws_are_numbered_in_the_order_of_asking():
    first, second = CounterRng(0, 0, 4), CounterRng(0, 0, 4)
    first.uniform((4,))
    second.permutation()
    assert torch.equal(first.normal((4, 2)), second.normal((4, 2)))
    assert not torch.equal(first.normal((4, 2)), CounterRng(0, 0, 4).normal((4, 2)))


# --- The way through torch, which a GPU takes. ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_gives_the_numbers_of_numpy(monkeypatch, dtype):
    def draw() -> tuple[torch.Tensor, ...]:
        rng = CounterRng(5, 6, 7, start=3, total=30)
        uniform, normal = rng.uniform((7, 501), dtype=dtype), rng.normal((7, 501), dtype=dtype)
        return uniform, rng.permutation(), normal, rng.normal((7,), dtype=dtype)

    by_numpy = draw()
    monkeypatch.setattr(random, "_arange", lambda start, stop, device: torch.arange(start, stop))
    by_torch = draw()
    assert torch.equal(by_torch[0], by_numpy[0])
    assert torch.equal(by_torch[1], by_numpy[1])
    atol = 2e-6 if dtype == torch.float32 else 4e-15  # a unit in the last place of log, sin and cos, times 6.8
    for mine, other in zip(by_torch[2:], by_numpy[2:], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=atol)


# --- The distributions. Seeds are fixed; a sound generator passes each bound for all but 1 seed in 1,000. ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_uniform_and_normal_follow_their_law(dtype, seed):
    rng = CounterRng(seed, 3, 100_000)
    uniform, normal = rng.uniform((100_000, 2), dtype=dtype), rng.normal((100_000, 2), dtype=dtype)
    assert uniform.dtype == normal.dtype == dtype
    assert uniform.min() >= 0 and uniform.max() < 1
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3


def test_tails_are_those_of_the_normal():
    n = 1 << 22
    z = CounterRng(3, 0, n // 64).normal((n // 64, 64)).abs()
    for bound in (3, 4, 4.5):
        expected = n * math.erfc(bound / math.sqrt(2))
        assert abs(int((z > bound).sum()) - expected) < 4 * math.sqrt(expected)
    assert 1 <= int((z > 5).sum()) <= 10  # 2.4 are expected
    assert z.max() < 6.8


def test_the_extreme_bits_stay_within_6_8_deviations(monkeypatch):
    # All zeros and all ones: log(0) and a radius of a negative number are one rounding away.
    extremes = np.array([0, -1, 2**32 - 1, -(2**32), 2**63 - 1, -(2**63)])
    for as_bits in (np.copy, torch.tensor):
        monkeypatch.setattr(CounterRng, "_bits", lambda *_, as_bits=as_bits: as_bits(extremes))
        for dtype in DTYPES:
            z, u = CounterRng(0, 0, 6).normal((6, 2), dtype=dtype), CounterRng(0, 0, 6).uniform((6,), dtype=dtype)
            assert z.isfinite().all() and 6.7 < z.abs().max() < 6.8
            assert (u[0], u.max()) == (0, 1 - 2.0 ** (-24 if dtype == torch.float32 else -53))


def test_every_bit_of_a_double_is_a_fair_coin():
    n = 1 << 16
    u = CounterRng(9, 9, n).uniform((n,), dtype=torch.float64)
    bits = (u * 2**53).long()[:, None] >> torch.arange(53) & 1
    deviations = (bits.double().mean(0) - 0.5) * 2 * math.sqrt(n)
    assert deviations.abs().max() < 4.5
    assert largest_correlation(bits.T) < 5


@pytest.mark.parametrize("across", ["seeds", "steps", "draws", "rows", "elements", "far steps", "processes' seeds"])
@pytest.mark.parametrize("law", ["uniform", "normal", "normal squared"])
def test_neighbours_are_uncorrelated(across, law):
    k, n = 32, 4096

    def draw(rng: CounterRng, *shape: int) -> torch.Tensor:
        return rng.uniform(shape) if law == "uniform" else rng.normal(shape)

    if across == "seeds":
        rows = torch.stack([draw(CounterRng(i, 5, n), n) for i in range(k)])
    elif across == "steps":
        rows = torch.stack([draw(CounterRng(5, i, n), n) for i in range(k)])
    elif across == "far steps":
        rows = torch.stack([draw(CounterRng(5, i << 20, n), n) for i in range(k)])
    elif across == "processes' seeds":
        rows = torch.stack([draw(CounterRng(mix(5, i), 5, n), n) for i in range(k)])
    elif across == "draws":
        rng = CounterRng(5, 5, n)
        rows = torch.stack([draw(rng, n) for _ in range(k)])
    elif across == "rows":
        rows = draw(CounterRng(5, 5, k), k, n)
    else:
        rows = draw(CounterRng(5, 5, n), n, k).T
    if law == "normal squared":
        rows = rows.square()
    assert largest_correlation(rows) < 5


@pytest.mark.parametrize("width", [1, 2, 7])
def test_a_long_sequence_does_not_correlate_with_itself_shifted(width):
    n = 1 << 16
    z = CounterRng(8, 1, n).normal((n, width)).flatten().double()
    shifted = [float((z[:-lag] * z[lag:]).mean()) * math.sqrt(len(z) - lag) for lag in range(1, 65)]
    assert max(map(abs, shifted)) < 4.5


def test_squared_length_of_a_row_is_chi_squared():
    z = CounterRng(4, 4, 20_000).normal((20_000, 15), dtype=torch.float64)
    assert stats.kstest(z.square().sum(1).numpy(), stats.chi2(15).cdf).pvalue > 1e-3


def test_no_two_small_keys_collide():
    keys = itertools.product(range(30), range(30))
    firsts = {CounterRng(seed, step, 1).uniform((1,), dtype=torch.float64).item() for seed, step in keys}
    assert len(firsts) == 900
    assert len({mix(a, b) for a, b in itertools.product(range(-50, 50), repeat=2)}) == 10_000
    assert len({mix(1), mix(1, 0), mix(0, 1), mix(1, 1)}) == 4


# --- Permutations. ---


@settings(max_examples=25, deadline=None)
@given(total=st.integers(0, 300), step=st.integers(0, 2**40))
def test_permutation_has_every_place_once(total, step):
    assert sorted(CounterRng(1, step, total).permutation().tolist()) == list(range(total))


def test_permutations_are_uniform():
    places = torch.stack([CounterRng(2, step, 6).permutation() for step in range(3000)])
    table = torch.stack([torch.bincount(column, minlength=6) for column in places.T])
    assert stats.chisquare(table.flatten().numpy()).pvalue > 1e-3
    orders = np.unique(places.numpy(), axis=0, return_counts=True)[1]
    assert len(orders) > 700  # of 720; 3000 draws miss 11 on average
    assert stats.chisquare(np.pad(orders, (0, 720 - len(orders)))).pvalue > 1e-3


# --- Any generator. ---


def test_a_torch_generator_gives_torchs_own_numbers():
    seeded = lambda: torch.Generator().manual_seed(3)
    assert torch.equal(random.normal((4, 2), seeded(), dtype=torch.float32), torch.randn(4, 2, generator=seeded()))
    assert torch.equal(random.uniform((4, 2), seeded()), torch.rand(4, 2, generator=seeded()))
    places, count = random.permutation(9, seeded())
    assert torch.equal(places, torch.randperm(9, generator=seeded())) and count == 9


def test_no_generator_means_torchs_global_state():
    torch.manual_seed(5)
    a = random.normal((3,), dtype=torch.float64), random.uniform((3,)), random.permutation(5)[0]
    torch.manual_seed(5)
    b = torch.randn(3, dtype=torch.float64), torch.rand(3), torch.randperm(5)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_counter_rng_leaves_the_global_states_alone():
    before, numpys = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    rng = CounterRng(0, 0, 3)
    rng.normal((3, 4)), rng.uniform((3,)), rng.permutation()
    assert torch.equal(before, torch.random.get_rng_state())
    assert (numpys == np.random.get_state()[1]).all()


# --- Mistakes. ---


@pytest.mark.parametrize("shape", [(), (3,), (5, 4)])
def test_a_draw_of_other_rows_is_refused(shape):
    for draw in (CounterRng(0, 0, 4).uniform, CounterRng(0, 0, 4).normal):
        with pytest.raises(UserError, match=r"does not fit a CounterRng of 4 rows"):
            draw(shape)


@pytest.mark.parametrize(("start", "count", "total"), [(-1, 2, 4), (3, 2, 4), (0, -1, 4), (5, 0, 4)])
def test_rows_outside_the_batch_are_refused(start, count, total):
    with pytest.raises(UserError, match=f"rows {start} to {start + count} do not lie in a batch of {total}"):
        CounterRng(0, 0, count, start=start, total=total)


@pytest.mark.parametrize("shape", [(), (3,), (5, 2)])
def test_scattered_rows_have_the_numbers_of_the_whole_batch(shape: tuple[int, ...]) -> None:
    whole, places = CounterRng(7, 3, 20), np.array([13, 0, 19, 13])
    some = CounterRng.at(7, 3, places, total=20)
    for _ in range(2):
        assert torch.equal(some.normal((4, *shape)), whole.normal((20, *shape))[places])
        assert torch.equal(some.uniform((4, *shape)), whole.uniform((20, *shape))[places])
    with pytest.raises(UserError, match="do not lie in a batch of 13"):
        CounterRng.at(7, 3, places, total=13)
    again = CounterRng.at(7, 3, np.array([1, 0, 1]), total=2).normal((3,))  # more draws than rows
    assert torch.equal(again, CounterRng(7, 3, 2).normal((2,))[[1, 0, 1]])


def test_streams_share_no_numbers() -> None:
    words = ((), (0,), (1,), (0, 0), (0, 1), (1, 0))
    keys = [stream_seed(seed, stream, *w) for seed in (0, 1, 17) for stream in Stream for w in words]
    assert len(set(keys)) == len(keys)
    first = [
        tuple(CounterRng(stream_seed(seed, stream), step, 4).uniform((4,), dtype=torch.float64).tolist())
        for seed, stream, step in itertools.product((0, 1), Stream, range(30))
    ]
    assert len(set(itertools.chain(*first))) == 4 * len(first)


def test_every_random_number_names_its_stream() -> None:
    import advect

    root = Path(advect.__file__).parent
    bare = []
    for path in sorted(root.rglob("*.py")):
        if path in (root / "core" / "random.py", root / "data" / "toy.py"):  # toy data are not a run's randomness
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, first = ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""
            if name in ("CounterRng", "CounterRng.at") and "stream_seed(" not in first and first != "self._seed":
                bare.append(f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}")
            if name == "mix" and "seed" in first:
                bare.append(f"{path.relative_to(root)}:{node.lineno} {ast.unparse(node)}")
    assert not bare

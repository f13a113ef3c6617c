"""What every augmentation promises to data sets and networks."""

from __future__ import annotations

import pytest
import torch
from parts import examples
from torch import Tensor

from advect.core import registry
from advect.core.random import CounterRng
from advect.data.images.augmentation import Augmentation, _inverse

PARTS = examples("augmentation")
ROWS = 400


@pytest.fixture(params=PARTS)
def part(request) -> Augmentation:
    return PARTS[request.param]


def images(n: int = ROWS, shape: tuple[int, ...] = (2, 8, 8)) -> Tensor:
    return 2 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)) - 1


def test_what_is_told_is_all_that_was_done(part):
    x = images()
    y, told = part(x, CounterRng(1, 2, ROWS))
    assert y.shape == x.shape and told.shape == (ROWS, part.size)
    unchanged = told.isnan().any(1) if part.size else torch.ones(ROWS, dtype=torch.bool)
    assert torch.equal(y[unchanged], x[unchanged])
    assert told[~unchanged].isfinite().all() and (told[~unchanged] != 0).any(1).all()
    assert torch.equal(part.apply(x, told.nan_to_num(0.0)), y)
    if part.size:
        assert 0.05 < unchanged.float().mean() < 0.6  # enough to learn the law of the unchanged, and of the changed


def test_nothing_given_is_changed_in_place_or_beyond_its_range(part):
    x = images()
    before = x.clone()
    y = part(x, CounterRng(3, 2, ROWS))[0]
    assert torch.equal(x, before) and y.min() >= x.min() and y.max() <= x.max()


def test_a_row_depends_on_its_place_in_the_batch_of_all_processes_alone(part):
    x = images()
    whole = part(x, CounterRng(1, 2, ROWS))
    for a, b in ((0, 7), (7, 390), (390, ROWS)):
        mine = part(x[a:b], CounterRng(1, 2, b - a, start=a, total=ROWS))
        assert all(torch.equal(m.nan_to_num(9.0), w[a:b].nan_to_num(9.0)) for m, w in zip(mine, whole, strict=True))
    assert not part.size or not torch.equal(part(x, CounterRng(1, 3, ROWS))[0], whole[0])


def test_rectangles_and_single_pixels_keep_their_shape(part):
    for shape in ((3, 6, 10), (1, 1, 1)):
        if not (part.square and shape[1] != shape[2]):
            assert part(images(50, shape), CounterRng(0, 0, 50))[0].shape == (50, *shape)


def test_the_symmetries_are_all_eight_of_the_square():
    x = torch.arange(9.0).view(1, 1, 3, 3).expand(ROWS, -1, -1, -1)
    y, told = registry.get("augmentation", "symmetries")()(x, CounterRng(0, 0, ROWS))
    seen = {(tuple(image.flatten().tolist()), str(change)) for image, change in zip(y, told.tolist(), strict=True)}
    expected = {tuple(m.rot90(k).flatten().tolist()) for m in (x[0, 0], x[0, 0].flip(1)) for k in range(4)}
    assert len(seen) == 8 and {image for image, _ in seen} == expected


def geometric(**change: float) -> Tensor:
    names = ("flip", "zoom", "cos", "sin", "along", "across", "right", "down")
    return torch.tensor([[change.get(name, 0.0) for name in names]])


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"right": 0.125, "down": -0.25}, (5 + 4, 3 - 8)),
        ({"zoom": 1.0}, (10, 6)),
        ({"cos": -1.0, "sin": 1.0}, (-3, 5)),  # a quarter turn: x = 5 becomes y = 5
        ({"along": 1.0}, (10, 1.5)),  # twice as wide, half as high
        ({"across": 1.0}, (5 * 1.25 + 3 * 0.75, 5 * 0.75 + 3 * 1.25)),  # exp of ((0, 1), (1, 0)) log 2
        ({"flip": 1.0, "right": 0.125}, (-5 + 4, 3)),
        ({"zoom": 1.0, "cos": -1.0, "sin": 1.0, "along": 1.0, "down": 0.25}, (2 * 2 * -3, 0.5 * 2 * 5 + 8)),
    ],
)
def test_a_spot_goes_where_the_numbers_say(change, place):
    """On 32 x 32 pixels, from (5, 3) right of and below the middle."""
    part, line = registry.get("augmentation", "geometric")(), torch.arange(32.0) - 15.5
    spot = (-((line[None, :] - 5) ** 2 + (line[:, None] - 3) ** 2) / 4).exp()[None, None]
    y = part.apply(spot, geometric(**change))[0, 0]
    near = y * ((line[None, :] - place[0]).abs() < 4) * ((line[:, None] - place[1]).abs() < 4)  # not its reflections
    assert near.max() > 0.7
    near = near * (near > 0.3)
    seen = (near.sum(0) @ line / near.sum()).item(), (near.sum(1) @ line / near.sum()).item()
    assert seen == pytest.approx(place, abs=0.3)


def test_zoom_alone_scales_areas():
    change = registry.get("augmentation", "geometric")(probability=1.0).draw(100, CounterRng(0, 0, 100))
    xx, xy, yx, yy = _inverse(change)
    torch.testing.assert_close(xx * yy - xy * yx, torch.exp2(-2 * change[:, 1]), rtol=1e-4, atol=0)

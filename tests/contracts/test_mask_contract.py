"""What every mask promises to losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advect.core import registry
from advect.core.random import CounterRng
from advect.core.types import Entries
from advect.masks import Mask

SHAPES = {
    2: Entries(torch.arange(60).reshape(20, 3)),
    3: Entries(torch.arange(64).reshape(1, 8, 8).expand(2, 8, 8)),
    None: Entries(torch.arange(300) // 2, tuple(map(str, range(150)))),
}
NEEDED = {"columns": {"known_columns": ("3", "5")}, "mixture": {"of": ("random",)}, "genes": {"panel": 20}}


@pytest.fixture(params=registry.choices("mask"))
def mask(request) -> Mask:
    cls: Any = registry.get("mask", request.param)
    layout = cls.layout[0] if cls.layout else None
    return cls(entries=SHAPES[layout], **NEEDED.get(request.param, {}))


def test_entries_are_known_as_a_whole_and_each_sample_by_its_own_numbers(mask):
    x = torch.zeros(50, *mask.entries.groups.shape)
    known = mask.sample(x, generator=CounterRng(3, 0, 50))
    assert known.shape == x.shape and known.dtype == torch.bool
    groups, flat = mask.entries.groups.flatten(), known.flatten(1)
    for entry in range(0, mask.entries.count(), 7):
        assert flat[:, groups == entry].float().mean(1).unique().tolist() in ([0.0], [1.0], [0.0, 1.0])
    part = mask.sample(x[:20], generator=CounterRng(3, 0, 20, start=10, total=50))
    assert torch.equal(part, known[10:30])


def test_what_is_known_does_not_depend_on_the_values(mask):
    shape = (30, *mask.entries.groups.shape)
    masks = [mask.sample(x, generator=CounterRng(1, 0, 30)) for x in (torch.zeros(shape), torch.full(shape, 9.0))]
    assert torch.equal(*masks)

"""What every transform between data and model units promises."""

from __future__ import annotations

import json

import pytest
import torch

from advect.data import (
    Chain,
    Components,
    Expression,
    Identity,
    PixelScale,
    SequenceTransform,
    Standardize,
    TableTransform,
    transform_from_config,
)
from advect.data.tables.columns import Categories, Number
from advect.data.tables.scaling import StandardScaling

TURN = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
SCALE = StandardScaling(mean=3.0, std=2.0)
COLUMNS = [
    Number(name="size", dtype="float64", scaling=SCALE, low=-9.0, high=9.0),
    Categories(name="kind", dtype="object", names=["a", "b"]),
]
TRANSFORMS = [
    (Identity(), torch.linspace(-50, 50, 60).reshape(10, 6)),
    (PixelScale(0, 255, integer=True), torch.arange(256).reshape(4, 1, 8, 8)),
    (PixelScale(-0.25, 1.5), torch.linspace(-0.25, 1.5, 24).reshape(2, 3, 2, 2)),
    (Standardize([0.1, -3, 1e5], [1e-3, 7, 250.0]), torch.tensor([[0.1, -3, 1e5], [0.0, 4, 1e5 - 700]])),
    (Expression(space="counts", target_sum=100, library=70), torch.arange(12).reshape(3, 4)),
    (Components(TURN, torch.tensor([1.0, -2])), torch.tensor([[0.5, 3], [-1, 7]])),
    (Chain([Components(TURN, torch.zeros(2)), Standardize([1.0, 2], [3.0, 4])]), torch.tensor([[0.5, 3], [-1, 7]])),
    (SequenceTransform(COLUMNS, True), torch.tensor([[[-8.5, 1], [3, 0]], [[0.25, 1], [2, 1]]])),
    (TableTransform(COLUMNS), torch.tensor([[-8.5, 1], [3, 0], [0.25, 1]])),
]


@pytest.mark.parametrize(("transform", "x"), TRANSFORMS, ids=[repr(t)[:24] for t, _ in TRANSFORMS])
class TestTransform:
    def test_there_and_back(self, transform, x):
        model = transform.forward(x)
        assert model.dtype == torch.float32 and len(model) == len(x)
        back = transform.inverse(model)
        # float32 has not the digits of dates, large whole numbers and values far from zero.
        wide = isinstance(transform, TableTransform | SequenceTransform) or getattr(transform, "wide", False)
        assert back.dtype == (torch.float64 if wide else torch.float32) and back.shape == x.shape
        torch.testing.assert_close(back.float(), x.float(), rtol=1e-5, atol=1e-4)

    def test_arguments_stay_as_they_are(self, transform, x):
        x, before = x.float(), x.float().clone()
        transform.forward(x)
        transform.inverse(x)
        assert torch.equal(x, before)

    def test_its_config_is_json_and_builds_its_equal(self, transform, x):
        again = transform_from_config(json.loads(json.dumps(transform.to_config())), transform.tensors())
        assert again == transform and type(again) is type(transform)
        assert torch.equal(again.forward(x), transform.forward(x))

"""The way to data units in a graph, for every kind of data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.data import (
    Chain,
    Components,
    Expression,
    Identity,
    PixelScale,
    SequenceTransform,
    Standardize,
    TableTransform,
    Transform,
)
from advect.data.tables.columns import Categories, Number
from advect.data.tables.scaling import QuantileScaling, StandardScaling
from advect.data.whiten import Whiten
from advect.export import tracing

TURN = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
SCALE = StandardScaling(mean=3.0, std=2.0)
RANKS = QuantileScaling(9, [-1.0, 0.0, 0.5, 4.0])
COLUMNS = [
    Number(name="size", dtype="float64", scaling=SCALE, low=-9.0, high=9.0, decimals=2),
    Number(name="rank", dtype="float64", scaling=RANKS, low=-1.0, high=4.0, missing=True),
    Categories(name="kind", dtype="object", names=["a", "b", "c"]),
    Categories(name="flag", dtype="object", names=["no", "yes"], missing=True),
]
NUMBERS = COLUMNS[:1]
START = Number(name="time", dtype="float64", scaling=SCALE, low=-9.0, high=9.0)
TRANSFORMS: dict[str, tuple[Transform, tuple[int, ...]]] = {
    "identity": (Identity(), (3,)),
    "whole pixels": (PixelScale(0, 255, integer=True), (1, 4, 4)),
    "wide numbers": (Standardize([0.1, 1e9], [1e-3, 7.0], [0]), (2,)),
    "counts": (Expression(space="counts", target_sum=100, library=70), (4,)),
    "expression": (Expression(space="expression"), (4,)),
    "components": (Chain([Components(TURN, torch.zeros(2)), Standardize([1.0, 2], [3.0, 4])]), (2,)),
    "whitened": (Whiten(Standardize([1.0, 2], [3.0, 4]), torch.zeros(2).double(), torch.eye(2).double() * 2), (2,)),
    "table": (TableTransform(COLUMNS), (sum(TableTransform(COLUMNS).widths),)),
    "sequence": (SequenceTransform(COLUMNS, True), (5, sum(TableTransform(COLUMNS).widths))),
    "times": (SequenceTransform(NUMBERS, False, START, START, (4.0,)), (5, 5)),
}


class Inverse(nn.Module):
    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.inverse = transform.inverse

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        return self.inverse(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_a_graph_returns_to_the_same_data_units(name: str, format: str) -> None:
    transform, shape = TRANSFORMS[name]
    x = 2 * torch.randn(7, *shape, generator=torch.Generator().manual_seed(0))
    wanted = transform.inverse(x.clone())
    program = tracing.trace(Inverse(transform), [x[:3].clone()], "the transform")
    if format == "onnx":
        pytest.importorskip("onnxscript")
        if name == "times":  # ONNX Runtime has no arc tangent of float64
            with pytest.raises(UserError, match=r"cannot run the file .*; take --format torch-export"):
                tracing.run_onnx(tracing.to_onnx_bytes(program, ["x"], ["y"], "the transform"), {"x": x})
            return
        got = tracing.run_onnx(tracing.to_onnx_bytes(program, ["x"], ["y"], "the transform"), {"x": x})
    else:
        got = program.module()(x)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6, equal_nan=True)
    assert torch.equal(transform.inverse(x.clone()).nan_to_num(7), wanted.nan_to_num(7))  # no fake tensor is kept

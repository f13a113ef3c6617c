from __future__ import annotations

import pytest
import torch

from advect.core.errors import UserError
from advect.networks import ResidualMLP


def test_no_layer_grows_with_the_square_of_the_genes() -> None:
    with torch.device("meta"):
        net = ResidualMLP(20_000, width=512)
    assert max(p.numel() for p in net.parameters()) == 20_000 * 512


def test_what_does_not_fit_through_the_width_passes_beside_it() -> None:
    """Its Jacobian can have full rank, though the width is far below dim."""
    torch.manual_seed(0)
    net = ResidualMLP(32, width=4, depth=1).double()
    with torch.no_grad():
        net.through.bias.fill_(-1.0)
    x, t = torch.randn(1, 32, dtype=torch.float64), torch.rand(1, dtype=torch.float64)
    torch.testing.assert_close(net(x, t), -x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "ResidualMLP.dim must be at least 1 and at most 2,147,483,647, got 0"),
        ({"dim": 2, "depth": 0}, "ResidualMLP.depth must be at least 1"),
        ({"dim": 2, "expansion": 0}, "ResidualMLP.expansion must be at least 1"),
        ({"dim": 2, "dropout": -0.1}, r"ResidualMLP.dropout must be at least 0 and below 1"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ResidualMLP(**arguments)

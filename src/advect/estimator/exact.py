"""The same flow in float64, for densities and latents that do not depend on how rows are batched."""

from __future__ import annotations

import copy
from typing import cast

from torch import Tensor

from advect.data import Transform
from advect.objectives.flow_matching import Kind
from advect.runs.flow import Flow


class _Wide:
    """A transform whose model units are float64."""

    def __init__(self, inner: Transform) -> None:
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(x).double()

    def inverse(self, x: Tensor) -> Tensor:
        return self.inner.inverse(x)

    def log_det(self, elements: int) -> float:
        return self.inner.log_det(elements)


def exact(flow: Flow) -> Flow:
    """``flow`` with weights in float64.

    In float32 the sums of a matrix product depend on the number of its rows, by more than scikit-learn allows the
    score of a row to depend on its neighbours.
    """
    return Flow(
        copy.deepcopy(flow.net).double(),
        flow.spec,
        cast(Transform, _Wide(flow.transform)),
        path=flow.path,
        source=flow.source,
        prediction=cast(Kind, flow.prediction),
        margin=flow.margin,
        null=flow.null,
        device=flow.device,
    )

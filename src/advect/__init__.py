"""Train, sample and measure flow-matching and score-based generative models on one's own data.

Time runs from noise at t = 0 to data at t = 1; see ``advect.core.types``. Names are loaded when first used,
so ``import advect`` does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_ROOMS = (
    "couplings", "data", "evaluation", "losses", "metrics", "networks", "paths", "reporting", "solvers", "sources",
    "times", "training", "weights",
)  # fmt: skip
_NAMES = {
    "Flow": "advect.model.flow",
    "FlowModel": "advect.sklearn",
    "UserError": "advect.core.errors",
    "load": "advect.model.load",
}

if TYPE_CHECKING:
    from advect import (
        couplings,
        data,
        evaluation,
        losses,
        metrics,
        networks,
        paths,
        reporting,
        solvers,
        sources,
        times,
        training,
        weights,
    )
    from advect.core.errors import UserError
    from advect.model.flow import Flow
    from advect.model.load import load
    from advect.sklearn import FlowModel

__all__ = [
    "Flow", "FlowModel", "UserError", "couplings", "data", "evaluation", "load", "losses", "metrics", "networks",
    "paths", "reporting", "solvers", "sources", "times", "training", "weights",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return importlib.import_module(f"advect.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'advect' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

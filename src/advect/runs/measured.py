"""A trained flow as evaluations see it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from advect.core.types import Conditions
from advect.data import Split
from advect.runs.field import without_padding
from advect.runs.flow import Flow

DATA_LIMIT = 20_000
"""Samples at most of a split that neighbours and Frechet distances look at, spread evenly over the data."""


class Measured:
    """A flow whose samples can be compared by distances: tables in model units, all else in data units.

    The columns of a table have units of their own, codes for names, and NaN where values miss. They are carried to
    data units and back, as samples are, so that both are rounded alike.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow, self._table = flow, flow.facts.get("kind") == "table"
        self.spec = replace(flow.spec, shape=flow.spec.shape if self._table else flow.data_shape)

    @property
    def space(self) -> str | None:
        """What the units are called where they are not those of the data."""
        return "the table's scaled columns" if self._table else None

    def sample(
        self,
        n: int,
        *,
        steps: int = 50,
        solver: str = "midpoint",
        seed: int = 0,
        cond: dict[str, int | Tensor] | None = None,
        trajectory: bool = False,
    ) -> Tensor:
        """Samples (n, *S), or with ``trajectory`` all states (steps + 1, n, *S), as of :meth:`Flow.sample`."""
        x = self.flow.sample(n, steps=steps, solver=solver, seed=seed, cond=cond, trajectory=trajectory)
        if not self._table:
            return x
        forward = self.flow.transform.forward
        return torch.stack([forward(state) for state in x]) if trajectory else forward(x)

    def data(self, split: Split) -> tuple[Tensor, Conditions | None]:
        """Samples (N, *S) and conditions (N,) of a split, evenly thinned to DATA_LIMIT."""
        places = np.linspace(0, len(split) - 1, min(len(split), DATA_LIMIT)).round().astype(np.int64)
        batches = [split.fetch(places[i : i + 512]) for i in range(0, len(places), 512)]
        x = torch.cat([self._units(b.x1, b.cond or {}) for b in batches])
        names = batches[0].cond or {}
        return x, {name: torch.cat([(b.cond or {})[name] for b in batches]) for name in names} or None

    def _units(self, x1: Tensor, cond: Conditions) -> Tensor:
        x = without_padding(self.flow.transform.inverse(x1), cond)
        return self.flow.transform.forward(x) if self._table else x

"""What an evaluation is of: the weights of a run, and the data that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.checkpoint.manifest import checkpoint_step
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.core.errors import UserError
from advect.core.types import Conditions
from advect.data import Dataset, Split
from advect.model.flow import Flow
from advect.model.load import read_model_metadata, weight_file
from advect.model.metadata import ModelMetadata
from advect.model.sampling import averaged, weights_identity
from advect.model.velocity_field import without_padding


@dataclass(frozen=True)
class EvalTarget:
    """The weights at ``place``, a checkpoint or a weight file of the run in ``folder``, with their ``card``.

    ``ema`` says which of a checkpoint's weights, as in :func:`advect.model.load.load`.
    """

    folder: Path
    place: Path
    card: ModelMetadata
    ema: bool | float

    @classmethod
    def open(cls, run: Path, place: Path, ema: bool | float) -> EvalTarget:
        """The subject of ``run`` whose weights lie at ``place``. Raises UserError where they lie in no run folder."""
        folders = (run, *place.absolute().parents)
        folder = next((f for f in folders if (f / "config.yaml").is_file()), None)
        if folder is None:
            raise UserError(
                f"{run} is no run folder and lies in none: it has no config.yaml, which names the data to compare"
                " with; give one such as runs/digits"
            )
        return cls(folder, place, read_model_metadata(place if place.is_file() else weight_file(place, ema=ema)), ema)

    def data(self) -> Dataset:
        """The data of the run. Raises UserError where they are not there or have changed since."""
        _, config = parse_config(self.folder / "config.yaml")
        source = build_dataset(config.data)
        if source.fingerprint != self.card.fingerprint:
            raise UserError(
                f"the data of {self.folder} have changed since {self.place.name} was trained, so that held-out rows"
                " may be among those it learned; bring the old data back, or train anew"
            )
        return source

    def told(self) -> dict[str, Any]:
        """What a result file says of it."""
        average = averaged(self.place, self.ema)
        step = None if self.place.is_file() else checkpoint_step(self.place)
        return {
            "run": str(self.folder),
            "checkpoint": self.place.name,
            "step": step,
            "sha256": weights_identity(self.place, self.ema)["sha256"],
            "ema": self.card.config["training"]["ema_decay"] if average is True else average,
        }


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

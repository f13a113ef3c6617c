"""Samples and data in the units in which an evaluation compares them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, mix
from advect.core.types import Category, Conditions
from advect.data import Components, Dataset, Expression, PixelScale, Split, count_noise
from advect.data.cells.conditions import CellSplit
from advect.data.cells.transform import Chain
from advect.data.tables.columns import Categories
from advect.data.tables.transform import TableTransform
from advect.evaluation.feature_network import FeatureNetwork
from advect.evaluation.features import COMPONENTS, DIRECT_LIMIT, FIT_ROWS, Features
from advect.evaluation.sample_statistics import CONDITION, FEATURES, VALUES
from advect.evaluation.scores import FEATURES as MOST_VALUES
from advect.evaluation.subsampling import rows
from advect.model.flow import Flow
from advect.model.velocity_field import without_padding
from advect.reporting.outputs import COUNTING

FIT_VALUES = 30_000_000
"""Principal components are fitted to so many values at most, and two rows a component at least."""

_BATCH = 256


@dataclass(frozen=True)
class Space:
    """The features in which samples are compared.

    Attributes:
        name: in words.
        identity: of the protocol: equal ones mean the same features, up to rounding.
        exact: of these very numbers.
        dimensions: d.
        of: maps comparable samples (n, *S) to (n, d), float32.
        sha256: of the network's file.
    """

    name: str
    identity: str
    exact: str
    dimensions: int
    of: Callable[[Tensor], Tensor]
    sha256: str | None = None
    units: bool = False
    """Whether they are single values, each in a unit of its own."""

    def told(self) -> dict[str, str | int]:
        """What a protocol says of it."""
        facts: dict[str, str | int] = {"name": self.name, "identity": self.identity, "dimensions": self.dimensions}
        return facts if self.sha256 is None else {**facts, "sha256": self.sha256}


class Comparable:
    """Samples of a flow and rows of its data, alike.

    Images, vectors and sequences are compared in data units, padding being 0; tables by distances in model units and
    by columns in the table's own; cells in expression: real ones as they were measured, and what components say is
    expected of a cell with molecules counted around it, as ``advect sample`` writes it. Tables are rounded as samples
    are.

    Args:
        flow: the flow.
        values: whether single values are kept beside features: of a table all columns, else at most MOST_VALUES,
            evenly chosen.
    """

    def __init__(self, flow: Flow, *, values: bool) -> None:
        self.flow, self.keeps_values = flow, values
        own = flow.facts.get("kind")
        self.kind = own if own in ("cells", "table") else flow.spec.kind
        self.categories = {name: c for name, c in flow.spec.conditions.items() if isinstance(c, Category)}
        self._scale = Expression(**flow.facts["expression"]) if self.kind == "cells" else None
        plain = {**flow.facts.get("expression", {}), "space": "expression"}
        self._counting = {**flow.facts, "expression": plain}  # scaled by each cell's own size, as data are

    @property
    def categorical(self) -> tuple[bool, ...]:
        """Of a table, whether each column is one of categories."""
        transform = self.flow.transform
        columns = transform.columns if isinstance(transform, TableTransform) else ()
        return tuple(isinstance(column, Categories) for column in columns)

    def samples(self, x: Tensor, cond: Conditions, space: Space, *, first: int, seed: int) -> dict[str, Tensor]:
        """What is kept of samples x (n, *S) as the flow gives them; ``first`` is the number of the first one."""
        if self._scale is None:
            return self._kept(x, cond, space)
        parts = []
        for i in range(0, len(x), _BATCH):
            some = self._scale.forward(x[i : i + _BATCH])
            told = {name: value[i : i + _BATCH] for name, value in cond.items()}
            if self.flow.facts.get("counted"):
                rng = CounterRng(mix(seed, COUNTING), 0, len(some), start=first + i)
                some = count_noise(some, self._counting, rng)
            parts.append(self._kept(some, told, space))
        return _joined(parts)

    def data(self, split: Split, places: Tensor, space: Space) -> dict[str, Tensor]:
        """What is kept of the samples of a split at ``places`` (n,)."""
        parts = []
        for some in places.split(_BATCH):
            x, cond = self._rows(split, some)
            parts.append(self._kept(x, cond, space))
        return _joined(parts)

    def _rows(self, split: Split, places: Tensor) -> tuple[Tensor, Conditions]:
        """Rows of data (n, *S) in data units, or cells as measured expression, and their conditions."""
        batch = split.fetch(places.numpy())
        cond = batch.cond or {}
        if isinstance(split, CellSplit):
            return split.expression(places.numpy()), cond
        return without_padding(self.flow.transform.inverse(batch.x1), cond), cond

    def _kept(self, x: Tensor, cond: Conditions, space: Space) -> dict[str, Tensor]:
        kept = {FEATURES: space.of(self._near(x))}
        if self.keeps_values:
            flat = x.flatten(1)
            if self.kind == "table":
                kept[VALUES] = flat
            else:
                chosen = torch.linspace(0, flat.shape[1] - 1, min(MOST_VALUES, flat.shape[1])).round().long()
                kept[VALUES] = flat[:, chosen].float()
        return kept | {CONDITION + name: cond[name] for name in self.categories}

    def _near(self, x: Tensor) -> Tensor:
        """Where distances are taken: tables in model units."""
        return self.flow.transform.forward(x) if self.kind == "table" else x

    def space(self, source: Dataset, network: FeatureNetwork | None) -> Space:
        """The features: the network's, else a flow's own components, else values, or principal components of them."""
        if network is not None:
            return self._network_space(network)
        parts = self.flow.transform.parts if isinstance(self.flow.transform, Chain) else ()
        own = next((part for part in parts if isinstance(part, Components)), None)
        if own is not None:
            name, k = f"the flow's {len(own.components)} components of expression", len(own.components)
            return Space(name, f"components of {source.fingerprint}", self._exact(), k, own.forward)
        fitted = self._fit(source)
        name, k, exact = fitted.name, fitted.dimensions, f"{fitted.identity}, {self._exact()}"
        if fitted.projection is None:
            return Space(name, fitted.identity, exact, k, fitted, units=self.kind != "image")
        identity = f"{k} principal components of training data {source.fingerprint}"
        return Space(name, identity, exact, k, fitted)

    def _network_space(self, network: FeatureNetwork) -> Space:
        if self.kind != "image":
            raise UserError(
                f"--features {network.name} is for images, and this flow makes {self.kind} data; leave it out"
            )
        scale = self.flow.transform
        low, high = (scale.low, scale.high) if isinstance(scale, PixelScale) else (0.0, 255.0)
        of = lambda x: network((x - low) * (255 / (high - low)))
        exact = f"{network.identity}, {self._exact()}"
        return Space(network.name, network.identity, exact, network.dimensions, of, network.sha256)

    def _exact(self) -> str:
        """The flow's own way to data units, in which comparable samples are made: equal words mean equal numbers."""
        transform = self.flow.transform
        digest = hashlib.sha256(json.dumps(transform.to_config(), sort_keys=True).encode())
        for name, value in sorted(transform.tensors().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return f"units {digest.hexdigest()}"

    def _fit(self, source: Dataset) -> Features:
        """The values themselves, or principal components of training rows, the same on any number of threads."""
        from threadpoolctl import threadpool_limits

        units = {"table": "the table's scaled columns", "cells": "expression"}.get(self.kind)
        one = self._raw(source.train, torch.zeros(1, dtype=torch.int64))
        size = one[0].numel()
        if size <= DIRECT_LIMIT:
            return Features.fit(one, kind=self.flow.spec.kind, space=units)
        count = max(2 * COMPONENTS, min(FIT_ROWS, FIT_VALUES // size))
        places = rows(len(source.train), count, 0).sort().values
        train = torch.cat([self._raw(source.train, some) for some in places.split(_BATCH)])
        with threadpool_limits(1):
            return Features.fit(train, kind=self.flow.spec.kind, space=units)

    def _raw(self, split: Split, places: Tensor) -> Tensor:
        return self._near(self._rows(split, places)[0])


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

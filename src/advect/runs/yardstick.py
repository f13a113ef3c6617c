"""How far a flow's samples are from held-out data, measured again and again while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.group import agree, broadcast_object, current, gather_objects
from advect.data import Source, Split
from advect.evaluation import FeatureNetwork, Features, ReferenceCache
from advect.metrics import GaussianFit, Moments, energy_distance, kernel_distance
from advect.reports.grid import to_bytes
from advect.runs.flow import Flow
from advect.runs.measured import Measured

HELD_OUT, KEPT, CHUNK, FEWEST = 10_000, 2_000, 256, 20
"""Held-out rows at most; rows of each set that are compared pair by pair; rows at once; the fewest of a set."""

FIT_BYTES = 1 << 29
"""Memory for the training data that principal components are fitted to."""


@dataclass(frozen=True)
class Seen:
    """What is kept of a set: the moments of its features (N, d), and some of them (n, d), spread over the set."""

    moments: Moments
    some: Tensor


@dataclass(frozen=True)
class Reference:
    """The held-out data, and the distances of as many training data as samples are drawn: the floor."""

    law: GaussianFit
    some: Tensor
    floor: dict[str, float]


class Yardstick:
    """Compares ``samples`` samples of a flow with held-out data, by the same noise and the same data each time.

    The squared Frechet distance, of moments in constant memory, and for images the kernel distance, for all else the
    energy distance, of at most KEPT rows. Images are seen through the network in the file ``features``; without one,
    all data as :class:`~advect.evaluation.Features` has them. What was computed of data is kept in the folder
    ``cache``, which is made when it is needed. Processes take equal shares, and the first one knows the outcome.

    Raises UserError for too few rows, and ``features`` that cannot be read or do not fit the data.
    """

    def __init__(
        self, flow: Flow, source: Source, *, samples: int, features: Path | None, seed: int, cache: Path
    ) -> None:
        for split, rows in (("training", source.train), ("held-out", source.held_out)):
            if len(rows) < FEWEST:
                raise UserError(
                    f"--eval-every compares with {FEWEST} {split} samples or more, and these data have {len(rows):,}; "
                    "hold out another share of them (--held-out), or leave --eval-every out"
                )
        self.source, self.seed, self.cache = source, seed, cache
        self.samples, self._measured = min(samples, len(source.train)), Measured(flow)
        self._pairs = "kernel" if flow.spec.kind == "image" else "energy"
        self._network: FeatureNetwork | None = None
        if features is not None:
            self._network = _network(features, flow)

    @property
    def metrics(self) -> tuple[str, str]:
        """The names of what is measured."""
        return "frechet", self._pairs

    @property
    def space(self) -> str:
        """The features in words; all processes ask together."""
        features = self.features
        network = isinstance(features, FeatureNetwork)
        return f"{features.name} ({features.identity[:8]})" if network else features.name

    @cached_property
    def features(self) -> FeatureNetwork | Features:
        """The space of the comparison; all processes ask together."""
        if self._network is not None:
            return self._network
        found, spec, train = None, self._measured.spec, self.source.train
        with agree():
            if current().is_first:
                rows = min(len(train), 10_000, max(FEWEST, FIT_BYTES // (4 * int(np.prod(spec.shape)))))
                x = torch.cat([self._measured.units(train.fetch(p)) for p in _chunks(_spread(len(train), rows))])
                found = Features.fit(x, kind=spec.kind, seed=self.seed, space=self._measured.space)
        found = broadcast_object(found)
        assert found is not None
        return found

    def measure(self) -> dict[str, float] | None:
        """The distances by name, of samples and, as NAME_floor, of training data; None but on the first process."""
        reference, seen = self.reference, self._seen(self._drawn(), self.samples)
        if reference is None or seen is None:
            return None
        found = self._compare(seen, reference.law, reference.some)
        return {**found, **{f"{name}_floor": value for name, value in reference.floor.items()}}

    @cached_property
    def reference(self) -> Reference | None:
        """What samples are held against, on the first process; all processes ask together."""
        key, cache, kept = self._key, None, None
        with agree():
            if current().is_first:
                cache = ReferenceCache(self.cache)
                kept = cache.load(key)
        if not broadcast_object(kept is not None):
            held_out = self._seen(self._real(self.source.held_out, self.held_out), self.held_out)
            train = self._seen(self._real(self.source.train, self.samples), self.samples)
            with agree():
                if cache is not None and held_out is not None and train is not None:
                    floor = self._compare(train, GaussianFit.from_running(held_out.moments), held_out.some)
                    kept = {**held_out.moments.tensors(), "some": held_out.some}
                    kept |= {
                        f"floor {name}": torch.tensor(value, dtype=torch.float64) for name, value in floor.items()
                    }
                    cache.keep(key, kept)
        if kept is None:
            return None
        floor = {name: kept[f"floor {name}"].item() for name in self.metrics}
        return Reference(GaussianFit.from_running(Moments.from_tensors(kept)), kept["some"], floor)

    @property
    def held_out(self) -> int:
        """How many held-out samples it compares with."""
        return min(len(self.source.held_out), HELD_OUT)

    @property
    def _key(self) -> dict[str, str | int]:
        """All that the reference depends on; all processes ask together."""
        return {
            "what": "held-out moments and the training data's distances",
            "data": self.source.fingerprint,
            "held out": self.held_out,
            "train": self.samples,
            "features": self.features.identity,
            "units": f"{self._measured.space} {self._measured.flow.transform.to_config()}",
            "kept": KEPT,
        }

    def _compare(self, seen: Seen, law: GaussianFit, some: Tensor) -> dict[str, float]:
        pairs: Callable[[Tensor, Tensor], float] = energy_distance
        if self._pairs == "kernel":
            pairs = lambda x, y: kernel_distance(x, y, seed=self.seed).value
        distance = GaussianFit.from_running(seen.moments).distance(law)
        return dict(zip(self.metrics, (distance, pairs(seen.some, some)), strict=True))

    def _seen(self, parts: Iterator[tuple[range, Tensor]], count: int) -> Seen | None:
        """What is kept of a set of ``count`` rows, of which this process has these parts; None but on the first."""
        kept = np.zeros(count, bool)
        kept[_spread(count, min(count, KEPT))] = True
        moments, some = Moments.none(self.features.dimensions), []
        for rows, x in parts:
            moments += Moments.of(x)
            some.append(x[torch.from_numpy(kept[rows.start : rows.stop])])
        told = gather_objects((moments, some))
        if told is None:
            return None
        return Seen(Moments.merged(m for m, _ in told), torch.cat([x for _, parts in told for x in parts]))

    def _real(self, split: Split, count: int) -> Iterator[tuple[range, Tensor]]:
        """The features of this process's share of ``count`` rows that are spread over a split."""
        mine, places = current().share(count), _spread(len(split), count)
        for first in mine[::CHUNK]:
            rows = range(first, min(first + CHUNK, mine.stop))
            yield rows, self._map(self._measured.units(split.fetch(places[rows.start : rows.stop])))

    def _drawn(self) -> Iterator[tuple[range, Tensor]]:
        """The features of this process's share of the samples; of a sharded network all must ask equally often."""
        me, sampler = current(), self._measured.flow.sampler
        share = -(-self.samples // me.world)
        for first in range(share * me.rank, share * (me.rank + 1), CHUNK):
            rows = range(first, min(first + CHUNK, share * (me.rank + 1)))
            options = {"steps": sampler.steps, "solver": sampler.solver, "seed": self.seed}
            x = self._measured.sample(share * me.world, rows=rows, **options)[: max(0, self.samples - first)]
            if len(x):
                yield range(first, first + len(x)), self._map(x)

    def _map(self, x: Tensor) -> Tensor:
        """Data or samples (B, *S) to features (B, d)."""
        if self._network is not None:
            scale = self._measured.flow.transform
            x = to_bytes(x, scale.low, scale.high)  # pyright: ignore[reportAttributeAccessIssue]
        return self.features(x)


def _network(file: Path, flow: Flow) -> FeatureNetwork:
    shape, transform = flow.data_shape, flow.transform
    if flow.spec.kind != "image" or shape[0] not in (1, 3) or not (hasattr(transform, "low")):
        what = f"{flow.facts.get('kind', flow.spec.kind)} data of shape {shape}"
        raise UserError(f"--eval-features {file} looks at grey or coloured images, and these are {what}; leave it out")
    with agree():
        return FeatureNetwork(file, device=flow.device)


def _spread(total: int, count: int) -> np.ndarray:
    """``count`` places of 0 .. total - 1, evenly spread."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def _chunks(places: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(places), CHUNK):
        yield places[first : first + CHUNK]

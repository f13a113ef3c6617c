"""The sets of rows of an evaluation and what they come to: reference, floor, samples, and the flow itself."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from advect.config.environment import versions
from advect.core.errors import UserError
from advect.core.random import CounterRng, mix
from advect.data import Split
from advect.evaluation import ReferenceCache
from advect.evaluation.feature_space import Space
from advect.evaluation.protocol import EvalRows, Plan
from advect.evaluation.sample_statistics import ROWS, SampleStatistics
from advect.evaluation.scores import SCORES, EvalContext, measure_scores
from advect.evaluation.subsampling import rows
from advect.evaluation.workspace import EvalWorkspace
from advect.model.flow import Flow
from advect.model.sampler_config import Way
from advect.solvers import Velocity

STRAIGHT = 256
"""Samples whose paths tell how straight a flow is."""

FEW = 32
"""Up to so many dimensions the divergence is exact."""

_COST = "cost"
_DEQUANTISED, _PROBES = 9, 10

Tensors = dict[str, Tensor]


class CountedFlow(Flow):
    """A flow that counts how often its velocity is asked for, each sample by itself."""

    def __init__(self, flow: Flow) -> None:
        self.__dict__.update(flow.__dict__)
        self.calls = 0

    def velocity(self, *arguments: Any, **options: Any) -> Velocity:
        u = super().velocity(*arguments, **options)

        def counted(x: Tensor, t: Tensor) -> Tensor:
            self.calls += len(x)
            return u(x, t)

        return counted


def open_cache() -> ReferenceCache:
    """Where features of data are kept: below ADVECT_CACHE of the environment, else below a folder of the user's."""
    folder = Path(os.environ.get("ADVECT_CACHE") or Path.home() / ".cache" / "advect") / "features"
    try:
        return ReferenceCache(folder)
    except UserError as error:
        raise UserError(f"{error}, and name it in the environment variable ADVECT_CACHE") from error


@dataclass(frozen=True)
class Evaluator:
    """All sets of one evaluation. Each method is called by all processes and says its numbers to the first."""

    plan: Plan
    chosen: EvalRows
    space: Space
    work: EvalWorkspace
    cache: ReferenceCache

    def ground(self) -> tuple[EvalContext, SampleStatistics] | None:
        """What all comparisons share, and the reference; on the first process."""
        own, across = self.plan.sides
        reference = self._data("reference", own, self.chosen.reference)
        other = self._data("floor", across, self.chosen.other) if len(self.chosen.other) else reference
        if reference is None or other is None:
            return None
        here = self.plan.comparable
        train, held_out = (other, reference) if own is self.plan.source.held_out else (reference, other)
        return EvalContext(here.kind, train, held_out, here.categories, here.categorical, self.space.units), reference

    def _data(self, name: str, split: Split, places: Tensor) -> SampleStatistics | None:
        here = self.plan.comparable
        key = {
            "fingerprint": self.plan.source.fingerprint,
            "split": "train" if split is self.plan.source.train else "held-out",
            "rows": self._rows(split, places),
            "features": self.space.exact,
            "values": str(here.keeps_values),
            "what": f"summary of at most {ROWS} rows",
        }

        def load() -> SampleStatistics | None:
            found = self.cache.load(key)
            return None if found is None else SampleStatistics.from_tensors(found)

        def finish(parts: Iterator[Tensors]) -> SampleStatistics:
            summary = SampleStatistics.of(parts, len(places))
            self.cache.keep(key, summary.tensors())
            return summary

        def fill(rows: range, bar: tqdm) -> Tensors:
            kept = here.data(split, places[rows.start : rows.stop], self.space)
            bar.update(len(rows))
            return kept

        return self.work.once(name, len(places), fill, load=load, finish=finish, title=f"{name} rows")

    def _rows(self, split: Split, places: Tensor) -> str:
        """Which rows of a split: how many, and those of which categories."""
        asked = self.plan.asked()
        return f"{len(places)} of {len(split)}" + (f" where {asked}" if asked else "")

    def floor(self, ground: EvalContext, reference: SampleStatistics) -> dict[str, Any]:
        """The numbers that real rows of the other split have, on the first process."""
        other = ground.train if reference is ground.held_out else ground.held_out
        if not len(self.chosen.other):
            return {"samples": 0, "metrics": {}}
        found: dict[str, float] = {}
        for name in self.compared:
            key = {
                "fingerprint": self.plan.source.fingerprint,
                "split": self.plan.request.reference,
                "rows": " and ".join(
                    self._rows(*pair)
                    for pair in zip(self.plan.sides, (self.chosen.reference, self.chosen.other), strict=True)
                ),
                "features": self.space.exact,
                "what": f"floor of {name}",
                "version": versions().get("advect", "unknown"),
            }
            take = lambda name=name: {
                what: torch.tensor(value, dtype=torch.float64)
                for what, value in self._measure([name], other, reference, ground).items()
            }
            found |= {what: float(value) for what, value in sorted(self.cache.get(key, take).items())}
        return {"samples": other.count, "metrics": found}

    def _measure(
        self, names: Sequence[str], x: SampleStatistics, y: SampleStatistics, ground: EvalContext
    ) -> dict[str, float]:
        with tqdm(names, desc="measure", unit="score", disable=not self.work.show, leave=False) as bar:
            return measure_scores(bar, x, y, ground)

    @property
    def compared(self) -> list[str]:
        """The scores that compare samples with rows of data."""
        return [name for name in self.plan.scores if name in SCORES]

    def samples(
        self, i: int, way: Way, seed: int, ground: tuple[EvalContext, SampleStatistics] | None
    ) -> dict[str, Any] | None:
        """Numbers and cost of the samples of one way, the i-th, and one seed; on the first process."""
        plan, draw = self.plan, self.plan.draw(way, seed)

        def fill(rows: range, bar: tqdm) -> Tensors:
            flow, began = CountedFlow(plan.flow), time.perf_counter()
            x = flow.sample(**asdict(draw), cond=plan.request.cond, rows=rows, progress=bar)
            took = time.perf_counter() - began
            cond = plan.flow.conditions(draw.n, plan.request.cond, seed, rows=rows)
            kept = plan.comparable.samples(x, cond, self.space, first=rows.start, seed=seed)
            return {**kept, _COST: torch.tensor([took, flow.calls], dtype=torch.float64)}

        def finish(parts: Iterator[Tensors]) -> dict[str, Any]:
            assert ground is not None
            cost = torch.zeros(2, dtype=torch.float64)

            def kept() -> Iterator[Tensors]:
                for part in parts:
                    cost.add_(part.pop(_COST))
                    yield part

            summary = SampleStatistics.of(kept(), draw.n)
            found = self._measure(self.compared, summary, ground[1], ground[0])
            nfe = float(cost[1]) / draw.n
            return {"metrics": found, "seconds": float(cost[0]), "nfe": int(nfe) if nfe.is_integer() else nfe}

        return self.work.number(f"way-{i}-seed-{seed}", draw.n, fill, finish, title=f"{way}, seed {seed}")

    def straightness(self) -> dict[str, Any] | None:
        """How straight the paths of the first samples are; on the first process."""
        r, n = self.plan.request, min(STRAIGHT, self.plan.samples)

        def fill(rows: range, bar: tqdm) -> Tensors:
            found = self.plan.flow.straightness(
                n,
                seed=r.seed,
                cond=r.cond,
                guidance=r.guidance,
                guidance_interval=r.guidance_interval,
                batch_size=r.batch_size,
                rows=rows,
                progress=bar,
            )
            return {"sums": torch.tensor([found.value, found.distance], dtype=torch.float64) * len(rows)}

        def finish(parts: Iterator[Tensors]) -> dict[str, Any]:
            value, distance = (sum(part["sums"] for part in parts) / n).tolist()  # pyright: ignore
            return {"value": value, "relative": value / distance if distance else 0.0, "samples": n}

        return self.work.number("straightness", n, fill, finish, title="straightness")

    def bits(self) -> dict[str, Any] | None:
        """Bits per dimension of held-out rows, given their conditions; on the first process.

        Whole grey levels are spread over the unit around them, so that it is a bound on the bits that coding the
        levels takes (Theis et al. 2016).
        """
        plan, seed = self.plan, self.plan.request.seed
        places = rows(len(plan.source.held_out), plan.request.likelihood_samples, 0)
        size = min(plan.request.batch_size, 64)
        exact = math.prod(plan.flow.spec.shape) <= FEW

        def fill(some: range, bar: tqdm) -> Tensors:
            found = []
            for first in range(some.start, some.stop, size):
                last = min(first + size, some.stop)
                x, cond = plan.held_out(places[first:last])
                if plan.grey:
                    rng = CounterRng(mix(seed, _DEQUANTISED), 0, len(x), start=first)
                    x = x + rng.uniform(x.shape) - 0.5
                trace = "exact" if exact else "hutchinson"
                found.append(plan.flow.bits_per_dim(x, cond=cond, trace=trace, seed=mix(seed, _PROBES, first) >> 1))
                bar.update(last - first)
            return {"bits": torch.cat(found)}

        def finish(parts: Iterator[Tensors]) -> dict[str, Any]:
            bits = torch.cat([part["bits"] for part in parts]).double()
            error = float(bits.std()) / len(bits) ** 0.5
            how = {"trace": "exact" if exact else "hutchinson", "dequantised": plan.grey}
            return {"mean": float(bits.mean()), "standard_error": error, "samples": len(bits), **how}

        return self.work.number("likelihood", len(places), fill, finish, title="likelihood")

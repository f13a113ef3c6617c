"""What an evaluation will do, settled and checked before anything is drawn or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Category
from advect.data import Dataset, PixelScale, Split
from advect.evaluation import FeatureNetwork, ReferenceCache
from advect.evaluation.feature_space import Comparable
from advect.evaluation.features import FeatureArguments
from advect.evaluation.memorisation import LOOKED_AT, shared_rows
from advect.evaluation.scores import SCORES, check_enough, choose_scores
from advect.evaluation.subsampling import rows
from advect.evaluation.target import EvalTarget
from advect.model.conditions import ConditionValue, resolve_conditions
from advect.model.flow import Flow
from advect.model.load import load
from advect.model.sampler_config import Way, plan_ways
from advect.model.sampling import Draw, told_conditions

SAMPLES = 10_000
OF_FLOW = ("straightness", "likelihood")
"""What is measured of a flow itself, whatever the way that it is followed."""

ALL_SHARED = 0.9
"""A reference of which such a share are training rows is the training set."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to evaluate and how; None, and what is empty, is the run's own choice or the usual one.

    The fields are the flags of ``advect eval``, where each is explained.
    """

    features: FeatureArguments = field(default_factory=FeatureArguments)
    num_samples: int | None = None
    reference: Literal["held-out", "train"] = "held-out"
    metrics: tuple[str, ...] | None = None
    solvers: tuple[str, ...] = ()
    grids: tuple[str, ...] = ()
    nfes: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    diffusion: float | str | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    cond: Mapping[str, ConditionValue] = field(default_factory=dict)
    seed: int = 0
    repeat: int = 1
    ema: bool | float = True
    batch_size: int = 256
    output: Path | None = None
    likelihood_samples: int = 256


@dataclass(frozen=True)
class EvalRows:
    """The rows that take part: ``reference`` of one split and, for the floor, ``other`` of the other one."""

    reference: Tensor
    other: Tensor


@dataclass(frozen=True)
class Plan:
    """All that is settled: the flow and its data, the ways, the scores, and how many samples are drawn."""

    request: EvalConfig
    subject: EvalTarget
    flow: Flow
    source: Dataset
    comparable: Comparable
    network: FeatureNetwork | None
    ways: list[Way]
    scores: list[str]
    samples: int

    @classmethod
    def make(cls, run: Path, place: Path, request: EvalConfig, device: str) -> Plan:
        """Settle everything but the rows of data. Raises UserError for all that cannot be done."""
        if request.repeat < 1:
            raise UserError(f"--repeat must be at least 1, got {request.repeat}")
        if request.num_samples is not None and request.num_samples < 1:
            raise UserError(f"--num-samples must be at least 1, got {request.num_samples}")
        subject = EvalTarget.open(run, place, request.ema)
        flow, source = load(place, ema=request.ema, device=device), subject.data()
        labels = any(isinstance(c, Category) for c in flow.spec.conditions.values()) and len(source.held_out) > 0
        kind = Comparable(flow, values=False).kind
        scores = choose_scores(request.metrics, kind, labels=labels, others=OF_FLOW)
        scores += ["straightness"] if request.metrics is None else []
        comparable = Comparable(flow, values=any(SCORES[s].values for s in scores if s in SCORES))
        network = request.features.network(flow.device)
        ways = plan_ways(
            flow.sampler,
            solvers=request.solvers,
            grids=request.grids,
            nfes=request.nfes,
            steps=request.steps,
            diffusion=request.diffusion,
        )
        samples = request.num_samples or min(SAMPLES, len(source.train))
        plan = cls(request, subject, flow, source, comparable, network, ways, scores, samples)
        plan._check()
        return plan

    def draw(self, way: Way, seed: int) -> Draw:
        """How the samples of one seed are drawn."""
        r = self.request
        return Draw(
            n=self.samples,
            **asdict(way),
            guidance=r.guidance,
            guidance_interval=r.guidance_interval,
            seed=seed,
            batch_size=r.batch_size,
        )

    @property
    def seeds(self) -> list[int]:
        """One of each repetition."""
        return list(range(self.request.seed, self.request.seed + self.request.repeat))

    @property
    def sides(self) -> tuple[Split, Split]:
        """The split of the reference, and the other one."""
        train, held_out = self.source.train, self.source.held_out
        return (held_out, train) if self.request.reference == "held-out" else (train, held_out)

    @property
    def grey(self) -> bool:
        """Whether samples are images of whole grey levels, to be made continuous for a density."""
        return isinstance(self.flow.transform, PixelScale) and self.flow.transform.integer

    def _check(self) -> None:
        """Try all at the scale of one sample: each solver, the features, the density."""
        if not len(self.sides[0]):
            raise UserError(
                f"{self.subject.folder} has no held-out rows to compare with; train with --held-out, or give"
                " --reference train, which tells a copy of the training data from nothing"
            )
        tried = set()
        for way in self.ways:
            if way.solver not in tried:
                tried.add(way.solver)
                few = {**asdict(self.draw(way, 0)), "steps": way.steps and 1}
                self.flow.sample(**few, cond=self.request.cond, rows=range(1))
        if self.network is not None:
            self.comparable.data(
                self.sides[0], torch.zeros(1, dtype=torch.int64), self.comparable.space(self.source, self.network)
            )
        if "likelihood" in self.scores:
            self._check_density()

    def _check_density(self) -> None:
        if not len(self.source.held_out):
            raise UserError("--metrics likelihood needs held-out rows, and this run has none; leave it out")
        if self.request.likelihood_samples < 2:
            raise UserError(f"--likelihood-samples must be at least 2, got {self.request.likelihood_samples}")
        x, cond = self.held_out(torch.zeros(1, dtype=torch.int64))
        self.flow.log_prob(x, cond=cond, steps=1, solver="euler", trace="hutchinson")

    def held_out(self, places: Tensor) -> tuple[Tensor, dict[str, ConditionValue]]:
        """Held-out samples (n, *S) in data units and their conditions."""
        batch = self.source.held_out.fetch(places.numpy())
        return self.flow.transform.inverse(batch.x1), {**(batch.cond or {})}

    def choose_rows(self, cache: ReferenceCache, say: Callable[[str], None]) -> EvalRows:
        """The rows that take part: those of the categories that are asked for.

        Raises UserError where the reference is the training set and should not be, or no row is left.
        """
        if self.request.reference == "held-out":
            self._check_apart(cache, say)
        asked = self.asked()
        reference, other = (_matching(split, asked) for split in self.sides)
        words = ", ".join(f"{name}={self.request.cond[name]}" for name in asked)
        if asked and not len(reference):
            raise UserError(f"no row to compare with has {words}; leave --cond out")
        if asked:
            say(f"note: compared with the {len(reference):,} rows of {words}")
        chosen = rows(len(other), self.samples, 0).sort().values
        return EvalRows(reference, other[chosen])

    def asked(self) -> dict[str, int]:
        """The categories that all samples are asked to have."""
        fixed = {
            name: value
            for name, value in self.request.cond.items()
            if name in self.comparable.categories
            and not isinstance(value, Tensor)
            and value not in (None, "none", "cycle")
        }
        found = resolve_conditions(self.flow.spec, 1, fixed, 0)
        return {name: int(found[name]) for name in fixed}

    def _check_apart(self, cache: ReferenceCache, say: Callable[[str], None]) -> None:
        train, held_out = self.source.train, self.source.held_out
        key = {"fingerprint": self.source.fingerprint, "what": "held-out rows in training", "rows": LOOKED_AT}
        found = cache.get(key, lambda: {"shared": torch.tensor(shared_rows(train, held_out))})
        shared = int(found["shared"]) * max(1.0, len(train) / LOOKED_AT)
        if shared >= ALL_SHARED * len(held_out):
            raise UserError(
                f"of the {len(held_out):,} held-out rows {int(found['shared']):,} are training rows, so that the"
                " reference is the training set; hold other rows out, or give --reference train"
            )
        if found["shared"]:
            say(f"note: {int(found['shared']):,} of {len(held_out):,} held-out rows equal training rows")

    def check_enough(self, chosen: EvalRows) -> None:
        """Raise UserError where a score needs more rows than there are."""
        sets = {"--num-samples": self.samples, "the number of reference rows": len(chosen.reference)}
        if len(chosen.other):
            sets["the number of rows for the floor"] = len(chosen.other)
        check_enough(self.scores, sets)

    def protocol(self, chosen: EvalRows, features: dict[str, Any]) -> dict[str, Any]:
        """All that numbers have to have in common to be compared."""
        r = self.request
        facts: dict[str, Any] = {
            "data": self.source.name,
            "fingerprint": self.source.fingerprint,
            "split": r.reference,
            "reference": len(chosen.reference),
            "features": features,
            "samples": self.samples,
            "metrics": self.scores,
            "ways": [way.told() for way in self.ways],
            "guidance": r.guidance,
            "guidance_interval": r.guidance_interval,
            "conditions": told_conditions(r.cond),
            "seeds": self.seeds,
            "rows_for_distances": {s: SCORES[s].rows for s in self.scores if s in SCORES and SCORES[s].rows},
        }
        return facts | ({"likelihood_samples": r.likelihood_samples} if "likelihood" in self.scores else {})


def _matching(split: Split, asked: Mapping[str, int]) -> Tensor:
    """The places of the samples of a split that have these categories."""
    places = torch.arange(len(split))
    if not asked or not len(split):
        return places
    kept = []
    for some in places.split(256):
        cond = split.fetch(some.numpy()).cond or {}
        kept.append(some[torch.stack([cond[name] == code for name, code in asked.items()]).all(0)])
    return torch.cat(kept)

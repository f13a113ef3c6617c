"""Configuration and plan of ``advect eval``, checked before sampling."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.checkpoint.manifest import checkpoint_step
from advect.config.arguments import data_of
from advect.config.build import build_dataset
from advect.config.section import Section, part
from advect.core.bounds import BatchSize, Evaluations, GuidanceScale, Processes, SampleCount, Seed, Share, Steps, Time
from advect.core.errors import UserError, did_you_mean
from advect.data import Dataset, Split
from advect.data.holes import complete_rows
from advect.data.repeats import LOOKED_AT, shared_rows
from advect.distributed.comm import sync_errors
from advect.evaluation.evaluator import EvalRows, SampleRequest
from advect.evaluation.feature_network import FeatureNetwork
from advect.evaluation.features import LEARNED, PIXELS, FeatureConfig, FeatureSpace
from advect.evaluation.workspace import ReferenceCache
from advect.metrics.base import FlowMetric, Metric, find_metrics, with_rows
from advect.metrics.statistics import subsample
from advect.model.conditions import (
    ConditionValue,
    encoded,
    is_one_label,
    parse_conditions,
    resolve_conditions,
)
from advect.model.flow import Flow
from advect.model.load import load, read_model_metadata, weight_file
from advect.model.sampler_config import SamplerConfig, plan_sweep
from advect.model.sampling import averaged, conditions_to_dict, weights_identity

logger = logging.getLogger(__name__)

SAMPLES = 10_000

ALL_SHARED = 0.9
"""Share of reference rows in training from which the reference counts as the training set."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalConfig(Section):
    """Flags of ``advect eval``; None and empty values mean the run's or the usual ones."""

    features: FeatureConfig = field(default_factory=FeatureConfig)

    checkpoint: str | None = None
    """Checkpoint of the run: epoch-50, step-1000, best or latest, the default."""

    data: str | None = None
    """The data's place if they have moved since the training."""
    num_samples: SampleCount | None = None
    """Samples a point; default 10,000, at most the number of training rows, which the floor needs."""

    reference: Literal["held-out", "train"] = "held-out"
    """Split that samples are compared with."""
    metrics: tuple[str, ...] = ()
    """Metrics, of those above; default the usual ones for the data."""
    solver: tuple[str, ...] = ()
    """Solvers; default the run's."""
    grid: tuple[str, ...] = ()
    """Time grids; default the run's."""
    nfe: tuple[Evaluations, ...] = ()
    """Numbers of network evaluations; each solver takes those it can meet."""
    num_steps: tuple[Steps, ...] = ()
    """Numbers of solver steps; default the run's."""
    diffusion: str | None = part("diffusion", default=None, number=("constant", "scale"))
    """Sample the SDE with this g(t), a number or a name, by euler-maruyama or heun."""
    guidance: GuidanceScale = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    guidance_interval: tuple[Time, Time] | None = None
    """Times LO HI between which guidance acts; default all."""

    cond: tuple[str, ...] = ()
    """Conditions as NAME=VALUE, such as label=7; compared with the rows of that category. Others follow the data's
    frequencies.
    """

    seed: Seed = 0
    """Seed of the samples, the first one with --repeat."""
    repeat: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """Number of seeds, for mean and spread."""
    use_ema: bool = True
    """Use the averaged weights."""
    ema_decay: Share | None = None
    """Use the average of this decay, one of the run's."""
    batch_size: BatchSize = 256
    """Samples drawn at once."""
    target: str | None = None
    """Column or condition that --metrics ml_efficacy predicts; default the last condition, category or column."""
    likelihood_samples: Annotated[int, Meta(ge=2, le=10**9)] = 256
    """Held-out rows for --metrics likelihood."""
    output: Path | None = None
    """Result file; default RUN/evaluation/eval-HASH.json."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU if available."""
    nproc: Processes = 1
    """Local processes, one a GPU if there are any, as by torchrun --nproc_per_node."""

    groups: ClassVar = {
        "comparison": (
            "data",
            "num_samples",
            "reference",
            "metrics",
            "target",
            "likelihood_samples",
            "seed",
            "repeat",
            "output",
        ),
        "features": ("features",),
        "solver": ("solver", "num_steps", "nfe", "grid", "diffusion"),
        "conditions": ("cond", "guidance", "guidance_interval"),
        "weights": ("checkpoint", "use_ema", "ema_decay"),
        "processes": ("batch_size", "device", "nproc"),
    }
    usual = frozenset(
        {
            *groups["comparison"],
            *groups["features"],
            *groups["solver"],
            "cond",
            "guidance",
            "checkpoint",
            "use_ema",
            "device",
            "nproc",
        }
    ) - {"likelihood_samples"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema_decay is not None and not self.use_ema:
            raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")
        if self.likelihood_samples != EvalConfig.likelihood_samples and "likelihood" not in self.metrics:
            raise UserError("--likelihood-samples does nothing without --metrics likelihood")
        if self.target is not None and "ml_efficacy" not in (self.metrics or ("ml_efficacy",)):
            raise UserError("--target does nothing without --metrics ml_efficacy")
        parse_conditions(self.cond)

    @property
    def ema(self) -> bool | float:
        """Weights to load, as in :func:`advect.model.load.load`."""
        return self.use_ema if self.ema_decay is None else self.ema_decay

    @property
    def seeds(self) -> list[int]:
        """Seed of each repetition."""
        return list(range(self.seed, self.seed + self.repeat))


@dataclass(frozen=True)
class Plan:
    """Checked plan: run, data, sweep, metrics and number of samples.

    ``subject`` describes the weights at ``place`` of the run in ``folder``.
    """

    config: EvalConfig
    folder: Path
    place: Path
    subject: Mapping[str, Any]
    space: FeatureSpace
    sweep: list[SamplerConfig]
    metrics: Mapping[str, Metric | FlowMetric]
    samples: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why metrics are left out, by name."""

    @classmethod
    def make(cls, run: Path, place: Path, config: EvalConfig) -> Plan:
        """Plan everything but the rows. Raises UserError for what cannot be done."""
        folder, flow, dataset, subject = open_run(run, place, config.ema, config.device, config.data)
        network = config.features.network(flow.device)
        space = FeatureSpace(flow, dataset, network)
        metrics, left_out = find_metrics(config.metrics, space.modality.metrics, space.offers, space.modality.name)
        needs = {need for metric in metrics.values() if isinstance(metric, Metric) for need in metric.needs}
        space = FeatureSpace(flow, dataset, network, keep=needs)
        sweep = plan_sweep(
            flow.sampler,
            flow.nfe,
            solvers=config.solver,
            grids=config.grid,
            nfes=config.nfe,
            steps=config.num_steps,
            diffusion=config.chosen("diffusion"),
        )
        samples = config.num_samples or min(SAMPLES, len(dataset.train))
        plan = cls(config, folder, place, subject, space, sweep, metrics, samples, left_out)
        plan._check()
        return plan._with_density()

    def with_features(self, cache: ReferenceCache) -> Plan:
        """With the features asked for, which may have to be learned. Collective."""
        named = self.config.features.features
        if named == PIXELS:
            with sync_errors():
                self.space.modality.check_features(f"--features {PIXELS}")
            return self
        return replace(self, space=self.space.learned(cache, named=named == LEARNED))

    def with_rows(self, rows: EvalRows) -> Plan:
        """Without the metrics that need more rows than there are. Raises UserError if none remains."""
        sets = {"--num-samples": self.samples, "the number of reference rows": len(rows.reference)}
        sets |= {"the number of rows for the floor": len(rows.floor)} if len(rows.floor) else {}
        metrics, left_out = with_rows(self.metrics, sets)
        return replace(self, metrics=metrics, left_out={**self.left_out, **left_out})

    def _with_density(self) -> Plan:
        """Without metrics of held-out rows' density, where there is none. Raises UserError if no metric remains."""
        of_rows = [name for name, m in self.metrics.items() if isinstance(m, FlowMetric) and m.density]
        try:
            if of_rows:
                self._check_density()
        except UserError as error:
            if len(of_rows) == len(self.metrics):
                raise
            metrics = {name: metric for name, metric in self.metrics.items() if name not in of_rows}
            return replace(self, metrics=metrics, left_out={**self.left_out, **dict.fromkeys(of_rows, str(error))})
        return self

    @property
    def flow(self) -> Flow:
        """The flow."""
        return self.space.flow

    @property
    def dataset(self) -> Dataset:
        """The data."""
        return self.space.dataset

    @property
    def conditions(self) -> Mapping[str, ConditionValue]:
        """The conditions of all samples by name."""
        return parse_conditions(self.config.cond, self.flow.spec)

    def request(self, sampler: SamplerConfig, seed: int) -> SampleRequest:
        """Samples of one seed."""
        c = self.config
        sampler = replace(sampler, guidance=c.guidance, guidance_interval=c.guidance_interval)
        return SampleRequest(n=self.samples, sampler=sampler, seed=seed, cond=self.conditions, batch_size=c.batch_size)

    def _check(self) -> None:
        """Try solvers, features and density on a single sample."""
        if "calibration" in self.metrics and self.config.cond:
            raise UserError("--metrics calibration draws given the condition of each held-out row; leave --cond out")
        target, names = self.config.target, (*self.space.modality.entry_names, *self.space.categories)
        if target is not None and "ml_efficacy" not in self.metrics:
            raise UserError(f"--target is for tables, and these are {self.space.modality.name} data; leave it out")
        if target is not None and target not in names:
            raise UserError(f"--target {target!r} is no column of the data{did_you_mean(target, names)}")
        reference = self._splits[0]
        if not len(reference):
            raise UserError(
                f"{self.folder} has no held-out rows to compare with; train with --held-out, or give"
                " --reference train, which tells a copy of the training data from nothing"
            )
        tried = set()
        for way in self.sweep:
            if way.solver not in tried:
                tried.add(way.solver)
                few = replace(self.request(way, 0).sampler, steps=way.steps and 1)
                how = {"cond": self.conditions, "batch_size": self.config.batch_size, "model_units": True}
                self.flow.sample(self.samples, **few.arguments(), **how, rows=range(1))
        if isinstance(self.space.network, FeatureNetwork):
            self.space.data(reference, torch.zeros(1, dtype=torch.int64))

    def _check_density(self) -> None:
        """Raise UserError if held-out rows have no density."""
        held_out = self.dataset.held_out
        if len(held_out) < 2:
            raise UserError(f"--metrics likelihood needs at least 2 held-out rows, not {len(held_out)}; leave it out")
        batch = held_out.fetch(np.zeros(1, np.int64))
        x = self.flow.transform.inverse(batch.x1)
        self.flow.log_prob(x, cond=encoded(batch.cond), steps=1, solver="euler", trace="hutchinson")

    @property
    def _splits(self) -> tuple[Split, Split]:
        """Split of the reference, and the other one."""
        train, held_out = self.dataset.train, self.dataset.held_out
        return (held_out, train) if self.config.reference == "held-out" else (train, held_out)

    def choose_rows(self, cache: ReferenceCache) -> EvalRows:
        """Rows of the requested categories.

        Raises UserError if held-out rows are training rows.
        """
        if self.config.reference == "held-out":
            self._check_apart(cache)
        asked = self._asked()
        reference, other = (_matching(split, asked) for split in self._splits)
        words = ", ".join(f"{name}={self.conditions[name]}" for name in asked)
        if asked and not len(reference):
            raise UserError(f"no row to compare with has {words}; leave --cond out")
        if asked:
            logger.info(f"note: compared with the {len(reference):,} rows of {words}")
        floor = other[subsample(len(other), self.samples, 0).sort().values]
        if len(floor) < self.samples:
            logger.info(
                f"note: the floor is of {len(floor):,} rows, as there are no more, beside {self.samples:,} samples"
            )
        return EvalRows(self.config.reference, reference, floor, str(asked) if asked else "")

    def _asked(self) -> dict[str, int]:
        """The categories that all samples are asked to have."""
        known = self.space.categories
        fixed = {k: v for k, v in self.conditions.items() if k in known and is_one_label(known[k], v)}
        found = resolve_conditions(self.flow.spec, 1, fixed, 0)
        return {name: int(found[name]) for name in fixed}

    def _check_apart(self, cache: ReferenceCache) -> None:
        train, held_out = self.dataset.train, self.dataset.held_out
        key = {"fingerprint": self.dataset.fingerprint, "what": "held-out copies of training rows", "rows": LOOKED_AT}
        found = cache.get(key, lambda: {"shared": torch.tensor(shared_rows(train, held_out))})
        shared = int(found["shared"]) * max(1.0, len(train) / LOOKED_AT)
        if shared >= ALL_SHARED * len(held_out):
            raise UserError(
                f"of the {len(held_out):,} held-out rows {int(found['shared']):,} are copies of training rows, so that"
                " the reference is the training set; hold other rows out, or give --reference train"
            )
        if found["shared"]:
            count = int(found["shared"])
            logger.info(f"note: {count:,} of {len(held_out):,} held-out rows are copies of training rows")

    def protocol(self, rows: EvalRows) -> dict[str, Any]:
        """What results must have in common to be compared."""
        c = self.config
        limits = {name: metric.rows for name, metric in self.metrics.items() if isinstance(metric, Metric)}
        facts: dict[str, Any] = {
            "data": self.dataset.name,
            "fingerprint": self.dataset.fingerprint,
            "split": c.reference,
            "reference": len(rows.reference),
            "features": self.space.features.to_dict(),
            "samples": self.samples,
            "metrics": list(self.metrics),
            "ways": [way.to_dict() for way in self.sweep],
            "guidance": c.guidance,
            "guidance_interval": c.guidance_interval,
            "conditions": conditions_to_dict(self.conditions),
            "seeds": c.seeds,
            "rows_for_distances": {name: limit for name, limit in limits.items() if limit},
        }
        facts |= {"target": c.target} if c.target is not None else {}
        return facts | ({"likelihood_samples": c.likelihood_samples} if "likelihood" in self.metrics else {})


def open_run(
    run: Path, place: Path, ema: bool | float, device: str, data: str | None = None
) -> tuple[Path, Flow, Dataset, dict[str, Any]]:
    """Folder of the run, flow of the weights at ``place``, data (now at ``data``), and description of the weights.

    Raises UserError if the weights lie in no run folder, or the data are missing or have changed.
    """
    folder = next((f for f in (run, *place.absolute().parents) if (f / "config.yaml").is_file()), None)
    if folder is None:
        raise UserError(
            f"{run} is no run folder and lies in none: it has no config.yaml, which names the data to compare"
            " with; give one such as runs/digits"
        )
    metadata = read_model_metadata(place if place.is_file() else weight_file(place, ema=ema))
    dataset = build_dataset(data_of(folder, data))
    if dataset.fingerprint != metadata.fingerprint:
        raise UserError(
            f"the data of {folder} have changed since {place.name} was trained, so that held-out rows"
            " may be among those it learned; bring the old data back, or train anew"
        )
    average = averaged(place, ema)
    subject = {
        "run": str(folder),
        "checkpoint": place.name,
        "step": None if place.is_file() else checkpoint_step(place),
        "sha256": weights_identity(place, ema)["sha256"],
        "ema": metadata.config["training"]["ema_decay"] if average is True else average,
    }
    return folder, load(place, ema=ema, device=device), complete_rows(dataset), subject


def _matching(split: Split, asked: Mapping[str, int]) -> Tensor:
    """Indices of the rows of a split with these categories."""
    places = torch.arange(len(split))
    if not asked or not len(split):
        return places
    kept = []
    for some in places.split(256):
        cond = split.fetch(some.numpy()).cond or {}
        kept.append(some[torch.stack([cond[name] == code for name, code in asked.items()]).all(0)])
    return torch.cat(kept)

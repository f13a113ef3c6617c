"""Pairs of noise and samples for reflow.

PAIRS/generated/   in parts, see ``sharded_samples``: x1 and conditions; x0 follows from the seed
PAIRS/inverted/    real data with their x0, if there is a real share
PAIRS/pairs.json   written last: settings, and sums of all files
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta
from tqdm import tqdm

from advect.config.build import build_source_distribution, source_tensors
from advect.core.bounds import BatchSize, CountOrZero, NonNegative, Share, bounded
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, make_folder
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.records import OpenRecord, as_record, find_object
from advect.core.types import Conditions
from advect.data import Dataset
from advect.data.modality import Modality
from advect.data.pairs import ImageStore, PairedDataset, Pairs, write_pairs
from advect.distributed.comm import broadcast_object, current, sync_errors
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import check_sampler
from advect.model.sharded_samples import (
    PLAN,
    SampleShards,
    count_shards,
    plan_difference,
    read_plan,
    remove_partial_parts,
    write_shards,
)
from advect.sources import InitialNoise

FORMAT, FACTS, PART = 1, "pairs.json", 2048


@bounded
@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Settings of pairs; ``real_share`` of them are real data carried back to noise.

    ``store`` "auto" is bf16 for images, else float32.
    """

    num_pairs: Annotated[int, Meta(ge=20, le=10**9)]
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    real_share: Share = 0.0
    store: Literal["auto", "float32", "bf16", "uint8"] = "auto"
    seed: int = 0
    batch_size: BatchSize = 256

    def __post_init__(self) -> None:
        if self.real_share and self.sampler.guidance != 1:
            raise UserError(
                f"--real-share {self.real_share} and --guidance {self.sampler.guidance} contradict each other: real "
                "data is carried back along the flow as it is, not as guided; leave one out"
            )

    def stored(self, modality: Modality) -> ImageStore:
        """Storage type for these data."""
        if self.store == "auto":
            return modality.pair_stores[0]
        if self.store not in modality.pair_stores:
            raise UserError(
                f"--store {self.store} does not go with {modality.name} data; take {' or '.join(modality.pair_stores)}"
            )
        return self.store


def make_pairs(
    flow: Flow,
    noise: Mapping[str, Any],
    source: Dataset,
    folder: Path,
    pairing: PairConfig,
    *,
    made_by: Mapping[str, object],
) -> None:
    """Make pairs by a flow into a folder, over all processes; resumable.

    ``noise`` describes the source, ``made_by`` the weights. Raises UserError for unsuitable arguments, before writing,
    and for a folder with other pairs.
    """
    inverted = round(pairing.real_share * pairing.num_pairs)
    store, sampler = pairing.stored(flow.modality), pairing.sampler.resolve(flow.sampler)
    plan: dict[str, Any] = {"format": FORMAT, **made_by, **vars(pairing), **sampler.facts(), "store": store}
    plan |= {"data": source.fingerprint}
    del plan["sampler"]
    with sync_errors():
        check_sampler(flow, sampler)

    def generate(rows: range, place: Path, bar: tqdm) -> list[Path]:
        n, seed = pairing.num_pairs - inverted, pairing.seed
        options = {"batch_size": pairing.batch_size, "model_units": True, "progress": bar}
        samples = flow.sample(n, seed=seed, rows=rows, **sampler.arguments(), **options)
        return write_pairs(place, samples.x, samples.encoded, store=store)

    written = {"generated": _make(folder / "generated", pairing.num_pairs - inverted, plan, generate)}
    if inverted:
        back = partial(_invert, flow, source, pairing, store, inverted)
        written["inverted"] = _make(folder / "inverted", inverted, plan, back)
    with sync_errors():
        if current().is_first and not (folder / FACTS).is_file():
            start = {"noise": dict(noise), "jitter": flow.initial_noise.jitter}
            facts = {
                **plan,
                "generated": pairing.num_pairs - inverted,
                "inverted": inverted,
                **start,
                "parts": written,
            }
            atomic_write_text(folder / FACTS, json.dumps(facts, indent=1) + "\n")


def _make(folder: Path, n: int, plan: dict, fill: Callable[[range, Path, tqdm], list[Path]]) -> list[dict] | None:
    """Make n pairs in parts; content of each part.json, on the first process."""
    count = 0
    with sync_errors():
        if current().is_first:
            count = _claim(folder, {**plan, "parts": count_shards(n, PART, current().world)})
    parts = SampleShards(folder=folder, n=n, count=broadcast_object(count))
    written = write_shards(parts, fill, title="pairs")
    return None if written is None else [written[k] for k in range(parts.count)]


def _claim(folder: Path, plan: dict) -> int:
    """Record the plan in the folder; return its number of parts."""
    plan = json.loads(json.dumps(plan))
    if not (folder / PLAN).is_file():
        remove_partial_parts(make_folder(folder, "--output-dir"))
        atomic_write_text(folder / PLAN, json.dumps(plan, indent=1) + "\n")
        return plan["parts"]
    there = read_plan(folder)
    if difference := plan_difference(there, {**plan, "parts": there.get("parts")}):
        raise UserError(
            f"{folder} holds pairs of another call: {difference}; repeat that call to go on with it, or name another "
            "--output-dir"
        )
    remove_partial_parts(folder)
    return there["parts"]


def _invert(
    flow: Flow, dataset: Dataset, pairing: PairConfig, store: ImageStore, n: int, rows: range, place: Path, bar: tqdm
) -> list[Path]:
    """Carry real data back to t = 0 (Lee, Lin & Fanti 2024), and write the pairs."""
    total, sampler = len(dataset.train), pairing.sampler.resolve(flow.sampler)
    order = CounterRng(stream_seed(pairing.seed, Stream.INVERTED_ROWS), 0, total).permutation().numpy()
    places = np.resize(order, n)[rows.start : rows.stop]
    batch = dataset.train.fetch(places)
    method = sampler.ode_solver
    solver = "heun" if method.adaptive or method.affine_only else method
    steps = sampler.steps or flow.sampler.steps
    ends = []
    for first in range(0, len(places), pairing.batch_size):
        part = {k: v[first : first + pairing.batch_size] for k, v in (batch.cond or {}).items()}
        x1 = batch.x1[first : first + pairing.batch_size]
        ends.append(flow.to_noise(x1, part, solver=solver, steps=steps or 50))
        bar.update(len(x1))
    return write_pairs(place, batch.x1, batch.cond or {}, x0=torch.cat(ends), store=store)


def open_pairs(folder: Path, source: Dataset) -> tuple[PairedDataset, dict[str, Any]]:
    """Dataset of the pairs in a folder made for ``source``, and the arguments of their source distribution.

    Raises UserError for missing or incomplete pairs, and other data.
    """
    facts = read_facts(folder)
    if facts["data"] != source.fingerprint:
        raise UserError(f"--pairs {folder} were made for other data than these; give the data of the run they are of")
    start = InitialNoise(build_source_distribution(facts["noise"], source_tensors(source)), facts["jitter"])
    n, shape = facts["generated"], source.spec.shape

    def starts(places: np.ndarray, cond: Conditions) -> Any:
        return start.replay(places, shape, cond, seed=facts["seed"], total=n)

    folders = []
    for kind, parts in facts["parts"].items():
        whole = SampleShards(folder=folder / kind, n=facts[kind], count=len(parts))
        for k, expected in enumerate(parts):
            if current().is_first and whole.read(k) != expected:  # once for all processes, as it reads every byte
                raise UserError(f"{whole.place(k)} is missing or damaged; repeat advect reflow, which makes it anew")
            folders.append(whole.place(k))
    pairs = Pairs(folders, n, starts, facts["store"])
    return PairedDataset(source, pairs, n), start_facts(facts["noise"], facts["jitter"])


class PairFacts(OpenRecord):
    """What pairs.json says of the pairs beside it."""

    data: str
    noise: dict[str, Any]
    jitter: NonNegative
    generated: CountOrZero
    inverted: CountOrZero
    seed: int
    store: str
    parts: dict[str, list[Any]]


def read_facts(folder: Path) -> dict[str, Any]:
    """Content of a folder's pairs.json. Raises UserError unless the pairs are complete."""
    facts = find_object(folder / FACTS)
    if facts is None:
        raise UserError(
            f"--pairs {folder} holds no complete pairs; make them with advect reflow, and repeat it where it was ended"
        )
    as_record(facts, PairFacts, folder / FACTS)
    return facts


def start_facts(noise: Mapping[str, Any], jitter: float) -> dict[str, Any]:
    """Arguments of ``build_source_distribution`` for a source with ``jitter``."""
    if jitter == 0:
        return dict(noise)
    match noise["kind"]:
        case "gaussian" | "matched":
            return {"kind": "matched", "std": float(np.hypot(noise.get("std", 1.0), jitter))}
        case "empirical":
            return {**noise, "noise": float(np.hypot(noise.get("noise", 0.0), jitter))}
        case kind:
            raise UserError(
                f"reflow does not go with --source {kind} and --sigma-min {jitter} at once; train without one"
            )

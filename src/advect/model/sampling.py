"""Sampling of runs to files, whole or in shards."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from advect.checkpoint.manifest import (
    checkpoint_step,
    find_checkpoint,
    find_weights,
    names_checkpoint,
    read_newest,
    sum_files,
)
from advect.core.errors import UserError
from advect.core.files import claim_folder
from advect.core.memory import check_disk
from advect.core.types import Conditions
from advect.data.modality import Modality
from advect.data.tables.files import quote_formulas
from advect.distributed.comm import broadcast_object, sync_errors, without_timeout
from advect.distributed.context import RunContext, run_context
from advect.distributed.env import DistEnv
from advect.model.conditions import ConditionValue, Encoded, encoded, parse_conditions
from advect.model.flow import Flow
from advect.model.load import load, read_average, weight_file
from advect.model.sampler_config import SamplerConfig
from advect.model.sharded_samples import SampleShards, count_shards, open_plan, write_shards
from advect.training.state import EMA_FILE, MODEL

logger = logging.getLogger(__name__)


def sample_run(
    run: Path,
    n: int = 64,
    sampler: SamplerConfig | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
    cond: Mapping[str, ConditionValue] | Sequence[str] | None = None,
    ema: bool | float = True,
    save_individual: bool = False,
    output_dir: Path | None = None,
    overwrite: bool = False,
    safe_csv: bool = False,
    part_size: int | None = None,
    device: str = "auto",
    parents: Path | None = None,
) -> list[Path]:
    """Sample a run into a folder; return the files of ``Modality.write``, and samples.json.

    ``cond`` has values by name, or words NAME=VALUE. ``safe_csv``: see :func:`quote_formulas`. ``parents``, a file,
    gives n and conditions of a table of children, see :meth:`Modality.children`.

    More than ``part_size`` (10,000) samples, or several processes, make shards, which are joined (see
    ``sharded_samples``); only the first process returns the files. Resumable after complete shards. Raises
    UserError for a bad argument, before writing, and if ``output_dir`` cannot be written to or holds other samples,
    unless ``overwrite``.
    """
    sampler = sampler or SamplerConfig()
    folder = output_dir or default_folder(run, "generated", seed)
    with run_context(device, run_dir=folder, seed=seed) as context, ExitStack() as stack:
        me = context.env
        place, flow, identity, mean = open_flow(run, ema, context)
        if me.is_first and names_checkpoint(run):
            logger.info(f"{run} is the checkpoint of step {checkpoint_step(place):,}")
        facts: dict[str, Any] = {}
        with sync_errors():
            flow.modality.check_output(individual=save_individual)
            cond = cond if cond is None or isinstance(cond, Mapping) else parse_conditions(cond, flow.spec)
            modality, of_parents, count = flow.modality.children(parents, seed)
            n = n if count is None else count
            if told := next((name for name in of_parents if name in (cond or ())), None):
                raise UserError(f"--cond gives {told}, which {parents} gives for each parent; leave one out")
            cond = {**cond, **encoded(of_parents)} if cond else encoded(of_parents) or None
            if me.is_first:
                stack.enter_context(claim_folder(folder, "--output-dir"))  # now, as sampling may take an hour
            check_sampler(flow, sampler, cond, n=n, batch_size=batch_size)
            size, shape = n * math.prod(flow.data_shape), flow.data_shape
            check_disk(f"{n:,} samples of shape {shape} take", size, folder, "draw fewer, or see --output-dir")
            if me.is_first:
                how = {"n": n, **resolved(sampler, flow), "seed": seed, "batch_size": batch_size}
                how |= {"safe_csv": True} if safe_csv else {}
                how |= {"parents": file_sum(parents)} if parents else {}
                how |= {"conditions": conditions_to_dict(cond), "individual": save_individual}
                plan = {**identity, "ema": mean, **how}
                facts = open_call(folder, run, place, plan, part_size=part_size, world=me.world, overwrite=overwrite)

        draw = {"seed": seed, "cond": cond, "batch_size": batch_size, **sampler.arguments()}
        fill = _filling(flow, modality, n, draw, individual=save_individual, safe_csv=safe_csv)
        parts = SampleShards(folder=folder, n=n, count=broadcast_object(facts.get("parts", 0)))
        return write_all(parts, fill, me, lambda written: parts.finish(facts, written, flow.modality.join))


def open_flow(run: Path, ema: bool | float, context: RunContext) -> tuple[Path, Flow, dict[str, object], object]:
    """Place of the weights and their flow; on the first process also what identifies them, and their average."""

    def read(place: Path) -> tuple[Path, Flow, dict[str, object], object]:
        flow = load(place, ema=ema, device=context.device)
        if not context.env.is_first:
            return place, flow, {}, None
        return place, flow, weights_identity(place, ema), averaged(place, ema)

    return read_newest(run, read, find_weights, together=True)


def open_call(
    folder: Path,
    run: Path,
    place: Path,
    plan: Mapping[str, Any],
    *,
    part_size: int | None,
    world: int,
    overwrite: bool,
) -> dict[str, Any]:
    """Begin or go on with the ``plan`` of ``plan["n"]`` samples in ``folder``, see :func:`open_plan`.

    Returns the facts of samples.json, with the number of ``parts``.
    """
    plan = {**plan, "parts": count_shards(plan["n"], part_size, world)}
    count = open_plan(folder, plan, fixed=part_size is not None, overwrite=overwrite)
    named = {"checkpoint": place.name} if place.is_dir() else {}
    return {"run": str(run), **named, **plan, "parts": count}


def _filling(
    flow: Flow, modality: Modality[Any], n: int, draw: Mapping[str, Any], *, individual: bool, safe_csv: bool
) -> Callable[[range, Path, tqdm], list[Path]]:
    """Function that draws some rows of n samples, and writes them into a folder."""

    def fill(rows: range, folder: Path, bar: tqdm) -> list[Path]:
        samples = flow.sample(n, **draw, rows=rows, progress=bar)
        options = {"individual": individual, "first": rows.start, "seed": draw["seed"]}
        files = modality.write(samples.x, samples.encoded, folder, **options)
        for file in files if safe_csv else ():
            if file.suffix == ".csv":
                quote_formulas(file, modality.separator)
        return files

    return fill


def write_all(
    parts: SampleShards,
    fill: Callable[[range, Path, tqdm], list[Path]],
    me: DistEnv,
    finish: Callable[[dict[int, dict]], list[Path]],
) -> list[Path]:
    """Fill all shards, and ``finish`` them on the first process; return its files."""
    files = parts.finished() if me.is_first else None
    if broadcast_object(files is not None):
        return files or []
    if me.is_first and me.world > parts.count:
        idle = me.world - parts.count
        logger.info(f"note: {parts.count} parts leave {idle} of {me.world} processes idle; see --part-size")
    written = write_shards(parts, fill)
    with without_timeout():
        return [] if written is None else finish(written)


_KINDS = {
    ".h5ad": "cells:",
    ".parquet": "table:",
    ".csv": "table:",
    ".npz": "arrays:",
    ".txt": "text:",
    ".fasta": "text:",
    ".png": "picture:",
    ".json": "facts:",
}
"""Labels of files by suffix."""


def describe_files(files: Sequence[Path], *, individual: bool) -> list[str]:
    """Lines describing the files of :func:`sample_run`."""
    lines = [f"{_KINDS.get(f.suffix, 'samples:'):8} {f}" for f in files if not f.stem.startswith("sample-")]
    return lines + ([f"images:  {files[0].parent / 'sample-*.png'}"] if files and individual else [])


class _Still(nn.Module):
    """Zero network in place of ``net`` for trials, with so many outputs."""

    def __init__(self, net: nn.Module, outputs: int) -> None:
        super().__init__()
        self.outputs, self.check_size = outputs, getattr(net, "check_size", None)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        return torch.cat([torch.zeros_like(x_t)] * self.outputs, 1)


def check_sampler(
    flow: Flow,
    sampler: SamplerConfig,
    cond: Mapping[str, ConditionValue] | None = None,
    *,
    n: int = 1,
    batch_size: int = 256,
    given: Tensor | None = None,
) -> None:
    """Raise UserError for an impossible sampler or question, by a trial of one sample without the network."""
    trial = copy(flow)
    trial.net = _Still(flow.net, 2 if flow.learned_score else 1)
    how = {"cond": cond, "given": given, "batch_size": batch_size, "model_units": True}  # which draws nothing anew
    trial.sample(n, rows=range(1), **how, **sampler.arguments())


def weights_identity(place: Path, ema: bool | float) -> dict[str, object]:
    """SHA-256 and readable name of the weights."""
    file = place if place.is_file() else weight_file(place, ema=ema)
    digest = str(sum_files(file.parent, [file])[file.name]["sha256"])
    return {"format": 1, "sha256": digest, "weights": f"{file.absolute().parent.name}/{file.name} ({digest[:8]})"}


def conditions_to_dict(cond: Mapping[str, ConditionValue] | None) -> dict[str, object]:
    """The conditions asked for, as JSON."""
    return {name: _as_json(value) for name, value in (cond or {}).items()}


def _as_json(value: ConditionValue) -> object:
    """One value as it is, more of them as their sum."""
    if value is None or isinstance(value, str | int | float):
        return value
    array = np.asarray(value.values.cpu() if isinstance(value, Encoded) else value)
    if array.ndim == 0 or array.size <= 8:
        return array.tolist()
    return f"as listed, sha256 {hashlib.sha256(repr(array.tolist()).encode()).hexdigest()}"


def file_sum(file: Path) -> str:
    """SHA-256 of a file."""
    return str(sum_files(file.absolute().parent, [file.absolute()])[file.name]["sha256"])


def averaged(run: Path, ema: bool | float) -> bool | float | dict[str, float] | None:
    """Whether weights are averaged, or the average; None if unknown."""
    if run.is_file():
        return {EMA_FILE: True, MODEL: False}.get(run.name, read_average(run))
    return ema and (find_checkpoint(run) / EMA_FILE).is_file() if isinstance(ema, bool) else ema


def resolved(sampler: SamplerConfig, flow: Flow) -> dict[str, Any]:
    """Resolved sampler, with its cost."""
    config = sampler.resolve(flow.sampler)
    return config.facts() | ({} if (nfe := flow.nfe(config)) is None else {"nfe": nfe})


def default_folder(run: Path, name: str, seed: int) -> Path:
    """``RUN/NAME/seed-N``, or ``NAME/seed-N`` outside a run."""
    for folder in (run, *run.absolute().parents):
        if (folder / "config.yaml").is_file():
            return folder / name / f"seed-{seed}"
    return Path(name) / f"seed-{seed}"

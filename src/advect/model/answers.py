"""Answers of a run to the questions in a file: what is empty there is drawn, what is known stays."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from advect.checkpoint.manifest import sum_files
from advect.checkpoint.tensor_files import load_weights, save_tensors
from advect.core.bounds import Count, bounded
from advect.core.errors import UserError
from advect.core.files import claim_folder, sync_file
from advect.core.memory import check_disk
from advect.core.types import LENGTH
from advect.data.given import GivenRows
from advect.distributed.comm import broadcast_object, sync_errors
from advect.distributed.context import run_context
from advect.model.conditions import ConditionValue, parse_conditions
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import (
    check_sampler,
    conditions_to_dict,
    default_folder,
    open_flow,
    resolved,
    write_all,
)
from advect.model.sharded_samples import SampleShards, count_shards, open_plan
from advect.solvers.posterior import PosteriorMethod, get_posterior

logger = logging.getLogger(__name__)

_ROWS = "rows.safetensors"


@bounded
def answer_run(
    run: Path,
    file: Path,
    draws: Count = 1,
    sampler: SamplerConfig | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
    cond: Sequence[str] = (),
    ema: bool | float = True,
    output_dir: Path | None = None,
    overwrite: bool = False,
    part_size: int | None = None,
    posterior: str | PosteriorMethod | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draw what is empty in a file ``draws`` times; return the files of ``Modality.write_given``, and samples.json.

    ``cond`` has words NAME=VALUE for the conditions that the file lacks. ``posterior`` asks flows that were trained
    without a mask, see :meth:`Flow.sample_posterior`. Works in parts as
    :func:`advect.model.sampling.sample_run`: resumable, on any number of processes. Raises UserError for a bad
    argument or file, before writing.
    """
    sampler = sampler or SamplerConfig()
    folder = output_dir or default_folder(run, "imputed", seed)
    with run_context(device, run_dir=folder, seed=seed) as context, ExitStack() as stack:
        me = context.env
        place, flow, identity, mean = open_flow(run, ema, context)
        facts: dict[str, Any] = {}
        with sync_errors():
            flow.modality.check_output()
            rows = flow.modality.read_given(file)
            given = flow.modality.given_rows(rows).repeat_interleave(draws, 0)
            n, told = len(given), _conditions(flow, file, rows, draws, cond)
            count = count_shards(n, part_size, me.world)
            if posterior is None:
                check_sampler(flow, sampler, told, n=n, batch_size=batch_size, given=given)
            else:
                how = _posterior_options(posterior, sampler)
                flow.sample_posterior(n, given=given, cond=told, rows=range(1), **{**how, "steps": 2})
            if me.is_first:
                stack.enter_context(claim_folder(folder, "--output-dir"))
            size = 2 * n * math.prod(flow.spec.shape)
            check_disk(f"{draws:,} draws of {n // draws:,} rows take", size, folder, "draw fewer, or see --output-dir")
            if me.is_first:
                logger.info(f"{file.name}: {_asked(flow, rows)}, drawn {draws} times")
                data = sum_files(file.absolute().parent, [file.absolute()])[file.name]["sha256"]
                how = resolved(sampler, flow) if posterior is None else {"posterior": repr(get_posterior(posterior))}
                how = {"n": n, "draws": draws, **how, "seed": seed, "batch_size": batch_size}
                how |= {} if posterior is None else {"steps": sampler.steps, "grid": _named(sampler.grid)}
                facts = {"ema": mean, **how, "conditions": conditions_to_dict(told), "given": file.name, "data": data}
                plan = {**identity, **facts, "parts": count}
                count = open_plan(folder, plan, fixed=part_size is not None, overwrite=overwrite)
                named = {"checkpoint": place.name} if place.is_dir() else {}
                facts = {"run": str(run), **named, **plan, "parts": count}

        def fill(part: range, folder: Path, bar: tqdm) -> list[Path]:
            options = {"given": given, "cond": told, "seed": seed, "batch_size": batch_size, "progress": bar}
            if posterior is None:
                made = flow.sample(n, rows=part, **options, **sampler.arguments())
            else:
                made = flow.sample_posterior(n, rows=part, **options, **_posterior_options(posterior, sampler))
            save_tensors(folder / _ROWS, {"x": made.x, **{f"cond.{k}": v for k, v in made.encoded.items()}})
            sync_file(folder / _ROWS)
            return [folder / _ROWS]

        def write(places: list[Path]) -> list[Path]:
            parts = [load_weights(place / _ROWS) for place in places]
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            x = whole.pop("x")
            encoded = {name.removeprefix("cond."): value for name, value in whole.items()}
            return flow.modality.write_given(x, encoded, rows, draws, folder)

        parts = SampleShards(folder=folder, n=n, count=broadcast_object(count))
        return write_all(parts, fill, me, lambda _: parts.finish_as(facts, write))


def _named(grid: object) -> str | None:
    """A grid by name, or with its options, for JSON."""
    return grid if grid is None or isinstance(grid, str) else repr(grid)


def _posterior_options(method: str | PosteriorMethod, sampler: SamplerConfig) -> dict[str, Any]:
    """Arguments of ``Flow.sample_posterior``. Raises UserError for those of other samplers."""
    if sampler.solver is not None or sampler.diffusion is not None:
        flag = "--solver" if sampler.solver is not None else "--diffusion"
        raise UserError(
            f"{flag} and --posterior contradict each other, as a posterior has its own steps; leave one out"
        )
    guidance = {"guidance": sampler.guidance, "guidance_interval": sampler.guidance_interval}
    return {"method": method, "steps": sampler.steps, "grid": sampler.grid or "uniform", **guidance}


def _conditions(
    flow: Flow, file: Path, rows: GivenRows, draws: int, cond: Sequence[str]
) -> Mapping[str, ConditionValue]:
    """Conditions of all draws, by name: those of the file, and others as words. Raises UserError for one missing."""
    told: dict[str, Any] = parse_conditions(cond, flow.spec)
    for name, values in rows.conditions.items():
        if name in told:
            raise UserError(f"--cond {name}={told[name]}, and {file} has the values of {name!r}; leave one out")
        told[name] = [value for value in values for _ in range(draws)]
    for name in flow.spec.conditions:
        if name not in told and name != LENGTH:
            raise UserError(
                f"{file} has no {name!r}, a condition, which is told and not drawn; give --cond {name}=VALUE, or"
                f" {name}=none if it is not known"
            )
    return told


def _asked(flow: Flow, rows: GivenRows) -> str:
    """How much is asked for."""
    asked, groups = rows.values.flatten(1).isnan(), flow.modality.groups.flatten()
    first = torch.from_numpy(groups.unique(return_inverse=True)[1].numpy())
    entries = torch.zeros(len(asked), int(first.max()) + 1).index_add_(1, first, asked.float()) > 0
    return f"{int(entries.any(1).sum()):,} of {len(entries):,} rows ask for {int(entries.sum()):,} entries"

"""Answers of a run to the questions in a file: what is empty there is drawn, what is known stays."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from advect.checkpoint.tensor_files import load_weights, save_tensors
from advect.core.bounds import Count, bounded
from advect.core.errors import UserError
from advect.core.files import claim_folder, sync_file
from advect.core.memory import check_disk
from advect.core.types import LENGTH, Conditions, without_padding
from advect.data.given import GivenRows
from advect.data.modality import Modality
from advect.distributed.comm import broadcast_object, sync_errors
from advect.distributed.context import run_context
from advect.model.conditions import ConditionValue, parse_conditions
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.model.samples import Samples
from advect.model.sampling import (
    check_sampler,
    conditions_to_dict,
    default_folder,
    file_sum,
    open_call,
    open_flow,
    resolved,
    write_all,
)
from advect.model.sharded_samples import SampleShards
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
    output_dir: Path | None = None,
    posterior: str | PosteriorMethod | None = None,
    **how: Any,
) -> list[Path]:
    """Draw what is empty in a file ``draws`` times; return the files of ``Modality.write_given``, and samples.json.

    ``cond`` has words NAME=VALUE for the conditions that the file lacks. ``posterior`` asks flows that were trained
    without a mask, see :meth:`Flow.sample_posterior`. ``how`` are the other arguments of :func:`answer`. Raises
    UserError for a bad argument or file, before writing.
    """

    def question(flow: Flow) -> Question:
        flow.modality.check_output()
        if not file.is_file():
            raise UserError(f"{file} is no file; give one in the form of the training data")
        rows = flow.modality.read_given(file)
        given = flow.modality.given_rows(rows).repeat_interleave(draws, 0)
        told = _conditions(flow, file, rows, draws, cond)
        ask = Ask(flow, given, told, sampler or SamplerConfig(), posterior, seed, batch_size)
        times = "once" if draws == 1 else f"{draws:,} times"
        write = lambda x, encoded, folder: flow.modality.write_given(x, encoded, rows, draws, folder)
        says = f"{file.name}: {how_much(flow.modality, rows)}, drawn {times}"
        return Question(ask, {"draws": draws, "given": file.name, "data": file_sum(file)}, write, says)

    return answer(run, question, output_dir or default_folder(run, "imputed", seed), **how)


def answer(
    run: Path,
    question: Callable[[Flow], Question],
    folder: Path,
    *,
    ema: bool | float = True,
    overwrite: bool = False,
    part_size: int | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draw the answers to a run's question into a folder; return the files written, and samples.json.

    Works in parts as :func:`advect.model.sampling.sample_run`: resumable, on any number of processes. Raises
    UserError for a bad question, before writing.
    """
    with run_context(device, run_dir=folder) as context, ExitStack() as stack:
        me = context.env
        place, flow, identity, mean = open_flow(run, ema, context)
        facts: dict[str, Any] = {}
        with sync_errors():
            asked = question(flow)
            ask, n = asked.ask, len(asked.ask.given)
            ask.check()
            if me.is_first:
                stack.enter_context(claim_folder(folder, "--output-dir"))
            size = 2 * n * math.prod(flow.spec.shape)
            check_disk(f"{n:,} draws take", size, folder, "draw fewer, or see --output-dir")
            if me.is_first:
                if asked.says:
                    logger.info(asked.says)
                told = {"conditions": conditions_to_dict(ask.told)}
                plan = {**identity, "ema": mean, "n": n, **ask.facts(), **told, **asked.plan}
                facts = open_call(folder, run, place, plan, part_size=part_size, world=me.world, overwrite=overwrite)

        def fill(part: range, folder: Path, bar: tqdm) -> list[Path]:
            made = ask.draw(part, progress=bar)
            save_tensors(folder / _ROWS, {"x": made.x, **{f"cond.{k}": v for k, v in made.encoded.items()}})
            sync_file(folder / _ROWS)
            return [folder / _ROWS]

        def write(places: list[Path]) -> list[Path]:
            parts = [load_weights(place / _ROWS) for place in places]
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            x = whole.pop("x")
            return asked.write(x, {name.removeprefix("cond."): value for name, value in whole.items()}, folder)

        parts = SampleShards(folder=folder, n=n, count=broadcast_object(facts.get("parts", 0)))
        return write_all(parts, fill, me, lambda _: parts.finish_as(facts, write))


@dataclass(frozen=True)
class Question:
    """What is drawn, what identifies it beside how, and what writes samples with their conditions into a folder."""

    ask: Ask
    plan: Mapping[str, Any]
    write: Callable[[Tensor, Conditions, Path], list[Path]]
    says: str = ""


@dataclass(frozen=True)
class Ask:
    """The samples (n, *data shape) whose entries are ``given``, NaN where asked for, under conditions of n values,
    and how they are drawn: by a sampler, or a posterior with the sampler's steps, grid and guidance.
    """

    flow: Flow
    given: Any
    told: Mapping[str, ConditionValue]
    sampler: SamplerConfig
    posterior: str | PosteriorMethod | None
    seed: int
    batch_size: int
    model_units: bool = False

    def draw(self, rows: range, **options: Any) -> Samples:
        """Some rows of the samples."""
        n, how = len(self.given), {"given": self.given, "cond": self.told, "rows": rows}
        how |= {"seed": self.seed, "batch_size": self.batch_size, "model_units": self.model_units, **options}
        if self.posterior is None:
            return self.flow.sample(n, **how, **self.sampler.arguments())
        return self.flow.sample_posterior(n, **{**self._posterior_options(), **how})

    def check(self) -> None:
        """Raise UserError for what cannot be drawn, by a trial of one row."""
        if self.posterior is not None:
            self.draw(range(1), steps=2)
            return
        n, size = len(self.given), self.batch_size
        check_sampler(self.flow, self.sampler, self.told, n=n, batch_size=size, given=self.given)

    def facts(self) -> dict[str, Any]:
        """How they are drawn, as JSON."""
        after = {"seed": self.seed, "batch_size": self.batch_size}
        if self.posterior is None:
            return {**resolved(self.sampler, self.flow), **after}
        method, grid = get_posterior(self.posterior), self.sampler.grid or "uniform"
        how = replace(self.sampler, steps=self.sampler.steps or method.steps, grid=grid).facts()
        names = ("steps", "grid", "guidance", "guidance_interval")
        return {"posterior": repr(method), **{name: how[name] for name in names}, **after}

    def _posterior_options(self) -> dict[str, Any]:
        """Arguments of ``Flow.sample_posterior``. Raises UserError for those of other samplers."""
        s = self.sampler
        if s.solver is not None or s.diffusion is not None:
            flag = "--solver" if s.solver is not None else "--diffusion"
            raise UserError(
                f"{flag} and --posterior contradict each other, as a posterior has its own steps; leave one out"
            )
        guidance = {"guidance": s.guidance, "guidance_interval": s.guidance_interval}
        return {"method": self.posterior, "steps": s.steps, "grid": s.grid or "uniform", **guidance}


def _conditions(
    flow: Flow, file: Path, rows: GivenRows, draws: int, cond: Sequence[str]
) -> Mapping[str, ConditionValue]:
    """:func:`file_conditions` of all draws. Raises UserError for one missing."""
    told = file_conditions(file, rows.conditions, draws, parse_conditions(cond, flow.spec))
    for name in flow.spec.conditions:
        if name not in told and name != LENGTH:
            raise UserError(
                f"{file} has no {name!r}, a condition, which is told and not drawn; give --cond {name}=VALUE, or"
                f" {name}=none if it is not known"
            )
    return told


def file_conditions(
    file: Path, values: Mapping[str, Iterable[Any]], draws: int, cond: Mapping[str, Any]
) -> dict[str, Any]:
    """Conditions by name: a file's ``values`` of its rows, each ``draws`` times, and those of ``cond`` for all.

    Raises UserError for one that both have.
    """
    for name in values.keys() & cond.keys():
        raise UserError(f"--cond {name}={cond[name]}, and {file} has the values of {name!r}; leave one out")
    return {**cond, **{name: [value for value in some for _ in range(draws)] for name, some in values.items()}}


def how_much(modality: Modality, rows: GivenRows) -> str:
    """How much is asked for, padding apart."""
    lengths = {name: torch.as_tensor(value) for name, value in rows.conditions.items() if name == LENGTH}
    asked, groups = without_padding(rows.values.isnan(), lengths).flatten(1), modality.groups.flatten()
    first = torch.from_numpy(groups.unique(return_inverse=True)[1].numpy())
    entries = torch.zeros(len(asked), int(first.max()) + 1).index_add_(1, first, asked.float()) > 0
    return f"{int(entries.any(1).sum()):,} of {len(entries):,} rows ask for {int(entries.sum()):,} entries"

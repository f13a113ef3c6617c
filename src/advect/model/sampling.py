"""Draw samples of a run to files, whole or in shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from advect.checkpoint.manifest import (
    checkpoint_step,
    find_checkpoint,
    find_weights,
    names_checkpoint,
    sum_files,
)
from advect.config.build import pick_device
from advect.core.device import tune_process
from advect.core.files import atomic_write_text, make_folder
from advect.core.types import Conditions
from advect.distributed.comm import broadcast_object, process_group, sync_errors
from advect.model.conditions import ConditionValue
from advect.model.flow import Flow, sample_bar
from advect.model.load import load, read_average, weight_file
from advect.model.sharded_samples import SampleShards, count_parts, draw_parts, open_plan
from advect.reporting.outputs import check_output, write_samples
from advect.solvers import SDE_SOLVERS, get_solver
from advect.solvers.sde import STEPS as SDE_STEPS
from advect.training.state import EMA_FILE, MODEL


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What to draw and how; None is the run's own choice. The fields are arguments of :meth:`Flow.sample`."""

    n: int = 64
    steps: int | None = None
    solver: str | None = None
    grid: str | None = None
    diffusion: float | str | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    seed: int = 0
    batch_size: int = 256


def sample_run(
    run: Path,
    draw: Draw,
    *,
    cond: Mapping[str, ConditionValue] | None = None,
    ema: bool | float = True,
    save_individual: bool = False,
    output_dir: Path | None = None,
    overwrite: bool = False,
    part_size: int | None = None,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Sample from a run into a folder, and return the files: those of :func:`write_samples`, and samples.json.

    More than ``part_size`` (10,000) samples, and what several processes draw, become parts, as ``runs.parts`` tells:
    each process writes its own, and the first one returns their folders, samples.png and samples.json, the others
    nothing. The same call again goes on after the parts that are whole.

    Raises UserError for a bad argument, before anything is written, and where ``output_dir`` cannot be written to, or
    already holds other samples, unless ``overwrite``.
    """
    tune_process()
    folder = output_dir or _default_folder(run, draw.seed)
    with process_group(pick_device(device)) as me, ExitStack() as stack:
        with sync_errors():
            place = find_weights(run) if me.is_first else run
        place = broadcast_object(place)  # a run that still trains has newer ones by and by
        if me.is_first and names_checkpoint(run):
            say(f"{run} is the checkpoint of step {checkpoint_step(place):,}")
        facts: dict[str, object] = {}
        with sync_errors():
            flow = load(place, ema=ema, device=device)
            check_output(flow, individual=save_individual)
            count = count_parts(draw.n, part_size, me.world)
            if me.is_first:
                stack.enter_context(_made(folder))  # now, as sampling may take an hour
            check_draw(flow, draw, cond)
            if me.is_first:
                facts = {"ema": averaged(place, ema), **_resolved(draw, flow), "conditions": told_conditions(cond)}
                plan = {**weights_identity(place, ema), **facts, "individual": save_individual, "parts": count}
                count = open_plan(folder, plan, fixed=part_size is not None, overwrite=overwrite)
                named = {"checkpoint": place.name} if place.is_dir() else {}
                facts = {"run": str(run), **named, **(plan if count > 1 else facts)}

        def fill(rows: range, folder: Path, bar: tqdm) -> list[Path]:
            conditions = flow.conditions(draw.n, cond, draw.seed, rows=rows)
            x = flow.sample(**asdict(draw), cond=cond, rows=rows, progress=bar)
            options = {"individual": save_individual, "first": rows.start, "seed": draw.seed}
            return write_samples(flow, x, conditions, folder, **options)

        parts = SampleShards(folder=folder, n=draw.n, count=broadcast_object(count))
        if parts.count > 1:
            if me.is_first and me.world > parts.count:
                idle = me.world - parts.count
                say(f"note: {parts.count} parts leave {idle} of {me.world} processes idle; see --part-size")
            written = draw_parts(parts, fill, show=progress and me.is_first, say=say)
            return [] if written is None else parts.finish(facts, written)
        if not me.is_first:
            return []
        with sample_bar(draw.n, progress) as bar:
            files = fill(range(draw.n), folder, bar)
        facts |= {"files": [file.name for file in files]}
        atomic_write_text(folder / "samples.json", json.dumps(facts, indent=1) + "\n")
        return [*files, folder / "samples.json"]


_KINDS = {
    ".h5ad": "cells:",
    ".parquet": "table:",
    ".csv": "table:",
    ".npz": "arrays:",
    ".png": "picture:",
    ".json": "facts:",
}
"""What a file of samples holds."""


def describe_files(files: Sequence[Path], *, individual: bool) -> list[str]:
    """A line for each file of :func:`sample_run`, but one for all parts and one for all single images."""
    lines = [f"{_KINDS[f.suffix]:8} {f}" for f in files if f.suffix and not f.stem.startswith("sample-")]
    parts = [file for file in files if not file.suffix]
    if parts:
        lines.append(f"parts:   {parts[0].parent / 'part-*'} ({len(parts)})")
    if files and individual:
        lines.append(f"images:  {(parts[0].parent / 'part-*' if parts else files[0].parent) / 'sample-*.png'}")
    return lines


class _Still(nn.Module):
    """Nothing moves: a network that costs nothing."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        return torch.zeros_like(x_t)


def check_draw(flow: Flow, draw: Draw, cond: Mapping[str, ConditionValue] | None = None) -> None:
    """Raise UserError where a draw cannot be made, by making one sample of it without the network."""
    trial = copy(flow)
    trial.net = _Still()
    trial.sample(**asdict(draw), cond=cond, rows=range(1))


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; what fails in the block removes it, if it is new and still empty."""
    new = not folder.exists()
    make_folder(folder, "--output-dir")
    try:
        yield
    except BaseException:
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def weights_identity(place: Path, ema: bool | float) -> dict[str, object]:
    """Which weights are drawn from: their sum, and the name by which a person knows them."""
    file = place if place.is_file() else weight_file(place, ema=ema)
    digest = str(sum_files(file.parent, [file])[file.name]["sha256"])
    return {"format": 1, "sha256": digest, "weights": f"{file.absolute().parent.name}/{file.name} ({digest[:8]})"}


def told_conditions(cond: Mapping[str, ConditionValue] | None) -> dict[str, object]:
    """The conditions asked for, as JSON can tell them."""
    return {name: _listed(value) if isinstance(value, Tensor) else value for name, value in (cond or {}).items()}


def _listed(value: Tensor) -> str:
    return f"as listed, sha256 {hashlib.sha256(value.cpu().contiguous().numpy().tobytes()).hexdigest()}"


def averaged(run: Path, ema: bool | float) -> bool | float | dict[str, float] | None:
    """Whether the weights are the averaged ones, or which of several; None for a weight file that does not tell."""
    if run.is_file():
        return {EMA_FILE: True, MODEL: False}.get(run.name, read_average(run))
    return ema and (find_checkpoint(run) / EMA_FILE).is_file() if isinstance(ema, bool) else ema


def _resolved(draw: Draw, flow: Flow) -> dict[str, object]:
    """The draw's fields with the run's own choices filled in."""
    facts = asdict(draw)
    if draw.diffusion is not None:
        facts["solver"], facts["steps"] = draw.solver or SDE_SOLVERS[0], draw.steps or SDE_STEPS
        facts["grid"] = draw.grid or flow.sampler.grid
    else:
        facts["solver"] = draw.solver or flow.sampler.solver
        if facts["solver"] != "dopri5":
            facts["steps"] = draw.steps or flow.sampler.steps
            facts["grid"] = draw.grid or flow.sampler.grid
            facts["nfe"] = get_solver(facts["solver"]).nfe(facts["steps"])
    return facts


def _default_folder(run: Path, seed: int) -> Path:
    """``RUN/generated/seed-N`` for a run or a checkpoint inside one, else ``generated/seed-N`` here."""
    for folder in (run, *run.absolute().parents):
        if (folder / "config.yaml").is_file():
            return folder / "generated" / f"seed-{seed}"
    return Path("generated") / f"seed-{seed}"

"""The job behind ``advect sample``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from advect.core.errors import UserError
from advect.config.arguments import parse_words
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import asdict, dataclass
import torch
from torch import Tensor, nn
from tqdm import tqdm
from advect.core.files import make_folder, write_text_whole
from advect.distributed.comm import agree, broadcast_object, joined
from advect.core.device import tune_process
from advect.core.types import Conditions
from advect.config.build import pick_device
from advect.model.conditions import ConditionValue
from advect.model.flow import Flow, sample_bar
from advect.model.load import load, read_average, weight_file
from advect.reporting.outputs import check_output, write_samples
from advect.model.sharded_samples import Parts, count_parts, draw_parts, open_plan
from advect.solvers import SDE_SOLVERS, get_solver
from advect.solvers.sde import STEPS as SDE_STEPS
from advect.checkpoint.manifest import (
    checkpoint_step,
    find_checkpoint,
    find_weights,
    names_checkpoint,
    sum_files,
)
from advect.training.state import EMA, MODEL



@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """What one call of ``advect sample`` asks for."""

    num_samples: int = 64
    """How many samples."""
    num_steps: int | None = None
    """Solver steps; by default as many as the run's own sample grids."""

    # Solver; by default that of the run's own sample grids. euler: order 1. midpoint, heun: order 2, two
    # evaluations a step. ab2, dpmpp2m: order 2, one evaluation; dpmpp2m is exact where the data's prediction stands
    # still. rk4: order 4, four evaluations. dopri5: adaptive. euler-maruyama, heun: with --diffusion.
    solver: Literal["euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m", "dopri5", "euler-maruyama"] | None = None

    grid: Literal["uniform", "cosine", "edm", "shifted"] | None = None
    """Where the steps lie: evenly; dense at both ends; as EDM's noise levels; more near the noise."""

    # Sample the stochastic equation with this g(t): a number such as 0.5, or a name such as sigma; more of it
    # forgets errors and needs more steps.
    diffusion: str | None = None

    seed: int = 0
    """The same seed gives the same samples."""

    # Conditions as NAME=VALUE, such as label=7. NAME=cycle takes each value in turn, NAME=none samples without;
    # conditions that are not named are drawn as often as in the data.
    cond: tuple[str, ...] = ()

    guidance: float = 1.0
    """Scale of classifier-free guidance: 1 is none, 2 or 3 follows the condition more closely."""
    guidance_interval: tuple[float, float] | None = None
    """Times LO HI between which guidance acts; by default all."""
    use_ema: bool = True
    """Use the averaged weights."""
    ema_decay: float | None = None
    """Use the average of this decay, one of those that the run was trained with."""
    save_individual: bool = False
    """Write each image to a file of its own, too."""
    output_dir: Path | None = None
    """Folder for the samples, a picture and their facts; by default RUN/generated/seed-SEED."""
    overwrite: bool = False
    """Replace other samples that are there already."""
    batch_size: int = 256
    """Samples drawn at once."""

    # More samples than this, 10,000 by default, are written in parts of at most this many, which several processes
    # share. A call that has been ended goes on after its whole parts when it is repeated.
    part_size: int | None = None

    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""
    nproc: int = 1
    """Processes on this machine, on a GPU each where there are any; as torchrun --nproc_per_node starts them."""

    @property
    def draw(self) -> Draw:
        """What to draw and how."""
        return Draw(
            n=self.num_samples,
            steps=self.num_steps,
            solver=self.solver,
            grid=self.grid,
            diffusion=number_or_name(self.diffusion),
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            seed=self.seed,
            batch_size=self.batch_size,
        )

    @property
    def conditions(self) -> dict[str, str]:
        """``--cond`` as names and values."""
        return parse_conditions(self.cond)


def parse_sample(flags: list[str]) -> SampleArguments:
    """Parse the words after ``advect sample RUN``. Raises UserError."""
    a = parse_words(SampleArguments, flags, prog="advect sample RUN", description="Draw samples from a trained flow.")
    parse_conditions(a.cond)
    if a.ema_decay is not None and not a.use_ema:
        raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")
    return a


def number_or_name(word: str | None) -> float | str | None:
    """What ``--diffusion`` says."""
    try:
        return None if word is None else float(word)
    except ValueError:
        return word


def parse_conditions(words: tuple[str, ...]) -> dict[str, str]:
    """What ``--cond`` says: values by name. Raises UserError."""
    cond: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UserError(f"--cond {word} should be NAME=VALUE, such as label=7")
        cond[name] = value
    return cond


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
    with joined(pick_device(device)) as me, ExitStack() as stack:
        with agree():
            place = find_weights(run) if me.is_first else run
        place = broadcast_object(place)  # a run that still trains has newer ones by and by
        if me.is_first and names_checkpoint(run):
            say(f"{run} is the checkpoint of step {checkpoint_step(place):,}")
        facts: dict[str, object] = {}
        with agree():
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

        parts = Parts(folder=folder, n=draw.n, count=broadcast_object(count))
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
        write_text_whole(folder / "samples.json", json.dumps(facts, indent=1) + "\n")
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
        return {EMA: True, MODEL: False}.get(run.name, read_average(run))
    return ema and (find_checkpoint(run) / EMA).is_file() if isinstance(ema, bool) else ema


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

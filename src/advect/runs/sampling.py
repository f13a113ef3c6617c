"""The job behind ``advect sample``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import make_folder, write_text_whole
from advect.core.platform import tune_process
from advect.runs.conditions import ConditionValue
from advect.runs.flow import Flow
from advect.runs.loading import load
from advect.runs.outputs import check_output, write_samples
from advect.sampling import SDE_SOLVERS, get_solver
from advect.sampling.sde import STEPS as SDE_STEPS
from advect.training.checkpoint import find_checkpoint
from advect.training.state import EMA, MODEL


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
    ema: bool = True,
    save_individual: bool = False,
    output_dir: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> list[Path]:
    """Sample from a run into a folder, and return the files: those of :func:`write_samples`, and samples.json.

    Raises UserError for a bad argument, before anything is written, and where ``output_dir`` cannot be written to, or
    already holds samples, unless ``overwrite``.
    """
    tune_process()
    folder = output_dir or _default_folder(run, draw.seed)
    if any(folder.glob("samples.*")) and not overwrite:
        raise UserError(f"--output-dir {folder} already holds samples; name another folder, or give --overwrite")
    flow = load(run, ema=ema, device=device)
    check_output(flow, individual=save_individual)
    conditions = flow.conditions(draw.n, cond, draw.seed)
    new = not folder.exists()
    make_folder(folder, "--output-dir")  # now, as sampling may take an hour
    try:
        x = flow.sample(**asdict(draw), cond=conditions, progress=progress)
    except BaseException:
        if new:
            folder.rmdir()
        raise
    files = write_samples(flow, x, conditions, folder, individual=save_individual, seed=draw.seed)
    asked = {name: "as listed" if isinstance(value, Tensor) else value for name, value in (cond or {}).items()}
    facts = {"run": str(run), "ema": _averaged(run, ema), **_resolved(draw, flow), "conditions": asked}
    facts |= {"files": [file.name for file in files]}
    write_text_whole(folder / "samples.json", json.dumps(facts, indent=1) + "\n")
    return [*files, folder / "samples.json"]


def _averaged(run: Path, ema: bool) -> bool | None:
    """Whether the weights are the averaged ones; None for a weight file whose name does not tell."""
    if run.is_file():
        return {EMA: True, MODEL: False}.get(run.name)
    return ema and (find_checkpoint(run) / EMA).is_file()


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

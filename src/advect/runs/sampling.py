"""The job behind ``advect sample``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import make_folder, write_text_whole, write_whole
from advect.core.platform import tune_process
from advect.reports.grid import picture, save_png
from advect.runs.conditions import ConditionValue
from advect.runs.flow import Flow
from advect.runs.loading import load
from advect.sampling import SDE_SOLVERS, get_solver
from advect.sampling.sde import STEPS as SDE_STEPS

GRID = 100
"""At most so many samples are drawn in samples.png."""


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


def write_samples(
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
) -> Path:
    """Sample from a run into a folder, and return it: ``samples.npz`` (data units), ``samples.png``, ``samples.json``.

    Single images are written beside them with ``save_individual``. Raises UserError for a bad argument, before
    anything is written, and where ``output_dir`` already holds samples, unless ``overwrite``.
    """
    tune_process()
    folder = output_dir or _default_folder(run, draw.seed)
    if (folder / "samples.npz").exists() and not overwrite:
        raise UserError(f"--output-dir {folder} already holds samples; name another folder, or give --overwrite")
    flow = load(run, ema=ema, device=device)
    if save_individual and flow.spec.kind != "image":
        raise UserError("--save-individual writes images, and this flow makes vectors; they are in samples.npz")
    conditions = flow.conditions(draw.n, cond, draw.seed)
    x = flow.sample(**asdict(draw), cond=conditions, progress=progress)
    make_folder(folder, "--output-dir")
    arrays = {"x": x.numpy(), **{name: value.numpy() for name, value in conditions.items()}}
    write_whole(folder / "samples.npz", lambda path: _save_npz(path, arrays))
    shown = x[:GRID] if flow.spec.kind == "image" else x
    save_png(picture(shown, flow.spec, flow.transform), folder / "samples.png")
    if save_individual:
        _save_individual(x, flow, folder)
    asked = {name: "as listed" if isinstance(value, Tensor) else value for name, value in (cond or {}).items()}
    facts = {"run": str(run), "ema": ema, **_resolved(draw, flow), "conditions": asked}
    write_text_whole(folder / "samples.json", json.dumps(facts, indent=1) + "\n")
    return folder


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


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _save_individual(x: Tensor, flow: Flow, folder: Path) -> None:
    for i in range(len(x)):
        save_png(picture(x[i : i + 1], flow.spec, flow.transform), folder / f"sample-{i:06d}.png")

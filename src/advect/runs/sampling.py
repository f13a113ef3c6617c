"""The job behind ``advect sample``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from advect.core.errors import UserError
from advect.core.files import make_folder, write_text_whole, write_whole
from advect.core.platform import tune_process
from advect.reports.grid import picture, save_png
from advect.runs.flow import ConditionValue, Flow, load
from advect.sampling import get_solver

GRID = 100
"""At most so many samples are drawn in grid.png."""


@dataclass(frozen=True)
class Written:
    """The files that a call of :func:`write_samples` left."""

    folder: Path
    picture: Path
    arrays: Path


def write_samples(
    run: Path,
    *,
    n: int,
    steps: int | None = None,
    solver: str | None = None,
    seed: int = 0,
    cond: Mapping[str, ConditionValue] | None = None,
    guidance: float = 1.0,
    ema: bool = True,
    save_individual: bool = False,
    output_dir: Path | None = None,
    overwrite: bool = False,
    batch_size: int = 256,
    device: str = "auto",
    progress: bool = True,
) -> Written:
    """Sample from a run and write ``samples.npz`` (data units), ``samples.png`` and ``samples.json``.

    Single images are written beside them with ``save_individual``. Raises UserError for a bad argument, before
    anything is written, and where ``output_dir`` already holds samples, unless ``overwrite``.
    """
    tune_process()
    if solver is not None:
        get_solver(solver)
    folder = output_dir or _default_folder(run, seed)
    if (folder / "samples.npz").exists() and not overwrite:
        raise UserError(f"--output-dir {folder} already holds samples; name another folder, or give --overwrite")
    flow = load(run, ema=ema, device=device)
    if save_individual and flow.spec.kind != "image":
        raise UserError("--save-individual writes images, and this flow makes vectors; they are in samples.npz")
    make_folder(folder, "--output-dir")
    conditions = flow.conditions(n, cond, seed)
    x = flow.sample(
        n,
        steps=steps,
        solver=solver,
        seed=seed,
        cond=conditions,
        guidance=guidance,
        batch_size=batch_size,
        progress=progress,
    )
    arrays = {"x": x.numpy(), **{name: value.numpy() for name, value in conditions.items()}}
    write_whole(folder / "samples.npz", lambda path: _save_npz(path, arrays))
    save_png(picture(x[: GRID if flow.spec.kind == "image" else n], flow.spec, flow.transform), folder / "samples.png")
    if save_individual:
        _save_individual(x, flow, folder)
    chosen = get_solver(solver or flow.solver)
    grid = flow.steps if steps is None else steps
    facts = {
        "run": str(run),
        "n": n,
        "seed": seed,
        "solver": chosen.name,
        "steps": grid,
        "nfe": grid * chosen.evaluations,
        "guidance": guidance,
        "ema": ema,
        "conditions": {
            k: v if isinstance(v, (int, str)) or v is None else "as listed" for k, v in (cond or {}).items()
        },
    }
    write_text_whole(folder / "samples.json", json.dumps(facts, indent=1) + "\n")
    return Written(folder, folder / "samples.png", folder / "samples.npz")


def _default_folder(run: Path, seed: int) -> Path:
    """``RUN/generated/seed-N`` for a run or a checkpoint inside one, else ``generated/seed-N`` here."""
    for folder in (run, *run.absolute().parents):
        if (folder / "config.yaml").is_file():
            return folder / "generated" / f"seed-{seed}"
    return Path("generated") / f"seed-{seed}"


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _save_individual(x: torch.Tensor, flow: Flow, folder: Path) -> None:
    for i in range(len(x)):
        save_png(picture(x[i : i + 1], flow.spec, flow.transform), folder / f"sample-{i:06d}.png")

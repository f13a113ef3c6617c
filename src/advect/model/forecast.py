"""Forecasts of the series in a file by a run, into a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advect.checkpoint.manifest import sum_files
from advect.core.bounds import Count, bounded
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, claim_folder
from advect.core.records import find_object
from advect.core.types import LENGTH
from advect.data.figure import save_png
from advect.data.sequences.forecast import ForecastDraws, ForecastQuestion, fan_plot
from advect.data.sequences.given import read_step_file
from advect.data.sequences.modality import SequencesModality
from advect.data.tables.files import write_table
from advect.distributed.context import run_context
from advect.model.answers import file_conditions
from advect.model.conditions import parse_conditions
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import conditions_to_dict, default_folder, open_flow, resolved
from advect.model.sharded_samples import plan_difference

FACTS = "forecast.json"
DRAWS, QUANTILES, PICTURE = "draws", "quantiles", "forecast"


@bounded
def forecast_run(
    run: Path,
    file: Path,
    horizon: Count,
    *,
    draws: Count = 100,
    history: Count | None = None,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
    batch_size: int = 256,
    cond: Sequence[str] = (),
    ema: bool | float = True,
    output_dir: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Draw the next ``horizon`` steps of each series in a file; return draws, quantiles, picture and forecast.json.

    The last ``history`` steps are known, by default as many as the sequences of training leave. ``cond`` has words
    NAME=VALUE for conditions that the file lacks. A repeated call gives what is there. Raises UserError for a flow
    that makes no sequences or was not trained with a mask, a file that does not fit, and a folder that holds another
    forecast, unless ``overwrite``.
    """
    folder = output_dir or default_folder(run, "forecasts", seed)
    sampler = sampler or SamplerConfig()
    with run_context(device, run_dir=folder, seed=seed) as context, ExitStack() as stack:
        _, flow, identity, mean = open_flow(run, ema, context)
        question = forecast_question(flow, file, horizon, history)
        told = file_conditions(file, question.file.conditions, draws, parse_conditions(cond, flow.spec))
        stack.enter_context(claim_folder(folder, "--output-dir"))
        data = sum_files(file.absolute().parent, [file.absolute()])[file.name]["sha256"]
        plan = {**identity, "ema": mean, "file": file.name, "data": data, **resolved(sampler, flow)}
        plan |= {"seed": seed, "batch_size": batch_size, "conditions": conditions_to_dict(told)}
        plan |= {"horizon": horizon, "history": history, "draws": draws}
        if there := _finished(folder, plan, overwrite):
            return there
        options = {"seed": seed, "batch_size": batch_size, "progress": True, **sampler.arguments()}
        answer = draw_forecast(flow, question, draws, cond=told, **options)
        return _write(folder, answer, plan)


def forecast_question(flow: Flow, file: Path, horizon: int, history: int | None = None) -> ForecastQuestion:
    """The question of the steps after the series of a file. Raises UserError as :func:`forecast_run`."""
    modality = flow.modality
    if not isinstance(modality, SequencesModality):
        raise UserError(f"advect forecast is for sequences, and this flow makes {modality.name} data; see --given")
    if not flow.masked:
        raise UserError(
            "advect forecast needs a flow that was given the first steps in training; train with --mask prefix"
        )
    return ForecastQuestion(
        read_step_file(file, modality.metadata), modality.metadata, flow.spec.shape[0], horizon, history
    )


def draw_forecast(
    flow: Flow, question: ForecastQuestion, draws: int, *, cond: Mapping[str, Any], **options: Any
) -> ForecastDraws:
    """Draw the steps after each series; ``cond`` and ``options`` are those of ``Flow.sample``."""
    given = torch.from_numpy(question.given()).repeat_interleave(draws, 0)
    lengths = {LENGTH: np.repeat(question.lengths(), draws)} if LENGTH in flow.spec.conditions else {}
    z = flow.sample(len(given), given=given, cond={**cond, **lengths}, model_units=True, **options).x
    return question.answer(flow.transform.inverse(z).double().numpy())  # with gaps apart from the file's times


def _finished(folder: Path, plan: dict[str, Any], overwrite: bool) -> list[Path] | None:
    """Verified files of the same forecast, if whole. Raises UserError for other files, unless ``overwrite``."""
    found = find_object(folder / FACTS) or {}
    try:
        files = [folder / name for name in found["files"]]
        whole = sum_files(folder, files) == found["sums"]
    except (OSError, KeyError, TypeError):
        files, whole = [], False
    here = json.loads(json.dumps(plan))
    difference = plan_difference(found, here)
    if whole and difference is None:
        return [*files, folder / FACTS]
    if difference is None or overwrite:
        return None
    if found:
        raise UserError(
            f"--output-dir {folder} already holds another forecast: {difference}; name another folder, or give"
            " --overwrite"
        )
    if there := [path.name for path in folder.iterdir() if path.stem in (DRAWS, QUANTILES, PICTURE)]:
        raise UserError(
            f"--output-dir {folder} already holds {min(there)}, of which {FACTS} tells nothing; name another folder, "
            "or give --overwrite"
        )
    return None


def _write(folder: Path, answer: ForecastDraws, plan: dict[str, Any]) -> list[Path]:
    """Write draws, quantiles and the fan plot; before them what they will be of, and after them their sums."""
    atomic_write_text(folder / FACTS, json.dumps(plan, indent=1) + "\n")
    facts = answer.question.facts
    suffix, separator = (facts["style"]["suffix"], facts["style"]["separator"]) if facts["style"] else (".csv", None)
    text = suffix == ".csv"
    files = [folder / f"{DRAWS}{suffix}", folder / f"{QUANTILES}{suffix}", folder / f"{PICTURE}.png"]
    write_table(files[0], answer.frame(text=text), separator=separator)
    write_table(files[1], answer.quantiles(text=text), separator=separator)
    save_png(fan_plot(answer), files[2])
    whole = {**plan, "files": [file.name for file in files], "sums": sum_files(folder, files)}
    atomic_write_text(folder / FACTS, json.dumps(whole, indent=1) + "\n")
    return [*files, folder / FACTS]

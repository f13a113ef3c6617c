"""Forecasts of the series in a file by a run, into a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advect.checkpoint.manifest import find_weights, read_newest, sum_files
from advect.core.bounds import Count, bounded
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, claim_folder, remove_partial
from advect.core.records import find_object
from advect.core.types import LENGTH
from advect.data.figure import save_png
from advect.data.sequences.forecast import ForecastDraws, ForecastQuestion, fan_plot
from advect.data.sequences.given import read_step_file
from advect.data.sequences.modality import SequencesModality
from advect.data.tables.files import write_table
from advect.distributed.context import run_context
from advect.model.flow import Flow
from advect.model.load import load
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import default_folder, weights_identity

FACTS = "forecast.json"


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
    cond: Mapping[str, Any] | None = None,
    ema: bool | float = True,
    output_dir: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Draw the next ``horizon`` steps of each series in a file; return draws, quantiles, picture and forecast.json.

    The last ``history`` steps are known, by default as many as the sequences of training leave. A repeated call gives
    what is there. Raises UserError for a flow that makes no sequences or was not trained with a mask, a file that does
    not fit, and a folder that holds another forecast, unless ``overwrite``.
    """
    folder = output_dir or default_folder(run, "forecasts", seed)
    sampler = sampler or SamplerConfig()
    with run_context(device, run_dir=folder, seed=seed) as context, ExitStack() as stack:
        place, flow = read_newest(run, lambda p: (p, load(p, ema=ema, device=context.device)), find_weights)
        question = forecast_question(flow, file, horizon, history)
        stack.enter_context(claim_folder(folder, "--output-dir"))
        plan = _plan(place, ema, file, flow, sampler, seed=seed, cond=cond)
        plan |= {"horizon": horizon, "history": history, "draws": draws, "batch_size": batch_size}
        if there := _finished(folder, plan, overwrite):
            return there
        options = {"seed": seed, "batch_size": batch_size, "progress": True, **sampler.arguments()}
        answer = draw_forecast(flow, question, draws, cond=cond, **options)
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
    flow: Flow, question: ForecastQuestion, draws: int, *, cond: Mapping[str, Any] | None = None, **options: Any
) -> ForecastDraws:
    """Draw the steps after each series; ``options`` are those of ``Flow.sample``, and the file's conditions go before
    those of ``cond``.
    """
    given = torch.from_numpy(question.given()).repeat_interleave(draws, 0)
    told: dict[str, Any] = dict(cond or {})
    for name, values in question.file.conditions.items():
        told[name] = [value for value in values for _ in range(draws)]
    if LENGTH in flow.spec.conditions:
        told[LENGTH] = np.repeat(question.lengths(), draws)
    z = flow.sample(len(given), given=given, cond=told, model_units=True, **options).x
    return question.answer(flow.transform.inverse(z).double().numpy())  # with gaps apart from the file's times


def _plan(
    place: Path, ema: bool | float, file: Path, flow: Flow, sampler: SamplerConfig, *, seed: int, cond: Any
) -> dict[str, Any]:
    """What a forecast is of, as JSON."""
    data = sum_files(file.absolute().parent, [file.absolute()])[file.name]["sha256"]
    how = sampler.resolve(flow.sampler).facts()
    return {**weights_identity(place, ema), "file": str(file), "data": data, **how, "seed": seed, "conditions": cond}


def _finished(folder: Path, plan: dict[str, Any], overwrite: bool) -> list[Path] | None:
    """Verified files of the same forecast. Raises UserError for another one, unless ``overwrite``."""
    remove_partial(folder)
    found = find_object(folder / FACTS) or {}
    try:
        files = [folder / name for name in found["files"]]
        whole = sum_files(folder, files) == found["sums"]
    except (OSError, KeyError, TypeError):
        files, whole = [], False
    here = json.loads(json.dumps(plan))
    other = next((name for name, value in here.items() if found.get(name) != value), None)
    if whole and other is None:
        return [*files, folder / FACTS]
    if not overwrite and found and other is not None:
        raise UserError(
            f"--output-dir {folder} already holds another forecast: {other} was {found.get(other)} there and is"
            f" {here[other]} here; name another folder, or give --overwrite"
        )
    (folder / FACTS).unlink(missing_ok=True)  # what follows replaces its files one by one
    return None


def _write(folder: Path, answer: ForecastDraws, plan: dict[str, Any]) -> list[Path]:
    """Write draws, quantiles and the fan plot, and last what they are of."""
    facts = answer.question.facts
    suffix, separator = (facts["style"]["suffix"], facts["style"]["separator"]) if facts["style"] else (".csv", None)
    text = suffix == ".csv"
    files = [folder / f"draws{suffix}", folder / f"quantiles{suffix}", folder / "forecast.png"]
    write_table(files[0], answer.frame(text=text), separator=separator)
    write_table(files[1], answer.quantiles(text=text), separator=separator)
    save_png(fan_plot(answer), files[2])
    whole = {**plan, "files": [file.name for file in files], "sums": sum_files(folder, files)}
    atomic_write_text(folder / FACTS, json.dumps(whole, indent=1) + "\n")
    return [*files, folder / FACTS]

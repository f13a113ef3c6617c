"""Forecasts of the series in a file by a run, into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.bounds import Count, bounded
from advect.core.errors import UserError
from advect.core.types import LENGTH, Conditions
from advect.data.figure import save_png
from advect.data.sequences.forecast import ForecastDraws, ForecastQuestion, fan_plot
from advect.data.sequences.given import read_step_file
from advect.data.sequences.modality import SequencesModality
from advect.data.tables.files import write_table
from advect.model.answers import Ask, Question, answer, file_conditions
from advect.model.conditions import parse_conditions
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import default_folder, file_sum


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
    output_dir: Path | None = None,
    **how: Any,
) -> list[Path]:
    """Draw the next ``horizon`` steps of each series in a file; return draws, quantiles, picture and samples.json.

    The last ``history`` steps are known, by default as many as the sequences of training leave. ``cond`` has words
    NAME=VALUE for conditions that the file lacks. ``how`` are the other arguments of
    :func:`advect.model.answers.answer`. Raises UserError for a flow that makes no sequences or was not trained with a
    mask, and a file that does not fit.
    """

    def question(flow: Flow) -> Question:
        ahead = forecast_question(flow, file, horizon, history)
        given = torch.from_numpy(ahead.given()).repeat_interleave(draws, 0)
        told = file_conditions(file, ahead.file.conditions, draws, parse_conditions(cond, flow.spec))
        lengths = {LENGTH: np.repeat(ahead.lengths(), draws)} if LENGTH in flow.spec.conditions else {}
        # In model units, which have the gaps of times that end with those of the data.
        ask = Ask(flow, given, {**told, **lengths}, sampler or SamplerConfig(), None, seed, batch_size, True)
        plan = {"horizon": horizon, "history": history, "draws": draws, "file": file.name, "data": file_sum(file)}

        def write(z: Tensor, encoded: Conditions, folder: Path) -> list[Path]:
            return _write(folder, ahead.answer(flow.transform.inverse(z).double().numpy()))

        return Question(ask, plan, write)

    return answer(run, question, output_dir or default_folder(run, "forecasts", seed), **how)


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


def _write(folder: Path, answer: ForecastDraws) -> list[Path]:
    """Write draws, quantiles and the fan plot."""
    style = answer.question.facts["style"]
    suffix, separator = (style["suffix"], style["separator"]) if style else (".csv", None)
    text = suffix == ".csv"
    files = [folder / f"draws{suffix}", folder / f"quantiles{suffix}", folder / "forecast.png"]
    write_table(files[0], answer.frame(text=text), separator=separator)
    write_table(files[1], answer.quantiles(text=text), separator=separator)
    save_png(fan_plot(answer), files[2])
    return files

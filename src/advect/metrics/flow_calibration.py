"""Calibration of a flow's draws given the conditions of held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.random import Stream, stream_seed
from advect.core.registry import register
from advect.metrics.base import CALIBRATED_ROWS, QUANTITIES, FlowMetric
from advect.metrics.calibration import SIGNIFICANCE, cumulative, simulation_ranks, uniform_band, uniformity, verdict
from advect.metrics.coverage import tarp_coverage
from advect.metrics.crps import crps, sharpness

COLUMNS = 32
"""Most columns of a sample."""

HELD_OUT, DRAWS = 500, 39
"""Most held-out rows, and draws given the condition of each."""

LEVEL = 0.9
"""Coverage of the intervals that are told."""


@register("calibration")
class CalibrationMetric(FlowMetric):
    """Calibration, CRPS and sharpness of draws given the conditions of held-out rows.

    By the first of the samplers that are compared; of at most 500 rows and 39 draws for each, of tables the columns
    of numbers.
    """

    key = "calibration"
    held_out = True
    needs = frozenset({QUANTITIES, CALIBRATED_ROWS})
    held_out_rows = HELD_OUT

    def measure(self, flow: Any, n: int, rows: range, data: Callable[[range], Any], options: Any) -> dict[str, Tensor]:
        how = {**options.sampler.arguments(), "seed": options.seed, "batch_size": options.batch_size}
        return draws_given(flow, n, rows, data, **how)

    def reduce(self, parts: Iterator[dict[str, Tensor]], flow: Any) -> dict[str, Any]:
        found = list(parts)
        true, draws = (torch.cat([part[name] for part in found]).double().numpy() for name in ("true", "draws"))
        return summarise(true, draws, column_names(flow.modality, true.shape[1]))


def numeric_columns(modality: Any, dim: int) -> list[int]:
    """Columns of numbers among the ``dim`` of a sample, by place."""
    categorical = modality.categorical or (False,) * dim
    return [i for i in range(dim) if not categorical[i]]


def column_names(modality: Any, count: int) -> list[str]:
    """Names of the ``count`` columns of numbers."""
    names = modality.entry_names
    return (
        [names[i] for i in numeric_columns(modality, len(names))] if names else [f"column {i}" for i in range(count)]
    )


def draws_given(
    flow: Any,
    n: int,
    rows: range,
    data: Callable[[range], Any],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    **how: Any,
) -> dict[str, Tensor]:
    """True values (r, D) of ``rows`` of n held-out rows, and ``draws`` (r, draws, D) given the condition of each.

    In data units, columns of numbers. A draw depends on the seed, its row and its number alone; ``how`` is for
    ``flow.sample``.
    """
    x, cond = data(rows)
    places = range(rows.start * draws, (rows.start + len(x)) * draws)
    asked = {}
    for name, value in cond.items():
        each = value.values.repeat_interleave(draws, 0)
        every = each.new_zeros(n * draws, *each.shape[1:])
        every[places.start : places.stop] = each
        asked[name] = replace(value, values=every)
    seed = stream_seed(seed, Stream.CALIBRATION_DRAWS) >> 1
    made = flow.sample(n * draws, cond=asked, seed=seed, rows=places, **how).x
    columns = numeric_columns(flow.modality, x.shape[1])
    return {"true": x[:, columns].double(), "draws": made.reshape(len(x), draws, -1)[:, :, columns].double()}


def summarise(true: np.ndarray, draws: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Figures of true values (N, D) and draws (N, M, D), N >= 100, as JSON; ``curves`` are for a figure.

    ``column`` is the place, in ``columns``, of the column that the verdict is about.

    Columns with missing or infinite values are left out and named. "columns" is empty if none remains.
    """
    fine = np.asarray(np.isfinite(true).all(0) & np.isfinite(draws).all((0, 1)))
    rows, count = draws.shape[:2]
    kept, lost = (
        [str(name) for name, one in zip(names, fine.tolist(), strict=True) if one == of] for of in (True, False)
    )
    facts = {"rows": rows, "draws": count, "level": LEVEL, "columns": kept, "left_out": lost}
    if not kept:
        said = "Not measured: all columns have missing or infinite values"
        return {**facts, "kind": "unknown", "sentence": said, "advice": ""}
    true, draws = true[:, fine], draws[:, :, fine]
    ranks = simulation_ranks(true, draws)
    found, tests = verdict(ranks, names=kept if len(kept) > 1 else (), level=LEVEL), uniformity(ranks.u)
    central = np.abs(2 * ranks.u - 1)
    scores, widths = crps(true, draws), np.atleast_1d(sharpness(draws, LEVEL))
    said = {"kind": found.kind, "sentence": found.sentence, "advice": found.advice, "p_value": found.p_value}
    return {
        **facts,
        **said,
        "column": found.column,
        **(_jointly(true, draws, said) if len(kept) > 1 else {}),
        "coverage": _rounded((central <= LEVEL).mean(0)),
        "coverage_error": found.coverage_error,
        "bias": _rounded(tests.bias),
        "bias_error": tests.bias_error,
        "spread": _rounded(tests.spread),
        "spread_error": tests.spread_error,
        "crps": scores.mean(0).tolist(),
        "crps_error": (scores.std(0) / math.sqrt(rows)).tolist(),
        "sharpness": widths.tolist(),
        "curves": _curves(ranks.u, central),
    }


def _jointly(true: np.ndarray, draws: np.ndarray, said: Mapping[str, Any]) -> dict[str, Any]:
    """Coverage of several columns together, and what it adds to a verdict on each."""
    joint = tarp_coverage(true, draws)
    tarp = {"excess": joint.excess, "excess_error": joint.excess_error, "p_value": joint.p_value}
    if said["kind"] != "calibrated" or joint.p_value >= SIGNIFICANCE:
        return {"tarp": tarp}
    sentence = (
        f"Miscalibrated: each column is as it should be, but not how they depend on each other (TARP, {joint.rows:,}"
        f" rows, p = {joint.p_value:.2g})"
    )
    advice = "train longer, a larger network, more solver steps, more training rows"
    return {"tarp": tarp, "kind": "miscalibrated", "sentence": sentence, "advice": advice, "p_value": joint.p_value}


def _curves(u: np.ndarray, central: np.ndarray) -> dict[str, Any]:
    """Distribution functions of ranks and central levels (N, D), and the band that holds for both."""
    band = uniform_band(len(u))
    curves = {"at": band.at, "low": band.low, "high": band.high}
    lines = {"ranks": [cumulative(v, band.at) for v in u.T], "central": [cumulative(v, band.at) for v in central.T]}
    return {name: _rounded(v) for name, v in curves.items()} | {k: list(map(_rounded, v)) for k, v in lines.items()}


def _rounded(x: np.ndarray) -> list[float]:
    return np.round(x, 5).tolist()

"""What a user of exported files must know of them, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from advect.core.types import NULL, Category, Condition, Length, Quantity
from advect.model.flow import Flow
from advect.model.sampler_config import SamplerConfig
from advect.sources import Gaussian, MatchedGaussian


def describe_condition(condition: Condition, *, null: bool) -> dict[str, Any]:
    """How to write a condition: codes of labels, moments of numbers, or the longest length."""
    if isinstance(condition, Category):
        codes = {name: code for code, name in enumerate(condition.names)}
        return {"kind": "category", "codes": codes} | ({"null": NULL} if null else {})
    if isinstance(condition, Length):
        return {"kind": "length", "least": 1, "most": len(condition.frequencies)}
    assert isinstance(condition, Quantity)
    own = {"names": condition.names, "mean": condition.mean, "std": condition.std}
    if condition.origin or condition.unit:
        own |= {"unit": condition.unit, "origin": condition.origin, "step": condition.step}
    return {"kind": "quantity", **own, "input": "(value - mean) / std"} | ({"null": "NaN"} if null else {})


def describe_noise(flow: Flow) -> dict[str, Any]:
    """The law of the input "noise", and how that of a seed is got."""
    source, jitter = flow.source, flow.initial_noise.jitter
    by_seed = "flow.noise(n, seed=...) in Python, or example.npz of advect export --seed --num-samples"
    if isinstance(source, Gaussian):
        law = {"law": "normal", "mean": 0.0, "std": math.hypot(1.0, jitter)}
    elif isinstance(source, MatchedGaussian) and not isinstance(source.std, Tensor) and not jitter:
        law = {"law": "normal", "mean": source.mean, "std": source.std}
    else:
        law = {"law": f"starts of {type(source).__name__}, which only advect draws"}
    return {**law, "by_seed": by_seed}


def describe_data(flow: Flow, *, model_units: bool) -> dict[str, Any]:
    """Units of the samples; of tables also the columns, whose categories are numbers."""
    own: dict[str, Any] = {"modality": flow.spec.modality, "units": "model" if model_units else "data"}
    columns = getattr(flow.transform, "columns", ()) if not model_units else ()
    named = [_describe_column(column) for column in columns]
    return own | ({"columns": named} if named else {})


def _describe_column(column: Any) -> dict[str, Any]:
    """Name of a column, with the text of its codes if it is a category."""
    own: dict[str, Any] = {"name": column.name}
    values = getattr(column, "values", getattr(column, "names", None))
    if isinstance(values, tuple | list):
        own["values"] = [value if isinstance(value, str | int | float | bool) else str(value) for value in values]
    return own


def describe_tensors(names: Sequence[str], tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Names, types and shapes, the batch as "batch"."""
    return [
        {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["batch", *tensor.shape[1:]]}
        for name, tensor in zip(names, tensors, strict=True)
    ]


def describe_sampler(flow: Flow, config: SamplerConfig) -> dict[str, Any]:
    """Solver, grid, steps, guidance and number of evaluations."""
    facts: Mapping[str, Any] = config.facts()
    kept = ("solver", "grid", "steps", "guidance", "guidance_interval")
    return {name: facts[name] for name in kept if facts[name] is not None} | {"nfe": flow.nfe(config)}

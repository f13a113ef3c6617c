"""A picture of samples for each kind of data."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core.types import LENGTH, Batch, Conditions
from advect.data import Split
from advect.reports.grid import picture
from advect.reports.series import series_plot
from advect.reports.vectors import vector_plot
from advect.runs.field import Field, without_padding

HELD_OUT = 2000
"""Held-out samples that vectors are drawn over, at most."""


def held_out_batch(flow: Field, held_out: Split) -> Batch | None:
    """The first held-out samples in data units, for :func:`draw`; None for images, or where there are none."""
    if flow.spec.kind == "image" or len(held_out) == 0:
        return None
    batch = held_out.fetch(np.arange(min(HELD_OUT, len(held_out))))
    cond = batch.cond or {}
    return Batch(without_padding(flow.transform.inverse(batch.x1), cond), cond)


def draw(flow: Field, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
    """Draw samples x (n, *S) with their conditions (n, ...) beside held-out data, both in data units.

    Images are a grid. Vectors in up to two dimensions are a scatter plot over the data; in more, their first two
    principal components, beside the quantiles of each feature. Sequences are lines.
    """
    if flow.spec.kind == "sequence":
        names = tuple(flow.facts.get("channels", ()))
        if reference is None:
            return series_plot(x, conditions.get(LENGTH), names=names)
        real = (reference.cond or {}).get(LENGTH)
        return series_plot(x, conditions.get(LENGTH), reference.x1, real, names=names)
    behind = None if reference is None else reference.x1
    if flow.spec.kind == "image" or max(flow.data_shape[0], flow.spec.shape[0]) <= 2:
        return picture(x, flow.spec, flow.transform, behind)
    match flow.facts.get("kind"):
        case "table":  # a column has a unit of its own, or codes
            columns = flow.facts["transform"]["columns"]
            numbers = [i for i, column in enumerate(columns) if column["kind"] == "number"]
            names = [column["name"] for column in columns]
            return vector_plot(x, behind, names=names, features=numbers, embed=flow.transform.forward)
        case "cells":
            return vector_plot(x, behind, names=flow.facts["var"]["genes"])
    return vector_plot(x, behind)

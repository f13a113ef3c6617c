"""The forms in which data come to the estimator and in which samples go back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import type_of_target
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Category
from advect.data import Arrays, Cells, Table, TableTransform, Transform, frame_of
from advect.data.base import category
from advect.data.tables.columns import Categories, Column, Number

LABEL = "label"
"""The name of the condition that y is."""


@dataclass(frozen=True)
class Labels:
    """The values that labels have, (K,), in rising order; a label's code is its place among them."""

    classes: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Labels:
        """Those that occur among values (n,), see :func:`values_of`. Raises UserError for real numbers."""
        if type_of_target(values) == "continuous":
            raise UserError("y holds real numbers, which are no labels; leave it out, or make it a column of X")
        return cls(np.unique(values))

    def codes(self, values: np.ndarray) -> np.ndarray:
        """The codes (n,), int64, of values (n,). Raises UserError for one that was not fitted."""
        codes = np.searchsorted(self.classes, values).clip(max=len(self.classes) - 1)
        unknown = self.classes[codes] != values
        if unknown.any():
            raise UserError(f"y has {values[unknown][0]!r}, which is not among the labels fitted: {self.classes}")
        return codes.astype(np.int64)

    def category(self, codes: np.ndarray) -> Category:
        """What data with these codes (n,) say of the condition: its names, and the share of each."""
        return category(codes, [str(value) for value in self.classes])


def values_of(y: Any, n: int) -> np.ndarray:
    """y as an array (n,) of numbers or text. Raises UserError for another shape, and for what is not finite."""
    values = np.asarray(y)
    if values.shape == (n, 1):
        values = values[:, 0]
    if values.shape != (n,):
        raise UserError(f"y must have shape ({n},), a label a row, got {values.shape}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError("y holds NaN or infinite values; remove those rows")
    return np.array([str(value) for value in values]) if values.dtype.kind == "O" else values


def given(labels: Labels | None, y: Any, n: int) -> dict[str, Tensor]:
    """The condition of y, a label for all of n rows or (n,), empty where it is None. Raises UserError if unfit."""
    if y is None:
        return {}
    if labels is None:
        raise UserError("y is given, but the model was fitted without labels; leave it out, or fit with y")
    values = np.full(n, y) if np.ndim(y) == 0 else values_of(y, n)
    return {LABEL: torch.from_numpy(labels.codes(values))}


class DataAdapter(ABC):
    """One form of data. It is made from the data of the first fit, to which its transform is fitted.

    Attributes:
        transform: between data units and model units.
        options: the names of what it takes from the estimator's options.
    """

    transform: Transform
    options: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, data: Any, options: Mapping[str, Any]) -> None:
        """Fit the transform. Raises UserError for data or options that cannot be used."""

    @abstractmethod
    def tensor(self, data: Any) -> Tensor:
        """Data of this form in data units, (N, *S). Raises UserError for values that the transform does not know."""

    @abstractmethod
    def back(self, x: Tensor) -> Any:
        """Samples (N, *S) in data units as data of this form."""


class ArrayAdapter(DataAdapter):
    """Arrays (N, D), or images (N, C, H, W), whose range is that of the data unless ``value_range`` is given."""

    options = ("value_range",)

    def __init__(self, data: np.ndarray, options: Mapping[str, Any]) -> None:
        options, x = dict(options), data
        if x.ndim == 4 and x.dtype != np.uint8 and "value_range" not in options:
            low, high = float(x.min()), float(x.max())
            options["value_range"] = (low, high if high > low else low + 1)
        self.transform = Arrays(x, held_out=0.0, **options).transform
        self.dtype = x.dtype

    def tensor(self, data: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(data, np.float64 if data.dtype.kind in "biu" else data.dtype))

    def back(self, x: Tensor) -> np.ndarray:
        values = x.numpy()
        return values.astype(self.dtype if self.dtype.kind == "f" or values.ndim == 4 else np.float64)


class FrameAdapter(DataAdapter):
    """pandas data frames with columns of any types.

    Numbers are standardised where all columns are numbers without missing values, so that there is a density; in
    another frame they are made normal by their quantiles.
    """

    options = ("scaling", "categorical")

    def __init__(self, data: Any, options: Mapping[str, Any]) -> None:
        frame, self.names = data, list(data.columns)
        plain = all(k.kind in "iuf" for k in map(np.dtype, map(_numpy_kind, frame.dtypes))) and not frame.isna().any(
            axis=None
        )
        options = {"scaling": "standard" if plain else "quantile", **options}
        table = Table(_named(frame), held_out=0.0, **options)
        assert isinstance(table.transform, TableTransform)
        self.transform: TableTransform = table.transform
        self.facts = table.facts()

    def tensor(self, data: Any) -> Tensor:
        frame = _named(data)
        return torch.from_numpy(np.stack([_values(frame[c.name], c) for c in self.transform.columns], 1))

    def back(self, x: Tensor) -> Any:
        frame = frame_of(x, None, self.facts)
        frame.columns = self.names
        return frame


def _numpy_kind(dtype: Any) -> Any:
    """The dtype where NumPy knows it, else that of objects."""
    return dtype if isinstance(dtype, np.dtype) else object


def _named(frame: Any) -> Any:
    """The frame with names that are text, as tables need."""
    return frame if all(isinstance(c, str) for c in frame.columns) else frame.set_axis(map(str, frame.columns), axis=1)


def _values(series: Any, column: Column) -> np.ndarray:
    """A series in table units (N,), float64, NaN where missing, as ``column`` was fitted."""
    absent = series.isna().to_numpy(bool)
    if absent.any() and not column.missing:
        raise UserError(f"column {column.name!r} has missing values, and had none in the data fitted; fill them in")
    if isinstance(column, Categories):
        places = {name: i for i, name in enumerate(column.names)}
        unknown = [v for v, a in zip(series.tolist(), absent, strict=True) if not a and v not in places]
        if unknown:
            raise UserError(f"column {column.name!r} has {unknown[0]!r}, which the data fitted had not; leave it out")
        pairs = zip(series.tolist(), absent, strict=True)
        return np.array([np.nan if a else places[v] for v, a in pairs], np.float64)
    if isinstance(column, Number) and column.unit:
        import pandas as pd

        times = pd.to_datetime(series)
        times = times.dt.tz_convert("UTC").dt.tz_localize(None) if times.dt.tz is not None else times
        counts = times.to_numpy(f"datetime64[{column.unit}]").astype(np.int64) - column.origin
        return np.where(absent, np.nan, counts.astype(np.float64))
    return series.astype("Float64").to_numpy(np.float64, na_value=np.nan)


class CellsAdapter(DataAdapter):
    """AnnData: X as it stands, each gene standardised; with ``pca``, its principal components."""

    options = ("pca",)

    def __init__(self, data: Any, options: Mapping[str, Any]) -> None:
        source = Cells(data, normalise=False, log1p=False, held_out=0.0, **options)
        self.transform, self.var = source.transform, data.var.copy()

    def tensor(self, data: Any) -> Tensor:
        x = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
        if not np.isfinite(x).all():
            raise UserError("X of the AnnData object holds NaN or infinite values; remove those cells")
        return torch.from_numpy(np.array(x, np.float32))

    def back(self, x: Tensor) -> Any:
        import anndata

        return anndata.AnnData(x.numpy(), var=self.var.copy())


def form_class(data: Any) -> type[DataAdapter]:
    """The form that data have; what is neither a data frame nor AnnData is taken for an array."""
    if all(hasattr(data, name) for name in ("obs", "var", "layers", "X")):
        return CellsAdapter
    module = type(data).__module__.partition(".")[0]
    return FrameAdapter if module == "pandas" and hasattr(data, "columns") else ArrayAdapter

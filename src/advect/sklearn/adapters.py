"""Adapters between data (arrays, frames, AnnData) and tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.data import Arrays, Cells, Table, TableTransform, Transform, frame_of
from advect.data.arrays import float64_rounds, in_type
from advect.data.base import array_modality
from advect.data.cells.matrix import held_matrix
from advect.data.tables.columns import Categories, Column, Number
from advect.data.tables.infer_columns import number_values

WIDEST = 256
"""Most columns that are whitened."""


class DataAdapter(ABC):
    """Converter of one kind of data, with a transform fitted to the first.

    Attributes:
        transform: between data units and model units.
        whiten: whether training decorrelates them.
        options: names of its options.
        label: name of the kind in messages, plural.
    """

    transform: Transform
    whiten: bool = False
    options: tuple[str, ...] = ()
    label: str

    @abstractmethod
    def __init__(self, data: Any, options: Mapping[str, Any]) -> None:
        """Fit the transform. Raises UserError for unusable data or options."""

    @classmethod
    def modality(cls, data: Any) -> str:
        """The modality of data by name, as the flow sees it."""
        return "vector"

    @classmethod
    def objective(cls, data: Any) -> str:
        """The loss by default, by name."""
        return "flow-matching"

    @abstractmethod
    def to_tensor(self, data: Any) -> Tensor:
        """Data as (N, *S) in data units. Raises UserError for values unknown to the transform."""

    def given(self, data: Any) -> Tensor:
        """Data whose missing values are asked for, as :meth:`to_tensor`, NaN there."""
        return self.to_tensor(data)

    @abstractmethod
    def from_tensor(self, x: Tensor) -> Any:
        """Data of this kind from (N, *S) in data units."""

    def obeying(self, known: Any, filled: Any, drawn: Sequence[Any]) -> Any:
        """Data ``filled`` with what follows by rules from its columns, unless ``known``; and of a row that still
        breaks one the nearest of those ``drawn``, which obey.
        """
        return filled


def columns_of_numbers(data: Any) -> int:
    """Columns of an array (N, D) or of a frame of numbers alone; 0 of other data."""
    if hasattr(data, "dtypes"):
        return len(data.columns) if all(isinstance(d, np.dtype) and d.kind in "iuf" for d in data.dtypes) else 0
    return data.shape[1] if getattr(data, "ndim", 0) == 2 else 0


class ArrayAdapter(DataAdapter):
    """Arrays (N, D), whitened, or images (N, C, H, W), by default with the data's range as ``value_range``."""

    label = "arrays"
    options = ("value_range", "whiten", "holes")

    def __init__(self, data: np.ndarray, options: Mapping[str, Any]) -> None:
        options, x = dict(options), data
        self.whiten = options.pop("whiten", True) and x.ndim == 2 and x.shape[1] <= WIDEST
        if options.get("holes") and x.ndim == 4:
            raise UserError("X holds images, whose unknown pixels are not for holes; leave it out")
        if x.ndim == 4 and x.dtype != np.uint8 and "value_range" not in options:
            low, high = float(x.min()), float(x.max())
            options["value_range"] = (low, high if high > low else low + 1)
        if x.ndim == 2 and x.dtype.kind in "iu" and float64_rounds(x):
            raise UserError(
                "X has whole numbers beyond 2^53 that float64 does not hold; subtract the least of each column"
            )
        self.transform = Arrays(x, held_out=0.0, **options).transform
        self.dtype = x.dtype

    @classmethod
    def modality(cls, data: np.ndarray) -> str:
        return array_modality(data.shape[1:])

    def to_tensor(self, data: np.ndarray) -> Tensor:
        own = data.dtype.kind == "f" and data.dtype.itemsize <= 8  # PyTorch has no long double
        return torch.from_numpy(np.array(data, data.dtype.newbyteorder("=") if own else np.float64))

    def from_tensor(self, x: Tensor) -> np.ndarray:
        if x.ndim == 4:
            return x.numpy().astype(self.dtype)
        return in_type(x, {"dtype": self.dtype.name if self.dtype.kind == "f" else "float64"})


class FrameAdapter(DataAdapter):
    """pandas data frames of any column types.

    Frames of complete numbers are whitened, which keeps a density; others scaled by quantiles, and learned by
    variational flow matching. Samples obey ``rule``,
    text or several, as of ``advect train --rule``.
    """

    label = "frames"
    options = ("scaling", "categorical", "whiten", "holes", "rule")

    def __init__(self, data: Any, options: Mapping[str, Any]) -> None:
        frame, self.names = data, list(data.columns)
        self.holes = bool(options.get("holes"))
        plain = _numeric(frame) and (self.holes or not frame.isna().any(axis=None))
        rule = options.get("rule", ())
        rules = [rule] if isinstance(rule, str) else list(rule)
        if not all(isinstance(text, str) for text in rules):
            raise UserError(f"options['rule'] must be text such as 'total == a + b', or several, got {rule!r}")
        options = {"scaling": "standard" if plain else "quantile", **options, "rule": rules}
        usual = plain and options["scaling"] == "standard" and len(self.names) <= WIDEST
        self.whiten = options.pop("whiten", usual)
        table = Table(_named(frame), held_out=0.0, **options)
        assert isinstance(table.transform, TableTransform)
        self.transform: TableTransform = table.transform
        self.facts = table.metadata

    @classmethod
    def objective(cls, data: Any) -> str:
        whole = _numeric(data) and not data.isna().any(axis=None)
        return super().objective(data) if whole else "variational-flow-matching"

    def to_tensor(self, data: Any) -> Tensor:
        x, rules = self._tensor(data, self.holes), self.transform.constraints
        if rules is not None:
            rules.refuse(x, "X", "mend them, or fit without the rule", unknown=self.holes)
        return x

    def given(self, data: Any) -> Tensor:
        return self._tensor(data, True)

    def _tensor(self, data: Any, holes: bool) -> Tensor:
        frame = _named(data)
        columns = self.transform.columns
        return torch.from_numpy(np.stack([_values(frame[c.name], c, holes=holes) for c in columns], 1))

    def obeying(self, known: Any, filled: Any, drawn: Sequence[Any]) -> Any:
        rules = self.transform.constraints
        if rules is None:
            return filled
        own, x = self.given(known), self.given(filled)
        x = torch.where(own.isnan(), rules.derived(x), own)
        bad = rules.broken(x).any(1).nonzero()[:, 0]
        if len(bad):
            some = torch.stack([self.given(frame.iloc[bad.numpy()]) for frame in drawn])
            near = self.transform.plain.forward(x[bad])
            far = torch.stack([(self.transform.plain.forward(rows) - near).square().nansum(1) for rows in some])
            x[bad] = some[far.argmin(0), torch.arange(len(bad))]
        return self.from_tensor(x)

    def from_tensor(self, x: Tensor) -> Any:
        frame = frame_of(x, None, self.facts)
        frame.columns = self.names
        return frame


def _numeric(frame: Any) -> bool:
    """Whether all columns are NumPy's numbers."""
    return all(isinstance(d, np.dtype) and d.kind in "iuf" for d in frame.dtypes)


def _named(frame: Any) -> Any:
    """The frame with column names as text."""
    return frame if all(isinstance(c, str) for c in frame.columns) else frame.set_axis(map(str, frame.columns), axis=1)


def _values(series: Any, column: Column, *, holes: bool) -> np.ndarray:
    """A series as (N,) float64 in the units of ``column``, NaN where missing, in any with ``holes``."""
    absent = series.isna().to_numpy(bool)
    if absent.any() and not column.missing and not holes:
        raise UserError(f"column {column.name!r} has missing values, and had none in the data fitted; fill them in")
    if isinstance(column, Categories):
        places = {name: i for i, name in enumerate(column.names)}
        unknown = [v for v, a in zip(series.tolist(), absent, strict=True) if not a and v not in places]
        if unknown:
            raise UserError(f"column {column.name!r} has {unknown[0]!r}, which the data fitted had not; leave it out")
        pairs = zip(series.tolist(), absent, strict=True)
        return np.array([np.nan if a else places[v] for v, a in pairs], np.float64)
    assert isinstance(column, Number)
    return number_values(series, column)


class CellsAdapter(DataAdapter):
    """AnnData: X as is, standardised by gene, or principal components (``pca``)."""

    label = "cells"
    options = ("pca",)

    def __init__(self, data: Any, options: Mapping[str, Any]) -> None:
        source = Cells(data, normalise=False, log1p=False, held_out=0.0, **options)
        self.transform, self.var = source.transform, data.var.copy()

    def to_tensor(self, data: Any) -> Tensor:
        matrix = held_matrix(data, None)
        x = matrix.rows(np.arange(matrix.shape[0])).toarray()
        if not np.isfinite(x).all():
            raise UserError("X of the AnnData object holds NaN or infinite values; remove those cells")
        return torch.from_numpy(np.array(x, np.float32))

    def from_tensor(self, x: Tensor) -> Any:
        import anndata

        return anndata.AnnData(x.numpy(), var=self.var.copy())


_ADAPTERS: tuple[type[DataAdapter], ...] = (ArrayAdapter, FrameAdapter, CellsAdapter)


def check_options(options: Iterable[str], adapter: type[DataAdapter]) -> None:
    """Raise UserError for an option of another kind of data."""
    for key in options:
        kinds = [a.label for a in _ADAPTERS if key in a.options]
        if kinds and key not in adapter.options:
            raise UserError(
                f"options has {key!r}, which is for {' and '.join(kinds)}, not for {adapter.label}; leave it out"
            )


def adapter_class(data: Any) -> type[DataAdapter]:
    """Adapter class for data: AnnData, pandas frames, else arrays."""
    if all(hasattr(data, name) for name in ("obs", "var", "layers", "X")):
        return CellsAdapter
    module = type(data).__module__.partition(".")[0]
    return FrameAdapter if module == "pandas" and hasattr(data, "columns") else ArrayAdapter

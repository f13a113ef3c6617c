"""User-supplied arrays: vectors (N, D) or images (N, C, H, W), optionally labelled."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from msgspec import Meta
from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import open_regular
from advect.data.base import ArrayDataset, Rows, random_split
from advect.data.holes import Holes
from advect.data.numpy_files import DAMAGED, read_header
from advect.data.transforms import PixelScale, Standardize, Transform

SAMPLES = ("x", "images", "data", "samples", "X", "arr_0")
"""Accepted names of the samples in an ``.npz``."""

LABELS = ("y", "labels", "label", "targets", "Y", "arr_1")
"""Accepted names of their labels."""


class Arrays(ArrayDataset):
    """Arrays as a data set: vectors are standardised, images scaled from their range to [-1, 1].

    Args:
        x: (N, D) vectors or (N, C, H, W) images; anything ``np.asarray`` takes; real and finite, but for ``holes``.
        conditions: labels (N,) by name, whole numbers >= 0.
        names: value names 0, 1, ... by condition; default "0" to the largest label.
        held_out: share of the rows held out at random, in [0, 1).
        value_range: lowest and highest pixel value; optional for 8-bit images.
        holes: take NaN of vectors for unknown values.
        seed: seed of the split.
        name: name in reports.

    Raises:
        UserError: x, the labels, their names, the share or the range is invalid.
    """

    def __init__(
        self,
        x: Any,
        *,
        conditions: Mapping[str, Any] | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        held_out: float = 0.1,
        value_range: tuple[float, float] | None = None,
        holes: bool = False,
        seed: int = 0,
        name: str = "arrays",
    ) -> None:
        samples, whole_numbers = _samples(x, holes)
        if holes and samples.ndim != 2:
            raise UserError(f"x holds images {samples.shape}, whose unknown pixels are not for holes; leave it out")
        labels = {key: _labels(key, values, len(samples)) for key, values in (conditions or {}).items()}
        rows = Rows(samples, labels)
        train, rest = random_split(len(samples), held_out, seed=seed)
        super().__init__(
            name=name,
            train=rows[train],
            held_out=rows[rest],
            transform=_transform(samples, train, value_range, whole_numbers),
            names=_names(labels, names or {}),
        )
        self.holes = Holes.find(self) if holes else None


def _samples(x: Any, holes: bool) -> tuple[np.ndarray, bool]:
    """x as uint8, float32 or float64, and whether it held whole numbers."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() and x.itemsize < 4 else x).numpy()
    try:
        x = np.asarray(x)
    except ValueError as error:
        raise UserError(f"x is not an array ({error}); give (N, D) vectors or (N, C, H, W) images") from error
    if x.dtype.kind not in "buif":
        raise UserError(f"x must hold real numbers, got dtype {x.dtype}; convert it, e.g. x.astype('float32')")
    if x.ndim not in (2, 4):
        fix = "; for one feature give x.reshape(-1, 1)" if x.ndim == 1 else ""
        raise UserError(f"x must be (N, D) vectors or (N, C, H, W) images, got shape {x.shape}{fix}")
    if not x.size:
        raise UserError(f"x is empty, its shape is {x.shape}; give at least one row and one column")
    _check_finite(x, holes and x.ndim == 2)
    if x.dtype == np.uint8:
        return x, True
    narrow = x.dtype.kind == "f" and x.dtype.itemsize <= 4
    return x.astype(np.float32 if narrow else np.float64, copy=False), x.dtype.kind != "f"


def _check_finite(x: np.ndarray, holes: bool) -> None:
    """Raise UserError unless x (N, *S) is finite, or NaN where ``holes``."""
    bad = np.isinf(x) if holes else ~np.isfinite(x)
    if not bad.any():
        return
    row, *rest = (int(i) for i in np.unravel_index(bad.argmax(), x.shape))
    where = f"column {rest[0]}" if len(rest) == 1 else f"channel {rest[0]}, pixel ({rest[1]}, {rest[2]})"
    rows, kind = int(bad.any(tuple(range(1, x.ndim))).sum()), "infinite" if holes else "NaN or infinite"
    unknown = ", or take NaN for unknown by holes=True" if x.ndim == 2 and not holes and np.isnan(x).any() else ""
    raise UserError(
        f"x holds {int(bad.sum())} {kind} values in {rows} of {len(x)} rows, the first ({x[row, *rest]}) in row"
        f" {row}, {where}; remove those rows or fill them in{unknown}"
    )


def _labels(key: str, values: Any, count: int) -> np.ndarray:
    """Labels of one condition, (N,) int64."""
    labels = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if labels.dtype.kind not in "bui":
        raise UserError(
            f"conditions[{key!r}] must hold whole numbers, got dtype {labels.dtype};"
            " np.unique(labels, return_inverse=True) gives names and numbers"
        )
    if labels.shape != (count,):
        raise UserError(f"conditions[{key!r}] must have shape ({count},), a label a row of x, got {labels.shape}")
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        row = int(labels.argmin())
        raise UserError(
            f"conditions[{key!r}] must be >= 0, got {labels[row]} in row {row}; number the values 0, 1, ..."
        )
    return labels


def _names(labels: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Names of each condition's values, as given or "0", "1", ..."""
    unknown = sorted(set(names) - set(labels))
    if unknown:
        raise UserError(f"names has {unknown[0]!r}, which conditions has not; give conditions={{{unknown[0]!r}: ...}}")
    result = {}
    for key, values in labels.items():
        highest = int(values.max())
        result[key] = tuple(names[key]) if key in names else tuple(str(i) for i in range(highest + 1))
        if highest >= len(result[key]):
            raise UserError(
                f"conditions[{key!r}] has label {highest} but names[{key!r}] only {len(result[key])} names;"
                f" give at least {highest + 1}"
            )
    return result


def _transform(
    x: np.ndarray, train: np.ndarray, value_range: tuple[float, float] | None, whole_numbers: bool
) -> Transform:
    if x.ndim == 2:
        if value_range is not None:
            raise UserError(
                f"value_range is for images, but x {x.shape} are vectors, which are standardised; leave it out"
            )
        return Standardize.fit(x[train], np.delete(x, train, 0))
    low, high = x.min(), x.max()
    if value_range is None:
        if x.dtype != np.uint8:
            raise UserError(
                f"value_range must be given for images of {x.dtype}, e.g. (0, 1) or (0, 255);"
                f" x lies in [{low}, {high}]"
            )
        value_range = (0, 255)
    scale = PixelScale(*value_range, integer=whole_numbers)
    if low < scale.low or high > scale.high:
        raise UserError(f"x lies in [{low}, {high}], outside value_range {value_range}; widen it or clip x")
    return scale


class ArrayHeader(NamedTuple):
    """Name, shape and type of the samples in a NumPy file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


def array_header(path: Path) -> ArrayHeader | None:
    """Header of the samples in a ``.npy`` or ``.npz``; None if there are none."""
    try:
        if path.suffix.lower() == ".npy":
            with open_regular(path) as file:
                return ArrayHeader("values", *read_header(file))
        if path.suffix.lower() != ".npz":
            return None
        with open_regular(path) as whole, zipfile.ZipFile(whole) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            wanted = ("values", *SAMPLES, "x_train", names[0] if len(names) == 1 else "")
            name = next((name for name in wanted if name in names), None)
            if name is None:
                return None
            with archive.open(f"{name}.npy") as file:
                return ArrayHeader(name, *read_header(file))
    except DAMAGED:
        return None


Whole = Annotated[int, Meta(ge=-(2**63))]


class ArrayType(TypedDict, total=False):
    """NumPy type of the data, and the range (D,) of whole numbers and booleans along the last axis."""

    dtype: Annotated[str, Meta(pattern=r"^(bool|u?int(8|16|32|64)|float(16|32|64))$")]
    low: list[Whole]
    high: list[Whole]


def array_type(x: np.ndarray) -> ArrayType:
    """Type of x (..., D), of real numbers."""
    if x.dtype.kind == "f":
        return {"dtype": x.dtype.name if x.dtype.itemsize <= 8 else "float64"}
    rows = x.reshape(-1, x.shape[-1])
    low, high = ([int(v) for v in ends] for ends in (rows.min(0), rows.max(0)))
    return {"dtype": x.dtype.name, "low": low, "high": high}


def in_type(x: Tensor, kind: ArrayType) -> np.ndarray:
    """Data units x (..., D) in the type of the data: whole numbers rounded and within the range of the data.

    Values that are not finite stay as they are, as no whole number tells of them.
    """
    values = x.detach().cpu().numpy()
    dtype = np.dtype(kind.get("dtype", values.dtype))
    if not np.isfinite(values).all():
        return values
    if "low" in kind and "high" in kind:
        low, high = np.array(kind["low"], float), np.array(kind["high"], float)
        values = np.clip(np.rint(values.astype(np.float64)), low, high)
    elif dtype.itemsize < values.dtype.itemsize:
        values = values.clip(-float(np.finfo(dtype).max), float(np.finfo(dtype).max))
    return values.astype(dtype)


def float64_rounds(x: np.ndarray) -> bool:
    """Whether float64 changes whole numbers x."""
    if x.dtype.itemsize < 8 or not x.size or (int(x.max()) < 2**53 and int(x.min()) > -(2**53)):
        return False
    top = np.nextafter(float(np.iinfo(x.dtype).max), 0)
    return not np.array_equal(np.minimum(x.astype(np.float64), top).astype(x.dtype), x)

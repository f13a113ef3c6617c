"""Images or vectors in NumPy files (``.npy``, memory-mapped, or ``.npz``); vectors in Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from advect.core.bounds import Share
from advect.core.errors import UserError, did_you_mean
from advect.core.files import require_path
from advect.core.registry import register
from advect.core.types import DataSpec
from advect.data.arrays import LABELS, SAMPLES, array_header, array_type, float64_rounds
from advect.data.base import ArraySplit, Dataset, Detected, Preview, array_modality, category
from advect.data.holes import Holes
from advect.data.numpy_files import check_arrays, reading_arrays
from advect.data.parquet_columns import PARQUET, vector_columns
from advect.data.repeats import split_vectors
from advect.data.splits import fingerprint_of, row_blocks, row_digests, split_by_content
from advect.data.transforms import PixelScale, Standardize, Transform
from advect.data.vectors.parquet import VectorMetadata, read_vectors

_TRAIN, _TEST = ("x_train", "y_train"), ("x_test", "y_test")
_CHANNELS = (1, 3, 4)
_RANGES = {"u": ((0, 255),), "f": ((0, 1), (-1, 1))}


class _Parts(NamedTuple):
    """Samples x (N, ...), labels (N,) or None, and the number of leading training samples or None.

    ``columns`` are the names of x and labels in a Parquet file.
    """

    x: np.ndarray
    labels: np.ndarray | None
    train: int | None
    columns: tuple[str, str | None] | None = None


@register("array-file")
class ArrayFile(Dataset):
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W), or vectors (N, D), from a NumPy file.

    Vectors may also be a Parquet column of equally long lists of numbers.

    A ``.npy`` is memory-mapped: read once to find copies and the value range, then only where batches lie. Other files
    are loaded. Nothing is unpickled.

    Args:
        path: the ``.npy``, ``.npz``, ``.parquet`` or ``.pq`` file. In an ``.npz`` the samples are called x, images,
            data, samples or arr_0 and the labels (in Parquet too) y, labels, label, targets or arr_1; x_train,
            y_train, x_test and y_test define a split.
        value_range: lowest and highest pixel value. None: (0, 255) for whole numbers within it; for real numbers the
            first of (0, 1) and (-1, 1) that fits.
        layout: position of the image channels: "channels_first", "channels_last", or "auto" (the axis of size 1, 3 or
            4).
        vector_column: Parquet column of lists of numbers; None takes the only one.
        labels: whether labels in an ``.npz`` or Parquet file become the condition ``label``; "auto": if present.
        held_out: share held out, in [0, 1), chosen by a hash of each row's bytes: copies share a side, vectors equal
            by coincidence (such as zeros) do not. None is the file's own split, else 0.1.
        holes: NaN of vectors, and missing numbers in lists of Parquet, are unknown values of the same law; otherwise
            they are refused.

    Raises:
        UserError: the file is unreadable or unsuitable, or its range is unknown.
    """

    place: ClassVar[str | None] = "the .npy, .npz or Parquet file"

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        if vector_columns(path):
            return Detected(65, "a Parquet file with a column of vectors", "vector")
        array, words = array_header(path), "a .npy or .npz file of images or vectors"
        if array is None or len(array.shape) not in (2, 3, 4):
            return None
        pixels = len(array.shape) == 3 and array.dtype == np.uint8
        return Detected(45 if pixels else 35, words, "vector" if len(array.shape) == 2 else "image")

    @classmethod
    def preview(cls, path: Path) -> Preview:
        if columns := vector_columns(path):
            return Preview(f"a Parquet file with vectors in its column {' or '.join(map(repr, columns))}")
        _, shape, _ = array_header(path) or ("", (0,), None)
        kind = {2: "vectors", 3: "images", 4: "images"}.get(len(shape), "samples")
        return Preview(f"an array of {shape[0]:,} {kind} {tuple(shape[1:])}")

    @classmethod
    def image_size(cls, path: Path) -> tuple[int, int] | None:
        _, shape, _ = array_header(path) or ("", (), None)
        if len(shape) == 4 and shape[1] in _CHANNELS and shape[3] not in _CHANNELS:
            return shape[2], shape[3]
        return (shape[1], shape[2]) if len(shape) > 2 else None

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        value_range: tuple[float, float] | None = None,
        layout: Literal["auto", "channels_first", "channels_last"] = "auto",
        vector_column: str | None = None,
        labels: Literal["auto", "yes", "no"] = "auto",
        held_out: Share | None = None,
        holes: bool = False,
    ) -> None:
        file = require_path(path, holding="the arrays")
        found = _load(file, vector_column, () if labels == "no" else LABELS, holes)
        x = _arranged(file, found.x, layout)
        vectors = x.ndim == 2
        if vectors and value_range is not None:
            raise UserError(f"{file} holds vectors {x.shape}, which have no value_range")
        if holes and not vectors:
            raise UserError(f"{file} holds images {x.shape}, whose unknown pixels are not for --holes; leave it out")
        if found.x.dtype == bool and not vectors:
            value_range = value_range or (0, 1)
        digests = [] if vectors else row_digests(x)
        if found.train is not None and held_out is None:
            train, rest = np.arange(found.train), np.arange(found.train, len(x))
        else:
            share = 0.1 if held_out is None else held_out
            train, rest = split_vectors(x, share) if vectors else split_by_content(digests, share)
        low, high = (0, 255) if x.dtype == np.uint8 and value_range is None else _extent(file, x, holes)
        if vectors and x.dtype.kind in "iu" and float64_rounds(x):
            raise UserError(
                f"{file} has whole numbers beyond 2^53 that float64 does not hold; subtract the least, or divide them"
            )
        transform = Standardize.fit(x[train], x[rest]) if vectors else _scale(file, x.dtype, low, high, value_range)
        numbers, names = _classes(file, found.labels, len(x), labels)
        conditions = {name: category(numbers[name][train], names[name]) for name in names}
        self._written: VectorMetadata = {}
        if found.columns is not None:
            self._written["column"], self._written["label"] = found.columns
        if vectors:
            self._written["type"] = array_type(found.x)
        about = repr((x.dtype.str, x.shape, found.train, names))
        super().__init__(
            name=file.stem,
            spec=DataSpec(shape=x.shape[1:], modality=array_modality(x.shape[1:]), conditions=dict(conditions)),
            transform=transform,
            train=ArraySplit(x, numbers, transform, rows=train),
            held_out=ArraySplit(x, numbers, transform, rows=rest),
            fingerprint=fingerprint_of(digests or _bytes(x), about, numbers),
        )
        self.holes = Holes.find(self) if holes else None

    @property
    def metadata(self) -> VectorMetadata:
        return self._written


def _bytes(x: np.ndarray) -> Iterator[bytes]:
    return (np.ascontiguousarray(x[block]).tobytes() for block in row_blocks(x))


def _load(file: Path, column: str | None, labels: Sequence[str], holes: bool = False) -> _Parts:
    """Arrays of a file, never unpickled; Parquet labels come from the first column named in ``labels``."""
    if file.name.lower().endswith(PARQUET):
        found = read_vectors(file, column=column, labels=labels, holes=holes)
        return _Parts(found.x, found.labels, None, (found.name, found.label))
    if column is not None:
        raise UserError(f"vector_column is {column!r}, and {file} is no Parquet file; leave it out")
    with reading_arrays(file):
        check_arrays(file, mapped=True)
        content = np.load(file, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return _Parts(content, None, None)
        with content:
            return _members(file, content)


def _members(file: Path, content: Mapping[str, np.ndarray]) -> _Parts:
    names = list(content)
    if _TRAIN[0] in names and _TEST[0] in names:
        train, test = content[_TRAIN[0]], content[_TEST[0]]
        if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
            what = f"x_train {train.shape} {train.dtype} but x_test {test.shape} {test.dtype}"
            raise UserError(f"{file} has {what}; save both alike")
        both = _TRAIN[1] in names and _TEST[1] in names
        labels = np.concatenate([content[_TRAIN[1]].ravel(), content[_TEST[1]].ravel()]) if both else None
        return _Parts(np.concatenate([train, test]), labels, len(train))
    key = next((key for key in (*SAMPLES, _TRAIN[0]) if key in names), names[0] if len(names) == 1 else None)
    if key is None:
        raise UserError(f"{file} has {', '.join(names) or 'no arrays'}; call the samples x and their labels y")
    label = next((key for key in (*LABELS, _TRAIN[1]) if key in names), None)
    return _Parts(content[key], None if label is None else content[label], None)


def _arranged(file: Path, x: np.ndarray, layout: str) -> np.ndarray:
    """View of x as vectors (N, D) or images (N, C, H, W)."""
    options = ("auto", "channels_first", "channels_last")
    if layout not in options:
        raise UserError(f"layout {layout!r} is unknown{did_you_mean(layout, options)}")
    if x.dtype.kind not in "buif":
        raise UserError(f"{file} holds {x.dtype}, not real numbers; save it as uint8 or float32")
    if x.ndim not in (2, 3, 4) or not x.size:
        raise UserError(
            f"{file} has shape {x.shape}; give vectors (N, D) or images (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if x.dtype == bool:
        x = x.view(np.uint8)
    if x.ndim == 3:
        return x[:, None]
    first, last = x.shape[1] in _CHANNELS, x.shape[-1] in _CHANNELS
    if x.ndim == 2 or layout == "channels_first" or (layout == "auto" and first and not last):
        return x
    if layout == "channels_last" or (last and not first):
        return np.moveaxis(x, 3, 1)
    why = "either axis may be the channels" if first else "no axis of 1, 3 or 4 can be the channels"
    raise UserError(f"{file} has shape {x.shape}, where {why}; say layout='channels_first' or 'channels_last'")


def _extent(file: Path, x: np.ndarray, holes: bool) -> tuple[float, float]:
    """Lowest and highest value. Raises UserError unless all are finite, or NaN where ``holes``."""
    lows, highs = [], []
    for block in row_blocks(x):
        part = x[block]
        lows.append(np.fmin.reduce(part, None) if holes else part.min())
        highs.append(np.fmax.reduce(part, None) if holes else part.max())
        if not (np.isfinite(lows[-1]) and np.isfinite(highs[-1])):
            bad = (np.isinf(part) if holes else ~np.isfinite(part)).reshape(len(part), -1).any(1)
            if not bad.any():  # none but holes
                continue
            row, what = block.start + int(bad.argmax()), "an infinite value" if holes else "NaN or an infinite value"
            unknown = ", or take NaN for unknown by --holes" if x.ndim == 2 and not holes else ""
            raise UserError(f"{file} has {what} in row {row}; remove such rows or fill them in{unknown}")
    return float(np.fmin.reduce(lows)), float(np.fmax.reduce(highs))


def _scale(file: Path, dtype: np.dtype, low: float, high: float, value_range: tuple[float, float] | None) -> Transform:
    """Pixel scaling for this type and the value range [low, high]."""
    whole = dtype.kind in "bui"
    options = _RANGES["u" if whole else "f"] if value_range is None else (value_range,)
    for least, most in options:
        scale = PixelScale(least, most, integer=whole)
        if scale.low <= low and high <= scale.high:
            return scale
    raise UserError(
        f"{file} has {dtype} pixels from {low:g} to {high:g}, outside {' and '.join(map(str, options))};"
        " give their value_range"
    )


def _classes(
    file: Path, labels: np.ndarray | None, count: int, wanted: Literal["auto", "yes", "no"]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Class codes (N,) and class names; whole numbers are their own names."""
    if labels is None or wanted == "no":
        if wanted == "yes":
            raise UserError(f"{file} has no labels; save them as y, or give labels='no'")
        return {}, {}
    labels = labels.squeeze()
    if labels.shape != (count,) or labels.dtype.kind not in "buiUS":
        raise UserError(
            f"{file} has labels {labels.shape} {labels.dtype}, not a whole number or a word for each of {count}"
            " samples; give labels='no'"
        )
    values, numbers = np.unique(labels, return_inverse=True)
    names = tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist())
    return {"label": numbers.reshape(-1).astype(np.int64)}, {"label": names}

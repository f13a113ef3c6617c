"""Data sets: two splits that return batches in model units."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from advect.core import registry
from advect.core.bounds import Share, bounds_of, check_bounds
from advect.core.errors import UserError
from advect.core.random import CounterRng, Generator, Stream, stream_seed
from advect.core.types import NULL, Batch, Category, Conditions, DataSpec
from advect.data.transforms import Transform

if TYPE_CHECKING:
    from advect.data.copies import Copies
    from advect.data.holes import Holes
    from advect.data.images.folder import ImageSplit
    from advect.data.modality import Modality


class Split(ABC):
    """Samples 0 .. len - 1 of one part of the data. Thread-safe.

    Attributes:
        shards: sizes, summing to len, of runs of neighbouring samples, where random access is slow; training visits a
            few at a time. None otherwise.
        buckets: (N,) number of the shape in ``shapes`` that each sample has in training; ``fetch`` then takes one as a
            third argument, and without it samples have the shape of the data set. None for one shape.
        shapes: shapes of the buckets.
    """

    shards: Sequence[int] | None = None
    buckets: np.ndarray | None = None
    shapes: Sequence[tuple[int, ...]] = ()

    @property
    def files(self) -> ImageSplit | None:
        """The split if its samples are image files decoded at each fetch (the doctor inspects them), else None."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        """Samples at ``indices`` (B,) int64, in that order, in model units.

        ``rng`` with B rows, one per index, drives augmentation; None disables it.
        """

    def origin(self, indices: np.ndarray) -> tuple[Split, np.ndarray]:
        """Split that the samples at ``indices`` (B,) are read from, and their places there."""
        return self, indices

    def row_names(self, indices: np.ndarray) -> list[str]:
        """File names, or numbers of rows in the data from 0 on, of the samples at ``indices`` (B,)."""
        return [f"row {i}" for i in indices.tolist()]


class Subset(Split):
    """Samples of another split at increasing ``places`` (n,)."""

    def __init__(self, split: Split, places: np.ndarray) -> None:
        self._split, self._places = split, places
        self.shapes, self.buckets = split.shapes, None if split.buckets is None else split.buckets[places]
        if split.shards is not None:
            self.shards = np.diff(np.searchsorted(places, np.cumsum(split.shards)), prepend=0).tolist()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def files(self) -> ImageSplit | None:
        files = self._split.files
        return None if files is None else files.at(files.rows[self._places])

    def fetch(self, indices: np.ndarray, rng: Generator = None, *bucket: int | None) -> Batch:
        return self._split.fetch(self._places[indices], rng, *bucket)

    def origin(self, indices: np.ndarray) -> tuple[Split, np.ndarray]:
        return self._split.origin(self._places[indices])

    def row_names(self, indices: np.ndarray) -> list[str]:
        return self._split.row_names(self._places[indices])


class Detected(NamedTuple):
    """A format that can read a path: priority, description, modality.

    The highest priority wins: 80 and more for layouts unique to a format, 60 for tables, 10 for any folder with
    images.
    """

    priority: int
    words: str
    modality: str = "image"


class Preview(NamedTuple):
    """First look at data: description with counts, and required options."""

    words: str = ""
    options: Mapping[str, Any] = {}


class Dataset:
    """Data for training and evaluation. Constructors of subclasses end by calling this one.

    A registered data set is a format: its constructor's arguments are flags, the first one ``--data-dir`` where
    ``place`` is set.

    Attributes:
        name: name in reports.
        spec: sample shape, modality and conditions.
        transform: between data units and model units.
        train: training samples.
        held_out: evaluation samples, disjoint from ``train``; may be empty.
        fingerprint: sha256 (hex) of the data; equal in every process.
        copies: what :func:`~advect.data.copies.without_copies` left out; None if nothing was looked for.
        holes: entries that samples lack; None without any.
        augmentation: name of the augmentation of training images.

    Raises:
        UserError: there are no training samples.
    """

    copies: Copies | None = None
    holes: Holes | None = None
    augmentation: str = "none"

    part_kind: ClassVar[str] = "data-format"
    place: ClassVar[str | None] = None
    """Description of the first argument, for messages; None where a library provides the data."""
    remote: ClassVar[bool] = False
    """Whether the first argument may be a URL, a pattern or a hub name."""
    photographs: ClassVar[bool] = False
    """Whether samples are mostly pictures of the world, which the default of --augment changes."""
    usual_preset: ClassVar[str | None] = None
    """Preset for these data; None: those that name this format, or if none does, that of the modality."""

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        """Detect this format in an existing path from names and first bytes; None if absent."""
        return None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        """First look at the data. It may fail; opening the data gives the reason."""
        return Preview()

    @classmethod
    def image_size(cls, path: Path) -> tuple[int, int] | None:
        """Height and width of images that are not resized; None for other data."""
        return None

    @classmethod
    def open(cls, *place: Any, **options: Any) -> Dataset:
        """Data set for command-line flags; a format may return an equal one that is faster to read."""
        return cls(*place, **options)

    def __init__(
        self, *, name: str, spec: DataSpec, transform: Transform, train: Split, held_out: Split, fingerprint: str
    ) -> None:
        if not len(train):
            raise UserError(f"{name} has no samples to train on; give at least one")
        self.name, self.spec, self.transform = name, spec, transform
        self.train, self.held_out, self.fingerprint = train, held_out, fingerprint

    @cached_property
    def modality(self) -> Modality:
        """How samples are written, plotted and compared."""
        return registry.get("modality", self.spec.modality)(self.spec, self.transform, self.metadata)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """JSON object needed to write samples in the data's own format; empty if arrays suffice."""
        return {}

    @property
    def real(self) -> Dataset:
        """Reference data for evaluation: this data set, or its complete samples if others have holes; for pairs that a
        flow generated those it was trained on.
        """
        return self if self.holes is None else self.holes.complete(self)

    def source_samples(self) -> tuple[Tensor, Conditions] | None:
        """Samples of p_0 from the data, (n, *S) in model units, and their categories (n,); None means noise."""
        return None

    def __repr__(self) -> str:
        parts = f"train={len(self.train)}, held_out={len(self.held_out)}"
        return f"{type(self).__name__}(shape={self.spec.shape}, {parts}, fingerprint={self.fingerprint[:12]})"


@dataclass(frozen=True)
class Rows:
    """Samples x (N, *S) in data units, labels (N,) int64 for each condition, and numbers (N,) in the data."""

    x: np.ndarray
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    numbers: np.ndarray | None = None

    def __getitem__(self, indices: np.ndarray) -> Rows:
        labels = {key: labels[indices] for key, labels in self.labels.items()}
        return Rows(self.x[indices], labels, indices if self.numbers is None else self.numbers[indices])


class Forward(Protocol):
    """A map of rows (n, ...) to model units (n, *S)."""

    def forward(self, x: Tensor, /) -> Tensor: ...


class ArraySplit(Split):
    """Rows of an array in memory or memory-mapped; only fetched rows are read and converted.

    Args:
        x: (N, *S) in model units or, with a ``transform``, of any real type in data units.
        cond: conditions, each with N rows of the type networks take.
        transform: from data units to model units.
        rows: (n,) rows of x in this split; default all.
        numbers: (N,) numbers of the rows in the data; default 0 .. N - 1.

    Raises:
        ValueError: a condition does not have N rows.
    """

    def __init__(
        self,
        x: np.ndarray,
        cond: Mapping[str, np.ndarray] | None = None,
        transform: Forward | None = None,
        *,
        rows: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
    ) -> None:
        self._x = np.ascontiguousarray(x, np.float32) if transform is None else np.asarray(x)
        self._transform, self._rows, self._numbers = transform, rows, numbers
        self._plain = self._x.flags.carray and self._x.dtype.isnative
        self._cond: dict[str, np.ndarray] = {}
        for name, values in (cond or {}).items():
            if len(values) != len(x):
                raise ValueError(f"condition {name!r} has {len(values)} rows for {len(x)} samples")
            some = values if rows is None else values[rows]
            self._cond[name] = np.ascontiguousarray(some, np.int64 if some.dtype.kind in "biu" else None)

    def __len__(self) -> int:
        return len(self._x if self._rows is None else self._rows)

    def row_names(self, indices: np.ndarray) -> list[str]:
        places = indices if self._rows is None else self._rows[indices]
        return super().row_names(places if self._numbers is None else self._numbers[places])

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        places = indices if self._rows is None else self._rows[indices]
        # A toy network steps in a millisecond or two: NumPy's take costs a sixth of PyTorch's index_select. It copies
        # an array that is mapped or strided as a whole, of which indexing reads these rows alone.
        x = self._x.take(places, axis=0) if self._plain else np.array(self._x[places])
        if x.dtype != np.uint8:  # PyTorch takes neither every width of whole numbers nor every order of bytes
            wide = x.dtype.itemsize > 4 or (x.dtype.kind in "iu" and x.dtype.itemsize == 4)
            x = x.astype(np.float64 if wide else np.float32, copy=False)
        x1 = torch.from_numpy(x)
        if self._transform is not None:
            x1 = self._transform.forward(x1)
        if not self._cond:
            return Batch(x1)
        return Batch(x1, {name: torch.from_numpy(values.take(indices, axis=0)) for name, values in self._cond.items()})


def _split(rows: Rows, transform: Transform) -> ArraySplit:
    """Split of 8-bit samples, converted at each fetch, or of others in model units."""
    if rows.x.dtype == np.uint8:
        return ArraySplit(rows.x, rows.labels, transform, numbers=rows.numbers)
    return ArraySplit(transform.forward(torch.from_numpy(rows.x)).numpy(), rows.labels, numbers=rows.numbers)


class ArrayDataset(Dataset):
    """Data set in memory; samples are vectors (D,) or images (C, H, W).

    ``names`` holds the names of each condition's values. The fingerprint covers samples, labels and names.
    """

    def __init__(
        self,
        *,
        name: str,
        train: Rows,
        held_out: Rows,
        transform: Transform,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        names = names or {}
        shape = train.x.shape[1:]
        super().__init__(
            name=name,
            spec=DataSpec(
                shape=shape,
                modality=array_modality(shape),
                conditions={key: category(train.labels[key], v, range(len(v))) for key, v in names.items()},
            ),
            transform=transform,
            train=_split(train, transform),
            held_out=_split(held_out, transform),
            fingerprint=fingerprint(train, held_out, names),
        )


def array_modality(shape: Sequence[int]) -> str:
    """Modality of arrays with samples of shape (D,) or (C, H, W)."""
    return "image" if len(shape) == 3 else "vector"


def category(labels: np.ndarray, names: Sequence[str], numbers: Sequence[int] = ()) -> Category:
    """Category with the frequencies of labels (N,) in 0 .. len(names) - 1.

    ``numbers`` are the data's codes for the names, such as 3 for cat in CIFAR-10.
    """
    counts = np.bincount(labels, minlength=len(names))
    numbers = () if all(label_number(name) is not None for name in names) else tuple(numbers)
    return Category(tuple(names), tuple((counts / max(len(labels), 1)).tolist()), numbers)


def label_number(name: str) -> int | float | None:
    """Number whose Python text is the label; None for other text, such as 007 or 1_0."""
    for kind in (int, float):
        try:
            number = kind(name)
        except ValueError:
            continue
        return number if str(number) == name and math.isfinite(number) else None
    return None


def as_asked(x: np.ndarray, mean: np.ndarray | float) -> np.ndarray:
    """Conditions x (...) in data units, of the fewest decimals that float32 of their distance to ``mean`` holds."""
    slack = 2.0**-50 * np.abs(x) + 2.0**-22 * np.abs(x - mean)
    with np.errstate(over="ignore", invalid="ignore"):  # huge numbers have no decimals, and stay
        for places in range(7):
            short = x.round(places)
            x = np.where(np.abs(x - short) <= slack, short, x)
    return x


def label_array(names: Sequence[str], codes: np.ndarray) -> np.ndarray:
    """Labels (n,) for codes (n,): integers, reals or booleans if all names are such, else text.

    A missing label is NaN in numbers and empty in text.
    """
    given, numbers = codes != NULL, [label_number(name) for name in names]
    if all(number is not None for number in numbers):
        whole = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers) and given.all()
        table = np.array([*numbers, 0 if whole else math.nan], np.int64 if whole else np.float64)
    elif set(names) <= {"True", "False"} and given.all():
        table = np.array([*(name == "True" for name in names), False])
    else:
        table = np.array([*names, ""], np.str_)
    return table[np.where(given, codes, len(names))]


def fingerprint(train: Rows, held_out: Rows, names: Mapping[str, Sequence[str]]) -> str:
    """sha256 (hex) of samples, labels and label names."""
    digest = hashlib.sha256(repr([(key, tuple(names[key])) for key in sorted(names)]).encode())
    for rows in (train, held_out):
        for array in (rows.x, *(rows.labels[key] for key in sorted(rows.labels))):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_share(held_out: float) -> None:
    """Raise UserError unless ``held_out`` is in [0, 1)."""
    check_bounds("held_out", held_out, bounds_of(Share), 0.1)


def random_split(n: int, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted training and held-out indices of 0 .. n - 1; a share > 0 of n >= 2 holds out at least one."""
    check_share(held_out)
    count = min(max(round(n * held_out), 1), n - 1) if held_out else 0
    order = CounterRng(stream_seed(seed, Stream.HELD_OUT), 0, n).permutation().numpy()
    return np.sort(order[count:]), np.sort(order[:count])

"""What data is to the rest of the house: a source with two splits that hand out batches in model units."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advect.core import registry
from advect.core.errors import UserError
from advect.core.random import CounterRng, Generator, Stream, stream_seed, uniform
from advect.core.types import NULL, Batch, Category, Conditions, DataSpec
from advect.data.transforms import Transform

if TYPE_CHECKING:
    from advect.data.images.folder import ImageSplit
    from advect.data.modality import Modality


class Split(ABC):
    """The samples 0 .. len - 1 of a part of the data. Several threads may fetch at once.

    Attributes:
        shards: the sizes of the runs of samples that are near to one another, where far ones are slow to reach; else
            None. They sum to len, and training then visits a few shards at a time.
    """

    shards: Sequence[int] | None = None

    @property
    def files(self) -> ImageSplit | None:
        """The split where its samples are image files decoded at each fetch, which the doctor looks at; else None."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        """The samples at ``indices`` (B,) int64, in that order, in model units.

        ``rng``, where given, drives augmentation and has B rows, a row for each index; None augments nothing.
        """


class Detected(NamedTuple):
    """That a path can be read in a format: how likely, a line of words about it, and the modality of its data.

    Of several formats the one of the highest priority is taken: 80 and more for layouts that nothing else has, 60 for
    a table, 10 for a folder with any images.
    """

    priority: int
    words: str
    modality: str = "image"


class Preview(NamedTuple):
    """What a first look at data tells: words with counts, the options that it needs, and about how many samples."""

    words: str = ""
    options: Mapping[str, Any] = {}
    samples: int | None = None


class Dataset:
    """Data to train and measure on. A concrete data set's constructor ends by calling this one.

    A registered data set is a format: its constructor's arguments are flags, and where ``place`` is set, the first
    one is ``--data-dir``. Its class methods tell whether a path holds it.

    Attributes:
        name: what reports call it.
        spec: shape of one sample, modality and conditions.
        transform: between data units and the model units that the splits hand out.
        train: the samples to train on.
        held_out: samples kept for measuring, none of them in ``train``; it may be empty.
        fingerprint: sha256, in hexadecimal, of what the data is; the same in every process.

    Raises:
        UserError: there is nothing to train on.
    """

    part_kind: ClassVar[str] = "data-format"
    place: ClassVar[str | None] = None
    """What the first argument names, for messages; None where the data come with a library."""
    remote: ClassVar[bool] = False
    """Whether the first argument may be a URL, a pattern, or a name on the hub."""
    usual_preset: ClassVar[str | None] = None
    """The preset for these data, which then takes them; None: a preset that names this format takes it."""

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        """Whether an existing path holds this format, told from names and first bytes; None where it does not."""
        return None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        """A first look at data of this format. It may fail; whoever opens the data says why."""
        return Preview()

    @classmethod
    def image_size(cls, path: Path) -> tuple[int, int] | None:
        """Height and width of images that are not resized; None of other data."""
        return None

    @classmethod
    def open(cls, *place: Any, **options: Any) -> Dataset:
        """The data set that a run asks for by flags; a format may answer with an equal one that is faster to read."""
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
        """A JSON object with what writing samples in the data's own format needs; empty where arrays say all."""
        return {}

    @property
    def real(self) -> Dataset:
        """The data to hold samples against: these, unless they are pairs that a flow has made for others."""
        return self

    def source_samples(self) -> tuple[Tensor, Conditions] | None:
        """Samples of p_0 that the data bring, (n, *S) in model units, and their categories (n,); None is noise."""
        return None

    def __repr__(self) -> str:
        parts = f"train={len(self.train)}, held_out={len(self.held_out)}"
        return f"{type(self).__name__}(shape={self.spec.shape}, {parts}, fingerprint={self.fingerprint[:12]})"


@dataclass(frozen=True)
class Rows:
    """Samples x (N, *S) in data units and, for each condition, labels (N,) int64."""

    x: np.ndarray
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, indices: np.ndarray) -> Rows:
        return Rows(self.x[indices], {key: labels[indices] for key, labels in self.labels.items()})


class ArraySplit(Split):
    """Rows of an array in memory, or mapped from a file; only those fetched are read and converted.

    Args:
        x: (N, *S), in model units, or of any real type in data units where there is a ``transform``.
        cond: for each condition a row (N, ...) for every row of x, of the type networks are given.
        transform: from data units to model units.
        rows: (n,) the rows of x in this split; by default all.
        flip: mirror half of the images (C, H, W) that are fetched with an rng.

    Raises:
        ValueError: a condition has not a row a sample.
    """

    def __init__(
        self,
        x: np.ndarray,
        cond: Mapping[str, np.ndarray] | None = None,
        transform: Transform | None = None,
        *,
        rows: np.ndarray | None = None,
        flip: bool = False,
    ) -> None:
        self._x = np.ascontiguousarray(x, np.float32) if transform is None else np.asarray(x)
        self._transform, self._rows, self._flip = transform, rows, flip
        self._plain = self._x.flags.carray and self._x.dtype.isnative
        self._cond: dict[str, np.ndarray] = {}
        for name, values in (cond or {}).items():
            if len(values) != len(x):
                raise ValueError(f"condition {name!r} has {len(values)} rows for {len(x)} samples")
            some = values if rows is None else values[rows]
            self._cond[name] = np.ascontiguousarray(some, np.int64 if some.dtype.kind in "biu" else None)

    def __len__(self) -> int:
        return len(self._x if self._rows is None else self._rows)

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        places = indices if self._rows is None else self._rows[indices]
        # A toy network steps in a millisecond or two: NumPy's take costs a sixth of PyTorch's index_select. It copies
        # an array that is mapped or strided as a whole, of which indexing reads these rows alone.
        x = self._x.take(places, axis=0) if self._plain else np.array(self._x[places])
        if self._flip and rng is not None:
            mirrored = uniform((len(indices),), rng).numpy() < 0.5
            x[mirrored] = x[mirrored, ..., ::-1]
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
    """8-bit samples as they are, converted at each fetch; others in model units."""
    if rows.x.dtype == np.uint8:
        return ArraySplit(rows.x, rows.labels, transform)
    return ArraySplit(transform.forward(torch.from_numpy(rows.x)).numpy(), rows.labels)


class ArrayDataset(Dataset):
    """A source whose samples lie in memory: (D,) are vectors, (C, H, W) images.

    ``names`` are the names of each condition's values. The fingerprint covers samples, labels and names.
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
    """The modality of arrays whose samples have this shape, (D,) or (C, H, W)."""
    return "image" if len(shape) == 3 else "vector"


def category(labels: np.ndarray, names: Sequence[str], numbers: Sequence[int] = ()) -> Category:
    """The category of these names, with the shares of the labels (N,) in 0 .. len(names) - 1.

    ``numbers`` are what the data have in place of the names, such as CIFAR-10's 3 for cat.
    """
    counts = np.bincount(labels, minlength=len(names))
    numbers = () if all(label_number(name) is not None for name in names) else tuple(numbers)
    return Category(tuple(names), tuple((counts / max(len(labels), 1)).tolist()), numbers)


def label_number(name: str) -> int | float | None:
    """The number that a label is the text of, as Python writes it; None of other text, such as 007 or 1_0."""
    for kind in (int, float):
        try:
            number = kind(name)
        except ValueError:
            continue
        return number if str(number) == name and math.isfinite(number) else None
    return None


def label_array(names: Sequence[str], codes: np.ndarray) -> np.ndarray:
    """The labels (n,) of codes (n,): integers, real numbers or truth values where all names are such, else text.

    Where there is none, an integer or real number is NaN, and text is empty.
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
    """sha256, in hexadecimal, of the samples, their labels and the labels' names."""
    digest = hashlib.sha256(repr([(key, tuple(names[key])) for key in sorted(names)]).encode())
    for rows in (train, held_out):
        for array in (rows.x, *(rows.labels[key] for key in sorted(rows.labels))):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_share(held_out: float) -> None:
    """Raise UserError unless ``held_out`` is a share in [0, 1)."""
    if not 0 <= held_out < 1:
        raise UserError(f"held_out must be a share in [0, 1), got {held_out}; 0.1 keeps a tenth for measuring")


def random_split(n: int, held_out: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of 0 .. n - 1 to train on and those held out, both rising; a share > 0 of n >= 2 is at least one."""
    check_share(held_out)
    count = min(max(round(n * held_out), 1), n - 1) if held_out else 0
    order = CounterRng(stream_seed(seed, Stream.HELD_OUT), 0, n).permutation().numpy()
    return np.sort(order[count:]), np.sort(order[:count])

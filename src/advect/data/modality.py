"""What images, tables, cells, sequences and vectors do differently: files, pictures, comparison, usual choices."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import atomic_write
from advect.core.types import NULL, Batch, Category, Conditions, DataSpec, Quantity, without_padding
from advect.data.base import Dataset, Split
from advect.data.figure import save_png
from advect.data.transforms import Transform

if TYPE_CHECKING:
    from advect.data.cells.transform import Components

PLACES = {
    "image": "advect.data.images.modality",
    "cells": "advect.data.cells.modality",
    "table": "advect.data.tables.modality",
    "vector": "advect.data.vectors.modality",
    "vectors": "advect.data.vectors.modality",
    "sequence": "advect.data.sequences.modality",
    "sequences": "advect.data.sequences.modality",
}
"""The module of each kind that a data set's metadata, or else its spec, names."""

HELD_OUT = 2000
"""Held-out samples that samples are plotted over, at most."""

DISTANCES = ("frechet", "sliced_wasserstein", "wasserstein", "energy", "mmd", "two_sample")


class Modality(ABC):
    """One kind of data: how samples of it are written, plotted and compared.

    Args:
        spec: shape and conditions of one sample.
        transform: between data units and model units.
        metadata: what the data set says of itself, see ``Dataset.metadata``.
    """

    name: ClassVar[str]
    """In words for messages: "this flow makes NAME data"."""
    usual_preset: ClassVar[str] = "arrays"
    metrics: ClassVar[tuple[str, ...]] = (*DISTANCES, "marginals", "straightness")
    """The metrics that are usual for these data, in the order of a table."""
    online_metrics: ClassVar[tuple[str, ...]] = ("frechet", "energy")
    """Those measured while a run trains."""
    reflow_metrics: ClassVar[tuple[str, ...]] = ("energy", "sliced_wasserstein")
    """Those that compare flows, the first one being drawn."""
    pair_storage: ClassVar[Literal["float32", "bf16", "uint8"]] = "float32"
    """How reflow stores samples by default."""
    shown: ClassVar[int] = 1000
    """Samples in a picture of a report."""
    most_plotted: ClassVar[int | None] = None
    """Samples in samples.png, at most."""
    trajectories: ClassVar[int] = 8
    """Trajectories in a report."""
    space: ClassVar[str] = "data space"
    """The units in which values are compared."""
    is_image: ClassVar[bool] = False
    """Whether features of an image network, bytes and single files apply."""

    def __init__(self, spec: DataSpec, transform: Transform, metadata: Mapping[str, Any] | None = None) -> None:
        self.spec, self.transform, self.metadata = spec, transform, metadata or {}

    @property
    def categorical(self) -> tuple[bool, ...]:
        """Of a table, whether each column is one of categories."""
        return ()

    @property
    def components(self) -> Components | None:
        """The transform's principal components, in which samples are compared; None where it has none."""
        return None

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """The values of black and white, where the transform of images knows them."""
        return None

    def check_output(self, *, individual: bool = False) -> None:
        """See, before anything is drawn, that samples can be written, each as an image of its own where asked.

        Raises UserError where they cannot, or a library is missing.
        """
        if individual and not self.is_image:
            raise UserError(f"--save-individual writes images, and this flow makes {self.name} data; leave it out")

    def write(
        self,
        x: Tensor,
        conditions: Conditions,
        folder: Path,
        *,
        individual: bool = False,
        first: int = 0,
        seed: int = 0,
    ) -> list[Path]:
        """Write samples x (n, *S), in data units, with their conditions (n, ...) into a folder; return the files.

        What is in the data's own format comes first, then samples.png, and with ``individual`` a PNG for each image.
        Where samples have numbers, ``first`` is that of the first one; ``seed`` is that of what is counted around x.
        Raises UserError where x does not fit, or a library is missing.
        """
        self.check_output(individual=individual)
        x = self.counted(x, first=first, seed=seed)
        files = [*self.write_data(x, conditions, folder, first), folder / "samples.png"]
        shown = {name: value[: self.most_plotted] for name, value in conditions.items()}
        save_png(self.plot(x[: self.most_plotted], shown), files[-1])
        for i in range(len(x) if individual else 0):
            files.append(folder / f"sample-{first + i:06d}.png")
            save_png(self.plot(x[i : i + 1], {}), files[-1])
        return files

    @abstractmethod
    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        """Write samples in the data's own format; return the files."""

    @abstractmethod
    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """Plot samples x (n, *S) with their conditions (n, ...) beside held-out data, both in data units."""

    def reference(self, held_out: Split) -> Batch | None:
        """Held-out samples in data units to plot samples over; None where there are none."""
        if len(held_out) == 0:
            return None
        batch = held_out.fetch(np.arange(min(HELD_OUT, len(held_out))))
        cond = batch.cond or {}
        return Batch(without_padding(self.transform.inverse(batch.x1), cond), cond)

    def data(self, split: Split, indices: np.ndarray) -> tuple[Tensor, Conditions]:
        """Samples of a split at ``indices`` (n,) as they are compared, (n, *S), and their conditions."""
        batch = split.fetch(indices)
        cond = batch.cond or {}
        return without_padding(self.transform.inverse(batch.x1), cond), cond

    def comparable(self, x: Tensor) -> Tensor:
        """States x (n, *S) of a flow, in data units, in the units of :meth:`data`."""
        return x

    def counted(self, x: Tensor, *, first: int = 0, seed: int = 0) -> Tensor:
        """Samples x (n, *S), in data units, as they are written: cells that components expect are counted."""
        return x

    def measured(self, x: Tensor, *, first: int = 0, seed: int = 0) -> Tensor:
        """Samples x (n, *S), in data units, as written and in the units of :meth:`data`."""
        return self.comparable(x)

    def feature_space(self, x: Tensor) -> Tensor:
        """Comparable samples (n, *S) as vectors (n, *K) between which distances mean something, also in float32."""
        return self.transform.centred(x)


def modalities() -> list[type[Modality]]:
    """All modalities."""
    return list(dict.fromkeys(importlib.import_module(place).MODALITY for place in PLACES.values()))


def modality_of(spec: DataSpec, transform: Transform, metadata: Mapping[str, Any] | None = None) -> Modality:
    """The modality of some data, of which only its own module is imported."""
    module = importlib.import_module(PLACES[(metadata or {}).get("kind", spec.kind)])
    return module.MODALITY(spec, transform, metadata)


def dataset_modality(dataset: Dataset) -> Modality:
    """The modality of a data set."""
    return modality_of(dataset.spec, dataset.transform, dataset.metadata)


def write_npz(folder: Path, arrays: Mapping[str, Tensor], conditions: Conditions) -> Path:
    """samples.npz, without pickle; return its path."""
    plain = {name: value.numpy() for name, value in {**arrays, **conditions}.items()}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plain)

    atomic_write(folder / "samples.npz", write)
    return folder / "samples.npz"


def condition_columns(conditions: Conditions, spec: DataSpec) -> dict[str, list[Any]]:
    """Conditions as a person reads them: names, and numbers in their own units; empty where not given."""
    columns: dict[str, list[Any]] = {}
    for name, value in conditions.items():
        kind = spec.conditions[name]
        if isinstance(kind, Category):
            columns[name] = ["" if i == NULL else kind.names[i] for i in value.tolist()]
        elif isinstance(kind, Quantity):
            own = value.double() * value.new_tensor(kind.std).double() + value.new_tensor(kind.mean).double()
            for i, entry in enumerate(kind.names):
                title = name if len(kind.names) == 1 else f"{name}.{entry}"
                columns[title] = ["" if v != v else v for v in own[:, i].tolist()]
        else:
            columns[name] = value.tolist()
    return columns

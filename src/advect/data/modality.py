"""What images, tables, cells, sequences and vectors do differently: files, pictures, comparison, usual choices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
from PIL import Image
from torch import Tensor

from advect.core import registry
from advect.core.errors import UserError
from advect.core.files import atomic_write
from advect.core.types import NULL, Batch, Category, Conditions, DataSpec, Quantity, without_padding
from advect.data.base import Split, label_array
from advect.data.figure import save_png
from advect.data.transforms import Transform

if TYPE_CHECKING:
    from advect.data.cells.transform import Components

HELD_OUT = 2000
"""Held-out samples that samples are plotted over, at most."""

DISTANCES = ("frechet", "sliced_wasserstein", "wasserstein", "energy", "mmd", "two_sample")


M = TypeVar("M", bound=Mapping[str, Any])
"""What a data set says of itself, a TypedDict that is JSON."""


class EstimatorDefaults(NamedTuple):
    """What ``advect.FlowModel`` takes where None is given."""

    network: str = "mlp"
    steps: int = 8000
    """On two moons the held-out density gains until about there, half a minute."""
    learning_rate: float = 4e-3


class Verdict(NamedTuple):
    """What the doctor says of some statistics, and how to mend it."""

    level: Literal["ok", "note", "problem"]
    title: str
    fix: str = ""


FINE = Verdict("ok", "The values are finite and of the size that networks learn from")


class Modality(ABC, Generic[M]):
    """One kind of data: how samples of it are written, plotted and compared, and what is usual for it.

    A registered one is the modality of every data set whose ``spec.modality`` is its name.

    Args:
        spec: shape and conditions of one sample.
        transform: between data units and model units.
        metadata: what the data set says of itself, see ``Dataset.metadata``.
    """

    part_kind: ClassVar[str] = "modality"
    layout: ClassVar[str]
    """The axes of a sample, as in ``FlowNetwork.takes``: "vector" (D,), "sequence" (L, C) or "image" (C, H, W)."""
    usual_preset: ClassVar[str] = "arrays"
    metrics: ClassVar[tuple[str, ...]] = (*DISTANCES, "marginals", "straightness")
    """The metrics that are usual for these data, in the order of a table."""
    online_metrics: ClassVar[tuple[str, ...]] = ("frechet", "energy")
    """Those measured while a run trains."""
    reflow_metrics: ClassVar[tuple[str, ...]] = ("energy", "sliced_wasserstein")
    """Those that compare flows, the first one being drawn."""
    pair_stores: ClassVar[tuple[Literal["float32", "bf16", "uint8"], ...]] = ("float32", "bf16")
    """How reflow can store samples, the usual way first."""
    estimator: ClassVar[EstimatorDefaults] = EstimatorDefaults()
    """The settings of the scikit-learn estimator."""
    shown: ClassVar[int] = 1000
    """Samples in a picture of a report."""
    most_plotted: ClassVar[int | None] = None
    """Samples in samples.png, at most."""
    trajectories: ClassVar[int] = 8
    """Trajectories in a report."""
    space: ClassVar[str] = "data space"
    """The units in which values are compared."""
    value_name: ClassVar[str] = "values"
    """What the elements of a sample are called."""
    feature_networks: ClassVar[bool] = False
    """Whether a network that was trained on images gives features."""
    marginals: ClassVar[bool] = True
    """Whether each element is a quantity of its own, with a unit and a distribution worth a look."""

    def __init__(self, spec: DataSpec, transform: Transform, metadata: M | None = None) -> None:
        self.spec, self.transform, self.metadata = spec, transform, cast(M, metadata or {})

    @property
    def name(self) -> str:
        """In words for messages: "this flow makes NAME data"."""
        return registry.name_of(self)

    @classmethod
    def check_range(cls, *, mean: float, std: float, extreme: float) -> Verdict:
        """What the doctor says of mean, deviation and largest magnitude in model units."""
        if extreme > 20:
            fix = "take them out or take the logarithm; for tables, quantile scaling"
            return Verdict("note", "There are values far from all others, which dominate the loss", fix)
        if not 0.1 < std < 10:
            return Verdict("problem", "The values in model units are not near deviation 1", "standardise them")
        return FINE

    @classmethod
    def check_constant(cls, share: float) -> Verdict:
        """What the doctor says of a ``share`` > 0 of elements that never change."""
        return Verdict("note", "Some features never change", "leave them out")

    def check_features(self, what: str) -> None:
        """Raise UserError where ``what`` asks for the features of an image network and these data have none."""
        if not self.feature_networks:
            raise UserError(f"{what} is for images, and these are {self.name} data; leave it out")

    @abstractmethod
    def describe(self, shape: Sequence[int]) -> str:
        """What a sample of this shape, in the units of :meth:`data`, is: "64-dimensional vectors"."""

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
        if individual:
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
            save_png(self.picture(x[i]), files[-1])
        return files

    @abstractmethod
    def write_data(self, x: Tensor, conditions: Conditions, folder: Path, first: int) -> list[Path]:
        """Write samples in the data's own format; return the files."""

    @abstractmethod
    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """Plot samples x (n, *S) with their conditions (n, ...) beside held-out data, both in data units."""

    def picture(self, x: Tensor) -> Image.Image:
        """A sample (*S) as an image file of its own: of images its pixels, no more and no fewer."""
        return self.plot(x[None], {})

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


def modality_of(spec: DataSpec, transform: Transform, metadata: Mapping[str, Any] | None = None) -> Modality:
    """The modality of some data. Raises UserError for one that is not registered."""
    return registry.get("modality", spec.modality)(spec, transform, metadata)


def write_npz(folder: Path, arrays: Mapping[str, Tensor], conditions: Conditions, spec: DataSpec) -> Path:
    """samples.npz, without pickle, with the conditions by :func:`labels_of`; return its path."""
    plain = {name: value.numpy() for name, value in arrays.items()}
    for name, value in labels_of(conditions, spec).items():
        plain[f"condition_{name}" if name in arrays else name] = value

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plain)

    atomic_write(folder / "samples.npz", write)
    return folder / "samples.npz"


def labels_of(conditions: Conditions, spec: DataSpec) -> dict[str, np.ndarray]:
    """Conditions (n, ...) in the data's own values: labels (n,), lengths (n,), and quantities (n,) or (n, d).

    Quantities that are not given are NaN; of labels see :func:`~advect.data.base.label_array`.
    """
    found = {}
    for name, value in conditions.items():
        kind = spec.conditions[name]
        if isinstance(kind, Category):
            found[name] = label_array(kind.names, value.cpu().numpy())
        elif isinstance(kind, Quantity):
            own = value.cpu().double().numpy() * np.asarray(kind.std) + np.asarray(kind.mean)
            found[name] = own[:, 0] if own.shape[1] == 1 else own
        else:
            found[name] = value.cpu().numpy()
    return found


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

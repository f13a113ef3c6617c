"""Modalities: how kinds of data are written, plotted and compared, and their defaults."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from advect.core import registry
from advect.core.errors import UserError
from advect.core.files import atomic_write
from advect.core.types import NULL, Batch, Category, Conditions, DataSpec, Entries, Quantity, without_padding
from advect.data.base import Split, as_asked, label_array
from advect.data.figure import save_png
from advect.data.given import GivenRows, check_given, whole_entries
from advect.data.join_files import JOINED
from advect.data.transforms import Transform

if TYPE_CHECKING:
    from advect.data.cells.transform import Components

HELD_OUT = 2000
"""Maximum number of held-out samples plotted behind samples."""

DISTANCES = ("frechet", "sliced_wasserstein", "wasserstein", "energy", "mmd", "two_sample")


M = TypeVar("M", bound=Mapping[str, Any])
"""Metadata of a data set, a JSON TypedDict."""


class EstimatorDefaults(NamedTuple):
    """Defaults of ``advect.FlowModel``."""

    network: str = "mlp"
    steps: int = 8000
    """Held-out density on two moons improves until about there (30 s)."""
    learning_rate: float = 4e-3


class Recipe(NamedTuple):
    """How long to train: see ``advect.config.plan``.

    ``least_steps`` is what a network needs to learn anything, however few the rows; ``cpu_steps`` and ``gpu_steps``
    bound a run without a time of its own.
    """

    batch_size: int = 256
    epochs: int = 200
    least_steps: int = 3000
    cpu_steps: int = 30_000
    gpu_steps: int = 200_000
    warmup: int = 100


class Verdict(NamedTuple):
    """The doctor's finding about some statistics, and the fix."""

    level: Literal["ok", "note", "problem"]
    title: str
    fix: str = ""


FINE = Verdict("ok", "The values are finite and of the size that networks learn from")


class Modality(ABC, Generic[M]):
    """A kind of data: how samples are written, plotted and compared, with defaults.

    Its registered name is the ``spec.modality`` of its data sets.

    Args:
        spec: shape and conditions of one sample.
        transform: between data units and model units.
        metadata: see ``Dataset.metadata``.
    """

    part_kind: ClassVar[str] = "modality"
    record: ClassVar[Any] = dict[str, Any]
    """Type of the metadata, as ``core.records`` reads it from a card; a TypedDict names what it does not know."""
    layout: ClassVar[str]
    """Axes of a sample, as in ``FlowNetwork.takes``: "vector" (D,), "sequence" (L, C) or "image" (C, H, W)."""
    example_shape: ClassVar[tuple[int, ...]] = (16,)
    """Shape on which a network is tried before the data are there."""
    usual_preset: ClassVar[str] = "arrays"
    metrics: ClassVar[tuple[str, ...]] = (*DISTANCES, "marginals", "class_accuracy", "straightness")
    """Default metrics, in table order."""
    online_metrics: ClassVar[tuple[str, ...]] = ("frechet", "energy")
    """Metrics measured during training."""
    reflow_metrics: ClassVar[tuple[str, ...]] = ("energy", "sliced_wasserstein")
    """Metrics that compare flows; the first is plotted."""
    pair_stores: ClassVar[tuple[Literal["float32", "bf16", "uint8"], ...]] = ("float32", "bf16")
    """Storage types of samples for reflow, the default first."""
    estimator: ClassVar[EstimatorDefaults] = EstimatorDefaults()
    """Defaults of the scikit-learn estimator."""
    recipe: ClassVar[Recipe] = Recipe()
    """Batch size and length of a run by default."""
    shown: ClassVar[int] = 1000
    """Samples in a report's picture."""
    most_plotted: ClassVar[int | None] = None
    """Maximum number of samples in samples.png."""
    trajectories: ClassVar[int] = 8
    """Trajectories in a report."""
    space: ClassVar[str] = "data space"
    """Units in which values are compared."""
    value_name: ClassVar[str] = "values"
    """Name of a sample's elements."""
    feature_networks: ClassVar[bool] = False
    """Whether networks trained on images give features."""
    tokens: ClassVar[bool] = False
    """Whether samples are tokens: in model units rows of K numbers, one of which is 1."""
    marginals: ClassVar[bool] = True
    """Whether each element is a quantity with its own unit and distribution."""

    def __init__(self, spec: DataSpec, transform: Transform, metadata: M | None = None) -> None:
        self.spec, self.transform, self.metadata = spec, transform, cast(M, metadata or {})

    @property
    def name(self) -> str:
        """Name in messages: "this flow makes NAME data"."""
        return registry.name_of(self)

    @classmethod
    def check_range(cls, *, mean: float, std: float, extreme: float) -> Verdict:
        """The doctor's verdict on mean, deviation and largest magnitude in model units."""
        if extreme > 20:
            fix = "take them out or take the logarithm; for tables, quantile scaling"
            return Verdict("note", "There are values far from all others, which dominate the loss", fix)
        if not 0.1 < std < 10:
            return Verdict("problem", "The values in model units are not near deviation 1", "standardise them")
        return FINE

    @classmethod
    def check_constant(cls, share: float) -> Verdict:
        """The doctor's verdict on a ``share`` > 0 of constant elements."""
        return Verdict("note", "Some features never change", "leave them out")

    def check_features(self, what: str) -> None:
        """Raise UserError if ``what`` needs image-network features, which these data lack."""
        if not self.feature_networks:
            raise UserError(f"{what} is for images, and these are {self.name} data; leave it out")

    @abstractmethod
    def describe(self, shape: Sequence[int]) -> str:
        """Description of a sample of this shape in the units of :meth:`data`: "64-dimensional vectors"."""

    @property
    def categorical(self) -> tuple[bool, ...]:
        """Whether each column of a table is categorical."""
        return ()

    def check_facts(self) -> None:
        """Raise UserError unless metadata of a card fit its spec and transform."""

    @property
    def separator(self) -> str:
        """Separator of the fields of samples.csv, if that is written."""
        return ","

    @property
    def entries(self) -> Entries:
        """What is known or drawn as a whole. Raises UserError where model units mix what is asked for."""
        if self.transform.mixes:
            raise UserError(
                f"single entries of these data are not known, as they are {self.transform.mixes}; train on them as "
                "they are, or ask a flow trained without --mask by --posterior"
            )
        return Entries(self.groups, self.entry_names)

    @property
    def entry_names(self) -> tuple[str, ...]:
        """Names of the entries, if they are columns with names."""
        return ()

    def entry_name(self, entry: int) -> str:
        """Entry of this number in messages."""
        return repr(self.entry_names[entry]) if self.entry_names else f"entry {entry}"

    def given_rows(self, given: Any) -> Tensor:
        """What a user knows of one sample or of n, in data units, float64, NaN where entries are asked for."""
        if isinstance(given, GivenRows):
            return self.transform.inverse(given.values).double()
        return torch.as_tensor(np.asarray(given, np.float64))

    @property
    def components(self) -> Components | None:
        """The transform's principal components, in which samples are compared; None if it has none."""
        return None

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """Values of black and white, if the image transform knows them."""
        return None

    def check_output(self, *, individual: bool = False) -> None:
        """Check before sampling that samples can be written, as single images if ``individual``.

        Raises UserError if they cannot or a library is missing.
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
        """Write samples x (n, *S) in data units with conditions (n, ...) to a folder; return the files.

        Files in the data's own format come first, then samples.png, then with ``individual`` one PNG per image.
        ``first`` is the number of the first sample, ``seed`` the seed of count sampling. Raises UserError if x does
        not fit or a library is missing.
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

    def join(self, parts: Sequence[Path], path: Path, bar: tqdm) -> bool:
        """Write files that :meth:`write_data` made of consecutive samples as one, counting them by ``bar``.

        False for a format that cannot be joined.
        """
        join = JOINED.get(path.suffix)
        if join is not None:
            atomic_write(path, lambda partial: join(parts, partial, bar))
        return join is not None

    @abstractmethod
    def plot(self, x: Tensor, conditions: Conditions, reference: Batch | None = None) -> Image.Image:
        """Plot samples x (n, *S) with conditions (n, ...) beside held-out data, all in data units."""

    def picture(self, x: Tensor) -> Image.Image:
        """One sample (*S) as an image file; for images exactly their pixels."""
        return self.plot(x[None], {})

    def reference(self, held_out: Split) -> Batch | None:
        """Held-out samples in data units to plot behind samples; None if there are none."""
        if len(held_out) == 0:
            return None
        batch = held_out.fetch(np.arange(min(HELD_OUT, len(held_out))))
        whole = ~batch.x1.flatten(1).isnan().any(1)  # others have holes
        cond = {name: value[whole] for name, value in (batch.cond or {}).items()}
        x = without_padding(self.transform.inverse(batch.x1[whole]), cond)
        return Batch(x, cond) if len(x) else None

    def data(self, split: Split, indices: np.ndarray) -> tuple[Tensor, Conditions]:
        """Samples of a split at ``indices`` (n,) in comparison units, (n, *S), and their conditions.

        Raises UserError for samples with holes, which are not compared.
        """
        batch = split.fetch(indices)
        if bool(batch.x1.isnan().any()):
            raise UserError("rows with holes are not compared with samples; take the data set's ``real`` rows")
        cond = batch.cond or {}
        return without_padding(self.transform.inverse(batch.x1), cond), cond

    def comparable(self, x: Tensor) -> Tensor:
        """Flow states x (n, *S) from data units to the units of :meth:`data`."""
        return x

    def counted(self, x: Tensor, *, first: int = 0, seed: int = 0) -> Tensor:
        """Samples x (n, *S) in data units as written: expected expression becomes counts."""
        return x

    @property
    def groups(self) -> Tensor:
        """Number (*S) int64 of the entry of the data, such as a column or pixel, that an element belongs to.

        An entry is known or asked for as a whole.
        """
        return torch.arange(math.prod(self.spec.shape)).reshape(self.spec.shape)

    @property
    def size(self) -> int:
        """Numbers and categories of a sample; by default its elements."""
        return math.prod(self.spec.shape)

    def given(self, x: Tensor) -> Tensor:
        """Samples x (n, *data shape) in data units, NaN where asked for, in model units, NaN where asked for.

        Raises UserError if the shape does not fit, a value is infinite, an entry is known in part, or none is known or
        asked for.
        """
        check_given(x, self.transform.inverse(torch.zeros(1, *self.spec.shape)).shape[1:])
        return whole_entries(self.transform.forward(x), self.groups)

    def read_given(self, path: Path) -> GivenRows:
        """Samples of a file whose empty, NaN or transparent entries are asked for. Raises UserError."""
        raise UserError(f"{path} is given, and {self.name} data have no files with unknown entries; use Flow.sample")

    def write_given(self, x: Tensor, conditions: Conditions, rows: GivenRows, draws: int, folder: Path) -> list[Path]:
        """Write x (n * draws, *S) in data units, the draws of a row one after another; return the files.

        Entries that were known stand as in the file read.
        """
        return self.write(x, conditions, folder)

    def children(self, parents: Path | None, seed: int) -> tuple[Modality[Any], Conditions, int | None]:
        """What writes children of the ``parents`` in a file, their conditions (n, ...), and n; None without."""
        if parents is not None:
            raise UserError(f"--parents {parents} is for tables trained with --parent and --key; leave it out")
        return self, {}, None

    def measured(self, x: Tensor, *, first: int = 0, seed: int = 0) -> Tensor:
        """Samples x (n, *S) in data units, as written, in the units of :meth:`data`."""
        return self.comparable(x)

    def feature_space(self, x: Tensor) -> Tensor:
        """Comparable samples (n, *S) as vectors (n, *K) with meaningful distances, also in float32."""
        return self.transform.centred(x) / self.transform.unit


def modality_of(spec: DataSpec, transform: Transform, metadata: Mapping[str, Any] | None = None) -> Modality:
    """Modality of some data. Raises UserError if it is not registered."""
    return registry.get("modality", spec.modality)(spec, transform, metadata)


def write_npz(folder: Path, arrays: Mapping[str, Tensor | np.ndarray], conditions: Conditions, spec: DataSpec) -> Path:
    """Write samples.npz without pickle, with the conditions of :func:`labels_of`; return its path."""
    plain = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in arrays.items()}
    for name, value in labels_of(conditions, spec).items():
        plain[f"condition_{name}" if name in arrays else name] = value

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plain)

    atomic_write(folder / "samples.npz", write)
    return folder / "samples.npz"


def labels_of(conditions: Conditions, spec: DataSpec) -> dict[str, np.ndarray]:
    """Conditions (n, ...) in data values: labels (n,), lengths (n,), quantities (n,) or (n, d).

    Missing quantities are NaN; for labels see :func:`~advect.data.base.label_array`.
    """
    found = {}
    for name, value in conditions.items():
        kind = spec.conditions[name]
        if isinstance(kind, Category):
            found[name] = label_array(kind.names, value.cpu().numpy())
        elif isinstance(kind, Quantity):
            own = quantity_values(value, kind)
            found[name] = own[:, 0] if own.shape[1] == 1 else own
        else:
            found[name] = value.cpu().numpy()
    return found


def quantity_values(x: Tensor, kind: Quantity) -> np.ndarray:
    """Standardised x (n, d) in data units; dates and times are datetime64, whole numbers beyond 2^53 int64."""
    own = x.detach().cpu().double().numpy() * np.asarray(kind.std) + np.asarray(kind.mean)
    own, absent = as_asked(own, np.asarray(kind.mean)), np.isnan(own)
    if not kind.unit and (not kind.origin or absent.any()):
        return own * kind.step + kind.origin
    own = np.where(absent, 0, own)
    whole = np.floor(own)  # exact also where own * step is beyond 2^53
    counts = whole.astype(np.int64) * kind.step + ((own - whole) * kind.step).round().astype(np.int64) + kind.origin
    return np.where(absent, np.datetime64("NaT"), counts.astype(f"M8[{kind.unit}]")) if kind.unit else counts


def condition_columns(conditions: Conditions, spec: DataSpec) -> dict[str, list[Any]]:
    """Conditions as table columns: names, and numbers in their own units; empty where missing."""
    columns: dict[str, list[Any]] = {}
    for name, value in conditions.items():
        kind = spec.conditions[name]
        if isinstance(kind, Category):
            columns[name] = ["" if i == NULL else kind.names[i] for i in value.tolist()]
        elif isinstance(kind, Quantity):
            own = quantity_values(value, kind)
            for i, entry in enumerate(kind.names):
                title = name if len(kind.names) == 1 else f"{name}.{entry}"
                columns[title] = ["" if v != v else str(v) if kind.unit else v.item() for v in own[:, i]]
        else:
            columns[name] = value.tolist()
    return columns

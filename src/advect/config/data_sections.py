"""The data that a run can train on, each a section of flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advect.config.image_sections import (
    CelebAData,
    CifarData,
    FashionMnistData,
    HubImagesData,
    ImageFolderData,
    MnistData,
    PackedData,
    ParquetImagesData,
    ShardsData,
)
from advect.config.section import Section
from advect.config.validated import InFolder


@dataclass(frozen=True, kw_only=True)
class DigitsData(Section):
    """The 8x8 handwritten digits inside scikit-learn. It has no options."""


@dataclass(frozen=True, kw_only=True)
class MoonsData(Section):
    """Two interleaving half circles in the plane."""

    noise: float = 0.05
    """Standard deviation of the noise around the half circles."""

    _at_least = (("noise", 0),)


@dataclass(frozen=True, kw_only=True)
class ArrayFileData(InFolder):
    """Images or vectors that NumPy wrote, or vectors in Parquet."""

    data_dir: Path | None = None
    """A .npy or .npz file of images (N, H, W), (N, H, W, C) or (N, C, H, W), or of vectors (N, D); or Parquet."""
    vector_column: str | None = None
    """Of Parquet: the column whose rows are lists of numbers; by default the only one."""
    value_range: tuple[float, float] | None = None
    """Lowest and highest value that a pixel can take; by default found out."""
    layout: Literal["auto", "channels_first", "channels_last"] = "auto"
    """Where images have their channels; auto takes the axis of 1, 3 or 4."""
    labels: Literal["auto", "yes", "no"] = "auto"
    """Whether the labels of an .npz or Parquet file are learned, too; auto says yes where there are some."""
    held_out: float | None = None
    """Share kept for measuring; by default the file's own split, else 0.1."""
    horizontal_flip: bool = False
    """Mirror half of the images, at random, while training."""

    _below_one = ("held_out",)


@dataclass(frozen=True, kw_only=True)
class CellsData(InFolder):
    """Single cells in an AnnData file."""

    data_dir: Path | None = None
    """The .h5ad file."""
    layer: str | None = None
    """Layer that holds the values; by default X."""
    conditions: tuple[str, ...] = ()
    """Columns of obs to learn as categories, such as cell_type."""
    continuous: tuple[str, ...] = ()
    """Columns of obs to learn as numbers, such as dose."""
    normalise: bool = True
    """Scale each cell's counts to the same sum, --target-sum."""
    target_sum: float = 1e4
    """What the counts of a cell are scaled to sum to."""
    log1p: bool = True
    """Take log(1 + x)."""
    standardise: bool = True
    """Subtract each gene's mean and divide by its standard deviation."""
    highly_variable: int | None = None
    """How many genes to keep, by dispersion; by default all."""
    pca: int | None = None
    """Train on so many principal components; samples come back as genes."""
    control: str | None = None
    """COLUMN=VALUE of the cells that the flow starts at, instead of noise, such as perturbation=control."""
    space: Literal["expression", "counts"] = "expression"
    """Units of samples: expression, as --normalise and --log1p make it, or counts."""
    held_out: float = 0.1
    """Share kept for measuring."""
    backed: bool = False
    """Leave the matrix in the file and read rows as they are asked for."""

    _above = (("target_sum", 0),)
    _at_least = (("highly_variable", 1), ("pca", 1))
    _below_one = ("held_out",)


@dataclass(frozen=True, kw_only=True)
class TableData(InFolder):
    """Rows of a table with columns of any types."""

    data_dir: Path | None = None
    """A CSV or Parquet file."""
    conditions: tuple[str, ...] = ()
    """Columns that the model is told instead of learning them."""
    continuous_conditions: tuple[str, ...] = ()
    """More such columns, of numbers, that stay numbers however few values they have."""
    scaling: Literal["quantile", "standard"] = "quantile"
    """Of numbers: quantile, to a standard normal, or standard, to mean 0 and deviation 1."""
    drop: tuple[str, ...] = ()
    """Columns to leave out."""
    categorical: tuple[str, ...] = ()
    """Columns of numbers or text whose values are names of something."""
    held_out: float = 0.1
    """Share kept for measuring."""

    _below_one = ("held_out",)


@dataclass(frozen=True, kw_only=True)
class SequencesData(InFolder):
    """Sequences of one length or of many."""

    data_dir: Path | None = None
    """A .npy (N, L, C), an .npz with values and lengths, or a CSV or Parquet file of one row a step."""
    id_column: str | None = None
    """Of a table: the column that tells sequences apart."""
    order_column: str | None = None
    """Of a table: the column that sorts a sequence's rows, such as a time; by default they stay as they are."""
    value_columns: tuple[str, ...] = ()
    """Of a table: the columns of the channels; by default all others."""
    conditions: tuple[str, ...] = ()
    """Columns, or arrays of an archive, that are the same in all steps of a sequence."""
    max_length: int | None = None
    """Longer sequences are cut to so many steps."""
    long: Literal["truncate", "window"] = "truncate"
    """How they are cut: truncate keeps the first steps, window makes a sequence of each next ones."""
    held_out: float = 0.1
    """Share kept for measuring."""

    _at_least = (("max_length", 1),)
    _below_one = ("held_out",)


DataConfig = (
    DigitsData
    | MoonsData
    | FashionMnistData
    | MnistData
    | CifarData
    | CelebAData
    | ImageFolderData
    | PackedData
    | HubImagesData
    | ShardsData
    | ParquetImagesData
    | ArrayFileData
    | CellsData
    | TableData
    | SequencesData
)

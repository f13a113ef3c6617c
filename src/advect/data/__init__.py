"""Data: sources with a training and a held-out split, and the transforms to model units and back."""

from advect.data.array_files import ArrayFile
from advect.data.arrays import Arrays
from advect.data.images.celeba import CelebA
from advect.data.cells.transform import Chain, Components, Expression
from advect.data.cells.dataset import Cells
from advect.data.cells.write import count_cells
from advect.data.cells.write import to_counts, write_h5ad
from advect.data.images.cifar import Cifar
from advect.data.toy import Digits
from advect.data.images.hub import HubImages
from advect.data.images.idx import FashionMnist, Mnist, read_idx
from advect.data.images.folder import ImageFolder
from advect.data.toy import Moons
from advect.data.images.memmap_images import Packed, matching_pack, packed_path
from advect.data.images.packing import pack
from advect.data.images.parquet import ParquetImages, ParquetStore
from advect.data.autodetect import FORMATS, Format, recognise, recognise_all
from advect.data.sequences.transform import SequenceScale
from advect.data.sequences.dataset import Sequences, sequences_of, steps_of
from advect.data.images.shards import Shards, ShardStore
from advect.data.base import ArraySource, ArraySplit, Rows, Source, Split
from advect.data.tables.dataset import Table, frame_of
from advect.data.tables.dataset import read_table, write_table
from advect.data.tables.transform import TableTransform
from advect.data.transforms import (
    Identity,
    PixelScale,
    Standardize,
    Transform,
    transform_from_config,
)

__all__ = [
    "FORMATS",
    "ArrayFile",
    "ArraySource",
    "ArraySplit",
    "Arrays",
    "CelebA",
    "Cells",
    "Chain",
    "Cifar",
    "Components",
    "Digits",
    "Expression",
    "FashionMnist",
    "Format",
    "HubImages",
    "Identity",
    "ImageFolder",
    "Mnist",
    "Moons",
    "Packed",
    "ParquetImages",
    "ParquetStore",
    "PixelScale",
    "Rows",
    "SequenceScale",
    "Sequences",
    "ShardStore",
    "Shards",
    "Source",
    "Split",
    "Standardize",
    "Table",
    "TableTransform",
    "Transform",
    "count_cells",
    "frame_of",
    "matching_pack",
    "pack",
    "packed_path",
    "read_idx",
    "read_table",
    "recognise",
    "recognise_all",
    "sequences_of",
    "steps_of",
    "to_counts",
    "transform_from_config",
    "write_h5ad",
    "write_table",
]

"""Data: sources with a training and a held-out split, and the transforms to model units and back."""

from advect.data.array_files import ArrayFile
from advect.data.arrays import Arrays
from advect.data.autodetect import FORMATS, Format, recognise, recognise_all
from advect.data.base import ArrayDataset, ArraySplit, Dataset, Rows, Split
from advect.data.cells.dataset import Cells
from advect.data.cells.transform import Chain, Components, Expression
from advect.data.cells.write import count_noise, to_counts, write_h5ad
from advect.data.images.celeba import CelebA
from advect.data.images.cifar import Cifar
from advect.data.images.folder import ImageFolder
from advect.data.images.hub import HubImages
from advect.data.images.idx import FashionMnist, Mnist, read_idx
from advect.data.images.memmap_images import Packed, matching_pack, packed_path
from advect.data.images.packing import pack
from advect.data.images.parquet import ParquetImages, ParquetStore
from advect.data.images.shards import Shards, ShardStore
from advect.data.sequences.dataset import Sequences, sequences_of, steps_of
from advect.data.sequences.transform import SequenceScale
from advect.data.tables.dataset import Table, frame_of, read_table, write_table
from advect.data.tables.transform import TableTransform
from advect.data.toy import Digits, Moons
from advect.data.transforms import (
    Identity,
    PixelScale,
    Standardize,
    Transform,
    transform_from_config,
)

__all__ = [
    "FORMATS",
    "ArrayDataset",
    "ArrayFile",
    "ArraySplit",
    "Arrays",
    "CelebA",
    "Cells",
    "Chain",
    "Cifar",
    "Components",
    "Dataset",
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
    "Split",
    "Standardize",
    "Table",
    "TableTransform",
    "Transform",
    "count_noise",
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

"""Data: sources with a training and a held-out split, and the transforms to model units and back."""

from advect.data.array_files import ArrayFile
from advect.data.arrays import Arrays
from advect.data.celeba import CelebA
from advect.data.cell_transforms import Chain, Components, Expression
from advect.data.cells import Cells
from advect.data.cells_counting import count_cells
from advect.data.cells_writing import to_counts, write_h5ad
from advect.data.cifar import Cifar
from advect.data.digits import Digits
from advect.data.hub import HubImages
from advect.data.idx import FashionMnist, Mnist, read_idx
from advect.data.images import ImageFolder
from advect.data.moons import Moons
from advect.data.packed import Packed, matching_pack, packed_path
from advect.data.packing import pack
from advect.data.parquet import ParquetImages, ParquetStore
from advect.data.recognise import FORMATS, Format, recognise, recognise_all
from advect.data.sequence_transform import SequenceScale
from advect.data.sequences import Sequences, sequences_of, steps_of
from advect.data.shards import Shards, ShardStore
from advect.data.source import ArraySource, ArraySplit, Rows, Source, Split
from advect.data.table import Table, frame_of
from advect.data.table_files import read_table, write_table
from advect.data.table_transform import TableTransform
from advect.data.transforms import Identity, PixelScale, Standardize, Transform, transform_from_config

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

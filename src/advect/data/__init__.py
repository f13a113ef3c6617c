"""Data: sources with a training and a held-out split, and the transforms to model units and back."""

from advect.data.arrays import Arrays
from advect.data.digits import Digits
from advect.data.idx import FashionMnist, read_idx
from advect.data.images import ImageFolder
from advect.data.moons import Moons
from advect.data.sequence_transform import SequenceScale
from advect.data.sequences import Sequences, sequences_of, steps_of
from advect.data.source import ArraySource, ArraySplit, Rows, Source, Split
from advect.data.table import Table, frame_of
from advect.data.table_files import read_table, write_table
from advect.data.table_transform import TableTransform
from advect.data.transforms import Identity, PixelScale, Standardize, Transform, transform_from_config

__all__ = [
    "ArraySource",
    "ArraySplit",
    "Arrays",
    "Digits",
    "FashionMnist",
    "Identity",
    "ImageFolder",
    "Moons",
    "PixelScale",
    "Rows",
    "SequenceScale",
    "Sequences",
    "Source",
    "Split",
    "Standardize",
    "Table",
    "TableTransform",
    "Transform",
    "frame_of",
    "read_idx",
    "read_table",
    "sequences_of",
    "steps_of",
    "transform_from_config",
    "write_table",
]

"""Data: sources with a training and a held-out split, and the transforms to model units and back."""

from advect.data.arrays import Arrays
from advect.data.cell_transforms import Chain, Components, Expression
from advect.data.cells import Cells
from advect.data.cells_writing import to_counts, write_h5ad
from advect.data.digits import Digits
from advect.data.idx import FashionMnist, read_idx
from advect.data.images import ImageFolder
from advect.data.moons import Moons
from advect.data.source import ArraySource, ArraySplit, Rows, Source, Split
from advect.data.transforms import Identity, PixelScale, Standardize, Transform, transform_from_config

__all__ = [
    "ArraySource",
    "ArraySplit",
    "Arrays",
    "Cells",
    "Chain",
    "Components",
    "Digits",
    "Expression",
    "FashionMnist",
    "Identity",
    "ImageFolder",
    "Moons",
    "PixelScale",
    "Rows",
    "Source",
    "Split",
    "Standardize",
    "Transform",
    "read_idx",
    "to_counts",
    "transform_from_config",
    "write_h5ad",
]

"""Data: sources with a training and a held-out split, and the transforms to model units and back."""

from advect.data.arrays import Arrays
from advect.data.celeba import CelebA
from advect.data.cifar import Cifar
from advect.data.digits import Digits
from advect.data.idx import FashionMnist, read_idx
from advect.data.images import ImageFolder
from advect.data.moons import Moons
from advect.data.packed import Packed, matching_pack, packed_path
from advect.data.packing import pack
from advect.data.parquet import ParquetImages, ParquetStore
from advect.data.shards import Shards, ShardStore
from advect.data.source import ArraySource, ArraySplit, Rows, Source, Split
from advect.data.transforms import Identity, PixelScale, Standardize, Transform, transform_from_config

__all__ = [
    "ArraySource",
    "ArraySplit",
    "Arrays",
    "CelebA",
    "Cifar",
    "Digits",
    "FashionMnist",
    "Identity",
    "ImageFolder",
    "Moons",
    "Packed",
    "ParquetImages",
    "ParquetStore",
    "PixelScale",
    "Rows",
    "ShardStore",
    "Shards",
    "Source",
    "Split",
    "Standardize",
    "Transform",
    "matching_pack",
    "pack",
    "packed_path",
    "read_idx",
    "transform_from_config",
]

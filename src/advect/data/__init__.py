"""Data: sources with a training and a held-out split, and the transforms to model units and back."""

from advect.data.array_files import ArrayFile
from advect.data.arrays import Arrays
from advect.data.celeba import CelebA
from advect.data.cifar import Cifar
from advect.data.digits import Digits
from advect.data.hub import HubImages
from advect.data.idx import FashionMnist, Mnist, read_idx
from advect.data.images import ImageFolder
from advect.data.moons import Moons
from advect.data.recognise import IMAGE_FORMATS, Format, recognise
from advect.data.source import ArraySource, ArraySplit, Rows, Source, Split
from advect.data.transforms import Identity, PixelScale, Standardize, Transform, transform_from_config

__all__ = [
    "IMAGE_FORMATS",
    "ArrayFile",
    "ArraySource",
    "ArraySplit",
    "Arrays",
    "CelebA",
    "Cifar",
    "Digits",
    "FashionMnist",
    "Format",
    "HubImages",
    "Identity",
    "ImageFolder",
    "Mnist",
    "Moons",
    "PixelScale",
    "Rows",
    "Source",
    "Split",
    "Standardize",
    "Transform",
    "read_idx",
    "recognise",
    "transform_from_config",
]

"""Data: sources with a training and a held-out split, and the transforms to model units and back."""

from typing import TYPE_CHECKING

from advect.core.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from advect.data.array_files import ArrayFile as ArrayFile
    from advect.data.arrays import Arrays as Arrays
    from advect.data.autodetect import autodetect as autodetect
    from advect.data.base import ArrayDataset as ArrayDataset
    from advect.data.base import ArraySplit as ArraySplit
    from advect.data.base import Dataset as Dataset
    from advect.data.base import Rows as Rows
    from advect.data.base import Split as Split
    from advect.data.cells.counts import CountComponents as CountComponents
    from advect.data.cells.counts import count_noise as count_noise
    from advect.data.cells.dataset import Cells as Cells
    from advect.data.cells.transform import Chain as Chain
    from advect.data.cells.transform import Components as Components
    from advect.data.cells.transform import Expression as Expression
    from advect.data.cells.write import to_counts as to_counts
    from advect.data.cells.write import write_h5ad as write_h5ad
    from advect.data.copies import Copies as Copies
    from advect.data.copies import find_copies as find_copies
    from advect.data.copies import without_copies as without_copies
    from advect.data.images.celeba import CelebA as CelebA
    from advect.data.images.cifar import Cifar as Cifar
    from advect.data.images.folder import ImageFolder as ImageFolder
    from advect.data.images.hub import HubImages as HubImages
    from advect.data.images.idx import FashionMnist as FashionMnist
    from advect.data.images.idx import Mnist as Mnist
    from advect.data.images.idx import read_idx as read_idx
    from advect.data.images.memmap_images import Packed as Packed
    from advect.data.images.memmap_images import matching_pack as matching_pack
    from advect.data.images.memmap_images import packed_path as packed_path
    from advect.data.images.packing import pack as pack
    from advect.data.images.parquet import ParquetImages as ParquetImages
    from advect.data.images.parquet import ParquetStore as ParquetStore
    from advect.data.images.shards import Shards as Shards
    from advect.data.images.shards import ShardStore as ShardStore
    from advect.data.sequences.dataset import Sequences as Sequences
    from advect.data.sequences.dataset import sequences_of as sequences_of
    from advect.data.sequences.dataset import steps_of as steps_of
    from advect.data.sequences.transform import SequenceTransform as SequenceTransform
    from advect.data.tables.dataset import Table as Table
    from advect.data.tables.dataset import frame_of as frame_of
    from advect.data.tables.files import read_table as read_table
    from advect.data.tables.files import write_table as write_table
    from advect.data.tables.transform import TableTransform as TableTransform
    from advect.data.tokens.dataset import Tokens as Tokens
    from advect.data.tokens.transform import TokenTransform as TokenTransform
    from advect.data.toy import Digits as Digits
    from advect.data.toy import Moons as Moons
    from advect.data.transforms import Identity as Identity
    from advect.data.transforms import PixelScale as PixelScale
    from advect.data.transforms import Standardize as Standardize
    from advect.data.transforms import Transform as Transform
    from advect.data.transforms import transform_from_config as transform_from_config
else:
    __getattr__, __dir__ = lazy_imports(__name__)

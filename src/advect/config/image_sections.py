"""Data sets of images, each a section of flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advect.config.section import Section
from advect.config.validated import AtAddress, InFolder


@dataclass(frozen=True, kw_only=True)
class FashionMnistData(InFolder):
    """Fashion-MNIST, or any set in the same four IDX files."""

    data_dir: Path | None = None
    """Folder with the upstream IDX files (train-images-idx3-ubyte and so on), gzipped or not."""
    labels: bool = False
    """Learn the classes, too."""


@dataclass(frozen=True, kw_only=True)
class MnistData(InFolder):
    """MNIST and its kin: any set in four IDX files."""

    data_dir: Path | None = None
    """Folder with the four IDX files, gzipped or not; a common prefix, such as emnist-balanced-, is fine."""
    labels: bool = True
    """Learn the classes, too."""


@dataclass(frozen=True, kw_only=True)
class CifarData(InFolder):
    """CIFAR-10 or CIFAR-100."""

    data_dir: Path | None = None
    """Folder with upstream's files, of the binary version or the Python one, or the folder around it."""
    labels: bool = True
    """Learn the classes, too."""
    superclasses: bool = False
    """Learn the 20 coarse classes of CIFAR-100, too."""
    horizontal_flip: bool = True
    """Mirror half of the images, at random, while training."""


@dataclass(frozen=True, kw_only=True)
class CelebAData(InFolder):
    """CelebA in its official layout."""

    data_dir: Path | None = None
    """Folder with img_align_celeba (a folder, zip or tar), list_eval_partition.txt and list_attr_celeba.txt."""
    image_size: int = 64
    """Height and width in pixels."""
    attributes: tuple[str, ...] = ()
    """Conditions: any of the 40 attributes, such as Smiling Male; their values are no and yes."""
    crop: int | None = 140
    """Side in pixels of the square that is cut from the centre before scaling; None takes the largest."""
    held_out: Literal["valid", "test"] = "valid"
    """Which of upstream's parts is kept for measuring."""
    horizontal_flip: bool = True
    """Mirror half of the images, at random, while training."""
    skip_unreadable: bool = True
    """Pass over images that cannot be read, and name them; more than 1% of them end the run."""

    _at_least = (("image_size", 1), ("crop", 1))


@dataclass(frozen=True, kw_only=True)
class _Images(Section):
    """What all encoded images of any size share."""

    image_size: int = 64
    """Height and width in pixels: the shorter side is resized to it and the centre cropped."""
    channels: Literal[1, 3, 4] = 3
    """3 for colour, 1 for grey, 4 for colour with its alpha."""
    horizontal_flip: bool = True
    """Mirror half of the images, at random, while training."""
    background: str = "white"
    """What shows through transparent images: a colour's name, or #rrggbb."""

    _at_least = (("image_size", 1),)


@dataclass(frozen=True, kw_only=True)
class ImageFolderData(_Images, InFolder):
    """A folder or an archive of images, sub-folders included."""

    data_dir: Path | None = None
    """Folder, zip or tar of PNG, JPEG, WebP or BMP images; sub-folders are searched."""
    crop: int | None = None
    """Side in pixels of a square to cut from the centre before scaling."""
    random_crop: bool = False
    """Crop the longer side of training images anywhere, at random, instead of in the centre."""
    labels: Literal["auto", "yes", "no"] = "auto"
    """Whether the sub-folders are classes; auto says yes where every image lies in one of at least two."""
    held_out: float | None = None
    """Share kept for measuring; by default the folders train and test (or val) where there are such, else 0.05."""
    skip_unreadable: bool = True
    """Pass over images that cannot be read, and name them; more than 1% of them end the run."""

    _at_least = (("image_size", 1), ("crop", 1))
    _below_one = ("held_out",)


@dataclass(frozen=True, kw_only=True)
class PackedData(InFolder):
    """Images that ``advect data pack`` wrote."""

    data_dir: Path | None = None
    """The packed folder."""
    horizontal_flip: bool = True
    """Mirror half of the images, at random, while training."""
    held_out: float | None = None
    """Share kept for measuring; by default as for the folder that was packed."""

    _below_one = ("held_out",)


@dataclass(frozen=True, kw_only=True)
class HubImagesData(_Images, AtAddress):
    """A Hugging Face dataset of images."""

    data_dir: str | None = None
    """A name on the hub such as uoft-cs/cifar10, a Parquet file or a folder of such, or what save_to_disk wrote."""
    configuration: str | None = None
    """Which of a hub dataset's configurations."""
    image_column: str | None = None
    """Column of the images; by default the first one of images."""
    conditions: tuple[str, ...] | None = None
    """Columns of classes; by default the first one of named classes, as label."""
    crop: int | None = None
    """Side in pixels of a square to cut from the centre before scaling."""
    held_out: float | None = None
    """Share kept for measuring; by default the dataset's own test or validation split, else 0.05."""
    skip_unreadable: bool = True
    """Pass over images that cannot be read, and name them; more than 1% of them end the run."""

    _at_least = (("image_size", 1), ("crop", 1))
    _below_one = ("held_out",)


@dataclass(frozen=True, kw_only=True)
class ShardsData(_Images, AtAddress):
    """Images in tar shards with WebDataset's naming."""

    data_dir: str | None = None
    """A tar, a folder of tars, shard-{000..099}.tar or a glob; a path, or a URL that fsspec opens."""
    random_crop: bool = False
    """Crop the longer side of training images anywhere, at random, instead of in the centre."""
    held_out: float = 0.05
    """Share kept for measuring."""
    cache_dir: Path | None = None
    """Folder for whole copies of remote shards, and for indices that cannot lie beside their shard."""

    _below_one = ("held_out",)


@dataclass(frozen=True, kw_only=True)
class ParquetImagesData(_Images, AtAddress):
    """Images in Parquet files, read row group by row group."""

    data_dir: str | None = None
    """A file, a folder, part-{000..099}.parquet or a glob; a path, or a URL that fsspec opens."""
    image_column: str = "image"
    """Column of the images."""
    label_column: str | None = None
    """Column of the classes; None for none."""
    random_crop: bool = False
    """Crop the longer side of training images anywhere, at random, instead of in the centre."""
    held_out: float = 0.05
    """Share kept for measuring."""
    cache_dir: Path | None = None
    """Folder for whole copies of remote files."""

    _below_one = ("held_out",)

"""Which format of data a path holds, told from names and first bytes without loading it."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from advect.core.errors import UserError
from advect.data.archives import is_tar
from advect.data.celeba import find_celeba
from advect.data.cifar import find_layout
from advect.data.hub import is_saved_dataset
from advect.data.idx import find_parts
from advect.data.stores import is_image


class Format(NamedTuple):
    """A format of data: its name, whether a path that exists holds it, and a line of words for people."""

    name: str
    matches: Callable[[Path], bool]
    words: str


def recognise(path: str | os.PathLike[str], formats: Sequence[Format]) -> Format:
    """The first of the formats that a path holds; the narrow ones come first.

    Raises:
        UserError: the path does not exist, or holds none of them.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{str(path)!r} does not exist; name a file or folder of data")
    for format in formats:
        if format.matches(place):
            return format
    raise UserError(f"{str(path)!r} holds no data that is known here; give {', or '.join(f.words for f in formats)}")


def _is_idx(path: Path) -> bool:
    try:
        return path.is_dir() and bool(find_parts(path))
    except UserError:
        return False


def _is_array(path: Path) -> bool:
    """A ``.npz``, or a ``.npy`` of vectors, of images, or of bytes; three axes of other numbers may be sequences."""
    if path.suffix.lower() == ".npz":
        return zipfile.is_zipfile(path)
    if path.suffix.lower() != ".npy":
        return False
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return x.ndim in (2, 4) or (x.ndim == 3 and x.dtype == np.uint8)


def _is_dataset(path: Path) -> bool:
    """What ``save_to_disk`` wrote, or Parquet with a column of encoded images."""
    if path.is_dir() and is_saved_dataset(path):
        return True
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))[:1]
    if not files or files[0].suffix.lower() != ".parquet":
        return False
    try:
        import pyarrow.parquet

        fields = pyarrow.parquet.read_schema(files[0])
    except (ImportError, OSError, ValueError):
        return False
    return any(
        {child.name for child in field.flatten()} == {f"{field.name}.bytes", f"{field.name}.path"} for field in fields
    )


def _is_archive_of_images(path: Path) -> bool:
    """Whether there is an image in a zip or tar; the search ends at the first."""
    if not path.is_file():
        return False
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(is_image(name) for name in archive.namelist())
        if is_tar(path):
            with tarfile.open(path) as archive:
                return any(is_image(member.name.removeprefix("./")) for member in archive)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError):
        return True  # it is an archive, though a damaged one: whoever opens it says so
    return False


def _is_folder_of_images(path: Path) -> bool:
    """Whether there is an image in a folder or below it; the search ends at the first."""
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(is_image(name) for name in files if not Path(folder, name).is_dir()):
            return True
    return False


IMAGE_FORMATS: tuple[Format, ...] = (
    Format("celeba", find_celeba, "a folder with CelebA's img_align_celeba and list_eval_partition.txt"),
    Format("cifar", lambda path: find_layout(path) is not None, "a folder with the files of CIFAR-10 or CIFAR-100"),
    Format("mnist", _is_idx, "a folder with MNIST's four IDX files"),
    Format("array-file", _is_array, "a .npy or .npz file of images or vectors"),
    Format("hub-images", _is_dataset, "a Hugging Face dataset of images, saved or in Parquet"),
    Format("image-folder", _is_archive_of_images, "a zip or tar of images"),
    Format("image-folder", _is_folder_of_images, "a folder of images"),
)
"""The formats of images, the narrow ones first. Tables, cells and sequences have lists of their own."""

"""Which format of data a path holds, told from names and first bytes without loading it."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from advect.core.errors import UserError
from advect.data.array_files import SAMPLES
from advect.data.images.celeba import find_celeba
from advect.data.images.cifar import find_layout
from advect.data.images.hub import is_saved_dataset
from advect.data.images.idx import find_parts
from advect.data.images.packing import MANIFEST, PIXEL_FILE
from advect.data.images.stores import is_image, is_tar
from advect.data.sequences.files import step_columns
from advect.data.tables.dataset import CSV, PARQUET
from advect.data.vectors import is_vector_type

_FOLDER = (
    "is a folder without data that is known here; it may hold png, jpg, webp or bmp images, tar shards, Parquet files "
    "with images, or what CelebA, CIFAR, MNIST or a saved Hugging Face dataset come as"
)
_FILE = (
    "is a file of no kind that is known here; give .h5ad, .csv, .parquet, .npy or .npz of numbers with 2 to 4 axes, "
    "or a zip or tar of images"
)


class Format(NamedTuple):
    """A format of data: its name, whether a path that exists holds it, a line of words for people, and the kind."""

    name: str
    matches: Callable[[Path], bool]
    words: str
    kind: str = "image"


def recognise(path: str | os.PathLike[str], formats: Sequence[Format]) -> Format:
    """The first of the formats that a path holds, see :func:`recognise_all`; the narrow ones come first."""
    return recognise_all(path, formats)[0]


def recognise_all(path: str | os.PathLike[str], formats: Sequence[Format]) -> list[Format]:
    """The formats that a path can be read as, the likeliest first.

    Raises:
        UserError: the path does not exist, or holds none of them.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{str(path)!r} does not exist; name a file or folder of data")
    found = [format for format in formats if format.matches(place)]
    if found:
        return found
    raise UserError(f"{str(path)!r} {_FOLDER if place.is_dir() else _FILE}")


def _is_idx(path: Path) -> bool:
    try:
        return path.is_dir() and bool(find_parts(path))
    except UserError:
        return False


def array_shape(path: Path) -> tuple[str, tuple[int, ...], np.dtype] | None:
    """Name, shape and type of the samples in a ``.npy`` or ``.npz``, told from its header; None where there are none.

    In an ``.npz`` they are called as :class:`~advect.data.array_files.ArrayFile` or ``read_arrays`` has it.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return ("values", *_header(file))
        if path.suffix.lower() != ".npz":
            return None
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            wanted = ("values", *SAMPLES, "x_train", names[0] if len(names) == 1 else "")
            name = next((name for name in wanted if name in names), None)
            if name is None:
                return None
            with archive.open(f"{name}.npy") as file:
                return (name, *_header(file))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _is_array_of(*axes: int) -> Callable[[Path], bool]:
    """Whether a path is a NumPy file of samples with so many axes, the first of which counts them."""

    def matches(path: Path) -> bool:
        found = array_shape(path)
        return found is not None and len(found[1]) in axes

    return matches


def _is_bytes(path: Path) -> bool:
    found = array_shape(path)
    return found is not None and len(found[1]) == 3 and found[2] == np.uint8


def _is_sequences(path: Path) -> bool:
    """An array (N, L, C), or values with the lengths of sequences beside them."""
    found = array_shape(path)
    if found is None or len(found[1]) not in (2, 3):
        return False
    if len(found[1]) == 3 or path.suffix.lower() == ".npy":
        return len(found[1]) == 3
    with zipfile.ZipFile(path) as archive:
        return found[0] == "values" and "lengths.npy" in archive.namelist()


def _is_dataset(path: Path) -> bool:
    """What ``save_to_disk`` wrote, or Parquet with a column of encoded images beside their paths."""
    if path.is_dir() and is_saved_dataset(path):
        return True
    return find_spec("datasets") is not None and any(
        {child.name for child in field.flatten()} == {f"{field.name}.bytes", f"{field.name}.path"}
        for field in parquet_fields(path)
    )


def parquet_fields(path: Path) -> list[Any]:
    """The columns of a Parquet file, or of the first one in a folder; none where there is no such file."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))[:1]
    if not files or not files[0].name.lower().endswith(PARQUET):
        return []
    try:
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(files[0]))
    except (ImportError, OSError, ValueError):
        return []


def image_columns(path: Path) -> list[str]:
    """The columns of Parquet files that can hold images: bytes, or a struct with ``bytes``."""
    return [
        field.name
        for field in parquet_fields(path)
        if str(field.type) in ("binary", "large_binary") or f"{field.name}.bytes" in {c.name for c in field.flatten()}
    ]


def vector_columns(path: Path) -> list[str]:
    """The columns of a Parquet file that are lists of numbers."""
    return [field.name for field in parquet_fields(path) if is_vector_type(field.type)] if path.is_file() else []


def _is_shards(path: Path) -> bool:
    """A folder of tars, or a tar whose first image has a companion of the same name, as WebDataset has it."""
    if path.is_dir():
        return any(name.name.endswith(".tar") and name.is_file() for name in path.iterdir())
    if path.suffix.lower() != ".tar" or not is_tar(path):
        return False
    stems: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for member, _ in zip(archive, range(20), strict=False):
            stem, _, suffix = member.name.rpartition(".")
            if stem in stems and (is_image(member.name) or is_image(f"{stem}.{stems[stem]}")):
                return True
            stems[stem] = suffix
    return False


def _is_pack(path: Path) -> bool:
    return (path / MANIFEST).is_file() and (path / PIXEL_FILE).is_file()


def _is_cells(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".h5ad"


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith((*CSV, *PARQUET)) and not image_columns(path)


def _is_steps(path: Path) -> bool:
    return _is_table(path) and step_columns(path) is not None


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


_ARRAY = "a .npy or .npz file of images or vectors"
_VECTORS = "a Parquet file with a column of vectors"
_PARQUET_IMAGES = "Parquet files with a column of images"

FORMATS: tuple[Format, ...] = (
    Format("packed", _is_pack, "a folder that advect data pack wrote"),
    Format("celeba", find_celeba, "a folder with CelebA's img_align_celeba and list_eval_partition.txt"),
    Format("cifar", lambda path: find_layout(path) is not None, "a folder with the files of CIFAR-10 or CIFAR-100"),
    Format("mnist", _is_idx, "a folder with MNIST's four IDX files"),
    Format("fashion-mnist", _is_idx, "one with Fashion-MNIST's"),
    Format("cells", _is_cells, "an .h5ad file of single cells", "vector"),
    Format("sequences", _is_steps, "a CSV or Parquet table of one row a step", "sequence"),
    Format("array-file", lambda path: bool(vector_columns(path)), _VECTORS, "vector"),
    Format("table", _is_table, "a CSV or Parquet table", "vector"),
    Format("sequences", _is_table, "a CSV or Parquet table of one row a step", "sequence"),
    Format("array-file", _is_bytes, _ARRAY),
    Format("sequences", _is_sequences, "a .npy or .npz file of sequences (N, L, C)", "sequence"),
    Format("array-file", _is_array_of(2), _ARRAY, "vector"),
    Format("array-file", _is_array_of(3, 4), _ARRAY),
    Format("hub-images", _is_dataset, "a Hugging Face dataset of images, saved or in Parquet"),
    Format("parquet-images", lambda path: bool(image_columns(path)), _PARQUET_IMAGES),
    Format("shards", _is_shards, "tar shards of images, or a folder of them"),
    Format("image-folder", _is_archive_of_images, "a zip or tar of images"),
    Format("image-folder", _is_folder_of_images, "a folder of images"),
)
"""All formats, the narrow ones first. A path that more than one matches can be read as each of them."""

"""The IDX format, and MNIST-like sets in it."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from advect.core.errors import UserError
from advect.core.files import open_regular, require_folder
from advect.core.memory import check_memory
from advect.core.registry import register
from advect.data.base import ArrayDataset, Detected, Rows
from advect.data.transforms import PixelScale

_AGAIN = "download it again"


def read_idx(path: Path, *, ndim: int) -> np.ndarray:
    """Unsigned bytes of an IDX file with ``ndim`` axes, plain or gzipped by content.

    Format: bytes 0, 0, 8 (unsigned bytes), number of axes; each axis as big-endian uint32; data.

    Raises:
        UserError: the file is unreadable, not IDX, or has the wrong number of bytes.
    """
    magic, header = bytes([0, 0, 8, ndim]), 4 + 4 * ndim
    content = _read(path, header)
    if content[:4] != magic:
        raise UserError(
            f"{path} starts with the bytes {content[:4].hex(' ') or '(none)'}, not with {magic.hex(' ')}, so it is not"
            f" an IDX file of {ndim}-dimensional unsigned bytes; check that it is the right file or {_AGAIN}"
        )
    if len(content) < header:
        raise UserError(f"{path} is truncated: it has {len(content)} bytes, its header alone {header}; {_AGAIN}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, 4))
    found, expected = len(content) - header, math.prod(shape)
    if found < expected:
        raise UserError(f"{path} is truncated: {found} of the {expected} bytes of its shape {shape}; {_AGAIN}")
    if found > expected:
        raise UserError(f"{path} has {found - expected} bytes after the {expected} of its shape {shape}; {_AGAIN}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read(path: Path, header: int) -> bytes:
    """Header and content, of a packed file at most a byte more than the header announces."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its name and permissions") from error
    try:
        with file:
            if file.read(2) != b"\x1f\x8b":
                file.seek(0)
                return file.read()
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as unpacked:
                start = unpacked.read(header)
                announced = math.prod(int(size) for size in np.frombuffer(start[4:], ">u4", len(start[4:]) // 4))
                check_memory(f"{path} takes", announced, "give fewer images")
                return start + unpacked.read(announced + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); {_AGAIN}") from error


@register("mnist")
class Mnist(ArrayDataset):
    """MNIST (LeCun, Cortes & Burges 1998) or a set in the same four files, such as KMNIST or a part of EMNIST.

    Grey images (1, H, W), 0 to 255, condition ``label``. The t10k or test files are held out.

    Args:
        data_dir: folder with ``train-images-idx3-ubyte`` and its three companions, plain or ``.gz``, with one prefix;
            images of the prefix ``emnist`` are turned upright.
        names: names of the classes 0, 1, ...; default "0" to the highest label.
        labels: whether to add the condition ``label``.

    Raises:
        UserError: a file is missing, damaged, or of another kind.
    """

    place: ClassVar[str | None] = "the folder with the four IDX files of the set"
    part_given: ClassVar[tuple[str, ...]] = ("names",)

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        return Detected(85, "a set in MNIST's four IDX files") if is_idx(path) else None

    @classmethod
    def image_size(cls, path: Path) -> tuple[int, int] | None:
        return idx_image_size(path)

    def __init__(
        self, data_dir: str | os.PathLike[str], *, names: Sequence[str] | None = None, labels: bool = True
    ) -> None:
        folder = require_folder(data_dir, holding="train-images-idx3-ubyte.gz and its three companions")
        prefix, held_out = find_parts(folder)
        train, rest = (_images(folder, f"{prefix}{part}") for part in ("train", held_out))
        if rest.x.shape[1:] != train.x.shape[1:]:
            raise UserError(f"{folder} has images of {train.x.shape[2:]} to train on but {rest.x.shape[2:]} held out")
        if prefix.startswith("emnist"):  # upstream stores their columns as rows (Cohen et al. 2017)
            train, rest = (Rows(np.ascontiguousarray(part.x.swapaxes(2, 3)), part.labels) for part in (train, rest))
        highest = int(max(part.labels["label"].max() for part in (train, rest)))
        names = tuple(map(str, range(highest + 1))) if names is None else tuple(names)
        if highest >= len(names):
            raise UserError(f"{folder} has the label {highest} but names only {len(names)} classes; name them all")
        super().__init__(
            name=prefix.rstrip("-") or "mnist",
            train=train if labels else Rows(train.x),
            held_out=rest if labels else Rows(rest.x),
            transform=PixelScale(0, 255, integer=True),
            names={"label": names} if labels else None,
        )


def find_parts(folder: Path) -> tuple[str, str]:
    """Prefix of the four files, often empty, and the name of the held-out part: t10k or test.

    Raises:
        UserError: there is no file of training images, or several.
    """
    end = "train-images-idx3-ubyte"
    found = sorted({path.name.removesuffix(".gz").removesuffix(end) for path in folder.glob(f"*{end}*")
                    if path.name.removesuffix(".gz").endswith(end)})  # fmt: skip
    if len(found) != 1:
        what = f"the sets {', '.join(found)}" if found else f"neither {end} nor {end}.gz"
        raise UserError(f"{folder} has {what}; put the four files of one set there")
    test = any(folder.glob(f"{found[0]}test-images-idx3-ubyte*"))
    return found[0], "test" if test else "t10k"


def is_idx(folder: Path) -> bool:
    """Whether a folder holds the files of one set."""
    try:
        return folder.is_dir() and bool(find_parts(folder))
    except UserError:
        return False


def idx_image_size(folder: Path) -> tuple[int, int]:
    """Height and width from the header of the training images."""
    file = next(folder.glob(f"{find_parts(folder)[0]}train-images-idx3-ubyte*"))
    with open_regular(file) as start:
        opener = gzip.open if start.read(2) == b"\x1f\x8b" else open
    with opener(file, "rb") as content:
        height, width = np.frombuffer(content.read(16), ">u4")[2:].tolist()
    return height, width


@register("fashion-mnist")
class FashionMnist(ArrayDataset):
    """70,000 grey clothing images (1, 28, 28), 0 to 255, condition ``label`` (Xiao, Rasul & Vollgraf 2017).

    Args:
        data_dir: folder with upstream's four files, ``train-images-idx3-ubyte`` and so on, plain or ``.gz``; the t10k
            files are held out.
        labels: whether to add the condition ``label``.

    Raises:
        UserError: a file is missing, damaged, or of another kind.
    """

    place: ClassVar[str | None] = "the folder with the four IDX files of Fashion-MNIST"

    NAMES = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        return Detected(84, "Fashion-MNIST in its four IDX files") if is_idx(path) else None

    @classmethod
    def image_size(cls, path: Path) -> tuple[int, int] | None:
        return idx_image_size(path)

    def __init__(self, data_dir: str | os.PathLike[str], *, labels: bool = True) -> None:
        folder = require_folder(data_dir, holding="train-images-idx3-ubyte.gz and its three companions")
        train, rest = (_labelled(folder, part, len(self.NAMES)) for part in ("train", "t10k"))
        super().__init__(
            name="fashion-mnist",
            train=train if labels else Rows(train.x),
            held_out=rest if labels else Rows(rest.x),
            transform=PixelScale(0, 255, integer=True),
            names={"label": self.NAMES} if labels else None,
        )


def _labelled(folder: Path, part: str, classes: int) -> Rows:
    """Images (N, 1, 28, 28) and labels (N,) of one part."""
    rows, image_file = _images(folder, part), _find(folder, f"{part}-images-idx3-ubyte")
    if rows.x.shape[2:] != (28, 28):
        shape = (len(rows.x), *rows.x.shape[2:])
        raise UserError(f"{image_file} has shape {shape}, not (N, 28, 28) with N > 0; check that it is the right file")
    highest = rows.labels["label"].max()
    if highest >= classes:
        label_file = _find(folder, f"{part}-labels-idx1-ubyte")
        raise UserError(
            f"{label_file} has the label {highest}, not 0 to {classes - 1}; check that it is the right file"
        )
    return rows


def _images(folder: Path, part: str) -> Rows:
    """Images (N, 1, H, W) and labels (N,) of one part."""
    image_file = _find(folder, f"{part}-images-idx3-ubyte")
    label_file = _find(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(image_file, ndim=3), read_idx(label_file, ndim=1)
    if not images.size:
        raise UserError(
            f"{image_file} has shape {images.shape}, not (N, 28, 28) with N > 0; check that it is the right file"
        )
    if len(images) != len(labels):
        raise UserError(
            f"{image_file} has {len(images)} images but {label_file} {len(labels)} labels; take both from one download"
        )
    return Rows(images[:, None], {"label": labels.astype(np.int64)})


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UserError(f"{folder} has neither {name} nor {name}.gz; download it there")

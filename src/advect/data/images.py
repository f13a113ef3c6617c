"""A folder of pictures, of any sizes and in any subfolders, as square images of one size."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from advect.core.errors import UserError
from advect.core.random import Generator, uniform
from advect.core.types import Batch, DataSpec
from advect.data.folders import require_folder
from advect.data.source import Source, Split, check_share
from advect.data.transforms import PixelScale, Transform

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class ImageFolder(Source):
    """The images of a folder and its subfolders, scaled and cropped to (channels, image_size, image_size), 0 to 255.

    An image is turned as its EXIF data says, laid on white where it is transparent, scaled so that its shorter side
    fits (antialiased) and cropped to the centre. Files and folders whose names start with a dot are passed over.

    Args:
        data_dir: the folder; files count by their suffix, in any case: png, jpg, jpeg, webp, bmp.
        image_size: height and width in pixels, >= 1.
        channels: 3 for colour, 1 for grey.
        flip: mirror half of the training images left to right, at random.
        held_out: the share kept for measuring, in [0, 1). A hash of the relative path decides for each file, so new
            files move no old one; where the share is not 0, each split of two images or more has at least one.

    Raises:
        UserError: the folder is missing, unreadable or without images, or an argument is out of its range; a
            fetch raises it for a file that is not a readable image.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        image_size: int = 64,
        channels: int = 3,
        flip: bool = True,
        held_out: float = 0.05,
    ) -> None:
        if image_size < 1:
            raise UserError(f"image_size must be at least 1 pixel, got {image_size}; 64 is usual")
        if channels not in (1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
        check_share(held_out)
        root = require_folder(data_dir, holding="the images")
        names = find_images(root)
        if not names:
            raise UserError(
                f"data_dir {str(root)!r} holds no image; put {', '.join(SUFFIXES)} files in it or below it"
            )
        transform = PixelScale(0, 255, integer=True)
        train, rest = split_by_name(names, held_out)
        shape = (channels, image_size, image_size)
        super().__init__(
            name="image-folder",
            spec=DataSpec(shape=shape, kind="image", conditions={}),
            transform=transform,
            train=ImageSplit(root, train, shape=shape, transform=transform, flip=flip),
            held_out=ImageSplit(root, rest, shape=shape, transform=transform, flip=False),
            fingerprint=_fingerprint(root, names),
        )


class ImageSplit(Split):
    """Image files, decoded at each fetch; ``names`` are their paths relative to ``root``."""

    def __init__(
        self, root: Path, names: Sequence[str], *, shape: tuple[int, int, int], transform: Transform, flip: bool
    ) -> None:
        self.root, self.names, self.flip = root, tuple(names), flip
        self._shape, self._transform = shape, transform
        Image.init()  # Pillow loads its decoders at the first use, which several threads should not do at once

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        pixels = np.empty((len(indices), *self._shape), np.uint8)
        for row, index in enumerate(indices):
            pixels[row] = decode_image(self.root / self.names[index], size=self._shape[1], channels=self._shape[0])
        if self.flip and rng is not None:
            mirrored = uniform((len(indices),), rng).numpy() < 0.5
            pixels[mirrored] = pixels[mirrored, ..., ::-1]
        return Batch(self._transform.forward(torch.from_numpy(pixels)))


def decode_image(path: Path, *, size: int, channels: int) -> np.ndarray:
    """The image of a file as (channels, size, size) uint8: turned upright, scaled, cropped to the centre.

    Raises:
        UserError: the file is not a readable image.
    """
    try:
        with Image.open(path) as image:
            # A JPEG decoder that halves while it decodes is several times faster; twice the size keeps the quality.
            image.draft(None, (2 * size, 2 * size))
            image = _flatten(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    except Exception as error:  # a decoder raises whatever a damaged file leads it to
        raise UserError(
            f"{path} cannot be read as an image ({error}); repair it or take it out of the folder"
        ) from error
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)  # whole pixels: half ones would blur
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """The image in 8 bits a channel, laid on white where it is transparent."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def find_images(root: Path) -> list[str]:
    """Sorted paths, relative to ``root`` and with "/", of the images below it. Links to folders are followed, once.

    Raises:
        UserError: a folder cannot be read.
    """
    names, seen = [], set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from error

    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = (name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        names += [Path(folder, name).relative_to(root).as_posix() for name in images]
    return sorted(names)


def split_by_name(names: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    """The names to train on and those held out: the ones whose hash, as a number in [0, 1), is below the share."""
    if not held_out or len(names) < 2:
        return list(names), []
    places = {name: int.from_bytes(hashlib.sha256(_key(name)).digest()[:8], "big") / 2**64 for name in names}
    lowest, highest = min(places, key=places.__getitem__), max(places, key=places.__getitem__)
    rest = {name for name in names if name == lowest or (places[name] < held_out and name != highest)}
    return [name for name in names if name not in rest], [name for name in names if name in rest]


def _key(name: str) -> bytes:
    """The bytes of a name: the same on file systems that compose accents and on those that take them apart."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")


def _fingerprint(root: Path, names: Sequence[str]) -> str:
    """sha256 of the names and sizes of the files."""
    try:
        lines = [b"%b\0%d\n" % (_key(name), (root / name).stat().st_size) for name in names]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); mend or remove it") from error
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()

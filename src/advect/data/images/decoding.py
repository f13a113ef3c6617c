"""Decoding of image files to pixels of one size."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image, ImageColor, ImageOps

from advect.core.bounds import Pixels, bounded
from advect.core.errors import UserError, did_you_mean

_ORIENTATION = 0x0112  # of EXIF; above 4 height and width change places
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@bounded
@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Decode images to (channels, H, W) uint8 with Pillow; thread-safe. Takes the first of several frames.

    Applies EXIF rotation, composites transparency on the background unless ``channels`` is 4, scales the shorter side
    to fit (bicubic, antialiased) and crops the longer. 16 bits per channel become 8. Real numbers, as in some TIFFs,
    run from 0 (black) to 1 (white); images outside and 32-bit whole numbers are refused. Grey and colour convert to
    each other (ITU-R BT.601 luma).

    Args:
        image_size: height and width in pixels, >= 1; one number for both.
        channels: 3 for colour, 1 for grey, 4 for colour with alpha.
        background: colour behind transparency: a name, "#rrggbb", or three numbers 0 to 255.
        window: side in pixels of the central square to cut first; None takes all.

    Raises:
        UserError: an argument is out of range.
    """

    image_size: Pixels | tuple[Pixels, Pixels] = 64
    channels: int = 3
    background: str | tuple[int, int, int] = "white"
    window: Pixels | None = None

    def __post_init__(self) -> None:
        size = self.image_size
        if not isinstance(size, int) and len(size) != 2:
            raise UserError(f"image_size must be one number or (height, width), got {size}")
        height, width = (size, size) if isinstance(size, int) else size
        object.__setattr__(self, "image_size", (int(height), int(width)))
        if self.channels not in _MODES:
            raise UserError(f"channels must be 1 (grey), 3 (colour) or 4 (with alpha), got {self.channels}")
        object.__setattr__(self, "background", colour(self.background))
        Image.preinit()  # the usual formats come first in Pillow's list, and are so the first that it tries
        Image.init()  # Pillow loads its decoders at the first use, which several threads should not do at once

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, H, W) of every image."""
        height, width = self.image_size  # pyright: ignore[reportGeneralTypeIssues]
        return (self.channels, height, width)

    def __call__(self, content: bytes, place: tuple[float, float] | None = None) -> np.ndarray:
        """Decode one image to (channels, H, W) uint8.

        Args:
            content: bytes of the file.
            place: crop position (vertical, horizontal) in [0, 1]; None is the centre.

        Raises:
            Exception: any error of the decoder on a damaged file.
        """
        _, height, width = self.shape
        with Image.open(io.BytesIO(content)) as image:
            full = image.width
            wanted = 2 * max(height, width) * (1 if self.window is None else max(image.size) / self.window)
            # A JPEG decoder that halves while it decodes is several times faster; twice the size keeps the quality.
            image.draft(None, (int(wanted), int(wanted)))
            window = None if self.window is None else self.window * image.width / full
            image = self._flatten(ImageOps.exif_transpose(image), image.format)
        box = _box(image.size, (width, height), window, place)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return np.asarray(image).reshape(height, width, self.channels).transpose(2, 0, 1)

    def _flatten(self, image: Image.Image, image_format: str | None) -> Image.Image:
        """Image with 8 bits per channel, transparency composited on the background."""
        if image.mode[0] in "IF":  # 16-bit grey, which Pillow would cut off at 255, or real numbers
            image = Image.fromarray(_eight_bits(image.mode, image_format, np.asarray(image)))
        if image.has_transparency_data and self.channels != 4:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, self.background), image)
        return image.convert(_MODES[self.channels])


class Encoded(Protocol):
    """Encoded images by index."""

    def read(self, index: int) -> bytes: ...


@dataclass(frozen=True, eq=False)
class Buckets:
    """Sizes of images that keep their shape (aspect-ratio bucketing, Podell et al. 2024, "SDXL").

    Args:
        decoders: one a size, sorted by height over width.
        numbers: (N,) decoder of each image.
    """

    decoders: Sequence[Decoder]
    numbers: np.ndarray

    @classmethod
    def of(cls, images: Encoded, rows: np.ndarray, decoder: Decoder, step: int) -> Buckets:
        """Sizes in multiples of ``step`` pixels for ``rows`` (N,), of at most about the pixels of ``decoder``.

        Reads the header of every image; an unreadable one has the size of ``decoder``. Raises UserError for a step
        below 1 or above a side of ``decoder``, and a window.
        """
        _, height, width = decoder.shape
        if not 1 <= step <= min(height, width):
            raise UserError(f"bucket_step must be between 1 and the sides of image_size, got {step}; 16 is usual")
        if decoder.window is not None:
            raise UserError("bucket_step keeps the shapes of images, and crop cuts squares; give one of them")

        def size(row: int) -> tuple[int, int]:
            try:
                with Image.open(io.BytesIO(images.read(row))) as image:
                    sides = (
                        (image.width, image.height) if image.getexif().get(_ORIENTATION, 1) > 4 else image.size[::-1]
                    )
            except Exception:  # whatever a damaged file leads Pillow to; a fetch names it
                sides = height, width
            scale = min(1.0, math.sqrt(height * width / (sides[0] * sides[1])))
            high, wide = (max(1, int(side * scale / step + 0.5)) * step for side in sides)
            return high, wide

        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(size, rows.tolist()))
        known = sorted(set(sizes), key=lambda size: (size[0] / size[1], size))
        number = {size: i for i, size in enumerate(known)}
        decoders = [replace(decoder, image_size=size) for size in known]
        return cls(decoders, np.array([number[size] for size in sizes], np.int64))


def _eight_bits(mode: str, image_format: str | None, values: np.ndarray) -> np.ndarray:
    """Grey values (H, W) of Pillow's modes I (32 bits), I;16 and F (real numbers) as uint8.

    Raises ValueError if the values of black and white are unknown.
    """
    low, high = float(values.min()), float(values.max())
    if mode == "F":
        if not (low >= 0 and high <= 1):  # also for NaN
            raise ValueError(f"its real numbers lie in {low:g} to {high:g}, not 0 to 1; save it with 8 or 16 bits")
        return (values * 255).round().astype(np.uint8)
    if mode == "I" and (image_format not in ("PNG", "PPM") or not 0 <= low <= high <= 65535):
        raise ValueError(f"its 32-bit whole numbers, {low:g} to {high:g}, have no known white; save it with 16 bits")
    return (values // 257).astype(np.uint8)


def _box(
    size: tuple[int, int], target: tuple[int, int], window: float | None, place: tuple[float, float] | None
) -> tuple[float, float, float, float]:
    """Part (left, top, right, bottom) of an image of ``size`` that becomes the target; sizes are (width, height)."""
    whole = size if window is None else (min(window, size[0]), min(window, size[1]))
    scale = min(whole[0] / target[0], whole[1] / target[1])
    width, height = min(scale * target[0], whole[0]), min(scale * target[1], whole[1])
    # From whole pixels: half ones would blur.
    if place is None:
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
    else:
        edge_x, edge_y = (size[0] - whole[0]) // 2, (size[1] - whole[1]) // 2
        left = edge_x + int(place[1] * (int(whole[0] - width) + 1))
        top = edge_y + int(place[0] * (int(whole[1] - height) + 1))
    return left, top, left + width, top + height


def colour(background: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255. Raises UserError if it is no colour."""
    if isinstance(background, str):
        try:
            return ImageColor.getrgb(background)[:3]
        except ValueError:
            hint = did_you_mean(background, ImageColor.colormap)
            hint = hint if "did you mean" in hint else "; give a name such as white, or #rrggbb"
            raise UserError(f"background {background!r} is no colour{hint}") from None
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise UserError(f"background must be three numbers from 0 to 255, got {background}")
    red, green, blue = (int(value) for value in background)
    return red, green, blue

"""Decoding of image files to pixels of one size."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageOps

from advect.core.errors import UserError, did_you_mean

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


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

    image_size: int | tuple[int, int] = 64
    channels: int = 3
    background: str | tuple[int, int, int] = "white"
    window: int | None = None

    def __post_init__(self) -> None:
        size = self.image_size
        if not isinstance(size, int) and len(size) != 2:
            raise UserError(f"image_size must be one number or (height, width), got {size}")
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise UserError(f"image_size must be at least 1 pixel, got {size}; 64 is usual")
        object.__setattr__(self, "image_size", (int(height), int(width)))
        if self.channels not in _MODES:
            raise UserError(f"channels must be 1 (grey), 3 (colour) or 4 (with alpha), got {self.channels}")
        if self.window is not None and self.window < 1:
            raise UserError(f"crop must be at least 1 pixel, got {self.window}; None takes the whole image")
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

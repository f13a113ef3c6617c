"""The jobs behind ``advect data``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advect.data import Packed, pack, packed_path
from advect.data.images.decoding import Decoder


@dataclass(frozen=True, kw_only=True)
class PackArguments:
    """What one call of ``advect data pack`` asks for."""

    output: Path | None = None
    """Folder to write; by default beside PATH, where training finds it by itself."""
    image_size: int = 64
    """Height and width in pixels: the shorter side is resized to it and the centre cropped."""
    channels: Literal[1, 3, 4] = 3
    """3 for colour, 1 for grey, 4 for colour with its alpha."""
    background: str = "white"
    """What shows through transparent images: a colour's name, or #rrggbb."""
    workers: int = 2
    """Threads that decode."""


def pack_images(place: Path, a: PackArguments, *, progress: bool = True) -> str:
    """Pack the images of a folder or archive, or go on where a call before was ended; say where they are now."""
    decoder = Decoder(image_size=a.image_size, channels=a.channels, background=a.background)
    folder = pack(
        place,
        a.output or packed_path(place, decoder),
        image_size=a.image_size,
        channels=a.channels,
        background=a.background,
        workers=a.workers,
        progress=progress,
    )
    return f"{folder}{_left_out(Packed(folder))}"


def _left_out(source: Packed) -> str:
    if not source.left_out:
        return ""
    images = "1 image" if len(source.left_out) == 1 else f"{len(source.left_out):,} images"
    return f"; {images} could not be read and left out, the first {source.left_out[0]}"


def verify_pack(folder: Path) -> str:
    """Read every byte of a packed folder and say what is in it. Raises UserError where one has changed."""
    source = Packed(folder)
    source.verify()
    count = len(source.train) + len(source.held_out)
    return f"{folder} is whole: {count:,} images {source.spec.shape}{_left_out(source)}"

"""advect data {pack,verify} PATH: decode and resize images once; verify a pack."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from advect.config.flags import asks_help, parse_words
from advect.config.places import split_place
from advect.config.section import Section
from advect.core.bounds import Pixels
from advect.core.errors import UserError, did_you_mean
from advect.data import Packed, pack, packed_path
from advect.data.images.decoding import Decoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackArguments(Section):
    """Flags of ``advect data pack``."""

    output: Path | None = None
    """Output folder; default beside PATH, where training finds it."""
    image_size: Pixels = 64
    """Height and width in pixels, by resizing the shorter side and centre-cropping."""
    channels: Literal[1, 3, 4] = 3
    """3 for colour, 1 for grey, 4 for colour with its alpha."""
    background: str = "white"
    """Colour behind transparent images: a name, or #rrggbb."""
    workers: Annotated[int, Meta(ge=1, le=1024)] = 2
    """Decoding threads."""


JOBS = {
    "pack": "Decode and resize images once. Ended by anything, it goes on where it was.",
    "verify": "Read every byte of a packed folder; it takes no flags.",
}


def run(words: list[str]) -> None:
    """Run ``advect data`` with the words after it. Raises UserError."""
    if words and asks_help(words[:1]):
        for job, about in JOBS.items():
            logger.info(f"advect data {job} PATH [flags]   {about}")
        return
    if not words:
        raise UserError(f"advect data needs one of {', '.join(JOBS)}, such as: advect data pack faces")
    if words[0] not in JOBS:
        raise UserError(f"advect data {words[0]} is not known{did_you_mean(words[0], JOBS)}")
    command = f"advect data {words[0]}"
    place, flags = split_place(words[1:], command, PackArguments, what="PATH", example="faces")
    if words[0] == "verify":
        if asks_help(flags):
            logger.info(f"{command} PATH: {JOBS['verify']}")
            return
        if flags:
            raise UserError(f"{command} takes a PATH alone, got {flags[0]!r}")
        logger.info(verify_pack(place))
        return
    a = parse_words(PackArguments, flags, prog=f"{command} PATH", description=JOBS["pack"])
    logger.info(f"packed: {pack_images(place, a, progress=sys.stderr.isatty())}")


def pack_images(place: Path, a: PackArguments, *, progress: bool = True) -> str:
    """Pack the images of a folder or archive, resumably; return a description of the result."""
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
    """Read every byte of a packed folder; return a summary. Raises UserError if damaged."""
    source = Packed(folder)
    source.verify()
    count = len(source.train) + len(source.held_out)
    return f"{folder} is whole: {count:,} images {source.spec.shape}{_left_out(source)}"

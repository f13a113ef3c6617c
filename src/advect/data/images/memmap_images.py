"""Packed images: decoded once, then memory-mapped."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from pathlib import Path
from typing import ClassVar

import numpy as np

from advect.core.bounds import Share
from advect.core.errors import UserError
from advect.core.files import open_regular, read_file, require_path
from advect.core.records import read_record
from advect.core.registry import register
from advect.core.types import DataSpec
from advect.data.base import ArraySplit, Dataset, Detected, Preview, category
from advect.data.images.decoding import Decoder
from advect.data.images.folder import PIXELS, Unreadable, content_digests, files_fingerprint
from advect.data.images.packing import MANIFEST, PIXEL_FILE, is_begun, read_manifest, settings_of
from advect.data.images.stores import open_store
from advect.data.splits import official_split, split_by_content

logger = logging.getLogger(__name__)


@register("packed")
class Packed(Dataset):
    """Images packed by :func:`~advect.data.images.packing.pack`, (channels, H, W), 0 to 255.

    Splits, classes and fingerprint equal those of the originals' ``ImageFolder``, so runs may switch between them;
    unreadable images are left out. Opening compares sizes only; :meth:`verify` reads everything.

    Args:
        data_dir: packed folder.
        held_out: share held out, in [0, 1), as for ``ImageFolder``.

    Raises:
        UserError: the folder is no complete pack, or an argument is out of range.

    Attributes:
        left_out: names of unreadable images.
    """

    photographs = True
    place: ClassVar[str | None] = "the folder that advect data pack wrote"

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        if (path / MANIFEST).is_file() and (path / PIXEL_FILE).is_file():
            return Detected(100, "a folder that advect data pack wrote")
        return Detected(100, "an unfinished pack of images") if is_begun(path) else None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        count, *shape = (read_manifest(path) or {})["shape"]
        return Preview(f"a pack of {count:,} images {tuple(shape)}")

    @classmethod
    def image_size(cls, path: Path) -> tuple[int, int] | None:
        height, width = (read_manifest(path) or {})["shape"][2:]
        return height, width

    def __init__(self, data_dir: str | os.PathLike[str], *, held_out: Share | None = None) -> None:
        self.folder = require_path(data_dir, holding="the packed images")
        manifest = self._manifest = _whole_manifest(self.folder)
        names = read_record(self.folder / "names.json", list[str], "pack again")
        table = np.frombuffer(read_file(self.folder / "labels.i64"), "<i8").reshape(len(names), -1)
        self.left_out = [names[row] for row in manifest.get("unreadable", [])]
        conditions = manifest["conditions"]
        labels = {name: table[:, i].astype(np.int64) for i, name in enumerate(conditions)}
        content = read_file(self.folder / "digests.u8")
        digests = [content[i : i + 32] for i in range(0, len(content), 32)]
        own = official_split(names) if held_out is None else None
        train, rest = own or split_by_content(digests, 0.05 if held_out is None else held_out)
        lost = manifest.get("unreadable", [])
        train, rest = train[~np.isin(train, lost)], rest[~np.isin(rest, lost)]
        pixels = np.memmap(self.folder / PIXEL_FILE, np.uint8, "r", shape=tuple(manifest["shape"]))
        super().__init__(
            name="image-folder",
            spec=DataSpec(
                shape=tuple(manifest["shape"][1:]),
                modality="image",
                conditions={name: category(labels[name][train], values) for name, values in conditions.items()},
            ),
            transform=PIXELS,
            train=ArraySplit(pixels, labels, PIXELS, rows=train),
            held_out=ArraySplit(pixels, labels, PIXELS, rows=rest),
            fingerprint=manifest["fingerprint"],
        )

    def verify(self) -> None:
        """Read every byte. Raises UserError with the file and the changed images."""
        for name, entry in self._manifest["files"].items():
            if hashlib.sha256(read_file(self.folder / name)).hexdigest() != entry["sha256"]:
                raise UserError(
                    f"{self.folder / name} has changed since it was packed; remove the folder and pack again"
                )
        total, *shape = self._manifest["shape"]
        block, size = self._manifest["block"], int(np.prod(shape))
        with open_regular(self.folder / PIXEL_FILE) as file:
            for number, digest in enumerate(self._manifest["blocks"]):
                if hashlib.sha256(file.read(block * size)).hexdigest() != digest:
                    last = min((number + 1) * block, total) - 1
                    raise UserError(
                        f"{self.folder / PIXEL_FILE} has changed since it was packed, within images {number * block}"
                        f" to {last}; remove the folder and pack again"
                    )


def packed_path(data_dir: str | os.PathLike[str], decoder: Decoder) -> Path:
    """Default location of a pack: beside the folder or archive, named after it and the shape (C, H, W)."""
    path = Path(data_dir).absolute()
    return path.with_name(f"{path.name}.packed-{'x'.join(map(str, decoder.shape))}")


def matching_pack(data_dir: str | os.PathLike[str], decoder: Decoder) -> Path | None:
    """Complete pack of these images and settings, ``data_dir`` itself or one beside it; else None.

    Reads a little of every original to detect changes, and logs them.
    """
    path = Path(data_dir).absolute()
    wanted = settings_of(decoder)
    itself = read_manifest(path)
    if itself is not None:
        return path if itself["settings"] == wanted else None
    found = [
        (folder, manifest)
        for folder in sorted(path.parent.glob("*.packed-*"))
        if folder.name.startswith(f"{path.name}.packed-")
        and (manifest := read_manifest(folder)) is not None
        and manifest["settings"] == wanted
    ]
    if not found:
        return None
    store = open_store(data_dir)
    fingerprint = files_fingerprint(store, content_digests(store, Unreadable(len(store))))
    pack = next((folder for folder, manifest in found if manifest["fingerprint"] == fingerprint), None)
    if pack is None:
        logger.info(
            f"note: the images have changed since {found[0][0]} was packed, so it is not used; pack them again"
        )
    return pack


def _whole_manifest(folder: Path) -> dict:
    """Manifest, after checking the sizes of the files."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"data_dir {folder} is an unfinished pack, it has no {MANIFEST}; pack the images again to finish it"
            if is_begun(folder)
            else f"data_dir {folder} is no pack, it has no {MANIFEST}; name a folder that advect data pack wrote"
        )
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    for name, size in {**sizes, PIXEL_FILE: math.prod(manifest["shape"])}.items():
        path = folder / name
        there = path.stat().st_size if path.exists() else 0
        if there != size:
            raise UserError(
                f"{path} has {there} bytes and not {size} as when it was packed; remove the folder and pack again"
            )
    return manifest

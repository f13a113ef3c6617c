"""Detection of data formats; asks every registered format's ``recognises``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from advect.core import registry
from advect.core.errors import UserError
from advect.core.files import check_regular
from advect.data.base import Dataset, Detected
from advect.data.remote import is_remote

FORMAT = "data-format"

_FOLDER = (
    "is a folder without data that is known here; it may hold png, jpg, webp or bmp images, tar shards, Parquet files "
    "with images, or what CelebA, CIFAR, MNIST or a saved Hugging Face dataset come as"
)
_FILE = (
    "is a file of no kind that is known here; give .h5ad, .csv, .parquet, .npy or .npz of numbers with 2 to 4 axes, "
    "or a zip or tar of images"
)


def formats() -> Iterator[type[Dataset]]:
    """Registered formats that are read from a path."""
    for name in registry.choices(FORMAT):
        cls = registry.get(FORMAT, name)
        if cls.place is not None:
            yield cls


def autodetect(path: str | os.PathLike[str]) -> list[tuple[type[Dataset], Detected]]:
    """Formats that fit a path, pattern or URL, likeliest first.

    Raises:
        UserError: the path does not exist or fits no format.
    """
    place, text = Path(path).expanduser(), str(path)
    if not place.exists() and (is_remote(text) or set(text) & set("{*?[")):
        cls = registry.get(FORMAT, "parquet-images" if text.rstrip("/").endswith((".parquet", ".pq")) else "shards")
        return [(cls, Detected(0, registry.summary(cls)))]
    if not place.exists():
        raise UserError(f"{text!r} does not exist; name a file or folder of data")
    check_regular(place, "--data")
    found = [(cls, seen) for cls in formats() if (seen := cls.recognises(place)) is not None]
    if found:
        return sorted(found, key=lambda pair: -pair[1].priority)
    raise UserError(f"{text!r} {_FOLDER if place.is_dir() else _FILE}")

"""CelebA, 202,599 faces with 40 attributes, in its official layout."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from advect.core.bounds import Pixels
from advect.core.errors import UserError, did_you_mean
from advect.core.files import read_file, require_folder
from advect.core.registry import register
from advect.core.types import DataSpec
from advect.data.base import Dataset, Detected, category
from advect.data.images.decoding import Decoder
from advect.data.images.folder import PIXELS, ImageSplit, Unreadable, files_fingerprint
from advect.data.images.stores import ImageStore, open_store
from advect.data.splits import split_by_content

logger = logging.getLogger(__name__)

PARTITION, ATTRIBUTES, IMAGES = "list_eval_partition", "list_attr_celeba", "img_align_celeba"
PLACES = ("", "Eval", "Anno", "Img")
"""Sub-folders of the lists and images upstream; "" for all in one folder."""

LISTS = (".txt", ".csv")
LAST = (162_770, 182_637, 202_599)
"""Number of the last image of each part upstream."""

_PARTS = {"train": 0, "valid": 1, "test": 2}
_NO_YES = ("no", "yes")


@register("celeba")
class CelebA(Dataset):
    """Aligned and cropped faces (Liu, Luo, Wang & Tang 2015, "Deep learning face attributes in the wild").

    Args:
        data_dir: folder with ``img_align_celeba`` (a folder, or a zip or tar of it), ``list_eval_partition`` and, for
            attributes, ``list_attr_celeba``; lists as upstream's ``.txt`` or mirrors' ``.csv``. Without the first list
            the parts are upstream's by number, if all images are there, else a tenth each by their names.
        image_size: height and width in pixels; one number for both.
        attributes: conditions out of the 40, such as "Smiling" and "Male", with values "no" and "yes".
        crop: side in pixels of the central square cut from the 178 x 218 images before scaling; 140 follows Tolstikhin
            et al. 2018. None cuts the largest, 178.
        held_out: upstream part held out, "valid" (19,867) or "test" (19,962).
        skip_unreadable: skip and list unreadable images; more than 1% are an error.

    Attributes:
        unreadable: unreadable images found so far, with reasons.

    Raises:
        UserError: a file is missing or damaged, lists and images disagree, or an attribute is unknown.
    """

    photographs = True
    place: ClassVar[str | None] = "the folder with img_align_celeba and list_eval_partition.txt"
    usual_preset: ClassVar[str | None] = "celeba64"

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        words = "CelebA in its official layout, img_align_celeba with list_eval_partition or list_attr_celeba"
        return Detected(95, words) if find_celeba(path) else None

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        image_size: Pixels | tuple[Pixels, Pixels] = 64,
        attributes: Sequence[str] = (),
        crop: Pixels | None = 140,
        held_out: Literal["valid", "test"] = "valid",
        skip_unreadable: bool = True,
    ) -> None:
        if held_out not in ("valid", "test"):
            raise UserError(f"held_out is the name of a part{did_you_mean(str(held_out), ('valid', 'test'))}")
        decoder = Decoder(image_size=image_size, window=crop)
        folder = require_folder(data_dir, holding=f"{IMAGES}, {PARTITION}.txt and {ATTRIBUTES}.txt")
        store = open_store(_find(folder, IMAGES, ("", ".zip", ".tar", ".tar.gz")))
        parts = _parts(_find(folder, PARTITION, LISTS), store) if has_list(folder, PARTITION) else _usual_parts(store)
        labels = _attributes(folder, attributes, store) if attributes else {}
        train, rest = (np.flatnonzero(parts == _PARTS[part]) for part in ("train", held_out))
        self.unreadable = Unreadable(len(store)) if skip_unreadable else None
        conditions = {name: category(values[train], _NO_YES, (-1, 1)) for name, values in labels.items()}
        super().__init__(
            name="celeba",
            spec=DataSpec(shape=decoder.shape, modality="image", conditions=dict(conditions)),
            transform=PIXELS,
            train=ImageSplit(store, train, labels, decoder, unreadable=self.unreadable),
            held_out=ImageSplit(store, rest, labels, decoder, unreadable=self.unreadable),
            fingerprint=files_fingerprint(store, _sizes_and_parts(store, parts)),
        )


def _sizes_and_parts(store: ImageStore, parts: np.ndarray) -> list[bytes]:
    """Size and part of each image; hashing 1.4 GB of content at every start would add little."""
    try:
        return [b"%d %d" % (store.size(i), part) for i, part in enumerate(parts.tolist())]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); mend or remove it") from error


def find_celeba(folder: Path) -> bool:
    """Whether a folder holds a list of CelebA."""
    return has_list(folder, PARTITION) or has_list(folder, ATTRIBUTES)


def has_list(folder: Path, name: str) -> bool:
    """Whether a folder holds a list, where upstream or mirrors have it."""
    return any((folder / place / f"{name}{suffix}").is_file() for place in PLACES for suffix in LISTS)


def _find(folder: Path, name: str, suffixes: Sequence[str]) -> Path:
    for candidate in (folder / place / f"{name}{suffix}" for place in PLACES for suffix in suffixes):
        if candidate.exists():
            return candidate
    raise UserError(f"{folder} has no {' or '.join(name + suffix for suffix in suffixes)}; put it there")


def _parts(path: Path, store: ImageStore) -> np.ndarray:
    """Part (0, 1 or 2) of every image in the store."""
    rows = [(line, _words(text)) for line, text in _lines(path)]
    if rows and rows[0][1][0] == "image_id":
        rows = rows[1:]
    parts = {}
    for line, row in rows:
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise UserError(f"{path} line {line} is not an image's name and 0, 1 or 2, but {' '.join(row)!r}; mend it")
        parts[row[0]] = int(row[1])
    return _by_image(path, parts, store)


def _usual_parts(store: ImageStore) -> np.ndarray:
    """Part (0, 1 or 2) of every image without upstream's list."""
    names = [name.rsplit("/", 1)[-1] for name in store.names]
    if len(names) == LAST[-1] and {int(n[:-4]) for n in names if n[:-4].isdigit()} == set(range(1, LAST[-1] + 1)):
        logger.info(f"there is no {PARTITION}.txt; the parts are upstream's, by the numbers of the images")
        return np.searchsorted(LAST, [int(n[:-4]) for n in names])
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    parts = np.zeros(len(names), np.int64)
    for part, share in ((2, 0.2), (1, 0.1)):
        parts[split_by_content(digests, share)[1]] = part
    logger.info(
        f"there is no {PARTITION}.txt, and these are not all {LAST[-1]:,} images; a tenth is held out by name as"
        ' "valid", and a tenth as "test"'
    )
    return parts


def _attributes(folder: Path, wanted: Sequence[str], store: ImageStore) -> dict[str, np.ndarray]:
    """Wanted attributes: 0 (no) or 1 (yes) for every image in the store."""
    path = _find(folder, ATTRIBUTES, LISTS)
    lines = _lines(path)
    if lines and lines[0][1].strip().isdigit():  # upstream begins with the number of images
        lines = lines[1:]
    if not lines:
        raise UserError(f"{path} is empty; download it again")
    known = [name for name in _words(lines[0][1]) if name != "image_id"]
    for name in wanted:
        if name not in known:
            raise UserError(f"CelebA has no attribute {name!r}{did_you_mean(name, known)}")
    columns = [known.index(name) for name in wanted]
    values = {}
    for line, text in lines[1:]:
        name, *row = _words(text)
        if len(row) != len(known) or not {row[i] for i in columns} <= {"-1", "0", "1"}:
            raise UserError(
                f"{path} line {line} has not -1 or 1 for each of {len(known)} attributes; download it again"
            )
        values[name] = [row[i] == "1" for i in columns]
    table = _by_image(path, values, store)
    return {name: table[:, i] for i, name in enumerate(wanted)}


def _by_image(path: Path, values: dict[str, int] | dict[str, list[bool]], store: ImageStore) -> np.ndarray:
    """Values in the store's order, int64. Raises UserError unless the names agree."""
    names = [name.rsplit("/", 1)[-1] for name in store.names]
    lost, unlisted = sorted(values.keys() - set(names)), sorted(set(names) - values.keys())
    if lost or unlisted:
        what = f"lists {lost[0]!r}, which is not there" if lost else f"does not list the image {unlisted[0]!r}"
        count = len(lost) + len(unlisted)
        raise UserError(
            f"{path} {what}; {count} of {len(values)} names disagree with the images; take both from one download"
        )
    return np.array([values[name] for name in names], np.int64)


def _words(line: str) -> list[str]:
    """Entries of a line, separated by spaces (upstream) or commas (mirrors)."""
    return line.replace(",", " ").split()


def _lines(path: Path) -> list[tuple[int, str]]:
    """Non-empty lines with their numbers from 1."""
    try:
        text = read_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]

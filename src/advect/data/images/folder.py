"""Folders or archives of images of any sizes, resized to one size."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from advect.core.bounds import Pixels, Share
from advect.core.errors import UserError
from advect.core.random import Generator, uniform
from advect.core.registry import arguments, register
from advect.core.types import Batch, DataSpec
from advect.data.base import Dataset, Detected, Preview, Split, category
from advect.data.images.decoding import Buckets, Decoder
from advect.data.images.stores import ImageStore, describe_left_out, holds_images, open_store, starts_like_image
from advect.data.splits import below_the_common, official_split, split_by_content
from advect.data.transforms import PixelScale


@dataclass(frozen=True)
class Classes:
    """Classes of images: labels (N,) int64 and sorted names."""

    labels: np.ndarray
    names: tuple[str, ...]


def sub_folder_classes(names: Sequence[str], wanted: Literal["auto", "yes", "no"]) -> Classes | None:
    """Classes from the first differing folder of each path, below "train" and "test" if present.

    Args:
        names: paths with "/".
        wanted: "no" for none, "yes" to require them, "auto" to use them if present.

    Raises:
        UserError: classes are required, but some images lie in no sub-folder or all in one.
    """
    if wanted not in ("auto", "yes", "no"):
        raise UserError(f"labels must be 'auto', 'yes' or 'no', got {wanted!r}")
    if wanted == "no":
        return None
    paths = below_the_common(names)
    if official_split(names):
        paths = [parts[1:] for parts in paths]
    loose = [name for name, parts in zip(names, paths, strict=True) if len(parts) < 2]
    found = sorted({parts[0] for parts in paths if len(parts) > 1})
    if loose or len(found) < 2:
        if wanted == "auto":
            return None
        why = f"{loose[0]} lies in none" if loose else "all images lie in one"
        raise UserError(f"labels='yes' needs a sub-folder for each class, but {why}; sort them or give labels='no'")
    number = {name: i for i, name in enumerate(found)}
    return Classes(np.array([number[parts[0]] for parts in paths], np.int64), tuple(found))


logger = logging.getLogger(__name__)

PIXELS = PixelScale(0, 255, integer=True)
"""Transform of decoded images to model units."""

_MOST_UNREADABLE = 0.01
_LOOKED_AT, _LARGEST = 64, 64
_READERS = 16  # on a network disk a file takes milliseconds to open, and many at once take no longer


@register("image-folder")
class ImageFolder(Dataset):
    """Images of a folder, zip or tar (compressed or not) as (channels, H, W), 0 to 255, see :class:`Decoder`.

    Archives are read in place. Names that start with a dot are ignored. The same files give the same splits, pixels
    and fingerprint in any location.

    Args:
        data_dir: folder or archive. Images are recognised by suffix (any case) or first bytes; other files are counted
            and left out.
        image_size: height and width in pixels; one number for both.
        channels: 3 for colour, 1 for grey, 4 for colour with alpha.
        crop: side in pixels of a central square to cut before scaling; None takes all.
        random_crop: crop the longer side of training images at random, not in the centre.
        bucket_step: train on images of their own shapes, with heights and widths in multiples of this many pixels, at
            most about as many pixels as image_size has, and one size a batch; for a DiT, or a U-Net that halves such
            sizes. Held-out images have image_size.
        background: colour behind transparency: a name, "#rrggbb", or three numbers 0 to 255.
        labels: whether sub-folders are classes, the condition ``label``; "auto": if every image lies in one of at
            least two sub-folders.
        held_out: share held out, in [0, 1), chosen by a hash of each file's size and middle 8 KiB: copies share a
            side, new files move no old one. None uses the folders "train" and "test" (or "val") if present, else 0.05.
        skip_unreadable: skip and list unreadable images; more than 1% are an error.

    Attributes:
        unreadable: unreadable images found so far, with reasons.

    Raises:
        UserError: the folder is missing, unreadable or without images, or an argument is out of range; in a fetch, an
            image, or more than 1%, is unreadable.
    """

    photographs = True
    place: ClassVar[str | None] = "the folder or archive with images"

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        if not holds_images(path):
            return None
        return Detected(10, "a folder of images" if path.is_dir() else "a zip or tar of images")

    @classmethod
    def preview(cls, path: Path) -> Preview:
        store = open_store(path)
        classes = sub_folder_classes(store.names, "auto")
        within = "" if classes is None else f" in {len(classes.names)} classes"
        what = "a folder" if path.is_dir() else "an archive"
        words = f"{what} of {len(store):,} image{'s' * (len(store) != 1)}{within}"
        return Preview(words, {"image_size": _usual_size(store)})

    @classmethod
    def open(cls, data_dir: Any, **options: Any) -> Dataset:
        """Matching pack of ``advect data pack`` if one exists, else the images themselves."""
        from advect.data.images.memmap_images import Packed, matching_pack

        asked = {a.name: options.get(a.name, a.default) for a in arguments(cls)}
        if not Path(data_dir).exists() or asked["random_crop"] or asked["bucket_step"] or asked["labels"] != "auto":
            return cls(data_dir, **options)
        decoder = Decoder(
            image_size=asked["image_size"],
            channels=asked["channels"],
            background=asked["background"],
            window=asked["crop"],
        )
        pack = matching_pack(data_dir, decoder)
        if pack is None:
            return cls(data_dir, **options)
        logger.info(f"reading the images packed in {pack}")
        return Packed(pack, held_out=asked["held_out"])

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        image_size: Pixels | tuple[Pixels, Pixels] = 64,
        channels: Literal[1, 3, 4] = 3,
        crop: Pixels | None = None,
        random_crop: bool = False,
        bucket_step: Pixels | None = None,
        background: str | tuple[int, int, int] = "white",
        labels: Literal["auto", "yes", "no"] = "auto",
        held_out: Share | None = None,
        skip_unreadable: bool = True,
    ) -> None:
        decoder = Decoder(image_size=image_size, channels=channels, background=background, window=crop)
        store = open_store(data_dir)
        if not len(store):
            raise UserError(
                f"data_dir {str(data_dir)!r} holds no image; put pictures in it or below it, such as .png or .jpg"
            )
        note_left_out(data_dir, store)
        self.unreadable = Unreadable(len(store)) if skip_unreadable else None
        digests = content_digests(store, self.unreadable)
        own = official_split(store.names) if held_out is None else None
        train, rest = own or split_by_content(digests, 0.05 if held_out is None else held_out)
        classes = sub_folder_classes(store.names, labels)
        values = {} if classes is None else {"label": classes.labels}
        super().__init__(
            name="image-folder",
            spec=DataSpec(
                shape=decoder.shape,
                modality="image",
                conditions={} if classes is None else {"label": category(classes.labels[train], classes.names)},
            ),
            transform=PIXELS,
            train=ImageSplit(
                store,
                train,
                values,
                decoder,
                random_crop=random_crop,
                unreadable=self.unreadable,
                buckets=None if bucket_step is None else Buckets.of(store, train, decoder, bucket_step),
            ),
            held_out=ImageSplit(store, rest, values, decoder, unreadable=self.unreadable),
            fingerprint=files_fingerprint(store, digests),
        )
        if shapes := self.train.shapes:
            (_, *wide), (_, *tall) = shapes[0], shapes[-1]
            logger.info(
                f"training images have {len(shapes)} sizes, from {wide[0]} x {wide[1]} to {tall[0]} x {tall[1]}"
            )


def _usual_size(store: ImageStore) -> int:
    """Side in pixels of the median image, a multiple of 4 and at most 64."""
    sides = []
    for index in np.linspace(0, len(store) - 1, min(_LOOKED_AT, len(store))).astype(int).tolist():
        try:
            with Image.open(io.BytesIO(store.read(index))) as image:
                sides.append(min(image.size))
        except Exception:  # whatever a damaged file leads Pillow to; training names it
            continue
    return max(4, min(_LARGEST, int(statistics.median(sides)) // 4 * 4)) if sides else _LARGEST


def note_left_out(place: object, store: ImageStore) -> None:
    """Log what was left out of a store."""
    if store.left_out:
        logger.info(f"note: {place}: {describe_left_out(store.left_out)}")


class Unreadable(dict[str, str]):
    """Unreadable images with reasons, out of ``total``; more than 1% are an error."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self._most = max(1, int(_MOST_UNREADABLE * total))

    def add(self, title: str, reason: str) -> None:
        """Record one. Raises UserError above the limit."""
        self[title] = reason
        if len(self) > self._most:
            raise UserError(
                f"{len(self)} images cannot be read, more than 1%, among them {title} ({reason});"
                " repair them or take them out"
            )


class ImageSplit(Split):
    """Images of a store, decoded at each fetch.

    Args:
        store: encoded images.
        rows: (N,) indices into the store.
        labels: for each condition, a whole number (len(store),) per image of the store.
        decoder: image decoder.
        random_crop: crop those at random.
        unreadable: record of skipped images, each replaced by the next; None raises at the first.
        buckets: sizes for batches of one size each, of the images at ``rows``.
    """

    def __init__(
        self,
        store: ImageStore,
        rows: np.ndarray,
        labels: Mapping[str, np.ndarray],
        decoder: Decoder,
        *,
        random_crop: bool = False,
        unreadable: Unreadable | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        self.store, self.rows, self.decoder, self._sizes = store, rows, decoder, buckets
        self._labels = {name: np.ascontiguousarray(values[rows], np.int64) for name, values in labels.items()}
        if buckets is not None:
            self.buckets, self.shapes = buckets.numbers, [decoder.shape for decoder in buckets.decoders]
        self._random_crop, self._unreadable = random_crop, unreadable

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def files(self) -> ImageSplit:
        return self

    def at(self, rows: np.ndarray) -> ImageSplit:
        """Images at rows (n,) of the store, without labels."""
        return ImageSplit(self.store, rows, {}, self.decoder)

    @property
    def names(self) -> list[str]:
        """Names of the images inside the store."""
        return [self.store.names[int(row)] for row in self.rows]

    def row_names(self, indices: np.ndarray) -> list[str]:
        return [self.store.names[int(row)] for row in self.rows[indices]]

    def fetch(self, indices: np.ndarray, rng: Generator = None, bucket: int | None = None) -> Batch:
        decoder = self.decoder if bucket is None or self._sizes is None else self._sizes.decoders[bucket]
        pixels = np.empty((len(indices), *decoder.shape), np.uint8)
        places = [None] * len(indices)
        if self._random_crop and rng is not None:
            places = uniform((len(indices), 2), rng).tolist()
        taken = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            pixels[row], taken[row] = self._decode(decoder, int(index), places[row])
        x = PIXELS.forward(torch.from_numpy(pixels))
        if not self._labels:
            return Batch(x)
        return Batch(x, {name: torch.from_numpy(values[taken]) for name, values in self._labels.items()})

    def find_unreadable(self, *, workers: int = 4) -> dict[str, str]:
        """Decode every image once; return the unreadable ones with reasons."""

        def reason(row: int) -> str | None:
            try:
                self.decoder(self.store.read(row))
            except Exception as error:  # as in _decode
                return one_line(error)

        with ThreadPoolExecutor(workers) as pool:
            reasons = pool.map(reason, self.rows.tolist())
            return {self.store.title(row): why for row, why in zip(self.rows, reasons, strict=True) if why}

    def _decode(self, decoder: Decoder, index: int, place: tuple[float, float] | None) -> tuple[np.ndarray, int]:
        """Image at ``index`` and that index, or the next readable image and its index."""
        title = reason = ""
        for candidate in chain(range(index, len(self)), range(index)):
            row = self.rows[candidate]
            try:
                return decoder(self.store.read(row), place), candidate
            except Exception as error:  # a decoder raises whatever a damaged file leads it to
                title, reason = self.store.title(row), one_line(error)
                if self._unreadable is None:
                    raise UserError(
                        f"{title} cannot be read as an image ({reason}); repair it or take it out"
                    ) from error
                self._unreadable.add(title, reason)
        raise UserError(f"no image can be read, {title} among them ({reason}); repair them or name others")


def one_line(error: Exception) -> str:
    """Message of an exception on one line."""
    if isinstance(error, UnidentifiedImageError):  # it tells where in memory the bytes lie
        return "it is in no image format that is known here"
    return " ".join(str(error).split()) or type(error).__name__


def content_digests(store: ImageStore, unreadable: Unreadable | None = None) -> list[bytes]:
    """Digest of every image; of its name if its bytes are unreadable, which is recorded.

    Files that are no image by their first bytes are recorded too, so a folder of many is refused at once.

    Raises:
        UserError: an image is unreadable and ``unreadable`` is None, or too many are.
    """

    def digest(index: int) -> bytes:
        try:
            if unreadable is not None and not starts_like_image(store.start(index)):
                _note_unknown(store, index, unreadable)
            return store.digest(index)
        except UserError:
            raise
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else one_line(error)
            if unreadable is None:
                raise UserError(f"{store.title(index)} cannot be read ({why}); mend or remove it") from error
            unreadable.add(store.title(index), str(why))
            return hashlib.sha256(store.names[index].encode("utf-8", "surrogateescape")).digest()

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(digest, range(len(store))))


def _note_unknown(store: ImageStore, index: int, unreadable: Unreadable) -> None:
    """Record an image whose format Pillow does not know."""
    try:
        with Image.open(io.BytesIO(store.read(index))):
            return
    except Exception as error:  # as in ImageSplit._decode
        reason = one_line(error)
    unreadable.add(store.title(index), reason)


def files_fingerprint(store: ImageStore, digests: Sequence[bytes]) -> str:
    """sha256 (hex) of file names and a value per file (digest or size)."""
    # A name is the same on file systems that compose accents and on those that take them apart.
    keys = (unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape") for name in store.names)
    lines = [b"%b\0%b\n" % (key, digest) for key, digest in zip(keys, digests, strict=True)]
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()

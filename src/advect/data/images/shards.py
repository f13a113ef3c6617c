"""Images in tar shards with WebDataset naming, local or remote through fsspec."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from msgspec import Meta
from tqdm import tqdm

from advect.core.bounds import Pixels, Share
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, make_folder
from advect.core.records import Record, read_record
from advect.core.registry import register
from advect.core.types import DataSpec
from advect.data.base import Dataset, Detected, category
from advect.data.images.decoding import Decoder
from advect.data.images.folder import PIXELS, Classes, ImageSplit, Unreadable, files_fingerprint, note_left_out
from advect.data.images.stores import START, ImageStore, is_image, is_tar, is_visible, starts_like_image
from advect.data.remote import File, is_remote, list_files
from advect.data.splits import MIDDLE, file_digest, middle_of, split_by_content

_VERSION = 2
_METADATA = ("cls", "json", "txt")


@dataclass(frozen=True)
class Member:
    """Image in a shard: name, byte offset and size, digest (hex), label."""

    name: str
    offset: Annotated[int, Meta(ge=0)]
    size: Annotated[int, Meta(ge=0)]
    digest: str
    label: str | None


class _KeptIndex(Record):
    stamp: list[int]
    members: list[Member]
    left_out: dict[str, int]


def read_index(
    files: Sequence[File], *, cache_dir: str | PathLike[str] | None = None, progress: bool = True
) -> list[tuple[list[Member], Counter[str]]]:
    """Images of each shard in order, and counts of other files, from the cached index if the shard is unchanged.

    The index lies beside its shard as ``NAME.index.json``, else in ``cache_dir``; if neither is writable, it is not
    cached.

    Raises:
        UserError: a shard is damaged, has no image, or a sample has two.
    """
    bar = tqdm(files, desc="index", unit="shard", disable=not progress or len(files) < 2)
    return [_index(file, None if cache_dir is None else Path(cache_dir)) for file in bar]


def _index(file: File, cache_dir: Path | None) -> tuple[list[Member], Counter[str]]:
    stamp = [_VERSION, file.size]
    if not is_remote(file.address):
        stamp.append(Path(file.address).stat().st_mtime_ns)
    places = [] if is_remote(file.address) else [Path(f"{file.address}.index.json")]
    if cache_dir is not None:
        key = hashlib.sha256(file.address.encode()).hexdigest()[:24]
        places.append(make_folder(cache_dir, "cache_dir") / f"{key}.index.json")
    for place in places:
        try:
            kept = read_record(place, _KeptIndex)
            if kept.stamp == stamp:
                return kept.members, Counter(kept.left_out)
        except UserError:
            continue
    members, left_out = scan(file)
    text = json.dumps({"stamp": stamp, "members": [asdict(m) for m in members], "left_out": left_out})
    for place in places:
        try:
            atomic_write_text(place, text)
            break
        except OSError:
            continue
    return members, left_out


def scan(file: File) -> tuple[list[Member], Counter[str]]:
    """Images of a shard and counts of other files, in one pass over its headers.

    Raises as :func:`read_index`.
    """
    left_out = Counter[str]()
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    others: dict[str, str] = {}
    try:
        with file.open() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if ".." in member.name.split("/") or member.name.startswith("/"):
                    raise UserError(f"{file.address} has the member {member.name!r}, which leads out; pack it anew")
                if not member.isfile() or not stem or not is_visible(member.name.removeprefix("./")):
                    continue
                key, suffix = f"{folder}/{stem}", suffix.lower()
                if is_image(base) or (suffix not in _METADATA and starts_like_image(_start(file, member))):
                    if key in images:
                        raise UserError(f"{file.address} has two images for sample {stem!r}; keep one")
                    images[key] = (member.name, member.offset_data, member.size)
                else:
                    others[key] = base
                if suffix in ("cls", "json"):
                    label = _label(suffix, file.read(member.offset_data, member.size))
                    if label is not None:
                        labels[key] = label
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file.address} is a damaged shard ({error}); copy or download it again") from error
    for key, base in others.items():
        if key not in images:
            left_out[f"{base.partition('.')[2].lower() or 'no suffix'} of no picture"] += 1
    if not images:
        raise UserError(f"{file.address} holds no image; name the right shards")
    return [_member(file, key, *place, labels.get(key)) for key, place in images.items()], left_out


def _start(file: File, member: tarfile.TarInfo) -> bytes:
    return file.read(member.offset_data, min(START, member.size))


def _member(file: File, key: str, name: str, offset: int, size: int, label: str | None) -> Member:
    start = middle_of(size)
    try:
        middle = file.read(offset + start, min(MIDDLE, size - start))
    except (OSError, ValueError) as error:
        raise UserError(f"{file.address} is a damaged shard ({name}: {error}); copy or download it again") from error
    return Member(name, offset, size, file_digest(size, middle).hex(), label)


def _label(suffix: str, content: bytes) -> str | None:
    text = content.decode("utf-8").strip()
    if suffix == "cls":
        return text
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"its .{suffix} has too many levels") from error
    label = value.get("label") if isinstance(value, dict) else None
    return None if label is None else str(label)


class ShardStore(ImageStore):
    """Images of tar shards, located by an index built once per shard.

    Args:
        address: tar, folder of tars, ``shard-{000..099}.tar``, glob, or a list of these; paths or URLs.
        cache_dir: folder for indices that cannot lie beside their shard and for full copies of remote shards; None
            reads remote shards by range.
        progress: show a progress bar while indexing.

    Attributes:
        names: ``shard/key.suffix``, in shard order.
        sizes: number of images in each shard.
        classes: from members ``.cls`` (a whole number or name) or ``.json`` ({"label": ...}), or None.

    Raises:
        UserError: there is no shard, one is damaged, or only some samples have a label.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | Sequence[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        addresses = list_files(address, ".tar")
        self._files = [File(name, cache_dir=cache_dir) for name in addresses]
        found = read_index(self._files, cache_dir=cache_dir, progress=progress)
        indices, self.left_out = [members for members, _ in found], sum((other for _, other in found), Counter[str]())
        self.sizes = [len(index) for index in indices]
        self._shard = np.repeat(np.arange(len(indices)), self.sizes)
        members = [member for index in indices for member in index]
        self._places = np.array([(m.offset, m.size) for m in members], np.int64).reshape(-1, 2)
        stems = [name.rsplit("/", 1)[-1] for name in addresses]
        self.names = [f"{stems[s]}/{m.name}" for s, m in zip(self._shard, members, strict=True)]
        self.digests = [bytes.fromhex(m.digest) for m in members]
        self.classes = _classes(members, self.names)

    def title(self, index: int) -> str:
        return f"{self._files[self._shard[index]].address}: {self.names[index].split('/', 1)[1]}"

    def size(self, index: int) -> int:
        return int(self._places[index, 1])

    def read(self, index: int) -> bytes:
        start, count = self._places[index].tolist()
        return self._files[self._shard[index]].read(start, count)

    def digest(self, index: int) -> bytes:
        return self.digests[index]


def is_shards(path: Path) -> bool:
    """Whether a path is a folder of tars, or a tar whose images have companions of the same name."""
    if path.is_dir():
        return any(name.name.endswith(".tar") and name.is_file() for name in path.iterdir())
    if path.suffix.lower() != ".tar" or not is_tar(path):
        return False
    stems: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for member, _ in zip(archive, range(20), strict=False):
            stem, _, suffix = member.name.rpartition(".")
            if stem in stems and (is_image(member.name) or is_image(f"{stem}.{stems[stem]}")):
                return True
            stems[stem] = suffix
    return False


@register("shards")
class Shards(Dataset):
    """Images of tar shards as (channels, H, W), 0 to 255; only fetched bytes are read.

    Training visits a few shards at a time and reads each nearly in order.

    Args:
        data_dir: shards, see :class:`ShardStore`.
        image_size: height and width in pixels; one number for both.
        channels: 3 for colour, 1 for grey, 4 for colour with alpha.
        random_crop: crop the longer side of training images at random, not in the centre.
        background: colour behind transparency.
        held_out: share held out, in [0, 1), chosen by each image's content.
        cache_dir: see :class:`ShardStore`.
        skip_unreadable: skip and list unreadable images; more than 1% are an error.

    Attributes:
        unreadable: unreadable images found so far, with reasons.

    Raises:
        UserError: see :class:`ShardStore`; or an argument is out of range.
    """

    photographs = True
    place: ClassVar[str | None] = "the tar shards or the folder with them"
    remote: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        return Detected(20, "tar shards of images, or a folder of them") if is_shards(path) else None

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | Sequence[str],
        *,
        image_size: Pixels | tuple[Pixels, Pixels] = 64,
        channels: Literal[1, 3, 4] = 3,
        random_crop: bool = False,
        background: str | tuple[int, int, int] = "white",
        held_out: Share = 0.05,
        cache_dir: Path | str | None = None,
        skip_unreadable: bool = True,
    ) -> None:
        decoder = Decoder(image_size=image_size, channels=channels, background=background)
        store = ShardStore(data_dir, cache_dir=cache_dir)
        note_left_out(data_dir, store)
        self.unreadable = Unreadable(len(store)) if skip_unreadable else None
        train, rest = split_by_content(store.digests, held_out)
        classes = store.classes
        values = {} if classes is None else {"label": classes.labels}
        split = ImageSplit(
            store,
            train,
            values,
            decoder,
            random_crop=random_crop,
            unreadable=self.unreadable,
        )
        ends = np.cumsum(store.sizes)
        split.shards = np.diff(np.searchsorted(train, ends), prepend=0).tolist()
        super().__init__(
            name="image-shards",
            spec=DataSpec(
                shape=decoder.shape,
                modality="image",
                conditions={} if classes is None else {"label": category(classes.labels[train], classes.names)},
            ),
            transform=PIXELS,
            train=split,
            held_out=ImageSplit(store, rest, values, decoder, unreadable=self.unreadable),
            fingerprint=files_fingerprint(store, store.digests),
        )


def _classes(members: Sequence[Member], names: Sequence[str]) -> Classes | None:
    """Classes named by their labels: numeric order, or sorted names."""
    labels = [m.label for m in members]
    if all(label is None for label in labels):
        return None
    if None in labels:
        raise UserError(f"{names[labels.index(None)]} has no .cls and no label in a .json, but others have; add it")
    found = {label for label in labels if label is not None}
    numeric = all(label.isascii() and label.lstrip("-").isdecimal() for label in found)
    order = sorted(found, key=lambda label: (int(label), label)) if numeric else sorted(found)
    number = {label: i for i, label in enumerate(order)}
    return Classes(np.array([number[str(label)] for label in labels], np.int64), tuple(order))

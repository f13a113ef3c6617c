"""Where the samples of a tar shard lie: found by one pass over it, and kept in a small file."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from tqdm import tqdm

from advect.core.errors import UserError
from advect.core.files import make_folder, write_text_whole
from advect.data.contents import MIDDLE, file_digest, middle_of
from advect.data.remote import File, is_remote
from advect.data.stores import is_image

_VERSION = 1


@dataclass(frozen=True)
class Member:
    """An image in a shard: its name, where its bytes begin, how many there are, their digest (hex) and its label."""

    name: str
    offset: int
    size: int
    digest: str
    label: str | None


def read_index(
    files: Sequence[File], *, cache_dir: str | PathLike[str] | None = None, progress: bool = True
) -> list[list[Member]]:
    """The images of each shard in their order, from the kept index where the shard has not changed since.

    An index lies beside its shard as ``NAME.index.json``, or in ``cache_dir``; where neither can be written, nowhere.

    Raises:
        UserError: a shard is damaged, has no image, or a sample of it has no image or two.
    """
    bar = tqdm(files, desc="index", unit="shard", disable=not progress or len(files) < 2)
    return [_index(file, None if cache_dir is None else Path(cache_dir)) for file in bar]


def _index(file: File, cache_dir: Path | None) -> list[Member]:
    stamp = [_VERSION, file.size]
    if not is_remote(file.address):
        stamp.append(Path(file.address).stat().st_mtime_ns)
    places = [] if is_remote(file.address) else [Path(f"{file.address}.index.json")]
    if cache_dir is not None:
        key = hashlib.sha256(file.address.encode()).hexdigest()[:24]
        places.append(make_folder(cache_dir, "cache_dir") / f"{key}.index.json")
    for place in places:
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
            if kept["stamp"] == stamp:
                return [Member(**member) for member in kept["members"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    members = scan(file)
    for place in places:
        try:
            write_text_whole(place, json.dumps({"stamp": stamp, "members": [asdict(m) for m in members]}))
            break
        except OSError:
            continue
    return members


def scan(file: File) -> list[Member]:
    """The images of a shard by one pass over its headers. Raises as :func:`read_index` does."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    try:
        with file.open() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            keys = []
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if ".." in member.name.split("/") or member.name.startswith("/"):
                    raise UserError(f"{file.address} has the member {member.name!r}, which leads out; pack it anew")
                if not member.isfile() or not stem:
                    continue
                key = f"{folder}/{stem}"
                keys.append(key)
                if is_image(member.name):
                    if key in images:
                        raise UserError(f"{file.address} has two images for sample {stem!r}; keep one")
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix in ("cls", "json"):
                    label = _label(suffix, file.read(member.offset_data, member.size))
                    if label is not None:
                        labels[key] = label
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file.address} is a damaged shard ({error}); copy or download it again") from error
    for key in keys:
        if key not in images:
            raise UserError(f"{file.address} has no image for sample {key.lstrip('/')!r}; pack the shard again")
    if not images:
        raise UserError(f"{file.address} holds no image; name the right shards")
    return [_member(file, key, *place, labels.get(key)) for key, place in images.items()]


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
    value = json.loads(text)
    label = value.get("label") if isinstance(value, dict) else None
    return None if label is None else str(label)

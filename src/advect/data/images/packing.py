"""Decode and resize images once into a memory-mappable folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from msgspec import Meta
from tqdm import tqdm

from advect.core.bounds import Count, CountOrZero, Pixels
from advect.core.errors import UserError
from advect.core.files import (
    atomic_write,
    atomic_write_text,
    claim_folder,
    explain_disk_errors,
    naming,
    open_regular,
    sync_folder,
)
from advect.core.records import OpenRecord, checked_values, find_object, read_record
from advect.data.images.decoding import Decoder
from advect.data.images.folder import (
    Classes,
    Unreadable,
    content_digests,
    files_fingerprint,
    note_left_out,
    one_line,
    sub_folder_classes,
)
from advect.data.images.stores import ImageStore, open_store

PIXEL_FILE, MANIFEST = "data.u8", "manifest.json"
VERSION = 1
_BLOCK_BYTES = 1 << 24
_PLAN, _JOURNAL = "plan.json", "blocks.sha256"


def pack(
    images: ImageStore | str | os.PathLike[str],
    out_folder: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    background: str | tuple[int, int, int] = "white",
    labels: Literal["auto", "yes", "no"] | Mapping[str, Classes] = "auto",
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Write images to ``out_folder`` as uint8 (N, C, H, W) for :class:`Packed`.

    Pixels, labels, digests and names have their own files; ``manifest.json`` is written last and marks the pack
    complete. Rerunning after a kill resumes behind the last block with a correct sha256 and gives the same bytes. A
    complete pack is left as is. Unreadable images are listed in the manifest and left out.

    Args:
        images: folder or archive, see :func:`~advect.data.images.stores.open_store`, or any store.
        out_folder: folder to write, created if missing.
        image_size: height and width in pixels, as for :class:`~advect.data.images.decoding.Decoder`.
        channels: 3 for colour, 1 for grey, 4 for colour with alpha.
        background: colour behind transparency.
        labels: whether sub-folders are classes, as for ``ImageFolder``; or the classes of each condition.
        workers: decoding threads, >= 1.
        progress: show a progress bar.

    Raises:
        UserError: no image or less than 99% are readable, the disk is full, the folder holds another pack, or a bad
            argument.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}; the number of processor cores is usual")
    decoder = Decoder(image_size=image_size, channels=channels, background=background)
    store = images if isinstance(images, ImageStore) else open_store(images)
    if not len(store):
        raise UserError(f"{images} holds no image to pack; name a folder or an archive with images")
    note_left_out(images, store)
    unreadable = Unreadable(len(store))
    digests = content_digests(store, unreadable)
    classes = labels if isinstance(labels, Mapping) else _folder_classes(store, labels)
    plan = _plan(store, decoder, digests, classes)
    with claim_folder(Path(out_folder), "out_folder") as folder, explain_disk_errors("pack again, it will go on"):
        if not _is_whole(folder, plan):
            _begin(folder, plan)
            side = _write_sides(folder, store, digests, classes)
            blocks = _write_blocks(folder, plan, store, decoder, unreadable, workers=workers, progress=progress)
            lost = [row for block in blocks for row in block.lost]
            if len(lost) == len(store):
                raise UserError(
                    f"no image of {images} can be read, {store.title(0)} among them; repair them or name others"
                )
            manifest = {**plan, "files": side, "blocks": [block.digest for block in blocks], "unreadable": lost}
            atomic_write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
        _tidy(folder)
    return folder


def _plan(store: ImageStore, decoder: Decoder, digests: list[bytes], classes: Mapping[str, Classes]) -> dict:
    """What the manifest says before any pixel is written, which tells one pack from another."""
    return {
        "version": VERSION,
        "shape": [len(store), *decoder.shape],
        "block": max(1, _BLOCK_BYTES // int(np.prod(decoder.shape))),
        "settings": settings_of(decoder),
        "fingerprint": files_fingerprint(store, digests),
        "conditions": {name: list(c.names) for name, c in classes.items()},
    }


def settings_of(decoder: Decoder) -> dict:
    """Settings that determine the pixels, as JSON."""
    return json.loads(json.dumps(asdict(decoder)))


def read_manifest(folder: Path) -> dict | None:
    """Manifest of a complete pack, or None. Raises UserError if it is damaged."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_record(folder / MANIFEST, dict[str, Any], "remove the folder and pack again")
    if manifest.get("version") != VERSION or "settings" not in manifest:
        return None
    return checked_values(manifest, PackRecord, folder / MANIFEST, "remove the folder and pack again")


class PackFile(OpenRecord):
    """Size and sum of a file."""

    bytes: CountOrZero
    sha256: str


class PackRecord(OpenRecord):
    """The manifest of a pack: images of ``shape[1:]``, their classes, sums of its files and of blocks of images."""

    shape: tuple[CountOrZero, Annotated[int, Meta(ge=1, le=4)], Pixels, Pixels]
    block: Count
    settings: dict[str, Any]
    fingerprint: str
    conditions: dict[str, list[str]]
    files: dict[str, PackFile]
    blocks: list[str]
    unreadable: list[CountOrZero]


def is_begun(folder: Path) -> bool:
    """Whether a folder is an unfinished pack."""
    plan = find_object(folder / _PLAN)
    return plan is not None and {"version", "shape", "block", "settings"} <= plan.keys()


def _folder_classes(store: ImageStore, labels: Literal["auto", "yes", "no"]) -> dict[str, Classes]:
    classes = sub_folder_classes(store.names, labels)
    return {} if classes is None else {"label": classes}


def _is_whole(folder: Path, plan: dict) -> bool:
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    if all(manifest.get(key) == value for key, value in plan.items()):
        return True
    raise UserError(
        f"out_folder {folder} holds a pack of other images or sizes, or of these before they changed; "
        "remove it, or name a new folder"
    )


def _tidy(folder: Path) -> None:
    """Remove the files that only an unfinished pack needs."""
    for name in (_PLAN, _JOURNAL):
        (folder / name).unlink(missing_ok=True)


def _begin(folder: Path, plan: dict) -> None:
    """Keep the blocks of an earlier call with the same plan; discard those of another."""
    before = find_object(folder / _PLAN)
    if before != plan:
        if (folder / PIXEL_FILE).exists() and before is None:
            raise UserError(f"out_folder {folder} holds a {PIXEL_FILE} that is no begun pack; name a new folder")
        (folder / _JOURNAL).unlink(missing_ok=True)
        atomic_write_text(folder / _PLAN, json.dumps(plan))


def _write_sides(folder: Path, store: ImageStore, digests: list[bytes], classes: Mapping[str, Classes]) -> dict:
    """Write names, digests (N, 32) and labels (N, conditions); return size and sha256 of each."""
    table = np.stack([c.labels for c in classes.values()], 1) if classes else np.empty((len(store), 0), np.int64)
    contents = {
        "names.json": json.dumps(list(store.names)).encode(),
        "digests.u8": b"".join(digests),
        "labels.i64": table.astype("<i8").tobytes(),
    }
    for name, content in contents.items():
        atomic_write(folder / name, lambda path, content=content: path.write_bytes(content))
    return {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}


class _Block(NamedTuple):
    """Written images: sha256 of their pixels, and rows of unreadable ones, whose pixels are 0."""

    digest: str
    lost: list[int]

    @classmethod
    def parse(cls, line: str) -> _Block:
        digest, *lost = line.split()
        return cls(digest, [int(row) for row in lost])

    def __str__(self) -> str:
        return " ".join([self.digest, *map(str, self.lost)])


def _write_blocks(
    folder: Path,
    plan: dict,
    store: ImageStore,
    decoder: Decoder,
    unreadable: Unreadable,
    *,
    workers: int,
    progress: bool,
) -> list[_Block]:
    """Write missing pixels block by block, syncing each before recording its sha256."""
    (total, *shape), block = plan["shape"], plan["block"]
    size = int(np.prod(shape))
    path, journal = folder / PIXEL_FILE, folder / _JOURNAL
    path.touch()
    done = list(_verified(path, journal, block=block * size, total=total * size))
    atomic_write_text(journal, "".join(f"{written}\n" for written in done))
    for row in (row for written in done for row in written.lost):
        unreadable.add(store.title(row), "as before")
    first = min(len(done) * block, total)
    with (
        naming(path),
        path.open("r+b") as pixels,
        journal.open("a", encoding="ascii") as notes,
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, initial=first, desc="pack", unit="image", disable=not progress) as bar,
    ):
        pixels.truncate(first * size)
        pixels.seek(first * size)
        for start in range(first, total, block):
            rows = range(start, min(start + block, total))
            reasons: dict[int, str] = {}
            content = b"".join(pool.map(lambda row, why=reasons: _decode(store, decoder, row, why), rows))
            for row in sorted(reasons):
                unreadable.add(store.title(row), reasons[row])
            _flush(pixels, content)
            done.append(_Block(hashlib.sha256(content).hexdigest(), sorted(reasons)))
            notes.write(f"{done[-1]}\n")
            notes.flush()
            os.fsync(notes.fileno())
            bar.update(len(rows))
    sync_folder(folder)
    return done


def _flush(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _verified(path: Path, journal: Path, *, block: int, total: int) -> Iterator[_Block]:
    """Leading blocks that match the journal."""
    noted = journal.read_text(encoding="ascii", errors="replace").split("\n")[:-1] if journal.is_file() else []
    with open_regular(path) as file:
        for number, written in enumerate(map(_Block.parse, filter(str.strip, noted))):
            content = file.read(min(block, total - number * block))
            if not content or hashlib.sha256(content).hexdigest() != written.digest:
                return
            yield written


def _decode(store: ImageStore, decoder: Decoder, row: int, reasons: dict[int, str]) -> bytes:
    """Pixels of an image; zeros, with the reason recorded, if unreadable."""
    try:
        return np.ascontiguousarray(decoder(store.read(row))).tobytes()
    except Exception as error:  # a decoder raises whatever a damaged file leads it to
        reasons[row] = one_line(error)
        return bytes(int(np.prod(decoder.shape)))

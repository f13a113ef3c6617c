"""Encoded images in folders, zips and tars, read in place."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import struct
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from advect.core.errors import UserError
from advect.core.files import open_regular, read_file, require_path
from advect.core.memory import check_disk
from advect.data.splits import MIDDLE, file_digest, middle_of

SUFFIXES = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".jp2"),
        *(".j2k", ".jpx", ".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".tga", ".ico", ".pcx", ".sgi"),
        *(".ras", ".psd", ".dds"),
    }
)
"""Image suffixes that Pillow reads; other files are recognised by their first bytes."""

START = 12
"""Bytes that identify an image format."""

_STARTS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"qoif", b"8BPS"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"DDS "),
    *(b"P%d%b" % (kind, space) for kind in range(1, 7) for space in (b"\n", b" ", b"\r", b"\t")),
)
_TEXTS = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".xml", ".html", ".yaml", ".yml", ".cls", ".py", ".npy")
_SNIFFED = 200
"""Maximum number of files without an image suffix opened to detect images."""


class ImageStore(ABC):
    """Encoded images 0 .. len - 1, listed but not loaded. Thread-safe.

    Attributes:
        names: sorted paths with "/" inside the store.
    """

    names: list[str]
    left_out: Mapping[str, int] = {}
    """Counts of non-image files by suffix or kind."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def title(self, index: int) -> str:
        """Name and location of image ``index``, for messages."""

    @abstractmethod
    def size(self, index: int) -> int:
        """Bytes of image ``index``. Raises OSError if it is inaccessible."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Encoded image ``index``. Raises OSError or ValueError if it is unreadable."""

    def start(self, index: int) -> bytes:
        """First :data:`START` bytes of image ``index``. Raises as ``read``."""
        return self.read(index)[:START]

    def digest(self, index: int) -> bytes:
        """Content hash of image ``index``. Raises as ``read``."""
        content = self.read(index)
        start = middle_of(len(content))
        return file_digest(len(content), content[start : start + MIDDLE])


def starts_like_image(start: bytes) -> bool:
    """Whether these first bytes are those of a common image format."""
    if start[:4] == b"RIFF":
        return start[8:12] == b"WEBP"
    if start[:2] == b"BM":
        return start[6:10] == bytes(4)  # reserved, and text has other letters there
    return start.startswith(_STARTS) or start[4:12] in (b"ftypavif", b"ftypavis")


def is_visible(name: str) -> bool:
    """Whether no part of a name with "/" starts with a dot or is macOS's archive folder."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def is_image(name: str) -> bool:
    """Whether a visible name with "/" has an image suffix."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES and is_visible(name)


def pick_images(names: Iterable[str], start: Callable[[str], bytes]) -> tuple[list[str], Counter[str]]:
    """Sorted names of images, by suffix or first bytes ``start(name)``, and counts of other files."""
    found, left_out = [], Counter[str]()
    for name in filter(is_visible, names):
        if is_image(name) or _begins_like_image(name, start):
            found.append(name)
        else:
            left_out[PurePosixPath(name).suffix.lower() or "no suffix"] += 1
    return sorted(found), left_out


def _begins_like_image(name: str, start: Callable[[str], bytes]) -> bool:
    if PurePosixPath(name).suffix.lower() in _TEXTS:
        return False
    try:
        return starts_like_image(start(name))
    except (OSError, ValueError):
        return False


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Counts of non-image files in words; empty if there are none."""
    total = sum(left_out.values())
    kinds = ", ".join(f"{name} {count:,}" for name, count in Counter(left_out).most_common(5))
    return f"{total:,} file{'s are' if total > 1 else ' is'} left out as no picture ({kinds})" if total else ""


def holds_images(path: Path) -> bool:
    """Whether a folder (recursively), zip or tar holds an image; stops at the first."""
    others: list[Path] = []
    if path.is_dir():
        for folder, folders, files in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if any(is_image(name) for name in files if not Path(folder, name).is_dir()):
                return True
            others += [Path(folder, name) for name in files[: _SNIFFED - len(others)]]
        return any(
            is_visible(path.name) and _begins_like_image(path.name, lambda _, p=path: _start(p)) for path in others
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(map(is_image, archive.namelist())) or bool(len(ZipStore(path)))
        if is_tar(path):
            with tarfile.open(path) as archive:
                if any(is_image(member.name.removeprefix("./")) for member in archive):
                    return True
            return bool(len(TarStore(path)))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError):
        return True  # it is an archive, though a damaged one: whoever opens it says so
    return False


class FolderStore(ImageStore):
    """Image files of a folder and its sub-folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names, self.left_out = find_images(root)

    def title(self, index: int) -> str:
        return str(self.root / self.names[index])

    def size(self, index: int) -> int:
        return (self.root / self.names[index]).stat().st_size

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.names[index])

    def start(self, index: int) -> bytes:
        return _start(self.root / self.names[index])

    def digest(self, index: int) -> bytes:
        with open_regular(self.root / self.names[index]) as file:
            size = os.fstat(file.fileno()).st_size
            return file_digest(size, os.pread(file.fileno(), MIDDLE, middle_of(size)))


def _start(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(START)


def find_images(root: Path) -> tuple[list[str], Counter[str]]:
    """Sorted paths, relative to ``root`` with "/", of the images below it, and counts of other files.

    Follows links to folders, once.

    Raises:
        UserError: a folder is unreadable.
    """
    names, seen = [], set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from error

    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names += [Path(folder, name).relative_to(root).as_posix() for name in files]
    return pick_images(names, lambda name: _start(root / name))


_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_MARGIN = 2**29
"""Bytes of the disk that unpacking leaves free."""
_HEADER = 30  # bytes of a zip member's own header, before its name and its extra fields


def open_store(data_dir: str | os.PathLike[str] | None) -> ImageStore:
    """Images of a folder, zip or tar (compressed or not), told by content, not name.

    Raises:
        UserError: ``data_dir`` is none of these, damaged, or cannot be read in place.
    """
    path = require_path(data_dir, holding="the images")
    if path.is_dir():
        return FolderStore(path)
    try:
        if zipfile.is_zipfile(path):
            return ZipStore(path)
        if is_tar(path):
            return TarStore(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{path} is a damaged archive ({error}); copy or download it again") from error
    raise UserError(
        f"data_dir {str(path)!r} is a file, not a folder, and neither a whole zip nor a tar archive;"
        " name a folder or an archive that holds the images"
    )


def is_tar(path: Path) -> bool:
    """Whether a file is a readable tar, compressed or not."""
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False


class ZipStore(ImageStore):
    """Images of a zip archive, stored or deflated, located by offset."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            members = {_inside(m.filename, path): m for m in archive.infolist() if not m.is_dir()}
            self.names, self.left_out = pick_images(members, lambda name: _zip_start(archive, members[name]))
        self._members = [members[name] for name in self.names]
        for member in self._members:
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                how = "encrypted" if member.flag_bits & 1 else "compressed in a way other than deflate"
                raise UserError(f"{path} has {member.filename!r} {how}; unpack it and zip it again without that")
        self._file = open_regular(path)

    def title(self, index: int) -> str:
        return f"{self._path}: {self.names[index]}"

    def size(self, index: int) -> int:
        return self._members[index].file_size

    def read(self, index: int) -> bytes:
        member = self._members[index]
        header = _read_at(self._file, member.header_offset, _HEADER)
        skip = sum(struct.unpack("<HH", header[26:])) if header[:4] == b"PK\3\4" else -1
        if skip < 0:
            raise ValueError("the archive has no member there")
        content = _read_at(self._file, member.header_offset + _HEADER + skip, member.compress_size)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            # Bounded, for a member that unpacks to more than it says; the checksum then finds it out.
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.file_size + 1)
            except zlib.error as error:
                raise ValueError(f"it does not unpack: {error}") from error
        if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
            raise ValueError("its checksum in the archive is another")
        return content


class TarStore(ImageStore):
    """Images of a tar archive, indexed once and read by offset.

    A compressed archive is decompressed once into an anonymous temporary file that lives as long as the store.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _plain(path)
        places: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                name = _inside(member.name, path)
                if member.isfile():
                    places[name] = (member.offset_data, member.size)
                elif member.islnk() or member.issym():
                    folder = "" if member.islnk() else posixpath.dirname(name)
                    links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
        lost = _follow(links, places)
        self.names, self.left_out = pick_images(places, lambda name: self._start(places[name]))
        if lost:
            self.left_out["links to nothing in it"] = lost
        self._places = [places[name] for name in self.names]

    def title(self, index: int) -> str:
        return f"{self._path}: {self.names[index]}"

    def size(self, index: int) -> int:
        return self._places[index][1]

    def read(self, index: int) -> bytes:
        return _read_at(self._file, *self._places[index])

    def start(self, index: int) -> bytes:
        return self._start(self._places[index])

    def _start(self, place: tuple[int, int]) -> bytes:
        return _read_at(self._file, place[0], min(START, place[1]))

    def digest(self, index: int) -> bytes:
        offset, size = self._places[index]
        start = middle_of(size)
        return file_digest(size, _read_at(self._file, offset + start, min(MIDDLE, size - start)))


def _zip_start(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(START)
    except (RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:  # encrypted, or damaged
        raise ValueError(str(error)) from error


def _plain(path: Path) -> IO[bytes]:
    """Archive without its compression."""
    file = open_regular(path)
    start = file.read(6)
    opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
    file.seek(0)
    if opener is None:
        return file
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the store)
    with file, opener(file) as content:
        while block := content.read(1 << 24):
            check_disk(
                f"{path} unpacks to more, which takes", _MARGIN, Path(tempfile.gettempdir()), "unpack it yourself"
            )
            spool.write(block)
    spool.seek(0)
    return spool


def _follow(links: Mapping[str, str], places: dict[str, tuple[int, int]]) -> int:
    """Resolve links, also through later links, to the places of their targets; return the count of dangling ones."""
    lost = 0
    for name, target in links.items():
        seen = {name}
        while target in links and target not in places and target not in seen:
            seen.add(target)
            target = links[target]
        if target in places:
            places[name] = places[target]
        else:
            lost += is_visible(name)
    return lost


def _read_at(file: IO[bytes], offset: int, count: int) -> bytes:
    """Read ``count`` bytes at ``offset`` without moving the file position (safe in threads and forks)."""
    content = os.pread(file.fileno(), count, offset)
    if len(content) < count:
        raise ValueError(f"the archive ends {count - len(content)} bytes too early")
    return content


def _inside(name: str, archive: Path) -> str:
    """Member path without "./". Raises UserError if it leads out of the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive} has the member {name!r}, which leads out of it; do not trust it, or pack it anew")
    return path.as_posix()

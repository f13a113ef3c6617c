"""Images inside zip and tar archives, read in place: nothing is unpacked into a folder."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any

from advect.core.errors import UserError
from advect.data.contents import MIDDLE, file_digest, middle_of
from advect.data.folders import FolderStore, require_path
from advect.data.stores import START, Store, is_image

_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_HEADER = 30  # bytes of a zip member's own header, before its name and its extra fields


def open_store(data_dir: str | os.PathLike[str] | None) -> Store:
    """The images of a folder, a zip, or a tar, compressed or not; the content of a file decides, not its name.

    Raises:
        UserError: there is nothing of the kind at ``data_dir``, or the archive is damaged or cannot be read in place.
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
    """Whether a file is a tar, compressed or not; one that cannot be read is not."""
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False


class ZipStore(Store):
    """The images of a zip archive, stored or deflated, each found by its offset."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            members = {_inside(m.filename, path): m for m in archive.infolist() if not m.is_dir()}
        self.names = sorted(filter(is_image, members))
        self._members = [members[name] for name in self.names]
        for member in self._members:
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                how = "encrypted" if member.flag_bits & 1 else "compressed in a way other than deflate"
                raise UserError(f"{path} has {member.filename!r} {how}; unpack it and zip it again without that")
        self._file = path.open("rb")

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
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.file_size + 1)
        if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
            raise ValueError("its checksum in the archive is another")
        return content


class TarStore(Store):
    """The images of a tar archive, indexed once and then read by offset.

    A compressed archive can only be read from its start, so it is decompressed once, into a temporary file without
    a name that goes with the store: it takes the disk space of the images for as long.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _plain(path)
        places: dict[str, tuple[int, int]] = {}
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                name = _inside(member.name, path)
                if member.isfile():
                    places[name] = (member.offset_data, member.size)
                elif member.islnk() or (member.issym() and is_image(name)):
                    folder = "" if member.islnk() else posixpath.dirname(name)
                    target = posixpath.normpath(posixpath.join(folder, member.linkname))
                    if target not in places:
                        raise UserError(f"{path} has {name!r}, a link to {member.linkname!r}, which is not in it")
                    places[name] = places[target]
        self.names = sorted(filter(is_image, places))
        self._places = [places[name] for name in self.names]

    def title(self, index: int) -> str:
        return f"{self._path}: {self.names[index]}"

    def size(self, index: int) -> int:
        return self._places[index][1]

    def read(self, index: int) -> bytes:
        return _read_at(self._file, *self._places[index])

    def start(self, index: int) -> bytes:
        offset, size = self._places[index]
        return _read_at(self._file, offset, min(START, size))

    def digest(self, index: int) -> bytes:
        offset, size = self._places[index]
        start = middle_of(size)
        return file_digest(size, _read_at(self._file, offset + start, min(MIDDLE, size - start)))


def _plain(path: Path) -> IO[bytes]:
    """The archive without its compression."""
    file = path.open("rb")
    start = file.read(6)
    opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
    file.seek(0)
    if opener is None:
        return file
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the store)
    with file, opener(file) as content:
        shutil.copyfileobj(content, spool, 1 << 20)
    spool.seek(0)
    return spool


def _read_at(file: IO[bytes], offset: int, count: int) -> bytes:
    """``count`` bytes from ``offset``; it moves no position, so that threads and forks do not disturb each other."""
    content = os.pread(file.fileno(), count, offset)
    if len(content) < count:
        raise ValueError(f"the archive ends {count - len(content)} bytes too early")
    return content


def _inside(name: str, archive: Path) -> str:
    """A member's path without "./", which must not lead out of the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive} has the member {name!r}, which leads out of it; do not trust it, or pack it anew")
    return path.as_posix()

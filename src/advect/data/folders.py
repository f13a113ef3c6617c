"""The folder that a user names: checked before anything is read from it, and the images in it and below."""

from __future__ import annotations

import os
from pathlib import Path

from advect.core.errors import UserError
from advect.data.contents import MIDDLE, file_digest, middle_of
from advect.data.stores import START, Store, is_image


def require_folder(data_dir: str | os.PathLike[str] | None, *, holding: str) -> Path:
    """``data_dir`` as a path to an existing folder.

    Args:
        data_dir: what the user gave; "~" is the home folder.
        holding: what the folder should hold, for the message.

    Raises:
        UserError: nothing was given, or it does not exist, or it is not a folder.
    """
    folder = require_path(data_dir, holding=holding)
    if not folder.is_dir():
        raise UserError(f"data_dir {str(data_dir)!r} is a file, not a folder; name the folder that holds {holding}")
    return folder


def require_path(data_dir: str | os.PathLike[str] | None, *, holding: str) -> Path:
    """``data_dir`` as a path that exists, a folder or a file. Raises UserError where nothing is given or there."""
    if data_dir is None or not str(data_dir):
        raise UserError(f"data_dir is not given; name the folder that holds {holding}")
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise UserError(f"data_dir {str(data_dir)!r} does not exist; name the folder that holds {holding}")
    return path


class FolderStore(Store):
    """The image files of a folder and its sub-folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.names = root, find_images(root)

    def title(self, index: int) -> str:
        return str(self.root / self.names[index])

    def size(self, index: int) -> int:
        return (self.root / self.names[index]).stat().st_size

    def read(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()

    def start(self, index: int) -> bytes:
        with (self.root / self.names[index]).open("rb", buffering=0) as file:
            return file.read(START)

    def digest(self, index: int) -> bytes:
        with (self.root / self.names[index]).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return file_digest(size, os.pread(file.fileno(), MIDDLE, middle_of(size)))


def find_images(root: Path) -> list[str]:
    """Sorted paths, relative to ``root`` and with "/", of the images below it. Links to folders are followed, once.

    Raises:
        UserError: a folder cannot be read.
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
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if is_image(name)]
    return sorted(names)

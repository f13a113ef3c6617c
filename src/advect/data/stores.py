"""Where encoded images lie: a numbered list of names, each with its bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import PurePosixPath

from advect.data.contents import MIDDLE, file_digest, middle_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

START = 12
"""How many bytes tell the format of an image."""

_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"BM")


class Store(ABC):
    """Encoded images 0 .. len - 1. They are listed and not loaded; several threads may read at once.

    Attributes:
        names: their paths with "/" inside the store, sorted.
    """

    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def title(self, index: int) -> str:
        """What a message calls image ``index``: its name and where to find it."""

    @abstractmethod
    def size(self, index: int) -> int:
        """The bytes of image ``index``. Raises OSError where it cannot be looked at."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image ``index``. Raises OSError or ValueError where it cannot be read."""

    def start(self, index: int) -> bytes:
        """The first :data:`START` bytes of image ``index``. Raises as ``read`` does."""
        return self.read(index)[:START]

    def digest(self, index: int) -> bytes:
        """What image ``index`` is known by, see :func:`~advect.data.contents.file_digest`. Raises as ``read`` does."""
        content = self.read(index)
        start = middle_of(len(content))
        return file_digest(len(content), content[start : start + MIDDLE])


def starts_like_image(start: bytes) -> bool:
    """Whether a file with these first bytes is a PNG, JPEG, WebP or BMP, whole or not."""
    return start.startswith(_STARTS)


def is_image(name: str) -> bool:
    """Whether a name with "/" ends like an image's; names that start with a dot, and all below them, do not count."""
    return name.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in PurePosixPath(name).parts)

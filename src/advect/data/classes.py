"""What the folders around images say: their classes, and which are for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from advect.core.errors import UserError

TRAIN = frozenset({"train", "training"})
MEASURE = frozenset({"test", "testing", "val", "valid", "validation"})


@dataclass(frozen=True)
class Classes:
    """The class of every image, labels (N,) int64, and the classes' names, sorted."""

    labels: np.ndarray
    names: tuple[str, ...]


def official_split(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """The indices below a folder "train" and those below "test" or "val", or None where the images lie otherwise."""
    tops = [parts[0].lower() if len(parts) > 1 else "" for parts in _below_the_common(names)]
    if not (set(tops) & TRAIN and set(tops) & MEASURE and set(tops) <= TRAIN | MEASURE):
        return None
    train = np.array([top in TRAIN for top in tops])
    return np.flatnonzero(train), np.flatnonzero(~train)


def sub_folder_classes(names: Sequence[str], wanted: bool | Literal["auto"]) -> Classes | None:
    """The classes that the first differing folder of each path names, below "train" and "test" where there are such.

    Args:
        names: paths with "/".
        wanted: False for none; True where there must be some; "auto" for whatever is there.

    Raises:
        UserError: classes are wanted but some images lie in no sub-folder, or all in one.
    """
    if wanted not in (True, False, "auto"):
        raise UserError(f"labels must be True, False or 'auto', got {wanted!r}")
    if wanted is False:
        return None
    paths = _below_the_common(names)
    if official_split(names):
        paths = [parts[1:] for parts in paths]
    loose = [name for name, parts in zip(names, paths, strict=True) if len(parts) < 2]
    found = sorted({parts[0] for parts in paths if len(parts) > 1})
    if loose or len(found) < 2:
        if wanted == "auto":
            return None
        why = f"{loose[0]} lies in none" if loose else "all images lie in one"
        raise UserError(f"labels=True needs a sub-folder for each class, but {why}; sort them or give labels=False")
    number = {name: i for i, name in enumerate(found)}
    return Classes(np.array([number[parts[0]] for parts in paths], np.int64), tuple(found))


def _below_the_common(names: Sequence[str]) -> list[list[str]]:
    """The parts of each path without the folders that all share: archives often wrap everything in one folder."""
    paths = [name.split("/") for name in names]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == paths[0][shared] for parts in paths):
        shared += 1
    return [parts[shared:] for parts in paths]

"""All presets by name, the default first."""

from __future__ import annotations

from advect.core.errors import UserError, did_you_mean
from advect.runs.config import Preset
from advect.runs.presets import (
    arrays,
    celeba64,
    cells,
    cifar10,
    digits,
    fashion_mnist,
    images,
    moons,
    sequences,
    table,
)

_FILES = (digits, moons, fashion_mnist, cifar10, celeba64, images, cells, table, sequences, arrays)
PRESETS: dict[str, Preset] = {file.PRESET.name: file.PRESET for file in _FILES}
DEFAULT = "digits"


def get_preset(name: str) -> Preset:
    """Return the preset called ``name``; UserError with the nearest name when there is none."""
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is not known{did_you_mean(name, PRESETS)}")
    return PRESETS[name]

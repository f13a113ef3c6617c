"""All presets by name, the default first."""

from __future__ import annotations

from advect.core.errors import UserError, did_you_mean
from advect.runs.config import Preset
from advect.runs.presets import celeba64, digits, fashion_mnist, moons

PRESETS: dict[str, Preset] = {p.PRESET.name: p.PRESET for p in (digits, moons, fashion_mnist, celeba64)}
DEFAULT = "digits"


def get_preset(name: str) -> Preset:
    """Return the preset called ``name``; UserError with the nearest name when there is none."""
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is not known{did_you_mean(name, PRESETS)}")
    return PRESETS[name]

"""All presets by name, the default first."""

from __future__ import annotations

from advect.config.config import Preset
from advect.config.presets import arrays, images
from advect.core.errors import UserError, did_you_mean

_PRESETS = (
    images.DIGITS,
    arrays.MOONS,
    images.FASHION_MNIST,
    images.CIFAR10,
    images.CELEBA64,
    images.IMAGES,
    arrays.CELLS,
    arrays.TABLE,
    arrays.SEQUENCES,
    arrays.ARRAYS,
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _PRESETS}
DEFAULT = "digits"


def get_preset(name: str) -> Preset:
    """Preset ``name``. Raises UserError with the nearest name if unknown."""
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is not known{did_you_mean(name, PRESETS)}")
    return PRESETS[name]

"""Named starting points."""

from advect.config.presets.catalog import DEFAULT as DEFAULT
from advect.config.presets.catalog import PRESETS as PRESETS
from advect.config.presets.catalog import get_preset as get_preset

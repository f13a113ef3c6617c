"""Named starting points."""

from advect.runs.presets.catalog import DEFAULT as DEFAULT
from advect.runs.presets.catalog import PRESETS as PRESETS
from advect.runs.presets.catalog import get_preset as get_preset

"""advect presets: list the presets."""

from __future__ import annotations

import logging

from advect.config.flags import asks_help
from advect.config.presets import PRESETS
from advect.core.errors import UserError

logger = logging.getLogger(__name__)


def run(words: list[str]) -> None:
    """Run ``advect presets``. Raises UserError for any argument."""
    if words and not asks_help(words):
        raise UserError(f"advect presets takes no arguments, got {words[0]!r}")
    for preset in PRESETS.values():
        logger.info(f"{preset.name:<15} {preset.about}")
    logger.info("")
    logger.info("advect train PRESET --dry-run   prints its whole configuration")

"""advect presets: list the presets."""

from __future__ import annotations

from advect.commands.base import say
from advect.config.presets import PRESETS
from advect.core.errors import UserError


def run(words: list[str]) -> None:
    """Run ``advect presets``. Raises UserError for any argument."""
    if words and words[0] not in ("-h", "--help"):
        raise UserError(f"advect presets takes no arguments, got {words[0]!r}")
    for preset in PRESETS.values():
        say(f"{preset.name:<15} {preset.about}")
    say("\nadvect train PRESET --dry-run   prints its whole configuration")

"""The ground of a section of the configuration: it checks its values as it is made."""

from __future__ import annotations

from advect.core.errors import UserError


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class Checked:
    """Checks a section's values as it is made, so that a bad one is refused before anything is written."""

    _at_least: tuple[tuple[str, float], ...] = ()
    _above: tuple[tuple[str, float], ...] = ()
    _below_one: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low in self._at_least:
            value = getattr(self, name)
            if value is not None and not all(v >= low for v in (value if isinstance(value, tuple) else (value,))):
                raise UserError(f"{_flag(name)} must be at least {low}, got {value}")
        for name, low in self._above:
            value = getattr(self, name)
            if value is not None and not value > low:
                raise UserError(f"{_flag(name)} must be greater than {low}, got {value}")
        for name in self._below_one:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_flag(name)} must be at least 0 and below 1, got {getattr(self, name)}")

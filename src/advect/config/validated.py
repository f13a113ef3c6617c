"""The ground of a section of the configuration: it checks its values as it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advect.core.errors import UserError


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _each(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


class ValidatedConfig:
    """Checks a section's values as it is made, so that a bad one is refused before anything is written."""

    _at_least: tuple[tuple[str, float], ...] = ()
    _above: tuple[tuple[str, float], ...] = ()
    _below_one: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low in self._at_least:
            value = getattr(self, name)
            if value is not None and not all(v >= low for v in _each(value)):
                raise UserError(f"{_flag(name)} must be at least {low}, got {value}")
        for name, low in self._above:
            value = getattr(self, name)
            if value is not None and not all(v > low for v in _each(value)):
                raise UserError(f"{_flag(name)} must be greater than {low}, got {value}")
        for name in self._below_one:
            value = getattr(self, name)
            if value is not None and not all(0 <= v < 1 for v in _each(value)):
                raise UserError(f"{_flag(name)} must be at least 0 and below 1, got {value}")


class InFolder(ValidatedConfig):
    """A section with a ``data_dir``, which is kept as an absolute path, so that a run works from any folder."""

    data_dir: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is not None:
            object.__setattr__(self, "data_dir", self.data_dir.expanduser().absolute())


class AtAddress(ValidatedConfig):
    """A section whose ``data_dir`` may be a URL, a pattern or a name as well: a path is kept as an absolute one."""

    data_dir: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is not None and "://" not in self.data_dir and "::" not in self.data_dir:
            path = Path(self.data_dir).expanduser().absolute()
            if path.exists() or path.suffix in (".tar", ".parquet", ".pq"):
                object.__setattr__(self, "data_dir", str(path))

"""``config.yaml``: configuration to flags and back, through the command line's parser."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from advect.config.config import Config
from advect.config.section import plain
from advect.core.errors import UserError


def to_dict(config: Config) -> dict[str, dict[str, object]]:
    """Configuration as sections of plain values."""
    sections = {f.name: getattr(config, f.name).values() for f in fields(config)}
    return {key: {name: plain(value) for name, value in values.items()} for key, values in sections.items()}


def to_yaml(config: Config, preset: str) -> str:
    """Text of ``config.yaml``: the preset, and every value."""
    return yaml.safe_dump({"preset": preset, **to_dict(config)}, sort_keys=False)


def read_flags(path: Path) -> tuple[str, list[str]]:
    """Read a ``config.yaml``: name of the preset, and flags for all values."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}); give a run's config.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict) or not isinstance(values.get("preset"), str):
        raise UserError(f"--config {path} does not name its preset; its first line should be like 'preset: digits'")
    flags: list[str] = []
    for name, section in values.items():
        if name == "preset":
            continue
        if not isinstance(section, dict):
            raise UserError(f"--config {path}: {name} should be a section of names and values, got {section!r}")
        for key, value in section.items():
            flags += _flags(str(key), value)
    return values["preset"], flags


def _flags(key: str, value: object) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]

"""Preset and flags for the data at a path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from advect.config.build import layout_of
from advect.config.config import Preset
from advect.config.presets import get_preset
from advect.core import registry
from advect.core.errors import UserError
from advect.data.autodetect import FORMAT, autodetect
from advect.data.base import Dataset, Detected, Preview

_STEPS = 3000


class DetectedData(NamedTuple):
    """Preset, flags and a one-line description of some data."""

    preset: str
    flags: list[str]
    words: str


def describe(path: str | Path, preset: str | None = None, data_format: str | None = None) -> DetectedData:
    """Describe a path, read as ``data_format`` and for ``preset`` if given.

    Raises UserError for a missing path, unknown data, and a preset or format that does not fit.
    """
    found = autodetect(path)
    if data_format is not None:
        found = [pair for pair in found if registry.name_of(pair[0]) == data_format]
        if not found:
            raise UserError(f"--data {path} cannot be read as --data-format {data_format}; leave that out")
    cls, seen = found[0]
    own = get_preset(preset or cls.usual_preset or usual_preset(seen.modality))
    if preset is not None:
        fitting = [pair for pair in found if fits(own, *pair)]
        if not fitting:
            brings = "brings its own data" if not own.takes else f"does not train on {seen.words}"
            raise UserError(f"preset {preset} {brings}, so --data {path} does not go with it; leave PRESET out")
        cls, seen = fitting[0]
    first = _preview(cls, path)
    flags = ["--data-dir", str(path), "--data-format", registry.name_of(cls), *_flags(first, own)]
    return DetectedData(own.name, flags, first.words or seen.words)


def fits(preset: Preset, cls: type[Dataset], seen: Detected) -> bool:
    """Whether a preset trains on a format, and its network on that layout."""
    takes: str = preset.config.network.part("network").takes  # pyright: ignore[reportAttributeAccessIssue]
    return bool(preset.takes) and trains_on(preset, registry.name_of(cls)) and takes == layout_of(seen.modality)


def usual_preset(modality: str) -> str:
    """The preset for data of a modality."""
    return registry.get("modality", modality).usual_preset  # pyright: ignore[reportAttributeAccessIssue]


def trains_on(preset: Preset, data_format: str) -> bool:
    """Whether a preset takes a format: its own, one it names, or one that names it."""
    if data_format in (preset.config.data.data_format, *preset.takes):
        return True
    known = data_format in registry.choices(FORMAT)
    return bool(preset.takes) and known and registry.get(FORMAT, data_format).usual_preset == preset.name


def format_for(preset: Preset, path: str) -> str | None:
    """Format as which the preset reads a path; None if it takes only one, or the path fits none."""
    if len(preset.takes) < 2:
        return None
    try:
        return next((registry.name_of(cls) for cls, seen in autodetect(path) if fits(preset, cls, seen)), None)
    except UserError:
        return None


def image_size(data_format: str, path: Path) -> tuple[int, int] | None:
    """Height and width of images that cannot be resized; None for others and unreadable files."""
    try:
        return registry.get(FORMAT, data_format).image_size(path)
    except (OSError, EOFError, ValueError, KeyError, UserError, StopIteration):
        return None


def _preview(cls: type[Dataset], path: str | Path) -> Preview:
    place = Path(path).expanduser()
    try:
        return cls.preview(place) if place.exists() else Preview()
    except (ImportError, OSError, EOFError, KeyError, ValueError):  # whoever opens the data says what is wrong
        return Preview()


def _flags(first: Preview, preset: Preset) -> list[str]:
    """Flags that the data need; fewer epochs for many samples, about 3,000 steps."""
    options: dict[str, Any] = dict(first.options)
    if preset.fit is None:
        options.pop("image_size", None)
    training = preset.config.training
    if first.samples is not None:
        epochs = max(1, round(_STEPS * training.batch_size / max(first.samples, 1)))
        options |= {"num_epochs": epochs} if epochs < training.num_epochs else {}
    return words_of(options)


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Plain values as command-line words."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]

"""The source, the network and the preset that go with data, as ``advect train`` would take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advect.core.errors import UserError
from advect.data import Source
from advect.runs.arguments import parse_train
from advect.runs.build import build_source
from advect.runs.config import Config
from advect.runs.data_config import CellsData, TableData
from advect.runs.data_formats import format_of


@dataclass(frozen=True)
class Opened:
    """Data that were found.

    Attributes:
        format: its name; empty for a preset's own.
        path: the file or folder; None where the data lie in none.
        preset: the preset that trains on it.
        settings: its configuration for these data.
        chosen: whether the batch size was asked for, so that it is judged and not chosen.
    """

    format: str
    path: Path | None
    preset: str
    settings: Config
    chosen: bool

    @property
    def layer(self) -> str | None:
        """The layer of an ``.h5ad`` file that is trained on; None for its X."""
        return self.settings.data.layer if isinstance(self.settings.data, CellsData) else None

    def build(self, without: Sequence[str] = ()) -> Source:
        """Open the data, without some columns where they are a table. Raises UserError where they cannot be used."""
        data = self.settings.data
        if isinstance(data, TableData):
            asked = {*data.drop, *data.conditions, *data.continuous_conditions, *data.categorical}
            data = replace(data, drop=(*data.drop, *(name for name in without if name not in asked)))
        return build_source(data)


def open_data(words: Sequence[str]) -> Opened:
    """The data that words after ``advect train`` name: a preset, ``--data PATH``, flags. Raises UserError."""
    name, arguments = parse_train(list(words))
    data = arguments.settings.data
    place = getattr(data, "data_dir", None)
    if hasattr(data, "data_dir") and place is None:
        raise UserError(f"preset {name} reads its data from a folder; add --data-dir FOLDER")
    path = Path(place).expanduser() if place is not None else None
    if isinstance(place, Path) and not place.expanduser().exists():
        raise UserError(f"--data-dir {place} does not exist; name the folder or file of the data")
    own = not words[0].startswith("-")
    chosen = own or any(word.partition("=")[0].replace("_", "-") == "--batch-size" for word in words)
    return Opened(format_of(data) or "", path, name, arguments.settings, chosen)

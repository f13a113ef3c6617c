"""What a path holds, and the source, the network and the preset that go with it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advect.core.errors import UserError
from advect.core.types import DataSpec
from advect.data import (
    IMAGE_FORMATS,
    ArrayFile,
    CelebA,
    Cells,
    Cifar,
    Format,
    HubImages,
    ImageFolder,
    Mnist,
    Sequences,
    Source,
    Table,
    recognise,
)
from advect.data.table_files import CSV, PARQUET
from advect.runs.config import Config
from advect.runs.network_config import NetworkConfig, ResidualMLPConfig, SequenceTransformerConfig
from advect.runs.presets import get_preset

DEFAULT_BATCH = 128


@dataclass(frozen=True)
class Opened:
    """Data that were found.

    Attributes:
        format: its name.
        path: the file or folder; None for a preset's own.
        build: makes the source, without the columns of a table that it is given; it raises UserError.
        settings: the configuration of a preset, where one was named.
    """

    format: str
    path: Path | None
    build: Callable[[Sequence[str]], Source]
    settings: Config | None = None

    def network(self, spec: DataSpec) -> tuple[NetworkConfig, str, int]:
        """The network for data of this shape, the preset that has it, and its batch size."""
        if self.settings is not None:
            return self.settings.network, "", self.settings.training.batch_size
        if spec.kind == "vector":
            return ResidualMLPConfig(width=256), "", 256
        if spec.kind == "sequence":
            return SequenceTransformerConfig(), "", DEFAULT_BATCH
        side = max(spec.shape[1:])
        name = "digits" if side <= 16 else "fashion-mnist" if side <= 32 else "celeba64"
        preset = get_preset(name).config
        return preset.network, name, preset.training.batch_size


def _is_sequences(path: Path) -> bool:
    """An array of three axes that are not bytes, or an archive with ``values``."""
    try:
        if path.suffix.lower() == ".npz" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return "values.npy" in archive.namelist()
        if path.suffix.lower() == ".npy":
            x = np.load(path, mmap_mode="r", allow_pickle=False)
            return x.ndim == 3 and x.dtype != np.uint8
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False
    return False


_OTHERS = (
    Format("cells", lambda path: path.suffix.lower() == ".h5ad", "an .h5ad file of cells"),
    Format("sequences", _is_sequences, "a .npy or .npz file of sequences (N, L, C)"),
)
_TABLE = Format(
    "table", lambda path: path.is_file() and path.name.lower().endswith(CSV + PARQUET), "a CSV or Parquet table"
)

_SOURCES: dict[str, Callable[..., Source]] = {
    "celeba": CelebA,
    "cifar": Cifar,
    "mnist": Mnist,
    "array-file": ArrayFile,
    "hub-images": HubImages,
    "image-folder": ImageFolder,
    "cells": Cells,
    "sequences": Sequences,
    "table": Table,
}
_SKIPPING = ("image-folder",)


def open_data(path: Path) -> Opened:
    """Recognise what a path holds. Raises UserError where it does not exist or holds no data that is known."""
    found = recognise(path, (*_OTHERS, *IMAGE_FORMATS, _TABLE))
    place = path.expanduser()

    def build(without: Sequence[str]) -> Source:
        if found.name == "table":
            return Table(place, drop=tuple(without))
        if found.name in _SKIPPING:
            return _SOURCES[found.name](place, skip_unreadable=True)
        return _SOURCES[found.name](place)

    return Opened(found.name, place, build)


def open_preset(words: Sequence[str]) -> Opened:
    """The data of a preset, with the flags of ``advect train`` after its name. Raises UserError for mistakes."""
    from advect.runs.arguments import parse_train
    from advect.runs.build import build_source

    name, arguments = parse_train(list(words))
    place = getattr(arguments.settings.data, "data_dir", None)
    if hasattr(arguments.settings.data, "data_dir") and place is None:
        raise UserError(f"preset {name} reads its data from a folder; add --data-dir FOLDER")
    if place is not None and not place.exists():
        raise UserError(f"--data-dir {place} does not exist; name the folder or file of the data")
    return Opened(name, place, lambda _: build_source(arguments.settings.data), arguments.settings)

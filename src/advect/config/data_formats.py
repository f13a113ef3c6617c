"""The data that can be read, by name, and the source that reads each."""

from __future__ import annotations

from typing import Any

from advect.config.data_sections import (
    ArrayFileData,
    CellsData,
    DataConfig,
    DigitsData,
    MoonsData,
    SequencesData,
    TableData,
)
from advect.config.image_sections import (
    CelebAData,
    CifarData,
    FashionMnistData,
    HubImagesData,
    ImageFolderData,
    MnistData,
    PackedData,
    ParquetImagesData,
    ShardsData,
)
from advect.core import registry
from advect.core.errors import UserError
from advect.data.base import Dataset


def build_dataset(config: DataConfig) -> Dataset:
    """Open the data. Raises UserError for data that are missing, empty or damaged, or do not fit their flags."""
    source = registry.get("data-format", _NAMES[type(config)])
    options: dict[str, Any] = config.values()
    if source.place is None:
        return source.open(**options)
    place = options.pop("data_dir")
    if place is None:
        raise UserError(f"--data-dir is not given; name {source.place}")
    try:
        return source.open(place, **options)
    except UserError as error:
        words = str(error)
        for name in options:
            words = words.replace(f"{source.__name__}.{name}", "--" + name.replace("_", "-"))
        raise UserError(words) from error


FORMATS: dict[str, type[DataConfig]] = {
    "celeba": CelebAData,
    "cifar": CifarData,
    "mnist": MnistData,
    "fashion-mnist": FashionMnistData,
    "packed": PackedData,
    "hub-images": HubImagesData,
    "parquet-images": ParquetImagesData,
    "shards": ShardsData,
    "image-folder": ImageFolderData,
    "array-file": ArrayFileData,
    "cells": CellsData,
    "table": TableData,
    "sequences": SequencesData,
}
"""The sections for data of one's own, by the name that ``--data-format`` has."""


def format_of(config: DataConfig) -> str | None:
    """The name in FORMATS of a section; None where a preset's data are its own."""
    return next((name for name, cls in FORMATS.items() if type(config) is cls), None)


_NAMES = {DigitsData: "digits", MoonsData: "moons", **{section: name for name, section in FORMATS.items()}}

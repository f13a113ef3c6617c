"""The data that can be read, by name, and the source that reads each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
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
from advect.core.errors import UserError
from advect.data import (
    ArrayFile,
    CelebA,
    Cells,
    Cifar,
    Dataset,
    Digits,
    FashionMnist,
    HubImages,
    ImageFolder,
    Mnist,
    Moons,
    Packed,
    ParquetImages,
    Sequences,
    Shards,
    Table,
    matching_pack,
)
from advect.data.images.decoding import Decoder
from advect.data.sequences.files import is_table

logger = logging.getLogger(__name__)

_SOURCES: dict[type[DataConfig], tuple[Callable[..., Dataset], str]] = {
    DigitsData: (Digits, ""),
    MoonsData: (Moons, ""),
    FashionMnistData: (FashionMnist, "the folder with the four IDX files of Fashion-MNIST"),
    MnistData: (Mnist, "the folder with the four IDX files of the set"),
    CifarData: (Cifar, "the folder with the files of CIFAR-10 or CIFAR-100"),
    CelebAData: (CelebA, "the folder with img_align_celeba and list_eval_partition.txt"),
    ImageFolderData: (ImageFolder, "the folder or archive with images"),
    PackedData: (Packed, "the folder that advect data pack wrote"),
    HubImagesData: (HubImages, "a dataset of the hub, or the folder of one"),
    ShardsData: (Shards, "the tar shards or the folder with them"),
    ParquetImagesData: (ParquetImages, "the Parquet files or the folder with them"),
    ArrayFileData: (ArrayFile, "the .npy, .npz or Parquet file"),
    CellsData: (Cells, "the .h5ad file"),
    TableData: (Table, "the CSV or Parquet file"),
    SequencesData: (Sequences, "the file of sequences"),
}
"""For each section the source, and what its ``data_dir`` names."""

_ARGUMENTS = {
    "horizontal_flip": "flip",
    "image_column": "image",
    "label_column": "label",
    "vector_column": "column",
    "id_column": "id",
    "order_column": "order",
    "value_columns": "values",
}
"""Flags that say more than the name of the source's argument does."""

_ANSWERS = {"yes": True, "no": False}


def build_dataset(config: DataConfig) -> Dataset:
    """Open the data. Raises UserError for data that are missing, empty or damaged, or do not fit their flags.

    Images of a folder or archive come from their pack where ``advect data pack`` made one that matches.
    """
    source, names = _SOURCES[type(config)]
    options: dict[str, Any] = {_ARGUMENTS.get(name, name): value for name, value in config.values().items()}
    if isinstance(options.get("labels"), str):
        options["labels"] = _ANSWERS.get(options["labels"], "auto")
    if "data_dir" not in options:
        return source(**options)
    place = options.pop("data_dir")
    if place is None:
        raise UserError(f"--data-dir is not given; name {names}")
    match config:
        case ImageFolderData():
            pack = _pack_of(config)
            if pack is not None:
                logger.info(f"reading the images packed in {pack}")
                return Packed(pack, flip=config.horizontal_flip, held_out=config.held_out)
        case HubImagesData():
            options["image_column"] = options.pop("image")
        case SequencesData() if is_table(place) and config.id_column is None:
            raise UserError(f"--id-column is not given; name the column of {place} that tells sequences apart")
    return source(place, **options)


def _pack_of(config: ImageFolderData) -> Path | None:
    """The pack that holds exactly what this section asks for."""
    place = config.data_dir
    if place is None or not place.exists() or config.random_crop or config.labels != "auto":
        return None
    decoder = Decoder(
        image_size=config.image_size, channels=config.channels, background=config.background, window=config.crop
    )
    return matching_pack(place, decoder)


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

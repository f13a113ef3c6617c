"""Images of a Hugging Face dataset: from the hub, Parquet files, or saved on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from advect.core.bounds import Pixels, Share
from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.files import check_regular, read_file
from advect.core.registry import register
from advect.core.types import NULL, Category, DataSpec
from advect.data.base import Dataset, Detected, category
from advect.data.images.decoding import Decoder
from advect.data.images.folder import PIXELS, ImageSplit, Unreadable, content_digests, one_line
from advect.data.images.stores import ImageStore
from advect.data.parquet_columns import parquet_fields
from advect.data.splits import fingerprint_of, split_by_content

_HELD_OUT = ("test", "validation", "valid", "val")


@register("hub-images")
class HubImages(Dataset):
    """Dataset of the Hugging Face hub, or one like it on disk, as images (channels, H, W), see :class:`Decoder`.

    Args:
        name: hub name such as "uoft-cs/cifar10", a ``.parquet`` file, a folder of them, or a ``save_to_disk`` folder.
        configuration: configuration of a hub dataset.
        image_size: height and width in pixels; one number for both.
        channels: 3 for colour, 1 for grey, 4 for colour with alpha.
        crop: side in pixels of a central square to cut before scaling; None takes all.
        background: colour behind transparency: a name, "#rrggbb", or three numbers 0 to 255.
        image_column: None is the first column of images.
        conditions: columns of classes, booleans, whole numbers or words, under their own names. None is the first
            column of named classes, if any, as ``label``.
        held_out: share of the split "train" held out, in [0, 1), as for :class:`ImageFolder`. None is the dataset's
            "test" or "validation" if present, else 0.05.
        skip_unreadable: skip and list unreadable images; more than 1% are an error.

    Attributes:
        unreadable: unreadable images found so far, with reasons.

    Raises:
        UserError: ``datasets`` is not installed, the dataset cannot be opened, or a column is missing.
    """

    photographs = True
    place: ClassVar[str | None] = "a dataset of the hub, or the folder of one"
    remote: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        there = (path.is_dir() and is_saved_dataset(path)) or (
            find_spec("datasets") is not None
            and any(
                {child.name for child in field.flatten()} == {f"{field.name}.bytes", f"{field.name}.path"}
                for field in parquet_fields(path)
            )
        )
        return Detected(30, "a Hugging Face dataset of images, saved or in Parquet") if there else None

    def __init__(
        self,
        name: str | os.PathLike[str],
        *,
        configuration: str | None = None,
        image_size: Pixels | tuple[Pixels, Pixels] = 64,
        channels: Literal[1, 3, 4] = 3,
        crop: Pixels | None = None,
        background: str | tuple[int, int, int] = "white",
        image_column: str | None = None,
        conditions: Sequence[str] | None = None,
        held_out: Share | None = None,
        skip_unreadable: bool = True,
    ) -> None:
        decoder = Decoder(image_size=image_size, channels=channels, background=background, window=crop)
        title, splits = str(name), _open(str(name), configuration)
        own = next((part for part in _HELD_OUT if part in splits), None) if held_out is None else None
        parts = ["train" if "train" in splits else next(iter(splits)), *([] if own is None else [own])]
        if own == parts[0]:
            parts, own = parts[:1], None
        tables = [splits[part] for part in parts]
        image = _image_column(title, tables[0].features, image_column)
        columns = _condition_columns(title, tables[0].features, conditions)
        store = HubStore(title, dict(zip(parts, tables, strict=True)), image)
        self.unreadable = Unreadable(len(store)) if skip_unreadable else None
        digests, count = content_digests(store, self.unreadable), len(tables[0])
        if own is None:
            train, rest = split_by_content(digests, 0.05 if held_out is None else held_out)
        else:
            train, rest = np.arange(count), np.arange(count, len(store))
        found = {name: _classes(title, column, tables) for name, column in columns.items()}
        labels = {name: numbers for name, (numbers, _) in found.items()}
        names = {name: values for name, (_, values) in found.items()}
        specs = {
            name: _category(numbers[train], names[name], numbered=_is_numbered(tables[0].features[columns[name]]))
            for name, numbers in labels.items()
        }
        super().__init__(
            name=Path(title).name,
            spec=DataSpec(shape=decoder.shape, modality="image", conditions=dict(specs)),
            transform=PIXELS,
            train=ImageSplit(store, train, labels, decoder, unreadable=self.unreadable),
            held_out=ImageSplit(store, rest, labels, decoder, unreadable=self.unreadable),
            fingerprint=fingerprint_of(digests, repr((count, names)), labels),
        )


class HubStore(ImageStore):
    """Images of one column, split after split, memory-mapped by Arrow."""

    def __init__(self, title: str, splits: dict[str, Any], column: str) -> None:
        datasets = optional_import("datasets", "images")
        plain = datasets.Image(decode=False)
        self._title, self._column = title, column
        self._tables = [table.select_columns([column]).cast_column(column, plain) for table in splits.values()]
        self._starts = np.cumsum([0, *(len(table) for table in self._tables)])
        self.names = [f"{part}/{row}" for part, table in splits.items() for row in range(len(table))]

    def title(self, index: int) -> str:
        part, row = self.names[index].rsplit("/", 1)
        return f"{self._title}: row {row} of {part!r}"

    def size(self, index: int) -> int:
        return len(self.read(index))

    def read(self, index: int) -> bytes:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        image = self._tables[part][int(index - self._starts[part])][self._column]
        if image is None:
            raise ValueError("the image is missing")
        if image["bytes"] is None and not image["path"]:
            raise ValueError("the image is missing")
        return image["bytes"] if image["bytes"] is not None else read_file(image["path"])


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def _open(name: str, configuration: str | None) -> dict[str, Any]:
    """Splits of a dataset by name."""
    datasets = optional_import("datasets", "images")
    path = Path(name).expanduser()
    for file in path.rglob("*") if path.is_dir() else [path] if path.exists() else []:
        if file.suffix in (".arrow", ".json", ".parquet", ".pq"):  # Arrow would wait for a pipe for ever
            check_regular(file, "path")
    try:
        if is_saved_dataset(path):
            found = datasets.load_from_disk(str(path))
        elif path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path))
        elif path.is_dir():
            found = datasets.load_dataset("parquet", data_dir=str(path))
        else:
            found = datasets.load_dataset(name, configuration)
        splits = dict(found) if isinstance(found, dict) else {"train": found}
        for table in splits.values():  # offsets beyond the file, which Arrow believes, end the process
            table.data.validate(full=True)
    except Exception as error:  # of the hub, of the network, of Arrow
        raise UserError(
            f"{name} cannot be opened as a dataset ({one_line(error)}); give a hub name, or a path that exists"
        ) from error
    if not any(len(table) for table in splits.values()):
        raise UserError(f"{name} has no rows; give a dataset that has some")
    return splits


def _image_column(title: str, features: Any, wanted: str | None) -> str:
    """Name of the column of encoded images, stored as bytes or paths."""
    datasets = optional_import("datasets", "images")
    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
    ]
    if wanted is None:
        if not images:
            raise UserError(f"{title} has no column of images among {', '.join(features)}; name another dataset")
        return images[0]
    if wanted not in features:
        raise UserError(f"{title} has no column {wanted!r}{did_you_mean(wanted, images or features)}")
    if wanted not in images:
        raise UserError(f"the column {wanted!r} of {title} holds no images{did_you_mean(wanted, images)}")
    return wanted


def _condition_columns(title: str, features: Any, wanted: Sequence[str] | None) -> dict[str, str]:
    """Source column of each condition."""
    datasets = optional_import("datasets", "images")
    if wanted is None:
        classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        return {"label": classes[0]} if classes else {}
    for name in wanted:
        if name not in features:
            raise UserError(f"{title} has no column {name!r}{did_you_mean(name, features)}")
    return {name: name for name in wanted}


def _classes(title: str, column: str, tables: list[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class codes (N,) of all rows, NULL if missing, and class names."""
    feature = tables[0].features[column]
    values = [value for table in tables for value in table[column]]
    names = getattr(feature, "names", None)
    if names is not None:
        numbers = np.array([NULL if value is None else value for value in values], np.int64)
        return np.where(numbers < 0, NULL, numbers), tuple(names)
    found = {value for value in values if value is not None}
    if not found or not all(isinstance(value, (bool, int, str)) for value in found):
        raise UserError(f"the column {column!r} of {title} holds neither classes, numbers nor words; name another")
    if found <= {True, False}:
        return np.array([NULL if v is None else int(v) for v in values], np.int64), ("no", "yes")
    order = {value: i for i, value in enumerate(sorted(found))}
    return np.array([NULL if v is None else order[v] for v in values], np.int64), tuple(map(str, order))


def _is_numbered(feature: Any) -> bool:
    """Whether a column holds numbers or booleans with separate names."""
    return hasattr(feature, "names") or getattr(feature, "dtype", "") == "bool"


def _category(labels: np.ndarray, names: tuple[str, ...], *, numbered: bool) -> Category:
    """Category with the frequencies of the rows that have a class."""
    return category(labels[labels != NULL], names, range(len(names)) if numbered else ())

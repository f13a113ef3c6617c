"""What data a path holds, and which preset and flags train on it."""

from __future__ import annotations

import gzip
import io
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from advect.config.config import Preset
from advect.config.presets import get_preset
from advect.core.errors import UserError
from advect.data import FORMATS, Format, recognise_all
from advect.data.autodetect import array_shape, image_columns, vector_columns
from advect.data.images.folder import sub_folder_classes
from advect.data.images.idx import find_parts
from advect.data.images.packing import read_manifest
from advect.data.images.stores import open_store
from advect.data.remote import is_remote
from advect.data.sequences.files import step_columns
from advect.data.tables.dataset import row_count

_LOOKED_AT = 64
_STEPS = 3000
_LARGEST = 64

_GENES, _COMPONENTS = 2000, 50
"""What cells are usually cut down to, see docs/experiments/cells.md; ``--pca None`` takes the genes themselves."""

_USUAL = {"celeba": "celeba64", "cifar": "cifar10", "cells": "cells", "table": "table", "sequences": "sequences"}


class DetectedData(NamedTuple):
    """The preset for some data, the flags that it needs for them, and one line of words about what they are."""

    preset: str
    flags: list[str]
    words: str


def describe(path: str | Path, preset: str | None = None, data_format: str | None = None) -> DetectedData:
    """What a path holds, read as ``data_format`` and for ``preset`` where those are named.

    Raises UserError for a path that is not there or holds nothing known, and a preset or format that does not fit.
    """
    formats = _formats(str(path))
    if data_format is not None:
        formats = [f for f in formats if f.name == data_format]
        if not formats:
            raise UserError(f"--data {path} cannot be read as --data-format {data_format}; leave that out")
    if preset is None:
        chosen = formats[0]
        own = get_preset(_USUAL.get(chosen.name, "images" if chosen.kind == "image" else "arrays"))
    else:
        own = get_preset(preset)
        fitting = [f for f in formats if fits(own, f)]
        if not fitting:
            brings = "brings its own data" if not own.takes else f"does not train on {formats[0].words}"
            raise UserError(f"preset {preset} {brings}, so --data {path} does not go with it; leave PRESET out")
        chosen = fitting[0]
    flags = ["--data-dir", str(path), "--data-format", chosen.name, *_flags(chosen.name, path, own)]
    return DetectedData(own.name, flags, _words(chosen, path))


def fits(preset: Preset, data: Format) -> bool:
    """Whether a preset trains on data of a format: on its name, and with its network on its kind."""
    takes: str = preset.config.network.part("network").takes  # pyright: ignore[reportAttributeAccessIssue]
    return data.name in preset.takes and takes == data.kind


def format_for(preset: Preset, path: str) -> str | None:
    """The format that the preset reads a path as; None where it takes but one, or the path holds none of them.

    Whoever opens the data then says what is wrong.
    """
    if len(preset.takes) < 2:
        return None
    try:
        return next((f.name for f in _formats(path) if fits(preset, f)), None)
    except UserError:
        return None


def image_size(data_format: str, path: Path) -> tuple[int, int] | None:
    """Height and width of images that cannot be resized; None of others, and where the file does not tell."""
    try:
        match data_format:
            case "cifar":
                return 32, 32
            case "packed":
                height, width = (read_manifest(path) or {})["shape"][2:]
                return height, width
            case "mnist" | "fashion-mnist":
                name = next(path.glob(f"{find_parts(path)[0]}train-images-idx3-ubyte*"))
                with name.open("rb") as file:
                    zipped = file.read(2) == b"\x1f\x8b"
                with (gzip.open if zipped else open)(name, "rb") as file:
                    height, width = np.frombuffer(file.read(16), ">u4")[2:].tolist()
                return height, width
            case "array-file":
                _, shape, _ = array_shape(path) or ("", (), None)
                if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4):
                    return shape[2], shape[3]
                return (shape[1], shape[2]) if len(shape) > 2 else None
    except (OSError, EOFError, ValueError, KeyError, UserError, StopIteration):
        return None
    return None


def _formats(path: str) -> list[Format]:
    """The formats that a path, a pattern or a URL can be read as."""
    if Path(path).expanduser().exists() or not (is_remote(path) or set(path) & set("{*?[")):
        return recognise_all(path, FORMATS)
    name = "parquet-images" if path.rstrip("/").endswith((".parquet", ".pq")) else "shards"
    return [next(f for f in FORMATS if f.name == name)]


def _flags(data_format: str, path: str | Path, preset: Preset) -> list[str]:
    """What the data need besides, so far as their first look tells."""
    place = Path(path).expanduser()
    match data_format:
        case "image-folder" if preset.fit is not None:
            return ["--image-size", str(_usual_size(place))]
        case "parquet-images" if place.exists():
            return ["--image-column", image_columns(place)[0]]
        case "table" if epochs := _fewer_epochs(place, preset):
            return ["--num-epochs", str(epochs)]
        case "sequences":
            columns = step_columns(place) if array_shape(place) is None else None  # else the person names them
            return [] if columns is None else ["--id-column", columns[0], "--order-column", columns[1]]
        case "cells":
            return _cells_flags(place)
    return []


def _cells_flags(place: Path) -> list[str]:
    """Variable genes, and components of them, where there are many cells and genes."""
    try:
        cells, genes = _cell_counts(place)
    except (ImportError, OSError, KeyError, ValueError):  # whoever opens the data says what is wrong
        return []
    chosen = ["--highly-variable", str(_GENES)] if genes > _GENES else []
    return chosen + (["--pca", str(_COMPONENTS)] if min(cells, genes) >= 10 * _COMPONENTS else [])


def _fewer_epochs(path: Path, preset: Preset) -> int:
    """As many epochs of a table as make about ``_STEPS`` steps, where the preset's make more; else 0."""
    try:
        rows = row_count(path)
    except (ImportError, OSError, EOFError, ValueError):  # whoever opens the table says what is wrong
        return 0
    training = preset.config.training
    epochs = max(1, round(_STEPS * training.batch_size / max(rows, 1)))
    return epochs if epochs < training.num_epochs else 0


def _usual_size(path: Path) -> int:
    """A side in pixels: that of the median image, a multiple of 4 and at most 64."""
    store, sides = open_store(path), []
    for index in np.linspace(0, len(store) - 1, min(_LOOKED_AT, len(store))).astype(int).tolist():
        try:
            with Image.open(io.BytesIO(store.read(index))) as image:
                sides.append(min(image.size))
        except Exception:  # whatever a damaged file leads Pillow to; training names it
            continue
    return max(4, min(_LARGEST, int(statistics.median(sides)) // 4 * 4)) if sides else _LARGEST


def _words(data: Format, path: str | Path) -> str:
    """What the data are, with their number where that is quickly told."""
    place = Path(path).expanduser()
    try:
        return _COUNTED[data.name](place) if data.name in _COUNTED and place.exists() else data.words
    except (ImportError, OSError, KeyError, ValueError):  # whoever opens the data says what is wrong
        return data.words


def _images(path: Path) -> str:
    store = open_store(path)
    classes = sub_folder_classes(store.names, "auto")
    within = "" if classes is None else f" in {len(classes.names)} classes"
    return f"{'a folder' if path.is_dir() else 'an archive'} of {len(store):,} image{'s' * (len(store) != 1)}{within}"


def _packed(path: Path) -> str:
    count, *shape = (read_manifest(path) or {})["shape"]
    return f"a pack of {count:,} images {tuple(shape)}"


def _array(path: Path) -> str:
    if columns := vector_columns(path):
        return f"a Parquet file with vectors in its column {' or '.join(map(repr, columns))}"
    _, shape, _ = array_shape(path) or ("", (0,), None)
    kind = {2: "vectors", 3: "images", 4: "images"}.get(len(shape), "samples")
    return f"an array of {shape[0]:,} {kind} {tuple(shape[1:])}"


def _sequences(path: Path) -> str:
    found = array_shape(path)
    if found is None:
        return "a table of one row a step"
    return f"an array of {found[1][0]:,} sequences" if len(found[1]) == 3 else "an archive of sequences"


def _cell_counts(path: Path) -> tuple[int, int]:
    """How many cells and genes an .h5ad file holds."""
    import h5py

    with h5py.File(path) as file:
        counts: list[int] = []
        for name in ("obs", "var"):
            group: Any = file[name]
            counts.append(len(group[group.attrs["_index"]]))
    return counts[0], counts[1]


def _cells(path: Path) -> str:
    cells, genes = _cell_counts(path)
    return f"an .h5ad file of {cells:,} cells and {genes:,} genes"


_COUNTED: dict[str, Callable[[Path], str]] = {
    "image-folder": _images,
    "packed": _packed,
    "array-file": _array,
    "sequences": _sequences,
    "cells": _cells,
    "celeba": lambda path: "CelebA in its official layout",
    "cifar": lambda path: "CIFAR in upstream's files",
    "mnist": lambda path: "a set in MNIST's four IDX files",
    "fashion-mnist": lambda path: "Fashion-MNIST in its four IDX files",
    "table": lambda path: "a table of one row a sample",
}

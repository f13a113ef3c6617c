"""Images in Parquet files of the Hugging Face layout, read by row group."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Literal

import numpy as np

from advect.core.bounds import Pixels, Share
from advect.core.errors import UserError, did_you_mean, optional_import
from advect.core.registry import register
from advect.core.types import DataSpec
from advect.data.base import Dataset, Detected, Preview, category
from advect.data.images.decoding import Decoder
from advect.data.images.folder import (
    PIXELS,
    Classes,
    ImageSplit,
    Unreadable,
    files_fingerprint,
    note_left_out,
    one_line,
)
from advect.data.images.stores import ImageStore
from advect.data.parquet_columns import image_columns
from advect.data.remote import File, list_files
from advect.data.splits import split_by_content

_KEPT = 10  # row groups in memory: those that training mixes, and the next ones


class ParquetStore(ImageStore):
    """Encoded images of a column of Parquet files; the last few row groups stay in memory.

    Args:
        address: file, folder, ``part-{000..099}.parquet``, glob, or a list of these; paths or URLs.
        image: column of images: bytes, or a struct with the field ``bytes``.
        label: column of classes, whole numbers or text; None for none.
        cache_dir: folder for full copies of remote files.

    Attributes:
        names: ``file:row``.
        sizes: number of images in each row group.
        classes: classes of the label column, or None.

    Raises:
        UserError: there is no file, one is damaged, or a column is missing.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | Sequence[str],
        *,
        image: str = "image",
        label: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._image, self._lock = image, Lock()
        self._kept: OrderedDict[int, list[bytes]] = OrderedDict()
        self._groups: list[tuple[Any, str, int]] = []
        self.names, self.sizes, self.digests, labels = [], [], [], []
        for name in list_files(address, ".parquet"):
            table = _open(name, [image] if label is None else [image, label], cache_dir)
            row, stem = 0, name.rsplit("/", 1)[-1]
            for group in range(table.num_row_groups):
                self._groups.append((table, name, group))
                content = self._decode(len(self._groups) - 1)
                self.sizes.append(len(content))
                self.digests += [hashlib.sha256(one).digest() for one in content]
                self.names += [f"{stem}:{row + i}" for i in range(len(content))]
                row += len(content)
                if label is not None:
                    labels += table.read_row_group(group, columns=[label]).column(0).to_pylist()
        self._starts = np.cumsum(self.sizes) - self.sizes
        self.classes = None if label is None else _classes(labels, self.names, label)

    def title(self, index: int) -> str:
        return f"{self._groups[self._place(index)[0]][1]}: row {self.names[index].rsplit(':', 1)[1]}"

    def size(self, index: int) -> int:
        return len(self.read(index))

    def read(self, index: int) -> bytes:
        group, row = self._place(index)
        with self._lock:
            if group not in self._kept:
                self._kept[group] = self._decode(group)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            content = self._kept[group][row]
        if not content:
            raise ValueError("the image is missing")
        return content

    def digest(self, index: int) -> bytes:
        return self.digests[index]

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def _decode(self, group: int) -> list[bytes]:
        """Images of a row group; empty bytes for a row without one."""
        table, name, number = self._groups[group]
        try:
            column = table.read_row_group(number, columns=[self._image]).column(self._image).to_pylist()
        except Exception as error:  # pyarrow raises whatever a damaged page leads it to
            raise UserError(f"{name} is a damaged Parquet file ({one_line(error)}); copy it again") from error
        rows = [row.get("bytes") if isinstance(row, dict) else row for row in column]
        if not all(isinstance(row, bytes | None) for row in rows):
            raise UserError(f"column {self._image!r} of {name} holds no image bytes; name the column that does")
        return [row or b"" for row in rows]


@register("parquet-images")
class ParquetImages(Dataset):
    """Images of Parquet files as (channels, H, W), 0 to 255. Training visits a few row groups at a time.

    Args:
        data_dir: files, see :class:`ParquetStore`.
        image_column: column of images.
        label_column: column of classes; None for none.
        image_size: height and width in pixels; one number for both.
        channels: 3 for colour, 1 for grey, 4 for colour with alpha.
        random_crop: crop the longer side of training images at random, not in the centre.
        background: colour behind transparency.
        held_out: share held out, in [0, 1), chosen by each image's content.
        cache_dir: folder for full copies of remote files.
        skip_unreadable: skip and list unreadable images; more than 1% are an error.

    Attributes:
        unreadable: unreadable images found so far, with reasons.

    Raises:
        UserError: see :class:`ParquetStore`; or an argument is out of range.
    """

    photographs = True
    place: ClassVar[str | None] = "the Parquet files or the folder with them"
    remote: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        return Detected(25, "Parquet files with a column of images") if image_columns(path) else None

    @classmethod
    def preview(cls, path: Path) -> Preview:
        return Preview(options={"image_column": image_columns(path)[0]})

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | Sequence[str],
        *,
        image_column: str = "image",
        label_column: str | None = None,
        image_size: Pixels | tuple[Pixels, Pixels] = 64,
        channels: Literal[1, 3, 4] = 3,
        random_crop: bool = False,
        background: str | tuple[int, int, int] = "white",
        held_out: Share = 0.05,
        cache_dir: Path | str | None = None,
        skip_unreadable: bool = True,
    ) -> None:
        decoder = Decoder(image_size=image_size, channels=channels, background=background)
        store = ParquetStore(data_dir, image=image_column, label=label_column, cache_dir=cache_dir)
        note_left_out(data_dir, store)
        self.unreadable = Unreadable(len(store)) if skip_unreadable else None
        train, rest = split_by_content(store.digests, held_out)
        classes = store.classes
        values = {} if classes is None else {"label": classes.labels}
        split = ImageSplit(
            store,
            train,
            values,
            decoder,
            random_crop=random_crop,
            unreadable=self.unreadable,
        )
        split.shards = np.diff(np.searchsorted(train, np.cumsum(store.sizes)), prepend=0).tolist()
        super().__init__(
            name="image-parquet",
            spec=DataSpec(
                shape=decoder.shape,
                modality="image",
                conditions={} if classes is None else {"label": category(classes.labels[train], classes.names)},
            ),
            transform=PIXELS,
            train=split,
            held_out=ImageSplit(store, rest, values, decoder, unreadable=self.unreadable),
            fingerprint=files_fingerprint(store, store.digests),
        )


def _open(name: str, columns: Sequence[str], cache_dir: str | os.PathLike[str] | None) -> Any:
    parquet = optional_import("pyarrow.parquet", "tables")
    try:
        # What it reads ahead it would keep: the last row group of every file, so in the end the whole store.
        table = parquet.ParquetFile(File(name, cache_dir=cache_dir).open(), pre_buffer=False)
    except UserError:
        raise
    except Exception as error:  # as in _decode
        raise UserError(f"{name} is a damaged Parquet file ({one_line(error)}); copy it again") from error
    there = table.schema_arrow.names
    for column in columns:
        if column not in there:
            raise UserError(f"{name} has no column {column!r}{did_you_mean(column, there)}")
    return table


def _classes(labels: Sequence[Any], names: Sequence[str], column: str) -> Classes:
    if None in labels:
        raise UserError(f"{names[labels.index(None)]} has nothing in column {column!r}; fill it, or give no label")
    order = sorted(set(labels))
    number = {label: i for i, label in enumerate(order)}
    return Classes(np.array([number[label] for label in labels], np.int64), tuple(map(str, order)))

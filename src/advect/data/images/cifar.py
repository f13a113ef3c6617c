"""CIFAR-10 and CIFAR-100 in upstream's binary or Python layout."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from advect.core.errors import UserError
from advect.core.files import read_file, require_folder
from advect.core.registry import register
from advect.core.types import DataSpec
from advect.data.base import ArraySplit, Dataset, Detected, Rows, category, fingerprint
from advect.data.images.folder import PIXELS


class _RefusedError(Exception):
    """The pickle needs more than plain data."""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Python 3's encoding of bytes in older pickle protocols."""
    if encoding != "latin1":
        raise _RefusedError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


# NumPy's own names for what builds an array differ between its versions, and between them and those in the file.
_RECONSTRUCT, _FROM_BUFFER = np.zeros(1).__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ADMITTED[module_name, global_name]
        except KeyError:
            raise _RefusedError(f"it asks for {module_name}.{global_name}") from None


def read_plain_pickle(path: Path) -> Any:
    """Load a pickle of numbers, text, bytes, lists, tuples, dicts and NumPy arrays only.

    Python 2 text is read as Latin-1. Functions other than array constructors are refused before they are called.

    Raises:
        UserError: the file is unreadable, no pickle, or needs anything else.
    """
    try:
        return _PlainUnpickler(io.BytesIO(read_file(path)), encoding="latin1").load()
    except _RefusedError as error:
        raise UserError(
            f"{path} is not a pickle of plain arrays and was refused ({error}); do not trust it, download it again"
        ) from error
    except Exception as error:  # damaged bytes lead the unpickler to nearly any
        raise UserError(f"{path} cannot be read as a pickle ({error}); download it again") from error


_PIXELS = 3 * 32 * 32


class _Layout(NamedTuple):
    """Files of one layout, and its labels: names of the binary label bytes or of the pickle keys."""

    kind: str
    train: tuple[str, ...]
    test: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    folder: str


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_COARSE_FINE = ("superclass", "label")
LAYOUTS = (
    _Layout(
        "binary 10", tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", ("batches.meta.txt",), ("label",),
        "cifar-10-batches-bin",
    ),
    _Layout("python 10", _BATCHES, "test_batch", ("batches.meta",), ("label",), "cifar-10-batches-py"),
    _Layout(
        "binary 100", ("train.bin",), "test.bin", ("coarse_label_names.txt", "fine_label_names.txt"), _COARSE_FINE,
        "cifar-100-binary",
    ),
    _Layout("python 100", ("train",), "test", ("meta",), _COARSE_FINE, "cifar-100-python"),
)  # fmt: skip
_KEYS = {"label": ("labels", "fine_labels"), "superclass": ("coarse_labels",)}
_NAME_KEYS = {"label": ("label_names", "fine_label_names"), "superclass": ("coarse_label_names",)}


@register("cifar")
class Cifar(Dataset):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images (3, 32, 32), 0 to 255.

    The test batch is held out. Pickles are read by :func:`~advect.data.images.cifar.read_plain_pickle`, which runs no
    code from them.

    Args:
        data_dir: folder with upstream's files, such as ``data_batch_1.bin``, or its parent.
        labels: whether to add the condition ``label``, one of 10 or 100 classes.
        superclasses: whether to add CIFAR-100's 20 coarse classes as the condition ``superclass``.

    Raises:
        UserError: a file is missing or damaged, or CIFAR-10 is asked for superclasses.
    """

    photographs = True
    place: ClassVar[str | None] = "the folder with the files of CIFAR-10 or CIFAR-100"
    usual_preset: ClassVar[str | None] = "cifar10"

    @classmethod
    def recognises(cls, path: Path) -> Detected | None:
        return Detected(90, "CIFAR-10 or CIFAR-100 in upstream's files") if find_layout(path) else None

    @classmethod
    def image_size(cls, path: Path) -> tuple[int, int] | None:
        return 32, 32

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        labels: bool = True,
        superclasses: bool = False,
    ) -> None:
        folder = require_folder(data_dir, holding="the files of CIFAR-10 or CIFAR-100, such as data_batch_1.bin")
        found = find_layout(folder)
        if found is None:
            raise UserError(
                f"{folder} holds no CIFAR: neither data_batch_1(.bin) and test_batch(.bin) nor train(.bin) and"
                " test(.bin); download it there"
            )
        folder, layout = found
        if superclasses and "superclass" not in layout.labels:
            raise UserError(f"superclasses are CIFAR-100's, and {folder} is CIFAR-10; leave it out")
        wanted = [name for name, on in (("label", labels), ("superclass", superclasses)) if on]
        names = {name: _names(folder, layout, name) for name in wanted}
        train = _join([_read(folder / name, layout, names) for name in layout.train])
        test = _read(folder / layout.test, layout, names)
        conditions = {name: category(train.labels[name], names[name], range(len(names[name]))) for name in wanted}
        super().__init__(
            name="cifar10" if layout.labels == ("label",) else "cifar100",
            spec=DataSpec(shape=(3, 32, 32), modality="image", conditions=dict(conditions)),
            transform=PIXELS,
            train=ArraySplit(train.x, train.labels, PIXELS),
            held_out=ArraySplit(test.x, test.labels, PIXELS),
            fingerprint=fingerprint(train, test, names),
        )


def find_layout(folder: Path) -> tuple[Path, _Layout] | None:
    """Folder (this one or upstream's inside it) and layout of a CIFAR; None if absent."""
    for layout in LAYOUTS:
        for place in (folder, folder / layout.folder):
            # "train" and "test" may be anything: the names of the classes beside them tell.
            needed = (layout.train[0], layout.test, *(layout.names if layout.kind.endswith("100") else ()))
            if all((place / name).is_file() for name in needed):
                return place, layout
    return None


def _join(parts: list[Rows]) -> Rows:
    labels = {name: np.concatenate([part.labels[name] for part in parts]) for name in parts[0].labels}
    return Rows(np.concatenate([part.x for part in parts]), labels)


def _read(path: Path, layout: _Layout, names: dict[str, tuple[str, ...]]) -> Rows:
    """Images (N, 3, 32, 32) uint8 and the wanted labels of one file."""
    if not path.is_file():
        raise UserError(f"{path} is missing; download all files of the set into one folder")
    rows = _read_binary(path, layout) if layout.kind.startswith("binary") else _read_pickle(path, layout)
    for name, values in names.items():
        labels = rows.labels[name]
        if len(labels) != len(rows.x) or not len(labels):
            raise UserError(f"{path} has {len(rows.x)} images but {len(labels)} labels; download it again")
        if labels.min() < 0 or labels.max() >= len(values):
            raise UserError(f"{path} has labels from {labels.min()} to {labels.max()}, not 0 to {len(values) - 1};"
                            " check that it is the right file")  # fmt: skip
    return Rows(rows.x, {name: rows.labels[name] for name in names})


def _read_binary(path: Path, layout: _Layout) -> Rows:
    """Read records of one byte per label, then 3,072 bytes in red, green and blue planes."""
    width = len(layout.labels) + _PIXELS
    content = np.frombuffer(read_file(path), np.uint8)
    if not len(content) or len(content) % width:
        raise UserError(f"{path} has {len(content)} bytes, not images of {width} bytes each; download it again")
    table = content.reshape(-1, width)
    labels = {name: table[:, i].astype(np.int64) for i, name in enumerate(layout.labels)}
    return Rows(np.ascontiguousarray(table[:, len(layout.labels) :]).reshape(-1, 3, 32, 32), labels)


def _read_pickle(path: Path, layout: _Layout) -> Rows:
    """Read a dict with ``data`` (N, 3072) uint8 and lists of labels."""
    batch = read_plain_pickle(path)
    x = _entry(path, batch, ("data",))
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != _PIXELS:
        raise UserError(f"{path} holds no (N, {_PIXELS}) bytes of images under 'data'; download it again")
    labels = {name: np.asarray(_entry(path, batch, _KEYS[name])) for name in layout.labels}
    for name, values in labels.items():
        if values.dtype.kind not in "iu" or values.ndim != 1:
            raise UserError(f"{path} holds no whole numbers as {_KEYS[name][0]!r}; download it again")
    return Rows(x.reshape(-1, 3, 32, 32), {name: values.astype(np.int64) for name, values in labels.items()})


def _entry(path: Path, batch: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if isinstance(batch, dict) and key in batch:
            return batch[key]
    raise UserError(f"{path} has no entry {' or '.join(map(repr, keys))}, so it is no CIFAR file; download it again")


def _names(folder: Path, layout: _Layout, label: str) -> tuple[str, ...]:
    """Class names from upstream's list; numbers if that file is missing."""
    path = folder / layout.names[layout.labels.index(label) if len(layout.names) > 1 else 0]
    if not path.is_file():
        counts = {"label": 10 if layout.labels == ("label",) else 100, "superclass": 20}
        return tuple(str(i) for i in range(counts[label]))
    if layout.kind.startswith("binary"):
        return tuple(read_file(path).decode().split())
    names = _entry(path, read_plain_pickle(path), _NAME_KEYS[label])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} holds no list of names; download it again")
    return tuple(names)

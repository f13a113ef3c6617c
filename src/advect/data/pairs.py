"""Stored pairs of a flow's start and end, and the data set that trains on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from advect.core.files import regular, sync_file
from advect.core.random import Generator
from advect.core.types import AUGMENTATION, Batch, Conditions
from advect.data.base import Dataset, Split

ImageStore = Literal["float32", "bf16", "uint8"]
"""Storage type of x1: unchanged; bfloat16 (8 significant bits, finer than grey levels); 256 grey levels of [-1, 1],
with clamping.
"""

X0, X1, COND = "x0.npy", "x1.npy", "cond."

Starts = Callable[[np.ndarray, Conditions], Tensor]
"""``starts(places (B,), cond (B,))`` recomputes the x0 (B, *S) of pairs whose x0 is not stored."""


def write_pairs(
    folder: Path, x1: Tensor, cond: Conditions, *, x0: Tensor | None = None, store: ImageStore
) -> list[Path]:
    """Write pairs in model units (n, *S) and conditions (n, ...) to a folder; return the files."""
    arrays = {X1: pack(x1, store), **{f"{COND}{name}.npy": value.numpy() for name, value in cond.items()}}
    if x0 is not None:
        arrays[X0] = x0.float().numpy()
    for name, array in arrays.items():
        np.save(folder / name, array, allow_pickle=False)
        sync_file(folder / name)
    return [folder / name for name in arrays]


def pack(x: Tensor, store: ImageStore) -> np.ndarray:
    """Storage array of x (n, *S) in model units; bf16 as int16 bits, since NumPy has no bfloat16."""
    match store:
        case "float32":
            return x.float().numpy()
        case "bf16":
            return x.to(torch.bfloat16).view(torch.int16).numpy()
        case "uint8":
            return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def unpack(array: np.ndarray, store: ImageStore) -> Tensor:
    """float32 tensor (n, *S) from :func:`pack`'s array."""
    x = torch.from_numpy(array)
    if store == "bf16":
        return x.view(torch.bfloat16).float()
    return x / 127.5 - 1 if store == "uint8" else x


class Pairs:
    """Pairs in ``folders``, concatenated; from index ``generated`` on x0 is stored too."""

    def __init__(self, folders: Sequence[Path], generated: int, starts: Starts, store: ImageStore) -> None:
        self._generated, self._starts = generated, starts
        self._store: ImageStore = store
        self._x1 = [np.load(regular(folder / X1), mmap_mode="r", allow_pickle=False) for folder in folders]
        self._first = np.cumsum([0, *map(len, self._x1)])
        names = sorted(path.name for path in folders[0].glob(f"{COND}*.npy"))
        self._cond = {
            name[len(COND) : -len(".npy")]: np.concatenate(
                [np.load(regular(f / name), allow_pickle=False) for f in folders]
            )
            for name in names
        }
        self._x0 = {
            k: np.load(folder / X0, mmap_mode="r", allow_pickle=False)
            for k, folder in enumerate(folders)
            if (folder / X0).is_file()
        }

    def __len__(self) -> int:
        return int(self._first[-1])

    def at(self, places: np.ndarray) -> Batch:
        """Pairs at ``places`` (B,) int64."""
        part = np.searchsorted(self._first, places, side="right") - 1
        x1 = np.empty((len(places), *self._x1[0].shape[1:]), self._x1[0].dtype)
        stored = np.empty(x1.shape if self._x0 else (0,), np.float32)
        for k in np.unique(part):
            here = part == k
            inside = places[here] - self._first[k]
            x1[here] = self._x1[k][inside]
            if k in self._x0:
                stored[here] = self._x0[k][inside]
        cond = {name: torch.from_numpy(values[places]) for name, values in self._cond.items()}
        made = places < self._generated
        x0 = self._starts(np.where(made, places, 0), cond)
        if not made.all():
            x0 = torch.where(torch.from_numpy(made).view(-1, *[1] * (x0.ndim - 1)), x0, torch.from_numpy(stored))
        return Batch(unpack(x1, self._store), cond or None, x0)


class PairSplit(Split):
    """Pairs first .. last - 1, none of which is augmented: what tells so has ``augmentation`` numbers."""

    def __init__(self, pairs: Pairs, first: int, last: int, augmentation: int = 0) -> None:
        self._pairs, self._first, self._last, self._augmentation = pairs, first, last, augmentation

    def __len__(self) -> int:
        return self._last - self._first

    def fetch(self, indices: np.ndarray, rng: Generator = None) -> Batch:
        batch = self._pairs.at(np.asarray(indices) + self._first)
        if not self._augmentation:
            return batch
        # Not left out, as DDP waits for the gradients of what embeds it.
        unchanged = torch.full((len(batch), self._augmentation), math.nan)
        return replace(batch, cond={**(batch.cond or {}), AUGMENTATION: unchanged})


class PairedDataset(Dataset):
    """Generated pairs for a data set, whose spec, transform, metadata and fingerprint they keep.

    The first twentieth of the generated pairs, at most 2,048, is held out.
    """

    def __init__(self, data: Dataset, pairs: Pairs, generated: int) -> None:
        kept = min(2048, generated // 20)
        super().__init__(
            name=f"pairs for {data.name}",
            spec=data.spec,
            transform=data.transform,
            train=PairSplit(pairs, kept, len(pairs), data.spec.augmentation),
            held_out=PairSplit(pairs, 0, kept, data.spec.augmentation),
            fingerprint=data.fingerprint,
        )
        self._data = data

    @property
    def real(self) -> Dataset:
        return self._data

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._data.metadata

    def source_samples(self) -> tuple[Tensor, Conditions] | None:
        return self._data.source_samples()

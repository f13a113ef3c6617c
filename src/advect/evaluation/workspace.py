"""Workspaces of evaluations, in a folder (resumable) or in memory; cache of reference data.

WORK/NAME/part-00000-of-00020/    completed rows, as SampleShards
WORK/NAME.json                    their result; the parts are then removed
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from advect.checkpoint.tensor_files import UNREADABLE, load_weights, save_tensors
from advect.core.errors import UserError
from advect.core.files import atomic_write, atomic_write_text, lock_folder, make_folder, regular, sync_file
from advect.core.records import find_object
from advect.distributed.comm import broadcast_object, current, gather_objects, sync_errors, without_timeout
from advect.distributed.context import progress_bar
from advect.model.sharded_samples import PLAN, SampleShards, write_shards

Key = Mapping[str, str | int]


class ReferenceCache:
    """Cached tensors in ``folder``, one .safetensors file a key; created if missing.

    A key contains all that the tensors depend on. Files are written atomically and contain their key; damaged ones
    count as missing. The cache may be deleted any time. Raises UserError if the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(Path(folder), "cache folder")

    def path(self, key: Key) -> Path:
        """File of a key. Raises UserError for an empty key or value."""
        if not key or not all(str(value) for value in key.values()):
            raise UserError(f"the key of cached tensors must say what they were computed of, got {dict(key)}")
        return self.folder / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.safetensors"

    def load(self, key: Key) -> dict[str, Tensor] | None:
        """Tensors of a key by name, on the CPU, or None."""
        path = self.path(key)
        try:
            with safe_open(regular(path), framework="pt") as file:
                if (file.metadata() or {}).get("key") != _text(key):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except UNREADABLE:
            return None

    def save(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a key atomically."""
        atomic_write(self.path(key), lambda partial: save_tensors(partial, tensors, {"key": _text(key)}))

    def get(self, key: Key, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors of a key, made and saved if missing."""
        found = self.load(key)
        if found is None:
            found = dict(make())
            self.save(key, found)
        return found


def open_cache() -> ReferenceCache:
    """Cache below the environment variable ADVECT_CACHE, default ~/.cache/advect."""
    folder = Path(os.environ.get("ADVECT_CACHE") or Path.home() / ".cache" / "advect") / "features"
    try:
        return ReferenceCache(folder)
    except UserError as error:
        raise UserError(f"{error}, and name it in the environment variable ADVECT_CACHE") from error


def _text(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)


PART = 500
"""Most rows of a part on disk."""

CHUNK = 256
"""Rows of a process at once, in memory."""

_FILE = "rows.safetensors"

T = TypeVar("T")
Tensors = dict[str, Tensor]

Fill = Callable[[range, tqdm], Tensors]
"""Function from a range of rows, and the bar to update, to their stored tensors."""

Reduce = Callable[[Iterator[Tensors]], T]
"""Function from the tensors of all parts, in order, to the result."""


def on_rank_zero(job: Callable[[], T]) -> T | None:
    """Result of ``job`` on the first process, None on the others, which wait without timeout. All raise its
    UserError.
    """
    found, mistake = None, None
    with without_timeout():
        if current().is_first:
            try:
                found = job()
            except UserError as error:
                mistake = error
    with sync_errors():
        if mistake is not None:
            raise mistake
    return found


class Workspace(ABC):
    """Map rows to tensors on all processes, reduce on the first; methods are collective."""

    def map_rows(
        self,
        name: str,
        n: int,
        fill: Fill,
        reduce: Reduce[T],
        *,
        title: str,
        load: Callable[[], T | None] = lambda: None,
    ) -> T | None:
        """On the first process, the result of ``load``, else of ``reduce`` over n rows in parts."""
        found = load() if current().is_first else None
        return self._map(name, n, fill, reduce, title) if broadcast_object(found is None) else found

    @abstractmethod
    def _map(self, name: str, n: int, fill: Fill, reduce: Reduce[T], title: str) -> T | None:
        """:meth:`map_rows` without ``load``."""

    def cached_json(self, name: str, n: int, fill: Fill, reduce: Reduce[Any], *, title: str) -> Any:
        """:meth:`map_rows` for JSON, stored by folders."""
        return self.map_rows(name, n, fill, reduce, title=title)


@dataclass(frozen=True)
class MemoryWorkspace(Workspace):
    """Workspace without storage; each process takes every world-th chunk.

    All call ``fill`` equally often, as sharded networks need; rows beyond n are dropped.
    """

    show: bool = True

    def _map(self, name: str, n: int, fill: Fill, reduce: Reduce[T], title: str) -> T | None:
        found, mistake = None, None
        with without_timeout(), progress_bar(n, title, "row") if self.show else tqdm(disable=True) as bar:
            parts = self._in_turn(n, fill, bar)
            try:
                found = reduce(parts) if current().is_first else None
            except UserError as error:
                mistake = error
            for _ in parts:  # the others wait for each exchange
                pass
        with sync_errors():
            if mistake is not None:
                raise mistake
        return found

    @staticmethod
    def _in_turn(n: int, fill: Fill, bar: tqdm) -> Iterator[Tensors]:
        me = current()
        for k in range(0, -(-n // CHUNK), me.world):
            first = (k + me.rank) * CHUNK
            last = first + CHUNK if me.world > 1 else min(first + CHUNK, n)
            yield from filter(None, gather_objects(fill(range(first, last), bar)) or ())


@contextmanager
def open_workspace(folder: Path, *, stamp: str) -> Iterator[FolderWorkspace]:
    """Workspace in a folder, removed after the block, kept for resumption on failure.

    Results of another ``stamp`` are measured again. Raises UserError if the folder cannot be written to or is in use.
    """
    first = current().is_first
    with ExitStack() as stack:
        with sync_errors():
            if first:
                stack.enter_context(lock_folder(make_folder(folder, "the folder"), "the folder"))
        work = FolderWorkspace(folder, stamp)
        try:
            yield work
        except BaseException:
            if first and not any(folder.glob("*/part-*")) and not any(folder.glob("*.json")):
                _remove(folder)
            raise
        if first:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, and its parent if empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


@dataclass(frozen=True)
class FolderWorkspace(Workspace):
    """Workspace in a folder; see :func:`open_workspace`."""

    folder: Path
    stamp: str

    def _map(self, name: str, n: int, fill: Fill, reduce: Reduce[T], title: str) -> T | None:
        parts = self._shards(name, n)

        def write(rows: range, folder: Path, bar: tqdm) -> list[Path]:
            save_tensors(folder / _FILE, fill(rows, bar))
            sync_file(folder / _FILE)
            return [folder / _FILE]

        write_shards(parts, write, title=title)

        def stream() -> T:
            value = reduce(load_weights(parts.place(k) / _FILE) for k in range(parts.count))
            shutil.rmtree(parts.folder)
            return value

        return on_rank_zero(stream)

    def cached_json(self, name: str, n: int, fill: Fill, reduce: Reduce[Any], *, title: str) -> Any:
        file = self.folder / f"{name}.json"

        def load() -> Any:
            found = find_object(file) or {}
            return found.get("value") if found.get("stamp") == self.stamp else None

        def keep(parts: Iterator[Tensors]) -> Any:
            value = reduce(parts)
            atomic_write_text(file, json.dumps({"stamp": self.stamp, "value": value}) + "\n")
            return value

        return self.map_rows(name, n, fill, keep, title=title, load=load)

    def _shards(self, name: str, n: int) -> SampleShards:
        """Parts of a set, in a folder made by the first process."""
        parts = SampleShards(folder=self.folder / name, n=n, count=-(-n // PART))
        plan = {"rows": n, "parts": parts.count, "stamp": self.stamp}
        with sync_errors():
            if current().is_first:
                file = parts.folder / PLAN
                try:
                    if find_object(file) != plan:
                        shutil.rmtree(parts.folder, ignore_errors=True)
                        parts.folder.mkdir()
                        atomic_write_text(file, json.dumps(plan) + "\n")
                except (OSError, ValueError) as error:
                    raise UserError(f"{parts.folder} cannot be written to ({error}); mend that and repeat") from error
        return parts

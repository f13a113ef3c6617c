"""Samples whole or in shards: folders of contiguous rows, written atomically by any number of processes.

OUTPUT/plan.json               request and number of shards; written first, and removed at the end of a single one
OUTPUT/part-00000-of-00005/    files of its rows, and part.json with sizes and SHA-256
OUTPUT/samples.json            written last: the plan and all shards

A single shard is written in a hidden folder, and its files are then moved beside plan.json: until samples.json is
there, and plan.json gone, they are no set.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from advect.checkpoint.manifest import sum_files
from advect.core.errors import UserError
from advect.core.files import atomic_write, atomic_write_text, disk_sentence, sync_folder
from advect.distributed.comm import current, gather_objects, sync_errors, without_timeout
from advect.distributed.context import progress_bar

logger = logging.getLogger(__name__)

PART_SIZE = 10_000
"""Default maximum of samples in a shard."""

PLAN, PART = "plan.json", "part.json"

_OURS = re.compile(r"part-\d{5,}-of-\d{5,}|samples\.(npz|csv|parquet|h5ad|png|json)|sample-\d{6,}\.png")
_LEFT = re.compile(rf"\.({_OURS.pattern}|plan\.json|samples)\.\d+\.partial")


def count_shards(n: int, size: int | None, world: int) -> int:
    """Number of shards of n samples, at most ``size`` each, for ``world`` processes.

    Equal for all processes if ``size`` is None, or would give a single shard.
    """
    if size is not None and size < 1:
        raise UserError(f"--part-size must be at least 1, got {size}; {PART_SIZE} is usual")
    count = -(-n // (size or PART_SIZE))
    if size is None or count == 1:
        count = min(-(-count // world) * world, n)
    return max(count, 1)


def holds_samples(folder: Path) -> bool:
    """Whether a folder holds samples or shards."""
    return any(folder.glob("samples.*")) or any(folder.glob("part-*-of-*"))


def remove_partial_parts(folder: Path) -> None:
    """Remove partial files of a killed call."""
    _remove(folder, _LEFT)


def _remove(folder: Path, names: re.Pattern[str]) -> None:
    """Remove files and folders whose names match."""
    for path in sorted(folder.iterdir()):
        if names.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def open_plan(folder: Path, plan: Mapping[str, Any], *, fixed: bool, overwrite: bool) -> int:
    """Write ``plan``; return its number of shards. The folder is locked by the caller.

    A folder with the same plan is continued, with its number of shards unless ``fixed``; an unfinished single one is
    removed. Raises UserError if it holds other samples, unless ``overwrite``.
    """
    plan = json.loads(json.dumps(plan))
    _end_single(folder)
    if (folder / PLAN).is_file():
        old = read_plan(folder)
        there = plan["parts"] if fixed else old.get("parts", plan["parts"])
        difference = plan_difference(old, {**plan, "parts": there})
        if difference is None:
            remove_partial_parts(folder)
            return there
        if not overwrite:
            raise UserError(
                f"--output-dir {folder} holds samples of another call: {difference}; repeat that call to go on with"
                " it, name another folder, or give --overwrite"
            )
    elif holds_samples(folder) and not overwrite:
        raise UserError(f"--output-dir {folder} already holds samples; name another folder, or give --overwrite")
    remove_partial_parts(folder)
    if overwrite:
        _remove(folder, _OURS)
        (folder / PLAN).unlink(missing_ok=True)  # last, so that files left by a kill belong to a plan
    atomic_write_text(folder / PLAN, json.dumps(plan, indent=1) + "\n")
    return plan["parts"]


def _end_single(folder: Path) -> None:
    """End a call in a single shard that was killed: remove its files, or the plan of a set that is whole."""
    if read_plan(folder).get("parts") != 1:
        return
    if not (folder / "samples.json").is_file():
        _remove(folder, _OURS)
    (folder / PLAN).unlink(missing_ok=True)


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan of a folder; empty where damaged."""
    return _read(folder / PLAN)


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def plan_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """First difference of two plans, as text."""
    for name, value in here.items():
        if name != "weights" and there.get(name) != value:
            name = "weights" if name == "sha256" else name
            return f"{name} was {there.get(name)} there and is {here[name]} here"
    return None


@dataclass(frozen=True, kw_only=True)
class SampleShards:
    """``n`` samples in ``count`` folders of contiguous rows; sizes differ by at most one."""

    folder: Path
    n: int
    count: int

    def rows(self, k: int) -> range:
        """Rows of shard k."""
        return range(k * self.n // self.count, (k + 1) * self.n // self.count)

    def place(self, k: int) -> Path:
        """Folder of shard k."""
        return self.folder / f"part-{k:05d}-of-{self.count:05d}"

    def read(self, k: int) -> dict[str, Any] | None:
        """Verified content of part.json of shard k; None unless complete."""
        folder, rows = self.place(k), self.rows(k)
        facts = _read(folder / PART)
        try:
            found = sum_files(folder, [folder / name for name in facts["files"]])
        except (OSError, KeyError, TypeError):
            return None
        return facts if facts == {"rows": [rows.start, rows.stop], "files": found} else None

    def write(self, k: int, fill: Callable[[Path], list[Path]]) -> dict[str, Any]:
        """Write shard k from the files that ``fill`` writes and syncs; return the content of part.json.

        Raises UserError if the disk is full or not writable; complete shards stay.
        """
        place, rows = self.place(k), self.rows(k)
        partial = self.folder / f".{place.name}.{os.getpid()}.partial"
        try:
            if place.exists():
                shutil.rmtree(place)  # damaged
            partial.mkdir()
            files = fill(partial)
            facts = {"rows": [rows.start, rows.stop], "files": sum_files(partial, files)}
            atomic_write_text(partial / PART, json.dumps(facts, indent=1) + "\n")
            partial.rename(place)
            sync_folder(self.folder)
        except OSError as error:
            then = "repeat the command: it goes on after the parts that are whole"
            raise UserError(disk_sentence(error, then, file=place)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return facts

    def write_single(self, fill: Callable[[Path], list[Path]], facts: Mapping[str, Any]) -> list[Path]:
        """Write the only shard from the files that ``fill`` writes, and samples.json; return them.

        Nothing is left of a call that fails; one that is killed leaves its plan.
        """
        partial, moved = self.folder / f".samples.{os.getpid()}.partial", []
        try:
            partial.mkdir()
            files = fill(partial)
            listed = partial / "samples.json"
            atomic_write_text(listed, json.dumps({**facts, "files": [f.name for f in files]}, indent=1) + "\n")
            for file in (*files, listed):
                moved.append(file.rename(self.folder / file.name))
            sync_folder(self.folder)
            (self.folder / PLAN).unlink()
        except BaseException:
            for file in (*moved, self.folder / PLAN):
                with suppress(OSError):
                    file.unlink()
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return moved

    def finish(self, facts: Mapping[str, Any], written: Mapping[int, dict[str, Any]]) -> list[Path]:
        """Write samples.json, of ``facts`` and ``written`` shards, and the first shard's picture."""
        picture, listed = self.folder / "samples.png", self.folder / "samples.json"
        atomic_write(picture, lambda partial: shutil.copyfile(self.place(0) / picture.name, partial))
        parts = [{"folder": self.place(k).name, **written[k]} for k in range(self.count)]
        text = json.dumps({**facts, "files": [picture.name], "parts": parts}, indent=1)
        atomic_write_text(listed, text + "\n")
        return [*map(self.place, range(self.count)), picture, listed]


def write_shards(
    parts: SampleShards,
    fill: Callable[[range, Path, tqdm], list[Path]],
    *,
    title: str = "sample",
) -> dict[int, dict] | None:
    """Write this process's missing shards (rank, rank + world, ...) by ``fill(rows, folder, bar)``.

    Returns the content of each part.json on the first process, None on others. Damaged shards are rewritten and
    logged. Raises UserError if a shard cannot be written, or the processes do not share the folder.
    """
    me = current()
    mine = range(me.rank, parts.count, me.world)
    with sync_errors():
        if not (parts.folder / PLAN).is_file():
            raise UserError(f"{parts.folder} is not one folder on all hosts; it has to lie on a disk that they share")
    written, damaged = {}, []
    with without_timeout(), progress_bar(sum(len(parts.rows(k)) for k in mine), title, "sample") as bar:
        for k in mine:
            exists, rows = parts.place(k).exists(), parts.rows(k)
            complete = parts.read(k)
            if complete is not None:
                bar.update(len(rows))
            elif exists:
                damaged.append(parts.place(k))
            written[k] = complete or parts.write(k, lambda folder, rows=rows: fill(rows, folder, bar))
    results = gather_objects((written, damaged))
    for place in [place for _, places in results or () for place in places]:
        logger.info(f"note: {place} was damaged, and has been drawn anew")
    return None if results is None else {k: facts for those, _ in results for k, facts in those.items()}

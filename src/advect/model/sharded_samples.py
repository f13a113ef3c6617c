"""Samples in shards: folders of contiguous rows, written atomically by any number of processes, and joined at the end.

OUTPUT/plan.json               request and number of shards; written first, removed last
OUTPUT/part-00000-of-00005/    files of its rows, and part.json with sizes and SHA-256; removed when all are joined
OUTPUT/samples.npz, ...        the joined files
OUTPUT/samples.json            written after these: the plan, and their sizes and SHA-256
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from advect.checkpoint.manifest import sum_files
from advect.core.bounds import Count, bounded
from advect.core.errors import UserError
from advect.core.files import atomic_write, atomic_write_text, disk_sentence, sync_folder
from advect.core.records import find_object
from advect.distributed.comm import current, gather_objects, sync_errors, without_timeout
from advect.distributed.context import progress_bar

logger = logging.getLogger(__name__)

PART_SIZE = 10_000
"""Default maximum of samples in a shard."""

PLAN, PART, FACTS = "plan.json", "part.json", "samples.json"

_OURS = re.compile(
    r"part-\d{5,}-of-\d{5,}|samples-\d{5,}-of-\d{5,}\.\w+|samples\.(npz|csv|parquet|h5ad|png|json)|sample-\d{6,}\.png"
    r"|draw-\d+\.\w+|(draws|quantiles)\.\w+|forecast\.png"
)
_THERE = ("samples.*", "*-*-of-*", "draw-[0-9]*.*", "draws.*", "quantiles.*", "forecast.png")
_LEFT = re.compile(rf"\.({_OURS.pattern}|plan\.json)\.\d+\.partial")


@bounded
def count_shards(n: int, size: Count | None, world: int) -> int:
    """Number of shards of n samples, at most ``size`` each, for ``world`` processes.

    Equal for all processes if ``size`` is None, or would give a single shard.
    """
    count = -(-n // (size or PART_SIZE))
    if size is None or count == 1:
        count = min(-(-count // world) * world, n)
    return max(count, 1)


def holds_samples(folder: Path) -> bool:
    """Whether a folder holds samples or shards."""
    return any(any(folder.glob(name)) for name in _THERE)


def remove_partial_parts(folder: Path) -> None:
    """Remove partial files of a killed call."""
    _remove(folder, _LEFT)


def _remove(folder: Path, names: re.Pattern[str]) -> None:
    """Remove files and folders whose names match."""
    for path in sorted(folder.iterdir()):
        if names.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def open_plan(folder: Path, plan: Mapping[str, Any], *, fixed: bool, overwrite: bool) -> int:
    """Write ``plan``; return its number of shards. The caller holds the folder's lock.

    A folder with the same plan is continued, with its number of shards unless ``fixed``. Raises UserError if it holds
    other samples, unless ``overwrite``; an unfinished single shard is none.
    """
    plan = json.loads(json.dumps(plan))
    old = read_plan(folder)
    if old or (folder / PLAN).is_file():
        there = plan["parts"] if fixed else old.get("parts", plan["parts"])
        same = {**plan, "parts": there}
        difference = plan_difference(old, same)
        if difference is None:
            remove_partial_parts(folder)
            atomic_write_text(folder / PLAN, json.dumps(same, indent=1) + "\n")
            return there
        overwrite = overwrite or (old.get("parts") == 1 and not (folder / FACTS).exists())
        if not overwrite:
            raise UserError(
                f"--output-dir {folder} already holds samples of another call: {difference}; repeat that call to go "
                "on with it, name another folder, or give --overwrite"
            )
    elif holds_samples(folder) and not overwrite:
        raise UserError(f"--output-dir {folder} already holds samples; name another folder, or give --overwrite")
    remove_partial_parts(folder)
    if overwrite:
        _remove(folder, _OURS)
        (folder / PLAN).unlink(missing_ok=True)  # last, so that files left by a kill belong to a plan
    atomic_write_text(folder / PLAN, json.dumps(plan, indent=1) + "\n")
    return plan["parts"]


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan of a folder, also of joined shards; empty where damaged or missing."""
    joined = _read(folder / FACTS)
    return _read(folder / PLAN) or (joined if "sums" in joined else {})


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where damaged."""
    return find_object(file) or {}


def plan_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """First difference of two plans, as text."""
    for name, value in here.items():
        if name != "weights" and there.get(name) != value:
            name = "weights" if name == "sha256" else name
            return f"{name} was {there.get(name)} there and is {here[name]} here"
    return None


Join = Callable[[Sequence[Path], Path, tqdm], bool]
"""As ``Modality.join``."""


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
            raise self._unwritten(place, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return facts

    def finish(self, facts: Mapping[str, Any], written: Mapping[int, dict[str, Any]], join: Join) -> list[Path]:
        """Join the files of all shards, write samples.json with ``facts``, and remove the shards; return the files.

        A file that a single shard has stays as it is, samples.png is the first one, and what cannot be joined gets the
        number of its shard. Raises UserError if the disk is full or not writable; the shards stay.
        """
        names = list(dict.fromkeys(name for k in range(self.count) for name in written[k]["files"]))
        files: list[Path] = []
        count = sum(len(facts["files"]) for facts in written.values())
        with progress_bar(count, "join", "file", leave=False) as bar:
            for name in names:
                places = [self.place(k) / name for k in range(self.count) if name in written[k]["files"]]
                try:
                    files += self._join(places, join, bar)
                except OSError as error:
                    raise self._unwritten(self.folder / name, error) from error
        return self._finished(facts, files)

    def finish_as(self, facts: Mapping[str, Any], write: Callable[[list[Path]], list[Path]]) -> list[Path]:
        """As :meth:`finish`, with the files that ``write`` makes of the folders of all shards."""
        try:
            files = write([self.place(k) for k in range(self.count)])
        except OSError as error:
            raise self._unwritten(self.folder, error) from error
        return self._finished(facts, files)

    def _finished(self, facts: Mapping[str, Any], files: list[Path]) -> list[Path]:
        """Write samples.json of the files, and remove the shards; return all files."""
        sums = sum_files(self.folder, files)
        facts = {**facts, "files": [file.name for file in files], "sums": sums}
        atomic_write_text(self.folder / FACTS, json.dumps(facts, indent=1) + "\n")
        self._remove()
        return [*files, self.folder / FACTS]

    def _join(self, places: list[Path], join: Join, bar: tqdm) -> list[Path]:
        """One file of those of the shards at ``places``."""
        whole = self.folder / places[0].name
        if len(places) == 1 or whole.suffix == ".png":
            atomic_write(whole, lambda partial: shutil.copyfile(places[0], partial))
            bar.update(len(places))
            return [whole]
        if join(places, whole, bar):
            return [whole]
        numbered = [whole.with_name(f"{whole.stem}{place.parent.name[4:]}{whole.suffix}") for place in places]
        for place, own in zip(places, numbered, strict=True):
            atomic_write(own, lambda partial, place=place: shutil.copyfile(place, partial))
            bar.update()
        return numbered

    def finished(self) -> list[Path] | None:
        """Verified files of a call that is complete; its shards are removed. None for others."""
        found = _read(self.folder / FACTS)
        try:
            files = [self.folder / name for name in found["files"]]
            whole = found["parts"] == self.count and found["sums"] == sum_files(self.folder, files)
        except (OSError, KeyError, TypeError):
            return None
        if not whole:
            return None
        self._remove()
        return [*files, self.folder / FACTS]

    def _remove(self) -> None:
        """Remove the shards and their plan."""
        for k in range(self.count):
            shutil.rmtree(self.place(k), ignore_errors=True)
        (self.folder / PLAN).unlink(missing_ok=True)

    def _unwritten(self, path: Path, error: OSError) -> UserError:
        then = "repeat the command: it goes on after the parts that are whole"
        return UserError(disk_sentence(error, then, file=path))


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

"""Checkpoint folders: complete or absent, verified when read, without executable content.

A checkpoint is written into a hidden folder, synced, and renamed. ``manifest.json`` lists the size and SHA-256 of
every file, and its own SHA-256, and the epoch of a checkpoint that was written at an epoch's end. ``latest`` names the
newest checkpoint, ``best`` the best.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from advect.core.errors import UserError
from advect.core.files import atomic_write_text, digest, explain_disk_errors, remove_partial, sync_file, sync_folder
from advect.core.records import as_record, find_object, read_record
from advect.distributed.comm import broadcast_object, current, sync_errors

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, _LATEST, BEST = "manifest.json", "latest", "best"
_NAME = re.compile(r"step-\d{8,}")
_STEP = re.compile(r"step-(\d+)")
_EPOCH = re.compile(r"(?:checkpoint[-_])?epoch[-_](\d+)(?:\.pth?)?")


def _seal(manifest: dict) -> str:
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def checkpoint_name(step: int) -> str:
    """``step-00001000`` for step 1000."""
    return f"step-{step:08d}"


Sums = dict[str, dict[str, int | str]]
"""Size and SHA-256 of files, by their names within a checkpoint."""


def sum_files(folder: Path, files: list[Path]) -> Sums:
    """Manifest entries of ``files`` in ``folder``."""
    return {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": digest(p)} for p in files}


def checkpoint_step(path: Path) -> int:
    """1000 for ``step-00001000``."""
    return int(path.name.removeprefix("step-"))


def checkpoint_epoch(path: Path) -> int | None:
    """The epoch at whose end a checkpoint was written, None for others; not verified."""
    epoch = (find_object(path / MANIFEST) or {}).get("epoch")
    return epoch if isinstance(epoch, int) else None


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None], epoch: int | None = None) -> Path:
    """Write the checkpoint of ``step`` in ``folder`` atomically, from the files that ``fill`` writes.

    ``epoch`` is the one that the step ended, if any.

    Replaces a checkpoint of the same step and updates ``latest``. A failure or kill leaves earlier checkpoints intact.
    """
    partial = open_checkpoint(folder, step)
    try:
        fill(partial)
        return close_checkpoint(partial, folder, step, epoch=epoch)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_checkpoint(folder: Path, step: int) -> Path:
    """Create the hidden folder for the checkpoint of ``step``."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    partial = folder / f".{checkpoint_name(step)}.{os.getpid()}.partial"
    partial.mkdir()
    return partial


def close_checkpoint(
    partial: Path, folder: Path, step: int, known: Sums | None = None, epoch: int | None = None
) -> Path:
    """Complete the checkpoint of ``step``: manifest, sync, rename, ``latest``. ``known`` are sums of files already
    synced.
    """
    known, final = known or {}, folder / checkpoint_name(step)
    new = [p for p in _files(partial) if p.relative_to(partial).as_posix() not in known]
    of_epoch = {} if epoch is None else {"epoch": epoch}
    manifest = {"format": FORMAT, "step": step, **of_epoch, "files": {**known, **sum_files(partial, new)}}
    manifest["sha256"] = _seal(manifest)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in [*new, partial / MANIFEST]:
        sync_file(path)
    for inner in {p.parent for p in _files(partial)}:
        sync_folder(inner)
    _replace(partial, final)
    atomic_write_text(folder / _LATEST, final.name + "\n")
    return final


def _replace(partial: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    if final.exists():
        final.rename(old)
    try:
        partial.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the remains of killed writes; restore a checkpoint that was being replaced.

    Raises UserError where nothing could name the newest checkpoint.
    """
    if (folder / _LATEST).is_dir():
        raise UserError(f"{folder / _LATEST} is a folder, and the file of that name is written there; move it away")
    for old in folder.glob(".step-*.old"):
        final = folder / old.name.split(".")[1]
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(final)
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    remove_partial(folder)


def named_checkpoints(folder: Path) -> list[Path]:
    """What has a checkpoint's name in ``folder``, whole or not, oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name))


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in ``folder``, oldest first."""
    return [p for p in named_checkpoints(folder) if (p / MANIFEST).is_file()]


def _latest(folder: Path) -> str:
    """Name in ``latest``, or ""."""
    file = folder / _LATEST
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""


def retain(folder: Path, last: int, every: int = 0, epochs: bool = False) -> None:
    """Remove all checkpoints but the newest ``last`` (0: keep all), those of every ``every``-th step (0: none), with
    ``epochs`` those of epochs' ends, and the best.
    """
    best = read_best(folder)
    newest = _latest(folder)  # a run that went on from an older checkpoint has written an earlier step last
    for path in sorted(list_checkpoints(folder), key=lambda p: p.name == newest)[:-last] if last else []:
        if (every and checkpoint_step(path) % every == 0) or (best is not None and path.name == best.name):
            continue
        if epochs and checkpoint_epoch(path) is not None:
            continue
        doomed = path.with_name(f".{path.name}.{os.getpid()}.partial")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def names_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a file ``best`` or ``latest``."""
    return path.name in (BEST, _LATEST) and path.is_file()


def named_checkpoint(run: Path, name: str | None) -> Path:
    """Place for :func:`find_checkpoint` of the checkpoint ``name`` of a run folder: ``epoch-50``, ``step-1000``,
    ``best`` or ``latest``; the run itself for None. Raises UserError for other names, and what is no run folder.
    """
    if name is None:
        return run
    if not (run / "checkpoints").is_dir():
        raise UserError(f"--checkpoint {name} is one of a run folder, and {run} is none; give one such as runs/digits")
    if name == _LATEST:
        return find_checkpoint(run)
    if name == BEST and not (run / "checkpoints" / BEST).is_file():
        raise UserError(
            f"{run} has no best checkpoint; it is found by a training with --eval-every or --early-stopping yes"
        )
    if name != BEST and not _STEP.fullmatch(name) and not _EPOCH.fullmatch(name):
        raise UserError(f"--checkpoint {name} should be like epoch-50, step-1000, best or latest")
    return run / "checkpoints" / name


def _of_epoch(path: Path, epoch: int) -> Path:
    """The checkpoint of an epoch, beside ``path`` or in the run folder that it is in."""
    folder = path.parent / "checkpoints" if (path.parent / "checkpoints").is_dir() else path.parent
    found = {e: p for p in list_checkpoints(folder) if (e := checkpoint_epoch(p)) is not None}
    if epoch in found:
        return found[epoch]
    there = f"there are those of epochs {_ranges(sorted(found))}" if found else "there is none of any epoch"
    fix = "" if found else ", which --save-epochs 1 writes and --keep-epochs keeps"
    raise UserError(f"{folder} has no checkpoint of epoch {epoch}; {there}{fix}")


def _ranges(numbers: list[int]) -> str:
    """1-3, 7 for [1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def find_checkpoint(path: Path) -> Path:
    """Checkpoint folder for ``path``: a checkpoint, a ``best`` or ``latest`` file, or the newest of a run folder.

    ``RUN/epoch-50`` and ``RUN/checkpoints/epoch-50`` are that of an epoch's end, also called ``checkpoint_epoch_50``.
    Not verified, see :func:`verify_checkpoint`. Raises UserError if there is none.
    """
    if (of_epoch := _EPOCH.fullmatch(path.name)) and not path.exists():
        return _of_epoch(path, int(of_epoch[1]))
    if (of_step := _STEP.fullmatch(path.name)) and not path.exists():
        path = path.with_name(checkpoint_name(int(of_step[1])))
    if names_checkpoint(path):
        best = read_best(path.parent) if path.name == BEST else None
        name = _latest(path.parent) if path.name == _LATEST else best.name if best else ""
        path = path.parent / name if _NAME.fullmatch(name) else path
    if (path / MANIFEST).is_file() or path.name.startswith("step-"):
        if not path.is_dir():
            raise UserError(f"checkpoint {path} does not exist{_siblings(path)}")
        return path
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    if not path.is_dir():
        trouble = "is a file" if path.exists() else "does not exist"
        trouble = "is damaged" if names_checkpoint(path) else trouble
        raise UserError(f"{path} {trouble}; give a run folder such as runs/digits, or a checkpoint inside one")
    latest = _latest(folder)
    if _NAME.fullmatch(latest) and (folder / latest).is_dir():
        return folder / latest
    found = {p.name: p for p in list_checkpoints(folder)}
    for old in folder.glob(".step-*.old"):  # a killed write was replacing it
        found.setdefault(old.name.split(".")[1], old)
    if not found:
        raise UserError(f"{path} holds no checkpoint; train first: advect train --run-dir {path}")
    return found.get(latest) or found[max(found)]


def find_weights(path: Path) -> Path:
    """A weight file itself, else the checkpoint that samples come from.

    In a run folder that is the best by the held-out loss, where the run watched it, else the newest.
    """
    if path.is_file() and not names_checkpoint(path):
        return path
    best = read_best(path / "checkpoints") if path.is_dir() else None
    if best is not None and best.metric == HELD_OUT_LOSS and (path / "checkpoints" / best.name).is_dir():
        return path / "checkpoints" / best.name
    return find_checkpoint(path)


T = TypeVar("T")

_TRIES = 10
"""Checkpoints of a living run that are tried in turn."""


def read_newest(
    run: Path, read: Callable[[Path], T], find: Callable[[Path], Path] = find_checkpoint, *, together: bool = False
) -> T:
    """``read`` of the checkpoint that ``find`` names in ``run``; of the next one where a living run has removed it
    meanwhile.

    ``together``: all processes read that of the first one, and raise its errors; collective.
    """
    share, agree = (broadcast_object, sync_errors) if together else (lambda value: value, nullcontext)
    for left in reversed(range(_TRIES)):
        with agree():
            place = find(run) if not together or current().is_first else run
        place = share(place)
        try:
            with agree(), explain_disk_errors():
                return read(place)
        except UserError:
            if share(place.exists()) or not left:
                raise
    raise AssertionError


def _siblings(path: Path) -> str:
    others = [p.name for p in list_checkpoints(path.parent) if p != path] if path.parent.is_dir() else []
    return f"; whole checkpoints beside it: {', '.join(others[-3:])}" if others else "; no other is beside it"


def newest_whole(run: Path) -> Path | None:
    """Newest checkpoint of a run folder that passes :func:`verify_checkpoint`; None if the run has none.

    Skips damaged ones with a warning. Raises UserError if all are damaged.
    """
    folder = run / "checkpoints"
    if not any((*folder.glob("step-*"), *folder.glob(".step-*.old"))):
        return None
    newest = find_checkpoint(run)
    trouble = ""
    for path in [newest, *(p for p in reversed(list_checkpoints(folder)) if p != newest)]:
        try:
            verify_checkpoint(path)
        except UserError as error:
            trouble = trouble or str(error)
            logger.warning(str(error))
            continue
        if trouble:
            logger.warning(f"going on from {path} instead")
        return path
    raise UserError(f"{run} holds no whole checkpoint: {trouble}; move the folder away to train anew")


def verify_checkpoint(path: Path) -> dict:
    """Check every file against the manifest; return the manifest.

    Raises UserError if the checkpoint is damaged, incomplete, or of a newer format.
    """
    if not (path / MANIFEST).exists():
        raise UserError(f"checkpoint {path} is incomplete: it has no {MANIFEST}{_siblings(path)}")
    manifest = find_object(path / MANIFEST) or {}
    if type(version := manifest.get("format")) is int and version > FORMAT:
        raise UserError(
            f"checkpoint {path} has format {version}, and this advect reads up to {FORMAT}; "
            "install the newer advect that wrote it"
        )
    try:
        as_record(version, int, path / MANIFEST)
        files = as_record(manifest.get("files"), Sums, path / MANIFEST)
    except UserError:
        raise UserError(f"checkpoint {path} is damaged: {MANIFEST} cannot be read{_siblings(path)}") from None
    if manifest.get("sha256") != _seal(manifest):
        raise UserError(f"checkpoint {path} is damaged: {MANIFEST} does not match its own sum{_siblings(path)}")
    extra = {p.relative_to(path).as_posix() for p in _files(path)} - files.keys() - {MANIFEST}
    if extra:
        raise UserError(f"checkpoint {path} holds a file that its {MANIFEST} does not list: {min(extra)}; remove it")
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"checkpoint {path} is damaged: {name} is missing{_siblings(path)}")
        if file.stat().st_size != facts.get("size"):
            raise UserError(
                f"checkpoint {path} is damaged: {name} has {file.stat().st_size} bytes "
                f"instead of {facts.get('size')}{_siblings(path)}"
            )
        if digest(file) != facts.get("sha256"):
            raise UserError(f"checkpoint {path} is damaged: the content of {name} has changed{_siblings(path)}")
    return manifest


HELD_OUT_LOSS = "held-out-loss"
"""Metric of a best checkpoint that stands for its run."""


@dataclass(frozen=True)
class Best:
    """Name of the best checkpoint, such as ``step-00001000``, and the ``metric`` and ``value`` it minimises."""

    name: str
    metric: str
    value: float


def read_best(folder: Path) -> Best | None:
    """Content of ``best`` in a folder of checkpoints; None if absent or damaged."""
    try:
        return read_record(folder / BEST, Best)
    except UserError:
        return None


def write_best(folder: Path, best: Best | None) -> None:
    """Write ``best`` atomically; None removes it."""
    if best is not None:
        atomic_write_text(folder / BEST, json.dumps(asdict(best)) + "\n")
    else:
        (folder / BEST).unlink(missing_ok=True)


def last_checkpoint(folder: Path) -> str:
    """Words on the newest complete checkpoint in ``folder``."""
    whole = {path.name: path for path in list_checkpoints(folder)}
    if not whole:
        return "there is no checkpoint"
    return f"the last whole checkpoint is {whole.get(_latest(folder)) or whole[max(whole)]}"

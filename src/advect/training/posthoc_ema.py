"""Snapshots of power-function averages during training, and their combination afterwards.

A snapshot is a folder such as ``ema/step-00001000``, written like a checkpoint: a weight file for each length, and
``average.json``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.checkpoint.async_writer import explain_disk_error
from advect.checkpoint.manifest import (
    checkpoint_name,
    checkpoint_step,
    list_checkpoints,
    named_checkpoints,
    remove_leftovers,
    verify_checkpoint,
    write_checkpoint,
)
from advect.checkpoint.tensor_files import load_weights, save_tensors
from advect.core.bounds import CountOrZero
from advect.core.errors import UserError
from advect.core.records import OpenRecord, find_object, read_record
from advect.distributed.comm import broadcast_object, current, sync_errors
from advect.training.ema import LONGEST, exponent, length_file, length_of
from advect.training.state import TrainState
from advect.training.trainer import Callback, Trainer

SNAPSHOTS = "ema"
"""Folder of a run's snapshots."""

_FACTS = "average.json"


def spacing(step: int) -> int:
    """Steps between two snapshots at step ``step``: a power of two, at least 8, leaving 16 to 31 of them."""
    return max(8, 1 << max(0, (step // 16).bit_length() - 1))


class Snapshots(Callback):
    """Store the power-function averages every ``every`` steps and at the end of the run.

    With ``every`` None there are 16 to 31, evenly spread: when :func:`spacing` doubles, every other one is removed. On
    resumption those after the checkpoint, and an unscheduled one of the previous end, are removed: ``folder`` depends
    on the steps trained alone. Must precede the callback that writes checkpoints.
    """

    def __init__(self, folder: Path, *, every: int | None = None) -> None:
        self.folder, self.every = folder, every
        self._saved_step = -1

    def on_start(self, trainer: Trainer) -> None:
        self.start_at(trainer.state.progress.step)

    def start_at(self, step: int) -> None:
        """Remove snapshots after ``step``, and unscheduled ones."""
        with sync_errors():
            if current().is_first:
                remove_leftovers(self.folder)
                for path in list_checkpoints(self.folder):
                    if checkpoint_step(path) > step or not _read_facts(path).get("due", True):
                        _remove(path)
        self._saved_step = broadcast_object(step if (self.folder / checkpoint_name(step)).exists() else -1)

    def on_step(self, trainer: Trainer) -> None:
        step = trainer.state.progress.step
        if self._is_due(step):
            self.save(trainer)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        self.save(trainer)

    def on_error(self, trainer: Trainer) -> None:
        if trainer.state.progress.step and not trainer.state.progress.bad_row:
            self.save(trainer)

    def _is_due(self, step: int) -> bool:
        return step % (self.every or spacing(step)) == 0

    def save(self, trainer: Trainer) -> None:
        """Store the averages of the last step, unless stored or empty."""
        state, step = trainer.state, trainer.state.progress.step
        if step == self._saved_step or state.ema is None or state.ema.updates == 0:
            return
        if not trainer.flush():
            return
        averages, due = {file: state.whole_average(file) for file in state.ema.lengths}, self._is_due(step)
        with sync_errors():
            if current().is_first:
                with explain_disk_error(self.folder, step, what="averages"):
                    write_checkpoint(self.folder, step, lambda folder: _fill(folder, state, averages, due))
                    self._thin(step)
        self._saved_step = step

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        self.start_at(row["step"])

    def _thin(self, step: int) -> None:
        for path in list_checkpoints(self.folder) if self.every is None else ():
            if checkpoint_step(path) % spacing(step) and checkpoint_step(path) != step:
                _remove(path)


def _fill(folder: Path, state: TrainState, averages: dict[str, dict[str, Tensor]], due: bool) -> None:
    assert state.ema is not None
    for file, tensors in averages.items():
        save_tensors(folder / file, tensors, {"advect": state.metadata})
    rest = sorted(state.net.state_dict().keys() - state.ema.shadow.keys())
    facts = {"updates": state.ema.updates, "lengths": list(state.ema.lengths.values()), "rest": rest, "due": due}
    (folder / _FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    """Remove a snapshot atomically; leftovers of a kill are removed with the next one written."""
    doomed = path.with_name(f".{path.name}.removed.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def bring(folder: Path, to: Path) -> None:
    """Copy the snapshots of the run that another continues."""
    if folder.is_dir() and not to.exists():
        for left in to.parent.glob(f".{to.name}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
        try:
            shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(".*"))
            partial.rename(to)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Snapshot:
    """Averages of ``lengths`` after ``updates``, in ``path``; ``rest`` names tensors that are not averaged."""

    path: Path
    step: int
    updates: int
    lengths: tuple[float, ...]
    rest: tuple[str, ...]


def read_snapshots(folder: Path, step: int | None = None) -> list[Snapshot]:
    """Verified snapshots in ``folder`` up to ``step`` (default: the newest), by rising step.

    Raises UserError if there is none, none of that step, or one is damaged.
    """
    paths = {checkpoint_step(path): path for path in named_checkpoints(folder)}  # a damaged one is not passed over
    if not paths:
        raise UserError(f"{folder} holds no snapshots of averages; train with --posthoc-ema")
    last = max(paths) if step is None else step
    if last not in paths:
        near = ", ".join(map(str, sorted(sorted(paths, key=lambda s: abs(s - last))[:4])))
        raise UserError(f"--step {last} has no snapshot in {folder}; the nearest are of steps {near}")
    found = []
    for number, path in sorted(paths.items()):
        if number > last:
            break
        try:
            verify_checkpoint(path)
            facts = read_record(path / _FACTS, _Facts)
        except UserError as error:
            if not path.exists():  # a living run has thinned them out meanwhile
                continue
            raise UserError(f"{error}; remove that folder to go without it") from error
        found.append(Snapshot(path, number, facts.updates, facts.lengths, facts.rest))
    return found


class _Facts(OpenRecord):
    updates: CountOrZero
    lengths: Annotated[tuple[Annotated[float, Meta(gt=0, lt=1)], ...], Meta(min_length=1)]
    rest: tuple[str, ...]


def combine(snapshots: Sequence[Snapshot], factors: Sequence[np.ndarray]) -> list[dict[str, Tensor]]:
    """Weighted sums of the averages in float32, one for each of ``factors`` (a factor for each length of each
    snapshot).

    Tensors that are not averaged come from the last snapshot. Each file is read once.
    """
    newest = snapshots[-1]
    start = load_weights(newest.path / length_file(newest.lengths[0]))
    rest = {name: start[name] for name in newest.rest}
    sums = [{name: torch.zeros_like(value) for name, value in start.items() if name not in rest} for _ in factors]
    columns = iter(zip(*factors, strict=True))
    for snapshot in snapshots:
        for length in snapshot.lengths:
            stored = load_weights(snapshot.path / length_file(length))
            for total, factor in zip(sums, next(columns), strict=True):
                for name, value in total.items():
                    value.add_(stored[name], alpha=float(factor))
    return [{**total, **rest} for total in sums]


def _read_facts(path: Path) -> dict:
    return find_object(path / _FACTS) or {}


_NOTHING = 1e-12
"""Relative eigenvalue below which directions of the Gram matrix are left out."""


def _inner(ta: np.ndarray, ga: np.ndarray, tb: np.ndarray, gb: np.ndarray) -> np.ndarray:
    """Integral of p_a p_b, through logarithms:

    (ga + 1) (gb + 1) min(ta, tb)^(ga + gb + 1) / ((ga + gb + 1) ta^(ga + 1) tb^(gb + 1))
    """
    both = ga + gb + 1
    powers = both * np.log(np.minimum(ta, tb)) - (ga + 1) * np.log(ta) - (gb + 1) * np.log(tb)
    return (ga + 1) * (gb + 1) / both * np.exp(powers)


@dataclass(frozen=True)
class Fit:
    """Factors of the stored averages, of sum 1, and the relative L2 error of the combined profile."""

    factors: np.ndarray
    error: float


class Profiles:
    """Profiles of N averages stored after ``updates`` with ``lengths``."""

    def __init__(self, updates: Sequence[int], lengths: Sequence[float]) -> None:
        exponents = {length: exponent(length) for length in set(lengths)}
        self._t = np.array(updates, np.float64)
        self._gamma = np.array([exponents[length] for length in lengths])
        self._gram = self._against(self._t[:, None], self._gamma[:, None])
        self._norm = np.sqrt(np.diag(self._gram))
        values, vectors = np.linalg.eigh(self._gram / np.outer(self._norm, self._norm))
        kept = values > _NOTHING * values.max()
        self._inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def _against(self, t: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        return _inner(t, gamma, self._t, self._gamma)

    def fit(self, updates: int, length: float) -> Fit:
        """Least-squares combination for the average of ``length`` after ``updates``, with factors that sum to 1."""
        t, gamma = np.array(float(updates)), np.array(exponent(length))
        wanted = self._against(t, gamma)
        one = 1 / self._norm
        free, shift = self._inverse @ (wanted / self._norm), self._inverse @ one
        factors = (free + (1 - one @ free) / (one @ shift) * shift) / self._norm
        square = float(_inner(t, gamma, t, gamma))
        left = square - 2 * factors @ wanted + factors @ self._gram @ factors
        return Fit(factors, math.sqrt(max(0.0, left) / square))

    def reach(self, updates: int, error: float) -> tuple[float, float]:
        """Shortest and longest length with an error of at most ``error``."""
        grid = np.round(np.arange(0.005, LONGEST, 0.005), 3).tolist()
        within = [length for length in grid if self.fit(updates, length).error <= error]
        stored = [length_of(gamma) for gamma in self._gamma]
        return min([*within, *stored]), max([*within, *stored])

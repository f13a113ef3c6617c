"""Power-function averages stored while a run trains, and their combination afterwards.

A snapshot is a folder such as ``ema/step-00001000``, written and verified as a checkpoint is: one weight file for each
length, and ``average.json``.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from advect.checkpoint.manifest import (
    checkpoint_name,
    checkpoint_step,
    explain_disk_error,
    list_checkpoints,
    remove_leftovers,
    verify_checkpoint,
    write_checkpoint,
)
from advect.checkpoint.weights import load_weights
from advect.core.errors import UserError
from advect.distributed.comm import broadcast_object, current, sync_errors
from advect.training.ema import LONGEST, exponent, length_file, length_of
from advect.training.state import TrainState
from advect.training.trainer import Callback, Trainer

SNAPSHOTS = "ema"
"""The folder of a run's snapshots."""

_FACTS = "average.json"


def spacing(step: int) -> int:
    """Steps between two snapshots of a run of ``step`` steps: a power of two, 8 or more, that leaves 16 to 31."""
    return max(8, 1 << max(0, (step // 16).bit_length() - 1))


class Snapshots(Callback):
    """Stores the power-function averages every ``every`` steps, and at the end of the run.

    With ``every`` None they are 16 to 31, evenly spread over the run however long it becomes: where :func:`spacing`
    doubles, every other one is removed. That of an end which was not due is removed where the run goes on. So what
    lies in ``folder`` depends on the steps trained alone, as long as this comes before the callback that writes
    checkpoints: what a killed run stored beyond its checkpoint is removed and written again.
    """

    def __init__(self, folder: Path, *, every: int | None = None) -> None:
        self.folder, self.every = folder, every
        self._saved_step = -1

    def on_start(self, trainer: Trainer) -> None:
        self.start_at(trainer.state.progress.step)

    def start_at(self, step: int) -> None:
        """Remove what was stored beyond ``step``, from which the run goes on, and by an end that was not due."""
        if current().is_first:
            remove_leftovers(self.folder)
            for path in list_checkpoints(self.folder):
                if checkpoint_step(path) > step or not _read_facts(path).get("due", True):
                    _remove(path)
        self._saved_step = broadcast_object(step if (self.folder / checkpoint_name(step)).exists() else -1)

    def on_step(self, trainer: Trainer) -> None:
        step = trainer.state.progress.step
        if step % (self.every or spacing(step)) == 0:
            self.save(trainer, due=True)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        self.save(trainer, due=False)

    def save(self, trainer: Trainer, *, due: bool) -> None:
        """Store the averages of the step just finished, unless they are, or there is nothing in them yet."""
        state, step = trainer.state, trainer.state.progress.step
        if step == self._saved_step or state.ema is None or state.ema.updates == 0:
            return
        if not trainer.flush():
            return
        averages = {file: state.whole_average(file) for file in state.ema.lengths}
        with sync_errors():
            if current().is_first:
                with explain_disk_error(self.folder, step):
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
        save_file(tensors, folder / file, metadata={"advect": state.metadata})
    rest = sorted(state.net.state_dict().keys() - state.ema.shadow.keys())
    facts = {"updates": state.ema.updates, "lengths": list(state.ema.lengths.values()), "rest": rest, "due": due}
    (folder / _FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    """Remove a snapshot in one step; what is left of it by a kill, the next one that is written removes."""
    doomed = path.with_name(f".{path.name}.removed.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def bring(folder: Path, to: Path) -> None:
    """Copy the snapshots of another run, where there are any, to one that goes on from it in its own folder."""
    if folder.is_dir() and not to.exists():
        shutil.copytree(folder, to)


@dataclass(frozen=True)
class Snapshot:
    """Averages of ``lengths`` after ``updates``, in ``path``; ``rest`` are tensors there that are not averaged."""

    path: Path
    step: int
    updates: int
    lengths: tuple[float, ...]
    rest: tuple[str, ...]


def read_snapshots(folder: Path, step: int | None = None) -> list[Snapshot]:
    """The snapshots in ``folder`` up to that of ``step``, or the newest, verified and by rising step.

    Raises UserError where there are none, none of that step, or one is damaged.
    """
    paths = {checkpoint_step(path): path for path in list_checkpoints(folder)}
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
            facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        except (UserError, OSError, ValueError) as error:
            raise UserError(f"{error}; remove that folder to go without it") from error
        found.append(Snapshot(path, number, facts["updates"], tuple(facts["lengths"]), tuple(facts["rest"])))
    return found


def combine(snapshots: Sequence[Snapshot], factors: Sequence[np.ndarray]) -> list[dict[str, Tensor]]:
    """For each of ``factors``, one for each snapshot's each length, the sum of the averages, in float32.

    What is not averaged is as in the last snapshot. Each file is read once.
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
    try:
        return json.loads((path / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


_NOTHING = 1e-12
"""Directions in which the stored profiles hardly differ, as a share of the largest, are left out."""


def _inner(ta: np.ndarray, ga: np.ndarray, tb: np.ndarray, gb: np.ndarray) -> np.ndarray:
    """The integral of p_a p_b, in logarithms as the powers are large.

    (ga + 1) (gb + 1) min(ta, tb)^(ga + gb + 1) / ((ga + gb + 1) ta^(ga + 1) tb^(gb + 1))
    """
    both = ga + gb + 1
    powers = both * np.log(np.minimum(ta, tb)) - (ga + 1) * np.log(ta) - (gb + 1) * np.log(tb)
    return (ga + 1) * (gb + 1) / both * np.exp(powers)


@dataclass(frozen=True)
class Fit:
    """Factors of the stored averages, which sum to 1, and the error of their profile.

    ``error`` is the norm of the difference between the profile wanted and the one rebuilt, over that of the former.
    """

    factors: np.ndarray
    error: float


class Profiles:
    """The profiles of averages stored after ``updates`` with ``lengths``, each a sequence of N numbers."""

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
        """The combination nearest to the average of ``length`` after ``updates``, in the mean square.

        Its factors are held to a sum of 1, so that weights that stand still are rebuilt as they are.
        """
        t, gamma = np.array(float(updates)), np.array(exponent(length))
        wanted = self._against(t, gamma)
        one = 1 / self._norm
        free, shift = self._inverse @ (wanted / self._norm), self._inverse @ one
        factors = (free + (1 - one @ free) / (one @ shift) * shift) / self._norm
        square = float(_inner(t, gamma, t, gamma))
        left = square - 2 * factors @ wanted + factors @ self._gram @ factors
        return Fit(factors, math.sqrt(max(0.0, left) / square))

    def reach(self, updates: int, error: float) -> tuple[float, float]:
        """The shortest and the longest length around the stored ones that are rebuilt within ``error``."""
        grid = np.round(np.arange(0.005, LONGEST, 0.005), 3).tolist()
        within = [length for length in grid if self.fit(updates, length).error <= error]
        stored = [length_of(gamma) for gamma in self._gamma]
        return min([*within, *stored]), max([*within, *stored])

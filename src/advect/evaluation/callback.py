"""Evaluation during training."""

from __future__ import annotations

import json
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from advect.checkpoint.manifest import HELD_OUT_LOSS, Best, checkpoint_name, checkpoint_step, read_best, write_best
from advect.core.errors import UserError
from advect.data import Dataset
from advect.distributed.comm import broadcast_object, sync_errors
from advect.evaluation.evaluator import EvalRows, Evaluator, SampleRequest
from advect.evaluation.feature_network import FeatureNetwork
from advect.evaluation.features import LEARNED, PIXELS, FeatureSpace
from advect.evaluation.workspace import MemoryWorkspace, open_cache
from advect.metrics.base import find_metrics
from advect.model.flow import Flow
from advect.training.callbacks import CheckpointCallback, MetricsFile, PeriodicCallback
from advect.training.guards import STOPPED_EARLY
from advect.training.loggers import Logger
from advect.training.trainer import Trainer

logger = logging.getLogger(__name__)

FEWEST = 20
"""Fewest rows of either split."""


def online_evaluator(flow: Flow, dataset: Dataset, *, samples: int, features: str | None) -> Evaluator:
    """Evaluator for training: the modality's two distances, in memory except for the cache.

    ``features`` as in :class:`~advect.evaluation.features.FeatureConfig`. Collective. Raises UserError for too few
    rows, and unreadable or unsuitable ``features``.
    """
    for split, part in (("training", dataset.train), ("held-out", dataset.held_out)):
        if len(part) < FEWEST:
            raise UserError(
                f"--eval-every compares with {FEWEST} {split} samples or more, and these data have {len(part):,}; "
                "hold out another share of them (--held-out), or leave --eval-every out"
            )
    with sync_errors():
        space = FeatureSpace(flow, dataset)
        if features is not None:
            space.modality.check_features(f"--eval-features {features}")
        if features not in (None, LEARNED, PIXELS):
            space = FeatureSpace(flow, dataset, FeatureNetwork(features, device=flow.device))
            space.data(dataset.held_out, torch.zeros(1, dtype=torch.int64))
        metrics, _ = find_metrics(space.modality.online_metrics, (), (), space.modality.name)
        rows, cache = EvalRows.choose(dataset, samples), open_cache()
    if features != PIXELS:
        space = space.learned(cache, named=features == LEARNED)
    return Evaluator(space, metrics, rows, MemoryWorkspace(show=False), cache)


def measure(evaluator: Evaluator, request: SampleRequest) -> dict[str, float]:
    """Metrics of samples and, as NAME_floor, of training data, on the first process."""
    result, floor = evaluator.measure(request), evaluator.floor
    if result is None or floor is None:
        return {}
    return result["metrics"] | {f"{name}_floor": floor[name] for name in evaluator.metrics if name in floor}


class BestCheckpoint(PeriodicCallback):
    """Measure every ``every`` steps with EMA weights, and keep the checkpoint with the smallest value.

    Values go to ``metrics`` as ``eval_NAME`` and to ``loggers`` as ``eval/NAME``; only the first process has them.
    ``keep`` names one of them; the checkpoint with its smallest value is retained, and named by the file ``best``. The
    best follows from the rows, so it survives kills.
    """

    def __init__(
        self,
        checkpoints: CheckpointCallback,
        *,
        every: int,
        keep: str | None,
        metrics: MetricsFile | None,
        loggers: Sequence[Logger],
    ) -> None:
        super().__init__(every)
        self.checkpoints, self.keep, self.metrics, self.loggers = checkpoints, keep, metrics, loggers
        self._metric = "eval_" + (keep or "frechet").replace("-", "_")
        self._row: dict = {}
        self._best: Best | None = None
        self._protocol: dict[str, int | str] = {}

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Values by name; on the first process."""

    def on_start(self, trainer: Trainer) -> None:
        self._recall(trainer)
        super().on_start(trainer)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        super().on_end(trainer, reason)
        with sync_errors():
            self.checkpoints.writer.wait()

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        super().on_rollback(trainer, row)
        self._recall(trainer)

    def has_run(self, step: int) -> bool:
        return any(row["step"] == step for row in self._rows())

    def run(self, step: int) -> None:
        values = {f"eval_{name}": value for name, value in self.measure().items()}
        self._row = broadcast_object({"step": step, **values, **self._protocol})
        if self.metrics is not None:
            self.metrics.write(self._row)
        for tracker in self.loggers:
            tracker.scalars({name.replace("_", "/", 1): value for name, value in values.items()}, step)

    def run_now(self, trainer: Trainer) -> None:
        """Evaluate, and keep the checkpoint if it is the best; not within a series of bad steps."""
        super().run_now(trainer)
        progress = trainer.state.progress
        if self._row.get("step") != progress.step:
            return
        value = self._row[self._metric]
        better = math.isfinite(value) and (self._best is None or value < self._best.value) and not progress.bad_row
        if better and self.keep is not None:
            self._best = Best(checkpoint_name(progress.step), self.keep, value)
            self.checkpoints.save(trainer)
            self.checkpoints.writer.mark(self._best)
        self.measured(trainer, better and self.keep is not None)

    def measured(self, trainer: Trainer, better: bool) -> None:
        """Called after each measurement, on all processes; ``better``: it is the best up to now."""

    def _rows(self) -> list[dict]:
        """Comparable rows of earlier evaluations; empty on other processes than the first."""
        if self.metrics is None or not self.metrics.path.exists():
            return []
        rows = map(json.loads, self.metrics.path.read_text(encoding="utf-8").splitlines())
        return [row for row in rows if self._protocol.items() <= row.items() and self._metric in row]

    def _recall(self, trainer: Trainer) -> None:
        """Find the best existing checkpoint up to now, and make ``best`` name it."""
        folder, best = self.checkpoints.writer.folder, None
        if self.metrics is not None and self.keep is not None:
            rows = [row for row in self._rows() if math.isfinite(row[self._metric])]
            rows = [row for row in rows if (folder / checkpoint_name(row["step"])).is_dir()]
            if rows:
                row = min(rows, key=lambda row: row[self._metric])
                best = Best(checkpoint_name(row["step"]), self.keep, row[self._metric])
            there = read_best(folder)
            later = there is not None and checkpoint_step(Path(there.name)) > trainer.state.progress.step
            if best != there and (best is not None or later):
                write_best(folder, best)
        self._best = broadcast_object(best)


class EvalCallback(BestCheckpoint):
    """Metrics of samples, which use the same noise each time; ``loss`` computes the held-out loss."""

    def __init__(
        self, evaluator: Evaluator, loss: Callable[[], float], checkpoints: CheckpointCallback, *, seed: int, **options
    ) -> None:
        super().__init__(checkpoints, **options)
        self.evaluator, self.loss, self.samples = evaluator, loss, len(evaluator.rows.floor)
        self._request = SampleRequest(n=self.samples, seed=seed)

    def on_start(self, trainer: Trainer) -> None:
        features = self.evaluator.space.features
        name = features.name if features.sha256 is None else f"{features.name} ({features.sha256[:8]})"
        self._protocol = {"eval_samples": self.samples, "eval_features": name}
        if self.metrics is not None:
            logger.info(
                f"every {self.every:,} steps {self.samples:,} samples are held against held-out data in {name}"
            )
        _ = self.evaluator.floor  # looking at the data may take minutes, and fail, before the first step
        super().on_start(trainer)

    def measure(self) -> dict[str, float]:
        values = measure(self.evaluator, self._request)
        return values | ({"held_out_loss": self.loss()} if self.keep == HELD_OUT_LOSS else {})

    def measured(self, trainer: Trainer, better: bool) -> None:
        if self.metrics is not None:
            logger.info(self._words() + ("; the best up to now" if better else ""))

    def _words(self) -> str:
        """The last row as text."""
        row, words = self._row, []
        for name, value in row.items():
            if isinstance(value, float) and not name.endswith(("_floor", "_se")):
                error = f" +- {row[f'{name}_se']:.2g}" if f"{name}_se" in row else ""
                floor = f" (training data {row[f'{name}_floor']:.4g})" if f"{name}_floor" in row else ""
                words.append(f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4g}{error}{floor}")
        return f"step {self._row['step']:,}, against held-out data: {', '.join(words)}"


class HeldOutLossCallback(BestCheckpoint):
    """Held-out loss of fixed noise and times; ends the run after ``patience`` measurements without a lower one."""

    def __init__(
        self, loss: Callable[[], float], checkpoints: CheckpointCallback, *, patience: int = 10, **options
    ) -> None:
        super().__init__(checkpoints, keep=HELD_OUT_LOSS, **options)
        self.loss, self.patience = loss, patience

    def measure(self) -> dict[str, float]:
        return {"held_out_loss": self.loss()}

    def measured(self, trainer: Trainer, better: bool) -> None:
        waited = broadcast_object(self._waited())
        if waited >= self.patience:
            trainer.stop(STOPPED_EARLY)

    def _waited(self) -> int:
        """Measurements since the best."""
        best = 0 if self._best is None else checkpoint_step(Path(self._best.name))
        return sum(row["step"] > best for row in self._rows())

    def on_end(self, trainer: Trainer, reason: str) -> None:
        super().on_end(trainer, reason)
        if self.metrics is None or self._best is None:
            return
        step, last = checkpoint_step(Path(self._best.name)), self._row.get(self._metric, math.nan)
        if step < trainer.state.progress.step:
            logger.info(
                f"the held-out loss was lowest at step {step:,} ({self._best.value:.4g}; {last:.4g} at the end): the "
                "run's samples, densities and report use that checkpoint"
            )

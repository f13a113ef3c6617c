"""How good the samples are while a run trains, and which of its checkpoints is the best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from advect.core.group import agree, broadcast_object
from advect.runs.look import Look
from advect.runs.yardstick import Yardstick
from advect.training.best import Best, read_best, write_best
from advect.training.boards import Board
from advect.training.checkpoint import checkpoint_name, checkpoint_step
from advect.training.hooks import Checkpoints, MetricsFile
from advect.training.trainer import Trainer


class WatchQuality(Look):
    """Every ``every`` steps, with EMA weights: the distance of samples to held-out data, and the best checkpoint.

    A row of ``metrics`` and curves on the ``boards``, called ``eval_`` and ``eval/`` and the measure's name, have the
    distances and their floors; those who have no ``metrics`` only help. Where ``keep`` names one of the yardstick's
    measures, or "held-out-loss", which ``loss`` computes, a checkpoint of the step with its smallest value is written
    and kept, and the file ``best`` beside it names it. Rows say what has been the best; so it outlives a run that is
    killed. ``tell`` is told each outcome.
    """

    def __init__(
        self,
        yardstick: Yardstick,
        loss: Callable[[], float],
        checkpoints: Checkpoints,
        *,
        every: int,
        keep: str | None,
        metrics: MetricsFile | None,
        boards: Sequence[Board],
        tell: Callable[[str], None],
    ) -> None:
        super().__init__(every)
        self.yardstick, self.loss, self.checkpoints, self.keep = yardstick, loss, checkpoints, keep
        self.metrics, self.boards, self.tell = metrics, boards, tell
        self._kept = "eval_" + (keep or "frechet").replace("-", "_")
        self._row: dict = {}
        self._best: float | None = None
        self._protocol: dict[str, int | str] = {}

    def on_start(self, trainer: Trainer) -> None:
        stick = self.yardstick
        self._protocol = {"eval_samples": stick.samples, "eval_features": stick.space}
        if self.metrics is not None:
            told = (
                f"every {self.every:,} steps {stick.samples:,} samples are held against held-out data in {stick.space}"
            )
            self.tell(told)
        stick.prepare()  # which may take minutes, and fail, before the first step
        self._recall(trainer)
        super().on_start(trainer)

    def on_end(self, trainer: Trainer, reason: str) -> None:
        super().on_end(trainer, reason)
        with agree():
            self.checkpoints.writer.wait()

    def on_rollback(self, trainer: Trainer, row: dict) -> None:
        super().on_rollback(trainer, row)
        self._recall(trainer)

    def has_looked(self, step: int) -> bool:
        return any(row["step"] == step for row in self._rows())

    def look(self, step: int) -> None:
        found = self.yardstick.measure()
        values = {f"eval_{name}": value for name, value in (found or {}).items()}
        if self.keep == "held-out-loss":
            values[self._kept] = self.loss()
        self._row = broadcast_object({"step": step, **values, **self._protocol})
        if self.metrics is not None:
            self.metrics.write(self._row)
        for board in self.boards:
            board.scalars({name.replace("_", "/", 1): value for name, value in values.items()}, step)

    def take(self, trainer: Trainer) -> None:
        """Look, and keep the checkpoint if none was better; within a row of bad steps none is kept."""
        super().take(trainer)
        progress = trainer.state.progress
        if self._row.get("step") != progress.step:
            return
        value = self._row[self._kept]
        better = math.isfinite(value) and (self._best is None or value < self._best) and not progress.bad_row
        if better and self.keep is not None:
            self._best = value
            self.checkpoints.save(trainer)
            self.checkpoints.writer.mark(Best(checkpoint_name(progress.step), self.keep, value))
        if self.metrics is not None:
            self.tell(self._words() + ("; the best up to now" if better and self.keep is not None else ""))

    def _words(self) -> str:
        """The last row, as a person reads it."""
        row, told = self._row, []
        for name, value in row.items():
            if isinstance(value, float) and not name.endswith(("_floor", "_se")):
                error = f" +- {row[f'{name}_se']:.2g}" if f"{name}_se" in row else ""
                floor = f" (training data {row[f'{name}_floor']:.4g})" if f"{name}_floor" in row else ""
                told.append(f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4g}{error}{floor}")
        return f"step {self._row['step']:,}, against held-out data: {', '.join(told)}"

    def _rows(self) -> list[dict]:
        """The rows of earlier looks that can be compared with those to come; none but on the first process."""
        if self.metrics is None or not self.metrics.path.exists():
            return []
        rows = map(json.loads, self.metrics.path.read_text(encoding="utf-8").splitlines())
        return [row for row in rows if self._protocol.items() <= row.items() and self._kept in row]

    def _recall(self, trainer: Trainer) -> None:
        """Find the best of the steps up to now whose checkpoint is there, and see that ``best`` names it."""
        folder, best = self.checkpoints.writer.folder, None
        if self.metrics is not None and self.keep is not None:
            rows = [row for row in self._rows() if math.isfinite(row[self._kept])]
            rows = [row for row in rows if (folder / checkpoint_name(row["step"])).is_dir()]
            if rows:
                row = min(rows, key=lambda row: row[self._kept])
                best = Best(checkpoint_name(row["step"]), self.keep, row[self._kept])
            there = read_best(folder)
            later = there is not None and checkpoint_step(Path(there.name)) > trainer.state.progress.step
            if best != there and (best is not None or later):
                write_best(folder, best)
        self._best = broadcast_object(None if best is None else best.value)

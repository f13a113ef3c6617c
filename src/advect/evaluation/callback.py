"""How far a flow's samples are from held-out data, measured again and again while it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from advect.checkpoint.manifest import Best, checkpoint_name, checkpoint_step, read_best, write_best
from advect.core.errors import UserError
from advect.data import Dataset, Split
from advect.distributed.comm import broadcast_object, current, gather_objects, sync_errors
from advect.evaluation import FeatureNetwork
from advect.evaluation.evaluator import open_cache
from advect.evaluation.feature_space import Comparable, Space
from advect.evaluation.sample_statistics import ROWS, SampleStatistics
from advect.evaluation.scores import EvalContext, measure_scores
from advect.evaluation.subsampling import rows
from advect.evaluation.workspace import on_rank_zero
from advect.model.flow import Flow
from advect.reporting.sample_grids import PeriodicCallback
from advect.training.callbacks import Checkpoints, MetricsFile
from advect.training.loggers import Logger
from advect.training.trainer import Trainer

CHUNK, FEWEST = 256, 20
"""Rows that a process looks at, at once; the fewest of a set."""

Kept = Mapping[str, Tensor]


class Yardstick:
    """Holds ``samples`` samples of a flow against the held-out data, by the same noise and the same data each time.

    The squared Frechet distance, and for images the kernel distance, for all else the energy distance, as ``advect
    eval`` takes them: see :class:`Comparable` for the units, and for the features where
    ``features`` names no file of a network. Memory does not grow with the samples. What was computed of data is kept
    where ``advect eval`` keeps it. Processes share the work, chunk by chunk, so that their number changes no bit of
    what is drawn; the first one knows the outcome.

    Raises UserError for too few rows, and ``features`` that cannot be read or do not fit the data.
    """

    def __init__(self, flow: Flow, source: Dataset, *, samples: int, features: Path | None, seed: int) -> None:
        for split, part in (("training", source.train), ("held-out", source.held_out)):
            if len(part) < FEWEST:
                raise UserError(
                    f"--eval-every compares with {FEWEST} {split} samples or more, and these data have {len(part):,}; "
                    "hold out another share of them (--held-out), or leave --eval-every out"
                )
        self.flow, self.source, self.seed = flow, source, seed
        self.samples, self._comparable = min(samples, len(source.train)), Comparable(flow, values=False)
        self.metrics = ("frechet", "kernel" if self._comparable.kind == "image" else "energy")
        with sync_errors():
            self._network = None if features is None else self._open(features)

    def _open(self, file: Path) -> FeatureNetwork:
        kind = self._comparable.kind
        if kind != "image":
            raise UserError(f"--eval-features {file} is for images, and these are {kind} data; leave it out")
        network = FeatureNetwork(file, device=self.flow.device)
        one, space = torch.zeros(1, dtype=torch.int64), self._comparable.space(self.source, network)
        self._comparable.data(self.source.held_out, one, space)
        return network

    @property
    def space(self) -> str:
        """The features in words."""
        sha256 = self._space.sha256
        return self._space.name if sha256 is None else f"{self._space.name} ({sha256[:8]})"

    @cached_property
    def _space(self) -> Space:
        return self._comparable.space(self.source, self._network)

    def prepare(self) -> None:
        """Look at the data, as the first measurement otherwise would; all processes do so together."""
        _ = self._ground

    def measure(self) -> dict[str, float] | None:
        """The distances by name, of samples and, as NAME_floor, of training data; None but on the first process."""
        ground, found = self._ground, self._summed(self._draw, self.samples)

        def compare() -> dict[str, float]:
            assert ground is not None and found is not None
            here = measure_scores(self.metrics, found, ground.held_out, ground)
            return here | {f"{name}_floor": self._floor[name] for name in self.metrics}

        return on_rank_zero(compare)

    @cached_property
    def _ground(self) -> EvalContext | None:
        train = self._data(self.source.train, self.samples)
        held_out = self._data(self.source.held_out, len(self.source.held_out))
        if train is None or held_out is None:
            return None
        here = self._comparable
        return EvalContext(here.kind, train, held_out, here.categories, here.categorical, self._space.units)

    @cached_property
    def _floor(self) -> dict[str, float]:
        """What as many training samples come to."""
        assert self._ground is not None
        return measure_scores(self.metrics, self._ground.train, self._ground.held_out, self._ground)

    def _data(self, split: Split, count: int) -> SampleStatistics | None:
        """The summary of ``count`` rows of a split, on the first process; the same rows that ``advect eval`` takes."""
        places, cache, kept = rows(len(split), count, 0).sort().values, None, None
        key = {
            "fingerprint": self.source.fingerprint,
            "split": "train" if split is self.source.train else "held-out",
            "rows": f"{count} of {len(split)}",
            "features": self._space.exact,
            "values": "False",
            "what": f"summary of at most {ROWS} rows",
        }
        with sync_errors():
            if current().is_first:
                cache = open_cache()
                kept = cache.load(key)
        if broadcast_object(kept is not None):
            return None if kept is None else SampleStatistics.from_tensors(kept)

        def look(part: range) -> Kept:
            if part.start >= count:
                return {}
            return self._comparable.data(split, places[part.start : part.stop], self._space)

        found = self._summed(look, count)
        with sync_errors():
            if cache is not None and found is not None:
                cache.keep(key, found.tensors())
        return found

    def _draw(self, part: range) -> Kept:
        """What is kept of the samples in this part; of a sharded network all processes must ask equally often."""
        sampler, seed = self.flow.sampler, self.seed
        n = max(part.stop, self.samples)
        x = self.flow.sample(n, seed=seed, rows=part, steps=sampler.steps, solver=sampler.solver)
        cond = self.flow.conditions(n, None, seed, rows=part)
        return self._comparable.samples(x, cond, self._space, first=part.start, seed=seed)

    def _summed(self, look: Callable[[range], Kept], count: int) -> SampleStatistics | None:
        """The summary of ``count`` rows, of which each process looks at every world-th part; on the first process."""
        parts = self._in_turn(look, count)
        if current().is_first:
            return SampleStatistics.of(parts, count)
        for _ in parts:
            pass
        return None

    def _in_turn(self, look: Callable[[range], Kept], count: int) -> Iterator[Kept]:
        """What all processes keep of the rows, in order; nothing comes of it but on the first process."""
        me, parts = current(), -(-count // CHUNK)
        for k in range(0, parts, me.world):
            mine = k + me.rank
            kept = look(range(mine * CHUNK, (mine + 1) * CHUNK))
            for i, part in enumerate(gather_objects(kept) or ()):
                left = count - (k + i) * CHUNK
                if left > 0:
                    yield {name: value[:left] for name, value in part.items()}


class EvalCallback(PeriodicCallback):
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
        boards: Sequence[Logger],
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
        with sync_errors():
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

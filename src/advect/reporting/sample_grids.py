"""Sample grids and held-out loss during training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advect.core.types import Batch, Category
from advect.data import Split
from advect.data.figure import save_png
from advect.distributed.comm import current, gather_objects
from advect.distributed.context import progress_bar
from advect.evaluation.held_out import held_out_loss
from advect.losses import Loss
from advect.model.conditions import CYCLE
from advect.model.flow import Flow
from advect.model.samples import Samples
from advect.training.callbacks import MetricsFile, PeriodicCallback
from advect.training.loggers import Logger
from advect.training.trainer import Trainer


class SampleGridCallback(PeriodicCallback):
    """Sample grid and held-out loss every ``every`` steps, or by time, with EMA weights.

    Processes share the sampling; the first, which has ``metrics``, writes.
    """

    watches = "the picture of samples"

    def __init__(
        self,
        flow: Flow,
        loss_fn: Loss,
        held_out: Split,
        folder: Path,
        *,
        every: int | None,
        samples: int,
        seed: int,
        metrics: MetricsFile | None,
        loggers: Sequence[Logger],
    ) -> None:
        super().__init__(every)
        self.flow, self.loss_fn, self.held_out, self.folder = flow, loss_fn, held_out, folder
        self.samples, self.seed, self.metrics, self.loggers = samples, seed, metrics, loggers
        self._reference: Batch | None = None
        categories = [name for name, kind in flow.spec.conditions.items() if isinstance(kind, Category)]
        self._cond = dict.fromkeys(categories[:1], CYCLE)

    def on_start(self, trainer: Trainer) -> None:
        if self.metrics is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        super().on_start(trainer)

    def has_run(self, step: int) -> bool:
        return self._picture(step).exists()

    def _picture(self, step: int) -> Path:
        """Last file written at a step."""
        return self.folder / f"step-{step:08d}.png"

    def run(self, step: int) -> None:
        loss = None
        if rows := min(len(self.held_out), 2048):
            loss = held_out_loss(
                self.flow.output, self.loss_fn, self.held_out, self.seed, device=self.flow.device, draws=rows
            )
        if self.metrics is not None and loss is not None:
            self.metrics.write({"step": step, "held_out_loss": loss})
            for tracker in self.loggers:
                tracker.scalars({"held_out/loss": loss}, step)
        samples = self._sample()
        if self.metrics is not None and samples is not None:
            with self.spared():
                self._draw(samples, step)

    def _draw(self, samples: Samples, step: int) -> None:
        if self._reference is None:
            self._reference = self.flow.modality.reference(self.held_out)
        image = self.flow.modality.plot(samples.x, samples.encoded, self._reference)
        for tracker in self.loggers:
            tracker.picture("samples", image, step)
        save_png(image, self._picture(step))

    def _sample(self) -> Samples | None:
        """All samples on the first process, None on the others."""
        me = current()
        share = -(-self.samples // me.world)  # of a sharded network all must ask equally often
        rows = range(share * me.rank, share * (me.rank + 1))
        with progress_bar(share, "pictures", "sample", leave=False) as bar:
            options = {"seed": self.seed, "cond": self._cond, "rows": rows, "progress": bar}
            parts = gather_objects(self.flow.sample(share * me.world, **options))
        return None if parts is None else Samples.concatenate(parts)[: self.samples]

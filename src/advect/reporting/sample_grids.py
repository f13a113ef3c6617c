"""Sample grids and held-out loss during training."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from advect.core.types import Batch, Category
from advect.data import Split
from advect.data.figure import save_png
from advect.distributed.comm import broadcast_object, current, gather_objects
from advect.distributed.context import progress_bar
from advect.evaluation.held_out import held_out_loss
from advect.losses import Loss
from advect.model.conditions import CYCLE
from advect.model.flow import Flow
from advect.model.samples import Samples
from advect.training.callbacks import MetricsFile, PeriodicCallback
from advect.training.loggers import Logger
from advect.training.trainer import Trainer

logger = logging.getLogger(__name__)


DRAW_SECONDS, LOSS_SECONDS = 6.0, 3.0
"""Most of sampling a picture, and of its held-out loss, where pictures come by time."""

FEWEST = 4
"""Samples below which the steps of the solver become fewer."""

DRAWS, LEAST_DRAWS = 2048, 16
"""Most and fewest draws of the held-out loss."""

USUAL_NFE = 50
"""Evaluations of solvers that choose them."""


class SampleGridCallback(PeriodicCallback):
    """Sample grid and held-out loss every ``every`` steps, or by time, with EMA weights.

    By time, a picture has as many of the ``samples`` as some seconds allow at the speed so far, the last one all if
    there is time. Processes share the sampling; the first, which has ``metrics``, writes.
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
        self._shown, self._steps, self._draws = samples, flow.sampler.steps, min(len(held_out), DRAWS)
        self._each: float | None = None
        self._first, self._planned, self._ending = 0, False, False

    def on_start(self, trainer: Trainer) -> None:
        self._first = trainer.state.progress.step
        if self.metrics is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        super().on_start(trainer)

    def has_run(self, step: int) -> bool:
        return self._picture(step).exists()

    def _picture(self, step: int) -> Path:
        """Last file written at a step."""
        return self.folder / f"step-{step:08d}.png"

    def on_end(self, trainer: Trainer, reason: str) -> None:
        self._ending = True
        super().on_end(trainer, reason)

    def run_now(self, trainer: Trainer) -> None:
        if self.every is None:
            self._plan(trainer)
        super().run_now(trainer)

    def _plan(self, trainer: Trainer) -> None:
        """Choose samples, steps and draws that the seconds allow, by the last picture, or else the training."""
        steps, sampler = trainer.state.progress.step - self._first, self.flow.sampler
        each = self._each  # seconds of an evaluation of one sample; a training step takes three
        if each is None:
            each = trainer.clock / (3 * max(steps, 1) * trainer.loader.global_batch)
        seconds = DRAW_SECONDS
        if self._ending:
            minutes = trainer.limits.max_minutes
            seconds = math.inf if minutes is None else max(seconds, 60 * minutes - trainer.clock - LOSS_SECONDS)
        fits = seconds / max(each * (self.flow.nfe(sampler) or USUAL_NFE), 1e-9)
        self._shown = self.samples if fits >= self.samples else max(min(FEWEST, self.samples), int(fits))
        self._steps = sampler.steps
        if sampler.steps and fits < min(FEWEST, self.samples):
            self._steps = max(2, int(sampler.steps * fits / FEWEST))
        if not self._planned:  # always the same draws, so that losses compare
            self._draws = min(self._draws, max(LEAST_DRAWS, int(LOSS_SECONDS / max(each, 1e-9))))
            self._planned = True
            if self._shown < self.samples:
                coarse = f" in {self._steps} steps instead of {sampler.steps}" if self._steps != sampler.steps else ""
                logger.info(
                    f"note: pictures have about {self._shown} of {self.samples} samples{coarse}, as sampling is slow "
                    "here; the last one has all if there is time"
                )

    def run(self, step: int) -> None:
        loss = None
        if self._draws:
            options = {"device": self.flow.device, "draws": self._draws}
            loss = held_out_loss(self.flow.output, self.loss_fn, self.held_out, self.seed, **options)
        if self.metrics is not None and loss is not None:
            fewer = {"held_out_draws": self._draws} if self._draws < min(len(self.held_out), DRAWS) else {}
            self.metrics.write({"step": step, "held_out_loss": loss, **fewer})
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
        """The samples on the first process, None on the others."""
        me, began = current(), monotonic()
        share = -(-self._shown // me.world)  # of a sharded network all must ask equally often
        rows = range(share * me.rank, share * (me.rank + 1))
        with progress_bar(share, "pictures", "sample", leave=False) as bar:
            options = {"seed": self.seed, "cond": self._cond, "rows": rows, "progress": bar, "steps": self._steps}
            made = self.flow.sample(share * me.world, **options)
            parts = gather_objects(made)
        self._each = broadcast_object((monotonic() - began) / (share * me.world * made.nfe))
        return None if parts is None else Samples.concatenate(parts)[: self._shown]

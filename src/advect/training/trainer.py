"""Training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from advect.core.device import check_compiler, cuda_kernels, device_peak
from advect.core.errors import UserError
from advect.core.random import Stream, stream_seed
from advect.distributed.comm import current
from advect.distributed.context import EVERY_RANK
from advect.training.guards import StopCriteria, StopGuard, TimePlan, Watchdog, check_learned, explain_oom, roll_back
from advect.training.learning_rate import LearningRate
from advect.training.loader import Loader, Prefetcher
from advect.training.state import TrainState
from advect.training.step import Loss, LossInput, Step, StepMetrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_SECONDS = 10.0
"""Longest time between logged steps, if their number is not given."""


class Callback:
    """Events of training, all optional.

    All processes call ``on_step``, ``on_epoch``, ``on_log`` and ``on_end`` at the same steps.
    """

    trouble: UserError | None = None
    """Error of a background task that ends the run."""

    def on_start(self, trainer: Trainer) -> None: ...
    def on_log(self, trainer: Trainer, row: dict) -> None: ...
    def on_gradients(self, trainer: Trainer, grads: dict[str, Tensor], step: int) -> None: ...
    def on_epoch(self, trainer: Trainer, loss: float) -> None: ...
    def on_step(self, trainer: Trainer) -> None: ...
    def on_bad_step(self, trainer: Trainer, row: dict) -> None: ...
    def on_rollback(self, trainer: Trainer, row: dict) -> None: ...
    def on_end(self, trainer: Trainer, reason: str) -> None: ...
    def on_error(self, trainer: Trainer) -> None: ...
    def close(self) -> None: ...

    def kept(self) -> str:
        """Words on what is left of the run, to end the sentence of an error."""
        return ""

    def checkpoint_before(self, step: int) -> Path | None:
        """Newest complete checkpoint with fewer than ``step`` finished steps."""


class Trainer:
    """Train ``state.net`` with ``loss`` on the loader's batches, and call the callbacks.

    Randomness is a function of (seed, step, row of the global batch); layers such as dropout also depend on the rank.
    ``log_gradients`` N hands the gradients of every N-th step to the callbacks (0: never).
    ``prefetch_coupling`` samples source, coupling, times and path of the next step in a thread. ``tf32`` and
    ``deterministic`` choose kernels, see :func:`cuda_kernels`.
    """

    def __init__(
        self,
        state: TrainState,
        loss: Loss,
        loader: Loader,
        *,
        rate: LearningRate,
        limits: StopCriteria,
        grad_clip: float = 1.0,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
        tf32: bool = False,
        deterministic: bool = False,
        compile_model: bool = False,
        prefetch_coupling: bool = False,
        max_bad_steps: int = 10,
        seed: int = 0,
        log_every: int | None = 50,
        log_gradients: int = 0,
        device: torch.device | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        if log_every is not None and log_every < 1:
            raise UserError(f"log_every must be at least 1 step, got {log_every}")
        if max_bad_steps < 1:
            raise UserError(f"max_bad_steps must be at least 1 step, got {max_bad_steps}; 10 is usual")
        self.state, self.loss, self.loader, self.rate, self.limits = state, loss, loader, rate, limits
        self._usual_rate = rate
        self.seed, self.max_bad_steps = seed, max_bad_steps
        self.tf32, self.deterministic = tf32, deterministic
        self.log_every, self.log_gradients = log_every, log_gradients
        self.device = device or torch.device("cpu")
        self.callbacks = callbacks
        if compile_model:
            check_compiler(self.device)
        self.step = Step(
            state,
            device=self.device,
            grad_clip=grad_clip,
            autocast=autocast,
            accumulate=accumulate,
            compile_model=compile_model,
        )
        self._peak = device_peak(self.device, autocast)
        self._prefetcher = Prefetcher(self._sample) if prefetch_coupling else None

    @property
    def limits(self) -> StopCriteria:
        """Where the run ends; its ``steps`` are those of the plan once ``max_minutes`` has set them."""
        return self._limits

    @limits.setter
    def limits(self, limits: StopCriteria) -> None:
        self._limits = self._usual_limits = limits

    @property
    def epoch(self) -> int:
        """Finished passes over the data."""
        return self.state.progress.seen // len(self.loader)

    @property
    def ended_epoch(self) -> int | None:
        """The epoch that the last step ended, or None."""
        before = (self.state.progress.seen - self.loader.global_batch) // len(self.loader)
        return self.epoch if self.epoch > max(before, 0) else None

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        return self.rate(self.state.progress.step) * self.state.progress.rate

    def run(self) -> str:
        """Train; return the reason of the end: "finished", "max-steps", "max-minutes" or a signal's name.

        Raises UserError on all processes if the loss stays non-finite, memory runs out, or a callback has trouble.
        """
        with ExitStack() as cleanup:
            stop = cleanup.enter_context(StopGuard())
            cleanup.enter_context(cuda_kernels(self.device, tf32=self.tf32, deterministic=self.deterministic))
            for callback in self.callbacks:
                cleanup.callback(callback.close)
            cleanup.callback(self.loader.close)
            if self._prefetcher is not None:
                cleanup.callback(self._prefetcher.close)
            self._watchdog = Watchdog(self._report_stall)
            cleanup.callback(self._watchdog.close)
            with self._keeping(), explain_oom():
                return self._loop(stop)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """At an error have the callbacks keep what was learned, and a UserError tell what is there."""
        try:
            yield
        except Exception as error:
            if current().world == 1 and not self.step.moving:  # else the others wait, or the weights are half moved
                for callback in self.callbacks:
                    with suppress(Exception):  # the first error is the one to tell
                        callback.on_error(self)
            words = "; ".join(filter(None, (callback.kept() for callback in self.callbacks)))
            if isinstance(error, UserError) and words not in str(error):
                told = UserError(f"{error}; {words}")
                told.agreed = error.agreed
                raise told from error
            raise

    def stop(self, reason: str) -> None:
        """End the run after this step; call on all processes."""
        self._reason = reason

    @property
    def clock(self) -> float:
        """Seconds since the start, the same on all processes."""
        return self._stop.clock

    def _loop(self, stop: StopGuard) -> str:
        self._stop, self._logged, self._reason = stop, 0.0, None
        self._start_from_state()
        time_plan = TimePlan(self.limits.max_minutes, self.state.progress)
        if self.state.progress.plans and not time_plan.fixed:
            self._end_at(self._usual_limits.steps)  # until the clock says where
        self.state.net.train()
        for callback in self.callbacks:
            callback.on_start(self)
        while True:
            reason = stop.reason(self.limits, self.state.progress.step, self._trouble()) or self._reason
            if reason is None:
                if (last := time_plan.last_step(self.state.progress.step, self.clock)) is not None:
                    self._end_at(last)
                self._train_step()
                self._after_step()
            elif self.flush():
                break
        check_learned(self.state.progress)
        stop.close()
        for callback in self.callbacks:
            callback.on_end(self, reason)
        return reason

    def _train_step(self) -> None:
        progress = self.state.progress
        self._seed_layers(progress.step)
        inputs, observe = self._inputs(progress.step), None
        if self.log_gradients and (progress.step + 1) % self.log_gradients == 0:
            observe = self._show_gradients
        loss, norm = self.step.take(self.loss, inputs, self.learning_rate, observe)
        self.metrics.add(loss, norm)
        progress.step += 1
        progress.seen += self.loader.global_batch
        self.step.moving = False

    def _show_gradients(self, grads: dict[str, Tensor]) -> None:
        for callback in self.callbacks:
            callback.on_gradients(self, grads, self.state.progress.step + 1)

    def _inputs(self, step: int) -> LossInput:
        """Path samples of the step; prefetching counts as waiting for data."""
        if self._prefetcher is not None:
            return self._wait_for(self._prefetcher, step)
        return self._sample(step)

    def _sample(self, step: int) -> LossInput:
        """Sample batch, source, coupling, times and path."""
        batch = self.loader.batch(step) if self._prefetcher else self._wait_for(self.loader.batch, step)
        return self.loss.sample(batch.to(self.device), self.loader.rng(Stream.STEP, step))

    def _after_step(self) -> None:
        progress = self.state.progress
        if self._log_due() and self.flush():
            self._log()
        if self.ended_epoch is not None and self.flush():
            loss = progress.epoch_loss.take()
            for callback in self.callbacks:
                callback.on_epoch(self, loss)
        for callback in self.callbacks:
            callback.on_step(self)

    def flush(self) -> bool:
        """Read the metrics of the last steps, synchronising with the device; False after a rollback.

        Raises UserError after too many bad steps in a row without a possible or helpful rollback.
        """
        for bad in self.metrics.read():
            rows = self.loader.indices(bad.step - 1).tolist()
            row = {"step": bad.step, "bad_step": {"loss": repr(bad.loss), "grad_norm": repr(bad.norm), "rows": rows}}
            for callback in self.callbacks:
                callback.on_bad_step(self, row)
            progress = self.state.progress
            if progress.bad_row >= self.max_bad_steps and bad.step == progress.step:
                found = (callback.checkpoint_before(bad.step - progress.bad_row + 1) for callback in self.callbacks)
                row = roll_back(self.state, next(filter(None, list(found)), None), bad)
                last = self.limits.steps
                self._start_from_state()
                self._end_at(last)
                for callback in self.callbacks:
                    callback.on_rollback(self, row)
                return False
        return True

    def _log_due(self) -> bool:
        """Whether to log this step: every so many, or 300 times and at least every ten seconds."""
        step = self.state.progress.step
        if self.log_every is not None:
            return step % self.log_every == 0
        due = step % max(1, self.limits.steps // 300) == 0 or self.clock - self._logged >= LOG_SECONDS
        self._logged = self.clock if due else self._logged
        return due

    def _end_at(self, last: int) -> None:
        """Make ``last`` the run's last step, unless it was to end before."""
        progress, last = self.state.progress, min(last, self._usual_limits.steps)
        if last != self.limits.steps:
            progress.plans.append([progress.step, last])
            self._follow(progress.plans[-1:])

    def _follow(self, plans: Sequence[Sequence[int]]) -> None:
        for step, last in plans:
            self.rate = self.rate.replanned(step, last)
            self._limits = replace(self.limits, steps=last)

    def _start_from_state(self) -> None:
        progress = self.state.progress
        self.rate, self._limits = self._usual_rate, self._usual_limits
        self._follow(progress.plans)
        self.metrics = StepMetrics(progress, scaled=self.state.loss_scaler is not None)
        self.loader.start_at(progress.step, progress.seen)

    def _log(self) -> None:
        progress, scaler = self.state.progress, self.state.loss_scaler
        if progress.loss.count == 0:  # all steps since the last row were skipped
            return
        speed = self.metrics.speed(self.loader.global_batch)
        steps_per_s = speed.pop("steps_per_s")
        row = {
            "step": progress.step,
            "seen": progress.seen,
            "epoch": self.epoch,
            "loss": progress.loss.take(),
            "grad_norm": progress.grad_norm.take(),
            "lr": self.rate(progress.step - 1) * progress.rate,
            **speed,
        }
        if self.step.flops is not None:
            row["flops_per_s"] = steps_per_s * self.step.flops * current().world
            if self._peak is not None:
                row["mfu"] = row["flops_per_s"] / (self._peak * current().world)
        if scaler is not None:
            row |= {"loss_scale": scaler.scale, "skipped_steps": scaler.skipped}
        if progress.bad:
            row["bad_steps"] = progress.bad
        for callback in self.callbacks:
            callback.on_log(self, row)

    def _trouble(self) -> UserError | None:
        return next((callback.trouble for callback in self.callbacks if callback.trouble is not None), None)

    def _seed_layers(self, step: int) -> None:
        """Seed the random numbers of layers such as dropout."""
        rank = current().rank
        self.step.layers.seed(stream_seed(self.seed, Stream.LAYERS, step, *([rank] if rank else [])))

    def _wait_for(self, get: Callable[[int], T], step: int) -> T:
        """``get(step)``, timed as waiting for data."""
        began = time.monotonic()
        self._watchdog.begin("data")
        value = get(step)
        self._watchdog.end()
        self.metrics.waited += time.monotonic() - began
        return value

    def _report_stall(self, name: str, seconds: float) -> None:
        who = f"{current().name}: " if current().world > 1 else ""
        logger.warning(
            f"{who}step {self.state.progress.step + 1:,} has waited for {name} for {seconds:.0f} s; if that "
            "is not the disk's usual speed, see that the data can still be read, or raise --num-workers",
            extra=EVERY_RANK,
        )

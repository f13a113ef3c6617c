"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.hardware import device_peak
from advect.core.platform import check_compiler
from advect.core.random import CounterRng, mix
from advect.core.types import Batch
from advect.training.ahead import Ahead
from advect.training.loader import Loader
from advect.training.schedule import LearningRate
from advect.training.signals import StopSignals
from advect.training.state import TrainState
from advect.training.step import Drawn, Objective, Step, TwoPart

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a run ends: after ``steps``; earlier after ``max_steps`` finished steps or ``max_minutes`` of this start.

    The two maxima do not enter the schedule of the learning rate, so a run that they end and that is resumed
    equals one that was never stopped.
    """

    steps: int
    max_steps: int | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"num_epochs leaves {self.steps} steps to train; raise --num-epochs or lower --batch-size")
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max_steps must be at least 1, got {self.max_steps}; leave it out for no limit")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise UserError(f"max_minutes must be > 0, got {self.max_minutes}; leave it out for no limit")

    @property
    def last_step(self) -> int:
        """The number of finished steps at which the run ends, if its minutes suffice."""
        return self.steps if self.max_steps is None else min(self.steps, self.max_steps)


class Hook:
    """What happens around the steps: logging, pictures, checkpoints. Every method may be left out."""

    def on_start(self, trainer: Trainer) -> None: ...
    def on_log(self, trainer: Trainer, row: dict) -> None: ...
    def on_epoch(self, trainer: Trainer, loss: float) -> None: ...
    def on_step(self, trainer: Trainer) -> None: ...
    def on_end(self, trainer: Trainer, reason: str) -> None: ...
    def close(self) -> None: ...


class Trainer:
    """Trains ``state.net`` on ``objective`` over the loader's batches, and tells its hooks.

    ``run`` returns why it ended: "finished", "max-steps", "max-minutes" or the name of a signal. Every random
    number of a step comes from (seed, step), so the state alone, at any step, determines what follows.
    """

    def __init__(
        self,
        state: TrainState,
        objective: Objective,
        loader: Loader,
        *,
        rate: LearningRate,
        limits: Limits,
        grad_clip: float = 1.0,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
        compile_model: bool = False,
        pair_ahead: bool = False,
        seed: int = 0,
        log_every: int = 50,
        device: torch.device | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        if log_every < 1:
            raise UserError(f"log_every must be at least 1 step, got {log_every}")
        self.state, self.objective, self.loader, self.rate, self.limits = state, objective, loader, rate, limits
        self.seed, self.log_every = seed, log_every
        self.device = device or torch.device("cpu")
        self.hooks = hooks
        if compile_model:
            check_compiler(self.device)
        self._take = Step(
            state,
            torch.compile(state.net) if compile_model else state.net,
            device=self.device,
            grad_clip=grad_clip,
            autocast=autocast,
            accumulate=accumulate,
        )
        self._peak = device_peak(self.device, autocast)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._wait = 0.0
        self._halves = objective if isinstance(objective, TwoPart) else None
        self._ahead = Ahead(self._draw) if pair_ahead else None
        for name, asked in (("pair_ahead", pair_ahead), ("accumulate", accumulate > 1)):
            if asked and self._halves is None:
                raise UserError(f"{name} needs an objective with draw and compare, got {type(objective).__name__}")

    @property
    def epoch(self) -> int:
        """The number of finished passes over the data."""
        return self.state.progress.seen // len(self.loader)

    def run(self) -> str:
        """Train until a limit or a signal; see the class. Raises UserError when the loss stops being finite."""
        with StopSignals() as signals, torch.random.fork_rng():
            try:
                self._started = self._log_time = time.monotonic()
                self._seconds_before, self._log_step = self.state.progress.seconds, self.state.progress.step
                self.loader.start_at(self.state.progress.step, self.state.progress.seen)
                self.state.net.train()
                self._tell("on_start")
                while (reason := self._reason_to_stop(signals)) is None:
                    self._step()
                    self._after_step()
                self.flush()
                self._tell("on_end", reason)
                return reason
            finally:
                if self._ahead is not None:
                    self._ahead.close()
                self.loader.close()
                for hook in self.hooks:
                    hook.close()

    def _step(self) -> None:
        progress = self.state.progress
        self._seed_layers(mix(self.seed, 3, progress.step))
        self._pending.append(self._descend(progress.step, self.rate(progress.step)))
        progress.step += 1
        progress.seen += self.loader.batch_size

    def _descend(self, step: int, lr: float) -> tuple[Tensor, Tensor]:
        """Take the step; return its loss and the norm of the gradient."""
        if self._halves is None:
            batch = self._batch(step)
            return self._take.on_batch(lambda net: self.objective(net, batch, self._rng(step)), lr)
        drawn = self._draw(step) if self._ahead is None else self._waiting(self._ahead, step)
        return self._take.on_drawn(self._halves, drawn, lr)

    def _draw(self, step: int) -> Drawn:
        assert self._halves is not None
        return self._halves.draw(self._batch(step), self._rng(step))

    def _batch(self, step: int) -> Batch:
        batch = self.loader.batch(step) if self._ahead else self._waiting(self.loader.batch, step)
        return batch.to(self.device)

    def _waiting(self, get: Callable[[int], T], step: int) -> T:
        """``get(step)``, its time counted as waiting for data."""
        began = time.monotonic()
        value = get(step)
        self._wait += time.monotonic() - began
        return value

    def _rng(self, step: int) -> CounterRng:
        return CounterRng(mix(self.seed, 4), step, self.loader.batch_size)

    def _seed_layers(self, seed: int) -> None:
        """Seed PyTorch's own generator, which layers such as dropout draw from."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def _after_step(self) -> None:
        progress, size = self.state.progress, len(self.loader)
        if progress.step % self.log_every == 0:
            self._log()
        if progress.seen // size > (progress.seen - self.loader.batch_size) // size:
            self.flush()
            self._tell("on_epoch", progress.epoch_loss.take())
        self._tell("on_step")

    def flush(self) -> None:
        """Read the losses and norms of the last steps, which waits for the device, and see that they are finite."""
        progress = self.state.progress
        progress.seconds = self._seconds_before + time.monotonic() - self._started
        pending, self._pending = self._pending, []
        if not pending:
            return
        losses, norms = (torch.stack(values).tolist() for values in zip(*pending, strict=True))
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                if self.state.scale is not None:  # it has skipped the step
                    continue
                raise UserError(
                    f"the loss or its gradient is not finite (loss {loss}, gradient norm {norm}) at step "
                    f"{progress.step - len(losses) + i + 1}; lower --learning-rate, keep --grad-clip at 1, or train "
                    "with --no-mixed-precision; the last checkpoint is whole"
                )
            progress.loss.add(loss)
            progress.grad_norm.add(norm)
            progress.epoch_loss.add(loss)

    def _log(self) -> None:
        self.flush()
        progress, now = self.state.progress, time.monotonic()
        if progress.loss.count == 0:  # float16 skipped all steps since the last row
            return
        steps, elapsed = progress.step - self._log_step, max(now - self._log_time, 1e-9)
        row = {
            "step": progress.step,
            "seen": progress.seen,
            "epoch": self.epoch,
            "loss": progress.loss.take(),
            "grad_norm": progress.grad_norm.take(),
            "lr": self.rate(progress.step - 1),
            "samples_per_s": steps * self.loader.batch_size / elapsed,
            "data_wait": self._wait / elapsed,
            "seconds": progress.seconds,
        }
        if self._take.flops is not None:
            row["flops_per_s"] = steps * self._take.flops / elapsed
            if self._peak is not None:
                row["mfu"] = row["flops_per_s"] / self._peak
        if self.state.scale is not None:
            row |= {"loss_scale": self.state.scale.scale, "skipped_steps": self.state.scale.skipped}
        self._log_time, self._log_step, self._wait = now, progress.step, 0.0
        self._tell("on_log", row)

    def _reason_to_stop(self, signals: StopSignals) -> str | None:
        step, limits = self.state.progress.step, self.limits
        if signals.received is not None:
            return signals.received
        if step >= limits.steps:
            return "finished"
        if limits.max_steps is not None and step >= limits.max_steps:
            return "max-steps"
        if limits.max_minutes is not None and time.monotonic() - self._started >= 60 * limits.max_minutes:
            return "max-minutes"
        return None

    def _tell(self, event: str, *args: object) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self, *args)

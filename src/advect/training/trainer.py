"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor

from advect.core.device import check_compiler, device_peak
from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import Batch
from advect.distributed.comm import current, sync_errors
from advect.distributed.context import EVERY_RANK
from advect.training.callbacks import Callback
from advect.training.faults import LOWER_RATE, Watchdog, explain_oom, not_finite
from advect.training.loader import Loader, Prefetcher
from advect.training.optim import LearningRate
from advect.training.state import TrainState
from advect.training.step import Drawn, Loss, Step, TwoPart
from advect.training.step_metrics import BadStep, StepMetrics
from advect.training.stopping import MINUTES, StopConsensus, StopCriteria, StopSignals, code_of, reason_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Trainer:
    """Trains ``state.net`` on ``objective`` over the loader's batches, and tells its hooks.

    ``run`` returns why it ended: "finished", "max-steps", "max-minutes" or the name of a signal. Every random
    number of a step comes from (seed, step, row of the global batch), so the state alone, at any step, determines what
    follows. Only what layers such as dropout draw for themselves depends on the number of processes too.
    """

    def __init__(
        self,
        state: TrainState,
        objective: Loss,
        loader: Loader,
        *,
        rate: LearningRate,
        limits: StopCriteria,
        grad_clip: float = 1.0,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
        compile_model: bool = False,
        pair_ahead: bool = False,
        max_bad_steps: int = 10,
        seed: int = 0,
        log_every: int = 50,
        device: torch.device | None = None,
        hooks: Sequence[Callback] = (),
    ) -> None:
        if log_every < 1:
            raise UserError(f"log_every must be at least 1 step, got {log_every}")
        if max_bad_steps < 1:
            raise UserError(f"max_bad_steps must be at least 1 step, got {max_bad_steps}; 10 is usual")
        self.state, self.objective, self.loader, self.rate, self.limits = state, objective, loader, rate, limits
        self.seed, self.log_every, self.max_bad_steps = seed, log_every, max_bad_steps
        self.device = device or torch.device("cpu")
        self.hooks = hooks
        if compile_model:
            check_compiler(self.device)
        self._take = Step(
            state,
            device=self.device,
            grad_clip=grad_clip,
            autocast=autocast,
            accumulate=accumulate,
            compile_model=compile_model,
        )
        self._peak = device_peak(self.device, autocast)
        self._halves = objective if isinstance(objective, TwoPart) else None
        self._ahead = Prefetcher(self._draw) if pair_ahead else None
        for name, asked in (("pair_ahead", pair_ahead), ("accumulate", accumulate > 1)):
            if asked and self._halves is None:
                raise UserError(f"{name} needs an objective with draw and compare, got {type(objective).__name__}")

    @property
    def epoch(self) -> int:
        """The number of finished passes over the data."""
        return self.state.progress.seen // len(self.loader)

    @property
    def learning_rate(self) -> float:
        """The rate of the step that follows."""
        return self.rate(self.state.progress.step) * self.state.progress.rate

    def run(self) -> str:
        """Train until a limit or a signal; see the class.

        Raises UserError when the loss stays not finite, memory runs out, or a hook has trouble; on all processes.
        """
        with StopSignals() as signals, torch.random.fork_rng(), explain_oom():
            self._boundary, self._watchdog = StopConsensus(), Watchdog(self._report_stall)
            try:
                self._began = time.monotonic()
                self.log = StepMetrics(self.state.progress, scaled=self.state.scale is not None)
                self.loader.start_at(self.state.progress.step, self.state.progress.seen)
                self.state.net.train()
                self._tell("on_start")
                while (reason := self._reason_to_stop(signals)) is None or not self.flush():
                    if reason is None:
                        self._step()
                        self._after_step()
                self._boundary.close()
                self._tell("on_end", reason)
                return reason
            finally:
                self._watchdog.close()
                if self._ahead is not None:
                    self._ahead.close()
                self.loader.close()
                with ExitStack() as closing:  # all of them, though one may fail
                    for hook in reversed(self.hooks):
                        closing.callback(hook.close)

    def _step(self) -> None:
        progress = self.state.progress
        self._seed_layers(
            stream_seed(self.seed, Stream.LAYERS, progress.step, *([rank] if (rank := current().rank) else []))
        )
        self.log.add(*self._descend(progress.step, self.learning_rate))
        progress.step += 1
        progress.seen += self.loader.global_batch

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
        self._watchdog.begin("data")
        value = get(step)
        self._watchdog.end()
        self.log.waited += time.monotonic() - began
        return value

    def _report_stall(self, name: str, seconds: float) -> None:
        who = f"{current().name}: " if current().world > 1 else ""
        logger.warning(
            f"{who}step {self.state.progress.step + 1:,} has waited for {name} for {seconds:.0f} s; if that "
            "is not the disk's usual speed, see that the data can still be read, or raise --num-workers",
            extra=EVERY_RANK,
        )

    def _rng(self, step: int) -> CounterRng:
        return self.loader.rng(Stream.STEP, step)

    def _seed_layers(self, seed: int) -> None:
        """Seed PyTorch's own generator, which layers such as dropout draw from."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def _after_step(self) -> None:
        progress, size = self.state.progress, len(self.loader)
        if progress.step % self.log_every == 0 and self.flush():
            self._log()
        if progress.seen // size > (progress.seen - self.loader.global_batch) // size and self.flush():
            self._tell("on_epoch", progress.epoch_loss.take())
        self._tell("on_step")

    def flush(self) -> bool:
        """Read the losses and norms of the last steps, which waits for the device; False where that rolled back.

        Raises UserError where too many steps in a row were not finite and going back has not helped, or cannot be
        done.
        """
        progress = self.state.progress
        for bad in self.log.read():
            rows = self.loader.indices(bad.step - 1).tolist()
            row = {"step": bad.step, "bad_step": {"loss": repr(bad.loss), "grad_norm": repr(bad.norm), "rows": rows}}
            self._tell("on_bad_step", row)
            if progress.bad_row >= self.max_bad_steps and bad.step == progress.step:
                self._roll_back(bad)
                return False
        return True

    def _roll_back(self, bad: BadStep) -> None:
        """Go on from before the bad steps, once, with a lower rate."""
        progress = self.state.progress
        first = bad.step - progress.bad_row + 1
        found = [path for hook in self.hooks if (path := hook.checkpoint_before(first))]
        if progress.rate < 1 or not found:
            raise not_finite(progress.bad_row, bad.loss, bad.norm, bad.step, rolled_back=progress.rate < 1)
        count = progress.bad
        self.state.load(found[0])
        progress = self.state.progress
        progress.rate, progress.bad, progress.bad_row = LOWER_RATE, count, 0
        self.log = StepMetrics(progress, scaled=self.state.scale is not None)
        self.loader.start_at(progress.step, progress.seen)
        self._tell("on_rollback", {"step": progress.step, "rolled_back_from": bad.step, "rate": progress.rate})

    def _log(self) -> None:
        progress = self.state.progress
        if progress.loss.count == 0:  # all steps since the last row were skipped
            return
        speed = self.log.speed(self.loader.global_batch)
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
        if self._take.flops is not None:
            row["flops_per_s"] = steps_per_s * self._take.flops * current().world
            if self._peak is not None:
                row["mfu"] = row["flops_per_s"] / (self._peak * current().world)
        if self.state.scale is not None:
            row |= {"loss_scale": self.state.scale.scale, "skipped_steps": self.state.scale.skipped}
        if progress.bad:
            row["bad_steps"] = progress.bad
        self._tell("on_log", row)

    def _reason_to_stop(self, signals: StopSignals) -> str | None:
        step, limits = self.state.progress.step, self.limits
        own, minutes = signals.received, (time.monotonic() - self._began) / 60
        if own is None and limits.max_minutes is not None and minutes >= limits.max_minutes:
            own = MINUTES
        trouble = next((hook.trouble for hook in self.hooks if hook.trouble is not None), None)
        code, stuck = self._boundary.meet([code_of(own), int(trouble is not None)])
        if stuck:
            self._boundary.close()
            with sync_errors():
                if trouble is not None:
                    raise trouble
        reason = reason_of(code)
        if reason is None and step >= limits.steps:
            reason = "finished"
        if reason is None and limits.max_steps is not None and step >= limits.max_steps:
            reason = "max-steps"
        return reason

    def _tell(self, event: str, *args: object) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self, *args)

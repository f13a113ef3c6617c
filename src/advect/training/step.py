"""Training step and its metrics."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.random import CounterRng, LayerRng, RandomOps
from advect.core.types import Batch, Conditions, Network, PathSample, StepKind
from advect.distributed.comm import all_sum, current
from advect.distributed.parallel import gather_whole, local
from advect.training.optim import LossScaler, clip_gradients, gradient_norm
from advect.training.state import Progress, TrainState, named_params

LossInput = tuple[PathSample, Conditions | None]


class Loss(Protocol):
    """A loss in parts; ``sample`` needs no network, and ``aim`` one without gradients, if the loss learns steps."""

    learns_steps: ClassVar[StepKind | None]

    def sample(self, batch: Batch, generator: CounterRng, /) -> LossInput: ...
    def aim(self, net: Network, sample: PathSample, cond: Conditions | None, /) -> PathSample: ...
    def compare(self, output: Tensor, sample: PathSample, /) -> Tensor: ...


class Step:
    """Update ``state`` by one step; only the network runs in reduced precision.

    ``accumulate`` N splits a batch into N parts. A loss or gradient that is not finite on any process leaves weights
    and moments unchanged on all; the returned norm is then not finite. Only float16 waits for the GPU; otherwise a
    skipped step on a GPU still updates the EMA. ``flops`` is the network's arithmetic per step, known after the first
    if the loss asks the network once; ``layers`` are the random numbers of dropout and the like.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        device: torch.device,
        grad_clip: float = 1.0,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
        compile_model: bool = False,
    ) -> None:
        if not grad_clip >= 0:
            raise UserError(f"grad_clip must be >= 0, got {grad_clip}; 1.0 is usual, 0 turns clipping off")
        if accumulate < 1:
            raise UserError(f"accumulate must be at least 1 part, got {accumulate}")
        self.state, self.device, self.parallel = state, device, state.parallel
        self._wrapped = self.parallel.wrap(state.net)
        self.net: Network = torch.compile(self._wrapped) if compile_model else self._wrapped
        self.grad_clip, self.autocast, self.accumulate = grad_clip, autocast, accumulate
        self.layers = LayerRng()
        self.flops: int | None = None
        self._looked, self._draws_itself, self._compiled = False, False, compile_model
        self.moving = False
        self._params = [p for p in state.net.parameters() if p.requires_grad]
        if autocast is torch.float16 and state.loss_scaler is None:
            state.loss_scaler = LossScaler()

    def take(
        self, loss: Loss, inputs: LossInput, lr: float, observe: Callable[[dict[str, Tensor]], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take the step; return the mean loss and the gradient norm, scalars on the device.

        ``observe`` gets the gradient of the mean loss by parameter, whole and before clipping, if it is finite; it is
        given on all processes or none, and synchronises with the device.
        """
        self._look_over_network(inputs, counted=loss.learns_steps is None)
        mean = self._gradient(loss, inputs)
        grads = [local(p.grad) for p in self._params if p.grad is not None]
        if self.state.loss_scaler is not None:
            self.state.loss_scaler.unscale(grads)
        norm = self.parallel.global_norm(gradient_norm(grads))
        if observe is not None and norm.isfinite():
            observe(self._whole_gradients())
        skip, bad = self._bad(norm)
        if skip:
            return mean, norm
        self.moving = True
        if self.grad_clip > 0:
            clip_gradients(grads, self.grad_clip, norm)
        self.state.optimizer.step(lr, bad)
        if self.state.ema is not None:
            self.state.ema.update()
        return mean, norm

    def _gradient(self, loss: Loss, inputs: LossInput) -> Tensor:
        """Accumulate the gradient of the mean loss; return that mean."""
        rows = len(inputs[0].t)
        parts = split_rows(inputs, self.accumulate)
        total: Tensor | None = None
        for sample, cond in parts:
            with self.parallel.gradient_sync(self._wrapped, sample is parts[-1][0]):
                if loss.learns_steps:
                    sample = self._aimed(loss, sample, cond)
                with self._precision(), self.layers.used(by_all=self._draws_itself):
                    output = self.net(sample.x_t, sample.t, cond)
                losses = loss.compare(output, sample)
                mean = losses.mean() if self.accumulate == 1 else losses.sum() / rows
                self._backward(mean)
            total = mean.detach() if total is None else total + mean.detach()
        assert total is not None
        return total

    def _aimed(self, loss: Loss, sample: PathSample, cond: Conditions | None) -> PathSample:
        """The path sample with the targets that the loss asks the network itself for, without dropout."""
        net = self.state.net
        net.eval()
        try:
            with self._precision():
                return loss.aim(net, sample, cond)
        finally:
            net.train()

    def _whole_gradients(self) -> dict[str, Tensor]:
        """Gradients by parameter name; collective for a sharded network."""
        params = named_params(self.state.net)
        return {name: gather_whole(local(p.grad), p) for name, p in params.items() if p.grad is not None}

    def _precision(self) -> AbstractContextManager:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def _backward(self, loss: Tensor) -> None:
        scaler = self.state.loss_scaler
        scale = 1.0 if scaler is None else scaler.scale
        loss.backward(loss.detach() * 0 + scale)  # NaN from a loss that is not finite, so that no gradient hides it

    def _bad(self, norm: Tensor) -> tuple[bool, Tensor | None]:
        """Whether to skip the update, dropping the gradients; on a GPU a flag instead, without synchronisation."""
        scaler = self.state.loss_scaler
        if scaler is None and norm.device.type != "cpu":
            return False, (~norm.isfinite()).float()
        finite = bool(norm.isfinite())
        if scaler is not None:
            scaler.adapt(finite)
        if not finite:
            for p in self._params:
                p.grad = None
        return not finite, None

    def _look_over_network(self, inputs: LossInput, *, counted: bool) -> None:
        """Find out whether its layers draw by PyTorch's own functions, and if ``counted`` how much it computes."""
        if self._looked:
            return
        self._looked = True
        sample, cond = inputs
        self.flops = step_flops(self.state.twin, sample.x_t, sample.t, cond) if counted else None
        self._draws_itself = draws_itself(self.state.twin, sample.x_t, sample.t, cond)
        if self._compiled and self._draws_itself:
            raise UserError(
                "--compile-model cannot seed random layers of this network that are not of "
                "advect.networks.layers.dropout, or cannot tell whether it has any, as it reads the values of "
                "tensors; train with --no-compile-model"
            )


def split_rows(inputs: LossInput, parts: int) -> list[LossInput]:
    """Split a batch into at most ``parts`` of nearly equal size."""
    sample, cond = inputs
    if parts == 1:
        return [inputs]
    there = {f.name: value for f in fields(sample) if (value := getattr(sample, f.name)) is not None}
    columns = {name: value.tensor_split(parts) for name, value in there.items()}
    samples = [PathSample(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    conds: list[Conditions | None] = [None] * parts
    if cond is not None:
        conds = [{name: value.tensor_split(parts)[i] for name, value in cond.items()} for i in range(parts)]
    return [(p, c) for p, c in zip(samples, conds, strict=True) if len(p.t)]


@dataclass(frozen=True)
class BadStep:
    """A skipped step: its number (from 1), loss and gradient norm."""

    step: int
    loss: float
    norm: float


class StepMetrics:
    """Losses, gradient norms and speed since the last row. Values stay on the device until :meth:`read`."""

    def __init__(self, progress: Progress, *, scaled: bool) -> None:
        self.progress, self._scaled = progress, scaled
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._began = self._row_time = time.monotonic()
        self._seconds_before, self._row_step = progress.seconds, progress.step
        self.waited = self.blocked = 0.0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Add a step: this process's mean loss and the global gradient norm."""
        self._pending.append((loss, norm))

    def read(self) -> list[BadStep]:
        """Add pending steps to the progress; return the bad ones in order. Collective; synchronises with the
        device.
        """
        progress = self.progress
        progress.seconds = self._seconds_before + time.monotonic() - self._began
        pending, self._pending = self._pending, []
        if not pending:
            return []
        losses, norms = (torch.stack(values) for values in zip(*pending, strict=True))
        world = current().world
        means = losses if world == 1 else all_sum(losses.double()) / world
        bad = []
        for i, (loss, norm) in enumerate(zip(means.tolist(), norms.tolist(), strict=True)):
            if math.isfinite(loss) and math.isfinite(norm):
                progress.bad_row = 0
                progress.loss.add(loss)
                progress.grad_norm.add(norm)
                progress.epoch_loss.add(loss)
            elif self._scaled and math.isfinite(loss):
                continue  # an overflow in float16, which the scale takes care of
            else:
                progress.bad += 1
                progress.bad_row += 1
                bad.append(BadStep(progress.step - len(pending) + i + 1, loss, norm))
        return bad

    def speed(self, samples: int) -> dict[str, float]:
        """Samples a second, and shares of time waiting for data and checkpoints, since the last row."""
        now, progress = time.monotonic(), self.progress
        elapsed, steps = max(now - self._row_time, 1e-9), progress.step - self._row_step
        speed = {
            "samples_per_s": steps * samples / elapsed,
            "data_wait": self.waited / elapsed,
            "checkpoint_wait": self.blocked / elapsed,
            "seconds": progress.seconds,
            "steps_per_s": steps / elapsed,
        }
        self._row_time, self._row_step, self.waited, self.blocked = now, progress.step, 0.0, 0.0
        return speed


def step_flops(twin: nn.Module, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> int | None:
    """Floating-point operations of a forward and backward pass of ``twin(x_t, t, cond)``, without computing it.

    ``twin`` is made by ``on_meta``. Counts matrix products, convolutions and attention, two for each multiply-add;
    recomputed activations do not count. None if the network needs the values of tensors.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with _COUNTING, FlopCounterMode(display=False) as counter, torch.enable_grad():
            twin(*_on_meta(x_t, t, cond)).sum().backward()
    except (NotImplementedError, RuntimeError, TypeError):  # it reads values; a mistake shows in the real pass
        return None
    return counter.get_total_flops()


_COUNTING = threading.Lock()
"""The counter sets flags of the whole process, which threads would leave set."""


def draws_itself(twin: nn.Module, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> bool:
    """Whether ``twin(x_t, t, cond)``, made by ``on_meta``, draws random numbers by PyTorch's functions, without
    :func:`layer_rng`; also if the network needs the values of tensors.
    """
    try:
        with RandomOps() as random, torch.no_grad():
            twin(*_on_meta(x_t, t, cond))
    except (NotImplementedError, RuntimeError, TypeError):
        return True
    return random.count > 0


def _on_meta(x_t: Tensor, t: Tensor, cond: Conditions | None) -> tuple[Tensor, Tensor, Conditions | None]:
    x, times = torch.empty_like(x_t, device="meta"), torch.empty_like(t, device="meta")
    return x, times, cond and {name: torch.empty_like(value, device="meta") for name, value in cond.items()}

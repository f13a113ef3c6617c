"""One training step: loss, gradients, clipping, update, average."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import Batch, Conditions, Network, PathSample
from advect.distributed.parallel import local
from advect.training.optim import clip_gradients, gradient_norm
from advect.training.precision import LossScaler, step_flops
from advect.training.state import TrainState

Drawn = tuple[PathSample, Conditions | None]


class Loss(Protocol):
    """``objective(net, batch, rng)`` is the loss (B,)."""

    def __call__(self, net: Network, batch: Batch, generator: CounterRng, /) -> Tensor: ...


@runtime_checkable
class TwoPart(Loss, Protocol):
    """An objective in two halves, the first of which does not need the network."""

    def draw(self, batch: Batch, generator: CounterRng, /) -> Drawn: ...
    def compare(self, output: Tensor, point: PathSample, /) -> Tensor: ...


class Step:
    """``take`` moves ``state`` along the gradient of a loss; the network alone runs in reduced precision.

    With ``accumulate`` N a drawn batch is computed in N parts, one after the other, whose gradients sum to that of the
    batch: the same step in less memory. A step whose loss or gradient is not finite, on any process, changes neither
    weights nor moments on any. Its norm, which is then not finite either, tells so; a GPU is not waited for, but in
    float16, where the loss is scaled and the scale follows, so that there the average takes the weights in once more.
    ``flops`` is a step's arithmetic in the network, known after the first step on a drawn batch.
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
        self.flops: int | None = None
        self._counted = False
        self._params = [p for p in state.net.parameters() if p.requires_grad]
        if autocast is torch.float16 and state.scale is None:
            state.scale = LossScaler()

    def on_drawn(self, objective: TwoPart, drawn: Drawn, lr: float) -> tuple[Tensor, Tensor]:
        """Step on a drawn batch; return the mean loss and the norm of its gradient, scalars on the device."""
        rows = len(drawn[0].t)
        if not self._counted:
            self._counted = True
            self.flops = step_flops(self.state.twin, drawn[0].x_t, drawn[0].t, drawn[1])
        total: Tensor | None = None
        parts = split_rows(drawn, self.accumulate)
        for point, cond in parts:
            with self.parallel.gradient_sync(self._wrapped, point is parts[-1][0]):
                with self._precision():
                    output = self.net(point.x_t, point.t, cond)
                loss = objective.compare(output, point)
                loss = loss.mean() if self.accumulate == 1 else loss.sum() / rows
                self._backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total, self._update(lr)

    def on_batch(self, loss: Callable[[Network], Tensor], lr: float) -> tuple[Tensor, Tensor]:
        """Step on ``loss(net)`` (B,), all of which runs in reduced precision; return as :meth:`on_drawn` does."""
        with self._precision():
            mean = loss(self.net).float().mean()
        self._backward(mean)
        return mean.detach(), self._update(lr)

    def _precision(self) -> AbstractContextManager:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def _backward(self, loss: Tensor) -> None:
        scale = 1.0 if self.state.scale is None else self.state.scale.scale
        loss.backward(loss.detach() * 0 + scale)  # NaN from a loss that is not finite, so that no gradient hides it

    def _update(self, lr: float) -> Tensor:
        """Clip, move the weights and their averages; return the norm, NaN or infinite where the step is skipped."""
        state = self.state
        grads = [local(p.grad) for p in self._params if p.grad is not None]
        if state.scale is not None:
            state.scale.unscale(grads)
        norm = self.parallel.global_norm(gradient_norm(grads))
        bad: Tensor | None = None
        if state.scale is not None or norm.device.type == "cpu":
            finite = bool(norm.isfinite())
            if state.scale is not None:
                state.scale.adapt(finite)
            if not finite:
                for p in self._params:
                    p.grad = None
                return norm
        else:
            bad = (~norm.isfinite()).float()
        if self.grad_clip > 0:
            clip_gradients(grads, self.grad_clip, norm)
        state.optimizer.step(lr, bad)
        if state.ema is not None:
            state.ema.update()
        return norm


def split_rows(drawn: Drawn, parts: int) -> list[Drawn]:
    """Cut a drawn batch into at most ``parts`` of nearly equal numbers of rows."""
    point, cond = drawn
    if parts == 1:
        return [drawn]
    columns = {f.name: getattr(point, f.name).tensor_split(parts) for f in fields(point)}
    points = [PathSample(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    conds: list[Conditions | None] = [None] * parts
    if cond is not None:
        conds = [{name: value.tensor_split(parts)[i] for name, value in cond.items()} for i in range(parts)]
    return [(p, c) for p, c in zip(points, conds, strict=True) if len(p.t)]

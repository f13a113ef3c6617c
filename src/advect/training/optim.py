"""Optimisers, gradient clipping and loss scale."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.optim.adamw import adamw

from advect.core.bounds import NonNegative, Share
from advect.core.device import has_fast_bfloat16
from advect.core.errors import UserError
from advect.core.registry import register
from advect.distributed.parallel import gather_whole, local, local_rows


class Optimizer(ABC):
    """Updates parameters from their gradients.

    A run gives the constructor ``params`` by name, the names of the ``hidden`` matrices among them (see
    :func:`hidden_matrices`) and ``weight_decay``, each if it takes it.
    """

    part_kind: ClassVar[str] = "optimizer"
    part_given: ClassVar[tuple[str, ...]] = ("params", "hidden", "weight_decay")

    @abstractmethod
    def step(self, lr: float, bad: Tensor | None = None, /) -> None:
        """Update the parameters and drop their gradients; no update if ``bad`` () is 1."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """State for a checkpoint, by name; moments are named KIND.PARAMETER."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore ``tensors``; ``step`` is the number of updates where they lack it."""


@register("adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    PyTorch's functional form, fused where available; faster than the class for small networks.

    Args:
        betas: decays of the first and second moment.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        params: dict[str, Tensor],
        *,
        weight_decay: NonNegative = 0.0,
        betas: tuple[Share, Share] = (0.9, 0.999),
        eps: Annotated[float, Meta(gt=0, le=1)] = 1e-8,
    ) -> None:
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps
        self._params, self._local = list(params.values()), [local(p) for p in params.values()]
        self.exp_avg = {name: torch.zeros_like(p) for name, p in zip(params, self._local, strict=True)}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in zip(params, self._local, strict=True)}
        self._moments = list(self.exp_avg.values()), list(self.exp_avg_sq.values())
        self._steps = [torch.zeros((), device=p.device) for p in self._local]
        self._fused = all(p.device.type in ("cpu", "cuda") for p in self._local)

    @torch.no_grad()
    def step(self, lr: float, bad: Tensor | None = None, /) -> None:
        pairs = zip(self._params, self._local, strict=True)
        grads = [torch.zeros_like(here) if p.grad is None else local(p.grad) for p, here in pairs]
        adamw(
            self._local,
            grads,
            *self._moments,
            [],
            self._steps,
            fused=self._fused,
            found_inf=bad,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )
        for p in self._params:
            p.grad = None

    def tensors(self) -> dict[str, Tensor]:
        moments = {f"exp_avg.{name}": value for name, value in self.exp_avg.items()}
        moments |= {f"exp_avg_sq.{name}": value for name, value in self.exp_avg_sq.items()}
        return moments | ({"updates": self._steps[0]} if self._steps else {})

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        for name in self.exp_avg:
            self.exp_avg[name].copy_(tensors[f"exp_avg.{name}"])
            self.exp_avg_sq[name].copy_(tensors[f"exp_avg_sq.{name}"])
        for count in self._steps:
            count.fill_(float(tensors.get("updates", step)))


@torch.no_grad()
def gradient_norm(grads: list[Tensor]) -> Tensor:
    """Joint norm of the gradients, a scalar."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


@torch.no_grad()
def clip_gradients(grads: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients of joint norm ``norm`` to at most ``max_norm`` (Pascanu et al. 2013)."""
    if not (norm.device.type == "cpu" and norm <= max_norm):  # reading a GPU's norm would wait
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))


_APART = ("first", "stem", "time", "conditions", "head", "last", "through")
"""Names of input and output layers and of embeddings in the networks."""


def hidden_matrices(net: nn.Module) -> dict[str, int]:
    """Names of the weights for Muon, with the number of matrices that each stacks in its rows.

    They are those of linear layers and convolutions, except input and output layers (Jordan et al. 2024), time
    embeddings and modulations, whose inputs are nearly the same in all samples; fused queries, keys and values count
    as one. Both by measurement, bench/muon.py.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.weight" if name else "weight": 1
        for name, module in net.named_modules()
        if isinstance(module, kinds) and module.weight.requires_grad
        if not (_first_part(name) in _APART or name.split(".")[-1] == "modulation")
    }


def _first_part(name: str) -> str:
    """Name of the part of a network, or of one of the two in ``VelocityAndScore``, that a module is in."""
    return re.sub(r"^(velocity|score)\.", "", name).split(".")[0]


def orthogonalise(x: Tensor, *, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix of x (K, M, N) to 0.7 to 1.2, keeping its singular vectors.

    Quintic Newton-Schulz iteration of Jordan et al. 2024, "Muon: an optimizer for hidden layers", in the dtype of x.
    Zero matrices stay zero.
    """
    wide = x.shape[1] <= x.shape[2]
    y = x if wide else x.mT
    y = y / y.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = y @ y.mT
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        y = torch.baddbmm(y, gram, y, beta=3.4445)
    return y if wide else y.mT


def _matrix(x: Tensor, like: Tensor) -> Tensor:
    """x (out, in, ...) as (out, rest), with the columns in ``like``'s memory order: a view of ``like`` itself."""
    x = x if like.is_contiguous() else x.movedim(1, -1)
    return x.flatten(1)


@register("muon")
class Muon(Optimizer):
    """Orthogonalised Nesterov momentum for hidden matrices, AdamW for the rest.

    ``hidden`` has the number of matrices that a weight stacks in its rows, such as 3 for queries, keys and values. A
    convolution's weight is the matrix (out, in * kernel). Updates of A x B matrices are scaled by 0.2 sqrt(max(A,
    B)) to AdamW's size, sharing its learning rate and decay (Liu et al. 2025, "Muon is scalable for LLM training").
    Matrices of one shape are batched, in bfloat16 where fast; sharded ones are gathered on every process.

    Raises UserError for a name in ``hidden`` that is no parameter with two or more dimensions.

    Args:
        momentum: decay of the mean gradient.
        betas, eps: of AdamW for the rest.
    """

    def __init__(
        self,
        params: dict[str, Tensor],
        hidden: Mapping[str, int],
        *,
        weight_decay: NonNegative = 0.0,
        momentum: Share = 0.95,
        betas: tuple[Share, Share] = (0.9, 0.999),
        eps: Annotated[float, Meta(gt=0, le=1)] = 1e-8,
    ) -> None:
        for name in hidden:
            if name not in params or params[name].ndim < 2 or len(params[name]) % hidden[name]:
                raise UserError(f"Muon needs the names of matrices, and {name!r} is none; see hidden_matrices(net)")
        self.weight_decay, self.momentum = weight_decay, momentum
        rest = {name: p for name, p in params.items() if name not in hidden}
        self.rest = AdamW(rest, weight_decay=weight_decay, betas=betas, eps=eps)
        self._params = {name: p for name, p in params.items() if name in hidden}
        self.buffers = {name: torch.zeros_like(local(p)) for name, p in self._params.items()}
        self._bfloat16 = all(has_fast_bfloat16(p.device) for p in self._params.values())
        self._groups: dict[tuple[int, int, int], list[str]] = defaultdict(list)
        for name, p in self._params.items():
            self._groups[hidden[name], p.shape[0] // hidden[name], p[0].numel()].append(name)

    @torch.no_grad()
    def step(self, lr: float, bad: Tensor | None = None, /) -> None:
        skip = bad is not None and bool(bad)  # waits for a GPU
        for (parts, rows, columns), names in self._groups.items():
            params = [self._params[name] for name in names]
            if not skip:
                size = 0.2 * max(rows, columns) ** 0.5
                self._move(params, [self.buffers[name] for name in names], parts, lr, size)
            for p in params:
                p.grad = None
        self.rest.step(lr, bad)

    def _move(self, params: list[Tensor], buffers: list[Tensor], parts: int, lr: float, size: float) -> None:
        here = [local(p) for p in params]
        grads = [torch.zeros_like(x) if p.grad is None else local(p.grad) for p, x in zip(params, here, strict=True)]
        torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
        ahead = torch._foreach_lerp(grads, buffers, self.momentum)  # Nesterov
        whole = [gather_whole(u, p) for u, p in zip(ahead, params, strict=True)]
        stack = torch.stack([_matrix(u, p) for u, p in zip(whole, params, strict=True)])
        stack = stack.unflatten(1, (parts, -1)).flatten(0, 1)
        moved = orthogonalise(stack.bfloat16() if self._bfloat16 else stack).to(here[0].dtype)
        updates = moved.unflatten(0, (-1, parts)).flatten(1, 2).unbind()
        updates = [local_rows(u, p) for u, p in zip(updates, params, strict=True)]
        torch._foreach_mul_(here, 1 - lr * self.weight_decay)
        torch._foreach_add_([_matrix(x, x) for x in here], updates, alpha=-lr * size)

    def tensors(self) -> dict[str, Tensor]:
        return self.rest.tensors() | {f"momentum.{name}": value for name, value in self.buffers.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        for name, value in self.buffers.items():
            value.copy_(tensors[f"momentum.{name}"])
        self.rest.load(tensors, step)


_LEAST = 2.0**-14


class LossScaler:
    """Dynamic loss scaling (Micikevicius et al. 2018, "Mixed precision training", section 3.2).

    A step with overflowing gradients is skipped and halves ``scale``; ``interval`` good steps in a row double it.
    ``skipped`` counts skipped steps.
    """

    def __init__(self, start: float = 2.0**16, *, interval: int = 2000) -> None:
        if not start > 0:
            raise UserError(f"LossScale.start must be > 0, got {start}; 65536 is usual")
        if interval < 1:
            raise UserError(f"LossScale.interval must be at least 1 step, got {interval}; 2000 is usual")
        self.scale, self.interval = float(start), interval
        self.skipped = self._good = 0

    @torch.no_grad()
    def unscale(self, grads: list[Tensor]) -> None:
        """Divide the gradients by the scale."""
        if grads:
            torch._foreach_mul_(grads, 1 / self.scale)

    def adapt(self, finite: bool) -> None:
        """Update the scale after a step with finite or overflowed gradients.

        Raises UserError if the scale falls below its minimum.
        """
        if not finite:
            self.scale, self._good = self.scale / 2, 0
            self.skipped += 1
            if self.scale < _LEAST:
                error = UserError(
                    f"the gradient in float16 is not finite even with the loss scaled by {2 * self.scale:g}; lower "
                    "--learning-rate, or train with --no-mixed-precision"
                )
                error.agreed = True  # as the norm is that of all processes
                raise error
            return
        self._good += 1
        if self._good == self.interval:
            self.scale, self._good = 2 * self.scale, 0

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"scale": self.scale, "good": self._good, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore ``state_dict``."""
        self.scale, self._good, self.skipped = state["scale"], int(state["good"]), int(state["skipped"])

"""AdamW and gradient clipping over lists of tensors, with as little work between the kernels as can be."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from advect.core.errors import UserError
from advect.training.parallel import local


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), on PyTorch's fused kernel where there is one.

    It calls the functional form of ``torch.optim.AdamW``: the class walks over its groups at every step, which
    costs as much as the update itself for a small network.
    """

    def __init__(
        self,
        params: dict[str, Tensor],
        *,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if weight_decay < 0:
            raise UserError(f"weight_decay must be >= 0, got {weight_decay}; 0.01 is usual, 0 turns it off")
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps
        self._params, self._local = list(params.values()), [local(p) for p in params.values()]
        self.exp_avg = {name: torch.zeros_like(p) for name, p in zip(params, self._local, strict=True)}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in zip(params, self._local, strict=True)}
        self._moments = list(self.exp_avg.values()), list(self.exp_avg_sq.values())
        self._steps = [torch.zeros((), device=p.device) for p in self._local]
        self._fused = all(p.device.type in ("cpu", "cuda") for p in self._local)

    @torch.no_grad()
    def step(self, lr: float, bad: Tensor | None = None) -> None:
        """Move the parameters along their gradients, and let go of these; nothing moves where ``bad`` () is 1."""
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
        """What a checkpoint keeps, by name."""
        moments = {f"exp_avg.{name}": value for name, value in self.exp_avg.items()}
        moments |= {f"exp_avg_sq.{name}": value for name, value in self.exp_avg_sq.items()}
        return moments | ({"updates": self._steps[0]} if self._steps else {})

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take what ``tensors`` gave; ``step`` is the number of updates where an older checkpoint does not tell it."""
        for name in self.exp_avg:
            self.exp_avg[name].copy_(tensors[f"exp_avg.{name}"])
            self.exp_avg_sq[name].copy_(tensors[f"exp_avg_sq.{name}"])
        for count in self._steps:
            count.fill_(float(tensors.get("updates", step)))


@torch.no_grad()
def gradient_norm(grads: list[Tensor]) -> Tensor:
    """The joint norm of the gradients, a scalar."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))


@torch.no_grad()
def clip_gradients(grads: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients, of joint norm ``norm``, so that it is at most ``max_norm`` (Pascanu et al. 2013)."""
    if not (norm.device.type == "cpu" and norm <= max_norm):  # reading a GPU's norm would wait
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))

"""Muon: steps along orthogonal matrices for the weights of hidden layers, AdamW for all else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.platform import has_fast_bfloat16
from advect.training.adamw import AdamW
from advect.training.parallel import gathered, local, own_rows

_OUTER = ("first", "stem", "conditions", "head", "last", "through")
"""What the networks call the layers that data and conditions enter and leave by."""


def hidden_matrices(net: nn.Module) -> set[str]:
    """The names of the weights that Muon moves: of linear layers and convolutions but the first and last ones.

    These are known by their names: first, stem, conditions, head, last, through. Embedding tables, normalisation and
    biases are no matrices that map features to features (Jordan et al. 2024).
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.weight" if name else "weight"
        for name, module in net.named_modules()
        if isinstance(module, kinds) and module.weight.requires_grad and name.split(".")[0] not in _OUTER
    }


def orthogonalise(x: Tensor, *, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix of x (K, M, N) near 1 (0.7 to 1.2), keeping its singular vectors.

    Quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024, "Muon: an optimizer for hidden
    layers", in the type of x. A matrix of zeros stays so.
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
    """x (out, in, ...) as (out, rest), its columns in the order of ``like``'s memory, so that ``like`` is a view."""
    x = x if like.is_contiguous() else x.movedim(1, -1)
    return x.flatten(1)


class Muon:
    """Momentum, orthogonalised, for the matrices named in ``hidden``; AdamW for the other parameters.

    A convolution's weight is the matrix (out, in * kernel). The update of an A x B matrix is scaled by 0.2 sqrt(max(A,
    B)), which gives it the size of AdamW's, whose learning rate and decay hold for both (Liu et al. 2025, "Muon is
    scalable for LLM training", eq. 4). Matrices of one shape are orthogonalised together, in bfloat16 where the device
    has it; sharded ones are gathered for it, on every process. Raises UserError for a name that is no parameter, or a
    vector's.
    """

    def __init__(
        self,
        params: dict[str, Tensor],
        hidden: Collection[str],
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        if not 0 <= momentum < 1:
            raise UserError(f"momentum must lie in [0, 1), got {momentum}; 0.95 is usual")
        for name in hidden:
            if name not in params or params[name].ndim < 2:
                raise UserError(f"Muon needs the names of matrices, and {name!r} is none; see hidden_matrices(net)")
        self.weight_decay, self.momentum = weight_decay, momentum
        self.rest = AdamW({k: p for k, p in params.items() if k not in hidden}, weight_decay=weight_decay)
        self._params = {name: p for name, p in params.items() if name in hidden}
        self.buffers = {name: torch.zeros_like(local(p)) for name, p in self._params.items()}
        self._bfloat16 = all(has_fast_bfloat16(p.device) for p in self._params.values())
        self._groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, p in self._params.items():
            self._groups[p.shape[0], p[0].numel()].append(name)

    @torch.no_grad()
    def step(self, lr: float, bad: Tensor | None = None) -> None:
        """Move the parameters along their gradients, and let go of these; nothing moves where ``bad`` () is 1."""
        skip = bad is not None and bool(bad)  # waits for a GPU
        for (rows, columns), names in self._groups.items():
            params = [self._params[name] for name in names]
            if not skip:
                self._move(params, [self.buffers[name] for name in names], lr, 0.2 * max(rows, columns) ** 0.5)
            for p in params:
                p.grad = None
        self.rest.step(lr, bad)

    def _move(self, params: list[Tensor], buffers: list[Tensor], lr: float, size: float) -> None:
        here = [local(p) for p in params]
        grads = [torch.zeros_like(x) if p.grad is None else local(p.grad) for p, x in zip(params, here, strict=True)]
        torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
        ahead = torch._foreach_lerp(grads, buffers, self.momentum)  # Nesterov
        whole = [gathered(u, p) for u, p in zip(ahead, params, strict=True)]
        stack = torch.stack([_matrix(u, p) for u, p in zip(whole, params, strict=True)])
        updates = orthogonalise(stack.bfloat16() if self._bfloat16 else stack).to(here[0].dtype).unbind()
        updates = [own_rows(u, p) for u, p in zip(updates, params, strict=True)]
        torch._foreach_mul_(here, 1 - lr * self.weight_decay)
        torch._foreach_add_([_matrix(x, x) for x in here], updates, alpha=-lr * size)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name."""
        return self.rest.tensors() | {f"momentum.{name}": value for name, value in self.buffers.items()}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take what ``tensors`` gave."""
        for name, value in self.buffers.items():
            value.copy_(tensors[f"momentum.{name}"])
        self.rest.load(tensors, step)

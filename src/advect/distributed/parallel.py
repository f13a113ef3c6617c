"""One network on many processes: whose gradients meet, and which part of the weights each process keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.distributed.comm import all_sum, current

Kind = Literal["none", "ddp", "fsdp"]


def local(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    return x.detach().to_local() if hasattr(x, "to_local") else x  # type: ignore[operator]


def whole_like(part: Tensor, param: Tensor) -> Tensor:
    """The sharded tensor of which ``part`` is this process's part, cut as ``param`` is; plain ones stay plain."""
    if not hasattr(param, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    mesh, cut = param.device_mesh, param.placements  # type: ignore[attr-defined]
    if part.device.type != mesh.device_type:
        mesh = _cpu_mesh()
    return DTensor.from_local(part, mesh, cut, run_check=False, shape=param.shape, stride=param.stride())


@lru_cache(maxsize=1)
def _cpu_mesh() -> Any:
    """All processes in a line, for copies on the CPU of what a GPU holds."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (current().world,))


def gathered(part: Tensor, param: Tensor) -> Tensor:
    """The whole tensor of which ``part`` is this process's part, cut as ``param`` is; all processes must ask."""
    whole = whole_like(part, param)
    return whole.full_tensor() if whole is not part else part  # type: ignore[attr-defined]


def own_range(param: Tensor) -> range | None:
    """The rows that this process keeps of a sharded tensor; None for a plain one."""
    if not hasattr(param, "to_local"):
        return None
    size = -(-len(param) // param.device_mesh.size())  # type: ignore[attr-defined]  # as torch.chunk cuts
    first = min(current().rank * size, len(param))  # the last parts may be short, or empty
    return range(first, min(first + size, len(param)))


def own_rows(whole: Tensor, param: Tensor) -> Tensor:
    """The rows of ``whole`` that this process keeps of a tensor cut as ``param`` is; plain ones whole."""
    rows = own_range(param)
    return whole if rows is None else whole[rows.start : rows.stop]


@dataclass(frozen=True)
class Parallel:
    """How processes share a network.

    "none": this process has it alone. "ddp": each has all of it, and gradients are averaged as they become ready (Li
    et al. 2020, "PyTorch Distributed"). "fsdp": each keeps an equal part of every tensor, of its gradient, its moments
    and its averages, and the blocks of the network are put together one at a time for as long as they compute (Zhao et
    al. 2023, "PyTorch FSDP"); PyTorch's ``fully_shard``.
    """

    kind: Kind = "none"

    def __post_init__(self) -> None:
        world = current().world
        if self.kind == "none" and world > 1:
            raise UserError(f"--parallel none would train {world} networks apart; use --parallel auto, ddp or fsdp")
        if self.kind != "none" and world == 1:
            raise UserError(f"--parallel {self.kind} needs several processes; add --nproc 2, or start with torchrun")

    @classmethod
    def choose(cls, asked: str, net: nn.Module, device: torch.device) -> Parallel:
        """``asked``, or for "auto" what suits: fsdp where weights, gradients and moments would fill half of a GPU."""
        if asked != "auto":
            return cls(asked)  # type: ignore[arg-type]
        if current().world == 1:
            return cls()
        if device.type != "cuda":
            return cls("ddp")
        room = torch.cuda.get_device_properties(device).total_memory
        return cls("fsdp" if 20 * sum(p.numel() for p in net.parameters()) > room / 2 else "ddp")

    def place(self, net: nn.Module, device: torch.device, half: torch.dtype | None = None) -> nn.Module:
        """Bring the network to ``device``, sharded in place for fsdp, whose gathered weights are in ``half``.

        All processes must have made the same network.
        """
        if self.kind != "fsdp":
            return net.to(device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  # fully_shard takes no other
        options: dict[str, Any] = {"mesh": init_device_mesh(device.type, (current().world,))}
        options["reshard_after_forward"] = True  # or the averages, lent for samples, would be in the next step's way
        # Inputs keep their type, since times are too fine for 16 bits; autocast casts what the kernels want cast.
        options["mp_policy"] = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
        for block in _blocks(net):
            fully_shard(block, **options)
        fully_shard(net, **options)
        return net.to(device)  # what is no parameter

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network to call in a training step."""
        if self.kind != "ddp":
            return net
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(net, gradient_as_bucket_view=True)

    def meeting(self, net: nn.Module, last: bool) -> AbstractContextManager:
        """Within the block gradients of a wrapped network meet if this is the ``last`` part of a batch, else wait."""
        if self.kind == "fsdp":
            net.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif self.kind == "ddp" and not last:
            return net.no_sync()  # type: ignore[operator]
        return nullcontext()

    def joint_norm(self, norm: Tensor) -> Tensor:
        """The norm () over all processes of gradients of which each has the ``norm`` () of its part."""
        return all_sum(norm.square()).sqrt() if self.kind == "fsdp" else norm


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost lists of modules: the blocks and stages that a network runs one after the other."""
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)

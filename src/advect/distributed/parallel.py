"""Data parallelism: DDP, and FSDP2 with sharded weights."""

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
    """This process's shard of a tensor, sharing memory; plain tensors unchanged."""
    return x.detach().to_local() if hasattr(x, "to_local") else x  # type: ignore[operator]


def as_sharded(part: Tensor, param: Tensor) -> Tensor:
    """Sharded tensor with the local shard ``part``, sharded as ``param``; plain if ``param`` is."""
    if not hasattr(param, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    mesh, cut = param.device_mesh, param.placements  # type: ignore[attr-defined]
    if part.device.type != mesh.device_type:
        mesh = _cpu_mesh()
    return DTensor.from_local(part, mesh, cut, run_check=False, shape=param.shape, stride=param.stride())


@lru_cache(maxsize=1)
def _cpu_mesh() -> Any:
    """One-dimensional mesh for CPU copies of GPU shards."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (current().world,))


def gather_whole(part: Tensor, param: Tensor) -> Tensor:
    """Whole tensor with the local shard ``part``, sharded as ``param``; collective."""
    whole = as_sharded(part, param)
    return whole.full_tensor() if whole is not part else part  # type: ignore[attr-defined]


def local_range(param: Tensor) -> range | None:
    """Rows of this process's shard; None for a plain tensor."""
    if not hasattr(param, "to_local"):
        return None
    size = -(-len(param) // param.device_mesh.size())  # type: ignore[attr-defined]  # as torch.chunk cuts
    first = min(current().rank * size, len(param))  # the last parts may be short, or empty
    return range(first, min(first + size, len(param)))


def local_rows(whole: Tensor, param: Tensor) -> Tensor:
    """This process's rows of ``whole``, sharded as ``param``; all for a plain one."""
    rows = local_range(param)
    return whole if rows is None else whole[rows.start : rows.stop]


@dataclass(frozen=True)
class Parallel:
    """Parallelism of a network: "none", "ddp" or "fsdp".

    ddp: replicas with averaged gradients (Li et al. 2020, "PyTorch Distributed"). fsdp: weights, gradients, moments
    and averages sharded, gathered block by block (Zhao et al. 2023, "PyTorch FSDP"), by ``fully_shard``.
    """

    kind: Kind = "none"

    def __post_init__(self) -> None:
        world = current().world
        if self.kind == "none" and world > 1:
            raise UserError(f"--parallel none would train {world} networks apart; use --parallel auto, ddp or fsdp")
        if self.kind != "none" and world == 1 and not torch.distributed.is_initialized():
            raise UserError(f"--parallel {self.kind} needs several processes; add --nproc 2, or start with torchrun")

    @classmethod
    def choose(cls, asked: str, net: nn.Module, device: torch.device) -> Parallel:
        """``asked``; "auto" is fsdp if weights, gradients, moments and average (20 bytes a parameter) fill half of
        a GPU.
        """
        if asked != "auto":
            return cls(asked)  # type: ignore[arg-type]
        if current().world == 1:
            return cls()
        if device.type != "cuda":
            return cls("ddp")
        room = torch.cuda.get_device_properties(device).total_memory
        return cls("fsdp" if 20 * sum(p.numel() for p in net.parameters()) > room / 2 else "ddp")

    def place(self, net: nn.Module, device: torch.device, half: torch.dtype | None = None) -> nn.Module:
        """Move the network, equal on all processes, to ``device``; for fsdp shard it, gathering weights in
        ``half``.
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
        """Network to call in a training step."""
        if self.kind != "ddp":
            return net
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(net, gradient_as_bucket_view=True)

    def gradient_sync(self, net: nn.Module, last: bool) -> AbstractContextManager:
        """Context that averages gradients in the ``last`` micro-batch and accumulates them before."""
        if self.kind == "fsdp":
            net.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif self.kind == "ddp" and not last:
            return net.no_sync()  # type: ignore[operator]
        return nullcontext()

    def global_norm(self, norm: Tensor) -> Tensor:
        """Norm () over all processes, from the ``norm`` () of this one's shards."""
        return all_sum(norm.square()).sqrt() if self.kind == "fsdp" else norm


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """Items of the outermost module lists: the network's blocks."""
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)

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
    """This process's shard of a tensor, sharing its memory; plain tensors as they are."""
    return x.detach().to_local() if hasattr(x, "to_local") else x  # type: ignore[operator]


def as_sharded(part: Tensor, param: Tensor) -> Tensor:
    """The sharded tensor of which ``part`` is this process's shard, sharded as ``param`` is; plain ones stay plain."""
    if not hasattr(param, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    mesh, cut = param.device_mesh, param.placements  # type: ignore[attr-defined]
    if part.device.type != mesh.device_type:
        mesh = _cpu_mesh()
    return DTensor.from_local(part, mesh, cut, run_check=False, shape=param.shape, stride=param.stride())


@lru_cache(maxsize=1)
def _cpu_mesh() -> Any:
    """A one-dimensional mesh for copies on the CPU of what a GPU holds."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (current().world,))


def gather_whole(part: Tensor, param: Tensor) -> Tensor:
    """The whole tensor of which ``part`` is this process's shard, sharded as ``param`` is; called by all processes."""
    whole = as_sharded(part, param)
    return whole.full_tensor() if whole is not part else part  # type: ignore[attr-defined]


def local_range(param: Tensor) -> range | None:
    """The rows of this process's shard; None for a plain tensor."""
    if not hasattr(param, "to_local"):
        return None
    size = -(-len(param) // param.device_mesh.size())  # type: ignore[attr-defined]  # as torch.chunk cuts
    first = min(current().rank * size, len(param))  # the last parts may be short, or empty
    return range(first, min(first + size, len(param)))


def local_rows(whole: Tensor, param: Tensor) -> Tensor:
    """This process's rows of ``whole``, sharded as ``param`` is; plain ones whole."""
    rows = local_range(param)
    return whole if rows is None else whole[rows.start : rows.stop]


@dataclass(frozen=True)
class Parallel:
    """How processes share a network.

    "none": a single process. "ddp": replicas, whose gradients are averaged as they become ready (Li et al. 2020,
    "PyTorch Distributed"). "fsdp": each process has a shard of every weight, gradient, moment and average, and gathers
    a block at a time while it computes (Zhao et al. 2023, "PyTorch FSDP"); PyTorch's ``fully_shard``.
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
        """Move the network to ``device``; for fsdp shard it, with weights gathered in ``half``.

        It must be the same on all processes.
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

    def gradient_sync(self, net: nn.Module, last: bool) -> AbstractContextManager:
        """Within the block gradients are averaged if this is the ``last`` micro-batch, else accumulated."""
        if self.kind == "fsdp":
            net.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif self.kind == "ddp" and not last:
            return net.no_sync()  # type: ignore[operator]
        return nullcontext()

    def global_norm(self, norm: Tensor) -> Tensor:
        """The norm () over all processes from each one's ``norm`` () of its shards."""
        return all_sum(norm.square()).sqrt() if self.kind == "fsdp" else norm


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost module lists: the blocks that a network runs in turn."""
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)

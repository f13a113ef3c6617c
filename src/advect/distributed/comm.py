"""Communication between a run's processes.

Collective functions: all processes call them in the same order. No-ops in a single process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from advect.core.errors import UserError
from advect.distributed.env import DistEnv, timeout_of

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

T = TypeVar("T")
N = TypeVar("N", int, float)

LONG_TIMEOUT = timedelta(days=30)
"""Timeout of :func:`without_timeout`; a process that ends is noticed at once."""


class PeerFailed(RuntimeError):
    """Another process failed with a bug, shown by its traceback."""


@dataclass(frozen=True)
class _Group:
    processes: DistEnv
    control: ProcessGroup
    background: ProcessGroup


_group: _Group | None = None


def current() -> DistEnv:
    """This process's rank and world; a single process outside :func:`process_group`."""
    return DistEnv() if _group is None else _group.processes


def control_group() -> ProcessGroup | None:
    """Gloo group of the main threads; None for a single process."""
    return None if _group is None else _group.control


def background_group() -> ProcessGroup | None:
    """Gloo group of one background thread per process, such as the checkpoint writer; None for a single process."""
    return None if _group is None else _group.background


@contextmanager
def process_group(
    device: torch.device | None = None, *, processes: DistEnv | None = None, timeout: timedelta | None = None
) -> Iterator[DistEnv]:
    """Context with PyTorch's default process group, of the environment or of ``processes``.

    Gloo for CPU tensors, NCCL for GPU tensors. No-op if nested or for a single process.

    Args:
        device: a CPU leaves NCCL out; a GPU becomes PyTorch's current one. None: NCCL if CUDA is available.
        timeout: default :func:`timeout_of`.

    Raises UserError if the other processes do not join in time or cannot be reached, or the port is taken.
    """
    me = processes or (DistEnv.from_environment() if _group is None else _group.processes)
    if _group is not None or me.world == 1:
        yield me
        return
    _join(me, device, timeout or timeout_of())
    clean = False
    try:
        yield me
        barrier()  # the store must outlive its last reader
        clean = True
    except UserError as error:
        clean = error.agreed
        raise
    finally:
        _leave(clean)


def _join(me: DistEnv, device: torch.device | None, timeout: timedelta) -> None:
    global _group
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    if device is not None and cuda:
        torch.cuda.set_device(me.device(device))
    address = f"[{me.address}]" if ":" in me.address else me.address
    try:
        url = f"tcp://{address}:{me.port}"
        store, _, _ = next(dist.rendezvous(url, me.rank, me.world, timeout=timeout))  # type: ignore[attr-defined]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore(_store_prefix(), store),
            rank=me.rank,
            world_size=me.world,
            timeout=timeout,
        )
        groups = [dist.new_group(backend="gloo", timeout=timeout) for _ in range(2)]
    except RuntimeError as error:
        met = not isinstance(error, (dist.DistNetworkError, dist.DistStoreError))
        if met and "gloo" not in str(error).lower():
            raise
        fix = (
            "they met, but do not reach one another; set GLOO_SOCKET_IFNAME, and for GPUs NCCL_SOCKET_IFNAME, on each"
            " host to the network interface that leads to the others, such as eth0"
            if met
            else "see that all are started, and that the port is free"
        )
        raise UserError(
            f"{me.name} could not join the {me.world} processes at MASTER_ADDR {me.address} and MASTER_PORT {me.port}"
            f" ({str(error).splitlines()[0].rstrip('. ')}); {fix}"
        ) from error
    _group = _Group(me, *groups)  # pyright: ignore[reportArgumentType]


def _store_prefix() -> str:
    """Prefix per start, as torchrun restarts processes on the same store."""
    return f"advect-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _leave(clean: bool) -> None:
    """Leave the group. NCCL is closed only after a clean end, as closing would wait for failed processes."""
    global _group
    import torch.distributed as dist

    _group = None
    if clean or "nccl" not in dist.get_backend_config():
        dist.destroy_process_group()


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum ``tensor`` (*S) over processes in place, on its device, and return it."""
    if _group is not None:
        import torch.distributed as dist

        dist.all_reduce(tensor, group=None if tensor.is_cuda else _group.control)
    return tensor


def all_max(values: Sequence[N]) -> list[N]:
    """Maximum of each value over processes; exact for integers up to 2^53, undefined for NaN."""
    if _group is None:
        return list(values)
    import torch
    import torch.distributed as dist

    largest = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_group.control)
    return [type(own)(value) for own, value in zip(values, largest.tolist(), strict=True)]


def all_objects(value: T) -> list[T]:
    """Every process's ``value``, by rank, on all processes."""
    return _all_objects(value, control_group())


def all_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Every process's rows (n, *S), by rank, as (world * n, *S); n must be equal."""
    if _group is None:
        return tensor
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(_group.processes.world)]
    dist.all_gather(parts, tensor.contiguous(), group=None if tensor.is_cuda else _group.control)
    return torch.cat(parts)


def background_objects(value: T) -> list[T]:
    """:func:`all_objects` between background threads."""
    return _all_objects(value, background_group())


def _all_objects(value: T, group: ProcessGroup | None) -> list[T]:
    if group is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * current().world
    dist.all_gather_object(values, value, group=group)
    return values


def gather_objects(value: T) -> list[T] | None:
    """Every process's ``value``, by rank, on the first process; None on the others."""
    if _group is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] | None = [None] * _group.processes.world if _group.processes.is_first else None
    dist.gather_object(value, values, dst=0, group=_group.control)
    return values


def broadcast_object(value: T) -> T:
    """The first process's ``value``, on all processes."""
    if _group is None:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0, group=_group.control)
    return values[0]


def barrier() -> None:
    """Wait for all processes."""
    if _group is not None:
        import torch.distributed as dist

        dist.barrier(group=_group.control)


@contextmanager
def without_timeout() -> Iterator[None]:
    """Context for long independent work of each process; ends when all have finished.

    An error is raised at once; the other processes then raise one that :func:`is_lost_peer` recognises.
    """
    if _group is None:
        yield
        return
    import torch.distributed as dist

    group: Any = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    try:
        yield
        dist.barrier(group=group)
    finally:
        dist.destroy_process_group(group)


@contextmanager
def sync_errors() -> Iterator[None]:
    """Context for work without communication; ends when all processes have finished.

    A UserError (of the lowest rank) is raised by all. Any other error is raised where it occurred, and PeerFailed
    elsewhere.
    """
    if _group is None:
        yield
        return
    me, failure = _group.processes, None
    try:
        yield
    except Exception as error:
        failure = error
    mistake = isinstance(failure, UserError)
    failures = all_objects(None if failure is None else (mistake, _text(failure, me)))
    bad = [each for each in failures if each is not None]
    if not bad:
        return
    if failure is not None and not mistake:
        raise failure
    bugs = [text for is_mistake, text in bad if not is_mistake]
    if bugs:
        raise PeerFailed(f"another process failed: {bugs[0]}") from failure
    error = UserError(bad[0][1])
    error.agreed = True
    raise error from failure


def _text(failure: Exception, me: DistEnv) -> str:
    if not isinstance(failure, UserError):
        return f"{me.name}: {type(failure).__name__}: {failure}"
    return str(failure) if me.is_first or failure.agreed else f"{me.name}: {failure}"


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only means that another process is gone."""
    if isinstance(error, PeerFailed):
        return True
    if not isinstance(error, RuntimeError):
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)

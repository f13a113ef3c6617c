"""A run's processes together: joining them, and what they tell each other.

All but :func:`process_group` costs nothing in a single process. every other one is called by all processes, in the
same order, from the main thread. PyTorch's distributed package is imported where there are several processes only.
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

PATIENCE = timedelta(days=30)
"""How long it waits for those that work by themselves; a process that ends is noticed at once."""


class PeerFailed(RuntimeError):
    """Another process has failed in a way that is no user's mistake; its own traceback says how."""


@dataclass(frozen=True)
class _Joined:
    processes: DistEnv
    control: ProcessGroup
    background: ProcessGroup


_joined: _Joined | None = None


def current() -> DistEnv:
    """The processes that have joined; this one alone outside of :func:`process_group`."""
    return DistEnv() if _joined is None else _joined.processes


def control_group() -> ProcessGroup | None:
    """The Gloo group for what the main threads exchange on the CPU; None for a process on its own."""
    return None if _joined is None else _joined.control


def background_group() -> ProcessGroup | None:
    """The Gloo group for what one background thread of each process exchanges, such as the writer of checkpoints.

    Exchanges of two threads in one group would be taken for each other. None for a process on its own.
    """
    return None if _joined is None else _joined.background


@contextmanager
def process_group(
    device: torch.device | None = None, *, processes: DistEnv | None = None, timeout: timedelta | None = None
) -> Iterator[DistEnv]:
    """Within the block the processes of the environment, or ``processes``, form PyTorch's default group.

    It is Gloo for CPU tensors and NCCL for those of a GPU; a CPU as ``device`` leaves NCCL out, and a GPU becomes
    PyTorch's current one, each process its own. Without ``device`` NCCL is there wherever CUDA is. Inside a joined
    block, and for a process on its own, nothing happens. Without ``timeout`` it is that of :func:`timeout_of`. Raises
    UserError where the others do not come in time or cannot be reached, or the port is taken.
    """
    me = processes or (DistEnv.of_environment() if _joined is None else _joined.processes)
    if _joined is not None or me.world == 1:
        yield me
        return
    _join(me, device, timeout or timeout_of())
    clean = False
    try:
        yield me
        barrier()  # whoever ends first must not close what another still reads
        clean = True
    except UserError as error:
        clean = error.agreed
        raise
    finally:
        _leave(clean)


def _join(me: DistEnv, device: torch.device | None, timeout: timedelta) -> None:
    global _joined
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
            store=dist.PrefixStore(_attempt(), store),
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
    _joined = _Joined(me, *groups)  # pyright: ignore[reportArgumentType]


def _attempt() -> str:
    """A name for this start of the processes: torchrun restarts them on a store that remembers the last ones."""
    return f"advect-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _leave(clean: bool) -> None:
    """Forget the group. NCCL is closed after a clean end only, as it would wait for processes that failed."""
    global _joined
    import torch.distributed as dist

    _joined = None
    if clean or "nccl" not in dist.get_backend_config():
        dist.destroy_process_group()


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Add up each process's ``tensor`` (*S) in place, on the tensor's own device, and return it."""
    if _joined is not None:
        import torch.distributed as dist

        dist.all_reduce(tensor, group=None if tensor.is_cuda else _joined.control)
    return tensor


def all_max(values: Sequence[N]) -> list[N]:
    """The largest of each value over the processes, as the types here; exact for integers up to 2^53, not for NaN."""
    if _joined is None:
        return list(values)
    import torch
    import torch.distributed as dist

    largest = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_joined.control)
    return [type(own)(value) for own, value in zip(values, largest.tolist(), strict=True)]


def all_objects(value: T) -> list[T]:
    """Each process's ``value``, by rank, on all of them."""
    return _all_objects(value, control_group())


def all_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Every process's rows (n, *S), by rank, as one tensor (world * n, *S); each must have as many."""
    if _joined is None:
        return tensor
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(_joined.processes.world)]
    dist.all_gather(parts, tensor.contiguous(), group=None if tensor.is_cuda else _joined.control)
    return torch.cat(parts)


def background_objects(value: T) -> list[T]:
    """As :func:`all_objects`, between one background thread of each process."""
    return _all_objects(value, background_group())


def _all_objects(value: T, group: ProcessGroup | None) -> list[T]:
    if group is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * current().world
    dist.all_gather_object(values, value, group=group)
    return values


def gather_objects(value: T) -> list[T] | None:
    """Each process's ``value``, by rank, on the first one; None on the others."""
    if _joined is None:
        return [value]
    import torch.distributed as dist

    values: list[Any] | None = [None] * _joined.processes.world if _joined.processes.is_first else None
    dist.gather_object(value, values, dst=0, group=_joined.control)
    return values


def broadcast_object(value: T) -> T:
    """The first process's ``value``, on all of them."""
    if _joined is None:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0, group=_joined.control)
    return values[0]


def barrier() -> None:
    """Wait until all processes are here."""
    if _joined is not None:
        import torch.distributed as dist

        dist.barrier(group=_joined.control)


@contextmanager
def without_timeout() -> Iterator[None]:
    """Within the block each process works by itself, for hours if need be; it is over when all are through.

    Unlike :func:`sync_errors`, a failure is raised at once, and the others, once they are through, find
    a process missing, as :func:`is_lost_peer` tells.
    """
    if _joined is None:
        yield
        return
    import torch.distributed as dist

    group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)  # an exchange in the others ends after timeout_of()
    try:
        yield
        dist.barrier(group=group)
    finally:
        dist.destroy_process_group(group)


@contextmanager
def sync_errors() -> Iterator[None]:
    """Within the block each process does its own set-up, without exchanges; it is over when all are through.

    A UserError of one becomes the same UserError, that of the first such rank, on all of them; so nobody waits for a
    process that has given up. Where one fails in another way, its error goes on there, and the others raise
    PeerFailed.
    """
    if _joined is None:
        yield
        return
    me, failure = _joined.processes, None
    try:
        yield
    except Exception as error:
        failure = error
    mistake = isinstance(failure, UserError)
    told = all_objects(None if failure is None else (mistake, _text(failure, me)))
    bad = [said for said in told if said is not None]
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
    """Whether an error says that another process has gone or failed, and nothing of this one."""
    if isinstance(error, PeerFailed):
        return True
    if not isinstance(error, RuntimeError):
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)

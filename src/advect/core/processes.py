"""Which of a run's processes this one is."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from advect.core.errors import UserError
from advect.core.slurm import slurm_variables

if TYPE_CHECKING:
    import torch

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl+C; what ends a job; and what a scheduler can be told to send before it takes a machine away, not on Windows."""


TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others, to come and in each exchange, where ADVECT_TIMEOUT does not say."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process's number ``rank`` among ``world`` processes, and its number among those on its host.

    ``address`` and ``port`` are where the first one waits for the others. As it stands: a process on its own.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        for name, value, limit, of in (
            ("RANK", self.rank, self.world, "WORLD_SIZE"),
            ("LOCAL_RANK", self.local_rank, self.local_world, "LOCAL_WORLD_SIZE"),
            ("LOCAL_WORLD_SIZE", self.local_world, self.world + 1, "WORLD_SIZE + 1"),
        ):
            if not 0 <= value < limit:
                raise UserError(f"{name} must be at least 0 and below {of}, {limit}, got {value}; see the launcher")
        if self.world > 1 and not 0 < self.port < 2**16:
            raise UserError(f"MASTER_PORT must be from 1 to 65535, got {self.port}; choose one that is free")

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, prints and decides."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """The process as messages call it."""
        return f"rank {self.rank} ({socket.gethostname()})"

    def share(self, n: int) -> range:
        """This process's places among ``n``: neighbours, as many as any other's but for one."""
        return range(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def device(self, device: torch.device) -> torch.device:
        """The device of this process where all were told to use ``device``: for GPUs the one of its local number.

        A process that sees one GPU alone, as SLURM's ``--gpus-per-task`` has it, takes that one. Raises UserError
        where a host has fewer GPUs than processes, or all would share the one that ``device`` names.
        """
        if device.type != "cuda" or self.world == 1:
            return device
        import torch

        if device.index is not None:
            raise UserError(f"--device {device} names one GPU for {self.world} processes; use --device cuda")
        seen = torch.cuda.device_count()
        if seen == 1 and "SLURM_PROCID" in os.environ:
            return torch.device("cuda", 0)
        if self.local_rank >= seen:
            raise UserError(
                f"{self.local_world} processes share {seen} GPU{'s' * (seen != 1)} on {socket.gethostname()}; start"
                " one process a GPU, or use --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    @classmethod
    def of_environment(cls, env: Mapping[str, str] | None = None) -> Processes:
        """As the variables of ``torchrun``, or of a SLURM step, say; on its own without them.

        Raises UserError where they are incomplete, no numbers, or contradict each other.
        """
        env = os.environ if env is None else env
        if "RANK" not in env and "WORLD_SIZE" not in env:
            env = slurm_variables(env)
            if not env:
                return cls()
        rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        if world == 1:
            return cls(rank=rank)
        local_rank = _number(env, "LOCAL_RANK", 0)
        return cls(
            rank=rank,
            world=world,
            local_rank=local_rank,
            local_world=_number(env, "LOCAL_WORLD_SIZE", local_rank + 1),
            address=_word(env, "MASTER_ADDR"),
            port=_number(env, "MASTER_PORT"),
        )


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timeout_of(env: Mapping[str, str] | None = None) -> timedelta:
    """The seconds in the environment variable ADVECT_TIMEOUT, else TIMEOUT. Raises UserError for what is no time."""
    word = (os.environ if env is None else env).get("ADVECT_TIMEOUT")
    if word is None:
        return TIMEOUT
    if not word.isdecimal() or not 0 < int(word) <= 30 * 24 * 3600:
        raise UserError(
            f"the environment variable ADVECT_TIMEOUT must be a whole number of seconds up to a month, got {word!r}"
        )
    return timedelta(seconds=int(word))


def _word(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise UserError(
            f"the environment variable {name} is not set, though others of a launcher are; use torchrun, or --nproc,"
            " or unset RANK and WORLD_SIZE"
        )
    return env[name]


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in env:
        return default
    word = _word(env, name)
    if not word.isdecimal():
        raise UserError(f"the environment variable {name} must be a whole number, got {word!r}; see the launcher")
    return int(word)

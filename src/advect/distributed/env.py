"""Rank and world of this process, from the environment of torchrun or SLURM."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from advect.core.errors import UserError

if TYPE_CHECKING:
    import torch


_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
STOPPING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Signals that end a run: Ctrl+C, termination, preemption, and a closed terminal (the last two not on Windows)."""


def handled_signals() -> tuple[signal.Signals, ...]:
    """Those of :data:`STOPPING` to be handled: all but a SIGHUP that ``nohup`` has this process ignore."""
    ignored = [s for s in STOPPING if s.name == "SIGHUP" and signal.getsignal(s) == signal.SIG_IGN]
    return tuple(s for s in STOPPING if s not in ignored)


class Terminal:
    """Standard output and error where they are a terminal; :meth:`leave` once it is closed."""

    def __init__(self) -> None:
        self._handles = [handle for handle in (1, 2) if os.isatty(handle)]

    def leave(self) -> None:
        """Send what is printed from now on nowhere if the terminal is gone: printing would fail."""
        for handle in self._handles:
            if not os.isatty(handle):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, handle)
                os.close(nowhere)


TIMEOUT = timedelta(minutes=10)
"""Default wait for other processes, to join and in each exchange; ADVECT_TIMEOUT overrides it."""


@dataclass(frozen=True, kw_only=True)
class DistEnv:
    """Rank among ``world`` processes and on the host; rendezvous at ``address`` and ``port``. Default: a single
    process.
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
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"rank {self.rank} ({socket.gethostname()})"

    def share(self, n: int) -> range:
        """This process's contiguous share of ``n`` rows; sizes differ by at most one."""
        return range(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def device(self, device: torch.device) -> torch.device:
        """Device of this process, where all use ``device``: the GPU of its local rank, or the only visible one under
        SLURM.

        Raises UserError if a host has fewer GPUs than processes, or ``device`` names one GPU for all.
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
    def from_environment(cls, env: Mapping[str, str] | None = None) -> DistEnv:
        """From the variables of ``torchrun`` or of a SLURM step; a single process without them.

        Raises UserError if they are incomplete, not numbers, or contradictory.
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


def timeout_of(env: Mapping[str, str] | None = None) -> timedelta:
    """Seconds in ADVECT_TIMEOUT, else TIMEOUT. Raises UserError for an invalid value."""
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


def slurm_variables(env: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE etc. of a task in a SLURM step of several tasks; empty otherwise, as for batch scripts and
    salloc.

    Unless set, MASTER_ADDR is the step's first host, and MASTER_PORT lies in 10,000 to 29,999, derived from the job
    and step numbers. Raises UserError if SLURM's variables are incomplete.
    """
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    if not tasks.isdecimal() or int(tasks) < 2:
        return {}
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID") if name not in env]
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if missing or nodes is None:
        raise UserError(
            f"{', '.join(missing) or 'SLURM_STEP_NODELIST'} is not set in a SLURM step of {tasks} tasks; start with"
            " srun, or give RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    here = _tasks_here(env)
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env.get("MASTER_ADDR") or hosts(nodes)[0],
        "MASTER_PORT": env.get("MASTER_PORT") or str(_port(env)),
        **({} if here is None else {"LOCAL_WORLD_SIZE": str(here)}),
    }


def hosts(nodelist: str) -> list[str]:
    """Names in a list such as ``node[01-03,7],login``. Raises UserError if malformed."""
    if not re.fullmatch(r"(?:[^\[\],]|\[[\d,-]+\])+(?:,(?:[^\[\],]|\[[\d,-]+\])+)*", nodelist):
        raise UserError(f"SLURM's list of nodes {nodelist!r} cannot be read; give MASTER_ADDR and MASTER_PORT")
    return [name for entry in re.split(r",(?![^\[]*\])", nodelist) for name in _expanded(entry)]


def _expanded(entry: str) -> Iterator[str]:
    """``rack[1-2]n[01,03]`` as its four names, the last bracket varying fastest."""
    before, bracket, rest = entry.partition("[")
    if not bracket:
        yield entry
        return
    inside, _, after = rest.partition("]")
    for part in inside.split(","):
        first, _, last = part.partition("-")
        if not re.fullmatch(r"\d+(-\d+)?", part):
            raise UserError(f"SLURM's list of nodes has {part!r} in {entry!r}; give MASTER_ADDR and MASTER_PORT")
        numbers = range(int(first), int(last or first) + 1)
        for number in numbers:
            for tail in _expanded(after):
                yield f"{before}{number:0{len(first)}d}{tail}"


def _tasks_here(env: Mapping[str, str]) -> int | None:
    """Tasks of the step on this node, from a list such as ``4(x2),3``; None if unknown."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = env.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _port(env: Mapping[str, str]) -> int:
    """Port common to the tasks of a step, seldom shared with other steps."""
    numbers = [int(value) if value.isdecimal() else 0 for value in (env["SLURM_JOB_ID"], env.get("SLURM_STEP_ID", ""))]
    return 10_000 + (7 * numbers[0] + numbers[1]) % 20_000

"""A Python of its own for a test: its environment, its words and its end; ``forked`` has ranks in less time."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import advect


@dataclass(frozen=True)
class Ended:
    """What is left of one rank: its exit code, minus a signal's number where one killed it, and its words."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**variables: object) -> dict[str, str]:
    """This process's environment for a child that imports this advect: one thread, and no launcher's variables."""
    taken = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "TORCHELASTIC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    here = {"PYTHONPATH": str(Path(advect.__file__).parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **here, **{name: str(value) for name, value in variables.items()}}


def advect_command(words: str) -> list[str]:
    """The command line in a process of its own."""
    return [sys.executable, "-m", "advect", *words.split()]

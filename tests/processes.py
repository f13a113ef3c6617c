"""Real processes for tests: several ranks of a program on this machine, each a Python of its own.

with started(2, advect_command("train moons"), cwd=tmp_path) as ranks: ranks[1].kill()

Where the start of Python is not what is tested, ``forked`` has the same in less time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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


@contextlib.contextmanager
def started(
    n: int, command: Sequence[str], *, cwd: Path | None = None, **variables: object
) -> Iterator[list[subprocess.Popen[str]]]:
    """``n`` ranks of a command, with the variables of ``torchrun``; whatever is left of them is killed at the end."""
    port, ranks = free_port(), []
    try:
        for rank in range(n):
            places = {"RANK": rank, "WORLD_SIZE": n, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": n}
            env = environment(**places, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **variables)
            pipe = subprocess.PIPE
            ranks.append(subprocess.Popen(command, env=env, cwd=cwd, stdout=pipe, stderr=pipe, text=True))
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def wait(ranks: Sequence[subprocess.Popen[str]], timeout: float = 60) -> list[Ended]:
    """Wait until every rank has ended by itself, and fail after ``timeout`` seconds in all."""
    until, ended = time.monotonic() + timeout, []
    for i, rank in enumerate(ranks):
        try:
            out, err = rank.communicate(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            out, err = rank.communicate()
            raise AssertionError(f"rank {i} did not end in {timeout} s; it said:\n{out}\n{err}") from None
        ended.append(Ended(rank.returncode, out, err))
    return ended

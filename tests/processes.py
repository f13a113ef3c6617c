"""Real processes for tests: several ranks of a function, or of the command line, on this machine over Gloo.

def double(n): return current().rank + 2 * n      # at the top of a test file
run_ranks(2, double, 5) == [10, 11]               # the results pass through JSON

with started(2, advect_command("train moons"), cwd=tmp_path) as ranks: ranks[1].kill()
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def run_advect(n: int, words: str, *, cwd: Path, timeout: float = 60, check: bool = True) -> list[Ended]:
    """``n`` ranks of the command line, to their ends; with ``check`` each must exit with 0."""
    with started(n, advect_command(words), cwd=cwd) as ranks:
        ended = wait(ranks, timeout)
    if check and any(rank.code for rank in ended):
        raise AssertionError("\n".join(f"rank {i}: {rank.code}\n{rank.out}{rank.err}" for i, rank in enumerate(ended)))
    return ended


def run_ranks(n: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60) -> list[Any]:
    """``function(*arguments)`` on each of ``n`` joined ranks; its results, by rank.

    It stands at the top of its file, which each rank imports. Arguments and results pass through JSON.
    """
    file = function.__code__.co_filename
    with tempfile.TemporaryDirectory() as folder:
        words = [file, function.__name__, json.dumps(arguments), folder]
        with started(n, [sys.executable, __file__, *words]) as ranks:
            ended = wait(ranks, timeout)
        if any(rank.code for rank in ended):
            told = (f"rank {i} ended with {rank.code}\n{rank.out}{rank.err}" for i, rank in enumerate(ended))
            raise AssertionError("\n".join(told))
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(n)]


def _one_rank(file: str, name: str, arguments: str, folder: str) -> None:
    """What :func:`run_ranks` has each of its processes do."""
    import torch

    from advect.distributed.comm import process_group

    torch.set_num_threads(1)
    sys.path.append(str(Path(file).parent))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(file).stem] = module
    spec.loader.exec_module(module)
    with process_group(torch.device("cpu")) as processes:
        value = getattr(module, name)(*json.loads(arguments))
        Path(folder, str(processes.rank)).write_text(json.dumps(value))


if __name__ == "__main__":
    _one_rank(*sys.argv[1:])

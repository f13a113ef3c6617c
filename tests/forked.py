"""Runs of the command line, forked from a process that has paid for the imports: many real processes in little time.

with ranks(2, "train moons --run-dir run", cwd=tmp_path, before=kill_at, arguments=(1, "rename", 3)) as run:
    assert [rank.code for rank in run.wait()] == [75, -9]

``before``, at the top of a test file, is called first in each process, as a fault is planted that way.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from processes import Ended, free_port

IMPORTS = (
    "advect.cli",
    "advect.config.arguments",
    "advect.commands.train",
    "advect.distributed.launch",
    "sklearn.datasets",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "torch.utils.flop_counter",
    "torch.utils.tensorboard",
    "tyro._backends",
    "tyro.constructors",
)


def server() -> ForkServerContext:
    """The context of the process that forks; it starts with the first run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    return context


class Run:
    """The ranks of one call of the command line."""

    def __init__(self, processes: Sequence[BaseProcess], said: Path) -> None:
        self.processes, self._said = processes, said

    def said(self, rank: int, stream: str = "err") -> str:
        """What a rank has written up to now to "err" or "out"."""
        path = self._said / f"{rank}.{stream}"
        return path.read_text() if path.exists() else ""

    def signal(self, number: int, rank: int = 0) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL to all that still run."""
        for process in self.processes:
            process.kill()
            process.join()

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait(self, timeout: float = 60) -> list[Ended]:
        """Wait until every rank has ended by itself, and fail after ``timeout`` seconds in all."""
        until = time.monotonic() + timeout
        for rank, process in enumerate(self.processes):
            process.join(max(0.1, until - time.monotonic()))
            if process.is_alive():
                raise AssertionError(f"rank {rank} did not end in {timeout} s; it said:\n{self.said(rank)}")
        return [
            Ended(process.exitcode or 0, self.said(rank, "out"), self.said(rank))
            for rank, process in enumerate(self.processes)
        ]


@contextlib.contextmanager
def ranks(
    n: int,
    words: str,
    *,
    cwd: Path,
    before: Callable[..., object] | None = None,
    arguments: Sequence[Any] = (),
) -> Iterator[Run]:
    """``n`` ranks of ``advect`` WORDS in ``cwd``; whatever is left of them is killed at the end."""
    context, port = server(), free_port()
    with tempfile.TemporaryDirectory() as said:
        processes = []
        for rank in range(n):
            place: dict[str, object] = {"RANK": rank, "WORLD_SIZE": n, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": n}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            given = words.split(), str(cwd), place if n > 1 else {}, f"{said}/{rank}", before, tuple(arguments)
            processes.append(context.Process(target=_rank, args=given))
            processes[-1].start()
        run = Run(processes, Path(said))
        try:
            yield run
        finally:
            run.kill()


def advect_ranks(n: int, words: str, *, cwd: Path, code: int = 0, timeout: float = 60, **fault: Any) -> list[Ended]:
    """``n`` ranks of the command line, to their ends, each of which must exit with ``code``."""
    with ranks(n, words, cwd=cwd, **fault) as run:
        ended = run.wait(timeout)
    if any(rank.code != code for rank in ended):
        raise AssertionError("\n".join(f"rank {i}: {rank.code}\n{rank.out}{rank.err}" for i, rank in enumerate(ended)))
    return ended


def _rank(
    words: list[str],
    cwd: str,
    place: dict[str, object],
    said: str,
    before: Callable[..., object] | None,
    arguments: tuple[Any, ...],
) -> None:
    for stream, end in ((sys.stdout, "out"), (sys.stderr, "err")):
        with open(f"{said}.{end}", "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    import torch

    from advect.cli import main

    os.chdir(cwd)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        del os.environ[name]
    os.environ |= {name: str(value) for name, value in place.items()} | {"CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    if before is not None:
        before(*arguments)
    sys.argv = ["advect", *words]
    main()

"""Several ranks of the command line or of a function, forked from a process that has paid for the imports.

with ranks(2, "train moons --run-dir run", cwd=tmp_path, before=kill_at, arguments=(1, "rename", 3)) as run:
    assert [rank.code for rank in run.wait()] == [75, -9]

def double(n): return current().rank + 2 * n      # at the top of a test file
run_ranks(2, double, 5) == [10, 11]               # joined over Gloo; the results pass through JSON

``before``, at the top of a test file, is called first in each process, as a fault is planted that way.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from processes import Ended, environment, free_port

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


def server() -> BaseContext:
    """The context of the process that forks, which starts with the first run; only Linux forks safely."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
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
    what: str | Callable[..., object],
    *,
    cwd: Path | None = None,
    before: Callable[..., object] | None = None,
    arguments: Sequence[Any] = (),
    **variables: object,
) -> Iterator[Run]:
    """``n`` ranks of ``advect`` WORDS, or of a function of ``arguments``, in ``cwd``; all are killed at the end."""
    context, port = server(), free_port()
    with tempfile.TemporaryDirectory() as said:
        processes = []
        for rank in range(n):
            place: dict[str, object] = {"RANK": rank, "WORLD_SIZE": n, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": n}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = environment(**(place if n > 1 else {}), **variables)
            given = what, str(cwd or Path.cwd()), env, f"{said}/{rank}", before, tuple(arguments)
            processes.append(context.Process(target=_rank, args=given))  # type: ignore[attr-defined]
            processes[-1].start()
        run = Run(processes, Path(said))
        try:
            yield run
        finally:
            run.kill()


def advect_ranks(n: int, words: str, *, cwd: Path, code: int = 0, timeout: float = 60, **options: Any) -> list[Ended]:
    """``n`` ranks of the command line, to their ends, each of which must exit with ``code``."""
    with ranks(n, words, cwd=cwd, **options) as run:
        return _with_code(run.wait(timeout), code)


def run_ranks(n: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60) -> list[Any]:
    """``function(*arguments)`` on each of ``n`` joined ranks; its results, by rank, through JSON."""
    with tempfile.TemporaryDirectory() as folder:
        with ranks(n, _joined, arguments=(function, arguments, folder)) as run:
            _with_code(run.wait(timeout), 0)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(n)]


def _with_code(ended: list[Ended], code: int) -> list[Ended]:
    if any(rank.code != code for rank in ended):
        raise AssertionError("\n".join(f"rank {i}: {rank.code}\n{rank.out}{rank.err}" for i, rank in enumerate(ended)))
    return ended


def _joined(function: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> None:
    """What :func:`run_ranks` has each of its processes do."""
    import torch

    from advect.distributed.comm import process_group

    with process_group(torch.device("cpu")) as processes:
        value = function(*arguments)
        Path(folder, str(processes.rank)).write_text(json.dumps(value))


def _rank(
    what: str | Callable[..., object],
    cwd: str,
    env: dict[str, str],
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
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    if before is not None:
        before(*arguments)
    if callable(what):
        what(*arguments)
    else:
        sys.argv = ["advect", *what.split()]
        main()

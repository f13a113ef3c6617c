"""Memory that runs out, and data that do not come."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest

from forked import advect_ranks, ranks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")

SMALL = (
    "train moons --width 16 --lr-warmup-steps 4 --log-every 4 --sample-every 0 --save-every 4 --num-epochs 1000"
    " --run-dir run --resume auto"
)


def little_memory(rank: int) -> None:
    """Leave the process of a rank 300 MB more than it has when the fifth step begins."""
    import resource

    from advect.training.step import Step

    real = Step.take

    def take(self: Step, loss, inputs, lr: float, observe=None):
        if int(os.environ.get("RANK", 0)) == rank and self.state.progress.step == 4:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + 300 * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            rows = 10_000_000  # 640 MB in the first layer of 16 channels
            parts = {f.name: getattr(inputs[0], f.name) for f in fields(inputs[0])}
            large = {name: x[:1].expand(rows, *x.shape[1:]) for name, x in parts.items() if x is not None}
            inputs = replace(inputs[0], **large), inputs[1]
        return real(self, loss, inputs, lr, observe)

    Step.take = take


@pytest.mark.parametrize("n", [1, 2])
def test_out_of_memory_names_the_flags_that_help(tmp_path: Path, n: int) -> None:
    call = f"{SMALL} --batch-size 32"
    with ranks(n, call, cwd=tmp_path, before=little_memory, arguments=(n - 1,)) as run:
        ended = run.wait()
    assert [rank.code for rank in ended] == [75] * (n - 1) + [2]
    last = ended[-1].err.splitlines()[-1]
    assert last.startswith("advect: out of memory (") and "Traceback" not in ended[-1].err
    flags = ["--mixed-precision", "--accumulate", "--grad-checkpointing", "--batch-size", "--parallel fsdp"]
    assert [last.find(flag) for flag in flags] == sorted(last.find(flag) for flag in flags) and flags[0] in last
    assert all(flag in last for flag in flags)
    advect_ranks(n, f"{call} --max-steps 8", cwd=tmp_path)


def stalling(rank: int) -> None:
    """Let the data of the fifth step come once the watch has spoken twice of it."""
    from advect.training import trainer
    from advect.training.guards import Watchdog
    from advect.training.loader import Loader

    told, report, make = threading.Semaphore(0), trainer.Trainer._report_stall, Loader._make

    def reported(self, name: str, seconds: float) -> None:
        report(self, name, seconds)
        told.release()

    def slowly(self: Loader, step: int):
        if int(os.environ.get("RANK", 0)) == rank and step == 4:
            told.acquire()
            told.acquire()
        return make(self, step)

    trainer.Watchdog = partial(Watchdog, patience=0.02)  # type: ignore[misc]
    trainer.Trainer._report_stall, Loader._make = reported, slowly


@pytest.mark.parametrize("flags", ["", "--num-workers 2", "--pair-ahead"])
def test_data_that_do_not_come_are_reported_again_and_again(tmp_path: Path, flags: str) -> None:
    (ended,) = advect_ranks(
        1, f"{SMALL} {flags} --max-steps 8", cwd=tmp_path, before=stalling, arguments=(0,), timeout=30
    )
    told = [line for line in ended.err.splitlines() if line.startswith("warning: step 5 has waited for data for ")]
    assert len(told) >= 2 and all("raise --num-workers" in line for line in told)


def test_of_several_the_process_whose_data_do_not_come_names_itself(tmp_path: Path) -> None:
    call = f"{SMALL} --max-steps 8"
    first, second = advect_ranks(2, call, cwd=tmp_path, before=stalling, arguments=(1,))
    assert second.err.count("warning: rank 1 (") >= 2 and "): step 5 has waited for data" in second.err
    assert "waited for data" not in first.err

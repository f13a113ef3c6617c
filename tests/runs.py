"""Faults planted in a run, and what runs leave on disk; helpers of several folders' tests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from torch import Tensor

from advect.checkpoint.manifest import list_checkpoints
from advect.checkpoint.tensor_files import SHARDS, assemble
from advect.training.state import EMA_FILE, MODEL, OPTIMIZER, PROGRESS, load_weights
from forked import Run

NAN = float("nan")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(victim: int, place: str, nth: int) -> None:
    """Have the process of rank ``victim`` killed when it comes to ``place`` for the ``nth`` time.

    "step": with gradients known, and the weights not yet moved. "write": some files of a checkpoint are written.
    "rename": all are, under the name of none. "save": as "step", while the thread is within a write.
    """
    if int(os.environ.get("RANK", 0)) != victim:
        return
    from advect.training.step import Step

    bad, left, writing = Step._bad, [nth], threading.Event()

    def count() -> None:
        left[0] -= 1
        if left[0] <= 0:
            die()

    def dying(self: Step, norm: Tensor) -> tuple[bool, Tensor | None]:
        if place == "step" or (place == "save" and writing.is_set()):
            count()
        return bad(self, norm)

    def hook(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename") or ".partial" not in str(arguments[0]) or left[0] <= 0:
            return
        if place == "save" and event == "open" and threading.current_thread() is not threading.main_thread():
            writing.set()
            time.sleep(0.05)  # for the other thread to come to its step; without it this is a write like others
        elif (place, event) in (("write", "open"), ("rename", "os.rename")):
            count()

    Step._bad = dying
    sys.addaudithook(hook)


def newest_step(run: Path) -> int:
    return max((int(p.name.split("-")[1]) for p in list_checkpoints(run / "checkpoints")), default=0)


def end_of(run: Path) -> dict[str, object]:
    """Weights, averages, moments, progress and logged losses at the end of a run."""
    folder = run / "checkpoints" / f"step-{newest_step(run):08d}"
    tensors = {name: load_weights(folder / name) for name in (MODEL, EMA_FILE)}
    if (folder / SHARDS).is_dir():
        tensors[OPTIMIZER] = assemble(folder / SHARDS, ["optimizer"])
    else:
        tensors[OPTIMIZER] = load_weights(folder / OPTIMIZER)
    facts = json.loads((folder / PROGRESS).read_text())
    facts.pop("seconds")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [(r["step"], r.get("loss"), r.get("epoch_loss"), r.get("held_out_loss")) for r in rows]
    bits = {f"{file} {name}": x.numpy().tobytes() for file, named in tensors.items() for name, x in named.items()}
    return {**bits, "progress": facts, "rows": logged}


def plant(victim: int, value: float, steps: list[int], above: float = 0.0, kill: tuple | None = None) -> None:
    """Put ``value`` into the targets of rank ``victim`` at ``steps``, if the learning rate is ``above`` some rate.

    At the end each process notes its loss scale and the hash of its weights in a file of its own.
    """
    from advect.training.step import Step
    from advect.training.trainer import Trainer

    rank, real, run = int(os.environ.get("RANK", 0)), Step.take, Trainer.run

    def take(self: Step, loss, inputs, lr: float, observe=None):
        if rank == victim and self.state.progress.step + 1 in steps and lr > above:
            inputs[0].u_t[0, 0] = value
        return real(self, loss, inputs, lr, observe)

    def noted(self: Trainer) -> str:
        reason = run(self)
        weights = b"".join(x.numpy().tobytes() for x in self.state.net.state_dict().values())
        scale = self.state.loss_scaler.scale if self.state.loss_scaler else 0.0
        Path(f"rank{rank}").write_text(f"{scale} {hashlib.sha256(weights).hexdigest()}")
        return reason

    Step.take, Trainer.run = take, noted
    if kill is not None:
        kill_at(*kill)


def assert_same_end(one: Path, other: Path, step: int, *, since: int = 0) -> None:
    """Weights, averages and moments are equal bit for bit, and so are the losses logged after step ``since``."""
    for name in (MODEL, EMA_FILE, OPTIMIZER):
        a, b = (load_weights(run / "checkpoints" / f"step-{step:08d}" / name) for run in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            assert (a[key] == b[key]).all(), f"{name}: {key}"
    assert [r for r in losses(one) if r[0] > since] == losses(other)
    states = [
        json.loads((r / "checkpoints" / f"step-{step:08d}" / "state/run.json").read_text()) for r in (one, other)
    ]
    for state in states:
        state.pop("seconds")
    assert states[0] == states[1]


def losses(run: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"], r["lr"]) for r in rows if "loss" in r]


def wait_for_step(process: Run, run: Path, step: int) -> None:
    """Poll until the run has a checkpoint of ``step`` or later, or has ended."""
    while process.alive() and newest_step(run) < step:
        time.sleep(0.002)

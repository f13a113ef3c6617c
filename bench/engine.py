"""What the engine costs: over a bare loop, for a checkpoint, and for a second process.

Contestants of the first two tables are in one process and take turns, so that a noisy machine is noisy for all, and
figures are medians over the rounds. The bare loop has the same network, data, loss, clipping, AdamW and average,
called one after the other; the plain one draws with torch.randn and takes PyTorch's own optimiser and clipping.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from interleave import machine

from advect.checkpoint.async_writer import CheckpointWriter
from advect.core.device import tune_process
from advect.core.random import Stream
from advect.core.types import Batch
from advect.losses import FlowMatching
from advect.networks import MLP, UNet
from advect.training import (
    EMA,
    AdamW,
    CosineDecay,
    LearningRate,
    Loader,
    StopCriteria,
    Trainer,
    TrainState,
    named_params,
)
from advect.training.callbacks import CheckpointCallback
from advect.training.optim import clip_gradients, gradient_norm

RATE = LearningRate(peak=1e-4, warmup=100, total=10**6, schedule=CosineDecay())
SHAPES = {"mlp": ((2,), 256), "unet": ((3, 32, 32), 4)}
Work = Callable[[int], None]


class Noise:
    """Random samples in memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rows = torch.randn(1024, *shape)

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, indices: np.ndarray, rng: object = None) -> Batch:
        return Batch(self.rows[torch.from_numpy(indices)])


def new(name: str) -> tuple[TrainState, Loader]:
    """A network of that name with its optimiser and average, and its data."""
    torch.manual_seed(0)
    shape, batch = SHAPES[name]
    if name == "mlp":
        net: torch.nn.Module = MLP(2, width=256, depth=4)
    else:
        net = UNet(shape, model_channels=64, channel_mult=(1, 2, 2), num_res_blocks=1, dropout=0.0)
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    params = named_params(net)
    return TrainState(net, AdamW(params), EMA(params, 0.999)), Loader(Noise(shape), batch)


def engine(name: str, callbacks: tuple = ()) -> tuple[Work, Trainer]:
    """The whole engine, and its work."""
    state, loader = new(name)
    limits = StopCriteria(steps=10**9)
    trainer = Trainer(state, FlowMatching(), loader, rate=RATE, limits=limits, log_every=100, callbacks=callbacks)

    def work(n: int) -> None:
        trainer.limits = StopCriteria(steps=10**9, max_steps=state.progress.step + n)
        trainer.run()

    return work, trainer


def bare(name: str) -> Work:
    """The same work, and nothing around it."""
    state, loader = new(name)
    loss_fn, params, done = FlowMatching(), list(state.net.parameters()), 0

    def work(n: int) -> None:
        nonlocal done
        for step in range(done, done + n):
            point, cond = loss_fn.sample(loader.batch(step), loader.rng(Stream.STEP, step))
            loss_fn.compare(state.net(point.x_t, point.t, cond), point).mean().backward()
            grads = [p.grad for p in params if p.grad is not None]
            clip_gradients(grads, 1.0, gradient_norm(grads))
            state.optimizer.step(RATE(step))
            assert state.ema is not None
            state.ema.update()
        done += n

    return work


def plain(name: str) -> Work:
    """The same steps as PyTorch's manual has them."""
    state, loader = new(name)
    net, done = state.net, 0
    params: list[torch.Tensor] = list(net.parameters())
    shadow = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, weight_decay=0.0, fused=True)

    def work(n: int) -> None:
        nonlocal done
        for step in range(done, done + n):
            x1 = loader.batch(step).x1
            x0, t = torch.randn_like(x1), torch.rand(len(x1))
            s = t.view(-1, *[1] * (x1.dim() - 1))
            optimizer.zero_grad()
            (net((1 - s) * x0 + s * x1, t) - (x1 - x0)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = RATE(step)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(shadow, params, 0.001)
        done += n

    return work


def turns(works: dict[str, Work], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each in each round; every other round goes the other way round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(steps)
    for i in range(rounds):
        for name in list(works)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            works[name](steps)
            seconds[name].append((time.perf_counter() - began) / steps)
    return seconds


def overhead(name: str, rounds: int, steps: int) -> None:
    """Print what a step takes, and how much more than the bare one in the same round."""
    seconds = turns({"engine": engine(name)[0], "bare loop": bare(name), "plain PyTorch": plain(name)}, rounds, steps)
    print(f"\nA step of the {name}, {rounds} rounds of {steps}, {torch.get_num_threads()} threads\n")
    print("| | ms/step | over the bare loop, microseconds | over it, % | least to most % |\n|---|---|---|---|---|")
    for contestant, own in seconds.items():
        more = [a - b for a, b in zip(own, seconds["bare loop"], strict=True)]
        share = [100 * (a / b - 1) for a, b in zip(own, seconds["bare loop"], strict=True)]
        print(
            f"| {contestant} | {1e3 * statistics.median(own):,.2f} | {1e6 * statistics.median(more):,.0f} "
            f"| {statistics.median(share):+.1f} | {min(share):+.1f} to {max(share):+.1f} |"
        )


def blocked(rounds: int, steps: int) -> None:
    """Print for how long a step waits for a checkpoint, written beside the training and not."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        trainers, waits = {}, {}
        for name, background in (("beside", True), ("at once", False)):
            writer = CheckpointWriter(Path(folder, name), keep_last=2, background=background)
            writer.close = lambda: None  # a run would end the thread, and there are many runs
            trainers[name] = engine("unet", (CheckpointCallback(writer, every=steps, every_epochs=0),))
            waits[name] = []
        trainers["none"] = engine("unet")
        works: dict[str, Work] = {}
        for name, (work, trainer) in trainers.items():

            def watched(n: int, work: Work = work, trainer: Trainer = trainer, name: str = name) -> None:
                work(n)
                waits.get(name, []).append(trainer.metrics.blocked)

            works[name] = watched
            trainer.log_every = 10**9
        seconds = turns(works, rounds, 2 * steps)
        size = sum(f.stat().st_size for f in next(Path(folder, "beside").glob("step-*")).rglob("*") if f.is_file())
    print(f"\nCheckpoints of {size / 1e6:.0f} MB every {steps} steps of the unet, two in each of {rounds} rounds\n")
    print("| written | a step waits, ms a checkpoint | the run longer by, ms a checkpoint |\n|---|---|---|")
    for name, wait in waits.items():
        longer = [1e3 * steps * (a - b) for a, b in zip(seconds[name], seconds["none"], strict=True)]
        print(f"| {name} | {1e3 * statistics.median(wait[1:]) / 2:,.0f} | {statistics.median(longer):,.0f} |")


def processes(rounds: int, steps: int) -> None:
    """Print the speed of two processes with a thread each, and of one with two threads, at equal global batches."""
    words = f"train digits --max-steps {steps} --log-every {steps // 4} --sample-every 0 --save-epochs 0 --device cpu"
    ways = {"one process, two threads": (2, "--batch-size 128"), "two, one each": (1, "--batch-size 64 --nproc 2")}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (threads, more) in ways.items():
            with tempfile.TemporaryDirectory(dir=".") as folder:
                command = [sys.executable, "-m", "advect", *words.split(), *more.split(), "--run-dir", f"{folder}/run"]
                env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
                subprocess.run(command, check=True, env=env, capture_output=True)
                lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            rates[name].append(statistics.median([row["samples_per_s"] for row in rows if "samples_per_s" in row][1:]))
    print(f"\nadvect train digits, global batch 128, {rounds} rounds of {steps} steps\n")
    print("| | samples/s | ratio to the first | least to most |\n|---|---|---|---|")
    for name, own in rates.items():
        ratios = [a / b for a, b in zip(own, rates["one process, two threads"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {name} | {statistics.median(own):,.0f} | {spread} |")


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=["mlp", "unet", "checkpoint", "processes"])
    parser.add_argument("--rounds", type=float, default=1.0, help="so many times the usual number of rounds")
    args = parser.parse_args()
    tune_process()
    print(machine())
    many = args.rounds
    for name in args.tables:
        torch.set_num_threads(1 if name == "mlp" else 2)
        if name == "mlp":
            overhead("mlp", max(2, round(20 * many)), 200)
        elif name == "unet":
            overhead("unet", max(2, round(10 * many)), 5)
        elif name == "checkpoint":
            blocked(max(2, round(4 * many)), 8)
        elif name == "processes":
            processes(max(1, round(2 * many)), 80)
        else:
            parser.error(f"there is no table {name}; choose mlp, unet, checkpoint or processes")


if __name__ == "__main__":
    main()

"""What this machine can do at most: matrix products, 3x3 convolutions and memory, as PyTorch reaches them.

``python bench/ceiling.py [--device cuda] [--rounds 7] [--threads N]`` prints a table. Every line is the best of the
rounds, since a ceiling is what the machine can do when nothing disturbs it; the lines take turns. Other benchmarks
import :func:`ceilings`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

PRODUCTS = {
    "cpu": ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (8192, 384, 1536)),
    "cuda": ((2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (65536, 1152, 4608)),
}
"""(rows, inner, columns); the last is a transformer's widening layer."""

CONVOLUTIONS = {
    "cpu": ((32, 64, 32), (32, 128, 16), (32, 256, 8)),
    "cuda": ((256, 128, 64), (256, 256, 32), (256, 512, 16)),
}
"""(batch, channels, side): 3x3, as many channels out as in, channels_last."""

BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}


@dataclass(frozen=True)
class Task:
    """Something to time: its name, the work of one call (operations or bytes), and the call."""

    name: str
    work: float
    call: Callable[[], object]


def products(device: torch.device, dtype: torch.dtype) -> list[Task]:
    """Matrix products of several sizes."""
    tasks = []
    for m, k, n in PRODUCTS[device.type]:
        a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
        out = torch.empty(m, n, device=device, dtype=dtype)
        tasks.append(
            Task(f"product {m} x {k} x {n}", 2.0 * m * k * n, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        )
    return tasks


def convolutions(device: torch.device, dtype: torch.dtype) -> list[Task]:
    """Forward of 3x3 convolutions, and forward with both gradients."""
    tasks = []
    for batch, channels, side in CONVOLUTIONS[device.type]:
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
        w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype) / (9 * channels) ** 0.5
        x, w = (v.to(memory_format=torch.channels_last).requires_grad_() for v in (x, w))
        work = 2.0 * batch * side * side * channels * channels * 9
        grad = torch.randn_like(x)

        def forward(x: torch.Tensor = x, w: torch.Tensor = w) -> object:
            with torch.no_grad():
                return F.conv2d(x, w, padding=1)

        def both(x: torch.Tensor = x, w: torch.Tensor = w, grad: torch.Tensor = grad) -> object:
            return torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), grad)

        name = f"convolution {batch} x {channels} x {side} x {side}"
        tasks += [Task(f"{name}, forward", work, forward), Task(f"{name}, and backward", 3 * work, both)]
    return tasks


def memory(device: torch.device) -> list[Task]:
    """A copy, which reads and writes each byte once."""
    source = torch.ones(BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return [Task("memory, copy", 2.0 * BYTES[device.type], lambda: target.copy_(source))]


def _seconds(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of one of ``count`` calls."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        call()
    _wait(device)
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_rates(tasks: list[Task], device: torch.device, *, rounds: int = 5, seconds: float = 0.1) -> dict[str, float]:
    """The best rate of each task, work a second; in each round the tasks take turns, ``seconds`` long each."""
    for task in tasks:  # libraries choose their kernels at the first call
        task.call()
    counts = [max(1, round(seconds / _seconds(task.call, 1, device))) for task in tasks]
    best = dict.fromkeys((task.name for task in tasks), 0.0)
    for _ in range(rounds):
        for task, count in zip(tasks, counts, strict=True):
            best[task.name] = max(best[task.name], task.work / _seconds(task.call, count, device))
    return best


def ceilings(device: torch.device | str, dtype: torch.dtype, *, rounds: int = 5) -> dict[str, float]:
    """FLOP/s of each matrix product and convolution in ``dtype`` and bytes/s of "memory, copy", by name."""
    device = torch.device(device)
    return best_rates(products(device, dtype) + convolutions(device, dtype) + memory(device), device, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    torch.set_float32_matmul_precision("high")  # TF32, where a GPU has it
    found = {dtype: ceilings(device, dtype, rounds=arguments.rounds) for dtype in (torch.float32, torch.bfloat16)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{name}, PyTorch {torch.__version__}\n\n| GFLOP/s; memory: GB/s | float32 | bfloat16 |\n|---|---|---|")
    single, half = found[torch.float32], found[torch.bfloat16]
    for task in single:
        other = "" if task.startswith("memory") else f"{half[task] / 1e9:,.0f}"
        print(f"| {task} | {single[task] / 1e9:,.0f} | {other} |")


if __name__ == "__main__":
    main()

"""Measuring the machine."""

from __future__ import annotations

import os
import platform
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from advect.core.platform import best_half
from advect.core.processes import count_cores
from advect.doctor.machine import Machine, Products
from advect.doctor.probes import run_probe
from advect.runs.build import pick_device

LIBRARIES = {
    "anndata": "cells",
    "datasets": "images",
    "fsspec": "remote",
    "pandas": "tables",
    "pyarrow": "tables",
    "wandb": "wandb",
}
_COMPILE_SECONDS, _GROUP_SECONDS = 180.0, 60.0


def gather_machine(folder: Path = Path("runs"), device: str = "auto") -> Machine:
    """Measure this machine, in half a minute or so; ``folder`` is where runs are to go.

    Raises UserError where ``device`` is none.
    """
    place = pick_device(device)
    backend = "nccl" if place.type == "cuda" and torch.distributed.is_nccl_available() else "gloo"
    with ThreadPoolExecutor(2) as pool:  # the trials wait for processes
        compiler = pool.submit(run_probe, "compile", place.type, timeout=_COMPILE_SECONDS)
        distributed = pool.submit(run_probe, "group", backend, timeout=_GROUP_SECONDS)
        trials = compiler.result(), distributed.result()
    memory, free = device_memory(place)
    half = best_half(place)
    there = _existing(folder)
    return Machine(
        python=platform.python_version(),
        torch=torch.__version__,
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else f"cpu ({platform.machine()})",
        device_memory=memory,
        device_free=free,
        gpus=torch.cuda.device_count(),
        built_for_gpu=bool(torch.version.cuda or torch.version.hip),
        gpu_driver=shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists(),
        cores=count_cores(),
        threads=torch.get_num_threads(),
        omp=os.environ.get("OMP_NUM_THREADS"),
        chosen_half=None if half is None else str(half).removeprefix("torch."),
        products=measure_products(place, half or torch.bfloat16),
        compiler=trials[0],
        backend=backend,
        distributed=trials[1],
        folder=str(folder),
        disk_free=shutil.disk_usage(there).free,
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        libraries={name: (_version(name), extra) for name, extra in LIBRARIES.items()},
    )


def device_memory(device: torch.device) -> tuple[int, int]:
    """The bytes of memory that a device has, and those that are free; of the CPU, the machine's."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return total, int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return total, total


def measure_products(device: torch.device, half: torch.dtype) -> Products:
    """Multiply square matrices in float32 and in ``half``, some times each, and take the fastest."""
    n = 4096 if device.type == "cuda" else 384
    a = torch.randn(n, n, device=device, generator=torch.Generator(device).manual_seed(0))
    exact, single = _timed(a, device)
    product, halved = _timed(a.to(half), device)
    error = float((product.float() - exact).norm() / exact.norm())
    flops = 2.0 * n**3
    return Products(str(half).removeprefix("torch."), flops / single, flops / halved, error)


def _timed(a: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, float]:
    best, product = float("inf"), a @ a
    for _ in range(5):
        _wait(device)
        began = time.perf_counter()
        product = a @ a
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return product, best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

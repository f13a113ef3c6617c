"""Measuring the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from advect.config.build import pick_device
from advect.core.device import best_half
from advect.distributed.env import count_cores
from advect.doctor.machine import Machine, Probe, Products

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


def run_probe(name: str, argument: str, *, timeout: float) -> Probe:
    """Run a trial, ``compile`` on a device or ``group`` with a backend, for at most ``timeout`` seconds."""
    words = [sys.executable, "-m", "advect.doctor.probes", name, argument]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Probe(None, f"it took more than {timeout:g} seconds")
    except OSError as error:
        return Probe(None, str(error))
    return read_answer(done.returncode, done.stdout, done.stderr)


def read_answer(code: int, out: str, err: str) -> Probe:
    """The trial's answer, the last line of what it printed; without one, the last line of its errors."""
    try:
        return Probe(float(json.loads(out.strip().splitlines()[-1])["seconds"]))
    except (ValueError, KeyError, IndexError, TypeError):
        lines = [line.strip() for line in err.splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line.split(":")[0]] or lines
        return Probe(None, (telling[-1] if telling else f"it ended with code {code}")[:200])


def _compile(device: str) -> None:
    import torch
    from torch import nn

    from advect.core.device import check_compiler

    place = torch.device(device)
    check_compiler(place)
    net = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1)).to(place)
    x = torch.randn(4, 8, device=place)
    compiled = torch.compile(net)
    compiled(x).sum().backward()
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-3, atol=1e-4)


def _group(backend: str) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=30))
    x = torch.ones(2, device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(x)
    assert x.tolist() == [1.0, 1.0]
    dist.destroy_process_group()


def main() -> None:
    """Run the trial that the command line names, and print its seconds as JSON."""
    trial = {"compile": _compile, "group": _group}[sys.argv[1]]
    began = time.monotonic()
    trial(sys.argv[2])
    print(json.dumps({"seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()

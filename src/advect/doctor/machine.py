"""Measurements of the machine, and checks."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from advect.core import device as devices
from advect.core.memory import device_memory
from advect.core.threads import ThreadChoice, count_cores, count_physical_cores, kept_threads, measure_threads
from advect.distributed.context import pick_device
from advect.doctor.report import Bytes, Figure, Finding, Seconds

OLDEST, KNOWN_GOOD = (2, 8), ("2.8", "2.11", "2.13")
"""Oldest supported PyTorch, and tested versions."""

GIB = 2**30

LIBRARIES = {
    "anndata": "cells",
    "datasets": "images",
    "fsspec": "remote",
    "pandas": "tables",
    "pyarrow": "tables",
    "wandb": "wandb",
}
_COMPILE_SECONDS, _GROUP_SECONDS = 180.0, 60.0


@dataclass(frozen=True)
class Probe:
    """Outcome of a trial in a subprocess: seconds, or None and the error."""

    seconds: float | None
    error: str = ""


@dataclass(frozen=True)
class Products:
    """Matrix products: FLOP/s in float32 and 16 bits, and the relative error in 16 bits."""

    half: str
    single_rate: float
    half_rate: float
    half_error: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Figures of a machine; memory and disk in bytes.

    Attributes:
        device, device_memory, device_free: of the device selected by "auto".
        built_for_gpu, gpu_driver: whether PyTorch is a GPU build; whether a GPU driver is installed.
        cores, threads, omp: usable cores, PyTorch's threads, OMP_NUM_THREADS.
        physical: usable cores without their further hyper-threads, or None.
        fastest: number of threads with which a small network trains fastest now, if measured.
        chosen_half: 16-bit type of --mixed-precision; None for float32.
        backend, distributed: backend of process groups, and its trial.
        folder, disk_free: folder of runs, and free space.
        shm: size of /dev/shm, or None.
        libraries: version (or None) and extra of each optional library.
    """

    python: str
    torch: str
    device: str
    device_memory: int
    device_free: int
    gpus: int
    built_for_gpu: bool
    gpu_driver: bool
    cores: int
    threads: int
    omp: str | None
    chosen_half: str | None
    products: Products
    compiler: Probe
    backend: str
    distributed: Probe
    folder: str
    disk_free: int
    shm: int | None
    libraries: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    physical: int | None = None
    fastest: ThreadChoice | None = None


def measure_machine(folder: Path = Path("runs"), device: str = "auto") -> Machine:
    """Measure this machine in about half a minute. Raises UserError for an unknown ``device``."""
    place = pick_device(device)
    backend = "nccl" if place.type == "cuda" and torch.distributed.is_nccl_available() else "gloo"
    with ThreadPoolExecutor(2) as pool:
        compiler = pool.submit(run_probe, "compile", place.type, timeout=_COMPILE_SECONDS)
        distributed = pool.submit(run_probe, "group", backend, timeout=_GROUP_SECONDS)
        trials = compiler.result(), distributed.result()
    memory, free = device_memory(place)
    half = devices.best_half(place)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
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
        disk_free=shutil.disk_usage(existing).free,
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        libraries={name: (_version(name), extra) for name, extra in LIBRARIES.items()},
        physical=count_physical_cores(),
        fastest=fastest_threads() if place.type == "cpu" else None,
    )


def measure_products(device: torch.device, half: torch.dtype) -> Products:
    """Time square matrix products in float32 and in ``half``, the fastest of five."""
    n = 4096 if device.type == "cuda" else 384
    a = torch.randn(n, n, device=device, generator=torch.Generator(device).manual_seed(0))
    exact, single = _timed(a, device)
    product, halved = _timed(a.to(half), device)
    error = float((product.float() - exact).norm() / exact.norm())
    flops = 2.0 * n**3
    return Products(str(half).removeprefix("torch."), flops / single, flops / halved, error)


def fastest_threads() -> ThreadChoice:
    """Number of threads, up to one a core, with which a small convolutional network trains fastest."""
    net = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 16, 3))
    x = torch.randn(16, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with kept_threads():
        torch.set_num_threads(count_cores())
        return measure_threads(lambda: net(x).square().mean().backward(), math.inf)


def _timed(a: Tensor, device: torch.device) -> tuple[Tensor, float]:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    best, product = float("inf"), a @ a
    for _ in range(5):
        wait(device)
        began = time.perf_counter()
        product = a @ a
        wait(device)
        best = min(best, time.perf_counter() - began)
    return product, best


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def run_probe(name: str, argument: str, *, timeout: float) -> Probe:
    """Run a trial, ``compile`` (a device) or ``group`` (a backend), in a subprocess for at most ``timeout``
    seconds.
    """
    words = [sys.executable, "-m", "advect.doctor.machine", name, argument]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Probe(None, f"it took more than {timeout:g} seconds")
    except OSError as error:
        return Probe(None, str(error))
    return read_answer(done.returncode, done.stdout, done.stderr)


def read_answer(code: int, out: str, err: str) -> Probe:
    """Parse a trial's output: the last line of ``out``, else the last error of ``err``."""
    try:
        return Probe(float(json.loads(out.strip().splitlines()[-1])["seconds"]))
    except (ValueError, KeyError, IndexError, TypeError):
        lines = [line.strip() for line in err.splitlines() if line.strip()]
        telling = [line for line in lines if "Error" in line.split(":")[0]] or lines
        return Probe(None, (telling[-1] if telling else f"it ended with code {code}")[:200])


def _compile(device: str) -> None:
    place = torch.device(device)
    devices.check_compiler(place)
    net = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1)).to(place)
    x = torch.randn(4, 8, device=place)
    compiled = torch.compile(net)
    compiled(x).sum().backward()
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-3, atol=1e-4)


def _group(backend: str) -> None:
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=30))
    x = torch.ones(2, device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(x)
    assert x.tolist() == [1.0, 1.0]
    dist.destroy_process_group()


def check_versions(m: Machine) -> Finding:
    """Check the versions of Python and PyTorch."""
    figures: dict[str, Figure] = {"torch": m.torch, "python": m.python}
    version = tuple(map(int, re.findall(r"\d+", m.torch)[:2]))
    if version < OLDEST:
        return Finding("problem", "This PyTorch is too old", figures, "pip install 'torch>=2.8'")
    if ".".join(map(str, version)) in KNOWN_GOOD:
        return Finding("ok", "PyTorch is of a version that advect is tested with", figures)
    known = ", ".join(KNOWN_GOOD)
    return Finding("ok", "PyTorch is new enough, though not of a tested version", {**figures, "tested": known})


def check_device(m: Machine) -> Finding:
    """Check the device, and for a GPU unseen by PyTorch."""
    figures: dict[str, Figure] = {
        "device": m.device,
        "memory": Bytes(m.device_memory),
        "free": Bytes(m.device_free),
    }
    if m.gpus:
        free = m.device_free / max(m.device_memory, 1)
        figures |= {"GPUs": m.gpus}
        if free < 0.5:
            return Finding("note", "Other programs hold most of the GPU's memory", figures, "--device cuda:1, or wait")
        return Finding("ok", "There is a GPU, and PyTorch can use it", figures)
    if m.gpu_driver:
        why = "its driver is too old or busy" if m.built_for_gpu else "this PyTorch is built for CPUs alone"
        return Finding(
            "problem",
            f"There is a GPU, but PyTorch cannot use it: {why}",
            {**figures, "torch": m.torch},
            "install the PyTorch that fits the driver, see pytorch.org/get-started",
        )
    return Finding(
        "ok", "There is no GPU; training runs on the CPU", figures, "small presets such as digits and moons"
    )


def check_precision(m: Machine) -> Finding:
    """Check whether 16-bit products are correct and faster than float32."""
    p = m.products
    gain = p.half_rate / p.single_rate
    figures: dict[str, Figure] = {
        "float32 (GFLOP/s)": p.single_rate / 1e9,
        f"{p.half} (GFLOP/s)": p.half_rate / 1e9,
        "times as fast": gain,
        "relative error": p.half_error,
        "--mixed-precision takes": m.chosen_half or "float32",
    }
    if not p.half_error < 0.05:
        return Finding("problem", f"{p.half} gives wrong products here", figures, "--no-mixed-precision")
    if m.chosen_half and gain < 0.9:
        return Finding("note", f"{p.half} is slower than float32 here", figures, "--no-mixed-precision")
    if m.chosen_half:
        return Finding("ok", f"{p.half} works and is worth it", figures, "--mixed-precision" if gain > 1.2 else "")
    return Finding("ok", "float32 is the precision for this device; --mixed-precision changes nothing", figures)


def check_compiler(m: Machine) -> Finding:
    """Check torch.compile."""
    if m.compiler.seconds is not None:
        figures: dict[str, Figure] = {"time for a small network": Seconds(m.compiler.seconds)}
        return Finding("ok", "torch.compile works", figures, "--compile-model for long runs")
    return Finding(
        "note",
        "torch.compile does not work here",
        {"why": m.compiler.error},
        "train with --no-compile-model, the default; or install a C++ compiler such as g++",
    )


def check_distributed(m: Machine) -> Finding:
    """Check that a process group starts."""
    if m.distributed.seconds is not None:
        return Finding("ok", f"A process group starts with {m.backend}", {"time": Seconds(m.distributed.seconds)})
    return Finding(
        "note",
        f"No process group can be started with {m.backend}, so that training is on one process",
        {"why": m.distributed.error},
        "see that the host's own name resolves, or set GLOO_SOCKET_IFNAME=lo",
    )


def check_disk(m: Machine) -> Finding:
    """Check the disk space for checkpoints."""
    figures: dict[str, Figure] = {"folder": m.folder, "free": Bytes(m.disk_free)}
    if m.disk_free < GIB:
        return Finding("problem", "The disk is nearly full", figures, "--run-dir on another disk, or --keep-last 1")
    if m.disk_free < 10 * GIB:
        return Finding("note", "There is little room on the disk", figures, "--keep-last 1 keeps one checkpoint")
    return Finding("ok", "There is room for runs on the disk", figures)


def check_shared_memory(m: Machine) -> Finding | None:
    """Check /dev/shm, which processes share tensors through."""
    if m.shm is None:
        return None
    figures: dict[str, Figure] = {"/dev/shm": Bytes(m.shm)}
    if m.shm >= 512 * 2**20:
        return Finding("ok", "There is enough shared memory", figures)
    return Finding(
        "note",
        "Shared memory is small, which several processes on one machine may run out of",
        figures,
        "docker run --shm-size=2g, or --ipc=host; loading data takes threads and needs none",
    )


def check_threads(m: Machine) -> Finding:
    """Check PyTorch's threads against the cores, and against the fastest number."""
    figures: dict[str, Figure] = {"threads": m.threads, "cores": m.cores, "OMP_NUM_THREADS": m.omp or "not set"}
    if m.physical is not None and m.physical < m.cores:
        figures |= {"without hyper-threads": m.physical}
    fastest = m.fastest.rates if m.fastest is not None else {}
    figures |= {f"steps a second ({n} thread{'s' * (n != 1)})": rate for n, rate in fastest.items()}
    if m.threads > m.cores:
        title = "PyTorch has more threads than there are cores, which is slow"
        return Finding("problem" if m.threads > 2 * m.cores else "note", title, figures, f"OMP_NUM_THREADS={m.cores}")
    if m.gpus == 0 and m.threads * 2 <= min(m.cores, m.fastest.threads if m.fastest else m.cores):
        title = "PyTorch uses less than all cores"
        return Finding("note", title, figures, f"OMP_NUM_THREADS={m.cores}, unless other programs need them")
    if m.fastest is None or m.fastest.threads >= m.threads or m.threads not in fastest:
        return Finding("ok", "PyTorch's threads fit the cores", figures)
    n, times = m.fastest.threads, fastest[m.fastest.threads] / fastest[m.threads]
    title = f"Fewer threads than cores are faster now, {n} by a factor of {times:.1f}: other programs use the cores"
    if m.omp is None:
        return Finding("ok", f"{title}, and training takes {n}", figures)
    return Finding("note", title, figures, f"leave OMP_NUM_THREADS={m.omp} out, or give --threads {n}")


def check_libraries(m: Machine) -> Finding:
    """Check the optional libraries."""
    missing = {name: extra for name, (version, extra) in m.libraries.items() if version is None}
    figures: dict[str, Figure] = {name: version or "missing" for name, (version, _) in m.libraries.items()}
    if not missing:
        return Finding("ok", "All optional libraries are there", figures)
    extras = ",".join(sorted(set(missing.values())))
    return Finding(
        "ok", "Some optional libraries are not installed", figures, f"pip install 'advect[{extras}]' if you need them"
    )


MACHINE_CHECKS: tuple[Callable[[Machine], Finding | None], ...] = (
    check_versions,
    check_device,
    check_precision,
    check_compiler,
    check_distributed,
    check_disk,
    check_shared_memory,
    check_threads,
    check_libraries,
)


def main() -> None:
    """Run the trial named on the command line; print its seconds as JSON."""
    trial = {"compile": _compile, "group": _group}[sys.argv[1]]
    began = time.monotonic()
    trial(sys.argv[2])
    print(json.dumps({"seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()

"""Verdicts on the machine, each a function of its figures."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from advect.doctor.report import Figure, Finding

OLDEST, KNOWN_GOOD = (2, 8), ("2.8", "2.11", "2.13")
"""The oldest PyTorch that advect runs on, and those it is tested with."""

GIB = 2**30


@dataclass(frozen=True)
class Probe:
    """What a trial in a process of its own gave: the seconds it took, or why it failed."""

    seconds: float | None
    error: str = ""


@dataclass(frozen=True)
class Products:
    """Matrix products: FLOP/s in float32 and in 16 bits, and the relative error of the latter."""

    half: str
    single_rate: float
    half_rate: float
    half_error: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The figures of a machine. Memory and disk are in bytes.

    Attributes:
        python, torch: versions.
        device, device_memory, device_free: the device that "auto" takes, its memory, and how much of it is free.
        gpus: how many GPUs there are.
        built_for_gpu: whether this PyTorch was built to use one.
        gpu_driver: whether the system has a driver of one, though PyTorch may not see it.
        cores, threads: processor cores that this process may use, and PyTorch's threads.
        omp: the environment's OMP_NUM_THREADS.
        chosen_half: the 16-bit type that --mixed-precision takes here; None for float32.
        products: the trial of precision.
        compiler: the trial of torch.compile.
        backend, distributed: the backend for several processes, and its trial.
        folder, disk_free: where runs go, and what is free there.
        shm: the size of /dev/shm; None where there is none.
        libraries: optional ones with their version, or None, and the extra that installs them.
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


def check_versions(m: Machine) -> Finding:
    """Python and PyTorch."""
    figures: dict[str, Figure] = {"torch": m.torch, "python": m.python}
    found = re.match(r"(\d+)\.(\d+)", m.torch)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        return Finding("problem", "This PyTorch is too old", figures, "pip install 'torch>=2.8'")
    if f"{version[0]}.{version[1]}" in KNOWN_GOOD:
        return Finding("ok", "PyTorch is of a version that advect is tested with", figures)
    known = ", ".join(KNOWN_GOOD)
    return Finding("ok", "PyTorch is new enough, though not of a tested version", {**figures, "tested": known})


def check_device(m: Machine) -> Finding:
    """The device, and a GPU that PyTorch does not see."""
    figures: dict[str, Figure] = {
        "device": m.device,
        "memory (GiB)": m.device_memory / GIB,
        "free (GiB)": m.device_free / GIB,
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
    """Whether 16 bits are faster here than 32, and right."""
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
    """Whether torch.compile works."""
    if m.compiler.seconds is not None:
        figures: dict[str, Figure] = {"seconds for a small network": m.compiler.seconds}
        return Finding("ok", "torch.compile works", figures, "--compile-model for long runs")
    return Finding(
        "note",
        "torch.compile does not work here",
        {"why": m.compiler.error},
        "train with --no-compile-model, the default; or install a C++ compiler such as g++",
    )


def check_distributed(m: Machine) -> Finding:
    """Whether processes can join into a group."""
    if m.distributed.seconds is not None:
        return Finding("ok", f"A process group starts with {m.backend}", {"seconds": m.distributed.seconds})
    return Finding(
        "note",
        f"No process group can be started with {m.backend}, so that training is on one process",
        {"why": m.distributed.error},
        "see that the host's own name resolves, or set GLOO_SOCKET_IFNAME=lo",
    )


def check_disk(m: Machine) -> Finding:
    """Room for checkpoints."""
    figures: dict[str, Figure] = {"folder": m.folder, "free (GiB)": m.disk_free / GIB}
    if m.disk_free < GIB:
        return Finding("problem", "The disk is nearly full", figures, "--run-dir on another disk, or --keep-last 1")
    if m.disk_free < 10 * GIB:
        return Finding("note", "There is little room on the disk", figures, "--keep-last 1 keeps one checkpoint")
    return Finding("ok", "There is room for runs on the disk", figures)


def check_shared_memory(m: Machine) -> Finding | None:
    """/dev/shm, by which processes hand each other tensors."""
    if m.shm is None:
        return None
    figures: dict[str, Figure] = {"/dev/shm (MiB)": m.shm / 2**20}
    if m.shm >= 512 * 2**20:
        return Finding("ok", "There is enough shared memory", figures)
    return Finding(
        "note",
        "Shared memory is small, which several processes on one machine may run out of",
        figures,
        "docker run --shm-size=2g, or --ipc=host; loading data takes threads and needs none",
    )


def check_threads(m: Machine) -> Finding:
    """PyTorch's threads beside the cores."""
    figures: dict[str, Figure] = {"threads": m.threads, "cores": m.cores, "OMP_NUM_THREADS": m.omp or "not set"}
    if m.threads > m.cores:
        title = "PyTorch has more threads than there are cores, which is slow"
        return Finding("problem" if m.threads > 2 * m.cores else "note", title, figures, f"OMP_NUM_THREADS={m.cores}")
    if m.gpus == 0 and m.threads * 2 <= m.cores:
        title = "PyTorch uses less than all cores"
        return Finding("note", title, figures, f"OMP_NUM_THREADS={m.cores}, unless other programs need them")
    return Finding("ok", "PyTorch's threads fit the cores", figures)


def check_libraries(m: Machine) -> Finding:
    """Optional libraries."""
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

"""Memory and disk space, compared with what something would take before it takes it."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from advect.core.errors import UserError

BATCH_COPIES = 4
"""Fewest copies of a batch that a solver or training step holds: state, velocity, stage and what the network keeps."""


def device_memory(device: torch.device) -> tuple[int, int]:
    """Total and free memory of a device in bytes; for the CPU those of the machine, or what ``ulimit`` leaves free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if not hasattr(os, "sysconf"):
        return _windows_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return total, min(int(lines["MemAvailable"].split()[0]) * 1024, _left_by_limits())
    except (OSError, KeyError, ValueError):  # not Linux
        return total, total


class _WindowsStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_: ClassVar = [("size", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
        (name, ctypes.c_uint64) for name in ("total", "free", "paged", "paged_free", "virtual", "virtual_free", "more")
    ]


def _windows_memory() -> tuple[int, int]:
    status = _WindowsStatus(size=ctypes.sizeof(_WindowsStatus))
    if not cast(Any, ctypes).windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return sys.maxsize, sys.maxsize  # unknown: nothing is refused
    return status.total, status.free


def _left_by_limits() -> int:
    """Bytes that ``ulimit -v`` and ``-d`` still let this process take, on Linux."""
    import resource

    pages = Path("/proc/self/statm").read_text().split()
    taken = {resource.RLIMIT_AS: int(pages[0]), resource.RLIMIT_DATA: int(pages[5])}
    soft = {limit: resource.getrlimit(limit)[0] for limit in taken}
    room = [soft[limit] - taken[limit] * resource.getpagesize() for limit in taken if soft[limit] >= 0]
    return max(0, min(room, default=sys.maxsize))


def check_memory(what: str, need: float, fix: str, device: torch.device | None = None) -> None:
    """Raise UserError if ``need`` bytes are more than the free memory of the device, default the CPU's.

    ``need`` is the least that ``what`` takes, so that what passes may still not fit.
    """
    free = device_memory(device or torch.device("cpu"))[1] if need > 2**28 else need
    if need > free:
        place = f"{device} has" if device is not None and device.type != "cpu" else "there are"
        raise UserError(f"{what} at least {in_bytes(need)} of memory, and {place} {in_bytes(free)} free; {fix}")


def check_disk(what: str, need: float, folder: Path, fix: str) -> None:
    """Raise UserError if ``need`` bytes are more than what is free on the disk of ``folder``."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if need > 2**28 and need > (free := shutil.disk_usage(there).free):
        raise UserError(f"{what} at least {in_bytes(need)} of disk, and {there} has {in_bytes(free)} free; {fix}")


def in_bytes(count: float) -> str:
    """1.5 GB for 1.5e9; at most three digits before the unit."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if count < 999.5 or unit == "PB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError

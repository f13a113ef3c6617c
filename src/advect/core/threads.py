"""Threads of PyTorch on a CPU: the cores that a process may use, and a choice by measurement."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SHORT = 5.0
"""Seconds of work below which nothing is measured."""

TRIAL, ROUNDS = 0.25, 2
"""Least seconds of a trial, and trials of each number of threads, in turn."""

SLOW, MOST = 1.0, 10.0
"""Seconds of work that is not repeated, and of trials after which no further number of threads is tried."""

AS_FAST = 0.95
"""Fewer threads are taken at this share of the highest rate."""

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class ThreadChoice:
    """Number of threads, the reason, and the measured work a second by number of threads, if any."""

    threads: int
    why: str
    rates: Mapping[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        number = f"{self.threads} thread{'s' * (self.threads != 1)}"
        cores = count_cores()
        return f"{number} on {cores} core{'s' * (cores != 1)} ({self.why})"


def count_cores() -> int:
    """Number of cores this process may use, by its affinity and the quota of its container, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota - 0.01)))


def cpu_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores that control groups grant this process, the least of its group and those above; None without a limit."""
    found: list[float] = []
    with suppress(OSError, ValueError):
        for line in proc.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:  # version 2
                found += _quotas(root, group, lambda folder: (folder / "cpu.max").read_text().split())
            elif "cpu" in controllers.split(","):
                found += _quotas(root / controllers, group, _read_v1) or _quotas(root / "cpu", group, _read_v1)
    return min(found, default=None)


def _read_v1(folder: Path) -> list[str]:
    return [(folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]


def _quotas(root: Path, group: str, read: Callable[[Path], list[str]]) -> list[float]:
    """Quotas in cores of a group and those above; in a container its own is the root."""
    folder, found = root / group.strip("/"), []
    for place in (folder, *folder.parents):
        with suppress(OSError, ValueError):
            quota, period = map(float, read(place))  # "max" and -1 are none
            found += [quota / period] if quota > 0 and period > 0 else []
        if place == root:
            break
    return found


def count_physical_cores(root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Cores this process may use without their further hyper-threads; None if unknown."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    try:
        found = {(root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text() for cpu in cpus}
    except OSError:
        return None
    return len(found) or None


def given_by_environment() -> str | None:
    """The variable that sets the number of threads, with its value, or None."""
    return next((f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)), None)


def limit_threads() -> None:
    """At most one thread a core, of those this process may use, unless the environment says otherwise."""
    import torch

    if given_by_environment() is None and torch.get_num_threads() > count_cores():
        torch.set_num_threads(count_cores())


_changing = threading.Lock()
_contexts, _usual = 0, 0


@contextmanager
def kept_threads() -> Iterator[None]:
    """Context after which PyTorch has as many threads as before.

    PyTorch keeps a number for each thread of Python and one for new ones, which is that of before once no context is
    left.
    """
    import torch

    global _contexts, _usual
    before = torch.get_num_threads()
    with _changing:
        _usual = before if _contexts == 0 else _usual
        _contexts += 1
    try:
        yield
    finally:
        with _changing:
            _contexts -= 1
            torch.set_num_threads(before if _contexts else _usual)


def measure_threads(work: Callable[[], object], times: float, seconds: float = math.inf) -> ThreadChoice:
    """The fastest number of threads for ``times`` repetitions of ``work``, which has ``seconds`` in all; sets it.

    Tries PyTorch's present number and halves of it: two of them, and more for some ten seconds.

    Other programs, hyper-threads and small tensors can make fewer threads many times faster: a parallel region waits
    for its last thread. Work of less than :data:`SHORT` seconds is not worth a measurement.
    """
    import torch

    most = torch.get_num_threads()
    if most == 1:
        return ThreadChoice(1, "there is no other")
    once = timed(work, 0.0)
    if once < SLOW:
        once = timed(work, 0.0)  # the first makes ready
    if min(once * times, seconds) < SHORT:
        return ThreadChoice(most, "not measured, as the work is short")
    trials: dict[int, list[float]] = {}
    began = time.perf_counter()
    try:
        for _ in range(ROUNDS if once < TRIAL else 1):
            for n in [most >> k for k in range(most.bit_length())]:
                if len(trials) > 1 and time.perf_counter() - began > MOST:
                    break
                torch.set_num_threads(n)
                if once < SLOW:
                    work()  # the pool of threads changes
                trials.setdefault(n, []).append(timed(work, TRIAL))
                best = min(trials, key=lambda n: sum(trials[n]) / len(trials[n]))
                if n < best and trials[n][-1] > 1.5 * trials[best][-1]:  # still fewer are still slower
                    break
    finally:
        torch.set_num_threads(most)
    rates = {n: len(took) / sum(took) for n, took in trials.items()}
    chosen = min(n for n, rate in rates.items() if rate >= AS_FAST * max(rates.values()))
    torch.set_num_threads(chosen)
    others = [f"{n} {_compared(rates[chosen] / rate)}" for n, rate in rates.items() if n != chosen]
    return ThreadChoice(chosen, f"measured: {', '.join(others)}", rates)


def _compared(ratio: float) -> str:
    return "are no faster" if ratio < 1.05 else f"would take {ratio:.1f} times as long"


def timed(work: Callable[[], object], least: float) -> float:
    """Mean seconds of ``work``, repeated for at least so long."""
    began, count = time.perf_counter(), 0
    while True:
        work()
        count += 1
        if (took := time.perf_counter() - began) >= least:
            return took / count

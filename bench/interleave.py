"""Time contestants in processes of their own, in turns, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path


class Contestant:
    """A program that answers each line "N" on its input with the seconds that N units of work took.

    ``packages`` is a folder of packages that it finds after its own.
    """

    def __init__(
        self, name: str, python: Path | str, script: Path, *args: str, threads: int, packages: Path | None = None
    ) -> None:
        self.name = name
        paths = [os.environ.get("PYTHONPATH"), packages and str(packages)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [str(python), str(script), *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.seconds: list[float] = []

    def measure(self, units: int) -> float:
        """Let it do ``units`` of work and return the seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{units}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} stopped with exit code {self._process.wait()}")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def race(contestants: list[Contestant], *, rounds: int, units: int, warmup: int) -> None:
    """Warm each up, then measure them in turn for a number of rounds."""
    for c in contestants:
        c.measure(warmup)
    for _ in range(rounds):
        for c in contestants:
            c.seconds.append(c.measure(units))
    for c in contestants:
        c.close()


def table(contestants: list[Contestant], *, units: int, unit: str) -> str:
    """Median rates, and the median over the rounds of each rate's ratio to the last contestant's."""
    base = contestants[-1].seconds
    lines = [f"| | {unit}/s | ratio to the last | least to most |", "|---|---|---|---|"]
    for c in contestants:
        ratios = [b / s for b, s in zip(base, c.seconds, strict=True)]
        lines.append(
            f"| {c.name} | {units / statistics.median(c.seconds):,.0f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return "\n".join(lines)


def machine() -> str:
    """One line about the machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def train_run(run: Path, words: list[object]) -> None:
    """``advect train`` with these words, into a folder, unless it is there; says how long it took."""
    if run.exists():
        return
    began, call = time.monotonic(), ["train", *words, "--run-dir", run, "--sample-every", 0]
    subprocess.run([sys.executable, "-m", "advect", *map(str, call)], check=True)
    print(f"trained for {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def serve(work, clock: str = "wall") -> None:
    """The contestant's side: ``work(n)`` does n units; print the seconds each line of input took.

    ``clock`` "cpu" counts the seconds in which the process had a core, which other programs hardly change.
    """
    import time

    now = time.process_time if clock == "cpu" else time.perf_counter
    for line in sys.stdin:
        began = now()
        work(int(line))
        print(now() - began, flush=True)

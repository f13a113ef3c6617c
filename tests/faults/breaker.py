"""``make break MINUTES=60``: break advect for as long as it is told, and print tried, held, refused and broke.

Workers draw command lines (``flag_cases``) and damaged files (``file_cases``) without end and judge each call
(``oracle``), within a time and a memory limit; beside them commands are killed and repeated, and called two at once
(``process_cases``). A case that breaks is written to --save, and repeated by --replay FILE. Exits with 1 if any broke.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from faults import file_cases
from faults.flag_cases import calls, command_words
from faults.oracle import BROKE, HELD, REFUSED, Case, Outcome, perform
from forked import server

ROUND = 40
"""Examples of one run of Hypothesis."""
CASES_OF_A_WORKER = 120
"""Cases after which a worker makes room for a fresh one, as libraries leak."""
MEMORY = 4 * 2**30
"""Bytes that a case may take beyond what the worker has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10, help="how long to try")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="workers")
    parser.add_argument("--seed", type=int, default=None, help="seed of the cases; default the time")
    parser.add_argument("--limit", type=float, default=60, help="most seconds of processor time of a case")
    parser.add_argument("--only", default="", help="fuzz only what has this in its name, such as doctor or data/table")
    parser.add_argument("--save", type=Path, default=Path("runs/broken"), help="folder for the cases that break")
    parser.add_argument("--replay", type=Path, help="repeat the case in this file")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="advect-break-") as place:
        home = prepare(Path(place))
        if a.replay:
            outcome = perform(Case.of(a.replay.read_text()), home, Path(place, "work"))
            print(f"{outcome.what}: {outcome.why}\n{outcome.said}")
            sys.exit(outcome.what == BROKE)
        seed = int(time.time()) if a.seed is None else a.seed
        print(f"seed {seed}, {a.jobs} workers, {a.minutes:g} minutes", flush=True)
        table = Table(a.save)
        until = time.monotonic() + 60 * a.minutes
        processes = threading.Thread(target=try_processes, args=(table, Path(place), home, until, seed, a.only))
        processes.start()
        Pool(table, Path(place), home, until, a.limit, seed, a.only).run(a.jobs)
        processes.join()
        print(table)
        sys.exit(bool(table.broken))


def prepare(place: Path) -> Path:
    """The sound files, and an environment that leaves the user's own alone."""
    home = place / "home"
    home.mkdir()
    os.environ.update(HOME=str(place / "user"), ADVECT_CACHE=str(place / "cache"), OMP_NUM_THREADS="1")
    here = Path.cwd()
    os.chdir(home)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        file_cases.build(home)
    os.chdir(here)
    return home


def try_processes(table: Table, place: Path, home: Path, until: float, seed: int, only: str) -> None:
    """Kills, and two at once, until the time is up."""
    from faults.process_cases import cases

    for name, outcome in cases(place / "processes", home, seed, only):
        table.add(Case(name, ()), outcome)
        if time.monotonic() > until:
            return


class Table:
    """Outcomes by name; breaks are printed and saved, each place of the code once."""

    def __init__(self, save: Path) -> None:
        self.save, self.began = save, time.monotonic()
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.broken: dict[str, list[Path]] = defaultdict(list)
        self.lock = threading.Lock()

    def add(self, case: Case, outcome: Outcome) -> None:
        with self.lock:
            self.counts[case.name][outcome.what] += 1
            if outcome.what != BROKE:
                return
            key = f"{case.name.split()[0]}: {outcome.why[:120]}"
            if not self.broken[key]:
                print(
                    f"BROKE {key}\n      {' '.join(map(repr, case.words))[:400]} {case.kind} {case.file}", flush=True
                )
            self.save.mkdir(parents=True, exist_ok=True)
            file = self.save / f"{sum(map(len, self.broken.values())):04d}.json"
            file.write_text(case.to_text())
            file.with_suffix(".txt").write_text(f"{outcome.why}\n{outcome.said}\n")
            self.broken[key].append(file)

    def line(self) -> str:
        """Counts up to now."""
        total = sum(self.counts.copy().values(), Counter())
        minutes = (time.monotonic() - self.began) / 60
        return f"{minutes:.0f} minutes: " + ", ".join(f"{total[what]} {what}" for what in (HELD, REFUSED, BROKE))

    def __str__(self) -> str:
        rows = [("", "tried", "held", "refused", "broke")]
        for name, counts in sorted(self.counts.items()):
            rows.append((name, *(str(n) for n in (counts.total(), *(counts[w] for w in (HELD, REFUSED, BROKE))))))
        total = sum(self.counts.values(), Counter())
        rows.append(("all", *(str(n) for n in (total.total(), *(total[w] for w in (HELD, REFUSED, BROKE))))))
        width = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows]
        lines.append(f"{(time.monotonic() - self.began) / 60:.1f} minutes; {len(self.broken)} kinds of breaks")
        lines += [f"  {len(files)} x {key}; --replay {files[0]}" for key, files in self.broken.items()]
        return "\n".join(lines)


class Pool:
    """Workers, each watched for the time of its case, and replaced where it has died or been killed."""

    def __init__(
        self, table: Table, place: Path, home: Path, until: float, limit: float, seed: int, only: str
    ) -> None:
        self.table, self.place, self.home, self.until, self.limit = table, place, home, until, limit
        self.seed, self.only, self.started = seed, only, 0

    def run(self, jobs: int) -> None:
        """Judge cases until the time is up."""
        workers, told = [self._start() for _ in range(jobs)], time.monotonic()
        while workers:
            if time.monotonic() > told + 60:
                told = time.monotonic()
                print(self.table.line(), flush=True)
            wait([worker.pipe for worker in workers], timeout=1)
            for worker in list(workers):
                self._read(worker)
                late = worker.case is not None and worker.is_late(self.limit)
                if late or not worker.process.is_alive():
                    if late:
                        worker.end()
                    worker.process.join()
                    self._read(worker)
                    if worker.case is not None:
                        why = f"no end in {self.limit:g} s" if late else f"died with code {worker.process.exitcode}"
                        said = worker.stack.read_text() if worker.stack.exists() else ""
                        self.table.add(worker.case, Outcome(BROKE, why, said))
                    shutil.rmtree(worker.work, ignore_errors=True)
                    workers.remove(worker)
                    if time.monotonic() < self.until:
                        workers.append(self._start())

    def _start(self) -> Worker:
        self.started += 1
        return Worker(self.place / f"work-{self.started}", self)

    def _read(self, worker: Worker) -> None:
        with contextlib.suppress(EOFError, OSError):
            while worker.pipe.poll():
                text, outcome = worker.pipe.recv()
                worker.since, worker.used = time.monotonic(), worker.processor_seconds()
                worker.case = Case.of(text) if outcome is None else None
                if outcome is not None:
                    self.table.add(Case.of(text), outcome)


class Worker:
    """A process that draws cases and does them, and the case that it is at."""

    def __init__(self, work: Path, pool: Pool) -> None:
        self.work, self.since, self.used = work, time.monotonic(), 0.0
        self.case: Case | None = None
        self.stack = work.with_suffix(".stack")
        self.pipe, end = server().Pipe(duplex=False)
        given = (end, pool.home, work, pool.until, pool.seed * 1000 + pool.started, pool.only)
        self.process = server().Process(target=draw_cases, args=given, daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        end.close()

    def processor_seconds(self) -> float:
        with contextlib.suppress(OSError):
            user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return self.used

    def is_late(self, limit: float) -> bool:
        """Whether the case has taken its processor time, or on any machine waits for what does not come."""
        return self.processor_seconds() - self.used > limit or time.monotonic() - self.since > 10 * limit

    def end(self) -> None:
        """Have the process write where it is, and kill it."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(0.5)
        self.process.kill()


def draw_cases(pipe: Connection, home: Path, work: Path, until: float, seed: int, only: str) -> None:
    """What a worker does: rounds of examples, each announced and then told with its outcome."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    os.environ.update(HOME=str(work / "user"), ADVECT_CACHE=str(work.parent / "cache"), OMP_NUM_THREADS="1")
    faulthandler.register(signal.SIGUSR1, file=work.with_suffix(".stack").open("w"))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what libraries write past Python
        os.dup2(nothing, stream)
    limit_memory()
    drawn = strategies(home, only)
    left = CASES_OF_A_WORKER
    for number in range(CASES_OF_A_WORKER // ROUND):

        @seeded(seed * 100 + number)
        @settings(
            max_examples=ROUND,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of(drawn))
        def try_case(case: Case) -> None:
            nonlocal left
            if time.monotonic() > until or left <= 0:
                return
            left -= 1
            pipe.send((case.to_text(), None))
            pipe.send((case.to_text(), perform(case, home, work)))

        try_case()


def strategies(home: Path, only: str) -> list[Any]:
    """Half command lines, half damaged files; those whose name has ``only`` in it."""
    from hypothesis import strategies as st

    names = sorted({call.split()[0] for call in calls(home)})
    places = sorted(file_cases.readers(home))
    chosen = [name for name in names if only in name], [place for place in places if only in place]
    found: list[Any] = []
    if chosen[0]:
        some = [call for call in sorted(calls(home)) if call.split()[0] in chosen[0]]
        words = st.sampled_from(some).flatmap(lambda call: command_words(home, call))
        again = st.integers(0, 4).map(lambda n: n == 0)
        name = lambda w: w[0] if w and w[0] in names else "any words"
        found.append(st.builds(lambda w, again: Case(name(w), tuple(w), repeat=again), words, again))
    if chosen[1]:
        files = st.sampled_from(chosen[1]).flatmap(lambda place: file_cases.damaged_files(home, place))
        found.append(files.map(lambda d: Case(d[0], tuple(d[1]), d[2], d[3], d[4])))
    if not found:
        raise SystemExit(f"--only {only} is in no name; choose from {json.dumps(names + places)}")
    return found


def limit_memory() -> None:
    """Have allocations fail beyond MEMORY, where the system knows such a limit."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + MEMORY,) * 2)


if __name__ == "__main__":
    main()

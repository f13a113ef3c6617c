"""``make break MINUTES=60``: break advect for as long as it is told, and print tried, held, refused and broke.

Workers draw command lines (``flag_cases``), damaged files (``file_cases``) and failing disks (``disk_cases``) without
end, each command and file in its turn, and judge each call (``oracle``), within a time and a memory limit; beside them
commands are killed and repeated, and called two at once (``process_cases``). No worker does a case twice. A case that
breaks is written to --save, and repeated by --replay FILE. Exits with 1 if any broke.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from faults import disk_cases, file_cases, oracle, process_cases
from faults.flag_cases import calls, command_words
from faults.oracle import BROKE, HELD, REFUSED, Case, Outcome
from forked import server

ROUND = 16
"""Examples of one run of Hypothesis, all of one command or file."""
SLOW = {
    "doctor": 1,
    "doctor --data table.csv": 4,
    "reflow run": 1,
    "doctor digits": 2,
    "doctor run": 4,
    "report run": 4,
    "export run": 4,
}
"""Examples of a round of calls that take seconds each: the machine's doctor compiles a network."""
TRAININGS = 4
"""Examples of a round of each call of train, which take half a second each, and of a reflow."""
CASES_OF_A_WORKER = 1000
"""Cases after which a worker makes room for a fresh one, as libraries leak."""
MEMORY, KEPT = 2 * 2**30, 3 * 2**29
"""Bytes that a case may take beyond what the worker has, and that a worker may keep after a case."""


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
            outcome = perform_any(Case.of(a.replay.read_text()), home, Path(place, "work"))
            print(f"{outcome.what}: {outcome.why}\n{outcome.said}")
            sys.exit(outcome.what == BROKE)
        seed = int(time.time()) if a.seed is None else a.seed
        print(f"seed {seed}, {a.jobs} workers, {a.minutes:g} minutes", flush=True)
        for words in disk_cases.WRITERS.values():  # for all workers
            disk_cases.whole(words, home, Path(place, "undisturbed"))
        table = Table(a.save)
        until = time.monotonic() + 60 * a.minutes
        processes = threading.Thread(
            target=try_processes, args=(table, Path(place), home, until, seed, a.only), daemon=True
        )
        processes.start()
        try:
            Pool(table, Path(place), home, until, a.limit, seed, a.only).run(a.jobs)
            processes.join()
        except KeyboardInterrupt:
            print("stopped before its time")
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


def perform_any(case: Case, home: Path, work: Path) -> Outcome:
    """Do a case of any kind."""
    if case.kind in ("kill", "two"):
        return process_cases.perform(case, home, work)
    return (disk_cases if case.kind.startswith("disk ") else oracle).perform(case, home, work)


def kind_of(case: Case) -> str:
    """What is done to a call, for the table."""
    if case.kind in ("kill", "two"):
        return {"kill": "killed and repeated", "two": "two at once"}[case.kind]
    return "failing disks" if case.kind.startswith("disk ") else "damaged files" if case.file else "command lines"


def try_processes(table: Table, place: Path, home: Path, until: float, seed: int, only: str) -> None:
    """Kills, and two at once, until the time is up."""
    for case, outcome in process_cases.cases(place / "processes", home, seed, only):
        table.add(case, outcome)
        if time.monotonic() > until:
            return


class Table:
    """Outcomes by name; breaks are printed and saved, each place of the code once."""

    def __init__(self, save: Path) -> None:
        self.save, self.began = save, time.monotonic()
        self.counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self.distinct: set[int] = set()
        self.largest: list[tuple[int, str]] = []
        self.broken: dict[str, list[Path]] = defaultdict(list)
        self.lock = threading.Lock()

    def add(self, case: Case, outcome: Outcome, memory: int = 0) -> None:
        with self.lock:
            self.counts[kind_of(case)][case.name][outcome.what] += 1
            self.distinct.add(hash(case))
            self.largest = sorted([*self.largest, (memory, " ".join(map(repr, case.words))[:300])])[-3:]
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

    def total(self, kind: str | None = None) -> Counter[str]:
        """Outcomes of a kind, or of all."""
        kinds = list(self.counts) if kind is None else [kind]
        return sum((counts for one in kinds for counts in list(self.counts[one].values())), Counter())

    def line(self) -> str:
        """Counts up to now."""
        total, minutes = self.total(), (time.monotonic() - self.began) / 60
        return f"{minutes:.0f} minutes: " + ", ".join(f"{total[what]} {what}" for what in (HELD, REFUSED, BROKE))

    def __str__(self) -> str:
        rows = [("", "tried", "held", "refused", "broke")]
        for kind in sorted(self.counts):
            some = sorted(self.counts[kind].items())
            for name, counts in [(f"{kind}:", self.total(kind)), *((f"  {name}", counts) for name, counts in some)]:
                rows.append((name, *(str(n) for n in (counts.total(), *(counts[w] for w in (HELD, REFUSED, BROKE))))))
        total = self.total()
        rows.append(("all", *(str(n) for n in (total.total(), *(total[w] for w in (HELD, REFUSED, BROKE))))))
        width = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows]
        minutes = (time.monotonic() - self.began) / 60
        lines.append(f"{minutes:.1f} minutes; {len(self.distinct)} distinct cases; {len(self.broken)} kinds of breaks")
        lines += [f"  {len(files)} x {key}; --replay {files[0]}" for key, files in self.broken.items()]
        lines += [f"  {size / 2**20:.0f} MiB: {words}" for size, words in reversed(self.largest)]
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
                text, outcome, memory = worker.pipe.recv()
                worker.since, worker.used = time.monotonic(), worker.processor_seconds()
                worker.case = Case.of(text) if outcome is None else None
                if outcome is not None:
                    self.table.add(Case.of(text), outcome, memory)


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
            until = time.monotonic() + 20  # on a busy machine it does so late
            while not (self.stack.exists() and self.stack.stat().st_size) and time.monotonic() < until:
                time.sleep(0.1)
            time.sleep(0.5)
        self.process.kill()


def draw_cases(pipe: Connection, home: Path, work: Path, until: float, seed: int, only: str) -> None:
    """What a worker does: rounds of examples, each announced and then told with its outcome."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    os.environ.update(HOME=str(work / "user"), ADVECT_CACHE=str(work.parent / "cache"), OMP_NUM_THREADS="1")
    faulthandler.register(signal.SIGUSR1, file=work.with_suffix(".stack").open("w"))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what libraries write past Python
        os.dup2(nothing, stream)
    most = limit_memory()
    rounds, seen, left = strategies(home, work, only), set[Case](), CASES_OF_A_WORKER
    order = random.Random(seed)
    order.shuffle(rounds)
    for number, (examples, strategy) in enumerate(itertools.cycle(rounds)):

        @seeded(seed * 100_000 + number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def try_case(case: Case) -> None:
            nonlocal left
            if case in seen or time.monotonic() > until:
                return
            seen.add(case)
            left -= 1
            pipe.send((case.to_text(), None, 0))
            forget_peak()
            try:
                outcome = perform_any(case, home, work)
            except Exception as error:  # of the judge, whose own words go nowhere
                outcome = Outcome(BROKE, f"the judge failed: {type(error).__name__}", traceback.format_exc())
            pipe.send((case.to_text(), outcome, memory("VmHWM")))

        try_case()
        give_memory_back()
        # what libraries keep, threads' stacks above all, leaves the next case too little
        if left <= 0 or time.monotonic() > until or memory("VmRSS") > KEPT or memory("VmData") > most - MEMORY // 2:
            return


def strategies(home: Path, work: Path, only: str) -> list[tuple[int, Any]]:
    """Examples of a round, and what they are drawn from, for each call, each place of files, and failing disks."""
    from hypothesis import strategies as st

    found: list[tuple[int, Any]] = []
    names, places = sorted({call.split()[0] for call in calls(home)}), sorted(file_cases.readers(home))
    name = lambda words: words[0] if words and words[0] in names else "any words"
    again = st.integers(0, 4).map(lambda n: n == 4)
    for call in sorted(calls(home)):
        if only in call.split()[0]:
            case = lambda words, again: Case(name(words), tuple(words), repeat=again)
            usual = TRAININGS if call.startswith(("train", "reflow", "distill")) else ROUND
            found.append((SLOW.get(call, usual), st.builds(case, command_words(home, call), again)))
    damaged = lambda d: Case(d[0], tuple(d[1]), d[2], d[3], d[4])
    for place in places:
        if only in place:
            found.append((ROUND, file_cases.damaged_files(home, place).map(damaged)))
    if only in "disk":
        found += [(ROUND // 2, disk_cases.failing_writes(home, work.with_name("undisturbed")))] * 4
    if not found:
        raise SystemExit(f"--only {only} is in no name; choose from {json.dumps([*names, *places, 'disk'])}")
    return found


def limit_memory() -> int:
    """Have allocations fail beyond MEMORY, where the system knows such a limit; the data that may be had by a case."""
    data = memory("VmData")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY,) * 2)
    return data + MEMORY


def memory(what: str) -> int:
    """Bytes of memory that this process has (VmRSS), or had at most (VmHWM); 0 where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{what}:")).split()[1])
    return 0


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_memory_back() -> None:
    """To the system, as the allocator keeps what one large case has taken."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    main()

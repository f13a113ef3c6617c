"""Commands that write, killed at one of their writes and repeated, and called two at once on one folder.

Killed and repeated, a call leaves the bytes of one that was never killed. Of two at once, the second called while the
first stands still at one of its writes, each ends with 0 or with one sentence, at least one with 0, and what they
leave is whole. A case is its words and the number of the write, so that it can be repeated.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from faults.disk import FaultyDisk
from faults.disk_cases import LIMIT, WRITERS, bits, copy, differing, run, whole
from faults.oracle import BROKE, HELD, REFUSED, Case, Outcome, contents, one_sentence, unsound
from forked import Run, ranks

HALF = 1_000_000
"""Added to the number of a write: a synced file has only half of its content when the process dies."""


class DeadlyDisk(FaultyDisk):
    """Sends the process a signal at a write."""

    def __init__(self, folder: Path, nth: int, number: int) -> None:
        super().__init__(folder, nth=nth % HALF, once=True)
        self.signal, self.half = number, nth >= HALF

    def write(self, what: str, path: str) -> None:
        try:
            super().write(what, path)
        except OSError:
            if self.half and what == "sync" and os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), self.signal)


def signal_at(folder: str, nth: int, number: int) -> None:
    DeadlyDisk(Path(folder), nth, number).__enter__()


def cases(work: Path, home: Path, seed: int, only: str) -> Iterator[tuple[Case, Outcome]]:
    """Kills and pairs in turn, without end."""
    rng = random.Random(seed)
    pairs = list(itertools.product(WRITERS, repeat=2))
    rng.shuffle(pairs)
    names = itertools.cycle(rng.sample(sorted(WRITERS), len(WRITERS)))
    for name, (one, other) in zip(names, itertools.cycle(pairs), strict=False):
        for case in (_kill_case(name, work, home, rng), _pair_case(one, other, work, home, rng)):
            if only in case.name:
                yield case, perform(case, home, work)


def _kill_case(name: str, work: Path, home: Path, rng: random.Random) -> Case:
    nth = rng.randint(1, len(whole(WRITERS[name], home, work).writes))
    return Case(f"kill {name}", tuple(WRITERS[name].split()), kind="kill", seed=nth + HALF * rng.randint(0, 1))


def _pair_case(one: str, other: str, work: Path, home: Path, rng: random.Random) -> Case:
    nth = rng.randint(1, len(whole(WRITERS[one], home, work).writes))
    return Case(f"two {one} + {other}", (WRITERS[one], WRITERS[other]), kind="two", seed=nth)


def perform(case: Case, home: Path, work: Path) -> Outcome:
    """Do a case of ``cases``."""
    try:
        if case.kind == "two":
            return both((case.words[0], case.words[1]), work, home, case.seed)
        return kill(" ".join(case.words), work, home, case.seed)
    except AssertionError as error:  # of Run.wait
        return Outcome(BROKE, f"no end in {LIMIT} s", str(error))


def kill(words: str, work: Path, home: Path, nth: int) -> Outcome:
    """A call killed at its n-th write and repeated."""
    wanted = whole(words, home, work).bits
    copy(home, work)
    with ranks(1, words, cwd=work, before=signal_at, arguments=(str(work), nth, signal.SIGKILL)) as process:
        (ended,) = process.wait(LIMIT)
    killed = ended.code == -signal.SIGKILL
    if ended.code and not killed:
        return Outcome(BROKE, f"exit code {ended.code}", ended.err[-4000:])
    ended = run(words, work)
    done_before = not killed and ended.code == 2 and not one_sentence(ended.err)
    if ended.code != 0 and not done_before:
        return Outcome(BROKE, f"killed at a write, its repetition exits with {ended.code}", ended.err[-4000:])
    left = [name for name in contents(work) if name.endswith(".partial")]
    wrong = differing(bits(work), wanted) or (f"a left {left[0]}" if left else "")
    if wrong:
        return Outcome(BROKE, f"killed at a write and repeated, it leaves {wrong}", ended.err[-4000:])
    return Outcome(REFUSED if done_before else HELD)


def both(calls: tuple[str, str], work: Path, home: Path, nth: int) -> Outcome:
    """Two calls at once; the first stands still at its n-th write until the second has ended, or waits for it."""
    copy(home, work)
    before = contents(work)
    with ranks(1, calls[0], cwd=work, before=signal_at, arguments=(str(work), nth, signal.SIGSTOP)) as one:
        _wait_for_stop(one)
        with ranks(1, calls[1], cwd=work) as other:
            other.processes[0].join(10)
            one.signal(signal.SIGCONT)
            ended = [*one.wait(LIMIT), *other.wait(LIMIT)]
    for call, end in zip(calls, ended, strict=True):
        why = one_sentence(end.err) if end.code == 2 else f"exit code {end.code}" if end.code else ""
        if why:
            return Outcome(BROKE, f"{call.split()[0]}: {why}", end.err[-4000:])
    said = "\n".join(end.err for end in ended)
    if all(end.code for end in ended):
        return Outcome(BROKE, "both are refused", said)
    if wrong := unsound({name: x for name, x in contents(work).items() if before.get(name) != x}, work):
        return Outcome(BROKE, wrong, said)
    return Outcome(REFUSED if any(end.code for end in ended) else HELD)


def _wait_for_stop(run: Run) -> None:
    """Until the process stands still, or has ended."""
    state, until = Path(f"/proc/{run.processes[0].pid}/stat"), time.monotonic() + LIMIT
    while run.alive() and time.monotonic() < until:
        try:
            if state.read_text().rsplit(")", 1)[1].split()[0] == "T":
                return
        except (OSError, IndexError):
            return
        time.sleep(0.003)

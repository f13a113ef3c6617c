"""Commands on a disk that fails at a write, and what a command leaves and writes when nothing disturbs it.

A command that writes is then repeated on a sound disk: the bytes of one that was never disturbed. Any other line need
only be right or say one sentence.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from faults import oracle
from faults.disk import ERRORS, FaultyDisk
from faults.flag_cases import calls, command_words
from faults.oracle import BITS, BROKE, HELD, REFUSED, Case, Ended, Outcome, contents
from forked import ranks

TRAIN = "train moons --width 8 --depth 2 --batch-size 64 --max-steps 6 --save-every 2 --log-every 1 --threads 1"
WRITERS = {
    "train": f"{TRAIN} --sample-every 3 --num-samples 20 --posthoc-ema --posthoc-every 1 --resume auto --run-dir out",
    "sample": "sample run --num-samples 40 --num-steps 2 --device cpu --output-dir out",
    "sample in parts": "sample run --num-samples 40 --num-steps 2 --part-size 7 --device cpu --output-dir out",
    "forecast": "forecast series series.csv --horizon 2 --draws 3 --num-steps 2 --device cpu --output-dir out",
    "impute": "impute masked given.csv --draws 9 --num-steps 2 --part-size 7 --device cpu --output-dir out",
    "eval": "eval run --num-samples 20 --num-steps 1 --metrics energy --device cpu --output out/eval.json",
    "report": "report run --num-samples 20 --nfes 2 --device cpu --output-dir out",
    "ema": "ema run --length 0.1",
    "export": "export run --num-steps 2 --output out",
    "data pack": "data pack images --image-size 8 --output out",
    "distill": "distill run --max-steps 4 --sample-every 0 --threads 1 --output-dir out",
    "push": "push run ./out --license mit",
    "reflow": "reflow run --num-pairs 20 --iterations 1 --max-steps 4 --no-measure --threads 1 --output-dir out",
}
"""One call of each command that writes; a test holds the list against the commands' own."""

READS_ONLY = {"doctor", "presets"}
LIMIT = 600
"""Seconds, on a machine that does much else."""


class Whole(NamedTuple):
    """What a call leaves when nothing disturbs it, and its writes in their order."""

    bits: dict[str, bytes]
    writes: list[str]


class CountedDisk(FaultyDisk):
    """A sound disk that tells each write to an open file, as a forked process has no other end."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder)
        self.file = number

    def write(self, what: str, path: str) -> None:
        before = len(self.log)
        super().write(what, path)
        for line in self.log[before:]:
            os.write(self.file, line.encode() + b"\0")


def count_writes(folder: str, log: str) -> None:
    CountedDisk(Path(folder), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)).__enter__()


def whole(words: str, home: Path, work: Path) -> Whole:
    """A call done once for all cases, in a process of its own; kept beside ``home``. Raises AssertionError."""
    kept = home.parent / "whole" / hashlib.sha256(words.encode()).hexdigest()[:16]
    if not kept.exists():
        copy(home, work)
        log = work.parent / f"{work.name}.writes"
        ended = run(words, work, count_writes, (str(work), str(log)))
        assert ended.code == 0, f"undisturbed it exits with {ended.code}: {ended.err}"
        found = Whole(bits(work), log.read_bytes().decode().split("\0")[:-1])
        kept.parent.mkdir(exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickle.dumps(found))
        partial.rename(kept)
    return pickle.loads(kept.read_bytes())


def copy(home: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(home, work, symlinks=True, ignore=shutil.ignore_patterns("data"))


def run(words: str, work: Path, before=None, arguments: tuple = ()) -> Ended:
    """A call in a process of its own, to its end."""
    with ranks(1, words, cwd=work, before=before, arguments=arguments) as process:
        (ended,) = process.wait(LIMIT)
    return Ended(ended.code, ended.out, ended.err)


def bits(work: Path) -> dict[str, bytes]:
    """What must be the same each time, wherever it is made: a run that continues another records that one's place."""
    found = {name: x for name, x in contents(work).items() if Path(name).suffix in BITS}
    return {name: _placeless(x, work) if name.endswith(".safetensors") else x for name, x in found.items()}


def _placeless(content: bytes, work: Path) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end].replace(str(work.resolve()).encode(), b"").rstrip() + content[end:]


def differing(made: dict[str, bytes], wanted: dict[str, bytes], suffixes: set[str] = BITS) -> str:
    """The first file that is another, missing or new.

    A run that an error has ended leaves a checkpoint of that step, and so one fewer of the older ones: the newest that
    an undisturbed run leaves must be there, and what both have is compared.
    """
    others = _checkpoints(made) ^ _checkpoints(wanted)
    newest = {folder.rsplit("step-")[0]: folder for folder in sorted(_checkpoints(wanted))}
    others -= set(newest.values())
    for name in sorted(made.keys() | wanted.keys()):
        if _checkpoint(name) in others:
            continue
        if Path(name).suffix in suffixes and made.get(name) != wanted.get(name):
            return f"{'another' if name in made and name in wanted else 'a missing or new'} {name}"
    return ""


def _checkpoint(name: str) -> str:
    """The checkpoint that a file belongs to, or ""."""
    found = re.match(r"(.*/)?checkpoints/step-\d+", name)
    return found[0] if found else ""


def _checkpoints(found: dict[str, bytes]) -> set[str]:
    return {_checkpoint(name) for name in found} - {""}


@st.composite
def failing_writes(draw: st.DrawFn, home: Path, work: Path) -> Case:
    """A command whose disk fails from the n-th write on, or at that alone."""
    number = errno.errorcode[draw(st.sampled_from(ERRORS))]
    kind = f"disk {number}{draw(st.sampled_from(('', ' once')))}"
    if draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(WRITERS)))
        nth = draw(st.integers(1, len(whole(WRITERS[name], home, work).writes)))
        return Case(f"disk {name}", tuple(WRITERS[name].split()), kind=kind, seed=nth)
    names = [call for call in sorted(calls(home)) if call.split()[0] not in READS_ONLY]
    words = draw(st.sampled_from(names).flatmap(lambda call: command_words(home, call)))
    known = {call.split()[0] for call in names}
    name = words[0] if words and words[0] in known else "any words"
    return Case(f"disk any {name}", tuple(words), kind=kind, seed=draw(st.integers(1, 60)))


@contextlib.contextmanager
def failing(case: Case, folder: Path) -> Iterator[None]:
    """The disk of a case."""
    _, number, *once = case.kind.split()
    with FaultyDisk(folder, getattr(errno, number), case.seed, once=bool(once)):
        yield


def perform(case: Case, home: Path, work: Path) -> Outcome:
    """Do a case; where it is one of WRITERS, repeat it on a sound disk and compare."""
    outcome = oracle.perform(case, home, work, around=failing)
    words = " ".join(case.words)
    if outcome.why.startswith("exit 2, and it left"):  # the last sync has failed: a whole file is no harm
        wrong = oracle.unsound(contents(work / "a" / "b" / "c"), work / "a" / "b" / "c")
        outcome = Outcome(BROKE, wrong, outcome.said) if wrong else Outcome(REFUSED)
    if outcome.what == BROKE or words not in WRITERS.values():
        return outcome
    folder = work / "a" / "b" / "c"
    wanted = whole(words, home, work.with_name(f"{work.name}-whole")).bits
    suffixes = BITS - {".png"} if case.words[0] == "train" else BITS  # a failed picture ends no training
    if outcome.what == HELD:
        wrong = differing(bits(folder), wanted, suffixes - {".png"})
        return Outcome(BROKE, f"exit 0 on a failing disk, and {wrong}", outcome.said) if wrong else outcome
    with contextlib.chdir(folder):
        ended = oracle.call(case.words)
    if ended.code:
        why = f"after a failing disk its repetition exits with {ended.code}: {(ended.trace or ended.err)[:200]}"
        return Outcome(BROKE, why, outcome.said + (ended.trace or ended.err)[-4000:])
    left = [name for name in contents(folder) if name.endswith(".partial")]
    wrong = differing(bits(folder), wanted, suffixes) or (f"a left {left[0]}" if left else "")
    return Outcome(BROKE, f"after a failing disk and repeated, {wrong}", outcome.said) if wrong else Outcome(REFUSED)

"""Commands that write, killed at a random moment and repeated, and called two at once on one folder; for the breaker.

Killed and repeated, a call leaves the bytes of one that was never killed. Of two at once each ends with 0 or with one
sentence, at least one with 0, and what they leave is whole.
"""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from faults.oracle import BITS, BROKE, HELD, REFUSED, Ended, Outcome, contents, one_sentence, unsound
from forked import ranks

TRAIN = "train moons --width 8 --depth 2 --batch-size 64 --max-steps 6 --save-every 2 --log-every 1 --threads 1"
WRITERS = {
    "train": f"{TRAIN} --sample-every 3 --num-samples 20 --posthoc-ema --posthoc-every 1 --resume auto --run-dir out",
    "sample": "sample run --num-samples 40 --num-steps 2 --device cpu --output-dir out",
    "sample in parts": "sample run --num-samples 40 --num-steps 2 --part-size 7 --device cpu --output-dir out",
    "impute": "impute masked given.csv --draws 9 --num-steps 2 --part-size 7 --device cpu --output-dir out",
    "eval": "eval run --num-samples 20 --num-steps 1 --metrics energy --device cpu --output out/eval.json",
    "report": "report run --num-samples 20 --nfes 2 --device cpu --output-dir out",
    "ema": "ema run --length 0.1",
    "data pack": "data pack images --image-size 8 --output out",
    "reflow": "reflow run --num-pairs 20 --iterations 1 --max-steps 4 --no-measure --threads 1 --output-dir out",
}
"""One call of each command that writes; a test holds the list against the commands' own."""

READS_ONLY = {"doctor", "presets"}
LIMIT = 120


def cases(work: Path, home: Path, seed: int, only: str) -> Iterator[tuple[str, Outcome]]:
    """Kills and pairs in turn, without end."""
    rng = random.Random(seed)
    whole: dict[str, dict[str, bytes]] = {}
    seconds: dict[str, float] = {}
    pairs = itertools.cycle(itertools.combinations_with_replacement(WRITERS, 2))
    for name, (one, other) in zip(itertools.cycle(WRITERS), pairs, strict=False):
        if only in f"kill {name}":
            if name not in whole:
                copy(home, work)
                began = time.monotonic()
                ended = run(WRITERS[name], work)
                seconds[name] = time.monotonic() - began
                if ended.code:
                    yield f"kill {name}", Outcome(BROKE, f"undisturbed it exits with {ended.code}", ended.err)
                    continue
                whole[name] = bits(work)
            yield f"kill {name}", kill(WRITERS[name], work, home, rng.uniform(0, seconds[name]), whole[name])
        if only in f"two {one} + {other}":
            yield f"two {one} + {other}", both((WRITERS[one], WRITERS[other]), work, home)


def copy(home: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(home, work, symlinks=True, ignore=shutil.ignore_patterns("data"))


def run(words: str, work: Path) -> Ended:
    """A call in a process of its own, to its end."""
    with ranks(1, words, cwd=work) as process:
        (ended,) = process.wait(LIMIT)
    return Ended(ended.code, ended.out, ended.err)


def bits(work: Path) -> dict[str, bytes]:
    """What must be the same each time."""
    return {name: x for name, x in contents(work).items() if Path(name).suffix in BITS}


def kill(words: str, work: Path, home: Path, after: float, whole: dict[str, bytes]) -> Outcome:
    """A call killed ``after`` so many seconds and repeated."""
    copy(home, work)
    with ranks(1, words, cwd=work) as process:
        until = time.monotonic() + after
        while process.alive() and time.monotonic() < until:
            time.sleep(0.001)
        killed = process.alive()
        process.kill()
    ended = run(words, work)
    done_before = not killed and ended.code == 2 and not one_sentence(ended.err)
    if ended.code != 0 and not done_before:
        return Outcome(BROKE, f"killed after {after:.3f} s, its repetition exits with {ended.code}", ended.err[-4000:])
    made = bits(work)
    wrong = sorted(name for name in made.keys() | whole.keys() if made.get(name) != whole.get(name))
    if wrong:
        there = "another" if wrong[0] in made and wrong[0] in whole else "a missing or new"
        return Outcome(BROKE, f"killed after {after:.3f} s and repeated, it leaves {there} {wrong[0]}", ended.err)
    return Outcome(REFUSED if done_before else HELD)


def both(calls: tuple[str, str], work: Path, home: Path) -> Outcome:
    """Two calls at once."""
    copy(home, work)
    before = contents(work)
    with ranks(1, calls[0], cwd=work) as one, ranks(1, calls[1], cwd=work) as other:
        try:
            ended = [*one.wait(LIMIT), *other.wait(LIMIT)]
        except AssertionError as error:
            return Outcome(BROKE, f"no end in {LIMIT} s", str(error))
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

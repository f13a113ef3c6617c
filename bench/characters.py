"""Bits per character of a text: a flow of tokens against n-grams with interpolated Kneser-Ney smoothing.

    bible -l0 gen1:1-rev22:21 > kjv.txt          # of Debian's package bible-kjv, the King James Version, 4.3 MB
    python bench/characters.py kjv.txt --minutes 12

All train on the same first nine tenths and are measured on the same windows of the last one. See
docs/experiments/characters.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import advect
from advect.cli import run as command
from advect.core.random import CounterRng
from advect.data import Tokens
from advect.metrics import ngram_distance

ORDERS = (1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Level:
    """Runs of n characters: sorted keys, their counts, and for each history its total and number of successors."""

    keys: np.ndarray
    counts: np.ndarray
    histories: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    discount: float

    @classmethod
    def of(cls, keys: np.ndarray, counts: np.ndarray, size: int) -> Level:
        """Of distinct sorted keys, whose last digit to the base ``size`` is the character."""
        histories, first = np.unique(keys // size, return_index=True)
        ones, twos = (counts == 1).sum(), (counts == 2).sum()
        kinds = np.diff(np.append(first, len(keys)))
        return cls(keys, counts, histories, np.add.reduceat(counts, first), kinds, ones / max(ones + 2 * twos, 1))

    def interpolate(self, keys: np.ndarray, lower: np.ndarray, size: int) -> np.ndarray:
        """Probabilities (T,) of the last character of ``keys`` (T,), of those of the lower order."""
        history = keys // size
        at = np.searchsorted(self.histories, history).clip(max=len(self.histories) - 1)
        known = self.histories[at] == history
        place = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        count = np.where(self.keys[place] == keys, self.counts[place], 0)
        own = np.maximum(count - self.discount, 0) / self.totals[at]
        rest = self.discount * self.kinds[at] / self.totals[at]
        return np.where(known, own + rest * lower, lower)


class KneserNey:
    """Interpolated Kneser-Ney of characters (Kneser & Ney 1995; Chen & Goodman 1999), one discount an order."""

    def __init__(self, codes: np.ndarray, size: int, order: int) -> None:
        self.size, self.order, self.levels = size, order, []
        for n in range(1, order + 1):
            keys, counts = np.unique(runs(codes, n, size), return_counts=True)
            if n < order:  # in how many contexts a run comes, not how often
                longer = np.unique(runs(codes, n + 1, size)) % size**n
                keys, counts = np.unique(longer, return_counts=True)
            self.levels.append(Level.of(keys, counts, size))

    def log_prob(self, rows: np.ndarray, *, context: np.ndarray | None = None) -> np.ndarray:
        """Natural log of the probability of each character of rows (N, L), given those before it in its row.

        ``context`` (N, order - 1) are characters before each row.
        """
        padded = rows if context is None else np.concatenate([context, rows], 1)
        skip = 0 if context is None else context.shape[1]
        found = np.empty(rows.shape)
        for i in range(rows.shape[1]):
            p = np.full(len(rows), 1 / self.size)
            for n in range(1, min(self.order, skip + i + 1) + 1):
                part = padded[:, skip + i + 1 - n : skip + i + 1]
                p = self.levels[n - 1].interpolate(runs(part, n, self.size)[:, 0], p, self.size)
            found[:, i] = np.log(p)
        return found

    def sample(self, n: int, length: int, seed: int) -> np.ndarray:
        """n texts (n, length), character by character."""
        rows, u = np.zeros((n, 0), np.int64), CounterRng(seed, 0, n).uniform((n, length), dtype=torch.float64).numpy()
        every = np.arange(self.size)
        for i in range(length):
            p = np.full((n, self.size), 1 / self.size)
            for k in range(1, min(self.order, i + 1) + 1):
                past = rows[:, i + 1 - k : i] if k > 1 else rows[:, :0]
                history = runs(past, k - 1, self.size)[:, 0] if k > 1 else np.zeros(n, np.int64)
                keys = history[:, None] * self.size + every
                p = self.levels[k - 1].interpolate(keys.ravel(), p.ravel(), self.size).reshape(p.shape)
            ends = p.cumsum(1)
            rows = np.concatenate(
                [rows, (ends <= u[:, i : i + 1] * ends[:, -1:]).sum(1).clip(max=self.size - 1)[:, None]], 1
            )
        return rows


def runs(codes: np.ndarray, n: int, size: int) -> np.ndarray:
    """Numbers (..., L - n + 1) of the runs of n characters of codes (..., L), below size^n."""
    length = codes.shape[-1] - n + 1
    keys = np.zeros((*codes.shape[:-1], length), np.int64)
    for k in range(n):
        keys = keys * size + codes[..., k : k + length]
    return keys


def words_known(texts: list[str], known: set[str]) -> float:
    """Share of whole words of texts that the training text has."""
    words = [word for text in texts for word in re.findall(r"(?<=\s)[A-Za-z]+(?=[\s.,;:?!])", text)]
    return sum(word in known for word in words) / max(len(words), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=1024, help="held-out windows")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/characters"))
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--resume", action="store_true", help="measure the flow of --run-dir without training")
    a, more = parser.parse_known_args()
    data = Tokens(a.text, layout="stream", max_length=a.length)
    transform: Any = data.transform
    codes = np.array(transform.codes)
    whole = np.searchsorted(codes, data.rows.codes)
    cut, size = len(data.train) * a.length, len(codes)
    train, rows = whole[:cut], min(a.rows, len(data.held_out))
    places = np.linspace(0, len(data.held_out) - 1, rows).round().astype(np.int64)
    starts = cut + places * a.length
    held = whole[starts[:, None] + np.arange(a.length)]
    before = whole[starts[:, None] - np.arange(ORDERS[-1] - 1, 0, -1)]
    print(f"{len(whole):,} characters of {size}, {cut:,} to train on; {rows:,} held-out windows of {a.length}")
    known = set(re.findall(r"[A-Za-z]+", "".join(map(chr, codes[train]))))
    texts_of = lambda rows: ["".join(map(chr, row)) for row in codes[rows]]
    report(f"held-out text: {words_known(texts_of(held), known):.1%} of words known")
    found, best = {}, None
    for order in ORDERS:
        began = time.perf_counter()
        model = KneserNey(train, size, order)
        bits = -model.log_prob(held).mean() / math.log(2)
        running = -model.log_prob(held, context=before[:, len(before[0]) - order + 1 :]).mean() / math.log(2)
        found[order] = {"bits": bits, "running": running, "seconds": time.perf_counter() - began}
        report(f"{order}-grams: {bits:.3f} bits a character, {running:.3f} with the characters before each window")
        best = model if best is None or bits < found[best.order]["bits"] else best
    assert best is not None
    made = best.sample(a.samples, a.length, 0)
    measure(f"{best.order}-grams", made, held, texts_of(made), known)
    flags = ["--layout", "stream", "--max-length", str(a.length), "--run-dir", str(a.run_dir), *more]
    if not a.resume:
        command(["train", "--data", str(a.text), *flags, "--max-minutes", str(a.minutes)])
    flow = advect.load(a.run_dir)
    x = torch.from_numpy(codes[held]).double()
    bound = flow.log_prob_bound(x, draws=16, batch_size=64) / (a.length * math.log(2))
    error = float(bound.std()) / len(bound) ** 0.5
    report(f"flow: at most {-float(bound.mean()):.3f} +- {error:.3f} bits a character")
    modality: Any = flow.modality
    for steps in a.steps:
        began = time.perf_counter()
        samples = flow.sample(a.samples, steps=steps, seed=0)
        seconds = time.perf_counter() - began
        places = np.searchsorted(codes, samples.x.long().numpy())
        measure(f"flow, {steps} steps, {seconds:.0f} s", places, held, modality.texts(samples.x), known)
    facts = {"ngrams": found, "flow": {"bits": -float(bound.mean()), "error": error}}
    (a.run_dir / "characters.json").write_text(json.dumps(facts, indent=2) + "\n")


def measure(name: str, made: np.ndarray, held: np.ndarray, texts: list[str], known: set[str]) -> None:
    """Print how samples (n, L) compare with held-out windows, and one of them."""
    x, y = torch.from_numpy(made), torch.from_numpy(held)
    gaps = ", ".join(f"{n}-grams {ngram_distance(x, y, n):.3f}" for n in (1, 2, 3))
    report(f"{name}: {words_known(texts, known):.1%} of words known; total variation of {gaps}\n  {texts[0]!r}")


def report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()

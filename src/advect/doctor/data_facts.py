"""Measuring the samples that a source hands out, and the files behind them."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advect.core.types import LENGTH, NULL, Category, Conditions, Length
from advect.data import Source, Split
from advect.data.images import ImageSplit
from advect.doctor.data_checks import Classes, Lengths, Pictures, Values


def places(n: int, look: int) -> np.ndarray:
    """At most ``look`` of 0 .. n - 1 (k,) int64, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, look)).round().astype(np.int64)) if n else np.arange(0)


def gather_values(source: Source, look: int) -> Values:
    """Look at ``look`` training samples at most. Raises UserError where one cannot be read."""
    x, cond = _fetch(source.train, places(len(source.train), look))
    real = _real_values(x, cond)
    data = source.transform.inverse(x).flatten(1)
    flat = x.flatten(1)
    infinite = ~torch.isfinite(flat).all(1)
    fine = real[torch.isfinite(real)].double()
    rows = flat.numpy()
    shown = data[torch.isfinite(data)]
    return Values(
        train=len(source.train),
        held_out=len(source.held_out),
        looked=len(x),
        kind=source.spec.kind,
        shape=tuple(source.spec.shape),
        low=float(shown.min()) if len(shown) else 0.0,
        high=float(shown.max()) if len(shown) else 0.0,
        mean=float(fine.mean()) if len(fine) else 0.0,
        deviation=float(fine.std(correction=0)) if len(fine) else 0.0,
        extreme=float(fine.abs().max()) if len(fine) else 0.0,
        constant=int((flat.amax(0) == flat.amin(0)).sum()) if len(x) > 1 else 0,
        features=flat.shape[1],
        infinite=int(infinite.sum()),
        copies=len(rows) - len({row.tobytes() for row in rows}),
    )


def gather_classes(source: Source) -> list[Classes]:
    """The categories of a source with their shares."""
    return [
        Classes(name=name, shares=dict(zip(c.names, c.frequencies, strict=True)), train=len(source.train))
        for name, c in source.spec.conditions.items()
        if isinstance(c, Category)
    ]


def gather_lengths(source: Source) -> Lengths | None:
    """The lengths of sequences, where they differ."""
    condition = source.spec.conditions.get(LENGTH)
    if not isinstance(condition, Length):
        return None
    shares = np.array(condition.frequencies)
    there = np.flatnonzero(shares) + 1
    middle = int(np.searchsorted(shares.cumsum(), 0.5 * shares.sum())) + 1
    return Lengths(shortest=int(there[0]), median=middle, longest=int(there[-1]))


def gather_pictures(source: Source, look: int) -> Pictures | None:
    """Look at ``look`` image files of both parts at most; None where the samples are no files."""
    split, rest = source.train, source.held_out
    if not isinstance(split, ImageSplit):
        return None
    both = np.concatenate([split.rows, rest.rows if isinstance(rest, ImageSplit) else split.rows[:0]])
    chosen = both[places(len(both), look)]
    part = ImageSplit(split.store, chosen, {}, split.decoder)
    unreadable = part.find_unreadable()
    channels, height, width = split.decoder.shape
    smaller, grey, sides = 0, 0, []
    for row in chosen.tolist():
        if split.store.title(row) in unreadable:
            continue
        try:
            content = split.store.read(row)
            with Image.open(io.BytesIO(content)) as image:
                size = image.size
        except Exception:  # whatever a damaged file leads a decoder to; it has been counted
            continue
        sides.append(min(size))
        smaller += min(size) < min(height, width)
        pixels = split.decoder(content)[:3]
        grey += channels > 1 and bool((pixels == pixels[:1]).all())
    return Pictures(
        looked=len(chosen),
        total=len(both),
        unreadable=unreadable,
        asked=(height, width),
        smaller=smaller,
        least=min(sides, default=0),
        grey=grey,
        channels=channels,
    )


def _fetch(split: Split, chosen: np.ndarray) -> tuple[Tensor, Conditions]:
    batches = [split.fetch(chosen[i : i + 256]) for i in range(0, len(chosen), 256)]
    names = batches[0].cond or {}
    cond = {name: torch.cat([(b.cond or {})[name] for b in batches]) for name in names}
    return torch.cat([b.x1 for b in batches]).float(), cond


def _real_values(x: Tensor, cond: Conditions) -> Tensor:
    """All values of x (N, *S) but the padding of sequences."""
    if LENGTH not in cond or (cond[LENGTH] == NULL).any():
        return x.flatten()
    real = torch.arange(x.shape[1]) < cond[LENGTH][:, None]
    return x[real].flatten()

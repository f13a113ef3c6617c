"""Sequences cut to a maximum length, and splits that keep copies and windows of a sequence together."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from advect.core.errors import UserError
from advect.data.base import check_share
from advect.data.repeats import copied
from advect.data.sequences.files import Ragged


def shorten(ragged: Ragged, max_length: int | None, long: str, stride: int | None) -> tuple[Ragged, np.ndarray]:
    """Sequences cut to ``max_length``, and the group (N,) of each that a split must keep together."""
    if long not in ("truncate", "window"):
        raise UserError(f"long must be 'truncate' or 'window', got {long!r}")
    if max_length is not None and max_length < 1:
        raise UserError(f"max_length must be at least 1 step, got {max_length}; None cuts none")
    if stride is not None and (long != "window" or max_length is None or stride > max_length):
        raise UserError(
            f"stride is {stride}, the steps from one window to the next, at most max_length; give it beside"
            " long='window' (--long window) and max_length (--max-length)"
        )
    if max_length is not None and long == "truncate":
        ragged = replace(ragged, steps=[x[:max_length] for x in ragged.steps])
    plain = [x[:, : ragged.channels] for x in ragged.steps]  # copies may have other times
    contents = [x.shape[0].to_bytes(8) + (x + 0.0).tobytes() for x in plain]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    groups = np.unique(digests, return_inverse=True)[1].reshape(-1)
    groups = np.where(copied(_heads(plain), groups), groups, len(groups) + np.arange(len(groups)))
    groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    if max_length is None or long == "truncate":
        return ragged, groups
    ends = [len(x) if stride is None else max(len(x) - max_length, 0) + 1 for x in ragged.steps]
    starts = [range(0, end, stride or max_length) for end in ends]
    owner = np.repeat(np.arange(len(ragged.steps)), list(map(len, starts)))
    steps = [x[i : i + max_length] for x, own in zip(ragged.steps, starts, strict=True) for i in own]
    conditions = {key: (column, values[owner]) for key, (column, values) in ragged.conditions.items()}
    return replace(ragged, steps=steps, conditions=conditions), groups[owner]


def _heads(steps: list[np.ndarray], values: int = 256) -> np.ndarray:
    """First values of each sequence (N, K), NaN after its end."""
    width = min(max(x.size for x in steps), values)
    heads = np.full((len(steps), width), np.nan)
    for row, x in zip(heads, steps, strict=True):
        row[: x.size] = x.reshape(-1)[:width]
    return heads


def split_in_time(n: int, overlap: int, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out indices of n windows of one series: the last are held out, none of both shares a step.

    A window shares steps with the ``overlap`` before it. All are trained on where too few would be left.
    """
    check_share(held_out)
    count = min(max(round(n * held_out), 1), n - 1) if held_out else 0
    if not count or n - count - overlap < count:
        return np.arange(n), np.arange(0)
    return np.arange(n - count - overlap), np.arange(n - count, n)

"""A solver for the tests of paths, which must not lean on the room that solves."""

from __future__ import annotations

import torch


def rk4(velocity, x, t0: float, t1: float, steps: int):
    """Carry x (B, *S) from t0 to t1."""
    h = (t1 - t0) / steps
    for i in range(steps):
        t = torch.full((len(x),), t0 + i * h, dtype=x.dtype)
        a = velocity(x, t)
        b = velocity(x + h / 2 * a, t + h / 2)
        c = velocity(x + h / 2 * b, t + h / 2)
        d = velocity(x + h * c, (t + h).clamp(max=1))
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x

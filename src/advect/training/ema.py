"""Exponential and power-function moving averages of the weights.

Power functions: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3 and
appendix C. After t updates the average of exponent gamma is

    integral_0^t p(tau) weights(tau) dtau,    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)

Its *length* sigma_rel is the standard deviation of p over t: 0.05 averages over about the last tenth of training, 1 /
sqrt(12) = 0.289 (gamma = 0) over all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError

LONGEST = 1 / math.sqrt(12)
"""Length of the plain mean of all weights, an upper bound."""

EMA_FILE = "ema.safetensors"
"""Weight file of the average used for sampling."""


class EMA:
    """One or several averages ``shadow <- shadow + w_n (weights - shadow)`` at the n-th update, in float32.

    A fixed decay is warmed up: ``1 - w_n = min(decay, (1 + n) / (10 + n))``. The average of ``decay`` is ``shadow``,
    used by :meth:`applied`; ``also`` gives further decays, ``lengths`` power-function averages. Of sharded parameters,
    each process averages its shard.

    Attributes:
        shadows: averages by the name of their weight file, ``shadow`` first.
        lengths: lengths of the power-function averages by file name.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        decay: float = 0.9999,
        *,
        also: Sequence[float] = (),
        lengths: Sequence[float] = (),
    ) -> None:
        for value in (decay, *also):
            if not 0 <= value < 1:
                raise UserError(
                    f"ema_decay must lie in [0, 1), got {value}; 0.9999 is usual, use_ema=False turns it off"
                )
        rules: dict[str, Callable[[int], float]] = {EMA_FILE: partial(_fixed_weight, decay)}
        rules |= {decay_file(value): partial(_fixed_weight, value) for value in also}
        rules |= {length_file(value): partial(ema_weight, exponent(value)) for value in lengths}
        self.decay, self.updates = decay, 0
        self.lengths = {length_file(value): value for value in lengths}
        self._params, self._rules = list(params.values()), list(rules.values())
        self.shadows = {file: {name: p.detach().float().clone() for name, p in params.items()} for file in rules}
        self.shadow = self.shadows[EMA_FILE]
        self._lists = [list(shadow.values()) for shadow in self.shadows.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Update with the current weights."""
        self.updates += 1
        for shadow, rule in zip(self._lists, self._rules, strict=True):
            torch._foreach_lerp_(shadow, self._params, rule(self.updates))

    def check_files(self, folder: Path) -> None:
        """Raise UserError if a checkpoint lacks one of the averages."""
        if not (folder / EMA_FILE).is_file():
            raise UserError(f"checkpoint {folder} was written without an EMA; resume it with --no-use-ema")
        if absent := [file for file in self.shadows if not (folder / file).is_file()]:
            raise UserError(
                f"checkpoint {folder} has no {absent[0]}, and no average can begin in the middle of a run; resume it "
                "with the --ema-also, --posthoc-ema and --posthoc-lengths of its config.yaml"
            )

    def load(self, shadows: Mapping[str, Mapping[str, Tensor]], updates: int) -> None:
        """Restore the averages, by file name, and their number of updates."""
        for file, shadow in self.shadows.items():
            for name, value in shadow.items():
                value.copy_(shadows[file][name])
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the averaged weights in, without gradients."""
        with torch.no_grad():
            kept = [p.clone() for p in self._params]
            torch._foreach_copy_(self._params, self._lists[0])
            try:
                yield
            finally:
                torch._foreach_copy_(self._params, kept)


def decay_file(decay: float) -> str:
    """Weight file of a further average: ``ema-0.999.safetensors``."""
    return f"ema-{decay}.safetensors"


def length_file(length: float) -> str:
    """Weight file of a power-function average: ``ema-length-0.05.safetensors``."""
    return f"ema-length-{length}.safetensors"


def _fixed_weight(decay: float, updates: int) -> float:
    return 1 - min(decay, (1 + updates) / (10 + updates))


def exponent(length: float) -> float:
    """Exponent gamma of a length: the positive root of gamma + 1 = length^2 (gamma + 2)^2 (gamma + 3).

    Raises UserError for a length outside (0, LONGEST).
    """
    if not 0 < length < LONGEST:
        raise UserError(
            f"an EMA length must be above 0 and below {LONGEST:.3f}, got {length}; it is a share of the training, and "
            "0.05 to 0.15 are usual"
        )
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(roots[np.isreal(roots)].real.max())


def length_of(gamma: float) -> float:
    """Length of an exponent, sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def ema_weight(gamma: float, updates: int) -> float:
    """Weight of the parameters in the n-th update, 1 - (1 - 1/n)^(gamma + 1): weights piecewise constant between
    updates.
    """
    return 1.0 if updates == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / updates))

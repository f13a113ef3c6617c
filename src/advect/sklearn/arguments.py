"""Arguments that estimators share, and their checks."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from advect.core.bounds import bounds_of, check_bounds
from advect.core.errors import UserError


def check_whole(name: str, value: Any, bounds: Any) -> None:
    """Raise UserError unless an argument is a whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{name} must be a whole number, got {value!r}")
    check_bounds(name, value, bounds_of(bounds))


def check_minutes(minutes: Any) -> None:
    """Raise UserError unless ``minutes`` is None or a finite number above 0."""
    if minutes is not None and (not isinstance(minutes, numbers.Real) or not 0 < float(minutes) < math.inf):
        raise UserError(f"max_minutes must be a finite number of minutes above 0, got {minutes!r}; 5 is usual")


def own_generator(random_state: Any) -> np.random.RandomState:
    """That of ``random_state``; for None a new one, and not NumPy's global one, which other threads may draw from."""
    return np.random.RandomState() if random_state is None else check_random_state(random_state)

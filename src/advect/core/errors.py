"""Errors of the user: one sentence with the argument, its value and the fix."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(ValueError):
    """A mistake of the user. The command line prints its message alone and exits with 2."""

    agreed = False
    """Whether all processes raise it with the same message; see :func:`advect.distributed.comm.sync_errors`."""


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest option, else the list of options."""
    options = list(options)
    near = difflib.get_close_matches(value, options, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(options)}"


def optional_import(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say which extra of advect installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module} is not installed; run: pip install 'advect[{extra}]'") from error

"""User errors."""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Iterable
from types import ModuleType


class UserError(ValueError):
    """A mistake of the user. The command line prints the message alone and exits with 2."""

    agreed = False
    """Whether all processes raise it with the same message; see :func:`advect.distributed.comm.sync_errors`."""


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest option, else the list of options."""
    options = list(options)
    near = difflib.get_close_matches(value, options, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(options)}"


def quoted_flag(name: str, *values: str) -> str:
    """ "--name value ..." as a shell takes it: values with blanks or other special characters in quotes."""
    return shlex.join([f"--{name}", *values])


def optional_import(module: str, extra: str) -> ModuleType:
    """Import an optional library. Raises UserError naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module} is not installed; run: pip install 'advect[{extra}]'") from error

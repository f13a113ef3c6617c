"""User errors."""

from __future__ import annotations

import difflib
import importlib
import re
import shlex
import sys
from collections.abc import Iterable
from types import ModuleType


class UserError(ValueError):
    """A mistake of the user. The command line prints the message alone and exits with 2."""

    agreed = False
    """Whether all processes raise it with the same message; see :func:`advect.distributed.comm.sync_errors`."""


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: newlines, tabs, the escape that begins a terminal's commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # that reverse the order of what follows
    "\u2028\u2029\ufeff\ud800-\udfff\ue000]"  # line separators, halves of characters, a mark of our own
)


def printable(text: str, *, lines: bool = False) -> str:
    """Text without characters that command a terminal, break a line or reverse its order: escaped, as ``\\x1b``.

    With ``lines``, newlines and tabs stay. All that is printed, logged or shown in a page passes here, as names and
    values of data may hold anything.
    """
    kept = "\n\t" if lines else ""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in kept else ascii(found[0])[1:-1], text)


LONGEST = 500
"""Letters without a blank that a message shows; the path of a file is rarely longer."""


MESSAGE = 3000
"""Letters that a message shows."""


def shortened(text: str) -> str:
    """A message in which what is longer than ``LONGEST`` letters without a blank, such as a name, loses its middle, as
    does the whole beyond ``MESSAGE`` letters.
    """
    text = re.sub(rf"\S{{{LONGEST + 1},}}", lambda found: f"{found[0][:200]}...{found[0][-40:]}", text)
    return text if len(text) <= MESSAGE else f"{text[: MESSAGE - 1000]}...{text[-900:]}"


MOST_CHOICES = 30
"""Options that an error lists."""


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest option, else the list of options."""
    options = list(options)
    near = difflib.get_close_matches(value, options, n=1, cutoff=0.6)
    more = f" and {len(options) - MOST_CHOICES:,} more" if len(options) > MOST_CHOICES else ""
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(options[:MOST_CHOICES])}{more}"


def quoted_flag(name: str, *values: str) -> str:
    """ "--name value ..." as a shell takes it: values with blanks or other special characters in quotes."""
    return shlex.join([f"--{name}", *values])


def optional_import(module: str, extra: str) -> ModuleType:
    """Import an optional library. Raises UserError naming the extra that installs it."""
    known = sys.modules.get(module)  # import_module takes 4 us, which columns of a table pay some forty times each
    if known is not None and not getattr(known.__spec__, "_initializing", False):
        return known
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module} is not installed; run: pip install 'advect[{extra}]'") from error

"""Positional words of a command line, anywhere among its flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from advect.config.flags import asks_help, dashed, flag_types
from advect.core.errors import UserError


def place_first(words: Sequence[str], *kinds: type) -> list[str]:
    """Words with the positional one first, see :func:`_find_place`."""
    words, i = list(words), _find_place(words, *kinds)
    return words if i is None else [words[i], *words[:i], *words[i + 1 :]]


def _find_place(words: Sequence[str], *kinds: type, required: bool = False) -> int | None:
    """Index of the first word that is no flag of ``kinds`` and no value of one.

    ``required``: without one, the last value of a flag that takes any number, where that is a path that exists.
    """
    types: dict[str, Any] = {}
    for kind in kinds:
        types |= flag_types(kind)
    i, spare = 0, None
    while i < len(words):
        if not words[i].startswith("-"):
            return i
        name, equals, _ = dashed(words[i]).partition("=")
        i += 1
        type_ = bool if name in ("-h", "--help", "--help-all") else types.get(name.replace("--no-", "--"), str)
        count, open_ended = (0, False) if equals else _values(type_, words[i:])
        i += count
        spare = i - 1 if open_ended and count > 1 and Path(words[i - 1]).exists() else spare
    return spare if required else None


def split_place(
    words: list[str], command: str, kind: type, *, what: str = "run", example: str = "runs/digits"
) -> tuple[Path, list[str]]:
    """Split RUN, anywhere among the flags of ``kind``, from these; --help needs none."""
    (place,), flags = split_places(words, command, kind, (what,), example)
    return place, flags


def split_places(
    words: list[str], command: str, kind: type, whats: Sequence[str], example: str
) -> tuple[list[Path], list[str]]:
    """Split the positional words ``whats``, anywhere among the flags of ``kind``, from these; --help needs none."""
    found, rest = split_words(words, command, kind, whats, example)
    return [Path(word) for word in found], rest


def split_words(
    words: list[str], command: str, kind: type, whats: Sequence[str], example: str
) -> tuple[list[str], list[str]]:
    """As :func:`split_places`, of words that are no paths or not only paths: as they were typed."""
    rest, found = list(enumerate(words)), []
    for _ in whats:
        i = _find_place([word for _, word in rest], kind, required=True)
        if i is None:
            break
        found.append(rest.pop(i))
    if len(found) == len(whats):
        return [word for _, word in sorted(found)], [word for _, word in rest]
    if asks_help(words):
        return ["" for _ in whats], [word for _, word in rest]
    raise UserError(f"{command} needs a {' and a '.join(whats)}, such as: {command} {example}")


def _values(type_: Any, words: Sequence[str]) -> tuple[int, bool]:
    """How many of the words after a flag are its values, and whether it would take any text."""
    given = next((i for i, word in enumerate(words) if word.startswith("--") or word == "-h"), len(words))
    choices = [t for t in get_args(type_) if t is not type(None)]
    if len(choices) == 1 and type(None) in get_args(type_):
        return _values(choices[0], words)
    if type_ is bool:
        return 0, False
    if get_origin(type_) is not tuple:
        return min(1, given), False
    of, *rest = get_args(type_)
    if rest != [...]:
        return min(len(get_args(type_)), given), False
    if of in (int, float):
        return next((i for i, word in enumerate(words[:given]) if not _is_number(word)), given), False
    return given, True


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True

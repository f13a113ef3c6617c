"""Reading what others may have written: JSON, YAML and the headers of weight files, as typed records.

Size and depth are limited, every value has a type and, where declared, a range (``core.bounds``), entries that a
record does not know are named, and each mistake is one sentence about the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, is_typeddict

import msgspec
import yaml

from advect.core.errors import UserError
from advect.core.files import open_regular

LARGEST = 2**28
"""Most bytes of JSON: those of the weight files of wide tables."""
LARGEST_YAML = 2**20
DEEPEST = 64
"""Most lists and objects within one another."""

T = TypeVar("T")


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """Base of records without other entries than its own."""


class OpenRecord(msgspec.Struct):
    """Base of records beside whose entries there may be others."""


def read_record(path: Path, kind: type[T], fix: str = "") -> T:
    """Content of a JSON file as a ``kind``. Raises UserError, with a ``fix``, if unreadable or of another form."""
    return parse_record(read_bytes(path, LARGEST, fix), kind, path, fix)


def find_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where it is missing, damaged or something else."""
    try:
        return read_record(path, dict[str, Any])
    except UserError:
        return None


def read_bytes(path: Path, most: int, fix: str = "", what: str = "") -> bytes:
    """Content of a regular file of at most ``most`` bytes. Raises UserError that begins with ``what``, or the path."""
    what = what or str(path)
    try:
        with open_regular(path) as file:
            size = min(os.fstat(file.fileno()).st_size, most)
            content = file.read(size + 1)  # Python takes the memory of all that is asked for
            if size < len(content) <= most:  # it has grown
                content += file.read(most + 1 - len(content))
    except OSError as error:
        raise UserError(f"{what} cannot be read ({error.strerror or error}){_end(fix)}") from error
    if len(content) > most:
        raise UserError(f"{what} has more than {most:,} bytes, the most that is read of such a file{_end(fix)}")
    return content


def parse_record(text: str | bytes, kind: type[T], where: Path | str, fix: str = "") -> T:
    """JSON text as a ``kind``: a record, a dataclass, or dicts and lists. Raises UserError naming ``where``."""
    if len(text) > LARGEST:
        raise UserError(f"{where} has more than {LARGEST:,} characters of JSON{_end(fix)}")
    try:
        values = json.loads(text)  # and not msgspec, which refuses the infinities that configurations may hold
    except RecursionError:
        raise UserError(f"{where} is JSON of more than {DEEPEST} levels{_end(fix)}") from None
    except ValueError as error:
        raise UserError(f"{where} is not whole JSON ({' '.join(str(error).split())}){_end(fix)}") from error
    return as_record(values, kind, where, fix)


def as_record(
    values: Any,
    kind: type[T],
    where: Path | str,
    fix: str = "",
    build: Callable[[type, Any], Any] | None = None,
) -> T:
    """Plain values as a ``kind``: a record, a dataclass, a TypedDict, or dicts and lists.

    ``build`` makes values of types that are none of these. Raises UserError naming ``where`` and the entry.
    """
    check_depth(values, where)
    known = {f.name for f in fields(kind)} if is_dataclass(kind) else None
    if known is not None and isinstance(values, Mapping) and (unknown := values.keys() - known):
        raise UserError(_unknown(where, str(min(unknown, key=str))))
    try:
        made = msgspec.convert(values, kind, dec_hook=build)
    except msgspec.ValidationError as error:
        words, _, place = str(error).partition(" - at ")
        if "unknown field" in words:
            raise UserError(_unknown(where, words.split("`")[1])) from error
        place = place.strip("`").removeprefix("$").lstrip(".") or "the whole"
        words = words[:1].lower() + words[1:].replace("`", "")
        raise UserError(f"{where} is not what advect writes: {place}: {words}{_end(fix)}") from error
    if is_typeddict(kind) and (left := _left_out(values, made)) is not None:
        raise UserError(_unknown(where, left))
    return made


def checked_values(values: Any, kind: type, where: Path | str, fix: str = "") -> Any:
    """Plain values that are of the form of ``kind``, and what it has by default for entries that they lack.

    Raises UserError as :func:`as_record`.
    """
    return _filled(values, as_record(values, kind, where, fix))


def _filled(values: Any, made: Any) -> Any:
    """Values, and the entries of the records made of them that they lack, at any depth."""
    if isinstance(made, msgspec.Struct) and isinstance(values, dict):
        own = {name: getattr(made, name) for name in made.__struct_fields__}
        known = {name: _filled(v, own[name]) if name in own else v for name, v in values.items()}
        return known | {name: msgspec.to_builtins(v) for name, v in own.items() if name not in values}
    if isinstance(values, dict) and isinstance(made, dict):
        return {name: _filled(v, made.get(name)) for name, v in values.items()}
    if isinstance(values, list) and isinstance(made, list | tuple):
        return [_filled(*pair) for pair in zip(values, made, strict=True)]
    return values


def _left_out(values: Any, made: Any) -> str | None:
    """An entry of the values that a TypedDict, at any depth, does not know."""
    if isinstance(values, dict) and isinstance(made, dict):
        if unknown := values.keys() - made.keys():
            return str(min(unknown, key=str))
        pairs: Iterator[tuple[Any, Any]] = ((values[name], made[name]) for name in values)
    elif isinstance(values, list) and isinstance(made, list):
        pairs = zip(values, made, strict=True)
    else:
        return None
    return next((found for pair in pairs if (found := _left_out(*pair)) is not None), None)


def _unknown(where: Path | str, name: str) -> str:
    return (
        f"{where} has an entry {name[:40]!r}, which this advect does not know; install the newer one that wrote it, or"
        " take another file"
    )


def _end(fix: str) -> str:
    return f"; {fix}" if fix else ""


def check_depth(values: Any, where: Path | str) -> None:
    """Raise UserError unless lists and dicts are at most ``DEEPEST`` within one another."""
    level = [values]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise UserError(f"{where} has lists or objects of more than {DEEPEST} levels")


def _inside(value: Any) -> Iterator[Any]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (inner for inner in values if isinstance(inner, dict | list))


def read_yaml(path: Path, what: str) -> Any:
    """Plain values of a YAML file, without aliases and tags. Raises UserError that begins with ``what``."""
    return parse_yaml(read_bytes(path, LARGEST_YAML, "give a run's config.yaml", what), what)


def parse_yaml(content: str | bytes, what: str) -> Any:
    """:func:`read_yaml` of a text."""
    try:
        values = yaml.load(content if isinstance(content, str) else content.decode(), _PlainLoader)
    except RecursionError:
        raise UserError(f"{what} has lists or sections of more than {DEEPEST} levels") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{what} is not YAML ({' '.join(str(error).split())})") from error
    return values


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which multiply or contain themselves, and of limited depth."""

    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), and advect reads plain values only")
        self._level += 1
        if self._level > DEEPEST:
            raise yaml.YAMLError(f"it has more than {DEEPEST} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self._level -= 1


def guarded(build: Callable[[], T], where: Path | str) -> T:
    """Result of ``build`` from a file's values; UserError for what they do to code that trusts them."""
    try:
        return build()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"{where} is not what advect writes ({type(error).__name__}: {words[:200]})") from error

"""Registry of parts: ``@register("ot")`` makes a class a choice of its kind.

The base class sets ``part_kind``. The constructor is the configuration: plain arguments (numbers, text, paths,
choices, tuples of these) with a default become flags, with their entry under "Args:" in the class docstring as help.
Numbers are checked against the range in their annotation (``core.bounds``).
``part_given`` names arguments that a run sets; ``part_builder`` a method whose arguments are taken instead of the
constructor's; ``part_examples`` (dicts of arguments) serve the contract tests.

Names are read from the source of a kind's home, so only requested parts are imported. Other packages add parts by
entry points of the group ``advect.parts``, each naming a module or class.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import re
import sys
import types
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from msgspec import Meta

from advect.core.bounds import annotation_of, bounded, bounds_of
from advect.core.errors import UserError, did_you_mean

HOMES = {
    "path": "advect.paths",
    "source": "advect.sources",
    "coupling": "advect.couplings",
    "times": "advect.times",
    "weight": "advect.weights",
    "mask": "advect.masks",
    "loss": "advect.losses",
    "network": "advect.networks",
    "solver": "advect.solvers",
    "sde-solver": "advect.solvers.sde",
    "grid": "advect.solvers.time_grids",
    "diffusion": "advect.solvers.diffusion_coefficients",
    "posterior": "advect.solvers.posterior.*",
    "optimizer": "advect.training.optim",
    "lr-schedule": "advect.training.learning_rate",
    "data-format": "advect.data",
    "modality": "advect.data.*.modality",
    "augmentation": "advect.data.images.augmentation",
    "metric": "advect.metrics",
}
"""Module, package or pattern of modules of each kind of part; nested homes are searched for their own kind only."""

GROUP = "advect.parts"
"""Entry-point group of other packages."""

REQUIRED = inspect.Parameter.empty
"""Default of an argument that has none."""

C = TypeVar("C", bound=type)

_REGISTERED = re.compile(r'^@register\("([^"]+)"\)\n(?:@.*\n)*class \w+.*:\n(?: {4}"""((?:.|\n)*?)""")?', re.MULTILINE)


class _Seen(NamedTuple):
    """A part read from source, not yet imported."""

    module: str
    summary: str


_parts: dict[str, dict[str, type]] = {}
_scans: dict[str, dict[str, _Seen]] = {}
_loaded: set[str] = set()


def register(name: str) -> Callable[[C], C]:
    """Register a class as the part ``name`` of its kind.

    Raises UserError if another class of the kind has the name, TypeError for a base without ``part_kind``.
    """

    def add(cls: C) -> C:
        kind = getattr(cls, "part_kind", None)
        if kind is None:
            raise TypeError(f"{cls.__name__} cannot be registered: no base class sets part_kind")
        place, seen = _place(cls), _scan(kind).get(name)
        other = _parts.get(kind, {}).get(name)
        taken = _place(other) if other is not None else seen and seen.module
        if taken not in (None, place, cls.__module__):
            raise UserError(f"{kind} {name!r} is registered by {taken} and by {place}; rename one of them")
        bounded(cls)
        cls.part_name = name
        _parts.setdefault(kind, {})[name] = cls
        return cls

    return add


def choices(kind: str) -> tuple[str, ...]:
    """Names of all parts of a kind: the project's in file order, then those of other packages."""
    _load_entry_points()
    return tuple(dict.fromkeys([*_scan(kind), *_parts.get(kind, ())]))


def get(kind: str, name: str) -> type:
    """Class of a part; imports its module. Raises UserError for an unknown name."""
    if name not in choices(kind):
        raise UserError(f"{kind} {name!r} is not known{did_you_mean(name, choices(kind))}")
    if name not in _parts.get(kind, {}):
        importlib.import_module(_scan(kind)[name].module)
    return _parts[kind][name]


def name_of(part: object) -> str:
    """Name of a part or its class. Raises TypeError if not registered."""
    cls = part if isinstance(part, type) else type(part)
    name = cls.__dict__.get("part_name")
    if name is None:
        raise TypeError(f"{cls.__name__} is not registered")
    return name


def unregister(cls: type) -> None:
    """Remove a class; for tests."""
    _parts[cls.part_kind].pop(cls.part_name)  # pyright: ignore[reportAttributeAccessIssue]


class Argument(NamedTuple):
    """A constructor argument that a flag sets."""

    name: str
    type: Any
    default: Any
    help: str
    bounds: Meta | None = None


def arguments(cls: type) -> tuple[Argument, ...]:
    """Plain arguments of a part with a default, except those that a run gives."""
    given, docs = getattr(cls, "part_given", ()), argument_docs(cls)
    found = []
    builder = getattr(cls, "part_builder", None)
    for name, parameter in parameters(getattr(cls, builder) if builder else cls).items():
        type_ = annotation_of(cls, name, parameter.annotation, builder or "__init__")
        plain = None if name in given else _plain(type_)
        if plain is not None and parameter.default is not REQUIRED:
            default = parameter.default
            default = tuple(default) if isinstance(default, list) else default
            found.append(Argument(name, plain, default, docs.get(name, ""), bounds_of(type_)))
    return tuple(found)


def parameters(cls: Callable) -> dict[str, inspect.Parameter]:
    """Named parameters of a constructor or function."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind in named}


def argument_docs(cls: type) -> dict[str, str]:
    """Entries under "Args:" in the docstrings of a class and its bases."""
    docs: dict[str, str] = {}
    for base in cls.__mro__:
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
        for entry in re.findall(r"^ {4}(\w.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE):
            names, _, words = entry.partition(":")
            for name in names.split(","):
                docs.setdefault(name.strip(), " ".join(words.split()))
    return docs


def summaries(kind: str) -> dict[str, str]:
    """First sentence of each part's docstring, without importing it."""
    parts, seen = _parts.get(kind, {}), _scan(kind)
    return {name: summary(parts[name]) if name in parts else seen[name].summary for name in choices(kind)}


def summary(cls: type) -> str:
    """First sentence of a part's docstring."""
    return first_sentence(cls.__dict__.get("__doc__") or "")


def first_sentence(doc: str) -> str:
    """First sentence of a docstring as one line, without markup."""
    text = " ".join(inspect.cleandoc(doc).split("\n\n")[0].split()).replace("``", "`")
    return re.split(r"(?<=\.)\s(?=[A-Z])", text)[0].rstrip(".")


def markdown_table(kind: str) -> str:
    """Table of a kind's parts: name, class, summary, arguments with defaults."""
    rows = ["| name | class | | arguments |", "|---|---|---|---|"]
    for name in choices(kind):
        cls = get(kind, name)
        options = ", ".join(f"`{a.name}={a.default}`" for a in arguments(cls))
        rows.append(f"| `{name}` | `{cls.__name__}` | {summary(cls).replace('|', chr(92) + '|')} | {options} |")
    return "\n".join(rows)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _scan(kind: str) -> dict[str, _Seen]:
    """Parts in the source of a kind's home. Raises UserError for a duplicate name."""
    if kind not in _scans:
        found: dict[str, _Seen] = {}
        for module, file in _modules(HOMES[kind]) if kind in HOMES else ():
            for name, doc in _REGISTERED.findall(file.read_text(encoding="utf-8")):
                if name in found:
                    raise UserError(f"{kind} {name!r} is registered by {found[name].module} and {module}; rename one")
                found[name] = _Seen(module, first_sentence(doc))
        _scans[kind] = found
    return _scans[kind]


def _modules(home: str) -> list[tuple[str, Path]]:
    """Modules of a home with their files, without importing them."""
    package, pattern = home.split(".*")[0], home if "*" in home else f"{home}.*"
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return []
    if spec is None or spec.origin is None:
        return []
    file, others = Path(spec.origin), set(HOMES.values()) - {home}
    if spec.submodule_search_locations is None:
        return [(home, file)]
    inner = sorted(path for path in file.parent.rglob("*.py") if path.name != "__init__.py")
    named = [(".".join((package, *path.relative_to(file.parent).with_suffix("").parts)), path) for path in inner]
    mine = lambda module: fnmatchcase(module, pattern) and not any(fnmatchcase(module, other) for other in others)
    return [(module, path) for module, path in named if mine(module)]


def _load_entry_points() -> None:
    """Import the parts of other packages, once; warn of those that fail."""
    key = "\0".join(sys.path)
    if key in _loaded:
        return
    _loaded.add(key)
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.value in _loaded:
            continue
        _loaded.add(point.value)
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist is not None else "a package"
            logging.getLogger("advect").warning(
                "%s offers %r (%s) to advect, but it cannot be imported: %s", package, point.name, point.value, error
            )


def _plain(type_: Any) -> Any:
    """The type, sequences as tuples, if a flag can give it, else None; of a union without functions and parts."""
    if type_ in (bool, int, float, str, Path, type(None)):
        return type_
    origin, inner = get_origin(type_), get_args(type_)
    if origin is Literal:
        return type_
    if origin is Annotated:
        return _plain(inner[0])
    if origin in (Union, types.UnionType):
        in_python = [get_origin(part) is Callable or hasattr(part, "part_kind") for part in inner]
        parts = [_plain(part) for part, only in zip(inner, in_python, strict=True) if not only]
        return None if None in parts or not parts else Union[tuple(parts)]  # noqa: UP007
    if origin in (tuple, Sequence, list):
        parts = [part if part is ... else _plain(part) for part in inner]
        if None in parts or not parts:
            return None
        return tuple[tuple(parts)] if origin is tuple else tuple[parts[0], ...]  # pyright: ignore
    return None

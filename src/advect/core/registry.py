"""The registry of parts: ``@register("ot")`` on a class makes it a choice of its kind.

A part's kind comes from its base class, which sets ``part_kind``. Its constructor is its configuration: an argument
that is plain (a number, text, a path, a choice, a tuple of these) and has a default can be set by a flag, and its
help is its entry under "Args:" in the docstring of the class. The base class names in ``part_given`` the arguments
that a run sets itself. ``part_examples``, keyword arguments by the tuple, serve the contract tests.

Names are read from the source of the package that is a kind's home, so that only a part that is asked for is
imported. Other packages add parts by entry points of the group ``advect.parts``, each naming a module or a class.
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
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from advect.core.errors import UserError, did_you_mean

HOMES = {
    "path": "advect.paths",
    "source": "advect.sources",
    "coupling": "advect.couplings",
    "times": "advect.times",
    "weight": "advect.weights",
    "loss": "advect.losses",
    "network": "advect.networks",
    "solver": "advect.solvers",
    "sde-solver": "advect.solvers.sde",
    "grid": "advect.solvers.time_grids",
    "diffusion": "advect.solvers.diffusion_coefficients",
    "optimizer": "advect.training.optim",
    "data-format": "advect.data",
    "modality": "advect.data.*.modality",
    "metric": "advect.metrics",
}
"""For each kind of part the module or package that holds it, or a pattern of modules; a package's search leaves out
the homes of others."""

GROUP = "advect.parts"
"""Entry points of other packages."""

REQUIRED = inspect.Parameter.empty
"""The default of an argument that has none."""

C = TypeVar("C", bound=type)

_REGISTERED = re.compile(r'^@register\("([^"]+)"\)\n(?:@.*\n)*class \w+.*:\n(?: {4}"""((?:.|\n)*?)""")?', re.MULTILINE)


class _Seen(NamedTuple):
    """A part in the source of a module that may not be imported yet."""

    module: str
    summary: str


_parts: dict[str, dict[str, type]] = {}
_scans: dict[str, dict[str, _Seen]] = {}
_loaded: set[str] = set()


def register(name: str) -> Callable[[C], C]:
    """Make a class the part ``name`` of its base's kind.

    Raises UserError for a name that another class of the kind has, and TypeError for a base without ``part_kind``.
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
        cls.part_name = name
        _parts.setdefault(kind, {})[name] = cls
        return cls

    return add


def choices(kind: str) -> tuple[str, ...]:
    """The names of all parts of a kind: the project's in the order of its files, then those of others."""
    _load_entry_points()
    return tuple(dict.fromkeys([*_scan(kind), *_parts.get(kind, ())]))


def get(kind: str, name: str) -> type:
    """The class of a part; imports its module. Raises UserError for an unknown name."""
    if name not in choices(kind):
        raise UserError(f"{kind} {name!r} is not known{did_you_mean(name, choices(kind))}")
    if name not in _parts.get(kind, {}):
        importlib.import_module(_scan(kind)[name].module)
    return _parts[kind][name]


def name_of(part: object) -> str:
    """The name of a part, or of its class. Raises TypeError where it has none."""
    cls = part if isinstance(part, type) else type(part)
    name = cls.__dict__.get("part_name")
    if name is None:
        raise TypeError(f"{cls.__name__} is not registered")
    return name


def unregister(cls: type) -> None:
    """Take a class away; for parts that a test defines."""
    _parts[cls.part_kind].pop(cls.part_name)  # pyright: ignore[reportAttributeAccessIssue]


class Argument(NamedTuple):
    """An argument of a part's constructor that a flag can set."""

    name: str
    type: Any
    default: Any
    help: str


def arguments(cls: type) -> tuple[Argument, ...]:
    """The configuration of a part: its plain arguments with a default, less those that a run gives."""
    given, docs = getattr(cls, "part_given", ()), argument_docs(cls)
    found = []
    for name, parameter in parameters(cls).items():
        plain = None if name in given else _plain(_annotation(cls, name, parameter.annotation))
        if plain is not None and parameter.default is not REQUIRED:
            default = parameter.default
            default = tuple(default) if isinstance(default, list) else default
            found.append(Argument(name, plain, default, docs.get(name, "")))
    return tuple(found)


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The named parameters of a constructor."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind in named}


def argument_docs(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each argument, under "Args:"."""
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
    """The first sentence of each part's docstring, without importing it."""
    parts, seen = _parts.get(kind, {}), _scan(kind)
    return {name: summary(parts[name]) if name in parts else seen[name].summary for name in choices(kind)}


def summary(cls: type) -> str:
    """The first sentence of a part's docstring."""
    return first_sentence(cls.__dict__.get("__doc__") or "")


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring as one line without its marks."""
    text = " ".join(inspect.cleandoc(doc).split("\n\n")[0].split()).replace("``", "`")
    return re.split(r"(?<=\.)\s(?=[A-Z])", text)[0].rstrip(".")


def markdown_table(kind: str) -> str:
    """A table of a kind's parts: name, class, summary and arguments with their defaults."""
    rows = ["| name | class | | arguments |", "|---|---|---|---|"]
    for name in choices(kind):
        cls = get(kind, name)
        options = ", ".join(f"`{a.name}={a.default}`" for a in arguments(cls))
        rows.append(f"| `{name}` | `{cls.__name__}` | {summary(cls).replace('|', chr(92) + '|')} | {options} |")
    return "\n".join(rows)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _scan(kind: str) -> dict[str, _Seen]:
    """The parts that a kind's home defines, read from its source. Raises UserError for a name twice."""
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
    """The modules of a home with their files, without importing them."""
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
    """Import what other packages offer, once; one that fails is reported and left out."""
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


def _annotation(cls: type, name: str, annotation: Any) -> Any:
    """The annotation of an argument as a type; None where it does not resolve."""
    if not isinstance(annotation, str):
        return annotation
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        fields = inspect.get_annotations(base)
        if name in fields or name in getattr(init, "__annotations__", {}):
            try:
                return eval(fields.get(name, annotation), vars(sys.modules[base.__module__]))
            except NameError:
                return None
    return None


def _plain(type_: Any) -> Any:
    """The type where a flag can give it (sequences as tuples), else None."""
    if type_ in (bool, int, float, str, Path, type(None)):
        return type_
    origin, inner = get_origin(type_), get_args(type_)
    if origin is Literal:
        return type_
    if origin in (Union, types.UnionType):
        parts = [_plain(part) for part in inner]
        return None if None in parts else Union[tuple(parts)]  # noqa: UP007
    if origin in (tuple, Sequence, list):
        parts = [part if part is ... else _plain(part) for part in inner]
        if None in parts or not parts:
            return None
        return tuple[tuple(parts)] if origin is tuple else tuple[parts[0], ...]  # pyright: ignore
    return None

"""The sections of a configuration: plain values, and parts chosen by name with the arguments of their constructors."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, get_type_hints

from advect.core import registry
from advect.core.errors import UserError, did_you_mean


class Choice(NamedTuple):
    """A field that chooses a part: the kinds it chooses from, and the prefix of the flags of that part's arguments."""

    field: str
    kinds: tuple[str, ...]
    prefix: str

    def names(self) -> tuple[str, ...]:
        """All that can be chosen."""
        return tuple(dict.fromkeys(name for kind in self.kinds for name in registry.choices(kind)))

    def get(self, name: str) -> type:
        """The class of a part. Raises UserError for an unknown name."""
        for kind in self.kinds:
            if name in registry.choices(kind):
                return registry.get(kind, name)
        raise UserError(f"{flag(self.field)} {name} is not known{did_you_mean(str(name), self.names())}")

    def summaries(self) -> dict[str, str]:
        """The help of each choice."""
        return {name: text for kind in reversed(self.kinds) for name, text in registry.summaries(kind).items()}


def part(*kinds: str, default: Any = MISSING, prefix: str | None = None) -> Any:
    """A field of a :class:`Section` that chooses a part of one of these kinds.

    The arguments of the part are options of the section, named ``prefix`` and the argument; by default the prefix is
    the field's name and an underscore.
    """
    return field(default=default, metadata={"kinds": kinds, "prefix": prefix})


def flag(name: str) -> str:
    """The flag of a field or an option."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """Values that are checked as they are made, so that a bad one is refused before anything is written.

    ``options`` are the arguments of the chosen parts where they are not the default, by the names of their flags:
    ``path_n`` for ``n`` of ``path``. They also read as attributes of the section. Sections are equal where all values
    are; declare them ``eq=False``.
    """

    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    usual: ClassVar[frozenset[str]] = frozenset()
    """The fields that ``--help`` shows; ``--help-all`` shows all."""
    _at_least: ClassVar[tuple[tuple[str, float], ...]] = ()
    _above: ClassVar[tuple[tuple[str, float], ...]] = ()
    _below_one: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, low in self._at_least:
            if not all(v >= low for v in _each(getattr(self, name))):
                raise UserError(f"{flag(name)} must be at least {low}, got {getattr(self, name)}")
        for name, low in self._above:
            if not all(v > low for v in _each(getattr(self, name))):
                raise UserError(f"{flag(name)} must be greater than {low}, got {getattr(self, name)}")
        for name in self._below_one:
            if not all(0 <= v < 1 for v in _each(getattr(self, name))):
                raise UserError(f"{flag(name)} must be at least 0 and below 1, got {getattr(self, name)}")
        for choice in self.choices():
            name = getattr(self, choice.field)
            if name is not None and name not in choice.names():
                raise UserError(f"{flag(choice.field)} {name} is not known{did_you_mean(str(name), choice.names())}")

    @classmethod
    def choices(cls) -> tuple[Choice, ...]:
        """The fields that choose a part."""
        return tuple(
            Choice(f.name, f.metadata["kinds"], f.name + "_" if f.metadata["prefix"] is None else f.metadata["prefix"])
            for f in fields(cls)
            if "kinds" in f.metadata
        )

    @classmethod
    def choice(cls, name: str) -> Choice:
        """The field ``name``, which chooses a part."""
        return next(choice for choice in cls.choices() if choice.field == name)

    @classmethod
    def _owner(cls, option: str) -> Choice | None:
        """The choice that an option belongs to: the one of the longest prefix."""
        fitting = [choice for choice in cls.choices() if option.startswith(choice.prefix)]
        return max(fitting, key=lambda choice: len(choice.prefix), default=None)

    def part(self, name: str) -> type:
        """The class that the field ``name`` chooses."""
        return self.choice(name).get(getattr(self, name))

    def arguments(self, name: str) -> dict[str, Any]:
        """The arguments of the part that the field ``name`` chooses, with their defaults.

        Raises UserError for an option that the part does not have.
        """
        cls, choice = self.part(name), self.choice(name)
        known = registry.arguments(cls)
        for option in self.options:
            if self._owner(option) == choice and option not in {choice.prefix + a.name for a in known}:
                near = did_you_mean(flag(option), [flag(choice.prefix + a.name) for a in known])
                fix = near if known else "; leave it out"
                raise UserError(f"{flag(option)} does not go with {flag(name)} {getattr(self, name)}{fix}")
        return {a.name: self.options.get(choice.prefix + a.name, a.default) for a in known}

    def build(self, name: str, **given: Any) -> Any:
        """Make the part that the field ``name`` chooses, with those of the ``given`` arguments that it takes.

        Raises UserError, naming the flag, for an argument that the part refuses.
        """
        cls, prefix = self.part(name), self.choice(name).prefix
        takes, options = registry.parameters(cls), self.arguments(name)
        try:
            return cls(**options | {key: value for key, value in given.items() if key in takes})
        except UserError as error:
            words = str(error).replace(f"{cls.__name__} needs", f"{flag(name)} {getattr(self, name)} needs")
            for option in options:
                words = words.replace(f"{cls.__name__}.{option}", flag(prefix + option))
            for field_name in given.keys() & {f.name for f in fields(self)}:
                words = words.replace(f"{cls.__name__}.{field_name}", flag(field_name))
            raise UserError(words) from error

    def values(self) -> dict[str, Any]:
        """All values by name: the fields, and after each choice the arguments of its part."""
        found: dict[str, Any] = {}
        for f in fields(self):
            if f.name != "options" and f.metadata.get("flag", True):
                found[f.name] = getattr(self, f.name)
            if "kinds" in f.metadata and found[f.name] is not None:
                prefix = self.choice(f.name).prefix
                found |= {prefix + key: value for key, value in self.arguments(f.name).items()}
        return found

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The section of :meth:`values`; lists become tuples."""
        names = {f.name for f in fields(cls)}
        plain = {name: _tuples(value) for name, value in values.items()}
        options = {name: value for name, value in plain.items() if name not in names}
        return cls(options=options, **{name: value for name, value in plain.items() if name in names})

    def replaced(self, **values: Any) -> Self:
        """With other values; a part that is newly chosen comes with its own defaults."""
        names = {f.name for f in fields(self)} - {"options"}
        old, options = {name: getattr(self, name) for name in names}, dict(self.options)
        for choice in self.choices():
            if values.get(choice.field, old[choice.field]) != old[choice.field]:
                options = {name: value for name, value in options.items() if self._owner(name) != choice}
        new = old | {name: value for name, value in values.items() if name in names}
        options |= {name: value for name, value in values.items() if name not in names}
        return type(self)(options=options, **new)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.values() == other.values()  # pyright: ignore

    def __hash__(self) -> int:
        return hash(tuple(self.values().items()))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and "options" in self.__dict__:
            if name in self.options:
                return self.options[name]
            for choice in type(self).choices():
                if name.startswith(choice.prefix) and getattr(self, choice.field) is not None:
                    found = self.arguments(choice.field)
                    if name[len(choice.prefix) :] in found:
                        return found[name[len(choice.prefix) :]]
        raise AttributeError(f"{type(self).__name__} has no value {name!r}")


def _each(value: Any) -> Iterator[Any]:
    return iter(() if value is None else value if isinstance(value, tuple) else (value,))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def plain(value: object) -> object:
    """A value of a section as YAML and JSON have it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def value_types(section: Section) -> dict[str, Any]:
    """The type of each of :meth:`Section.values`."""
    hints, found = get_type_hints(type(section)), {}
    for f in fields(section):
        if f.name != "options" and f.metadata.get("flag", True):
            found[f.name] = hints[f.name]
        if "kinds" in f.metadata and getattr(section, f.name) is not None:
            prefix = section.choice(f.name).prefix
            found |= {prefix + a.name: a.type for a in registry.arguments(section.part(f.name))}
    return found


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for item, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(below, ast.Expr):
                docs[item.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs

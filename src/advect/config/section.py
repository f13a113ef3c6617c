"""Sections of a configuration: plain values, and parts with their constructor arguments."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from msgspec import Meta, ValidationError, convert

from advect.core import registry
from advect.core.bounds import bounds_of, check_bounds
from advect.core.errors import UserError, did_you_mean


class Choice(NamedTuple):
    """Field that chooses a part: its kinds, the prefix of the part's flags, and what a number in its place means."""

    field: str
    kinds: tuple[str, ...]
    prefix: str
    number: tuple[str, str] | None = None

    def names(self) -> tuple[str, ...]:
        """All choices."""
        return tuple(dict.fromkeys(name for kind in self.kinds for name in registry.choices(kind)))

    def get(self, name: str) -> type:
        """Class of a part. Raises UserError for an unknown name."""
        for kind in self.kinds:
            if name in registry.choices(kind):
                return registry.get(kind, name)
        raise UserError(f"{flag(self.field)} {name} is not known{did_you_mean(str(name), self.names())}")

    def summaries(self) -> dict[str, str]:
        """Help of each choice."""
        return {name: text for kind in reversed(self.kinds) for name, text in registry.summaries(kind).items()}


def part(*kinds: str, default: Any = MISSING, prefix: str | None = None, number: tuple[str, str] | None = None) -> Any:
    """Field of a :class:`Section` that chooses a part of one of these kinds.

    The part's arguments are options of the section with the prefix, default the field's name and an underscore. With
    ``number``, a part and one of its arguments, a number stands for that part with that value.
    """
    return field(default=default, metadata={"kinds": kinds, "prefix": prefix, "number": number})


def named(kind: str, *others: str, default: Any = MISSING) -> Any:
    """Field of a :class:`Section` that names a part of this kind, without its arguments, or one of the ``others``."""
    return field(default=default, metadata={"named": (kind, others)})


def aliased(default: Any, *names: str) -> Any:
    """Field of a :class:`Section` whose flag may also be spelled by these names."""
    return field(default=default, metadata={"aliases": names})


def flag(name: str) -> str:
    """Flag of a field or option."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """Values validated at construction.

    ``options`` are arguments of the chosen parts that differ from the defaults, named as flags: ``path_n`` for ``n``
    of ``path``. They are also attributes. Sections compare by values; declare subclasses ``eq=False``.
    """

    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    usual: ClassVar[frozenset[str]] = frozenset()
    """Fields shown by ``--help``; ``--help-all`` shows all. Empty: all are usual."""
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Fields by the title that the help gives them; others stand under the section's own."""

    def __post_init__(self) -> None:
        for name, bounds in self.bounds().items():
            check_bounds(flag(name), getattr(self, name), bounds, getattr(type(self), name, None))
        for name, known in self.names().items():
            if (value := getattr(self, name)) is not None and value not in known:
                raise UserError(f"{flag(name)} {value} is not known{did_you_mean(str(value), known)}")
        for choice in self.choices():
            self._resolve_number(choice)
            name = getattr(self, choice.field)
            if name is not None and name not in choice.names():
                raise UserError(f"{flag(choice.field)} {name} is not known{did_you_mean(str(name), choice.names())}")
        for option in self.options:
            owner = self._owner(option)
            if owner is None or getattr(self, owner.field) is None:
                names = [f.name for f in fields(self) if f.name != "options"]
                raise UserError(f"{type(self).__name__} has no value {option!r}{did_you_mean(option, names)}")

    def _resolve_number(self, choice: Choice) -> None:
        """A number in place of a name as the part that it stands for."""
        value, number = getattr(self, choice.field), as_number(getattr(self, choice.field))
        if choice.number is None or number is None:
            return
        name, argument = choice.number
        option = choice.prefix + argument
        if self.options.get(option, number) != number:
            raise UserError(
                f"{flag(choice.field)} {value} and {flag(option)} {self.options[option]} contradict each other; leave"
                " one out"
            )
        object.__setattr__(self, choice.field, name)
        object.__setattr__(self, "options", {**self.options, option: number})

    @classmethod
    @cache
    def bounds(cls) -> dict[str, Meta]:
        """Ranges of the fields that have one."""
        hints = get_type_hints(cls, include_extras=True)
        return {f.name: bounds for f in fields(cls) if (bounds := bounds_of(hints[f.name])) is not None}

    @classmethod
    def choices(cls) -> tuple[Choice, ...]:
        """Fields that choose a part."""
        return tuple(
            Choice(f.name, m["kinds"], f.name + "_" if m["prefix"] is None else m["prefix"], m["number"])
            for f in fields(cls)
            if "kinds" in (m := f.metadata)
        )

    @classmethod
    def names(cls) -> dict[str, tuple[str, ...]]:
        """Choices of the fields that name a part."""
        named = {f.name: f.metadata["named"] for f in fields(cls) if "named" in f.metadata}
        return {name: (*others, *registry.choices(kind)) for name, (kind, others) in named.items()}

    @classmethod
    def choice(cls, name: str) -> Choice:
        """The choice of field ``name``."""
        return next(choice for choice in cls.choices() if choice.field == name)

    @classmethod
    def _owner(cls, option: str) -> Choice | None:
        """Choice that an option belongs to, by the longest prefix."""
        fitting = [choice for choice in cls.choices() if option.startswith(choice.prefix)]
        return max(fitting, key=lambda choice: len(choice.prefix), default=None)

    def part(self, name: str) -> type:
        """Class chosen by field ``name``."""
        return self.choice(name).get(getattr(self, name))

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of the part chosen by field ``name``, with defaults.

        Raises UserError for an unknown option, and a number out of range.
        """
        cls, choice = self.part(name), self.choice(name)
        known = registry.arguments(cls)
        for option in self.options:
            if self._owner(option) == choice and option not in {choice.prefix + a.name for a in known}:
                near = did_you_mean(flag(option), [flag(choice.prefix + a.name) for a in known])
                fix = near if known else "; leave it out"
                raise UserError(f"{flag(option)} does not go with {flag(name)} {getattr(self, name)}{fix}")
        found = {a.name: self.options.get(choice.prefix + a.name, a.default) for a in known}
        for a in known:
            check_bounds(flag(choice.prefix + a.name), found[a.name], a.bounds, a.default)
        return found

    def build(self, name: str, **given: Any) -> Any:
        """Build the part chosen by field ``name``, with the ``given`` arguments it takes.

        Raises UserError naming the flag of a refused argument.
        """
        cls, prefix = self.part(name), self.choice(name).prefix
        takes, options = registry.parameters(cls), self.arguments(name)
        try:
            return cls(**options | {key: value for key, value in given.items() if key in takes})
        except UserError as error:
            words = str(error).replace(f"{cls.__name__} needs", f"{flag(name)} {getattr(self, name)} needs")
            flags = {option: flag(prefix + option) for option in options}
            flags |= {name: flag(name) for name in given.keys() & {f.name for f in fields(self)}}
            raise UserError(with_flags(words, cls, flags)) from error

    def chosen(self, name: str) -> Any:
        """The part chosen by field ``name``: None, its name or number, or the part itself where it has options."""
        value = getattr(self, name)
        if value is None:
            return None
        choice, given = self.choice(name), self.arguments(name)
        if choice.number is not None and value == choice.number[0]:
            return given[choice.number[1]]
        usual = {a.name: a.default for a in registry.arguments(self.part(name))}
        return value if given == usual else self.build(name)

    def values(self) -> dict[str, Any]:
        """All values by name: fields, each choice followed by its part's arguments."""
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
        """Section with these :meth:`values`; lists become tuples. Raises UserError for a value of another type."""
        names = {f.name for f in fields(cls)}
        plain = {name: _tuples(value) for name, value in values.items()}
        options = {name: value for name, value in plain.items() if name not in names}
        made = cls(options=options, **{name: value for name, value in plain.items() if name in names})
        for name, type_ in value_types(made).items():
            if name in plain:
                check_type(flag(name), plain[name], type_)
        return made

    def replaced(self, **values: Any) -> Self:
        """Copy with other values; newly chosen parts have their own defaults."""
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


def with_flags(words: str, cls: type, flags: Mapping[str, str]) -> str:
    """Error message with ``Class.argument`` replaced by flags."""
    for name, typed in flags.items():
        words = words.replace(f"{cls.__name__}.{name}", typed)
    return words


def as_number(value: Any) -> float | None:
    """A number, or text that is one; else None."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def plain(value: object) -> object:
    """Value for YAML and JSON."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def check_type(label: str, value: Any, type_: Any) -> None:
    """Raise UserError naming ``label`` unless a plain value is of the type of a flag; paths are text."""
    try:
        convert(plain(value), _plain_type(type_))
    except ValidationError as error:
        raise UserError(f"{label} is not of its type: {str(error).replace('`', '').lower()}") from error


def _plain_type(type_: Any) -> Any:
    if type_ is Path:
        return str
    if get_origin(type_) in (Union, UnionType):
        return Union[tuple(map(_plain_type, get_args(type_)))]  # noqa: UP007
    return type_


def value_types(section: Section) -> dict[str, Any]:
    """Type of each of :meth:`Section.values`."""
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
    """Docstring of each field of a dataclass and its bases."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for item, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(below, ast.Expr):
                docs[item.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs

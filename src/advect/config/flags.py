"""Flags of sections and of the parts they choose."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro
from msgspec import Meta

from advect.config.section import Choice, Section, field_docs, flag
from advect.core import registry
from advect.core.bounds import interval
from advect.core.errors import UserError, did_you_mean
from advect.distributed.comm import sync_errors

A = TypeVar("A")
S = TypeVar("S", bound=Section)
Sections = Mapping[str, Section]

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def parse_words(kind: type[S], words: Sequence[str], *, prog: str, description: str) -> S:
    """Parse words into the section ``kind``. Raises UserError."""
    title = prog.split()[1]
    return parse_sections({title: kind()}, words, prog=prog, description=description)[title]  # pyright: ignore


def parse_sections(sections: Sections, words: Sequence[str], *, prog: str, description: str) -> dict[str, Section]:
    """Update sections by command-line words. Raises UserError for unknown flags and bad values.

    A chosen part brings its own flags. ``--help`` shows the usual flags, and those of the parts that the words choose;
    ``--help-all`` shows all.
    """
    words = typed_words(words)
    sections = {name: _chosen(section, words) for name, section in sections.items()}
    every, help_ = "--help-all" in words, asks_help(words)
    parser, owners = _parser(sections, words, brief=help_ and not every, choices_help=help_)
    if help_:
        words = ["--help"]
        shown = {f.name for group in fields(parser) for f in fields(group.default_factory)}  # pyright: ignore
        some = f"These are the usual flags; {prog} --help-all shows all."
        description += "\n\n" + (some if owners.keys() - shown else "These are all flags.")
    values = vars(_run_tyro(parser, words, sections, prog=prog, description=description))
    flat = {name: value for group in values.values() for name, value in vars(group).items()}
    made = {
        key: section.replaced(**{name: flat[name] for name, owner in owners.items() if owner == key})
        for key, section in sections.items()
    }
    for section in made.values():
        section.values()  # raises for an argument of a part that is out of range
    return made


def _chosen(section: Section, words: Sequence[str]) -> Section:
    """Section with the parts chosen by the words."""
    for choice in section.choices():
        name = value_of(flag(choice.field), words)
        if name is not None and name != "None":
            section = section.replaced(**{choice.field: name})
    return section


def asks_help(words: Sequence[str]) -> bool:
    """Whether the words ask for help."""
    return not {"-h", "--help", "--help-all"}.isdisjoint(words)


class _Group:
    """Flags under one title."""

    def __init__(self, about: str = "") -> None:
        self.about, self.fields = about, []

    def add(self, name: str, type_: Any, default: Any, words: str, aliases: Sequence[str] = ()) -> None:
        if is_dataclass(type_):  # its fields stand in this group
            typed = Annotated[type_, tyro.conf.arg(name="")]
        else:
            about = {"help": words, "metavar": _metavar(type_), "help_behavior_hint": _default}
            typed = Annotated[type_, tyro.conf.arg(aliases=[flag(alias) for alias in aliases] or None, **about)]
        self.fields.append((name, typed, field(default=default)))

    def dataclass(self, title: str) -> type:
        made = make_dataclass(title.title().replace(" ", ""), self.fields, kw_only=True)
        made.__doc__ = self.about
        return made


def _default(value: str) -> str:
    """End of a flag's help; what None or nothing does is in its words."""
    return "" if value in ("None", "") else f"(default: {value})"


def _metavar(type_: Any) -> str | None:
    """What stands for the value of a flag that may be None, which is not said; None for tyro's own words."""
    kinds = [kind for kind in get_args(type_) if kind is not type(None)]
    words = [_value_word(kind) for kind in kinds]
    return "|".join(words) if type(None) in get_args(type_) and all(words) else None  # pyright: ignore


def _value_word(type_: Any) -> str | None:
    origin, inner = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return _value_word(inner[0])
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    words = [_value_word(kind) or "" for kind in inner if kind is not Ellipsis]
    if origin is tuple and Ellipsis not in inner:
        return " ".join(words) if all(words) else None
    if inner and isinstance(origin, type) and issubclass(origin, Sequence):
        return words[0] and f"[{words[0]} [{words[0]} ...]]"
    return type_.__name__.upper() if isinstance(type_, type) and origin is None and type_ is not bool else None


def _parser(
    sections: Sections, words: Sequence[str], *, brief: bool, choices_help: bool
) -> tuple[type, dict[str, str]]:
    """Dataclass of flags by group, and the section that owns each flag."""
    groups: dict[str, _Group] = {}
    owners: dict[str, str] = {}
    for key, section in sections.items():
        hints, docs = get_type_hints(type(section)), field_docs(type(section))
        usual = section.usual if brief and section.usual else {f.name for f in fields(section)}
        titles = {name: title for title, names in section.groups.items() for name in names}
        groups[key] = _Group(registry.summary(type(section)) + ".")
        groups |= {title: _Group() for title in section.groups}
        order = {name: i for i, name in enumerate(titles)}
        for f in sorted(fields(section), key=lambda f: order.get(f.name, -1)):
            if f.name == "options" or not f.metadata.get("flag", True):
                continue
            title = titles.get(f.name, key)
            choice = section.choice(f.name) if "kinds" in f.metadata else None
            default, type_, help_ = getattr(section, f.name), hints[f.name], docs.get(f.name, "")
            names = section.names().get(f.name) if choice is None else choice.names()
            if names is not None:
                optional = type(None) in getattr(type_, "__args__", ())
                type_ = str if choice is not None and choice.number else Literal[names]  # pyright: ignore
                type_ = type_ | None if optional else type_  # pyright: ignore
            if choice is not None and choices_help:
                help_ = _choices_help(help_, choice)
            _claim(owners, f.name, key)
            if f.name in usual:
                help_ = _with_range(help_, section.bounds().get(f.name))
                groups[title].add(f.name, type_, default, help_, f.metadata.get("aliases", ()))
            if choice is not None and default is not None:
                group = _part_group(groups, section, choice, title)
                for a in registry.arguments(section.part(f.name)):
                    _claim(owners, choice.prefix + a.name, key)
                    if not brief or value_of(flag(f.name), words) is not None:
                        value, words_ = section.arguments(f.name)[a.name], _with_range(a.help, a.bounds)
                        group.add(choice.prefix + a.name, a.type, value, words_)
    made = [(title.replace("-", "_").replace(" ", "_"), group) for title, group in groups.items() if group.fields]
    types = [(name, cls := group.dataclass(name), field(default_factory=cls)) for name, group in made]
    return make_dataclass("Flags", types, kw_only=True), owners


def _part_group(groups: dict[str, _Group], section: Section, choice: Choice, title: str) -> _Group:
    """Group of the arguments of a part: one of its own where its flags have a prefix."""
    if not choice.prefix or not section.arguments(choice.field):
        return groups[title]
    name = f"{choice.field} {getattr(section, choice.field)}"
    return groups.setdefault(name, _Group(registry.summary(section.part(choice.field)) + "."))


def _claim(owners: dict[str, str], name: str, key: str) -> None:
    if name in owners:
        raise UserError(f"an argument of a part makes {flag(name)}, which is a flag already; rename that argument")
    owners[name] = key


def _with_range(words: str, bounds: Meta | None) -> str:
    return words if bounds is None else f"{words.rstrip('.')}; {interval(bounds)}."


def _choices_help(words: str, choice: Choice) -> str:
    lines = [f"{name}: {text}." for name, text in choice.summaries().items() if text]
    return " ".join([words, *lines]).strip()


def _run_tyro(parser: type[A], words: Sequence[str], sections: Sections, *, prog: str, description: str) -> A:
    errors = io.StringIO()
    options = {"prog": prog, "description": description, "config": _STYLE}
    try:
        with contextlib.redirect_stderr(errors):
            value, unknown = tyro.cli(parser, args=list(words), return_unknown_args=True, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_one_sentence(errors.getvalue())}; see {prog} --help") from None
    if unknown:
        known = flag_types(parser)
        negated = [name.replace("--", "--no-", 1) for name, type_ in known.items() if type_ is bool]
        raise UserError(_unknown(unknown[0], sorted([*known, *negated]), sections, prog))
    return _plain(value)


def _one_sentence(box: str) -> str:
    """Text inside tyro's error frame, without its title."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    inside = [re.sub(r"[│─]+", " ", line) for line in lines if not line.startswith(("╭", "╰"))]
    words = " ".join(" ".join(inside).split()).split(" Argument helptext")[0].split(" For full helptext")[0]
    return re.sub(r"^Error parsing [\w.]+: ", "", words).replace("Error parsing ", "").strip(" .")


def _unknown(word: str, flags: list[str], sections: Sections, prog: str) -> str:
    if not word.startswith("-"):
        return f"{word!r} is one word too many; see {prog} --help"
    name = word.split("=")[0]
    for section in sections.values():
        for choice in section.choices():
            option = name[2:].replace("-", "_").removeprefix(choice.prefix)
            if name.startswith(flag(choice.prefix)) and (others := _parts_with(choice, option)):
                return f"{name} is not a flag of {prog}; it goes with {flag(choice.field)} {' or '.join(others)}"
    begun = [flag for flag in flags if flag.startswith(f"{name}-")]
    near = f"; did you mean {' or '.join(begun)}?" if begun else did_you_mean(name, flags)
    return f"{name} is not a flag of {prog}" + (near if "did you mean" in near else f"; see {prog} --help")


def _parts_with(choice: Choice, option: str) -> list[str]:
    """Parts with an argument of this name."""
    return [name for name in choice.names() if option in {a.name for a in registry.arguments(choice.get(name))}]


def dashed(word: str) -> str:
    """``--resume_from=x`` as ``--resume-from=x``."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


_KEPT = "\ue000"
"""Stands before a value that begins with a dash, which would be taken for a flag."""


def kept(value: str) -> str:
    """A value, marked where it begins with a dash and is no number."""
    try:
        float(value)
    except ValueError:
        return _KEPT + value if value.startswith("-") else value
    return value


def typed_words(words: Sequence[str]) -> list[str]:
    """Words with dashed flags. ``--flag=--name`` gives a value that begins with dashes; repeated, it gives several.

    ``--loss`` is another name of ``--objective``.
    """
    words = [re.sub(r"^--loss(?==|$)", "--objective", dashed(word)) for word in words]
    split = [word.partition("=") for word in words]
    repeatable = {"--cond", "--rule", *(n for n, _, value in split if n.startswith("--") and kept(value) != value)}
    found: list[str] = []
    values: dict[str, list[str]] = {}
    owner = found
    for word, (name, equals, value) in zip(words, split, strict=True):
        if name in repeatable:
            owner = values.setdefault(name, [])
            owner += [kept(value)] if equals else []
        else:
            owner = found if word.startswith("--") else owner
            owner.append(word)
    return found + [word for name, some in values.items() for word in (name, *some)]


def _plain(value: Any) -> Any:
    """Values without the marks of :func:`kept`."""
    if isinstance(value, str):
        return value.removeprefix(_KEPT)
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            object.__setattr__(value, f.name, _plain(getattr(value, f.name)))
    return value


def value_of(name: str, words: Sequence[str]) -> str | None:
    """Value of a flag in the words, the last if repeated."""
    found = None
    for i, word in enumerate(words):
        if word == name:
            if i + 1 == len(words):
                raise UserError(f"{name} needs a value")
            found = _plain(words[i + 1])
        if word.startswith(name + "="):
            found = word.partition("=")[2]
    return found


def taken(name: str, words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words without a flag, and its value."""
    value, rest = value_of(name, words), []
    places = iter(words)
    for word in places:
        if word == name:
            next(places)
        elif not word.startswith(name + "="):
            rest.append(word)
    return rest, value


def without_flag(name: str, words: Sequence[str]) -> list[str]:
    """The words without a flag and its value."""
    return taken(name, [dashed(word) for word in words])[0]


def without_prefixed(prefix: str, words: Sequence[str], *, keep: Sequence[str]) -> list[str]:
    """The words without flags of a prefix and their values, except those to ``keep``."""
    left, name = [], ""
    for word in words:
        name = word if word.startswith("--") else name
        if name in keep or not name.replace("--no-", "--").startswith(flag(prefix)):
            left.append(word)
    return left


def flag_types(kind: type) -> dict[str, Any]:
    """Type of each flag of a dataclass, of those within it, and of all parts that it may choose."""
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for f in fields(kind):
        if is_dataclass(hints[f.name]):
            found |= flag_types(hints[f.name])  # pyright: ignore[reportArgumentType]
        else:
            found[flag(f.name)] = hints[f.name]
    for choice in kind.choices() if issubclass(kind, Section) else ():
        for part in map(choice.get, choice.names()):
            found = {flag(choice.prefix + a.name): a.type for a in registry.arguments(part)} | found
    return found


def launch_processes(command: str, words: list[str], nproc: int, device: str) -> NoReturn:
    """Run the command in ``nproc`` processes; exit with their code."""
    from advect.distributed.launch import check_nproc, launch

    with sync_errors():
        check_nproc(nproc, device)
    sys.exit(launch([sys.executable, "-m", "advect", command, *without_flag("--nproc", words)], nproc))

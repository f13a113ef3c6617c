"""Command lines for the breaker: every flag of every command, drawn from the sections that make ``--help``.

A new command, flag, part or range is drawn without an edit here: commands come from :func:`advect.cli.find_commands`,
flags, types, ranges and choices from the parser that the command builds. ``TINY`` keeps what passes small.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints
from unittest.mock import patch

from hypothesis import strategies as st
from msgspec import Meta

from advect.cli import find_commands, run
from advect.config import flags
from advect.config.section import Section, flag
from advect.core import registry
from advect.core.errors import UserError

CALLS = {
    "train": (
        *("train moons", "train digits", "train moons --dry-run", "train digits --dry-run"),
        *("train --data table.csv", "train --data images --dry-run", "train --resume-from run"),
    ),
    "reflow": ("reflow run", "reflow run --no-measure"),
    "data": ("data pack images", "data verify pack"),
    "eval": ("eval run", "eval --compare one.json two.json"),
    "report": ("report run", "report run --no-measure"),
    "doctor": ("doctor", "doctor run", "doctor --data table.csv", "doctor digits"),
    "forecast": ("forecast series series.csv",),
    "impute": ("impute masked given.csv",),
    "presets": ("presets",),
    "push": ("push run ./out",),
}
"""How commands are called on the files of ``file_cases.build``; others as ``COMMAND run``."""

TINY: dict[str, str] = {
    **dict.fromkeys(("sample_steps", "pair_steps", "num_steps", "nfes"), "2"),
    "max_steps": "6",
    **dict.fromkeys(("iterations", "threads", "num_res_blocks"), "1"),
    **dict.fromkeys(("batch_size", "width", "model_channels", "hidden"), "8"),
    **dict.fromkeys(("measure_samples", "num_pairs", "look"), "20"),
    "num_samples": "20",
    "draws": "2",
    "depth": "2",
    "sample_every": "0",
    "metrics": "energy",
    "length": "0.1",
    "device": "cpu",
    "run_dir": "out",
    "output_dir": "out",
}
DATA = {
    "moons": ("mlp", "moons", "vector"),
    "digits": ("unet", "digits", "image"),
    "table.csv": ("mlp", "table", "vector"),
    "images": ("unet", "image-folder", "image"),
    "run": ("mlp", "moons", "vector"),
}
"""By a word of a call: the network and the format of its data, and what a network must take."""

OUTPUT = {"eval": "out/eval.json", "ema": "out/average.safetensors", "data": "out", "export": "out"}

LONG = {"compile_model", "full", "wandb", "minutes", "features", "eval_features", "json"}
"""Flags that compile, wait or train networks of their own for minutes, and are not drawn."""

NEEDY = {"pairs", "conditional-ot", "stochastic-interpolant", "score-matching", "bridge", "min-snr"}
"""Parts that need others beside them."""

TEXTS = (
    *("", " ", "x", "None", "nan", "latest", "best", "epoch-1", "step-2", "step-99", "run", "images", "table.csv"),
    *("nowhere", "nowhere/deep/er", "../beside", "run/config.yaml", "/dev/null", "/dev/full", "a" * 300, "é" * 120),
    *("ünï cøde", "a\nb", "\x1b[31mred", "\u202egnp", "=cmd", "-", "--", "-5", "label=1", "label=", "=", "a=b=c"),
    *("[", "*", "{}", "%s", "~", "~nobody", ".", "..", "one.json", "run/checkpoints", "cpu", "meta", "cuda:99"),
    *("file://x", "x.safetensors", "x.npy", "out/x.json", "0.5", "1e400"),
)
NUMBERS = (
    *("-1", "0", "1", "0.5", "-0.0", "nan", "inf", "-inf", "1e-300", "1e300", "1e400", "1e8", "2147483648", "x", ""),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "9" * 400, "0x10", "1_0", "٣", "+2", "2."),
    *("None", "true", "1,2", "1 2", "--", "½"),
)


class Flag(NamedTuple):
    """A flag, and the ``part`` (flag, name) without which it is none."""

    name: str
    type: Any
    bounds: Meta | None
    default: Any
    names: tuple[str, ...] = ()
    part: tuple[str, str] | None = None


class _Seen(BaseException):
    """The sections that a command builds its parser from."""

    def __init__(self, sections: Mapping[str, Section]) -> None:
        self.sections = sections


def sections_of(call: str) -> Mapping[str, Section]:
    """The sections behind ``advect CALL --help``; none for a command without flags."""

    parser = flags._parser

    def seen(sections: Mapping[str, Section], words: list[str], **options: Any) -> Any:
        if flags.asks_help(words):  # not the configuration of a run on the way
            raise _Seen(sections)
        return parser(sections, words, **options)

    try:
        with patch.object(flags, "_parser", seen):
            run([*call.split(), "--help"])
    except _Seen as found:
        return found.sections
    except UserError:
        pass
    return {}


def flags_of(section: Section) -> Iterator[Flag]:
    """The flags of a section, and of all parts that it may choose."""
    hints, bounds, names = get_type_hints(type(section)), section.bounds(), section.names()
    for f in fields(section):
        if f.name == "options" or not f.metadata.get("flag", True):
            continue
        value, known = getattr(section, f.name), names.get(f.name, ())
        if isinstance(value, Section):
            yield from flags_of(value)
            continue
        choice = section.choice(f.name) if "kinds" in f.metadata else None
        yield Flag(f.name, hints[f.name], bounds.get(f.name), value, known if choice is None else choice.names())
        for name in () if choice is None else choice.names():
            for a in registry.arguments(choice.get(name)):
                yield Flag(choice.prefix + a.name, a.type, a.bounds, a.default, part=(f.name, name))


@cache
def calls(home: Path) -> dict[str, tuple[Flag, ...]]:
    """Every call with its flags, as found from the folder ``home`` of ``file_cases.build``."""
    with contextlib.chdir(home):
        return _calls()


def _calls() -> dict[str, tuple[Flag, ...]]:
    found = {}
    for name in find_commands():
        for call in CALLS.get(name, (f"{name} run",)):
            known = {one: None for section in sections_of(call).values() for one in _hashable(section)}
            found[call] = tuple(one for one in known if one.name not in LONG)
    return found


def _hashable(section: Section) -> Iterator[Flag]:
    for one in flags_of(section):
        yield one._replace(default=str(one.default))


def words_for(home: Path, call: str, chosen: Mapping[str, list[str]] | None = None) -> list[str]:
    """The words of a call with the ``chosen`` flags, and with all others small."""
    chosen, known = dict(chosen or {}), {one.name: one for one in calls(home)[call]}
    command = call.split()[0]
    small = TINY | ({"output": OUTPUT[command]} if command in OUTPUT else {})
    given = set(call.replace("-", "_").split())
    words = call.split()
    for name, value in small.items():
        one = known.get(name)
        if one is None or name in chosen or f"__{name}" in given or not _fits(one, call, chosen):
            continue
        words += [flag(name), value]
    if command == "data":
        words = words if "verify" not in call else call.split()
        words += ["--image-size", "8"] * ("pack" in call.split()[1] and "image_size" not in chosen)
    if "--dry-run" in call or "--resume-from" in call:
        words = _without(words, "--run-dir")
    return words + [word for some in chosen.values() for word in some]


def _fits(one: Flag, call: str, chosen: Mapping[str, list[str]]) -> bool:
    """Whether a flag goes with the parts of a call, as far as they are known; those ``chosen`` come before its own."""
    if one.part is None:
        return True
    choice, name = one.part
    if choice in chosen:
        return len(chosen[choice]) > 1 and chosen[choice][1] == name
    network, data_format, _ = next((DATA[word] for word in call.split() if word in DATA), DATA["moons"])
    return {"network": network, "data_format": data_format}.get(choice) == name


def _may_choose(choice: str, name: str, call: str) -> bool:
    """Whether a call can take a part, as far as it can be told."""
    _, data_format, takes = next((DATA[word] for word in call.split() if word in DATA), DATA["moons"])
    if choice == "data_format":
        return name == data_format
    if choice == "network":
        if "run" in call.split():
            return False  # a run keeps its own
        return getattr(registry.get("network", name), "takes", takes) == takes
    return name not in NEEDY


def _without(words: list[str], name: str) -> list[str]:
    place = words.index(name) if name in words else len(words)
    return words[:place] + words[place + 2 :]


def values(one: Flag, *, absurd: bool) -> st.SearchStrategy[list[str]]:
    """Words of a value of a flag."""
    type_ = one.type
    if get_origin(type_) in (Union, UnionType):
        inner = [part for part in get_args(type_) if part is not type(None)]
        type_ = inner[0] if inner else str
        if one.bounds is None and str in inner:
            type_ = str
    if type_ is bool:
        return st.just([])
    if get_origin(type_) in (tuple, list):
        of = get_args(type_)[0]
        several = st.lists(_value(one, of, absurd), min_size=1, max_size=3)
        return several.map(lambda found: [word for words in found for word in words])
    return _value(one, type_, absurd)


def _value(one: Flag, type_: Any, absurd: bool) -> st.SearchStrategy[list[str]]:
    options = one.names or (get_args(type_) if get_origin(type_) is Literal else ())
    if options and not absurd:
        return st.sampled_from([[str(name)] for name in options])
    if type_ in (int, float) or one.bounds is not None:
        if absurd:
            return st.sampled_from([[text] for text in NUMBERS if not _long(text, one)])
        return st.sampled_from([[text] for text in _small(type_ is int, one)])
    if absurd:
        return st.sampled_from(TEXTS).map(lambda text: [text])
    return st.sampled_from(("None", "x", "latest", "out", "cpu", "label=1", "run", "table.csv")).map(lambda x: [x])


def _small(whole: bool, one: Flag) -> list[str]:
    """Numbers within the range, near its lower end or the default; the upper end of reals, too."""
    meta = one.bounds or Meta(ge=0, le=4)
    low, high = (meta.ge if meta.gt is None else meta.gt) or 0, (meta.le if meta.lt is None else meta.lt) or 4
    if one.name == "nproc":
        return ["1"]
    if whole:
        return [str(n) for n in range(int(low) + (meta.gt is not None), int(low) + 4) if n <= high]
    inner = [low + (high - low) * share for share in (1e-9, 0.01, 0.5)]
    return [f"{n:.6g}" for n in (*inner, *([low] if meta.gt is None else []), *([high] if meta.lt is None else []))]


def _long(text: str, one: Flag) -> bool:
    """Whether a number is in range and so large that the work may rightly take for ever."""
    try:
        number = float(text)
    except ValueError:
        return False
    if one.name == "nproc":
        return 1 < number < 1e6
    high = math.inf if one.bounds is None else (one.bounds.le if one.bounds.lt is None else one.bounds.lt)
    return 1000 < number <= (math.inf if high is None else high) and math.isfinite(number)


@st.composite
def command_words(draw: st.DrawFn, home: Path, call: str | None = None) -> list[str]:
    """The words of a call with some of its flags, most of them sound, and sometimes a damage to the line itself."""
    call = draw(st.sampled_from(sorted(calls(home)))) if call is None else call
    known, chosen = calls(home)[call], {}
    count = draw(st.integers(0, 4)) if known else 0
    loose = draw(st.integers(0, 7)) == 7  # any flags, whether they go together or not
    for one in [draw(st.sampled_from(known)) for _ in range(count)]:
        strange = one.part is not None and not _fits(one, call, chosen)
        if not loose and strange and (one.part[0] in chosen or not _may_choose(*one.part, call)):
            continue
        absurd = draw(st.integers(0, 15)) == 15
        words = draw(values(one, absurd=absurd))
        choice = one.name if one.names and one.part is None else ""
        if not loose and choice and not absurd and not _may_choose(choice, words[0], call):
            continue
        if one.part is not None and (not loose or draw(st.integers(0, 7))):
            chosen[one.part[0]] = [flag(one.part[0]), one.part[1]]
        name = flag(one.name)
        if one.type is bool:
            name = draw(st.sampled_from((name, name.replace("--", "--no-", 1))))
        joined = len(words) == 1 and (words[0].startswith("-") or draw(st.booleans()))
        chosen[one.name] = [f"{name}={words[0]}"] if joined and not choice else [name, *words]
    words = words_for(home, call, chosen)
    how = draw(st.integers(0, 59))
    if how == 59:
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from(TEXTS)))
    elif how == 58:
        del words[draw(st.integers(0, len(words) - 1))]
    elif how == 57:
        place = draw(st.integers(0, len(words) - 1))
        words.insert(place, words[place])
    return words

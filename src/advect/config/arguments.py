"""From words of the command line, or a ``config.yaml``, to a configuration: the one parser of both."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro

from advect.checkpoint.manifest import find_checkpoint
from advect.config.autodetect import describe, format_for, image_size
from advect.config.config import Config, D, N, Preset
from advect.config.data_formats import FORMATS, format_of
from advect.config.network_sections import NETWORKS, NetworkName, name_of
from advect.config.presets import DEFAULT, PRESETS, get_preset
from advect.config.yaml_file import read_flags
from advect.core.errors import UserError, did_you_mean

A = TypeVar("A")

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Generic[D, N]):
    """What one call of ``advect train`` asks for."""

    settings: Config[D, N]

    # Data of your own, a file or folder: what it holds is recognised, and a preset chosen where none is named. It is
    # --data-dir with all that follows from it.
    data: str | None = None

    # How --data or --data-dir is read, where it could be read in more than one way; sequences, say, of a CSV file.
    data_format: str | None = None

    run_dir: Path | None = None
    """Folder to write the run to; by default runs/PRESET."""
    resume_from: Path | None = None
    """Run folder or checkpoint to continue, bit for bit; its configuration is taken unless a PRESET is named."""
    resume: Literal["no", "auto"] = "no"
    """auto: go on from the newest whole checkpoint in the run folder, or begin where there is none."""
    config: Path | None = None
    """A run's config.yaml to repeat; flags given beside it win."""
    network: NetworkName = "unet"
    """Kind of network; one that is not the preset's own comes with its own defaults, and its own flags."""
    nproc: int = 1
    """Processes on this machine, on a GPU each where there are any; as torchrun --nproc_per_node starts them."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def parse_train(words: list[str], say: Callable[[str], None] | None = None) -> tuple[str, TrainArguments]:
    """Parse the words after ``advect train``: the preset's name and the arguments. Raises UserError.

    ``say`` is told what the data of ``--data`` were recognised as.
    """
    words = [_dashed(word) for word in words]
    name = words[0] if words and not words[0].startswith("-") else None
    flags, data = _taken("--data", words[1:] if name else words)
    config, resume = _value_of("--config", flags), _value_of("--resume-from", flags)
    if resume and _value_of("--resume", flags) == "auto":
        raise UserError(f"--resume auto and --resume-from {resume} contradict each other; give one of them")
    if name and config:
        raise UserError(f"PRESET {name!r} and --config {config} contradict each other; give one of them")
    if data and _value_of("--data-dir", flags):
        raise UserError(f"--data {data} and --data-dir contradict each other; give one of them")
    if name:
        found, given = name, []
    elif config or resume:
        file = Path(config) if config else run_folder(Path(resume or "")) / "config.yaml"
        found, given = _recorded(file)
    else:
        found, given = None, []
    for flag in ("--network", "--data-format"):
        own, typed = _value_of(flag, given), _value_of(flag, flags)
        if own and typed and own != typed:
            raise UserError(f"{flag} {typed} and the run's config.yaml, which has {own}, contradict; name a PRESET")
    if data:
        seen = describe(data, found, _value_of("--data-format", given + flags))
        if say is not None:
            say(f"{data} is {seen.words}: preset {seen.preset}")
        found = seen.preset
        given += seen.flags[:2] if given else seen.flags  # a config.yaml has all the others
    preset = get_preset(found or DEFAULT)
    return preset.name, _parse(preset, given + flags)


def parse_config(path: Path) -> tuple[str, Config]:
    """Read a ``config.yaml``: the preset's name and the configuration. Raises UserError."""
    name, flags = _recorded(path)
    return name, _parse(get_preset(name), flags).settings


def _recorded(path: Path) -> tuple[str, list[str]]:
    """The preset and the flags of a ``config.yaml``; one from before there were formats has the preset's own."""
    name, flags = read_flags(path)
    own = format_of(get_preset(name).config.data)
    if own is not None and _value_of("--data-format", flags) is None:
        flags += ["--data-format", own]
    return name, flags


def parse_words(kind: type[A], words: list[str], *, prog: str, description: str) -> A:
    """Parse words into the dataclass ``kind``, as :func:`parse_train` does."""
    return run_tyro(kind, words, prog=prog, description=description, default=None)


def _parse(preset: Preset, flags: list[str]) -> TrainArguments:
    config, data_format = _with_data(preset, flags)
    kind = _value_of("--network", flags) or name_of(config.network)
    if kind not in NETWORKS:
        raise UserError(f"--network {kind} is not known{did_you_mean(kind, NETWORKS)}")
    if kind != name_of(config.network):
        config = replace(config, network=NETWORKS[kind]())
    return run_tyro(
        TrainArguments[type(config.data), type(config.network)],  # pyright: ignore[reportArgumentType]
        flags,
        prog=f"advect train {preset.name}",
        description=_about(preset),
        default=TrainArguments(settings=config, network=kind, data_format=data_format),  # pyright: ignore[reportArgumentType]
    )


def _with_data(preset: Preset, flags: list[str]) -> tuple[Config, str | None]:
    """The preset's configuration for the data that the flags name, and their format."""
    config, place = preset.config, _value_of("--data-dir", flags)
    data_format = _value_of("--data-format", flags)
    if data_format is None:
        data_format = (format_for(preset, place) if place else None) or format_of(config.data)
    elif data_format not in preset.takes:
        fix = did_you_mean(data_format, preset.takes) if preset.takes else "; its data are its own"
        raise UserError(f"--data-format {data_format} is none that preset {preset.name} takes{fix}")
    if data_format is not None and data_format != format_of(config.data):
        config = replace(config, data=FORMATS[data_format]())
    if preset.fit is not None and data_format is not None:
        side = _value_of("--image-size", flags)
        size = image_size(data_format, Path(place).expanduser()) if place else None
        if side and side.isdecimal() and int(side) > 0:
            size = (int(side), int(side))
        usual = getattr(config.data, "image_size", None)
        size = size or (usual and (usual, usual))
        config = config if size is None else preset.fit(config, *size)
    return config, data_format


def _about(preset: Preset) -> str:
    others = "\n".join(f"  {p.name}: {p.about}" for p in PRESETS.values())
    return f"Train a flow. Flags below have the defaults of preset {preset.name}.\n\nPresets:\n{others}"


def run_tyro(kind: type[A], words: list[str], *, prog: str, description: str, default: A | None) -> A:
    extra: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            value, unknown = tyro.cli(
                kind, args=words, prog=prog, description=description, config=_STYLE, return_unknown_args=True, **extra
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_one_sentence(errors.getvalue())}; see {prog} --help") from None
    if unknown:
        raise UserError(_unknown(unknown[0], kind, prog, description, extra))
    return value


def _one_sentence(box: str) -> str:
    """The words inside the frame that tyro draws around an error, without its title."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    inside = [re.sub(r"[│─]+", " ", line) for line in lines if not line.startswith(("╭", "╰"))]
    words = " ".join(" ".join(inside).split()).split(" Argument helptext")[0].split(" For full helptext")[0]
    return re.sub(r"^Error parsing settings\.\w+: ", "", words).replace("Error parsing ", "").strip(" .")


def _unknown(word: str, kind: type, prog: str, description: str, extra: dict) -> str:
    if not word.startswith("-"):
        return f"{word!r} is one word too many; see {prog} --help"
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=prog, description=description, config=_STYLE, **extra)
    flags = sorted(set(re.findall(r"--[a-z][a-z0-9-]*", re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()))))
    name = word.split("=")[0]
    others = [key for key, data in FORMATS.items() if name[2:].replace("-", "_") in {f.name for f in fields(data)}]
    if extra and others:
        return f"{word} is not a flag of {prog}; it goes with --data-format {' or '.join(others)}"
    begun = [flag for flag in flags if flag.startswith(f"{name}-")]
    near = f"; did you mean {' or '.join(begun)}?" if begun else did_you_mean(name, flags)
    return f"{word} is not a flag of {prog}" + (near if "did you mean" in near else f"; see {prog} --help")


def _dashed(word: str) -> str:
    """``--resume_from=x`` as ``--resume-from=x``."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def without_flag(flag: str, words: list[str]) -> list[str]:
    """The words without a flag and its value."""
    return _taken(flag, [_dashed(word) for word in words])[0]


def _taken(flag: str, words: list[str]) -> tuple[list[str], str | None]:
    """The words without a flag, and the value that it had."""
    value, rest = _value_of(flag, words), []
    places = iter(words)
    for word in places:
        if word == flag:
            next(places)
        elif not word.startswith(flag + "="):
            rest.append(word)
    return rest, value


def _value_of(flag: str, words: list[str]) -> str | None:
    """The value that a flag has in the words, the last one where it comes twice."""
    found = None
    for i, word in enumerate(words):
        if word == flag:
            if i + 1 == len(words):
                raise UserError(f"{flag} needs a value")
            found = words[i + 1]
        if word.startswith(flag + "="):
            found = word.partition("=")[2]
    return found


def run_folder(path: Path) -> Path:
    """The run folder of a run folder or checkpoint."""
    return find_checkpoint(path).parent.parent

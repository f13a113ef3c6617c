"""From words of the command line, or a ``config.yaml``, to a configuration: the one parser of both."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from advect.core.errors import UserError, did_you_mean
from advect.runs.config import Config, D, N, Preset
from advect.runs.configfile import read_flags
from advect.runs.network_config import NETWORKS, NetworkName, name_of
from advect.runs.presets import DEFAULT, PRESETS, get_preset
from advect.training.checkpoint import find_checkpoint

A = TypeVar("A")

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Generic[D, N]):
    """What one call of ``advect train`` asks for."""

    settings: Config[D, N]
    run_dir: Path | None = None
    """Folder to write the run to; by default runs/PRESET."""
    resume_from: Path | None = None
    """Run folder or checkpoint to continue, bit for bit; its configuration is taken unless a PRESET is named."""
    config: Path | None = None
    """A run's config.yaml to repeat; flags given beside it win."""
    network: NetworkName = "unet"
    """Kind of network; one that is not the preset's own comes with its own defaults, and its own flags."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def parse_train(words: list[str]) -> tuple[str, TrainArguments]:
    """Parse the words after ``advect train``: the preset's name and the arguments. Raises UserError."""
    words = [_dashed(word) for word in words]
    name = words[0] if words and not words[0].startswith("-") else None
    flags = words[1:] if name else words
    config, resume = _value_of("--config", flags), _value_of("--resume-from", flags)
    if name and config:
        raise UserError(f"PRESET {name!r} and --config {config} contradict each other; give one of them")
    if name:
        preset, given = get_preset(name), []
    elif config or resume:
        file = Path(config) if config else _run_folder(Path(resume or "")) / "config.yaml"
        found, given = read_flags(file)
        preset = get_preset(found)
    else:
        preset, given = get_preset(DEFAULT), []
    own, typed = _value_of("--network", given), _value_of("--network", flags)
    if own and typed and own != typed:
        raise UserError(f"--network {typed} and the run's config.yaml, which has {own}, contradict; name a PRESET")
    return preset.name, _parse(preset, given + flags)


def parse_config(path: Path) -> tuple[str, Config]:
    """Read a ``config.yaml``: the preset's name and the configuration. Raises UserError."""
    name, flags = read_flags(path)
    return name, _parse(get_preset(name), flags).settings


def parse_words(kind: type[A], words: list[str], *, prog: str, description: str) -> A:
    """Parse words into the dataclass ``kind``, as :func:`parse_train` does."""
    return _run_tyro(kind, words, prog=prog, description=description, default=None)


def _parse(preset: Preset, flags: list[str]) -> TrainArguments:
    config = preset.config
    kind = _value_of("--network", flags) or name_of(config.network)
    if kind not in NETWORKS:
        raise UserError(f"--network {kind} is not known{did_you_mean(kind, NETWORKS)}")
    if kind != name_of(config.network):
        config = replace(config, network=NETWORKS[kind]())
    return _run_tyro(
        TrainArguments[type(config.data), type(config.network)],  # pyright: ignore[reportArgumentType]
        flags,
        prog=f"advect train {preset.name}",
        description=_about(preset),
        default=TrainArguments(settings=config, network=kind),  # pyright: ignore[reportArgumentType]
    )


def _about(preset: Preset) -> str:
    others = "\n".join(f"  {p.name}: {p.about}" for p in PRESETS.values())
    return f"Train a flow. Flags below have the defaults of preset {preset.name}.\n\nPresets:\n{others}"


def _run_tyro(kind: type[A], words: list[str], *, prog: str, description: str, default: A | None) -> A:
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
    begun = [flag for flag in flags if flag.startswith(f"{name}-")]
    near = f"; did you mean {' or '.join(begun)}?" if begun else did_you_mean(name, flags)
    return f"{word} is not a flag of {prog}" + (near if "did you mean" in near else f"; see {prog} --help")


def _dashed(word: str) -> str:
    """``--resume_from=x`` as ``--resume-from=x``."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


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


def _run_folder(path: Path) -> Path:
    """The run folder of a run folder or checkpoint."""
    return find_checkpoint(path).parent.parent

"""Parser of command lines and ``config.yaml`` files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from advect.checkpoint.manifest import find_checkpoint, read_newest
from advect.config.build import layout_of
from advect.config.config import Config, DataConfig, MethodConfig, OutputConfig, TrainingConfig
from advect.config.config import data as data_section
from advect.config.flags import kept, parse_sections, taken, typed_words, value_of, without_prefixed
from advect.config.places import place_first
from advect.config.presets import DEFAULT, PRESETS, Preset, get_preset
from advect.config.section import Section, flag
from advect.core import registry
from advect.core.bounds import Processes
from advect.core.errors import UserError, did_you_mean
from advect.core.records import read_yaml
from advect.data.autodetect import FORMAT, autodetect
from advect.data.base import Dataset, Detected, Preview


class DetectedData(NamedTuple):
    """Preset, flags and a one-line description of some data."""

    preset: str
    flags: list[str]
    words: str


def describe(path: str | Path, preset: str | None = None, data_format: str | None = None) -> DetectedData:
    """Describe a path, read as ``data_format`` and for ``preset`` if given.

    Raises UserError for a missing path, unknown data, and a preset or format that does not fit.
    """
    found = autodetect(path)
    if data_format is not None:
        found = [pair for pair in found if registry.name_of(pair[0]) == data_format]
        if not found:
            raise UserError(f"--data {path} cannot be read as --data-format {data_format}; leave that out")
    cls, seen = found[0]
    own = get_preset(preset or cls.usual_preset or usual_preset(seen.modality))
    if preset is not None:
        fitting = [pair for pair in found if fits(own, *pair)]
        if not fitting:
            brings = "brings its own data" if not own.takes else f"does not train on {seen.words}"
            raise UserError(f"preset {preset} {brings}, so --data {path} does not go with it; leave PRESET out")
        cls, seen = fitting[0]
    first = _preview(cls, path)
    flags = ["--data-dir", str(path), "--data-format", registry.name_of(cls), *_flags(first, own)]
    return DetectedData(own.name, flags, first.words or seen.words)


def fits(preset: Preset, cls: type[Dataset], seen: Detected) -> bool:
    """Whether a preset trains on a format, and its network on that layout."""
    takes: str = preset.config.network.part("network").takes  # pyright: ignore[reportAttributeAccessIssue]
    return bool(preset.takes) and trains_on(preset, registry.name_of(cls)) and takes == layout_of(seen.modality)


def usual_preset(modality: str) -> str:
    """The preset for data of a modality."""
    return registry.get("modality", modality).usual_preset  # pyright: ignore[reportAttributeAccessIssue]


def trains_on(preset: Preset, data_format: str) -> bool:
    """Whether a preset takes a format: its own, one it names, one that names it, or one that neither names."""
    if data_format in (preset.config.data.data_format, *preset.takes):
        return True
    if not preset.takes or data_format not in registry.choices(FORMAT):
        return False
    named = {name for p in PRESETS.values() for name in (p.config.data.data_format, *p.takes)}
    own = registry.get(FORMAT, data_format).usual_preset
    return own == preset.name or (own is None and data_format not in named)


def format_for(preset: Preset, path: str) -> str | None:
    """Format as which the preset reads a path; None if it takes only one, or the path fits none."""
    if len(preset.takes) < 2:
        return None
    try:
        return next((registry.name_of(cls) for cls, seen in autodetect(path) if fits(preset, cls, seen)), None)
    except UserError:
        return None


def image_size(data_format: str, path: Path) -> tuple[int, int] | None:
    """Height and width of images that cannot be resized; None for others and unreadable files."""
    try:
        return registry.get(FORMAT, data_format).image_size(path)
    except (OSError, EOFError, ValueError, KeyError, UserError, StopIteration):
        return None


def _preview(cls: type[Dataset], path: str | Path) -> Preview:
    place = Path(path).expanduser()
    try:
        return cls.preview(place) if place.exists() else Preview()
    except (ImportError, OSError, EOFError, KeyError, ValueError):  # whoever opens the data says what is wrong
        return Preview()


def _flags(first: Preview, preset: Preset) -> list[str]:
    """Flags that the data need."""
    options: dict[str, Any] = dict(first.options)
    if preset.fit is None or preset.own_size:
        options.pop("image_size", None)
    return words_of(options)


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Plain values as command-line words."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Section):
    """The run."""

    settings: Config = field(metadata={"flag": False})
    data: str | None = None
    """Your data, a file or folder: --data-dir with the format detected, and a preset chosen if none is named."""
    run_dir: Path | None = None
    """Folder of the run; default runs/PRESET."""
    resume_from: Path | None = None
    """Run folder or checkpoint to continue, bit for bit, with its configuration unless a PRESET is named."""
    resume: Literal["no", "auto"] = "no"
    """auto: continue from the newest undamaged checkpoint in the run folder, or begin if there is none."""
    config: Path | None = None
    """A run's config.yaml to repeat; flags override it."""
    nproc: Processes = 1
    """Local processes, one a GPU if there are any, as by torchrun --nproc_per_node."""
    dry_run: bool = False
    """Build all parts and the network, print the resolved configuration and stop."""

    usual = frozenset({"data", "run_dir", "resume_from", "config", "nproc", "dry_run"})


def parse_train(words: list[str], notes: list[str] | None = None) -> tuple[str, TrainArguments]:
    """Parse the words after ``advect train``: name of the preset, and arguments. Raises UserError.

    A line on the data of ``--data`` is added to ``notes``.
    """
    if words and words[0].startswith("-") and not PRESETS.keys().isdisjoint(words):
        words = place_first(words, TrainArguments)
    words = typed_words(words)
    name = words[0] if words and not words[0].startswith("-") else None
    flags, data = taken("--data", words[1:] if name else words)
    config, resume = value_of("--config", flags), value_of("--resume-from", flags)
    if resume and value_of("--resume", flags) == "auto":
        raise UserError(f"--resume auto and --resume-from {resume} contradict each other; give one of them")
    if name and config:
        raise UserError(f"PRESET {name!r} and --config {config} contradict each other; give one of them")
    if data and value_of("--data-dir", flags):
        raise UserError(f"--data {data} and --data-dir contradict each other; give one of them")
    if name:
        found, given = name, []
    elif config or resume:
        run = None if config else run_folder(Path(resume or ""))
        found, given = _recorded(Path(config or "")) if run is None else _of_run(run / "config.yaml")
    else:
        found, given = None, []
    for name in ("--network", "--data-format"):
        own, typed = value_of(name, given), value_of(name, flags)
        if own and typed and own != typed:
            raise UserError(f"{name} {typed} and the run's config.yaml, which has {own}, contradict; name a PRESET")
    given = _without_replaced(given, flags)
    if data:
        seen = describe(data, found, value_of("--data-format", given + flags))
        if notes is not None:
            notes.append(f"{data} is {seen.words}: preset {seen.preset}")
        found = seen.preset
        given += seen.flags[:2] if given else seen.flags  # a config.yaml has all the others
    preset = get_preset(found or DEFAULT)
    return preset.name, _parse(preset, given + flags)


def _without_replaced(given: list[str], flags: Sequence[str]) -> list[str]:
    """Flags of a file, without arguments of parts that the words replace."""
    for section in (MethodConfig, TrainingConfig, OutputConfig):
        plain = tuple(flag(f.name) for f in fields(section))
        for choice in section.choices():
            old, new = value_of(flag(choice.field), given), value_of(flag(choice.field), flags)
            if None not in (old, new) and old != new:
                given = without_prefixed(choice.prefix, given, keep=plain)
    return given


def data_of(folder: Path, data: str | Path | None = None) -> DataConfig:
    """The data of the run in a folder, at ``data`` if they have moved. Raises UserError if they are not there."""
    config = parse_config(folder / "config.yaml")[1].data
    if data is not None:
        if config.dataset.place is None:
            raise UserError(
                f"--data {data} does not go with this run, whose data, {config.data_format}, are a library's"
            )
        config = config.replaced(data_dir=str(data) if config.dataset.remote else Path(data))
    place = config.data_dir
    if (
        place is not None
        and Path(place).is_absolute()
        and not set("*?[{") & set(str(place))
        and not Path(place).exists()
    ):
        why = f"--data {data} does not exist" if data else f"the data of {folder} are no longer at {place}"
        raise UserError(f"{why}; give --data PATH with the place they have now")
    return config


def parse_config(path: Path) -> tuple[str, Config]:
    """Read the ``config.yaml`` of a run: name of the preset, and configuration. Raises UserError."""
    name, flags = _of_run(path)
    return name, _parse(get_preset(name), flags).settings


def _recorded(path: Path) -> tuple[str, list[str]]:
    """Preset and flags of a ``config.yaml``; the format defaults to the preset's."""
    name, flags = read_flags(path)
    if value_of("--data-format", flags) is None:
        flags += ["--data-format", get_preset(name).config.data.data_format]
    return name, flags


def _of_run(path: Path) -> tuple[str, list[str]]:
    """The same of a run's own file; where it is damaged or ends early, of the newest checkpoint, which is told."""
    trouble, name, flags = None, "", []
    try:
        name, flags = _recorded(path)
    except UserError as error:
        trouble = error
    there = _of_checkpoint(path)
    if there is None or (trouble is None and _has(there[1][-1], flags)):
        if trouble is not None:
            raise trouble
        return name, flags
    logger.warning(f"{path} is damaged; its values are taken from the newest checkpoint")
    return there[0], [word for flag in there[1] for word in flag]


def _has(flag: list[str], flags: list[str]) -> bool:
    bare = lambda word: word.removeprefix("--no-").removeprefix("--")
    return bare(flag[0]) in {bare(word) for word in flags if word.startswith("--")}


def _of_checkpoint(file: Path) -> tuple[str, list[list[str]]] | None:
    """Preset and flags, each with its words, of the newest checkpoint beside a ``config.yaml``; None without one."""
    from advect.model.load import read_recorded_config
    from advect.training.state import MODEL

    try:
        name, config = read_newest(file.parent, lambda checkpoint: read_recorded_config(checkpoint / MODEL))
    except UserError:
        return None
    flags = [_flags_of(key, value) for section in config.values() for key, value in section.items()]
    return (name, flags) if flags else None


def parse_settings(run: S, words: Sequence[str], *, prog: str, description: str) -> S:
    """Arguments ``run`` of a command, with a configuration ``settings``, updated by the words."""
    config: Config = run.settings
    sections = {f.name: getattr(config, f.name) for f in fields(config)}
    found = parse_sections({"run": run, **sections}, words, prog=prog, description=description)
    made = found.pop("run")
    return made.replaced(settings=Config(**found))  # pyright: ignore


def _parse(preset: Preset, flags: list[str]) -> TrainArguments:
    return parse_settings(
        TrainArguments(settings=_with_data(preset, flags)),
        flags,
        prog=f"advect train {preset.name}",
        description=_about(preset),
    )


def _with_data(preset: Preset, flags: list[str]) -> Config:
    """The preset's configuration for the data named by the flags."""
    config, place = preset.config, value_of("--data-dir", flags)
    data_format = value_of("--data-format", flags)
    if data_format is None:
        data_format = (format_for(preset, place) if place else None) or config.data.data_format
    elif not trains_on(preset, data_format):
        fix = did_you_mean(data_format, preset.takes) if preset.takes else "; its data are its own"
        raise UserError(f"--data-format {data_format} is none that preset {preset.name} takes{fix}")
    if data_format != config.data.data_format:
        config = replace(config, data=data_section(data_format))
    config = few_steps(of_objective(config, value_of("--objective", flags)), value_of("--objective", flags))
    if preset.fit is not None:
        side = value_of("--image-size", flags)
        size = image_size(data_format, Path(place).expanduser()) if place else None
        if side and side.isdecimal() and int(side) > 0:
            size = (int(side), int(side))
        usual = getattr(config.data, "image_size", None)
        size = size or (usual and (usual, usual))
        config = config if size is None else preset.fit(config, *size)
    return smooth_times(config, flags)


def of_objective(config: Config, objective: str | None) -> Config:
    """The configuration with the source and solver of tokens if an ``objective`` of them is given, else of numbers."""
    if objective not in registry.choices("loss"):
        return config
    method = config.method.replaced(objective=objective)
    if method.discrete == config.method.discrete:
        return config
    usual = TOKENS if method.discrete else (MethodConfig.source, OutputConfig.solver, OutputConfig.sample_steps)
    source, solver, steps = usual
    output = config.output.replaced(solver=solver, sample_steps=steps)
    return replace(config, method=method.replaced(source=source), output=output)


TOKENS = ("masked", "tau-leaping", 64)
"""Usual source, solver and steps of flows of tokens."""


def few_steps(config: Config, objective: str | None) -> Config:
    """The configuration, whose samples are drawn in few steps if an ``objective`` is given that learns such."""
    learned = registry.get("loss", objective).learns_steps if objective in registry.choices("loss") else None
    if learned is None:
        return config
    method, steps = config.method.replaced(objective=objective), 1 if learned == "to-data" else 4
    return replace(config, method=method, output=config.output.replaced(solver="flow-map", sample_steps=steps))


def smooth_times(config: Config, flags: list[str]) -> Config:
    """The configuration, with times embedded smoothly by default if the loss has derivatives in them.

    Not for a run with ``--init-from``, whose network is another's.
    """
    objective = value_of("--objective", flags)
    name = value_of("--network", flags) or config.network.network
    if objective not in registry.choices("loss") or name not in registry.choices("network"):
        return config
    if objective is None or value_of("--init-from", flags) or not registry.get("loss", objective).derives_time:
        return config
    chosen = config.network if name == config.network.network else config.network.replaced(network=name)
    if "time_embedding" not in registry.parameters(chosen.part("network")):
        return config
    return replace(config, network=chosen.replaced(time_embedding="smooth"))


def _about(preset: Preset) -> str:
    others = "\n".join(f"  {p.name}: {p.about}" for p in PRESETS.values())
    return f"Train a flow. Flags below have the defaults of preset {preset.name}.\n\nPresets:\n{others}"


def run_folder(path: Path) -> Path:
    """Run folder of a run folder or checkpoint."""
    return find_checkpoint(path).parent.parent


def read_flags(path: Path) -> tuple[str, list[str]]:
    """Read a ``config.yaml``: name of the preset, and flags for all values."""
    values = read_yaml(path, f"--config {path}")
    if not isinstance(values, dict) or not isinstance(values.get("preset"), str):
        raise UserError(f"--config {path} does not name its preset; its first line should be like 'preset: digits'")
    flags: list[str] = []
    for name, section in values.items():
        if name == "preset":
            continue
        if not isinstance(section, dict):
            raise UserError(f"--config {path}: {name} should be a section of names and values, got {section!r:.40}")
        for key, value in section.items():
            if not _is_plain(value):
                raise UserError(f"--config {path}: {key} should be a value or a list of values, got {value!r:.40}")
            flags += _flags_of(str(key), value)
    return values["preset"], flags


def _is_plain(value: object) -> bool:
    inner = value if isinstance(value, list) else [value]
    return all(isinstance(one, bool | int | float | str | date | None) for one in inner)


def _flags_of(key: str, value: object) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *(kept(str(one)) for one in value)]
    return [f"--{name}", kept(str(value))]

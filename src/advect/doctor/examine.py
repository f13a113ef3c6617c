"""The job behind ``advect doctor --data PATH`` and ``advect doctor PRESET``, both with flags of ``advect train``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from advect.config.arguments import parse_train
from advect.config.build import build_dataset, pick_device
from advect.config.config import Config
from advect.config.data_formats import format_of
from advect.config.data_sections import CellsData, TableData
from advect.core.errors import UserError
from advect.data import Dataset
from advect.doctor.data import (
    check_classes,
    check_constant,
    check_copies,
    check_count,
    check_grey,
    check_held_out,
    check_infinite,
    check_lengths,
    check_range,
    check_sizes,
    check_unreadable,
    gather_classes,
    gather_lengths,
    gather_pictures,
    gather_values,
)
from advect.doctor.formats import (
    CELL_CHECKS,
    COLUMN_CHECKS,
    check_array,
    gather_array,
    gather_cells,
    gather_columns,
    looks_like_id,
)
from advect.doctor.machine import MACHINE_CHECKS
from advect.doctor.plan import Plan, check_plan, measure_network
from advect.doctor.probes import device_memory, gather_machine
from advect.doctor.report import Finding
from advect.doctor.run import RUN_CHECKS
from advect.doctor.run_facts import gather_run
from advect.doctor.samples import QUALITY_CHECKS, SAMPLE_CHECKS


@dataclass(frozen=True)
class ResolvedData:
    """Data that were found.

    Attributes:
        format: its name; empty for a preset's own.
        path: the file or folder; None where the data lie in none.
        preset: the preset that trains on it.
        settings: its configuration for these data.
        chosen: whether the batch size was asked for, so that it is judged and not chosen.
    """

    format: str
    path: Path | None
    preset: str
    settings: Config
    chosen: bool

    @property
    def layer(self) -> str | None:
        """The layer of an ``.h5ad`` file that is trained on; None for its X."""
        return self.settings.data.layer if isinstance(self.settings.data, CellsData) else None

    def build(self, without: Sequence[str] = ()) -> Dataset:
        """Open the data, without some columns where they are a table. Raises UserError where they cannot be used."""
        data = self.settings.data
        if isinstance(data, TableData):
            asked = {*data.drop, *data.conditions, *data.continuous_conditions, *data.categorical}
            data = replace(data, drop=(*data.drop, *(name for name in without if name not in asked)))
        return build_dataset(data)


def open_data(words: Sequence[str]) -> ResolvedData:
    """The data that words after ``advect train`` name: a preset, ``--data PATH``, flags. Raises UserError."""
    name, arguments = parse_train(list(words))
    data = arguments.settings.data
    place = getattr(data, "data_dir", None)
    if hasattr(data, "data_dir") and place is None:
        raise UserError(f"preset {name} reads its data from a folder; add --data-dir FOLDER")
    path = Path(place).expanduser() if place is not None else None
    if isinstance(place, Path) and not place.expanduser().exists():
        raise UserError(f"--data-dir {place} does not exist; name the folder or file of the data")
    own = not words[0].startswith("-")
    chosen = own or any(word.partition("=")[0].replace("_", "-") == "--batch-size" for word in words)
    return ResolvedData(format_of(data) or "", path, name, arguments.settings, chosen)


_VALUES = (check_count, check_held_out, check_infinite, check_range, check_constant, check_copies)
_PICTURES = (check_unreadable, check_sizes, check_grey)


def examine_data(words: Sequence[str], *, look: int = 2000, device: str = "auto") -> list[Finding]:
    """What there is to say of the data that words after ``advect train`` name; ``look`` samples at most are looked at.

    Raises UserError for mistakes in the words, and where nothing is at their path, or no data that is known.
    """
    if look < 2:
        raise UserError(f"--look must be at least 2 samples, got {look}; 2000 is usual")
    data, place = open_data(words), pick_device(device)
    findings: list[Finding] = []
    without = _look_at_file(data, look, findings)
    try:
        source = data.build(without)
        findings.extend(_judge_source(source, look))
    except UserError as error:
        findings.append(_cannot(error))
        return findings
    findings.append(_suggest(data, source, device_memory(place)[1], str(place)))
    return findings


def _look_at_file(data: ResolvedData, look: int, findings: list[Finding]) -> list[str]:
    """Judge the file by itself where it is of cells, a table or an array; the columns to leave out of a table."""
    if data.path is None or not data.path.is_file():
        return []
    try:
        if data.format == "cells":
            cells = gather_cells(data.path, look, data.layer)
            findings += _all(check(cells) for check in CELL_CHECKS)
        elif data.format == "table":
            columns = gather_columns(data.path)
            findings += _all(check(columns) for check in COLUMN_CHECKS)
            return sorted({*looks_like_id(columns), *(c.name for c in columns if c.missing == 1)})
        elif data.format in ("array-file", "sequences") and (array := gather_array(data.path, look)):
            findings.append(check_array(array))
    except UserError:
        return []  # whoever makes a source of it says why
    return []


def _judge_source(source: Dataset, look: int) -> Iterator[Finding]:
    """The findings in turn: what comes before data that cannot be read is told all the same."""
    pictures = gather_pictures(source, look)
    if pictures is not None:
        yield from _all(check(pictures) for check in _PICTURES)
        if len(pictures.unreadable) == pictures.looked:
            return
    values = gather_values(source, look)
    yield from _all(check(values) for check in _VALUES)
    yield from _all(check_classes(classes) for classes in gather_classes(source))
    lengths = gather_lengths(source)
    if lengths is not None:
        yield check_lengths(lengths)


def _suggest(data: ResolvedData, source: Dataset, free: int, device: str) -> Finding:
    network = data.settings.network
    try:
        parameters, kept = measure_network(network, source.spec)
    except UserError as error:  # the network of a preset does not take data of this shape
        return Finding("note", "The network of the preset does not fit the data", {"why": str(error)})
    plan = Plan(
        network=network.network,
        preset=data.preset,
        parameters=parameters,
        kept=kept,
        free=free,
        device=device,
        train=len(source.train),
        usual=data.settings.training.batch_size,
        fixed=data.chosen,
    )
    return check_plan(plan)


def _cannot(error: UserError) -> Finding:
    return Finding("problem", "The data cannot be used as they are", {"why": str(error)})


def _all(findings: Iterable[Finding | None]) -> list[Finding]:
    return [finding for finding in findings if finding is not None]


T = TypeVar("T")


def examine_machine(folder: Path = Path("runs"), *, device: str = "auto") -> list[Finding]:
    """What there is to say of this machine; runs are to go to ``folder``."""
    return judge(gather_machine(folder, device), MACHINE_CHECKS)


def examine_run(path: Path, *, samples: int = 0, seed: int = 0, device: str = "auto") -> list[Finding]:
    """What there is to say of a run, from its folder; with ``samples`` > 0 also of so many samples and their data.

    Raises:
        UserError: there is no run at ``path``, or samples are asked for and cannot be drawn.
    """
    facts = gather_run(path)
    findings = judge(facts, (*RUN_CHECKS, *QUALITY_CHECKS))
    if not samples:
        return findings
    if facts.checkpoint is None:
        raise UserError(f"--samples {samples} needs a checkpoint, and {path} has none; leave --samples out")
    from advect.doctor.samples import gather_samples

    return findings + judge(gather_samples(path, samples, seed=seed, device=device), SAMPLE_CHECKS)


def judge(facts: T, checks: Iterable[Callable[[T], Finding | None]]) -> list[Finding]:
    """What the checks find in the facts, in their order."""
    return [finding for check in checks if (finding := check(facts)) is not None]

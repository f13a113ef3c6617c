"""The job behind ``advect doctor --data PATH`` and ``advect doctor PRESET``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from advect.core.errors import UserError
from advect.data import Source
from advect.doctor.data_checks import (
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
)
from advect.doctor.data_facts import gather_classes, gather_lengths, gather_pictures, gather_values
from advect.doctor.finding import Finding
from advect.doctor.format_checks import CELL_CHECKS, COLUMN_CHECKS, check_array, looks_like_id
from advect.doctor.format_facts import gather_array, gather_cells, gather_columns
from advect.doctor.machine_facts import device_memory
from advect.doctor.opening import Opened, open_data, open_preset
from advect.doctor.plan import Plan, check_plan, kind_of, measure_network
from advect.runs.build import pick_device

_VALUES = (check_count, check_held_out, check_infinite, check_range, check_constant, check_copies)
_PICTURES = (check_unreadable, check_sizes, check_grey)


def examine_data(path: Path, *, look: int = 2000, device: str = "auto") -> list[Finding]:
    """What there is to say of data at ``path``, of which ``look`` samples at most are looked at.

    Raises UserError where nothing is at ``path``, or no data that is known.
    """
    return _examine(open_data(path), look, device)


def examine_preset(words: Sequence[str], *, look: int = 2000, device: str = "auto") -> list[Finding]:
    """What there is to say of a preset's data; ``words`` are its name and flags of ``advect train``."""
    return _examine(open_preset(words), look, device)


def _examine(data: Opened, look: int, device: str) -> list[Finding]:
    if look < 2:
        raise UserError(f"--look must be at least 2 samples, got {look}; 2000 is usual")
    place = pick_device(device)
    findings: list[Finding] = []
    without = _look_at_file(data, look, findings)
    try:
        source = data.build(without)
        findings += _judge_source(source, look)
    except UserError as error:
        findings.append(_cannot(error))
        return findings
    findings += _suggest(data, source, device_memory(place)[1], str(place))
    return findings


def _look_at_file(data: Opened, look: int, findings: list[Finding]) -> list[str]:
    """Judge the file by itself where it is of cells, a table or an array; the columns to leave out of a table."""
    if data.path is None or not data.path.is_file():
        return []
    try:
        if data.format == "cells":
            cells = gather_cells(data.path, look)
            findings += _all(check(cells) for check in CELL_CHECKS)
        elif data.format == "table":
            columns = gather_columns(data.path)
            findings += _all(check(columns) for check in COLUMN_CHECKS)
            return sorted({*looks_like_id(columns), *(c.name for c in columns if c.missing == 1)})
        elif data.format in ("array-file", "sequences") and (array := gather_array(data.path, look)):
            findings.append(check_array(array))
    except UserError as error:
        findings.append(_cannot(error))
    return []


def _judge_source(source: Source, look: int) -> list[Finding]:
    findings: list[Finding | None] = []
    pictures = gather_pictures(source, look)
    if pictures is not None:
        findings += [check(pictures) for check in _PICTURES]
        if len(pictures.unreadable) == pictures.looked:
            return _all(findings)
    values = gather_values(source, look)
    findings += [check(values) for check in _VALUES]
    findings += [check_classes(classes) for classes in gather_classes(source)]
    lengths = gather_lengths(source)
    findings += [check_lengths(lengths)] if lengths is not None else []
    return _all(findings)


def _suggest(data: Opened, source: Source, free: int, device: str) -> list[Finding]:
    network, preset, usual = data.network(source.spec)
    try:
        parameters, kept = measure_network(network, source.spec)
    except UserError as error:  # the network of a preset does not take data of this shape
        return [Finding("note", "The network of the preset does not fit the data", {"why": str(error)})]
    plan = Plan(
        network=kind_of(network),
        preset=preset,
        parameters=parameters,
        kept=kept,
        free=free,
        device=device,
        train=len(source.train),
        usual=usual,
        fixed=data.settings is not None,
    )
    return [check_plan(plan)]


def _cannot(error: UserError) -> Finding:
    return Finding("problem", "The data cannot be used as they are", {"why": str(error)})


def _all(findings: Iterable[Finding | None]) -> list[Finding]:
    return [finding for finding in findings if finding is not None]

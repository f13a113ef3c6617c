"""The job behind ``advect doctor --data PATH`` and ``advect doctor PRESET``, both with flags of ``advect train``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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
from advect.doctor.opening import Opened, open_data
from advect.doctor.plan import Plan, check_plan, kind_of, measure_network
from advect.runs.build import pick_device

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


def _look_at_file(data: Opened, look: int, findings: list[Finding]) -> list[str]:
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


def _judge_source(source: Source, look: int) -> Iterator[Finding]:
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


def _suggest(data: Opened, source: Source, free: int, device: str) -> Finding:
    network = data.settings.network
    try:
        parameters, kept = measure_network(network, source.spec)
    except UserError as error:  # the network of a preset does not take data of this shape
        return Finding("note", "The network of the preset does not fit the data", {"why": str(error)})
    plan = Plan(
        network=kind_of(network),
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
